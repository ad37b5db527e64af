/*
 * Fast clients and servers for the tests of this folder: Python's would be too slow to meet a race.
 *
 *   storm serve POD FIRST COUNT                                 answer on TCP and UDP ports FIRST.., both families
 *   storm ask KINDS WAYS CPU PAUSE IPV4 IPV6 PORT FIRST COUNT   dial random frontends until standard input closes
 *   storm crowd SOCKETS WAY IPV4 IPV6 PORT FIRST COUNT          hold many UDP sockets; ask on all at each line of input
 *   storm threads THREADS WAY IPV4 IPV6 PORT FIRST COUNT        many threads on one UDP socket until standard input closes
 *
 * Frontend number k of COUNT is at IPV4+1+k and IPV6+1+k, PORT. Only servers on port FIRST+k may answer for it, on
 * whatever pod: each answer starts with who gives it, so a client knows when it got somebody else's.
 *
 * KINDS, a letter each: t a TCP connection; u a datagram from a new socket; k a datagram from a socket that is kept;
 * p only a UDP connect, and whom getpeername shows then. WAYS: 4, 6, m (IPv4 mapped into an IPv6 socket). PAUSE: so
 * many microseconds between exchanges.
 *
 * What was seen is printed as one line of JSON: exchanges by kind and way, `failed` (errno, or no answer), `wrong` (an
 * answer of somebody else, or one that does not seem to come from the frontend), and the first few complaints. `ended`
 * are UDP sockets that lost their connection right after connect: the agent ends those whose backend has just left.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define COMPLAINTS 6
#define PATIENCE_SECONDS 20
#define PICKS_PER_SOCKET 16

struct identity {
	uint32_t pod, port;
};

/* An answer to a datagram: who answers, and the question, which is the frontend's number. */
struct answer {
	struct identity from;
	uint32_t question;
};

static uint32_t base4, base6_low;
static struct in6_addr base6;
static uint16_t frontend_port;
static uint32_t first_port, frontends;

static atomic_long failed, wrong, ended;
static pthread_mutex_t complaint_lock = PTHREAD_MUTEX_INITIALIZER;
static char complaints[COMPLAINTS][200];
static int complaint_count;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void complain(atomic_long *kind, const char *format, ...)
{
	va_list arguments;

	atomic_fetch_add(kind, 1);
	pthread_mutex_lock(&complaint_lock);
	if (complaint_count < COMPLAINTS) {
		va_start(arguments, format);
		vsnprintf(complaints[complaint_count++], sizeof(complaints[0]), format, arguments);
		va_end(arguments);
	}
	pthread_mutex_unlock(&complaint_lock);
}

static uint32_t random_below(uint64_t *state, uint32_t limit)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (*state >> 32) % limit;
}

static void raise_limit(rlim_t wanted)
{
	struct rlimit limit = {wanted, wanted};

	if (setrlimit(RLIMIT_NOFILE, &limit))
		die("setrlimit");
}

/* --- Addresses */

static int family_of(char way)
{
	return way == '4' ? AF_INET : AF_INET6;
}

static socklen_t frontend_address(char way, uint32_t k, struct sockaddr_storage *to)
{
	struct sockaddr_in *to4 = (void *)to;
	struct sockaddr_in6 *to6 = (void *)to;
	uint32_t ip4 = htonl(base4 + 1 + k), low = htonl(base6_low + 1 + k);

	memset(to, 0, sizeof(*to));
	if (way == '4') {
		*to4 = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(frontend_port)};
		to4->sin_addr.s_addr = ip4;
		return sizeof(*to4);
	}
	*to6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_port = htons(frontend_port)};
	if (way == '6') {
		to6->sin6_addr = base6;
		memcpy(&to6->sin6_addr.s6_addr[12], &low, 4);
	} else {
		memset(&to6->sin6_addr.s6_addr[10], 0xff, 2);
		memcpy(&to6->sin6_addr.s6_addr[12], &ip4, 4);
	}
	return sizeof(*to6);
}

