"""The calls under way of an asynchronous client, and the stream that carries them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc

from holdfast.channels import open_client_channel
from holdfast.client import forks
from holdfast.client.base import BaseClient
from holdfast.client.failures import no_gateway, no_reply
from holdfast.client.options import CallOptions
from holdfast.client.requests import DEADLINE_SLACK_S, callee, check_size, timeout_ms
from holdfast.client.retries import RETRIED, STEADY_S, pause_before_retry, reconnect_pause
from holdfast.client.retry_budget import RetryBudgets
from holdfast.deadlines import Deadlines, checked_timeout
from holdfast.errors import (
    HoldfastError,
    Overloaded,
    Unauthenticated,
    Unavailable,
    error_from_proto,
    not_definite_after,
)
from holdfast.frames import ENVELOPE_BYTES_MAX, FrameWriter, ends
from holdfast.ids import told_time
from holdfast.tls import authorization
from holdfast.v1 import objects_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

CALLS_IN_FLIGHT_MAX = 10_000
"""The most calls of one client that may wait for their replies."""

_CANCEL_BYTES = 12
_NOT_OPEN = (
    "the client is not open: use it as `async with holdfast.connect(...) as client`, or"
    " `await client.open()`"
)
_OTHER_LOOP = (
    "this asyncio client was opened on another event loop: open a client on this loop,"
    " use a blocking client, or use asyncio.run_coroutine_threadsafe with the client's"
    " loop"
)


class _Pending:
    """A call that waits for its reply. `sent`: it was sent on this connection, and is not answered
    yet.
    """

    __slots__ = ("deadline", "future", "message", "resting", "retries", "sent")

    def __init__(self, message: pb.Call, future: asyncio.Future[bytes], deadline: float) -> None:
        self.message = message
        self.future = future
        self.deadline = deadline
        self.sent = False
        self.resting = False  # it waits for a pause to end before it is sent again
        self.retries = 0

    @property
    def untouched(self) -> bool:
        """Whether certainly no attempt has had an effect, or can have one (the rule of `definite`
        in holdfast.errors).
        """
        return not self.sent and not self.message.attempt


class Session(BaseClient):
    """Sends calls on one stream to a gateway, and connects again by itself."""

    def _begin(self) -> None:
        self._budgets = RetryBudgets(self._retry_budget)
        self._number = 0
        self._pending: dict[int, _Pending] = {}
        self._writer: FrameWriter[pb.Call | int] | None = None
        self._cancels = 0  # cancels that wait to be written
        self._task: asyncio.Task[None] | None = None
        self._last_error = ""
        self._forked = False

    def before_fork(self) -> bool:
        """Return whether the client is not open. An open connection cannot be taken from its loop,
        so a child forked now could not use gRPC. See `holdfast.client.forks`.
        """
        return self._task is None

    def after_fork(self) -> None:
        """Leave everything of the parent's loop alone in a child: neither use it nor free it."""
        if self._task is not None:
            forks.abandon((self._task, self._writer, self._pending, self._loop))
            self._task, self._writer, self._pending = None, None, {}
            self._forked = True

    def _open(self) -> None:
        """Begin to connect."""
        forks.opened()
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._pending, self._expire)
        self._task = asyncio.create_task(self._run(), name="holdfast client")

    async def _close(self) -> None:
        """End the connection, and fail the calls under way."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self._deadlines.close()
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(
                    Unavailable(
                        "the client was closed",
                        definite=pending.untouched,
                        request_id=pending.message.request_id,
                    )
                )
        self._pending.clear()

    def _start(
        self,
        kind: str,
        key: str,
        method: str,
        arguments: bytes,
        options: CallOptions,
        codec: pb.Codec = pb.CODEC_MSGPACK,
    ) -> _Pending:
        """Send a call, and return it."""
        if self._task is None:
            self._check_forked()
            raise RuntimeError(_NOT_OPEN)
        if len(self._pending) >= CALLS_IN_FLIGHT_MAX:
            raise _too_many(definite=not options.own_id)
        timeout = self._timeout if options.timeout is None else checked_timeout(options.timeout)
        self._number = number = self._number + 1
        message = pb.Call(
            id=number,
            kind=kind,
            key=key,
            method=method,
            arguments=arguments,
            timeout_ms=max(1, int(timeout * 1000)),
        )
        request_id, idempotency_key = options.request_id, options.idempotency_key
        if request_id is None and idempotency_key is None:
            message.request_id = self._ids.next()
        else:  # an id of the caller's own: the owner must look up whether the call ran before
            message.attempt = 1
            message.keep_reply = True
            message.request_id = request_id or b""
            message.idempotency_key = idempotency_key or ""
        if codec:
            message.codec = codec
        if options.send:
            message.send = True
            message.delay_ms = options.delay_ms
        if options.metadata:
            message.metadata.update(options.metadata)
        span = (
            None
            if self._tracing is None
            else self._tracing.began(kind, key, method, message.metadata)
        )
        size = message.ByteSize()
        # a call that is too large would end the stream, and every other call on it
        if size > ENVELOPE_BYTES_MAX:
            check_size(size, len(arguments), definite=not options.own_id)
        loop = self._loop
        if asyncio.get_running_loop() is not loop:
            raise RuntimeError(_OTHER_LOOP)
        future: asyncio.Future[bytes] = loop.create_future()
        deadline = loop.time() + timeout + DEADLINE_SLACK_S
        if span is not None:
            future.add_done_callback(partial(self._traced, span))
        pending = self._pending[number] = _Pending(message, future, deadline)
        self._deadlines.watch(deadline)
        self._budgets.called(kind)
        if self._writer is not None:
            pending.sent = True
            self._writer.push(message, size)
        return pending

    def _check_forked(self) -> None:
        if self._forked:
            raise forks.ForkedError(
                "this asyncio client was open when its process was forked, so it belongs to the"
                " parent. Fork before the parent opens a client, and open another in the child. A"
                " child may use the parent's blocking client"
            )

    def _traced(self, span: Span, done: asyncio.Future[bytes]) -> None:
        assert self._tracing is not None
        self._tracing.ended(
            span, asyncio.CancelledError() if done.cancelled() else done.exception()
        )

    def _cancel(self, pending: _Pending) -> None:
        """Tell the cluster that the caller no longer waits. The turn does not begin, or is rolled
        back.
        """
        number = pending.message.id
        if (
            self._pending.pop(number, None) is not None
            and pending.sent
            and self._writer is not None
        ):
            self._cancels += 1
            self._writer.push(number, _CANCEL_BYTES)

    def _pack(self, messages: list[pb.Call | int]) -> bytes:
        """Return a frame of calls, and of the numbers of cancelled calls."""
        if not self._cancels:
            return pb.SessionRequest(calls=cast("list[pb.Call]", messages)).SerializeToString()
        calls = [message for message in messages if not isinstance(message, int)]
        cancel = [message for message in messages if isinstance(message, int)]
        self._cancels -= len(cancel)
        return pb.SessionRequest(calls=calls, cancel=cancel).SerializeToString()

    # -- the stream

    async def _run(self) -> None:
        failures = 0
        start = random.randrange(len(self._endpoints))
        for turn in itertools.count(start):
            endpoint = self._endpoints[turn % len(self._endpoints)]
            began = self._loop.time()
            channel: grpc.aio.Channel | None = None
            call: Any = None
            try:
                channel = open_client_channel(endpoint, self._tls)
                call = channel.stream_stream("/holdfast.v1.Objects/Session")(
                    metadata=authorization(self._token)
                )
                await self._session(call)
                self._last_error = f"{endpoint}: the gateway ended the session"
            except grpc.aio.AioRpcError as error:
                self._last_error = f"{endpoint}: {error.details()}"
                if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                    self._refused(error.details() or "")
            except Exception as error:  # any error is answered by a new connection
                log.exception("the session with gateway %s failed", endpoint)
                self._last_error = f"{endpoint}: {error!r}"
            finally:
                self._writer = None
                if call is not None:
                    call.cancel()
                if channel is not None:
                    await channel.close()
            if self._loop.time() - began > STEADY_S:
                failures = 0
            await asyncio.sleep(reconnect_pause(failures))
            failures += 1

    def _refused(self, why: str) -> None:
        """Fail all calls that wait: the gateway does not know this client, so to wait would not
        help them. A later token may be valid.
        """
        for number, pending in list(self._pending.items()):
            del self._pending[number]
            if not pending.future.done():
                error = Unauthenticated(
                    why, definite=pending.untouched, request_id=pending.message.request_id
                )
                pending.future.set_exception(error)

    async def _session(self, call: Any) -> None:
        # The gateway has answered. From now on, calls that are sent may arrive.
        told = await call.initial_metadata()
        if (now_ms := told_time(told)) is not None:
            self._ids.follow(now_ms)
        if call.done():
            await call.read()  # raises what went wrong
            return
        writer: FrameWriter[pb.Call | int] = FrameWriter(
            self._pack, _size, lambda: len(self._pending)
        )
        self._writer = writer
        self._cancels = 0
        for number, pending in list(self._pending.items()):
            if pending.future.done():
                del self._pending[number]  # its caller no longer waits
                continue
            if pending.resting:
                continue
            message = pending.message
            if pending.sent:  # on the previous connection
                message.attempt += 1
            message.timeout_ms = timeout_ms(self._left_s(pending))
            pending.sent = True
            writer.push(message, message.ByteSize())
        sending = asyncio.create_task(writer.run(call.write))
        sending.add_done_callback(ends(call))
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                pending_calls = self._pending
                for reply in pb.SessionResponse.FromString(frame).replies:
                    done = pending_calls.pop(reply.id, None)
                    if done is None or done.future.done():  # its caller no longer waits
                        continue
                    result = reply.result
                    if result:
                        done.future.set_result(result)
                        continue
                    error = not_definite_after(done.message.attempt, reply.error)
                    if not (error.retryable and error.code in RETRIED and self._retry(done, error)):
                        failed = error_from_proto(error, done.message.codec)
                        failed.callee = callee(done.message)
                        done.future.set_exception(failed)
        finally:
            self._writer = None
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def _retry(self, pending: _Pending, error: pb.Error) -> bool:
        """Send a call again after a pause, if the deadline and the budget allow it. Return whether
        they do.
        """
        pause = pause_before_retry(
            self._budgets,
            pending.message.kind,
            error.retry_after_ms / 1000,
            pending.retries,
            self._left_s(pending),
        )
        if pause is None:
            return False
        pending.retries += 1
        pending.resting = True
        pending.sent = False
        if not error.definite:
            pending.message.attempt += 1
        self._pending[pending.message.id] = pending
        self._loop.call_later(pause, self._again, pending)
        return True

    def _again(self, pending: _Pending) -> None:
        pending.resting = False
        message = pending.message
        if message.id not in self._pending or pending.future.done() or self._writer is None:
            return  # if there is no connection, the next one sends it
        message.timeout_ms = timeout_ms(self._left_s(pending))
        pending.sent = True
        self._writer.push(message, message.ByteSize())

    def _left_s(self, pending: _Pending) -> float:
        """Return how long the cluster has to answer a call, in seconds."""
        return pending.deadline - DEADLINE_SLACK_S - self._loop.time()

    def _expire(self, pending: _Pending) -> None:
        self._pending.pop(pending.message.id, None)
        if pending.future.done():
            return
        message = pending.message
        error: HoldfastError
        if self._writer is None:
            error = Unavailable(
                no_gateway(message, self._last_error or "not connected yet"),
                definite=pending.untouched,
                retryable=True,
                request_id=message.request_id,
            )
        else:
            error = no_reply(message, pending.untouched)
        pending.future.set_exception(error)


def _too_many(definite: bool) -> Overloaded:
    return Overloaded(
        f"this client has {CALLS_IN_FLIGHT_MAX} calls in flight already",
        definite=definite,
        retryable=True,
        retry_after_s=0.1,
    )


def _size(message: pb.Call | int) -> int:
    return _CANCEL_BYTES if isinstance(message, int) else message.ByteSize()
