"""The slow nodes, as this node finds them.

It gives `Slowness` the copies that hold up commits, and logs what `Slowness` finds.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from holdfast_node.log.commit import Flusher
from holdfast_node.replication.copy import Copy
from holdfast_node.replication.core.slowness import FLOOR_S, PATIENCE_S, WINDOW_S, Held, Slowness

log = logging.getLogger(__name__)

_UNWELL_S = 1.0  # a slow node that has answered no owner of this node for so long stays slow


class SlowNodes:
    """Judges the nodes that have copies of this node's shards, and this node's own disk."""

    def __init__(self, node: str, flusher: Flusher, now: float) -> None:
        self._node = node
        self._flusher = flusher
        self._slowness = Slowness(now)

    @property
    def names(self) -> frozenset[str]:
        """The names of the slow nodes."""
        return self._slowness.slow

    def renewed(self, node: str) -> None:
        """Take note that a node has joined again, perhaps as another process.

        If it is slow, it has to keep up only for the shortest time.
        """
        self._slowness.renewed(node)

    def judge(self, copies: Collection[Copy], now: float) -> bool:
        """Find the copies that hold up commits. Return whether the slow nodes have changed."""
        slow = self.names
        held = {}
        for copy in copies:
            if copy.waiting or (slow and copy.shard is not None):
                for name, reached, wanted in copy.replica.held_up(slow):
                    held[name, copy.number] = Held(reached, wanted)
        if not self._slowness.look(held, self._unwell(copies, slow, now) if slow else (), now):
            return False
        for name in sorted(self.names - slow):
            log.warning(
                "%s slow: for at least %.1f s of the last %.0f s, it held up writes that enough"
                " other copies had on disk; it has to keep up for %.0f s now",
                self._called(name),
                PATIENCE_S,
                WINDOW_S,
                self._slowness.backoff_s(name),
            )
        for name in sorted(slow - self.names):
            log.warning("%s no longer slow", self._called(name))
        return True

    def _called(self, name: str) -> str:
        return "this node's disk is" if name == self._node else f"{name} is"

    def _unwell(self, copies: Collection[Copy], slow: Collection[str], now: float) -> set[str]:
        """Return the slow nodes that do not answer.

        Include this node if it is slow and its disk is busy with one fsync for too long.
        """
        unwell = set()
        for name in slow:
            if name == self._node:
                silent = self._flusher.busy_s
            else:
                heard = [
                    peer.heard_at
                    for copy in copies
                    if (peer := copy.replica.peers.get(name)) is not None
                ]
                silent = now - max(heard) if heard else 0.0
            if silent > (FLOOR_S if name == self._node else _UNWELL_S):
                unwell.add(name)
        return unwell
