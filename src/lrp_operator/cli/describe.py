"""`lrpctl describe`: all that is known of one policy: its verdict, its frontends, its nodes, its events."""

import sys
from typing import TYPE_CHECKING, Annotated

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
    show,
)
from lrp_operator.cli.get import PolicyState, age_of, named, state_of
from lrp_operator.cli.nodetable import nodes_table
from lrp_operator.cli.output import Cell, Output, OutputOption, Table, print_tables, printable

if TYPE_CHECKING:
    from lrp_operator.api.objects import Policy
    from lrp_operator.api.policy import LabelExpression, LabelSelector, PolicyPort
    from lrp_operator.cli.loading import Loaded
    from lrp_operator.cli.reader import LivePolicy, Reader
    from lrp_operator.cli.survey import NodeFate

HELP = f"""Tell all about a policy: conditions, frontends, what each node does and what its agent says, events.

Conditions are what the controller wrote. What each node should do is resolved here and now, by the agents' own rules,
and stands beside what the node reports: "programmed", "pending" (on its way) or "trouble".

\b
Examples:
  lrpctl describe web                        the policy web of your context's namespace
  lrpctl describe kube-system/nodelocaldns
  lrpctl describe web -o json

\b
-o json prints {{"state": POLICY as in lrpctl get, "rules": {{...}},
  "nodes": [{{node, agent, problem, frontends: [{{frontend, fate, backends: [{{address, pod}}], reason, message}}]}}],
  "events": [{{type, reason, message, count, last}}], "notes": [what could not be seen]}}

Exit codes: 0; {EXIT_CODES}.
"""

ORDER = ("Accepted", "Resolved", "Programmed", "Degraded")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The policy, as NAME or NAMESPACE/NAME.")]


class EventLine(msgspec.Struct, frozen=True):
    """What was told of the policy. last: when it was told last."""

    type: str
    reason: str
    message: str
    count: int
    last: str


class Description(msgspec.Struct, frozen=True):
    """All about a policy. rules: what it asks for, by the names that people see; notes: what could not be seen."""

    state: PolicyState
    rules: dict[str, str]
    nodes: "list[NodeFate]"
    events: list[EventLine]
    notes: list[str]


