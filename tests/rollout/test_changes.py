"""Policies, Services and pods are changed under clients that ask all the time: through a real agent, from its files.

A change of what a policy says goes straight from one backend to the other: `never_far` says that not one query between
went where it would go without the policy.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import pytest

from lab import Pod
from tests.datapath.world import socket_in
from tests.rollout.clients.resolver import address_in, query
from tests.rollout.cluster import LABELS, OTHER_VIP, PORT, VIP, Cluster, described, endpoints, policy, service
from tests.rollout.traffic import PLAIN, Report, asking

pytestmark = pytest.mark.privileged

OTHER_PORT, FROM_OTHER_PORT = 5353, "127.0.53.53"
OTHER_LABELS = {"k8s-app": "another-dns"}
TIMES = 4


@contextmanager
def dns_pods(cluster: Cluster, *labels: dict[str, str]) -> Iterator[list[Pod]]:
    """Ready pods with DNS servers, one for each set of labels; afterwards they go."""
    pods = []
    try:
        for wanted in labels:
            pods.append(cluster.dns_pod(wanted))
            cluster.serve(pods[-1])
            cluster.probe(pods[-1])
            cluster.write(pods[-1].short_name, described(pods[-1], ready=True))
        yield pods
    finally:
        for pod in pods:
            cluster.delete(pod.short_name)
            pod.remove()


@pytest.fixture
def dns(cluster: Cluster) -> Iterator[Pod]:
    """A pod with a DNS server, which queries are redirected to."""
    with dns_pods(cluster, LABELS) as (pod,):
        cluster.redirected_to([pod])
        yield pod


def client(cluster: Cluster) -> Pod:
    """A pod to ask from."""
    return cluster.node.pods.get("asker") or cluster.node.pod("asker")


def ask(sock: socket.socket, vip: str = "") -> str:
    """Ask one question, on a connected socket or of a ClusterIP; return which server answered."""
    if vip:
        sock.sendto(query(1), (vip, PORT))
        answer, source = sock.recvfrom(512)
        assert source == (vip, PORT)
        return address_in(answer)
    sock.send(query(1))
    return address_in(sock.recv(512))


def connected(cluster: Cluster, vip: str = VIP) -> socket.socket:
    """A socket in a client's pod that is connected to a ClusterIP."""
    sock = socket_in(client(cluster), "4")
    sock.connect((vip, PORT))
    return sock


def nothing_lost(reports: list[Report]) -> None:
    """No client lost a query or met a stranger."""
    assert [(r.client, r.failed, r.strangers) for r in reports if r.failed or r.strangers] == []


def never_far(reports: list[Report], *addresses: str) -> None:
    """Nothing was lost, and these servers, each of them, gave all answers to every client."""
    nothing_lost(reports)
    assert {r.client: set(r.answered) for r in reports} == {r.client: set(addresses) for r in reports}


def test_a_policy_gets_another_port(cluster: Cluster) -> None:
    with dns_pods(cluster, LABELS) as (pod,):
        cluster.serve(pod, OTHER_PORT, says=FROM_OTHER_PORT)
        cluster.write(pod.short_name, described(pod, ready=True, ports=(PORT, OTHER_PORT)))
        cluster.redirected_to([pod])
        with asking(cluster, PLAIN) as reports:
            for _ in range(TIMES):
                for port in (OTHER_PORT, PORT):
                    cluster.write("policy", policy(port=port))
                    cluster.redirected_to([pod], port=port)
                    time.sleep(0.05)
    never_far(reports, pod.ipv4, FROM_OTHER_PORT)


def test_a_policy_gets_another_selector(cluster: Cluster) -> None:
    with dns_pods(cluster, LABELS, OTHER_LABELS) as (one, other):
        cluster.redirected_to([one])
        with asking(cluster, PLAIN) as reports:
            for _ in range(TIMES):
                for pod in (other, one):
                    cluster.write("policy", policy(labels=dict(pod.labels)))
                    cluster.redirected_to([pod])
                    time.sleep(0.05)
    never_far(reports, one.ipv4, other.ipv4)


