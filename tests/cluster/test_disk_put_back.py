"""Disks that go back: a volume snapshot of a running node, a directory behind its mark, copies that
differ."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import holdfast
import pytest
from holdfast_node.log.disk_mark import INTERVAL_S

from tests.cluster.processes import Processes, run

pytestmark = pytest.mark.slow

SHARDS = 8
KEYS = [f"k{i}" for i in range(24)]
OPTIONS = ("--members-min", "3", "--repair-after", "60", "--shards", str(SHARDS))


@pytest.fixture
def cluster(cluster: Processes) -> Processes:
    cluster.start_all("--repair-after", "60", "--shards", str(SHARDS), nodes=3)
    cluster.wait_ready(cluster.gateway)
    return cluster


class Counted:
    """What was acknowledged of every counter. A value that is told twice is an increment that was
    lost."""

    def __init__(self, client: holdfast.Client) -> None:
        self._client = client
        self.told: dict[str, list[int]] = {key: [] for key in KEYS}

    async def increment(self, rounds: int) -> None:
        for _ in range(rounds):
            values = await asyncio.gather(
                *(self._client.get("Counter", key).increment() for key in KEYS)
            )
            for key, value in zip(KEYS, values, strict=True):
                self.told[key].append(value)

    async def check(self) -> None:
        values = await asyncio.gather(*(self._client.get("Counter", key).value() for key in KEYS))
        lost = {
            key: (value, self.told[key][-3:])
            for key, value in zip(KEYS, values, strict=True)
            if value < max(self.told[key])
        }
        assert not lost
        twice = {key: told for key, told in self.told.items() if len(set(told)) != len(told)}
        assert not twice


def put_back(cluster: Processes, node: str, copy: Path) -> None:
    folder = cluster.folder / node
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    (folder / "LOCK").unlink(missing_ok=True)


@pytest.mark.parametrize("first", ["the one that was put back", "the others"])
async def test_a_snapshot_of_a_running_node_that_is_put_back_loses_nothing_acknowledged(
    cluster: Processes, tmp_path: Path, first: str
) -> None:
    async with cluster.connect(timeout=60) as client:
        counted = Counted(client)
        await counted.increment(3)
        process = cluster.processes["n3"]
        process.send_signal(signal.SIGSTOP)
        shutil.copytree(cluster.folder / "n3", tmp_path / "volume")
        process.send_signal(signal.SIGCONT)
        await counted.increment(5)
        for node in ("n1", "n2", "n3"):
            cluster.kill(node)
        put_back(cluster, "n3", tmp_path / "volume")
        order = ("n3", "n1", "n2") if first == "the one that was put back" else ("n1", "n2", "n3")
        for node in order:
            cluster.node(node, *OPTIONS)
            if node == order[0]:
                await asyncio.sleep(4)
        await counted.increment(2)
        await counted.check()
        for node in ("n1", "n2"):  # what n3 holds by now is everything
            cluster.kill(node)
            cluster.node(node, *OPTIONS)
            await counted.increment(1)
        await counted.check()


async def test_a_directory_that_is_behind_its_mark_is_refused_and_its_node_joins_as_a_new_one(
    cluster: Processes, tmp_path: Path
) -> None:
    async with cluster.connect(timeout=60) as client:
        counted = Counted(client)
        await counted.increment(2)
        process = cluster.processes["n3"]
        process.send_signal(signal.SIGSTOP)
        shutil.copytree(cluster.folder / "n3", tmp_path / "volume")
        process.send_signal(signal.SIGCONT)
        await counted.increment(5)
        await asyncio.sleep(2 * INTERVAL_S + 1)
        cluster.kill("n3")
        put_back(cluster, "n3", tmp_path / "volume")
        cluster.node("n3", *OPTIONS)
        assert await asyncio.to_thread(cluster.exit_code, "n3") == 1
        assert "has lost writes that were on disk" in cluster.said("n3")
        shutil.rmtree(cluster.folder / "n3")
        cluster.node("n3", *OPTIONS)
        await counted.increment(2)
        await counted.check()


def etcdctl(cluster: Processes, *arguments: str) -> str:
    environment = {
        **os.environ,
        "ETCDCTL_API": "3",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ("etcdctl", "--endpoints", cluster.etcd, *arguments)
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    ).stdout


async def test_a_shard_whose_copies_differ_waits_for_an_operator_who_chooses_one(
    cluster: Processes,
) -> None:
    """The two sides are made known as an owner would do it; how an owner finds them out is tested
    without processes."""
    async with cluster.connect(timeout=30) as client:
        counted = Counted(client)
        await counted.increment(2)
        shard = cluster.ask("where", "Counter", KEYS[0])[1]["shard"]
        row = f"/holdfast/default/shards/{shard['shard']:05d}"
        assignment = json.loads(etcdctl(cluster, "get", row, "--print-value-only"))
        assignment |= {
            "forked": assignment["in_sync"][:2],
            "version": assignment["version"] + 1,
            "nonce": 7,
        }
        etcdctl(cluster, "put", row, json.dumps(assignment))
        deadline = time.monotonic() + 20
        while True:
            _, status = cluster.ask("status")
            problems = [
                problem["why"]
                for problem in status["problems"]
                if "different acknowledged writes" in problem["why"]
            ]
            if problems:
                break
            assert time.monotonic() < deadline, status["problems"]
            await asyncio.sleep(0.2)
        waits = asyncio.ensure_future(client.get("Counter", KEYS[0]).increment())
        await asyncio.sleep(1)
        assert not waits.done()
        keep = assignment["forked"][1]
        number = str(shard["shard"])
        for arguments in (
            ("--confirm", f"give up the data of shard {number}"),
            ("--keep", keep, "--confirm", "yes"),
        ):
            refused = await asyncio.to_thread(
                run, "reset-shard", number, *arguments, "--gateway", cluster.gateway
            )
            assert refused.returncode != 0
        code, answer = cluster.ask(
            "reset-shard",
            number,
            "--keep",
            keep,
            "--confirm",
            f"keep the copy of {keep} of shard {number}",
        )
        assert code == 0
        assert answer["shard"]["owner"] == keep
        assert await waits == max(counted.told[KEYS[0]]) + 1
        counted.told[KEYS[0]].append(await waits)
        await counted.increment(1)
        await counted.check()
