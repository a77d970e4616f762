"""Swaps of assignments that owners ask for, many at a time: when a node dies, all that shared a shard with it ask at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast_cluster.etcd import TXN_OPS_MAX, Etcd, EtcdError, EtcdUnknown, at_revision, put
from holdfast_cluster.model import Assignment, Keys, encode

log = logging.getLogger(__name__)

_Asked = tuple[int, int, Assignment]
_RETRY_S = 0.2


class EtcdSwaps:
    """Implements `holdfast_node.replication.host.Swaps`.

    `answer`: shard, whether it happened (None: nobody knows), and, if it did, the revision and the assignment as it was written.
    """

    def __init__(self, etcd: Etcd, keys: Keys, answer: Callable[[int, bool | None, int, Assignment], None]) -> None:
        self._etcd = etcd
        self._keys = keys
        self._answer = answer
        self._asked: list[_Asked] = []
        self._wake = asyncio.Event()
        self.done = 0

    def ask(self, shard: int, revision: int, to: Assignment) -> None:
        """Put `to` in the place of what is at `revision`."""
        self._asked.append((shard, revision, to.stamped()))
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, []
            for i in range(0, len(asked), TXN_OPS_MAX):
                batch = asked[i : i + TXN_OPS_MAX]
                # One of them may be out of date; the others need not wait for it.
                if not await self._swap(batch) and len(batch) > 1:
                    for one in batch:
                        await self._swap([one])

    async def _swap(self, batch: list[_Asked]) -> bool:
        """Whether it is known what became of them, and said."""
        try:
            revision = await self._etcd.txn(
                [at_revision(self._keys.shard(shard), at) for shard, at, _ in batch],
                [put(self._keys.shard(shard), encode(to)) for shard, _, to in batch],
            )
        except EtcdUnknown as error:
            log.warning("a swap of %d assignments has perhaps happened (%s); both are counted until etcd tells", len(batch), error)
            for shard, _, to in batch:
                self._answer(shard, None, 0, to)
            await asyncio.sleep(_RETRY_S)
            return True
        except EtcdError as error:
            log.warning("etcd refused to swap %d assignments: %s", len(batch), error)
            for shard, _, to in batch:
                self._answer(shard, None, 0, to)
            return True
        if revision or len(batch) == 1:
            for shard, _, to in batch:
                self.done += bool(revision)
                self._answer(shard, bool(revision), revision, to)
                if revision:
                    log.info("shard %d: epoch %d, owner %s, in sync %s", shard, to.epoch, to.owner, ", ".join(to.in_sync))
        return bool(revision) or len(batch) == 1
