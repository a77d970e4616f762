"""A node's copies of shards in its store: what `Persist` and `Apply` become on disk, and what a start finds there.

The log of a shard lies beside its state. Entries are applied in order, once they are committed, and what they say is absolute (put
this, delete that), so applying one again changes nothing: how far the state is, is on disk only as of the last time that the log was
shortened, and a start applies the log from there again as it learns what is committed.
A snapshot comes as files (`snapshots.py`) and replaces everything at once: while that is under way a mark says so, and a start that
finds the mark throws away what is there; nothing rests on such a copy yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from holdfast_node import keys
from holdfast_node.replication.events import LogEntry, Persist, Position
from holdfast_node.store import Batch, Store, remove_files

log = logging.getLogger(__name__)

_EPOCH_BYTES = 8
_NOTHING = (0, Position(0, 0))


class Until(msgspec.Struct, frozen=True, array_like=True):
    """In place of a value: the deletion of every key from the row's own up to `end`."""

    end: bytes


Rows = list[tuple[bytes, bytes | Until | None]]
"""Changes of state in order: (key, value) puts, (key, None) deletes, (start, Until(end)) deletes the range."""
Replies = list[tuple[bytes, bytes]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[Rows, Replies]).decode


def encode_changes(rows: Rows, replies: Replies) -> bytes:
    """The data of a log entry."""
    return _encode((rows, replies))


def stage_changes(batch: Batch, rows: Rows, replies: Replies) -> None:
    """What an entry changes, put into a batch."""
    for key, value in rows:
        if value is None:
            batch.delete("state", key)
        elif type(value) is bytes:
            batch.put("state", key, value)
        else:
            batch.delete_range("state", key, value.end)  # type: ignore[union-attr]
    if replies:
        batch.put_all("replies", replies)


