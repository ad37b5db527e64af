"""NodeRedirectState: what one node has programmed, in one small object that only its agent writes.

Named as its Node and owned by it, so that it goes when the Node goes. The controller folds all of them into the
policies' statuses; people read them with `kubectl get nrs`.

These structs are the one source of the CRD (`lrp_operator.api.schema`) and what readers decode into. Bounds are in the
schema only: the API server holds writers to them, while a reader takes what a newer agent may have been allowed. With
every field at its bound an object has about 0.9 MB, in the 1.5 MiB that etcd takes. Listed are the policies that
concern the node (a pod of theirs can serve there, or something is wrong there), never all that there are.
"""

from typing import Annotated, Any

from msgspec import Meta, Struct

from lrp_operator.api.objects import ObjectMeta

GROUP = "lrp-operator.io"
VERSION = "v1alpha1"
PLURAL = "noderedirectstates"

MAX_POLICIES = 1000
MAX_PROBLEMS = 10
MAX_SENTENCE = 256
MAX_MESSAGE = 1024


def _field(description: str, **bounds: Any) -> Meta:
    """Describe a field for people, and bound it for the API server."""
    return Meta(description=description, extra_json_schema=bounds)


def _count(description: str) -> Meta:
    return _field(description, minimum=0)


class PolicyReport(Struct, frozen=True, gc=False, rename="camel", omit_defaults=True):
    """How one policy stands on the node."""

    policy: Annotated[str, _field('The policy, as "namespace/name".', maxLength=317)]
    uid: Annotated[str, _field("The policy's uid: a deleted and re-created one is another.", maxLength=64)] = ""
    generation: Annotated[int, _count("The generation of the policy that is in force.")] = 0
    frontends: Annotated[int, _count("How many frontends the policy has here.")] = 0
    redirected: Annotated[int, _count("How many of them are redirected to a pod of this node.")] = 0
    reason: Annotated[str | None, _field("What is wrong here, in one word.", maxLength=64)] = None
    message: Annotated[str | None, _field("The same in a sentence.", maxLength=MAX_SENTENCE)] = None


class NodeReport(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What an agent says about its node."""

    agent_version: Annotated[str, _field("The agent's version.", maxLength=64)]
    mode: Annotated[str, _field("What the agent's settings amount to.", maxLength=128)]
    in_force: Annotated[bool, _field("Whether what is programmed takes effect where pods are.")]
    message: Annotated[str | None, _field("Why it does not, in a sentence.", maxLength=MAX_MESSAGE)] = None
    problems: Annotated[
        tuple[Annotated[str, Meta(extra_json_schema={"maxLength": MAX_SENTENCE})], ...],
        _field("What is wrong and tried again, a sentence each.", maxItems=MAX_PROBLEMS),
    ] = ()
    policies: Annotated[
        tuple[PolicyReport, ...],
        _field("The policies that a pod of this node can serve, or that are in trouble here.", maxItems=MAX_POLICIES),
    ] = ()
    policy_count: Annotated[int, _count("How many such policies there are, listed or not.")] = 0
    omitted_policies: Annotated[int, _count("How many of them do not fit here.")] = 0
    withdrawn: Annotated[
        str | None,
        _field("The order by which the agent has taken everything off the node: its resourceVersion.", maxLength=64),
    ] = None


class NodeRedirectState(Struct, frozen=True, omit_defaults=True):
    """lrp-operator.io/v1alpha1 NodeRedirectState. report: None until the agent has written one."""

    metadata: ObjectMeta
    report: NodeReport | None = None
