"""The duties of an owner for its shards beside calls: deliver, fire alarms, expire, forget.

`ShardServices` runs the duties. If the duties of one shard fail, those of the other shards go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.log.shards import Shard, Shards

log = logging.getLogger(__name__)

_SCAN_MAX = 2_000
_BROKEN_S = 10.0


@dataclass(slots=True)
class ScanBudget:
    """The number of index rows that a tick may still look at, before the event loop does other
    work."""

    left: int


class ShardService(Protocol):
    """One duty of an owner. It loads its state when a shard is opened, and drops it when the shard
    is closed."""

    def opened(self, shard: Shard) -> None:
        """Load the state of a shard that this node owns. May be called again. May raise; then it is
        called again later."""

    def closed(self, shard: Shard) -> None:
        """Drop the state of a shard that this node does not own any more. The shard may never have
        been opened."""

    def tick(self, shard: Shard, now_ms: int, budget: ScanBudget) -> None:
        """Do the work that is due in an opened shard that serves, by cluster time `now_ms` (Unix
        time in ms)."""


class Periodic(Protocol):
    """A duty for all shards together."""

    def tick(self, now_ms: int) -> None:
        """Do the work that is due by cluster time `now_ms` (Unix time in ms)."""


class ShardServices:
    """Runs the duties of a node. Call `tick` about ten times a second."""

    def __init__(
        self,
        shards: Shards,
        flush_visible: Callable[[], None],
        services: Sequence[ShardService],
        periodic: Sequence[Periodic] = (),
    ) -> None:
        """`flush_visible`: makes all committed rows visible in the store, so that the indexes are
        complete when they are read."""
        self._shards = shards
        self._flush_visible = flush_visible
        self._services = services
        self._periodic = periodic
        self._first = 0
        self._opened: set[Shard] = set()
        self._failing: dict[Shard, float] = {}
        shards.listeners.append(self._closed)

    def _closed(self, shards: set[Shard]) -> None:
        for shard in shards:
            self._opened.discard(shard)
            self._failing.pop(shard, None)
            for service in self._services:
                service.closed(shard)

    def tick(self) -> None:
        """Do the work that is due, for as many shards as the budget allows. The next tick goes on
        after them."""
        if not self._shards.clock.started:
            return  # without the cluster's time nothing is known to be due
        now, now_ms = boottime(), self._shards.clock.now_ms()
        self._flush_visible()
        budget = ScanBudget(_SCAN_MAX)
        shards = sorted(self._shards.serving(now), key=lambda shard: shard.number)
        first = self._first % len(shards) if shards else 0
        for i, shard in enumerate((*shards[first:], *shards[:first])):
            if self._failing.get(shard, 0.0) > now:
                continue
            try:
                if shard not in self._opened:
                    for service in self._services:
                        service.opened(shard)
                    self._opened.add(shard)
                if shard.may_write():
                    for service in self._services:
                        service.tick(shard, now_ms, budget)
            except Exception:
                log.exception(
                    "shard %d: a duty of its owner failed (notifications, alarms, expiry); the node"
                    " tries again in %.0f s",
                    shard.number,
                    _BROKEN_S,
                )
                self._failing[shard] = now + _BROKEN_S
            if not budget.left:
                self._first = first + i + 1
                break
        for duty in self._periodic:
            duty.tick(now_ms)
