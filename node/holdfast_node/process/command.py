"""The command `holdfast node`, which runs one node, or one for each of several workers."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
from holdfast.channels import AddressInUse
from holdfast.loading import AppError, load_app
from holdfast.options import common_options, option
from holdfast.processes import told_as_refusal, whys
from holdfast.tracing import TracingMissing
from holdfast_cluster.membership.member import NotAccepted
from holdfast_cluster.process.run import ProcessOptions, run_until_signalled

from holdfast_node.effects.outbox import OutboxLimits
from holdfast_node.log.commit import EXIT_STORE_FAILED
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.process.config import NodeConfig
from holdfast_node.process.server import NodeServer
from holdfast_node.store.directory import WrongDirectory
from holdfast_node.store.disk_space import EXIT_DISK_FULL
from holdfast_node.store.rocks import StoreError, is_no_space

log = logging.getLogger(__name__)

REFUSALS = (
    AppError,
    StoreError,
    WrongDirectory,
    NotAccepted,
    AddressInUse,
    ValueError,
    TracingMissing,
)
"""Errors that a person has to fix, so the node is not started again."""
_RESTART_BACKOFF_S = (1.0, 30.0)
# With so short an interval the fsync thread gets the GIL back soon. With the default, 5 ms, a busy
# loop would delay replies.
_SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, kw_only=True)
class NodeOptions(ProcessOptions):
    """The options of `holdfast node`, by their names."""

    app: str
    data: Path
    name: str | None
    listen: str
    advertise: str | None
    stream_listen: str | None
    stream_advertise: str | None
    host: str
    zone: str
    weight: int
    workers: int
    members_min: int | None
    lease_ttl: int
    turn_timeout: float
    idle: float
    activations_max: int
    mailbox_max: int
    in_flight_max: int
    memory_max_mb: int
    repair_after: float
    move_rate: float
    backlog_rate: float
    replies_window: float
    drain_timeout: float
    disk_reserve: int


@click.command(short_help="Run a node: it owns shards and runs your objects.")
@click.argument("app")
@option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The data directory, with the node's id and its data.",
)
@option("--name", help="First part of the node's id, fixed at the directory's first start.")
@option(
    "--listen",
    default="127.0.0.1:7401",
    help="Address for gRPC: health checks, snapshots, requests of operators.",
)
@option("--advertise", help="The address at which others reach --listen, if it differs.")
@option(
    "--stream-listen",
    help=(
        "Address for streams: calls and replication. Default: any free port of the host of"
        " --listen."
    ),
)
@option(
    "--stream-advertise",
    help=(
        "The address at which others reach --stream-listen. Default: the host of --advertise and"
        " the listening port."
    ),
)
@option(
    "--host", default="", help="Label of the machine, to keep copies apart. Default: the host name."
)
@option("--zone", default="", help="Label of the zone, to keep copies apart.")
@option("--weight", default=1, help="Share of the shards, relative to the other nodes.")
@option(
    "--workers",
    default=1,
    help="Nodes to run, one for each core. Each is a process with DATA/<i> and the next ports.",
)
@option(
    "--members-min",
    type=int,
    help=(
        "Nodes for which the controller waits before it assigns a new cluster's shards. Default:"
        " REPLICATION, or WORKERS if that is larger."
    ),
)
@option("--lease-ttl", default=3, help="Seconds after which a silent node is no longer a member.")
@option("--turn-timeout", default=30.0, help="Seconds that a turn may run.")
@option("--idle", default=300.0, help="Seconds without a call after which an object leaves memory.")
@option("--activations-max", default=200_000, help="The most objects in memory.")
@option("--mailbox-max", default=1_000, help="The most calls that wait for one object.")
@option("--in-flight-max", default=10_000, help="The most calls under way on the node.")
@option(
    "--memory-max-mb",
    default=0,
    help="MiB of resident memory above which the node evicts objects; 0: no bound.",
)
@option(
    "--repair-after",
    default=30.0,
    help="Seconds after which the copies of a vanished node are made on other nodes.",
)
@option(
    "--move-rate",
    default=50.0,
    help="The most MB/s that the node sends to make copies of shards on other nodes.",
)
@option(
    "--backlog-rate",
    default=1000.0,
    help="The most waiting notifications, and late alarms, that the node delivers in a second.",
)
@option("--replies-window", default=600.0, help="Seconds for which a request may be sent again.")
@option(
    "--drain-timeout",
    default=10.0,
    help="Seconds in which running turns may end when the node stops.",
)
@option(
    "--disk-reserve",
    default=512,
    help="MiB to keep free on the disk of DATA. With less the node is full. 0: no check.",
)
@common_options
def node(**given: Any) -> None:
    """Run a node with the kinds of APP (a file or a module, with `:name` if it holds several Apps).

    \b
    Examples:
      holdfast node shop/app.py --data /var/lib/holdfast --etcd-endpoints etcd-0:2379,etcd-1:2379
      holdfast node shop.app --data ./data --workers 8 --listen 0.0.0.0:7401 \\
        --stream-listen 0.0.0.0:7501 --advertise 10.0.0.5:7401
    """
    options = NodeOptions(**given)
    if options.workers > 1:
        raise SystemExit(
            _supervise(
                sys.argv[1:],
                options.workers,
                options.data,
                {
                    "listen": options.listen,
                    "advertise": options.advertise,
                    "stream-listen": options.stream_listen,
                    "stream-advertise": options.stream_advertise,
                },
                {"metrics-port": options.metrics_port, "health-port": options.health_port},
                options.name,
                options.members_min or max(options.workers, options.replication or 3),
            )
        )
    try:
        config = NodeConfig(
            app=options.app,
            data=options.data,
            etcd_endpoints=options.endpoints,
            etcd_tls=options.etcd_tls(),
            insecure=options.insecure,
            health_port=options.health_port,
            cluster=options.cluster,
            name=options.name,
            listen=options.listen,
            advertise=options.advertise,
            stream_listen=options.stream_listen,
            stream_advertise=options.stream_advertise,
            metrics_port=options.metrics_port,
            trace=options.trace,
            certificates=options.certificates(),
            host=options.host,
            zone=options.zone,
            weight=options.weight,
            settings=options.settings(),
            members_min=options.members_min,
            lease_ttl_s=options.lease_ttl,
            replies_window_s=options.replies_window,
            repair_after_s=options.repair_after,
            move_rate=options.move_rate * 1e6,
            drain_timeout_s=options.drain_timeout,
            memory_max_bytes=options.memory_max_mb << 20,
            disk_reserve_bytes=options.disk_reserve << 20,
            limits=EngineLimits(
                in_flight_max=options.in_flight_max,
                mailbox_max=options.mailbox_max,
                turn_timeout_s=options.turn_timeout,
                activations_max=options.activations_max,
                idle_s=options.idle,
                outbox=OutboxLimits(backlog_per_s=options.backlog_rate),
            ),
        )
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    options.configure(options.name or "node")
    try:
        _until_it_ends(config)
    except (*REFUSALS, ExceptionGroup) as error:
        raise told_as_refusal(error, REFUSALS) from None


def _until_it_ends(config: NodeConfig) -> None:
    """Run the node. If it ends by an error that no person has to fix, exit with a status for which
    it is started again."""
    try:
        run_until_signalled(partial(_serve, config))
    except Exception as error:
        of = list(whys(error))
        if any(is_no_space(why) for why in of):
            log.critical(
                "%s; the node stops, and starts again when there is room",
                "; ".join(str(why) for why in of),
            )
            raise SystemExit(EXIT_DISK_FULL) from None
        if not all(isinstance(why, REFUSALS) for why in of):
            log.critical("a bug ends the node", exc_info=True)
            raise SystemExit(EXIT_STORE_FAILED) from None
        raise


async def _serve(config: NodeConfig, stop: asyncio.Event) -> None:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    await NodeServer(config, load_app(config.app)).run(stop)


def _supervise(
    arguments: list[str],
    workers: int,
    data: Path,
    addresses: dict[str, str | None],
    ports: dict[str, int | None],
    name: str | None,
    members_min: int,
) -> int:
    """Run `workers` nodes as processes of their own, and return the exit status. Start a worker
    again if it ends by itself. End all of them on a signal, or if one cannot run."""
    stopping = False
    processes: dict[int, subprocess.Popen[bytes]] = {}
    backoff: dict[int, float] = {}

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        for process in processes.values():
            process.terminate()

    def start(i: int) -> None:
        own = [
            "--workers",
            "1",
            "--members-min",
            str(members_min),
            "--data",
            str(data / str(i)),
            "--name",
            f"{name or 'node'}-{i}",
        ]
        for flag, address in addresses.items():
            if address:
                host, _, port = address.rpartition(":")
                own += [f"--{flag}", f"{host}:{int(port) + i if int(port) else 0}"]
        for flag, number in ports.items():
            if number:
                own += [f"--{flag}", str(number + i)]
        processes[i] = subprocess.Popen([sys.executable, "-m", "holdfast", *arguments, *own])

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    due = dict.fromkeys(range(workers), 0.0)
    code = 0
    while due or processes:
        now = time.monotonic()
        for i, at in list(due.items()):
            if stopping:
                due.clear()
                break
            if at <= now:
                del due[i]
                start(i)
        for i, process in list(processes.items()):
            if process.poll() is None:
                continue
            del processes[i]
            # The worker has said why it cannot run, and would say so again.
            if process.returncode == 1 and not stopping:
                code = 1
                stop()
            elif not stopping:
                backoff[i] = min(
                    backoff.get(i, _RESTART_BACKOFF_S[0] / 2) * 2, _RESTART_BACKOFF_S[1]
                )
                print(
                    f"worker {i} ended with {process.returncode}; again in {backoff[i]:.0f} s",
                    file=sys.stderr,
                )
                due[i] = now + backoff[i]
        time.sleep(0.1)
    return code
