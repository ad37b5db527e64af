"""The CiliumLocalRedirectPolicy as users write it, and what a policy object means.

The models here are the one source of the CRD (`lrp_operator.api.schema` turns them into deploy/crds), so the schema
and this parser can't drift apart. A rule that one field can hold stands at its field; a rule between fields stands
twice, as CEL for the API server and in `_cross_checks` for what comes another way (a file, an API server with another
CRD).

`parse_policy` takes a `Policy` object, its spec still as it was written, and gives a `PolicyRules` or raises
`PolicyInvalid` with the problems found, each with its place and how to mend it. It reads a spec as an API server does:
types are never coerced, unknown fields are ignored, a field set to null is an absent field.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails, PydanticCustomError

from lrp_operator.api import rules
from lrp_operator.api.addresses import Protocol, parse_ip
from lrp_operator.api.annotations import Extensions, read_annotations
from lrp_operator.api.objects import Policy
from lrp_operator.api.policy import (
    AddressMatcher,
    LabelExpression,
    LabelSelector,
    Operator,
    PolicyPort,
    PolicyRules,
    ServiceMatcher,
)
from lrp_operator.api.problems import FieldError, quoted

MAX_ERRORS = 10
"""A policy of a million mistakes is told the first few, and how many more there are."""


class PolicyInvalid(Exception):  # noqa: N818 -- named like the verdict; it is the user's error, not ours
    """A policy breaks the rules; `errors` says which, in the order of the fields."""

    def __init__(self, errors: list[FieldError]) -> None:
        kept = errors[:MAX_ERRORS]
        if more := len(errors) - len(kept):
            kept.append(FieldError("spec", f"and {more} more such problems"))
        self.errors: tuple[FieldError, ...] = tuple(kept)
        super().__init__("; ".join(map(str, self.errors)))


def parse_policy(policy: Policy) -> PolicyRules:
    """Say what a policy means. Raises PolicyInvalid, and nothing else, if it breaks a rule."""
    extensions, errors = read_annotations(policy.metadata.annotations or {})
    try:
        spec = PolicySpec.model_validate({} if policy.spec is None else policy.spec)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        raise PolicyInvalid(errors + [_field_error(details) for details in found]) from None
    errors += _cross_checks(spec, policy.metadata.namespace)
    if errors:
        raise PolicyInvalid(errors)
    return _rules_of(spec, extensions)


# --- The fields -------------------------------------------------------------------------------------------------------


def _checked_port(text: str) -> str:
    return text if rules.is_port(text) else _reject(f"{rules.PORT_MESSAGE}, not {quoted(text)}")


def _checked_ip(text: str) -> str:
    try:
        parse_ip(text)
    except ValueError:
        _reject(f"{rules.IP_MESSAGE}, not {quoted(text)}")
    return text


def _checked_label_key(text: str) -> str:
    return text if rules.is_label_key(text) else _reject(f"{quoted(text)} {rules.LABEL_KEY_MESSAGE}")


def _checked_label_value(text: str) -> str:
    return text if rules.is_label_value(text) else _reject(f"{quoted(text)} {rules.LABEL_VALUE_MESSAGE}")


def _reject(message: str) -> str:
    raise PydanticCustomError("rule", "{message}", {"message": message})


_LABEL_VALUE_SCHEMA = {
    "type": "string",
    "maxLength": rules.LABEL_VALUE_LENGTH,
    "pattern": rules.LABEL_VALUE_PATTERN,
}
PortNumber = Annotated[
    str,
    AfterValidator(_checked_port),
    WithJsonSchema({"type": "string", "maxLength": rules.PORT_LENGTH, "x-kubernetes-validations": [rules.PORT_RULE]}),
]
Address = Annotated[
    str,
    AfterValidator(_checked_ip),
    WithJsonSchema({"type": "string", "maxLength": rules.IP_LENGTH, "x-kubernetes-validations": [rules.IP_RULE]}),
]
LabelKey = Annotated[
    str,
    AfterValidator(_checked_label_key),
    WithJsonSchema({"type": "string", "maxLength": rules.LABEL_KEY_LENGTH, "pattern": rules.LABEL_KEY_PATTERN}),
]
LabelValue = Annotated[str, AfterValidator(_checked_label_value), WithJsonSchema(_LABEL_VALUE_SCHEMA)]
# A schema can't hold a rule for the keys of a map, only for its values.
MatchLabels = Annotated[
    dict[LabelKey, LabelValue], WithJsonSchema({"type": "object", "additionalProperties": _LABEL_VALUE_SCHEMA})
]


class Model(BaseModel):
    """What all parts of a policy share: strict types, frozen values, names in camelCase."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", alias_generator=to_camel)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """Take null for absent: the API server prunes nulls before it validates."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


class Port(Model):
    """A port and its protocol."""

    port: PortNumber = Field(description="The port number in quotes, decimal, from 1 to 65535.")
    protocol: Literal["TCP", "UDP"] = Field(description="The transport protocol.")
    name: str = Field(
        default="",
        description="Joins a frontend port, a backend port and a container port, in any case. Needed where there is"
        " more than one frontend port or backend port, and ignored where it is not needed.",
        json_schema_extra={"maxLength": rules.NAME_FIELD_LENGTH},
    )


class LabelRequirement(Model):
    """What the value of one label must be."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [rules.EXPRESSION_RULE]})

    key: LabelKey = Field(description="The label's key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(description="How the label is compared.")
    values: list[LabelValue] = Field(
        default_factory=list,
        description="What In and NotIn compare with: at least one value. None for Exists and DoesNotExist.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Selector(Model):
    """A label selector. Without requirements it selects every pod of the policy's namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    match_labels: MatchLabels = Field(
        default_factory=dict, description="Labels that a pod must have, each with this value."
    )
    match_expressions: list[LabelRequirement] = Field(
        default_factory=list,
        description="Requirements that a pod's labels must meet, all of them.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class AddressFrontend(Model):
    """Connections to one address are redirected."""

    ip: Address = Field(description="An IPv4 or IPv6 address.")
    to_ports: list[Port] = Field(
        min_length=1,
        description="The ports that are redirected. Where there is more than one, each has a name.",
        json_schema_extra={"maxItems": rules.MAX_PORTS, "x-kubernetes-validations": rules.FRONTEND_NAME_RULES},
    )


class ServiceFrontend(Model):
    """Connections to the cluster addresses of a Service are redirected."""

    service_name: str = Field(min_length=1, description="The Service's name.")
    namespace: str = Field(min_length=1, description="The Service's namespace, which must be the policy's own.")
    to_ports: list[Port] = Field(
        default_factory=list,
        description="The Service's ports that are redirected: every one if there are none here. Where there is more"
        " than one, each has a name.",
        json_schema_extra={"maxItems": rules.MAX_PORTS, "x-kubernetes-validations": rules.FRONTEND_NAME_RULES},
    )


class RedirectFrontend(Model):
    """Which connections are redirected: exactly one of the two matchers."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": [rules.ONE_MATCHER_RULE]})

    address_matcher: AddressFrontend | None = None
    service_matcher: ServiceFrontend | None = None

    @property
    def ports(self) -> tuple[str, list[Port]]:
        """The frontend ports written in the policy, and the name of the matcher they are written in."""
        if self.address_matcher is not None:
            return "addressMatcher", self.address_matcher.to_ports
        return "serviceMatcher", self.service_matcher.to_ports if self.service_matcher is not None else []


