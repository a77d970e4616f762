"""Hostile input to every port of a cluster: nothing crashes, nothing grows, and other callers are
unharmed."""

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
from google.protobuf import message_factory
from holdfast.channels import STREAMS_MAX, open_channel
from holdfast.frames import MESSAGES_MAX
from holdfast.local import free_port
from holdfast.v1 import admin_pb2, objects_pb2
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.membership.etcd import Etcd
from holdfast_cluster.membership.etcd import put as put_value
from holdfast_cluster.peerpb import peer_pb2
from holdfast_cluster.placement.model import Keys
from holdfast_cluster.streams.tcp import PROTOCOL, Hello, StreamRefused, open_stream
from holdfast_node.replication.core.events import Acknowledge, Position, Replicate
from holdfast_node.replication.links import pack

from tests.cluster.processes import Processes, bare_call, bare_stream

APP = str(Path(__file__).parent / "monitoring_app.py")
MIB = 1 << 20
KEYS = Keys("default")
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
    return sorted(
        {
            connection.laddr.port
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    )


def streams(target: Processes, name: str = "n1") -> str:
    [port] = [
        port
        for port in listening(target, name)
        if not member(target, name)["address"].endswith(f":{port}")
    ]
    return f"127.0.0.1:{port}"


def rss(target: Processes, name: str) -> int:
    return int(psutil.Process(target.processes[name].pid).memory_info().rss)


@contextlib.asynccontextmanager
async def unharmed(
    target: Processes, grows_at_most: int = 60 * MIB, slowest_s: float = 10.0
) -> AsyncIterator[None]:
    """Others call meanwhile: none of them fails, they are not slow, and afterwards every process is
    there and has not grown."""
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
    assert max(took) < slowest_s
    assert {
        name: process.pid for name, process in target.processes.items() if process.poll() is None
    } == pids
    for name, bytes_before in before.items():
        assert rss(target, name) - bytes_before < grows_at_most, name


async def garbage(port: int, rng: random.Random, beginning: bytes = b"") -> None:
    """Open a connection and send bytes that have no meaning. Then close it, or wait until the other
    side does."""
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
            await asyncio.gather(
                *(garbage(port, rng, rng.choice(beginnings)) for port in ports for _ in range(12))
            )


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
            id=rng.randrange(1 << 40),
            kind=rng.choice(["Shop", "Nix", ""]),
            key=f"fuzz{rng.randrange(50)}",
            method=rng.choice(["sold", "sell", "who", "", "__init__", "storage"]),
            arguments=rng.choice([b"", b"\x91\x01", rng.randbytes(9)]),
            request_id=rng.choice([holdfast.new_request_id(), rng.randbytes(16), b"short"]),
            attempt=rng.randrange(3),
            timeout_ms=rng.choice([0, 1, 1000, 1 << 31]),
            chain=rng.choice([[], ["Shop/fuzz1"], ["x"] * 50]),
            codec=rng.choice([0, 1, 7]),  # type: ignore[arg-type]
            notification=rng.choice([b"", rng.randbytes(30)]),
            caller=rng.choice(["", "object:Shop/a"]),
        )
        for _ in range(rng.randrange(1, 30))
    ]
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
                    while (
                        answer := await asyncio.wait_for(session.read(), 0.1)
                    ) is not grpc.aio.EOF:
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
    # of an epoch that no node has seen
    acknowledged = [(shard, Acknowledge(1 << 50, 1, 0.0)) for shard in range(20)]
    # of one that is over
    replicated = [(shard, Replicate(0, Position(0, 0), (), 0, 0.0)) for shard in range(20)]
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
                        await stream.write(
                            rng.choice(
                                [
                                    frame,
                                    frame[: rng.randrange(len(frame))] or b"\x00",
                                    rng.randbytes(50),
                                ]
                            )
                        )
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
async def test_a_stream_that_begins_wrong_is_refused_and_what_follows_is_not_read(
    target: Processes, hello: Hello
) -> None:
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
                writer.write(
                    len(hello).to_bytes(4, "little")
                    + hello
                    + size.to_bytes(4, "little")
                    + b"x" * 100
                )
                writers.append(writer)
        await asyncio.sleep(1)
        for writer in writers:
            writer.close()
        channel = open_channel(target.gateway, [("grpc.max_send_message_length", 64 * MIB)])
        call = bare_call(channel, "/holdfast.v1.Objects/Call")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\x0a" + b"\xff\xff\xff\x0f" + b"x" * (20 * MIB), timeout=20)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await channel.close()


