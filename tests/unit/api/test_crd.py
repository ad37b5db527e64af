import json
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrp_operator.api import nodestate, schema
from lrp_operator.api.addresses import Protocol, parse_ip
from lrp_operator.api.annotations import ON_NO_BACKEND
from lrp_operator.api.crd import MAX_ERRORS, PolicyInvalid, parse_policy
from lrp_operator.api.nodestate import NodeRedirectState, NodeReport, PolicyReport
from lrp_operator.api.objects import ObjectMeta, Policy
from lrp_operator.api.policy import (
    AddressMatcher,
    LabelExpression,
    LabelSelector,
    OnNoBackend,
    Operator,
    PolicyPort,
    PolicyRules,
    ServiceMatcher,
)
from lrp_operator.api.rules import ip_pattern
from tests.unit.api.cases import ADDRESS, BAD, DNS, DNS_TCP, GOOD, SERVICE, WEB, Bad, address, port, service, spec

ROOT = Path(__file__).parents[3]


def policy(spec: Any, namespace: str = "default", annotations: dict[str, str] | None = None) -> Policy:
    return Policy(ObjectMeta(name="p", namespace=namespace, annotations=annotations), spec)


def errors_of(spec: Any, **more: Any) -> dict[str, str]:
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(policy(spec, **more))
    return dict(caught.value.errors)


def test_an_address_policy_says_what_it_says() -> None:
    assert parse_policy(policy(ADDRESS)) == PolicyRules(
        frontend=AddressMatcher(bytes([169, 254, 169, 254]), (PolicyPort(8080, Protocol.TCP),)),
        selector=LabelSelector((LabelExpression("app", Operator.IN, frozenset({"proxy"})),)),
        backend_ports=(PolicyPort(80, Protocol.TCP),),
        skip_redirect_from_backend=False,
        on_no_backend=OnNoBackend.FALL_BACK,
    )


def test_a_service_policy_says_what_it_says() -> None:
    rules = parse_policy(policy(spec(service(DNS, DNS_TCP), DNS, DNS_TCP, skipRedirectFromBackend=True)))
    ports = (PolicyPort(53, Protocol.UDP, "dns"), PolicyPort(53, Protocol.TCP, "dns-tcp"))
    assert rules.frontend == ServiceMatcher("my-service", "default", ports)
    assert rules.backend_ports == ports
    assert rules.skip_redirect_from_backend
    assert parse_policy(policy(SERVICE)).frontend == ServiceMatcher("my-service", "default", ())


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD)
def test_good(spec: Any) -> None:
    parse_policy(policy(spec))


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad(case: Bad) -> None:
    errors = errors_of(case.spec)
    assert case.words in errors[case.path]


def test_a_mapped_address_is_the_ipv4_address() -> None:
    frontend = parse_policy(policy(GOOD["a mapped address"])).frontend
    assert isinstance(frontend, AddressMatcher)
    assert frontend.ip == bytes([169, 254, 169, 254])


def test_names_are_lower_cased_where_they_count_and_left_out_where_not() -> None:
    rules = parse_policy(policy(GOOD["names compared in any case"]))
    assert [port.name for port in rules.backend_ports] == ["dns", "dns-tcp"]
    single = parse_policy(policy(spec(address(DNS), port("1", "UDP", "a"), port("2", name="b"))))
    assert isinstance(single.frontend, AddressMatcher)
    assert [port.name for port in single.frontend.ports] == [""]
    assert [port.name for port in single.backend_ports] == ["a", "b"]
    every = parse_policy(policy(spec(service(), DNS)))
    assert [port.name for port in every.backend_ports] == [""]


def test_the_selector_matches_as_kubernetes_does() -> None:
    selector = parse_policy(policy(GOOD["every operator"])).selector
    assert selector.matches({"a": "", "c": "1"})
    assert not selector.matches({"a": "", "c": "1", "example.com/b": "y"})
    assert not selector.matches({"a": "", "c": "1", "d": ""})
    assert not selector.matches(None)
    assert parse_policy(policy(GOOD["selects every pod"])).selector.matches(None)