class RedirectBackend(Model):
    """Which pods of the same node, in the policy's namespace, the connections go to, and which port of theirs."""

    local_endpoint_selector: Selector = Field(description="Selects the pods.")
    to_ports: list[Port] = Field(
        min_length=1,
        description="The pods' ports. Where there is more than one, or more than one frontend port, each has a name."
        " With a single frontend port the first one is used.",
        json_schema_extra={"maxItems": rules.MAX_PORTS},
    )


class PolicySpec(Model):
    """What is redirected, and to where."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [*rules.BACKEND_NAME_RULES, rules.PROTOCOL_RULE]}
    )

    description: str = Field(default="", description="What the policy is for, for people.")
    redirect_frontend: RedirectFrontend
    redirect_backend: RedirectBackend
    skip_redirect_from_backend: bool = Field(
        default=False,
        description="Whether connections from the policy's own backend pods to its frontends reach the original"
        " destination instead of being redirected.",
        json_schema_extra={"default": False},
    )


# --- The rules between fields -----------------------------------------------------------------------------------------


def _cross_checks(spec: PolicySpec, namespace: str) -> Iterator[FieldError]:
    """Yield what is wrong between the fields of a spec whose fields are each right."""
    frontend = spec.redirect_frontend
    if (frontend.address_matcher is None) == (frontend.service_matcher is None):
        yield FieldError("spec.redirectFrontend", rules.ONE_MATCHER_MESSAGE)
        return
    service = frontend.service_matcher
    if service is not None and service.namespace != namespace:
        yield FieldError(
            "spec.redirectFrontend.serviceMatcher.namespace",
            f"must be the policy's own namespace, {quoted(namespace)}, not {quoted(service.namespace)}",
        )
    for index, item in enumerate(spec.redirect_backend.local_endpoint_selector.match_expressions):
        if (item.operator in ("In", "NotIn")) != bool(item.values):
            path = f"spec.redirectBackend.localEndpointSelector.matchExpressions[{index}].values"
            yield FieldError(path, rules.VALUES_MESSAGE)
    matcher, ports = frontend.ports
    backend_ports = spec.redirect_backend.to_ports
    if len(ports) > 1:
        yield from _name_errors(f"spec.redirectFrontend.{matcher}.toPorts", ports)
    if len(ports) > 1 or len(backend_ports) > 1:
        yield from _name_errors("spec.redirectBackend.toPorts", backend_ports)
    if len(ports) == 1 and ports[0].protocol != backend_ports[0].protocol:
        yield FieldError(
            "spec.redirectBackend.toPorts[0].protocol", f"must be {ports[0].protocol}: {rules.PROTOCOL_MESSAGE}"
        )


def _name_errors(path: str, ports: list[Port]) -> Iterator[FieldError]:
    for index, port in enumerate(ports):
        if not port.name:
            yield FieldError(f"{path}[{index}].name", f"is needed {rules.NAMES_NEEDED}: {rules.NAME_MESSAGE}")
        elif not rules.is_port_name(port.name):
            yield FieldError(f"{path}[{index}].name", f"{quoted(port.name)} is no port name: {rules.NAME_MESSAGE}")


# --- From the fields to their meaning ---------------------------------------------------------------------------------


def _rules_of(spec: PolicySpec, extensions: Extensions) -> PolicyRules:
    _, ports = spec.redirect_frontend.ports
    backend_ports = spec.redirect_backend.to_ports
    return PolicyRules(
        frontend=_frontend_of(spec.redirect_frontend, _ports_of(ports, named=len(ports) > 1)),
        selector=_selector_of(spec.redirect_backend.local_endpoint_selector),
        backend_ports=_ports_of(backend_ports, named=len(ports) > 1 or len(backend_ports) > 1),
        skip_redirect_from_backend=spec.skip_redirect_from_backend,
        on_no_backend=extensions.on_no_backend,
        node_selector=extensions.node_selector,
    )


def _frontend_of(frontend: RedirectFrontend, ports: tuple[PolicyPort, ...]) -> AddressMatcher | ServiceMatcher:
    if frontend.address_matcher is not None:
        return AddressMatcher(parse_ip(frontend.address_matcher.ip), ports)
    service = frontend.service_matcher
    assert service is not None  # _cross_checks: exactly one matcher
    return ServiceMatcher(service.service_name, service.namespace, ports)


def _ports_of(ports: list[Port], *, named: bool) -> tuple[PolicyPort, ...]:
    """Return the ports; a name that is not needed is left out, since it may be anything."""
    return tuple(
        PolicyPort(int(port.port), Protocol[port.protocol], port.name.lower() if named else "") for port in ports
    )


def _selector_of(selector: Selector) -> LabelSelector:
    labels = [
        LabelExpression(key, Operator.IN, frozenset((value,))) for key, value in sorted(selector.match_labels.items())
    ]
    expressions = [
        LabelExpression(item.key, Operator(item.operator), frozenset(item.values))
        for item in selector.match_expressions
    ]
    return LabelSelector((*labels, *expressions))


# --- How an error is told ---------------------------------------------------------------------------------------------

_SCALARS = (bool, int, float)
_WANTED = {
    "string_type": "a text",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "bool_type": "true or false",
}


def _field_error(details: ErrorDetails) -> FieldError:
    """Put one of pydantic's errors in the words of people who write YAML."""
    return FieldError(_path(details["loc"]), _message(details))


def _message(details: ErrorDetails) -> str:
    kind, value = details["type"], details["input"]
    if kind == "missing":
        return "is missing"
    if kind in _WANTED:
        quotes = f'; write "{quoted(value)}", in quotes' if kind == "string_type" and type(value) in _SCALARS else ""
        return f"must be {_WANTED[kind]}, not {quoted(value)}{quotes}"
    if kind == "literal_error":
        return f"must be {details['ctx']['expected'].replace(chr(39), '')}, not {quoted(value)}"
    if kind == "too_short":
        return "must have at least one entry"
    if kind == "string_too_short":
        return "must not be empty"
    return details["msg"]


def _path(location: tuple[int | str, ...]) -> str:
    """Write a place as in `spec.redirectBackend.toPorts[0].port`; a label's key goes in brackets and quotes."""
    text = "spec"
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part == "[key]":  # pydantic's mark for a mapping's key, which stands before it
            continue
        elif re.fullmatch(r"[A-Za-z]+", part) and not text.endswith(".matchLabels"):
            text += f".{part}"
        else:
            text += f"[{quoted(part)}]"
    return text
