"""The checks whether the cluster can do without a node: when the node stops, and when its disk is
full."""

from __future__ import annotations

import asyncio
import logging

from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.membership.etcd import EtcdError
from holdfast_cluster.membership.member import Membership
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import View

from holdfast_node.replication.replication import Replication
from holdfast_node.replication.single import SingleCopies
from holdfast_node.store.disk_space import DiskWatch, Level

log = logging.getLogger(__name__)

_INTERVAL_S = 0.25
# The disk must be critical for so long before the node leaves. By then the node knows of other
# nodes whose disks have become full at the same time.
_CRITICAL_S = 2.0


class DiskState:
    """Tells the cluster whether the disk is full or slow. Sets `no_room` when the disk is critical
    and the cluster can do without the node."""

    def __init__(
        self,
        watch: DiskWatch,
        membership: Membership,
        watcher: ViewWatcher,
        copies: Replication | SingleCopies,
    ) -> None:
        self._watch = watch
        self._membership = membership
        self._watcher = watcher
        self._copies = copies
        self.no_room = asyncio.Event()

    async def run(self) -> None:
        """Watch the disk, and tell the cluster of each change, until cancelled."""
        calm_at = boottime()
        while True:
            await self._announce(
                "full" if self._watch.full else "slow" if self._copies.disk_is_slow else "active"
            )
            self._copies.set_read_only(self._watch.full)
            if self._watch.level is not Level.CRITICAL:
                calm_at = boottime()
            self._look_for_room(boottime() - calm_at)
            await asyncio.sleep(_INTERVAL_S)

    async def _announce(self, state: str) -> None:
        if self._membership.state != state:
            try:
                await self._membership.announce(state)
            except EtcdError as error:
                log.debug(
                    "cannot tell the cluster that this node is %s: %s; still trying", state, error
                )

    def _look_for_room(self, critical_s: float) -> None:
        me = self._membership.member
        alone = isinstance(self._copies, SingleCopies)
        if (
            not alone
            and critical_s > _CRITICAL_S
            and me is not None
            and not is_needed(self._watcher.view, me.id)
        ):
            log.error("%s: the node leaves, and comes back when there is room", self._watch.full)
            self.no_room.set()


def is_needed(view: View, node: str) -> bool:
    """Return whether callers would notice that this node is gone: it owns a shard, or a shard's
    writes need its copy."""
    active = {name for name in view.members if view.state_of(name) == "active"}
    writable_from = view.settings.writable_from if view.settings is not None else 1
    for versioned in view.assignments.values():
        now = versioned.assignment
        # Only members with room count: a member without room may be about to leave, as this node
        # is.
        others = active.intersection(now.in_sync) - {node}
        if now.owner == node or (
            node in now.in_sync and (now.owner not in active or len(others) < writable_from)
        ):
            return True
    return False


def others_could_take_over(view: View, node: str) -> bool:
    """Return whether this node can still give something up: a shard that another member can own, or
    a copy that its shard does not need."""
    active = {name for name in view.members if view.state_of(name) == "active"}
    writable_from = view.settings.writable_from if view.settings is not None else 1
    for versioned in view.assignments.values():
        now = versioned.assignment
        others = [name for name in now.in_sync if name != node]
        if now.owner == node and any(name in active for name in others):
            return True
        if node in now.in_sync and now.owner in active and len(others) >= writable_from:
            return True
    return False
