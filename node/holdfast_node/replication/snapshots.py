"""Snapshots of whole shards, for replicas that are too far behind for the log.

The sender makes iterators over the state, and takes its position, at one moment. Later entries
follow as log. The sender sends chunks on a stream of their own. gRPC's flow control slows the
stream down to the receiver's pace, and `--move-rate` to the operator's limit. Calls go on beside
it. The sender sends a few shards at a time.

The receiver writes the rows to files. When all have arrived, it hands the files to the core. Until
then its copy is unchanged. A receiver whose disk is full refuses. If a node took no snapshot, the
sender sends it none for a while, longer each time. The core asks again until the replica has one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import grpc
import msgspec
from holdfast.channels import open_process_channel
from holdfast.tls import Certificates
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.placement.model import Member
from holdfast_cluster.streams.tcp import FRAME_BYTES_MAX

from holdfast_node.replication.copies import CopyStore, SnapshotFiles
from holdfast_node.replication.core.chain import Term
from holdfast_node.replication.core.events import Position, Snapshot
from holdfast_node.replication.host import Replicas
from holdfast_node.replication.links import Links
from holdfast_node.store import keys
from holdfast_node.store.disk_space import DiskWatch
from holdfast_node.store.rocks import RowFiles, Store, is_no_space

log = logging.getLogger(__name__)

SNAPSHOT = "/holdfast.peer.v1.Peer/Snapshot"
TARGET_METADATA = "holdfast-target"
"""The node that has to take a snapshot, as `node id:incarnation`. Another process at that address
refuses it."""
SENDER_METADATA = "holdfast-sender"
CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
    ("grpc.max_send_message_length", FRAME_BYTES_MAX),
]
_CHUNK_BYTES = 256 << 10
_AT_A_TIME = 2
_BACKOFF_S = (0.5, 30.0)
_FAMILIES = ("state", "replies")


class Header(msgspec.Struct, array_like=True, tag=1):
    """The first message of a snapshot's stream. Its messages are msgpack arrays, as in frames."""

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
    """The last message of a snapshot. `sent_at`: the sender's own time, as in `Replicate`."""

    sent_at: float


_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Header | Chunk | End] = msgspec.msgpack.Decoder(
    Header | Chunk | End
).decode


class Throttle:
    """A limit of `rate` bytes a second."""

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


class Backoff:
    """The nodes that get no snapshot for now. A node that joined again begins anew.

    Pure but for `chance`, between 0 and 1.
    """

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._failed: dict[str, tuple[int, int, float]] = {}

    def failed(self, node: str, incarnation: int, now: float) -> float:
        """Take note that the node took no snapshot. Return for how many seconds it gets none."""
        shortest, longest = _BACKOFF_S
        seen, times, _ = self._failed.get(node, (incarnation, 0, 0.0))
        times = times + 1 if seen == incarnation else 1
        wait = min(shortest * 2.0 ** min(times - 1, 30), longest) * (0.5 + self._chance() / 2)
        self._failed[node] = incarnation, times, now + wait
        return wait

    def succeeded(self, node: str) -> None:
        """Take note that the node took a snapshot."""
        self._failed.pop(node, None)

    def waits(self, node: str, incarnation: int, now: float) -> bool:
        """Return whether the node gets no snapshot now."""
        seen, _, until = self._failed.get(node, (incarnation, 0, 0.0))
        return seen == incarnation and now < until


