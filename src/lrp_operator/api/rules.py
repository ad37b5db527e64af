"""The rules of a policy, each as the API server holds it (a pattern or CEL) and as Python does, with one message.

CEL keeps to what Kubernetes 1.29 has (no isIP). What a CEL rule may cost is estimated from the schema's bounds, which
must not refuse what Cilium accepts. So lists of ports are bounded only by what fits in an object that etcd stores, and
regular expressions that run on every port are short, because their length counts.
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic.config import JsonDict, JsonValue

MAX_PORTS = 52_428  # of the shortest, {"port":"1","protocol":"TCP"}, in the 1.5 MiB that etcd takes

PORT_LENGTH = 16  # longer than any port number, so that a slip gets PORT_MESSAGE instead of "too long"
PORT_MESSAGE = "must be a port number from 1 to 65535 in quotes, decimal and without leading zeros"
PORT_RULE: "JsonDict" = {"rule": "self.matches('^[1-9][0-9]{0,4}$') && int(self) < 65536", "message": PORT_MESSAGE}

IP_LENGTH = 64  # longer than any address, as above
IP_MESSAGE = "must be one IPv4 or IPv6 address, without prefix length or zone"

NAME_LENGTH = 15
NAME_FIELD_LENGTH = 63  # a name that is not needed may be anything; no port in Kubernetes has a longer one
NAME_MESSAGE = (
    "at most 15 letters, digits and hyphens, at least one letter, no hyphen at an edge or beside another hyphen"
)
NAMES_NEEDED = "where there is more than one frontend port or backend port"

LABEL_PREFIX_LENGTH = 253
LABEL_VALUE_LENGTH = 63
LABEL_KEY_LENGTH = LABEL_PREFIX_LENGTH + 1 + LABEL_VALUE_LENGTH
_LABEL_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_PREFIX = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
LABEL_KEY_PATTERN = rf"^({_LABEL_PREFIX}/)?{_LABEL_NAME}$"
LABEL_KEY_MESSAGE = (
    "is no label key: write a name of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both"
    " ends, after a DNS domain and '/' if it has one"
)
LABEL_VALUE_PATTERN = rf"^({_LABEL_NAME})?$"
LABEL_VALUE_MESSAGE = (
    "is no label value: write at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
)

ONE_MATCHER_MESSAGE = "must have exactly one of addressMatcher and serviceMatcher"
VALUES_MESSAGE = "must have at least one entry for In and NotIn, and none for Exists and DoesNotExist"
PROTOCOL_MESSAGE = "with a single frontend port, the first backend port must have the frontend's protocol"


def is_port(text: str) -> bool:
    """Whether a text is a port number as policies write it."""
    return re.fullmatch(r"[1-9][0-9]{0,4}", text) is not None and int(text) < 65536


def is_port_name(text: str) -> bool:
    """Whether a text is an IANA service name, in any case."""
    return (
        len(text) <= NAME_LENGTH
        and re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*", text) is not None
        and not text.replace("-", "").isdigit()
    )


def is_label_key(text: str) -> bool:
    """Whether a text is a label's key, by Kubernetes' rules."""
    prefix, slash, name = text.rpartition("/")
    # Lengths come first: the prefix's pattern must not be let loose on a megabyte.
    return (
        len(name) <= LABEL_VALUE_LENGTH
        and re.fullmatch(_LABEL_NAME, name) is not None
        and (not slash or (len(prefix) <= LABEL_PREFIX_LENGTH and _is_domain(prefix)))
    )


def _is_domain(text: str) -> bool:
    return all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", label) for label in text.split("."))


def is_label_value(text: str) -> bool:
    """Whether a text is a label's value, by Kubernetes' rules."""
    return len(text) <= LABEL_VALUE_LENGTH and re.fullmatch(f"({_LABEL_NAME})?", text) is not None


def ip_pattern() -> str:
    """Return a regular expression for exactly what `addresses.parse_ip` takes; CEL has a function from 1.31 on only."""
    octet = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    ipv4 = f"({octet}[.]){{3}}{octet}"
    group = "[0-9a-fA-F]{1,4}"
    # Eight groups, the last two of them an IPv4 address if so written; or fewer, and :: for the rest.
    ipv6 = [f"({group}:){{7}}{group}", f"({group}:){{6}}{ipv4}", f"({group}:){{1,7}}:", "::"]
    ipv6 += [f"({group}:){{{n}}}(:{group}){{1,{7 - n}}}" for n in range(1, 7)] + [f":(:{group}){{1,7}}"]
    ipv6 += [f"({group}:){{{n}}}(:{group}){{0,{5 - n}}}:{ipv4}" for n in range(1, 6)] + [f":(:{group}){{0,5}}:{ipv4}"]
    return f"^({'|'.join([ipv4, *ipv6])})$"


IP_RULE: "JsonDict" = {"rule": f"self.matches('{ip_pattern()}')", "message": IP_MESSAGE}

EXPRESSION_RULE: "JsonDict" = {
    "rule": "(self.operator == 'In' || self.operator == 'NotIn') == (has(self.values) && size(self.values) > 0)",
    "message": f"values {VALUES_MESSAGE}",
    "fieldPath": ".values",
}

ONE_MATCHER_RULE: "JsonDict" = {
    "rule": "has(self.addressMatcher) != has(self.serviceMatcher)",
    "message": f"redirectFrontend {ONE_MATCHER_MESSAGE}",
}


_FRONTEND = "self.redirectFrontend"
_BACKEND_PORTS = "self.redirectBackend.toPorts"
_ADDRESS_PORTS = f"{_FRONTEND}.addressMatcher.toPorts"
_SERVICE_PORTS = f"{_FRONTEND}.serviceMatcher.toPorts"
_NO_ADDRESS = f"!has({_FRONTEND}.addressMatcher)"
_NO_SERVICE_PORTS = f"!has({_FRONTEND}.serviceMatcher) || !has({_SERVICE_PORTS})"


def _name_rules(unless: str, ports: str) -> list["JsonDict"]:
    """Rules for the names of a list of ports. They are three because each must stay within the cost of one rule."""
    shape = f"a port's name has {NAME_MESSAGE}"
    return [
        {"rule": f"{unless} || {ports}.all(p, {test})", "message": message}
        for test, message in (
            ("has(p.name) && p.name != ''", f"every port needs a name {NAMES_NEEDED}"),
            ("!has(p.name) || p.name == '' || size(p.name) < 16 && p.name.matches('^[^\\\\W_](-?[^\\\\W_])*$')", shape),
            ("!has(p.name) || p.name == '' || p.name.matches('[A-Za-z]')", shape),
        )
    ]


FRONTEND_NAME_RULES: list["JsonValue"] = [*_name_rules("size(self) < 2", "self")]
BACKEND_NAME_RULES: list["JsonDict"] = [
    rule | {"fieldPath": ".redirectBackend.toPorts"}
    for rule in _name_rules(
        f"size({_BACKEND_PORTS}) < 2 && ({_NO_ADDRESS} || size({_ADDRESS_PORTS}) < 2)"
        f" && ({_NO_SERVICE_PORTS} || size({_SERVICE_PORTS}) < 2)",
        _BACKEND_PORTS,
    )
]
PROTOCOL_RULE: "JsonDict" = {
    "rule": " && ".join(
        f"({without} || size({ports}) != 1 || size({_BACKEND_PORTS}) == 0"
        f" || {ports}[0].protocol == {_BACKEND_PORTS}[0].protocol)"
        for without, ports in ((_NO_ADDRESS, _ADDRESS_PORTS), (_NO_SERVICE_PORTS, _SERVICE_PORTS))
    ),
    "message": PROTOCOL_MESSAGE,
    "fieldPath": ".redirectBackend.toPorts",
}
