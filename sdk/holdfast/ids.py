"""Request ids: UUIDv7 (RFC 9562). They sort by the time at which they were made. That time also
names the bucket in which a reply is kept.
"""

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
"""The gRPC metadata in which a gateway tells the cluster's time, as Unix time in ms. Gateways send
it in each session, and in answers to calls that carry this metadata.
"""

KEYED = 0xFF
"""The first byte of the ids of requests with an idempotency key. Such an id is made from the key
instead of a time. No id made from a time begins with this byte.
"""
EFFECT = 0xFE
"""The first byte of the ids of effects: notifications, alarms, deletions.

Gateways accept no such ids from callers. So callers cannot block an effect by guessing its id.

Ids from this byte on carry no time. The owner keeps the replies under them for a day.
"""

IDEMPOTENCY_KEY_BYTES_MAX = 255
_TIME_CHARS_MAX = 14  # the year 5138


class RequestIds:
    """Makes request ids that differ in every process, thread and interpreter, and that others
    cannot guess.

    If others could guess the id of a coming call, they could have it refused, or join it to a call
    of their own.

    Layout: 48 bits of Unix time in ms | 4 bits version | 12 bits counter | 2 bits variant | 62
    random bits.

    The random bits alone make an id unique. The kernel gives new ones for each id. Random bits
    drawn in advance would be copied by `fork`, and by a snapshot of the machine. Two calls would
    then have one id, and one of them would never take effect.
    """

    __slots__ = ("_clock", "_count", "_ms")

    def __init__(self, clock: Callable[[], int] | None = None) -> None:
        """`clock` returns Unix time in ms. None: the wall clock."""
        self._clock = clock or _wall_ms
        self._ms = 0
        self._count = 0

    def follow(self, now_ms: int) -> None:
        """Take the time from `now_ms`, and go on with the monotonic clock: the wall clock may be
        wrong.
        """
        began_ms = now_ms - time.monotonic_ns() // 1_000_000
        self._clock = lambda: began_ms + time.monotonic_ns() // 1_000_000
        self._ms = 0  # what the wall clock showed before may be far ahead

    def next(self) -> bytes:
        """Return a new id, 16 bytes.

        The ids of one thread increase, also when the clock steps back or one ms has more than 4,096
        ids. Only `follow` can make the next id smaller.
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
    """Return the time in a gateway's metadata; None if there is none, or it cannot be true."""
    told = next((str(value) for name, value in metadata or () if name == TIME_METADATA), "")
    return int(told) if told.isdecimal() and len(told) <= _TIME_CHARS_MAX else None


def id_prefix(time_ms: int) -> bytes:
    """Return the first bytes of the ids made at this Unix time in ms. Ids compare with these bytes
    as their times do.
    """
    return max(0, time_ms).to_bytes(6, "big")


def effect_id(*parts: bytes) -> bytes:
    """Return the request id of an effect, made from `parts` instead of a time. The same parts give
    the same id.
    """
    return bytes([EFFECT]) + _digest(parts)


def _digest(parts: tuple[bytes, ...]) -> bytes:
    digest = blake2b(digest_size=REQUEST_ID_BYTES - 1)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def idempotent_id(kind: str, key: str, idempotency_key: str) -> bytes:
    """Return the request id of a call to an object under the caller's own idempotency key.

    Raises ValueError if the key does not have 1 to 255 bytes.
    """
    raw = idempotency_key.encode()
    if not 0 < len(raw) <= IDEMPOTENCY_KEY_BYTES_MAX:
        raise ValueError(
            f"an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES_MAX} bytes, this one has"
            f" {len(raw)}"
        )
    return bytes([KEYED]) + _digest((b"call", kind.encode(), key.encode(), raw))


_PLACE_BYTES = 18
_LETTER_CHARS = 29


def dead_letter_id(place: bytes) -> str:
    """Return the text by which operators name a dead letter. The text has no meaning to them: the
    place of dead letters may change.
    """
    return base64.b32hexencode(place).decode().rstrip("=").lower()


def dead_letter_place(text: str) -> bytes:
    """Return the place of a dead letter among all dead letters, from its id.

    Raise ValueError if the text is no such id.
    """
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
    """Return a new object key that cannot be guessed and that no other object has.

    The key has 26 letters and digits, made of 128 random bits.
    """
    return base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()


def new_request_id() -> bytes:
    """Return a request id for a call that you may send again: `client.get(Counter, "a",
    request_id=new_request_id())`.

    The id is 16 bytes, a UUIDv7. Use one id for each effect.
    """
    return _ids.next()
