"""Forgetting dedup marks. A receiver forgets its mark of a sender that has sent it nothing for
long."""

from __future__ import annotations

from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.effects.writes import Row, ShardWrites
from holdfast_node.log.shards import Shards
from holdfast_node.services.notifications import MARKS_KEPT
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

_SWEEP_MAX = 200


class DedupMarkService:
    """Removes marks that are old by the shard's time, a few rows at a time. Implements
    `Periodic`."""

    def __init__(self, store: Store, shards: Shards, writes: ShardWrites) -> None:
        self._store = store
        self._shards = shards
        self._writes = writes
        self._at: tuple[int, bytes] = (0, b"")

    def tick(self, now_ms: int) -> None:
        shards = sorted(
            (shard for shard in self._shards.serving(boottime()) if shard.may_write()),
            key=lambda shard: shard.number,
        )
        if not shards:
            return
        number, cursor = self._at
        shard = next((shard for shard in shards if shard.number >= number), None)
        if shard is None:
            self._at = (0, b"")
            return
        if shard.number != number:
            cursor = b""
        prefix = keys.index_prefix(shard.number, keys.MARKS)
        oldest = int(shard.time_ms - MARKS_KEPT.total_seconds() * 1000)
        gone: list[Row] = []
        for looked, (key, value) in enumerate(
            self._store.scan("state", max(prefix, cursor), keys.after(prefix))
        ):
            if looked >= _SWEEP_MAX:
                self._at = shard.number, key
                break
            if int.from_bytes(value[keys.SEQUENCE_BYTES :], "big") < oldest:
                gone.append((key, None))
        else:
            self._at = shard.number + 1, b""
        if gone:
            self._writes.write(shard, gone)
