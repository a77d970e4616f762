"""The etcd client of a cluster's processes: it adds a comparison of the lineage to each
transaction.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable

import msgspec

from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import Etcd, EtcdError, EtcdTLS, absent, get, put, unchanged
from holdfast_cluster.membership.lineage import HALTED
from holdfast_cluster.placement.model import ClusterSettings, Keys, Lineage, encode

_WHY_CHARS = 300


class EtcdForeign(EtcdError):
    """etcd does not have the lineage that this process follows. The request had no effect."""


class GuardedEtcd(Etcd):
    """A client whose transactions happen only while etcd has the lineage that this process follows.

    The view watcher calls `follow` with the lineage that it believes. Before that the client
    refuses every transaction with EtcdForeign.
    """

    def __init__(
        self,
        endpoints: Iterable[str],
        keys: Keys,
        *,
        timeout_s: float = 2.0,
        tls: EtcdTLS | None = None,
    ) -> None:
        super().__init__(endpoints, timeout_s=timeout_s, tls=tls)
        self.keys = keys
        self._followed: bytes | None = None
        self._is_followed = asyncio.Event()
        self.generation = 0
        """The generation of the lineage that this process follows."""

    def follow(self, lineage: Lineage, raw: bytes) -> None:
        """Follow a lineage: transactions compare it from now on. `raw`: its bytes in etcd."""
        self._followed = raw
        self._is_followed.set()
        self.generation = lineage.generation

    async def followed(self) -> None:
        """Wait until `follow` has been called once."""
        await self._is_followed.wait()

    async def txn(self, compare: list[pb.Compare], success: list[pb.RequestOp]) -> int:
        """Do as `Etcd.txn`. Raise EtcdForeign when etcd does not have the lineage followed here."""
        followed = self._following()
        key = self.keys.lineage
        reply = await self.transact([unchanged(key, followed), *compare], success, [get(key)])
        if reply.succeeded:
            return int(reply.header.revision)
        self._check([row.value for row in reply.responses[0].response_range.kvs])
        return 0

    async def verify(self) -> None:
        """Raise EtcdForeign unless etcd has the lineage that this process follows."""
        row = await self.get(self.keys.lineage)
        self._check([] if row is None else [row.value])

    async def form(self, settings: ClusterSettings) -> bool:
        """Form the cluster, unless etcd has settings or a lineage. Return whether this formed
        it."""
        first = Lineage(nonce=secrets.randbits(53))
        keys = self.keys
        return (
            await self.begin(
                [absent(keys.settings)], [put(keys.settings, encode(settings))], None, first
            )
            is not None
        )

    async def begin(
        self,
        compare: list[pb.Compare],
        success: list[pb.RequestOp],
        old: bytes | None,
        lineage: Lineage,
    ) -> bytes | None:
        """Replace the lineage `old` by `lineage` and do `success`, whatever lineage is followed
        here.

        Return the new lineage's bytes; None when a comparison failed.
        """
        key = self.keys.lineage
        raw = encode(lineage)
        done = await super().txn([unchanged(key, old), *compare], [put(key, raw), *success])
        return raw if done else None

    async def halt(self, found: Lineage, old: bytes | None, by: str, why: str) -> bool:
        """Stop every process from acting on this etcd. Return whether the lineage was halted.

        `found`: etcd's lineage, or the one that etcd has lost. `old`: etcd's present bytes of it.
        """
        halted = msgspec.structs.replace(found, state=HALTED, by=by, why=why[:_WHY_CHARS])
        return await self.begin([], [], old, halted) is not None

    def _following(self) -> bytes:
        if self._followed is None:
            raise EtcdForeign(
                f"{self.endpoint}: this process does not know yet whether it can believe etcd"
            )
        return self._followed

    def _check(self, found: list[bytes]) -> None:
        if found != [self._following()]:
            what = found[0].decode(errors="replace") if found else "none"
            raise EtcdForeign(
                f"{self.endpoint}: etcd's lineage is not the one that this process follows: {what}"
            )
