"""Whether this process may serve, and who blocks its loop.

A process that was stopped for a while (SIGSTOP, a suspended machine, swapping) wakes up with calls
in its sockets and an old picture of the cluster. So it serves only while it knows that it ran
within the last lease: checked when calls come and when replies leave, on a clock that counts
suspension. (Where shards have replicas, their promises tell more exactly, for each shard, and this
check is off.) After a pause it serves nothing until etcd has confirmed, by a renewal that was sent
after it woke, that its lease is still there; if it is not, the node joins again as a new
incarnation. An etcd that is away is no pause: a node that keeps running keeps serving.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback

from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.objects.activation import Turn
from holdfast_node.objects.stepping import STEPPING

log = logging.getLogger(__name__)


class Liveness:
    """`ok()` tells whether the process has run without a pause of `lease_ttl_s` and is confirmed as
    a member."""

    def __init__(self, lease_ttl_s: float, enabled: bool = True) -> None:
        self._enabled = enabled
        self._ttl_s = lease_ttl_s
        self._until = boottime() + lease_ttl_s
        self._confirmed = True

    def ok(self) -> bool:
        if not self._enabled:
            return True
        now = boottime()
        if now > self._until:
            self._suspect(now)
        return self._confirmed

    def tick(self) -> None:
        """The process runs; call it several times within a lease."""
        if not self._enabled:
            return
        now = boottime()
        if now > self._until:
            self._suspect(now)
        self._until = now + self._ttl_s

    def confirm(self, lease_expires_at: float) -> None:
        """etcd has renewed the lease until then (seconds of `boottime`, counted from when the
        renewal was sent)."""
        now = boottime()
        if lease_expires_at > now and not self._confirmed:
            log.warning("the membership is confirmed: serving again")
            self._confirmed = True
            self._until = now + self._ttl_s

    def _suspect(self, now: float) -> None:
        if self._confirmed:
            pause = now - self._until + self._ttl_s
            log.warning(
                "the process was paused for about %.1f s: serving nothing until etcd confirms the"
                " membership",
                pause,
            )
            self._confirmed = False


class Watchdog:
    """A thread that reports handlers which block the event loop, by kind and method, with the line
    they are at.

    It also tells `liveness` that the process runs. It reports a turn once, when its code has run
    for `limit_s` without giving the loop back.
    """

    def __init__(self, liveness: Liveness, limit_s: float = 1.0) -> None:
        self._liveness = liveness
        self._limit_s = limit_s
        self._stop = threading.Event()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        seen: Turn | None = None
        since = 0.0
        reported = False
        while not self._stop.wait(self._limit_s / 5):
            # from this thread: a loop that a handler blocks is no process that was stopped
            self._liveness.tick()
            turn = STEPPING.now
            assert turn is None or isinstance(turn, Turn)
            if turn is None or turn is not seen:
                seen, since, reported = turn, time.monotonic(), False
            elif not reported and time.monotonic() - since >= self._limit_s:
                reported = True
                frame = sys._current_frames().get(self._loop_thread)
                where = "".join(traceback.format_stack(frame)[-3:]) if frame is not None else ""
                log.error(
                    "%s.%s blocks the event loop for more than %.1f s; every object of this node"
                    " waits. It is at:\n%s",
                    turn.activation.name,
                    turn.handler.name,
                    self._limit_s,
                    where,
                    extra={"kind": turn.activation.kind.name, "method": turn.handler.name},
                )
