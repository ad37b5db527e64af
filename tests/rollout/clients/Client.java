import java.io.IOException;
import java.net.DatagramPacket;
import java.net.DatagramSocket;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.PortUnreachableException;
import java.net.SocketTimeoutException;
import java.nio.charset.StandardCharsets;
import java.util.Hashtable;
import java.util.Map;
import java.util.TreeMap;
import javax.naming.NamingException;
import javax.naming.directory.InitialDirContext;

/**
 * Java's ways, asked all the time until a line comes in: `Client jndi|kept SERVER`. JNDI's DNS provider has one
 * socket, which it connects and disconnects for each query; "kept" is a DatagramSocket that stays connected.
 * What it tells is described in resolver.py.
 */
public class Client {
    static final int TIMEOUT = 500;
    static final int PAUSE = 10;
    static final int KEPT_FOR = 50;
    static volatile boolean ended;

    interface Resolver {
        String ask(int number) throws IOException, NamingException;
    }

    static class Jndi implements Resolver {
        final InitialDirContext context;

        Jndi(String server) throws NamingException {
            var settings = new Hashtable<String, String>();
            settings.put("java.naming.factory.initial", "com.sun.jndi.dns.DnsContextFactory");
            settings.put("java.naming.provider.url", "dns://" + server);
            settings.put("com.sun.jndi.dns.timeout.initial", String.valueOf(TIMEOUT));
            settings.put("com.sun.jndi.dns.timeout.retries", "1");
            context = new InitialDirContext(settings);
        }

        public String ask(int number) throws NamingException {
            return (String) context.getAttributes(number + ".who.test.", new String[] {"A"}).get("A").get();
        }
    }

    static class Kept implements Resolver {
        final String server;
        DatagramSocket socket;
        int left;

        Kept(String server) {
            this.server = server;
        }

        public String ask(int number) throws IOException {
            if (socket == null || left == 0) renew();
            left--;
            try {
                byte[] query = query(number);
                socket.send(new DatagramPacket(query, query.length));
                var answer = new DatagramPacket(new byte[512], 512);
                do {
                    socket.receive(answer);
                } while (answer.getData()[0] != query[0] || answer.getData()[1] != query[1]);
                byte[] last = new byte[4];
                System.arraycopy(answer.getData(), answer.getLength() - 4, last, 0, 4);
                return InetAddress.getByAddress(last).getHostAddress();
            } catch (SocketTimeoutException error) {
                throw error;
            } catch (IOException error) {
                socket.close();
                socket = null;
                throw error;
            }
        }

        void renew() throws IOException {
            if (socket != null) socket.close();
            left = KEPT_FOR;
            socket = new DatagramSocket();
            socket.setSoTimeout(TIMEOUT);
            socket.connect(new InetSocketAddress(server, 53));
        }

        static byte[] query(int number) {
            byte[] label = String.valueOf(number).getBytes(StandardCharsets.US_ASCII);
            byte[] rest = "\3who\4test\0\0\1\0\1".getBytes(StandardCharsets.US_ASCII);
            byte[] query = new byte[12 + 1 + label.length + rest.length];
            query[0] = (byte) (number >> 8);
            query[1] = (byte) number;
            query[2] = 1;
            query[5] = 1;
            query[12] = (byte) label.length;
            System.arraycopy(label, 0, query, 13, label.length);
            System.arraycopy(rest, 0, query, 13 + label.length, rest.length);
            return query;
        }
    }

    static void say(String what, String detail) {
        System.out.println(System.currentTimeMillis() + " " + what + " " + detail);
    }

    static String reason(Exception error) {
        Throwable cause = error;
        if (error instanceof NamingException naming && naming.getRootCause() != null) cause = naming.getRootCause();
        if (cause instanceof SocketTimeoutException) return "timeout";
        if (cause instanceof PortUnreachableException) return "ECONNREFUSED";
        return String.valueOf(cause.getMessage());
    }

    public static void main(String[] arguments) throws Exception {
        var listener = new Thread(() -> {
            try {
                System.in.read();
            } catch (IOException error) {
                throw new RuntimeException(error);
            } finally {
                ended = true;
            }
        });
        listener.setDaemon(true);
        listener.start();
        Resolver resolver = arguments[0].equals("jndi") ? new Jndi(arguments[1]) : new Kept(arguments[1]);
        Map<String, Integer> answered = new TreeMap<>();
        int number = 0;
        for (; !ended; number++, Thread.sleep(PAUSE)) {
            String address;
            try {
                address = resolver.ask(number);
            } catch (IOException | NamingException first) {
                say("retried", reason(first));
                try {
                    address = resolver.ask(number);
                } catch (IOException | NamingException second) {
                    say("failed", reason(first) + "," + reason(second));
                    continue;
                }
            }
            if (answered.isEmpty()) System.out.println("ready");
            answered.merge(address, 1, Integer::sum);
        }
        answered.forEach((address, count) -> System.out.println("answered " + address + " " + count));
        System.out.println("queries " + number);
    }
}
