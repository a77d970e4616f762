"""The metrics that gateways and nodes have in common."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.metrics import counter, gauge
from holdfast.tls import Certificates
from prometheus_client.core import Metric

from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.routing.dispatch import Dispatcher


def watcher_metrics(watcher: ViewWatcher) -> Iterator[Metric]:
    """Yield metrics of the process's view of the cluster, and of how fresh that view is."""
    view = watcher.view
    yield gauge(
        "holdfast_etcd_watch_broken_seconds",
        "For how long the watch on etcd has been down; 0 while it is up.",
        watcher.disconnected_s,
    )
    yield gauge(
        "holdfast_etcd_strange",
        "1 when etcd is not believed: it was emptied, put back to an older state, halted, or"
        " describes another cluster.",
        bool(watcher.foreign),
    )
    yield gauge(
        "holdfast_routes_revision",
        "The etcd revision of the routes that the process works with; it goes back when etcd is put"
        " back.",
        view.revision,
    )
    yield gauge(
        "holdfast_shards",
        "Shards of the cluster.",
        view.settings.shards if view.settings is not None else 0,
    )
    yield gauge(
        "holdfast_members",
        "Members of the cluster, by the view of the process.",
        len(view.members),
    )


def certificate_metrics(certificates: Certificates | None) -> Iterator[Metric]:
    """Yield how many seconds the process's certificate stays valid."""
    expires = float("inf") if certificates is None else certificates.expires_in_s
    yield gauge(
        "holdfast_certificate_expires_seconds",
        "Seconds until the process's certificate expires; +Inf without TLS.",
        expires,
    )


def dispatcher_metrics(dispatcher: Dispatcher) -> Iterator[Metric]:
    """Yield metrics of the calls that the process sends to nodes.

    A gateway sends the calls of its clients, a node the calls and notifications of its turns.
    """
    yield gauge(
        "holdfast_dispatch_in_flight",
        "Calls accepted and not answered yet, held ones included.",
        dispatcher.in_flight,
    )
    yield gauge(
        "holdfast_dispatch_held", "Calls that wait for their shard to be served.", dispatcher.held
    )
    yield gauge(
        "holdfast_dispatch_pipes", "Nodes to which there is a connection.", dispatcher.pipes_up
    )
    yield counter(
        "holdfast_dispatch_sent_again", "Attempts beyond the first.", dispatcher.sent_again
    )
    yield gauge(
        "holdfast_routes_stale_seconds",
        "For how long nodes have worked with newer routes than this process.",
        dispatcher.stale_s,
    )
