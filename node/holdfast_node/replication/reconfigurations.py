"""Writes to etcd of the assignments that owners propose.

One transaction carries many proposals. When a node dies, all owners with a copy on it propose at
the same time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from holdfast_cluster.membership.etcd import TXN_OPS_MAX, EtcdError, EtcdUnknown, put, unchanged
from holdfast_cluster.membership.guarded import EtcdForeign, GuardedEtcd
from holdfast_cluster.placement.model import Assignment, Keys, Versioned, encode

log = logging.getLogger(__name__)

_Proposed = tuple[int, bytes, Assignment]
_RETRY_S = 0.2


class EtcdReconfigurations:
    """Writes the proposals of this node's owners, in the order in which they came.

    `answer` gets the shard, the written assignment, and the proposed one. The written assignment is
    None if it is unknown whether etcd has written it; the owner then proposes again. A proposal
    that etcd refused counts as unknown too. An etcd that was put back to an older state may have
    refused it. When the newest data are back, etcd shows the assignment that the owner wanted to
    replace.
    """

    def __init__(
        self,
        etcd: GuardedEtcd,
        keys: Keys,
        answer: Callable[[int, Versioned | None, Assignment], None],
    ) -> None:
        self._etcd = etcd
        self._keys = keys
        self._answer = answer
        self._proposed: list[_Proposed] = []
        self._wake = asyncio.Event()
        self.done = 0

    def propose(self, shard: int, old: bytes, to: Assignment) -> None:
        """Propose to replace the bytes `old` by `to`. The answer comes later."""
        self._proposed.append((shard, old, to.stamped()))
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            proposed, self._proposed = self._proposed, []
            for i in range(0, len(proposed), TXN_OPS_MAX):
                batch = proposed[i : i + TXN_OPS_MAX]
                # One outdated proposal fails the whole batch, so write each one by itself.
                if not await self._write(batch) and len(batch) > 1:
                    for one in batch:
                        await self._write([one])

    async def _write(self, batch: list[_Proposed]) -> bool:
        """Return whether the proposals were answered.

        If a comparison of a batch of several fails, none of them is answered.
        """
        generation = self._etcd.generation
        try:
            revision = await self._etcd.txn(
                [unchanged(self._keys.shard(shard), old) for shard, old, _ in batch],
                [put(self._keys.shard(shard), encode(to)) for shard, _, to in batch],
            )
        except EtcdForeign as error:
            log.warning("%d assignments cannot be written now: %s", len(batch), error)
            self._unknown(batch)
            return True
        except EtcdUnknown as error:
            log.warning(
                "etcd may have written %d assignments (%s); until that is known, the owners count"
                " the copies of both the old and the new ones",
                len(batch),
                error,
            )
            self._unknown(batch)
            await asyncio.sleep(_RETRY_S)
            return True
        except EtcdError as error:
            log.warning("etcd refused %d assignments: %s", len(batch), error)
            self._unknown(batch)
            return True
        if revision:
            for shard, _, to in batch:
                self.done += 1
                self._answer(shard, Versioned(to, revision, encode(to), generation), to)
                log.info(
                    "shard %d: epoch %d, owner %s, in sync %s",
                    shard,
                    to.epoch,
                    to.owner,
                    ", ".join(to.in_sync),
                )
        elif len(batch) == 1:
            self._unknown(batch)
        return bool(revision) or len(batch) == 1

    def _unknown(self, batch: list[_Proposed]) -> None:
        for shard, _, to in batch:
            self._answer(shard, None, to)
