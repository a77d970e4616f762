"""Hostile input to every port of a cluster: nothing crashes, nothing grows, and other callers are unharmed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import holdfast
import msgspec
import psutil
import pytest
from conftest import Processes
from holdfast.channels import open_channel
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.streams import PROTOCOL, Hello, StreamRefused, open_stream
from holdfast_node.replication.events import Acknowledge, Position, Replicate
from holdfast_node.replication.links import pack

APP = str(Path(__file__).parent / "monitoring_app.py")
MIB = 1 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    cluster = Processes(tmp_path_factory.mktemp("hostile"), replication=2)
    try:
        cluster.start_all(nodes=2, app=APP)
        cluster.wait_ready(cluster.gateway)
        yield cluster
    finally:
        cluster.stop()


def member(target: Processes, name: str = "n1") -> Any:
    return next(node for node in target.ask("status")[1]["nodes"] if node["id"].startswith(name))


def listening(target: Processes, name: str) -> list[int]:
    """The ports that a process listens at."""
    process = psutil.Process(target.processes[name].pid)
    return sorted({connection.laddr.port for connection in process.net_connections("tcp") if connection.status == psutil.CONN_LISTEN})


def streams(target: Processes, name: str = "n1") -> str:
    [port] = [port for port in listening(target, name) if not member(target, name)["address"].endswith(f":{port}")]
    return f"127.0.0.1:{port}"


def rss(target: Processes, name: str) -> int:
    return int(psutil.Process(target.processes[name].pid).memory_info().rss)


@contextlib.asynccontextmanager
async def unharmed(target: Processes, grows_at_most: int = 60 * MIB) -> AsyncIterator[None]:
    """Others call meanwhile: none of them fails, they are not slow, and afterwards every process is there and has not grown."""
    pids = {name: process.pid for name, process in target.processes.items()}
    before = {name: rss(target, name) for name in ("gateway", "n1", "n2")}
    took: list[float] = []

    async def others() -> None:
        async with target.connect(timeout=10) as client:
            while True:
                began = time.monotonic()
                await asyncio.gather(*(client.get("Shop", f"other{i}").sell(1) for i in range(10)))
                took.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

    task = asyncio.create_task(others())
    await asyncio.sleep(0.2)
    try:
        yield
        await asyncio.sleep(0.3)
    finally:
        if task.done():
            task.result()
        task.cancel()
    assert len(took) > 5
    assert statistics.median(took) < 1.0
    assert {name: process.pid for name, process in target.processes.items() if process.poll() is None} == pids
    for name, bytes_before in before.items():
        assert rss(target, name) - bytes_before < grows_at_most, name


async def garbage(port: int, rng: random.Random, beginning: bytes = b"") -> None:
    """One connection that says something nobody understands, and ends, or waits for the other side to end it."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 10)
    except (OSError, TimeoutError):
        return
    with contextlib.suppress(OSError, TimeoutError):
        writer.write(beginning + rng.randbytes(rng.randrange(1, 5000)))
        await writer.drain()
        if rng.random() < 0.5:
            await asyncio.wait_for(reader.read(1 << 16), 0.5)
    writer.close()


async def test_random_bytes_on_every_port(target: Processes) -> None:
    rng = random.Random(1)
    ports = [port for name in ("gateway", "n1", "n2") for port in listening(target, name)]
    assert len(ports) == 5
    hello = msgspec.msgpack.encode(Hello(PROTOCOL, "pipe", "n:1"))
    beginnings = [
        b"",
        PREFACE,
        b"GET / HTTP/1.1\r\n\r\n",
        len(hello).to_bytes(4, "little") + hello,
        b"\xff\xff\xff\xff",
        b"\x00" * 64,
    ]
    async with unharmed(target):
        for _ in range(15):
            await asyncio.gather(*(garbage(port, rng, rng.choice(beginnings)) for port in ports for _ in range(12)))


def mutated(frame: bytes, rng: random.Random) -> bytes:
    """A frame with bytes changed, cut, doubled or put in."""
    raw = bytearray(frame)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(4):
            case 0 if at < len(raw):
                raw[at] = rng.randrange(256)
            case 1:
                del raw[at:]
            case 2:
                raw[at:at] = rng.randbytes(rng.randrange(1, 20))
            case _:
                raw[at:at] = raw[: rng.randrange(1, 40)]
        if not raw:
            raw = bytearray(b"\x00")
    return bytes(raw)


