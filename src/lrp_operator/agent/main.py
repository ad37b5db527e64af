"""`lrp-agent`: the command line. Says in a sentence what is wrong with it, and else hands over to `run`.

    lrp-agent --node-name NAME                     in a pod: follows the Kubernetes API and redirects (until SIGTERM)
    lrp-agent --kubeconfig FILE --node-name NAME   the same from anywhere
    lrp-agent --manifests DIR --node-name NAME     follows a directory instead
    lrp-agent cleanup                              removes every trace from the kernel

The exit codes are 0, 1 (failed), 2 (wrong usage or settings) and 3 (another agent has the pins or the socket).
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lrp_operator import __version__
from lrp_operator.agent import EXIT_FAILED, EXIT_HELD, EXIT_USAGE
from lrp_operator.agent.apimodel import DEFAULT_SOCKET
from lrp_operator.agent.config import ConfigError, Loaded, load
from lrp_operator.agent.doors import Doors
from lrp_operator.agent.lock import LockHeldError, PinsLock
from lrp_operator.agent.logs import LogFormat, set_up
from lrp_operator.agent.options import setting
from lrp_operator.datapath.model import DatapathError
from lrp_operator.kernel.cgroup import CgroupError, find_root

if TYPE_CHECKING:
    from lrp_operator.agent.kube_source import KubernetesSource
    from lrp_operator.agent.sources import Given
    from lrp_operator.agent.withdraw import Order
    from lrp_operator.kernel.podlink import PodLinks
    from lrp_operator.sources.kube.client import KubeClient

app = typer.Typer(
    name="lrp-agent",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        sys.stdout.write(f"lrp-agent {__version__}\n")
        raise typer.Exit


BOOL = "true|false"
BpfRoot = Annotated[Path, typer.Option("--bpf-root", help="Directory on a BPF file system, for this agent's pins.")]
CgroupRoot = Annotated[
    Path | None, typer.Option("--cgroup-root", help="Cgroup v2 directory that all pods are below. Default: its mount.")
]
BPF_ROOT = Path("/sys/fs/bpf/lrp-operator")
USUAL_CGROUP_ROOT = Path("/sys/fs/cgroup")


@app.callback(
    invoke_without_command=True,
    help="Redirects this node's traffic as its CiliumLocalRedirectPolicies say, until it is told to stop (SIGTERM); "
    "what is in the kernel goes on redirecting after that. Try: lrp-agent --manifests /etc/lrp --node-name $(hostname)",
    epilog="Settings come from flags, else LRP_* variables (--enable-ipv6 is LRP_ENABLE_IPV6), else --config, whose "
    "keys are Cilium's Helm values, else defaults. LRP_BUILD_CACHE names a directory in which compiled programs "
    "are kept, so that an agent need not compile after a reboot. Ask a running agent with lrpctl.",
)
def agent(
    command: typer.Context,
    *,
    manifests: Annotated[
        Path | None,
        typer.Option("--manifests", help="Directory to follow: policies, Services, EndpointSlices, Pods, Nodes."),
    ] = None,
    kubeconfig: Annotated[
        str | None,
        typer.Option("--kubeconfig", help="Follow the Kubernetes API with this file's credentials.", metavar="FILE"),
    ] = None,
    context: Annotated[str | None, typer.Option("--context", help="Which context of the kubeconfig.")] = None,
    api_server: Annotated[
        str,
        typer.Option("--api-server", help="The API server's URL, where the usual one leads nowhere.", metavar="URL"),
    ] = "",
    report: Annotated[
        bool, typer.Option(help="Tell the cluster what this node redirects (its NodeRedirectState).")
    ] = True,
    withdraw_order: Annotated[
        str,
        typer.Option(
            "--withdraw-order",
            metavar="NAMESPACE/NAME",
            help="ConfigMap by which the cluster orders to take everything off this node. Nothing is touched before "
            "it was read.",
        ),
    ] = "",
    node: Annotated[str | None, typer.Option("--node-name", envvar="K8S_NODE_NAME", help="This node's name.")] = None,
    bpf_root: BpfRoot = BPF_ROOT,
    cgroup_root: CgroupRoot = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    api_socket: Annotated[
        Path, typer.Option("--api-socket", envvar="LRP_API_SOCKET", help="Unix socket that lrpctl asks.")
    ] = Path(DEFAULT_SOCKET),
    metrics: Annotated[
        str, typer.Option("--metrics-bind-address", help="HOST:PORT of /metrics; empty for none.")
    ] = "127.0.0.1:9881",
    healthz: Annotated[
        str, typer.Option("--healthz-bind-address", help="HOST:PORT of /healthz and /readyz; empty for none.")
    ] = "127.0.0.1:9882",
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How log lines look.")] = LogFormat.TEXT,
    kube_proxy_replacement: Annotated[str | None, setting("kubeProxyReplacement", BOOL)] = None,
    socket_lb: Annotated[str | None, setting("socketLB.enabled", BOOL)] = None,
    host_only: Annotated[str | None, setting("socketLB.hostNamespaceOnly", BOOL)] = None,
    policies: Annotated[str | None, setting("localRedirectPolicies.enabled", BOOL)] = None,
    cidrs: Annotated[str | None, setting("localRedirectPolicies.addressMatcherCIDRs", "CIDR,...")] = None,
    namespaces: Annotated[
        str | None, setting("localRedirectPolicies.addressMatcherNamespaces", "NAMESPACE,...")
    ] = None,
    max_frontends: Annotated[str | None, setting("localRedirectPolicies.maxFrontendsPerNamespace", "NUMBER")] = None,
    ipv4: Annotated[str | None, setting("enableIPv4", BOOL)] = None,
    ipv6: Annotated[str | None, setting("enableIPv6", BOOL)] = None,
    map_max: Annotated[str | None, setting("bpf.lbMapMax", "NUMBER")] = None,
    backend_map_max: Annotated[str | None, setting("bpf.lbBackendMapMax", "NUMBER")] = None,
    flows_max: Annotated[str | None, setting("bpf.ctTcpMax", "NUMBER")] = None,
    terminate_tcp: Annotated[str | None, setting("terminateTCP", BOOL)] = None,
    version: Annotated[  # noqa: ARG001 - its callback does it all
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Start the agent, unless a command follows."""
    if command.invoked_subcommand:
        return
    flags = {
        "kubeProxyReplacement": kube_proxy_replacement,
        "socketLB.enabled": socket_lb,
        "socketLB.hostNamespaceOnly": host_only,
        "localRedirectPolicies.enabled": policies,
        "localRedirectPolicies.addressMatcherCIDRs": cidrs,
        "localRedirectPolicies.addressMatcherNamespaces": namespaces,
        "localRedirectPolicies.maxFrontendsPerNamespace": max_frontends,
        "enableIPv4": ipv4,
        "enableIPv6": ipv6,
        "bpf.lbMapMax": map_max,
        "bpf.lbBackendMapMax": backend_map_max,
        "bpf.ctTcpMax": flows_max,
        "terminateTCP": terminate_tcp,
    }
    from lrp_operator.agent.sources import Given, ManifestSource  # noqa: PLC0415 - --help and cleanup need none of these

    given = Given(manifests, kubeconfig, context, api_server)
    if wrong := given.fault():
        _refuse(wrong)
    if not node:
        _refuse("which node is this? Give --node-name NAME, or set K8S_NODE_NAME")
    if withdraw_order and (manifests or withdraw_order.count("/") != 1 or not all(withdraw_order.split("/"))):
        _refuse(f"--withdraw-order: {withdraw_order!r} is to be NAMESPACE/NAME of a ConfigMap in a cluster")
    try:
        loaded = load(config, os.environ, flags)
        doors = Doors.checked(api_socket, metrics, healthz)
    except (ConfigError, ValueError) as error:
        _refuse(str(error))
    set_up(log_format)
    from lrp_operator.agent.run import Parts, run  # noqa: PLC0415
    from lrp_operator.datapath.engine import Datapath  # noqa: PLC0415

    source = ManifestSource(manifests) if manifests else _cluster(given, node, loaded)
    order = _order(given, withdraw_order) if withdraw_order else None
    parts = Parts(
        node=node,
        loaded=loaded,
        bpf_root=bpf_root,
        cgroup_root=cgroup_root or _find_cgroups(),
        doors=doors,
        sources=[source],
        make_datapath=Datapath,
        open_links=_open_links,
        report_to=None if isinstance(source, ManifestSource) or not report else source,
        order=order,
    )
    raise typer.Exit(run(parts))


