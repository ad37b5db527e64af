"""`make cluster`: a real API server with the project's kinds, for trying things, until Ctrl-C."""

import signal
import threading
from pathlib import Path

from tests.cluster import binaries
from tests.cluster.apiserver import Cluster

CRDS = sorted((Path(__file__).parents[2] / "deploy" / "crds").glob("*.yaml"))


def main() -> None:
    """Start it, say how to use it, and wait."""
    kubectl = binaries.program("kubectl")
    with Cluster() as cluster:
        cluster.install(*CRDS)
        print(
            f"""
Kubernetes {binaries.version()} at {cluster.url}, with RBAC and the kinds in deploy/crds; no nodes, no controllers.

  export KUBECONFIG={cluster.kubeconfig()}
  alias kubectl={kubectl}
  kubectl apply -f examples/lrp-addr.yaml
  kubectl get clrp -A

Its logs are in {cluster.dir}. Ctrl-C ends it and removes everything.""",
            flush=True,
        )
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()


if __name__ == "__main__":
    main()
