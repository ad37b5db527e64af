"""Policies, good and bad, by what they show. Each bad one differs from a good one in a single thing."""

from copy import deepcopy
from typing import Any, NamedTuple

Spec = dict[str, Any]


def port(number: str, protocol: str = "TCP", name: str | None = None) -> Spec:
    return {"port": number, "protocol": protocol} | ({} if name is None else {"name": name})


def address(*ports: Spec, ip: str = "169.254.169.254") -> Spec:
    return {"addressMatcher": {"ip": ip, "toPorts": list(ports)}}


def service(*ports: Spec, namespace: str = "default") -> Spec:
    return {"serviceMatcher": {"serviceName": "my-service", "namespace": namespace, "toPorts": list(ports)}}


def spec(frontend: Any, *backends: Any, selector: Any = None, **more: Any) -> Spec:
    backend = {"localEndpointSelector": {"matchLabels": {"app": "proxy"}} if selector is None else selector}
    return {"redirectFrontend": frontend, "redirectBackend": backend | {"toPorts": list(backends)}} | more


HTTP, WEB = port("8080"), port("80")
DNS, DNS_TCP = port("53", "UDP", "dns"), port("53", "TCP", "dns-tcp")


def without(tree: Spec, *path: str) -> Spec:
    tree = deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return tree


def expressions(*items: Any) -> Spec:
    return spec(address(HTTP), WEB, selector={"matchExpressions": list(items)})


ADDRESS = spec(address(HTTP), WEB)
SERVICE = spec(without(service(), "serviceMatcher", "toPorts"), WEB)

GOOD: dict[str, Spec] = {
    "the address of the seeds": ADDRESS,
    "the Service of the seeds": SERVICE,
    "no ports is every port": spec(service(), WEB),
    "one port of a Service": spec(service(HTTP), WEB),
    "named ports of a Service": spec(service(DNS, DNS_TCP), DNS, DNS_TCP),
    "named ports of an address": spec(address(DNS, DNS_TCP), DNS, DNS_TCP),
    "backends in another order than frontends": spec(address(DNS, DNS_TCP), DNS_TCP, DNS),
    "names compared in any case": spec(address(DNS, DNS_TCP), port("1", "UDP", "DNS"), port("2", "TCP", "Dns-Tcp")),
    "an IPv6 address": spec(address(HTTP, ip="fd00::1"), WEB),
    "a mapped address": spec(address(HTTP, ip="::ffff:169.254.169.254"), WEB),
    "the least and the greatest port": spec(address(port("1")), port("65535")),
    "ports that Cilium's pattern misses": spec(address(port("60000")), port("65530")),
    "an idle name is anything": spec(address(port("1", name="not_a!name" * 6)), port("2", name="")),
    "an idle name of a Service": spec(service(), port("2", name="x_y")),
    "a port twice under two names": spec(address(port("1", name="a"), port("1", name="b")), port("2", name="a")),
    "selects every pod": spec(address(HTTP), WEB, selector={}),
    "every operator": expressions(
        {"key": "a", "operator": "In", "values": ["x", ""]},
        {"key": "example.com/b", "operator": "NotIn", "values": ["y", "y"]},
        {"key": "c", "operator": "Exists"},
        {"key": "d", "operator": "DoesNotExist", "values": []},
    ),
    "skips": spec(address(HTTP), WEB, skipRedirectFromBackend=True),
    "described": spec(address(HTTP), WEB, description="Für Menschen\n" * 100),
    "null is absent": spec(address(HTTP) | {"serviceMatcher": None}, WEB, skipRedirectFromBackend=None),
    "an all-ports policy with null": spec({"serviceMatcher": service()["serviceMatcher"] | {"toPorts": None}}, WEB),
}


class Bad(NamedTuple):
    """A spec, and what is said of it: where, and some words. in_schema: whether the API server sees it as well."""

    spec: Any
    path: str
    words: str
    in_schema: bool = True


FRONT, BACK = "spec.redirectFrontend", "spec.redirectBackend"
SELECTOR = f"{BACK}.localEndpointSelector"
BACK_PORT = f"{BACK}.toPorts[0].port"
ADDRESS_IP = f"{FRONT}.addressMatcher.ip"


def back(number: Any) -> Spec:
    return spec(address(HTTP), port(number))


def at(ip: Any) -> Spec:
    return spec(address(HTTP, ip=ip), WEB)


def labels(key: Any, value: Any) -> Spec:
    return spec(address(HTTP), WEB, selector={"matchLabels": {key: value}})


