"""Makes the pictures in docs/pictures: `python docs/pictures.py [ring] [cluster]
[dashboards] [verify]`, by default all of them, in about ten minutes.

- ring: which node should own which shard, from the code that places shards.
- cluster: four nodes on this machine under load, one of which is killed and started again. A real
  Prometheus watches them (it has to be on PATH). Its answers are drawn as the dashboards in
  deploy/grafana, and the screens of `holdfast top`, `explain` and `status` are taken meanwhile.
- dashboards: the same dashboards once more, from the answers of the last run.
- verify: what `holdfast verify` draws.

Not a part of `make check`: run it when a screen or a dashboard changes, and look at the result.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import holdfast
import msgspec
from drawing import Board, Series, ring, terminal
from holdfast.local import LocalCluster, free_port
from holdfast_cluster.placement.ring import Ring, RingNode

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
APP = ROOT / "examples" / "property" / "app.py"
NODES = [f"node-{i}" for i in range(1, 5)]
VICTIM = "node-4"
RUN_S, KILL_AT_S, BACK_AT_S, LOOK_AT_S = 300.0, 120.0, 165.0, 230.0
STEP_S, RATE = 3, "15s"
COLUMNS = 118
DASHBOARDS = ("overview", "drilldown")
ANSWERS = ROOT / "build" / "pictures" / "prometheus.json"


def draw_ring() -> None:
    points, copies = 12, 3
    nodes = [RingNode(f"node-{i}", f"host-{i}") for i in range(1, 5)]
    picture = ring(Ring(nodes, shards=32, points=points), points, copies)
    (PICTURES / "ring.svg").write_text(picture)


class Answers(msgspec.Struct):
    """What Prometheus told: the series of each panel, by dashboard and the panel's id."""

    begin: float
    end: float
    panels: dict[str, dict[int, list[Series]]]


