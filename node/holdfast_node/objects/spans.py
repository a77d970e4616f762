"""The spans of turns and commits, while tracing is on."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from holdfast.tracing import Tracing
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.log.shards import Shard

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class TurnSpan:
    """One sampled turn's span, from the call's arrival to its answer; the waits in the mailbox and
    for the commit are its parts."""

    __slots__ = ("_span", "_tracing")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self._span = span

    @classmethod
    def of(
        cls, tracing: Tracing, call: pb.Call, shard: Shard, arrived: float, alarm: bool
    ) -> TurnSpan | None:
        """The span of a turn that is about to be queued or started; None when its trace is not
        sampled.

        `arrived`: when its call came, as `perf_counter` tells it. `alarm`: whether an alarm fires
        in it.
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
        """The handler's own spans are to be children of this one."""
        self._tracing.enter(self._span)

    def header(self) -> str:
        return self._tracing.header(self._span)

    def ended(
        self, arrived: float, began: float, waited_since: float, error: pb.Error | None
    ) -> None:
        """The turn is answered. Times are those of `perf_counter`: `waited_since`, since when it
        waited for the commit, or 0."""
        now = perf_counter()
        if began is not arrived:
            self._tracing.part(self._span, "queue", arrived, began)
        if waited_since:
            self._tracing.part(self._span, "commit", waited_since, now)
        self._tracing.ended(self._span, error, now)
