"""Writes the tables of docs/reference/metrics.md from the code that shows the metrics.

The code is run with stand-ins in place of the parts of a process, and each metric that it yields is
noted. `--check` fails when the page says something else. What a running process shows is compared
with the page by tests/cluster/test_prometheus.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import holdfast_cluster.process.metrics as shared
import holdfast_gateway.process.metrics as gateway
import holdfast_node.observe.metrics as node
from made import table, write


class StandIn:
    """Has every attribute, is empty, and counts as nothing."""

    def __getattr__(self, name: str) -> Any:
        return StandIn()

    def __call__(self, *given: Any, **named: Any) -> Any:
        return StandIn()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __getitem__(self, key: Any) -> Any:
        return StandIn()

    def __sub__(self, other: Any) -> float:
        return 0.0

    def __truediv__(self, other: Any) -> float:
        return 0.0

    def __contains__(self, what: Any) -> bool:
        return False


PARTS = {
    "_calls": "calls and objects",
    "_commits": "commits",
    "_shards": "shards and copies",
    "_effects": "notifications and alarms",
    "_store_metrics": "the store and its disk",
}
"""The methods of NodeMetrics, and what the page calls their metrics."""


@dataclass(frozen=True)
class Told:
    """A metric as its code tells of it."""

    name: str
    type: str
    labels: tuple[str, ...]
    text: str

    def row(self) -> list[str]:
        return [f"`{self.name}`", self.type, ", ".join(sorted(self.labels)), self.text]


def told_by(module: ModuleType, collector: Any, method: str = "collect") -> list[Told]:
    """What a method of a collector of metrics yields."""

    def teller(kind: str) -> Any:
        def tell(name: str, text: str, value: Any, labels: tuple[str, ...] = ()) -> Told:
            return Told(name + "_total" * (kind == "counter"), kind, labels, text)

        return tell

    for one in (module, shared):
        for kind in ("counter", "gauge", "histogram"):
            if hasattr(one, kind):
                setattr(one, kind, teller(kind))
    parts = {field.name: StandIn() for field in fields(collector)}
    return list(getattr(collector(**parts), method)())


def rows(metrics: Iterable[Told]) -> str:
    return table(["metric", "type", "labels", "what"], [metric.row() for metric in metrics])


def main() -> int:
    of_nodes = told_by(node, node.NodeMetrics)
    of_gateways = told_by(gateway, gateway.GatewayMetrics)
    by_part = {part: told_by(node, node.NodeMetrics, part) for part in PARTS}
    grouped = {metric for metrics in by_part.values() for metric in metrics}
    parts = {
        **{PARTS[part]: rows(metrics) for part, metrics in by_part.items()},
        "the node itself": rows(
            metric for metric in of_nodes if metric not in of_gateways and metric not in grouped
        ),
        "gateways": rows(metric for metric in of_gateways if metric not in of_nodes),
        "both": rows(metric for metric in of_nodes if metric in of_gateways),
    }
    return write("reference/metrics.md", "reference_metrics.py", parts)


if __name__ == "__main__":
    sys.exit(main())
