"""Monitoring of a process: health for probes, the Prometheus page, the lag of the event loop."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from holdfast.health import LIVE, HealthPort
from holdfast.metrics import Histogram, MetricsPage, measure_lag
from prometheus_client.core import Metric

log = logging.getLogger(__name__)

_INTERVAL_S = 0.25


class Watched:
    """Health and metrics of one process.

    Probes learn that the process lives, and whether it is ready for calls.
    """

    def __init__(self, host: str, health_port: int | None, metrics_port: int | None) -> None:
        """Set the ports, which are at `host`. 0: any free port; None: do not listen."""
        self._host = host
        self._health_port = health_port
        self._metrics_port = metrics_port
        self._healthy = health.aio.HealthServicer()
        self._probes = HealthPort(self._healthy)
        self._page: MetricsPage | None = None
        self.loop_lag = Histogram()

    def serve_health(self, server: grpc.aio.Server) -> None:
        """Add the health service to a gRPC server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._healthy, server)

    async def begin(self) -> None:
        """Report that the process lives but is not ready. Probes can ask once `listen` has run."""
        await self.say(False)
        await self._healthy.set(LIVE, health_pb2.HealthCheckResponse.SERVING)

    async def listen(self, collect: Callable[[], Iterator[Metric]] | None = None) -> None:
        """Listen for probes, and, if `collect` is given, for Prometheus. Raise AddressInUse."""
        if self._metrics_port is not None and collect is not None:
            self._page = MetricsPage(collect)
            log.info(
                "metrics at port %d", await self._page.listen(f"{self._host}:{self._metrics_port}")
            )
        if self._health_port is not None:
            log.info(
                "health at port %d", await self._probes.listen(f"{self._host}:{self._health_port}")
            )

    async def say(self, ready: bool) -> None:
        """Tell probes whether the process is ready for calls."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await self._healthy.set("", status)

    async def follow(self, ready: Callable[[], bool]) -> None:
        """Tell probes four times a second what `ready` returns, until cancelled."""
        while True:
            await self.say(ready())
            await asyncio.sleep(_INTERVAL_S)

    async def measure(self) -> None:
        """Measure the lag of the event loop, until cancelled."""
        await measure_lag(self.loop_lag)

    async def close(self) -> None:
        if self._page is not None:
            await self._page.close()
        await self._probes.close()


def settle_garbage() -> None:
    """Exempt the objects that start-up made from garbage collection: they stay anyway."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
