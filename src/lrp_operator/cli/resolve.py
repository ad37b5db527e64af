"""`lrpctl resolve`: what a node would program, from manifests alone. No cluster, no agent, no root.

Exit codes: 0, all policies accepted; 1, one or more rejected; 2, wrong usage or input that can't be read, in which case
nothing is printed on standard output.
"""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrp_operator.cli.output import Cell, Output, OutputOption, Table, as_data, complain, print_tables

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from lrp_operator.api.objects import ClusterObject
    from lrp_operator.resolve.model import FrontendEntry, PolicyVerdict, Resolution

EXIT_REJECTED = 1
EXIT_UNREADABLE = 2

HELP = """Show what a node would redirect, from manifests alone.

Reads CiliumLocalRedirectPolicy, Service, EndpointSlice, Pod and Node objects, and ignores other kinds. Needs no
cluster, no agent and no root. Pods count only if they are ready on the node, as in a cluster.

\b
Examples:
  lrpctl resolve --node worker-1 -f examples/ -f examples/worker-1/
  lrpctl resolve --node worker-1 -f policy.yaml -f cluster.json --all
  kubectl get clrp,svc,endpointslices,pods,nodes -A -o json | lrpctl resolve --node worker-1 -f - -o json

\b
Exit codes:
  0  every policy is accepted
  1  a policy is rejected; the output says why
  2  the input can't be read
"""

MAX_PROBLEMS = 20
"""How many problems of the input are told at once."""

Node = Annotated[str, typer.Option("--node", metavar="NAME", help="The node to resolve for; it needs no Node object.")]
Files = Annotated[
    list[str],
    typer.Option(
        "--filename",
        "-f",
        metavar="PATH",
        help="A file, a directory (its .yaml, .yml and .json files), or - for standard input. May be repeated; the last"
        " object of one kind and name counts.",
    ),
]
Cidrs = Annotated[
    list[str] | None,
    typer.Option(
        "--address-matcher-cidr",
        metavar="CIDR",
        help="Reject addressMatchers outside this range, as localRedirectPolicies.addressMatcherCIDRs does. May be"
        " repeated.",
    ),
]
All = Annotated[bool, typer.Option("--all", help="Also list the ClusterIP frontends that no policy redirects.")]


