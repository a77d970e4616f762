"""Shards with a single copy (`replication` 1). The node owns the shards that etcd assigns to it.
It writes their state at once, with no log and no promises.

Two nodes cannot serve the same shard, because there is only one copy. Another node would have no
data to serve, and `plan` assigns a shard only to nodes that have its data.
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
    """The shards of a node in a cluster without replicas."""

    def __init__(self, flusher: Flusher, shards: Shards) -> None:
        self._store = flusher.store
        self._flusher = flusher
        self._log = SingleLog(flusher)
        self._shards = shards
        self._broken: set[int] = set()
        self._read_only: str | None = None

    def joined(self, member: Member, view: View) -> None:
        """Take note that the node is a member under a new incarnation."""
        self.follow(view, member)

    def follow(self, view: View, member: Member | None) -> None:
        """Own exactly the shards that `view` assigns to this incarnation of the node."""
        self._flusher.write()  # the rows of assignments; `_take` makes them durable
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
        """Own no shard until the next `follow`: the node is no member any more."""
        self._shards.drop(set(self._shards.owned()))

    def save_times(self) -> None:
        """Stage the times of the owned shards. The next flush makes them durable.

        After a restart a shard's time goes on from the stored time. The stored time is never ahead,
        so the shard keeps replies longer over a restart, never shorter.
        """
        batch = self._flusher.batch
        for shard in self._shards.owned():
            batch.put(
                "meta",
                keys.position_key(shard.number),
                keys.encode_position(shard.epoch, int(shard.time_ms)),
            )

    def set_read_only(self, why: str | None) -> None:
        """Refuse writes from now on, because of `why`. None: take them again."""
        self._read_only = why
        for shard in self._shards.owned():
            shard.read_only = why

    # -- members of `Replication` that a single copy does not need

    slow: frozenset[str] = frozenset()
    disk_is_slow = False

    def epochs(self) -> dict[int, int]:
        return {}

    def replica(self, shard: int) -> None:
        return None

    def stats(self) -> dict[str, int]:
        return {}

    async def run(self) -> None:
        """Do nothing: `follow` does all the work."""

    async def close(self) -> None:
        """Do nothing."""

    def _take(self, gained: list[tuple[int, int]]) -> None:
        """Begin to serve shards under new epochs. The epochs are on disk before a shard serves."""
        batch = self._store.batch()
        ready: list[Shard] = []
        for number, epoch in gained:
            raw = self._store.get("meta", keys.position_key(number))
            stored_epoch, shard_ms = keys.decode_position(raw) if raw is not None else (0, 0)
            # A missing position is no loss. The directory's id, cluster and start counter have been
            # checked, so etcd assigned the shard to this directory. It has not served it yet.
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
