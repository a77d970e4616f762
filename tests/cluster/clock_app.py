"""The kinds of cluster_app, in a process whose wall clock is two days ahead while the file CLOCK_AHEAD is there."""

import os
import time
from pathlib import Path

from cluster_app import app

__all__ = ["app"]

AHEAD_S = 2 * 86_400
_flag = Path(os.environ["CLOCK_AHEAD"])
_time, _time_ns = time.time, time.time_ns


def _ahead_s() -> int:
    return AHEAD_S if _flag.exists() else 0


time.time = lambda: _time() + _ahead_s()
time.time_ns = lambda: _time_ns() + _ahead_s() * 1_000_000_000
