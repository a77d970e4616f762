"""Metrics for Prometheus: what is counted on the hot path, and the page that shows it.

Counters are plain integers of whoever counts, and histograms a list of them: counting costs a tenth of a microsecond, and no lock.
A scrape asks the process on its event loop, so that what it shows is of one moment, and renders on a thread.

Names follow https://prometheus.io/docs/practices/naming: base units, `_total` for counters. No label holds a key, a request id or
anything else that grows with use.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import accumulate
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from holdfast.channels import AddressInUse, split_address

LATENCY_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds, from what a call costs in memory to the longest turn by default."""

_SCRAPE_S = 5.0


class Histogram:
    """Counts values by the first bound that they do not exceed. Not for several threads that observe at once."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: cumulative, with the bound as text."""
        return list(zip([*(str(bound) for bound in self.bounds), "+Inf"], accumulate(self.counts), strict=True))


Labelled = Iterable[tuple[tuple[str, ...], float]]
LabelledHistograms = Iterable[tuple[tuple[str, ...], Histogram]]


def counter(name: str, text: str, value: float | Labelled, labels: tuple[str, ...] = ()) -> Metric:
    """A counter `<name>_total`: one value, or one for each combination of labels."""
    return _fill(CounterMetricFamily(name, text, labels=labels), value)


def gauge(name: str, text: str, value: float | Labelled, labels: tuple[str, ...] = ()) -> Metric:
    """A gauge: one value, or one for each combination of labels."""
    return _fill(GaugeMetricFamily(name, text, labels=labels), value)


def _fill(family: CounterMetricFamily | GaugeMetricFamily, value: float | Labelled) -> Metric:
    if isinstance(value, int | float):
        family.add_metric((), value)
    else:
        for labels, each in value:
            family.add_metric(labels, each)
    return family


def histogram(name: str, text: str, value: Histogram | LabelledHistograms, labels: tuple[str, ...] = ()) -> Metric:
    """A histogram, or one for each combination of labels."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, each in [((), value)] if isinstance(value, Histogram) else value:
        family.add_metric(values, each.buckets(), each.total)
    return family


async def measure_lag(lag: Histogram, interval_s: float = 0.1) -> None:
    """Observe how late the loop wakes up who slept; until cancelled."""
    while True:
        due = perf_counter() + interval_s
        await asyncio.sleep(interval_s)
        lag.observe(max(0.0, perf_counter() - due))


class _OnLoop:
    """A collector of prometheus_client that asks the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, collect: Callable[[], Iterator[Metric]]) -> None:
        self._loop = loop
        self._collect = collect

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        async def ask() -> list[Metric]:
            return list(self._collect())

        asked = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        try:
            return asked.result(_SCRAPE_S)
        except FutureTimeout:
            asked.cancel()
            raise


class MetricsPage:
    """Serves `/metrics` over HTTP, on a thread of its own, until it is closed."""

    def __init__(self, address: str, collect: Callable[[], Iterator[Metric]]) -> None:
        """Listen at `host:port` (port 0: any free one). Call it on the loop that `collect` belongs to. Raises AddressInUse."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        registry.register(_OnLoop(asyncio.get_running_loop(), collect))
        try:
            host, port = split_address(address)
            self._server: Any
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, ValueError) as error:
            raise AddressInUse(f"cannot listen at {address} for metrics: {error}") from None
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Listen no longer. Call it from another thread than the loop's, which may have to answer a last scrape."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
