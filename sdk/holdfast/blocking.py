"""The blocking twin of the client, for scripts and threads.

It makes unary calls on gRPC's own threads and needs no event loop, so it also works beside one. A call that meets a gateway which
is away is sent again with the same request id, to the next gateway, until its deadline: its effect happens once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar, cast

import grpc
from google.rpc.status_pb2 import Status

from holdfast.app import kind_name
from holdfast.budget import RATIO, Budgets
from holdfast.channels import CHANNEL_OPTIONS, check_address
from holdfast.client import CALL_BYTES_MAX, DEADLINE_SLACK_S, TIMEOUT_S, check_key, check_own_id, retry_pause
from holdfast.errors import DeadlineExceeded, HoldfastError, InternalError, Overloaded, TooLarge, Unavailable, error_from_proto
from holdfast.ids import RequestIds
from holdfast.signature import decode_result, encode_arguments, return_type
from holdfast.tls import TLS, Token, authorization
from holdfast.tracing import ClientTracing, of_application
from holdfast.v1 import objects_pb2 as pb

T = TypeVar("T")

_BACKOFF_S = (0.05, 1.0)


class BlockingClient:
    """As `holdfast.Client`, but calls return results instead of awaitables. Safe to use from several threads."""

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
        self._token = token
        self._tracing = ClientTracing(of_application()) if tracing else None
        self._tls = tls
        self._endpoints = endpoints
        self._connect()
        self._use = random.randrange(len(endpoints))
        self._timeout = timeout
        self._budgets = Budgets(retry_budget)
        self._budgets_lock = threading.Lock()
        self._connect_lock = threading.Lock()
        self._ids = RequestIds()

    def _connect(self) -> None:
        self._files = None if self._tls is None else self._tls.state()
        self._channels = [(endpoint, _open(endpoint, self._tls)) for endpoint in self._endpoints]
        self._calls = [
            channel.unary_unary(
                "/holdfast.v1.Objects/Call",
                request_serializer=pb.CallRequest.SerializeToString,
                response_deserializer=pb.CallResponse.FromString,
            )
            for _, channel in self._channels
        ]

    def _connect_again(self) -> None:
        """When files of certificates have changed: a channel connects with those that it was made with, for ever."""
        with self._connect_lock:
            if self._tls is None or self._tls.state() == self._files:
                return
            before = self._channels
            try:
                self._connect()
            except (OSError, ValueError):
                return  # they are being written: the next try has them
        for _, channel in before:
            channel.close()  # calls of other threads on it are sent again

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        for _, channel in self._channels:
            channel.close()

    def get(
        self,
        kind: type[T] | str,
        key: str,
        *,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Any:
        """A stub of one object: `client.get(Counter, "a").increment(by=2)` returns the number. Options as in `Client.get`."""
        check_key(key)
        check_own_id(kind_name(cast(Any, kind)), key, request_id, idempotency_key)
        return _BlockingStub(self, kind, key, timeout, request_id, metadata, idempotency_key)

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
    ) -> bytes:
        """One call with a msgpack payload; its msgpack result. Raises as `Client.call` does."""
        check_own_id(kind, key, request_id, idempotency_key)
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        request = pb.CallRequest(kind=kind, key=key, method=method, msgpack=arguments, metadata=metadata)
        if idempotency_key is not None:
            request.idempotency_key = idempotency_key
        elif request_id is not None:
            request.request_id = request_id
        else:
            request.request_id = self._ids.next()
            request.drawn = True
        if request.ByteSize() > CALL_BYTES_MAX:
            raise TooLarge(f"a call of {request.ByteSize()} bytes, at most {CALL_BYTES_MAX}", definite=True)
        if self._tracing is None:
            return self._send(request, deadline)
        span = self._tracing.began(kind, key, method, request.metadata)
        try:
            result = self._send(request, deadline)
        except BaseException as error:
            self._tracing.ended(span, error)
            raise
        self._tracing.ended(span, None)
        return result

    def _send(self, request: pb.CallRequest, deadline: float) -> bytes:
        kind = request.kind
        backoff, longest = _BACKOFF_S
        retries = 0
        with self._budgets_lock:
            self._budgets.called(kind)
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            request.timeout_ms = max(1, int(left * 1000))
            use = self._use
            try:
                reply: pb.CallResponse = self._calls[use](
                    request, timeout=left + DEADLINE_SLACK_S, metadata=authorization(self._token)
                )
                return reply.msgpack
            except grpc.RpcError as failed:
                error = _error(failed, request, self._channels[use][0])
            request.attempt += 1
            if not isinstance(error, _GatewayAway):
                pause = retry_pause(error.retry_after_s, retries)
                retries += 1
                if not (error.retryable and isinstance(error, Overloaded | Unavailable)) or time.monotonic() + pause >= deadline:
                    raise error
                with self._budgets_lock:
                    if not self._budgets.take(kind):
                        raise error
                time.sleep(pause)
                continue
            pause = backoff * random.uniform(0.5, 1.0)
            if time.monotonic() + pause >= deadline:
                raise Unavailable(error.message, retryable=True, request_id=request.request_id)
            self._use = (use + 1) % len(self._calls)
            self._connect_again()
            time.sleep(pause)
            backoff = min(backoff * 2, longest)


def _open(endpoint: str, tls: TLS | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(endpoint, tls.credentials(), options=[*CHANNEL_OPTIONS, *tls.options()])


class _GatewayAway(HoldfastError):
    """No word from the cluster: try another gateway."""


class _BlockingStub:
    __slots__ = ("_client", "_key", "_kind", "_name", "_options")

    def __init__(
        self,
        client: BlockingClient,
        kind: type | str,
        key: str,
        timeout: float | None,
        request_id: bytes | None,
        metadata: Mapping[str, str] | None,
        idempotency_key: str | None,
    ) -> None:
        self._client = client
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "request_id": request_id,
            "metadata": metadata,
            "idempotency_key": idempotency_key,
        }

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        return partial(self._call, method, return_type(self._kind, method))

    def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        result = self._client.call(self._name, self._key, method, encode_arguments(positional, named), **self._options)
        return decode_result(result, returns, self._name, method)


def connect_blocking(
    *endpoints: str,
    timeout: float = TIMEOUT_S,
    retry_budget: float = RATIO,
    tls: TLS | None = None,
    token: Token | None = None,
    tracing: bool = False,
) -> BlockingClient:
    """A blocking client: `with holdfast.connect_blocking("localhost:7400") as client: ...`. Options as in `connect`."""
    return BlockingClient(*endpoints, timeout=timeout, retry_budget=retry_budget, tls=tls, token=token, tracing=tracing)


def _error(failed: Any, request: pb.CallRequest, endpoint: str) -> HoldfastError:
    """What a failed RPC means: the cluster's own error, which it carries as a detail, or that there was none."""
    for name, value in failed.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            detail = pb.Error()
            if Status.FromString(value).details[0].Unpack(detail):
                return error_from_proto(detail)
    what = f"{request.kind}/{request.key}.{request.method}()"
    if failed.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"{what}: no reply before the deadline", retryable=True, request_id=request.request_id)
    if failed.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return InternalError(f"{what}: {endpoint}: {failed.code().name}: {failed.details()}", request_id=request.request_id)
    return _GatewayAway(f"{what}: no gateway reached before the deadline; {endpoint}: {failed.details()}")
