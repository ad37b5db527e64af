"""What the doctor asks of an API server, as somebody who may read nothing else."""

import json
from pathlib import Path

from lrp_operator.cli.doctor.kinds import cilium_kinds
from tests.cluster.apiserver import Cluster, Manifest
from tests.cluster.test_controller import CILIUMS_CRD

WHAT = "Cilium's kinds in the cluster"


def test_ciliums_kinds_are_told_from_ours(own_cluster: Cluster, tmp_path: Path) -> None:
    nobody = str(own_cluster.kubeconfig("nobody-special"))
    assert cilium_kinds(nobody, None, "") == ((), "")
    names = {"kind": "CiliumNode", "plural": "ciliumnodes", "singular": "ciliumnode"}
    spec: Manifest = {**CILIUMS_CRD["spec"], "names": names, "scope": "Cluster"}
    file = tmp_path / "ciliumnodes.yaml"
    file.write_text(json.dumps({**CILIUMS_CRD, "metadata": {"name": "ciliumnodes.cilium.io"}, "spec": spec}))
    own_cluster.install(file)
    assert cilium_kinds(nobody, None, "") == (("ciliumnodes",), "")


def test_a_cluster_that_does_not_answer(own_cluster: Cluster, tmp_path: Path) -> None:
    config = str(own_cluster.kubeconfig())
    own_cluster.stop_apiserver()
    kinds, unseen = cilium_kinds(config, None, "")
    assert kinds == ()
    assert unseen.startswith(f"{WHAT}: ")
    assert cilium_kinds(str(tmp_path / "none"), None, "")[1] == f"{WHAT}: there is no kubeconfig {tmp_path}/none"
