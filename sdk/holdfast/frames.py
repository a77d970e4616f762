"""Batching: all messages that wait for a stream leave in one frame. No message waits for a timer.

While one frame is written the next one gathers. Under load frames grow by themselves, and a lone
call leaves at once.

Where several streams flow into one, a frame for each frame that comes would make frames ever
smaller. With three nodes that answer a few calls each, a gateway would send three times as many
frames as with one node. So the writer of a small batch lets the event loop go round as long as the
batch grows by that: messages that have arrived already join it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sized
from typing import Any, Generic, Protocol, Self, TypeVar

from google.protobuf.message import DecodeError

M = TypeVar("M")

FRAME_BYTES_MAX = 1 << 20
"""A frame is cut at this size: a larger one would hold the event loop of its receiver too long."""

_FRAME_MESSAGES_MAX = 128
"""A frame is also cut at this number of messages: the peer works on the first frame while the next
one is packed. So client, gateway and node are busy at once.
"""

_HALVE_FROM = 48

_ROUNDS_MAX = 8
"""How often the loop goes round at most for a growing batch below `_HALVE_FROM`."""

BACKLOG_BYTES_MAX = 16 << 20
"""Above this backlog `FrameWriter.drained` waits: the producing side reads no more until its peer
has read.
"""


ENVELOPE_BYTES_MAX = 256 << 10
"""The most bytes of a call without its arguments: names, metadata, chain."""

MESSAGES_MAX = 1024
"""The most messages that a receiver accepts in one frame. An empty message has only 2 bytes, so a
limit in bytes would not be low enough.
"""

# Tags of fields 1 and 2, as messages or packed. The last two are long forms of the same tags.
_TAGS = (
    b"\x0a",
    b"\x12",
    b"\x8a",
    b"\x92",
)
_FIELDS_MAX = 2 * MESSAGES_MAX
_VARINT_BYTES_MAX = 10


def too_many(frame: bytes) -> bool:
    """Return whether a receiver must refuse a frame.

    It must if the frame has more fields on its outermost level than there may be calls and cancels,
    if a call has a huge envelope, or if the frame cannot be read. The frame is not decoded. If it
    is small and has few bytes that such fields begin with, it is not looked through.
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


class Calls(Protocol):
    """A message of calls and cancels: `SessionRequest`, or the pipe's."""

    @property
    def calls(self) -> Sized: ...
    @property
    def cancel(self) -> Sized: ...
    @classmethod
    def FromString(cls, serialized: bytes) -> Self: ...


C = TypeVar("C", bound=Calls)


def read_calls(frame: bytes, kind: type[C]) -> C | None:
    """Decode a frame of calls and cancels; return None if a receiver must refuse it."""
    if too_many(frame):
        return None
    try:
        request = kind.FromString(frame)
    except DecodeError:
        return None
    within = len(request.calls) <= MESSAGES_MAX and len(request.cancel) <= MESSAGES_MAX
    return request if within else None


def too_wide(message: bytes, at: int, end: int, payload: frozenset[int]) -> bool:
    """Return whether a call has more fields, or more bytes beside its payload, than a call may
    have, or cannot be read.

    A call with 8 MiB of metadata takes half a second to decode. `payload`: the fields that may be
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
        else:  # no field of a call has another wire type
            return True
        if tag >> 3 not in payload:
            beside += at - begin
        if at > end or beside > _ENVELOPE_BYTES:
            return True
    return at != end


_VARINT, _LENGTH_DELIMITED = 0, 2
_CALL_PAYLOAD = frozenset((5,))  # `arguments` of Call
_ENVELOPE_BYTES = 2 * ENVELOPE_BYTES_MAX  # nodes add to the envelopes that gateways accepted
_CALL_FIELDS_MAX = 1 << 16  # more fields than an envelope of the smallest metadata can have


def _varint(frame: bytes, at: int) -> tuple[int, int]:
    """Return a varint and the position after it. If the varint does not end, the position is behind
    the frame.
    """
    value = 0
    for i, byte in enumerate(frame[at : at + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    return value, len(frame) + 1


def ends(reader: Any) -> Callable[[asyncio.Task[None]], None]:
    """Return a done-callback for the task that writes a stream. If that task fails, the callback
    cancels `reader`, a task or a call.
    """

    def ended(writer: asyncio.Task[None]) -> None:
        if not writer.cancelled() and writer.exception() is not None:
            reader.cancel()

    return ended


class FrameWriter(Generic[M]):
    """The sending side of one stream.

    `pack` makes a frame of messages. `size` estimates the bytes of a message. `in_flight` returns
    how many messages wait for an answer.

    If nearly all of these messages are about to leave in one frame, sender and receiver would work
    in turns: each idle while the other is busy. So the writer sends such a queue in two halves, and
    both sides are busy from then on.
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
        """The bytes that wait to be written."""
        return self._backlog_bytes

    def push(self, message: M, size: int) -> None:
        """Queue a message; it leaves with the next frame. `size` must equal `size(message)`."""
        self._queue.append(message)
        self._backlog_bytes += size
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def drained(self) -> None:
        """Wait until at most BACKLOG_BYTES_MAX bytes wait to be sent. Return at once if that is so
        already.
        """
        while self._backlog_bytes > BACKLOG_BYTES_MAX:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    async def run(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write frames until cancelled. An exception from `write` ends the loop."""
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
        """Return the frames of a queue, with the bytes of each."""
        messages_max = _FRAME_MESSAGES_MAX
        if self._in_flight is not None and len(queue) * 4 > self._in_flight() * 3:
            messages_max = min(messages_max, (len(queue) + 1) // 2)
        if self._backlog_bytes <= FRAME_BYTES_MAX:  # no cut can make a frame too large
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
