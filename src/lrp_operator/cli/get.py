"""`lrpctl get`: the cluster's policies and how they stand, as the controller has written it into their status."""

import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
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
from lrp_operator.cli.output import Cell, Output, Table, print_tables

if TYPE_CHECKING:
    from lrp_operator.cli.reader import LivePolicy, Reader

HELP = f"""List policies: accepted or not, on how many nodes in force, which frontends. Asks the cluster, from anywhere.

\b
Examples:
  lrpctl get                     the policies of your context's namespace
  lrpctl get -A -o wide          of all namespaces, with every frontend and the reasons
  lrpctl get nodelocaldns -n kube-system -o json
  lrpctl get -A -o name          one namespace/name a line, for scripts

\b
Nodes: redirecting/wanted; wanted are those with a pod that can serve. "stale" behind a verdict: the policy has been
edited since, and the controller has not looked at it yet.

\b
\b
-o json prints {{"policies": [POLICY, ...]}}; a POLICY has
  policy, generation, frontend, current, created, ok, nodesWanted, nodesProgrammed, nodesFallingBack, backends,
  conditions   {{Accepted, Resolved, Programmed, Degraded: {{status, reason, message, since}}}}
  frontends    [{{frontend, nodesRedirecting, reason, message}}]
and is without what the controller has not said. current: the rest is about the policy as it is now.

Exit codes: 0; {EXIT_CODES}.
"""

MOST_FRONTENDS = 1
"""So many frontends are in a table's row, unless it is wide."""


class ListOutput(StrEnum):
    """How a list is shown."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Verdict(msgspec.Struct, frozen=True):
    """One condition of a policy."""

    status: str
    reason: str
    message: str
    since: str = ""

    def __str__(self) -> str:
        return self.status if self.status == "True" else f"{self.status} ({self.reason})"


class FrontendState(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """One frontend of a policy. reason, message: why no node redirects it."""

    frontend: str
    nodes_redirecting: int
    reason: str | None = None
    message: str | None = None


class PolicyState(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A policy as its status tells. current: whether the status is about the policy as it is now."""

    policy: str
    generation: int
    frontend: str
    current: bool
    created: str = ""
    ok: bool | None = None
    conditions: dict[str, Verdict] = {}
    frontends: list[FrontendState] = []
    nodes_wanted: int | None = None
    nodes_programmed: int | None = None
    nodes_falling_back: int | None = None
    backends: int | None = None


class PolicyList(msgspec.Struct, frozen=True):
    """All that was asked for."""

    policies: list[PolicyState]


Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Policies, as NAME or NAMESPACE/NAME.")]
All = Annotated[bool, typer.Option("--all-namespaces", "-A", help="The policies of all namespaces.")]
OutputOption = Annotated[ListOutput, typer.Option("--output", "-o", help="How the list is shown.")]


def get(
    names: Names = None,
    *,
    all_namespaces: All = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
    namespace: Namespace = None,
    output: OutputOption = ListOutput.TABLE,
) -> None:
    """List policies; HELP says more."""
    if names and all_namespaces:
        raise typer.BadParameter("a policy has one namespace: write NAMESPACE/NAME", param_hint="--all-namespaces")
    cluster = Cluster(kubeconfig, context, api_server, namespace)
    if names:
        keys = [full_name(name, cluster.namespace) for name in names]
        found = [state_of(policy) for policy in cluster.ask(lambda reader: _named(reader, keys))]
    else:
        where = None if all_namespaces else cluster.namespace
        found = [state_of(policy) for policy in cluster.ask(lambda reader: _all(reader, where))]
        found.sort(key=lambda state: state.policy)
    if output is ListOutput.NAME:
        sys.stdout.writelines(f"{state.policy}\n" for state in found)
        return
    plain = Output.TABLE if output is ListOutput.WIDE else Output(output.value)
    where_text = "in any namespace" if all_namespaces else f"in namespace {cluster.namespace}"
    show(PolicyList(found), plain, lambda _: print_policies(found, where_text, wide=output is ListOutput.WIDE))


async def _named(reader: "Reader", keys: list[str]) -> "list[LivePolicy]":
    return [await named(reader, key) for key in keys]


