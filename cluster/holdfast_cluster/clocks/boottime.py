"""The clock that safety rests on: it counts while the machine sleeps, and never steps."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def boottime() -> float:
        """Seconds since boot, suspension included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    # macOS and others, for development: their monotonic clock may stand still while the machine
    # sleeps
    boottime = time.monotonic
