"""The story. `python -m demo`, as root; exit code 1 where something is not as told."""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen

from demo.agent import NODE, Agent
from demo.modes import MODES, USUAL, Mode
from demo.stage import CLUSTER_DNS, Stage
from demo.telling import NotAsToldError, chapter, check, failed, run, say, shown
from lab import CallFailedError, Node

ADDRESS = "http://169.254.169.254:8080/"
SERVICE = "http://10.96.61.7/"
HERE, FAR = "hello from lrp-pod here on worker-1", "hello from web far away on worker-2"
DNS_HERE, DNS_FAR = "node-local-dns-7c9zt here on worker-1", r"coredns-[12] far away on worker-2"


class Story:
    """What happens, in order; each part leaves the stage to the next."""

    def __init__(self, stage: Stage, mode: Mode) -> None:
        self._stage = stage
        self._mode = mode
        self._agent = Agent(stage, mode)

    def tell(self) -> None:
        """Tell all of it."""
        self._before()
        self._start()
        self._address()
        self._service()
        self._dns()
        self._watch()
        self._back()
        self._outlive()

    @property
    def agent(self) -> Agent:
        """The agent."""
        return self._agent

    def _curl(self, url: str, *expect: str) -> None:
        run("client", self._stage.client, f"curl -sS --max-time 3 {url}", expect=expect)

    def _dig(self, question: str, *expect: str) -> None:
        command = f"dig +short +time=2 +tries=1 @{CLUSTER_DNS} {question}"
        run("client", self._stage.client, command, expect=expect)

    def _before(self) -> None:
        chapter(
            "Before",
            "A node, worker-1, made of network namespaces: pods client, lrp-pod (an HTTP server) and "
            "node-local-dns-7c9zt (a DNS cache). web, coredns-1 and coredns-2 stand for pods of another node. "
            "kube-proxy's work is done by nftables rules. Nobody has 169.254.169.254. "
            "client$ is a shell in that pod, worker-1$ one on the node.",
        )
        self._curl(ADDRESS, r"curl: \(7\)")
        self._curl(SERVICE, FAR)
        self._dig("TXT whoami", DNS_FAR)

    def _start(self) -> None:
        chapter(
            "The agent starts",
            "It follows a directory of manifests: what the cluster says about its Services and this node's pods, "
            "and no policy so far. (web.yaml adds to my-service what a cluster adds: its address and endpoints. "
            "A manifest of the client pod is there already.) "
            + ("kube-proxy is replaced." if self._mode.replaces else "kube-proxy stays."),
        )
        self._agent.copy("my-service.yaml", "worker-1/web.yaml", "worker-1/dns.yaml")
        self._agent.start()
        self._agent.lrpctl("status", "in force", NODE)
        served = "active" if self._mode.replaces else "kube-proxy"
        self._agent.lrpctl(
            "service list", rf"10\.96\.61\.7:80/TCP +ClusterIP +1 => 10\.244\.1\.23:8080/TCP \({served}\)"
        )
        if self._mode.replaces:
            say("kube-proxy's rules can go:")
            run(NODE, self._stage.node, "nft delete table ip kube-proxy")
            self._curl(SERVICE, FAR)
            self._dig("TXT whoami", DNS_FAR)

    def _address(self) -> None:
        chapter("An address", "Policy lrp-addr: connects to 169.254.169.254:8080 go to the local pod with app=proxy.")
        self._agent.copy("lrp-addr.yaml")
        self._agent.moved("169.254.169.254:8080/TCP", redirected=True)
        self._curl(ADDRESS, HERE)
        if self._mode.node:
            say("The node's own programs are redirected, too:")
            run(NODE, self._stage.node, f"curl -sS --max-time 3 {ADDRESS}", expect=[HERE])

    def _service(self) -> None:
        chapter("A Service", "Policy lrp-svc: my-service is answered by the local pod, rather than far away.")
        self._curl(SERVICE, FAR)
        self._agent.copy("lrp-svc.yaml")
        self._agent.moved("10.96.61.7:80/TCP", redirected=True)
        self._curl(SERVICE, HERE)

    def _dns(self) -> None:
        chapter("Node-local DNS", "Queries to the cluster's DNS address go to the cache on the same node: UDP and TCP.")
        self._agent.copy("node-local-dns.yaml")
        for protocol in ("UDP", "TCP"):
            self._agent.moved(f"{CLUSTER_DNS}:53/{protocol}", redirected=True)
        self._dig("TXT whoami", DNS_HERE)
        self._dig("+tcp TXT whoami", DNS_HERE)
        say("What the cache does not know, it asks the cluster's DNS pods for:")
        self._dig("A my-service", r"^10\.96\.61\.7\n$")
        say("The client believes that the address it asked has answered:")
        command = f"dig @{CLUSTER_DNS} TXT whoami | grep SERVER"
        run("client", self._stage.client, command, expect=[rf"SERVER: {CLUSTER_DNS}#53"])

    def _watch(self) -> None:
        chapter("What the node says", "Each redirect as it happens, then the whole table with hits, then the policies.")
        watching = self._agent.watch("--last 3 --duration 20")
        self._curl(ADDRESS, HERE)
        self._curl(SERVICE, HERE)
        self._dig("TXT whoami", DNS_HERE)
        self._show_watched(watching)
        self._agent.lrpctl("service list", r"LocalRedirect +1 => 10\.244\.0\.17:80", r"default/lrp-addr +[1-9]")
        self._agent.lrpctl("lrp list", "default/lrp-svc +Accepted", "kube-system/nodelocaldns +Accepted")

    def _show_watched(self, watching: "Popen[str]") -> None:
        output, _ = watching.communicate(timeout=30)
        say("What observe saw meanwhile:")
        shown(output)
        check(output, [r"default/client .*169\.254\.169\.254:8080", r"10\.96\.61\.7:80", r"10\.96\.0\.10:53/UDP"])

    def _back(self) -> None:
        again = "is balanced among all its endpoints" if self._mode.replaces else "is kube-proxy's"
        chapter("Back again", f"Without its policy the Service {again} again; the other policies stay.")
        self._agent.remove("lrp-svc.yaml")
        self._agent.moved("10.96.61.7:80/TCP", redirected=False)
        self._curl(SERVICE, FAR)
        self._curl(ADDRESS, HERE)
        self._agent.lrpctl("service list", r"10\.96\.61\.7:80/TCP +ClusterIP")

    def _outlive(self) -> None:
        chapter("Without the agent", "What is in the kernel goes on redirecting when the agent has gone ...")
        self._agent.stop()
        self._curl(ADDRESS, HERE)
        say("... until it is told to leave no trace.")
        self._agent.clean_up()
        if self._mode.replaces:
            say("kube-proxy comes back:")
            self._stage.start_kube_proxy()
        self._curl(ADDRESS, r"curl: \(7\)")
        self._dig("TXT whoami", DNS_FAR)


def main() -> int:
    """Build the stage, tell the story, take everything away."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Show redirects of real connections.")
    parser.add_argument(
        "--mode", choices=MODES, default=USUAL, help=f"which of the four modes to show (README.md); usually {USUAL}"
    )
    mode = MODES[parser.parse_args().mode]
    began = time.monotonic()
    story = None
    try:
        with tempfile.TemporaryDirectory(prefix="lrp-demo-") as directory, Node() as node:
            story = Story(Stage.build(node, Path(directory)), mode)
            try:
                story.tell()
            except (NotAsToldError, CallFailedError):
                sys.stderr.write(f"\nThe agent's log:\n{story.agent.log()}")
                raise
    except (NotAsToldError, CallFailedError, OSError) as error:
        failed(error)
        return 1
    except KeyboardInterrupt as stopped:
        sys.stderr.write("\nstopped; everything is removed\n")
        return 128 + signal.Signals[str(stopped) or "SIGINT"]
    say_end(time.monotonic() - began)
    return 0


def say_end(seconds: float) -> None:
    """End well."""
    chapter("Done", f"Everything was as told, in {seconds:.0f} s, and everything is removed again.")


if __name__ == "__main__":
    sys.exit(main())