def test_a_policy_is_deleted_and_created_again(cluster: Cluster, dns: Pod) -> None:
    with asking(cluster, PLAIN) as reports:
        for _ in range(TIMES):
            cluster.delete("policy")
            cluster.redirected_to([])
            time.sleep(0.05)
            cluster.write("policy", policy())
            cluster.redirected_to([dns])
    nothing_lost(reports)
    for report in reports:
        assert set(report.answered) == {dns.ipv4, cluster.far.ipv4}


def test_a_policy_is_deleted_and_created_again_at_once(cluster: Cluster, dns: Pod) -> None:
    """Within the time in which the agent gathers changes, or just not."""
    with asking(cluster, PLAIN) as reports:
        for gone, there in product((0.0, 0.01, 0.04, 0.06, 0.1), repeat=2):
            cluster.delete("policy")
            time.sleep(gone)
            cluster.write("policy", policy())
            time.sleep(there)
        cluster.settled()
        assert cluster.backends() == {f"{dns.ipv4}:{PORT}/UDP"}
    nothing_lost(reports)


def test_a_service_is_created_again_with_another_cluster_ip(cluster: Cluster, dns: Pod) -> None:
    try:
        with asking(cluster, PLAIN) as reports, socket_in(client(cluster), "4") as sock:
            assert ask(sock, OTHER_VIP) == cluster.far.ipv4
            cluster.delete("kube-dns")
            cluster.redirected_to([])
            assert ask(sock, VIP) == cluster.far.ipv4
            cluster.write("kube-dns", service("kube-dns", OTHER_VIP), endpoints("kube-dns", cluster.far))
            cluster.redirected_to([dns], OTHER_VIP)
            assert ask(sock, OTHER_VIP) == dns.ipv4
            assert ask(sock, VIP) == cluster.far.ipv4, "the old address is the Service's no more"
            with connected(cluster, OTHER_VIP) as kept:
                assert ask(kept) == dns.ipv4
                assert kept.getpeername() == (OTHER_VIP, PORT)
    finally:
        cluster.write_dns_service()
    cluster.redirected_to([dns])
    nothing_lost(reports)


def test_a_service_changes_its_cluster_ip_in_one_step(cluster: Cluster, dns: Pod) -> None:
    try:
        with socket_in(client(cluster), "4") as sock:
            cluster.write("kube-dns", service("kube-dns", OTHER_VIP), endpoints("kube-dns", cluster.far))
            cluster.redirected_to([dns], OTHER_VIP)
            assert (ask(sock, VIP), ask(sock, OTHER_VIP)) == (cluster.far.ipv4, dns.ipv4)
    finally:
        cluster.write_dns_service()
    cluster.redirected_to([dns])


def test_a_pod_is_replaced_by_one_with_its_name_in_one_step(cluster: Cluster) -> None:
    """The agent may see only the last of several states of one name."""
    with dns_pods(cluster, LABELS) as (old,):
        cluster.redirected_to([old])
        new = cluster.dns_pod()
        cluster.serve(new)
        cluster.probe(new)
        with asking(cluster, PLAIN) as reports, connected(cluster) as kept:
            assert ask(kept) == old.ipv4
            cluster.write(old.short_name, described(new, old.short_name, ready=True))
            cluster.redirected_to([new])
            with pytest.raises(ConnectionAbortedError):
                kept.recv(512)
            kept.connect((VIP, PORT))
            assert ask(kept) == new.ipv4
            old.remove()
            time.sleep(0.1)
        never_far(reports, old.ipv4, new.ipv4)
        cluster.delete(old.short_name)
        cluster.redirected_to([])
        new.remove()


