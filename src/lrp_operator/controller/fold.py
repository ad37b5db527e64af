"""From what a policy came to in the cluster, and what its nodes report, to the status that people read.

Pure: the same picture and reports give the same status, but for lastTransitionTime, which is taken over from the
status before for every condition that still stands as it stood.

A node is *wanted* where a pod can serve. It is *programmed* when its own report says, for this very policy (uid) as it
is written now (generation), that it redirects what can be served there. Anything less is pending, and trouble if the
report gives a reason, or if nothing on the node is in force.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lrp_operator.api.nodestate import PolicyReport
from lrp_operator.api.objects import ObjectMeta
from lrp_operator.api.status import MAX_FRONTENDS, MAX_MESSAGE, FrontendStatus, PolicyStatus, StatusCondition
from lrp_operator.controller.reports import NodeReports
from lrp_operator.resolve.cluster import Picture, Share
from lrp_operator.resolve.model import FrontendReason, FrontendVerdict

MOST_NAMED = 3  # objects that one sentence lists; the others are counted

_BLOCKED = (FrontendReason.ADDRESS_OWNED_BY_SERVICE, FrontendReason.CONFLICT)


class Known(NamedTuple):
    """What the status of one policy rests on, beside the policy itself. nodes: those that there are."""

    picture: Picture
    reports: NodeReports
    nodes: Mapping[str, object]


class Condition(NamedTuple):
    """A condition before it is told since when it stands."""

    holds: bool
    reason: str
    message: str


def _yes(reason: str, message: str) -> Condition:
    return Condition(holds=True, reason=reason, message=message)


def _no(reason: str, message: str) -> Condition:
    return Condition(holds=False, reason=reason, message=message)


class Standing(NamedTuple):
    """How a policy stands on a node that wants it, or is in trouble. problem: empty if it is programmed."""

    node: str
    programmed: bool
    trouble: bool = False
    problem: str = ""


def fold(meta: ObjectMeta, known: Known, before: Mapping[str, Any], now: str) -> dict[str, Any]:
    """Write a policy's status, as JSON has it. before: the status it shows; now: a moment, as the API writes it."""
    picture = known.picture
    standings = [_standing(node, share, meta, known) for node, share in sorted(picture.shares.items())]
    programmed = {standing.node for standing in standings if standing.programmed}
    conditions = _conditions(picture, standings, list(_troubles_elsewhere(meta, known)))
    frontends = picture.verdict.frontends
    status = PolicyStatus(
        ok=picture.verdict.accepted,
        observed_generation=meta.generation,
        conditions=[_told(kind, condition, meta, before, now) for kind, condition in conditions.items()],
        frontends=[_frontend(frontend, picture, programmed) for frontend in frontends[:MAX_FRONTENDS]],
        omitted_frontends=max(0, len(frontends) - MAX_FRONTENDS) or None,
        backends=sum(share.pods for share in picture.shares.values()),
        nodes_wanted=len(picture.shares),
        nodes_programmed=len(programmed),
        nodes_falling_back=len(known.nodes) - sum(node in known.nodes for node in picture.shares),
    )
    return status.model_dump(by_alias=True, exclude_none=True)


# --- Nodes ------------------------------------------------------------------------------------------------------------


def _standing(node: str, share: Share, meta: ObjectMeta, known: Known) -> Standing:
    """Say how a policy stands on a node where a pod can serve it."""
    report, entry = known.reports.report(node), known.reports.about(meta.key).get(node)
    if node not in known.nodes:
        return Standing(node, programmed=False, problem="the Node is gone")
    if report is None:
        return Standing(node, programmed=False, problem="no agent has reported")
    if not report.in_force:
        why = report.message or "nothing is in force"
        return Standing(node, programmed=False, trouble=True, problem=why.rstrip("."))
    if entry is None:
        full = f" (it leaves out {report.omitted_policies} policies)" if report.omitted_policies else ""
        return Standing(node, programmed=False, problem=f"not in its agent's report{full}")
    if not _is_about(entry, meta):
        return Standing(node, programmed=False, problem="its agent has an earlier version of the policy")
    if entry.redirected < len(share.frontends):
        problem = f"{entry.redirected} of {len(share.frontends)} frontends redirected"
        return Standing(node, programmed=False, trouble=bool(entry.reason), problem=problem + _why(entry))
    return Standing(node, programmed=True, trouble=bool(entry.reason), problem=_why(entry).removeprefix(": "))


def _troubles_elsewhere(meta: ObjectMeta, known: Known) -> Iterable[Standing]:
    """Find what nodes that have no pod to serve complain of."""
    for node, entry in sorted(known.reports.about(meta.key).items()):
        if entry.reason and node not in known.picture.shares and node in known.nodes and _is_about(entry, meta):
            yield Standing(node, programmed=False, trouble=True, problem=_why(entry).removeprefix(": "))


def _is_about(entry: PolicyReport, meta: ObjectMeta) -> bool:
    """Whether a report is about this policy as it is now, not about one that had its name or its earlier self."""
    return entry.uid == meta.uid and entry.generation == meta.generation


def _why(entry: PolicyReport) -> str:
    return ": " + (entry.message or entry.reason or "").rstrip(".") if entry.reason else ""


# --- Conditions -------------------------------------------------------------------------------------------------------


