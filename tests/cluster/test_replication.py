"""Copies on other nodes, on real processes: what a dead node, an operator and an emptied etcd do to
them."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast.client.blocking import BlockingClient
from holdfast.verify.faults import FAULTS

from tests.cluster.processes import Processes, run


def wait_until(cluster: Processes, holds: Callable[[Any], bool], timeout_s: float = 60) -> Any:
    """The first status that is as wanted."""
    deadline = time.monotonic() + timeout_s
    while True:
        _, status = cluster.ask("status")
        if holds(status):
            return status
        assert time.monotonic() < deadline, status["problems"]
        time.sleep(0.2)


def whole(status: Any) -> bool:
    moves = status["moves"]
    return not status["problems"] and not (
        moves["joining"] or moves["handovers"] or moves["leaving"]
    )


def node(status: Any, name: str) -> Any:
    return next(n for n in status["nodes"] if n["id"].startswith(f"{name}-"))


def owns_some(status: Any, name: str) -> bool:
    """Whether a node owns shards. One that was just started may not be a member yet."""
    return any(n["shards_owned"] for n in status["nodes"] if n["id"].startswith(f"{name}-"))


def start(cluster: Processes, nodes: int, *options: str) -> Any:
    cluster.start_all("--repair-after", "2", *options, nodes=nodes)
    cluster.wait_ready(cluster.gateway)
    return wait_until(cluster, whole)


DEAD = "kill,pause,restart,partition,etcd,drain,join,disk,gateway"
BACK_OR_SLOW = "disk-rollback,etcd-rollback,slow-disk,slow-node,clock"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "faults",
    [DEAD, pytest.param(BACK_OR_SLOW, marks=pytest.mark.slow)],
    ids=["dead", "back or slow"],
)
def test_every_promise_is_kept_under_every_fault(tmp_path: Path, faults: str) -> None:
    """Faults under load. The first set: kill -9, SIGSTOP for 10 s, a rolling restart, a one-way
    partition, etcd killed, a drain, a join, a lost disk, a gateway that dies with a node.
    The second: a disk and an etcd that are put back, a slow disk, a node that stutters, a wrong
    clock.
    """
    assert {*DEAD.split(","), *BACK_OR_SLOW.split(",")} == set(FAULTS)
    picture = tmp_path / "timeline.svg"
    done = run(
        "verify",
        "--duration",
        "1",
        "--seed",
        "5",
        "--faults",
        faults,
        "--json",
        "--picture",
        str(picture),
        timeout=400,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0, (report["cluster"], report, done.stderr)
    assert (report["lost"], report["doubled"], report["linearizable"]) == ([], [], "yes")
    assert set(report["faults"]) == set(faults.split(","))
    assert report["definite_errors_with_an_effect"] == report["disordered"] == []
    hasty = report["hasty_calls"]
    assert min(hasty["acknowledged"], hasty["unknown"]) > 0, hasty  # there were such errors
    # definite ones come of shards that have no owner for longer than a short deadline
    if faults == DEAD:
        assert hasty["failed"] > 0, hasty
    assert report["acknowledged"] > 2_000
    assert (
        min(
            report["token_hops"],
            report["transfers"],
            report["alarms"],
            report["forked_calls"],
            report["posts"],
        )
        > 100
    )
    # callers see latency, not errors
    assert (report["failed"], report["unknown"]) == (0, 0), report["errors"]
    assert picture.read_text().startswith("<svg")


def test_verify_fails_when_a_promise_is_broken(cluster: Processes, tmp_path: Path) -> None:
    cluster.start_all(nodes=3, app=str(Path(__file__).parent / "broken_verify_app.py"))
    cluster.wait_ready(cluster.gateway)
    picture = str(tmp_path / "v.svg")
    done = run(
        "verify",
        "--target",
        cluster.gateway,
        "--duration",
        "4",
        "--json",
        "--picture",
        picture,
        timeout=150,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 1, report
    assert report["lost"]
    assert report["doubled"]
    broken = " ".join([*report["lost"], *report["doubled"]])
    for what in ("token ", "all accounts together", "clock ", "counter ", "journal "):
        assert what in broken, report
    assert "which certainly failed" in " ".join(report["definite_errors_with_an_effect"])
    assert report["linearizable"] == "no"
    refused = run("verify", "--faults", "kill,flood")
    assert (refused.returncode, "there are kill, pause" in refused.stderr) == (1, True)


def test_a_node_that_was_away_for_long_gets_a_snapshot_and_then_has_everything(
    cluster: Processes,
) -> None:
    start(cluster, 3)
    with BlockingClient(cluster.gateway, timeout=30) as client:
        counter = client.get("Counter", "a")
        counter.increment()
        cluster.kill("n3")
        wait_until(
            cluster,
            lambda status: node(status, "n3")["state"] == "absent" if _has(status, "n3") else True,
        )
        for _ in range(500):  # more than the log keeps
            counter.increment()
        cluster.node("n3", "--repair-after", "2")
        status = wait_until(cluster, whole)
        sent = sum(int(n["stats"]["snapshots_sent"]) for n in status["nodes"])
        assert sent >= 1
        cluster.kill("n1")
        cluster.kill("n2")
        assert counter.value() == 501  # by the copy alone that was made by the snapshot
        wait_until(
            cluster,
            lambda status: any(
                "1 of 3 copies are in sync: they take no writes" in p["why"]
                for p in status["problems"]
            ),
        )
        with pytest.raises(
            holdfast.Unavailable, match="read-only: 1 copies are in sync, writes need 2"
        ) as refused:
            client.get("Counter", "a", timeout=5).increment()
        assert refused.value.definite
        cluster.node("n1")
        cluster.node("n2")
        wait_until(cluster, whole)
        assert counter.increment() == 502


def _has(status: Any, name: str) -> bool:
    return any(n["id"].startswith(f"{name}-") for n in status["nodes"])


def test_a_drain_moves_everything_away_and_a_cancelled_one_lets_it_come_back(
    cluster: Processes,
) -> None:
    status = start(cluster, 4)
    victim = node(status, "n2")
    with BlockingClient(cluster.gateway, timeout=30) as client:
        for i in range(50):
            client.get("Counter", f"k{i}").increment()
        code, plan = cluster.ask("drain", victim["id"], "--dry-run")
        assert (code, plan["owned"], plan["copies"], plan["copies_that_stay"]) == (
            0,
            victim["shards_owned"],
            victim["shards_in_sync"],
            0,
        )
        assert node(cluster.ask("status")[1], "n2")["state"] == "active"  # nothing has happened
        assert cluster.ask("drain", victim["id"], "--wait")[0] == 0
        drained = node(wait_until(cluster, whole), "n2")
        assert (drained["state"], drained["shards_owned"], drained["shards_in_sync"]) == (
            "draining",
            0,
            0,
        )
        cluster.kill("n2", signal.SIGTERM)
        assert [client.get("Counter", f"k{i}").value() for i in range(50)] == [1] * 50
        cluster.node("n2")
        assert cluster.ask("drain", victim["id"], "--cancel")[0] == 0
        back = wait_until(cluster, lambda status: whole(status) and owns_some(status, "n2"))
        assert node(back, "n2")["state"] == "active"
        assert [client.get("Counter", f"k{i}").increment() for i in range(50)] == [2] * 50
    nobody = run("drain", "nobody", "--gateway", cluster.gateway)
    assert (nobody.returncode, "no member 'nobody'" in nobody.stderr) == (1, True)


def test_when_more_than_a_third_is_gone_failover_goes_on_and_no_data_moves(
    cluster: Processes,
) -> None:
    start(cluster, 5)
    cluster.kill("n4")
    cluster.kill("n5")
    status = wait_until(
        cluster, lambda status: any("members are away" in p["why"] for p in status["problems"])
    )
    assert any(
        "2 of 5 members are away" in p["why"] and "no data is moved" in p["why"]
        for p in status["problems"]
    )
    time.sleep(3)  # longer than --repair-after
    with BlockingClient(cluster.gateway, timeout=20) as client:
        assert all(client.get("Counter", f"k{i}").value() == 0 for i in range(40))
    cluster.node("n4")
    cluster.node("n5")
    wait_until(cluster, whole)


def test_data_whose_every_copy_is_gone_is_given_up_only_by_hand(tmp_path: Path) -> None:
    cluster = Processes(tmp_path, replication=2)
    try:
        status = start(cluster, 4)
        _, where = cluster.ask("where", "Counter", "gone")
        shard, holders = where["shard"]["shard"], where["shard"]["in_sync"]
        with BlockingClient(cluster.gateway, timeout=40) as client:
            assert client.get("Counter", "gone").increment() == 1
            confirmation = f"give up the data of shard {shard}"
            refused = run(
                "reset-shard", str(shard), "--confirm", confirmation, "--gateway", cluster.gateway
            )
            assert (refused.returncode, "the data is on " in refused.stderr) == (1, True)
            names = [name.rpartition("-")[0] for name in holders]
            for name in names:
                cluster.kill(name)
            wait_until(
                cluster,
                lambda status: any("which are all absent" in p["why"] for p in status["problems"]),
            )
            with pytest.raises(holdfast.Unavailable):
                client.get("Counter", "gone", timeout=2).value()
            wrong = run("reset-shard", str(shard), "--confirm", "yes", "--gateway", cluster.gateway)
            assert (wrong.returncode, f"has to be: {confirmation}" in wrong.stderr) == (1, True)
            assert (
                run(
                    "reset-shard",
                    str(shard),
                    "--confirm",
                    confirmation,
                    "--gateway",
                    cluster.gateway,
                ).returncode
                == 0
            )
            # it begins anew, and has two copies again
            assert client.get("Counter", "gone").increment() == 1
            for name in names:  # the old copies are void
                cluster.node(name)
            wait_until(cluster, whole, 90)
            assert client.get("Counter", "gone").increment() == 2
        assert status["replication"] == 2
    finally:
        cluster.stop()


async def test_an_etcd_that_was_emptied_is_not_believed_and_calls_go_on(cluster: Processes) -> None:
    await asyncio.to_thread(start, cluster, 3)
    async with cluster.connect() as client:
        assert await client.get("Counter", "a").increment() == 1
        cluster.kill("etcd")
        shutil.rmtree(cluster.folder / "etcd")
        cluster.start_etcd()
        for n in range(2, 80):
            assert await client.get("Counter", "a").increment() == n
            await asyncio.sleep(0.1)
        for name in ("n1", "n2", "n3"):
            said = cluster.said(name)
            assert "it was emptied, or restored from nothing" in said
            assert "It invents no assignments" in said
        _, status = await asyncio.to_thread(cluster.ask, "status")
        assert any("Put etcd's newest data back" in p["why"] for p in status["problems"])
