"""Every key in the store, encoded and decoded in pairs. Pure.

Column families and their keys (numbers big-endian, so that byte order is number order):

state     shard u16 | kind 00 01 | key 00 01 | record type u8 | the record's own key     one object is one contiguous range
              shard u16 | 00 | index u8 | the order of the index                     an index of the shard, see below
    replies   shard u16 | 00                                        which replies are forgotten, see `Forgotten`
              shard u16 | 01 | bucket u32 | request id 16 bytes     a bucket is TIMED_BUCKET_MS of the shard's time
              shard u16 | 02 | bucket u32 | request id 16 bytes     the same for ids that tell no time; DAY_BUCKET_MS
    log       shard u16 | seq u64
    meta      names of the directory's facts, and 'position', 'log', 'applied', 'high', 'chain', 'install', 'assignment' + shard u16

docs/reference/format.md names every record and its fields.

A text inside a key is written as UTF-8 with 00 as 00 FF, and ended by 00 01. So no encoding is a
prefix of another, and byte order is text order. (A lone 00 as the end would make "a" a prefix of
"a\\0".)
"""

from __future__ import annotations

from holdfast_cluster.placement.model import EPOCHS_MAX

ROW = 0x10
"""Record type of a user's row in `self.storage`."""

ALARM = 0x20
"""Record type of an alarm of the object; its key is the alarm's name."""

EXPIRES = 0x30
"""Record type of the time at which the whole object expires: u64, Unix time in ms. The record has
no key of its own."""

# Indexes of a shard. No kind's name begins with 00, so they lie before all objects.
OUTBOX = 0x01
"""sequence: a notification that waits to be delivered"""
DELAYED = 0x02
"""due u64 ms | sequence: a notification that goes to the outbox when its time has come"""
ALARMS = 0x03
"""due u64 ms | kind 00 01 | key 00 01 | name: empty; the alarm itself is a record of its object"""
DEAD_LETTERS = 0x04
"""sequence: a dead letter"""
MARKS = 0x05
"""receiver's kind 00 01 | key 00 01 | sender: the last sequence that the receiver took from this
sender"""
EXPIRY = 0x06
"""due u64 ms | kind 00 01 | key 00 01 | row: empty. The row has expired by then, or was written
anew. Without `row`: the whole object"""

SEQUENCE_BYTES = 16

NODE_ID = b"node"
CLUSTER_ID = b"cluster"
INCARNATION = b"incarnation"
FORMAT = b"format"
FACTS = b"facts"
"""The node's facts of the cluster beyond assignments; see assignments.py."""

_SHARD_BYTES = 2


def shard_prefix(shard: int) -> bytes:
    """Return the prefix of all keys of a shard, in `state` and `replies`."""
    return shard.to_bytes(_SHARD_BYTES, "big")


def object_prefix(shard: int, kind: str, key: str) -> bytes:
    """Return the prefix of all records of an object."""
    return shard_prefix(shard) + _text(kind) + _text(key)


def objects_from(shard: int, kind: str, prefix: str) -> bytes:
    """Return the prefix of the records of all objects of `kind` whose key begins with `prefix`.
    Without a kind, return the place where all objects begin."""
    if not kind:
        return shard_prefix(shard) + b"\x01"  # behind the indexes
    return shard_prefix(shard) + _text(kind) + prefix.encode().replace(b"\0", b"\0\xff")


def split_object(raw: bytes) -> tuple[int, str, str, bytes]:
    """Return the shard, kind and key in a key of `state`, and the rest: record type and the
    record's own key."""
    kind, at = _read_text(raw, _SHARD_BYTES)
    key, at = _read_text(raw, at)
    return int.from_bytes(raw[:_SHARD_BYTES], "big"), kind, key, raw[at:]


def row_prefix(shard: int, kind: str, key: str) -> bytes:
    """Return the prefix of the user's rows of an object; the row's key follows as plain UTF-8."""
    return object_prefix(shard, kind, key) + bytes([ROW])


def alarm_prefix(shard: int, kind: str, key: str) -> bytes:
    """Return the prefix of the alarms of an object; the alarm's name follows as plain UTF-8."""
    return object_prefix(shard, kind, key) + bytes([ALARM])


def expiry_key(shard: int, kind: str, key: str) -> bytes:
    """Return the key of the time at which an object expires."""
    return object_prefix(shard, kind, key) + bytes([EXPIRES])


def index_prefix(shard: int, index: int) -> bytes:
    """Return the prefix of all rows of an index of a shard."""
    return shard.to_bytes(_SHARD_BYTES, "big") + bytes([0, index])


INDEX_PREFIX_BYTES = _SHARD_BYTES + 2