@app.command()
def cleanup(bpf_root: BpfRoot = BPF_ROOT, cgroup_root: CgroupRoot = None) -> None:
    """Remove every trace of an agent from the kernel. Redirects end; connections go where they would without us."""
    from lrp_operator.agent.removal import remove_all  # noqa: PLC0415

    try:
        with contextlib.suppress(FileNotFoundError):
            PinsLock.take(bpf_root)
        removed = remove_all(bpf_root, cgroup_root or _find_cgroups())
    except LockHeldError as error:
        _fail(str(error), EXIT_HELD)
    except (DatapathError, OSError) as error:
        _fail(str(error), EXIT_FAILED)
    sys.stdout.writelines(f"removed {name}\n" for name in removed)
    if not removed:
        sys.stdout.write("nothing to remove\n")


def _cluster(given: "Given", node: str, loaded: Loaded) -> "KubernetesSource":
    """Make the source that follows the Kubernetes API."""
    from lrp_operator.agent.kube_source import KubernetesSource  # noqa: PLC0415

    return KubernetesSource(_client(given), node, replaces_kube_proxy=loaded.mode.replaces_kube_proxy)


def _order(given: "Given", place: str) -> "Order":
    """Make what follows the order to withdraw, with a client of its own: the source closes its client in the end."""
    from lrp_operator.agent.withdraw import Order  # noqa: PLC0415

    return Order(_client(given), place)


def _client(given: "Given") -> "KubeClient":
    from lrp_operator.sources.kube.client import KubeClient  # noqa: PLC0415
    from lrp_operator.sources.kube.errors import CredentialsError  # noqa: PLC0415

    try:
        credentials = given.credentials()
    except CredentialsError as error:
        _refuse(str(error))
    return KubeClient(credentials, user_agent=f"lrp-agent/{__version__}")


def _open_links() -> "PodLinks | None":
    """What finds pods' namespaces, for their names in events; None where the kernel can't tell them apart."""
    from lrp_operator.kernel.netns import NetnsError  # noqa: PLC0415 - only who watches events needs it
    from lrp_operator.kernel.podlink import PodLinks  # noqa: PLC0415

    try:
        return PodLinks()
    except (NetnsError, OSError):
        return None


def _find_cgroups() -> Path:
    """Where cgroup v2 is mounted; where it is not, the usual place: the datapath tells what is wrong there."""
    try:
        return find_root().path
    except CgroupError:
        return USUAL_CGROUP_ROOT


def _refuse(sentence: str) -> NoReturn:
    _fail(sentence, EXIT_USAGE)


def _fail(sentence: str, code: int) -> NoReturn:
    sys.stderr.write(f"lrp-agent: {sentence}\n")
    raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    app()
