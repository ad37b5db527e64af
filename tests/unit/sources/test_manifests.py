import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrp_operator.api.objects import ClusterObject, EndpointSlice, Node, Pod, Policy, Service
from lrp_operator.sources.manifests import ObjectKey, Problem, read_manifests


def read(text: str) -> dict[ObjectKey, ClusterObject]:
    objects, problems = read_manifests("f.yaml", text.encode())
    assert problems == []
    return objects


def problem(text: str) -> Problem:
    _, (only,) = read_manifests("f.yaml", text.encode())
    return only


def test_every_kind_is_known_by_its_name() -> None:
    text = """
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x}}
--- {apiVersion: v1, kind: Service, metadata: {name: a}}
--- {apiVersion: v1, kind: Node, metadata: {name: a, namespace: ignored}}
--- {apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, namespace: ""}}
--- {apiVersion: cilium.io/v2, kind: CiliumLocalRedirectPolicy, metadata: {name: a, namespace: null}, spec: [1]}
"""
    objects = read(text)
    assert list(objects) == [
        (Pod, "x/a"),
        (Service, "default/a"),
        (Node, "/a"),
        (EndpointSlice, "default/a"),
        (Policy, "default/a"),
    ]
    policy = objects[Policy, "default/a"]
    assert isinstance(policy, Policy)
    assert policy.spec == [1]


def test_other_kinds_are_ignored_whatever_they_say() -> None:
    text = """
{apiVersion: serving.knative.dev/v1, kind: Service, metadata: 5}
--- {apiVersion: kustomize.config.k8s.io/v1beta1, kind: Kustomization}
--- {kind: Deployment, metadata: {name: 5}, spec: []}
--- {apiVersion: apps/v1, kind: DeploymentList, items: 5}
--- {apiVersion: v1, kind: Secret, metadata: {}}
"""
    assert read(text) == {}


def test_the_last_of_one_kind_and_name_wins() -> None:
    text = (
        "{kind: Pod, metadata: {name: a, uid: '1'}}\n--- {kind: Pod, metadata: {name: a, namespace: default, uid: '2'}}"
    )
    (pod,) = read(text).values()
    assert pod.metadata.uid == "2"


def test_lists() -> None:
    text = """
apiVersion: v1
kind: List
metadata: {resourceVersion: ""}
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}}
- {apiVersion: v1, kind: Secret, metadata: {}}
- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: b}}]}
--- {apiVersion: v1, kind: PodList, items: [{metadata: {name: c}}, {apiVersion: v1, kind: Pod, metadata: {name: d}}]}
--- {apiVersion: discovery.k8s.io/v1, kind: EndpointSliceList, items: [{metadata: {name: e}}]}
--- {apiVersion: cilium.io/v2, kind: CiliumLocalRedirectPolicyList, items: [{metadata: {name: f}}]}
--- {apiVersion: v1, kind: ServiceList, items: null}
--- {apiVersion: v1, kind: List}
"""
    assert [key for _, key in read(text)] == [f"default/{name}" for name in "abcdef"]


def test_null_is_absent_but_never_a_label() -> None:
    text = """
kind: Pod
metadata: {name: a, labels: null, creationTimestamp: null, generation: null}
spec: {containers: [{ports: null}], hostNetwork: null}
status: null
"""
    (pod,) = read(text).values()
    assert pod == msgspec.convert(
        {"metadata": {"name": "a", "namespace": "default"}, "spec": {"containers": [{}]}}, Pod
    )
    assert (
        "metadata.labels must be a text, not nothing"
        in problem("{kind: Pod, metadata: {name: a, labels: {a: }}}").message
    )


