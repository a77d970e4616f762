"""The shards of this node: which it serves, under which epoch, and how far each one's log is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from holdfast_cluster.model import Assignment, Member, View

from holdfast_node import keys
from holdfast_node.store import Store

if TYPE_CHECKING:
    from holdfast_node.commit import Entry

log = logging.getLogger(__name__)


class Shard:
    """One shard under one epoch. `seq` counts the epoch's entries; it is served while `serving`, and never again after."""

    __slots__ = ("epoch", "gathering", "number", "prefix", "seq", "serving")

    def __init__(self, number: int, epoch: int) -> None:
        self.number = number
        self.prefix = keys.shard_prefix(number)
        self.epoch = epoch
        self.seq = 0
        self.serving = False
        self.gathering: Entry | None = None


class Shards:
    """Follows the assignments. `dropped` is called with the shards that stop being served under the epoch they had."""

    def __init__(self, store: Store, dropped: Callable[[set[Shard]], None]) -> None:
        self._store = store
        self._dropped = dropped
        self._shards: dict[int, Shard] = {}
        self._broken: set[int] = set()

    def get(self, number: int) -> Shard | None:
        """The shard if it is served now."""
        shard = self._shards.get(number)
        return shard if shard is not None and shard.serving else None

    def serving(self) -> list[Shard]:
        return [shard for shard in self._shards.values() if shard.serving]

    def follow(self, view: View, member: Member | None) -> None:
        """Serve what `view` assigns to this incarnation of the node, and nothing else."""
        gained: list[tuple[int, int]] = []
        lost = set()
        for shard in self.serving():
            versioned = view.assignments.get(shard.number)
            if versioned is None or not _is_mine(versioned.assignment, member) or versioned.assignment.epoch != shard.epoch:
                lost.add(shard)
        self._stop(lost)
        for number, versioned in view.assignments.items():
            if _is_mine(versioned.assignment, member) and self.get(number) is None and number not in self._broken:
                gained.append((number, versioned.assignment.epoch))
        if gained:
            self._take(gained)

    def stop_all(self) -> None:
        """Serve nothing until the next `follow`."""
        self._stop(set(self.serving()))

    def _stop(self, shards: set[Shard]) -> None:
        if shards:
            for shard in shards:
                shard.serving = False
            self._dropped(shards)

    def _take(self, gained: list[tuple[int, int]]) -> None:
        """Bring shards up under their new epochs, which are on disk before anything is served under them."""
        batch = self._store.batch()
        ready: list[Shard] = []
        for number, epoch in gained:
            raw = self._store.get("meta", keys.position_key(number))
            stored_epoch = keys.decode_position(raw)[0] if raw is not None else 0
            # No position is no loss: the directory's id, cluster and start counter have been checked, so it is the one that was
            # assigned the shard, and it had not come to serving it yet.
            if stored_epoch > epoch:
                self._broken.add(number)
                log.critical(
                    "shard %d is assigned under epoch %d, but this directory has epoch %d (etcd is older than the data): not served",
                    number,
                    epoch,
                    stored_epoch,
                )
                continue
            shard = self._shards[number] = Shard(number, epoch)
            batch.put("meta", keys.position_key(number), keys.encode_position(epoch, 0))
            ready.append(shard)
        self._store.write(batch)
        self._store.sync()
        for shard in ready:
            shard.serving = True
        log.info("serving %d shards (%d of them new)", len(self.serving()), len(ready))


def _is_mine(assignment: Assignment, member: Member | None) -> bool:
    return member is not None and assignment.owner == member.id and assignment.incarnation == member.incarnation
