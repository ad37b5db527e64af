"""Everything that a policy does, in each mode, asked from pods and from the node, over both shapes of pods.

The table at the end of the run tells how each came out. "by design not": the mode leaves the node's own namespace
alone, so what it asks goes where it would go without the policy, and that is checked.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import pytest

from lab import Place, Pod
from lrp_operator.agent.config import ConfigError, Written, load_settings
from tests.modes.ground import (
    OWN_DNS,
    OWN_WEB,
    PLAIN,
    SHAPES,
    Ground,
    Shape,
    Target,
    address_of,
    ask,
    policy,
    service_of,
    wrong,
)
from tests.modes.matrix import BY_DESIGN, FAILED, OK, Matrix
from tests.modes.modes import HOST_ONLY, REPLACED, SOCKETS, TC_ONLY, Mode

pytestmark = pytest.mark.privileged

LONG = bool(os.environ.get("LRP_LONG"))
SMALL = ("--bpf-lb-map-max", "512")
Proxy = Literal["", "iptables", "nftables"]
WORLDS: list[tuple[Mode, Proxy, Sequence[Shape]]] = [
    (REPLACED, "", SHAPES),
    (HOST_ONLY, "", SHAPES),
    (SOCKETS, "iptables", SHAPES),
    (TC_ONLY, "iptables", SHAPES),
    (TC_ONLY, "nftables", SHAPES if LONG else ("bridged",)),
]
if LONG:
    WORLDS.append((SOCKETS, "nftables", SHAPES))


@dataclass
class World:
    """A ground in one mode. shapes: those that are looked at."""

    ground: Ground
    mode: Mode
    proxy: Proxy
    shapes: Sequence[Shape]
    matrix: Matrix

    @property
    def name(self) -> str:
        return f"{self.mode}, {self.proxy}" if self.proxy else self.mode.name

    def expect(
        self,
        behaviour: str,
        target: Callable[[Shape], Target],
        redirected: Callable[[Shape], Sequence[str]],
        otherwise: Callable[[Shape], Sequence[str]] | None = None,
    ) -> list[str]:
        """Have pods and the node ask; what is not as it should be, and the table filled in.

        redirected: who answers where the mode redirects; otherwise: who answers the node where the mode leaves it alone
        (none: it makes no difference).
        """
        found = []
        for shape in self.shapes:
            for origin, place in self.origins(shape):
                left_alone = otherwise is not None and origin == "node" and not self.mode.node_is_redirected
                names = otherwise(shape) if left_alone and otherwise else redirected(shape)
                said = ask(place, target(shape))
                bad = wrong(said, target(shape), names)
                self.note(behaviour, origin, shape, FAILED if bad else BY_DESIGN if left_alone else OK)
                found += [f"{self.name}, from {origin}, {shape}: {line}" for line in bad]
        return found

    def note(self, behaviour: str, origin: str, shape: Shape, outcome: str) -> None:
        self.matrix.note((self.name, origin, shape), behaviour, outcome)

    def origins(self, shape: Shape) -> list[tuple[str, Place]]:
        return [("pod", self.ground.clients[shape]), ("node", self.ground.node)]

    def write(self, name: str, **more: object) -> None:
        """Policies of the Service and the address of each shape, to the first backend unless `more` says otherwise."""
        labels = more.pop("labels", {"number": "1"})
        for shape in self.shapes:
            chosen = {"shape": shape, **labels}  # type: ignore[dict-item]
            policies = [p for t in (service_of(shape), address_of(shape)) for p in policy(t.name, t, chosen, **more)]  # type: ignore[arg-type]
            self.ground.write(f"{name}-{shape}", *policies)

    def delete(self, name: str) -> None:
        for shape in self.shapes:
            self.ground.delete(f"{name}-{shape}")
        self.ground.settled()

    def backends(self, shape: Shape) -> list[Pod]:
        return self.ground.backends[shape]


def first(shape: Shape) -> list[str]:
    return [f"{shape}-1"]


def second(shape: Shape) -> list[str]:
    return [f"{shape}-2"]


def either(shape: Shape) -> list[str]:
    return [*first(shape), *second(shape)]


def elsewhere(shape: Shape) -> list[str]:
    return [f"{shape}-1 elsewhere"]


def far(_: Shape) -> list[str]:
    return ["far"]


def beyond(shape: Shape) -> list[str]:
    return [address_of(shape).name]


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world[0]}-{world[1]}".strip("-").replace(" ", "-"))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, matrix: Matrix) -> Iterator[World]:
    mode, proxy, shapes = request.param
    with Ground(tmp_path_factory.mktemp("ground")) as ground:
        if proxy:
            ground.kube_proxy(proxy)
        status = ground.started(mode, *SMALL)
        notes = " ".join(status.notes)
        assert all(sentence in notes for sentence in mode.deprecated), notes
        yield World(ground, mode, proxy, shapes, matrix)
        ground.cleanup()


def test_redirect(world: World) -> None:
    world.write("p")
    world.ground.settled()
    found = world.expect("Service", service_of, first, far)
    found += world.expect("address", address_of, first, beyond)
    found += world.expect("no policy", lambda _: PLAIN, far)
    world.delete("p")
    assert not found, "\n".join(found)


def test_fallback(world: World) -> None:
    """Without a backend that is ready, the Service's own endpoints and the address itself answer."""
    world.write("p")
    for shape in world.shapes:
        world.ground.tell_pod(world.backends(shape)[0], ready=False)
    world.ground.settled()
    found = world.expect("fallback", service_of, far)
    found += world.expect("fallback", address_of, beyond)
    for shape in world.shapes:
        world.ground.tell_pod(world.backends(shape)[0])
    world.ground.settled()
    found += world.expect("and back", service_of, first, far)
    found += world.expect("and back", address_of, first, beyond)
    world.delete("p")
    assert not found, "\n".join(found)