class SnapshotFiles(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot that has arrived: its files by column family. Travels through the core as the snapshot's state."""

    state: list[str]
    replies: list[str]


@dataclass
class StoredCopy:
    """Implements `holdfast_node.replication.Disk`."""

    epoch: int = 0
    base: Position = field(default_factory=lambda: Position(0, 0))
    entries: list[LogEntry] = field(default_factory=list)
    applied: int = 0


class CopyStore:
    """Reads and writes the copies. Batches are the caller's, who writes them and makes them durable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._written: dict[int, tuple[int, Position]] = {}  # epoch and base, as they are on disk by the newest batch
        self.snapshots = store.path / "snapshots"

    def load(self) -> dict[int, StoredCopy]:
        """Every copy that is there. What an interrupted start or snapshot left behind is cleaned up first."""
        if self.snapshots.exists():
            for file in self.snapshots.iterdir():
                file.unlink()
        batch = self._store.batch()
        copies: dict[int, StoredCopy] = {}
        prefix = keys.log_state_key(0)[:-2]
        for key, value in list(self._store.scan("meta", prefix, keys.after(prefix))):
            shard = int.from_bytes(key[len(prefix) :], "big")
            epoch = int.from_bytes(value[:_EPOCH_BYTES], "big")
            if self._store.get("meta", keys.install_key(shard)) is not None:
                log.warning("shard %d: a snapshot was cut short; the copy is dropped and made again", shard)
                self._clear(batch, shard)
                batch.delete("meta", keys.install_key(shard))
                self._put_log_state(batch, shard, epoch, Position(0, 0))
                copies[shard] = StoredCopy(epoch)
                continue
            base = Position(*keys.decode_position(value[_EPOCH_BYTES:]))
            applied = self._store.get("meta", keys.applied_key(shard))
            copy = copies[shard] = StoredCopy(epoch, base, applied=int.from_bytes(applied or b"", "big"))
            seq = base.seq
            for raw_key, raw in self._store.scan("log", keys.log_key(shard, seq + 1), keys.after(keys.shard_prefix(shard))):
                seq += 1
                assert keys.read_log_key(raw_key) == seq, f"shard {shard}: the log has {keys.read_log_key(raw_key)} in place of {seq}"
                copy.entries.append(LogEntry(int.from_bytes(raw[:_EPOCH_BYTES], "big"), seq, raw[_EPOCH_BYTES:]))
            assert base.seq <= copy.applied <= seq, f"shard {shard}: applied {copy.applied}, log from {base.seq} to {seq}"
            self._written[shard] = epoch, base
        self._store.write(batch)
        self._store.sync()
        return copies

    def persist(self, batch: Batch, shard: int, effect: Persist) -> None:
        """Put what the effect says into the batch."""
        if effect.wipe is not None:
            self._clear(batch, shard)
        if effect.cut is not None:
            batch.delete_range("log", keys.log_key(shard, effect.cut), self._log_end(shard))
        for epoch, seq, data in effect.entries:
            batch.put("log", keys.log_key(shard, seq), epoch.to_bytes(_EPOCH_BYTES, "big") + data)
        epoch, base = self._written.get(shard, _NOTHING)
        if effect.wipe is not None:
            self._put_log_state(batch, shard, effect.epoch, effect.wipe)
            batch.put("meta", keys.applied_key(shard), effect.wipe.seq.to_bytes(8, "big"))
        elif epoch != effect.epoch:
            self._put_log_state(batch, shard, effect.epoch, base)

    def install(self, shard: int, effect: Persist) -> None:
        """Replace the copy by a snapshot's files: on the store itself, at once; durable with the next fsync."""
        assert effect.install is not None
        files = msgspec.msgpack.decode(effect.install.state, type=SnapshotFiles)
        batch = self._store.batch()
        batch.put("meta", keys.install_key(shard), b"1")
        self._clear(batch, shard, written=True)
        self._store.write(batch)
        self._store.sync()  # files are there for good at once, the deletion before them has to be as well
        for family, paths in (("state", files.state), ("replies", files.replies)):
            if paths:
                self._store.ingest(family, [Path(path) for path in paths])
        batch = self._store.batch()
        position = effect.install.position
        self._put_log_state(batch, shard, effect.epoch, position)
        batch.put("meta", keys.applied_key(shard), position.seq.to_bytes(8, "big"))
        batch.delete("meta", keys.install_key(shard))
        self._store.write(batch)

    def has_rows(self, shard: int, family: str) -> bool:
        """Whether there is data of a shard, of a copy that is assigned or one that was."""
        return self._store.any(family, keys.shard_prefix(shard), keys.after(keys.shard_prefix(shard)))

    def discard(self, state: bytes) -> None:
        """Remove the files of a snapshot that was not installed."""
        files = msgspec.msgpack.decode(state, type=SnapshotFiles)
        remove_files(Path(path) for path in (*files.state, *files.replies))

    def base(self, shard: int) -> Position:
        """Where the log of a shard begins, by the newest batch."""
        return self._written.get(shard, _NOTHING)[1]

    def apply(self, batch: Batch, entry: LogEntry) -> None:
        """Put a committed entry into the state."""
        if entry.data:
            stage_changes(batch, *_decode(entry.data))

    def apply_many(self, batch: Batch, entries: Iterable[LogEntry]) -> None:
        """Put committed entries into the state, of rows that several of them write only the last."""
        latest: dict[bytes, bytes | None] = {}
        for entry in entries:
            if not entry.data:
                continue
            rows, replies = _decode(entry.data)
            for key, value in rows:
                if type(value) is Until:
                    stage_changes(batch, list(latest.items()), [])
                    latest.clear()
                    stage_changes(batch, [(key, value)], [])
                else:
                    latest[key] = value  # type: ignore[assignment]
            batch.put_all("replies", replies)
        stage_changes(batch, list(latest.items()), [])

    def shorten(self, batch: Batch, shard: int, base: Position, applied: int) -> None:
        """Have the log begin behind `base`; the state is as of `applied`."""
        epoch, before = self._written[shard]
        batch.put("meta", keys.applied_key(shard), applied.to_bytes(8, "big"))
        batch.delete_range("log", keys.log_key(shard, before.seq), keys.log_key(shard, base.seq + 1))
        self._put_log_state(batch, shard, epoch, base)

    def _put_log_state(self, batch: Batch, shard: int, epoch: int, base: Position) -> None:
        batch.put("meta", keys.log_state_key(shard), epoch.to_bytes(_EPOCH_BYTES, "big") + keys.encode_position(*base))
        self._written[shard] = epoch, base

    def _clear(self, batch: Batch, shard: int, written: bool = False) -> None:
        """Delete all of a shard. `written`: nothing of it is staged in another batch."""
        start = keys.shard_prefix(shard)
        end = keys.after(start) or start + b"\xff" * 9
        for family in ("state", "replies", "log"):
            # A deletion of nothing would stand in the way of files that are ingested. (What is staged is not seen here.)
            if not written or self._store.any(family, start, end):
                batch.delete_range(family, start, end)
        batch.delete("meta", keys.applied_key(shard))

    @staticmethod
    def _log_end(shard: int) -> bytes:
        return keys.log_key(shard, 2**64 - 1)