class Prometheus:
    """A Prometheus of our own, that scrapes the pages of a cluster."""

    def __init__(self, folder: Path, targets: dict[str, dict[str, int]]) -> None:
        folder.mkdir()
        jobs = [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
                    for name, port in ports.items()
                ],
            }
            for job, ports in targets.items()
        ]
        config = {"global": {"scrape_interval": "2s"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(json.dumps(config))
        self._port = free_port()
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
            )

    def series(self, panel: dict[str, Any], begin: float, end: float) -> list[Series]:
        """What a panel shows of a time."""
        found = []
        for target in panel["targets"]:
            expr = target["expr"].replace("$__rate_interval", RATE)
            expr = expr.replace("$instance", ".*").replace("$kind", ".*")
            asked = {"query": expr, "start": begin, "end": end, "step": STEP_S}
            url = f"http://127.0.0.1:{self._port}/api/v1/query_range?"
            with urllib.request.urlopen(url + urllib.parse.urlencode(asked)) as answer:  # noqa: S310
                result = json.load(answer)["data"]["result"]
            for one in result:
                name = target["legendFormat"]
                for label, value in one["metric"].items():
                    name = name.replace("{{" + label + "}}", value.removeprefix("holdfast."))
                told = [(float(at), float(value)) for at, value in one["values"]]
                points = [point for point in told if math.isfinite(point[1])]
                found.append(Series(name.strip(), points))
        return found


async def load(gateway: str, until: float) -> None:
    """What people do with properties, from forty clients."""
    async with holdfast.connect(gateway) as client:
        await asyncio.gather(*(_person(client, number, until) for number in range(40)))


async def _person(client: holdfast.Client, number: int, until: float) -> None:
    dice = random.Random(number)
    session = client.get("PropertySession", f"s-{number}")
    await session.create(f"user-{number}")
    while time.time() < until:
        await asyncio.sleep(dice.expovariate(12))
        # some properties are looked at far more often than others
        key = f"p-{int(dice.paretovariate(0.6)) % 500}"
        what = dice.random()
        try:
            if what < 0.45:
                await client.get("Property", key).snapshot()
                await session.update(key)
            elif what < 0.75:
                change = {"type": "PRICE_UPDATE", "value": dice.randrange(100_000, 900_000)}
                portfolio = dice.choice(["north", "south", "west"])
                await client.get("Property", key).update(change, portfolio=portfolio)
            elif what < 0.93:
                await client.get("Portfolio", dice.choice(["north", "south", "west"])).metrics()
            elif what < 0.97:
                at = datetime.now(UTC) + timedelta(seconds=dice.randrange(10, 90))
                viewing = client.get("Viewing", f"v-{dice.randrange(10_000)}")
                await viewing.arrange(key, f"s-{number}", at, remind_s=5)
            else:
                change = {"type": "STATUS_CHANGE", "value": "haunted"}
                await client.get("Property", key).update(change)
        except holdfast.Rejected:
            pass


def screen(name: str, command: str, gateway: str, columns: int = COLUMNS) -> None:
    """Take the screen of a command."""
    environment = {
        **os.environ,
        "FORCE_COLOR": "1",
        "COLUMNS": str(columns),
        "TERM": "xterm-256color",
        "HOLDFAST_GATEWAY": gateway,
    }
    done = subprocess.run(
        [sys.executable, "-m", *command.split(), *(["--once"] if " top" in command else [])],
        env=environment,
        capture_output=True,
        text=True,
    )
    (PICTURES / f"{name}.svg").write_text(terminal(command, done.stdout + done.stderr, columns))


async def watch(folder: Path) -> None:
    """A cluster under load, its screens and its dashboards."""
    cluster = LocalCluster(folder)
    ports = {name: free_port() for name in NODES}
    of_gateway, port = free_port(), free_port()
    gateway = f"127.0.0.1:{port}"
    prometheus = None
    try:
        cluster.start_etcd()
        for name, metrics in ports.items():
            options = ("--metrics-port", str(metrics), "--shards", "64")
            cluster.start_node(name, str(APP), *options)
        cluster.start_gateway("gateway", port, "--metrics-port", str(of_gateway))
        await asyncio.to_thread(cluster.wait_ready, gateway)
        targets = {"holdfast-node": ports, "holdfast-gateway": {"gateway-1": of_gateway}}
        prometheus = Prometheus(folder / "prometheus", targets)
        await asyncio.sleep(10)
        begin = time.time()
        calling = asyncio.create_task(load(gateway, begin + RUN_S))
        await asyncio.sleep(KILL_AT_S)
        cluster.processes[VICTIM].kill()
        cluster.processes[VICTIM].wait()
        await asyncio.sleep(10)
        await asyncio.to_thread(screen, "status-node-away", "holdfast status", gateway)
        await asyncio.sleep(begin + BACK_AT_S - time.time())
        cluster.restart(VICTIM)
        await asyncio.sleep(begin + LOOK_AT_S - time.time())
        for name, command in (
            ("top", "holdfast top"),
            ("explain", "holdfast explain Property p-1"),
            ("status", "holdfast status"),
        ):
            columns = 90 if name == "explain" else COLUMNS
            await asyncio.to_thread(screen, name, command, gateway, columns)
        await calling
        end = time.time()
        ANSWERS.parent.mkdir(parents=True, exist_ok=True)
        told = {
            name: {
                panel["id"]: prometheus.series(panel, begin + 15, end)
                for panel in dashboard(name)["panels"]
                if panel["type"] != "row"
            }
            for name in DASHBOARDS
        }
        ANSWERS.write_bytes(msgspec.json.encode(Answers(begin + 15, end, told)))
    finally:
        if prometheus is not None:
            prometheus.process.terminate()
            prometheus.process.wait()
        cluster.stop()


def dashboard(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / f"deploy/grafana/{name}.json").read_text())
    return found


def draw_dashboards() -> None:
    """From what the last run of `cluster` left."""
    answers = msgspec.json.decode(ANSWERS.read_bytes(), type=Answers)
    subtitle = f"4 nodes, 3 copies; node-4 was killed after {KILL_AT_S / 60:g} minutes"
    for name in DASHBOARDS:
        told = answers.panels[name]
        board = Board(dashboard(name), answers.begin, answers.end)
        picture = board.svg(lambda panel, told=told: told[panel["id"]], subtitle)
        (PICTURES / f"dashboard-{name}.svg").write_text(picture)


def draw_verify() -> None:
    command = [sys.executable, "-m", "holdfast", "verify", "--seed", "7"]
    subprocess.run([*command, "--picture", str(PICTURES / "verify.svg")], check=True)


def main() -> None:
    wanted = sys.argv[1:] or ["ring", "cluster", "verify"]
    PICTURES.mkdir(exist_ok=True)
    if "ring" in wanted:
        draw_ring()
    if "cluster" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(watch(Path(folder)))
    if "cluster" in wanted or "dashboards" in wanted:
        draw_dashboards()
    if "verify" in wanted:
        draw_verify()


if __name__ == "__main__":
    main()
