"""Sending whole shards: a replica that is too far behind for the log gets the state.

The sender reads the state from iterators that it makes at one moment, with the position that the state is at then; what happens
later follows as log. It sends chunks on a stream of their own, which gRPC's flow control slows down to what the receiver takes,
and `--move-rate` to what the operator allows; calls go on beside it. A few shards at a time.

The receiver writes the rows to files, and hands them to the core when all are there: until then its copy is what it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import grpc
import msgspec
from holdfast.channels import open_process_channel
from holdfast.tls import Certificates
from holdfast_cluster.clock import boottime
from holdfast_cluster.streams import FRAME_BYTES_MAX

from holdfast_node import keys
from holdfast_node.replication.chain import Term
from holdfast_node.replication.disk import CopyStore, SnapshotFiles
from holdfast_node.replication.events import Position, Snapshot
from holdfast_node.replication.host import Replicas
from holdfast_node.replication.links import Links
from holdfast_node.store import RowFiles, Store

log = logging.getLogger(__name__)

SNAPSHOT = "/holdfast.peer.v1.Peer/Snapshot"
TARGET_METADATA = "holdfast-target"
"""Whom a snapshot is meant for, as `node id:incarnation`; another process at that address refuses it."""
SENDER_METADATA = "holdfast-sender"
CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
]
_CHUNK_BYTES = 256 << 10
_AT_A_TIME = 2
_FAMILIES = ("state", "replies")


class Header(msgspec.Struct, array_like=True, tag=1):
    """The first message of a snapshot's stream. All of them are msgpack arrays, as in frames."""

    shard: int
    epoch: int
    position: Position
    shard_ms: int = 0
    cluster_time: int = 0
    chain: tuple[Term, ...] = ()


class Chunk(msgspec.Struct, array_like=True, tag=2):
    """Rows of a column family, in key order; the state comes before the replies."""

    family: str
    rows: list[tuple[bytes, bytes]]


class End(msgspec.Struct, array_like=True, tag=3):
    """All was sent. `sent_at`: the sender's own time, as in `Replicate`."""

    sent_at: float


_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Header | Chunk | End] = msgspec.msgpack.Decoder(Header | Chunk | End).decode


