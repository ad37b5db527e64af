"""What this node should do, kept up to date from changed objects, and which part of it is for the kernel.

Lives in the worker thread. In the modes where kube-proxy stays, the table also lists the ClusterIP frontends that are
kube-proxy's (so that people see a Service turn from ClusterIP to LocalRedirect and back); those never go to the kernel.
"""

from collections.abc import Mapping

from lrp_operator.agent.config import Loaded
from lrp_operator.agent.parts import ObjectKey
from lrp_operator.agent.pods import PodNames, addresses_of
from lrp_operator.api.addresses import L4Addr
from lrp_operator.api.objects import ClusterObject, Pod, Policy
from lrp_operator.datapath.model import PodPlace, TcLevel
from lrp_operator.resolve.engine import Resolver
from lrp_operator.resolve.model import Delta, FrontendEntry, FrontendType, Resolution
from lrp_operator.resolve.options import ClusterIPs

Changes = Mapping[ObjectKey, ClusterObject | None]
"""Objects that came or changed; None for those that went."""


class Desired:
    """The resolver, and the part of its result that the kernel is to hold."""

    def __init__(self, node: str, loaded: Loaded, pods: PodNames) -> None:
        self.node = node
        self._replaces = loaded.mode.replaces_kube_proxy
        self._policies = loaded.settings.local_redirect_policies.enabled
        self._pods = pods
        cluster_ips = ClusterIPs.SERVE if self._replaces else ClusterIPs.LIST
        self._resolver = Resolver(node, loaded.settings.local_redirect_policies.resolve_options(cluster_ips))
        self.in_kernel: dict[L4Addr, FrontendEntry] = {}  # what the kernel is to hold; other threads may look one up
        self.exempt_pods: set[str] = set()
        self.pods: dict[str, PodPlace] = {}  # of this node, with a network of their own: for the TC level
        self.at_links = loaded.mode.tc_level is TcLevel.PODS
        self._resolution: Resolution | None = None

    def apply(self, changes: Changes) -> Delta:
        """Take in changed objects; what the kernel is to change."""
        self._resolution = None
        for (kind, key), obj in changes.items():
            if kind is Pod:
                self._put_pod(key, obj if isinstance(obj, Pod) else None)
            if kind is Policy and not self._policies:
                continue
            if obj is None:
                self._resolver.delete(kind, key)
            else:
                self._resolver.upsert(obj)
        delta = self._resolver.resolve()
        for pod, skip in delta.skips.items():
            (self.exempt_pods.discard if skip is None else self.exempt_pods.add)(pod)
        return self._for_kernel(delta)

    def _put_pod(self, key: str, pod: Pod | None) -> None:
        self._pods.put(key, pod)
        over = pod is None or pod.status.phase in ("Succeeded", "Failed")
        if pod is None or over or pod.spec.node_name != self.node or pod.spec.host_network:
            self.pods.pop(key, None)
        else:
            self.pods[key] = PodPlace(pod.metadata.uid or "", addresses_of(pod))

    def everything(self) -> Delta:
        """All that the kernel is to hold, as one change from nothing: for a datapath that has just been opened."""
        whole = self.resolution()
        return Delta(
            frontends=dict(self.in_kernel),
            verdicts={verdict.policy: verdict for verdict in whole.verdicts},
            skips={skip.pod: skip for skip in whole.skips},
        )

    def resolution(self) -> Resolution:
        """The whole table, with what is only to be shown."""
        if self._resolution is None:
            self._resolution = self._resolver.resolution()
        return self._resolution

    def is_ours(self, entry: FrontendEntry) -> bool:
        """Whether an entry is for the kernel; else it is kube-proxy's, and only shown."""
        return entry.type is FrontendType.LOCAL_REDIRECT or self._replaces

    def _for_kernel(self, delta: Delta) -> Delta:
        """Leave out what is only to be shown; an entry that becomes such a one is removed."""
        frontends: dict[L4Addr, FrontendEntry | None] = {}
        for frontend, entry in delta.frontends.items():
            if entry is not None and self.is_ours(entry):
                frontends[frontend] = entry
                self.in_kernel[frontend] = entry
            elif self.in_kernel.pop(frontend, None):
                frontends[frontend] = None
        return Delta(frontends, delta.verdicts, delta.skips)
