"""The expiry of values that are written with a `ttl`, and of whole objects of kinds that have a
`ttl`.

Each value and each object holds its own time of expiry. An index by time names what may be removed.
When a value is written anew, its old index row stays. When that row is due, the expiry service
finds a later time in the value, and removes only the index row. Times in the index are rounded up
to about a sixteenth of the ttl. So a value that is written often does not fill the index.

The time of a whole object is written anew only when less than its ttl is left. It is then set to
the ttl and a sixteenth more, so that not each turn has to write it.
"""

from __future__ import annotations

from holdfast.app import Kind
from holdfast_cluster.placement.model import EXPIRY

from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.rows import Writes
from holdfast_node.log.shards import Entry
from holdfast_node.store import keys
from holdfast_node.store.values import read_expiry

_MARGIN = 16  # times are rounded by about a sixteenth of the ttl
_GRANULE_MIN_MS = 1 << 10


class ExpiryIndex(DueIndex):
    """The index of expiry times in the shards that a node owns."""

    def stage_rows(self, entry: Entry, ident: bytes, writes: Writes, skip: int) -> None:
        """Put those of a turn's values that expire into the index.

        `ident`: that of the object. `skip`: the length of the prefix of its rows' keys. Call `of`
        for the shard first.
        """
        now = entry.shard.clock.now_ms()
        for key, raw in writes:
            if raw is not None and (expiry := read_expiry(raw)) is not None:
                self._put(entry, rounded_up(expiry, expiry - now), ident + key[skip:])

    def stage_object(
        self, entry: Entry, kind: Kind, key: str, expiry_ms: int, deletes: bool
    ) -> int:
        """Set the expiry of an object that a turn has written, or has deleted (`deletes`).

        `expiry_ms`: the object's expiry so far. Return the new one. Both are Unix time in ms; 0:
        never. Call `of` for the shard first.
        """
        shard = entry.shard
        ttl = kind.options.ttl
        row = keys.expiry_key(shard.number, kind.name, key)
        if ttl is None or deletes:
            if expiry_ms:
                entry.rows.append((row, None))
                entry.deletes = True
            return 0
        if not shard.clock.started:
            return expiry_ms  # the time is not known: the next turn that writes sets it
        now = shard.clock.now_ms()
        ttl_ms = int(ttl.total_seconds() * 1000)
        if expiry_ms - now >= ttl_ms or EXPIRY not in shard.features.on:
            return expiry_ms
        due = now + ttl_ms + ttl_ms // _MARGIN
        entry.rows.append((row, due.to_bytes(8, "big")))
        self._put(entry, due, keys.ident(kind.name, key))
        return due

    def _put(self, entry: Entry, due_ms: int, rest: bytes) -> None:
        key = keys.due_key(entry.shard.number, keys.EXPIRY, due_ms, rest)
        entry.rows.append((key, b""))
        entry.bytes += len(key)
        self.due_with(entry, due_ms)


def rounded_up(expiry_ms: int, ttl_ms: int) -> int:
    """Return the rounded index time of a value that expires at `expiry_ms`. `ttl_ms`: the time that
    it has left to live. Pure."""
    granule = max(_GRANULE_MIN_MS, 1 << max(0, (ttl_ms // _MARGIN).bit_length() - 1))
    return -(-expiry_ms // granule) * granule
