"""The public service: `Objects.Call` and `Objects.Session`.

The gateway does not decode arguments and results.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from holdfast.client.blocking import ATTEMPT_METADATA
from holdfast.errors import (
    Aborted,
    HoldfastError,
    InvalidArgument,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    error_to_proto,
    grpc_status,
    not_definite_after,
)
from holdfast.frames import ENVELOPE_BYTES_MAX, MESSAGES_MAX, FrameWriter, ends, too_many, too_wide
from holdfast.ids import EFFECT, TIME_METADATA, RequestIds, idempotent_id
from holdfast.logs import RateLimitedLog
from holdfast.tracing import TRACEPARENT, Tracing
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.cluster_time import WALL, Time, WallTime
from holdfast_cluster.placement.model import SEND
from holdfast_cluster.routing.dispatch import Dispatcher

from holdfast_gateway.admission.access import Refused
from holdfast_gateway.admission.auth import Authenticator, Caller

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

REASONS = ("draining", "malformed", "unauthenticated", "permission_denied", "limit", "unread")
"""The reasons why the gateway refuses a call or a session, or ends a session. `unread`: the
session's client sends calls, but does not read the replies."""

SESSIONS_MAX = 10_000
"""How many sessions a gateway may have. A session costs about 13 KiB, and 40 KiB more if it has a
connection of its own."""

BACKLOG_BYTES_MAX = 64 << 20
"""How many bytes of replies may wait for a client to read them. The gateway ends a session that
passes it."""
_UNREAD = (
    f"more than {BACKLOG_BYTES_MAX >> 20} MiB of replies wait to be read: the session is ended"
)

IDEMPOTENCY_METADATA = "idempotency-key"
"""The metadata in which callers of `Call` may give their key, in place of the field."""

_DESCRIPTION_CHARS_MAX = 200
DOMAIN = "holdfast.dev"
"""The domain in the ErrorInfo of errors; see google.rpc.ErrorInfo."""

