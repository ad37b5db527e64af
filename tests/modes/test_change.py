"""The mode of a running node is changed, and clients that ask all the time notice nothing.

An agent is stopped or killed, and the next one starts with other settings; with LRP_LONG=1, for every pair of modes.
Pods' answers come from the local backend all the time; whoever is on the node may be answered by the Service's own
endpoint, too, for one of the modes leaves the node alone. The backend itself is exempt, and always reaches the
endpoint, whoever balances Services in a mode. kube-proxy's rules stay throughout.
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence

import pytest

from lab import Place
from tests.modes.ground import PLAIN, SHAPES, Ground, Target, policy, service_of, wait
from tests.modes.modes import HOST_ONLY, MODES, REPLACED, SOCKETS, TC_ONLY, Mode
from tests.modes.traffic import KINDS, Seen, asking

pytestmark = pytest.mark.privileged

LONG = bool(os.environ.get("LRP_LONG"))
SMALL = ("--bpf-lb-map-max", "512")
BRIEF = ("tcp", "udp", "udp-connected", "stream", "unconnected")


def walk() -> list[Mode]:
    """Modes in an order in which each follows on each other one, once; by default, about half of that.

    Of the shorter way four steps take pods from one level to the other, and two do not.
    """
    if not LONG:
        return [REPLACED, SOCKETS, TC_ONLY, HOST_ONLY, REPLACED, TC_ONLY, SOCKETS]
    left = {mode: [other for other in MODES if other is not mode] for mode in MODES}
    stack, path = [REPLACED], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            path.append(stack.pop())
    return path[::-1]


def redirect(ground: Ground) -> None:
    """Have every Service with a policy redirected to its first backend."""
    ground.kube_proxy("iptables")
    for shape in SHAPES:
        chosen = {"shape": shape, "number": "1"}
        ground.write(f"p-{shape}", *policy(f"p-{shape}", service_of(shape), chosen, skip=True))


def change(ground: Ground, to: Mode, *flags: str, kill: bool) -> None:
    """End the agent, and start it in another mode."""
    (ground.kill if kill else ground.stop)()
    ground.started(to, *flags)


def everybody(ground: Ground) -> Iterator[tuple[Place, Target, Sequence[str]]]:
    """Who asks whom, and how."""
    for shape in SHAPES:
        yield ground.clients[shape], service_of(shape), KINDS
        yield ground.backends[shape][0], service_of(shape), BRIEF
    # What one that is connected to an endpoint of a Service without a policy meets has a test of its own.
    yield ground.clients["routed"], PLAIN, BRIEF
    yield ground.node, service_of("bridged"), KINDS


def complaints(seen: Sequence[Seen]) -> list[str]:
    """What was not as it should be."""
    found = [line for one in seen for line in one.told()]
    for one in seen:
        backend = one.target.replace("web-", "") + "-1"
        allowed = {"far"} if one.target == PLAIN.name or one.who.startswith(backend) else {backend}
        if one.who.startswith("node"):
            allowed.add("far")
        found += [f"{one.who}: {count} answers by {name}" for name, count in one.names.items() if name not in allowed]
    return found


@pytest.mark.timeout(1800)
def test_every_change(ground: Ground, figures: list[str]) -> None:
    redirect(ground)
    path, wrong = walk(), []
    ground.started(path[0], *SMALL)
    for number, (before, after) in enumerate(itertools.pairwise(path)):
        for kill in [False, True] if LONG else [number % 2 == 1]:
            if kill and LONG:
                change(ground, before, *SMALL, kill=False)
            with asking(everybody(ground)) as seen:
                change(ground, after, *SMALL, kill=kill)
                time.sleep(1)
            found = complaints(seen)
            how, total = "kill -9" if kill else "SIGTERM", sum(one.names.total() for one in seen)
            figures.append(f"{before} -> {after} ({how}): {total} answers, {len(found)} complaints")
            wrong += [f"{before} -> {after}: {line}" for line in found]
    assert not wrong, "\n".join(wrong)


@pytest.mark.skipif(not LONG, reason="LRP_LONG=1 has the usual sizes tried, too")
@pytest.mark.parametrize(
    ("before", "after"), [(REPLACED, HOST_ONLY), (HOST_ONLY, TC_ONLY), (SOCKETS, TC_ONLY)], ids=str
)
def test_with_the_usual_sizes(ground: Ground, before: Mode, after: Mode) -> None:
    redirect(ground)
    ground.started(before)
    with asking(everybody(ground)) as seen:
        change(ground, after, kill=False)
        time.sleep(1)
    assert not complaints(seen)


def test_replies_are_served_as_long_as_sockets_remember(ground: Ground) -> None:
    """Without a socket level: the hooks for replies stay for those whom it has redirected, and no longer."""
    redirect(ground)
    ground.started(SOCKETS, *SMALL)
    links = ground.node.bpf / "lrp" / "links"
    with asking([(ground.clients["routed"], service_of("routed"), KINDS)]) as seen:
        change(ground, TC_ONLY, *SMALL, kill=False)
        assert {path.name for path in links.iterdir()} >= {"recvmsg4", "getpeername4", "recvmsg6", "getpeername6"}
        assert not {path.name for path in links.iterdir()} & {"connect4", "sendmsg4", "connect6", "sendmsg6"}
    assert not complaints(seen)
    if LONG:  # the agent looks every half a minute
        wait(lambda: not list(links.iterdir()), "the hooks to be let go", ground.log)


def test_a_connected_socket_of_a_service_that_is_kube_proxys_again_is_ended(ground: Ground) -> None:
    """Nobody would tell it when its endpoint has left; ended, it asks kube-proxy."""
    redirect(ground)
    ground.started(REPLACED, *SMALL)
    with asking([(ground.clients["routed"], PLAIN, ("connected",))]) as seen:
        change(ground, SOCKETS, *SMALL, kill=False)
        time.sleep(1)
    for one in seen:
        assert one.wrong.keys() <= {"ConnectionAbortedError", "OSError"}
        assert one.wrong.total() == 1
