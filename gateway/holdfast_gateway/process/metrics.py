"""The metrics of a gateway, as Prometheus sees them; docs/reference/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.errors import code_name
from holdfast.metrics import Histogram, counter, gauge, histogram
from holdfast.processes import version
from holdfast.tls import Certificates
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.process.metrics import (
    certificate_metrics,
    dispatcher_metrics,
    watcher_metrics,
)
from holdfast_cluster.routing.dispatch import Dispatcher
from prometheus_client.core import Metric

from holdfast_gateway.admission.access import AccessFile
from holdfast_gateway.edges.grpc import ObjectsService


@dataclass
class GatewayMetrics:
    """The collector of a gateway's metrics. It runs on the event loop."""

    objects: ObjectsService
    dispatcher: Dispatcher
    watcher: ViewWatcher
    loop_lag: Histogram
    certificates: Certificates | None
    access: AccessFile | None

    def collect(self) -> Iterator[Metric]:
        dispatcher, objects = self.dispatcher, self.objects
        yield gauge(
            "holdfast_build_info", "The version that runs.", [((version(),), 1)], ("version",)
        )
        codes = [((code_name(code),), count) for code, count in sorted(dispatcher.codes().items())]
        yield counter("holdfast_gateway_calls", "Calls answered by the gateway.", codes, ("code",))
        yield histogram(
            "holdfast_gateway_call_seconds",
            "From a call's arrival at the gateway to its reply.",
            dispatcher.seconds,
        )
        yield gauge(
            "holdfast_gateway_in_flight", "Calls taken and not answered.", dispatcher.in_flight
        )
        yield gauge(
            "holdfast_gateway_sessions",
            "Sessions of clients that are open.",
            objects.sessions.count,
        )
        refused = [
            ((reason,), count) for reason, count in sorted(objects.admission.refused.items())
        ]
        yield counter(
            "holdfast_gateway_refused",
            "Calls and sessions refused, and sessions ended because their client did not read.",
            refused,
            ("reason",),
        )
        yield gauge(
            "holdfast_gateway_ready", "1 while the gateway's routes are fresh.", dispatcher.ready()
        )
        yield histogram(
            "holdfast_loop_lag_seconds",
            "How late the event loop wakes up a task that slept.",
            self.loop_lag,
        )
        failing = self.access is not None and self.access.failing
        yield gauge(
            "holdfast_gateway_access_file_wrong",
            "1 while the access file is wrong; its last correct version is in force.",
            failing,
        )
        yield from certificate_metrics(self.certificates)
        yield from watcher_metrics(self.watcher)
        yield from dispatcher_metrics(dispatcher)
