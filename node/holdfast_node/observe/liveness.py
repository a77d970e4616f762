"""The checks whether this process may serve, and which handler blocks its event loop.

A process may be stopped for a while (SIGSTOP, a suspended machine, swapping). It wakes up with
calls in its sockets and an old view of the cluster. So it serves only if it has run within the last
lease. It checks this when calls come and when replies leave, on a clock that counts suspension. (If
shards have replicas, this check is off: the replicas' promises are more exact, for each shard.)
After a pause the process serves nothing until etcd has confirmed its lease. The renewal must have
been sent after the pause. If the lease has ended, the node joins again as a new incarnation. An
etcd that is away is no pause: a node that keeps running keeps serving.
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
    """Tells with `ok()` whether the process has run without a pause of `lease_ttl_s` seconds, and
    is confirmed as a member."""

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
        """Note that the process runs. Call it several times within a lease."""
        if not self._enabled:
            return
        now = boottime()
        if now > self._until:
            self._suspect(now)
        self._until = now + self._ttl_s

    def confirm(self, lease_expires_at: float) -> None:
        """Note that etcd has renewed the lease until `lease_expires_at`: seconds of `boottime`,
        counted from the time at which the renewal was sent."""
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
    """A thread that reports handlers that block the event loop: by kind and method, with the line
    that runs.

    It also tells `liveness` that the process runs. It reports a turn once, when its code has run
    for `limit_s` seconds without giving the loop back.
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
            # From this thread, because a blocked event loop is not a stopped process.
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