static bool same_address(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
	const struct sockaddr_in *a4 = (void *)a, *b4 = (void *)b;
	const struct sockaddr_in6 *a6 = (void *)a, *b6 = (void *)b;

	if (a->ss_family != b->ss_family)
		return false;
	if (a->ss_family == AF_INET)
		return a4->sin_port == b4->sin_port && a4->sin_addr.s_addr == b4->sin_addr.s_addr;
	return a6->sin6_port == b6->sin6_port && !memcmp(&a6->sin6_addr, &b6->sin6_addr, 16);
}

static const char *text_of(const struct sockaddr_storage *address, char text[80])
{
	char ip[64];
	const struct sockaddr_in *in4 = (void *)address;
	const struct sockaddr_in6 *in6 = (void *)address;

	if (address->ss_family == AF_INET)
		inet_ntop(AF_INET, &in4->sin_addr, ip, sizeof(ip));
	else
		inet_ntop(AF_INET6, &in6->sin6_addr, ip, sizeof(ip));
	snprintf(text, 80, "%s port %d", ip, ntohs(in4->sin_port));
	return text;
}

static void read_frontends(char **words)
{
	struct in_addr ip4;
	uint32_t low;

	if (inet_pton(AF_INET, words[0], &ip4) != 1 || inet_pton(AF_INET6, words[1], &base6) != 1) {
		fprintf(stderr, "no addresses: %s %s\n", words[0], words[1]);
		exit(1);
	}
	base4 = ntohl(ip4.s_addr);
	memcpy(&low, &base6.s6_addr[12], 4);
	base6_low = ntohl(low);
	frontend_port = atoi(words[2]);
	first_port = atoi(words[3]);
	frontends = atoi(words[4]);
}

/* --- The server */

static int listen_on(int type, uint32_t port)
{
	struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int sock = socket(AF_INET6, type | SOCK_NONBLOCK, 0), yes = 1, buffer = 1 << 22;

	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
	setsockopt(sock, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof(buffer));
	if (bind(sock, (void *)&any, sizeof(any)))
		die("bind");
	if (type == SOCK_STREAM && listen(sock, 4096))
		die("listen");
	return sock;
}

static void answer_datagrams(int sock, struct identity own)
{
	struct sockaddr_storage client;
	struct answer answer = {.from = own};
	socklen_t length;

	for (;;) {
		length = sizeof(client);
		if (recvfrom(sock, &answer.question, 4, 0, (void *)&client, &length) != 4)
			return;
		sendto(sock, &answer, sizeof(answer), 0, (void *)&client, length);
	}
}

static void greet(int listener, struct identity own)
{
	int connection;

	while ((connection = accept4(listener, NULL, NULL, 0)) >= 0) {
		send(connection, &own, sizeof(own), MSG_NOSIGNAL);
		close(connection);
	}
}

static int serve(char **words)
{
	uint32_t pod = atoi(words[0]), first = atoi(words[1]), count = atoi(words[2]), i;
	int *sockets = calloc(2 * count, sizeof(int)), epoll = epoll_create1(0), ready, n;
	struct epoll_event events[64];

	raise_limit(2 * count + 64);
	for (i = 0; i < 2 * count; i++) {
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};

		sockets[i] = listen_on(i % 2 ? SOCK_STREAM : SOCK_DGRAM, first + i / 2);
		epoll_ctl(epoll, EPOLL_CTL_ADD, sockets[i], &event);
	}
	puts("ready");
	fflush(stdout);
	while ((ready = epoll_wait(epoll, events, 64, -1)) >= 0 || errno == EINTR)
		for (n = 0; n < ready; n++) {
			i = events[n].data.u32;
			(i % 2 ? greet : answer_datagrams)(sockets[i], (struct identity){pod, first + i / 2});
		}
	return 1;
}

/* --- Clients */

static int new_socket(char way, int type)
{
	struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
	struct linger at_once = {1, 0};
	int sock = socket(family_of(way), type, 0);

	if (sock < 0)
		die("socket");
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (type == SOCK_STREAM) /* no TIME_WAIT: ports would run out */
		setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	return sock;
}

static void check_identity(const char *what, char way, uint32_t k, const struct identity *from)
{
	if (from->port != first_port + k)
		complain(&wrong, "%s way %c frontend %u: pod %u port %u answered", what, way, k, from->pod, from->port);
}

