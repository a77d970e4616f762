"""Disks that are replaced, on real processes: every shard gets its copies back, whatever was
replaced just before."""

from __future__ import annotations

import shutil
import time

import pytest
from holdfast.local import free_port

from tests.cluster.load import Load
from tests.cluster.processes import Processes
from tests.cluster.test_replication import wait_until, whole

pytestmark = pytest.mark.slow

REPAIR_AFTER_S = 600
"""Far beyond the test: copies that come back in it were not made because a patience was over."""


@pytest.mark.timeout(240)
def test_two_disks_that_are_replaced_one_after_the_other_are_made_whole_again(
    cluster: Processes,
) -> None:
    ports = {name: free_port() for name in ("n1", "n2", "n3")}

    def start(name: str) -> None:
        options = (
            "--shards",
            "32",
            "--repair-after",
            str(REPAIR_AFTER_S),
            "--listen",
            f"127.0.0.1:{ports[name]}",
        )
        cluster.node(name, "--members-min", "3", *options)

    def replace(name: str) -> None:
        cluster.kill(name)
        shutil.rmtree(cluster.folder / name)
        start(name)

    cluster.start_etcd()
    for name in ports:
        start(name)
    cluster.front()
    cluster.wait_ready(cluster.gateway)
    before = wait_until(cluster, whole)
    with Load(cluster.gateway) as load:
        time.sleep(2)
        began = time.monotonic()
        replace("n2")
        time.sleep(6)
        replace("n3")
        assert time.monotonic() - began < 30
        status = wait_until(cluster, lambda status: whole(status) and len(status["nodes"]) == 3, 60)
    assert not {n["id"] for n in before["nodes"]} >= {n["id"] for n in status["nodes"]}
    assert all(n["shards_in_sync"] == 32 for n in status["nodes"])
    assert sum(load.acknowledged.values()) > 500
    cluster.kill("n1")  # the only one whose disk was never replaced
    load.check(cluster.gateway)
    cluster.kill("n2")
    load.check(cluster.gateway)