def describe(
    name: Name,
    *,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    api_server: ApiServer = "",
    namespace: Namespace = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell all about a policy; HELP says more."""
    cluster = Cluster(kubeconfig, context, api_server, namespace)
    key = full_name(name, cluster.namespace)
    show(cluster.ask(lambda reader: _describe(reader, key)), output, print_description)


async def _describe(reader: "Reader", key: str) -> Description:
    """Read what there is about a policy. Raises NoAnswer."""
    policy = await named(reader, key)
    nodes, notes = await _nodes(reader, policy)
    events, more = await _events(reader, policy)
    return Description(state_of(policy), view_rules(policy.policy), nodes, events, [*notes, *more])


async def _nodes(reader: "Reader", policy: "LivePolicy") -> "tuple[list[NodeFate], list[str]]":
    """Say what each node does, and what could not be seen."""
    from lrp_operator.cli.loading import load, names_address  # noqa: PLC0415 -- slow to import
    from lrp_operator.cli.reader import NotAllowedError  # noqa: PLC0415 -- the same

    try:
        loaded = await load(reader, {policy.metadata.namespace}, everywhere=names_address(policy.policy))
    except NotAllowedError as error:
        return [], [f"Nodes are not shown: {line}." for line in str(error).splitlines()]
    return node_fates(policy, loaded), loaded.notes


def node_fates(policy: "LivePolicy", loaded: "Loaded") -> "list[NodeFate]":
    """Say what each node should do for a policy, and how its agent stands to that."""
    from lrp_operator.cli.survey import NodeFate, Survey, standing_of  # noqa: PLC0415 -- slow to import
    from lrp_operator.resolve.options import ResolveOptions  # noqa: PLC0415 -- the same

    key = policy.metadata.key
    if key not in loaded.live.policies:  # rejected, or gone meanwhile
        return []
    fates = []
    for node in Survey(loaded.live, ResolveOptions()).nodes(key):
        agent, problem = standing_of(loaded.live.reports.get(node.node), policy.metadata, node.redirects)
        fates.append(NodeFate(node.node, node.frontends, agent, problem))
    return fates


def view_rules(policy: "Policy") -> dict[str, str]:
    """Say what a policy asks for, line by line; nothing if it is invalid."""
    from lrp_operator.api.addresses import format_ip  # noqa: PLC0415 -- slow to import
    from lrp_operator.api.policy import AddressMatcher, OnNoBackend  # noqa: PLC0415 -- the same
    from lrp_operator.resolve.views import view_policy  # noqa: PLC0415 -- the same

    rules = view_policy(policy).rules
    if rules is None:
        return {}
    matcher = rules.frontend
    ports = _ports(matcher.ports) or "every port"
    address = isinstance(matcher, AddressMatcher)
    what = format_ip(matcher.ip) if isinstance(matcher, AddressMatcher) else f"Service {matcher.name}"
    told = {
        "Redirects": f"{what}{' ' if address else ', '}{ports}",
        "To": f"ready pods on the client's node with {_selector(rules.selector)}, {_ports(rules.backend_ports)}",
    }
    if rules.node_selector is not None:
        told["Only on"] = f"nodes with {_selector(rules.node_selector)}"
    if rules.on_no_backend is OnNoBackend.DROP:
        told["Else"] = "connects are refused (lrp-operator.io/on-no-backend: drop)"
    if rules.skip_redirect_from_backend:
        told["Exempt"] = "the selected pods themselves (skipRedirectFromBackend)"
    return told


def _ports(ports: "tuple[PolicyPort, ...]") -> str:
    return ", ".join(f"{p.port}/{p.protocol.name}{f' ({p.name})' if p.name else ''}" for p in ports)


def _selector(selector: "LabelSelector") -> str:
    """Write a selector as kubectl takes it."""
    return ",".join(map(_requirement, selector.expressions)) or "any label or none"


def _requirement(expression: "LabelExpression") -> str:
    from lrp_operator.api.policy import Operator  # noqa: PLC0415 -- slow to import

    key, values = expression.key, sorted(expression.values)
    match expression.operator:
        case Operator.EXISTS:
            return key
        case Operator.DOES_NOT_EXIST:
            return f"!{key}"
        case Operator.IN:
            return f"{key}={values[0]}" if len(values) == 1 else f"{key} in ({', '.join(values)})"
        case Operator.NOT_IN:
            return f"{key}!={values[0]}" if len(values) == 1 else f"{key} notin ({', '.join(values)})"


async def _events(reader: "Reader", policy: "LivePolicy") -> tuple[list[EventLine], list[str]]:
    """Read what was told of a policy, the last first."""
    from lrp_operator.cli.loading import EVENTS  # noqa: PLC0415 -- slow to import
    from lrp_operator.cli.reader import NotAllowedError  # noqa: PLC0415 -- the same

    meta = policy.metadata
    try:
        events = await reader.list(EVENTS, meta.namespace, fieldSelector=f"involvedObject.uid={meta.uid}")
    except NotAllowedError as error:
        return [], [f"Events are not shown: {error}."]
    lines = [EventLine(e.type or "", e.reason or "", e.message or "", e.times, e.last) for e in events]
    return sorted(lines, key=lambda line: line.last, reverse=True), []


# --- For people -------------------------------------------------------------------------------------------------------


def print_description(told: Description) -> None:
    """Print it, from the verdict down to single nodes."""
    state = told.state
    lines = [("Policy", f"{state.policy}, {age_of(state.created)} old"), *told.rules.items(), *_standing(state)]
    sys.stdout.writelines(f"{name + ':':<12}{printable(text)}\n" for name, text in lines)
    tables = [
        Table(("Condition", "Status", "Reason", "Since", "Message"), _conditions(state)),
        Table(("Frontend", "Redirected on", "Why on none"), _frontends(state)),
        nodes_table(told.nodes),
        Table(("Event", "Reason", "Times", "Last", "Message"), [_event(event) for event in told.events]),
    ]
    for table in tables:
        if table.rows:
            sys.stdout.write("\n")
            print_tables(table)
    sys.stdout.writelines(f"\nNote: {printable(note)}\n" for note in told.notes)


def _standing(state: PolicyState) -> list[tuple[str, str]]:
    if not state.conditions:
        return [("Status", "none yet: no controller has looked at it")]
    about = "" if state.current else " (of an earlier version: the policy has been edited since)"
    if state.nodes_wanted is None:
        return [("Status", about.strip(" ()"))] if about else []
    counts = f"{state.nodes_programmed} of the {state.nodes_wanted} with a pod that can serve redirect"
    return [("Nodes", f"{counts}, {state.nodes_falling_back} have none{about}")]


def _conditions(state: PolicyState) -> list[list[Cell | str]]:
    kinds = [*(kind for kind in ORDER if kind in state.conditions), *sorted(state.conditions.keys() - set(ORDER))]
    rows: list[list[Cell | str]] = []
    for kind in kinds:
        verdict = state.conditions[kind]
        good = verdict.status == ("False" if kind == "Degraded" else "True")
        style = ("green" if good else "red") if kind in ORDER else ""
        rows.append([kind, Cell(verdict.status, style), verdict.reason, age_of(verdict.since), verdict.message])
    return rows


def _frontends(state: PolicyState) -> list[list[str]]:
    return [
        [
            f.frontend,
            f"{f.nodes_redirecting} node{'s' * (f.nodes_redirecting != 1)}",
            ": ".join(filter(None, (f.reason, f.message))) or "-",
        ]
        for f in state.frontends
    ]


def _event(event: EventLine) -> list[Cell | str]:
    style = "yellow" if event.type == "Warning" else ""
    return [Cell(event.type, style), event.reason, str(event.count), f"{age_of(event.last)} ago", event.message]
