"""Every key in the store, encoded and decoded in pairs. Pure.

Column families and their keys (numbers big-endian, so that byte order is number order):

    state     shard u16 | kind 00 01 | key 00 01 | record type u8 | the record's own key     one object is one contiguous range
    replies   shard u16 | request id 16 bytes, which begin with the time      what is older than a time is one contiguous range
    log       shard u16 | seq u64
    meta      names of the directory's facts, and 'position', 'log', 'applied', 'install' + shard u16

A text that is followed by something is written as UTF-8 with 00 as 00 FF, ended by 00 01: no encoding is a prefix of another, and
byte order is text order. (A lone 00 as the end would make "a" a prefix of "a\\0".)
"""

from __future__ import annotations

ROW = 0x10
"""Record type of a user's row in `self.storage`."""

NODE_ID = b"node"
CLUSTER_ID = b"cluster"
INCARNATION = b"incarnation"
FORMAT = b"format"

_SHARD_BYTES = 2


def shard_prefix(shard: int) -> bytes:
    """What all keys of a shard begin with, in `state` and `replies`."""
    return shard.to_bytes(_SHARD_BYTES, "big")


def object_prefix(shard: int, kind: str, key: str) -> bytes:
    """What all records of an object begin with."""
    return shard_prefix(shard) + _text(kind) + _text(key)


def split_object(raw: bytes) -> tuple[int, str, str, bytes]:
    """The shard, kind and key of a key in `state`, and the rest: record type and the record's own key."""
    kind, at = _read_text(raw, _SHARD_BYTES)
    key, at = _read_text(raw, at)
    return int.from_bytes(raw[:_SHARD_BYTES], "big"), kind, key, raw[at:]


def row_prefix(shard: int, kind: str, key: str) -> bytes:
    """What the user's rows of an object begin with; the row's key follows as plain UTF-8."""
    return object_prefix(shard, kind, key) + bytes([ROW])


def reply_key(shard: int, request_id: bytes) -> bytes:
    """Also with the beginning of an id: where the replies to requests made since that time begin."""
    return shard.to_bytes(_SHARD_BYTES, "big") + request_id


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


def install_key(shard: int) -> bytes:
    """There while a copy is being replaced by a snapshot: its state is neither the old nor the new one."""
    return b"install" + shard_prefix(shard)


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
