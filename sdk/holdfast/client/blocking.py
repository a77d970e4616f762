"""The blocking twin of the client, for scripts and threads.

It makes unary calls on gRPC's own threads and needs no event loop, so it also works beside one. If
a gateway is away, the client sends the call to the next gateway, with the same request id, until
the call's deadline. So its effect happens once.

A client connects when it is first used, in the process that uses it. A forked child may use the
parent's client (holdfast.client.forks).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar, overload

import grpc
from google.rpc.status_pb2 import Status

from holdfast.channels import open_blocking_channel
from holdfast.client import forks
from holdfast.client.base import BaseClient
from holdfast.client.failures import no_gateway, no_reply
from holdfast.client.options import CallOptions
from holdfast.client.requests import (
    DEADLINE_SLACK_S,
    TIMEOUT_S,
    callee,
    check_own_id,
    check_size,
    check_target,
    delay_ms,
    timeout_ms,
)
from holdfast.client.retries import RETRIED, pause_before_retry, reconnect_pause
from holdfast.client.retry_budget import RATIO, RetryBudgets
from holdfast.client.stubs import BaseStub
from holdfast.deadlines import checked_timeout
from holdfast.errors import CODES, HoldfastError, InternalError, Unavailable, error_from_proto
from holdfast.ids import TIME_METADATA, RequestIds, told_time
from holdfast.signature import decode_result, encode_arguments
from holdfast.tls import TLS, Token, authorization
from holdfast.v1 import objects_pb2 as pb

T = TypeVar("T")

ATTEMPT_METADATA = "holdfast-attempt"
"""The gRPC metadata of `Objects.Call` with the number of earlier attempts whose outcome is unknown.
A caller with a request id of its own sends it; without it the number counts as 1.
"""


class BlockingClient(BaseClient):
    """Works as `holdfast.Client`, but calls return results instead of awaitables. Several threads
    may use one client.
    """

    def _begin(self) -> None:
        self._connections: _Connections | None = None
        self._lock = threading.Lock()
        self._use = random.randrange(len(self._endpoints))
        self._budgets = RetryBudgets(self._retry_budget)
        self._budgets_lock = threading.Lock()

    def before_fork(self) -> bool:
        """Close the connections. Calls of other threads on them are sent again. See
        `holdfast.client.forks`.
        """
        with self._lock:
            before, self._connections = self._connections, None
        if before is not None:
            before.close()
        return True

    def after_fork(self) -> None:
        """Begin as a new client in a child."""
        if self._connections is not None:
            forks.abandon(self._connections)
        self._begin()

    def _connected(self) -> _Connections:
        """Return the connections, and open them first if there are none."""
        with self._lock:
            if self._closed:
                raise Unavailable("the client was closed")
            if self._connections is None:
                forks.opened()
                self._connections = _Connections(self._endpoints, self._tls)
            return self._connections

    def _connect_again(self) -> None:
        """Connect again if the certificate files have changed: a channel uses the certificates with
        which it was made for ever.
        """
        with self._lock:
            before = self._connections
            if self._tls is None or before is None or self._tls.state() == before.files:
                return
            try:
                self._connections = _Connections(self._endpoints, self._tls)
            except (OSError, ValueError):
                return  # the files are being written: the next try loads them
        before.close()  # calls of other threads on these connections are sent again

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. Calls of other threads fail; it is unknown whether they took
        effect.
        """
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

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
    ) -> Any: ...
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
        """Return a stub of one object: `client.get(Counter, "a").increment(by=2)` returns the
        result. The options are those of `Client.get`.
        """
        check_target(kind, key, request_id, idempotency_key)
        options = CallOptions(timeout, request_id, metadata, idempotency_key)
        return _BlockingStub(self, kind, key, options)

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
        """Notify an object, without waiting for its handler: `client.notify(Order, "o-1").ship()`.
        See `Client.notify`.
        """
        check_target(kind, key, request_id, idempotency_key)
        options = CallOptions(
            timeout, request_id, metadata, idempotency_key, send=True, delay_ms=delay_ms(delay)
        )
        return _BlockingStub(self, kind, key, options)

    def call(
        self,
        kind: str,
        key: str,
        method: str,
        arguments: bytes = b"",
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        send: bool = False,
        delay_ms: int = 0,
    ) -> bytes:
        """Make one call with a msgpack payload, and return the msgpack result. It raises the errors
        of `Client.call`.
        """
        check_own_id(kind, key, request_id, idempotency_key)
        options = CallOptions(timeout, request_id, metadata, idempotency_key, send, delay_ms)
        return self._call(kind, key, method, arguments, options)

    def _call(
        self, kind: str, key: str, method: str, arguments: bytes, options: CallOptions
    ) -> bytes:
        """Make one call, without a check of the caller's own id."""
        timeout = self._timeout if options.timeout is None else checked_timeout(options.timeout)
        deadline = time.monotonic() + timeout
        request = pb.CallRequest(
            kind=kind,
            key=key,
            method=method,
            msgpack=arguments,
            metadata=options.metadata,
            send=options.send,
            delay_ms=options.delay_ms,
        )
        if options.idempotency_key is not None:
            request.idempotency_key = options.idempotency_key
        elif options.request_id is not None:
            request.request_id = options.request_id
        else:
            request.request_id = self._ids.next()
            request.drawn = True
        check_size(request.ByteSize(), len(arguments), definite=not options.own_id)
        attempt = int(options.own_id)  # a call with the caller's own id may have run before
        if self._tracing is None:
            return self._send(request, attempt, deadline)
        span = self._tracing.began(kind, key, method, request.metadata)
        try:
            result = self._send(request, attempt, deadline)
        except BaseException as error:
            self._tracing.ended(span, error)
            raise
        self._tracing.ended(span, None)
        return result

    def _send(self, request: pb.CallRequest, attempt: int, deadline: float) -> bytes:
        """Send a call until there is an answer. `attempt`: the number of attempts whose outcome is
        unknown (docs/reference/errors.md, "Definite errors").
        """
        retries = failures = 0
        with self._budgets_lock:
            self._budgets.called(request.kind)
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            request.timeout_ms = timeout_ms(left)
            shown = (*(authorization(self._token) or ()), (ATTEMPT_METADATA, str(attempt)))
            use = self._use
            with forks.in_grpc():
                try:
                    connections = self._connected()
                except Unavailable as closed:
                    closed.definite = not attempt
                    closed.request_id = request.request_id
                    raise
                try:
                    return connections.call(use, request, left + DEADLINE_SLACK_S, shown, self._ids)
                except grpc.RpcError as failed:
                    error = _error(failed, request, self._endpoints[use])
                except ValueError as closed_before:  # another thread, or a fork, has closed it
                    error = _GatewayAway(f"{callee(request)}: {closed_before}")
            if not error.definite:
                attempt += 1
            error.definite = not attempt
            if not isinstance(error, _GatewayAway):
                error.callee = callee(request)
                pause = self._pause_before_retry(error, request.kind, retries, deadline)
                if pause is None:
                    raise error
                retries += 1
                time.sleep(pause)
                continue
            if self._connections is not connections and time.monotonic() < deadline:
                # This client closed the connection, for a fork or for new certificates: the gateway
                # is not away.
                continue
            pause = reconnect_pause(failures)
            if time.monotonic() + pause >= deadline:
                raise Unavailable(error.message, retryable=True, request_id=request.request_id)
            failures += 1
            self._use = (use + 1) % len(self._endpoints)
            self._connect_again()
            time.sleep(pause)

    def _pause_before_retry(
        self, error: HoldfastError, kind: str, retries: int, deadline: float
    ) -> float | None:
        if not error.retryable or CODES[error.code][0] not in RETRIED:
            return None
        with self._budgets_lock:
            return pause_before_retry(
                self._budgets, kind, error.retry_after_s, retries, deadline - time.monotonic()
            )


