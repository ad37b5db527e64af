"""What the doctor makes of a node: one that is well, and what one thing that is amiss changes. No node is needed."""

import json
from pathlib import Path

import pytest
from msgspec import structs
from typer.testing import CliRunner

from lrp_operator.agent.main import BPF_ROOT
from lrp_operator.cli.doctor import command
from lrp_operator.cli.doctor.diagnose import Can, Check, ModeName, State, diagnose
from lrp_operator.cli.doctor.examine import read_cni
from lrp_operator.cli.doctor.findings import Cgroups, Cni, Findings, KubeProxy, PodsLink
from lrp_operator.cli.main import app
from lrp_operator.kernel import bpf
from lrp_operator.kernel.features import KernelFeatures

FEATURES = KernelFeatures(
    hooks=frozenset(bpf.AttachType),
    ring_buffer=True,
    netns_cookie_helper=True,
    netns_cookie_option=True,
    set_retval=True,
    compare_and_swap=True,
    mptcp=True,
    coarse_time=True,
    tcx=True,
)
EXPECTED = Path(__file__).parent / "expected"
ROOT = Path("/sys/fs/cgroup")
NO_CLUSTER = {"KUBECONFIG": "/nonexistent"}
WELL = Findings(
    kernel="6.12.9",
    machine="x86_64",
    features=FEATURES,
    host_cookie=1,
    cgroups=Cgroups(ROOT),
    bcc="0.30.0",
    bpffs="/sys/fs/bpf",
    links=(PodsLink("veth1", bridged=True), PodsLink("veth2", bridged=True)),
    cni=Cni("10-flannel.conflist", ("flannel", "portmap")),
    kube_proxy=KubeProxy(("iptables",), "iptables"),
    bridge_netfilter=True,
    optmem_max=131072,
    memlock="unlimited",
)
EVERY = set(ModeName)
SOCKETS, TC, REPLACE, HOST_ONLY = ModeName
AT_SOCKETS, AT_LINKS = {SOCKETS, REPLACE, HOST_ONLY}, {TC, HOST_ONLY}
KEEPING, REPLACING = {SOCKETS, TC}, {REPLACE, HOST_ONLY}


def without(*names: str) -> KernelFeatures:
    fields = {name: getattr(FEATURES, name) for name in FEATURES.__dataclass_fields__}
    return KernelFeatures(**{**fields, **dict.fromkeys(names, False)})


def shadowed(*why_not: str) -> dict[str, object]:
    return {
        "links": tuple(
            PodsLink(f"veth{n}", bridged=False, others=("cil_x",), why_not=why) for n, why in enumerate(why_not)
        )
    }


def modes_that(found: Findings, verdict: Can, words: str = "") -> set[ModeName]:
    """The modes with a verdict, and of these those with a reason that says so."""
    return {
        one.mode
        for one in diagnose(found).modes
        if one.verdict is verdict and (not words or any(words in reason for reason in one.reasons))
    }


def checks(found: Findings) -> dict[str, Check]:
    return {check.name: check for check in diagnose(found).checks}


def test_a_node_that_is_well() -> None:
    report = diagnose(WELL)
    assert {check.state for check in report.checks} == {State.FINE}
    assert modes_that(WELL, Can.YES) == KEEPING
    assert modes_that(WELL, Can.LIMITED, "NodePort, externalIPs") == REPLACING
    assert [(one.mode, one.values) for one in report.modes][1] == (TC, {"kubeProxyReplacement": False})
    assert report.modes[1].means == "TC level for pods, kube-proxy stays"


@pytest.mark.parametrize(
    ("change", "refused", "words"),
    [
        ({"no_bcc": "BCC is not installed", "bcc": ""}, EVERY, "BCC is not installed"),
        ({"no_bpffs": "/sys/fs/bpf is not on a bpffs"}, EVERY, "not on a bpffs"),
        ({"cgroups": Cgroups(None, why_not="cgroup v2 is not mounted")}, EVERY, "cgroup v2 is not mounted"),
        ({"cgroups": Cgroups(ROOT, uncovered="covers only a part")}, AT_SOCKETS, "covers only a part"),
        (
            {"cgroups": Cgroups(ROOT, closed=("connect4",))},
            AT_SOCKETS,
            "connect4 of /sys/fs/cgroup and admits no others",
        ),
        (
            {"cgroups": Cgroups(ROOT, others=("cil_sock4_connect on connect4",))},
            AT_SOCKETS,
            "Cilium redirects sockets on this node (cil_sock4_connect on connect4)",
        ),
        ({"features": without("ring_buffer")}, EVERY, "no BPF ring buffer"),
        ({"features": without("netns_cookie_helper")}, {HOST_ONLY}, "needs network namespace cookies"),
        ({"host_cookie": None}, {HOST_ONLY}, "needs network namespace cookies"),
        (shadowed("x ends the chain", "y does"), AT_LINKS, "no place on any pod's link: veth0: x ends the chain"),
        ({"cni": Cni("05.conf", ("macvlan",)), "links": ()}, AT_LINKS, "macvlan (05.conf) gives pods no link"),
    ],
)
def test_what_refuses_a_mode(change: dict[str, object], refused: set[ModeName], words: str) -> None:
    found = structs.replace(WELL, **change)
    assert modes_that(found, Can.NO) == refused
    assert modes_that(found, Can.NO, words) == refused


