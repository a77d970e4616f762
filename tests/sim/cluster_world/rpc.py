"""gRPC between simulated processes: what is used of `grpc.aio`, on connections of the simulated
network."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc

from .loop import PROCESS
from .machine import Process
from .network import Connection, End, Network

_WINDOW = 4
"""Messages of a stream that are on their way before its writer has to wait."""


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


class Channel:
    """A channel to `machine:port`; `etcd` is the server of etcd."""

    def __init__(self, network: Network, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._network = network
        self._address = host, int(port)

    def unary_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None
    ) -> Any:
        def call(request: Any, timeout: float | None = None, metadata: Any = None) -> Any:
            return self._unary(path, request, timeout)

        return call

    def stream_stream(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None
    ) -> Any:
        return lambda timeout=None, metadata=None: StreamCall(
            self._network, self._address, path, timeout, metadata
        )

    def stream_unary(
        self, path: str, request_serializer: Any = None, response_deserializer: Any = None
    ) -> Any:
        return lambda timeout=None, metadata=None: StreamCall(
            self._network, self._address, path, timeout, metadata
        )

    async def close(self, grace: float | None = None) -> None:
        pass

    async def _unary(self, path: str, request: Any, timeout: float | None) -> Any:
        call = StreamCall(self._network, self._address, path, timeout, None)
        try:
            await call.write(request)
            await call.done_writing()
            reply = await call.read()
            if reply is grpc.aio.EOF:
                await call
                raise rpc_error(grpc.StatusCode.INTERNAL, "no reply")
            return reply
        except asyncio.InvalidStateError:
            await call
            raise
        finally:
            call.cancel()


class StreamCall:
    """The client's side of a call. Awaited it is the result of a stream_unary."""

    def __init__(
        self,
        network: Network,
        address: tuple[str, int],
        path: str,
        timeout: float | None,
        metadata: Any,
    ) -> None:
        process = PROCESS.get()
        assert process is not None
        self._network = network
        self._process = process
        self._loop = process.loop
        self._path = path
        self._metadata = tuple(metadata or ())
        self._end: End | None = None
        self._replies: deque[Any] = deque()
        self._changed: list[asyncio.Future[None]] = []
        self._unread = 0
        self._over = False
        self._error: grpc.aio.AioRpcError | None = None
        self._result: Any = None
        self._timer = None
        if timeout is not None:
            self._timer = self._loop.call_later(
                timeout, self._fail, grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"
            )
        self._connecting = self._loop.create_task(self._connect(address))

    async def _connect(self, address: tuple[str, int]) -> None:
        network = self._network
        await network.reach(address[0])
        found = network.listeners.get(address)
        if found is None:
            self._fail(
                grpc.StatusCode.UNAVAILABLE,
                f"failed to connect to {address[0]}:{address[1]}: Connection refused",
            )
            return
        if self._over:
            return
        process, server = found
        connection = Connection(network, self._process, process)
        self._end = connection.ends[0]
        self._end.lost = lambda why: self._fail(
            grpc.StatusCode.UNAVAILABLE, why or "the connection was closed"
        )
        context = ServerContext(self, connection.ends[1], self._path, self._metadata)
        self._end.send(lambda: server.accept(context))
        self._context = context
        self._change()

    def _change(self) -> None:
        changed, self._changed = self._changed, []
        for each in changed:
            if not each.done():
                each.set_result(None)

    async def _wait(self) -> None:
        waiter = self._loop.create_future()
        self._changed.append(waiter)
        await waiter

    def _fail(self, code: grpc.StatusCode, details: str) -> None:
        self.finished(rpc_error(code, details), None)

    def finished(self, error: grpc.aio.AioRpcError | None, result: Any) -> None:
        if self._over:
            return
        self._over = True
        self._error = error
        self._result = result
        if self._timer is not None:
            self._timer.cancel()
        self._connecting.cancel()
        if self._end is not None:
            self._end.end("")
        self._change()

    # -- what grpc.aio's calls have

    async def write(self, message: Any) -> None:
        while not self._over and (self._end is None or self._unread >= _WINDOW):
            await self._wait()
        if self._over or self._end is None:
            raise asyncio.InvalidStateError("RPC already finished.")
        self._unread += 1
        context = self._context
        self._end.send(lambda: context.arrived(message))

    async def done_writing(self) -> None:
        while not self._over and self._end is None:
            await self._wait()
        if self._end is not None:
            context = self._context
            self._end.send(lambda: context.arrived(grpc.aio.EOF))

    async def read(self) -> Any:
        while not self._replies and not self._over:
            await self._wait()
        if self._replies:
            return self._replies.popleft()
        if self._error is not None:
            raise self._error
        return grpc.aio.EOF

    def cancel(self) -> None:
        self._fail(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")

    def __await__(self) -> Any:
        return self._whole().__await__()

    async def _whole(self) -> Any:
        while not self._over:
            await self._wait()
        if self._error is not None:
            raise self._error
        return self._result

    # -- what the server sends, in this process

    def reply(self, message: Any) -> None:
        if not self._over:
            self._replies.append(message)
            self._change()

    def was_read(self) -> None:
        self._unread -= 1
        self._change()


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class ServerContext:
    """The server's side: the `context` of grpc.aio's handlers."""

    def __init__(self, call: StreamCall, end: End, path: str, metadata: tuple[Any, ...]) -> None:
        self._call = call
        self._end = end
        self.path = path
        self._metadata = metadata
        self._messages: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._over = False
        self.task: asyncio.Task[Any] | None = None
        end.lost = self._lost

    @property
    def is_over(self) -> bool:
        return self._over

    def invocation_metadata(self) -> tuple[Any, ...]:
        return self._metadata

    def peer(self) -> str:
        return self._end.other.process.name

    async def read(self) -> Any:
        while not self._messages:
            if self._over:
                raise asyncio.CancelledError
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        call = self._call
        if message is not grpc.aio.EOF:
            self._end.send(call.was_read)
        return message

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = None
    ) -> None:
        raise _Aborted(code, details)

    def arrived(self, message: Any) -> None:
        self._messages.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def send(self, message: Any) -> None:
        """Send a message of a stream of replies."""
        call = self._call
        self._end.send(lambda: call.reply(message))

    def finish(
        self, code: grpc.StatusCode | None = None, details: str = "", result: Any = None
    ) -> None:
        """End the call."""
        if not self._over:
            self._over = True
            call = self._call
            error = None if code is None else rpc_error(code, details)
            self._end.send(lambda: call.finished(error, result))

    def _lost(self, why: str) -> None:
        self._over = True
        if self.task is not None:
            self.task.cancel()


