"""What the other tests here take for granted of their cluster, and what they may do to it."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.cluster.apiserver import Cluster, ClusterError, Manifest
from tests.unit.api.cases import ADDRESS

ROOT = Path(__file__).parents[2]


def config_map(name: str, namespace: str, **data: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}, "data": data}


def pod(name: str, namespace: str, account: str, node: str) -> Manifest:
    spec = {"serviceAccountName": account, "nodeName": node, "containers": [{"name": "c", "image": "i"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def whoami(cluster: Cluster, token: str) -> Manifest:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = cluster.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review, token=token)
    assert answer, answer.body
    info: Manifest = answer.body["status"]["userInfo"]
    return info


# ------------------------------------------------------------------------------------------------------ life and death


def test_objects_outlive_a_restart(cluster: Cluster, namespace: str) -> None:
    cluster.apply(thing := config_map("a", namespace, k="v"))
    cluster.stop_apiserver()
    with pytest.raises(ConnectionRefusedError):
        cluster.request("GET", "/readyz")
    cluster.start_apiserver()
    assert cluster.request("GET", cluster.path(thing)).body["data"] == {"k": "v"}


def test_old_watches_get_a_410_after_history_is_forgotten(cluster: Cluster, namespace: str) -> None:
    version = cluster.apply(config_map("a", namespace))["metadata"]["resourceVersion"]
    cluster.apply(config_map("b", namespace))
    watch = f"/api/v1/namespaces/{namespace}/configmaps?watch=1&timeoutSeconds=1&resourceVersion={version}"
    assert cluster.request("GET", watch).body["type"] == "ADDED"
    cluster.forget()
    answer = cluster.request("GET", watch)
    assert (answer.status, answer.body["type"], answer.body["object"]["code"]) == (200, "ERROR", 410)


def test_old_lists_do_not_go_on_after_compaction(cluster: Cluster, namespace: str) -> None:
    for name in "abc":
        cluster.apply(config_map(name, namespace))
    path = f"/api/v1/namespaces/{namespace}/configmaps?limit=1"
    token = cluster.request("GET", path).body["metadata"]["continue"]
    assert cluster.request("GET", f"{path}&continue={token}")
    cluster.apply(config_map("d", namespace))
    cluster.forget()
    assert cluster.request("GET", f"{path}&continue={token}").status == 410


def test_versions_run_back_after_a_restore(cluster: Cluster, namespace: str) -> None:
    before = cluster.apply(config_map("a", namespace, k="old"))
    copy = cluster.save()
    after = cluster.apply(config_map("a", namespace, k="new"))
    cluster.restore(copy)
    found = cluster.request("GET", cluster.path(before)).body
    assert found["data"] == {"k": "old"}
    listed = cluster.request("GET", f"/api/v1/namespaces/{namespace}/configmaps").body
    assert int(listed["metadata"]["resourceVersion"]) < int(after["metadata"]["resourceVersion"]) + 100
    assert found["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_clusters_know_nothing_of_each_other(cluster: Cluster, own_cluster: Cluster, namespace: str) -> None:
    cluster.apply(thing := config_map("a", namespace))
    assert own_cluster.request("GET", own_cluster.path(thing)).status == 404
    assert own_cluster.request("GET", "/api", token=cluster.token).status == 401


@pytest.mark.usefixtures("programs")
def test_a_killed_test_leaves_nothing() -> None:
    code = (
        "from tests.cluster.apiserver import Cluster\ncluster = Cluster()\ncluster.start_etcd()\n"
        "print(cluster._etcd.pid, cluster.dir, flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        pid, room = process.stdout.readline().split()
        etcd = os.pidfd_open(int(pid))
        process.send_signal(signal.SIGKILL)
    try:
        assert select.select([etcd], [], [], 30)[0], "etcd lives on"
        assert Path(room).exists()
        Cluster().close()
        assert not Path(room).exists(), "the next cluster clears up"
    finally:
        if not select.select([etcd], [], [], 0)[0]:
            signal.pidfd_send_signal(etcd, signal.SIGKILL)
        os.close(etcd)


@pytest.mark.usefixtures("programs")
def test_a_cluster_outlives_the_thread_that_started_it() -> None:
    cluster = Cluster()
    try:
        thread = threading.Thread(target=cluster.start_etcd)
        thread.start()
        thread.join()
        cluster.compact()  # etcd answers
    finally:
        cluster.close()


@pytest.mark.usefixtures("programs")
def test_a_program_that_fails_is_told_with_its_last_words() -> None:
    cluster = Cluster()
    try:
        (cluster.dir / "etcd").write_text("no directory")
        with pytest.raises(ClusterError, match=r"etcd does not answer; its last words:\n(.*\n)*.*not a directory"):
            cluster.start_etcd()
    finally:
        cluster.close()


# --------------------------------------------------------------------------------------------------------------- users


def test_an_account_may_do_what_roles_say(cluster: Cluster, namespace: str) -> None:
    token = cluster.token_for("reader", namespace)
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    assert cluster.request("GET", path, token=token).status == 403
    group = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "reader", "namespace": namespace}}
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    cluster.apply(group | {"kind": "Role", "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    cluster.apply(group | {"kind": "RoleBinding", "subjects": [subject], "roleRef": role})
    until(lambda: cluster.request("GET", path, token=token))
    assert cluster.request("POST", path, config_map("a", namespace), token=token).status == 403


def test_a_pods_token_names_its_node(cluster: Cluster, namespace: str) -> None:
    node = cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-of-{namespace}"}})
    cluster.apply(agent := pod("agent", namespace, "agent", node["metadata"]["name"]))
    try:
        token, unused = (cluster.token_for("agent", namespace, pod="agent") for _ in range(2))
        extra = whoami(cluster, token)["extra"]
        assert extra["authentication.kubernetes.io/node-name"] == [node["metadata"]["name"]]
        assert extra["authentication.kubernetes.io/node-uid"] == [node["metadata"]["uid"]]
        cluster.delete(agent)
        assert cluster.request("GET", "/api", token=unused).status == 401
    finally:
        cluster.delete(node)


def test_a_certificate_names_user_and_groups(cluster: Cluster, kubectl: Callable[..., str]) -> None:
    told = kubectl("auth", "whoami", kubeconfig=cluster.kubeconfig("bob", "devs", "ops"))
    assert "bob" in told
    assert "[devs ops system:authenticated]" in told


def test_requests_are_told_by_user(cluster: Cluster, namespace: str) -> None:
    user = f"system:serviceaccount:{namespace}:counted"
    token = cluster.token_for("counted", namespace)
    assert cluster.requests(user) == []
    cluster.request("GET", "/api/v1/pods?limit=1", token=token)
    cluster.request("GET", "/version", token=token)
    until(lambda: len(cluster.requests(user)) == 2)
    told = [(request.verb, request.resource, request.path, request.code) for request in cluster.requests(user)]
    assert told == [("list", "pods", "/api/v1/pods?limit=1", 403), ("get", "", "/version", 200)]


# ------------------------------------------------------------------------------------------------- what is as elsewhere


def test_services_get_addresses_of_both_families(cluster: Cluster, namespace: str) -> None:
    spec = {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}
    metadata = {"name": "s", "namespace": namespace}
    service = cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    four, six = service["spec"]["clusterIPs"]
    assert four.startswith("10.96.")
    assert six.startswith("fd00:96::")
    cluster.delete(service)


def test_controllers_when_asked_for(
    cluster: Cluster, namespace: str, controllers: Callable[..., AbstractContextManager[None]]
) -> None:
    metadata = {"name": "p", "namespace": namespace}
    cluster.apply(
        policy := {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumLocalRedirectPolicy",
            "metadata": metadata,
            "spec": ADDRESS,
        }
    )
    with controllers("namespace-controller"):
        cluster.delete(home := {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        until(lambda: cluster.request("GET", cluster.path(home)).status == 404)
    assert cluster.request("GET", cluster.path(policy)).status == 404


def until(true: Callable[[], object]) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
