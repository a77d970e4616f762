"""An event loop whose time is virtual, for many processes that share one thread. The same callbacks
give the same order.

Every callback belongs to the process whose context it was made in. The loop drops the callbacks of
a process that has ended. It holds those of a process that is stopped, or is still busy with an
earlier callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from .machine import Process
    from .network import Network

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)
"""The process that runs; None for the world itself."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

_WORLD = contextvars.Context()
_SPINS_MAX = 200_000
"""Callbacks in one instant: more of them are a loop that never ends."""


class ProcessEnded(BaseException):
    """Unwinds the code of a process that has ended."""


class WorldStandsStill(Exception):
    """Nothing will ever happen again, or nothing but callbacks happens."""


class _Handle:
    """A callback, of a process or (None) of the world. `at`: when it is due, by its process's
    clock."""

    __slots__ = ("args", "at", "callback", "context", "dropped", "process")

    def __init__(
        self,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: contextvars.Context,
        process: Process | None,
        at: float = 0.0,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.process = process
        self.at = at
        self.dropped = False

    # -- asyncio.TimerHandle

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.at


class _Task(asyncio.Task[Any]):
    """A task that sets order by its number, not by its address: task groups cancel theirs in the
    order of a set."""

    def __init__(self, number: int, coroutine: Any, loop: Any, context: Any) -> None:
        self._number = number
        super().__init__(coroutine, loop=loop, context=context)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.BaseEventLoop):
    """`now` is the world's time in seconds. `time()` is that of the clock of the process
    that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.network: Network
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[tuple[Process | None, str, BaseException | None]] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self._count = 0
        self._left = _SPINS_MAX
        self._queue: deque[_Handle] = deque()
        self.set_task_factory(self._new_task)
        self.set_exception_handler(lambda _, context: self._failed(context))

    def time(self) -> float:
        process = PROCESS.get()
        return self.now if process is None else process.machine.monotonic()

    # -- callbacks

    # What these return has the methods of asyncio's handles, and is none.
    def call_soon(
        self,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        if context is None:
            context = contextvars.copy_context()
        handle = _Handle(callback, args, context, context.get(PROCESS))
        self._queue.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        if context is None:
            context = contextvars.copy_context()
        handle = _Handle(callback, args, context, context.get(PROCESS), when)
        self._set(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def world_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call back after a time of the world's, as the world itself."""
        self._world_at(self.now + delay, callback, *args)

    def _world_at(self, at: float, callback: Callable[..., Any], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._timers, (at, self._count, _Handle(callback, args, _WORLD, None, at)))

    def post(self, process: Process, callback: Callable[..., Any], *args: Any) -> None:
        """Call back in a process, as soon as it can."""
        if not process.ended:
            self._queue.append(_Handle(callback, args, process.context, process))

    def start(
        self, process: Process, coroutine: Coroutine[Any, Any, Any], name: str
    ) -> asyncio.Task[Any]:
        """Run a coroutine in a process."""
        return self.create_task(coroutine, name=name, context=process.context)

    def run_in_executor(
        self, executor: Any, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """A thread of the pool: it works for a moment, and then is done at once."""
        done: asyncio.Future[_T] = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(result)

        self.call_later(0.001, work)
        return done

    # -- sockets

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return self.network.listen(protocol_factory, host, port)

    # -- running

    def _run_once(self) -> None:
        queue = self._queue
        if not queue:
            self._advance()
        while queue and not self._stopping:  # type: ignore[attr-defined]
            handle = queue.popleft()
            if not handle.dropped:
                self._run_in(handle)
            self._left -= 1
            if not self._left:
                raise WorldStandsStill(
                    f"at {self.now:.3f} callbacks go on and on, now {handle.callback}"
                )

    def _advance(self) -> None:
        """Go to when something is due."""
        timers = self._timers
        while timers and timers[0][2].dropped:
            heapq.heappop(timers)
        if not timers:
            raise WorldStandsStill("nothing is due")
        if timers[0][0] > self.now:
            self.now = timers[0][0]
            self._left = _SPINS_MAX
        now = self.now
        while timers and timers[0][0] <= now:
            handle = heapq.heappop(timers)[2]
            if handle.dropped:
                continue
            process = handle.process
            if process is not None and process.machine.monotonic() < handle.at - 1e-6:
                self._set(handle)  # its machine slept meanwhile, and the timer with it
            else:
                self._queue.append(handle)

    def _set(self, handle: _Handle) -> None:
        when, process = handle.at, handle.process
        at = (
            when
            if process is None
            else self.now + max(0.0, when - process.machine.monotonic()) / process.machine.rate
        )
        self._count += 1
        heapq.heappush(self._timers, (at, self._count, handle))

    def _run_in(self, handle: _Handle) -> None:
        process = handle.process
        if process is None:
            self._run(handle)
        elif process.ended:
            pass
        elif process.backlog or process.busy_until > self.now:
            process.backlog.append(handle)
            if len(process.backlog) == 1:
                self._world_at(process.busy_until, self._go_on, process)
        else:
            self._run(handle)
            if process.step_s:
                process.busy_until = max(process.busy_until, self.now + process.step_s)

    def _go_on(self, process: Process) -> None:
        backlog = process.backlog
        while backlog and not process.ended and process.busy_until <= self.now:
            handle = backlog.popleft()
            if not handle.dropped:
                self._run(handle)
                if process.step_s:
                    process.busy_until = max(process.busy_until, self.now + process.step_s)
        if backlog and not process.ended:
            self._world_at(process.busy_until, self._go_on, process)

    def _run(self, handle: _Handle) -> None:
        try:
            handle.context.run(handle.callback, *handle.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            process = handle.process
            if not isinstance(error, ProcessEnded) and (process is None or not process.ended):
                self.errors.append((process, f"{handle.callback}", error))

    def _new_task(self, loop: Any, coroutine: Any, context: Any = None) -> asyncio.Task[Any]:
        self._count += 1
        task = _Task(self._count, coroutine, self, context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        # A process that ended leaves tasks: they may not be collected, and unwound, at any moment.
        self.tasks.append(task)
        if len(self.tasks) > 4096:
            self.tasks = [each for each in self.tasks if not each.done()]
        return task

    def _failed(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        process = PROCESS.get()
        if not isinstance(error, ProcessEnded) and (process is None or not process.ended):
            self.errors.append((process, str(context.get("message")), error))

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    def _timer_handle_cancelled(self, handle: Any) -> None:
        pass

    def bury(self) -> None:
        """Unwind what still is under way, when the world is over. What it says meanwhile is not
        heard."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for task in self.tasks:
                if not task.done():
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()
            self.tasks.clear()
        finally:
            sys.unraisablehook = hook
        self._timers.clear()
        self._queue.clear()
