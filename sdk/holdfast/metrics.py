"""Metrics for Prometheus: counters for the hot path, and the page that shows them.

Counters are plain integers of the part that counts, and a histogram is a list of them. So counting
costs a tenth of a microsecond, and no lock. A scrape collects the values on the process's event
loop, so that all are of one moment. It renders the page on a thread.

Names follow https://prometheus.io/docs/practices/naming: base units, `_total` for counters. No
label holds a key, a request id or anything else that grows with use.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from holdfast.channels import AddressInUse, split_address
from holdfast.processes import who_listens

log = logging.getLogger(__name__)

LATENCY_BOUNDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""Bounds in seconds, from the cost of a call in memory to the default deadline of a turn."""

_SCRAPE_S = 5.0
_SCRAPES_MAX = 32
_HEAD_BYTES_MAX = 16 << 10


class Histogram:
    """Counts values by the first bound that they do not exceed. Several threads must not observe at
    once.
    """

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
        """Return the buckets as Prometheus wants them: cumulative, with the bound as text."""
        return list(
            zip(
                [*(str(bound) for bound in self.bounds), "+Inf"],
                accumulate(self.counts),
                strict=True,
            )
        )


Labelled = Iterable[tuple[tuple[str, ...], float]]
LabelledHistograms = Iterable[tuple[tuple[str, ...], Histogram]]


def counter(name: str, text: str, value: float | Labelled, labels: tuple[str, ...] = ()) -> Metric:
    """Return a counter `<name>_total`: one value, or one for each combination of labels."""
    return _fill(CounterMetricFamily(name, text, labels=labels), value)


def gauge(name: str, text: str, value: float | Labelled, labels: tuple[str, ...] = ()) -> Metric:
    """Return a gauge: one value, or one for each combination of labels."""
    return _fill(GaugeMetricFamily(name, text, labels=labels), value)


def _fill(family: CounterMetricFamily | GaugeMetricFamily, value: float | Labelled) -> Metric:
    if isinstance(value, int | float):
        family.add_metric((), value)
    else:
        for labels, each in value:
            family.add_metric(labels, each)
    return family


def histogram(
    name: str, text: str, value: Histogram | LabelledHistograms, labels: tuple[str, ...] = ()
) -> Metric:
    """Return a histogram, or one for each combination of labels."""
    family = HistogramMetricFamily(name, text, labels=labels)
    for values, each in [((), value)] if isinstance(value, Histogram) else value:
        family.add_metric(values, each.buckets(), each.total)
    return family


async def measure_lag(lag: Histogram, interval_s: float = 0.1) -> None:
    """Observe in seconds how late the event loop wakes up a sleeping task, until cancelled."""
    while True:
        due = perf_counter() + interval_s
        await asyncio.sleep(interval_s)
        lag.observe(max(0.0, perf_counter() - due))


class _Asked:
    """A collector of prometheus_client that asks the process. It also serves as a registry of
    collected metrics, to render.
    """

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect

    def describe(self) -> list[Metric]:
        return []


class MetricsPage:
    """Serves `/metrics` over HTTP from the event loop, one scrape a connection, until it is closed.

    A connection that is not done within 5 s is closed. If there are more than 32 connections, the
    oldest one is closed.

    Pages are rendered one at a time, with a pause as long as the rendering took. So endless scrapes
    use at most half a thread.
    """

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(_Asked(collect))
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[Any], None] = {}  # the oldest first
        self._rendering = asyncio.Lock()
        self._again_at = 0.0
        self.port = 0

    async def listen(self, address: str) -> int:
        """Listen at `host:port` (port 0: any free one), and return the port. Raise AddressInUse."""
        try:
            host, port = split_address(address)
            self._server = await asyncio.start_server(
                self._serve, host, port, limit=_HEAD_BYTES_MAX
            )
        except (OSError, ValueError) as error:
            raise AddressInUse(
                f"cannot listen at {address} for metrics:"
                f" {error}{who_listens(split_address(address)[1])}"
            ) from None
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    async def close(self) -> None:
        """Stop listening, and end the scrapes under way."""
        if self._server is not None:
            self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = None
        if len(self._open) > _SCRAPES_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]  # at once, so that the next connection cancels another one
            oldest.cancel()
        try:
            async with asyncio.timeout(_SCRAPE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                try:
                    answer = await self._answer(head)
                except Exception:
                    log.exception("the metrics page cannot be made")
                    answer = _response("500 Internal Server Error", "text/plain", b"see the log\n")
                writer.write(answer)
                await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # The client is gone, sent too much, or does not read. CancelledError is caught because
            # asyncio logs a cancelled handler as an error.
            writer.transport.abort()
        finally:
            self._open.pop(task, None)
            writer.close()

    async def _answer(self, head: str) -> bytes:
        request, _, fields = head.partition("\r\n")
        method, _, rest = request.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"only GET\n")
        if path not in ("/", "/metrics"):
            return _response("404 Not Found", "text/plain", b"the metrics are at /metrics\n")
        given = (line.partition(":") for line in fields.split("\r\n"))
        accept = next(
            (value.strip() for name, _, value in given if name.strip().lower() == "accept"), ""
        )
        encode, content_type = choose_encoder(accept)
        async with self._rendering:
            await asyncio.sleep(self._again_at - perf_counter())
            began = perf_counter()
            metrics = list(self._registry.collect())
            page = await asyncio.to_thread(encode, _Asked(lambda: metrics))
            self._again_at = 2 * perf_counter() - began
        return _response("200 OK", content_type, page if method == "GET" else b"")


def _response(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length:"
        f" {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
