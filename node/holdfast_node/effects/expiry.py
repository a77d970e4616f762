"""When what a turn writes expires: values that have a `ttl`, and whole objects of kinds that have
one.

A value says itself when it expires, and so does an object. An index by time names what may be
removed. A value that is written anew leaves its row of the index behind: when that is due, the
expiry service finds a later time in the value, and removes the row alone. So that a value that is
written again and again does not fill the index, times there are rounded up to about a sixteenth of
the ttl.

The time of a whole object is written anew only when less than its ttl is left, and then a sixteenth
more: not each turn that writes pays for it.
"""

from __future__ import annotations

from holdfast.app import Kind
from holdfast_cluster.placement.model import EXPIRY

from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.rows import Writes
from holdfast_node.log.shards import Entry
from holdfast_node.store import keys
from holdfast_node.store.values import read_expiry

_MARGIN = 16  # the part of a ttl by which times are rounded
_GRANULE_MIN_MS = 1 << 10


class ExpiryIndex(DueIndex):
    """What expires in the shards that a node owns."""

    def stage_rows(self, entry: Entry, ident: bytes, writes: Writes, skip: int) -> None:
        """A turn has written values of which some expire: put those into the index.

        `ident` is of the object, `skip` the length of what the keys of its rows begin with. The
        shard was looked at before.
        """
        now = entry.shard.clock.now_ms()
        for key, raw in writes:
            if raw is not None and (expiry := read_expiry(raw)) is not None:
                self._put(entry, rounded_up(expiry, expiry - now), ident + key[skip:])

    def stage_object(
        self, entry: Entry, kind: Kind, key: str, expiry_ms: int, deletes: bool
    ) -> int:
        """A turn has written: its object lives on from now, or not at all (`deletes`). When it
        expires now, where it did at `expiry_ms`; Unix time in ms, 0: never. The shard was looked at
        before.
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
            return expiry_ms  # nobody knows what time it is: the next turn that writes sets it
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
    """A time of the index at which what expires at `expiry_ms`, and was written with this ttl, has
    expired. Pure."""
    granule = max(_GRANULE_MIN_MS, 1 << max(0, (ttl_ms // _MARGIN).bit_length() - 1))
    return -(-expiry_ms // granule) * granule
