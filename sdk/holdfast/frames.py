"""Batching: everything that waits for a stream leaves in one message, and nothing waits for a
timer.

While a write is under way the next batch gathers; under load batches grow by themselves, and a lone
call leaves at once.

Where several streams flow into one, a frame that leaves for each that comes would make frames ever
smaller: three nodes that answer a few calls each would cost a gateway three times the frames of
one. So a small batch lets the event loop go round while it grows by that: what has arrived already
joins it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

M = TypeVar("M")

FRAME_BYTES_MAX = 1 << 20
"""Batches are cut here: a larger message would hold the event loop of its receiver too long."""

_FRAME_MESSAGES_MAX = 128
"""Also cut here: the peer works on the first frame while the next is packed, so client, gateway and
node are busy at once."""

_HALVE_FROM = 48

_ROUNDS_MAX = 8
"""How often the loop goes round, at most, for a batch below `_HALVE_FROM` that grows."""

BACKLOG_BYTES_MAX = 16 << 20
"""Above it `FrameWriter.drained` waits: the side that produces reads no more until its peer has
read."""


ENVELOPE_BYTES_MAX = 256 << 10
"""A call without its arguments: names, metadata, chain."""

MESSAGES_MAX = 1024
"""What a receiver takes in one frame. Empty messages have 2 bytes: no limit in bytes is low enough
for them."""

# of fields 1 and 2, as messages or packed; the other two are long forms of the same
_TAGS = (
    b"\x0a",
    b"\x12",
    b"\x8a",
    b"\x92",
)
_FIELDS_MAX = 2 * MESSAGES_MAX
_VARINT_BYTES_MAX = 10


def too_many(frame: bytes) -> bool:
    """Whether a frame has more fields on its outermost level than calls and cancels may be, or one
    of them has a huge envelope.

    Also whether it cannot be read. Nothing is decoded: what is small, or has few bytes that such
    fields begin with, is not looked at.
    """
    count = frame.count
    if len(frame) <= _ENVELOPE_BYTES and sum([count(tag) for tag in _TAGS]) <= _FIELDS_MAX:
        return False
    at, end = 0, len(frame)
    for _ in range(_FIELDS_MAX):
        if at == end:
            return False
        tag, at = _varint(frame, at)
        length, at = _varint(frame, at)
        begin, at = at, at + length
        if tag & 7 != _LENGTH_DELIMITED or at > end:
            return True
        if length > _ENVELOPE_BYTES and too_wide(frame, begin, at, _CALL_PAYLOAD):
            return True
    return at != end


def too_wide(message: bytes, at: int, end: int, payload: frozenset[int]) -> bool:
    """Whether a call is of more fields, or of more bytes beside its payload, than any call may be,
    or cannot be read.

    A call of 8 MiB of metadata is half a second of decoding. `payload`: the fields that may be
    large.
    """
    beside = 0
    for _ in range(_CALL_FIELDS_MAX):
        if at == end:
            return False
        begin = at
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, at = _varint(message, at)
            at += length
        elif kind == _VARINT:
            _, at = _varint(message, at)
        else:  # the fields of a call have none of the others
            return True
        if tag >> 3 not in payload:
            beside += at - begin
        if at > end or beside > _ENVELOPE_BYTES:
            return True
    return at != end


_VARINT, _LENGTH_DELIMITED = 0, 2
_CALL_PAYLOAD = frozenset((5,))  # `arguments` of Call
_ENVELOPE_BYTES = 2 * ENVELOPE_BYTES_MAX  # nodes add to what gateways have let in
_CALL_FIELDS_MAX = 1 << 16  # more than the smallest metadata in an envelope


def _varint(frame: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends: behind the frame when it does not."""
    value = 0
    for i, byte in enumerate(frame[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    return value, len(frame) + 1


def ends(reader: Any) -> Callable[[asyncio.Task[None]], None]:
    """A done-callback for the task that writes a stream: when it fails, `reader`, a task or a call,
    is cancelled too."""

    def ended(writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and writer.exception() is not None:
            reader.cancel()

    return ended


class FrameWriter(Generic[M]):
    """The sending side of one stream. `pack` makes a frame of messages, `size` estimates a
    message's bytes.

    `in_flight` tells how many messages wait for an answer. When nearly all of them are about to
    leave in one frame, sender and receiver would work in turns, each idle while the other is busy;
    such a queue leaves in halves, and both are busy from then on.
    """

    def __init__(
        self,
        pack: Callable[[list[M]], bytes],
        size: Callable[[M], int],
        in_flight: Callable[[], int] | None = None,
    ) -> None:
        self._pack = pack
        self._size = size
        self._in_flight = in_flight
        self._queue: list[M] = []
        self._backlog_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    @property
    def backlog(self) -> int:
        """Bytes that wait to be written."""
        return self._backlog_bytes

    def push(self, message: M, size: int) -> None:
        """Queue a message of about `size` bytes, the same that `size(message)` tells; it leaves
        with the next frame."""
        self._queue.append(message)
        self._backlog_bytes += size
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def drained(self) -> None:
        """Return at once, or, while more than BACKLOG_BYTES_MAX wait to be sent, when they have
        gone."""
        while self._backlog_bytes > BACKLOG_BYTES_MAX:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write frames until cancelled; what `write` raises ends it."""
        loop = asyncio.get_running_loop()
        while True:
            if not self._queue:
                self._wake = loop.create_future()
                try:
                    await self._wake
                finally:
                    self._wake = None
            for _ in range(_ROUNDS_MAX):
                before = len(self._queue)
                if before >= _HALVE_FROM:
                    break
                await asyncio.sleep(0)
                if len(self._queue) == before:
                    break
            queue, self._queue = self._queue, []
            if self._backlog_bytes <= FRAME_BYTES_MAX and len(queue) < _HALVE_FROM:
                self._backlog_bytes = 0
                await write(self._pack(queue))
            else:
                for frame, size in self._cut(queue):
                    await write(self._pack(frame))
                    self._backlog_bytes -= size
            if self._room is not None and self._backlog_bytes <= BACKLOG_BYTES_MAX:
                self._room.set_result(None)
                self._room = None

    def _cut(self, queue: list[M]) -> list[tuple[list[M], int]]:
        """The frames of a queue, and the bytes of each."""
        messages_max = _FRAME_MESSAGES_MAX
        if self._in_flight is not None and len(queue) * 4 > self._in_flight() * 3:
            messages_max = min(messages_max, (len(queue) + 1) // 2)
        if self._backlog_bytes <= FRAME_BYTES_MAX:  # however they are cut, no frame is too large
            self._backlog_bytes = 0
            return [(queue[i : i + messages_max], 0) for i in range(0, len(queue), messages_max)]
        frames: list[tuple[list[M], int]] = []
        frame: list[M] = []
        total = 0
        for message in queue:
            size = self._size(message)
            if frame and (total + size > FRAME_BYTES_MAX or len(frame) >= messages_max):
                frames.append((frame, total))
                frame, total = [], 0
            frame.append(message)
            total += size
        frames.append((frame, total))
        return frames