def some_calls(rng: random.Random) -> bytes:
    calls = [
        pb.Call(
            id=rng.randrange(1 << 40), kind=rng.choice(["Shop", "Nix", ""]), key=f"fuzz{rng.randrange(50)}",
            method=rng.choice(["sold", "sell", "who", "", "__init__", "storage"]),
            arguments=rng.choice([b"", b"\x91\x01", rng.randbytes(9)]),
            request_id=rng.choice([holdfast.new_request_id(), rng.randbytes(16), b"short"]), attempt=rng.randrange(3),
            timeout_ms=rng.choice([0, 1, 1000, 1 << 31]), chain=rng.choice([[], ["Shop/fuzz1"], ["x"] * 50]),
            codec=rng.choice([0, 1, 7]), notification=rng.choice([b"", rng.randbytes(30)]), caller=rng.choice(["", "object:Shop/a"]),
        )
        for _ in range(rng.randrange(1, 30))
    ]  # fmt: skip
    return pb.SessionRequest(calls=calls).SerializeToString()


async def test_mutated_frames_in_sessions(target: Processes) -> None:
    rng = random.Random(2)
    replies = 0
    codes: Counter[Any] = Counter()
    async with unharmed(target):
        for _ in range(150):
            channel = open_channel(target.gateway)
            session: Any = channel.stream_stream("/holdfast.v1.Objects/Session")()
            try:
                for _ in range(4):
                    frame = some_calls(rng)
                    await session.write(mutated(frame, rng) if rng.random() < 0.7 else frame)
                with contextlib.suppress(TimeoutError):
                    while (answer := await asyncio.wait_for(session.read(), 0.1)) is not grpc.aio.EOF:
                        replies += len(pb.SessionResponse.FromString(answer).replies)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                codes[await session.code()] += 1
            session.cancel()
            await channel.close()
    assert replies > 100
    assert codes.pop(grpc.StatusCode.INVALID_ARGUMENT) > 10
    assert set(codes) <= {grpc.StatusCode.INTERNAL}  # a write that met the end of the stream


async def test_mutated_frames_in_pipes_and_in_replication(target: Processes) -> None:
    rng = random.Random(3)
    address = streams(target)
    me = member(target)
    to = f"{me['id']}:{me['incarnation']}"
    peer = member(target, "n2")["id"]
    acknowledged = [(shard, Acknowledge(1 << 50, 1, 0.0)) for shard in range(20)]  # of an epoch that nobody has heard of
    replicated = [(shard, Replicate(0, Position(0, 0), (), 0, 0.0)) for shard in range(20)]  # of one that is over
    ended = 0
    async with unharmed(target):
        for _ in range(200):
            service = rng.choice(["pipe", "replicate"])
            with contextlib.suppress(OSError, StreamRefused):
                stream = await open_stream(address, service, to, lambda frame: None, f"{peer}:1")
                for _ in range(5):
                    if service == "pipe":
                        frame = peer_pb2.PipeRequest.FromString(some_calls(rng)).SerializeToString()
                        await stream.write(mutated(frame, rng) if rng.random() < 0.7 else frame)
                    else:  # cut, not changed: a node is believed, and what it says has consequences
                        frame = pack([*acknowledged, *replicated])
                        await stream.write(rng.choice([frame, frame[: rng.randrange(len(frame))] or b"\x00", rng.randbytes(50)]))
                    await asyncio.sleep(0)
                await asyncio.sleep(0.01)
                ended += stream.ended.done()
                stream.abort("enough")
    assert ended > 20
    assert target.ask("status")[0] == 0


@pytest.mark.parametrize(
    "hello",
    [
        Hello("holdfast-stream/1", "pipe", "n1:1"),
        Hello("holdfast-stream/1", "replicate", ""),
        Hello("holdfast-stream/1", "snapshot", "x" * 2000),
        Hello("holdfast-stream/0", "pipe", "n1:1"),
    ],
)
async def test_a_stream_that_begins_wrong_is_refused_and_what_follows_is_not_read(target: Processes, hello: Hello) -> None:
    host, _, port = streams(target).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    raw = msgspec.msgpack.encode(hello)
    writer.write(len(raw).to_bytes(4, "little") + raw)
    size = int.from_bytes(await asyncio.wait_for(reader.readexactly(4), 10), "little")
    assert size < 1000
    [why] = msgspec.msgpack.decode(await reader.readexactly(size))
    assert why
    with contextlib.suppress(OSError):
        writer.write(b"\x04\x00\x00\x00junk" * 1000)
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_huge_lengths_take_no_memory(target: Processes) -> None:
    address = streams(target)
    host, _, port = address.rpartition(":")
    me = member(target)
    hello = msgspec.msgpack.encode(Hello(PROTOCOL, "pipe", f"{me['id']}:{me['incarnation']}"))
    async with unharmed(target):
        writers = []
        for size in (0xFFFF_FFFF, 0x7FFF_FFFF, (64 << 20) + 1):
            for _ in range(50):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.write(len(hello).to_bytes(4, "little") + hello + size.to_bytes(4, "little") + b"x" * 100)
                writers.append(writer)
        await asyncio.sleep(1)
        for writer in writers:
            writer.close()
        channel = open_channel(target.gateway, [("grpc.max_send_message_length", 64 * MIB)])
        call = channel.unary_unary("/holdfast.v1.Objects/Call")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\x0a" + b"\xff\xff\xff\x0f" + b"x" * (20 * MIB), timeout=20)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await channel.close()


