"""Shards with a single copy (`replication` 1): owned as etcd says, their state written at once,
with no log and no promises.

What keeps two nodes from serving one is that there is no other copy: whoever else were assigned it
would have nothing to serve, and `plan` assigns a shard only to nodes that have its data.
"""

from __future__ import annotations

import logging

from holdfast_cluster.placement.model import Assignment, Member, View

from holdfast_node.log.commit import Flusher
from holdfast_node.log.shards import FOR_EVER, Shard, Shards
from holdfast_node.log.single import SingleLog
from holdfast_node.store import keys

log = logging.getLogger(__name__)


class SingleCopies:
    """Follows the assignments of a cluster without replicas."""

    def __init__(self, flusher: Flusher, shards: Shards) -> None:
        self._store = flusher.store
        self._flusher = flusher
        self._log = SingleLog(flusher)
        self._shards = shards
        self._broken: set[int] = set()
        self._read_only: str | None = None

    def joined(self, member: Member, view: View) -> None:
        """The node is a member under a new incarnation."""
        self.follow(view, member)

    def follow(self, view: View, member: Member | None) -> None:
        """Own what `view` assigns to this incarnation of the node, and nothing else."""
        self._flusher.write()  # the rows of assignments, which are durable with what is taken
        lost = set()
        for shard in self._shards.owned():
            versioned = view.assignments.get(shard.number)
            if (
                versioned is None
                or not _is_mine(versioned.assignment, member)
                or versioned.assignment.epoch != shard.epoch
            ):
                lost.add(shard)
        self._shards.drop(lost)
        gained = [
            (number, versioned.assignment.epoch)
            for number, versioned in view.assignments.items()
            if _is_mine(versioned.assignment, member)
            and self._shards.get(number) is None
            and number not in self._broken
        ]
        if gained:
            self._take(gained)

    def left(self) -> None:
        """The node is no member any more: own nothing until the next `follow`."""
        self._shards.drop(set(self._shards.owned()))

    def note_times(self) -> None:
        """Note the shards' times for the next start. A shard's time goes on from there: it
        remembers longer."""
        batch = self._flusher.batch
        for shard in self._shards.owned():
            batch.put(
                "meta",
                keys.position_key(shard.number),
                keys.encode_position(shard.epoch, int(shard.time_ms)),
            )

    def set_read_only(self, why: str | None) -> None:
        """Take no writes from now on, because of `why`; None: take them again."""
        self._read_only = why
        for shard in self._shards.owned():
            shard.read_only = why

    # -- what `Replication` has and this has not

    slow: frozenset[str] = frozenset()
    disk_is_slow = False

    def epochs(self) -> dict[int, int]:
        return {}

    def replica(self, shard: int) -> None:
        return None

    def stats(self) -> dict[str, int]:
        return {}

    async def run(self) -> None:
        """There is nothing to be done but to follow."""

    async def close(self) -> None:
        """There is nothing to be closed."""

    def _take(self, gained: list[tuple[int, int]]) -> None:
        """Bring shards up under their new epochs, which are on disk before anything is served under
        them."""
        batch = self._store.batch()
        ready: list[Shard] = []
        for number, epoch in gained:
            raw = self._store.get("meta", keys.position_key(number))
            stored_epoch, shard_ms = keys.decode_position(raw) if raw is not None else (0, 0)
            # No position is no loss: the directory's id, cluster and start counter have been
            # checked, so it is the one that was assigned the shard, and it had not come to serving
            # it yet.
            if stored_epoch > epoch:
                self._broken.add(number)
                log.critical(
                    "shard %d is assigned under epoch %d, but this directory has epoch %d (etcd is"
                    " older than the data): not served",
                    number,
                    epoch,
                    stored_epoch,
                )
                continue
            ready.append(Shard(number, epoch, self._log, shard_ms))
            batch.put("meta", keys.position_key(number), keys.encode_position(epoch, shard_ms))
        self._store.write(batch)
        self._store.sync()
        for shard in ready:
            self._shards.take(shard)
            shard.until = FOR_EVER
            shard.read_only = self._read_only
        log.info("serving %d shards (%d of them new)", len(self._shards.owned()), len(ready))


def _is_mine(assignment: Assignment, member: Member | None) -> bool:
    return (
        member is not None
        and assignment.owner == member.id
        and assignment.incarnation == member.incarnation
    )
