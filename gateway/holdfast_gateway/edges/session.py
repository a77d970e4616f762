"""Sessions: streams of batches of calls and replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Any

import grpc
from holdfast.errors import Aborted, HoldfastError, Unavailable, error_to_proto
from holdfast.frames import MESSAGES_MAX, FrameWriter, ends, read_calls
from holdfast.tracing import Tracing
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.routing.dispatch import Dispatcher

from holdfast_gateway.admission.admission import RESERVED, Admission
from holdfast_gateway.admission.auth import Caller

if TYPE_CHECKING:
    from opentelemetry.trace import Span

SESSIONS_MAX = 10_000
"""How many sessions a gateway may have. A session costs about 13 KiB, and 40 KiB more if it has a
connection of its own."""

BACKLOG_BYTES_MAX = 64 << 20
"""How many bytes of replies may wait for a client to read them. The gateway ends a session that
passes it."""
_UNREAD = (
    f"more than {BACKLOG_BYTES_MAX >> 20} MiB of replies wait to be read: the session is ended"
)

_DRAIN_LOOK_S = 0.02
_TAKEN_AT_ONCE = 128  # calls of a frame, before other tasks get a turn


def begin_span(tracing: Tracing, call: pb.Call) -> Span | None:
    """Begin the gateway's span of a call, and return it. A trace may begin with it."""
    from opentelemetry.trace import SpanKind

    return tracing.began(call, SpanKind.SERVER, "gateway", root=True)


class Sessions:
    """The open sessions of a gateway."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        admission: Admission,
        tracing: Tracing | None,
        sessions_max: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._tracing = tracing
        self._sessions_max = sessions_max
        self.count = 0
        """How many sessions of clients are open."""

    async def serve(
        self, caller: Caller | None, greeting: tuple[tuple[str, str], ...], context: Any
    ) -> None:
        """Serve one client's calls, until the client goes away, or the gateway stops.

        `greeting`: the metadata that tells the client that it is connected. End the session, too,
        when the client leaves too many replies unread.
        """
        if await self._serve(caller, greeting, context):
            # The session's memory is free by now. This waits until the client reads, or goes away.
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, _UNREAD)

    async def _serve(
        self, caller: Caller | None, greeting: tuple[tuple[str, str], ...], context: Any
    ) -> bool:
        """Serve a session. Return whether it ended because its client does not read."""
        await self._count_in(caller, context)
        session = _Session(asyncio.current_task(), caller, self._tracing)
        writer = session.writer
        sending = asyncio.create_task(writer.run(context.write))
        sending.add_done_callback(ends(asyncio.current_task()))
        self.count += 1
        try:
            await context.send_initial_metadata(greeting)
            while (frame := await context.read()) is not grpc.aio.EOF:
                if self._admission.draining:
                    break  # do not begin these calls: the client sends them to another gateway
                await self._take_frame(session, frame, context)
                await writer.drained()
            while self._admission.draining and (session.under_way or writer.backlog):
                await asyncio.sleep(_DRAIN_LOOK_S)
        except asyncio.CancelledError:
            # The session is unread, the client went away, or the gateway stops. If the handler
            # raised this, gRPC would log it as an error.
            pass
        finally:
            self.count -= 1
            self._end(session)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        self._admission.refused["unread"] += session.unread
        return session.unread

    async def _count_in(self, caller: Caller | None, context: Any) -> None:
        full = (
            f"{self.count} sessions are open at this gateway"
            if self.count >= self._sessions_max
            else None
        )
        if caller is not None and full is None:
            full = caller.begin_session()
        if full is not None:
            self._admission.refused["limit"] += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, full)

    async def _take_frame(self, session: _Session, frame: bytes, context: Any) -> None:
        request = read_calls(frame, pb.SessionRequest)
        if request is None:
            self._admission.refused["malformed"] += 1
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"the frame cannot be read, or has more than {MESSAGES_MAX} calls",
            )
            raise AssertionError
        caller = session.caller
        if caller is not None and (gone := caller.look(time.time())) is not None:
            self._admission.refused["unauthenticated"] += 1
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, gone)
        for start in range(0, len(request.calls), _TAKEN_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._take(session, request.calls[start : start + _TAKEN_AT_ONCE])
        if request.cancel:
            self._cancel(session, request.cancel)

    def _end(self, session: _Session) -> None:
        """Forget a session, and count out its calls."""
        if session.unread:  # do not work on calls whose replies the client does not read
            self._cancel(session, list(session.numbers))
        caller = session.caller
        inherited = self._dispatcher.forget(session, Gone(caller))
        if caller is not None:
            caller.end_session()
            # Calls that were sent count as under way until a node answers, though the session
            # is gone.
            caller.done(session.under_way - inherited)
        session.end_spans()

    def _take(self, session: _Session, calls: Sequence[pb.Call]) -> None:
        """Send a session's calls to nodes, or refuse them."""
        caller = session.caller
        submit = self._dispatcher.submit
        check_form = self._admission.check_form
        session.under_way += len(calls)
        for call in calls:
            request_id = call.request_id
            # the usual call needs no closer look
            if call.send or not request_id or request_id[:1] >= RESERVED:
                refused = check_form(call)
            else:
                refused = None
            if refused is not None:
                session.refuse(pb.Reply(id=call.id, error=refused))
                continue
            if call.notification or call.chain:  # only nodes may set these
                call.ClearField("notification")
                call.ClearField("chain")
            if caller is None:
                if call.caller:
                    call.ClearField("caller")
            elif (refused := self._admission.check_caller(caller, call)) is not None:
                session.refuse(pb.Reply(id=call.id, error=refused))
                continue
            if session.spans is not None:
                session.trace(call)
            client_id = call.id
            if number := submit(call, session):
                session.numbers[client_id] = number

    def _cancel(self, session: _Session, ids: Sequence[int]) -> None:
        """Cancel calls of a session, by the client's ids."""
        heir = Gone(session.caller)
        for client_id in ids:
            if (number := session.numbers.pop(client_id, 0)) and self._dispatcher.cancel(
                number, heir
            ):
                session.under_way -= 1
        session.end_spans(frozenset(ids))


class _Session:
    """A session, which gets the replies to its calls.

    It implements `holdfast_cluster.routing.pending.Origin`.
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


class Gone:
    """The receiver of replies whose session does not wait any more. It counts out the calls.

    It implements `holdfast_cluster.routing.pending.Origin`.
    """

    __slots__ = ("_caller",)

    def __init__(self, caller: Caller | None) -> None:
        self._caller = caller

    def push(self, reply: pb.Reply, size: int) -> None:
        if self._caller is not None:
            self._caller.done(1)


def _pack(replies: list[pb.Reply]) -> bytes:
    return pb.SessionResponse(replies=replies).SerializeToString()