static void check_seen(const char *what, char way, uint32_t k, const struct sockaddr_storage *seen)
{
	struct sockaddr_storage expected;
	char text[80];

	frontend_address(way, k, &expected);
	if (!same_address(seen, &expected))
		complain(&wrong, "%s way %c frontend %u: seen as %s", what, way, k, text_of(seen, text));
}

static void check_peer(const char *what, int sock, char way, uint32_t k)
{
	struct sockaddr_storage seen;
	socklen_t length = sizeof(seen);

	if (!getpeername(sock, (void *)&seen, &length))
		check_seen(what, way, k, &seen);
	else if (errno == ENOTCONN && *what == 'p')
		atomic_fetch_add(&ended, 1);
	else
		complain(&failed, "%s way %c frontend %u: getpeername: %s", what, way, k, strerror(errno));
}

static void ask_tcp(char way, uint32_t k)
{
	struct sockaddr_storage to;
	socklen_t length = frontend_address(way, k, &to);
	int sock = new_socket(way, SOCK_STREAM);
	struct identity from;

	if (connect(sock, (void *)&to, length)) {
		complain(&failed, "TCP way %c frontend %u: connect: %s", way, k, strerror(errno));
	} else {
		check_peer("TCP", sock, way, k);
		if (recv(sock, &from, sizeof(from), MSG_WAITALL) != sizeof(from))
			complain(&failed, "TCP way %c frontend %u: recv: %s", way, k, strerror(errno));
		else
			check_identity("TCP", way, k, &from);
	}
	close(sock);
}

static void receive(int sock, char way, uint32_t k, const char *what)
{
	struct sockaddr_storage seen;
	socklen_t length = sizeof(seen);
	struct answer answer;

	if (recvfrom(sock, &answer, sizeof(answer), 0, (void *)&seen, &length) != sizeof(answer)) {
		complain(&failed, "%s way %c frontend %u: recvfrom: %s", what, way, k, strerror(errno));
		return;
	}
	check_identity(what, way, answer.question, &answer.from);
	check_seen(what, way, answer.question, &seen);
	if (k != UINT32_MAX && answer.question != k)
		complain(&wrong, "%s way %c frontend %u: an answer to %u", what, way, k, answer.question);
}

static bool send_to(int sock, char way, uint32_t k, const char *what)
{
	struct sockaddr_storage to;
	socklen_t length = frontend_address(way, k, &to);

	if (sendto(sock, &k, 4, 0, (void *)&to, length) == 4)
		return true;
	complain(&failed, "%s way %c frontend %u: sendto: %s", what, way, k, strerror(errno));
	return false;
}

static void ask_udp(int sock, char way, uint32_t k, const char *what)
{
	if (send_to(sock, way, k, what))
		receive(sock, way, k, what);
}

static void pick(char way, uint64_t *state)
{
	struct sockaddr_storage to;
	int sock = new_socket(way, SOCK_DGRAM), i;

	for (i = 0; i < PICKS_PER_SOCKET; i++) {
		uint32_t k = random_below(state, frontends);
		socklen_t length = frontend_address(way, k, &to);

		if (connect(sock, (void *)&to, length))
			complain(&failed, "pick way %c frontend %u: connect: %s", way, k, strerror(errno));
		else
			check_peer("pick", sock, way, k);
	}
	close(sock);
}

static void tell(void)
{
	int i;

	printf("\"ended\": %ld, \"failed\": %ld, \"wrong\": %ld, \"complaints\": [", ended, failed, wrong);
	for (i = 0; i < complaint_count; i++)
		printf("%s\"%s\"", i ? ", " : "", complaints[i]);
	printf("]}\n");
	fflush(stdout);
}

static bool input_open(void)
{
	struct pollfd input = {.fd = 0, .events = POLLIN};

	return poll(&input, 1, 0) == 0;
}