def test_missing_hooks_refuse_the_socket_level() -> None:
    hooks = frozenset(bpf.AttachType) - {bpf.AttachType.GETPEERNAME4}
    fields = {name: getattr(FEATURES, name) for name in FEATURES.__dataclass_fields__}
    found = structs.replace(WELL, features=KernelFeatures(**{**fields, "hooks": hooks}))
    assert modes_that(found, Can.NO, "no cgroup hooks getpeername4") == AT_SOCKETS


@pytest.mark.parametrize(
    ("change", "limited", "words"),
    [
        ({"features": without("set_retval")}, AT_SOCKETS, "EPERM instead of ECONNREFUSED"),
        ({"features": without("tcx")}, AT_LINKS, "the kernel has no tcx: the TC level uses filters of a clsact"),
        ({"lists_sockets": False}, AT_SOCKETS, "the kernel has no listing of socket storage: a pod that stops"),
        ({"kube_proxy": KubeProxy()}, KEEPING, "Services without a policy are for somebody else"),
        ({"cilium": ("link cilium_host",)}, EVERY, "Cilium is on this node (link cilium_host)"),
        ({"cgroups": Cgroups(ROOT, others=("sd_x on connect4",))}, AT_SOCKETS, "run beside ours (sd_x on connect4)"),
        ({"optmem_max": 4096}, AT_SOCKETS, "net.core.optmem_max is 4096"),
        (shadowed("x ends the chain", ""), AT_LINKS, "1 of 2 pods' links have no place for programs: veth0"),
    ],
)
def test_what_limits_a_mode(change: dict[str, object], limited: set[ModeName], words: str) -> None:
    found = structs.replace(WELL, **change)
    assert modes_that(found, Can.NO) == set()
    assert modes_that(found, Can.LIMITED, words) == limited
    assert modes_that(found, Can.YES) == KEEPING - limited


@pytest.mark.parametrize(
    ("change", "name", "state", "text"),
    [
        ({}, "pods' links", State.FINE, "2 on a bridge; nobody else's programs"),
        ({}, "CNI", State.FINE, "flannel + portmap (10-flannel.conflist)"),
        ({"links": ()}, "pods' links", State.NOTE, "none is here, so nothing can be said of programs on them"),
        ({"cni": Cni()}, "CNI", State.NOTE, "no configuration of one was found"),
        ({"kube_proxy": KubeProxy()}, "kube-proxy", State.NOTE, "no rules of one, and none answers"),
        ({"kube_proxy": KubeProxy(("ipvs",))}, "kube-proxy", State.FINE, "ipvs, by its rules"),
        (
            {"kube_proxy": KubeProxy(("iptables", "nftables"))},
            "kube-proxy",
            State.NOTE,
            "rules of iptables and nftables: one of them was left by an earlier mode",
        ),
        (
            {"kube_proxy": KubeProxy(("iptables",), "nftables")},
            "kube-proxy",
            State.NOTE,
            "says nftables, but the rules are those of iptables",
        ),
        (
            {"kube_proxy": KubeProxy(None)},
            "kube-proxy",
            State.UNSEEN,
            "none answers, and its rules can't be seen",
        ),
        (
            {"bridge_netfilter": None},
            "bridge-nf-call-iptables",
            State.NOTE,
            "off: answers between pods of one bridge pass kube-proxy by, so its Services time out there",
        ),
        (
            {"cilium_kinds": ("ciliumnodes",)},
            "Cilium",
            State.NOTE,
            "its kinds are in the cluster (ciliumnodes): set crds.install: false",
        ),
        ({"lacking": ("NET_ADMIN",)}, "capabilities", State.NOTE, "this process has no NET_ADMIN: an agent needs them"),
        (
            {"cgroups": Cgroups(ROOT, version_1=(ROOT / "cpu",))},
            "cgroup v2",
            State.FINE,
            "/sys/fs/cgroup; version 1 is beside it (1 mounts)",
        ),
        ({"unseen": ("the moon",)}, "unseen", State.UNSEEN, "the moon"),
    ],
)
def test_what_was_looked_at(change: dict[str, object], name: str, state: State, text: str) -> None:
    assert checks(structs.replace(WELL, **change))[name] == Check(name, state, text)