def test_unknown_fields_are_ignored() -> None:
    assert parse_policy(policy(ADDRESS | {"later": {"deep": [1]}})) == parse_policy(policy(ADDRESS))


@pytest.mark.parametrize("value", OnNoBackend)
def test_the_annotation(value: OnNoBackend) -> None:
    annotations = {ON_NO_BACKEND: value.value, "other": "drop"}
    assert parse_policy(policy(ADDRESS, annotations=annotations)).on_no_backend is value


@pytest.mark.parametrize("value", ["Drop", "", "dorp", "drop ", "x" * 1000])
def test_a_senseless_annotation_rejects_the_policy(value: str) -> None:
    errors = errors_of(ADDRESS, annotations={ON_NO_BACKEND: value})
    assert 'must be "drop" or "fallback"' in errors[f'metadata.annotations["{ON_NO_BACKEND}"]']


def test_every_problem_is_told_at_once() -> None:
    broken = spec(address(port("0"), ip="x"), port("1", "tcp"))
    errors = errors_of(broken, annotations={ON_NO_BACKEND: "?"})
    assert len(errors) == 4


def test_the_exception_reads_as_its_errors() -> None:
    with pytest.raises(
        PolicyInvalid, match=r"spec\.redirectBackend\.toPorts\[0\]\.port: must be a port number .*; spec"
    ):
        parse_policy(policy(spec(address(WEB), port("0"), port("0"))))


def test_a_hundred_thousand_mistakes_are_told_shortly_and_soon() -> None:
    start = time.monotonic()
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(policy(spec(address(WEB), *[port("x" * 1000, "y")] * 50_000)))
    assert len(caught.value.errors) == MAX_ERRORS + 1
    assert "99990 more" in str(caught.value)
    assert len(str(caught.value)) < 4000
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {"a" * 1_000_000: "b"}},
        {"matchLabels": {"a": "-" * 1_000_000}},
        {"matchLabels": {"a." * 500_000 + "/b": "c"}},
        {"matchExpressions": [{"key": "a", "operator": "In", "values": ["a.-" * 300_000]}]},
    ],
)
def test_a_megabyte_of_selector_is_refused_soon(selector: Any) -> None:
    start = time.monotonic()
    errors = errors_of(spec(address(WEB), WEB, selector=selector))
    assert max(map(len, [*errors, *errors.values()])) < 400
    assert time.monotonic() - start < 2


def test_many_labels_are_no_error() -> None:
    labels = {f"key-{number}": "value" for number in range(50_000)}
    rules = parse_policy(policy(spec(address(WEB), WEB, selector={"matchLabels": labels})))
    assert len(rules.selector.expressions) == 50_000


# --- Invariants -------------------------------------------------------------------------------------------------------

FIELDS = st.sampled_from(sorted(set(re.findall(r"[a-z]\w+", json.dumps([*GOOD.values()])))))
TEXTS = st.sampled_from(["TCP", "UDP", "80", "1.2.3.4", "default", "In", "Exists", "a"]) | st.text()
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.builds(pow, st.just(10), st.just(5000)),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS | st.text() | st.integers(), inner),
    max_leaves=60,
)


def parses_or_is_invalid(tree: Any) -> bool:
    try:
        parse_policy(policy(tree))
    except PolicyInvalid as error:
        return bool(error.errors) and str(error).isprintable()
    return True


