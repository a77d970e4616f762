"""The load of each shard. Its owner counts the turns and tells the cluster now and then, so that
the busiest shards move last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.membership.etcd import EtcdError, put
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.member import Membership
from holdfast_cluster.placement.model import Keys, ShardLoads, encode

from holdfast_node.log.shards import Shard, Shards

log = logging.getLogger(__name__)

INTERVAL_S = 10.0
SHARDS_MAX = 256
"""Only so many of the busiest shards are told, so that the value in etcd stays below 10 KB."""


class LoadMeter:
    """A meter of turns a second by shard, from one reading to the next."""

    def __init__(self, shards: Shards, clock: Callable[[], float] = boottime) -> None:
        self._shards = shards
        self._clock = clock
        self._at = clock()
        self._before: dict[Shard, int] = {}

    def read(self) -> ShardLoads:
        """Return the busiest shards since the last reading, without idle ones."""
        now = self._clock()
        passed, self._at = max(now - self._at, 1e-3), now
        counts = {shard: shard.turns for shard in self._shards.owned()}
        rates = {
            shard.number: (count - self._before.get(shard, 0)) / passed
            for shard, count in counts.items()
        }
        self._before = counts
        busiest = sorted(
            ((rate, number) for number, rate in rates.items() if rate > 0), reverse=True
        )[:SHARDS_MAX]
        # Two digits, so that a small change is not written to etcd.
        return ShardLoads({number: float(f"{rate:.2g}") for rate, number in busiest})


async def publish(
    meter: LoadMeter,
    etcd: GuardedEtcd,
    keys: Keys,
    membership: Membership,
    interval_s: float = INTERVAL_S,
) -> None:
    """Write the load to etcd under the member's lease, when it has changed. Runs until
    cancelled."""
    told: tuple[ShardLoads, int] | None = None
    while True:
        await asyncio.sleep(interval_s)
        loads = meter.read()
        me = membership.member
        if me is None or told == (loads, membership.lease_id):
            continue
        try:
            await etcd.txn([], [put(keys.load(me.id), encode(loads), membership.lease_id)])
            told = loads, membership.lease_id
        except EtcdError as error:
            log.debug("cannot tell the cluster how busy the shards are: %s", error)
