"""An engine to test, without processes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Event
from typing import Any

from cluster_app import app
from holdfast import codec
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.commit import Flusher
from holdfast_node.engine import Engine, EngineLimits
from holdfast_node.replies import ResponseCache
from holdfast_node.shards import FOR_EVER, Shard, Shards
from holdfast_node.store import Store

IDS = RequestIds()


class Port:
    """Collects replies by the number of their call."""

    closed = False

    def __init__(self) -> None:
        self.replies: dict[int, Any] = {}

    def reply(self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None) -> None:
        assert number not in self.replies, "answered twice"
        self.replies[number] = error if error is not None else codec.decode(result)


class Bench:
    """An engine of one shard on a real store, whose fsyncs can be held back."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.may_sync = Event()
        self.may_sync.set()
        sync = self.store.sync

        def gated() -> None:
            self.may_sync.wait()
            sync()

        self.store.sync = gated  # type: ignore[method-assign]
        shards = Shards(lambda shards: None)
        self.shard = shard = Shard(0, 1)
        shard.until = FOR_EVER
        shards.take(shard)
        self.flusher = Flusher(self.store)
        kept = ResponseCache(self.store, 600)
        self.engine = Engine(app, self.store, self.flusher, 1, shards, kept, None, EngineLimits(), lambda entries: None)  # type: ignore[arg-type]
        self.port = Port()
        self.numbers = iter(range(1, 1000))

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
    ) -> int:
        number = next(self.numbers)
        self.engine.deliver(
            pb.Call(
                id=number,
                kind=kind,
                key=key,
                method=method,
                arguments=codec.encode(arguments) if codec_ == pb.CODEC_MSGPACK else codec.encode_json(arguments),
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

    async def close(self) -> None:
        self.may_sync.set()
        await self.engine.close()
        await self.flusher.close()
        self.store.close()
