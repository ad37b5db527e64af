"""The kinds, as a real API server serves them: it refuses what `in_schema` says it does, and says how to mend it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.apiserver import Answer, Cluster, ClusterError, Manifest
from tests.unit.api.cases import ADDRESS, BAD, GOOD, Bad

Kubectl = Callable[..., str]

EXAMPLES = Path(__file__).parents[2] / "examples"
MANIFESTS = sorted(file for file in EXAMPLES.rglob("*.yaml") if file.name != "values.yaml")  # those are for the chart
# What the parser says, as path and words, and what the API server says of the same. The first that matches counts.
MENDING = [
    (r"missing", "Required value"),
    (r"must be a mapping", "must be of type object"),
    (r"must be a list", "must be of type array"),
    (r"must be a text|in quotes", "must be of type string"),
    (r"true or false", "must be of type boolean"),
    (r"exactly one of", "exactly one of addressMatcher and serviceMatcher"),
    (r"\.ip: ", "must be one IPv4 or IPv6 address, without prefix length or zone"),
    (r"toPorts: at least one entry", "should have at least 1 items"),
    (r"must not be empty", "should be at least 1 chars long"),
    (r"\.port: ", "must be a port number from 1 to 65535 in quotes, decimal and without leading zeros"),
    (r"with a single", "with a single frontend port, the first backend port must have the frontend's protocol"),
    (r"\.protocol: ", 'supported values: "TCP", "UDP"'),
    (r"is needed", "every port needs a name where there is more than one frontend port or backend port"),
    (r"is no port name", "a port's name has at most 15 letters, digits and hyphens, at least one letter"),
    (r"is no label", "should match '^"),
    (r"at most 63", "may not be more than 63"),
    (r"must be In", 'supported values: "In", "NotIn", "Exists", "DoesNotExist"'),
    (r"\.values: ", "values must have at least one entry for In and NotIn, and none for Exists and DoesNotExist"),
]


def policy(spec: Any, namespace: str, name: str = "p") -> Manifest:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def create(cluster: Cluster, spec: Any, unknown_fields: str) -> Answer:
    """Create a policy up to the point where it would be stored."""
    query = f"dryRun=All&fieldValidation={unknown_fields}"
    path = f"/apis/cilium.io/v2/namespaces/default/ciliumlocalredirectpolicies?{query}"
    return cluster.request("POST", path, policy(spec, "default"))


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD)
def test_good(cluster: Cluster, spec: Any) -> None:
    answer = create(cluster, spec, "Strict")
    assert answer, answer.body


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad(cluster: Cluster, case: Bad) -> None:
    answer = create(cluster, case.spec, "Ignore")
    if not case.in_schema:
        assert answer, "the API server sees it: it should be marked in_schema"
        return
    assert answer.status == 422, answer.body
    # Beside the cause, in any order, there may be the remark that other rules were not checked.
    (cause, *_) = [cause for cause in answer.body["details"]["causes"] if cause["field"] != "<nil>"]
    assert re.sub(r'\["(.*)"\]', r".\1", case.path).startswith(cause["field"])
    words = next(words for pattern, words in MENDING if re.search(pattern, f"{case.path}: {case.words}"))
    assert words in cause["message"]


def test_a_bad_edit_is_refused_too(cluster: Cluster, namespace: str) -> None:
    cluster.apply(good := policy(ADDRESS, namespace))
    with pytest.raises(ClusterError, match="must be a port number from 1 to 65535"):
        cluster.apply(policy(BAD["port zero"].spec, namespace))
    assert cluster.request("GET", cluster.path(good)).body["metadata"]["generation"] == 1


def test_status_is_written_by_itself(cluster: Cluster, namespace: str) -> None:
    applied = cluster.apply(policy(ADDRESS, namespace) | {"status": {"ok": True}})
    assert "status" not in applied
    bare = {key: value for key, value in policy(ADDRESS, namespace).items() if key != "spec"}
    written = cluster.apply(bare | {"status": {"ok": True}}, subresource="status", manager="controller")
    assert (written["status"], written["spec"]) == ({"ok": True}, applied["spec"])
    assert written["metadata"]["generation"] == applied["metadata"]["generation"], "a status is no new generation"
    assert cluster.apply(policy(ADDRESS, namespace))["status"] == {"ok": True}


def test_appliers_share_a_policy(cluster: Cluster, namespace: str) -> None:
    def ports(*numbers: str) -> Manifest:
        items = [{"port": number, "protocol": "TCP"} for number in numbers]
        return {**ADDRESS, "redirectBackend": {**ADDRESS["redirectBackend"], "toPorts": items}}

    cluster.apply(policy(ADDRESS, namespace), manager="a")
    described = {key: ADDRESS[key] for key in ADDRESS} | {"description": "by b"}
    cluster.apply(policy(described, namespace), manager="b")
    spec = cluster.apply(policy(ports("1"), namespace), manager="a")["spec"]
    assert (spec["description"], spec["redirectBackend"]["toPorts"]) == (
        "by b",
        ports("1")["redirectBackend"]["toPorts"],
    )


def test_names_that_people_type(cluster: Cluster, namespace: str, kubectl: Kubectl) -> None:
    cluster.apply(policy(ADDRESS, namespace, "mine"))
    for kind in ("clrp", "ciliumlocalredirectpolicy", "cilium", "ciliumpolicy"):
        header, row = kubectl("get", kind, "-n", namespace).splitlines()
        assert header.split()[:2] == ["NAME", "FRONTEND"]
        assert row.split()[:2] == ["mine", "169.254.169.254"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("clrp", "Redirects connections to an address or a Service"),
        ("clrp.spec.redirectFrontend", "exactly one of the two matchers"),
        ("clrp.spec.redirectFrontend.addressMatcher.toPorts.port", "The port number in quotes"),
        ("clrp.status.conditions", "conditions"),
    ],
)
def test_explain(kubectl: Kubectl, path: str, words: str) -> None:
    told = kubectl("explain", path)
    assert words in " ".join(told.split())


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: str(file.relative_to(EXAMPLES)))
@pytest.mark.parametrize("side", ["--server-side", "--server-side=false"])
def test_examples(kubectl: Kubectl, file: Path, side: str) -> None:
    try:
        assert kubectl("apply", side, "--validate=strict", "-f", file)
        assert not kubectl("diff", side, "-f", file), "applied again, it changes nothing"
    finally:
        kubectl("delete", "--ignore-not-found", "--force", "--grace-period=0", "-f", file)


def test_unknown_fields_are_told(namespace: str, kubectl: Kubectl) -> None:
    mistyped = policy(ADDRESS | {"skipRedirectFromBackends": True}, namespace)
    with pytest.raises(ClusterError, match=r'unknown field "spec\.skipRedirectFromBackends"'):
        kubectl("apply", "-f", "-", stdin=json.dumps(mistyped))
