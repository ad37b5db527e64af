"""Helm's hooks in a cluster without nodes: what a controller and a kubelet would do for them is done here.

A Job's program really runs, with its arguments and with the rights of its service account; a Pod ends as it is told.
"""

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Self

from tests.cluster.apiserver import Cluster, Manifest

LOOK_SECONDS = 0.1


class Hooks:
    """Does the hooks of one namespace, while it is used as a context manager. told: what Jobs' programs printed."""

    def __init__(self, cluster: Cluster, namespace: str = "kube-system", *, flags: tuple[str, ...] = ()) -> None:
        """flags: what Jobs' programs are given beside their arguments."""
        self.told: list[str] = []
        self.pods: list[str] = []
        self._cluster = cluster
        self._namespace = namespace
        self._flags = flags
        self._done: set[str] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hooks")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            for path, do in (("/apis/batch/v1", "jobs"), ("/api/v1", "pods")):
                answer = self._cluster.request("GET", f"{path}/namespaces/{self._namespace}/{do}")
                for item in answer.body.get("items", ()):
                    meta = item["metadata"]
                    over = meta["uid"] in self._done or "conditions" in item.get("status", {})
                    if not over and "helm.sh/hook" in (meta.get("annotations") or {}):
                        self._done.add(meta["uid"])
                        (self._do_job if do == "jobs" else self._do_pod)(item)
            time.sleep(LOOK_SECONDS)

    def _do_job(self, job: Manifest) -> None:
        good = self._run_program(job["spec"]["template"]["spec"])
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        kinds = ("SuccessCriteriaMet", "Complete") if good else ("FailureTarget", "Failed")
        status = {
            "startTime": now,
            **({"completionTime": now} if good else {}),
            "uncountedTerminatedPods": {},
            "conditions": [
                {"type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now} for kind in kinds
            ],
        }
        self._tell("batch/v1", "Job", job, status)

    def _run_program(self, spec: Manifest) -> bool:
        """Run what a Job's pod would; whether it ended well. Without its account there can be no pod."""
        account = spec["serviceAccountName"]
        if not self._cluster.request("GET", f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}"):
            self.told.append(f"there is no ServiceAccount {account}")
            return False
        token = self._cluster.token_for(account, self._namespace)
        (container,) = spec["containers"]
        assert container["command"] == ["lrp-controller"]
        where = ["--kubeconfig", str(self._cluster.kubeconfig(token=token)), *self._flags]
        command = [sys.executable, "-m", "lrp_operator.controller", *container["args"], *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.told.append(done.stdout + done.stderr)
        return done.returncode == 0

    def _do_pod(self, pod: Manifest) -> None:
        self.pods.append(pod["metadata"]["name"])
        self._tell("v1", "Pod", pod, {"phase": "Succeeded"})

    def _tell(self, version: str, kind: str, item: Manifest, status: Manifest) -> None:
        meta = {"name": item["metadata"]["name"], "namespace": self._namespace}
        self._cluster.apply(
            {"apiVersion": version, "kind": kind, "metadata": meta, "status": status}, subresource="status"
        )
