"""Cluster time: the time for alarms, delays and request ids. No single wall clock can shift it.

Each process keeps the cluster's time by its own `CLOCK_BOOTTIME`. Every few seconds it asks the
other hosts for their wall clocks. Each host has one vote, however many processes it runs. When a
majority of the hosts has answered, the process takes the median of their clocks. Of an even number
of clocks there are two medians (`Clock._middle`). If the cluster's time lies outside the medians,
the process slews it towards them, by 5 % at most. Otherwise the time runs freely. So one wrong
clock changes nothing, and neither does one clock that jumps. The time of a running process never
goes back. It jumps forward only when the majority has been ahead for `AGREED_S`.

A process that starts takes the time of the processes that run. Until it has that time (`started`),
it uses its own wall clock, and no alarm or delay that is due takes effect.

As long as only a minority of the clocks is wrong, a median of a majority lies between right clocks:
Lamport and Melliar-Smith, Synchronizing clocks in the presence of faults, JACM 1985.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from holdfast_cluster.clocks.boottime import boottime

ASK_S = 5.0
"""The interval at which a process asks the other hosts."""

SLEW = 0.05
"""The part by which cluster time runs faster or slower than `boottime` during a correction."""
HEARD_S = 30.0
"""How long a host's answer counts."""
FAR_MS = 60_000
"""When a clock differs by more, a process logs it. When cluster time is behind by more, it may jump
forward."""
AGREED_S = 900.0
"""How long a majority has to be ahead before cluster time jumps forward to it."""
LONELY_S = 10.0
"""After serving for so long without a majority, a process starts its time by its own wall clock."""
_NEAR_MS = 5.0  # a smaller difference may come from the delay of the answers


class Heard(NamedTuple):
    """A host's clocks, as offsets in ms to this process's `boottime`, heard at second `at`.

    `cluster` is None if the cluster time of the host's process has not started.
    """

    wall: float
    cluster: float | None
    at: float


class Clock:
    """The cluster's time in one process. Pure: `now` is always in seconds of `boottime`."""

    def __init__(self, wall_ms: float, now: float) -> None:
        self.started = False
        self._offset = wall_ms - now * 1000
        self._heard: dict[str, Heard] = {}
        self._latest = 0.0
        self._corrected_at = now
        self._ahead_since = now
        self._served_s = 0.0

    def now_ms(self, now: float) -> int:
        """Return the Unix time in ms. Once the clock has started, the time never goes back."""
        ms = now * 1000 + self._offset
        if self.started:
            self._latest = ms = max(ms, self._latest)
        return int(ms)

    def heard(self, host: str, wall_ms: float, cluster_ms: float | None, now: float) -> None:
        """Record the clocks of another host's process, as they were at `now`."""
        self._heard[host] = Heard(
            wall_ms - now * 1000, None if cluster_ms is None else cluster_ms - now * 1000, now
        )

    def correct(
        self,
        mine: str,
        hosts: Collection[str],
        wanted: int,
        wall_ms: float,
        serving: bool,
        now: float,
    ) -> None:
        """Follow the majority. Call it after each round of asking.

        `mine`: this process's host, "" if it has no vote. `hosts`: the hosts of all members.
        `wanted`: how many hosts there should be at least. `wall_ms`: this process's wall clock.
        `serving`: whether this process serves, so that its time is in use.
        """
        passed, self._corrected_at = min(now - self._corrected_at, 2 * ASK_S), now
        votes = {
            host: told
            for host, told in self._heard.items()
            if host in hosts and now - told.at <= HEARD_S
        }
        if mine:  # another process of this host may have told its cluster time
            votes[mine] = Heard(
                wall_ms - now * 1000, votes[mine].cluster if mine in votes else None, now
            )
        of = max(len({*hosts, mine} - {""}), wanted)
        majority = len(votes) * 2 > of
        if not self.started:
            self._ahead_since = now
            self._served_s += passed if serving else 0.0
            if not mine:  # a process without a vote takes any running time
                majority = any(told.cluster is not None for told in votes.values())
            if majority and (not mine or self._is_clear(votes, of)):
                self._start(votes, mine)
            elif mine:
                self._offset = votes[mine].wall
                self.started = self._served_s >= LONELY_S
            return
        if not majority:
            self._ahead_since = now
            return
        low, high = (
            self._middle([told.wall for told in votes.values()])
            if mine
            else self._running(votes) or (self._offset,) * 2
        )
        self._follow(low, high, passed, now)

    def differing(self, now: float) -> dict[str, float]:
        """Return the hosts whose wall clocks differ by more than `FAR_MS`, each with its
        difference.

        The difference, to the cluster's time, is in ms.
        """
        heard = {
            host: told.wall - self._offset
            for host, told in self._heard.items()
            if now - told.at <= HEARD_S
        }
        return {host: off for host, off in sorted(heard.items()) if abs(off) > FAR_MS}

    def _is_clear(self, votes: dict[str, Heard], of: int) -> bool:
        """Return whether the clocks suffice to start.

        They do when they agree, when all hosts have answered, or when a process's time has started.
        """
        low, high = self._middle([told.wall for told in votes.values()])
        return (
            high - low <= FAR_MS
            or len(votes) >= of
            or any(told.cluster is not None for told in votes.values())
        )

    def _start(self, votes: dict[str, Heard], mine: str) -> None:
        low, high = self._middle([told.wall for told in votes.values()])
        running = [told.cluster for told in votes.values() if told.cluster is not None]
        if not mine:
            low, high = self._middle(running)
        running = [offset for offset in running if low - FAR_MS <= offset <= high + FAR_MS]
        if running:
            self._offset = min(running, key=lambda offset: max(low - offset, offset - high))
        else:
            self._offset = min(max(self._offset, low), high)
        self.started = True

    def _follow(self, low: float, high: float, passed: float, now: float) -> None:
        if self._offset < low - _NEAR_MS:
            if low - self._offset <= FAR_MS:
                self._ahead_since = now
            if now - self._ahead_since >= AGREED_S:
                self._offset = low
            else:
                self._offset += min(low - self._offset, passed * 1000 * SLEW)
            return
        self._ahead_since = now
        if self._offset > high + _NEAR_MS:
            self._offset -= min(self._offset - high, passed * 1000 * SLEW)

    @staticmethod
    def _middle(offsets: list[float]) -> tuple[float, float]:
        """Sort the offsets, and return the lower and the upper median."""
        offsets.sort()
        return offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]

    def _running(self, votes: dict[str, Heard]) -> tuple[float, float] | None:
        running = [told.cluster for told in votes.values() if told.cluster is not None]
        return self._middle(running) if running else None


class Time:
    """The cluster's time in this process, by its real clocks."""

    def __init__(self) -> None:
        self.clock = Clock(wall_ms(), boottime())

    @property
    def started(self) -> bool:
        """Whether the time has started: until then it is this process's own wall clock, and no
        alarm or delay that is due may take effect."""
        return self.clock.started

    @property
    def wall_ahead_s(self) -> float:
        """By how many seconds this process's wall clock is ahead of the cluster's time."""
        return (wall_ms() - self.now_ms()) / 1000

    def now_ms(self) -> int:
        """Return the cluster's time: Unix time in ms."""
        return self.clock.now_ms(boottime())


class WallTime:
    """The wall clock in place of the cluster's time, for code that runs without a cluster."""

    started = True

    def now_ms(self) -> int:
        return int(wall_ms())


WALL = WallTime()


def wall_ms() -> float:
    """Return the wall clock's time: Unix time in ms."""
    return time.time_ns() / 1e6
