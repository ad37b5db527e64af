"""The CRD, generated: `python -m lrp_operator.api.schema` writes deploy/crds/ciliumlocalredirectpolicies.yaml.

Pydantic gives a JSON schema of the models; the API server takes structural schemas only, which have no references, no
`anyOf` for what may be absent, and no titles. Everything else here is what people see of the resource: its names and
its columns.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from lrp_operator.api.crd import PolicySpec
from lrp_operator.api.status import PolicyStatus

HEADER = "# Generated from lrp_operator.api.crd by `python -m lrp_operator.api.schema`: edit the models instead.\n"
PATH = Path("deploy/crds/ciliumlocalredirectpolicies.yaml")

NAMES = {
    "kind": "CiliumLocalRedirectPolicy",
    "listKind": "CiliumLocalRedirectPolicyList",
    "plural": "ciliumlocalredirectpolicies",
    "singular": "ciliumlocalredirectpolicy",
    "shortNames": ["clrp"],
    "categories": ["cilium", "ciliumpolicy"],
}
COLUMNS = [
    {
        "name": "Frontend",
        "type": "string",
        "description": "The address or the Service whose traffic is redirected.",
        "jsonPath": ".spec.redirectFrontend.*['ip','serviceName']",
    },
    {
        "name": "Backends",
        "type": "integer",
        "description": "How many pods can serve, on all nodes together.",
        "jsonPath": ".status.backends",
    },
    {
        "name": "Ready",
        "type": "string",
        "description": "Whether the policy is accepted and in force wherever a pod can serve.",
        "jsonPath": '.status.conditions[?(@.type=="Ready")].status',
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]


def crd() -> dict[str, Any]:
    """Return the CustomResourceDefinition."""
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
    version = {
        "name": "v2",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": COLUMNS,
        "schema": {"openAPIV3Schema": schema},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{NAMES['plural']}.cilium.io"},
        "spec": {"group": "cilium.io", "names": NAMES, "scope": "Namespaced", "versions": [version]},
    }


def crd_yaml() -> str:
    """Return the CRD as it is written to PATH."""
    return HEADER + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=120)


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
    return key not in ("title", "$defs") and not (key == "default" and value in (None, "", [], {}))


def _without(node: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in node.items() if name != key}


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(crd_yaml(), encoding="utf-8")
    sys.stdout.write(f"wrote {PATH}\n")
