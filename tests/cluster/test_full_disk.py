"""Full disks, on real small file systems: read-only or out, never corrupt, never spinning, back
when there is room."""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import holdfast
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from holdfast.client.blocking import BlockingClient
from holdfast.local import free_port
from holdfast_node.store.rocks import DiskFull, Store, is_no_space

from tests.cluster.load import Load
from tests.cluster.processes import Processes
from tests.cluster.small_disk import SmallDisk
from tests.cluster.test_replication import node, wait_until, whole

pytestmark = pytest.mark.slow

APP = str(Path(__file__).parent / "full_disk_app.py")
MIB = 1 << 20
EXIT_DISK_FULL = 71
ROW_BYTES = 40_000


class Cluster(Processes):
    """Nodes of which some have a small disk."""

    def __init__(self, folder: Path, replication: int) -> None:
        super().__init__(folder, replication)
        self.disks: dict[str, SmallDisk] = {}

    def disk(self, name: str, size: int, kind: str = "tmpfs") -> SmallDisk:
        """Put a node's data directory on a disk of `size` MiB."""
        self.disks[name] = SmallDisk(self.folder / name, size, kind)
        return self.disks[name]

    def start_node(self, name: str, app: str, *options: str) -> None:
        super().start_node(name, app, "--shards", "16", "--log-format", "json", *options)

    def stop(self) -> None:
        try:
            super().stop()
        finally:
            for disk in self.disks.values():
                disk.remove()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[int], Cluster]]:
    """Makes a cluster that keeps so many copies."""
    made: list[Cluster] = []

    def make(replication: int) -> Cluster:
        made.append(Cluster(tmp_path, replication))
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


def state_of(status: Any, name: str) -> str:
    return next(
        (str(n["state"]) for n in status["nodes"] if n["id"].startswith(f"{name}-")), "absent"
    )


