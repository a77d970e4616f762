"""The spans of turns and commits, if tracing is on."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from holdfast.tracing import Tracing
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.log.shards import Shard

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TurnSpan:
    """The span of a sampled turn, from the call's arrival to its answer. The waits in the mailbox
    and for the commit are its parts."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    @classmethod
    def of(
        cls, tracing: Tracing, call: pb.Call, shard: Shard, arrived: float, alarm: bool
    ) -> TurnSpan | None:
        """Return the span of a turn that is about to be queued or started; None if its trace is not
        sampled.

        `arrived`: when its call came, by `perf_counter`. `alarm`: whether the turn fires an alarm.
        """
        from opentelemetry.trace import SpanKind

        what = "alarm" if alarm else "notification" if call.notification else "turn"
        kind = (
            SpanKind.CONSUMER
            if call.notification
            else SpanKind.INTERNAL
            if alarm
            else SpanKind.SERVER
        )
        span = tracing.began(call, kind, what, arrived, root=alarm)
        if span is None:
            return None
        span.set_attribute("holdfast.epoch", shard.epoch)
        span.set_attribute("holdfast.shard", shard.number)
        return cls(tracing, span)

    def enter(self) -> None:
        """Make the handler's own spans children of this one."""
        self._tracing.enter(self._span)

    def header(self) -> str:
        return self._tracing.header(self._span)

    def ended(
        self, arrived: float, began: float, waited_since: float, error: pb.Error | None
    ) -> None:
        """End the span when the turn is answered. Times are those of `perf_counter`.
        `waited_since`: the time since which the turn waited for the commit; 0 if it did not
        wait."""
        now = perf_counter()
        if began is not arrived:
            self._tracing.part(self._span, "queue", arrived, began)
        if waited_since:
            self._tracing.part(self._span, "commit", waited_since, now)
        self._tracing.ended(self._span, error, now)