class Throttle:
    """Lets `rate` bytes a second through."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    async def pass_(self, size: int) -> None:
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / self._rate
        if self._free_at > now + 0.005:
            await asyncio.sleep(self._free_at - now)
        else:
            await asyncio.sleep(0)  # calls go first


class SnapshotSender:
    """Implements `holdfast_node.replication.host.Snapshots`. `rate`: bytes a second that this node sends at most."""

    def __init__(
        self, store: Store, replicas: Replicas, links: Links, me: Any, rate: float, certificates: Certificates | None = None
    ) -> None:
        self._certificates = certificates
        self._store = store
        self._replicas = replicas
        self._links = links
        self._me = me
        self.rate = rate
        self._throttle = Throttle(rate)
        self._known: set[tuple[int, str]] = set()
        self._queue: deque[tuple[int, str, int]] = deque()
        self._wake = asyncio.Event()
        self.sent = 0
        self.sent_bytes = 0

    @property
    def waiting(self) -> int:
        """Shards that are being sent or wait for it."""
        return len(self._known)

    def send(self, shard: int, to: str, epoch: int) -> None:
        """Send a shard to a node, unless that is under way."""
        if (shard, to) not in self._known:
            self._known.add((shard, to))
            self._queue.append((shard, to, epoch))
            self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for i in range(_AT_A_TIME):
                group.create_task(self._work(), name=f"snapshots {i}")

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._wake.clear()
                await self._wake.wait()
            shard, to, epoch = self._queue.popleft()
            try:
                await self._send(shard, to, epoch)
            except grpc.aio.AioRpcError as error:
                log.info("snapshot of shard %d to %s: %s: %s", shard, to, error.code().name, error.details())
            finally:
                self._known.discard((shard, to))

    async def _send(self, shard: int, to: str, epoch: int) -> None:
        copy = self._replicas.get(shard)
        member = self._links.address_of(to)
        if copy is None or not copy.replica.owning or copy.replica.epoch != epoch or member is None or to not in copy.replica.peers:
            return
        began = time.monotonic()
        channel = open_process_channel(member.address, self._certificates, CHANNEL_OPTIONS)
        metadata = ((TARGET_METADATA, f"{member.id}:{member.incarnation}"), (SENDER_METADATA, self._me()))
        call: Any = channel.stream_unary(SNAPSHOT)(metadata=metadata)
        size = 0
        delivered = False
        try:
            # The position and the iterators in one go: nothing else runs on the loop in between.
            start, stop = keys.shard_prefix(shard), keys.after(keys.shard_prefix(shard))
            position, times, chain = self._replicas.snapshot_started(shard, to)
            scans = {family: self._store.scan_now(family, start, stop) for family in _FAMILIES}
            await call.write(_encode(Header(shard, epoch, position, *times, chain)))
            for family, rows in scans.items():
                for chunk, chunk_bytes in _chunks(rows):
                    await self._throttle.pass_(chunk_bytes)
                    await call.write(_encode(Chunk(family, chunk)))
                    size += chunk_bytes
                    self.sent_bytes += chunk_bytes
                    if not copy.replica.owning or copy.replica.epoch != epoch:
                        return
            await call.write(_encode(End(boottime())))
            await call.done_writing()
            await call
            delivered = True
            self.sent += 1
        except asyncio.InvalidStateError:  # the stream broke: the call itself says how
            await call
        finally:
            self._replicas.snapshot_ended(shard, to, delivered)
            call.cancel()
            await channel.close()
        log.info("shard %d: sent %d bytes to %s in %.1f s", shard, size, to, time.monotonic() - began)


def _chunks(rows: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[list[tuple[bytes, bytes]], int]]:
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row[0]) + len(row[1])
        if size >= _CHUNK_BYTES:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


class SnapshotReceiver:
    """The other end."""

    def __init__(self, store: Store, disk: CopyStore, replicas: Replicas) -> None:
        self._store = store
        self._disk = disk
        self._replicas = replicas
        self._numbers = count()
        self.received = 0

    async def serve(self, sender: str, context: Any) -> None:
        """Take one snapshot. The answer is sent when the core has it; whether it was needed the sender hears from there."""
        header = await self._next(context)
        if not isinstance(header, Header):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a snapshot begins with its header")
            raise AssertionError
        number = next(self._numbers)
        files = {family: RowFiles(self._disk.snapshots, f"{header.shard}-{number}-{family}") for family in _FAMILIES}
        try:
            while isinstance(part := await self._next(context), Chunk):
                put = files[part.family].put
                for key, value in part.rows:
                    put(key, value)
            if not isinstance(part, End):
                return  # the sender gave up
            for each in files.values():
                each.finish()
            for family in _FAMILIES:
                if not self._disk.has_rows(header.shard, family):
                    continue
                # What the files replace is written out before, on a thread: otherwise it would be while they are taken, on the loop.
                await asyncio.get_running_loop().run_in_executor(None, self._store.flush, family)
            paths = SnapshotFiles(*([str(path) for path in files[family].files] for family in _FAMILIES))
            snapshot = Snapshot(
                header.epoch,
                header.position,
                _encode(paths),
                part.sent_at,
                header.shard_ms,
                header.cluster_time,
                header.chain,
            )
            self._replicas.snapshot_arrived(sender, header.shard, snapshot)
            self.received += 1
        finally:
            for each in files.values():
                each.remove()

    @staticmethod
    async def _next(context: Any) -> Header | Chunk | End | None:
        raw = await context.read()
        if raw is grpc.aio.EOF:
            return None
        try:
            return _decode(raw)
        except msgspec.DecodeError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a part of a snapshot: {error}")
            raise AssertionError from None
