"""What the commands that ask a cluster make of it, compared as people see it, with tests/unit/cli/expected/."""

import re
import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest

from lrp_operator.api.addresses import L4Addr, Protocol
from lrp_operator.api.nodestate import NodeReport
from lrp_operator.api.objects import ObjectMeta, Policy
from lrp_operator.cli import describe, explain, get, why
from lrp_operator.cli.planning import Plans, plan
from lrp_operator.cli.reader import LivePolicy
from lrp_operator.cli.survey import Fate, Standing, standing_of
from lrp_operator.cli.tracing import Trace, trace
from lrp_operator.resolve.options import ResolveOptions
from lrp_operator.sources.manifests import read_manifests
from tests.unit.cli.remote import EVERYWHERE, FORBIDDEN, for_service, loaded, policy, reported

EXPECTED = Path(__file__).parent / "expected"

Golden = Callable[[str], None]


@pytest.fixture
def golden(capsys: pytest.CaptureFixture[str], regenerate: bool) -> Golden:
    """Compare what was printed with a file of that name."""

    def compare(name: str) -> None:
        file, printed = EXPECTED / f"{name}.txt", re.sub(r"\d+d old", "Nd old", capsys.readouterr().out)
        if regenerate:
            file.parent.mkdir(exist_ok=True)
            file.write_text(printed)
        assert printed == file.read_text()

    return compare


def test_other_commands_do_not_wait_for_what_only_these_need() -> None:
    program = "import sys, lrp_operator.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"aiohttp", "asyncio", "kubernetes", "pydantic", "yaml", "rich"} & set(done.stdout.split())


# --- why --------------------------------------------------------------------------------------------------------------


def traced(pod: str, ip: str, port: int = 80, protocol: Protocol = Protocol.TCP) -> Trace:
    cluster = loaded()
    return trace(cluster.live.pods[pod], L4Addr.make(ip, port, protocol), cluster)


CASES: dict[str, tuple[str, str, int, Protocol, Fate]] = {
    "redirected": ("shop/client", "169.254.169.254", 80, Protocol.TCP, Fate.REDIRECTED),
    "one-of-two": ("shop/client", "10.96.0.10", 53, Protocol.UDP, Fate.REDIRECTED),
    "no-backend-port": ("shop/client", "10.96.0.10", 9153, Protocol.TCP, Fate.USUAL),
    "exempt": ("kube-system/dns-1", "10.96.0.10", 53, Protocol.TCP, Fate.USUAL),
    "refused": ("shop/client-2", "169.254.169.254", 80, Protocol.TCP, Fate.REFUSED),
    "not-in-force": ("shop/client-3", "169.254.169.254", 80, Protocol.TCP, Fate.USUAL),
    "tc-only": ("shop/client-4", "169.254.169.254", 80, Protocol.TCP, Fate.REDIRECTED),
    "tc-only-from-the-host": ("shop/host", "169.254.169.254", 80, Protocol.TCP, Fate.USUAL),
    "not-reported-yet": ("shop/client-4", "10.96.0.10", 53, Protocol.UDP, Fate.USUAL),
    "other-port": ("shop/client", "169.254.169.254", 8080, Protocol.TCP, Fate.USUAL),
    "node-not-selected": ("shop/client-2", "169.254.1.1", 80, Protocol.TCP, Fate.USUAL),
    "external-ip": ("shop/client", "198.51.100.7", 80, Protocol.TCP, Fate.USUAL),
    "load-balancer-ip": ("shop/client", "203.0.113.7", 80, Protocol.TCP, Fate.USUAL),
    "node-port-of-another-node": ("shop/client", "192.0.2.2", 30080, Protocol.TCP, Fate.USUAL),
    "no-policy": ("shop/client", "10.96.61.7", 80, Protocol.TCP, Fate.USUAL),
    "rejected": ("shop/client", "8.8.8.8", 80, Protocol.TCP, Fate.USUAL),
    "on-no-node": ("shop/waiting", "8.8.8.8", 80, Protocol.TCP, Fate.USUAL),
}


@pytest.mark.parametrize("name", CASES)
def test_why(name: str, golden: Golden) -> None:
    pod, ip, port, protocol, fate = CASES[name]
    found = traced(pod, ip, port, protocol)
    why.print_trace(found)
    golden(f"why-{name}")
    assert found.result is fate
    assert bool(found.backends) == (fate is Fate.REDIRECTED)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("169.254.169.254:80", "169.254.169.254:80/TCP"),
        ("10.96.0.10:53/UDP", "10.96.0.10:53/UDP"),
        ("[fd00::a]:53/udp", "[fd00::a]:53/UDP"),
        ("[::ffff:10.0.0.1]:1/tcp", "10.0.0.1:1/TCP"),
    ],
)
def test_destinations(written: str, meant: str) -> None:
    assert str(why._frontend(written)) == meant


