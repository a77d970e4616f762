"""The controller's shell: holds the controller key while its node is a member, and applies what `plan` says."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from holdfast_cluster.etcd import TXN_OPS_MAX, Etcd, EtcdError, at_revision, put
from holdfast_cluster.feed import ViewFeed
from holdfast_cluster.membership import Membership
from holdfast_cluster.model import Keys, View, encode
from holdfast_cluster.plan import Transition, plan

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_INTERVAL_S = 0.1


class Controller:
    """Runs in every node; at most one acts. Two that act at once harm nothing: every swap names the revision it was planned from."""

    def __init__(self, etcd: Etcd, keys: Keys, feed: ViewFeed, membership: Membership, members_min: int) -> None:
        self._etcd = etcd
        self._keys = keys
        self._feed = feed
        self._membership = membership
        self._members_min = members_min

    async def run(self) -> None:
        """Stand for election whenever there is no controller, and act while being it. Ends by cancellation."""
        revision = -1
        while True:
            seen = revision
            try:
                async with asyncio.timeout(_INTERVAL_S):
                    await self._feed.until(lambda view, seen=seen: view.revision > seen)  # type: ignore[misc]
            except TimeoutError:
                pass  # being a member can come after the view that shows it: look again now and then
            view = self._feed.view
            revision = view.revision
            try:
                await self._act(view)
            except EtcdError as error:
                log.warning("controller: %s", error)
                await asyncio.sleep(_RETRY_S)
                revision = -1  # what was not done is planned again from the newest view

    async def _act(self, view: View) -> None:
        me = self._membership.member
        if me is None or view.settings is None:
            return
        if not view.controller:
            key = self._keys.controller
            if await self._etcd.txn([at_revision(key, 0)], [put(key, me.id.encode(), self._membership.lease_id)]):
                log.info("became the controller")
        elif view.controller == me.id:
            await self._apply(plan(view, self._members_min))

    async def _apply(self, transitions: list[Transition]) -> None:
        if not transitions:
            return
        done = 0
        for i in range(0, len(transitions), TXN_OPS_MAX):
            batch = transitions[i : i + TXN_OPS_MAX]
            if await self._swap(batch):
                done += len(batch)
            else:  # one of them was planned from an old view: the others need not wait for it
                done += sum([await self._swap([one]) for one in batch])
        reasons = Counter(transition.why for transition in transitions)
        log.info(
            "assignments: %d of %d swapped (%s)",
            done,
            len(transitions),
            ", ".join(f"{n} {why}" for why, n in reasons.items()),
        )

    async def _swap(self, batch: list[Transition]) -> int:
        return await self._etcd.txn(
            [at_revision(self._keys.shard(one.shard), one.revision) for one in batch],
            [put(self._keys.shard(one.shard), encode(one.to)) for one in batch],
        )
