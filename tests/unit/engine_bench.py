"""An engine to test, without processes."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
from holdfast import App, codec
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.log.commit import Committer, Flusher
from holdfast_node.log.shards import FOR_EVER, Shard, Shards
from holdfast_node.log.single import SingleLog
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.objects.responses import ResponseCache
from holdfast_node.services.host import HostOptions, ObjectHost
from holdfast_node.store.rocks import Store

from tests.cluster import cluster_app

IDS = RequestIds()


class Port:
    """Collects replies by the number of their call."""

    closed = False

    def __init__(self) -> None:
        self.replies: dict[int, Any] = {}
        self.in_json: set[int] = set()

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        assert number not in self.replies, "answered twice"
        decode = msgspec.json.decode if number in self.in_json else codec.decode
        self.replies[number] = error if error is not None else decode(result)


class Loopback:
    """Brings the calls that objects make, and the notifications, to the engine itself. Implements
    `Outgoing`."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.lose = 0
        """So many answers get lost: the caller is told that nothing was reached."""

    def submit(self, call: pb.Call, origin: Any) -> int:
        number, origins_own = call.id, origin

        class Answer:
            closed = False

            def reply(
                answer, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
            ) -> None:
                if self.lose:
                    self.lose -= 1
                    result, error = (
                        b"",
                        pb.Error(code=pb.CODE_UNAVAILABLE, message="the answer was lost"),
                    )
                origins_own.push(pb.Reply(id=number, result=result, error=error), 0)

        assert self.engine is not None
        self.engine.deliver(call, Answer())
        return number

    def cancel(self, number: int, heir: Any) -> bool:
        return False

    def reachable(self, kind: str, key: str) -> bool:
        return True


class SetClock:
    """The cluster's time as a test sets it. Stands in for
    `holdfast_cluster.clocks.cluster_time.Time`."""

    started = True

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.ms


class Bench:
    """An engine of one shard on a real store, whose fsyncs can be held back."""

    def __init__(
        self, path: Path, app: App = cluster_app.app, limits: EngineLimits | None = None
    ) -> None:
        self.store = Store(path)
        self.may_sync = Event()
        self.may_sync.set()
        sync = self.store.sync

        def gated() -> None:
            self.may_sync.wait()
            sync()

        self.store.sync = gated  # type: ignore[method-assign]
        self.clock = SetClock()
        self.flusher = Flusher(self.store)
        self.shards = shards = Shards(1)
        self.shard = shard = Shard(0, 1, SingleLog(self.flusher))
        shard.until = FOR_EVER
        shards.take(shard)
        kept = ResponseCache(self.store, 600)
        self.outgoing = Loopback()
        committer = Committer(self.flusher)
        self.objects = ObjectHost(
            app, HostOptions(limits or EngineLimits()), committer, shards, kept, self.outgoing
        )
        self.engine = self.objects.engine
        self.outgoing.engine = self.engine
        self.port = Port()
        self.numbers = itertools.count(1)

    def call(
        self,
        key: str,
        method: str,
        *arguments: Any,
        request_id: bytes | None = None,
        attempt: int = 0,
        kind: str = "Counter",
        keep_reply: bool = False,
        codec_: pb.Codec = pb.CODEC_MSGPACK,
        **fields: Any,
    ) -> int:
        number = next(self.numbers)
        if codec_ == pb.CODEC_JSON:
            self.port.in_json.add(number)
        self.engine.deliver(
            pb.Call(
                **fields,
                id=number,
                kind=kind,
                key=key,
                method=method,
                arguments=codec.encode(arguments)
                if codec_ == pb.CODEC_MSGPACK
                else codec.encode_json(arguments),
                codec=codec_,
                request_id=request_id or IDS.next(),
                attempt=attempt,
                keep_reply=keep_reply,
            ),
            self.port,
        )
        return number

    async def answered(self, *numbers: int) -> list[Any]:
        async with asyncio.timeout(5):
            while not all(number in self.port.replies for number in numbers):
                await asyncio.sleep(0.002)
        return [self.port.replies[number] for number in numbers]

    def set_clock(self) -> None:
        """Have the cluster's time stand still, as `clock` shows it."""
        self.shards.clock = self.shard.clock = self.clock  # type: ignore[assignment]

    async def tick(self, times: int = 1) -> None:
        """Have the engine do what time brings."""
        for _ in range(times):
            self.objects.tick()
            await asyncio.sleep(0.005)
            await self.flusher.drain()

    def lose_shard(self) -> None:
        """The shard is served by another node from now on."""
        for listener in self.shards.listeners:
            listener({self.shard})

    async def close(self) -> None:
        self.may_sync.set()
        await self.engine.close()
        await self.flusher.close()
        self.store.close()
