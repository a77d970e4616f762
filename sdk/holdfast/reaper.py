"""Ends the processes of a local cluster when whoever started them has ended without doing so:
killed with -9, say.

It is a script of its own, without imports of Holdfast, so that it starts in no time. It reads
process ids from standard input, one a line. At the end of the input it ends those that are still
there: first by SIGTERM, after a while by SIGKILL. The other end of the pipe is held by the process
that started it, and closed by the system when that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PATIENCE_S = 10.0


def main() -> None:
    """Wait for the end of the input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # by process id, a descriptor that stays with the process, whoever gets the id after it
    left: dict[int, int] = {}
    for line in sys.stdin:
        pid = int(line)
        try:
            left[pid] = os.pidfd_open(pid)
        except OSError:
            pass  # it has ended already
    _send(left, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        _send(left, 0)
    _send(left, signal.SIGKILL)


def _send(left: dict[int, int], number: int) -> None:
    """Send a signal to each, and forget those that have ended."""
    for pid, descriptor in list(left.items()):
        try:
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            os.close(left.pop(pid))


if __name__ == "__main__":
    main()