class SnapshotSender:
    """The sender of snapshots. `rate`: the most bytes a second that this node sends."""

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        links: Links,
        me: Any,
        rate: float,
        certificates: Certificates | None = None,
    ) -> None:
        self._certificates = certificates
        self._store = store
        self._replicas = replicas
        self._links = links
        self._me = me
        self.rate = rate
        self._throttle = Throttle(rate)
        self._known: set[tuple[int, str]] = set()
        self._queue: list[tuple[int, str, int]] = []
        self._wake = asyncio.Event()
        self._backoff = Backoff()
        self.sent = 0
        self.failed = 0
        self.sent_bytes = 0

    @property
    def waiting(self) -> int:
        """The number of snapshots that are on their way or wait."""
        return len(self._known)

    def send(self, shard: int, to: str, epoch: int) -> None:
        """Send a shard to a node, unless that is under way.

        Do nothing if the node gets no snapshot for now. The core asks again.
        """
        if (shard, to) not in self._known and self._taker(to) is not None:
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
            shard, to, epoch = self._next()
            try:
                member = self._taker(to)
                if member is not None:
                    await self._try(shard, member, epoch)
            finally:
                self._known.discard((shard, to))

    def _taker(self, to: str) -> Member | None:
        """Return the member if the node may get a snapshot now; else None."""
        member = self._links.connected_member(to)
        return (
            None
            if member is None or self._backoff.waits(to, member.incarnation, time.monotonic())
            else member
        )

    def _next(self) -> tuple[int, str, int]:
        """Take the next snapshot from the queue: of the shard with the fewest copies in sync."""

        def copies(asked: tuple[int, str, int]) -> int:
            copy = self._replicas.get(asked[0])
            assignment = copy.replica.assignment if copy is not None else None
            return len(assignment.in_sync) if assignment is not None else 0

        first = min(self._queue, key=copies)
        self._queue.remove(first)
        return first

    async def _try(self, shard: int, member: Member, epoch: int) -> None:
        try:
            await self._send(shard, member, epoch)
        except grpc.aio.AioRpcError as error:
            self.failed += 1
            wait = self._backoff.failed(member.id, member.incarnation, time.monotonic())
            log.warning(
                "snapshot of shard %d to %s: %s: %s; it gets none for %.1f s",
                shard,
                member.id,
                error.code().name,
                error.details(),
                wait,
            )

    async def _send(self, shard: int, member: Member, epoch: int) -> None:
        copy = self._replicas.get(shard)
        to = member.id
        if (
            copy is None
            or not copy.replica.owning
            or copy.replica.epoch != epoch
            or to not in copy.replica.peers
        ):
            return
        began = time.monotonic()
        channel = open_process_channel(member.address, self._certificates, CHANNEL_OPTIONS)
        metadata = (
            (TARGET_METADATA, f"{member.id}:{member.incarnation}"),
            (SENDER_METADATA, self._me()),
        )
        call: Any = channel.stream_unary(SNAPSHOT)(metadata=metadata)
        size = 0
        delivered = False
        try:
            # No `await` between the position and the iterators: nothing may run in between.
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
            self._backoff.succeeded(to)
        except asyncio.InvalidStateError:  # the stream broke: the call raises the cause
            await call
        finally:
            self._replicas.snapshot_ended(shard, to, delivered)
            call.cancel()
            await channel.close()
        log.info(
            "shard %d: sent %d bytes to %s in %.1f s", shard, size, to, time.monotonic() - began
        )


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
    """The receiver of snapshots."""

    def __init__(self, store: Store, disk: CopyStore, replicas: Replicas, watch: DiskWatch) -> None:
        self._store = store
        self._disk = disk
        self._replicas = replicas
        self._watch = watch
        self._numbers = count()
        self.received = 0

    async def serve(self, sender: str, context: Any) -> None:
        """Take one snapshot. The sender gets the answer when the core has the snapshot.

        The core itself tells the sender whether it was needed.
        """
        header = await self._next(context)
        if not isinstance(header, Header):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a snapshot begins with its header"
            )
            raise AssertionError
        number = next(self._numbers)
        files = {
            family: RowFiles(self._disk.snapshots, f"{header.shard}-{number}-{family}")
            for family in _FAMILIES
        }
        try:
            await self._take(sender, header, files, context)
        except Exception as error:
            if not is_no_space(error):
                raise
            self._watch.failed()
            await self._refuse(context)
        finally:
            for each in files.values():
                each.remove()

    async def _take(
        self, sender: str, header: Header, files: dict[str, RowFiles], context: Any
    ) -> None:
        while True:
            if not self._watch.full and not self._watch.has_spare():
                self._watch.failed()  # the log needs the last room; without it the node ends
            if self._watch.full:
                await self._refuse(context)
            part = await self._next(context)
            if not isinstance(part, Chunk):
                break
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
            # Flush the rows that the files replace, on a thread. Otherwise the store would flush
            # them on the loop when it takes the files.
            await asyncio.get_running_loop().run_in_executor(None, self._store.flush, family)
        paths = SnapshotFiles(
            *([str(path) for path in files[family].files] for family in _FAMILIES)
        )
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

    async def _refuse(self, context: Any) -> None:
        """Refuse a snapshot because the disk is full. The sender logs one line for each attempt."""
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED, self._watch.full or "the disk was full"
        )
        raise AssertionError

    @staticmethod
    async def _next(context: Any) -> Header | Chunk | End | None:
        raw = await context.read()
        if raw is grpc.aio.EOF:
            return None
        try:
            return _decode(raw)
        except (
            Exception
        ) as error:  # RecursionError and UnicodeDecodeError are no errors of msgspec's
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"not a part of a snapshot: {error}"
            )
            raise AssertionError from None
