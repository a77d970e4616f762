"""The calls of a node that were taken and not answered yet, and how they are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter

from holdfast.errors import (
    InvalidArgument,
    Overloaded,
    WrongOwner,
    error_to_proto,
    not_definite_after,
)
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.log.shards import Entry
from holdfast_node.objects.activation import COMMITTING, DONE, ReplyPort, Turn

_NEVER = float("inf")
_JOINED_MAX = 64
"""The most attempts that may wait for one turn beside the first one. An honest caller has one or
two for each gateway that it tried."""


class _Answer:
    """A turn whose answer waits for an entry. Implements `holdfast_node.log.shards.Waiter`."""

    __slots__ = ("_requests", "_turn")

    def __init__(self, requests: Requests, turn: Turn) -> None:
        self._requests = requests
        self._turn = turn

    def settled(self, entry: Entry) -> None:
        turn = self._turn
        self._requests.finish(turn, turn.result, turn.error)


class Requests:
    """The turns that are queued, run, or wait for their commit, by request id. Each gets one
    answer, which goes to all its callers."""

    def __init__(self, deliver: Callable[[pb.Call, ReplyPort], None]) -> None:
        """`deliver`: takes a call as if it had just come."""
        self._deliver = deliver
        self.turns: dict[bytes, Turn] = {}

    def __len__(self) -> int:
        return len(self.turns)

    def finish_with(self, entry: Entry, turn: Turn) -> None:
        """Answer a turn when an entry is committed, or is abandoned because its shard left this
        node."""
        turn.state = COMMITTING
        turn.deadline = _NEVER
        entry.waiters.append(_Answer(self, turn))

    def finish(self, turn: Turn, result: bytes, error: pb.Error | None) -> None:
        """Answer a turn to all callers that wait for it."""
        self.turns.pop(turn.request_id, None)
        shard = turn.activation.shard
        if not shard.owned and error is None:
            # Committed or not, this node may not speak for the shard any more. If the turn
            # committed, the next attempt finds the kept reply.
            result, error = b"", moved(shard.number)
        if error is not None:
            not_definite_after(turn.attempt, error)
        turn.activation.stats[turn.handler.name].ended(
            turn.arrived, turn.began, turn.ended_at, perf_counter(), error
        )
        if turn.span is not None:
            turn.span.ended(
                turn.arrived, turn.began, turn.ended_at if turn.state == COMMITTING else 0.0, error
            )
        turn.state = DONE
        turn.port.reply(turn.number, result, error, shard)
        for port, number in turn.also or ():
            port.reply(number, result, error, shard)
        if turn.late:
            self.deliver_again(turn, turn.late)

    def join(self, turn: Turn, call: pb.Call, port: ReplyPort) -> None:
        """Join another attempt to the turn that runs the request already, so that both get its
        answer. Refuse the attempt if another call has used the id, or if too many wait."""
        before = turn.call
        if (call.kind, call.key, call.method, call.codec, call.arguments, call.send) != (
            before.kind,
            before.key,
            before.method,
            before.codec,
            before.arguments,
            before.send,
        ):
            error = InvalidArgument(
                f"request id {call.request_id.hex()} is in use by another call",
                path="request_id",
                definite=True,
            )
            port.reply(call.id, b"", not_definite_after(call.attempt, error_to_proto(error)), None)
            return
        if len(turn.also or ()) + len(turn.late or ()) >= _JOINED_MAX:
            full = overloaded(
                f"{_JOINED_MAX} attempts of request {call.request_id.hex()} wait already"
            )
            full.definite = False
            port.reply(call.id, b"", error_to_proto(full), None)
            return
        turn.attempt = max(turn.attempt, call.attempt)
        # The turn is being rolled back, because its callers have cancelled it. This attempt gets a
        # turn of its own.
        if turn.given_up:
            turn.late = [*(turn.late or ()), (port, call.id)]
            return
        if turn.also is None:
            turn.also = []
        turn.also.append((port, call.id))

    def deliver_again(self, turn: Turn, waiters: Iterable[tuple[ReplyPort, int]]) -> None:
        """Deliver the call of an ended turn again, once for each waiting attempt."""
        for port, number in waiters:
            again = pb.Call()
            again.CopyFrom(turn.call)
            again.id = number
            again.attempt = max(again.attempt, turn.attempt)
            self._deliver(again, port)


def overloaded(message: str) -> Overloaded:
    """Return the error of a call for which there is no room."""
    return Overloaded(message, definite=True, retryable=True, retry_after_s=0.1)


def moved(shard: int) -> pb.Error:
    """Return the error of a call whose shard has left this node. The call runs again at the shard's
    next owner."""
    return error_to_proto(
        WrongOwner(f"shard {shard} is no longer served by this node", retryable=True)
    )
