"""The data of a log entry: its header, and its changes to the shard. Pure.

docs/reference/format.md has the layout.

The data of an entry is a header, which the owner stamps when the entry closes, and a body. The
first entry of an owner's term changes nothing: its body is the nonce of the assignment that began
the term. Changes are absolute (put this, delete that), so an entry may be applied twice.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

import msgspec

TERM = 0x01
"""Flag of the first entry of a term."""

_header = Struct(">BQQ")
HEADER_BYTES = _header.size
_nonce = Struct(">Q")


class Header(NamedTuple):
    """The header of an entry. `shard_ms`: the shard's time (see `holdfast_node.log.shards`).
    `cluster_time`: a hybrid stamp of 48 bits of ms and a counter of 16 bits.

    Both are 0 in the first entry of a term: its times are those of the entry before it.
    """

    flags: int
    shard_ms: int
    cluster_time: int


class Until(msgspec.Struct, frozen=True, array_like=True):
    """A deletion in place of a value: of every key from the row's own up to `end`, without
    `end`."""

    end: bytes


class Forgotten(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The replies that a shard has forgotten: for each class all buckets below a number. `newest`:
    the newest forgotten id of the class whose ids tell a time."""

    timed: int
    day: int
    newest: bytes

    def merged(self, other: Forgotten) -> Forgotten:
        """Return both together. A forgotten reply never comes back."""
        return Forgotten(
            max(self.timed, other.timed), max(self.day, other.day), max(self.newest, other.newest)
        )


NOTHING_FORGOTTEN = Forgotten(0, 0, b"")
encode_forgotten = msgspec.msgpack.Encoder().encode
decode_forgotten = msgspec.msgpack.Decoder(Forgotten).decode


Rows = list[tuple[bytes, bytes | Until | None]]
"""Changes of state in order: (key, value) puts, (key, None) deletes, (start, Until(end)) deletes a
range."""
Replies = list[tuple[bytes, bytes]]


class Changes(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The body of an entry. A later version adds fields at the end, with defaults."""

    rows: Rows
    replies: Replies
    forgotten: Forgotten | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Changes).decode


def encode_changes(
    rows: Rows,
    replies: Replies,
    forgotten: Forgotten | None = None,
    shard_ms: int = 0,
    cluster_time: int = 0,
) -> bytes:
    """Return the data of an entry that changes something."""
    return _header.pack(0, shard_ms, cluster_time) + _encode((rows, replies, forgotten))


def decode_changes(data: bytes) -> Changes:
    """Return the changes of an entry; the first entry of a term has none."""
    if data[0] & TERM:
        return _NOTHING
    return _decode(memoryview(data)[HEADER_BYTES:])


_NOTHING = Changes([], [])


def term_data(nonce: int) -> bytes:
    """Return the data of the first entry of a term. `nonce`: that of the assignment that began the
    term."""
    return _header.pack(TERM, 0, 0) + _nonce.pack(nonce)


def is_term(data: bytes) -> bool:
    """Return whether these are the data of the first entry of a term."""
    return bool(data[0] & TERM)


def nonce_of(data: bytes) -> int:
    """Return the nonce in the data of the first entry of a term."""
    return int(_nonce.unpack_from(data, HEADER_BYTES)[0])


def read_header(data: bytes) -> Header:
    """Return the header of an entry's data."""
    return Header(*_header.unpack_from(data))
