"""The clock that safety relies on: it runs on while the machine sleeps, and never jumps."""

from __future__ import annotations

import time

if hasattr(time, "CLOCK_BOOTTIME"):

    def boottime() -> float:
        """Return the seconds since boot, suspension included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    # For development, on macOS and others: their monotonic clock may stop while the machine sleeps.
    boottime = time.monotonic
