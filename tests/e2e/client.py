"""The walk's pods and its Services, and what the client pod, mediabot, gets.

What is walked is walked over IPv4, with the project's examples as they are; and where pods have IPv6 addresses, over
IPv6 as well, with the same examples for another address and another Service.
"""

from dataclasses import dataclass

from tests.e2e import pods
from tests.e2e.pods import Manifest
from tests.e2e.terminal import Terminal

PODS = ["lrp-pod", "mediabot", "web"]


def in_url(ip: str) -> str:
    """An address, as URLs have it."""
    return f"[{ip}]" if ":" in ip else ip


@dataclass(frozen=True)
class Way:
    """One kind of IP. ip: the address that lrp-addr takes; suffix: what follows the examples' names."""

    ip: str
    suffix: str

    @property
    def address(self) -> str:
        """The URL that is answered by the local pod, as long as lrp-addr is in force."""
        return f"http://{in_url(self.ip)}:8080/"

    @property
    def service(self) -> str:
        """The Service's name."""
        return f"my-service{self.suffix}"

    @property
    def service_policy(self) -> str:
        """The name of the policy that takes the Service."""
        return f"lrp-svc{self.suffix}"

    def manifest(self, example: str) -> Manifest:
        """One of the three examples, for this kind of IP."""
        (found,) = pods.example(example)
        found["metadata"]["name"] += self.suffix
        match found["spec"]:
            case {"redirectFrontend": {"addressMatcher": matcher}}:
                matcher["ip"] = self.ip
            case {"redirectFrontend": {"serviceMatcher": matcher}}:
                matcher["serviceName"] = self.service
            case {"selector": _}:
                found["spec"]["ipFamilies"] = ["IPv6" if ":" in self.ip else "IPv4"]
        return found


IPV4, IPV6 = Way("169.254.169.254", ""), Way("fd00:ec2::254", "-6")
ADDRESS = IPV4.address


def set_stage(terminal: Terminal) -> None:
    """Make the pods and the Services, those that are not there."""
    terminal.apply(
        *pods.example("lrp-pod.yaml", {"nginx": "web"}),
        pods.pod("mediabot", "client", {"class": "mediabot", "org": "empire"}),
        pods.web("web", "web", 8080),
    )
    terminal("kubectl apply -f examples/my-service.yaml")
    terminal(f"kubectl wait {' '.join(f'pod/{name}' for name in PODS)} --for=condition=Ready --timeout=60s")
    if any(":" in of["ip"] for of in terminal.get("pod mediabot")["status"]["podIPs"]):
        terminal.apply(IPV6.manifest("my-service.yaml"))


def ways(terminal: Terminal) -> list[Way]:
    """The kinds of IP that pods have: the stage has a Service of each."""
    there = terminal.quietly("kubectl get services -o name").split()
    return [way for way in (IPV4, IPV6) if f"service/{way.service}" in there]


def redirect_addresses(terminal: Terminal) -> None:
    """Make the policies for the address, as far as they are not there."""
    terminal("kubectl apply -f examples/lrp-addr.yaml")
    if IPV6 in ways(terminal):
        terminal.apply(IPV6.manifest("lrp-addr.yaml"))


def curl(terminal: Terminal, url: str, *, check: bool = True) -> str:
    """What the client pod gets."""
    return terminal(f"kubectl exec mediabot -- curl -sS --max-time 3 {url}", check=check).strip()


def my_service(terminal: Terminal, way: Way = IPV4) -> str:
    """The URL of my-service, by its ClusterIP."""
    return f"http://{in_url(terminal.get(f'service {way.service}')['spec']['clusterIP'])}/"


def cluster_dns(terminal: Terminal) -> str:
    """The cluster's DNS Service, by its ClusterIP."""
    return str(terminal.get("-n kube-system service kube-dns")["spec"]["clusterIP"])