def _conditions(picture: Picture, standings: Sequence[Standing], elsewhere: Sequence[Standing]) -> dict[str, Condition]:
    accepted, resolved = _accepted(picture), _resolved(picture)
    troubled = [standing for standing in (*standings, *elsewhere) if standing.trouble]
    return {
        "Accepted": accepted,
        "Resolved": resolved,
        "Programmed": _programmed(picture, resolved, standings),
        "Degraded": _degraded(accepted, resolved, troubled),
    }


def _accepted(picture: Picture) -> Condition:
    verdict = picture.verdict
    if not verdict.accepted:
        return _no(verdict.reason, verdict.message)
    return _yes("Accepted", "The policy is valid and allowed.")


def _resolved(picture: Picture) -> Condition:
    verdict = picture.verdict
    if not verdict.frontends:
        return _no(verdict.reason, verdict.message)
    blocked = [frontend for frontend in verdict.frontends if frontend.reason in _BLOCKED]
    if blocked:
        told = _listed([_blocked(frontend) for frontend in blocked], separator=" ")
        reason = blocked[0].reason or FrontendReason.CONFLICT
        return _no(reason, f"{len(blocked)} of {len(verdict.frontends)} frontends can't be had. {told}")
    count = len(verdict.frontends)
    summary = f"{count} frontend{'s' if count > 1 else ''}."
    return _yes("Resolved", " ".join(filter(None, (summary, verdict.message))))


def _blocked(frontend: FrontendVerdict) -> str:
    text = str(frontend.frontend)
    return frontend.message if text in frontend.message else f"{text}: {frontend.message}"


def _programmed(picture: Picture, resolved: Condition, standings: Sequence[Standing]) -> Condition:
    if not standings:
        return _nobody_serves(picture, resolved)
    missing = [standing for standing in standings if not standing.programmed]
    done = len(standings) - len(missing)
    if not missing:
        nodes = "The node" if done == 1 else f"All {done} nodes"
        return _yes("Programmed", f"{nodes} with a pod that can serve redirect{'s' * (done == 1)}.")
    reason = "NodesFailing" if any(standing.trouble for standing in missing) else "NodesPending"
    return _no(reason, f"{done} of {len(standings)} nodes redirect. Not yet: {_nodes(missing)}.")


def _nobody_serves(picture: Picture, resolved: Condition) -> Condition:
    unserved = next((f for f in picture.verdict.frontends if f.reason and f.reason not in _BLOCKED), None)
    if unserved is None or unserved.reason is None:  # nothing is its own
        return _no(resolved.reason, resolved.message)
    return _no(unserved.reason, unserved.message)


def _degraded(accepted: Condition, resolved: Condition, troubled: Sequence[Standing]) -> Condition:
    for condition in (accepted, resolved):
        if not condition.holds:
            return _yes(condition.reason, condition.message)
    if troubled:
        return _yes("NodesFailing", f"Something is wrong on {_nodes(troubled)}.")
    return _no("AsExpected", "Nothing needs mending.")


def _told(kind: str, condition: Condition, meta: ObjectMeta, before: Mapping[str, Any], now: str) -> StatusCondition:
    """Put a condition as the API has it, standing since it last changed."""
    status: Literal["True", "False"] = "True" if condition.holds else "False"
    old = _conditions_in(before).get(kind, {})
    return StatusCondition(
        type=kind,
        status=status,
        reason=condition.reason,
        message=shortened(condition.message),
        observed_generation=meta.generation,
        last_transition_time=(old.get("lastTransitionTime") if old.get("status") == status else None) or now,
    )


def _frontend(frontend: FrontendVerdict, picture: Picture, programmed: set[str]) -> FrontendStatus:
    redirecting = sum(frontend.frontend in picture.shares[node].frontends for node in programmed)
    return FrontendStatus(
        frontend=str(frontend.frontend),
        nodes_redirecting=redirecting,
        reason=frontend.reason,
        message=shortened(frontend.message) or None,
    )


# --- Words ------------------------------------------------------------------------------------------------------------


def _nodes(standings: Sequence[Standing]) -> str:
    return _listed([f"{standing.node} ({standing.problem})" for standing in standings])


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    rest = len(items) - MOST_NAMED
    return separator.join(items[:MOST_NAMED]) + (f"{separator}and {rest} more" if rest > 0 else "")


def shortened(text: str) -> str:
    """Keep a sentence within what the schema takes."""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


# --- What differs -----------------------------------------------------------------------------------------------------

OURS = ("Accepted", "Resolved", "Programmed", "Degraded")
"""The conditions that are ours; others may add theirs beside them."""
_FIELDS = frozenset(field.alias for field in PolicyStatus.model_fields.values())


def differs(wanted: Mapping[str, Any], shown: Mapping[str, Any]) -> bool:
    """Whether an object shows another status than it should; since when a condition stands is no difference."""
    return _comparable(wanted) != _comparable(shown)


def standings_in(status: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the verdict in a status: each condition's status and reason. People are told when it changes."""
    return {kind: (condition["status"], condition["reason"]) for kind, condition in _conditions_in(status).items()}


def _comparable(status: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in status.items() if key in _FIELDS}
    conditions = {
        kind: {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for kind, condition in _conditions_in(status).items()
    }
    frontends = {frontend["frontend"]: frontend for frontend in status.get("frontends") or ()}
    return told | {"conditions": conditions, "frontends": frontends}


def _conditions_in(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions") or () if condition["type"] in OURS}
