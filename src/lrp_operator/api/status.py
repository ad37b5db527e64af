"""What the controller writes into a policy's status: the part of the CRD that people read.

Conditions follow the Kubernetes API conventions: a list keyed by type, each with its own observedGeneration.

    Accepted     the policy is valid and allowed
    Resolved     its frontends are known and its own: the Service exists, nobody else has the address
    Programmed   every node with a pod that can serve redirects, by the node's own report
    Degraded     something needs mending: rejected, an object in the way, a node that can't do it
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_FRONTENDS = 256
MAX_MESSAGE = 1024


class StatusModel(BaseModel):
    """What all parts of a status share."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, validate_by_name=True)


class StatusCondition(StatusModel):
    """One aspect of the policy's state."""

    type: str = Field(
        min_length=1,
        max_length=316,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        description="What the condition is about, for example Accepted or Programmed.",
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why, in one word for programs.",
    )
    message: str = Field(max_length=32768, description="Why, in a sentence for people.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="The generation of the policy that this was found for."
    )
    last_transition_time: str = Field(
        description="When the status last changed.", json_schema_extra={"format": "date-time"}
    )


class FrontendStatus(StatusModel):
    """Where one frontend of the policy stands."""

    frontend: str = Field(max_length=64, description="Address, port and protocol, as in 169.254.169.254:80/TCP.")
    nodes_redirecting: int = Field(ge=0, description="On how many nodes it is redirected.")
    reason: str | None = Field(default=None, max_length=64, description="Why no node can redirect it, in one word.")
    message: str | None = Field(default=None, max_length=MAX_MESSAGE, description="The same in a sentence.")


class PolicyStatus(StatusModel):
    """What became of the policy in the cluster."""

    ok: bool | None = Field(default=None, description="Whether the policy is accepted.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="The generation of the policy that this status is about."
    )
    conditions: list[StatusCondition] = Field(
        default_factory=list,
        max_length=16,
        description="The policy's state: Accepted, Resolved, Programmed and Degraded.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    frontends: list[FrontendStatus] = Field(
        default_factory=list,
        max_length=MAX_FRONTENDS,
        description="What the policy resolved to.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["frontend"]},
    )
    omitted_frontends: int | None = Field(default=None, ge=0, description="How many more there are than fit here.")
    backends: int | None = Field(default=None, ge=0, description="How many pods can serve, on all nodes together.")
    nodes_wanted: int | None = Field(default=None, ge=0, description="How many nodes have a pod that can serve.")
    nodes_programmed: int | None = Field(default=None, ge=0, description="On how many of them redirects are in force.")
    nodes_falling_back: int | None = Field(
        default=None,
        ge=0,
        description="On how many nodes nothing can serve, so that traffic goes its usual way (or is refused, with"
        " on-no-backend: drop).",
    )
