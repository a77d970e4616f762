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
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar, overload

from holdfast.client.options import CallOptions
from holdfast.client.requests import TIMEOUT_S, check_own_id, check_target, delay_ms
from holdfast.client.retry_budget import RATIO
from holdfast.client.session import Session
from holdfast.client.stubs import BaseStub
from holdfast.signature import decode_result, encode_arguments
from holdfast.tls import TLS, Token
from holdfast.v1 import objects_pb2 as pb

T = TypeVar("T")


class Client(Session):
    """A connection to a cluster, through any of its gateways. Use it as `async with connect(...) as
    client`.

    One client is enough for a process: it can have 10,000 calls in flight on one stream. A client
    belongs to the event loop on which it was opened.
    """

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
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection. Calls under way fail with Unavailable; it is unknown whether they
        took effect.
        """
        if self._forked:
            return  # the connection is the parent's
        await self._close()

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
        check_target(kind, key, request_id, idempotency_key)
        options = CallOptions(timeout, request_id, metadata, idempotency_key)
        return Stub(self, kind, key, options)

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
        check_target(kind, key, request_id, idempotency_key)
        options = CallOptions(
            timeout, request_id, metadata, idempotency_key, send=True, delay_ms=delay_ms(delay)
        )
        return Stub(self, kind, key, options)

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
        """Make one call with an encoded payload, and return the encoded result.

        Raises the HoldfastError that the reply carries. Raises Unavailable or DeadlineExceeded if
        no reply came in time.
        """
        check_own_id(kind, key, request_id, idempotency_key)
        options = CallOptions(timeout, request_id, metadata, idempotency_key, send, delay_ms)
        pending = self._start(kind, key, method, arguments, options, codec)
        try:
            return await pending.future
        except asyncio.CancelledError:
            self._cancel(pending)
            raise


class Stub(BaseStub[Client]):
    """Stands for one object. Each attribute is one of its methods."""

    __slots__ = ()

    async def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        arguments = encode_arguments(positional, named)
        client = self._client
        pending = client._start(self._name, self._key, method, arguments, self._options)
        try:
            result = await pending.future
        except asyncio.CancelledError:
            client._cancel(pending)
            raise
        return decode_result(result, returns, self._name, method)


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