@given(TREES)
def test_anything_is_either_a_policy_or_invalid(tree: Any) -> None:
    assert parses_or_is_invalid(tree)


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A good spec with one value in it replaced by something else."""
    tree = json.loads(json.dumps(draw(st.sampled_from(list(GOOD.values())))))
    parent: Any = {"spec": tree}
    key: Any = "spec"
    while isinstance(parent[key], dict | list) and parent[key] and draw(st.booleans()):
        parent = parent[key]
        key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
    parent[key] = draw(TREES)
    return tree


@given(mutations())
def test_a_policy_with_anything_in_it_is_either_a_policy_or_invalid(tree: Any) -> None:
    assert parses_or_is_invalid(tree)


NEARLY_IPS = st.lists(
    st.sampled_from(["1", "0", "255", "256", "f", "ffff", "12345", ":", "::", ".", "01"]), max_size=18
)


@given(st.one_of(st.ip_addresses().map(str), NEARLY_IPS.map("".join), st.text(max_size=10)))
@example("::")
@example("::1.2.3.4")
@example("1:2:3:4:5:6:1.2.3.4")
@example("1:2:3:4:5::1.2.3.4")
@example("1:2:3:4:5:6:7::")
@example("::2:3:4:5:6:7:8")
@example("1:2:3:4:5:6:7:8::")
@example("1.2.3.4\n")
def test_the_schema_and_the_parser_agree_on_addresses(text: str) -> None:
    try:
        parse_ip(text)
        expected = True
    except ValueError:
        expected = False
    # RE2's $ is the very end; Python's is the end or a last line end.
    assert bool(re.search(ip_pattern().replace("$", r"\Z"), text)) is expected


# --- The CRD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plural", ["ciliumlocalredirectpolicies", "noderedirectstates"])
def test_the_generated_crds_are_current(plural: str) -> None:
    written = (ROOT / schema.DIRECTORY / f"{plural}.yaml").read_text(encoding="utf-8")
    assert written == schema.crd_yaml(schema.crds()[plural]), "run: python -m lrp_operator.api.schema"


def test_there_is_no_other_crd() -> None:
    assert {path.stem for path in (ROOT / schema.DIRECTORY).iterdir()} == set(schema.crds())


def walk(node: Any, path: str = "") -> Any:
    yield path, node
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from walk(value, f"{path}/{key}")


@pytest.mark.parametrize("crd", schema.crds().values(), ids=schema.crds())
def test_the_crds_are_structural_and_ask_for_nothing_newer_than_kubernetes_1_29(crd: dict[str, Any]) -> None:
    (version,) = crd["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    for path, node in walk(root):
        key = path.rpartition("/")[2]
        assert key not in ("$ref", "$defs", "title", "anyOf", "oneOf", "allOf"), path
        if isinstance(node, dict) and "rule" in node:
            assert not any(
                name in node["rule"] for name in ("isIP(", "ip(", "cidr(", "isCIDR(", "format.", "optional", "?.")
            ), path
            assert "oldSelf" not in node["rule"], "a policy may be edited in place"
            assert node["message"]
            assert "\n" not in node["message"]


def test_the_crd_names_what_people_type() -> None:
    crd = schema.policy_crd()
    assert crd["metadata"]["name"] == "ciliumlocalredirectpolicies.cilium.io"
    assert crd["spec"]["names"]["shortNames"] == ["clrp"]
    (version,) = crd["spec"]["versions"]
    assert [column["name"] for column in version["additionalPrinterColumns"]] == [
        "Frontend",
        "Accepted",
        "Programmed",
        "Reason",
        "Wanted",
        "Redirecting",
        "Falling back",
        "Degraded",
        "Age",
    ]
    assert version["subresources"] == {"status": {}}
    assert "ok" in version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]


def test_a_nodes_report_is_bounded_and_fits_in_etcd() -> None:
    policy = PolicyReport("n" * 317, "u" * 64, 2**53, 2**53, 2**53, "R" * 64, "m" * nodestate.MAX_SENTENCE)
    report = NodeReport(
        agent_version="v" * 64,
        mode="m" * 128,
        in_force=False,
        message="m" * nodestate.MAX_MESSAGE,
        problems=("p" * nodestate.MAX_SENTENCE,) * nodestate.MAX_PROBLEMS,
        policies=(policy,) * nodestate.MAX_POLICIES,
    )
    assert len(msgspec.json.encode(NodeRedirectState(ObjectMeta("n" * 253), report))) < 1.2 * 2**20

    (version,) = schema.node_crd()["spec"]["versions"]
    for path, node in walk(version["schema"]["openAPIV3Schema"]["properties"]["report"]):
        if isinstance(node, dict) and node.get("type") == "string":
            assert "maxLength" in node, path
        if isinstance(node, dict) and node.get("type") == "array":
            assert "maxItems" in node, path
