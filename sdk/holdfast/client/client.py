"""The asynchronous client: typed stubs over one batched stream. The client reconnects by itself,
and sends calls again by itself.

If a connection breaks, the client sends the calls under way again on the next connection, with the
same request id and `attempt + 1`. So their effects happen once. If the cluster refuses a call as
OVERLOADED or UNAVAILABLE and the call could succeed later, the client sends it again after a pause.
The pause is the time that the refusal asks for, plus full jitter. This goes on while the retry
budget lasts and the deadline allows.

So a caller sees an error only from the object, from a limit, or at the deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import grpc

from holdfast.app import kind_name
from holdfast.channels import MESSAGE_BYTES_MAX, check_address, open_client_channel
from holdfast.client import forks
from holdfast.client.retry_budget import RATIO, RetryBudgets
from holdfast.deadlines import Deadlines, checked_timedelta, checked_timeout
from holdfast.errors import (
    DeadlineExceeded,
    HoldfastError,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
    error_from_proto,
    not_definite_after,
)
from holdfast.frames import ENVELOPE_BYTES_MAX, FrameWriter, ends
from holdfast.ids import EFFECT, REQUEST_ID_BYTES, RequestIds, idempotent_id, told_time
from holdfast.signature import check_notified, decode_result, encode_arguments, return_type
from holdfast.tls import TLS, Token, authorization
from holdfast.tracing import ClientTracing, of_application
from holdfast.v1 import objects_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.trace import Span

T = TypeVar("T")

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
"""The deadline, in seconds, of a call that brings none."""

DEADLINE_SLACK_S = 0.3
"""How long after a deadline, in seconds, the client still waits for the cluster's answer. That
answer says more than a timeout of the client.
"""

CALLS_IN_FLIGHT_MAX = 10_000
"""The most calls of one client that may wait for their replies."""

CALL_BYTES_MAX = MESSAGE_BYTES_MAX - 1024
"""The most bytes of a call with its arguments and metadata. The cluster's own limit for arguments
is lower.
"""

_RECONNECT_BACKOFF_S = (0.05, 1.0)
_RETRY_BACKOFF_S = (0.05, 2.0)
_CANCEL_BYTES = 12
_RETRIED = (pb.CODE_OVERLOADED, pb.CODE_UNAVAILABLE)


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


class Client:
    """A connection to a cluster, through any of its gateways. Use it as `async with connect(...) as
    client`.

    One client is enough for a process: it can have 10,000 calls in flight on one stream. A client
    belongs to the event loop on which it was opened.
    """

    def __init__(
        self,
        *endpoints: str,
        timeout: float = TIMEOUT_S,
        retry_budget: float = RATIO,
        tls: TLS | None = None,
        token: Token | None = None,
        tracing: bool = False,
    ) -> None:
        if not endpoints:
            raise ValueError("name at least one gateway, as host:port")
        for endpoint in endpoints:
            check_address(endpoint)
        self._endpoints = list(endpoints)
        if tls is not None:
            tls.credentials()  # raise now if it is wrong
        self._tls = tls
        if not callable(token):
            authorization(token)  # raise now if it is wrong
        self._token = token
        self._tracing = ClientTracing(of_application()) if tracing else None
        self._timeout = checked_timeout(timeout)
        self._budgets = RetryBudgets(retry_budget)
        self._ids = RequestIds()
        self._number = 0
        self._pending: dict[int, _Pending] = {}
        self._writer: FrameWriter[pb.Call | int] | None = None
        self._cancels = 0  # cancels that wait to be written
        self._task: asyncio.Task[None] | None = None
        self._last_error = ""
        self._forked = self._closed = False
        forks.register(self)

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

    async def __aenter__(self) -> Client:
        return await self.open()

    async def open(self) -> Client:
        """Begin to connect, if you cannot use `async with`: `client = await connect(...).open()`.
        End it with `close()`.

        Raises RuntimeError if the client is open, or was closed.
        """
        self._check_forked()
        if self._task is not None or self._closed:
            raise RuntimeError("the client was opened already")
        forks.opened()
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(self._pending, self._expire)
        self._task = asyncio.create_task(self._run(), name="holdfast client")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection. Calls under way fail with Unavailable; it is unknown whether they
        took effect.
        """
        if self._forked:
            return  # the connection is the parent's
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

    @overload
    def get(
        self,
        kind: type[T],
        key: str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> T: ...
    @overload
    def get(
        self,
        kind: str,
        key: str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...
    def get(
        self,
        kind: Any,
        key: str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Return a stub of one object: `await client.get(Counter, "a").increment(by=2)`.

        `kind`: if it is a class, the stub is typed as the class, and results are decoded to the
        handler's return type. If it is a name, results come in plain types.

        These options hold for all calls of the stub:

        - `timeout`: the deadline in seconds, at most 300; None: the client's.
        - `metadata`: texts that the handler finds in `self.request.metadata`.
        - `request_id`: 16 bytes, a UUIDv7 (`new_request_id`). It names one effect, so make only one
          call with the stub.
        - `idempotency_key`: your own name for one effect on this object, 1 to 255 bytes. For 24
          hours every call with this key gets the reply to the first call, also if another caller
          makes it. A different call under the same key fails with InvalidArgument.

        The client sends a call when you await it. The call raises the errors of `holdfast.errors`.
        `get` raises TypeError or ValueError for a wrong key, request id or idempotency key.
        """
        check_key(key)
        check_own_id(kind_name(kind), key, request_id, idempotency_key)
        return Stub(self, kind, key, timeout, request_id, metadata, idempotency_key)

    @overload
    def notify(
        self,
        kind: type[T],
        key: str,
        *,
        delay: timedelta | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...
    @overload
    def notify(
        self,
        kind: str,
        key: str,
        *,
        delay: timedelta | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any: ...
    def notify(
        self,
        kind: Any,
        key: str,
        *,
        delay: timedelta | None = None,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """Notify an object, without waiting for its handler: `await client.notify(Order,
        "o-1").ship()`.

        The awaitable is done when the cluster has stored the call, on as many nodes as a write.
        From then on the call is a notification. It arrives once, after all that the same caller has
        sent to this object before. The result of the handler is dropped.

        If the handler fails, the cluster tries the call again. After `notify_attempts` failures or
        `notify_age`, options of the receiver's kind, the call becomes a dead letter.

        `delay`: the cluster delivers the call no earlier than after this time, at most 366 days.
        The other options are those of `get`.
        """
        check_key(key)
        check_own_id(kind_name(kind), key, request_id, idempotency_key)
        return Stub(
            self, kind, key, timeout, request_id, metadata, idempotency_key, True, delay_ms(delay)
        )

    async def call(
        self,
        kind: str,
        key: str,
        method: str,
        arguments: bytes = b"",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        codec: pb.Codec = pb.CODEC_MSGPACK,
        idempotency_key: str | None = None,
        send: bool = False,
        delay_ms: int = 0,
    ) -> bytes:
        """Make one call with an encoded payload, and return the encoded result. Stubs use this
        function.

        Raises the HoldfastError that the reply carries. Raises Unavailable or DeadlineExceeded if
        no reply came in time.
        """
        check_own_id(kind, key, request_id, idempotency_key)
        pending = self._start(
            kind,
            key,
            method,
            arguments,
            timeout,
            request_id,
            metadata,
            codec,
            idempotency_key,
            send,
            delay_ms,
        )
        try:
            return await pending.future
        except asyncio.CancelledError:
            self._cancel(pending)
            raise

    def _start(
        self,
        kind: str,
        key: str,
        method: str,
        arguments: bytes,
        timeout: float | None,
        request_id: bytes | None,
        metadata: Mapping[str, str] | None,
        codec: pb.Codec = pb.CODEC_MSGPACK,
        idempotency_key: str | None = None,
        send: bool = False,
        delay_ms: int = 0,
    ) -> _Pending:
        """Send a call, and return it."""
        if self._task is None:
            self._check_forked()
            raise RuntimeError(
                "the client is not open: use it as `async with holdfast.connect(...) as client`, or"
                " `await client.open()`"
            )
        if len(self._pending) >= CALLS_IN_FLIGHT_MAX:
            raise Overloaded(
                f"this client has {CALLS_IN_FLIGHT_MAX} calls in flight already",
                definite=request_id is None and idempotency_key is None,
                retryable=True,
                retry_after_s=0.1,
            )
        timeout = self._timeout if timeout is None else checked_timeout(timeout)
        self._number = number = self._number + 1
        message = pb.Call(
            id=number,
            kind=kind,
            key=key,
            method=method,
            arguments=arguments,
            timeout_ms=max(1, int(timeout * 1000)),
        )
        if request_id is None and idempotency_key is None:
            message.request_id = self._ids.next()
        else:  # an id of the caller's own: the owner must look up whether the call ran before
            message.attempt = 1
            message.keep_reply = True
            message.request_id = request_id or b""
            message.idempotency_key = idempotency_key or ""
        if codec:
            message.codec = codec
        if send:
            message.send = True
            message.delay_ms = delay_ms
        if metadata:
            message.metadata.update(metadata)
        span = (
            None
            if self._tracing is None
            else self._tracing.began(kind, key, method, message.metadata)
        )
        size = message.ByteSize()
        # a call that is too large would end the stream, and every other call on it
        if size > ENVELOPE_BYTES_MAX:
            check_size(
                size, len(arguments), definite=request_id is None and idempotency_key is None
            )
        loop = self._loop
        if asyncio.get_running_loop() is not loop:
            raise RuntimeError(
                "this asyncio client was opened on another event loop: open a client on this loop,"
                " use a blocking client, or use asyncio.run_coroutine_threadsafe with the client's"
                " loop"
            )
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
        backoff, longest = _RECONNECT_BACKOFF_S
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
            if self._loop.time() - began > longest:
                backoff = _RECONNECT_BACKOFF_S[0]
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, longest)

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
            message.timeout_ms = max(
                1, int((pending.deadline - DEADLINE_SLACK_S - self._loop.time()) * 1000)
            )
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
                    if not (
                        error.retryable and error.code in _RETRIED and self._retry(done, error)
                    ):
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
        pause = retry_pause(error.retry_after_ms / 1000, pending.retries)
        if (
            self._loop.time() + pause >= pending.deadline - DEADLINE_SLACK_S
            or not self._budgets.take(pending.message.kind)
        ):
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
        message.timeout_ms = max(
            1, int((pending.deadline - DEADLINE_SLACK_S - self._loop.time()) * 1000)
        )
        pending.sent = True
        self._writer.push(message, message.ByteSize())

    def _expire(self, pending: _Pending) -> None:
        self._pending.pop(pending.message.id, None)
        if pending.future.done():
            return
        message = pending.message
        what = f"{message.kind}/{message.key}.{message.method}()"
        if self._writer is None:
            error: HoldfastError = Unavailable(
                f"{what}: the client reached no gateway before the deadline;"
                f" {self._last_error or 'not connected yet'}",
                definite=pending.untouched,
                retryable=True,
                request_id=message.request_id,
            )
        else:
            error = DeadlineExceeded(
                f"{what}: no reply before the deadline",
                definite=pending.untouched,
                retryable=True,
                request_id=message.request_id,
            )
        pending.future.set_exception(error)


class Stub:
    """Stands for one object. Each attribute is one of its methods."""

    __slots__ = (
        "_client",
        "_delay_ms",
        "_idempotency_key",
        "_key",
        "_kind",
        "_metadata",
        "_name",
        "_request_id",
        "_send",
        "_timeout",
    )

    def __init__(
        self,
        client: Client,
        kind: type | str,
        key: str,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        send: bool = False,
        delay_ms: int = 0,
    ) -> None:
        """`send`: calls are stored, to be run after `delay_ms`, or at once if it is 0."""
        self._client = client
        self._send = send
        self._delay_ms = delay_ms
        self._idempotency_key = idempotency_key
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._timeout = timeout
        self._request_id = request_id
        self._metadata = metadata

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        if self._send:
            check_notified(self._kind, method)
            return partial(self._call, method, None)
        return partial(self._call, method, return_type(self._kind, method))

    async def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        arguments = encode_arguments(positional, named)
        client = self._client
        pending = client._start(
            self._name,
            self._key,
            method,
            arguments,
            self._timeout,
            self._request_id,
            self._metadata,
            idempotency_key=self._idempotency_key,
            send=self._send,
            delay_ms=self._delay_ms,
        )
        try:
            result = await pending.future
        except asyncio.CancelledError:
            client._cancel(pending)
            raise
        return decode_result(result, returns, self._name, method)


def callee(call: pb.Call | pb.CallRequest) -> str:
    """Return the name of a call, for its errors."""
    return f"{call.kind}/{call.key}.{call.method}()"


def retry_pause(asked_s: float, retries: int) -> float:
    """Return the pause before a retry, in seconds: the time that the refusal asks for, plus full
    jitter over a doubling backoff.
    """
    least, most = _RETRY_BACKOFF_S
    return asked_s + random.uniform(0, min(most, least * 2 ** min(retries, 10)))


def check_size(size: int, payload: int, definite: bool) -> None:
    """Raise TooLarge if a call is larger than gateways accept. `size`: its bytes; `payload`: the
    bytes of its arguments.
    """
    if size > CALL_BYTES_MAX:
        raise TooLarge(
            f"the call has {size} bytes; at most {CALL_BYTES_MAX} are allowed", definite=definite
        )
    if size - payload > ENVELOPE_BYTES_MAX:
        raise TooLarge(
            f"names and metadata of the call have {size - payload} bytes; at most"
            f" {ENVELOPE_BYTES_MAX} are allowed",
            definite=definite,
        )


def check_own_id(
    kind: str, key: str, request_id: bytes | None, idempotency_key: str | None
) -> None:
    """Raise ValueError for a wrong request id or idempotency key of the caller's own: both given, a
    wrong size, or the cluster's own range.
    """
    if idempotency_key is not None:
        if request_id is not None:
            raise ValueError("a call has a request_id or an idempotency_key, not both")
        idempotent_id(kind, key, idempotency_key)
    elif request_id is not None:
        if len(request_id) != REQUEST_ID_BYTES:
            raise ValueError(
                f"a request id has {REQUEST_ID_BYTES} bytes, this one has {len(request_id)}"
            )
        if request_id[0] >= EFFECT:
            raise ValueError(
                f"request ids that begin with {request_id[:1].hex()} are the cluster's own: use a"
                " UUIDv7"
            )


def delay_ms(delay: timedelta | None) -> int:
    """Return a delay in ms. Raise ValueError if it is negative."""
    if delay is None:
        return 0
    if checked_timedelta("a delay", delay) < timedelta():
        raise ValueError(f"a delay must not be negative, but it is {delay}")
    return round(delay.total_seconds() * 1000)


def check_key(key: object) -> None:
    """Raise TypeError if the key is not text."""
    if not isinstance(key, str):
        raise TypeError(f"an object's key is text, not {type(key).__name__}: {key!r}")


def connect(
    *endpoints: str,
    timeout: float = TIMEOUT_S,
    retry_budget: float = RATIO,
    tls: TLS | None = None,
    token: Token | None = None,
    tracing: bool = False,
) -> Client:
    """Return a client of the cluster behind these gateways (`host:port`). The client uses one
    gateway, and goes on to the next when that one fails.

    - `timeout`: the deadline, in seconds, of calls that bring none.
    - `retry_budget`: how many retries the client may make by itself, as a share of calls, 0 to 1.
      It holds for all calls together and for the calls to each kind; 0: no retries.
    - `tls`: connect with TLS.
    - `token`: the bearer token to show, or a function that returns it for each connection.
    - `tracing`: make OpenTelemetry spans of calls with the program's own provider, and have the
      cluster continue them (docs/tracing.md).

    Raises ValueError if an address or an option is wrong. Raises OSError or ValueError if the files
    of `tls` cannot be used. Raises TracingMissing if `tracing` is set and OpenTelemetry is not
    installed.
    """
    return Client(
        *endpoints,
        timeout=timeout,
        retry_budget=retry_budget,
        tls=tls,
        token=token,
        tracing=tracing,
    )


def _size(message: pb.Call | int) -> int:
    return _CANCEL_BYTES if isinstance(message, int) else message.ByteSize()