def test_an_answer_on_its_way_when_the_backend_changes_comes_from_the_frontend(cluster: Cluster) -> None:
    """A forwarder has several queries on the way on one socket; the old pod answers the last of them late."""
    old = cluster.dns_pod()
    with (
        dns_pods(cluster, OTHER_LABELS) as (new,),
        socket_in(old, "4") as slow,
        socket_in(client(cluster), "4") as sock,
    ):
        slow.bind(("", PORT))
        cluster.write(old.short_name, described(old, ready=True))
        cluster.redirected_to([old])
        sock.sendto(query(1), (VIP, PORT))
        late, asker = slow.recvfrom(512)
        cluster.write("policy", policy(labels=OTHER_LABELS))
        cluster.redirected_to([new])
        assert ask(sock, VIP) == new.ipv4
        slow.sendto(late, asker)
        source = sock.recvfrom(512)[1]
        cluster.delete(old.short_name)
        old.remove()
        assert source == (VIP, PORT)


@pytest.fixture
def both(cluster: Cluster, dns: Pod) -> Iterator[Pod]:
    """A pod that serves two Services, each by a policy of its own."""
    cluster.write("other-dns", service("other-dns", OTHER_VIP), endpoints("other-dns", cluster.far))
    cluster.write("other-policy", policy("other-dns"))
    cluster.redirected_to([dns], OTHER_VIP)
    yield dns
    cluster.delete("other-dns")
    cluster.delete("other-policy")
    cluster.redirected_to([], OTHER_VIP)


def test_two_services_share_a_pod_and_each_answers_with_its_own_address(cluster: Cluster, both: Pod) -> None:
    one, other, sock = connected(cluster, VIP), connected(cluster, OTHER_VIP), socket_in(client(cluster), "4")
    with one, other, sock:
        assert (one.getpeername(), other.getpeername()) == ((VIP, PORT), (OTHER_VIP, PORT))
        for _ in range(TIMES):
            assert [ask(one), ask(other), ask(sock, VIP), ask(sock, OTHER_VIP)] == [both.ipv4] * 4


def test_of_two_services_on_one_socket_the_last_one_sent_to_answers(cluster: Cluster, both: Pod) -> None:
    """A reply does not tell what it answers: the limit that README.md names."""
    with socket_in(client(cluster), "4") as sock:
        sock.sendto(query(1), (VIP, PORT))
        sock.sendto(query(2), (OTHER_VIP, PORT))
        assert {sock.recvfrom(512)[1] for _ in range(2)} == {(OTHER_VIP, PORT)}
        assert ask(sock, VIP) == both.ipv4


def test_a_service_of_two_that_share_a_pod_loses_its_policy(cluster: Cluster, both: Pod) -> None:
    one, other, sock = connected(cluster, VIP), connected(cluster, OTHER_VIP), socket_in(client(cluster), "4")
    with one, other, sock:
        assert [ask(one), ask(other), ask(sock, OTHER_VIP)] == [both.ipv4] * 3
        cluster.delete("other-policy")
        cluster.redirected_to([], OTHER_VIP)
        assert ask(one) == both.ipv4, "the pod is still its Service's backend"
        with pytest.raises(ConnectionAbortedError):
            other.recv(512)
        other.connect((OTHER_VIP, PORT))
        assert ask(other) == cluster.far.ipv4
        assert (ask(sock, OTHER_VIP), ask(sock, VIP)) == (cluster.far.ipv4, both.ipv4)


def test_a_socket_that_is_connected_to_the_pod_itself_is_left_alone(cluster: Cluster, dns: Pod) -> None:
    with connected(cluster, VIP) as redirected, connected(cluster, dns.ipv4) as direct:
        assert [ask(redirected), ask(direct)] == [dns.ipv4] * 2
        cluster.write(dns.short_name, described(dns, ready=False))
        cluster.redirected_to([])
        with pytest.raises(ConnectionAbortedError):
            redirected.recv(512)
        assert ask(direct) == dns.ipv4