BAD: dict[str, Bad] = {
    "no spec": Bad(None, FRONT, "missing"),
    "a list": Bad([], "spec", "must be a mapping, not a list"),
    "a text": Bad("spec", "spec", 'must be a mapping, not "spec"'),
    "no frontend": Bad(without(ADDRESS, "redirectFrontend"), FRONT, "missing"),
    "no backend": Bad(without(ADDRESS, "redirectBackend"), BACK, "missing"),
    "no matcher": Bad(spec({}, WEB), FRONT, "exactly one of addressMatcher and serviceMatcher"),
    "both matchers": Bad(spec(address(HTTP) | service(), WEB), FRONT, "exactly one of addressMatcher"),
    "no ip": Bad(without(ADDRESS, "redirectFrontend", "addressMatcher", "ip"), ADDRESS_IP, "missing"),
    "no address ports": Bad(spec(address(), WEB), f"{FRONT}.addressMatcher.toPorts", "at least one entry"),
    "null address ports": Bad(
        spec({"addressMatcher": {"ip": "1.1.1.1", "toPorts": None}}, WEB), f"{FRONT}.addressMatcher.toPorts", "missing"
    ),
    "a CIDR": Bad(at("169.254.169.254/32"), ADDRESS_IP, "without prefix length"),
    "a zone": Bad(at("fe80::1%eth0"), ADDRESS_IP, "without prefix length or zone"),
    "a host name": Bad(at("metadata"), ADDRESS_IP, 'not "metadata"'),
    "a padded address": Bad(at(" 1.2.3.4"), ADDRESS_IP, "must be one IPv4 or IPv6 address"),
    "an octal address": Bad(at("169.254.169.010"), ADDRESS_IP, "must be one IPv4 or IPv6 address"),
    "a number as address": Bad(at(16843009), ADDRESS_IP, 'must be a text, not 16843009; write "16843009", in quotes'),
    "no service name": Bad(
        spec({"serviceMatcher": {"namespace": "default"}}, WEB), f"{FRONT}.serviceMatcher.serviceName", "missing"
    ),
    "an empty service name": Bad(
        spec({"serviceMatcher": {"serviceName": "", "namespace": "default"}}, WEB),
        f"{FRONT}.serviceMatcher.serviceName",
        "must not be empty",
    ),
    "no service namespace": Bad(
        spec({"serviceMatcher": {"serviceName": "a"}}, WEB), f"{FRONT}.serviceMatcher.namespace", "missing"
    ),
    "another namespace": Bad(
        spec(service(namespace="kube-system"), WEB),
        f"{FRONT}.serviceMatcher.namespace",
        'must be the policy\'s own namespace, "default", not "kube-system"',
        in_schema=False,
    ),
    "no selector": Bad(without(ADDRESS, "redirectBackend", "localEndpointSelector"), SELECTOR, "missing"),
    "no backend ports": Bad(spec(address(HTTP)), f"{BACK}.toPorts", "at least one entry"),
    "ports as a mapping": Bad(
        {**ADDRESS, "redirectBackend": ADDRESS["redirectBackend"] | {"toPorts": WEB}},
        f"{BACK}.toPorts",
        "must be a list, not a mapping",
    ),
    "null as a port": Bad(spec(address(HTTP), None), f"{BACK}.toPorts[0]", "must be a mapping, not nothing"),
    "a number as port": Bad(back(80), BACK_PORT, 'must be a text, not 80; write "80", in quotes'),
    "port zero": Bad(back("0"), BACK_PORT, "from 1 to 65535"),
    "a port too great": Bad(back("65536"), BACK_PORT, 'not "65536"'),
    "a port of six digits": Bad(back("100000"), BACK_PORT, 'not "100000"'),
    "a leading zero": Bad(back("080"), BACK_PORT, "without leading zeros"),
    "hexadecimal": Bad(back("0x50"), BACK_PORT, "decimal"),
    "a padded port": Bad(back("80 "), BACK_PORT, 'not "80 "'),
    "a port with a line end": Bad(back("80\n"), BACK_PORT, "decimal"),
    "foreign digits": Bad(back("٨٠"), BACK_PORT, "decimal"),
    "an empty port": Bad(back(""), BACK_PORT, 'not ""'),
    "a named port": Bad(back("http"), BACK_PORT, 'not "http"'),
    "no protocol": Bad(spec(address(HTTP), {"port": "80"}), f"{BACK}.toPorts[0].protocol", "missing"),
    "SCTP": Bad(spec(address(port("1", "SCTP")), WEB), f"{FRONT}.addressMatcher.toPorts[0].protocol", "TCP or UDP"),
    "lower-case protocol": Bad(
        back("80") | spec(address(HTTP), port("80", "tcp")), f"{BACK}.toPorts[0].protocol", "TCP"
    ),
    "protocols that differ": Bad(
        spec(address(port("53", "UDP")), port("53")), f"{BACK}.toPorts[0].protocol", "must be UDP: with a single"
    ),
    "protocols that differ, Service": Bad(
        spec(service(port("53", "UDP")), DNS_TCP, DNS), f"{BACK}.toPorts[0].protocol", "must be UDP: with a single"
    ),
    "an unnamed frontend of two": Bad(
        spec(address(DNS, WEB), DNS, DNS_TCP), f"{FRONT}.addressMatcher.toPorts[1].name", "is needed"
    ),
    "an empty name of two": Bad(
        spec(service(DNS, port("80", name="")), DNS, DNS_TCP), f"{FRONT}.serviceMatcher.toPorts[1].name", "is needed"
    ),
    "an unnamed backend for two frontends": Bad(
        spec(address(DNS, DNS_TCP), port("53", "UDP")), f"{BACK}.toPorts[0].name", "is needed"
    ),
    "an unnamed backend of two": Bad(spec(service(), DNS, WEB), f"{BACK}.toPorts[1].name", "is needed"),
    "an unnamed backend of two, single port": Bad(
        spec(address(HTTP), WEB, DNS), f"{BACK}.toPorts[0].name", "is needed"
    ),
    **{
        f"the name {name}": Bad(
            spec(address(DNS, port("1", name=name)), DNS, DNS_TCP),
            f"{FRONT}.addressMatcher.toPorts[1].name",
            "is no port name: at most 15 letters",
        )
        for name in (
            "dns_tcp",
            "-dns",
            "dns-",
            "d--s",
            "0123",
            "1-2",
            "sixteen-letters-",
            "abcdefghijklmnop",
            "dns\n",
            "é",
        )
    },
    "a bad backend name": Bad(
        spec(service(), DNS, port("1", name="a b")), f"{BACK}.toPorts[1].name", "is no port name"
    ),
    "a number as name": Bad(spec(address(HTTP), port("80", name=1)), f"{BACK}.toPorts[0].name", "must be a text"),  # type: ignore[arg-type]
    "a text as switch": Bad(
        spec(address(HTTP), WEB, skipRedirectFromBackend="true"), "spec.skipRedirectFromBackend", "true or false"
    ),
    "a number as switch": Bad(
        spec(address(HTTP), WEB, skipRedirectFromBackend=1), "spec.skipRedirectFromBackend", "true or false, not 1"
    ),
    "a number as description": Bad(spec(address(HTTP), WEB, description=1), "spec.description", "must be a text"),
    "a label's key": Bad(labels("a b", "c"), f'{SELECTOR}.matchLabels["a b"]', "is no label key", in_schema=False),
    "an empty label key": Bad(labels("", "c"), f'{SELECTOR}.matchLabels[""]', "is no label key", in_schema=False),
    "a label's prefix": Bad(labels("A/b", "c"), f'{SELECTOR}.matchLabels["A/b"]', "DNS domain", in_schema=False),
    "a label's value": Bad(labels("a", "-"), f'{SELECTOR}.matchLabels["a"]', "is no label value"),
    "a long label value": Bad(labels("a", "b" * 64), f'{SELECTOR}.matchLabels["a"]', "at most 63"),
    "a number as label": Bad(labels("a", 1), f'{SELECTOR}.matchLabels["a"]', 'write "1", in quotes'),
    "an unknown operator": Bad(
        expressions({"key": "a", "operator": "in", "values": ["b"]}),
        f"{SELECTOR}.matchExpressions[0].operator",
        'must be In, NotIn, Exists or DoesNotExist, not "in"',
    ),
    "In without values": Bad(
        expressions({"key": "a", "operator": "In"}), f"{SELECTOR}.matchExpressions[0].values", "at least one entry"
    ),
    "Exists with values": Bad(
        expressions({"key": "a", "operator": "Exists", "values": ["b"]}),
        f"{SELECTOR}.matchExpressions[0].values",
        "none for Exists",
    ),
    "an expression's key": Bad(
        expressions({"key": "a/b/c", "operator": "Exists"}), f"{SELECTOR}.matchExpressions[0].key", "is no label key"
    ),
    "an expression's value": Bad(
        expressions({"key": "a", "operator": "In", "values": ["x", "b c"]}),
        f"{SELECTOR}.matchExpressions[0].values[1]",
        "is no label value",
    ),
}
