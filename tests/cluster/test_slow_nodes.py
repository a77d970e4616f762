"""Nodes that are slow and not dead, on real processes: the others do not wait for them for long."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from holdfast.client.blocking import BlockingClient
from holdfast.verify import inside
from holdfast_cluster.placement.ring import shard_of

from tests.cluster.load import Load
from tests.cluster.processes import Processes
from tests.cluster.test_replication import node, wait_until, whole

pytestmark = pytest.mark.slow

APP = str(Path(__file__).parent / "faulty_app.py")
NAMES = ("n1", "n2", "n3")
STOPPED_S, RUNS_S = 1.8, 0.2


class Stutter:
    """A process that is stopped, and runs a little, again and again."""

    def __init__(self, processes: Processes, name: str) -> None:
        self._process = processes.processes[name]
        self._over = Event()
        self._thread = Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._process.send_signal(signal.SIGSTOP)
            time.sleep(STOPPED_S)
            self._process.send_signal(signal.SIGCONT)
            time.sleep(RUNS_S)


def start(processes: Processes, folder: Path) -> Any:
    processes.replication = 3
    processes.start_etcd()
    for name in NAMES:
        processes.environment[name] = {inside.FOLDER: str(folder / name)}
        processes.node(
            name, "--members-min", "3", "--repair-after", "60", "--shards", "24", app=APP
        )
    processes.front()
    processes.wait_ready(processes.gateway)
    return wait_until(processes, whole)


def owned_by(status: Any, *names: str) -> list[str]:
    """Keys of which one of these nodes is the owner."""
    owners = {a["shard"]: a["owner"][:2] for a in status["assignments"]}
    return [
        key
        for key in (f"w{i}" for i in range(30))
        if owners[shard_of("Counter", key, len(owners))] in names
    ]


def longest_call(processes: Processes, keys: list[str], seconds: float) -> float:
    """The longest of the calls to these keys, one after the other, in so many seconds."""
    longest = 0.0
    end = time.monotonic() + seconds
    with BlockingClient(processes.gateway, timeout=20) as client:
        while time.monotonic() < end:
            for key in keys:
                began = time.monotonic()
                client.get("Counter", key).increment()
                longest = max(longest, time.monotonic() - began)
    return longest


def slow(status: Any, name: str) -> bool:
    return any(
        p["what"].startswith(f"node {name}-") and "slow" in p["why"] for p in status["problems"]
    )


def test_callers_do_not_wait_for_a_replica_that_stutters(
    processes: Processes, tmp_path: Path
) -> None:
    keys = owned_by(start(processes, tmp_path / "faults"), "n1", "n2")
    with Load(processes.gateway, keys=30) as load:
        with Stutter(processes, "n3"):
            longest_call(processes, keys, 4)
            assert longest_call(processes, keys, 6) < STOPPED_S / 2
            status = wait_until(processes, lambda status: slow(status, "n3"))
            others = {"n1", "n2"}
            assert all(
                {name[:2] for name in a["in_sync"]} >= others
                for a in status["assignments"]
                if a["owner"][:2] in others
            )
            processes.kill("n2")  # the slow one is needed now
            longest_call(processes, keys, 8)
        processes.node(
            "n2", "--members-min", "3", "--repair-after", "60", "--shards", "24", app=APP
        )
        wait_until(processes, whole, 90)
    assert not load.errors, load.errors
    load.check(processes.gateway)


def test_a_node_with_a_slow_disk_gives_its_shards_away_and_gets_them_back(
    processes: Processes, tmp_path: Path
) -> None:
    faults = tmp_path / "faults"
    before = start(processes, faults)
    assert node(before, "n2")["shards_owned"]
    with Load(processes.gateway, keys=30) as load:
        inside.set_fault(faults / "n2", inside.FSYNC_S, 0.6)
        wait_until(processes, lambda status: not node(status, "n2")["shards_owned"])
        status = wait_until(
            processes, lambda status: node(status, "n2")["state"] == "slow" and slow(status, "n2")
        )
        assert not any(a["in_sync"] for a in status["assignments"] if a["owner"].startswith("n2-"))
        time.sleep(2)
        assert longest_call(processes, [f"w{i}" for i in range(30)], 4) < 0.6
        inside.set_fault(faults / "n2", inside.FSYNC_S, 0)
        after = wait_until(
            processes, lambda status: whole(status) and node(status, "n2")["shards_owned"] > 0, 90
        )
    assert node(after, "n2")["state"] == "active"
    assert not load.errors, load.errors
    load.check(processes.gateway)
