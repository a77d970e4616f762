"""The rows of `holdfast bench`: calls and notifications, and how fast they are."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from holdfast import codec
from holdfast.bench_app import BenchCounter
from holdfast.channels import open_channel
from holdfast.cli.bench_echo import ECHO
from holdfast.client.client import Client, connect
from holdfast.errors import HoldfastError
from holdfast.processes import process_stats
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb

_WARM_UP_S = 0.5
_WORKLOADS = ("increment", "read")
_METHODS = {"increment": "increment", "read": "value"}
ROWS = (
    "echo/grpc",
    "increment/session",
    "increment/call",
    "read/session",
    "read/call",
    "notify/spread",
    "notify/one",
)
_NOTIFY_TURN = 10  # notifications of one turn
_NOTIFY_WAITING_MAX = 5_000
_Once = Callable[[str], Awaitable[Any]]


class Row(msgspec.Struct):
    """One line of the result.

    `cpu_s` and `fsyncs` belong to the measured time: the CPU seconds of each process, and the
    fsyncs of all nodes.
    """

    workload: str
    transport: str
    in_flight: int
    copies: int
    calls_per_s: int
    p50_ms: float
    p99_ms: float
    fsyncs: int = 0
    cpu_s: dict[str, float] = {}


async def measure(
    gateway: str,
    echo: str,
    copies: int,
    objects: int,
    seconds: float,
    levels: list[int],
    wanted: set[str],
) -> list[Row]:
    """Return the wanted rows of the cluster of a gateway; no `wanted`: all rows. `echo`: the
    address of the bare echo.
    """
    rows = []
    keys = [f"o{i}" for i in range(objects)]
    channel = open_channel(gateway)
    status = channel.unary_unary(
        "/holdfast.v1.Admin/Status",
        request_serializer=admin_pb2.StatusRequest.SerializeToString,
        response_deserializer=admin_pb2.StatusResponse.FromString,
    )

    async def row(workload: str, transport: str, in_flight: int, copies: int, once: _Once) -> None:
        if not wanted or f"{workload}/{transport}" in wanted:
            shown = workload, transport, in_flight, copies
            rows.append(await _calls(status, shown, keys, seconds, once))

    copies = (await status(admin_pb2.StatusRequest())).replication
    echo_channel = open_channel(echo)
    await asyncio.wait_for(echo_channel.channel_ready(), 10)
    bare: Any = echo_channel.unary_unary(ECHO)
    for in_flight in levels[:2] if copies == 1 else ():
        await row("echo", "grpc", in_flight, 0, bare_echo(bare))
    async with connect(gateway) as client:
        unary = channel.unary_unary(
            "/holdfast.v1.Objects/Call",
            request_serializer=pb.CallRequest.SerializeToString,
            response_deserializer=pb.CallResponse.FromString,
        )
        for workload in _WORKLOADS:
            for in_flight in levels:
                await row(workload, "session", in_flight, copies, _by_session(client, workload))
            for in_flight in levels:
                await row(workload, "call", in_flight, copies, _by_call(unary, workload))
        for transport, receivers in (("spread", keys), ("one", ["receiver"])):
            if not wanted or f"notify/{transport}" in wanted:
                rows.append(
                    await _notify(
                        client, status, transport, keys, receivers, copies, max(levels), seconds
                    )
                )
    await echo_channel.close()
    await channel.close()
    return rows


async def _calls(
    status: Any, shown: tuple[str, str, int, int], keys: list[str], seconds: float, once: _Once
) -> Row:
    """Measure the calls a second, and return the row. `shown`: its first columns."""
    workload, transport, in_flight, copies = shown
    await _run(once, keys, in_flight, _WARM_UP_S)
    before = await status(admin_pb2.StatusRequest())
    client_s = process_stats().cpu_s
    latencies, elapsed = await _run(once, keys, in_flight, seconds)
    client_s = process_stats().cpu_s - client_s
    after = await status(admin_pb2.StatusRequest())
    latencies.sort()
    n = len(latencies)
    return Row(
        workload,
        transport,
        in_flight,
        copies,
        calls_per_s=round(n / elapsed),
        p50_ms=round(latencies[n // 2] * 1e3, 2),
        p99_ms=round(latencies[int(n * 0.99)] * 1e3, 2),
        fsyncs=_fsyncs(after) - _fsyncs(before),
        cpu_s={} if transport == "grpc" else _cpu_s(client_s, before, after),
    )


def _cpu_s(client_s: float, before: Any, after: Any) -> dict[str, float]:
    """Return the CPU seconds of each process between two statuses."""
    cpu = {
        "client": round(client_s, 2),
        "gateway": round(after.gateway.process.cpu_s - before.gateway.process.cpu_s, 2),
    }
    for now, then in zip(after.nodes, before.nodes, strict=True):
        cpu[now.id.rpartition("-")[0]] = round(
            now.stats.process.cpu_s - then.stats.process.cpu_s, 2
        )
    return cpu


def _fsyncs(status: Any) -> int:
    return sum(node.stats.fsyncs for node in status.nodes)


def _delivered(status: Any) -> int:
    return sum(node.stats.notifications_delivered for node in status.nodes)


async def _notify(
    client: Client,
    status: Any,
    transport: str,
    senders: list[str],
    receivers: list[str],
    copies: int,
    in_flight: int,
    seconds: float,
) -> Row:
    """Measure the notifications delivered a second, and return the row; it has no latencies.

    The turns send ten notifications each. They pause while too many notifications wait, so that no
    outbox fills up.
    """
    walk = itertools.cycle(range(len(senders)))
    end = time.perf_counter() + _WARM_UP_S + seconds
    waiting = 0

    async def worker() -> None:
        while time.perf_counter() < end:
            if waiting > _NOTIFY_WAITING_MAX:
                await asyncio.sleep(0.01)
                continue
            i = next(walk)
            to = [receivers[(i * 7 + j * 379) % len(receivers)] for j in range(_NOTIFY_TURN)]
            try:
                await client.get(BenchCounter, senders[i]).notify_many(to)
            except HoldfastError as error:
                if error.code != "OVERLOADED":
                    raise
                await asyncio.sleep(0.02)

    async def look() -> Any:
        nonlocal waiting
        answer = await status(admin_pb2.StatusRequest())
        waiting = sum(node.stats.outbox for node in answer.nodes)
        return answer

    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, 64)):
            group.create_task(worker())
        await asyncio.sleep(_WARM_UP_S)
        before, began, client_s = await look(), time.perf_counter(), process_stats().cpu_s
        while time.perf_counter() < end:
            await asyncio.sleep(0.1)
            after, ended = await look(), time.perf_counter()
        client_s = process_stats().cpu_s - client_s
    return Row(
        "notify",
        transport,
        min(in_flight, 64),
        copies,
        calls_per_s=round((_delivered(after) - _delivered(before)) / (ended - began)),
        p50_ms=0.0,
        p99_ms=0.0,
        fsyncs=_fsyncs(after) - _fsyncs(before),
        cpu_s=_cpu_s(client_s, before, after),
    )


async def _run(
    once: _Once, keys: list[str], in_flight: int, seconds: float
) -> tuple[list[float], float]:
    """Call `once` with keys from `in_flight` workers for `seconds`. Return the latencies and the
    elapsed time, in seconds.
    """
    latencies: list[float] = []
    clock = time.perf_counter
    # A fixed walk through the keys: every run makes the same calls, and draws no random numbers.
    walk = itertools.cycle(keys[i * 379 % len(keys)] for i in range(len(keys)))
    began = clock()
    end = began + seconds

    async def worker() -> None:
        then = clock()
        while then < end:
            await once(next(walk))
            now = clock()
            latencies.append(now - then)
            then = now

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())
    return latencies, clock() - began


def bare_echo(bare: Any) -> _Once:
    """Return the call of the row to compare with: gRPC and nothing else."""
    payload = b"x" * 64

    async def once(_: str) -> None:
        await bare(payload)

    return once


def _by_session(client: Client, workload: str) -> _Once:
    if workload == "increment":
        return lambda key: client.get(BenchCounter, key).increment(1)
    return lambda key: client.get(BenchCounter, key).value()


def _by_call(unary: Any, workload: str) -> _Once:
    method = _METHODS[workload]
    arguments = codec.encode((1,) if workload == "increment" else ())

    async def once(key: str) -> None:
        await unary(
            pb.CallRequest(kind="holdfast.bench", key=key, method=method, msgpack=arguments)
        )

    return once
