"""Events on a policy, for people who ask `kubectl describe`: when its verdict changes, and not at every pass.

What was told last is known from the status that the policy showed before, so a new controller does not tell everything
again. A policy that flaps is told of once in a while, with the verdict it has then.
"""

import json
import logging
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from lrp_operator.api.objects import ObjectMeta
from lrp_operator.controller.fold import standings_in
from lrp_operator.sources.kube.resources import POLICIES

log = logging.getLogger(__name__)

REPEAT_SECONDS = 15.0
"""A policy is told of this often at most."""
CONTROLLER = "lrp-operator.io/controller"
_NOTE_LENGTH = 1000  # of the 1024 bytes that the API takes
_NAME_LENGTH = 230  # of 253, leaving room for what makes it unique
_PASSING = "NodesPending"

Verdict = dict[str, tuple[str, str]]


class Regarding(NamedTuple):
    """What an Event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


class Told(NamedTuple):
    """What people are told. instance: who says it."""

    regarding: Regarding
    instance: str
    reason: str
    note: str
    warning: bool


def event_on(told: Told) -> tuple[str, bytes]:
    """Make an Event: the path to post it to, and what."""
    about = told.regarding
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{about.name[:_NAME_LENGTH].rstrip('-.')}.{secrets.token_hex(8)}",
            "namespace": about.namespace,
        },
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": told.instance[:128],
        "action": "Reconcile",
        "reason": told.reason,
        "note": told.note.encode()[:_NOTE_LENGTH].decode(errors="ignore"),
        "type": "Warning" if told.warning else "Normal",
        "regarding": {
            "apiVersion": about.api_version,
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
    }
    return f"/apis/events.k8s.io/v1/namespaces/{about.namespace}/events", json.dumps(body).encode()


class _Last(NamedTuple):
    verdict: Verdict
    again_at: float


class Herald:
    """Who was told what."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._told: dict[str, _Last] = {}
        self._waiting: dict[str, tuple[ObjectMeta, Mapping[str, Any]]] = {}
        self._served: dict[str, int] = {}  # namespaces take turns: when each last had one
        self._turn = 0

    def note(self, meta: ObjectMeta, before: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """Take in that a policy's status was one and is another now."""
        uid = meta.uid
        if uid not in self._told:
            self._told[uid] = _Last(_lasting(standings_in(before)), 0.0)
        self._waiting[uid] = (meta, status)

    def forget(self, alive: set[str]) -> None:
        """Forget the policies that are not among these uids."""
        if not self._waiting:
            self._served.clear()
        for uid in self._told.keys() - alive:
            del self._told[uid]
            self._waiting.pop(uid, None)

    def next(self) -> tuple[str, bytes] | None:
        """Return an Event that is to be written now, as `event_on` makes it, if there is one."""
        now = time.monotonic()
        turns = sorted(self._waiting.items(), key=lambda item: self._served.get(item[1][0].namespace, 0))
        for uid, (meta, status) in turns:
            told = self._told[uid]
            verdict = _lasting(standings_in(status))
            if verdict == told.verdict or _headline(status, told.verdict)["reason"] == _PASSING:
                del self._waiting[uid]
            elif now >= told.again_at:
                del self._waiting[uid]
                self._told[uid] = _Last(verdict, now + REPEAT_SECONDS)
                self._turn += 1
                self._served[meta.namespace] = self._turn
                return self._event(meta, status, told.verdict)
        return None

    @property
    def due(self) -> float | None:
        """When something is to be told next, by time.monotonic()."""
        return min((self._told[uid].again_at for uid in self._waiting), default=None)

    def _event(self, meta: ObjectMeta, status: Mapping[str, Any], before: Verdict) -> tuple[str, bytes]:
        condition = _headline(status, before)
        about = Regarding("cilium.io/v2", POLICIES.kind, meta.namespace, meta.name, meta.uid)
        wrong = condition["type"] != "Programmed"
        return event_on(Told(about, self._instance, condition["reason"], condition["message"], warning=wrong))


def _lasting(verdict: Verdict) -> Verdict:
    """Leave out what is only on its way: it is told where it leads to."""
    return {kind: standing for kind, standing in verdict.items() if standing[1] != _PASSING}


def _headline(status: Mapping[str, Any], before: Verdict) -> Mapping[str, Any]:
    """Choose the condition that says most of what changed: what is wrong first."""
    conditions: dict[str, Mapping[str, Any]] = {condition["type"]: condition for condition in status["conditions"]}
    for kind, wrong in (("Accepted", "False"), ("Resolved", "False"), ("Degraded", "True")):
        condition = conditions[kind]
        if condition["status"] == wrong and before.get(kind) != (condition["status"], condition["reason"]):
            return condition
    return conditions["Programmed"]