@pytest.mark.parametrize(
    "written", ["169.254.169.254", "1.2.3:80", "1.2.3.4:0", "1.2.3.4:65536", "fd00::a:53", "1.2.3.4:1/icmp", "x"]
)
def test_what_is_no_destination(written: str) -> None:
    with pytest.raises(why.typer.BadParameter, match="is no destination: write one as"):
        why._frontend(written)


# --- explain ----------------------------------------------------------------------------------------------------------


def planned(text: str, options: ResolveOptions | None = None, missing: set[str] | None = None) -> Plans:
    objects, problems = read_manifests("policy.yaml", text.encode())
    assert problems == []
    policies = [obj for obj in objects.values() if isinstance(obj, Policy)]
    return plan(policies, options or ResolveOptions(), loaded(), missing or set(), ["All is assumed."])


PLANS = {
    "new": (policy("p", "169.254.2.2"), True),
    "conflict": (policy("p", "169.254.169.254"), False),
    "address-of-a-service": (policy("p", "10.96.61.7"), False),
    "edited": (policy("metadata", "169.254.169.254", 81), True),
    # other/late wants the same and never had it: nothing is taken from it.
    "unchanged": (
        policy("metadata", "169.254.169.254", annotations="lrp-operator.io/on-no-backend: drop", skip=True),
        True,
    ),
    "invalid": (policy("p", "169.254.2.2", 70000), False),
    "unknown-annotation": (policy("p", "169.254.2.2", annotations="lrp-operator.io/on-no-backends: drop"), False),
    "drop-on-some-nodes": (
        policy(
            "p",
            "169.254.2.2",
            annotations='lrp-operator.io/on-no-backend: drop, lrp-operator.io/node-selector: "!pool"',
        ),
        True,
    ),
    "no-such-nodes": (policy("p", "169.254.2.2", annotations="lrp-operator.io/node-selector: pool=none"), False),
    "two-at-once": (policy("b", "169.254.2.2") + policy("a", "169.254.2.2"), False),
    # As old as shop/edge, and first by name.
    "takes": (policy("dns", "169.254.1.1", namespace="kube-system"), True),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_explain(name: str, golden: Golden) -> None:
    text, works = PLANS[name]
    plans = planned(text)
    explain.print_plans(plans)
    golden(f"explain-{name}")
    assert all(item.works for item in plans.policies) is works


def test_explain_settings(golden: Golden) -> None:
    options = ResolveOptions(address_matcher_cidrs=(ip_network("10.0.0.0/8"),))
    explain.print_plans(planned(policy("p", "169.254.2.2"), options))
    options = ResolveOptions(address_matcher_namespaces=("kube-system",))
    explain.print_plans(planned(policy("p", "169.254.2.2"), options))
    options = ResolveOptions(max_frontends_per_namespace=2)
    explain.print_plans(planned(policy("p", "169.254.2.2"), options))
    golden("explain-settings")


def test_explain_services(golden: Golden) -> None:
    plans = planned(for_service("a", "headless") + for_service("b", "nope") + for_service("c", "web"))
    explain.print_plans(plans)
    golden("explain-services")
    assert [plan.works for plan in plans.policies] == [False, False, True]
    for found in plans.policies[:2]:
        assert {fate.reason for node in found.nodes for fate in node.frontends} == {found.reason}


def test_explain_without_the_namespace(golden: Golden) -> None:
    plans = planned(policy("p", "169.254.2.2", namespace="nope"), missing={"nope"})
    explain.print_plans(plans)
    golden("explain-no-namespace")
    assert not plans.policies[0].works


def test_creation_time_in_a_file_makes_nothing_older() -> None:
    """The API server sets it; a file that claims to be older than the holder takes nothing."""
    plans = planned(policy("p", "169.254.169.254", created="2001-01-01T00:00:00Z"))
    assert [(f.reason, f.nodes_redirecting) for f in plans.policies[0].frontends] == [("Conflict", 0)]


def test_explain_as_data_is_as_its_help_says() -> None:
    data = msgspec.to_builtins(planned(policy("p", "169.254.2.2")))
    assert list(data) == ["assumed", "policies"]
    (found,) = data["policies"]
    for name in (*found, *found["frontends"][0], *found["nodes"][0], *found["nodes"][0]["frontends"][0]):
        assert name in explain.HELP, name
    assert found["nodes"][0] == {
        "node": "worker-1",
        "frontends": [
            {
                "frontend": "169.254.2.2:80/TCP",
                "fate": "redirected",
                "backends": [{"address": "10.244.0.17:80/TCP", "pod": "shop/proxy-1"}],
            }
        ],
    }


def test_get_as_data_is_as_its_help_says() -> None:
    data = msgspec.to_builtins(get.PolicyList([get.state_of(live("dns", STATUS))]))
    (found,) = data["policies"]
    assert "conditions" in found
    for name in ("policies", *found, *found["conditions"], *found["conditions"]["Accepted"], *found["frontends"][1]):
        assert name in get.HELP, name


# --- get and describe -------------------------------------------------------------------------------------------------

STATUS = {
    "ok": True,
    "observedGeneration": 3,
    "conditions": [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observedGeneration": 3,
            "lastTransitionTime": "",
        }
        for kind, status, reason, message in (
            ("Accepted", "True", "Accepted", "The policy is valid and allowed."),
            ("Resolved", "True", "Resolved", "2 frontends."),
            ("Programmed", "False", "NodesFailing", "1 of 2 nodes redirect. Not yet: worker-3 (no room)."),
            ("Degraded", "True", "NodesFailing", "Something is wrong on worker-3 (no room)."),
        )
    ],
    "frontends": [
        {"frontend": "10.96.0.10:53/UDP", "nodesRedirecting": 1},
        {"frontend": "10.96.0.10:9153/TCP", "nodesRedirecting": 0, "reason": "NoMatchingPort", "message": "No port."},
    ],
    "backends": 3,
    "nodesWanted": 2,
    "nodesProgrammed": 1,
    "nodesFallingBack": 4,
}
SPEC = {"redirectFrontend": {"serviceMatcher": {"serviceName": "kube-dns", "namespace": "kube-system"}}}


