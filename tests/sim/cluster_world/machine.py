"""Machines with clocks and a disk, and the processes that run on them."""

from __future__ import annotations

import contextvars
from collections import deque
from typing import TYPE_CHECKING, Any

from .loop import PROCESS, ProcessEnded, VirtualLoop
from .rocks import Disk

if TYPE_CHECKING:
    import random

START_S = 1_800_000_000.0


class Machine:
    """A machine. `rate`: how fast its clocks run. `wall_ahead_s`: how far its wall clock is ahead
    of true time."""

    def __init__(self, loop: VirtualLoop, name: str, chance: random.Random) -> None:
        self.loop = loop
        self.name = name
        self.up = True
        self.rate = 1.0 + chance.uniform(-0.05, 0.05)
        self.wall_ahead_s = chance.uniform(-0.5, 0.5)
        self._booted = chance.uniform(10.0, 1000.0)
        self._slept = 0.0
        self.disk = Disk(loop, chance)
        self.processes: list[Process] = []

    def boottime(self) -> float:
        """CLOCK_BOOTTIME: it counts while the machine sleeps."""
        return self._booted + self.loop.now * self.rate

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC: it does not."""
        return self._booted + self.loop.now * self.rate - self._slept

    def wall(self) -> float:
        """Seconds since 1970, as this machine shows them."""
        return START_S + self.loop.now + self.wall_ahead_s

    def sleep(self, seconds: float) -> None:
        """Suspend the machine, and resume it so much later."""
        self._slept += seconds * self.rate
        for process in self.processes:
            process.stop_for(seconds)

    def fail(self, chance: random.Random) -> None:
        """Lose power."""
        self.up = False
        for process in self.processes:
            process.end("power loss")
        self.disk.lose_power(chance)


class Process:
    """A process. `why`: what it ended by; empty while it runs."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine = machine
        self.loop = machine.loop
        self.name = name
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)
        self.ended = False
        self.why = ""
        self.busy_until = 0.0
        self.step_s = 0.0
        """What a callback takes; 0: no time at all."""
        self.backlog: deque[Any] = deque()
        machine.processes = [each for each in machine.processes if not each.ended]
        machine.processes.append(self)

    @property
    def stopped(self) -> bool:
        """Whether it does nothing at the moment."""
        return self.ended or self.busy_until > self.loop.now

    def stop_for(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT so much later."""
        self.busy_until = max(self.busy_until, self.loop.now + seconds)

    def end(self, why: str) -> None:
        """The process is no more: nothing of it runs again, and its sockets are closed, if the
        machine is up to do it."""
        if not self.ended:
            self.ended = True
            self.why = why
            self.backlog.clear()
            self.machine.disk.released(self)
            self.loop.network.process_ended(self)

    def die(self, why: str) -> None:
        """End from within."""
        self.end(why)
        raise ProcessEnded(why)