async def test_what_a_caller_asks_for_and_does_not_read_is_bounded(target: Processes) -> None:
    async with target.connect() as client:
        await client.get("Shop", "large").store_large(1_000_000)
    frame = pb.SessionRequest(
        calls=[pb.Call(id=i, kind="Shop", key="large", method="large", request_id=holdfast.new_request_id()) for i in range(1, 40)]
    ).SerializeToString()
    async with unharmed(target, grows_at_most=300 * MIB):
        channel = open_channel(target.gateway)
        session: Any = channel.stream_stream("/holdfast.v1.Objects/Session")()
        for _ in range(12):  # 480 MB are asked for, and nothing is read
            if session.done():
                break
            with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                await asyncio.wait_for(session.write(frame), 5)
            await asyncio.sleep(0.3)
        session.cancel()
        await channel.close()


async def test_one_frame_that_asks_for_very_much_ends_the_session_of_who_does_not_read(target: Processes) -> None:
    async with target.connect() as client:
        await client.get("Shop", "large").store_large(1_000_000)
    calls = [pb.Call(id=i, kind="Shop", key="large", method="large", request_id=holdfast.new_request_id()) for i in range(1, 900)]
    async with unharmed(target, grows_at_most=400 * MIB):
        channel = open_channel(target.gateway)
        session: Any = channel.stream_stream("/holdfast.v1.Objects/Session")()
        await session.write(pb.SessionRequest(calls=calls).SerializeToString())
        await asyncio.sleep(6)  # 900 MB come back; it hears of its end only when it reads
        read = await read_to_the_end(session)
        assert session.done()
        assert read < 450 * MIB
        assert await session.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "wait to be read" in await session.details()
        await channel.close()


async def read_to_the_end(session: Any) -> int:
    """How many bytes a session still has, until it ends in whatever way."""
    read = 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        while (frame := await asyncio.wait_for(session.read(), 20)) is not grpc.aio.EOF:
            read += len(frame)
    return read


async def test_ten_thousand_idle_connections(target: Processes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000
    if hard != resource.RLIM_INFINITY and hard < wanted + 1_000:
        wanted = hard - 1_000  # as many as this system lets one process have
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted + 1_000, hard) if hard > 0 else wanted + 1_000), hard))
    address = streams(target)
    try:
        for port, beginning in ((target.gateway_port, PREFACE), (int(address.rpartition(":")[2]), b"")):
            await idle(port, 500, beginning)  # what the first ones cost, pools and buffers, stays
            cost = []
            for _ in range(4):
                before = [rss(target, name) for name in ("gateway", "n1", "n2")]
                async with unharmed(target, grows_at_most=200 * MIB):
                    await idle(port, wanted, beginning)
                cost.append(max(rss(target, name) - then for name, then in zip(("gateway", "n1", "n2"), before, strict=True)))
                if len(cost) > 1 and cost[-1] < 20 * MIB:  # what stayed is used again: 2 KiB a connection that leak would be more
                    break
            else:
                raise AssertionError(f"each time they cost more: {[bytes_ >> 20 for bytes_ in cost]} MiB")
            assert sum(cost) < 250 * MIB
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def idle(port: int, connections: int, beginning: bytes) -> None:
    """Open connections, say no more than hello, wait, and close them."""
    writers = []
    for i in range(0, connections, 100):
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port) for _ in range(min(100, connections - i))), return_exceptions=True
        )
        writers += [one[1] for one in opened if not isinstance(one, BaseException)]
    assert len(writers) > connections * 0.95
    for writer in writers:
        if beginning and not writer.is_closing():
            writer.write(beginning)
    await asyncio.sleep(1.0)
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.5)