def live(name: str, status: object = None, generation: int = 3, spec: object = SPEC) -> LivePolicy:
    return LivePolicy(ObjectMeta(name, "kube-system", uid=name, generation=generation), spec, status)


@pytest.mark.parametrize("wide", [False, True], ids=["table", "wide"])
def test_get(wide: bool, golden: Golden) -> None:
    policies = [
        live("dns", STATUS),
        live("edited", STATUS, generation=4),
        live("new"),
        live("odd", {"ok": "maybe"}, 3, 7),
    ]
    get.print_policies([get.state_of(policy) for policy in policies], "in any namespace", wide=wide)
    golden(f"get-{'wide' if wide else 'table'}")


def test_get_nothing(golden: Golden) -> None:
    get.print_policies([], "in namespace shop", wide=False)
    golden("get-nothing")


def test_describe(golden: Golden) -> None:
    cluster = loaded()
    for key in ("shop/metadata", "kube-system/dns", "shop/edge", "shop/forbidden"):
        seen = cluster.policies[key]
        rules = describe.view_rules(seen.policy)
        events = [describe.EventLine("Warning", "NodesFailing", "Something is wrong.", 2, "")]
        told = describe.Description(get.state_of(seen), rules, describe.node_fates(seen, cluster), events, ["A note."])
        describe.print_description(told)
    golden("describe")


def test_many_nodes_share_rows(golden: Golden) -> None:
    text = "\n---\n".join(f"kind: Node\nmetadata: {{name: n{n:03}}}" for n in range(200)) + "\n---\n"
    cluster = loaded(text + policy("p", "169.254.2.2"))
    nodes = describe.node_fates(cluster.policies["shop/p"], cluster)
    describe.print_tables(describe.nodes_table(nodes))
    golden("nodes-alike")


@pytest.mark.parametrize(
    "status", [None, 7, "x", [], {"conditions": ["x"]}, {"conditions": 7, "observedGeneration": 3}]
)
def test_a_status_that_is_none_of_ours_says_nothing(status: object) -> None:
    assert live("p", status).rejection == ""
    assert get.state_of(live("p", status)).conditions == {}


def test_a_rejection_counts_for_the_policy_that_it_is_about() -> None:
    assert live("p", FORBIDDEN, generation=1).rejection == "Not that one."
    assert live("p", FORBIDDEN, generation=2).rejection == ""


META = ObjectMeta("p", "shop", uid="p", generation=2)


@pytest.mark.parametrize(
    ("report", "wanted", "standing"),
    [
        (None, 1, Standing.PENDING),
        (None, 0, Standing.NOTHING_TO_DO),
        (NodeReport("1", EVERYWHERE, in_force=False), 1, Standing.TROUBLE),
        (NodeReport("1", EVERYWHERE, in_force=True), 1, Standing.PENDING),
        (NodeReport("1", EVERYWHERE, in_force=True), 0, Standing.NOTHING_TO_DO),
        (NodeReport("1", EVERYWHERE, in_force=True, policies=(reported("p", 1),)), 1, Standing.PENDING),
        (
            NodeReport("1", EVERYWHERE, in_force=True, policies=(reported("p", 1, generation=2),)),
            1,
            Standing.PROGRAMMED,
        ),
        (NodeReport("1", EVERYWHERE, in_force=True, policies=(reported("p", 1, generation=2),)), 2, Standing.PENDING),
    ],
)
def test_standing(report: NodeReport | None, wanted: int, standing: Standing) -> None:
    found, problem = standing_of(report, META, wanted)
    assert found is standing
    assert bool(problem) == (standing is not Standing.PROGRAMMED and (wanted > 0 or report is None))
