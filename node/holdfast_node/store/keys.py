"""Every key in the store, encoded and decoded in pairs. Pure.

Column families and their keys (numbers big-endian, so that byte order is number order):

    state     shard u16 | kind 00 01 | key 00 01 | record type u8 | the record's own key     one object is one contiguous range
              shard u16 | 00 | index u8 | what the index is ordered by               what a shard's owner has to do, see INDEXES
    replies   shard u16 | 00                                        what is forgotten, see `replies.Forgotten`
              shard u16 | 01 | bucket u32 | request id 16 bytes     a bucket is TIMED_BUCKET_MS of the shard's time
              shard u16 | 02 | bucket u32 | request id 16 bytes     the same for ids that tell no time; DAY_BUCKET_MS
    log       shard u16 | seq u64
    meta      names of the directory's facts, and 'position', 'log', 'applied', 'high', 'chain', 'install', 'assignment' + shard u16

docs/reference/format.md names every record and its fields.

A text that is followed by something is written as UTF-8 with 00 as 00 FF, ended by 00 01: no
encoding is a prefix of another, and byte order is text order. (A lone 00 as the end would make "a"
a prefix of "a\\0".)
"""

from __future__ import annotations

from holdfast_cluster.placement.model import EPOCHS_MAX

ROW = 0x10
"""Record type of a user's row in `self.storage`."""

ALARM = 0x20
"""Record type of an alarm of the object; its key is the alarm's name."""

EXPIRES = 0x30
"""Record type of the time at which the whole object expires: u64, Unix time in ms. It has no key of
its own."""

# Indexes of a shard. No kind's name begins with 00, so they lie before all objects.
OUTBOX = 0x01
"""sequence: a notification that is to be delivered"""
DELAYED = 0x02
"""due u64 ms | sequence: one that is to go to the outbox when its time has come"""
ALARMS = 0x03
"""due u64 ms | kind 00 01 | key 00 01 | name: nothing; the alarm itself is a record of
its object"""
LETTERS = 0x04
"""sequence: a dead letter"""
MARKS = 0x05
"""receiver's kind 00 01 | key 00 01 | sender: what the receiver took last from this sender"""
EXPIRY = 0x06
"""due u64 ms | kind 00 01 | key 00 01 | row: nothing. The row has expired by then, or was written
anew. No row: the whole object"""

SEQUENCE_BYTES = 16

NODE_ID = b"node"
CLUSTER_ID = b"cluster"
INCARNATION = b"incarnation"
FORMAT = b"format"
FACTS = b"facts"
"""What the node knows of the cluster beyond assignments; see assignments.py."""

_SHARD_BYTES = 2


def shard_prefix(shard: int) -> bytes:
    """What all keys of a shard begin with, in `state` and `replies`."""
    return shard.to_bytes(_SHARD_BYTES, "big")


def object_prefix(shard: int, kind: str, key: str) -> bytes:
    """What all records of an object begin with."""
    return shard_prefix(shard) + _text(kind) + _text(key)


def objects_from(shard: int, kind: str, prefix: str) -> bytes:
    """What all records of a kind's objects begin with whose keys begin with a prefix; without a
    kind, where all objects begin."""
    if not kind:
        return shard_prefix(shard) + b"\x01"  # behind the indexes
    return shard_prefix(shard) + _text(kind) + prefix.encode().replace(b"\0", b"\0\xff")


def split_object(raw: bytes) -> tuple[int, str, str, bytes]:
    """The shard, kind and key of a key in `state`, and the rest: record type and the record's own
    key."""
    kind, at = _read_text(raw, _SHARD_BYTES)
    key, at = _read_text(raw, at)
    return int.from_bytes(raw[:_SHARD_BYTES], "big"), kind, key, raw[at:]


def row_prefix(shard: int, kind: str, key: str) -> bytes:
    """What the user's rows of an object begin with; the row's key follows as plain UTF-8."""
    return object_prefix(shard, kind, key) + bytes([ROW])


def alarm_prefix(shard: int, kind: str, key: str) -> bytes:
    """What the alarms of an object begin with; the alarm's name follows as plain UTF-8."""
    return object_prefix(shard, kind, key) + bytes([ALARM])


def expiry_key(shard: int, kind: str, key: str) -> bytes:
    """Where it is kept when an object expires."""
    return object_prefix(shard, kind, key) + bytes([EXPIRES])


def index_prefix(shard: int, index: int) -> bytes:
    """What all rows of one of a shard's indexes begin with."""
    return shard.to_bytes(_SHARD_BYTES, "big") + bytes([0, index])


