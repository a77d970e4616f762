"""Request ids: UUIDv7 (RFC 9562), so that they sort by the time of their making and name the bucket they are kept in."""

from __future__ import annotations

import os
import time

REQUEST_ID_BYTES = 16


class RequestIds:
    """Makes request ids: unique among all makers by 62 random bits, increasing within one maker.

    Layout: 48 bits of Unix time in ms | 4 bits version | 12 bits counter | 2 bits variant | 62 bits that start at random
    and step by a random odd number.
    """

    def __init__(self) -> None:
        self._low = int.from_bytes(os.urandom(8), "big") >> 2
        self._step = (int.from_bytes(os.urandom(4), "big") << 1) | 1
        self._ms = 0
        self._count = 0

    def next(self) -> bytes:
        """A new id, 16 bytes. Ids of one maker increase, also when the clock steps back or a ms holds over 4,095 of them."""
        ms = time.time_ns() // 1_000_000
        if ms > self._ms:
            self._ms = ms
            self._count = 0
        else:
            self._count += 1
            if self._count > 0xFFF:
                self._ms += 1
                self._count = 0
        self._low = (self._low + self._step) & 0x3FFF_FFFF_FFFF_FFFF
        return ((self._ms << 80) | (0x7000 | self._count) << 64 | 0x8000_0000_0000_0000 | self._low).to_bytes(16, "big")


def id_time_ms(request_id: bytes) -> int:
    """The Unix time in ms at which a request id was made, by its maker's clock."""
    return int.from_bytes(request_id[:6], "big")
