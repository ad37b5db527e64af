"""The walk's pods and its Service, and what the client pod, mediabot, gets."""

from tests.e2e import pods
from tests.e2e.terminal import Terminal

ADDRESS = "http://169.254.169.254:8080/"
PODS = ["lrp-pod", "mediabot", "web"]


def set_stage(terminal: Terminal) -> None:
    """Make the pods and the Service, those that are not there."""
    terminal.apply(
        *pods.example("lrp-pod.yaml", {"nginx": "web"}),
        pods.pod("mediabot", "client", {"class": "mediabot", "org": "empire"}),
        pods.web("web", "web", 8080),
    )
    terminal("kubectl apply -f examples/my-service.yaml")
    terminal(f"kubectl wait {' '.join(f'pod/{name}' for name in PODS)} --for=condition=Ready --timeout=60s")


def curl(terminal: Terminal, url: str, *, check: bool = True) -> str:
    """What the client pod gets."""
    return terminal(f"kubectl exec mediabot -- curl -sS --max-time 3 {url}", check=check).strip()


def my_service(terminal: Terminal) -> str:
    """The URL of my-service, by its ClusterIP."""
    return f"http://{terminal.get('service my-service')['spec']['clusterIP']}/"


def cluster_dns(terminal: Terminal) -> str:
    """The cluster's DNS Service, by its ClusterIP."""
    return str(terminal.get("-n kube-system service kube-dns")["spec"]["clusterIP"])
