"""What an informer has told of a kind of object, and so what is news: the pure half of it.

Objects are known by "namespace/name", and compared by uid and resourceVersion: another uid is another object, told as
deleted and then as new, and the same version is no news. During a listing (`begin` ... `end`) news is told as it comes,
and what the listing did not name is told as deleted at its end, so nothing is ever held twice.

Within one history a resourceVersion that is older than what was told is a repeated or overtaken event, and no news. The
API calls versions opaque, but since Kubernetes 1.35 it promises that they compare as decimal numbers, and every release
before it did the same; versions that are no numbers are believed as they come. A listing is believed whatever versions
it has: an API server that was restored from a backup counts from an earlier number again.
"""

from typing import Generic

import msgspec
from msgspec import Raw, Struct

from lrp_operator.sources.kube.resources import Resource, T


class _Metadata(Struct, frozen=True, gc=False):
    name: str
    namespace: str = ""
    uid: str = ""
    version: str = msgspec.field(default="", name="resourceVersion")


class _Head(Struct, frozen=True, gc=False):
    metadata: _Metadata


class _Version(Struct, frozen=True, gc=False):
    """Which object, and which state of it."""

    uid: str
    version: str


UNDECODABLE = (msgspec.DecodeError, RecursionError)
"""What decoding raises: for what is no JSON or has wrong types, and for what is nested too deeply."""

_HEAD = msgspec.json.Decoder(_Head)


class Told(Generic[T]):
    """What was told, and what is to be told next."""

    def __init__(self, resource: Resource[T]) -> None:
        self._kind = resource.kind
        self._decoder = msgspec.json.Decoder(resource.type)
        self._held: dict[str, _Version] = {}
        self._gone: dict[str, _Version] = {}  # deleted lately: an overtaken event does not bring them back
        self._unlisted: set[str] | None = None  # during a listing: what was held and has not been named yet
        self._upserts: dict[str, T] = {}
        self._deletes: dict[str, None] = {}
        self.unreadable: dict[str, str] = {}

    def begin(self) -> None:
        """Begin a listing; one that was begun before counts for nothing."""
        self._unlisted = set(self._held)
        self._gone.clear()

    def end(self) -> None:
        """End a listing: what it did not name is not there."""
        for key in sorted(self._unlisted or ()):
            del self._held[key]
            self._delete(key)
        self._unlisted = None

    def put(self, raw: Raw) -> str:
        """Take in an object as it is now; its resourceVersion. Raises UNDECODABLE if it has no name."""
        meta = _HEAD.decode(raw).metadata
        key, new = f"{meta.namespace}/{meta.name}", _Version(meta.uid, meta.version)
        held = self._held.get(key)
        if not self._is_news(key, new) or held == new:
            self._named(key)
            return meta.version
        self._named(key)
        if held is not None and held.uid != new.uid:
            self._delete(key)
        self._held[key] = new
        self._gone.pop(key, None)
        try:
            self._upserts[key] = self._decoder.decode(raw)
            self.unreadable.pop(key, None)
        except UNDECODABLE as error:
            self.unreadable[key] = f"{self._kind} {key.lstrip('/')} can't be read: {error}"
        return meta.version

    def drop(self, raw: Raw) -> str:
        """Take in that an object is deleted; the resourceVersion of that."""
        meta = _HEAD.decode(raw).metadata
        key, new = f"{meta.namespace}/{meta.name}", _Version(meta.uid, meta.version)
        held = self._held.get(key)
        if held is not None and held.version != new.version and not self._is_news(key, new):
            return meta.version
        self._named(key)
        self._gone[key] = new
        if self._held.pop(key, None) is not None:
            self._delete(key)
        return meta.version

    def settle(self) -> None:
        """Take in that all up to now has been told (a bookmark): nothing older comes any more."""
        self._gone.clear()

    def take(self) -> tuple[tuple[T, ...], tuple[str, ...]]:
        """Return what is to be told, the deletions first: what came or changed, and the names of what went."""
        news = tuple(self._upserts.values()), tuple(self._deletes)
        self._upserts.clear()
        self._deletes.clear()
        return news[0], news[1]

    def _is_news(self, key: str, new: _Version) -> bool:
        """Whether an event is about a later state than what was told."""
        if self._unlisted is not None and key in self._unlisted:
            return True
        last = self._held.get(key) or self._gone.get(key)
        return last is None or is_newer(new.version, last.version)

    def _named(self, key: str) -> None:
        if self._unlisted is not None:
            self._unlisted.discard(key)

    def _delete(self, key: str) -> None:
        self._upserts.pop(key, None)
        self._deletes[key] = None
        self.unreadable.pop(key, None)


def is_newer(version: str, than: str) -> bool:
    """Whether a resourceVersion is a later one; where that can't be told, any other one is."""
    if version.isdecimal() and than.isdecimal():
        return int(version) > int(than)
    return version != than
