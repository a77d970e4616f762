"""Steps of a handler's coroutine, without a task.

Storage is local, so most handlers never wait, and end in the first step. No asyncio.Task is made
for them, because it would be most of the cost of a call. A handler that waits is woken by its
future.

To the handler a `Stepped` looks like its task: `asyncio.current_task()` returns it, so
`asyncio.timeout`, `TaskGroup` and cancellation work. asyncio documents this for custom task
implementations ("Extending: task lifetime support"). The stepping follows CPython's
asyncio/tasks.py, Task.__step.
"""

from __future__ import annotations

import asyncio
import asyncio.tasks
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

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


Ended = Callable[[Any, Any, BaseException | None], None]


class _Stepping:
    """Holds the running coroutine: `now` is the `Stepped` whose code runs now. The watchdog reads
    it from its thread.

    `now` is not an attribute of a class. When a class attribute is set, CPython drops its cached
    method look-ups for the class.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now: Stepped | None = None


STEPPING = _Stepping()


class Stepped:
    """Runs one coroutine, and is told of its end. Looks like a task to asyncio."""

    __slots__ = (
        "__weakref__",
        "_cancel_requests",
        "_context",
        "_coroutine",
        "_fut_waiter",  # asyncio.Task's own name for it: libraries look there
        "_must_cancel",
        "ended",
        "enter",
        "loop",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Ended) -> None:
        self.loop = loop
        self.ended: Ended = ended
        """Called once with this object, and with the value or the exception with which the
        coroutine ended."""
        self.enter: Callable[[], None] | None = None
        """Called in the coroutine's context before its first step."""
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._context: Context | None = None
        self._fut_waiter: asyncio.Future[Any] | None = None
        self._must_cancel = False
        self._cancel_requests = 0

    def get_name(self) -> str:
        """Return its name in logs and in asyncio's debugger."""
        raise NotImplementedError

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Take the first step of the handler, which is often the last."""
        self._context = copy_context()
        if self.enter is not None:
            self._context.run(self.enter)
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
        STEPPING.now = self
        try:
            awaited = (
                context.run(coroutine.send, None)
                if thrown is None
                else context.run(coroutine.throw, thrown)
            )
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
            STEPPING.now = None
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

    # -- the methods that asyncio expects of a task

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

    def add_done_callback(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("a turn ends with its handler; it has no callbacks")