static int ask(char **words)
{
	const char *kinds = words[0], *ways = words[1];
	uint32_t kind_count = strlen(kinds), way_count = strlen(ways), kind, way, k;
	int cpu = atoi(words[2]), pause = atoi(words[3]), *kept;
	long *asked = calloc(kind_count * way_count, sizeof(long)), rounds;
	uint64_t state = 88172645463325252ull ^ ((uint64_t)getpid() << 20);
	cpu_set_t cpus;

	read_frontends(words + 4);
	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (cpu >= 0 && sched_setaffinity(0, sizeof(cpus), &cpus))
		die("sched_setaffinity");
	kept = calloc(way_count, sizeof(int));
	for (way = 0; way < way_count; way++)
		kept[way] = new_socket(ways[way], SOCK_DGRAM);
	for (rounds = 0; rounds % 16 || input_open(); rounds++) {
		if (pause)
			usleep(pause);
		kind = random_below(&state, kind_count);
		way = random_below(&state, way_count);
		k = random_below(&state, frontends);
		asked[kind * way_count + way] += kinds[kind] == 'p' ? PICKS_PER_SOCKET : 1;
		if (kinds[kind] == 't') {
			ask_tcp(ways[way], k);
		} else if (kinds[kind] == 'k') {
			ask_udp(kept[way], ways[way], k, "kept UDP");
		} else if (kinds[kind] == 'p') {
			pick(ways[way], &state);
		} else {
			int sock = new_socket(ways[way], SOCK_DGRAM);

			ask_udp(sock, ways[way], k, "UDP");
			close(sock);
		}
	}
	printf("{\"asked\": {");
	for (kind = 0; kind < kind_count; kind++)
		for (way = 0; way < way_count; way++)
			printf("%s\"%c%c\": %ld", kind + way ? ", " : "", kinds[kind], ways[way],
			       asked[kind * way_count + way]);
	printf("}, ");
	tell();
	return 0;
}

static int crowd(char **words)
{
	uint32_t count = atoi(words[0]), i;
	char way = words[1][0], line[16];
	int *sockets = calloc(count, sizeof(int));
	long asked = 0;

	raise_limit(count + 64);
	read_frontends(words + 2);
	for (i = 0; i < count; i++)
		sockets[i] = new_socket(way, SOCK_DGRAM);
	while (fgets(line, sizeof(line), stdin)) {
		for (i = 0; i < count; i++, asked++)
			ask_udp(sockets[i], way, i % frontends, "crowd");
		puts("asked");
		fflush(stdout);
	}
	printf("{\"asked\": {\"crowd\": %ld}, ", asked);
	tell();
	return 0;
}

static int shared_socket;
static char shared_way;
static atomic_long shared_asked;
static atomic_bool stopping;

static void *one_of_many(void *number)
{
	uint64_t state = 88172645463325252ull * (1 + (uintptr_t)number);

	while (!atomic_load(&stopping)) {
		/* The answer that comes may be another thread's: it tells itself which question it answers. */
		if (send_to(shared_socket, shared_way, random_below(&state, frontends), "threads"))
			receive(shared_socket, shared_way, UINT32_MAX, "threads");
		atomic_fetch_add(&shared_asked, 1);
	}
	return NULL;
}

static int threads(char **words)
{
	uintptr_t count = atoi(words[0]), i;
	pthread_t *started = calloc(count, sizeof(pthread_t));
	char c;

	shared_way = words[1][0];
	read_frontends(words + 2);
	shared_socket = new_socket(shared_way, SOCK_DGRAM);
	for (i = 0; i < count; i++)
		if (pthread_create(&started[i], NULL, one_of_many, (void *)i))
			die("pthread_create");
	while (read(0, &c, 1) > 0)
		;
	atomic_store(&stopping, true);
	for (i = 0; i < count; i++)
		pthread_join(started[i], NULL);
	printf("{\"asked\": {\"threads\": %ld}, ", shared_asked);
	tell();
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int words;
		int (*run)(char **);
	} modes[] = {{"serve", 3, serve}, {"ask", 9, ask}, {"crowd", 7, crowd}, {"threads", 7, threads}};
	size_t i;

	for (i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (argc == 2 + modes[i].words && !strcmp(argv[1], modes[i].name))
			return modes[i].run(argv + 2);
	fprintf(stderr, "usage: see the beginning of storm.c\n");
	return 2;
}
