"""`lrpctl why`: what would happen to one connection of one pod, step by step."""

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lrp_operator.cli.cluster import (
    EXIT_CODES,
    ApiServer,
    Cluster,
    Context,
    Kubeconfig,
    Namespace,
    full_name,
    not_there,
    show,
)
from lrp_operator.cli.output import Output, OutputOption, printable

if TYPE_CHECKING:
    from lrp_operator.api.addresses import L4Addr
    from lrp_operator.cli.reader import Reader
    from lrp_operator.cli.tracing import Trace

HELP = f"""Tell step by step what happens if a pod connects to an address: redirected, refused, or as usual.

Resolved here from what the cluster has now, by the agents' own rules, and compared with what the node's agent reports.
Nothing is sent. Connections that are older than a redirect are not redirected.

\b
Examples:
  lrpctl why client 169.254.169.254:80
  lrpctl why shop/web-7c9zt 10.96.0.10:53/udp
  lrpctl why client '[fd00:96::a]:53/udp' -o json

\b
-o json prints {{"pod", "node", "destination", "result", "because", "backends": [{{address, pod}}], "policy",
  "steps": [{{about, text}}]}}
result is "redirected", "refused" or "usual"; about is node, agent, address, policy, exemption or backends.

Exit codes: 0, whatever the result; {EXIT_CODES}.
"""

_DESTINATION = re.compile(r"(?:\[(?P<v6>[^][]+)\]|(?P<v4>[^][:]+)):(?P<port>[0-9]{1,5})(?:/(?P<protocol>[A-Za-z]+))?")

PodName = Annotated[str, typer.Argument(metavar="POD", help="The pod that connects, as NAME or NAMESPACE/NAME.")]
Destination = Annotated[str, typer.Argument(metavar="IP:PORT[/udp]", help="Where to; TCP unless it says udp.")]


def why(
    pod: PodName,
    destination: Destination,
    *,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
    namespace: Namespace = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell what happens to a connection; HELP says more."""
    frontend = _frontend(destination)
    cluster = Cluster(kubeconfig, context, api_server, namespace)
    key = full_name(pod, cluster.namespace)
    show(cluster.ask(lambda reader: _trace(reader, key, frontend)), output, print_trace)


def _frontend(written: str) -> "L4Addr":
    """Read where the connection goes."""
    from lrp_operator.api.addresses import L4Addr, Protocol  # noqa: PLC0415 -- slow to import

    parts = _DESTINATION.fullmatch(written)
    protocol = {"TCP": Protocol.TCP, "UDP": Protocol.UDP}.get((parts["protocol"] or "tcp").upper()) if parts else None
    if parts is not None and protocol is not None and 0 < int(parts["port"]) < 65536:
        with contextlib.suppress(ValueError):  # no address
            return L4Addr.make(parts["v6"] or parts["v4"], int(parts["port"]), protocol)
    message = f"{written!r} is no destination: write one as 169.254.169.254:80, 10.96.0.10:53/udp or [fd00::1]:80"
    raise typer.BadParameter(message, param_hint="IP:PORT")


async def _trace(reader: "Reader", key: str, frontend: "L4Addr") -> "Trace":
    """Read what concerns the connection, and follow it. Raises NoAnswer."""
    from lrp_operator.cli.loading import load, with_pods_of  # noqa: PLC0415 -- slow to import
    from lrp_operator.cli.tracing import trace  # noqa: PLC0415 -- the same
    from lrp_operator.sources.kube.resources import PODS  # noqa: PLC0415 -- the same

    namespace, _, name = key.partition("/")
    pod = await reader.get(PODS, name, namespace)
    if pod is None:
        not_there(f"there is no pod {name} in namespace {namespace}")
    loaded = await load(reader, (), everywhere=True)
    if pod.spec.node_name:
        loaded = await with_pods_of(reader, loaded, pod.spec.node_name, frontend)
    return trace(pod, frontend, loaded)


def print_trace(told: "Trace") -> None:
    """Print the steps, and what they come to."""
    for number, step in enumerate(told.steps, 1):
        sys.stdout.write(f"{number}. {printable(step.text)}\n")
    sys.stdout.write(f"\n{told.result.words.capitalize()}: {printable(told.because)}\n")
