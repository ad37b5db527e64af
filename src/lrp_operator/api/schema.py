"""The CRDs, generated: `python -m lrp_operator.api.schema` writes deploy/crds.

Pydantic and msgspec give a JSON schema of the models; the API server takes structural schemas only, which have no
references, no `anyOf` for what may be absent, and no titles. Everything else here is what people see of the resources:
their names and their columns.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import BaseModel

from lrp_operator.api import nodestate
from lrp_operator.api.crd import PolicySpec
from lrp_operator.api.nodestate import NodeRedirectState
from lrp_operator.api.status import PolicyStatus

HEADER = "# Generated from lrp_operator.api by `python -m lrp_operator.api.schema`: edit the models instead.\n"
DIRECTORY = Path("deploy/crds")

VERSION_ANNOTATION = "lrp-operator.io/crd-version"
CRD_VERSION = 1
"""Raised with every change of a schema: a controller never puts an older one in the place of a newer one."""

POLICY_NAMES: dict[str, Any] = {
    "kind": "CiliumLocalRedirectPolicy",
    "listKind": "CiliumLocalRedirectPolicyList",
    "plural": "ciliumlocalredirectpolicies",
    "singular": "ciliumlocalredirectpolicy",
    "shortNames": ["clrp"],
    "categories": ["cilium", "ciliumpolicy"],
}
POLICY_COLUMNS: list[dict[str, Any]] = [
    {
        "name": "Frontend",
        "type": "string",
        "description": "The address or the Service whose traffic is redirected.",
        "jsonPath": ".spec.redirectFrontend.*['ip','serviceName']",
    },
    {
        "name": "Accepted",
        "type": "string",
        "description": "Whether the policy is valid and allowed.",
        "jsonPath": '.status.conditions[?(@.type=="Accepted")].status',
    },
    {
        "name": "Programmed",
        "type": "string",
        "description": "Whether the policy is in force on every node with a pod that can serve.",
        "jsonPath": '.status.conditions[?(@.type=="Programmed")].status',
    },
    {
        "name": "Reason",
        "type": "string",
        "description": "Why.",
        "jsonPath": '.status.conditions[?(@.type=="Programmed")].reason',
    },
    {
        "name": "Wanted",
        "type": "integer",
        "description": "How many nodes have a pod that can serve.",
        "jsonPath": ".status.nodesWanted",
    },
    {
        "name": "Redirecting",
        "type": "integer",
        "description": "On how many of them the policy is in force.",
        "jsonPath": ".status.nodesProgrammed",
    },
    {
        "name": "Falling back",
        "type": "integer",
        "description": "On how many nodes no pod can serve.",
        "jsonPath": ".status.nodesFallingBack",
        "priority": 1,
    },
    {
        "name": "Degraded",
        "type": "string",
        "description": "Whether something about the policy needs mending.",
        "jsonPath": '.status.conditions[?(@.type=="Degraded")].status',
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]

NODE_NAMES: dict[str, Any] = {
    "kind": "NodeRedirectState",
    "listKind": "NodeRedirectStateList",
    "plural": nodestate.PLURAL,
    "singular": "noderedirectstate",
    "shortNames": ["nrs"],
}
NODE_COLUMNS: list[dict[str, Any]] = [
    {
        "name": "Mode",
        "type": "string",
        "description": "What the agent's settings amount to.",
        "jsonPath": ".report.mode",
    },
    {
        "name": "InForce",
        "type": "boolean",
        "description": "Whether what is programmed takes effect.",
        "jsonPath": ".report.inForce",
    },
    {
        "name": "Policies",
        "type": "integer",
        "description": "How many policies concern the node.",
        "jsonPath": ".report.policyCount",
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def crds() -> dict[str, dict[str, Any]]:
    """Return the CustomResourceDefinitions by the resources' plural names."""
    return {POLICY_NAMES["plural"]: policy_crd(), NODE_NAMES["plural"]: node_crd()}


def policy_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of CiliumLocalRedirectPolicy."""
    schema = {
        "description": "Redirects connections to an address or a Service to a pod on the client's own node.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _structural(PolicySpec),
            "status": _structural(PolicyStatus),
        },
    }
    version = _version("v2", schema, POLICY_COLUMNS) | {"subresources": {"status": {}}}
    return _definition("cilium.io", POLICY_NAMES, "Namespaced", version)


def node_crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition of NodeRedirectState."""
    generated = msgspec.json.schema(NodeRedirectState)
    models = generated["$defs"]
    schema = {
        "description": "What one node has programmed; written by its agent alone, and gone with the Node.",
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "report": _convert(_without(models["NodeReport"], "title"), models),
        },
    }
    return _definition(nodestate.GROUP, NODE_NAMES, "Cluster", _version(nodestate.VERSION, schema, NODE_COLUMNS))


def crd_yaml(definition: dict[str, Any]) -> str:
    """Return a CRD as it is written to DIRECTORY."""
    return HEADER + yaml.dump(definition, Dumper=_Dumper, sort_keys=False, width=120)


def write(directory: Path) -> None:
    """Write every CRD, each to the file of its name."""
    directory.mkdir(parents=True, exist_ok=True)
    for plural, definition in crds().items():
        (directory / f"{plural}.yaml").write_text(crd_yaml(definition), encoding="utf-8")


def _version(name: str, schema: dict[str, Any], columns: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": schema},
    }


def _definition(group: str, names: dict[str, Any], scope: str, version: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names['plural']}.{group}",
            "annotations": {VERSION_ANNOTATION: str(CRD_VERSION)},
        },
        "spec": {"group": group, "names": names, "scope": scope, "versions": [version]},
    }


class _Dumper(yaml.SafeDumper):
    """Writes values that occur twice twice, not as anchors."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 -- the signature is PyYAML's
        return True


def _structural(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    converted: dict[str, Any] = _convert(schema, schema.get("$defs", {}))
    return converted


def _convert(node: Any, models: dict[str, Any]) -> Any:
    """Make one node of pydantic's schema structural."""
    if isinstance(node, list):
        return [_convert(item, models) for item in node]
    if not isinstance(node, dict):
        return node
    if reference := node.get("$ref"):
        # What stands beside the reference (a description) is nearer to the field than what the model says.
        return _convert(models[reference.rpartition("/")[2]], models) | _convert(_without(node, "$ref"), models)
    if options := node.get("anyOf"):
        (present,) = (option for option in options if option != {"type": "null"})
        return _convert(present, models) | _convert(_without(node, "anyOf"), models)
    return {key: _keyword(key, value, models) for key, value in node.items() if _is_kept(key, value)}


def _keyword(key: str, value: Any, models: dict[str, Any]) -> Any:
    if key == "properties":
        return {name: _convert(schema, models) for name, schema in value.items()}
    return _convert(value, models)


def _is_kept(key: str, value: Any) -> bool:
    """Titles repeat the names; empty defaults would be written into every object."""
    return key not in ("title", "$defs") and not (key == "default" and not value and value is not False)


def _without(node: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != key}


if __name__ == "__main__":
    write(DIRECTORY)
    sys.stdout.write(f"wrote {DIRECTORY}\n")