def wait_for(holds: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def health(port: int, service: str) -> str:
    """What a probe is told."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=10
        )
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.timeout(240)
def test_a_node_is_full_before_its_writes_fail_then_leaves_and_comes_back(
    make: Callable[[int], Cluster],
) -> None:
    cluster = make(3)
    disk = cluster.disk("n3", 400)
    metrics_port = free_port()
    cluster.start_etcd()
    for name in ("n1", "n2", "n3"):
        pages = ("--metrics-port", str(metrics_port)) if name == "n3" else ()
        cluster.node(
            name,
            "--members-min",
            "3",
            "--disk-reserve",
            "100",
            "--repair-after",
            "600",
            *pages,
            app=APP,
        )
    cluster.front()
    cluster.wait_ready(cluster.gateway)
    before = wait_until(cluster, whole)
    assert node(before, "n3")["shards_owned"] > 0
    ballast = disk.where / "ballast"
    wait_for(ballast.exists, "there is no ballast")
    with Load(cluster.gateway, keys=20) as load:
        disk.fill(60 * MIB)
        status = wait_until(
            cluster,
            lambda status: (
                state_of(status, "n3") == "full" and node(status, "n3")["shards_owned"] == 0
            ),
        )
        assert any(
            p["what"].startswith("node n3-") and "disk is full" in p["why"]
            for p in status["problems"]
        )
        assert node(status, "n3")["shards_in_sync"] == 16, "it keeps the copies that it has"
        assert "\nholdfast_disk_full 1.0\n" in metrics(metrics_port)
        disk.fill(10 * MIB)  # what is left to it is the ballast
        wait_until(cluster, lambda status: state_of(status, "n3") == "absent")
        assert not ballast.exists()
        assert load.goes_on()
        assert cluster.processes["n3"].poll() is None, "it waits"
        disk.empty()
        wait_until(cluster, lambda status: whole(status) and state_of(status, "n3") == "active")
    assert load.errors == {}, "callers see latency"
    wait_until(cluster, lambda status: node(status, "n3")["shards_owned"] > 0)
    wait_for(ballast.exists, "there is no ballast again")
    assert "\nholdfast_disk_full 0.0\n" in metrics(metrics_port)
    said = cluster.said("n3")
    assert "Traceback" not in said
    assert said.count("the node leaves, and comes back when there is room") == 1
    cluster.kill("n1")
    load.check(cluster.gateway)
    cluster.kill("n2")
    load.check(cluster.gateway)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("replication", [1, 3])
def test_when_every_disk_is_full_the_cluster_is_read_only_and_writes_again_when_there_is_room(
    make: Callable[[int], Cluster], replication: int
) -> None:
    cluster = make(replication)
    disks = [cluster.disk(f"n{i}", 400) for i in range(1, replication + 1)]
    cluster.start_all("--disk-reserve", "100", nodes=replication, app=APP)
    cluster.wait_ready(cluster.gateway)
    wait_until(cluster, whole)
    with (
        BlockingClient(cluster.gateway, timeout=30) as client,
        Load(cluster.gateway, keys=10, timeout=3) as load,
    ):
        wait_for(lambda: load.count > 100, "no load")
        for disk in disks:
            disk.fill(60 * MIB)
        wait_until(cluster, lambda status: all(n["state"] == "full" for n in status["nodes"]))
        wait_for(lambda: not load.goes_on(), "it takes writes")
        reason = r"read-only: the disk of \S+ is full: \d+ MiB are free, the reserve is 100 MiB"
        with pytest.raises(holdfast.Unavailable, match=reason) as refused:
            client.get("Counter", "other", timeout=3).increment()
        assert refused.value.definite
        assert client.get("Counter", "k0").value() >= load.acknowledged["k0"]
        assert all(process.poll() is None for process in cluster.processes.values())
        for disk in disks:
            disk.empty()
        wait_until(cluster, whole)
        wait_for(load.goes_on, "it takes no writes again")
    assert load.unknown == {}
    load.check(cluster.gateway)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_write_that_finds_no_room_ends_the_node_whose_start_waits_for_room(
    make: Callable[[int], Cluster], kind: str
) -> None:
    """The node does not look ahead here: the reserve is 0."""
    cluster = make(1)
    disk = cluster.disk("n1", 300, kind)
    cluster.start_all("--disk-reserve", "0", nodes=1, app=APP)
    cluster.wait_ready(cluster.gateway)
    with Load(cluster.gateway, ROW_BYTES, keys=4, pause_s=0.005, timeout=3) as load:
        wait_for(lambda: load.count > 50, "no load")
        disk.fill(2 * MIB)
        assert cluster.exit_code("n1", 60) == EXIT_DISK_FULL
    said = cluster.said("n1")
    assert "raceback" not in said
    assert re.search(r"No space left on device: While appending to file: \S+\.log", said), said[
        -2000:
    ]
    assert said.count("the node stops, and starts again when there is room") == 1
    disk.fill(0)
    health_port = free_port()
    cluster.node("n1", "--disk-reserve", "0", "--health-port", str(health_port), app=APP)
    wait_for(
        lambda: "the node starts when 16 MiB are" in cluster.said("n1"),
        "it does not say that it waits",
    )
    time.sleep(3)
    assert cluster.processes["n1"].poll() is None
    assert cluster.said("n1").count("the node starts when") == 1
    assert health(health_port, "live") == "SERVING"
    assert health(health_port, "") == "NOT_SERVING"
    disk.empty()
    load.check(cluster.gateway)
    with BlockingClient(cluster.gateway, timeout=30) as client:
        for key in load.acknowledged:
            assert client.get("Counter", key).rows() == client.get("Counter", key).value(), (
                "each count has its row"
            )
            assert client.get("Counter", key).increment() > load.acknowledged[key]


@pytest.mark.timeout(240)
def test_full_nodes_that_are_needed_stay_until_a_write_fails_and_lose_nothing(
    make: Callable[[int], Cluster],
) -> None:
    cluster = make(3)
    disks = [cluster.disk(name, 400) for name in ("n2", "n3")]
    cluster.start_all("--disk-reserve", "100", nodes=3, app=APP)
    cluster.wait_ready(cluster.gateway)
    wait_until(cluster, whole)
    with Load(cluster.gateway, ROW_BYTES, keys=16, pause_s=0.005, timeout=3) as load:
        wait_for(lambda: load.count > 100, "no load")
        for disk in disks:
            disk.fill(10 * MIB)
        assert [cluster.exit_code(name, 60) for name in ("n2", "n3")] == [EXIT_DISK_FULL] * 2
        wait_for(lambda: not load.goes_on(), "it takes writes")
    alone = pytest.raises(holdfast.Unavailable, match="read-only: 1 copies are in sync")
    with BlockingClient(cluster.gateway, timeout=5) as client, alone:
        client.get("Counter", "other").increment()
    for disk in disks:
        disk.empty()
    for name in ("n2", "n3"):
        cluster.node(name, "--disk-reserve", "100", app=APP)
    wait_until(cluster, whole)
    assert "raceback" not in cluster.said("n2") + cluster.said("n3")
    cluster.kill("n1")
    load.check(cluster.gateway)


@pytest.mark.timeout(240)
def test_workers_whose_disk_is_full_are_started_again_and_wait_for_room(
    make: Callable[[int], Cluster],
) -> None:
    cluster = make(1)
    disk = cluster.disk("n1", 400)
    cluster.start_all(
        "--workers", "2", "--members-min", "2", "--disk-reserve", "0", nodes=1, app=APP
    )
    cluster.wait_ready(cluster.gateway)
    wait_until(cluster, whole)
    with Load(cluster.gateway, ROW_BYTES, keys=16, pause_s=0.005, timeout=3) as load:
        wait_for(lambda: load.count > 200, "no load")
        disk.fill(2 * MIB)
        wait_for(
            lambda: (
                len(set(re.findall(r"worker (\d) ended with 71; again in 1 s", cluster.said("n1"))))
                == 2
            ),
            "one goes on",
            60,
        )
    wait_for(lambda: cluster.said("n1").count("the node starts when") == 2, "they do not wait")
    time.sleep(3)
    said = cluster.said("n1")
    assert (said.count("; again in"), said.count("the node starts when"), "raceback" in said) == (
        2,
        2,
        False,
    )
    disk.empty()
    load.check(cluster.gateway)
    assert cluster.processes["n1"].poll() is None


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_store_that_cannot_write_its_memory_out_takes_nothing_more_and_has_all_that_it_took(
    tmp_path: Path, kind: str
) -> None:
    disk = SmallDisk(tmp_path / "disk", 200, kind)
    try:
        store = Store(disk.where / "data")

        def write(number: int) -> None:
            batch = store.batch()
            batch.put("state", b"%08d" % number, os.urandom(100_000))
            store.write(batch)
            store.sync()

        written = 200
        for number in range(written):
            write(number)
        disk.fill(5 * MIB)
        with pytest.raises(
            Exception, match=r"No space left on device: While appending to file: \S+\.sst"
        ) as failed:
            store.flush("state")
        assert is_no_space(failed.value)
        with pytest.raises(
            Exception, match=r"No space left on device: While appending to file: \S+\.sst"
        ):
            write(written)
        store.close()
        disk.fill(0)
        with pytest.raises(DiskFull, match="cannot be opened"):
            Store(disk.where / "data")
        disk.empty()
        store = Store(disk.where / "data")
        assert [key for key, value in store.scan("state", b"", None) if len(value) == 100_000] == [
            b"%08d" % n for n in range(written)
        ]
        write(written)
        store.close()
    finally:
        disk.remove()


@pytest.mark.timeout(240)
def test_a_snapshot_for_which_there_is_no_room_is_refused_and_not_sent_again_and_again(
    make: Callable[[int], Cluster],
) -> None:
    cluster = make(3)
    cluster.start_all("--disk-reserve", "0", "--repair-after", "1", nodes=3, app=APP)
    cluster.wait_ready(cluster.gateway)
    wait_until(cluster, whole)
    cluster.kill("n3")
    shutil.rmtree(cluster.folder / "n3")
    with Load(cluster.gateway, ROW_BYTES, keys=16, pause_s=0.005) as load:
        wait_for(lambda: load.count > 1000, "no load", 90)  # 40 MB
    disk = cluster.disk("n3", 300)
    disk.fill(30 * MIB)
    cluster.node("n3", "--disk-reserve", "0", "--repair-after", "1", app=APP)
    wait_for(
        lambda: "RESOURCE_EXHAUSTED" in cluster.said("n1") + cluster.said("n2"),
        "nothing was refused",
        60,
    )
    time.sleep(12)
    tried = re.findall(
        r"snapshot of shard \d+ to n3-\w+: RESOURCE_EXHAUSTED: the disk of \S+/n3 is full",
        cluster.said("n1") + cluster.said("n2"),
    )
    assert 1 <= len(tried) <= 30
    said = cluster.said("n1") + cluster.said("n2") + cluster.said("n3")
    assert "raceback" not in said
    assert 1 <= cluster.said("n3").count("is full") <= 6
    assert cluster.processes["n3"].poll() is None
    wait_until(
        cluster, lambda status: state_of(status, "n3") == "full" and status["moves"]["joining"] == 0
    )
    wait_for(lambda: not list((disk.where / "snapshots").iterdir()), "files are left")
    disk.empty()
    wait_until(cluster, whole, 120)
    cluster.kill("n1")
    cluster.kill("n2")
    load.check(cluster.gateway)


def test_a_log_that_nobody_can_write_to_is_no_reason_to_stop(
    make: Callable[[int], Cluster],
) -> None:
    cluster = make(1)
    cluster.log("n1").parent.mkdir(parents=True)
    cluster.log("n1").symlink_to("/dev/full")
    cluster.start_all(nodes=1, app=APP)
    wait_for(lambda: cluster.ready(cluster.gateway), "it does not start")
    with BlockingClient(cluster.gateway, timeout=30) as client:
        assert [client.get("Counter", "a").increment() for _ in range(3)] == [1, 2, 3]
        with pytest.raises(holdfast.HoldfastError):
            client.get("Counter", "a").no_such_method()
        assert client.get("Counter", "a").value() == 3
    assert cluster.processes["n1"].poll() is None
