"""Removing expired values and objects from disk. For readers they are gone as soon as their time
has come; see `effects/expiry.py`.

A whole object is deleted by a turn of its own. That turn finds it expired, as every turn would.
"""

from __future__ import annotations

from holdfast.app import App
from holdfast.ids import effect_id
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.effects.expiry import ExpiryIndex
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shard_service import ScanBudget
from holdfast_node.log.shards import NEVER, Shard
from holdfast_node.objects.activation import Activation
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.handlers import InternalHandler
from holdfast_node.store import keys
from holdfast_node.store.values import read_expiry

DELETING_MAX = 64
"""The most objects of a node that are deleted at once."""

_AGAIN_MS = 1_000


class ExpiryService:
    """Removes expired values and objects of the shards that a node owns. Implements
    `ShardService`."""

    def __init__(self, app: App, engine: Engine, index: ExpiryIndex, writes: ShardWrites) -> None:
        self._app = app
        self._store = index.store
        self._engine = engine
        self._index = index
        self._writes = writes
        self._deleting: set[tuple[str, str]] = set()
        self.removed = 0
        """The number of removed values and objects."""

    def opened(self, shard: Shard) -> None:
        self._index.of(shard)

    def closed(self, shard: Shard) -> None:
        self._index.closed(shard)

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        """Remove the expired values and objects of a shard."""
        coming = self._index.of(shard)
        if coming.due_ms > now_ms:
            return
        prefix = keys.index_prefix(shard.number, keys.EXPIRY)
        end = keys.due_key(shard.number, keys.EXPIRY, now_ms + 1, b"")
        rows: list[tuple[bytes, bytes | None]] = []
        for index_key, _ in self._store.scan("state", max(prefix, coming.cursor), end):
            if not budget.rows_left:
                coming.cursor = index_key  # go on here
                break
            budget.rows_left -= 1
            kind, key, row = keys.read_ident(keys.read_due_key(index_key)[1])
            gone = (
                self._remove_row(shard, kind, key, row)
                if row
                else self._delete_object(shard, kind, key)
            )
            if gone is None:
                coming.unfinished = True
            else:
                rows += [(index_key, None), *((key, None) for key in gone)]
        else:
            coming.cursor = b""
            following = next(iter(self._store.scan("state", end, keys.after(prefix))), None)
            coming.due_ms = NEVER if following is None else keys.read_due_key(following[0])[0]
            if coming.unfinished:
                coming.due_ms = min(coming.due_ms, now_ms + _AGAIN_MS)
                coming.unfinished = False
        if rows:
            self._writes.write(shard, rows)

    def _remove_row(self, shard: Shard, kind: str, key: str, row: bytes) -> list[bytes]:
        """Return the keys to remove for a value whose index row is due: its own, or none if it has
        not expired.

        The writes of ended turns may not be in the store yet, so an object in memory is asked. The
        writes of a running turn come later in the shard's log.
        """
        activation = self._engine.find(kind, key)
        own = keys.row_prefix(shard.number, kind, key) + row
        raw = (
            self._store.get("state", own)
            if activation is None
            else activation.storage.layers.get(row.decode())
        )
        expiry = None if raw is None else read_expiry(raw)
        if expiry is None or not shard.expired(expiry):
            return []
        self.removed += 1
        return [own]

    def _delete_object(self, shard: Shard, kind: str, key: str) -> list[bytes] | None:
        """Begin to delete an object, and return None while the deletion is under way or has to
        wait. Otherwise return the keys to remove beside the index row."""
        if (kind, key) in self._deleting or len(self._deleting) >= DELETING_MAX:
            return None
        activation = self._engine.find(kind, key)
        own = keys.expiry_key(shard.number, kind, key)
        raw = self._store.get("state", own)
        if activation is not None:
            expiry = activation.expiry_ms
        else:
            expiry = 0 if raw is None else int.from_bytes(raw, "big")
        if not expiry or not shard.expired(expiry):
            return []
        if kind not in self._app.kinds:
            return None  # left to a node that has the kind
        if self._app.kinds[kind].options.ttl is None:
            return [own]  # the kind has no ttl any more
        self._deleting.add((kind, key))

        def done(error: pb.Error | None) -> None:
            self._deleting.discard((kind, key))
            self.removed += error is None

        def handler(activation: Activation) -> InternalHandler:
            def expire() -> None:
                if activation.storage.emptied:  # false if it was written anew since
                    activation.storage.delete_all()

            return InternalHandler("(expire)", expire, deletes=True)

        request_id = effect_id(b"expiry", kind.encode(), key.encode(), expiry.to_bytes(8, "big"))
        self._engine.run_internal(kind, key, request_id, handler, done)
        return None
