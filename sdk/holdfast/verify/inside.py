"""Faults inside a node's process, for `holdfast verify` and for tests: a slow disk, and a wrong
wall clock.

A process started with HOLDFAST_FAULTS=FOLDER looks for faults in that folder. While the file
`fsync_s` is there, each fsync of its store takes that many seconds more. While `clock_s` is there,
its wall clock is that many seconds ahead (below 0: behind).
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = "HOLDFAST_FAULTS"
FSYNC_S, CLOCK_S = "fsync_s", "clock_s"
_LOOK_S = 0.02
_CLOCKS = frozenset({"time", "time_ns"})


class _Amount:
    """The number in a file, or 0 if there is no file. It reads the file now and then."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._value = 0.0
        self._at = float("-inf")

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._at >= _LOOK_S:
            self._at = now
            try:
                self._value = float(self._path.read_text() or 0)
            except FileNotFoundError:
                self._value = 0.0
        return self._value


def set_fault(folder: Path, fault: str, amount: float) -> None:
    """Begin a fault of the process that looks into `folder`. An amount of 0 ends the fault."""
    file = folder / fault
    if not amount:
        file.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{fault}"
    new.write_text(str(amount))
    new.rename(file)


def install() -> None:
    """Make this process look for its faults, if it was started with HOLDFAST_FAULTS. A module that
    imported `time.time` by name keeps the right time.
    """
    if not (folder := os.environ.get(FOLDER)):
        return
    store = importlib.import_module(
        "holdfast_node.store.rocks"
    ).Store  # the SDK must not import the node's package, but this code runs inside a node
    clock_s, fsync_s = _Amount(Path(folder, CLOCK_S)), _Amount(Path(folder, FSYNC_S))
    wall, wall_ns, sync = time.time, time.time_ns, store.sync

    def slow_sync(self: Any) -> None:
        sync(self)
        if extra := fsync_s():
            time.sleep(extra)

    def off_s() -> float:
        """Return the error of the clock for Holdfast's own modules, and 0 for all others.

        gRPC compares Python's time with the machine's clock, and both must agree.
        """
        caller = sys._getframe(2)  # if C code asks for the time, this is the Python code above it
        asks = not _CLOCKS.isdisjoint(caller.f_code.co_names) and caller.f_globals.get(
            "__name__", ""
        ).startswith("holdfast")
        return clock_s() if asks else 0.0

    time.time = lambda: wall() + off_s()
    time.time_ns = lambda: wall_ns() + int(off_s() * 1e9)
    store.sync = slow_sync
