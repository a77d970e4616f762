"""Request ids: UUIDv7 (RFC 9562), so that they sort by the time of their making and name the bucket
they are kept in."""

from __future__ import annotations

import base64
import os
import struct
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b

REQUEST_ID_BYTES = 16

_pack = struct.Struct(">QQ").pack


TIME_METADATA = "holdfast-time"
"""The gRPC metadata in which a gateway tells the cluster's time, Unix time in ms: in each session,
and in calls that bring it."""

KEYED = 0xFF
"""What the ids of requests with an idempotency key begin with: they are made of it instead of a
time. No time begins so."""
EFFECT = 0xFE
"""What the ids begin with of what objects and operators cause: notifications, alarms, deletions.
Gateways take none from callers: nobody can be in the way of an effect by guessing its id.

Replies under ids that tell no time, all from EFFECT on, are kept for a day.
"""

IDEMPOTENCY_KEY_BYTES_MAX = 255
_TIME_CHARS_MAX = 14  # the year 5138


class RequestIds:
    """Makes request ids that differ in every process, thread and interpreter, and that others
    cannot foretell: whoever knew the id of a call that is about to be made could have it refused,
    or joined to a call of their own.

    Layout: 48 bits of Unix time in ms | 4 bits version | 12 bits counter | 2 bits variant | 62
    random bits.

    The random bits alone make an id unique, and the kernel gives them for each id anew. Bits that
    are drawn ahead are copied by `fork`, and by a snapshot of the machine: two calls then have one
    id, and one of them never takes effect.
    """

    __slots__ = ("_clock", "_count", "_ms")

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        """`clock`: Unix time in ms."""
        self._clock = clock or _wall_ms
        self._ms = 0
        self._count = 0

    def follow(self, now_ms: int) -> None:
        """Make ids of a time that is `now_ms` now, and goes on with the monotonic clock: the wall
        clock may be wrong."""
        began_ms = now_ms - time.monotonic_ns() // 1_000_000
        self._clock = lambda: began_ms + time.monotonic_ns() // 1_000_000
        self._ms = 0  # what the wall clock showed before may be far ahead

    def next(self) -> bytes:
        """Return a new id, 16 bytes. The ids of one thread increase, also when the clock steps back
        or a ms holds over 4,095.

        Not when `follow` moves the clock.
        """
        ms = self._clock()
        count = 0
        if ms <= self._ms:
            ms = self._ms
            count = self._count + 1
            if count > 0xFFF:
                ms += 1
                count = 0
        self._ms, self._count = ms, count
        low = int.from_bytes(os.urandom(8), "big")
        return _pack(ms << 16 | 0x7000 | count, 0x8000_0000_0000_0000 | low & 0x3FFF_FFFF_FFFF_FFFF)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def told_time(metadata: Iterable[tuple[str, str | bytes]] | None) -> int | None:
    """The time in a gateway's metadata; None when there is none that could be true."""
    told = next((str(value) for name, value in metadata or () if name == TIME_METADATA), "")
    return int(told) if told.isdecimal() and len(told) <= _TIME_CHARS_MAX else None


def id_prefix(time_ms: int) -> bytes:
    """What the ids made at this Unix time in ms begin with: ids compare with it as their
    times do."""
    return max(0, time_ms).to_bytes(6, "big")


def effect_id(*parts: bytes) -> bytes:
    """The request id of an effect that is known by other things than a time: the same for the same
    parts."""
    return bytes([EFFECT]) + _digest(parts)


def _digest(parts: tuple[bytes, ...]) -> bytes:
    digest = blake2b(digest_size=REQUEST_ID_BYTES - 1)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def idempotent_id(kind: str, key: str, idempotency_key: str) -> bytes:
    """The request id of a call to an object under a key of the caller's own. Raises ValueError for
    a key that is none."""
    raw = idempotency_key.encode()
    if not 0 < len(raw) <= IDEMPOTENCY_KEY_BYTES_MAX:
        raise ValueError(
            f"an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, this one {len(raw)}"
        )
    return bytes([KEYED]) + _digest((b"call", kind.encode(), key.encode(), raw))


_PLACE_BYTES = 18
_LETTER_CHARS = 29


def letter_id(place: bytes) -> str:
    """How operators name a dead letter. The text says nothing to them: where dead letters lie may
    change."""
    return base64.b32hexencode(place).decode().rstrip("=").lower()


def letter_place(text: str) -> bytes:
    """The inverse of `letter_id`: a dead letter's place among all of them. Raises ValueError."""
    try:
        if len(text) != _LETTER_CHARS:
            raise ValueError
        place = base64.b32hexdecode(text.upper() + "===")
        if len(place) != _PLACE_BYTES:
            raise ValueError
        return place
    except ValueError:
        raise ValueError(
            f"{text[:100]!r} is not the id of a dead letter: `holdfast deadletters list` shows ids"
        ) from None


_ids = RequestIds()


def new_key() -> str:
    """A new object key, which nobody can guess, and which no other object has: 26 letters and
    digits of 128 random bits."""
    return base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()


def new_request_id() -> bytes:
    """A request id for a call that its caller may send again: `client.get(Counter, "a",
    request_id=new_request_id())`."""
    return _ids.next()