async def named(reader: "Reader", key: str) -> "LivePolicy":
    """Read one policy; ends the program if it is not there. Raises NoAnswer."""
    from lrp_operator.cli.reader import LIVE_POLICIES  # noqa: PLC0415 -- slow to import

    namespace, _, name = key.partition("/")
    found = await reader.get(LIVE_POLICIES, name, namespace)
    if found is None:
        not_there(f"there is no policy {name} in namespace {namespace} (lrpctl get -A lists all)")
    return found


async def _all(reader: "Reader", namespace: str | None) -> "list[LivePolicy]":
    from lrp_operator.cli.reader import LIVE_POLICIES  # noqa: PLC0415 -- slow to import

    return await reader.list(LIVE_POLICIES, namespace)


def state_of(seen: "LivePolicy") -> PolicyState:
    """Put what a policy's status tells as it is shown."""
    meta, status = seen.metadata, seen.shown
    return PolicyState(
        policy=meta.key,
        generation=meta.generation,
        frontend=_matcher(seen.spec),
        current=status.observed_generation == meta.generation,
        created=meta.creation_timestamp or "",
        ok=status.ok,
        conditions={c.type: Verdict(c.status, c.reason, c.message, c.last_transition_time) for c in status.conditions},
        frontends=[FrontendState(f.frontend, f.nodes_redirecting, f.reason, f.message) for f in status.frontends],
        nodes_wanted=status.nodes_wanted,
        nodes_programmed=status.nodes_programmed,
        nodes_falling_back=status.nodes_falling_back,
        backends=status.backends,
    )


def _matcher(spec: Any) -> str:
    """Name what a policy redirects, as it was written: an address or a Service."""
    frontend = spec.get("redirectFrontend") if isinstance(spec, dict) else None
    for matcher, name in (("addressMatcher", "ip"), ("serviceMatcher", "serviceName")):
        written = frontend.get(matcher) if isinstance(frontend, dict) else None
        if isinstance(written, dict):
            return str(written.get(name) or "?")
    return "?"


# --- As tables --------------------------------------------------------------------------------------------------------


def print_policies(policies: list[PolicyState], where: str, *, wide: bool) -> None:
    """Print policies, a row each; if wide, a row for each frontend, with reasons."""
    if not policies:
        sys.stdout.write(f"There are no policies {where}.\n")
        return
    head = ["Policy", "Redirects", "Accepted", "Programmed", "Nodes", "Falling back", "Frontends", "Age"]
    rows = [_row(state) for state in policies]
    if wide:
        head += ["Degraded", "Backends", "Why"]
        rows = [_wide(state, row) for state, row in zip(policies, rows, strict=True)]
    print_tables(Table(head, rows))


def _row(state: PolicyState) -> list[Cell | str]:
    frontends = [frontend.frontend for frontend in state.frontends]
    more = len(frontends) - MOST_FRONTENDS
    shown = ", ".join(frontends[:MOST_FRONTENDS]) + (f" +{more}" if more > 0 else "")
    return [
        state.policy,
        state.frontend,
        _verdict(state, "Accepted"),
        _verdict(state, "Programmed"),
        f"{_number(state.nodes_programmed)}/{_number(state.nodes_wanted)}",
        _number(state.nodes_falling_back),
        shown or "-",
        age_of(state.created),
    ]


def _wide(state: PolicyState, row: list[Cell | str]) -> list[Cell | str]:
    programmed = state.conditions.get("Programmed")
    why = programmed.message if programmed and programmed.status != "True" else "-"
    frontends = "\n".join(f.frontend for f in state.frontends) or "-"
    return [*row[:-2], frontends, row[-1], _verdict(state, "Degraded"), _number(state.backends), why]


def _verdict(state: PolicyState, kind: str) -> Cell:
    found = state.conditions.get(kind)
    if found is None:
        return Cell("Unknown", "yellow")
    good = found.status == ("False" if kind == "Degraded" else "True")
    text = found.status if kind == "Degraded" and good else str(found)
    return Cell(text if state.current else f"{text} stale", ("green" if good else "red") if state.current else "yellow")


def _number(count: int | None) -> str:
    return "?" if count is None else str(count)


def age_of(timestamp: str) -> str:
    """Say how long ago a moment was, as the API writes moments; a dash for none."""
    from lrp_operator.cli.asking import age  # noqa: PLC0415 -- only tables need it

    try:
        return age(datetime.fromisoformat(timestamp).astimezone(UTC))
    except ValueError:
        return "-"
