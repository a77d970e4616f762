"""The spans of turns and commits, while tracing is on."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from holdfast.tracing import Tracing
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.internal import Firing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from holdfast_node.turn import Turn


class TurnSpan:
    """One sampled turn's span, from the call's arrival to its answer; the waits in the mailbox and for the commit are its parts."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    @classmethod
    def of(cls, tracing: Tracing, turn: Turn) -> TurnSpan | None:
        """The span of a turn that is about to be queued or started; None when its trace is not sampled."""
        from opentelemetry.trace import SpanKind

        call = turn.call
        alarm = type(turn.handler) is Firing
        what = "alarm" if alarm else "notification" if call.notification else "turn"
        kind = SpanKind.CONSUMER if call.notification else SpanKind.INTERNAL if alarm else SpanKind.SERVER
        span = tracing.began(call, kind, what, turn.arrived, root=alarm)
        if span is None:
            return None
        span.set_attribute("holdfast.epoch", turn.activation.shard.epoch)
        span.set_attribute("holdfast.shard", turn.activation.shard.number)
        return cls(tracing, span)

    def enter(self) -> None:
        """The handler's own spans are to be children of this one."""
        self._tracing.enter(self._span)

    def header(self) -> str:
        return self._tracing.header(self._span)

    def ended(self, turn: Turn, error: pb.Error | None) -> None:
        now = perf_counter()
        if turn.began is not turn.arrived:
            self._tracing.part(self._span, "queue", turn.arrived, turn.began)
        if turn.ended_at and turn.waited_for_commit:
            self._tracing.part(self._span, "commit", turn.ended_at, now)
        self._tracing.ended(self._span, error, now)