def test_a_timestamp_is_a_text() -> None:
    (pod,) = read("kind: Pod\nmetadata:\n  name: a\n  creationTimestamp: 2026-01-01T00:00:00Z\n").values()
    assert pod.metadata.creation_timestamp == "2026-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("- a", 1, "a document must be a mapping, not a list"),
        ("hello", 1, "a document must be a mapping, not a text"),
        ("---\n42", 2, "a document must be a mapping, not a number"),
        ("# x\nmetadata: {name: a}", 2, "has no kind"),
        ("kind: ''", 1, "has no kind"),
        ("kind: 5", 1, "its kind must be a text"),
        ("kind: Pod\napiVersion: 1", 2, "apiVersion must be a text, not a number"),
        ("kind: Pod", 1, "a Pod without a name (metadata.name)"),
        ("kind: Pod\nmetadata: {name: ''}", 1, "a Pod without a name (metadata.name)"),
        ("kind: Pod\nmetadata: {generateName: a-}", 1, "a Pod without a name (metadata.name)"),
        ("kind: Pod\nmetadata: [a]", 2, "metadata must be a mapping, not a list"),
        ("kind: Pod\nmetadata:\n  name: 5", 3, "Pod 5: metadata.name must be a text, not a number"),
        (
            "kind: Pod\nmetadata:\n  name: a\n  labels:\n    b: 5",
            4,
            "Pod a: metadata.labels must be a text, not a number",
        ),
        (
            "kind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - ports:\n    - containerPort: '80'",
            6,
            "Pod a: spec.containers[0].ports[0].containerPort must be a number, not a text",
        ),
        (
            "kind: Pod\nmetadata: {name: a}\nstatus:\n  podIPs: {}",
            4,
            "Pod a: status.podIPs must be a list, not a mapping",
        ),
        (
            "kind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - name: x",
            5,
            "Service a: spec.ports[0] lacks the field port",
        ),
        (
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: a}",
            1,
            "EndpointSlice is understood as discovery.k8s.io/v1 only, not discovery.k8s.io/v1beta1",
        ),
        ("kind: List\nitems: {}", 2, "items must be a list, not a mapping"),
        ("kind: List\nitems:\n- kind: Pod\n  metadata: {name: a}\n- 5", 5, "an item must be a mapping, not a number"),
        ("kind: List\nitems:\n- metadata: {name: a}", 3, "has no kind"),
        ("kind: PodList\nitems:\n- metadata: {}", 3, "a Pod without a name (metadata.name)"),
    ],
)
def test_what_is_unreadable_is_told_with_its_place(text: str, line: int, message: str) -> None:
    assert problem(text) == Problem("f.yaml", 1, line, message)


def test_a_problem_reads_as_a_sentence() -> None:
    assert str(problem("a: 1\nkind: Pod\n")) == "f.yaml, document 1, line 1: a Pod without a name (metadata.name)"


def test_one_bad_object_costs_only_itself() -> None:
    text = "kind: List\nitems:\n- {kind: Pod, metadata: {name: a}}\n- {kind: Pod}\n- {kind: Pod, metadata: {name: b}}\n"
    objects, problems = read_manifests("f", (text + "---\n{\n---\nkind: Pod\nmetadata: {name: c}\n").encode())
    assert [key for _, key in objects] == ["default/a", "default/b", "default/c"]
    assert [(problem.document, problem.line) for problem in problems] == [(1, 4), (2, 7)]


def test_a_thousand_policies_one_of_them_broken() -> None:
    one = "apiVersion: cilium.io/v2\nkind: CiliumLocalRedirectPolicy\nmetadata: {{name: p{}}}\nspec: {}\n"
    parts = [one.format(number, "{}" if number != 500 else "{[}") for number in range(1000)]
    objects, (fault,) = read_manifests("many.yaml", "---\n".join(parts).encode())
    assert len(objects) == 999
    assert (fault.document, fault.line) == (501, 500 * 5 + 4)


FIELDS = st.sampled_from(
    ["kind", "apiVersion", "metadata", "items", "spec", "status", "name", "labels", "ports", "port"]
)
WORDS = st.sampled_from(
    ["Pod", "List", "PodList", "v1", "Service", "cilium.io/v2", "CiliumLocalRedirectPolicy", "Node", "a"]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 10**30) | WORDS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(FIELDS | st.text(), inner),
    max_leaves=40,
)
MANIFESTS = st.fixed_dictionaries(
    {"kind": WORDS, "metadata": st.fixed_dictionaries({"name": TREES}) | TREES},
    optional={"apiVersion": WORDS, "items": TREES | st.lists(TREES), "spec": TREES, "status": TREES},
)


@given(MANIFESTS | TREES)
def test_anything_is_objects_or_problems(tree: object) -> None:
    objects, problems = read_manifests("f", msgspec.json.encode(tree))
    for (kind, key), obj in objects.items():
        assert type(obj) is kind
        assert key == obj.metadata.key
        assert obj.metadata.name
    assert all(problem.line for problem in problems)
