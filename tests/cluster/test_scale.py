"""What objects cost that merely exist, or merely are in memory."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from holdfast_cluster.placement.ring import shard_of
from holdfast_node.effects.records import AlarmRecord, encode
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

from tests.cluster.processes import BENCH_APP, Processes

IDLE = 100_000
STORED = 1_000_000


async def test_100_000_idle_activations_cost_at_most_3_kib_each(processes: Processes) -> None:
    processes.start_all(app=BENCH_APP)
    for _ in range(4):
        active, grown = await make_idle_activations(processes)
        if active == IDLE:
            break
        # A node whose machine stalls for longer than its lease loses its shards and, with them, its
        # activations. What they cost can be seen only in a process that makes each of them once.
        processes.kill("n1")
        processes.node("n1", app=BENCH_APP)
    assert active == IDLE
    assert grown <= 3 * 1024 * IDLE, f"{grown / IDLE:.0f} bytes each"


async def make_idle_activations(processes: Processes) -> tuple[int, int]:
    """Return how many activations there are more than before, and how many bytes the node has."""
    async with processes.connect() as client:
        await asyncio.gather(
            *(client.get("holdfast.bench", f"warm{i}").increment() for i in range(2000))
        )
        before = processes.stats()
        for start in range(0, IDLE, 5000):
            await asyncio.gather(
                *(
                    client.get("holdfast.bench", f"o{i}").increment()
                    for i in range(start, start + 5000)
                )
            )
        after = processes.stats()
    rss = [int(stats["process"]["rss_bytes"]) for stats in (before, after)]
    return int(after["activations"]) - int(before["activations"]), rss[1] - rss[0]


def store_objects(data: Path, shards: int) -> None:
    """Write objects straight into a store that no node has open."""
    store = Store(data)
    for start in range(0, STORED, 10_000):
        batch = store.batch()
        for i in range(start, start + 10_000):
            key = f"o{i}"
            prefix = keys.row_prefix(shard_of("holdfast.bench", key, shards), "holdfast.bench", key)
            batch.put("state", prefix + b"n", b"\xcd\x10\x00")
        store.write(batch)
    store.sync()
    store.close()


async def test_a_node_with_a_million_stored_objects_starts_in_5_s_and_needs_no_memory_for_them(
    processes: Processes,
) -> None:
    processes.start_all(app=BENCH_APP)
    async with processes.connect() as client:
        assert await client.get("holdfast.bench", "o1").increment() == 1
        processes.kill("n1", 15)
        processes.node("n1", app=BENCH_APP)
        assert await client.get("holdfast.bench", "o1").value() == 1
        empty = int(processes.stats()["process"]["rss_bytes"])
        processes.kill("n1", 15)
        store_objects(processes.folder / "n1", 256)
        began = time.monotonic()
        processes.node("n1", app=BENCH_APP)
        assert await client.get("holdfast.bench", "o1").value() == 4096
        assert time.monotonic() - began < 5
        full = int(processes.stats()["process"]["rss_bytes"])
        assert await client.get("holdfast.bench", f"o{STORED - 1}").value() == 4096
    # 42 bytes an object would be too much
    assert full - empty < 40 << 20, f"{(full - empty) >> 20} MiB"


def store_alarms(data: Path, shards: int, due_ms: int) -> None:
    """Write pending alarms, one for each of many objects, straight into a store that no node has
    open."""
    store = Store(data)
    for start in range(0, STORED, 10_000):
        batch = store.batch()
        for i in range(start, start + 10_000):
            key = f"o{i}"
            shard = shard_of("Receiver", key, shards)
            record = AlarmRecord(due_ms + i, due_ms + i, b"\xc0")
            batch.put(
                "state", keys.alarm_prefix(shard, "Receiver", key) + b"default", encode(record)
            )
            batch.put(
                "state",
                keys.due_key(
                    shard, keys.ALARMS, due_ms + i, keys.ident("Receiver", key) + b"default"
                ),
                b"",
            )
        store.write(batch)
    store.sync()
    store.close()


async def test_a_million_pending_alarms_need_no_memory_and_delay_none_that_is_due(
    processes: Processes,
) -> None:
    processes.start_all()
    async with processes.connect() as client:
        assert await client.get("Receiver", "r").took() == []
        empty = int(processes.stats()["process"]["rss_bytes"])
        processes.kill("n1", 15)
        store_alarms(processes.folder / "n1", 256, time.time_ns() // 1_000_000 + 3_600_000)
        processes.node("n1")
        await client.get("Receiver", "r").alarm(300)
        await asyncio.sleep(1.5)
        ((who, late_ms),) = await client.get("Receiver", "r").took()
        assert (who, 0 <= late_ms < 1000) == ("alarm default", True), late_ms
        full = int(processes.stats()["process"]["rss_bytes"])
        _, listed = processes.ask("alarms", "Receiver", "o99999", "--limit", "5")
        assert len(listed["alarms"]) == 5
    # 63 bytes an alarm would be too much
    assert full - empty < 60 << 20, f"{(full - empty) >> 20} MiB"


async def test_an_object_with_thousands_of_keys_stays_within_its_cache_limit(
    processes: Processes,
) -> None:
    processes.start_all()
    async with processes.connect() as client:
        diary: Any = client.get("Diary", "big")
        for _ in range(3):
            await diary.fill(5000, 100)
            assert await diary.touch(5000) == 500_000
        assert int(processes.stats()["cache_bytes"]) <= 256 << 10
        assert await diary.rows("row/004990", 20) == [f"row/{i:06d}" for i in range(4990, 5000)]
        await diary.clear()
        assert await diary.rows("", 5) == []


async def test_many_updates_in_flight_share_few_fsyncs(processes: Processes) -> None:
    processes.start_all()
    async with processes.connect() as client:
        await client.get("Counter", "a").increment()
        before = processes.stats()
        await asyncio.gather(
            *(client.get("Counter", f"c{i % 50}").increment() for i in range(5000))
        )
        after = processes.stats()
    turns = int(after["turns"]) - int(before["turns"])
    assert turns >= 5000
    assert int(after["fsyncs"]) - int(before["fsyncs"]) < turns / 10
