"""Streams of frames over TCP, for messages that processes exchange many thousand times a second.

A message of grpc.aio costs about 70 us of CPU on each side, whatever its content. Here it costs
20 us (docs/decisions/0006). Only pipes and replication use these streams. Rare messages between
processes, and all messages of clients, use gRPC.

On the wire a frame is a length, 4 bytes little-endian, and that many bytes. The first frame of a
connection is a `Hello` from the side that opened it. The second is the other side's `_Answer`. Both
are msgpack. All later frames belong to the service that the `Hello` names. An empty frame says that
the sender is alive. If a later version adds fields to the two, the new fields come last and have
defaults, so that neighbouring versions understand each other.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import msgspec
from holdfast.channels import AddressInUse, split_address
from holdfast.frames import FrameWriter
from holdfast.logs import RateLimitedLog
from holdfast.processes import who_listens
from holdfast.tls import Certificates, names_of_transport

from holdfast_cluster.clocks.boottime import boottime

log = logging.getLogger(__name__)

PROTOCOL = "holdfast-stream/1"
FRAME_BYTES_MAX = 64 << 20
"""The largest frame. It has room for one entry with the writes of the largest turn and of others.
Batches are much smaller."""

_HELLO_BYTES_MAX = 4096
_GREETING_S = 5.0
"""How long the first two frames may take."""
_UNGREETED_MAX = 256
"""How many connections may be open without a `Hello`. For one more the server closes the oldest: a
process of the cluster sends its `Hello` at once."""
_HANDSHAKES_MAX = 1024
"""How many TLS handshakes may be under way. Each takes about 50 KB. For one more the server gives
up the oldest."""
_BACKLOG = 1024
_ACCEPT_AGAIN_S = 0.1
_ACCEPT_MAX = 128
_BEAT_S = 1.0
_SILENCE_S = 5.0
"""A peer that sends nothing for so long counts as gone."""
_HEAD = 4
_FIRST_BUFFER_BYTES = 1024  # small, so that a silent connection costs little
_BUFFER_BYTES = 64 << 10


class Hello(msgspec.Struct, array_like=True):
    """The first frame of a stream: its service, the node that it is for, and the node that opens
    it.

    `target` and `sender` are `node id:incarnation`. `sender` is empty for a gateway.
    """

    protocol: str
    service: str
    target: str
    sender: str = ""


class _Answer(msgspec.Struct, array_like=True):
    refused: str = ""
    """Why the node does not serve the stream; empty if it serves it."""


class StreamRefused(Exception):
    """The other side does not serve the stream; the message is its reason."""


_encode = msgspec.msgpack.Encoder().encode
_decode_hello = msgspec.msgpack.Decoder(Hello).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class Stream(asyncio.BufferedProtocol):
    """One connection. `received` gets each frame, on the loop; if it raises, the stream ends.

    When either side ends the connection, `ended` is resolved with the reason.
    """

    def __init__(self, received: Callable[[bytes], None], frame_bytes_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.received = received
        self.frame_bytes_max = frame_bytes_max
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.peer = ""
        self.names: list[str] = []
        """The DNS names in the other side's certificate."""
        self._why = ""
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(_FIRST_BUFFER_BYTES)
        # Between the two lie the bytes that were received and not handed on yet.
        self._start = 0
        self._end = 0
        self._room: asyncio.Future[None] | None = None
        self._heard_at = self._beat_at = boottime()
        self._said = True
        self._beat: asyncio.TimerHandle | None = None
        self._busy: asyncio.Task[None] | None = None

    async def write(self, frame: bytes) -> None:
        """Send a frame. Wait while the connection takes no more bytes.

        Raise ConnectionResetError when the connection is over. Raise ValueError for a frame that is
        too large: the other side would end the connection, without a reason for this side.
        """
        if len(frame) > FRAME_BYTES_MAX:
            raise ValueError(
                f"a frame of {len(frame)} bytes is not sent to {self.peer}; at most"
                f" {FRAME_BYTES_MAX}"
            )
        while self._room is not None:
            await asyncio.shield(self._room)
        if self.ended.done() or self._why:
            raise ConnectionResetError(self._why or "the connection is closed")
        assert self._transport is not None
        self._said = True
        self._transport.writelines((len(frame).to_bytes(_HEAD, "little"), frame))

    def send_from(self, writer: FrameWriter[Any]) -> asyncio.Task[None]:
        """Start a task that sends the writer's frames, and return it. The caller has to cancel it.

        If the task fails, the stream ends.
        """
        task = asyncio.create_task(writer.run(self.write), name=f"frames to {self.peer}")

        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                if not isinstance(error, ConnectionResetError):
                    log.error("frames to %s", self.peer, exc_info=error)
                self.abort(str(error))

        task.add_done_callback(done)
        return task

    async def wait(self) -> str:
        """Wait until the stream is over, and return the reason."""
        return await asyncio.shield(self.ended)

    def answer(self, frame: bytes) -> None:
        """Send one of the first two frames, without waiting for room."""
        assert self._transport is not None
        self._transport.write(len(frame).to_bytes(_HEAD, "little") + frame)

    def close(self, why: str) -> None:
        """End the stream, after the frames written before have left."""
        if not self.ended.done():
            self._why = self._why or why
            if self._transport is not None:
                self._transport.close()

    def abort(self, why: str) -> None:
        """End the stream at once."""
        if not self.ended.done():
            self._why = self._why or why
            if self._transport is not None:
                self._transport.abort()

    def pause_reading_while(self, busy: Coroutine[Any, Any, None]) -> None:
        """Hand on no more frames until `busy` has returned. If it fails, end the stream."""
        if self._busy is None and self._transport is not None and not self.ended.done():
            self._transport.pause_reading()
            self._busy = asyncio.create_task(busy)
            self._busy.add_done_callback(self._resume_reading)
        else:
            busy.close()

    def _resume_reading(self, busy: asyncio.Task[None]) -> None:
        self._busy = None
        if not busy.cancelled() and (error := busy.exception()) is not None:
            log.error("frames from %s", self.peer, exc_info=error)
            self.abort(f"a wait failed: {error}")
            return
        self._heard_at = boottime()
        if self._transport is None or self.ended.done() or self._why:
            return
        self.buffer_updated(0)
        if self._busy is None and not self._why:
            self._transport.resume_reading()

    # -- asyncio.BufferedProtocol

    made: Callable[[Stream], None] = staticmethod(lambda stream: None)
    """Called when the connection is made; with TLS, after the handshake."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._why:
            self._transport.abort()  # the stream ended before it began
            return
        self.names = names_of_transport(transport)
        self.peer = ":".join(
            str(part) for part in (transport.get_extra_info("peername") or ("?",))[:2]
        )
        self._beat = self._loop.call_later(_BEAT_S, self._on_beat)
        self.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._busy is not None:
            self._busy.cancel()
        self._why = self._why or (
            str(exc) if exc is not None else "it was closed by the other side"
        )
        self.resume_writing()
        self._buffer = bytearray()
        # This breaks a possible reference cycle, which would wait for the garbage collector.
        self.received = _nothing
        if not self.ended.done():
            self.ended.set_result(self._why)

    def pause_writing(self) -> None:
        if self._room is None:
            self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self._heard_at = boottime()
        buffer, start = self._buffer, self._start
        self._end = end = self._end + nbytes
        while end - start >= _HEAD:
            if self._busy is not None:  # the rest waits here until `_busy` is done
                self._make_room(start, 0)
                return
            size = int.from_bytes(buffer[start : start + _HEAD], "little")
            if size > self.frame_bytes_max:
                self._start = self._end = 0
                why = f"a frame of {size} bytes; at most {self.frame_bytes_max}"
                log.warning("a stream from %s was ended: %s", self.peer, why)
                self.abort(why)
                return
            if end - start - _HEAD < size:
                self._start = start
                if start + _HEAD + size > len(buffer):
                    self._make_room(start, size)
                return
            start += _HEAD
            if size:
                frame = bytes(memoryview(buffer)[start : start + size])
                start += size
                try:
                    self.received(frame)
                except Exception:
                    log.exception("a frame from %s", self.peer)
                    self._start = self._end = 0
                    self.abort("the handling of a frame failed")
                    return
                if self._why:
                    self._start = self._end = 0
                    return
        if start == end:
            self._start = self._end = 0
            if not _BUFFER_BYTES <= len(buffer) <= 4 * _BUFFER_BYTES:
                self._buffer = bytearray(_BUFFER_BYTES)
        elif len(buffer) - end < _HEAD:
            self._make_room(start, 0)
        else:
            self._start = start

    def _make_room(self, start: int, size: int) -> None:
        """Move the received bytes to the beginning of a buffer with room for a frame of `size`."""
        rest = self._buffer[start : self._end]
        self._buffer = bytearray(max(_BUFFER_BYTES, _HEAD + size, len(rest) + _FIRST_BUFFER_BYTES))
        self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _on_beat(self) -> None:
        assert self._transport is not None
        now = boottime()
        if now - self._beat_at > 2 * _BEAT_S:
            self._heard_at = now  # this process was paused, and has not read the bytes since then
        self._beat_at = now
        if now - self._heard_at > _SILENCE_S and self._busy is None:
            self.abort(f"nothing was heard for {_SILENCE_S:.0f} s")
            return
        if not self._said and self._room is None:
            self._transport.write(bytes(_HEAD))
        self._said = False
        self._beat = self._loop.call_later(_BEAT_S, self._on_beat)


def _nothing(frame: bytes) -> None:
    """Drop a frame of a connection that is over."""


async def open_stream(
    address: str,
    service: str,
    target: str,
    received: Callable[[bytes], None],
    sender: str = "",
    certificates: Certificates | None = None,
) -> Stream:
    """Connect to a service of the node `target` (`id:incarnation`), and wait for its answer.

    Raise OSError when no process answers at the address within 5 s. Raise StreamRefused when the
    process there does not serve the stream. Raise ValueError when the address is malformed.
    """
    host, port = split_address(address)
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[None] = loop.create_future()

    def answer(frame: bytes) -> None:
        if answered.done():
            return  # the stream was given up before
        try:
            refused = _decode_answer(frame).refused
        except Exception:
            refused = "it does not speak this protocol"
        if refused:
            answered.set_exception(StreamRefused(refused))
            stream.close("it was refused")
        else:
            stream.received = received
            stream.frame_bytes_max = FRAME_BYTES_MAX
            answered.set_result(None)

    def lost(ended: asyncio.Future[str]) -> None:
        if not answered.done():
            answered.set_exception(ConnectionResetError(ended.result()))

    async with asyncio.timeout(_GREETING_S):
        _, stream = await loop.create_connection(
            lambda: Stream(answer, _HELLO_BYTES_MAX),
            host,
            port,
            ssl=None if certificates is None else certificates.client_context,
            server_hostname=None if certificates is None else certificates.name,
        )
        stream.ended.add_done_callback(lost)
        try:
            stream.answer(_encode(Hello(PROTOCOL, service, target, sender)))
            await answered
        except BaseException:
            stream.abort("it was given up")
            if answered.done() and not answered.cancelled():
                answered.exception()
            raise
    return stream


Service = Callable[[Hello, Stream], Callable[[bytes], None]]
"""Takes a new stream, and returns the function that its frames go to. Raises StreamRefused. It may
not write to the stream before it returns."""


class StreamServer:
    """A server that accepts streams for the given services, by name.

    With `certificates` it accepts only processes of the cluster.
    """

    def __init__(
        self, services: dict[str, Service], certificates: Certificates | None = None
    ) -> None:
        self._services = services
        self._certificates = certificates
        self._handshakes: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._accepting: asyncio.Task[None] | None = None
        self._ungreeted: dict[Stream, None] = {}
        self._streams: set[Stream] = set()
        self._log_limit = RateLimitedLog()
        self._server: asyncio.Server | None = None

    async def listen(self, address: str) -> int:
        """Listen at `host:port` (port 0: any free one), and return the port. Raise AddressInUse."""
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        try:
            if self._certificates is None:
                self._server = await loop.create_server(self._new, host, port, backlog=_BACKLOG)
                return int(self._server.sockets[0].getsockname()[1])
            infos = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, where = infos[0]
            listener = socket.create_server(where[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise AddressInUse(
                f"cannot listen at {address} for streams:"
                f" {error}{who_listens(split_address(address)[1])}"
            ) from None
        listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(listener, self._certificates))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Stop listening, and end every stream."""
        if self._server is not None:
            self._server.close()
        waits = [task for task in (self._accepting, *self._handshakes) if task is not None]
        for task in waits:
            task.cancel()
        streams = [*self._ungreeted, *self._streams]
        for stream in streams:
            stream.abort("this side stops")
        await asyncio.gather(*waits, *(stream.ended for stream in streams), return_exceptions=True)

    async def _accept(self, listener: socket.socket, certificates: Certificates) -> None:
        """Accept connections with TLS, until cancelled.

        asyncio.Server is not used, because it does not show the handshakes that never end.
        """
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    connection, _ = await loop.sock_accept(listener)
                    self._begin_handshake(connection, certificates)
                    # On a busy loop, one connection for each turn of the loop would be too slow.
                    for _ in range(_ACCEPT_MAX):
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        self._begin_handshake(connection, certificates)
                except BlockingIOError:
                    pass  # there are no more
                except Exception as error:  # for example, too many files are open
                    log.warning("a stream cannot be accepted: %s", error)
                    await asyncio.sleep(_ACCEPT_AGAIN_S)

    def _begin_handshake(self, connection: socket.socket, certificates: Certificates) -> None:
        if len(self._handshakes) >= _HANDSHAKES_MAX:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        task = asyncio.create_task(self._handshake(connection, certificates))
        self._handshakes[task] = None
        task.add_done_callback(self._end_handshake)

    def _end_handshake(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a stream could not be accepted", exc_info=error)

    async def _handshake(self, connection: socket.socket, certificates: Certificates) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._new,
                connection,
                ssl=certificates.server_context,
                ssl_handshake_timeout=_GREETING_S,
            )
        except OSError:
            pass  # the other side does not speak TLS, or its certificate is not trusted

    def _new(self) -> Stream:
        stream = Stream(lambda frame: None, _HELLO_BYTES_MAX)
        stream.made = self._made
        return stream

    def _made(self, stream: Stream) -> None:
        if len(self._ungreeted) >= _UNGREETED_MAX:
            oldest = next(iter(self._ungreeted))
            del self._ungreeted[oldest]
            oldest.abort("there are too many connections that have sent no greeting")
        loop = asyncio.get_running_loop()
        too_late = loop.call_later(
            _GREETING_S, stream.abort, f"it sent no greeting within {_GREETING_S:.0f} s"
        )
        stream.received = lambda frame: self._greet(stream, too_late, frame)
        self._ungreeted[stream] = None

        def forget(_: object) -> None:
            too_late.cancel()
            self._ungreeted.pop(stream, None)
            self._streams.discard(stream)

        stream.ended.add_done_callback(forget)

    def _greet(self, stream: Stream, too_late: asyncio.TimerHandle, frame: bytes) -> None:
        too_late.cancel()
        self._ungreeted.pop(stream, None)
        self._streams.add(stream)
        refused = ""
        try:
            if self._certificates is not None and not self._certificates.is_process(stream.names):
                raise StreamRefused(
                    "its certificate does not belong to a process of this cluster; its names:"
                    f" {', '.join(stream.names) or 'none'}"
                )
            hello = _decode_hello(frame)
            if hello.protocol != PROTOCOL:
                refused = f"this is {PROTOCOL}, not {hello.protocol[:40]}"
            elif (service := self._services.get(hello.service)) is None:
                refused = f"no service {hello.service[:40]}"
            else:
                stream.received = service(hello, stream)
                stream.frame_bytes_max = FRAME_BYTES_MAX
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            refused = f"this is {PROTOCOL}; its first frame has to be a Hello"
        except StreamRefused as error:
            refused = str(error)
        stream.answer(_encode(_Answer(refused)))
        if refused:
            if self._log_limit.allow():
                log.info("a stream from %s was refused: %s", stream.peer, refused)
            stream.close(refused)
