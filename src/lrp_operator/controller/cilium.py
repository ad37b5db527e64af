"""Whether Cilium runs in the cluster: it redirects by itself, and two that do it undo each other's work."""

from typing import Any

import msgspec

from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.errors import ApiError

_SIGNS = (
    ("/api/v1/pods", {"labelSelector": "k8s-app=cilium", "limit": "1"}, "a pod of Cilium's agent"),
    ("/apis/cilium.io/v2/ciliumnodes", {"limit": "1"}, "a CiliumNode"),
)


async def sign_of_cilium(client: KubeClient) -> str:
    """Say what shows that Cilium runs here, naming the object; empty if nothing does. Raises ApiFailure."""
    for path, params, what in _SIGNS:
        try:
            found: dict[str, Any] = msgspec.json.decode(await client.request("GET", path, params))
        except ApiError as error:
            if error.status == 404:  # nobody has installed that kind
                continue
            raise
        for item in found.get("items") or ():
            meta = item["metadata"]
            name = "/".join(filter(None, (meta.get("namespace"), meta["name"])))
            return f"{what} is here: {name}"
    return ""
