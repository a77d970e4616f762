"""An event loop on virtual time: when it has nothing to do, it jumps to the next timer without
waiting.

While a thread works for the loop, or the loop waits for a socket or a child process, real time
passes: the loop cannot know how long that takes.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

_REAL_WAIT_S = 0.02
_CHILD_WATCHER = "waitpid-"  # asyncio.ThreadedChildWatcher's threads, which wait for children


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` is virtual, and begins at 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.threads = 0
        self.working: Callable[[], bool] = lambda: True
        """Returns whether code may be waiting for a socket. An open connection that is not in use
        does not count."""
        super().__init__(_Selector(self))
        self._clock_resolution = 1e-6  # after 194 days a nanosecond is less than a float's last bit
        self._own_files = len(self._selector.get_map())  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now

    def waits_outside(self) -> bool:
        """Return whether the loop waits for a thread, a socket or a child process."""
        if self.threads > 0:
            return True
        if not self.working():
            return False
        files: int = len(self._selector.get_map())  # type: ignore[attr-defined]
        return files > self._own_files or any(
            _CHILD_WATCHER in thread.name for thread in threading.enumerate()
        )

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        self.threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _: object) -> None:
        self.threads -= 1


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        loop = self._loop
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if loop.waits_outside():
            began = monotonic()
            events = super().select(_REAL_WAIT_S if timeout is None else min(timeout, _REAL_WAIT_S))
            loop.now += monotonic() - began
            return events
        events = super().select(0)
        if not events and timeout is not None:
            loop.now += timeout
        return events