_EFFECT = bytes([EFFECT])
_DRAIN_LOOK_S = 0.02
_PAYLOAD = frozenset((4, 5))  # `json` and `msgpack` of CallRequest
_TAKEN_AT_ONCE = 128  # calls of a frame, before other tasks get a turn
_STATUS_MESSAGE_CHARS_MAX = 500
_STATUS_MESSAGE_BYTES_MAX = 1_500  # in percent-encoding, as gRPC sends it
_DETAILS_BYTES_MAX = 4_200  # gRPC sends them as base64, which is a third longer
_STATUS_DATA_BYTES_MAX = 2_000


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
        self._sessions_max = sessions_max
        self._time = time
        self._tracing = tracing
        self._dispatcher = dispatcher
        self._door = authenticator
        self._ids = RequestIds(lambda: self._time.now_ms())
        self._few = RateLimitedLog()
        self.sessions = 0
        """How many sessions of clients are open."""
        self.refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        """The number of calls and sessions refused, and of sessions ended, by reason."""
        self.draining = False
        """Set when the gateway stops. Then a session ends when its calls have ended, and the
        gateway accepts no new call."""

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

    async def call(self, request: pb.CallRequest | None, context: Any) -> pb.CallResponse:
        """Serve one call of any gRPC client. Its gRPC deadline is the call's deadline.

        `request` is None if the message could not be read.
        """
        if request is None:
            self.refused["malformed"] += 1
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                "the request cannot be read, or its names and metadata are too large",
            )
            raise AssertionError
        if self.draining:
            self.refused["draining"] += 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this gateway is stopping")
        if any(name == TIME_METADATA for name, _ in context.invocation_metadata() or ()):
            await context.send_initial_metadata(self._now())
        is_json = request.WhichOneof("arguments") == "json"
        remaining = context.time_remaining()
        timeout_ms = request.timeout_ms
        if remaining is not None:
            timeout_ms = max(1, min(timeout_ms or 1 << 31, int(remaining * 1000)))
        idempotency_key = request.idempotency_key or next(
            (
                str(value)
                for name, value in context.invocation_metadata() or ()
                if name == IDEMPOTENCY_METADATA
            ),
            "",
        )
        request_id = request.request_id
        attempt = _attempt(context) if request_id or idempotency_key else 0
        caller = None if self._door is None else await self._guest(context, attempt)
        if idempotency_key:
            if request_id:
                await context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "a call has a request_id or an idempotency_key, not both",
                )
            try:
                request_id = idempotent_id(request.kind, request.key, idempotency_key)
            except ValueError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        elif request_id[:1] >= _EFFECT:
            await _abort(context, self._taken(request_id, attempt))
        own_id = bool(request_id) and not request.drawn
        if not request_id:
            request_id = self._ids.next()
        call = pb.Call(
            kind=request.kind,
            key=request.key,
            method=request.method,
            arguments=request.json.encode() if is_json else request.msgpack,
            codec=pb.CODEC_JSON if is_json else pb.CODEC_MSGPACK,
            request_id=request_id,
            attempt=attempt,
            keep_reply=own_id,
            timeout_ms=timeout_ms,
            metadata=request.metadata,
            send=request.send,
            delay_ms=request.delay_ms,
        )
        if call.send and (unable := self._cannot_send(call)) is not None:
            await _abort(context, unable)
        if call.delay_ms and not call.send:
            wrong = InvalidArgument(
                "delay_ms is for calls that are sent: set `send` as well",
                path="delay_ms",
                definite=True,
            )
            await _abort(context, not_definite_after(call.attempt, error_to_proto(wrong)))
        waiting = _Waiting(caller)
        if caller is not None and (refused := self._refusal(caller, call)) is not None:
            await _abort(context, refused)
        span = None
        if self._tracing is not None:
            brought = next(
                (
                    str(value)
                    for name, value in context.invocation_metadata() or ()
                    if name == TRACEPARENT
                ),
                "",
            )
            if brought and TRACEPARENT not in call.metadata:
                call.metadata[TRACEPARENT] = brought
            span = begin_span(self._tracing, call)
        number = self._dispatcher.submit(call, waiting)
        try:
            reply = await waiting.future
        except asyncio.CancelledError:
            # If the gateway stops, the call is not cancelled: the caller sends it again through
            # another gateway, and its node joins the two attempts.
            if not self.draining:
                self._dispatcher.cancel(number, waiting)
            if span is not None and self._tracing is not None:
                gone = Aborted("the caller does not wait for it any more")
                self._tracing.ended(span, error_to_proto(gone))
            raise
        if span is not None and self._tracing is not None:
            self._tracing.ended(span, None if reply.result else reply.error)
        if not reply.result:
            await _abort(context, reply.error)
        if is_json:
            result = (
                wide_integers_as_text(reply.result)
                if request.wide_integers_as_text
                else reply.result
            )
            return pb.CallResponse(json=result.decode(), request_id=request_id, epoch=reply.epoch)
        return pb.CallResponse(msgpack=reply.result, request_id=request_id, epoch=reply.epoch)

    def _now(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata with the cluster's time, for the ids that a client makes.

        The client's own clock may be wrong. Empty while the time has not started.
        """
        return ((TIME_METADATA, str(self._time.now_ms())),) if self._time.started else ()

    async def session(self, _: object, context: Any) -> None:
        """Serve one client's calls, until the client goes away, or the gateway stops.

        End the session, too, when the client leaves too many replies unread.
        """
        if await self._serve(context):
            # The session's memory is free by now. This waits until the client reads, or goes away.
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _UNREAD)

    async def _serve(self, context: Any) -> bool:
        """Serve a session. Return whether it ended because its client does not read."""
        caller = None if self._door is None else await self._guest(context, 0)
        full = (
            f"{self.sessions} sessions are open at this gateway"
            if self.sessions >= self._sessions_max
            else None
        )
        if caller is not None and full is None:
            full = caller.begin_session()
        if full is not None:
            self.refused["limit"] += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, full)
        session = _Session(asyncio.current_task(), caller, self._tracing)
        writer = session.writer
        sending = asyncio.create_task(writer.run(context.write))
        sending.add_done_callback(ends(asyncio.current_task()))
        self.sessions += 1
        try:
            # This tells the client that it is connected.
            await context.send_initial_metadata(self._now())
            while (frame := await context.read()) is not grpc.aio.EOF:
                if self.draining:
                    break  # do not begin these calls: the client sends them to another gateway
                request = _request(frame)
                if request is None:
                    self.refused["malformed"] += 1
                    await context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"the frame cannot be read, or has more than {MESSAGES_MAX} calls",
                    )
                    raise AssertionError
                if caller is not None and (gone := caller.look(time.time())) is not None:
                    self.refused["unauthenticated"] += 1
                    await context.abort(grpc.StatusCode.UNAUTHENTICATED, gone)
                for start in range(0, len(request.calls), _TAKEN_AT_ONCE):
                    if start:
                        await asyncio.sleep(0)
                    self._take(session, request.calls[start : start + _TAKEN_AT_ONCE])
                if request.cancel:
                    self._cancel(session, request.cancel)
                await writer.drained()
            while self.draining and (session.under_way or writer.backlog):
                await asyncio.sleep(_DRAIN_LOOK_S)
        except asyncio.CancelledError:
            # The session is unread, the client went away, or the gateway stops. If the handler
            # raised this, gRPC would log it as an error.
            pass
        finally:
            self.sessions -= 1
            if session.unread:  # do not work on calls whose replies the client does not read
                self._cancel(session, list(session.numbers))
            inherited = self._dispatcher.forget(session, _Gone(caller))
            if caller is not None:
                caller.end_session()
                # Calls that were sent count as under way until a node answers, though the session
                # is gone.
                caller.done(session.under_way - inherited)
            session.end_spans()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        self.refused["unread"] += session.unread
        return session.unread

    def _take(self, session: _Session, calls: Sequence[pb.Call]) -> None:
        """Send a session's calls to nodes, or refuse them."""
        caller = session.caller
        submit = self._dispatcher.submit
        session.under_way += len(calls)
        for call in calls:
            request_id = call.request_id
            refused = None if request_id and request_id[:1] < _EFFECT else self._own_id(call)
            if refused is None and call.send:
                refused = self._cannot_send(call)
            if refused is not None:
                session.refuse(pb.Reply(id=call.id, error=refused))
                continue
            if call.notification or call.chain:  # only nodes may set these
                call.ClearField("notification")
                call.ClearField("chain")
            if caller is None:
                if call.caller:
                    call.ClearField("caller")
            elif (refused := self._refusal(caller, call)) is not None:
                session.refuse(pb.Reply(id=call.id, error=refused))
                continue
            if session.spans is not None:
                session.trace(call)
            client_id = call.id
            if number := submit(call, session):
                session.numbers[client_id] = number

    def _cancel(self, session: _Session, ids: Sequence[int]) -> None:
        """Cancel calls of a session, by the client's ids."""
        heir = _Gone(session.caller)
        for client_id in ids:
            if (number := session.numbers.pop(client_id, 0)) and self._dispatcher.cancel(
                number, heir
            ):
                session.under_way -= 1
        session.end_spans(frozenset(ids))

    async def _guest(self, context: Any, attempt: int) -> Caller:
        """Return the caller. If it cannot be authenticated, end the call or the session."""
        assert self._door is not None
        try:
            return self._door.authenticate(context)
        except Refused as refused:
            self.refused["unauthenticated"] += 1
            if self._few.allow():
                log.info("unauthenticated: %s, from %s", refused, context.peer())
            await _abort(
                context,
                not_definite_after(
                    attempt, error_to_proto(Unauthenticated(str(refused), definite=True))
                ),
            )
            raise AssertionError from None

    def _cannot_send(self, call: pb.Call) -> pb.Error | None:
        """Return the reason why a call cannot be stored; None if every node can store calls.

        An older node would run the call at once.
        """
        if self._dispatcher.knows(SEND):
            return None
        message = "calls cannot be sent while a node of the cluster is too old to store them"
        error = Unavailable(
            message, definite=True, retryable=True, retry_after_s=1.0, request_id=call.request_id
        )
        return not_definite_after(call.attempt, error_to_proto(error))

    def _own_id(self, call: pb.Call) -> pb.Error | None:
        """Derive the request id of a call with an idempotency key. Return None, or a refusal.

        A call with a reserved request id is refused, too.
        """
        if call.request_id or not call.idempotency_key:
            # The dispatcher refuses a call without a request id.
            return self._taken(call.request_id, call.attempt) if call.request_id else None
        try:
            call.request_id = idempotent_id(call.kind, call.key, call.idempotency_key)
        except ValueError as error:
            self.refused["malformed"] += 1
            refused = error_to_proto(
                InvalidArgument(str(error), path="idempotency_key", definite=True)
            )
            return not_definite_after(call.attempt, refused)
        call.ClearField("idempotency_key")
        call.keep_reply = True
        return None

    def _taken(self, request_id: bytes, attempt: int) -> pb.Error:
        self.refused["malformed"] += 1
        message = (
            f"request ids that begin with {request_id[:1].hex()} are the cluster's own: use a"
            " UUIDv7, or an idempotency key"
        )
        refused = InvalidArgument(message, path="request_id", definite=True, request_id=request_id)
        return not_definite_after(attempt, error_to_proto(refused))

    def _refusal(self, caller: Caller, call: pb.Call) -> pb.Error | None:
        """Check a call's permission and limits. Return a refusal, or None.

        If the call is allowed, set its `caller`.
        """
        error: HoldfastError
        if not caller.may(call.kind, call.method):
            self.refused["permission_denied"] += 1
            error = PermissionDenied(
                f"{caller.subject} may not call {call.kind[:100]}.{call.method[:100]}",
                definite=True,
            )
            if self._few.allow():
                log.info("permission denied: %s, from %s", error.message, caller.peer)
        elif (over := caller.take(call)) is not None:
            self.refused["limit"] += 1
            error = Overloaded(over[0], definite=True, retryable=True, retry_after_s=over[1])
        else:
            call.caller = caller.name
            return None
        error.request_id = call.request_id
        return not_definite_after(call.attempt, error_to_proto(error))


def begin_span(tracing: Tracing, call: pb.Call) -> Span | None:
    """Begin the gateway's span of a call, and return it. A trace may begin with it."""
    from opentelemetry.trace import SpanKind

    return tracing.began(call, SpanKind.SERVER, "gateway", root=True)


class _Session:
    """A session, which gets the replies to its calls.

    It implements `holdfast_cluster.routing.dispatch.Origin`.
    """

    __slots__ = (
        "_push",
        "_task",
        "_tracing",
        "caller",
        "numbers",
        "spans",
        "under_way",
        "unread",
        "writer",
    )

    def __init__(
        self,
        task: asyncio.Task[Any] | None,
        caller: Caller | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.caller = caller
        self._tracing = tracing
        # by the client's id of the call
        self.spans: dict[int, Span] | None = None if tracing is None else {}
        self.writer: FrameWriter[pb.Reply] = FrameWriter(_pack, pb.Reply.ByteSize)
        self._push = self.writer.push
        self._task = task
        self.under_way = 0
        # The calls under way: by the client's id of a call, the dispatcher's number.
        self.numbers: dict[int, int] = {}
        self.unread = False
        """Whether the session ends because its client does not read."""

    def push(self, reply: pb.Reply, size: int) -> None:
        self.under_way -= 1
        self.numbers.pop(reply.id, None)
        if self.caller is not None:
            self.caller.done(1)
        if self.spans is not None and (span := self.spans.pop(reply.id, None)) is not None:
            assert self._tracing is not None
            self._tracing.ended(span, None if reply.result else reply.error)
        self._push(reply, size)
        self._bound()

    def trace(self, call: pb.Call) -> None:
        """Begin the span of a call, if its trace is sampled."""
        assert self._tracing is not None
        assert self.spans is not None
        if (span := begin_span(self._tracing, call)) is not None:
            self.spans[call.id] = span

    def end_spans(self, ids: Set[int] | None = None) -> None:
        """End the spans of calls whose client does not wait any more: those with these ids, or
        all."""
        if self.spans:
            assert self._tracing is not None
            gone: HoldfastError = Unavailable(
                "the session ended before the reply came", retryable=True
            )
            if ids is not None:
                gone = Aborted("the caller does not wait for it any more")
            for number in list(self.spans) if ids is None else ids & self.spans.keys():
                self._tracing.ended(self.spans.pop(number), error_to_proto(gone))

    def _bound(self) -> None:
        if self.writer.backlog > BACKLOG_BYTES_MAX and self._task is not None:
            # The client sends calls but does not read: its replies must not fill the memory.
            self.unread = True
            self._task.cancel()
            self._task = None

    def refuse(self, reply: pb.Reply) -> None:
        """Answer a call that was not sent to a node."""
        self.under_way -= 1
        self._push(reply, reply.ByteSize())
        self._bound()


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


def _request(frame: bytes) -> pb.SessionRequest | None:
    if too_many(frame):
        return None
    try:
        request = pb.SessionRequest.FromString(frame)
    except DecodeError:
        return None
    return (
        request
        if len(request.calls) <= MESSAGES_MAX and len(request.cancel) <= MESSAGES_MAX
        else None
    )


class _Gone:
    """The receiver of replies whose session does not wait any more. It counts out the calls.

    It implements `holdfast_cluster.routing.dispatch.Origin`.
    """

    __slots__ = ("_guest",)

    def __init__(self, caller: Caller | None) -> None:
        self._guest = caller

    def push(self, reply: pb.Reply, size: int) -> None:
        if self._guest is not None:
            self._guest.done(1)


class _Waiting:
    """The receiver of one reply. It implements `holdfast_cluster.routing.dispatch.Origin`."""

    __slots__ = ("_guest", "future")

    def __init__(self, caller: Caller | None) -> None:
        self._guest = caller
        self.future: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()

    def push(self, reply: pb.Reply, size: int) -> None:
        if self._guest is not None:
            # Count it out now, not when the caller goes away: until now the call was under way.
            self._guest.done(1)
        if not self.future.done():
            self.future.set_result(reply)


def _attempt(context: Any) -> int:
    """Return how many earlier attempts of a call have an unknown outcome.

    A caller that brings an id, but does not tell the number, may have tried before: then it is 1.
    """
    said = next(
        (
            str(value)
            for name, value in context.invocation_metadata() or ()
            if name == ATTEMPT_METADATA
        ),
        "1",
    )
    return min(int(said), 1 << 20) if said.isdecimal() and len(said) < 10 else 1


async def _abort(context: Any, error: pb.Error) -> None:
    """End a unary call with the error's gRPC status, and with the error as its detail.

    Both are cut to a size that every gRPC client accepts (8 KiB).
    """
    error.message = _cut(error.message)
    if len(error.data) > _STATUS_DATA_BYTES_MAX:
        error.message += (
            f" (its data of {len(error.data)} bytes is too large for Call: use a Session)"
        )
        error.data = b""
    code = grpc_status(error)
    status = Status(code=code.value[0], message=error.message, details=_details(error))
    await context.abort(
        code, error.message, (("grpc-status-details-bin", status.SerializeToString()),)
    )


def _cut(message: str) -> str:
    """Return the part of a message for which the trailing metadata of a call has room."""
    if (
        len(message) <= _STATUS_MESSAGE_CHARS_MAX
        and len(quote(message)) <= _STATUS_MESSAGE_BYTES_MAX
    ):
        return message
    room, kept = _STATUS_MESSAGE_BYTES_MAX, 0
    for character in message[:_STATUS_MESSAGE_CHARS_MAX]:
        room -= len(quote(character))
        if room < 0:
            break
        kept += 1
    return message[:kept] + "..."


def _details(error: pb.Error) -> list[AnyMessage]:
    """Return the error, and its facts in the standard forms of google.rpc."""
    facts = {
        "definite": str(error.definite).lower(),
        "request_id": error.request_id.hex(),
        "type": error.type,
        "path": error.path,
    }
    reason = pb.Code.Name(error.code).removeprefix("CODE_")
    messages: list[Any] = [
        error,
        error_details_pb2.ErrorInfo(
            reason=reason,
            domain=DOMAIN,
            metadata={name: fact for name, fact in facts.items() if fact},
        ),
    ]
    if error.code == pb.CODE_INVALID_ARGUMENT:
        field = error.path.removeprefix("$").removeprefix(".")
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=error.message[:_DESCRIPTION_CHARS_MAX]
        )
        messages.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retryable and error.retry_after_ms:
        again = error_details_pb2.RetryInfo()
        again.retry_delay.FromMilliseconds(error.retry_after_ms)
        messages.append(again)
    details: list[AnyMessage] = []
    for message in messages:
        detail = AnyMessage()
        detail.Pack(message)
        if details and sum(each.ByteSize() for each in (*details, detail)) > _DETAILS_BYTES_MAX:
            break
        details.append(detail)
    return details


_WIDE = re.compile(rb"\d{16}")
_TEXT_OR_WIDE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?<![\d.eE+])-?\d{16,}(?![\d.eE])')


def wide_integers_as_text(json: bytes) -> bytes:
    """Return the JSON with quotes around all integers beyond +-(2^53 - 1).

    Doubles do not hold all such integers exactly.
    """

    def quoted(found: re.Match[bytes]) -> bytes:
        token = found[0]
        return token if token[:1] == b'"' or abs(int(token)) < 1 << 53 else b'"' + token + b'"'

    return _TEXT_OR_WIDE.sub(quoted, json) if _WIDE.search(json) else json


def _pack(replies: list[pb.Reply]) -> bytes:
    return pb.SessionResponse(replies=replies).SerializeToString()
