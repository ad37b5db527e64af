"""The doctor on a node of namespaces: it recognises what is there, by its own eyes, and changes nothing."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import KubeProxy, Network, Node, Pod, Service
from lab.kubeproxy import Mode
from lrp_operator.cli.doctor.diagnose import Can, ModeName, diagnose
from lrp_operator.cli.doctor.examine import Examination
from lrp_operator.cli.doctor.findings import Findings, PodsLink
from lrp_operator.datapath.engine import cleanup
from lrp_operator.datapath.model import DatapathSettings, SocketLevel, TcLevel
from lrp_operator.kernel import bpf
from lrp_operator.kernel.netfilter import Chain, chains
from lrp_operator.kernel.netns import in_netns
from lrp_operator.kernel.tcfilter import Hook, TcFilters
from tests.datapath.attach.ground import place_of
from tests.datapath.world import InNode

pytestmark = pytest.mark.privileged

PASS_ON, OK = 0xFFFFFFFF, 0  # TC_ACT_UNSPEC asks the next one, TC_ACT_OK asks nobody
ALLOW = 1

# With no more rights than the chart gives an agent.
AS_AN_AGENT = ["setpriv", "--bounding-set", "-all,+sys_admin,+sys_ptrace,+net_admin,+sys_resource"]


@pytest.fixture
def node() -> Iterator[Node]:
    with Network() as network:
        yield network.node()


def examined(node: Node) -> Findings:
    """What is found on a node; its process 1 is this machine's, so its bpffs counts as the node's own."""
    return in_netns(node.netns, lambda: Examination(node.bpf / "lrp", node.cgroup).findings((), ""))


def program(verdict: int, name: str, kind: bpf.ProgType = bpf.ProgType.SCHED_CLS, attach_type: int = 0) -> bpf.Fd:
    code = struct.pack("=BBhIBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)
    return bpf.load_program(kind, code, attach_type, name=name)


def filtered(node: Node, pod: Pod, verdict: int, name: str) -> None:
    """Put somebody's filter on a clsact of a pod's link, on both hooks."""

    def put() -> None:
        filters = TcFilters()
        with program(verdict, name) as loaded:
            for hook in Hook:
                filters.put(pod.veth.index, hook, 10, loaded, name)
        filters.close()

    in_netns(node.netns, put)


def opened(cgroup: Path) -> bpf.Fd:
    return bpf.Fd(os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY))


def can(found: Findings) -> dict[ModeName, Can]:
    return {one.mode: one.verdict for one in diagnose(found).modes}


def test_links_of_both_shapes(node: Node) -> None:
    node.pod("routed")
    node.pod("bridged", bridge=True)
    found = examined(node)
    assert found.links == (PodsLink("veth-routed", bridged=False), PodsLink("veth-bridged", bridged=True))
    assert (found.no_bcc, found.no_bpffs, found.cgroups.why_not, found.cgroups.uncovered) == ("", "", "", "")
    assert found.kube_proxy.rules == ()
    assert set(can(found).values()) == {Can.LIMITED}  # there is no kube-proxy


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_kube_proxys_rules(node: Node, mode: Mode) -> None:
    proxy = KubeProxy(node, mode)
    proxy.write([Service("default/web:http", "10.96.0.10", 80, ["10.244.0.9:80"])])
    assert examined(node).kube_proxy.rules == (mode,)
    proxy.remove()


def test_rules_of_the_older_iptables(node: Node) -> None:
    for command in ("iptables-legacy", "ip6tables-legacy"):
        node.run([command, "-t", "nat", "-N", "KUBE-SERVICES"])
        node.run([command, "-t", "nat", "-A", "KUBE-SERVICES", "-j", "RETURN"])
        node.run([command, "-t", "nat", "-N", "KUBE-POSTROUTING"])
    found = in_netns(node.netns, chains)
    assert found == {Chain("nat", "KUBE-SERVICES", legacy=True), Chain("nat", "KUBE-POSTROUTING", legacy=True)}
    assert examined(node).kube_proxy.rules == ("iptables",)


def test_looking_makes_no_tables(node: Node) -> None:
    names = in_netns(node.netns, lambda: (chains(), Path("/proc/thread-self/net/ip_tables_names").read_text()))
    assert names == (frozenset(), "")


def test_ipvs_is_known_by_its_link(node: Node) -> None:
    node.run(["ip", "link", "add", "kube-ipvs0", "type", "bridge"])  # ipvs makes a dummy
    node.run(["iptables", "-t", "nat", "-N", "KUBE-SERVICES"])
    assert examined(node).kube_proxy.rules == ("ipvs",)


def test_a_neighbour_with_room_beside_it(node: Node) -> None:
    filtered(node, node.pod("a"), PASS_ON, "theirs")
    found = examined(node)
    assert found.links == (PodsLink("veth-a", bridged=False, others=("theirs",)),)
    assert Can.NO not in can(found).values()


def test_a_neighbour_that_ends_the_chain(node: Node) -> None:
    """And another one in tcx, on one hook only: no place is right for both."""
    pod = node.pod("a")
    filtered(node, pod, OK, "ender")

    def put() -> None:
        with program(OK, "cil_from_cont") as loaded:
            bpf.attach_to_link(loaded, pod.veth.index, bpf.TcxHook.INGRESS, bpf.Place.FIRST)

    in_netns(node.netns, put)
    found = examined(node)
    (link,) = found.links
    assert link.others == ("cil_from_cont", "ender")
    assert link.why_not
    assert {mode for mode, verdict in can(found).items() if verdict is Can.NO} == {ModeName.TC, ModeName.HOST_ONLY}


def test_others_programs_on_sockets(node: Node) -> None:
    """Below the root, where pods are: they run before ours."""
    pod = node.pod("a")
    pod.popen(["sleep", "60"])
    hook = bpf.AttachType.CONNECT4
    with (
        opened(pod.cgroup) as cgroup,
        program(ALLOW, "cil_sock4_conn", hook.program_type, hook) as loaded,
        bpf.link_to_cgroup(loaded, cgroup.number, hook),
    ):
        found = examined(node)
    assert found.cgroups.others == ("cil_sock4_conn on connect4",)
    assert found.cgroups.closed == ()
    assert {mode for mode, verdict in can(found).items() if verdict is not Can.NO} == {ModeName.TC}
    assert examined(node).cgroups.others == ()


def test_a_program_that_admits_no_others(node: Node) -> None:
    hook = bpf.AttachType.SENDMSG6
    with opened(node.cgroup) as cgroup, program(ALLOW, "alone", hook.program_type, hook) as loaded:
        arguments = struct.pack("=4I", cgroup.number, loaded.number, hook, 0)
        bpf.call(bpf.Command.PROG_ATTACH, arguments)
        found = examined(node)
        bpf.call(bpf.Command.PROG_DETACH, arguments)
    assert found.cgroups.closed == ("sendmsg6",)
    assert {mode for mode, verdict in can(found).items() if verdict is not Can.NO} == {ModeName.TC}


def test_our_own_programs_are_no_neighbours(node: Node) -> None:
    pod = node.pod("a", bridge=True)
    where = DatapathSettings(node.bpf / "lrp", node.cgroup, SocketLevel.HOST_ONLY, TcLevel.PODS)
    with InNode(node, where) as datapath:
        datapath.want_pods({"default/a": place_of(pod)})
        assert datapath.flush(complete=True).links_attached == 1
        found = examined(node)
    in_netns(node.netns, lambda: cleanup(where.bpf_root, where.cgroup_root))
    assert found.cgroups.others == ()
    assert found.links == (PodsLink("veth-a", bridged=True),)


def test_the_command_with_an_agents_rights(node: Node) -> None:
    node.pod("bridged", bridge=True)
    where = ["--bpf-root", str(node.bpf / "lrp"), "--cgroup-root", str(node.cgroup), "--kubeconfig", "/nonexistent"]
    node.run(["iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES"])
    done = node.run([*AS_AN_AGENT, str(Path(sys.executable).with_name("lrpctl")), "doctor", *where, "-o", "json"])
    report = json.loads(done.stdout)
    assert [mode["verdict"] for mode in report["modes"]] == ["yes", "yes", "limited", "limited"]
    states = {check["name"]: (check["state"], check["text"]) for check in report["checks"]}
    assert states["kube-proxy"] == ("fine", "iptables, by its rules")
    assert states["capabilities"] == ("fine", "all that an agent needs")
    assert states["pods' links"] == ("fine", "1 on a bridge; nobody else's programs")
    assert not (node.bpf / "lrp").exists()  # nothing is made
