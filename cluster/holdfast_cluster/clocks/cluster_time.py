"""Cluster time: what time it is for alarms, delays and request ids, whatever single wall clocks
show.

Each process keeps the cluster's time by its own `CLOCK_BOOTTIME`, and asks the others now and then
what their wall clocks show. Each host has one vote, however many processes it runs. While a
majority of the hosts has been heard and the cluster's time lies outside the two middle ones of
their clocks, it is slewed towards them, by 5 % at most; otherwise it runs freely. So a clock that
is wrong changes nothing, and neither does one that jumps. The time of a running process never goes
back; it jumps forward only when the majority has been ahead for `AGREED_S`.

A process that starts takes the time of those that run. Until it knows better (`started`) it goes by
its own wall clock, and nothing that is due happens.

The middle ones of an even number of clocks are two: see `Clock._middle`. A median of a majority
lies between clocks that are right, as long as a minority is wrong: Lamport and Melliar-Smith,
Synchronizing clocks in the presence of faults, JACM 1985.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from holdfast_cluster.clocks.boottime import boottime

ASK_S = 5.0
"""How often the others are asked."""

SLEW = 0.05
"""How much faster or slower than its clock a process's cluster time runs while it is corrected."""
HEARD_S = 30.0
"""So long a host's word counts."""
FAR_MS = 60_000
"""A clock that differs by more is worth a line in the log; and cluster time that is behind by more
may jump."""
AGREED_S = 900.0
"""How long a majority has to be ahead before cluster time jumps forward to it."""
LONELY_S = 10.0
"""A process that has served for so long and has not heard a majority starts by its own
wall clock."""
_NEAR_MS = 5.0  # less is the error of asking


class Heard(NamedTuple):
    """A host's clocks, as offsets to this process's `boottime` in ms. `cluster` is None while its
    process has not started."""

    wall: float
    cluster: float | None
    at: float


class Clock:
    """The cluster's time of one process. Pure: `now` is always seconds of `boottime`."""

    def __init__(self, wall_ms: float, now: float) -> None:
        self.started = False
        self._offset = wall_ms - now * 1000
        self._heard: dict[str, Heard] = {}
        self._latest = 0.0
        self._corrected_at = now
        self._ahead_since = now
        self._served_s = 0.0

    def now_ms(self, now: float) -> int:
        """Unix time in ms. It does not go back once the clock has started."""
        ms = now * 1000 + self._offset
        if self.started:
            self._latest = ms = max(ms, self._latest)
        return int(ms)

    def heard(self, host: str, wall_ms: float, cluster_ms: float | None, now: float) -> None:
        """A process of another host said what its clocks showed at `now`."""
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
        """Follow the majority; call it whenever others were asked.

        `mine` is this process's host ("" when it has no vote), `hosts` those of all members,
        `wanted` how many there should be at least, `wall_ms` what the own wall clock shows,
        `serving` whether anybody relies on this process's time.
        """
        passed, self._corrected_at = min(now - self._corrected_at, 2 * ASK_S), now
        votes = {
            host: told
            for host, told in self._heard.items()
            if host in hosts and now - told.at <= HEARD_S
        }
        if mine:  # another process of this host may run
            votes[mine] = Heard(
                wall_ms - now * 1000, votes[mine].cluster if mine in votes else None, now
            )
        of = max(len({*hosts, mine} - {""}), wanted)
        majority = len(votes) * 2 > of
        if not self.started:
            self._ahead_since = now
            self._served_s += passed if serving else 0.0
            if not mine:  # a follower takes what there is
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
        """The hosts whose wall clocks differ from the cluster's time by more than `FAR_MS`, and by
        how much (ms)."""
        heard = {
            host: told.wall - self._offset
            for host, told in self._heard.items()
            if now - told.at <= HEARD_S
        }
        return {host: off for host, off in sorted(heard.items()) if abs(off) > FAR_MS}

    def _is_clear(self, votes: dict[str, Heard], of: int) -> bool:
        """Whether the clocks tell what time it is: they agree, or all have been heard, or a process
        that runs knows."""
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
        """The lower and the upper median."""
        offsets.sort()
        return offsets[(len(offsets) - 1) // 2], offsets[len(offsets) // 2]

    def _running(self, votes: dict[str, Heard]) -> tuple[float, float] | None:
        running = [told.cluster for told in votes.values() if told.cluster is not None]
        return self._middle(running) if running else None


class Time:
    """The cluster's time of this process, by its real clocks."""

    def __init__(self) -> None:
        self.clock = Clock(wall_ms(), boottime())

    @property
    def started(self) -> bool:
        """Whether the time is more than what the own wall clock shows: before, nothing that is due
        is to happen."""
        return self.clock.started

    @property
    def wall_ahead_s(self) -> float:
        """How far this process's wall clock is ahead of the cluster's time."""
        return (wall_ms() - self.now_ms()) / 1000

    def now_ms(self) -> int:
        """The cluster's time: Unix time in ms."""
        return self.clock.now_ms(boottime())


class WallTime:
    """The wall clock in place of the cluster's time, for what runs without a cluster."""

    started = True

    def now_ms(self) -> int:
        return int(wall_ms())


WALL = WallTime()


def wall_ms() -> float:
    """What the wall clock shows."""
    return time.time_ns() / 1e6
