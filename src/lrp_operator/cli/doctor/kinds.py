"""Asks the API server, where one can be asked, whether Cilium's kinds are in the cluster.

Only what every service account may read is asked for: the list of a group's kinds. They may be left by a Cilium that
is gone; so they are a hint, and never a reason to refuse.
"""

import asyncio
from typing import Any

import msgspec

from lrp_operator import __version__
from lrp_operator.cli.cluster import credentials_for
from lrp_operator.sources.kube.client import KubeClient
from lrp_operator.sources.kube.credentials import Credentials
from lrp_operator.sources.kube.errors import ApiError, ApiFailure

_GROUP = "/apis/cilium.io/v2"
_OURS = {"ciliumlocalredirectpolicies"}
_PATIENCE = 5.0


def cilium_kinds(kubeconfig: str | None, context: str | None, api_server: str) -> tuple[tuple[str, ...], str]:
    """Kinds of Cilium's that are not ours; and a sentence, if the cluster can't be asked."""
    what = "Cilium's kinds in the cluster"
    try:
        credentials, _ = credentials_for(kubeconfig, context, api_server)
        return asyncio.run(asyncio.wait_for(_ask(credentials), _PATIENCE)), ""
    except ApiFailure as error:
        return (), f"{what}: {error}"
    except TimeoutError:
        return (), f"{what}: no answer of the API server within {_PATIENCE:.0f} s"


async def _ask(credentials: Credentials) -> tuple[str, ...]:
    client = KubeClient(credentials, user_agent=f"lrpctl/{__version__}")
    try:
        found: dict[str, Any] = msgspec.json.decode(await client.request("GET", _GROUP))
    except ApiError as error:
        if error.status == 404:  # nobody has installed a kind of that group
            return ()
        raise
    finally:
        await client.close()
    names = {str(kind["name"]) for kind in found["resources"] if "/" not in str(kind["name"])}
    return tuple(sorted(names - _OURS))
