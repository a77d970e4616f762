"""An event loop whose time is virtual, for many processes that share one thread. The same callbacks give the same order.

Every callback belongs to the process whose context it was made in. The loop drops the callbacks of a process that has ended, and
holds those of a process that is stopped, or that is still busy with the callback before.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .machine import Process
    from .network import Network

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)
"""The process that runs; None for the world itself."""

_SPINS_MAX = 200_000
"""Callbacks in one instant: more of them are a loop that never ends."""


class ProcessEnded(BaseException):
    """Unwinds the code of a process that has ended."""


class WorldStandsStill(Exception):
    """Nothing will ever happen again, or nothing but callbacks happens."""


class _Handle(asyncio.Handle):
    __slots__ = ("process",)

    process: Process | None


class _Timer(asyncio.TimerHandle):
    __slots__ = ("process",)

    process: Process | None


class VirtualLoop(asyncio.BaseEventLoop):
    """`now` is the world's time in seconds. `time()` is that of the clock of the process that asks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.network: Network
        self.tasks: list[asyncio.Task[Any]] = []
        self.errors: list[tuple[Process | None, str, BaseException | None]] = []
        self._timers: list[tuple[float, int, _Timer]] = []
        self._count = 0
        self._queue: deque[_Handle | _Timer] = deque()
        self._spins = 0
        self.set_task_factory(self._new_task)
        self.set_exception_handler(VirtualLoop._failed)

    def time(self) -> float:
        process = PROCESS.get()
        return self.now if process is None else process.machine.monotonic()

    # -- callbacks

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> Any:
        handle = _Handle(callback, args, self, context)
        handle.process = PROCESS.get() if context is None else context.get(PROCESS)
        self._queue.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None) -> Any:
        timer = _Timer(when, callback, args, self, context)
        timer.process = PROCESS.get() if context is None else context.get(PROCESS)
        self._set(timer)
        return timer

    def world_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call back after a time of the world's, as the world itself."""
        timer = _Timer(self.now + delay, callback, args, self, WORLD)
        timer.process = None
        self._count += 1
        heapq.heappush(self._timers, (timer._when, self._count, timer))  # type: ignore[attr-defined]

    def post(self, process: Process, callback: Callable[..., Any], *args: Any) -> None:
        """Call back in a process, as soon as it can."""
        if not process.ended:
            handle = _Handle(callback, args, self, process.context)
            handle.process = process
            self._queue.append(handle)

    def start(self, process: Process, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine in a process."""
        return self.create_task(coroutine, name=name, context=process.context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """A thread of the pool: it works for a moment, and then is done at once."""
        done = self.create_future()

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

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return self.network.listen(protocol_factory, host, port)

    # -- running

    def _run_once(self) -> None:
        if self._queue:
            self._spins += 1
        else:
            self._spins = 0
            self._advance()
        if self._spins > _SPINS_MAX:
            raise WorldStandsStill(f"at {self.now:.3f} callbacks go on and on")
        for _ in range(len(self._queue)):
            handle = self._queue.popleft()
            if not handle._cancelled:  # type: ignore[union-attr]
                self._run_in(handle)
            if self._stopping:  # type: ignore[attr-defined]
                break

    def _advance(self) -> None:
        """Go to when something is due."""
        timers = self._timers
        while timers and timers[0][2]._cancelled:  # type: ignore[attr-defined]
            heapq.heappop(timers)
        if not timers:
            raise WorldStandsStill("nothing is due")
        self.now = max(self.now, timers[0][0])
        while timers and timers[0][0] <= self.now:
            timer = heapq.heappop(timers)[2]
            if timer._cancelled:  # type: ignore[attr-defined]
                continue
            process = timer.process
            if process is not None and process.machine.monotonic() < timer._when - 1e-6:  # type: ignore[attr-defined]
                self._set(timer)  # its machine slept meanwhile, and the timer with it
            else:
                self._queue.append(timer)

    def _set(self, timer: _Timer) -> None:
        when = timer._when  # type: ignore[attr-defined]
        process = timer.process
        at = when if process is None else self.now + max(0.0, when - process.machine.monotonic()) / process.machine.rate
        self._count += 1
        heapq.heappush(self._timers, (at, self._count, timer))

    def _run_in(self, handle: _Handle | _Timer) -> None:
        process = handle.process
        if process is None:
            handle._run()
        elif process.ended:
            pass
        elif process.backlog or process.busy_until > self.now:
            process.backlog.append(handle)
            if len(process.backlog) == 1:
                self.world_later(max(0.0, process.busy_until - self.now), self._go_on, process)
        else:
            handle._run()
            if process.step_s:
                process.busy_until = max(process.busy_until, self.now + process.step_s)

    def _go_on(self, process: Process) -> None:
        backlog = process.backlog
        while backlog and not process.ended and process.busy_until <= self.now:
            handle = backlog.popleft()
            if not handle._cancelled:
                handle._run()
                if process.step_s:
                    process.busy_until = max(process.busy_until, self.now + process.step_s)
        if backlog and not process.ended:
            self.world_later(process.busy_until - self.now, self._go_on, process)

    def _new_task(self, loop: Any, coroutine: Any, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=self, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)  # a process that ended leaves tasks: they may not be collected, and unwound, at any moment
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
        """Unwind what still is under way, when the world is over. What it says meanwhile is not heard."""
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            for task in self.tasks:
                if not task.done():
                    with contextlib.suppress(BaseException):
                        task.get_coro().close()  # type: ignore[union-attr]
            self.tasks.clear()
        finally:
            sys.unraisablehook = hook
        self._timers.clear()
        self._queue.clear()


WORLD = contextvars.Context()
