"""The public service: `Objects.Call` and `Objects.Session`.

The gateway does not decode arguments and results.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from holdfast.client.blocking import ATTEMPT_METADATA
from holdfast.errors import (
    Aborted,
    InvalidArgument,
    Unauthenticated,
    error_to_proto,
    not_definite_after,
)
from holdfast.frames import ENVELOPE_BYTES_MAX, too_wide
from holdfast.ids import TIME_METADATA, RequestIds
from holdfast.tracing import TRACEPARENT, Tracing
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.cluster_time import WALL, Time, WallTime
from holdfast_cluster.routing.dispatch import Dispatcher

from holdfast_gateway.admission.access import UnknownCaller
from holdfast_gateway.admission.admission import Admission
from holdfast_gateway.admission.auth import Authenticator, Caller
from holdfast_gateway.edges.session import SESSIONS_MAX, Sessions, begin_span
from holdfast_gateway.edges.status import abort
from holdfast_gateway.edges.wide_integers import wide_integers_as_text

if TYPE_CHECKING:
    from opentelemetry.trace import Span

IDEMPOTENCY_METADATA = "idempotency-key"
"""The metadata in which callers of `Call` may give their key, in place of the field."""

_PAYLOAD = frozenset((4, 5))  # `json` and `msgpack` of CallRequest


class ObjectsService:
    """The service `holdfast.v1.Objects`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        authenticator: Authenticator | None = None,
        tracing: Tracing | None = None,
        time: Time | WallTime = WALL,
        sessions_max: int = SESSIONS_MAX,
    ) -> None:
        """Set up the service.

        `authenticator` checks the callers; None: every caller may do everything. `time`: the
        cluster's time, which clients put into request ids.
        """
        self._time = time
        self._tracing = tracing
        self._dispatcher = dispatcher
        self._ids = RequestIds(lambda: self._time.now_ms())
        self.admission = Admission(dispatcher, authenticator)
        self.sessions = Sessions(dispatcher, self.admission, tracing, sessions_max)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers to register with the server.

        Sessions get and send bytes, so that the service decodes frames itself, once.
        """
        return grpc.method_handlers_generic_handler(
            "holdfast.v1.Objects",
            {
                "Call": grpc.unary_unary_rpc_method_handler(
                    self.call,
                    request_deserializer=_call_request,
                    response_serializer=pb.CallResponse.SerializeToString,
                ),
                "Session": grpc.stream_stream_rpc_method_handler(self.session),
            },
        )

    async def session(self, _: object, context: Any) -> None:
        """Serve one client's calls, until the client goes away, or the gateway stops."""
        caller = await self._authenticate(context, 0)
        await self.sessions.serve(caller, self._now(), context)

    async def call(self, request: pb.CallRequest | None, context: Any) -> pb.CallResponse:
        """Serve one call of any gRPC client. Its gRPC deadline is the call's deadline.

        `request` is None if the message could not be read.
        """
        metadata = _metadata(context)
        request = await self._readable(request, metadata, context)
        idempotency_key = request.idempotency_key or metadata.get(IDEMPOTENCY_METADATA, "")
        attempt = _attempt(metadata) if request.request_id or idempotency_key else 0
        caller = await self._authenticate(context, attempt)
        call = _call(request, idempotency_key, attempt, context.time_remaining())
        await self._check(call, caller, context)
        reply = await self._answered(call, caller, metadata.get(TRACEPARENT, ""))
        if not reply.result:
            await abort(context, reply.error)
        if request.WhichOneof("arguments") != "json":
            return pb.CallResponse(
                msgpack=reply.result, request_id=call.request_id, epoch=reply.epoch
            )
        result = (
            wide_integers_as_text(reply.result) if request.wide_integers_as_text else reply.result
        )
        return pb.CallResponse(json=result.decode(), request_id=call.request_id, epoch=reply.epoch)

    async def _readable(
        self, request: pb.CallRequest | None, metadata: dict[str, str], context: Any
    ) -> pb.CallRequest:
        """Return the request, if the gateway can take it at all."""
        refused = self.admission.refused
        if request is None:
            refused["malformed"] += 1
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the request cannot be read, or its names and metadata are too large",
            )
            raise AssertionError
        if self.admission.draining:
            refused["draining"] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this gateway is stopping")
        if TIME_METADATA in metadata:
            await context.send_initial_metadata(self._now())
        return request

    async def _authenticate(self, context: Any, attempt: int) -> Caller | None:
        """Return the caller. If it cannot be authenticated, end the call or the session."""
        try:
            return self.admission.authenticate(context)
        except UnknownCaller as refused:
            error = error_to_proto(Unauthenticated(str(refused), definite=True))
            await abort(context, not_definite_after(attempt, error))
            raise AssertionError from None

    async def _check(self, call: pb.Call, caller: Caller | None, context: Any) -> None:
        """End the call if it is wrong, or if its caller may not make it."""
        if call.request_id and call.idempotency_key:
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "a call has a request_id or an idempotency_key, not both",
            )
        if not call.request_id and not call.idempotency_key:
            call.request_id = self._ids.next()
        if (refused := self.admission.check_form(call)) is not None:
            await abort(context, refused)
        if call.delay_ms and not call.send:
            wrong = InvalidArgument(
                "delay_ms is for calls that are sent: set `send` as well",
                path="delay_ms",
                definite=True,
            )
            await abort(context, not_definite_after(call.attempt, error_to_proto(wrong)))
        if (
            caller is not None
            and (refused := self.admission.check_caller(caller, call)) is not None
        ):
            await abort(context, refused)

    async def _answered(self, call: pb.Call, caller: Caller | None, traceparent: str) -> pb.Reply:
        """Send the call to a node, and return the reply."""
        waiting = _Waiting(caller)
        span = self._begin_span(call, traceparent)
        number = self._dispatcher.submit(call, waiting)
        try:
            reply = await waiting.future
        except asyncio.CancelledError:
            # If the gateway stops, the call is not cancelled: the caller sends it again through
            # another gateway, and its node joins the two attempts.
            if not self.admission.draining:
                self._dispatcher.cancel(number, waiting)
            gone = Aborted("the caller does not wait for it any more")
            self._end_span(span, error_to_proto(gone))
            raise
        self._end_span(span, None if reply.result else reply.error)
        return reply

    def _begin_span(self, call: pb.Call, traceparent: str) -> Span | None:
        if self._tracing is None:
            return None
        if traceparent and TRACEPARENT not in call.metadata:
            call.metadata[TRACEPARENT] = traceparent
        return begin_span(self._tracing, call)

    def _end_span(self, span: Span | None, error: pb.Error | None) -> None:
        if span is not None and self._tracing is not None:
            self._tracing.ended(span, error)

    def _now(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata with the cluster's time, for the ids that a client makes.

        The client's own clock may be wrong. Empty while the time has not started.
        """
        return ((TIME_METADATA, str(self._time.now_ms())),) if self._time.started else ()


class _Waiting:
    """The receiver of one reply. It implements `holdfast_cluster.routing.pending.Origin`."""

    __slots__ = ("_caller", "future")

    def __init__(self, caller: Caller | None) -> None:
        self._caller = caller
        self.future: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()

    def push(self, reply: pb.Reply, size: int) -> None:
        if self._caller is not None:
            # Count it out now, not when the caller goes away: until now the call was under way.
            self._caller.done(1)
        if not self.future.done():
            self.future.set_result(reply)


def _metadata(context: Any) -> dict[str, str]:
    """Return the metadata of a call as text; of values with the same name, the first."""
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        found.setdefault(name, str(value))
    return found


def _attempt(metadata: dict[str, str]) -> int:
    """Return how many earlier attempts of a call have an unknown outcome.

    A caller that brings an id, but does not tell the number, may have tried before: then it is 1.
    """
    said = metadata.get(ATTEMPT_METADATA, "1")
    return min(int(said), 1 << 20) if said.isdecimal() and len(said) < 10 else 1


def _call(
    request: pb.CallRequest, idempotency_key: str, attempt: int, remaining_s: float | None
) -> pb.Call:
    """Return the call that a request asks for. `remaining_s`: the rest of its gRPC deadline."""
    is_json = request.WhichOneof("arguments") == "json"
    timeout_ms = request.timeout_ms
    if remaining_s is not None:
        timeout_ms = max(1, min(timeout_ms or 1 << 31, int(remaining_s * 1000)))
    return pb.Call(
        kind=request.kind,
        key=request.key,
        method=request.method,
        arguments=request.json.encode() if is_json else request.msgpack,
        codec=pb.CODEC_JSON if is_json else pb.CODEC_MSGPACK,
        request_id=request.request_id,
        idempotency_key=idempotency_key,
        attempt=attempt,
        keep_reply=bool(request.request_id) and not request.drawn,
        timeout_ms=timeout_ms,
        metadata=request.metadata,
        send=request.send,
        delay_ms=request.delay_ms,
    )


def _call_request(message: bytes) -> pb.CallRequest | None:
    """Decode a request for gRPC; return None if it cannot be read.

    If this raised, gRPC would answer INTERNAL, and log a traceback.
    """
    if len(message) > ENVELOPE_BYTES_MAX and too_wide(message, 0, len(message), _PAYLOAD):
        return None
    try:
        return pb.CallRequest.FromString(message)
    except DecodeError:
        return None
