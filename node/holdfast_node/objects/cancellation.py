"""Cancelling turns: at their deadline, when no caller waits any more, or when an operator aborts
them."""

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
_ABANDON_S = 5.0  # how long a cancelled turn may take to end


class Cancellation:
    """Cancels the turns of a node. A turn that does not end then is abandoned: all that it still
    does is ignored."""

    def __init__(self, requests: Requests, activations: Activations, outcomes: Outcomes) -> None:
        self._requests = requests
        self._activations = activations
        self._outcomes = outcomes
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(requests.turns, self._expire)
        self.watch = self._deadlines.watch
        """Called with the deadline, of the loop's clock, of a turn that begins to wait or to
        run."""

    def close(self) -> None:
        self._deadlines.close()

    def _expire(self, turn: Turn) -> None:
        """End a turn whose deadline has passed. A turn in the mailbox never starts. A running turn
        is cancelled and rolled back."""
        if turn.state == QUEUED:
            self._unqueue(turn, _expired(turn))
        elif turn.state == RUNNING and turn.stopped is None:
            self._stop(turn, _expired(turn))
        elif turn.state == RUNNING and turn.read_rows is not None:
            self._abandon_read(turn)
        elif turn.state == RUNNING:
            self._abandon(turn)

    def _stop(self, turn: Turn, why: HoldfastError) -> None:
        """Cancel a running turn, which is rolled back. If it does not end within `_ABANDON_S`, it
        is abandoned."""
        turn.stopped = why
        turn.deadline = self._loop.time() + _ABANDON_S
        self._deadlines.watch(turn.deadline)
        turn.cancel()

    def cancel(self, request_id: bytes, port: ReplyPort, number: int) -> None:
        """Take call `number` of `port` off a request: its caller does not wait any more. If no
        other caller waits for the request, its turn does not begin, or is rolled back.

        Committed writes stay. The answer still goes to `port`, which counts it.
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
        # A closed connection does not wait any more.
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
        """Answer a call that was cancelled, while the turn goes on or runs again for others."""
        error = Aborted("its caller waits no more")
        error.request_id = turn.request_id
        port.reply(number, b"", error_to_proto(error), turn.activation.shard)

    def abort(self, kind: str, key: str) -> Turn | None:
        """Roll back the running turn of an object, for an operator. If no turn runs, end a read.

        Return the turn or read; None if none runs, or if the turn has ended and waits for its
        commit.
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
        """Answer a turn that waits in its mailbox, and remove it there: it never begins."""
        turn.state = DONE
        error.request_id = turn.request_id
        self._requests.finish(turn, b"", error_to_proto(error))
        mailbox = turn.activation.mailbox
        if mailbox is not None and turn in mailbox:
            mailbox.remove(turn)

    def _abandon_read(self, turn: Turn) -> None:
        """Answer a read that goes on after it was cancelled. It sees nothing any more."""
        assert turn.stopped is not None
        turn.stopped.request_id = turn.request_id
        turn.stopped.definite = turn.calls_made == 0
        self.drop_read(turn, error_to_proto(turn.stopped))

    def drop_read(self, turn: Turn, error: pb.Error) -> None:
        """Answer a read, and ignore all that it still does."""
        turn.abandon()
        turn.activation.close_read(turn)
        self._requests.finish(turn, b"", error)

    def _abandon(self, turn: Turn) -> None:
        """Answer a turn that goes on after it was cancelled, and ignore all that it still does. Its
        object starts anew from storage."""
        activation = turn.activation
        assert activation.turn is turn
        if not activation.forgotten and (
            activation.uncommitted is not None or not activation.storage.layers.settled()
        ):
            # The next activation would read the store, where the writes of this one are not visible
            # yet.
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
            read.cancel()  # its rows are not the object's any more; it runs again
        self._outcomes.failed += 1
        assert turn.stopped is not None
        turn.stopped.request_id = turn.request_id
        turn.stopped.definite = turn.calls_made == 0
        self._requests.finish(turn, b"", error_to_proto(turn.stopped))
        for queued in waiting or ():
            if queued.state == QUEUED:
                self._requests.turns.pop(queued.request_id, None)
                queued.state = DONE
                # A turn of Holdfast's own is bound to this activation. The service that wanted it
                # tries again.
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