class _Connections:
    """The channels of one process, one to each gateway."""

    def __init__(self, endpoints: tuple[str, ...], tls: TLS | None) -> None:
        self.files = None if tls is None else tls.state()
        self.knows_time = False
        """Whether a gateway has told the time, for the ids of calls."""
        self._channels = [open_blocking_channel(endpoint, tls) for endpoint in endpoints]
        self._calls = [
            channel.unary_unary(
                "/holdfast.v1.Objects/Call",
                request_serializer=pb.CallRequest.SerializeToString,
                response_deserializer=pb.CallResponse.FromString,
            )
            for channel in self._channels
        ]

    def call(
        self,
        use: int,
        request: pb.CallRequest,
        timeout: float,
        metadata: tuple[tuple[str, str], ...],
        ids: RequestIds,
    ) -> bytes:
        """Make one attempt at a gateway, the one with the number `use`. If no gateway has told the
        time yet, `ids` follow the time of this one.
        """
        reply: pb.CallResponse
        if self.knows_time:
            reply = self._calls[use](request, timeout=timeout, metadata=metadata)
            return reply.msgpack
        reply, call = self._calls[use].with_call(
            request, timeout=timeout, metadata=(*metadata, (TIME_METADATA, ""))
        )
        if (now_ms := told_time(call.initial_metadata())) is not None:
            self.knows_time = True
            ids.follow(now_ms)
        return reply.msgpack

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class _GatewayAway(HoldfastError):
    """The gateway did not answer: try another one."""


class _BlockingStub(BaseStub[BlockingClient]):
    __slots__ = ()

    def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        arguments = encode_arguments(positional, named)
        result = self._client._call(self._name, self._key, method, arguments, self._options)
        return decode_result(result, returns, self._name, method)


def connect_blocking(
    *endpoints: str,
    timeout: float = TIMEOUT_S,
    retry_budget: float = RATIO,
    tls: TLS | None = None,
    token: Token | None = None,
    tracing: bool = False,
) -> BlockingClient:
    """Return a blocking client: `with holdfast.connect_blocking("localhost:7400") as client: ...`.
    The options are those of `connect`.
    """
    return BlockingClient(
        *endpoints,
        timeout=timeout,
        retry_budget=retry_budget,
        tls=tls,
        token=token,
        tracing=tracing,
    )


def _error(failed: Any, request: pb.CallRequest, endpoint: str) -> HoldfastError:
    """Return the error of a failed RPC: the cluster's own error if the RPC carries one, else an
    error that says how the RPC failed.
    """
    for name, value in failed.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            detail = pb.Error()
            if Status.FromString(value).details[0].Unpack(detail):
                return error_from_proto(detail)
    if failed.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return no_reply(request)
    if failed.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return InternalError(
            f"{callee(request)}: {endpoint}: {failed.code().name}: {failed.details()}",
            request_id=request.request_id,
        )
    return _GatewayAway(no_gateway(request, f"{endpoint}: {failed.details()}"))