def test_edit_in_place(world: World) -> None:
    world.write("p")
    world.ground.settled()
    found = world.expect("edit", service_of, first, far)
    world.write("p", labels={"number": "2"})
    world.ground.settled()
    found += world.expect("edit", service_of, second, far)
    found += world.expect("edit", address_of, second, beyond)
    world.write("p", other_port=True)
    world.ground.settled()
    found += world.expect("edit", service_of, elsewhere, far)
    found += world.expect("edit", address_of, elsewhere, beyond)
    world.delete("p")
    assert not found, "\n".join(found)


def test_delete(world: World) -> None:
    world.write("p")
    world.ground.settled()
    found = world.expect("delete", service_of, first, far)
    world.delete("p")
    found += world.expect("delete", service_of, far)
    found += world.expect("delete", address_of, beyond)
    assert not found, "\n".join(found)


def test_skip(world: World) -> None:
    """Backends reach the original; it makes no difference that there is another one that is ready.

    Of a Service that is its endpoints, by kube-proxy or, where that is replaced, by us.
    """
    world.write("p", skip=True, labels={})
    world.ground.settled()
    found = world.expect("skip: others", service_of, either, far)
    found += world.expect("skip: others", address_of, either, beyond)
    for shape in world.shapes:
        for pod in world.backends(shape):
            for what, target, names in (("address", address_of, beyond), ("Service", service_of, far)):
                bad = wrong(ask(pod, target(shape)), target(shape), names(shape))
                world.note(f"skip: {what}", "pod", shape, FAILED if bad else OK)
                found += [f"{world.name}, from {pod.short_name}: {line}" for line in bad]
    world.delete("p")
    assert not found, "\n".join(found)


def test_a_pod_is_its_own_backend(world: World) -> None:
    world.write("p")
    world.ground.settled()
    found = []
    for shape in world.shapes:
        for target in (service_of(shape), address_of(shape)):
            bad = wrong(ask(world.backends(shape)[0], target), target, first(shape))
            world.note("to itself", "pod", shape, FAILED if bad else OK)
            found += [f"{world.name}, {shape}: {line}" for line in bad]
    world.delete("p")
    assert not found, "\n".join(found)


