"""Ends turns that shall not go on: at their deadline, when nobody waits for them any more, or
because an operator says so."""

from __future__ import annotations

import asyncio
import logging

from holdfast.deadlines import Deadlines
from holdfast.errors import Aborted, DeadlineExceeded, HoldfastError, error_to_proto
from holdfast.signature import Handler
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.objects.activation import COMMITTING, DONE, QUEUED, RUNNING, ReplyPort, Turn
from holdfast_node.objects.activations import Activations
from holdfast_node.objects.outcome import Outcomes
from holdfast_node.objects.requests import Requests, moved

log = logging.getLogger(__name__)

_ABANDON_AGAIN_S = 0.5
_ABANDON_S = 5.0  # how long a turn that was cancelled may take to end


class Cancellation:
    """Cancels the turns of a node. One that goes on all the same is abandoned: whatever it still
    does is void."""

    def __init__(self, requests: Requests, activations: Activations, outcomes: Outcomes) -> None:
        self._requests = requests
        self._activations = activations
        self._outcomes = outcomes
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(requests.turns, self._expire)
        self.watch = self._deadlines.watch
        """A turn with this deadline, of the loop's clock, has begun to wait or to run."""

    def close(self) -> None:
        self._deadlines.close()

    def _expire(self, turn: Turn) -> None:
        """A deadline passed: a turn that waits in the mailbox never starts, one that runs is
        cancelled and rolled back."""
        if turn.state == QUEUED:
            self._unqueue(turn, _expired(turn))
        elif turn.state == RUNNING and turn.stopped is None:
            self._stop(turn, _expired(turn))
        elif turn.state == RUNNING and turn.read_rows is not None:
            self._abandon_read(turn)
        elif turn.state == RUNNING:
            self._abandon(turn)

    def _stop(self, turn: Turn, why: HoldfastError) -> None:
        """Cancel a running turn, which is rolled back; one that goes on all the same
        is abandoned."""
        turn.stopped = why
        turn.deadline = self._loop.time() + _ABANDON_S
        self._deadlines.watch(turn.deadline)
        turn.cancel()

    def cancel(self, request_id: bytes, port: ReplyPort, number: int) -> None:
        """Who made call `number` waits no more. When nobody else waits for the request, its turn
        does not begin, or is rolled back.

        What is committed already stays. The answer still goes to `port`, which counts it.
        """
        turn = self._requests.turns.get(request_id)
        if turn is None:
            return
        if turn.late and (port, number) in turn.late:
            turn.late.remove((port, number))
            self._tell_given_up(turn, port, number)
            return
        if turn.state == COMMITTING:
            return
        waiters = [(turn.port, turn.number), *(turn.also or ())]
        if turn.given_up or (port, number) not in waiters:
            return
        waiters.remove((port, number))
        # a connection that is gone waits for nothing
        waiters = [(other, its) for other, its in waiters if not other.closed]
        error = Aborted("its caller waits no more", definite=True)
        error.request_id = request_id
        if waiters:
            turn.port, turn.number = waiters[0]
            turn.also = waiters[1:]
            self._tell_given_up(turn, port, number)
            return
        turn.port, turn.number, turn.also = port, number, None
        if turn.state == QUEUED:
            self._unqueue(turn, error)
        elif turn.stopped is None:
            turn.given_up = True
            self._stop(turn, error)

    def _tell_given_up(self, turn: Turn, port: ReplyPort, number: int) -> None:
        """Answer one who waits no more for a turn that goes on for others, or runs again
        for them."""
        error = Aborted("its caller waits no more")
        error.request_id = turn.request_id
        port.reply(number, b"", error_to_proto(error), turn.activation.shard)

    def abort(self, kind: str, key: str) -> Turn | None:
        """Roll back the running turn of an object, for an operator, or end a read when no turn
        runs.

        The turn, or None when none runs or it is committed already.
        """
        activation = self._activations.get(kind, key)
        turn = None if activation is None else activation.turn
        if turn is None and activation is not None and activation.reads:
            turn = next(iter(activation.reads))
        if turn is None or turn.state != RUNNING:
            return None
        if turn.stopped is None:
            self._stop(
                turn,
                Aborted(f"{turn.activation.name}.{turn.handler.name}() was aborted by an operator"),
            )
        return turn

    def _unqueue(self, turn: Turn, error: HoldfastError) -> None:
        """Answer a turn that waits in its mailbox: it never begins."""
        turn.state = DONE
        error.request_id = turn.request_id
        self._requests.finish(turn, b"", error_to_proto(error))
        mailbox = turn.activation.mailbox
        if mailbox is not None and turn in mailbox:
            mailbox.remove(turn)

    def _abandon_read(self, turn: Turn) -> None:
        """A read goes on though it was cancelled: it is answered, and sees nothing any more."""
        assert turn.stopped is not None
        turn.stopped.request_id = turn.request_id
        turn.stopped.definite = turn.calls_made == 0
        self.drop_read(turn, error_to_proto(turn.stopped))

    def drop_read(self, turn: Turn, error: pb.Error) -> None:
        """Answer a read; whatever it still does is void."""
        turn.abandon()
        turn.activation.close_read(turn)
        self._requests.finish(turn, b"", error)

    def _abandon(self, turn: Turn) -> None:
        """A handler goes on though it was cancelled: its object goes on without it, from storage,
        and what it still does is void."""
        activation = turn.activation
        assert activation.turn is turn
        if not activation.forgotten and (
            activation.uncommitted is not None or not activation.storage.layers.settled()
        ):
            # The next activation would read the store, which does not show yet what this one wrote.
            turn.deadline = self._loop.time() + _ABANDON_AGAIN_S
            self._deadlines.watch(turn.deadline)
            return
        log.error(
            "%s.%s was cancelled and did not end: it is abandoned",
            activation.name,
            turn.handler.name,
            extra={**activation.log_fields(turn), "method": turn.handler.name},
        )
        turn.abandon()
        waiting, activation.mailbox = activation.mailbox, None
        self._activations.forget(activation)
        activation.storage.rollback()
        for read in list(activation.reads or ()):
            read.cancel()  # its rows are no longer those of the object: it is made again
        self._outcomes.failed += 1
        assert turn.stopped is not None
        turn.stopped.request_id = turn.request_id
        turn.stopped.definite = turn.calls_made == 0
        self._requests.finish(turn, b"", error_to_proto(turn.stopped))
        for queued in waiting or ():
            if queued.state == QUEUED:
                self._requests.turns.pop(queued.request_id, None)
                queued.state = DONE
                # Holdfast's own, bound to this activation: whoever wanted it asks again
                if type(queued.handler) is not Handler:
                    queued.port.reply(queued.number, b"", moved(activation.shard.number), None)
                    continue
                self._requests.deliver_again(
                    queued, ((queued.port, queued.number), *(queued.also or ()))
                )


def _expired(turn: Turn) -> DeadlineExceeded:
    if turn.state in (QUEUED, DONE):
        where = "while it waited for its turn"
    else:
        where = "while it ran" if turn.read_rows is not None else "while it ran: it was rolled back"
    return DeadlineExceeded(
        f"{turn.activation.name}.{turn.handler.name}: the deadline passed {where}",
        definite=turn.calls_made == 0,
        retryable=True,
    )