def test_without_kube_proxy_the_api_server_has_to_be_named() -> None:
    assert modes_that(structs.replace(WELL, kube_proxy=KubeProxy()), Can.LIMITED, "k8sServiceHost") == REPLACING
    assert modes_that(structs.replace(WELL, kube_proxy=KubeProxy(None)), Can.LIMITED, "k8sServiceHost") == set()


def test_who_may_not_ask_the_kernel_is_told_so() -> None:
    blind = {"features": None, "no_features": "no right to load programs", "links": (), "sees_programs": False}
    found = structs.replace(WELL, **blind)
    assert modes_that(found, Can.UNKNOWN, "no right to load programs") == EVERY
    assert {name for name, check in checks(found).items() if check.state is State.UNSEEN} == {
        "kernel", "sockets' hooks", "pods' links",
    }  # fmt: skip
    # What refuses a mode can be seen without.
    assert modes_that(structs.replace(found, no_bpffs="none"), Can.NO) == EVERY


def test_who_may_load_programs_but_not_look_at_others_is_told_so() -> None:
    found = structs.replace(WELL, links=(), sees_programs=False, lacking=("SYS_ADMIN",))
    assert modes_that(found, Can.UNKNOWN, "others' programs can't be seen") == EVERY


@pytest.mark.parametrize(
    ("files", "found", "unseen"),
    [
        ({}, Cni(), ""),
        ({"README": "x"}, Cni(), ""),
        ({"10-a.conf": '{"type": "bridge"}', "20-b.conflist": "{"}, Cni("10-a.conf", ("bridge",)), ""),
        (
            {"10-a.conflist": '{"plugins": [{"type": "ptp"}, {"type": "portmap"}]}'},
            Cni("10-a.conflist", ("ptp", "portmap")),
            "",
        ),
        ({"10-a.conf": "{"}, Cni("10-a.conf"), "the CNI's configuration: 10-a.conf is not understood"),
        ({"10-a.conf": "[]"}, Cni("10-a.conf"), "the CNI's configuration: 10-a.conf is not understood"),
    ],
)
def test_the_cnis_configuration(tmp_path: Path, files: dict[str, str], found: Cni, unseen: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert read_cni(tmp_path) == (found, unseen)
    assert read_cni(tmp_path / "none") == (Cni(), "")


class FoundBefore:
    """Stands for a look at the node."""

    found = WELL

    def __init__(self, *_: object) -> None:
        pass

    def findings(self, *_: object) -> Findings:
        return self.found


@pytest.mark.parametrize(
    ("found", "words", "code"),
    [
        (WELL, (), 0),
        (WELL, ("--mode", "replace"), 0),
        (structs.replace(WELL, host_cookie=None), (), 1),
        (structs.replace(WELL, host_cookie=None), ("--mode", "host-only"), 1),
        (structs.replace(WELL, host_cookie=None), ("--mode", "sockets"), 0),
        (structs.replace(WELL, features=None), (), 3),
        (WELL, ("--mode", "sideways"), 2),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, found: Findings, words: tuple[str, ...], code: int) -> None:
    monkeypatch.setattr(FoundBefore, "found", found)
    monkeypatch.setattr("lrp_operator.cli.doctor.examine.Examination", FoundBefore)
    result = CliRunner().invoke(app, ["doctor", *words, "-o", "json"], env=NO_CLUSTER)
    assert result.exit_code == code, result.output
    if code != 2:
        report = json.loads(result.stdout)
        assert [mode["mode"] for mode in report["modes"]] == ["sockets", "tc", "replace", "host-only"]


ENDS = "cil_from_contai (program 41) lets packets pass without asking those that come after it"
WITH_CILIUM = structs.replace(
    WELL,
    cgroups=Cgroups(ROOT, others=("cil_sock4_conne on connect4", "cil_sock6_conne on connect6")),
    links=(
        PodsLink("lxc1", bridged=False, others=("cil_from_contai",), why_not=ENDS),
        PodsLink("lxc2", bridged=False, others=("cil_from_contai",), why_not=ENDS),
    ),
    cni=Cni("05-cilium.conflist", ("cilium-cni",)),
    cilium=("link cilium_host", "link cilium_net", "38 maps in /sys/fs/bpf/tc/globals"),
    cilium_kinds=("ciliumendpoints", "ciliumidentities", "ciliumnodes"),
)


@pytest.mark.parametrize(("name", "found"), [("doctor", WELL), ("doctor-cilium", WITH_CILIUM)])
def test_the_table(monkeypatch: pytest.MonkeyPatch, name: str, found: Findings) -> None:
    """The docs show these."""
    monkeypatch.setattr(FoundBefore, "found", found)
    monkeypatch.setattr("lrp_operator.cli.doctor.examine.Examination", FoundBefore)
    printed = CliRunner().invoke(app, ["doctor"], env=NO_CLUSTER).stdout
    assert printed == (EXPECTED / f"{name}.txt").read_text()


def test_it_looks_where_agents_pin() -> None:
    assert command._BPF_ROOT == BPF_ROOT