async def test_what_a_caller_asks_for_and_does_not_read_is_bounded(target: Processes) -> None:
    async with target.connect() as client:
        await client.get("Shop", "large").store_large(1_000_000)
    frame = pb.SessionRequest(
        calls=[
            pb.Call(
                id=i, kind="Shop", key="large", method="large", request_id=holdfast.new_request_id()
            )
            for i in range(1, 40)
        ]
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


async def test_one_frame_that_asks_for_very_much_ends_the_session_of_who_does_not_read(
    target: Processes,
) -> None:
    async with target.connect() as client:
        await client.get("Shop", "large").store_large(1_000_000)
    calls = [
        pb.Call(
            id=i, kind="Shop", key="large", method="large", request_id=holdfast.new_request_id()
        )
        for i in range(1, 900)
    ]
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
    """How many bytes a session still sends before it ends. An error is an end too."""
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
    resource.setrlimit(
        resource.RLIMIT_NOFILE,
        (max(soft, min(wanted + 1_000, hard) if hard > 0 else wanted + 1_000), hard),
    )
    address = streams(target)
    try:
        for port, beginning in (
            (target.gateway_port, PREFACE),
            (int(address.rpartition(":")[2]), b""),
        ):
            await idle(port, 500, beginning)  # what the first ones cost, pools and buffers, stays
            cost = []
            for _ in range(4):
                before = [rss(target, name) for name in ("gateway", "n1", "n2")]
                async with unharmed(target, grows_at_most=200 * MIB):
                    await idle(port, wanted, beginning)
                cost.append(
                    max(
                        rss(target, name) - then
                        for name, then in zip(("gateway", "n1", "n2"), before, strict=True)
                    )
                )
                # what stayed is used again: 2 KiB a connection that leak would be more
                if len(cost) > 1 and cost[-1] < 20 * MIB:
                    break
            else:
                raise AssertionError(
                    f"each time they cost more: {[bytes_ >> 20 for bytes_ in cost]} MiB"
                )
            assert sum(cost) < 250 * MIB
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def idle(port: int, connections: int, beginning: bytes) -> None:
    """Open connections, say no more than hello, wait, and close them."""
    writers = []
    for i in range(0, connections, 100):
        opened = await asyncio.gather(
            *(asyncio.open_connection("127.0.0.1", port) for _ in range(min(100, connections - i))),
            return_exceptions=True,
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


async def test_values_in_etcd_that_nobody_can_read_end_nothing_and_hinder_no_start(
    tmp_path: Path,
) -> None:
    """One such value under heat/ ended every process of a cluster, and each at its next start."""
    target = Processes(tmp_path)
    try:
        target.start_all(app=APP)
        target.wait_ready(target.gateway)
        etcd = Etcd([target.etcd])
        row = await etcd.get(KEYS.shard(7))
        assert row is not None
        for what in (
            "heat/x",
            "members/x",
            "drains/x",
            "hosting/x",
            "kinds/x",
            "pauses/Shop/x",
            "shards/x",
            KEYS.shard(7).removeprefix(KEYS.prefix),
        ):
            await etcd.txn([], [put_value(f"/holdfast/default/{what}", b'{"turns_per_s":')])
        await etcd.close()
        until = time.monotonic() + 10
        while (
            len(problems := [one["what"] for one in target.ask("status")[1]["problems"]]) < 8
            and time.monotonic() < until
        ):
            await asyncio.sleep(0.1)
        assert "etcd's key /holdfast/default/heat/x" in problems
        assert f"etcd's key {KEYS.shard(7)}" in problems
        async with target.connect() as client:
            for i in range(50):
                assert await client.get("Shop", f"k{i}").sell(1) == 1
            etcd = Etcd([target.etcd])
            # without an older value a start waits for it
            await etcd.txn([], [put_value(KEYS.shard(7), row.value)])
            await etcd.close()
            target.kill("n1", 15)
            target.kill("gateway", 15)
            target.node("n1", app=APP)
            target.front()
            for i in range(50):
                assert await client.get("Shop", f"k{i}").sell(1) == 2
        for name in ("n1", "gateway"):
            assert "etcd's value of /holdfast/default/heat/x cannot be read" in target.said(name)
    finally:
        target.stop()


# -- HTTP/2, below what gRPC's own clients do


def http2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def literal(name: bytes, value: bytes) -> bytes:
    """A header field of HPACK that is kept nowhere; both parts shorter than 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def begin(path: str, *more: tuple[bytes, bytes]) -> bytes:
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]
    return b"".join(literal(name, value) for name, value in fields)


RESET = (8).to_bytes(4, "big")


def rapid_reset(path: str) -> Iterator[bytes]:
    """Streams that are reset as soon as they are opened: none counts as open, each costs what its
    beginning costs."""
    headers = begin(path)
    for number in range(1, 1 << 30, 200):
        yield b"".join(
            http2(1, 4, id_, headers) + http2(3, 0, id_, RESET)
            for id_ in range(number, number + 200, 2)
        )


def open_streams(path: str) -> Iterator[bytes]:
    headers = begin(path)
    for number in range(1, 1 << 30, 200):
        yield b"".join(http2(1, 4, id_, headers) for id_ in range(number, number + 200, 2))


def empty_messages(path: str) -> Iterator[bytes]:
    yield http2(1, 4, 1, begin(path))
    while True:
        yield http2(0, 0, 1, b"\0\0\0\0\0" * 3000)


def continuations(path: str) -> Iterator[bytes]:
    yield http2(1, 0, 1, begin(path))
    while True:
        yield http2(9, 0, 1, literal(b"x-a", b"b" * 100)) * 20


def pings(path: str) -> Iterator[bytes]:
    while True:
        yield http2(6, 0, 0, b"12345678") * 200


async def flood(port: int, chunks: Iterator[bytes], seconds: float = 3.0) -> int:
    """Say this to a port for so long, or until the other side has had enough: how many bytes it
    took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(PREFACE)
    until = time.monotonic() + seconds
    said = 0

    async def swallow() -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1 << 16):
                pass

    swallowing = asyncio.create_task(swallow())
    with contextlib.suppress(OSError, TimeoutError):
        for chunk in chunks:
            if time.monotonic() > until or swallowing.done():
                break
            writer.write(chunk)
            said += len(chunk)
            await asyncio.wait_for(writer.drain(), max(0.01, until - time.monotonic()))
    swallowing.cancel()
    writer.transport.abort()
    return said


SESSION, CHECK = "/holdfast.v1.Objects/Session", "/grpc.health.v1.Health/Watch"


@pytest.mark.parametrize(
    ("chunks", "path"),
    [
        (rapid_reset, SESSION),
        (rapid_reset, CHECK),
        (rapid_reset, "/nothing/There"),
        (open_streams, "/holdfast.v1.Objects/Call"),
        (open_streams, CHECK),
        (empty_messages, SESSION),
        (continuations, SESSION),
        (pings, SESSION),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_floods_of_http2_cost_no_memory_and_others_little_time(
    target: Processes, chunks: Any, path: str
) -> None:
    """At a gateway and at a node. Without a limit of streams a gateway grew by 1.9 GiB in 3 s, and
    others waited 6 s."""
    node = int(member(target)["address"].rpartition(":")[2])
    async with unharmed(target, grows_at_most=150 * MIB, slowest_s=5.0):
        assert await flood(target.gateway_port, chunks(path)) > 0
        assert await flood(node, chunks(path), 1.5) > 0


async def test_compressed_messages_are_refused_before_they_are_inflated(target: Processes) -> None:
    node = member(target)["address"]
    async with unharmed(target, grows_at_most=60 * MIB):
        for address, path in (
            (target.gateway, "/holdfast.v1.Objects/Call"),
            (node, "/holdfast.peer.v1.Peer/Stats"),
        ):
            async with grpc.aio.insecure_channel(
                address, options=[("grpc.max_send_message_length", -1)]
            ) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await bare_call(channel, path)(
                        bytes(512 * MIB), compression=grpc.Compression.Gzip, timeout=60
                    )
                assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
                assert "gzip" in (refused.value.details() or "")


@pytest.mark.parametrize(
    "call",
    [b"\x0a\x00", b"\x8a\x00\x00", b"\x0a\x02\x08\x01"],
    ids=["empty", "long form", "with an id"],
)
async def test_a_frame_of_very_many_calls_is_refused_before_it_is_decoded(
    target: Processes, call: bytes
) -> None:
    """2 bytes each: decoded they were 17 s of everybody's time, and 2.4 GiB."""
    frame = call * (7 * MIB // len(call))
    # before: commands hold this loop up, and with it those who call meanwhile
    me, node = (
        member(target),
        streams(target),
    )
    async with unharmed(target, grows_at_most=60 * MIB, slowest_s=5.0):
        channel = open_channel(target.gateway)
        session: Any = channel.stream_stream(SESSION)()
        await session.write(frame)
        assert await session.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "more than 1024" in await session.details()
        await channel.close()
        stream = await open_stream(
            node, "pipe", f"{me['id']}:{me['incarnation']}", lambda frame: None
        )
        await stream.write(frame)
        await asyncio.wait_for(stream.wait(), 5)


async def test_a_frame_of_as_many_calls_as_may_be_is_served_and_one_of_more_cancels_is_not(
    target: Processes,
) -> None:
    async with grpc.aio.insecure_channel(target.gateway) as channel:
        calls = [
            pb.Call(
                id=i,
                kind="Shop",
                key=f"many{i % 9}",
                method="sold",
                request_id=holdfast.new_request_id(),
            )
            for i in range(1, MESSAGES_MAX + 1)
        ]
        session: Any = channel.stream_stream(SESSION)()
        await session.write(
            pb.SessionRequest(
                calls=calls, cancel=range(5_000, 5_000 + MESSAGES_MAX)
            ).SerializeToString()
        )
        seen: set[int] = set()
        async with asyncio.timeout(20):
            while len(seen) < len(calls):
                seen |= {
                    reply.id
                    for reply in pb.SessionResponse.FromString(await session.read()).replies
                }
        await session.write(pb.SessionRequest(cancel=range(MESSAGES_MAX + 1)).SerializeToString())
        assert await session.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_sessions_are_bounded_for_a_connection_and_for_a_gateway(target: Processes) -> None:
    port = free_port()
    target.start_gateway("small", port, "--sessions-max", "150")
    target.wait_ready(f"127.0.0.1:{port}")
    try:
        async with (
            unharmed(target),
            open_channel(f"127.0.0.1:{port}") as one,
            open_channel(f"127.0.0.1:{port}") as other,
        ):
            opened = [bare_stream(one, SESSION)() for _ in range(140)]
            there = await asyncio.gather(
                *(asyncio.wait_for(call.initial_metadata(), 3) for call in opened),
                return_exceptions=True,
            )
            assert sum(not isinstance(each, BaseException) for each in there) == STREAMS_MAX
            more = [bare_stream(other, SESSION)() for _ in range(30)]
            codes: Counter[Any] = Counter()
            for call in more:
                with contextlib.suppress(TimeoutError):
                    codes[await asyncio.wait_for(call.code(), 0.3)] += 1
            assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED: 30 - (150 - STREAMS_MAX)}
            for call in (*opened, *more):
                call.cancel()
        async with holdfast.connect(f"127.0.0.1:{port}", timeout=10) as client:
            assert await client.get("Shop", "after").sold() == 0
    finally:
        target.kill("small")


# -- whole messages with hostile contents, to every method and stream

NUMBERS = [0, 1, 2, 127, 128, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
BIG_NUMBERS = [*NUMBERS, (1 << 48) - 1, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
TEXTS = [
    "",
    "Shop",
    "Ledger",
    "fuzz",
    "x" * 300,
    "k" * 5_000,
    "\0",
    "a/b",
    "../..",
    "\n\r\x1b[2J",
    "\u2028",
    "\U0001f600" * 20,
    "%s%n",
    "*",
]
BYTES = [
    b"",
    b"\x00",
    b"\xfe" * 16,
    b"\xff" * 16,
    b"x" * 15,
    b"x" * 17,
    b"\x91" * 400,
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"[" * 400,
]


def hostile(cls: Any, rng: random.Random, depth: int = 0) -> Any:
    """A message whose envelope is right and whose fields are not."""
    message = cls()
    for field in cls.DESCRIPTOR.fields:
        if rng.random() < 0.3:
            continue
        many = rng.choice([0, 1, 2, 40]) if field.is_repeated else 1
        for _ in range(many):
            put(message, field, rng, depth)
    return message


def put(message: Any, field: Any, rng: random.Random, depth: int) -> None:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            fill_map(getattr(message, field.name), field.message_type.fields_by_name, rng)
        elif depth < 3:
            inner = hostile(message_factory.GetMessageClass(field.message_type), rng, depth + 1)
            (
                getattr(message, field.name).add()
                if field.is_repeated
                else getattr(message, field.name)
            ).CopyFrom(inner)
        return
    value = scalar(field, rng)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def scalar(field: Any, rng: random.Random) -> Any:
    if field.enum_type is not None:
        return rng.choice([0, 1, 7, (1 << 31) - 1])
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            return rng.choice(BYTES if field.type == field.TYPE_BYTES else TEXTS)
        case field.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case field.CPPTYPE_DOUBLE | field.CPPTYPE_FLOAT:
            return rng.choice([0.0, -1.0, 1e308, float("inf"), float("nan")])
        case field.CPPTYPE_UINT32:
            return rng.choice(NUMBERS)
        case field.CPPTYPE_INT32:
            return rng.choice([-1, -(1 << 31), *NUMBERS[:-2]])
        case field.CPPTYPE_INT64:
            return rng.choice([-1, -(1 << 63), *BIG_NUMBERS[:-2]])
    return rng.choice(BIG_NUMBERS)


def fill_map(values: Any, fields: Any, rng: random.Random) -> None:
    for _ in range(rng.choice([0, 1, 5])):
        key = scalar(fields["key"], rng)
        if fields["value"].message_type is None:
            values[key] = scalar(fields["value"], rng)


EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.ABORTED,
}
"""What a caller may be told of its own nonsense. UNKNOWN is an exception that no code handles."""


async def ask(
    channel: grpc.aio.Channel, service: Any, method: Any, rng: random.Random
) -> grpc.StatusCode:
    request = hostile(message_factory.GetMessageClass(method.input_type), rng)
    metadata = [
        (name, rng.choice(["", "0", "-1", "1e9", "9" * 50, "x", "~"]))
        for name in rng.sample(METADATA, rng.randrange(4))
    ]
    path = f"/{service.full_name}/{method.name}"
    try:
        async with asyncio.timeout(10):
            if method.server_streaming:
                async for _ in channel.unary_stream(path)(
                    request.SerializeToString(), timeout=3, metadata=metadata
                ):
                    pass
            else:
                await bare_call(channel, path)(
                    request.SerializeToString(), timeout=3, metadata=metadata
                )
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


METADATA = [
    "holdfast-attempt",
    "holdfast-time",
    "idempotency-key",
    "authorization",
    "traceparent",
    "holdfast-asked-by",
]


async def test_hostile_fields_in_every_method_of_every_service(tmp_path: Path) -> None:
    """A cluster of its own: some of it is obeyed, and pauses or deletes what there is."""
    target = Processes(tmp_path, replication=2)
    rng = random.Random(5)
    seen: dict[str, Counter[Any]] = {}
    try:
        target.start_all("--turn-timeout", "2", nodes=2, app=APP)
        target.wait_ready(target.gateway)
        objects, admin = (
            objects_pb2.DESCRIPTOR.services_by_name["Objects"],
            admin_pb2.DESCRIPTOR.services_by_name["Admin"],
        )
        peer = peer_pb2.DESCRIPTOR.services_by_name["Peer"]
        node = member(target)["address"]
        async with unharmed(target, grows_at_most=100 * MIB):
            for address, services in ((target.gateway, (objects, admin)), (node, (peer,))):
                async with grpc.aio.insecure_channel(address) as channel:
                    for service in services:
                        for method in service.methods:
                            if method.client_streaming:
                                continue
                            codes = await asyncio.gather(
                                *(ask(channel, service, method, rng) for _ in range(60))
                            )
                            seen[f"{service.name}.{method.name}"] = Counter(codes)
        assert len(seen) > 30
        odd = {name: codes for name, codes in seen.items() if set(codes) - EXPECTED}
        assert not odd, odd
        for name in ("gateway", "n1", "n2"):
            assert "Traceback" not in target.said(name).replace("RuntimeError: out of tea", ""), (
                name
            )
    finally:
        target.stop()


async def test_hostile_fields_in_sessions_and_pipes(target: Processes) -> None:
    rng = random.Random(6)
    me = member(target)
    to = f"{me['id']}:{me['incarnation']}"
    node = streams(target)
    answered = 0
    async with unharmed(target, grows_at_most=100 * MIB):
        for _ in range(60):
            frames = [hostile(pb.SessionRequest, rng) for _ in range(4)]
            for frame in frames:
                for call in frame.calls:
                    if rng.random() < 0.5:
                        call.kind, call.key, call.request_id = (
                            "Shop",
                            f"f{rng.randrange(9)}",
                            holdfast.new_request_id(),
                        )
                        call.method = rng.choice(["sold", "sell", "fail"])
                    call.timeout_ms = rng.choice([1, 50, 300])
            channel = open_channel(target.gateway)
            session: Any = channel.stream_stream(SESSION)()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                for frame in frames:
                    await session.write(frame.SerializeToString())
                while (answer := await asyncio.wait_for(session.read(), 0.2)) is not grpc.aio.EOF:
                    answered += len(pb.SessionResponse.FromString(answer).replies)
            session.cancel()
            await channel.close()
            with contextlib.suppress(OSError, StreamRefused):
                stream = await open_stream(node, "pipe", to, lambda frame: None)
                for frame in frames:
                    for call in frame.calls:
                        call.notification = b""  # a node is believed: it says who notifies whom
                    request = peer_pb2.PipeRequest(
                        calls=frame.calls, cancel=[peer_pb2.Cancel(id=1, request_id=b"x")]
                    )
                    await stream.write(request.SerializeToString())
                await asyncio.sleep(0.01)
                stream.abort("enough")
    assert answered > 300
    assert "Traceback" not in target.said("gateway")
