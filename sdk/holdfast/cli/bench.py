"""`holdfast bench`: how fast a cluster is on this machine, and which process uses the CPU."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import grpc
import msgspec
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from holdfast import codec
from holdfast.bench_app import BenchCounter
from holdfast.channels import SERVER_OPTIONS, bind, open_channel
from holdfast.client.client import Client, connect
from holdfast.errors import HoldfastError
from holdfast.local import ClusterFailed, LocalCluster, free_port
from holdfast.options import local_option
from holdfast.processes import process_stats, told_as_refusal
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb

_WARM_UP_S = 0.5
# for this time after it took a shard, a node looks up requests that another node may have run
_SETTLE_S = 2.0
_ECHO = "/holdfast.bench/Echo"
_WORKLOADS = ("increment", "read")
_METHODS = {"increment": "increment", "read": "value"}
_ROWS = (
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


@click.command(short_help="Measure calls and notifications per second.")
@local_option(
    "--target",
    help=(
        "A running cluster's gateway, host:port; its nodes must run holdfast.bench_app. Default:"
        " start a cluster."
    ),
)
@local_option(
    "--copies",
    default="1,3",
    help=(
        "Copies of each shard, 1 to 3, comma-separated: for each number a cluster with as many"
        " nodes."
    ),
)
@local_option(
    "--shards",
    type=click.IntRange(1, 65_536),
    default=None,
    help="How many shards the started clusters have. Default: 256.",
)
@local_option("--objects", default=1000, help="How many objects are called, in a fixed walk.")
@local_option("--seconds", default=3.0, help="Seconds for which each row is measured.")
@local_option(
    "--in-flight",
    "in_flight",
    default="1,64,512",
    help="Calls under way at once, comma-separated; one row for each number.",
)
@local_option(
    "--only",
    default="",
    help="Rows to measure, as workload/transport, comma-separated. Default: all.",
)
@local_option("--json", "as_json", is_flag=True, default=False, help="Print one JSON object.")
def bench(
    target: str | None,
    copies: str,
    shards: int | None,
    objects: int,
    seconds: float,
    in_flight: str,
    only: str,
    as_json: bool,
) -> None:
    """Measure calls and notifications per second.

    The rows are durable increments and reads, through Session and through Call, and a bare gRPC
    echo to compare with. Two more rows are notifications delivered: from all objects to all objects
    (notify/spread), and from all objects to one (notify/one).

    \b
    Examples:
      holdfast bench
      holdfast bench --copies 3 --only increment/session,read/session --in-flight 64 --json
    """
    levels = [int(level) if level.isdigit() else 0 for level in in_flight.split(",")]
    if min(levels) < 1:
        raise click.ClickException(
            f"--in-flight {in_flight}: give numbers of at least 1, comma-separated"
        )
    wanted = set(filter(None, only.split(",")))
    if unknown := wanted - set(_ROWS):
        raise click.ClickException(
            f"--only {', '.join(sorted(unknown))}: the rows are {', '.join(_ROWS)}"
        )
    if not copies or not set(copies.split(",")) <= {"1", "2", "3"}:
        raise click.ClickException(f"--copies {copies}: give 1, 2 or 3, comma-separated")
    if target is not None and shards is not None:
        raise click.ClickException(
            "--shards: a running cluster (--target) has a fixed number of shards"
        )
    options = () if shards is None else ("--shards", str(shards))
    rows = []
    try:
        for number in [0] if target is not None else [int(number) for number in copies.split(",")]:
            rows += _bench(target, number, options, objects, seconds, levels, wanted)
    except Exception as error:
        raise told_as_refusal(error, (HoldfastError, ClusterFailed, grpc.aio.AioRpcError)) from None
    if as_json:
        click.echo(codec.encode_json({"rows": rows}).decode())
        return
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="p50, p99: ms; client, gateway, nodes: cores busy",
    )
    for title in (
        "workload",
        "by",
        "copies",
        "flight",
        "calls/s",
        "p50",
        "p99",
        "fsyncs",
        "client",
        "gateway",
        "nodes",
    ):
        table.add_column(
            title, justify="left" if title in ("workload", "by") else "right", no_wrap=True
        )
    for row in rows:
        cores = {name: seconds_used / seconds for name, seconds_used in row.cpu_s.items()}
        client, front = cores.pop("client", 0.0), cores.pop("gateway", 0.0)
        table.add_row(
            row.workload,
            row.transport,
            str(row.copies or ""),
            str(row.in_flight),
            f"{row.calls_per_s:,}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.fsyncs:,}",
            f"{client:.2f}",
            f"{front:.2f}",
            f"{sum(cores.values()):.2f}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = 100
    console.print(table)


def _bench(
    target: str | None,
    copies: int,
    options: tuple[str, ...],
    objects: int,
    seconds: float,
    levels: list[int],
    wanted: set[str],
) -> list[Row]:
    """Return the rows of one cluster: of `target`, or of a new cluster with `copies` copies."""
    gateway = target
    folder = Path(tempfile.mkdtemp(prefix="holdfast-bench-"))
    cluster = LocalCluster(folder)
    try:
        echo_port = free_port()
        echo = subprocess.Popen([sys.executable, "-m", "holdfast.cli.bench", str(echo_port)])
        cluster.processes["echo"] = echo
        if gateway is None:
            gateway = f"127.0.0.1:{free_port()}"
            cluster.start_etcd()
            for i in range(1, copies + 1):
                cluster.start_node(
                    f"n{i}",
                    "holdfast.bench_app",
                    "--members-min",
                    str(copies),
                    "--replication",
                    str(copies),
                    *options,
                )
            cluster.start_gateway("gateway", int(gateway.rpartition(":")[2]))
            cluster.wait_ready(gateway)
            time.sleep(_SETTLE_S)
        return uvloop.run(
            _measure(gateway, f"127.0.0.1:{echo_port}", copies, objects, seconds, levels, wanted)
        )
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(
    gateway: str,
    echo: str,
    copies: int,
    objects: int,
    seconds: float,
    levels: list[int],
    wanted: set[str],
) -> list[Row]:
    rows = []
    keys = [f"o{i}" for i in range(objects)]
    channel = open_channel(gateway)
    status = channel.unary_unary(
        "/holdfast.v1.Admin/Status",
        request_serializer=admin_pb2.StatusRequest.SerializeToString,
        response_deserializer=admin_pb2.StatusResponse.FromString,
    )

    async def row(workload: str, transport: str, in_flight: int, copies: int, once: _Once) -> None:
        if wanted and f"{workload}/{transport}" not in wanted:
            return
        await _run(once, keys, in_flight, _WARM_UP_S)
        before = await status(admin_pb2.StatusRequest())
        client_s = process_stats().cpu_s
        latencies, elapsed = await _run(once, keys, in_flight, seconds)
        client_s = process_stats().cpu_s - client_s
        after = await status(admin_pb2.StatusRequest())
        latencies.sort()
        n = len(latencies)
        cpu = {
            "client": round(client_s, 2),
            "gateway": round(after.gateway.process.cpu_s - before.gateway.process.cpu_s, 2),
        }
        for now, then in zip(after.nodes, before.nodes, strict=True):
            cpu[now.id.rpartition("-")[0]] = round(
                now.stats.process.cpu_s - then.stats.process.cpu_s, 2
            )
        rows.append(
            Row(
                workload,
                transport,
                in_flight,
                copies,
                calls_per_s=round(n / elapsed),
                p50_ms=round(latencies[n // 2] * 1e3, 2),
                p99_ms=round(latencies[int(n * 0.99)] * 1e3, 2),
                fsyncs=sum(node.stats.fsyncs for node in after.nodes)
                - sum(node.stats.fsyncs for node in before.nodes),
                cpu_s={} if transport == "grpc" else cpu,
            )
        )

    copies = (await status(admin_pb2.StatusRequest())).replication
    echo_channel = open_channel(echo)
    await asyncio.wait_for(echo_channel.channel_ready(), 10)
    bare: Any = echo_channel.unary_unary(_ECHO)
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
    cpu = {
        "client": round(client_s, 2),
        "gateway": round(after.gateway.process.cpu_s - before.gateway.process.cpu_s, 2),
    }
    for now, then in zip(after.nodes, before.nodes, strict=True):
        cpu[now.id.rpartition("-")[0]] = round(
            now.stats.process.cpu_s - then.stats.process.cpu_s, 2
        )
    counted = [
        sum(node.stats.notifications_delivered for node in answer.nodes)
        for answer in (before, after)
    ]
    fsyncs = [sum(node.stats.fsyncs for node in answer.nodes) for answer in (before, after)]
    rate = round((counted[1] - counted[0]) / (ended - began))
    return Row(
        "notify", transport, min(in_flight, 64), copies, rate, 0.0, 0.0, fsyncs[1] - fsyncs[0], cpu
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


async def _serve_echo(port: int) -> None:
    async def echo(request: bytes, context: Any) -> bytes:
        return request

    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "holdfast.bench", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
            ),
        )
    )
    bind(server, f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve_echo(int(sys.argv[1])))
