"""What a real Prometheus sees of a real cluster: every page, every panel of the dashboards, every
rule."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast.errors import code_name
from holdfast.local import free_port
from holdfast.v1 import objects_pb2 as pb

from tests.cluster.processes import Processes

APP = str(Path(__file__).parent / "monitoring_app.py")
DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus"
DASHBOARDS = ("overview", "drilldown")
NODES = 3

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed",
)


def selectors(expr: str) -> set[str]:
    """The series that an expression reads: names of metrics, with what is in braces behind them."""
    found = re.findall(
        r"\b((?:holdfast_|process_|up\b|[a-z_]+:holdfast_|holdfast:)[a-z0-9_:]*)(\{[^}]*\})?", expr
    )
    return {name + braces for name, braces in found}


class Prometheus:
    """A real one, that scrapes every second."""

    def __init__(self, folder: Path, targets: dict[str, list[int]]) -> None:
        folder.mkdir()
        # evaluated more often than in production: a test does not wait for 15 s
        for name in (
            "rules.yml",
            "alerts.yml",
        ):
            (folder / name).write_text(
                (RULES / name).read_text().replace("interval: 15s", "interval: 1s")
            )
        jobs = [
            {
                "job_name": job,
                "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}],
            }
            for job, ports in targets.items()
        ]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yml", "alerts.yml"],
            "scrape_configs": jobs,
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self.port = free_port()
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )

    def query(self, expr: str) -> list[Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/query?" + urllib.parse.urlencode(
            {"query": expr}
        )
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from None
        assert said["status"] == "success", said
        return list(said["data"]["result"])

    def value(self, expr: str) -> float:
        """The value of an expression that has one."""
        [one] = self.query(expr)
        return float(one["value"][1])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)


async def work(gateway: str, seconds: float) -> None:
    """Calls of every kind, and what goes wrong with them."""
    async with holdfast.connect(gateway) as client:
        await client.get("Shop", "a").send_nonsense()
        await client.get("Shop", "a").remind(0.2)
        await client.get("Shop", "b").remind(3600)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            shops = [client.get("Shop", f"s{i}") for i in range(20)]
            await asyncio.gather(
                *(shop.sell(1) for shop in shops), *(shops[0].think(0.01) for _ in range(3))
            )
            await shops[0].audit()
            with pytest.raises(holdfast.ApplicationError):
                await shops[1].fail()
            with pytest.raises(holdfast.NotFound):
                await client.get("Shop", "x").steal()
            await asyncio.sleep(0.2)


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Processes, Prometheus, dict[str, list[int]]]]:
    """A cluster that has worked for a while, and the Prometheus that watched it."""
    folder = tmp_path_factory.mktemp("watched")
    cluster = Processes(folder, replication=NODES)
    targets = {
        "holdfast-node": [free_port() for _ in range(NODES)],
        "holdfast-gateway": [free_port()],
    }
    prometheus = None
    try:
        cluster.start_etcd()
        for i, port in enumerate(targets["holdfast-node"], 1):
            cluster.node(f"n{i}", "--members-min", str(NODES), "--metrics-port", str(port), app=APP)
        cluster.front("--metrics-port", str(targets["holdfast-gateway"][0]))
        cluster.wait_ready(cluster.gateway)
        prometheus = Prometheus(folder / "prometheus", targets)
        asyncio.run(work(cluster.gateway, 14))
        yield cluster, prometheus, targets
    finally:
        if prometheus is not None:
            prometheus.stop()
        cluster.stop()


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@needs_prometheus
def test_every_page_passes_promtool_and_holds_no_key(watched: Any) -> None:
    _, _, targets = watched
    for ports in targets.values():
        for port in ports:
            text = page(port)
            checked = subprocess.run(
                ["promtool", "check", "metrics"], input=text, capture_output=True, text=True
            )
            assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
            labels = {
                name
                for braces in re.findall(r"^holdfast\w*\{([^}]*)\}", text, re.MULTILINE)
                for name in re.findall(r"(\w+)=", braces)
            }
            assert labels <= {
                "version",
                "kind",
                "method",
                "code",
                "le",
                "why",
                "reason",
                "subject",
                "node",
            }
            assert 'steal"' not in text, "a method that a caller made up"


@needs_prometheus
@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_panel_shows_something(watched: Any, name: str) -> None:
    _, prometheus, _ = watched
    board = json.loads((DEPLOY / "grafana" / f"{name}.json").read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) > 10
    for panel in panels:
        for target in panel["targets"]:
            expr = (
                target["expr"]
                .replace("$__rate_interval", "10s")
                .replace("$instance", ".*")
                .replace("$kind", ".*")
            )
            assert "$" not in expr
            assert prometheus.query(expr), f"{panel['title']}: {expr} matches nothing"
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for series in prometheus.query(expr):
                assert shown <= set(series["metric"]), (
                    f"{panel['title']}: the legend names {shown}, the series has {series['metric']}"
                )
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["query"]
            ).groups()  # type: ignore[union-attr]
            assert all(label in series["metric"] for series in prometheus.query(metric))
            assert prometheus.query(metric)


@needs_prometheus
def test_every_rule_reads_series_that_exist(watched: Any) -> None:
    _, prometheus, _ = watched
    config = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(RULES / "scrape.yml")],
        capture_output=True,
        text=True,
    )
    assert config.returncode == 0, config.stderr
    rules = subprocess.run(
        ["promtool", "check", "rules", str(RULES / "rules.yml"), str(RULES / "alerts.yml")],
        capture_output=True,
        text=True,
    )
    assert rules.returncode == 0, rules.stderr
    url = f"http://127.0.0.1:{prometheus.port}/api/v1/rules"
    with urllib.request.urlopen(url, timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert len([rule for rule in loaded if rule["type"] == "alerting"]) >= 20
    for rule in loaded:
        assert rule["health"] == "ok", rule
        wanted = selectors(rule["query"])
        assert wanted, rule["query"]
        for series in wanted:
            assert prometheus.query(series), f"{rule['name']}: {series} matches nothing"
        if rule["type"] == "recording":
            assert prometheus.query(rule["name"]), f"{rule['name']} records nothing"
        elif rule["name"] != "HoldfastDeadLetters":
            # the cluster is well, but for what the test made it do
            assert rule["state"] != "firing", rule


def test_rules_and_panels_name_codes_that_exist() -> None:
    known = {code_name(code) for code in pb.Code.values()}
    texts = [(RULES / name).read_text() for name in ("rules.yml", "alerts.yml")]
    texts += [
        (DEPLOY / "grafana" / f"{name}.json").read_text().replace('\\"', '"') for name in DASHBOARDS
    ]
    named = {
        code
        for text in texts
        for codes in re.findall(r'code(?:=|=~|!=|!~)"([A-Z_|]+)"', text)
        for code in codes.split("|")
    }
    assert len(named) > 4
    assert named <= known


@needs_prometheus
def test_the_rules_pass_their_own_tests_and_each_alert_has_one() -> None:
    tested = subprocess.run(
        ["promtool", "test", "rules", str(RULES / "tests.yml")], capture_output=True, text=True
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    alerts = set(re.findall(r"- alert: (\w+)", (RULES / "alerts.yml").read_text()))
    assert alerts == set(
        re.findall(r"\n        alertname: (\w+)", (RULES / "tests.yml").read_text())
    )


def test_each_alert_names_a_part_of_the_operating_guide() -> None:
    guide = (DEPLOY.parent / "docs" / "operating.md").read_text()
    headings = set(re.findall(r"^##+ (.+)$", guide, re.MULTILINE))
    for named in re.findall(
        r"See docs/operating.md, ([^\"]+)\.\"", (RULES / "alerts.yml").read_text()
    ):
        for heading in named.split(" and "):
            assert heading in headings or named in headings, (
                f"no part {heading!r} in docs/operating.md"
            )


@needs_prometheus
async def test_what_is_counted_is_what_happened(watched: Any) -> None:
    cluster, prometheus, targets = watched
    async with cluster.connect() as client:
        for _ in range(7):
            await client.get("Ledger", "counted").booked(1)

    def total(text: str, name: str, **labels: str) -> float:
        lines = re.findall(rf"^{name}\{{([^}}]*)\}} (\S+)$|^{name} (\S+)$", text, re.MULTILINE)
        return sum(
            float(value or bare)
            for braces, value, bare in lines
            if all(f'{k}="{v}"' in braces for k, v in labels.items())
        )

    pages = [page(port) for port in targets["holdfast-node"]]
    booked = sum(
        total(text, "holdfast_calls_total", kind="Ledger", method="booked", code="OK")
        for text in pages
    )
    sold = sum(
        total(text, "holdfast_calls_total", kind="Shop", method="sell", code="OK") for text in pages
    )
    assert booked == sold + 7
    assert (
        sum(
            total(text, "holdfast_turn_seconds_count", kind="Ledger", method="booked")
            for text in pages
        )
        == booked
    )
    assert (
        sum(
            total(text, "holdfast_call_seconds_count", kind="Ledger", method="booked")
            for text in pages
        )
        == booked
    )
    assert (
        0
        < sum(total(text, "holdfast_commit_seconds_count") for text in pages)
        <= sum(total(text, "holdfast_entries_total") for text in pages)
    )
    assert (
        sum(
            total(text, "holdfast_calls_total", kind="Shop", method="fail", code="APPLICATION")
            for text in pages
        )
        > 0
    )
    assert (
        sum(
            total(text, "holdfast_queue_seconds_count", kind="Shop", method="think")
            for text in pages
        )
        > 0
    )
    assert sum(total(text, "holdfast_notifications_delivered_total") for text in pages) == sold
    assert sum(total(text, "holdfast_dead_letters") for text in pages) == 1
    assert sum(total(text, "holdfast_alarms_fired_total") for text in pages) == 1
    assert sum(total(text, "holdfast_alarms_pending") for text in pages) == 1
    assert sum(total(text, "holdfast_shards_owned") for text in pages) == 256
    assert sum(total(text, "holdfast_copies") for text in pages) == 256 * NODES
    assert sum(total(text, "holdfast_controller") for text in pages) == 1
    assert all(total(text, "holdfast_in_sync_copies_min") == NODES for text in pages)
    assert all(0 < total(text, "holdfast_etcd_session_remaining_seconds") <= 3 for text in pages)
    front = page(targets["holdfast-gateway"][0])
    assert total(front, "holdfast_gateway_calls_total", code="OK") >= 7 + sold
    assert total(front, "holdfast_gateway_calls_total", code="NOT_FOUND") > 0
    assert total(front, "holdfast_dispatch_pipes") == NODES
    assert prometheus.value("sum(up)") == NODES + 1


async def test_a_page_that_cannot_listen_is_told(processes: Processes) -> None:
    processes.start_etcd()
    taken = processes.etcd.rpartition(":")[2]
    processes.node("n1", "--metrics-port", taken)
    assert processes.exit_code("n1") == 1
    assert f"cannot listen at 127.0.0.1:{taken} for metrics" in processes.said("n1")


@needs_prometheus
def test_the_documentation_lists_every_metric_and_no_other(watched: Any) -> None:
    _, _, targets = watched
    told = set(
        re.findall(
            r"^\| `(holdfast\w*)` \| (\w+) \| [\w, ]* \| (.*) \|$",
            (DEPLOY.parent / "docs" / "reference" / "metrics.md").read_text(),
            re.MULTILINE,
        )
    )
    shown = set()
    for ports in targets.values():
        text = page(ports[0])
        types = dict(re.findall(r"^# TYPE (holdfast\w*) (\w+)$", text, re.MULTILINE))
        shown |= {
            (name, types[name], what)
            for name, what in re.findall(r"^# HELP (holdfast\w*) (.*)$", text, re.MULTILINE)
        }
    assert told == shown
