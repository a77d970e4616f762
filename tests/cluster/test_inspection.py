"""Looking into objects and changing what is stored: the Admin service and its commands, on three
nodes with three copies."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import holdfast
import pytest

from tests.cluster.processes import Processes, run

APP = str(Path(__file__).parent / "monitoring_app.py")
STRANGE = ["ü/ä", "a\0b", "a", "a\0", "zz" * 500, " ", "-x"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    cluster = Processes(tmp_path_factory.mktemp("shop"), replication=3)
    try:
        cluster.start_all("--log-format", "json", nodes=3, app=APP)
        cluster.wait_ready(cluster.gateway)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
async def client(shop: Processes) -> AsyncIterator[holdfast.Client]:
    async with shop.connect() as connected:
        yield connected


def ask(shop: Processes, *arguments: str) -> Any:
    code, answer = shop.ask(*arguments)
    assert code == 0, answer
    return answer


def test_who_asks_for_a_kind_that_nobody_knows_is_told(
    shop: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--gateway", shop.gateway)
    for question in (
        ("objects", "list", "Shpo"),
        ("objects", "count", "Shpo"),
        ("objects", "show", "Shpo", "a"),
        ("objects", "evict", "Shpo", "a"),
        ("objects", "delete", "Shpo", "--all", "--dry-run"),
        ("explain", "Shpo", "a"),
    ):
        said = run(*question, *at)
        assert "no node has a kind 'Shpo'; there are Ledger, " in said.stderr, question
    assert "no node" not in run("objects", "list", "Shop", "there-is-none", *at).stderr
    # What is meant for one question is not read from the environment, least of all what is
    # destructive.
    monkeypatch.setenv("HOLDFAST_DRY_RUN", "true")
    monkeypatch.setenv("HOLDFAST_PREFIX", "x")
    monkeypatch.setenv("HOLDFAST_LIMIT", "nonsense")
    assert (
        run("objects", "delete", "Shop", "never", "--yes", *at).stdout
        == "the object had stored nothing\n"
    )
    assert run("objects", "list", "Shop", "there-is-none", *at).returncode == 0
    asked = run("objects", "delete", "Shop", "never", *at)  # and no person is there to answer
    assert (asked.returncode, asked.stdout) == (1, "")
    assert "for good?" in asked.stderr


async def test_objects_are_listed_by_key_page_by_page_whether_in_memory_or_not(
    shop: Processes, client: holdfast.Client
) -> None:
    keys = [f"list-{i:04}" for i in range(700)] + [f"list{key}" for key in STRANGE]
    await asyncio.gather(*(client.get("Shop", key).sell(1) for key in keys))
    await client.get("Shop", "list-read-only").sold()  # has stored nothing, so it does not exist
    assert ask(shop, "objects", "list", "Shop", "list", "--limit", "5000")["keys"] == sorted(
        keys, key=str.encode
    )
    page = ask(shop, "objects", "list", "Shop", "list-", "--limit", "300")
    assert page["keys"] == [f"list-{i:04}" for i in range(300)]
    assert page["more"]
    assert not page["silent"]
    assert not page["unserved"]
    page = ask(shop, "objects", "list", "Shop", "list-", "--limit", "300", "--after", "list-0299")
    assert page["keys"] == [f"list-{i:04}" for i in range(300, 600)]
    ask(shop, "objects", "evict", "Shop", "list-0001")
    assert ask(shop, "objects", "list", "Shop", "list-0001")["keys"] == ["list-0001"]
    assert ask(shop, "objects", "list", "Nothing")["keys"] == []
    counts = ask(shop, "objects", "count")["objects"]
    assert counts["Shop"] >= len(keys)
    assert counts["Ledger"] >= len(keys)  # each was notified
    assert ask(shop, "objects", "count", "Shop", "list-00")["objects"] == {"Shop": 100}
    assert ask(shop, "objects", "count", "Shop", "nothing")["objects"] == {"Shop": 0}


async def test_an_object_s_rows_are_shown(shop: Processes, client: holdfast.Client) -> None:
    await client.get("Shop", "shown").sell(7)
    await client.get("Shop", "shown").put_many(2500)
    shown = run("objects", "show", "Shop", "shown", "--limit", "5000", "--gateway", shop.gateway)
    rows = json.loads(shown.stdout)
    assert rows["sold"] == 7
    assert [rows[f"row{i:05}"] for i in range(2500)] == list(range(2500))
    assert len(rows) == 2501
    part = run("objects", "show", "Shop", "shown", "row0001", "--gateway", shop.gateway)
    assert json.loads(part.stdout) == {f"row{i:05}": i for i in range(10, 20)}
    assert (
        "there are more rows"
        in run("objects", "show", "Shop", "shown", "--limit", "3", "--gateway", shop.gateway).stderr
    )
    assert (
        json.loads(run("objects", "show", "Shop", "never", "--gateway", shop.gateway).stdout) == {}
    )


async def test_a_deletion_takes_state_alarms_and_what_waits_to_be_delivered(
    shop: Processes, client: holdfast.Client
) -> None:
    target = client.get("Shop", "gone")
    ask(shop, "pause", "Ledger", "gone")
    try:
        request = holdfast.new_request_id()
        assert await client.get("Shop", "gone", request_id=request).sell(3) == 3
        await target.remind(1000)
        await target.notify_later(1000)
        before = ask(shop, "explain", "Shop", "gone")
        assert (int(before["rows"]), before["alarms"], before["outbox"]) == (1, 1, 1)
        assert ask(shop, "objects", "delete", "Shop", "gone", "--yes") == {"existed": True}
        after = ask(shop, "explain", "Shop", "gone")
        assert (int(after["rows"]), after["alarms"], after["outbox"]) == (0, 0, 0)
        assert (
            int(shop.stats("n1")["notifications_delayed"])
            == int(shop.stats("n2")["notifications_delayed"])
            == 0
        )
    finally:
        ask(shop, "resume", "Ledger", "gone")
    assert await target.sold() == 0  # and nothing of it is in memory
    await asyncio.sleep(1.0)
    assert await client.get("Ledger", "gone").total() == 0
    assert ask(shop, "objects", "delete", "Shop", "gone", "--yes") == {"existed": False}
    # What was answered stays answered: the request does not run again.
    assert await client.get("Shop", "gone", request_id=request).sell(3) == 3
    assert await target.sold() == 0
    # And what it sends from now on arrives.
    assert await target.sell(5) == 5
    await until(lambda: client.get("Ledger", "gone").total(), 5)


async def until(ask: Any, wanted: Any) -> None:
    async with asyncio.timeout(15):
        while await ask() != wanted:
            await asyncio.sleep(0.05)


async def test_a_deletion_waits_for_the_turn_that_runs_and_survives_a_fail_over(
    shop: Processes, client: holdfast.Client
) -> None:
    target = client.get("Shop", "busy")
    await target.sell(1)
    slow = asyncio.ensure_future(target.think(4.0))
    await asyncio.sleep(0.3)
    explained = ask(shop, "explain", "Shop", "busy")
    assert explained["running"] == "think"
    assert 0 < explained["running_s"] < 5
    began = time.monotonic()
    assert (await asyncio.to_thread(ask, shop, "objects", "delete", "Shop", "busy", "--yes"))[
        "existed"
    ]
    assert time.monotonic() - began > 0.3
    await slow
    owner = explained["shard"]["owner"].partition("-")[0]
    shop.kill(owner)
    try:
        assert await target.sold() == 0
        gone = ask(shop, "explain", "Shop", "busy")
        assert [
            copy["node"].partition("-")[0] for copy in gone["copies"] if not copy["present"]
        ] in ([owner], [])
    finally:
        shop.node(owner, "--log-format", "json", app=APP)
    await until(lambda: asyncio.to_thread(lambda: shop.ask("status")[0]), 0)


async def test_bulk_deletion_tells_what_it_would_do_does_it_and_says_who_asked(
    shop: Processes, client: holdfast.Client
) -> None:
    await asyncio.gather(
        *(client.get("Shop", f"bulk-{i}").sell(1) for i in range(450)),
        client.get("Shop", "bulk").sell(1),
    )
    would = ask(shop, "objects", "delete", "Shop", "--prefix", "bulk-", "--dry-run")
    assert (int(would["matched"]), int(would["deleted"]), would["done"]) == (450, 0, True)
    assert ask(shop, "objects", "count", "Shop", "bulk")["objects"] == {"Shop": 451}
    done = ask(shop, "objects", "delete", "Shop", "--prefix", "bulk-", "--yes")
    assert (int(done["matched"]), int(done["deleted"]), done["failed"]) == (450, 450, {})
    assert ask(shop, "objects", "list", "Shop", "bulk")["keys"] == ["bulk"]
    said = [
        json.loads(line)
        for line in shop.said("gateway").splitlines()
        if "deletion of Shop/bulk-*" in line
    ]
    assert len(said) == 2
    assert all(line["level"] == "warning" for line in said)
    assert "asked for by ipv4:127.0.0.1:" in said[0]["message"]
    assert "450 deleted" in said[1]["message"]
    assert any("DeleteThese, asked for by" in shop.said(f"n{i}") for i in (1, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("objects", "delete", "Shop"), "give the KEY of one object"),
        (("objects", "delete", "Shop", "a", "--prefix", "b"), "give the KEY of one object"),
        (("objects", "delete", "Shop", "a", "--dry-run"), "--dry-run needs --prefix or --all"),
        (("objects", "list", ""), "name a kind"),
        (("objects", "show", "Shop", "k" * 2000), "a key of 1 to"),
        (("explain", "Shop", ""), "a key of 1 to"),
        (("objects", "delete", "Nix", "a", "--yes"), "NOT_FOUND"),
    ],
)
def test_what_cannot_be_done_says_why(
    shop: Processes, arguments: tuple[str, ...], why: str
) -> None:
    refused = run(*arguments, "--gateway", shop.gateway)
    assert refused.returncode == 1
    assert why in refused.stderr


def test_a_deletion_asks_first(shop: Processes) -> None:
    command = (
        sys.executable,
        "-m",
        "holdfast",
        "objects",
        "delete",
        "Shop",
        "a",
        "--gateway",
        shop.gateway,
    )
    refused = subprocess.run(command, input="n\n", capture_output=True, text=True, timeout=30)
    assert refused.returncode == 1
    assert "Delete Shop/a for good?" in refused.stderr


async def test_an_object_is_explained(shop: Processes, client: holdfast.Client) -> None:
    target = client.get("Shop", "explained")
    await target.sell(2)
    with pytest.raises(holdfast.ApplicationError):
        await target.fail()
    waiting = [asyncio.ensure_future(target.think(6.0)) for _ in range(3)]
    await asyncio.sleep(0.3)
    explained = ask(shop, "explain", "Shop", "explained")
    text = run("explain", "Shop", "explained", "--gateway", shop.gateway).stdout
    for call in waiting:
        call.cancel()
    where = ask(shop, "where", "Shop", "explained")
    assert explained["shard"] == where["shard"]
    assert explained["address"] == where["address"]
    assert (explained["active"], explained["running"], explained["waiting"]) == (True, "think", 2)
    copies = {copy["node"]: copy for copy in explained["copies"]}
    assert sorted(copies) == sorted(where["shard"]["in_sync"])
    assert all(copy["in_sync"] and copy["present"] for copy in copies.values())
    assert [name for name, copy in copies.items() if copy["owner"]] == [where["shard"]["owner"]]
    error = explained["last_error"]
    assert (error["code"], error["method"]) == ("APPLICATION", "fail")
    assert "out of tea" in error["message"]
    assert "think for" in text
    assert "out of tea" in text
    assert "1 rows" in text
    dormant = ask(shop, "explain", "Shop", "list-never")
    assert not dormant["active"]
    assert not dormant.get("last_error")


async def test_eviction_waits_for_rest_and_loses_nothing(
    shop: Processes, client: holdfast.Client
) -> None:
    target = client.get("Shop", "evicted")
    await target.sell(2)
    slow = asyncio.ensure_future(target.think(0.8))
    await asyncio.sleep(0.2)
    assert (await asyncio.to_thread(ask, shop, "objects", "evict", "Shop", "evicted")) == {
        "was_active": True
    }
    assert slow.done()
    assert not ask(shop, "explain", "Shop", "evicted")["active"]
    assert ask(shop, "objects", "evict", "Shop", "evicted") == {"was_active": False}
    assert await target.sold() == 2


async def test_top_names_what_is_busy(shop: Processes, client: holdfast.Client) -> None:
    async def load() -> None:
        while True:
            await asyncio.gather(
                *(client.get("Shop", "hot").sold() for _ in range(20)),
                client.get("Shop", f"cold{time.time()}").sold(),
            )

    task = asyncio.create_task(load())
    try:
        await asyncio.sleep(2)
        busy = await asyncio.to_thread(ask, shop, "top", "--interval", "1", "--limit", "5")
    finally:
        task.cancel()
    assert busy["objects"][0]["key"] == "hot"
    assert busy["objects"][0]["turns_per_s"] > 10
    assert len(busy["objects"]) <= 5
    kinds = {kind["kind"]: kind for kind in busy["kinds"]}
    assert kinds["Shop"]["calls_per_s"] > 20
    assert kinds["Shop"]["call_ms"] > 0
    assert len(busy["nodes"]) == 3
    assert all(node["answers"] for node in busy["nodes"])
    assert sum(node["owns"] for node in busy["nodes"]) == 256
    assert sum(node["turns_per_s"] for node in busy["nodes"]) > 20
    text = await asyncio.to_thread(
        run, "top", "--once", "--interval", "0.3", "--gateway", shop.gateway
    )
    assert "busiest objects" in text.stdout
    assert "Shop/hot" in text.stdout


async def test_what_is_on_a_node_that_is_away_is_said_to_be_missing(processes: Processes) -> None:
    processes.start_all(nodes=2, app=APP)
    async with processes.connect() as client:
        await asyncio.gather(*(client.get("Shop", f"s{i}").sell(1) for i in range(12)))
        owners = {
            f"s{i}": processes.ask("where", "Shop", f"s{i}")[1]["shard"]["owner"] for i in range(12)
        }
        processes.kill("n2")
        async with asyncio.timeout(20):
            while not (page := processes.ask("objects", "list", "Shop")[1])["unserved"]:
                await asyncio.sleep(0.2)
        assert page["keys"] == sorted(
            key for key, owner in owners.items() if owner.startswith("n1-")
        )
        away = next(key for key, owner in owners.items() if owner.startswith("n2-"))
        explained = processes.ask("explain", "Shop", away)[1]
        assert "is absent" in explained["unserved"]
        assert not explained["address"]
        refused = run("objects", "show", "Shop", away, "--gateway", processes.gateway)
        assert "UNAVAILABLE" in refused.stderr
        assert "has no owner at the moment" in refused.stderr
        some = run(
            "objects", "delete", "Shop", "--prefix", "s", "--yes", "--gateway", processes.gateway
        )
        assert "the objects of" in some.stderr
        assert "no node serves these shards" in some.stderr