def resolve(
    node: Node,
    filename: Files,
    address_matcher_cidr: Cidrs = None,
    list_all: All = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Resolve the manifests and print the result; HELP says more."""
    _check_node(node)
    networks = tuple(_network(text) for text in address_matcher_cidr or ())
    objects = _objects(filename)
    resolution = _resolution(objects, node, networks, list_all=list_all)
    if output is Output.TABLE:
        print_tables(*_tables(resolution))
    else:
        sys.stdout.write(as_data(as_dict(resolution), output))
    sys.stdout.flush()  # so that a full disk is noticed here
    if not all(verdict.accepted for verdict in resolution.verdicts):
        raise typer.Exit(EXIT_REJECTED)


def _check_node(name: str) -> None:
    if len(name) > 253 or re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", name) is None:
        raise typer.BadParameter(f"{name!r} is no node's name, see kubectl get nodes", param_hint="--node")


def _network(text: str) -> "IPv4Network | IPv6Network":
    from ipaddress import ip_network  # noqa: PLC0415 -- slow to import

    try:
        return ip_network(text, strict=False)
    except ValueError:
        message = f"{text!r} is no address range; write one as in 169.254.0.0/16 or fd00::/8"
        raise typer.BadParameter(message, param_hint="--address-matcher-cidr") from None


def _objects(paths: list[str]) -> "list[ClusterObject]":
    from lrp_operator.sources.files import UnreadableInput, read_paths  # noqa: PLC0415 -- slow to import

    try:
        return read_paths(paths, sys.stdin.buffer)
    except UnreadableInput as error:
        for problem in error.problems[:MAX_PROBLEMS]:
            complain(str(problem))
        if len(error.problems) > MAX_PROBLEMS:
            complain(f"and {len(error.problems) - MAX_PROBLEMS} more such problems")
        raise typer.Exit(EXIT_UNREADABLE) from None


def _resolution(
    objects: "list[ClusterObject]", node: str, networks: "tuple[IPv4Network | IPv6Network, ...]", *, list_all: bool
) -> "Resolution":
    from lrp_operator.resolve.engine import ClusterIPs, ResolveOptions, resolve  # noqa: PLC0415 -- slow to import

    cluster_ips = ClusterIPs.LIST if list_all else ClusterIPs.OMIT
    return resolve(objects, node, ResolveOptions(address_matcher_cidrs=networks, cluster_ips=cluster_ips))


# --- As data: a stable interface --------------------------------------------------------------------------------------


def as_dict(resolution: "Resolution") -> dict[str, Any]:
    """Return what `-o json` and `-o yaml` print."""
    return {
        "node": resolution.node,
        "frontends": [_frontend(entry) for entry in resolution.frontends],
        "policies": [_policy(verdict) for verdict in resolution.verdicts],
        "skip": [
            {"pod": skip.pod, "frontends": [str(frontend) for frontend in skip.frontends]} for skip in resolution.skips
        ],
    }


def _frontend(entry: "FrontendEntry") -> dict[str, Any]:
    return {
        "frontend": str(entry.frontend),
        "type": entry.type.value,
        "policy": entry.policy,
        "service": entry.service,
        "backends": [str(backend) for backend in entry.backends],
        **({"onNoBackend": "drop"} if entry.refuse else {}),
    }


def _policy(verdict: "PolicyVerdict") -> dict[str, Any]:
    return {
        "policy": verdict.policy,
        "accepted": verdict.accepted,
        "reason": verdict.reason.value,
        "message": verdict.message,
        "frontends": [
            {
                "frontend": str(item.frontend),
                "redirected": item.redirected,
                "reason": item.reason.value if item.reason is not None else None,
            }
            for item in verdict.frontends
        ],
    }


# --- As tables --------------------------------------------------------------------------------------------------------


def _tables(resolution: "Resolution") -> list[Table]:
    tables = [
        Table(("Frontend", "Type", "Backends", "Policy", "Service"), [_row(entry) for entry in resolution.frontends]),
        Table(
            ("Policy", "Verdict", "Not redirected, and why"),
            [row for verdict in resolution.verdicts for row in _rows(verdict)],
        ),
        Table(
            ("Exempt pod", "Reaches the original destination of"),
            [(skip.pod, "\n".join(map(str, skip.frontends))) for skip in resolution.skips],
        ),
    ]
    if not resolution.frontends:
        tables[0] = Table((f"Node {resolution.node} redirects nothing.",), [])
    return [tables[0], *(table for table in tables[1:] if table.rows)]


def _row(entry: "FrontendEntry") -> list[Cell | str]:
    none = "none: connects are refused" if entry.refuse else "none"
    backends = Cell("\n".join(map(str, entry.backends))) if entry.backends else Cell(none, "yellow")
    kind = Cell(entry.type.value, "green" if entry.policy else "")
    return [str(entry.frontend), kind, backends, entry.policy or "-", entry.service or "-"]


def _rows(verdict: "PolicyVerdict") -> list[list[Cell | str]]:
    """Return a row for each frontend that is not redirected, or one that says that all is well, or what is wrong."""
    state = Cell(verdict.reason.value, "green" if verdict.accepted else "red")
    if not verdict.accepted or not verdict.frontends:
        return [[verdict.policy, state, verdict.message]]
    missing = [item for item in verdict.frontends if not item.redirected]
    sentences = [f"{item.frontend}: {item.reason}: {item.message}" for item in missing] or ["-"]
    return [[*((verdict.policy, state) if number == 0 else ("", "")), text] for number, text in enumerate(sentences)]
