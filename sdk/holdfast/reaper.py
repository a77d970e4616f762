"""Ends the processes of a local cluster if their starter has ended without ending them, for example
by kill -9.

This is a script of its own, without imports of Holdfast, so that it starts fast. It reads process
ids from standard input, one a line. At the end of the input it ends the processes that are left:
first by SIGTERM, after 10 seconds by SIGKILL. The starter holds the other end of the pipe, and the
system closes it when the starter ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PATIENCE_S = 10.0


def main() -> None:
    """Read process ids until the end of the input, then end these processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # process id -> descriptor; it names the same process even if the system uses the id again
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
    """Send a signal to each process, and forget those that have ended."""
    for pid, descriptor in list(left.items()):
        try:
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            os.close(left.pop(pid))


if __name__ == "__main__":
    main()
