"""Expiry: what has a `ttl` is gone for its readers when its time has come; here it is removed from disk.

A value says itself when it expires, and so does an object. An index by time names what may be removed. A value that is written anew
leaves its row of the index behind: when that is due, whoever looks finds a later time in the value, and removes the row alone. So
that a value that is written again and again does not fill the index, times there are rounded up to about a sixteenth of the ttl.

The whole object is deleted by a turn of its own, which finds it expired as every turn would. Its time is written anew only when less
than its ttl is left, and then a sixteenth more: not each turn that writes pays for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.app import App
from holdfast.ids import effect_id
from holdfast.storage import Writes, read_expiry
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.model import EXPIRY

from holdfast_node import keys
from holdfast_node.delivery.alarms import Inside
from holdfast_node.delivery.firing import NEVER, Look, Turns
from holdfast_node.shards import Shard
from holdfast_node.store import Store

if TYPE_CHECKING:
    from holdfast_node.activation import Activation
    from holdfast_node.commit import Entry

DELETING_MAX = 64
"""Objects of a node that are deleted at once."""

_MARGIN = 16  # the part of a ttl by which times are rounded
_GRANULE_MIN_MS = 1 << 10
_AGAIN_MS = 1_000


class Room(Protocol):
    """The shell around it."""

    def write(self, shard: Shard, rows: list[tuple[bytes, bytes | None]]) -> Any: ...
    def due_at(self, entry: Entry, due_ms: int, index: int) -> None: ...


@dataclass(slots=True)
class _Next:
    """When a shard is looked at next, Unix time in ms, where the last look ended, and whether it left something that is due."""

    due: int = NEVER
    cursor: bytes = b""
    left: bool = False


class Expiry:
    """What expires in the shards that a node owns."""

    def __init__(self, app: App, store: Store, turns: Turns, active: Callable[[str, str], Activation | None], room: Room) -> None:
        """`active`: the activation of an object, if it is in memory."""
        self._app = app
        self._store = store
        self._turns = turns
        self._active = active
        self._room = room
        self._next: dict[Shard, _Next] = {}
        self._deleting: set[tuple[str, str]] = set()
        self.removed = 0
        """Values and objects that were removed."""

    # -- what turns do

    def stage_rows(self, entry: Entry, activation: Activation, writes: Writes) -> None:
        """A turn has written values that expire: put them into the index."""
        shard = activation.shard
        now = shard.clock.now_ms()
        skip = len(activation.row_prefix)
        for key, raw in writes:
            if raw is not None and (expiry := read_expiry(raw)) is not None:
                self._index(entry, rounded_up(expiry, expiry - now), activation, key[skip:])

    def stage_object(self, entry: Entry, activation: Activation, deletes: bool) -> None:
        """A turn has written: its object lives on from now, or not at all (`deletes`)."""
        shard = activation.shard
        ttl = activation.kind.options.ttl
        key = keys.expiry_key(shard.number, activation.kind.name, activation.key)
        if ttl is None or deletes:
            if activation.expiry_ms:
                activation.expiry_ms = 0
                entry.rows.append((key, None))
                entry.deletes = True
            return
        if not shard.clock.started:
            return  # nobody knows what time it is: the next turn that writes sets it
        now = shard.clock.now_ms()
        ttl_ms = int(ttl.total_seconds() * 1000)
        if activation.expiry_ms - now >= ttl_ms or EXPIRY not in shard.features.on:
            return
        activation.expiry_ms = due = now + ttl_ms + ttl_ms // _MARGIN
        entry.rows.append((key, due.to_bytes(8, "big")))
        self._index(entry, due, activation, b"")

    def _index(self, entry: Entry, due_ms: int, activation: Activation, row: bytes) -> None:
        rest = keys.ident(activation.kind.name, activation.key) + row
        key = keys.due_key(activation.shard.number, keys.EXPIRY, due_ms, rest)
        entry.rows.append((key, b""))
        entry.bytes += len(key)
        self._room.due_at(entry, due_ms, keys.EXPIRY)

    # -- shards come and go

    def load(self, shard: Shard) -> None:
        """The shard is owned: find what expires first."""
        prefix = keys.index_prefix(shard.number, keys.EXPIRY)
        first = next(iter(self._store.scan("state", prefix, keys.after(prefix))), None)
        self._next[shard] = _Next(NEVER if first is None else keys.read_due_key(first[0])[0])

    def drop(self, shard: Shard) -> None:
        """It is not owned any more."""
        self._next.pop(shard, None)

    def due_at(self, shard: Shard, due_ms: int) -> None:
        """Something expires at this time."""
        coming = self._next[shard]
        coming.due = min(coming.due, due_ms)

    def next_due_ms(self) -> int:
        """When something expires first, Unix time in ms."""
        return min((coming.due for coming in self._next.values()), default=NEVER)

    # -- time passes

    def sweep(self, shard: Shard, wall: int, look: Look) -> None:
        """Remove what has expired at Unix time `wall` (ms)."""
        coming = self._next[shard]
        if coming.due > wall:
            return
        prefix = keys.index_prefix(shard.number, keys.EXPIRY)
        end = keys.due_key(shard.number, keys.EXPIRY, wall + 1, b"")
        rows: list[tuple[bytes, bytes | None]] = []
        for index_key, _ in self._store.scan("state", max(prefix, coming.cursor), end):
            if not look.left:
                coming.cursor = index_key  # go on here
                break
            look.left -= 1
            kind, key, row = keys.read_ident(keys.read_due_key(index_key)[1])
            gone = self._remove_row(shard, kind, key, row) if row else self._delete_object(shard, kind, key)
            if gone is None:
                coming.left = True
            else:
                rows += [(index_key, None), *((key, None) for key in gone)]
        else:
            coming.cursor = b""
            following = next(iter(self._store.scan("state", end, keys.after(prefix))), None)
            coming.due = NEVER if following is None else keys.read_due_key(following[0])[0]
            if coming.left:
                coming.due = min(coming.due, wall + _AGAIN_MS)
                coming.left = False
        if rows:
            self._room.write(shard, rows)

    def _remove_row(self, shard: Shard, kind: str, key: str, row: bytes) -> list[bytes]:
        """What of a value is to be removed, as its row of the index is due.

        What turns that ended have written may not be in the store yet, so an object in memory is asked. What a running turn writes
        comes behind this in the shard's log.
        """
        activation = self._active(kind, key)
        own = keys.row_prefix(shard.number, kind, key) + row
        raw = self._store.get("state", own) if activation is None else activation.storage.left(row.decode())
        expiry = None if raw is None else read_expiry(raw)
        if expiry is None or not shard.expired(expiry):
            return []
        self.removed += 1
        return [own]

    def _delete_object(self, shard: Shard, kind: str, key: str) -> list[bytes] | None:
        """Begin to delete an object; None as long as that is under way, or it cannot be told whether it has expired."""
        if (kind, key) in self._deleting or len(self._deleting) >= DELETING_MAX:
            return None
        activation = self._active(kind, key)
        own = keys.expiry_key(shard.number, kind, key)
        raw = self._store.get("state", own)
        if activation is not None:
            expiry = activation.expiry_ms
        else:
            expiry = 0 if raw is None else int.from_bytes(raw, "big")
        if not expiry or not shard.expired(expiry):
            return []
        if kind not in self._app.kinds:
            return None  # a node that has the class deletes it
        if self._app.kinds[kind].options.ttl is None:
            return [own]  # objects of the kind expire no more
        self._deleting.add((kind, key))

        def done(error: pb.Error | None) -> None:
            self._deleting.discard((kind, key))
            self.removed += error is None

        def handler(activation: Activation) -> Inside:
            def expire() -> None:
                if activation.storage.emptied:  # else it has been written anew since
                    activation.storage.delete_all()

            return Inside("(expire)", expire, deletes=True)

        request_id = effect_id(b"expiry", kind.encode(), key.encode(), expiry.to_bytes(8, "big"))
        self._turns.run_inside(kind, key, request_id, handler, done)
        return None


def rounded_up(expiry_ms: int, ttl_ms: int) -> int:
    """A time of the index at which what expires at `expiry_ms`, and was written with this ttl, has expired. Pure."""
    granule = max(_GRANULE_MIN_MS, 1 << max(0, (ttl_ms // _MARGIN).bit_length() - 1))
    return -(-expiry_ms // granule) * granule