def sequence(epoch: int, number: int) -> bytes:
    """Return a place in the order of the notifications that a shard sends. It grows with the epoch,
    and with `number` within the epoch. The 16 bits above the epoch are kept free."""
    assert epoch < EPOCHS_MAX
    return epoch.to_bytes(8, "big") + number.to_bytes(8, "big")


def due_key(shard: int, index: int, due_ms: int, rest: bytes) -> bytes:
    """Return the key of a row in an index that is ordered by time."""
    return index_prefix(shard, index) + due_ms.to_bytes(8, "big") + rest


def read_due_key(raw: bytes) -> tuple[int, bytes]:
    """Return when a row of an index by time is due, in ms, and the rest of its key."""
    return (
        int.from_bytes(raw[INDEX_PREFIX_BYTES : INDEX_PREFIX_BYTES + 8], "big"),
        raw[INDEX_PREFIX_BYTES + 8 :],
    )


def ident(kind: str, key: str) -> bytes:
    """Return an object's kind and key as a part of a key."""
    return _text(kind) + _text(key)


def read_ident(raw: bytes) -> tuple[str, str, bytes]:
    """Return the kind and key at the beginning of a part of a key, and the rest."""
    kind, at = _read_text(raw, 0)
    key, at = _read_text(raw, at)
    return kind, key, raw[at:]


def mark_key(shard: int, kind: str, key: str, sender: bytes) -> bytes:
    """Return the key of an object's mark: the last sequence that it took from `sender` (an
    ident)."""
    return index_prefix(shard, MARKS) + ident(kind, key) + sender


# Classes of kept replies.
FORGOTTEN = 0x00
TIMED = 0x01
DAY = 0x02


def forgotten_key(shard: int) -> bytes:
    """Return the key of the row that says which kept replies of a shard are gone."""
    return shard.to_bytes(_SHARD_BYTES, "big") + bytes([FORGOTTEN])


def reply_bucket(shard: int, kept: int, bucket: int) -> bytes:
    """Return the prefix of the kept replies of class `kept` in a bucket; the request id follows."""
    return shard.to_bytes(_SHARD_BYTES, "big") + bytes([kept]) + bucket.to_bytes(4, "big")


REPLY_BUCKET_BYTES = _SHARD_BYTES + 1 + 4


def position_key(shard: int) -> bytes:
    return b"position" + shard_prefix(shard)


def log_key(shard: int, seq: int) -> bytes:
    return shard.to_bytes(_SHARD_BYTES, "big") + seq.to_bytes(8, "big")


def read_log_key(raw: bytes) -> int:
    """Return the seq in a key of `log`."""
    return int.from_bytes(raw[_SHARD_BYTES:], "big")


def log_state_key(shard: int) -> bytes:
    """Return the key of a copy's epoch and the position before its log."""
    return b"log" + shard_prefix(shard)


def applied_key(shard: int) -> bytes:
    """Return the key of the seq up to which a copy's state is applied."""
    return b"applied" + shard_prefix(shard)


def high_key(shard: int) -> bytes:
    """Return the key of a copy's high-water. It is kept there while no entry comes that could carry
    it."""
    return b"high" + shard_prefix(shard)


def chain_key(shard: int) -> bytes:
    """Return the key of the copy's chain: the terms of entries that its log does not hold any
    more."""
    return b"chain" + shard_prefix(shard)


def install_key(shard: int) -> bytes:
    """Return the key of a row that exists while a snapshot replaces a copy. Until it is gone the
    copy's state is neither the old nor the new one."""
    return b"install" + shard_prefix(shard)


def assignment_key(shard: int) -> bytes:
    """Return the key of the newest assignment of a shard that the node has seen. The node keeps it
    with or without a copy of the shard."""
    return b"assignment" + shard_prefix(shard)


def read_assignment_key(raw: bytes) -> int:
    """Return the shard in an assignment key."""
    return int.from_bytes(raw[-_SHARD_BYTES:], "big")


def encode_position(epoch: int, seq: int) -> bytes:
    return epoch.to_bytes(8, "big") + seq.to_bytes(8, "big")


def decode_position(raw: bytes) -> tuple[int, int]:
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:16], "big")


def after(prefix: bytes) -> bytes | None:
    """Return the smallest key after all that begin with `prefix`; None if there is no such key."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _text(value: str) -> bytes:
    return value.encode().replace(b"\0", b"\0\xff") + b"\0\x01"


def _read_text(raw: bytes, at: int) -> tuple[str, int]:
    end = raw.index(b"\0", at)
    while raw[end + 1 : end + 2] == b"\xff":
        end = raw.index(b"\0", end + 2)
    return raw[at:end].replace(b"\0\xff", b"\0").decode(), end + 2
