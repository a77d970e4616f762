"""`holdfast bench`: how fast a cluster is on this machine, and which process uses the CPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import grpc
import uvloop
from rich import box
from rich.console import Console
from rich.table import Table

from holdfast import codec
from holdfast.cli.bench_rows import ROWS, Row, measure
from holdfast.errors import HoldfastError
from holdfast.local import ClusterFailed, LocalCluster, free_port
from holdfast.options import local_option
from holdfast.processes import told_as_refusal

# for this time after it took a shard, a node looks up requests that another node may have run
_SETTLE_S = 2.0


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
    if unknown := wanted - set(ROWS):
        raise click.ClickException(
            f"--only {', '.join(sorted(unknown))}: the rows are {', '.join(ROWS)}"
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
    console = Console()
    if not console.is_terminal:
        console.width = 100
    console.print(_table(rows, seconds))


def _table(rows: list[Row], seconds: float) -> Table:
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
    return table


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
        echo = subprocess.Popen([sys.executable, "-m", "holdfast.cli.bench_echo", str(echo_port)])
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
            measure(gateway, f"127.0.0.1:{echo_port}", copies, objects, seconds, levels, wanted)
        )
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