class Server:
    """Implements the part of grpc.aio.Server that nodes use. It serves no streams of replies,
    because no client in a world calls for one."""

    def __init__(self, network: Network) -> None:
        process = PROCESS.get()
        assert process is not None
        self._process: Process = process
        self._network = network
        self._handlers: list[Any] = []
        self._address: tuple[str, int] | None = None

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self._handlers += handlers

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        pass

    def add_insecure_port(self, address: str) -> int:
        host, _, port = address.rpartition(":")
        self._address = host, int(port) or self._network.port()
        return self._address[1]

    async def start(self) -> None:
        assert self._address is not None
        self._network.listeners[self._address] = self._process, self

    async def stop(self, grace: float | None) -> None:
        if self._address is not None:
            self._network.listeners.pop(self._address, None)

    def accept(self, context: ServerContext) -> None:
        context.task = self._process.loop.create_task(
            self._serve(context), name=f"rpc {context.path}"
        )

    async def _serve(self, context: ServerContext) -> None:
        handler = None
        for each in self._handlers:
            handler = handler or each.service(_Details(context.path))
        try:
            if handler is not None and handler.unary_unary is not None:
                reply = await handler.unary_unary(await context.read(), context)
                context.send(reply)
                context.finish(result=None)
            elif handler is not None and handler.stream_unary is not None:
                context.finish(result=await handler.stream_unary(None, context))
            else:
                context.finish(grpc.StatusCode.UNIMPLEMENTED, context.path)
        except _Aborted as aborted:
            context.finish(aborted.code, aborted.details)
        except asyncio.CancelledError:
            context.finish(grpc.StatusCode.CANCELLED, "")
        except Exception as error:
            context.finish(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
            if self._process not in self._process.machine.disk.failed:
                raise


class _Details:
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()
