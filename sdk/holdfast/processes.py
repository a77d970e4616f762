"""What every process tells about itself."""

from __future__ import annotations

import os
import time

import psutil

from holdfast.v1 import admin_pb2

_started = time.monotonic()
_process = psutil.Process()


def process_stats() -> admin_pb2.ProcessStats:
    """This process: id, CPU seconds used, resident memory, uptime."""
    times = _process.cpu_times()
    return admin_pb2.ProcessStats(
        pid=os.getpid(),
        cpu_s=times.user + times.system,
        rss_bytes=_process.memory_info().rss,
        uptime_s=time.monotonic() - _started,
    )


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(_process.memory_info().rss)
