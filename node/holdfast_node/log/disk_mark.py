"""The mark of a data directory in etcd: how much the directory had on disk when the node last told
etcd.

RocksDB numbers every write. The node reads the newest number before an fsync, and puts it into etcd
after the fsync. So all writes up to the mark are on disk. If the directory was put back, or its
write-ahead log has lost its end, the directory is behind its mark, and is refused. The mark does
not cover the last `INTERVAL_S` seconds, nor writes made while etcd was away.

Marks lie outside the prefix that is watched: only a starting node reads its mark.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec
from holdfast_cluster.membership.etcd import Etcd, EtcdError, put
from holdfast_cluster.membership.member import NotAccepted
from holdfast_cluster.placement.model import Keys, Unreadable, decode

from holdfast_node.log.commit import Flusher
from holdfast_node.store.rocks import Store

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
_RETRY_S = 0.5
_SAY_EVERY = 20


class Mark(msgspec.Struct, frozen=True):
    """The mark as it is in etcd. `written`: RocksDB's sequence number."""

    written: int


class DiskMark:
    """The mark of one node's directory: checked at the start, and put every few seconds."""

    def __init__(self, store: Store, flusher: Flusher, etcd: Etcd, keys: Keys, node: str) -> None:
        self._store = store
        self._flusher = flusher
        self._etcd = etcd
        self._key = keys.mark(node)
        self._node = node
        self._marked = 0

    async def check(self) -> None:
        """Return if the directory is not behind its mark. Raise NotAccepted if it is behind, or if
        the mark cannot be read. Wait while etcd is away."""
        tries = 0
        while True:
            try:
                row = await self._etcd.get(self._key)
                break
            except EtcdError as error:
                level = logging.DEBUG if tries % _SAY_EVERY else logging.WARNING
                log.log(level, "etcd does not answer (%s); still trying", error)
                tries += 1
                await asyncio.sleep(_RETRY_S)
        if row is None:
            return
        try:
            marked, written = decode(row.value, Mark).written, self._store.written
        except Unreadable as error:
            raise NotAccepted(
                f"the mark of node {self._node}'s directory, at {self._key} in etcd, cannot be"
                f" read: {error}. So the node cannot know whether the directory has lost writes. If"
                " its disk was not put back, delete that key"
            ) from None
        if written < marked:
            raise NotAccepted(
                f"the data directory of node {self._node} has lost writes that were on disk:"
                f" {written} of {marked} are there. It was put back to an earlier state, or its"
                " disk has lost the end of the write-ahead log. Its data are old, so they are not"
                " served. Join with an empty directory, as a new node"
            )
        self._marked = marked

    async def run(self) -> None:
        """Put the mark into etcd every few seconds, if it has grown. Ends by cancellation."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            written = self._store.written
            if written <= self._marked:
                continue
            await self._on_disk()
            try:
                await self._etcd.txn([], [put(self._key, msgspec.json.encode(Mark(written)))])
                self._marked = written
            except EtcdError as error:
                log.debug("the mark of the data directory is not put: %s", error)

    async def _on_disk(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flusher.when_durable(lambda: None if done.done() else done.set_result(None))
        await done
