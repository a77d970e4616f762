"""Hand-over of owned shards to another in-sync replica, as the assignment asks. Gateways hold calls
for a moment; no call fails.

Each hand-over has three steps. First the owner begins no new turn: it refuses calls as WRONG_OWNER,
and gateways hold them. Then running turns end. After `_PATIENCE_S` the owner cancels the rest, and
they run again at the next owner. Last, the owner moves the assignment to the next epoch, as
released. So the next owner need not wait for the end of any promise.

From the proposal on the owner does not serve the shard. If the proposal fails, the owner serves
again once all appended entries are committed.
"""

from __future__ import annotations

import logging

from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.placement.model import View

from holdfast_node.log.shards import Shard
from holdfast_node.objects.hand_off import ShardTurns
from holdfast_node.replication.copy import Copy
from holdfast_node.replication.host import Replicas

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0
_GIVE_UP_S = 8.0
_AGAIN_S = 2.0


class Handovers:
    """Follows the assignments of owned shards; call `tick` about twenty times a second."""

    def __init__(self, replicas: Replicas, turns: ShardTurns) -> None:
        self._replicas = replicas
        self._turns = turns
        self._closed: dict[Copy, tuple[Shard, float]] = {}
        self._not_before: dict[int, float] = {}
        self.done = 0

    def tick(self, view: View) -> None:
        now = boottime()
        for copy in self._replicas.unsettled():
            if copy.replica.isolated(now):
                self._abdicate(copy, view)
                continue
            if copy.replica.concedes_to or copy.replica.unheard(now):
                self._concede(copy, view)
                continue
            shard, assignment = copy.shard, copy.replica.assignment
            if (
                shard is not None
                and assignment is not None
                and assignment.handover in view.members
                and assignment.handover in assignment.in_sync
                and copy not in self._closed
                and copy.replica.may_release(now)
                and self._not_before.get(copy.number, 0.0) <= now
            ):
                self._closed[copy] = shard, now
                self._turns.close(shard)
        for copy, (shard, since) in list(self._closed.items()):
            self._go_on(copy, shard, since, view, now)

    def _abdicate(self, copy: Copy, view: View) -> None:
        """Give the shard to another in-sync replica that is a member.

        This node hears too few replicas to write. The others may hear each other.
        """
        assert copy.replica.assignment is not None
        others = [
            name
            for name in copy.replica.assignment.in_sync
            if name != copy.replica.me and name in view.members
        ]
        if others:
            log.warning(
                "shard %d: this node hears too few replicas to write, and proposes %s as the owner",
                copy.number,
                others[0],
            )
            self._replicas.abdicate(copy.number, view.members[others[0]])

    def _concede(self, copy: Copy, view: View) -> None:
        """Give the shard to the node whose copy has entries that this one lacks.

        If no replica has reported to this owner, give it to an in-sync one that is a member.
        """
        assert copy.replica.assignment is not None
        if copy.replica.concedes_to:
            names, why = [copy.replica.concedes_to], "its copy has entries that this one lacks"
        else:
            names, why = (
                [name for name in copy.replica.assignment.in_sync if name != copy.replica.me],
                "no replica has reported",
            )
        there = [name for name in names if name in view.members]
        if there and copy.replica.may_propose:
            log.warning(
                "shard %d: this node proposes %s as the owner: %s", copy.number, there[0], why
            )
            self._replicas.concede(copy.number, view.members[there[0]])

    def _go_on(self, copy: Copy, shard: Shard, since: float, view: View, now: float) -> None:
        replica = copy.replica
        assignment = replica.assignment
        if copy.shard is not shard:
            del self._closed[copy]
            self.done += 1
            self._not_before.pop(copy.number, None)
            return
        wanted = assignment is not None and assignment.handover in assignment.in_sync
        to = view.members.get(assignment.handover) if assignment is not None and wanted else None
        if to is None or now - since > _GIVE_UP_S:
            log.info("shard %d: no hand-over now, this node goes on serving it", copy.number)
            del self._closed[copy]
            self._not_before[copy.number] = now + _AGAIN_S
            self._turns.open(shard)
        elif not self._turns.are_over(shard):
            if now - since > _PATIENCE_S:
                self._turns.cancel(shard)
        else:
            self._replicas.release(copy.number, to)
