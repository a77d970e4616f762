"""Wall clocks that are wrong for a while, on real processes: what is remembered does not follow
them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast import ids
from holdfast.client.blocking import BlockingClient
from holdfast.verify import inside

from tests.cluster.processes import Processes

pytestmark = pytest.mark.slow

APP = str(Path(__file__).parent / "faulty_app.py")
AHEAD_S = 2 * 86_400
KEYS = [f"k{i}" for i in range(12)]
FORGETTING_S = 64
"""Within this every node has forgotten what it means to forget: it looks once a minute."""
BEYOND_THE_LOG = 215
"""So many entries push an older one out of a replica's log into its state."""


async def test_a_clock_that_was_two_days_ahead_makes_nobody_forget_what_was_done(
    processes: Processes, tmp_path: Path
) -> None:
    processes.replication = 3
    options = ("--members-min", "3", "--repair-after", "600", "--shards", "24")
    processes.start_etcd()
    processes.node("n1", *options)
    for name in ("n2", "n3"):
        processes.environment[name] = {inside.FOLDER: str(tmp_path / "faults")}
        processes.node(name, *options, app=APP)
    processes.front()
    processes.wait_ready(processes.gateway)
    owners = {
        key: str(
            (await asyncio.to_thread(processes.ask, "where", "Counter", key))[1]["shard"]["owner"]
        )[:2]
        for key in KEYS
    }
    # the clocks of only the copies, and of the owner, will be wrong
    assert set(owners.values()) >= {
        "n1",
        "n2",
    }
    request_ids = {key: holdfast.new_request_id() for key in KEYS}

    async with processes.connect() as client:

        async def again(key: str) -> list[int]:
            """What two calls say that bring the same key, or the same id, every time."""
            named: Any = client.get("Counter", key, idempotency_key="order")
            numbered: Any = client.get("Counter", key, request_id=request_ids[key])
            return [await named.increment(), await numbered.increment()]

        for key in KEYS:
            assert await again(key) == [1, 2]
        for key in KEYS:
            await asyncio.gather(
                *(client.get("Counter", key).increment() for _ in range(BEYOND_THE_LOG))
            )
        inside.set_fault(tmp_path / "faults", inside.CLOCK_S, AHEAD_S)
        await asyncio.sleep(FORGETTING_S)
        assert {key: await again(key) for key in KEYS} == {key: [1, 2] for key in KEYS}
        inside.set_fault(tmp_path / "faults", inside.CLOCK_S, 0)
        await asyncio.sleep(1)
        assert {key: await again(key) for key in KEYS} == {key: [1, 2] for key in KEYS}
        processes.kill("n1")
        assert {key: await again(key) for key in KEYS} == {key: [1, 2] for key in KEYS}
        assert {key: await client.get("Counter", key).value() for key in KEYS} == dict.fromkeys(
            KEYS, 2 + BEYOND_THE_LOG
        )


HOUR_S = 3_600
SOON_MS = 6_000
LATE_S = 5.0
"""So late an alarm may be, fail-over included."""


async def fires_on_time(
    processes: Processes, client: holdfast.Client, keys: list[str], meanwhile: Callable[[], object]
) -> None:
    """Set alarms of these objects by distance, do something, and see each fire when it is due."""
    before = {key: len(await client.get("Receiver", key).took()) for key in keys}
    began = time.monotonic()
    for key in keys:
        await client.get("Receiver", key).alarm(SOON_MS)
    await asyncio.to_thread(meanwhile)
    for key in keys:
        while len(await client.get("Receiver", key).took()) == before[key]:
            assert time.monotonic() - began < SOON_MS / 1000 + LATE_S, f"{key} has not fired"
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > SOON_MS / 1000 - 0.5, f"{key} fired too early"


