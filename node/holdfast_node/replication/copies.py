"""A node's copies of shards in its store: the writes of `Persist` and `Apply`, and the reads of a
start.

The log of a shard lies beside its state. The node applies committed entries in order. Their changes
are absolute (put this, delete that), so applying an entry again changes nothing. The store keeps
the position of the state only as of the last shortening of the log. After a start the node applies
the log again from there, as it learns which entries are committed.

A snapshot comes as files (`snapshots.py`) and replaces everything at once. Meanwhile the store
holds a mark. A start that finds the mark deletes the copy. The shard does not need such a copy yet.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import msgspec

from holdfast_node.log.changes import Forgotten, Replies, Rows, Until, decode_changes, read_header
from holdfast_node.log.staging import stage_changes, stage_forgotten, stage_rows
from holdfast_node.replication.core.chain import Term, until
from holdfast_node.replication.core.events import LogEntry, Persist, Position
from holdfast_node.store import keys
from holdfast_node.store.rocks import Batch, Store, remove_files

log = logging.getLogger(__name__)

_log_state = Struct(">QQQQQ")
_record = Struct(">QQ")
_OF_COPY = (keys.applied_key, keys.high_key, keys.chain_key)
_encode_chain = msgspec.msgpack.Encoder().encode
_decode_chain = msgspec.msgpack.Decoder(list[Term]).decode
_NOTHING = (0, Position(0, 0))


class Times(NamedTuple):
    """The times of the newest entry that a copy has applied, as `Header` has them."""

    shard_ms: int = 0
    cluster_time: int = 0


def encode_log_state(epoch: int, base: Position, times: Times | None = None) -> bytes:
    """Return the encoded state of a copy's log.

    It has the copy's epoch, the position before its log, and the times of the newest entry that it
    had applied then.
    """
    return _log_state.pack(epoch, *base, *(times or Times()))


def encode_record(entry: LogEntry, high: int) -> bytes:
    """Return the log's row of an entry, with the copy's high-water when the entry came."""
    return _record.pack(entry.epoch, high) + entry.data


def decode_record(seq: int, raw: bytes) -> tuple[LogEntry, int]:
    """Return the entry and the high-water in a row of the log."""
    epoch, high = _record.unpack_from(raw)
    return LogEntry(epoch, seq, raw[_record.size :]), high


class SnapshotFiles(msgspec.Struct, frozen=True, array_like=True):
    """The files of an arrived snapshot, by column family. The core passes them on as its state."""

    state: list[str]
    replies: list[str]


@dataclass
class StoredCopy:
    """A copy as a start finds it. Implements `holdfast_node.replication.core.replica.Disk`."""

    epoch: int = 0
    base: Position = field(default_factory=lambda: Position(0, 0))
    entries: list[LogEntry] = field(default_factory=list)
    applied: int = 0
    chain: list[Term] = field(default_factory=list)
    high: int = 0


class CopyStore:
    """The copies in a store. The caller passes batches, writes them and makes them durable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # epoch and base, as of the newest batch
        self._written: dict[int, tuple[int, Position]] = {}
        self._times: dict[int, Times] = {}
        self.snapshots = store.path / "snapshots"

    def load(self) -> dict[int, StoredCopy]:
        """Return all copies. First delete the remains of interrupted starts and snapshots."""
        if self.snapshots.exists():
            for file in self.snapshots.iterdir():
                file.unlink()
        batch = self._store.batch()
        copies: dict[int, StoredCopy] = {}
        prefix = keys.log_state_key(0)[:-2]
        for key, value in list(self._store.scan("meta", prefix, keys.after(prefix))):
            shard = int.from_bytes(key[len(prefix) :], "big")
            epoch, base_epoch, base_seq, shard_ms, cluster_time = _log_state.unpack(value)
            if self._store.get("meta", keys.install_key(shard)) is not None:
                log.warning(
                    "shard %d: a snapshot was cut short; the copy is dropped and made again", shard
                )
                self._clear(batch, shard)
                batch.delete("meta", keys.install_key(shard))
                self._put_log_state(batch, shard, epoch, Position(0, 0))
                copies[shard] = StoredCopy(epoch)
                continue
            base = Position(base_epoch, base_seq)
            self._times[shard] = Times(shard_ms, cluster_time)
            applied, kept_high, chain = (self._store.get("meta", key(shard)) for key in _OF_COPY)
            copy = copies[shard] = StoredCopy(
                epoch, base, applied=int.from_bytes(applied or b"", "big")
            )
            copy.high = int.from_bytes(kept_high or b"", "big")
            copy.chain = [] if chain is None else _decode_chain(chain)
            seq = base.seq
            for raw_key, raw in self._store.scan(
                "log", keys.log_key(shard, seq + 1), keys.after(keys.shard_prefix(shard))
            ):
                seq += 1
                assert keys.read_log_key(raw_key) == seq, (
                    f"shard {shard}: the log has {keys.read_log_key(raw_key)} in place of {seq}"
                )
                entry, high = decode_record(seq, raw)
                copy.entries.append(entry)
                copy.high = max(copy.high, high)
            assert base.seq <= copy.applied <= seq, (
                f"shard {shard}: applied {copy.applied}, log from {base.seq} to {seq}"
            )
            self._written[shard] = epoch, base
        self._store.write(batch)
        self._store.sync()
        return copies

    def persist(self, batch: Batch, shard: int, effect: Persist) -> None:
        """Put the writes of the effect into the batch."""
        if effect.wipe is not None:
            self._clear(batch, shard)
        if effect.cut is not None:
            batch.delete_range("log", keys.log_key(shard, effect.cut), self._log_end(shard))
        for entry in effect.entries:
            batch.put("log", keys.log_key(shard, entry.seq), encode_record(entry, effect.high))
        epoch, base = self._written.get(shard, _NOTHING)
        if effect.wipe is not None:
            self._times.pop(shard, None)
            self._put_log_state(batch, shard, effect.epoch, effect.wipe)
            batch.put("meta", keys.applied_key(shard), effect.wipe.seq.to_bytes(8, "big"))
        elif epoch != effect.epoch:
            self._put_log_state(batch, shard, effect.epoch, base)

    def install(self, shard: int, effect: Persist) -> None:
        """Replace the copy by a snapshot's files, at once and in the store itself.

        The next fsync makes it durable.
        """
        assert effect.install is not None
        files = msgspec.msgpack.decode(effect.install.state, type=SnapshotFiles)
        batch = self._store.batch()
        batch.put("meta", keys.install_key(shard), b"1")
        self._clear(batch, shard, written=True)
        self._store.write(batch)
        # Ingested files are durable at once, so the deletion before them has to be durable too.
        self._store.sync()
        for family, paths in (("state", files.state), ("replies", files.replies)):
            if paths:
                self._store.ingest(family, [Path(path) for path in paths])
        batch = self._store.batch()
        position = effect.install.position
        self._times[shard] = Times(effect.install.shard_ms, effect.install.cluster_time)
        self._put_log_state(batch, shard, effect.epoch, position)
        batch.put("meta", keys.applied_key(shard), position.seq.to_bytes(8, "big"))
        batch.put("meta", keys.chain_key(shard), _encode_chain(effect.install.chain))
        batch.delete("meta", keys.install_key(shard))
        self._store.write(batch)

    def has_rows(self, shard: int, family: str) -> bool:
        """Return whether the store has rows of a shard, assigned to this node or not."""
        return self._store.any(
            family, keys.shard_prefix(shard), keys.after(keys.shard_prefix(shard))
        )

    def discard(self, state: bytes) -> None:
        """Remove the files of a snapshot that was not installed."""
        files = msgspec.msgpack.decode(state, type=SnapshotFiles)
        remove_files(Path(path) for path in (*files.state, *files.replies))

    def base(self, shard: int) -> Position:
        """Return the position before the log of a shard, as of the newest batch."""
        return self._written.get(shard, _NOTHING)[1]

    def apply(self, batch: Batch, shard: int, entry: LogEntry) -> None:
        """Put a committed entry into the state."""
        changes = decode_changes(entry.data)
        self.stage(batch, shard, changes.rows, changes.replies, changes.forgotten)

    def stage(
        self, batch: Batch, shard: int, rows: Rows, replies: Replies, forgotten: Forgotten | None
    ) -> None:
        """Put the changes of a committed entry, not encoded, into the state."""
        stage_changes(self._store, batch, shard, rows, replies, forgotten)

    def apply_many(self, batch: Batch, shard: int, entries: Iterable[LogEntry]) -> None:
        """Put committed entries into the state. Of several writes to one row, put the last."""
        latest: dict[bytes, bytes | None] = {}
        for entry in entries:
            changes = decode_changes(entry.data)
            for key, value in changes.rows:
                if type(value) is Until:
                    stage_rows(batch, latest.items())
                    latest.clear()
                    stage_rows(batch, [(key, value)])
                else:
                    latest[key] = value  # type: ignore[assignment]
            batch.put_all("replies", changes.replies)
            if changes.forgotten is not None:
                stage_forgotten(self._store, batch, shard, changes.forgotten, late=True)
        stage_rows(batch, latest.items())

    def times(self, shard: int, entries: Iterable[LogEntry] = ()) -> Times:
        """Return the newest times in these entries.

        Without any, return the times of the newest entry that was applied when the log was last
        shortened.
        """
        newest = self._times.get(shard, Times())
        for entry in entries:
            header = read_header(entry.data)
            newest = Times(
                max(newest.shard_ms, header.shard_ms), max(newest.cluster_time, header.cluster_time)
            )
        return newest

    def keep_high(self, batch: Batch, shard: int, high: int) -> None:
        """Keep a copy's high-water in a row of its own."""
        batch.put("meta", keys.high_key(shard), high.to_bytes(8, "big"))

    def shorten(
        self,
        batch: Batch,
        shard: int,
        base: Position,
        applied: LogEntry,
        chain: Iterable[Term] = (),
    ) -> None:
        """Let the log begin behind `base`.

        `applied` is the last applied entry, `chain` the copy's chain.
        """
        epoch, before = self._written[shard]
        self._times[shard] = self.times(shard, [applied])
        batch.put("meta", keys.applied_key(shard), applied.seq.to_bytes(8, "big"))
        batch.put("meta", keys.chain_key(shard), _encode_chain(until(chain, base.seq)))
        batch.delete_range(
            "log", keys.log_key(shard, before.seq), keys.log_key(shard, base.seq + 1)
        )
        self._put_log_state(batch, shard, epoch, base)

    def _put_log_state(self, batch: Batch, shard: int, epoch: int, base: Position) -> None:
        batch.put(
            "meta", keys.log_state_key(shard), encode_log_state(epoch, base, self._times.get(shard))
        )
        self._written[shard] = epoch, base

    def _clear(self, batch: Batch, shard: int, written: bool = False) -> None:
        """Delete all rows of a shard. `written`: no other batch has staged rows of it."""
        start = keys.shard_prefix(shard)
        end = keys.after(start) or start + b"\xff" * 9
        for family in ("state", "replies", "log"):
            # Delete only ranges that have rows: an empty deletion would obstruct the ingestion of
            # files. (`any` does not see staged rows.)
            if not written or self._store.any(family, start, end):
                batch.delete_range(family, start, end)
        for key in _OF_COPY:
            batch.delete("meta", key(shard))

    @staticmethod
    def _log_end(shard: int) -> bytes:
        return keys.log_key(shard, 2**64 - 1)
