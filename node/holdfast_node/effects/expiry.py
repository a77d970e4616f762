"""When what a turn writes expires: values that have a `ttl`, and whole objects of kinds that have one.

A value says itself when it expires, and so does an object. An index by time names what may be removed. A value that is written anew
leaves its row of the index behind: when that is due, the expiry service finds a later time in the value, and removes the row alone.
So that a value that is written again and again does not fill the index, times there are rounded up to about a sixteenth of the ttl.

The time of a whole object is written anew only when less than its ttl is left, and then a sixteenth more: not each turn that writes
pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.storage import Writes, read_expiry
from holdfast_cluster.model import EXPIRY

from holdfast_node import keys
from holdfast_node.effects.due_index import DueIndex
from holdfast_node.shards import Entry

if TYPE_CHECKING:
    from holdfast_node.activation import Activation

_MARGIN = 16  # the part of a ttl by which times are rounded
_GRANULE_MIN_MS = 1 << 10


class ExpiryIndex(DueIndex):
    """What expires in the shards that a node owns."""

    def stage(self, entry: Entry, activation: Activation, writes: Writes, deletes: bool) -> None:
        """A turn has written: put what expires, of its rows and the whole object, into its entry. The shard was looked at before."""
        if activation.storage.some_expire:
            self._stage_rows(entry, activation, writes)
        if activation.expiry_ms or activation.kind.options.ttl is not None:
            self._stage_object(entry, activation, deletes)

    def _stage_rows(self, entry: Entry, activation: Activation, writes: Writes) -> None:
        """A turn has written values that expire: put them into the index."""
        shard = activation.shard
        now = shard.clock.now_ms()
        skip = len(activation.row_prefix)
        for key, raw in writes:
            if raw is not None and (expiry := read_expiry(raw)) is not None:
                self._put(entry, rounded_up(expiry, expiry - now), activation, key[skip:])

    def _stage_object(self, entry: Entry, activation: Activation, deletes: bool) -> None:
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
        self._put(entry, due, activation, b"")

    def _put(self, entry: Entry, due_ms: int, activation: Activation, row: bytes) -> None:
        rest = keys.ident(activation.kind.name, activation.key) + row
        key = keys.due_key(activation.shard.number, keys.EXPIRY, due_ms, rest)
        entry.rows.append((key, b""))
        entry.bytes += len(key)
        self.due_with(entry, due_ms)


def rounded_up(expiry_ms: int, ttl_ms: int) -> int:
    """A time of the index at which what expires at `expiry_ms`, and was written with this ttl, has expired. Pure."""
    granule = max(_GRANULE_MIN_MS, 1 << max(0, (ttl_ms // _MARGIN).bit_length() - 1))
    return -(-expiry_ms // granule) * granule
