"""Builds the two dashboards: `python deploy/grafana/build.py` writes overview.json and
drilldown.json beside this file.

A dashboard is mostly repetition; here a panel takes a few lines. The JSON files are committed, so
that users can import them. `make check` fails when they are stale.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDTH = 24


class Dashboard:
    """A dashboard, whose panels lie in rows of equal height."""

    def __init__(self, uid: str, title: str, text: str, variables: list[dict[str, Any]]) -> None:
        self._uid, self._title, self._text = uid, title, text
        self._variables = [
            {
                "name": "datasource",
                "label": "Data source",
                "type": "datasource",
                "query": "prometheus",
                "hide": 0,
                "refresh": 1,
            },
            *variables,
        ]
        self._panels: list[dict[str, Any]] = []
        self._y = 0

    def row(self, title: str) -> None:
        self._panels.append(
            {
                "type": "row",
                "title": title,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": self._y},
                "collapsed": False,
            }
        )
        self._y += 1

    def panels(self, height: int, *panels: dict[str, Any]) -> None:
        width = WIDTH // len(panels)
        for i, panel in enumerate(panels):
            panel["gridPos"] = {"h": height, "w": width, "x": i * width, "y": self._y}
            self._panels.append(panel)
        self._y += height

    def json(self) -> str:
        for i, panel in enumerate(self._panels, 1):
            panel["id"] = i
        links = [
            {
                "title": "Holdfast",
                "type": "dashboards",
                "tags": ["holdfast"],
                "asDropdown": False,
                "keepTime": True,
                "includeVars": True,
            }
        ]
        return (
            json.dumps(
                {
                    "uid": self._uid,
                    "title": self._title,
                    "description": self._text,
                    "tags": ["holdfast"],
                    "schemaVersion": 39,
                    "editable": True,
                    "refresh": "30s",
                    "time": {"from": "now-1h", "to": "now"},
                    "timezone": "browser",
                    "graphTooltip": 1,
                    "links": links,
                    "templating": {"list": self._variables},
                    "panels": self._panels,
                },
                indent=1,
            )
            + "\n"
        )


def _panel(
    kind: str, title: str, text: str, queries: list[tuple[str, str]], **more: Any
) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [
        {
            "refId": chr(65 + i),
            "datasource": source,
            "expr": expr,
            "legendFormat": legend,
            "instant": kind == "stat",
            "range": kind != "stat",
        }
        for i, (expr, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "description": text,
        "datasource": source,
        "targets": targets,
        **more,
    }


def graph(
    title: str, unit: str, text: str, *queries: tuple[str, str], stack: bool = False
) -> dict[str, Any]:
    custom: dict[str, Any] = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 25 if stack else 8,
        "showPoints": "never",
        "spanNulls": 60000,
    }
    if stack:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    return _panel(
        "timeseries",
        title,
        text,
        list(queries),
        fieldConfig={"defaults": {"unit": unit, "min": 0, "custom": custom}, "overrides": []},
        options={
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def stat(
    title: str,
    unit: str,
    text: str,
    query: str,
    bad_from: float | None = None,
    good_from: float | None = None,
) -> dict[str, Any]:
    if bad_from is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": bad_from}]
    elif good_from is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": good_from}]
    else:
        steps = [{"color": "blue", "value": None}]
    return _panel(
        "stat",
        title,
        text,
        [(query, "")],
        fieldConfig={
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        options={
            "colorMode": "value",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"]},
        },
    )


def choice(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": query,
        "definition": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    }


RATE = "$__rate_interval"


def quantile(q: float, metric: str, by: str = "", where: str = "") -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{where}[{RATE}])))"


def per_s(metric: str, by: str = "", where: str = "") -> str:
    inner = f"rate({metric}{where}[{RATE}])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def overview() -> Dashboard:
    board = Dashboard(
        "holdfast-overview",
        "Holdfast: cluster",
        "The service as callers see it, and the health of the cluster.",
        [],
    )
    board.row("Is it well?")
    board.panels(
        4,
        stat(
            "Members",
            "none",
            "Nodes in the cluster, as most processes see it.",
            "max(holdfast_members)",
        ),
        stat(
            "Shards not served",
            "none",
            "Calls to the objects of these shards wait.",
            "max(holdfast_shards) - sum(holdfast_shards_serving)",
            bad_from=1,
        ),
        stat(
            "Read-only shards",
            "none",
            "Too few copies are in sync to write.",
            "sum(holdfast_shards_read_only)",
            bad_from=1,
        ),
        stat(
            "Under-replicated",
            "none",
            "Fewer copies in sync than wanted.",
            "sum(holdfast_shards_under_replicated)",
            bad_from=1,
        ),
        stat(
            "Calls held",
            "none",
            "Calls that wait for shards that no node serves.",
            "sum(holdfast_dispatch_held)",
            bad_from=1,
        ),
        stat(
            "Dead letters",
            "none",
            "Notifications and alarms that could not be delivered: `holdfast deadletters list`.",
            "sum(holdfast_dead_letters)",
            bad_from=1,
        ),
        stat(
            "Controller",
            "none",
            "The number of controllers; it should be exactly 1.",
            "sum(holdfast_controller)",
            good_from=1,
        ),
        stat(
            "etcd unheard",
            "s",
            "The longest time that any process has been without its watch on etcd.",
            "max(holdfast_etcd_watch_broken_seconds)",
            bad_from=10,
        ),
    )
    board.row("What callers see (at the gateways)")
    board.panels(
        8,
        graph(
            "Calls by code",
            "ops",
            "APPLICATION: the application raised an exception, or refused the call.",
            (per_s("holdfast_gateway_calls_total", "code"), "{{code}}"),
            stack=True,
        ),
        graph(
            "Latency",
            "s",
            "From a call's arrival at a gateway to its reply.",
            (quantile(0.5, "holdfast_gateway_call_seconds"), "p50"),
            (quantile(0.99, "holdfast_gateway_call_seconds"), "p99"),
            (quantile(0.999, "holdfast_gateway_call_seconds"), "p99.9"),
        ),
        graph(
            "Waiting and sent again",
            "none",
            "Held calls wait for a shard. A call is sent again after a broken connection, or when"
            " the node did not serve the shard.",
            ("sum(holdfast_dispatch_held)", "held"),
            (per_s("holdfast_dispatch_sent_again_total"), "sent again /s"),
        ),
    )
    board.panels(
        8,
        graph(
            "Sessions and calls in flight",
            "none",
            "",
            ("sum(holdfast_gateway_sessions)", "sessions"),
            ("sum(holdfast_gateway_in_flight)", "in flight"),
        ),
        graph(
            "Refused by gateways",
            "ops",
            "Calls and sessions refused, and sessions ended, by reason.",
            (per_s("holdfast_gateway_refused_total", "reason"), "{{reason}}"),
        ),
        graph(
            "Routes behind",
            "s",
            "Processes whose routes are older than those of the nodes, and for how long.",
            ("max by (instance) (holdfast_routes_stale_seconds)", "{{instance}}"),
        ),
    )
    board.row("Where the time goes (at the nodes)")
    board.panels(
        8,
        graph(
            "p99 by part",
            "s",
            "Queue: in the object's mailbox. Turn: the handler. Commit: fsyncs and replicas, for"
            " each entry.",
            (quantile(0.99, "holdfast_queue_seconds"), "queue"),
            (quantile(0.99, "holdfast_turn_seconds"), "turn"),
            (quantile(0.99, "holdfast_commit_seconds"), "commit"),
            (quantile(0.99, "holdfast_call_seconds"), "total"),
        ),
        graph(
            "Turns by kind",
            "ops",
            "",
            (per_s("holdfast_calls_total", "kind"), "{{kind}}"),
            stack=True,
        ),
        graph(
            "Turns by node",
            "ops",
            "Shows how evenly the nodes share the work.",
            (per_s("holdfast_turns_total", "instance"), "{{instance}}"),
            stack=True,
        ),
    )
    board.row("Commit")
    board.panels(
        8,
        graph(
            "Entries and fsyncs",
            "ops",
            "",
            (per_s("holdfast_entries_total"), "entries"),
            (per_s("holdfast_fsync_seconds_count"), "fsyncs"),
        ),
        graph(
            "Bytes written",
            "Bps",
            "",
            (per_s("holdfast_entry_bytes_total", "instance"), "{{instance}}"),
            stack=True,
        ),
        graph(
            "fsync p99",
            "s",
            "Every write waits for the slowest disk among those of its copies.",
            (quantile(0.99, "holdfast_fsync_seconds", "instance"), "{{instance}}"),
        ),
    )
    board.row("Copies")
    board.panels(
        8,
        graph(
            "Lag of the furthest replica",
            "none",
            "Entries that the replica has not acknowledged.",
            ("holdfast_replication_lag_entries", "{{instance}}"),
        ),
        graph(
            "Changes of assignments",
            "ops",
            "By reason. A fail-over means that a node was lost.",
            (per_s("holdfast_controller_transitions_total", "why"), "{{why}}"),
            (per_s("holdfast_epoch_changes_total"), "epochs begun"),
            (per_s("holdfast_handovers_total"), "handed over"),
        ),
        graph(
            "Copies being made",
            "Bps",
            "Limited by --move-rate for each node.",
            (per_s("holdfast_snapshot_sent_bytes_total", "instance"), "{{instance}}"),
        ),
        graph("Shards by owner", "none", "", ("holdfast_shards_owned", "{{instance}}"), stack=True),
    )
    board.row("Notifications and alarms")
    board.panels(
        8,
        graph(
            "Outbox",
            "none",
            "Notifications that wait for delivery.",
            ("sum by (instance) (holdfast_outbox_depth)", "{{instance}}"),
            ("sum(holdfast_notifications_delayed)", "delayed"),
        ),
        graph(
            "Oldest in the outbox",
            "s",
            "",
            ("max by (instance) (holdfast_outbox_oldest_seconds)", "{{instance}}"),
        ),
        graph(
            "Delivered, tried again",
            "ops",
            "",
            (per_s("holdfast_notifications_delivered_total"), "delivered"),
            (per_s("holdfast_notification_retries_total"), "tried again"),
            (per_s("holdfast_alarms_fired_total"), "alarms fired"),
            (per_s("holdfast_alarm_failures_total"), "alarms failed"),
        ),
        graph(
            "Alarms",
            "none",
            "",
            ("sum(holdfast_alarms_pending)", "pending"),
            ("sum(holdfast_alarms_late)", "late"),
        ),
    )
    return board


def drilldown() -> Dashboard:
    board = Dashboard(
        "holdfast-drilldown",
        "Holdfast: node and kind",
        "One kind, or one node, in detail.",
        [
            choice("instance", "Node", "label_values(holdfast_node_member, instance)"),
            choice("kind", "Kind", "label_values(holdfast_calls_total, kind)"),
        ],
    )
    both = '{instance=~"$instance", kind=~"$kind"}'
    node = '{instance=~"$instance"}'
    board.row("Kind $kind")
    board.panels(
        8,
        graph(
            "Calls by method",
            "ops",
            "",
            (per_s("holdfast_calls_total", "kind, method", both), "{{kind}}.{{method}}"),
            stack=True,
        ),
        graph(
            "Errors by method and code",
            "ops",
            "Calls that did not end as OK.",
            (
                per_s(
                    "holdfast_calls_total",
                    "kind, method, code",
                    '{instance=~"$instance", kind=~"$kind", code!="OK"}',
                ),
                "{{kind}}.{{method}} {{code}}",
            ),
        ),
        graph(
            "Objects in memory",
            "none",
            "",
            (f"sum by (kind) (holdfast_activations{both})", "{{kind}}"),
            stack=True,
        ),
    )
    board.panels(
        8,
        *(
            graph(
                f"{title} p99",
                "s",
                text,
                (
                    quantile(0.99, f"holdfast_{name}_seconds", "kind, method", both),
                    "{{kind}}.{{method}}",
                ),
            )
            for name, title, text in (
                ("call", "Total", "From arrival at the node to the reply."),
                ("queue", "Queue", "In the object's mailbox. High: an object gets too many calls."),
                ("turn", "Turn", "The handler, with the time that it waits for other calls."),
            )
        ),
    )
    board.row("Node $instance")
    board.panels(
        8,
        graph(
            "CPU",
            "percentunit",
            "A node's Python uses at most one core.",
            (f"rate(process_cpu_seconds_total{node}[{RATE}])", "{{instance}}"),
        ),
        graph(
            "Resident memory",
            "bytes",
            "",
            (f"process_resident_memory_bytes{node}", "{{instance}}"),
            (f"holdfast_cache_bytes{node}", "caches {{instance}}"),
        ),
        graph(
            "Event loop lag p99",
            "s",
            "",
            (quantile(0.99, "holdfast_loop_lag_seconds", "instance", node), "{{instance}}"),
        ),
        graph(
            "Objects in and out of memory",
            "ops",
            "",
            (per_s("holdfast_activations_created_total", "instance", node), "in {{instance}}"),
            (per_s("holdfast_evictions_total", "instance", node), "out {{instance}}"),
        ),
    )
    board.panels(
        8,
        graph(
            "Calls in flight",
            "none",
            "",
            (f"holdfast_calls_in_flight{node}", "{{instance}}"),
            (f"holdfast_calls_in_flight_limit{node}", "limit {{instance}}"),
        ),
        graph(
            "Commit p99",
            "s",
            "The time until writes are on the disks of all in-sync copies.",
            (quantile(0.99, "holdfast_commit_seconds", "instance", node), "{{instance}}"),
        ),
        graph(
            "Entries not committed",
            "none",
            "",
            (f"holdfast_entries_uncommitted{node}", "{{instance}}"),
        ),
        graph(
            "etcd session",
            "s",
            "The time until the node's lease in etcd ends.",
            (f"holdfast_etcd_session_remaining_seconds{node}", "{{instance}}"),
        ),
        graph(
            "Shards",
            "none",
            "",
            (f"holdfast_shards_owned{node}", "owned {{instance}}"),
            (f"holdfast_shards_serving{node}", "serving {{instance}}"),
            (f"holdfast_copies{node}", "copies {{instance}}"),
        ),
    )
    board.row("Store of $instance")
    board.panels(
        8,
        graph(
            "Size",
            "bytes",
            "",
            (f"holdfast_store_size_bytes{node}", "files {{instance}}"),
            (f"holdfast_disk_free_bytes{node}", "free {{instance}}"),
            (f"holdfast_disk_reserve_bytes{node}", "reserve {{instance}}"),
        ),
        graph(
            "In memory",
            "bytes",
            "",
            (f"holdfast_store_memtable_bytes{node}", "memtables {{instance}}"),
            (f"holdfast_store_block_cache_bytes{node}", "block cache {{instance}}"),
        ),
        graph(
            "Compaction",
            "bytes",
            "",
            (f"holdfast_store_compaction_pending_bytes{node}", "pending {{instance}}"),
        ),
        graph(
            "Stalls",
            "none",
            "",
            (f"holdfast_store_writes_stopped{node}", "stopped {{instance}}"),
            (f"holdfast_store_level0_files{node}", "level 0 files {{instance}}"),
        ),
    )
    return board


def main() -> int:
    stale = False
    for name, board in (("overview", overview()), ("drilldown", drilldown())):
        path, text = HERE / f"{name}.json", board.json()
        if sys.argv[1:] == ["--check"]:
            if not path.exists() or path.read_text() != text:
                print(f"{path.name} is stale: run python deploy/grafana/build.py", file=sys.stderr)
                stale = True
        else:
            path.write_text(text)
    return int(stale)


if __name__ == "__main__":
    raise SystemExit(main())
