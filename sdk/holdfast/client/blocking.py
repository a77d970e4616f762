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
from functools import partial
from typing import Any, TypeVar, overload

import grpc
from google.rpc.status_pb2 import Status

from holdfast.app import kind_name
from holdfast.channels import check_address, open_blocking_channel
from holdfast.client import forks
from holdfast.client.client import (
    DEADLINE_SLACK_S,
    TIMEOUT_S,
    callee,
    check_key,
    check_own_id,
    check_size,
    delay_ms,
    retry_pause,
)
from holdfast.client.retry_budget import RATIO, RetryBudgets
from holdfast.deadlines import checked_timeout
from holdfast.errors import (
    DeadlineExceeded,
    HoldfastError,
    InternalError,
    Overloaded,
    Unavailable,
    error_from_proto,
)
from holdfast.ids import TIME_METADATA, RequestIds, told_time
from holdfast.signature import check_notified, decode_result, encode_arguments, return_type
from holdfast.tls import TLS, Token, authorization
from holdfast.tracing import ClientTracing, of_application
from holdfast.v1 import objects_pb2 as pb

T = TypeVar("T")

ATTEMPT_METADATA = "holdfast-attempt"
"""The gRPC metadata of `Objects.Call` with the number of earlier attempts whose outcome is unknown.
A caller with a request id of its own sends it; without it the number counts as 1.
"""

_BACKOFF_S = (0.05, 1.0)


class BlockingClient:
    """Works as `holdfast.Client`, but calls return results instead of awaitables. Several threads
    may use one client.
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
        if tls is not None:
            tls.credentials()  # raise now if it is wrong
        self._tls = tls
        if not callable(token):
            authorization(token)  # raise now if it is wrong
        self._token = token
        self._tracing = ClientTracing(of_application()) if tracing else None
        self._endpoints = endpoints
        self._timeout = checked_timeout(timeout)
        self._retry_budget = retry_budget
        self._ids = RequestIds()
        self._closed = False
        self._begin()
        forks.register(self)

    def _begin(self) -> None:
        """Set up everything that each process has for itself."""
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
        check_key(key)
        check_own_id(kind_name(kind), key, request_id, idempotency_key)
        return _BlockingStub(self, kind, key, timeout, request_id, metadata, idempotency_key)

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
        check_key(key)
        check_own_id(kind_name(kind), key, request_id, idempotency_key)
        return _BlockingStub(
            self,
            kind,
            key,
            timeout,
            request_id,
            metadata,
            idempotency_key,
            send=True,
            delay_ms=delay_ms(delay),
        )

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
        deadline = time.monotonic() + (
            self._timeout if timeout is None else checked_timeout(timeout)
        )
        own = request_id is not None or idempotency_key is not None
        request = pb.CallRequest(
            kind=kind,
            key=key,
            method=method,
            msgpack=arguments,
            metadata=metadata,
            send=send,
            delay_ms=delay_ms,
        )
        if idempotency_key is not None:
            request.idempotency_key = idempotency_key
        elif request_id is not None:
            request.request_id = request_id
        else:
            request.request_id = self._ids.next()
            request.drawn = True
        check_size(request.ByteSize(), len(arguments), definite=not own)
        attempt = int(own)  # with an id of the caller's own, the call may have run before
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
        kind = request.kind
        backoff, longest = _BACKOFF_S
        retries = 0
        with self._budgets_lock:
            self._budgets.called(kind)
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            request.timeout_ms = max(1, int(left * 1000))
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
                    timeout = left + DEADLINE_SLACK_S
                    reply: pb.CallResponse
                    if connections.knows_time:
                        reply = connections.calls[use](request, timeout=timeout, metadata=shown)
                    else:
                        shown = (*shown, (TIME_METADATA, ""))
                        reply, call = connections.calls[use].with_call(
                            request, timeout=timeout, metadata=shown
                        )
                        if (now_ms := told_time(call.initial_metadata())) is not None:
                            connections.knows_time = True
                            self._ids.follow(now_ms)
                    return reply.msgpack
                except grpc.RpcError as failed:
                    error = _error(failed, request, self._endpoints[use])
                except (
                    ValueError
                ) as closed_before:  # another thread, or a fork, has closed the channel
                    error = _GatewayAway(
                        f"{request.kind}/{request.key}.{request.method}(): {closed_before}"
                    )
            if not error.definite:
                attempt += 1
            error.definite = not attempt
            if not isinstance(error, _GatewayAway):
                pause = retry_pause(error.retry_after_s, retries)
                retries += 1
                error.callee = callee(request)
                if (
                    not (error.retryable and isinstance(error, Overloaded | Unavailable))
                    or time.monotonic() + pause >= deadline
                ):
                    raise error
                with self._budgets_lock:
                    if not self._budgets.take(kind):
                        raise error
                time.sleep(pause)
                continue
            if self._connections is not connections and time.monotonic() < deadline:
                # This client closed the connection, for a fork or for new certificates: the gateway
                # is not away.
                continue
            pause = backoff * random.uniform(0.5, 1.0)
            if time.monotonic() + pause >= deadline:
                raise Unavailable(error.message, retryable=True, request_id=request.request_id)
            self._use = (use + 1) % len(self._endpoints)
            self._connect_again()
            time.sleep(pause)
            backoff = min(backoff * 2, longest)


class _Connections:
    """The channels of one process, one to each gateway."""

    def __init__(self, endpoints: tuple[str, ...], tls: TLS | None) -> None:
        self.files = None if tls is None else tls.state()
        self.knows_time = False
        """Whether a gateway has told the time, for the ids of calls."""
        self._channels = [open_blocking_channel(endpoint, tls) for endpoint in endpoints]
        self.calls = [
            channel.unary_unary(
                "/holdfast.v1.Objects/Call",
                request_serializer=pb.CallRequest.SerializeToString,
                response_deserializer=pb.CallResponse.FromString,
            )
            for channel in self._channels
        ]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


class _GatewayAway(HoldfastError):
    """The gateway did not answer: try another one."""


class _BlockingStub:
    __slots__ = ("_client", "_key", "_kind", "_name", "_options", "_send")

    def __init__(
        self,
        client: BlockingClient,
        kind: type | str,
        key: str,
        timeout: float | None,
        request_id: bytes | None,
        metadata: Mapping[str, str] | None,
        idempotency_key: str | None,
        send: bool = False,
        delay_ms: int = 0,
    ) -> None:
        self._client = client
        self._send = send
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "request_id": request_id,
            "metadata": metadata,
            "idempotency_key": idempotency_key,
            "send": send,
            "delay_ms": delay_ms,
        }

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        if self._send:
            check_notified(self._kind, method)
            return partial(self._call, method, None)
        return partial(self._call, method, return_type(self._kind, method))

    def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        result = self._client.call(
            self._name, self._key, method, encode_arguments(positional, named), **self._options
        )
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
    what = f"{request.kind}/{request.key}.{request.method}()"
    if failed.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(
            f"{what}: no reply before the deadline", retryable=True, request_id=request.request_id
        )
    if failed.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return InternalError(
            f"{what}: {endpoint}: {failed.code().name}: {failed.details()}",
            request_id=request.request_id,
        )
    return _GatewayAway(
        f"{what}: the client reached no gateway before the deadline; {endpoint}: {failed.details()}"
    )
