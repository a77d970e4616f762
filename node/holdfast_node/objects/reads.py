"""Calls that wait for no turn: reads, and calls that are stored to run later."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from holdfast.errors import HoldfastError, InvalidArgument, error_to_proto
from holdfast.signature import Handler, Sending
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import SEND

from holdfast_node.log.shards import Shard
from holdfast_node.objects.activation import RUNNING, Turn
from holdfast_node.objects.cancellation import Cancellation
from holdfast_node.objects.context import ReadContext, make_instance
from holdfast_node.objects.environment import Environment
from holdfast_node.objects.gate import answer_when_committed
from holdfast_node.objects.notifier import delay_of
from holdfast_node.objects.outcome import Outcomes
from holdfast_node.objects.requests import Requests, moved


class Reads:
    """Runs calls beside the turns of their objects. Implements `TurnRunner`."""

    def __init__(
        self,
        requests: Requests,
        outcomes: Outcomes,
        cancellation: Cancellation,
        environment: Environment,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._requests = requests
        self._outcomes = outcomes
        self._cancellation = cancellation
        self._environment = environment

    def run(self, turn: Turn, handler: Handler) -> None:
        """Run a read on a fresh instance. It sees the writes of ended turns."""
        activation = turn.activation
        turn.state = RUNNING
        self._requests.turns[turn.request_id] = turn
        if activation.reads is None:
            activation.reads = set()
        activation.reads.add(turn)
        context = ReadContext(activation, self._environment.outgoing, turn)

        async def run() -> Any:
            result = handler.invoke(
                make_instance(context), turn.call.arguments, turn.call.codec == pb.CODEC_JSON
            )
            return await result if handler.is_async else result

        turn.run(run())
        if turn.state == RUNNING:
            self._cancellation.watch(turn.deadline)

    def ended(self, turn: Turn, value: Any, error: BaseException | None) -> None:
        turn.ended_at = perf_counter()
        activation = turn.activation
        activation.close_read(turn)
        if not activation.shard.owned or activation.forgotten:
            self._requests.finish(turn, b"", moved(activation.shard.number))
            return
        if error is None:
            try:
                self._outcomes.set_result(turn, value)
            except Exception as unfit:
                error = unfit
        if error is not None:
            self._outcomes.set_error(turn, error)
        activation.account()
        answer_when_committed(self._requests, turn, None)

    def store(self, turn: Turn, handler: Sending) -> None:
        """Store a call as a notification that a client sends."""
        entry = None
        turn.state = RUNNING
        try:
            entry = self._outcomes.store_call(turn, handler)
        except HoldfastError as refusal:
            refusal.request_id = turn.request_id
            turn.error = error_to_proto(refusal, turn.call.codec)
        except BaseException as error:  # from reading the arguments or the shard's outbox
            self._outcomes.set_error(turn, error)
        turn.ended_at = perf_counter()
        if entry is None:
            self._requests.finish(turn, b"", turn.error)
        else:
            self._requests.turns[turn.request_id] = turn
            self._requests.finish_with(entry, turn)


def runs_beside(handler: Handler, call: pb.Call, shard: Shard) -> Handler | Sending:
    """Return the handler of a call that waits for no turn. Raises InvalidArgument, and Unavailable
    while a node is too old to know such calls."""
    if handler.reads and (call.send or call.notification):
        raise InvalidArgument(
            f"{call.kind}.{call.method} only reads, so it cannot be notified",
            path="method",
            definite=True,
        )
    if not call.send:
        return handler
    shard.check_feature(SEND, "calls cannot be sent")
    delay_of(call)
    return handler.sending
