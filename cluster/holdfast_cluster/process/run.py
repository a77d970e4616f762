"""The options that the commands of nodes and gateways share, and the loop that runs them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop
from holdfast import logs
from holdfast.options import certificates, explicit_settings
from holdfast.processes import raise_file_limit, use_batch_scheduling
from holdfast.tls import Certificates

from holdfast_cluster.membership.etcd import EtcdTLS, etcd_tls


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """The options of `holdfast.options.common_options`."""

    etcd_endpoints: str
    etcd_ca: Path | None
    etcd_cert: Path | None
    etcd_key: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    tls_name: str | None
    insecure: bool
    health_port: int | None
    cluster: str
    shards: int | None
    replication: int | None
    min_in_sync: int | None
    points: int | None
    metrics_port: int | None
    trace: float
    log_level: str
    log_format: str

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(self.etcd_endpoints.split(","))

    def etcd_tls(self) -> EtcdTLS | None:
        """Return the TLS files for etcd; None if no option names one.

        Raise ValueError when a file is missing or the files do not belong together.
        """
        return etcd_tls(self.etcd_ca, self.etcd_cert, self.etcd_key)

    def certificates(self, client_ca: Path | None = None) -> Certificates | None:
        """Return the certificates of the cluster's processes. Raise ValueError for wrong files."""
        return certificates(
            self.cluster, self.tls_cert, self.tls_key, self.tls_ca, self.tls_name, client_ca
        )

    def settings(self) -> dict[str, int]:
        """Return the cluster settings that options gave explicitly."""
        return explicit_settings(
            shards=self.shards,
            replication=self.replication,
            min_in_sync=self.min_in_sync,
            points=self.points,
        )

    def configure(self, name: str) -> None:
        """Set up this process: the limit of open files, scheduling, and logs that carry `name`."""
        raise_file_limit()
        use_batch_scheduling()
        logs.configure(name, self.log_level, self.log_format)


def run_until_signalled(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run a server. SIGTERM and SIGINT set the event that the server gets."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(stop)

    uvloop.run(run())
