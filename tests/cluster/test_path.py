"""The whole path on real processes: one call, one owner, one durable turn."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import holdfast
import pytest

from tests.cluster.processes import Processes, run


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_1000_concurrent_calls_to_one_object_run_one_after_the_other_in_order(
    processes: Processes,
) -> None:
    processes.start_all()
    async with processes.connect() as client:
        hot: Any = client.get("Counter", "hot")
        assert await asyncio.gather(*(hot.increment() for _ in range(1000))) == list(range(1, 1001))


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_survives_kill_9_of_the_node_right_after_the_reply(
    processes: Processes,
) -> None:
    """The fsync happens before the reply: 25 rounds of a reply, a kill -9, and a look at what is
    there."""
    processes.start_all("--lease-ttl", "2")
    async with processes.connect(timeout=60) as client:
        counter: Any = client.get("Counter", "a")
        for round_ in range(1, 26):
            assert await counter.increment() == round_
            processes.kill("n1")
            processes.node("n1", "--lease-ttl", "2")
        assert await counter.value() == 25


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_a_cluster_speaks_ipv6(tmp_path: Path) -> None:
    cluster = Processes(tmp_path, replication=3)
    try:
        cluster.start_etcd()
        for name in ("n1", "n2", "n3"):
            cluster.node(
                name,
                "--members-min",
                "3",
                "--listen",
                "[::1]:0",
                "--metrics-port",
                "0",
                "--health-port",
                "0",
            )
        cluster.front("--listen", f"[::1]:{cluster.gateway_port}")
        async with holdfast.connect(f"[::1]:{cluster.gateway_port}", timeout=60) as client:
            assert [await client.get("Counter", "a").increment() for _ in range(3)] == [1, 2, 3]
        status = run("status", "--json", "--gateway", f"[::1]:{cluster.gateway_port}")
        assert {
            node["address"].rpartition(":")[0] for node in json.loads(status.stdout)["nodes"]
        } == {"[::1]"}
        assert status.returncode == 0, status.stdout
    finally:
        cluster.stop()