@pytest.mark.parametrize("ahead_s", [HOUR_S, -HOUR_S])
async def test_alarms_come_when_they_are_due_whatever_the_owners_clock_shows(
    processes: Processes, tmp_path: Path, ahead_s: int
) -> None:
    processes.replication = 3
    options = ("--members-min", "3", "--repair-after", "600", "--shards", "24")
    faults = {name: tmp_path / name for name in ("n1", "n2", "n3")}
    inside.set_fault(faults["n1"], inside.CLOCK_S, ahead_s)  # wrong from the beginning
    processes.start_etcd()
    for name, folder in faults.items():
        processes.environment[name] = {inside.FOLDER: str(folder)}
        processes.node(name, *options, app=APP)
    processes.front()
    processes.wait_ready(processes.gateway)
    async with processes.connect() as client:
        await fires_on_time(processes, client, KEYS, lambda: None)
        # wrong all at once, and in the other direction
        await fires_on_time(
            processes,
            client,
            KEYS,
            lambda: inside.set_fault(faults["n2"], inside.CLOCK_S, -ahead_s),
        )
        inside.set_fault(faults["n2"], inside.CLOCK_S, 0)
        await fires_on_time(processes, client, KEYS, lambda: processes.kill("n2"))
        processes.node("n2", *options, app=APP)
        inside.set_fault(faults["n1"], inside.CLOCK_S, 0)
        await fires_on_time(processes, client, KEYS, lambda: processes.kill("n1"))
    assert "differs from the cluster's time" in processes.said("n3")


async def test_a_client_whose_clock_is_wrong_makes_ids_by_the_clusters_time(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.start_all()
    async with asyncio.timeout(15):  # a gateway tells the time from when it knows it itself
        while not await ids_follow_the_clusters_time(processes, monkeypatch, -660):
            await asyncio.sleep(0.2)
    for off_s in (-660, HOUR_S):
        assert await ids_follow_the_clusters_time(processes, monkeypatch, off_s)
        with BlockingClient(processes.gateway) as blocking:
            await asyncio.to_thread(lambda: blocking.get("Counter", "c").increment())
            made = blocking._ids.next()
        assert abs(int.from_bytes(made[:6], "big") / 1000 - time.time()) < LATE_S


async def ids_follow_the_clusters_time(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> bool:
    """Whether a client whose clock is off makes ids by the cluster's time after its first call."""
    wrong = lambda: time.time_ns() // 1_000_000 + int(off_s * 1000)  # noqa: E731
    monkeypatch.setattr(ids, "_wall_ms", wrong)
    async with processes.connect() as client:
        await client.get("Counter", "c").increment()
        made = client._ids.next()
    return abs(int.from_bytes(made[:6], "big") / 1000 - time.time()) < LATE_S


async def test_what_has_a_ttl_lives_as_long_whatever_the_owners_clock_shows_and_through_a_fail_over(
    processes: Processes, tmp_path: Path
) -> None:
    processes.replication = 3
    options = ("--members-min", "3", "--repair-after", "600", "--shards", "24")
    processes.start_etcd()
    for name in ("n1", "n2", "n3"):
        if name == "n1":
            processes.environment[name] = {inside.FOLDER: str(tmp_path / "faults")}
        processes.node(name, *options, app=APP)
    processes.front()
    processes.wait_ready(processes.gateway)
    async with processes.connect() as client:
        objects: list[Any] = [client.get("Expiring", key) for key in KEYS]
        inside.set_fault(tmp_path / "faults", inside.CLOCK_S, AHEAD_S)
        began = time.monotonic()
        await asyncio.gather(*(each.keep(6.0) for each in objects))
        inside.set_fault(tmp_path / "faults", inside.CLOCK_S, -AHEAD_S)
        both = ["for a while", "for good"]
        assert [await each.kept() for each in objects] + [
            await each.seen() for each in objects
        ] == [both] * 24
        assert time.monotonic() < began + 6, "this machine is too slow for the times of this test"
        await asyncio.sleep(began + 7.5 - time.monotonic())
        assert [await each.seen() for each in objects] == [["for good"]] * 12
        processes.kill("n1")
        await asyncio.sleep(began + 15 - time.monotonic())
        assert [await each.kept() for each in objects] + [
            await each.seen() for each in objects
        ] == [[]] * 24
    processes.node("n1", *options, app=APP)  # its clock is two days behind still
    async with processes.connect() as client:
        assert [await client.get("Expiring", key).seen() for key in KEYS] == [[]] * 12