INDEX_PREFIX_BYTES = _SHARD_BYTES + 2


def sequence(epoch: int, number: int) -> bytes:
    """A place in the order of what a shard sends: grows with the epoch, and within it. The 16 bits
    above the epoch are kept free."""
    assert epoch < EPOCHS_MAX
    return epoch.to_bytes(8, "big") + number.to_bytes(8, "big")


def due_key(shard: int, index: int, due_ms: int, rest: bytes) -> bytes:
    """A row of an index that is ordered by time."""
    return index_prefix(shard, index) + due_ms.to_bytes(8, "big") + rest


def read_due_key(raw: bytes) -> tuple[int, bytes]:
    """When a row of such an index is due, and the rest of its key."""
    return (
        int.from_bytes(raw[INDEX_PREFIX_BYTES : INDEX_PREFIX_BYTES + 8], "big"),
        raw[INDEX_PREFIX_BYTES + 8 :],
    )


def ident(kind: str, key: str) -> bytes:
    """An object's name as a part of a key."""
    return _text(kind) + _text(key)


def read_ident(raw: bytes) -> tuple[str, str, bytes]:
    """The kind and key that a part of a key begins with, and the rest."""
    kind, at = _read_text(raw, 0)
    key, at = _read_text(raw, at)
    return kind, key, raw[at:]


def mark_key(shard: int, kind: str, key: str, sender: bytes) -> bytes:
    """Where it is kept what an object took last from a sender (its ident)."""
    return index_prefix(shard, MARKS) + ident(kind, key) + sender


# Classes of kept replies.
FORGOTTEN = 0x00
TIMED = 0x01
DAY = 0x02


def forgotten_key(shard: int) -> bytes:
    """Where a shard says which kept replies are gone."""
    return shard.to_bytes(_SHARD_BYTES, "big") + bytes([FORGOTTEN])


def reply_bucket(shard: int, kept: int, bucket: int) -> bytes:
    """What the keys of all kept replies of a class and bucket begin with; the request
    id follows."""
    return shard.to_bytes(_SHARD_BYTES, "big") + bytes([kept]) + bucket.to_bytes(4, "big")


REPLY_BUCKET_BYTES = _SHARD_BYTES + 1 + 4


def position_key(shard: int) -> bytes:
    return b"position" + shard_prefix(shard)


def log_key(shard: int, seq: int) -> bytes:
    return shard.to_bytes(_SHARD_BYTES, "big") + seq.to_bytes(8, "big")


def read_log_key(raw: bytes) -> int:
    """The seq of a key in `log`."""
    return int.from_bytes(raw[_SHARD_BYTES:], "big")


def log_state_key(shard: int) -> bytes:
    """Where a copy's epoch and the position before its log are kept."""
    return b"log" + shard_prefix(shard)


def applied_key(shard: int) -> bytes:
    """Where the seq that a copy's state is at is kept."""
    return b"applied" + shard_prefix(shard)


def high_key(shard: int) -> bytes:
    """Where a copy's high-water is kept while no entry comes that could carry it."""
    return b"high" + shard_prefix(shard)


def chain_key(shard: int) -> bytes:
    """Where the terms of the entries are kept that a copy's log does not hold any more."""
    return b"chain" + shard_prefix(shard)


def install_key(shard: int) -> bytes:
    """There while a copy is being replaced by a snapshot: its state is neither the old nor the new
    one."""
    return b"install" + shard_prefix(shard)


def assignment_key(shard: int) -> bytes:
    """Where the newest assignment of a shard that the node has seen is kept, whether it has a copy
    or not."""
    return b"assignment" + shard_prefix(shard)


def read_assignment_key(raw: bytes) -> int:
    """The shard of such a key."""
    return int.from_bytes(raw[-_SHARD_BYTES:], "big")


def encode_position(epoch: int, seq: int) -> bytes:
    return epoch.to_bytes(8, "big") + seq.to_bytes(8, "big")


def decode_position(raw: bytes) -> tuple[int, int]:
    return int.from_bytes(raw[:8], "big"), int.from_bytes(raw[8:16], "big")


def after(prefix: bytes) -> bytes | None:
    """The smallest key after all that begin with `prefix`; None when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _text(value: str) -> bytes:
    return value.encode().replace(b"\0", b"\0\xff") + b"\0\x01"


def _read_text(raw: bytes, at: int) -> tuple[str, int]:
    end = raw.index(b"\0", at)
    while raw[end + 1 : end + 2] == b"\xff":
        end = raw.index(b"\0", end + 2)
    return raw[at:end].replace(b"\0\xff", b"\0").decode(), end + 2
