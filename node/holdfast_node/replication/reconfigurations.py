"""Writes the assignments that owners propose into etcd, many at a time: when a node dies, all its
neighbours propose at once."""

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
    """The proposals of this node's owners, in the order in which they came.

    `answer`: shard, what was written (None: nobody knows whether it was), and what was to be
    written. A proposal that etcd refused counts as unknown: etcd may have been put back to an older
    state, and what is there later may be what was to be replaced.
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
        """Put `to` in the place of `old`."""
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
                # One of them may be out of date; the others need not wait for it.
                if not await self._write(batch) and len(batch) > 1:
                    for one in batch:
                        await self._write([one])

    async def _write(self, batch: list[_Proposed]) -> bool:
        """Return whether the fate of the batch is known, and was told."""
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
                "%d assignments have perhaps been written (%s); both are counted until etcd tells",
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
