"""What the doctor asks of an API server, as somebody who may read nothing else."""

import json
from pathlib import Path

from lrp_operator.cli.doctor.kinds import cilium_kinds
from tests.cluster.apiserver import LOCALHOST, Cluster, Manifest, free_ports
from tests.cluster.test_controller import CILIUMS_CRD

WHAT = "Cilium's kinds in the cluster"


def test_ciliums_kinds_are_told_from_ours(cluster: Cluster, tmp_path: Path) -> None:
    nobody = str(cluster.kubeconfig("nobody-special"))
    assert cilium_kinds(nobody, None, "") == ((), "")
    names = {"kind": "CiliumNode", "plural": "ciliumnodes", "singular": "ciliumnode"}
    spec: Manifest = {**CILIUMS_CRD["spec"], "names": names, "scope": "Cluster"}
    kind: Manifest = {**CILIUMS_CRD, "metadata": {"name": "ciliumnodes.cilium.io"}, "spec": spec}
    file = tmp_path / "ciliumnodes.yaml"
    file.write_text(json.dumps(kind))
    try:
        cluster.install(file)
        assert cilium_kinds(nobody, None, "") == (("ciliumnodes",), "")
    finally:
        cluster.delete(kind)


def test_a_cluster_that_does_not_answer(cluster: Cluster, tmp_path: Path) -> None:
    (nobodys,) = free_ports(1)
    config = str(cluster.kubeconfig(server=f"https://{LOCALHOST}:{nobodys}"))
    kinds, unseen = cilium_kinds(config, None, "")
    assert kinds == ()
    assert unseen.startswith(f"{WHAT}: ")
    assert cilium_kinds(str(tmp_path / "none"), None, "")[1] == f"{WHAT}: there is no kubeconfig {tmp_path}/none"
