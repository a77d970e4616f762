"""Deadlines of many calls with one timer. A call that ends in time schedules nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

TIMEOUT_MAX_S = 300.0
"""The longest deadline of a call, in seconds. A longer deadline becomes this one. Requests are
remembered for twice as long.
"""


def checked_timeout(timeout: object) -> float:
    """Return a timeout in seconds as calls have it, at most `TIMEOUT_MAX_S`. Raise TypeError if it
    is no number, ValueError if it is not above 0.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"a timeout must be a number of seconds, not {timeout!r:.100}")
    if not timeout > 0:  # NaN is not
        raise ValueError(f"a timeout must be more than 0 seconds, not {timeout}")
    return float(min(timeout, TIMEOUT_MAX_S))


def checked_timedelta(what: str, value: object) -> timedelta:
    """Return the value if it is a timedelta. Raise TypeError, which names `what`, if not."""
    if not isinstance(value, timedelta):
        raise TypeError(f"{what} must be a timedelta, not {value!r:.100}")
    return value


class HasDeadline(Protocol):
    """An entry with a `deadline`, in seconds of the event loop's clock."""

    deadline: float


P = TypeVar("P", bound=HasDeadline)

log = logging.getLogger(__name__)

_SWEEP_INTERVAL_MIN_S = 0.01
_AGAIN_S = 5.0


class Deadlines(Generic[P]):
    """Calls `expire` on every entry of `pending` whose deadline has passed, at most 10 ms late on a
    free loop.

    The timer aims at the earliest deadline that the last sweep saw. A sweep is one pass over
    `pending`. If deadlines are seconds away, there is hardly more than one sweep in that time,
    however many calls come and go.
    """

    def __init__(self, pending: Mapping[Any, P], expire: Callable[[P], None]) -> None:
        self._pending = pending
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._next = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float) -> None:
        """Take note of a new entry with this deadline."""
        if deadline < self._next:
            self._schedule(deadline)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = at
        self._timer = self._loop.call_at(at, self._sweep)

    def _sweep(self) -> None:
        now = self._loop.time()
        self._timer = None
        self._next = float("inf")
        for entry in [entry for entry in self._pending.values() if entry.deadline <= now]:
            try:
                self._expire(entry)
            except Exception:  # the failure of one entry must not keep the others from expiring
                log.exception("a call could not be ended at its deadline")
                entry.deadline = now + _AGAIN_S
        earliest = min((entry.deadline for entry in self._pending.values()), default=None)
        if earliest is not None and earliest < self._next:
            self._schedule(max(earliest, now + _SWEEP_INTERVAL_MIN_S))
