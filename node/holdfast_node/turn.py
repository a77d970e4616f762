"""A turn: one request executed by an activation, start to end, alone.

A turn steps its handler's coroutine itself. Most handlers never wait, since storage is local, and end in the first step: no
asyncio.Task is made for them, which is most of what a call would cost. One that waits is woken by the future that it waits for.

To the handler a turn looks like the task it runs in: `asyncio.current_task()` is the turn, so `asyncio.timeout`, `TaskGroup`
and cancellation work. This is what asyncio documents for custom task implementations ("Extending: task lifetime support"); the
stepping follows CPython's asyncio/tasks.py, Task.__step.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from holdfast.signature import Handler, Sending
from holdfast.v1 import objects_pb2 as pb

if TYPE_CHECKING:
    from holdfast.errors import HoldfastError

    from holdfast_node.activation import Activation
    from holdfast_node.internal import Firing, InternalHandler
    from holdfast_node.reading import ReadContext
    from holdfast_node.shards import Entry, Shard
    from holdfast_node.spans import TurnSpan

_swap_current_task: Callable[[Any, Any], Any]
if sys.version_info >= (3, 12):
    _swap_current_task = asyncio.tasks._swap_current_task
else:

    def _swap_current_task(loop: Any, task: Any) -> Any:
        outer = _current_tasks.pop(loop, None)
        if task is not None:
            _current_tasks[loop] = task
        return outer

    _current_tasks: dict[Any, Any] = vars(asyncio.tasks)["_current_tasks"]

ON_ACTIVATE_CALLS = 1 << 30
"""Where the numbers of the calls that `on_activate` makes begin."""

QUEUED, RUNNING, COMMITTING, DONE = range(4)


class ReplyPort(Protocol):
    """Where a reply goes: the stream, or the caller, that the call came from. `closed`: nobody is there any more."""

    closed: bool

    def reply(self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None) -> None:
        """Take the reply to call `number`: a result, or an error. It may leave only while `shard` may be answered for."""


class Turn:
    """One request on its way through an object. `deadline` is on the loop's clock.

    `port` gets the reply to call `number`; `also` lists who sent the same request again and gets it too.
    `ended` is called once, with the value or the exception that the handler ended with; `answer` when the entry is settled that
    the turn's answer waits for.
    """

    stepping: ClassVar[Turn | None] = None
    """The turn whose handler's code runs at this moment; the watchdog reads it from its thread."""

    __slots__ = (
        "__weakref__",
        "_cancel_requests",
        "_context",
        "_coroutine",
        "_fut_waiter",  # asyncio.Task's own name for it: libraries look there
        "_must_cancel",
        "activation",
        "also",
        "answer",
        "arrived",
        "attempt",
        "began",
        "call",
        "call_number",
        "calls_made",
        "deadline",
        "ended",
        "ended_at",
        "error",
        "given_up",
        "handler",
        "late",
        "loop",
        "number",
        "port",
        "reading",
        "request_id",
        "result",
        "span",
        "state",
        "stopped",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        activation: Activation,
        call: pb.Call,
        handler: Handler | Sending | Firing | InternalHandler,
        port: ReplyPort,
        deadline: float,
        ended: Callable[[Turn, Any, BaseException | None], None],
        answer: Callable[[Turn], None],
    ) -> None:
        self.loop = loop
        self.activation = activation
        self.call = call
        self.handler = handler
        self.request_id = call.request_id
        self.attempt = call.attempt
        self.port = port
        self.number = call.id
        self.also: list[tuple[ReplyPort, int]] | None = None
        self.deadline = deadline
        self.ended = ended
        self.answer = answer
        self.state = QUEUED
        self.stopped: HoldfastError | None = None
        """Why the turn was cancelled: its deadline, an operator, or that its caller waits no more."""
        self.given_up = False
        """Whether it is rolled back because nobody waits for it any more."""
        self.late: list[tuple[ReplyPort, int]] | None = None
        """Who sent the same request again since then: it runs again for them."""
        self.calls_made = 0
        self.call_number = 0
        self.result = b""
        self.error: pb.Error | None = None
        self.arrived = self.began = perf_counter()
        self.ended_at = 0.0
        self.span: TurnSpan | None = None
        self.reading: ReadContext | None = None
        """What a read has that runs beside its object's turns; None for a turn."""
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._context: Context | None = None
        self._fut_waiter: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancel_requests = 0

    # -- running

    def settled(self, entry: Entry) -> None:
        """The entry that the answer waited for is committed, or abandoned."""
        self.answer(self)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Take the first step of the handler; it may well be the last."""
        self._context = copy_context()
        if self.span is not None:
            self._context.run(self.span.enter)
        self._coroutine = coroutine
        self._step(None)

    def _step(self, thrown: BaseException | None) -> None:
        coroutine, context, loop = self._coroutine, self._context, self.loop
        assert coroutine is not None
        assert context is not None
        if self._must_cancel:
            self._must_cancel = False
            if not isinstance(thrown, asyncio.CancelledError):
                thrown = asyncio.CancelledError()
        self._fut_waiter = None
        outer = _swap_current_task(loop, self)
        Turn.stepping = self
        try:
            awaited = context.run(coroutine.send, None) if thrown is None else context.run(coroutine.throw, thrown)
        except StopIteration as stop:
            self._coroutine = None
            value, error = stop.value, None
        except BaseException as raised:  # sys.exit() in a handler ends the turn, not the node
            self._coroutine = None
            value, error = None, raised
        else:
            self._wait_for(awaited)
            return
        finally:
            Turn.stepping = None
            _swap_current_task(loop, outer)
        self.ended(self, value, error)

    def _wait_for(self, awaited: Any) -> None:
        if awaited is None:  # asyncio.sleep(0)
            self.loop.call_soon(self._step, None)
        elif getattr(awaited, "_asyncio_future_blocking", None):
            awaited._asyncio_future_blocking = False
            awaited.add_done_callback(self._wake)
            self._fut_waiter = awaited
            if self._must_cancel and awaited.cancel():
                self._must_cancel = False
        else:
            error = RuntimeError(f"a handler awaited {awaited!r}, which asyncio does not know")
            self.loop.call_soon(self._step, error)

    def _wake(self, future: asyncio.Future[Any]) -> None:
        try:
            future.result()
        except BaseException as error:
            self._step(error)
        else:
            self._step(None)

    # -- what asyncio expects of a task

    def cancel(self, msg: Any = None) -> bool:
        """Raise CancelledError in the handler where it waits."""
        if self._coroutine is None:
            return False
        self._cancel_requests += 1
        if self._fut_waiter is not None and self._fut_waiter.cancel(msg=msg):
            return True
        self._must_cancel = True
        return True

    def cancelling(self) -> int:
        return self._cancel_requests

    def uncancel(self) -> int:
        if self._cancel_requests > 0:
            self._cancel_requests -= 1
        return self._cancel_requests

    def done(self) -> bool:
        return self._coroutine is None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self.loop

    def get_coro(self) -> Coroutine[Any, Any, Any] | None:
        return self._coroutine

    def get_name(self) -> str:
        return f"turn {self.activation.name}.{self.handler.name}"

    def add_done_callback(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("a turn ends with its handler; it has no callbacks")

    @property
    def waited_for_commit(self) -> bool:
        """While it is answered: whether its reply waited for an entry."""
        return self.state == COMMITTING

    # -- what self.request shows

    @property
    def id(self) -> bytes:
        return self.request_id

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.call.metadata)

    @property
    def caller(self) -> str:
        return self.call.caller

    @property
    def remaining_s(self) -> float:
        return max(0.0, self.deadline - self.loop.time())