def test_a_backend_on_the_node_s_own_network(world: World) -> None:
    """With an exemption, which then is the node's: all that it sends reaches the original."""
    ground = world.ground
    manifest = world.backends("routed")[0].manifest(ports=[("web", OWN_WEB, "TCP"), ("dns", OWN_DNS, "UDP")])
    manifest["metadata"] |= {"name": "on-node", "labels": {"on": "node"}}
    manifest["spec"]["hostNetwork"] = True
    manifest["status"] |= {
        "podIP": ground.node.addresses[0],
        "podIPs": [{"ip": address} for address in ground.node.addresses],
    }
    ground.write("on-node", manifest)
    for shape in world.shapes:
        target = address_of(shape)
        ground.write(f"p-{shape}", *policy(target.name, target, {"on": "node"}, skip=True))
    ground.settled()
    found = []
    for shape in world.shapes:
        for origin, place in world.origins(shape):
            names = ["node"] if origin == "pod" else beyond(shape)
            # A server that is bound to no address answers datagrams from whichever of the node's it likes.
            bad = wrong(ask(place, address_of(shape), only="TCP"), address_of(shape), names)
            world.note("hostNetwork", origin, shape, FAILED if bad else OK)
            found += [f"{world.name}, from {origin}, {shape}: {line}" for line in bad]
    ground.delete("on-node")
    world.delete("p")
    assert not found, "\n".join(found)


def test_drop(world: World) -> None:
    """Without a backend, and by the policy's wish, connects are refused, and at once."""
    world.write("p", labels={"number": "none"}, drop=True)
    world.ground.settled()
    found = []
    for shape in world.shapes:
        for origin, place in world.origins(shape):
            left_alone = origin == "node" and not world.mode.node_is_redirected
            bad = []
            for target, name in ((service_of(shape), "far"), (address_of(shape), beyond(shape)[0])):
                said = ask(place, target, timeout=0.3)
                if left_alone:
                    bad += wrong(said, target, [name])
                    continue
                # A socket that is not connected is told nothing by an ICMP error.
                bad += [
                    f"{one.way} to {target.name}: {one.name} instead of a refusal"
                    for one in said
                    if one.name != "ConnectionRefusedError"
                    and not (place is not world.ground.node and one.way.startswith("UDP/"))
                ]
            world.note("drop", origin, shape, FAILED if bad else BY_DESIGN if left_alone else OK)
            found += [f"{world.name}, from {origin}, {shape}: {line}" for line in bad]
    world.delete("p")
    assert not found, "\n".join(found)


def test_restart(world: World) -> None:
    """Killed without warning: what is in force stays so, and the next agent goes on with it."""
    world.write("p")
    world.ground.settled()
    world.ground.kill()
    found = world.expect("agent away", service_of, first, far)
    found += world.expect("agent away", address_of, first, beyond)
    world.write("p", labels={"number": "2"})
    world.ground.started(world.mode, *SMALL)
    world.ground.settled()
    found += world.expect("agent back", service_of, second, far)
    found += world.expect("agent back", address_of, second, beyond)
    world.delete("p")
    assert not found, "\n".join(found)


# --- The texts


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("kubeProxyReplacement: true \nLocalRedirectPolicy: true\n", "do you mean localRedirectPolicies.enabled"),
        (
            "kubeProxyReplacement: true\nsocketLB:\n\thostNamespaceOnly: true\nlocalRedirectPolicy: true\n",
            "indent with blanks",
        ),
    ],
)
def test_what_people_have_published_is_refused_with_the_remedy(text: str, hint: str) -> None:
    """Two of the four texts can't be meant as they stand in an article: a tab is no YAML, and Helm minds upper case."""
    with pytest.raises(ConfigError, match=hint):
        load_settings(Written("values.yaml", text), {}, {})
