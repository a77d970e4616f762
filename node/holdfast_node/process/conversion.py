"""Conversion of a data directory of format 1, when the node starts.

docs/reference/format.md describes the changes.

Each step can be interrupted and begun again, because converted rows differ in form from old ones.
The directory's format is raised on disk last.
"""

from __future__ import annotations

import logging
from itertools import islice
from struct import Struct

import msgspec

from holdfast_node.log.changes import Replies, Rows, encode_changes, term_data
from holdfast_node.objects.responses import LEGACY_CHECKSUM_BYTES, LEGACY_IDENTITY
from holdfast_node.replication.copies import encode_log_state, encode_record
from holdfast_node.replication.core.chain import Term
from holdfast_node.replication.core.events import LogEntry, Position
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 10_000
_OLD_LOG_STATE = Struct(">QQQ")
_OLD_TIMED_BYTES = 2 + 16
_OLD_KEYED = 0xFF
_MARK_TIME = slice(keys.SEQUENCE_BYTES, keys.SEQUENCE_BYTES + 8)
_NO_TIME = bytes(8)
_changes = msgspec.msgpack.Decoder(tuple[Rows, Replies])


def convert(store: Store) -> None:
    """Convert a directory of format 1 to format 2. A shard's time begins at 0, so kept replies and
    marks are kept for their full time again."""
    replies = _convert_replies(store)
    marks = _convert_marks(store)
    entries = _convert_logs(store)
    store.sync()
    log.warning(
        "the data directory has format 2 now: %d kept replies, %d marks, %d entries converted",
        replies,
        marks,
        entries,
    )


def _convert_replies(store: Store) -> int:
    done = 0
    rows = store.scan_now("replies", b"", None)
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        batch = store.batch()
        for key, value in part:
            if (new := _reply(key, value)) is not None:
                batch.put("replies", *new)
                batch.delete("replies", key)
                done += 1
        store.write(batch)
    return done


def _reply(key: bytes, value: bytes) -> tuple[bytes, bytes] | None:
    """Return the new row of a kept reply; None if the row has format 2 already."""
    shard, rest = int.from_bytes(key[:2], "big"), key[2:]
    if len(key) == _OLD_TIMED_BYTES:
        kept, request_id = keys.TIMED, rest
    elif rest[0] == _OLD_KEYED:
        kept, request_id = keys.DAY, rest[5:]
    else:
        return None
    checksum, result = value[:LEGACY_CHECKSUM_BYTES], value[LEGACY_CHECKSUM_BYTES:]
    return (
        keys.reply_bucket(shard, kept, 0) + request_id,
        LEGACY_IDENTITY + checksum + bytes(8) + _NO_TIME + b"\0" + result,
    )


def _convert_marks(store: Store) -> int:
    """Set the time in all marks to 0, because it is the shard's time from now on. Return the number
    of marks."""
    done = 0
    shards = {
        int.from_bytes(key[-2:], "big")
        for name in (b"log", b"position")
        for key, _ in store.scan("meta", name, keys.after(name))
    }
    for shard in sorted(shards):
        prefix = keys.index_prefix(shard, keys.MARKS)
        rows = store.scan_now("state", prefix, keys.after(prefix))
        while part := list(islice(rows, _ROWS_AT_ONCE)):
            batch = store.batch()
            for key, value in part:
                batch.put("state", key, _mark(value))
            store.write(batch)
            done += len(part)
    return done


def _mark(value: bytes) -> bytes:
    return value[: _MARK_TIME.start] + _NO_TIME


def _convert_logs(store: Store) -> int:
    done = 0
    prefix = keys.log_state_key(0)[:-2]
    for key, value in list(store.scan("meta", prefix, keys.after(prefix))):
        if len(value) != _OLD_LOG_STATE.size:
            continue
        shard = int.from_bytes(key[len(prefix) :], "big")
        epoch, base_epoch, base_seq = _OLD_LOG_STATE.unpack(value)
        batch = store.batch()
        for raw_key, raw in store.scan(
            "log", keys.log_key(shard, 0), keys.after(keys.shard_prefix(shard))
        ):
            entry = LogEntry(
                int.from_bytes(raw[:8], "big"), keys.read_log_key(raw_key), _entry_data(raw[8:])
            )
            batch.put("log", raw_key, encode_record(entry, 0))
            done += 1
        batch.put("meta", key, encode_log_state(epoch, Position(base_epoch, base_seq)))
        if base_seq:
            batch.put(
                "meta", keys.chain_key(shard), msgspec.msgpack.encode([Term(base_epoch, 0, 1)])
            )
        store.write(batch)
    return done


def _entry_data(data: bytes) -> bytes:
    if not data:
        return term_data(0)
    rows, replies = _changes.decode(data)
    marks = bytes([0, keys.MARKS])
    rows = [
        (key, _mark(value) if key[2:4] == marks and isinstance(value, bytes) else value)
        for key, value in rows
    ]
    return encode_changes(rows, [_reply(key, value) or (key, value) for key, value in replies])
