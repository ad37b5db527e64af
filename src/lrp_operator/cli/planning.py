"""What policies would do in a cluster as it was read: pure, from objects to an answer."""

from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from lrp_operator.api.annotations import PREFIX
from lrp_operator.api.objects import Policy
from lrp_operator.cli.loading import Loaded
from lrp_operator.cli.survey import Fate, NodeFate, Survey, as_if_applied, hindrance_of, is_same
from lrp_operator.resolve.cluster import Picture
from lrp_operator.resolve.model import FrontendVerdict
from lrp_operator.resolve.options import ResolveOptions


class FrontendPlan(Struct, frozen=True, rename="camel", omit_defaults=True):
    """One frontend, and on how many nodes it would be redirected. reason, message: why on none."""

    frontend: str
    nodes_redirecting: int
    reason: str = ""
    message: str = ""


class Taken(Struct, frozen=True):
    """A frontend that another policy would lose."""

    frontend: str
    policy: str


class PolicyPlan(Struct, frozen=True, rename="camel"):
    """What a policy would do. problems: why it could not be applied. message: why not accepted, or what is amiss.

    nodes_hindered: how many nodes more would redirect, but for their agents.
    """

    policy: str
    change: str
    works: bool
    accepted: bool
    reason: str
    message: str
    problems: list[str]
    nodes_redirecting: int
    nodes_hindered: int
    frontends: list[FrontendPlan]
    nodes: list[NodeFate]
    takes: list[Taken]


class Plans(Struct, frozen=True):
    """All policies of the files. assumed: what could not be known, a sentence each."""

    assumed: list[str]
    policies: list[PolicyPlan]


def plan(
    policies: Sequence[Policy], options: ResolveOptions, loaded: Loaded, missing: set[str], assumed: Sequence[str]
) -> Plans:
    """Say what policies would do. missing: namespaces that are not there."""
    replaced = {key: seen.policy for key, seen in loaded.policies.items()}
    before = Survey(loaded.live, ResolveOptions())  # the policies that settings forbid are left out already
    after = Survey(as_if_applied(loaded.live, policies, replaced), options)
    notes = [*loaded.notes, *assumed, *(note for p in policies for note in _kept(p, replaced.get(p.metadata.key)))]
    plans = [_plan(p, replaced.get(p.metadata.key), before, after, missing) for p in policies]
    return Plans(notes, sorted(plans, key=lambda plan: plan.policy))


def _plan(policy: Policy, old: Policy | None, before: Survey, after: Survey, missing: set[str]) -> PolicyPlan:
    key, namespace = policy.metadata.key, policy.metadata.namespace
    picture = after.picture(key)
    nodes = [_with_agent(node, after) for node in after.nodes(key)]
    problems = [f"There is no namespace {namespace} in the cluster."] if namespace in missing else []
    return PolicyPlan(
        policy=key,
        change=_change(policy, old),
        works=picture.verdict.accepted and bool(picture.owned) and not problems,
        accepted=picture.verdict.accepted,
        reason=picture.verdict.reason,
        message=picture.verdict.message,
        problems=problems,
        nodes_redirecting=sum(bool(node.redirects) and not node.problem for node in nodes),
        nodes_hindered=sum(bool(node.redirects) and bool(node.problem) for node in nodes),
        frontends=_frontends(picture, nodes),
        nodes=nodes,
        takes=_takes(key, before, after),
    )


def _change(policy: Policy, old: Policy | None) -> str:
    if old is None:
        return "new"
    return "unchanged" if is_same(policy, old) else "replaced"


def _ours(policy: Policy) -> dict[str, str]:
    annotations = policy.metadata.annotations or {}
    return {name: value for name, value in annotations.items() if name.startswith(PREFIX)}


def _kept(policy: Policy, old: Policy | None) -> list[str]:
    """Tell of annotations that kubectl apply may leave in place."""
    gone = sorted(_ours(old).keys() - _ours(policy).keys()) if old else []
    return [
        f"The live policy {policy.metadata.key} has the annotation {name}, which the file has not; kubectl apply keeps"
        " it if it was set by other means, and it is taken to be gone here."
        for name in gone
    ]


def _frontends(picture: Picture, nodes: Sequence[NodeFate]) -> list[FrontendPlan]:
    """Count the nodes that would redirect each frontend; where none would, say why."""
    serving = [node for node in nodes if not node.problem]
    redirected = Counter(f.frontend for node in serving for f in node.frontends if f.fate is Fate.REDIRECTED)
    return [
        FrontendPlan(text, redirected[text]) if redirected[text] else FrontendPlan(text, 0, *_why_on_none(item))
        for item in picture.verdict.frontends
        for text in [str(item.frontend)]
    ]


def _why_on_none(item: FrontendVerdict) -> tuple[str, str]:
    if item.redirected:
        return "NoAgent", "Pods can serve it, but only on nodes whose agents redirect nothing."
    return item.reason or "", item.message


def _with_agent(node: NodeFate, survey: Survey) -> NodeFate:
    """Add what its agent has against it."""
    return NodeFate(node.node, node.frontends, problem=hindrance_of(survey.live.reports.get(node.node)))


def _takes(key: str, before: Survey, after: Survey) -> list[Taken]:
    """List what other policies have now and would have no more."""
    mine = after.picture(key).owned
    taken = [
        Taken(str(frontend), rival)
        for rival in sorted(after.rivals(key) & before.live.policies.keys())
        for frontend in mine & (before.picture(rival).owned - after.picture(rival).owned)
    ]
    return sorted(taken, key=lambda item: (item.policy, item.frontend))
