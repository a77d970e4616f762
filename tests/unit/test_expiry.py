"""What has a ttl is gone for its readers when its time has come, and is removed from disk after
that."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import holdfast
import pytest
from holdfast import Alarm, App, DurableObject
from holdfast.storage import Storage
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.effects.expiry import rounded_up
from holdfast_node.effects.rows import Rows, StorageLimits
from holdfast_node.store import keys
from holdfast_node.store.values import read_expiry, read_value
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine_bench import Bench
from tests.unit.memory_store import MemoryReader, WallExpiry

app = App()


@app.kind
class Cache(DurableObject):
    async def put(self, key: str, value: Any, ttl_s: float | None = None) -> None:
        self.storage.put(key, value, ttl=None if ttl_s is None else timedelta(seconds=ttl_s))

    async def put_and_undo(self, key: str, ttl_s: float) -> None:
        try:
            with self.storage.transaction():
                self.storage.put(key, "undone", ttl=timedelta(seconds=ttl_s))
                raise ValueError
        except ValueError:
            pass

    async def all(self) -> dict[str, Any]:
        return self.storage.list()

    @holdfast.reads
    async def seen(self) -> list[Any]:
        return [
            self.storage.get("a"),
            "a" in self.storage,
            self.storage.get_many(["a", "b"]),
            self.storage.list(),
        ]

    async def hold(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @holdfast.reads
    async def slow_read(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def remove(self, key: str) -> int:
        return self.storage.delete(key)


@app.kind(ttl=timedelta(hours=1))
class Session(DurableObject):
    async def add(self, name: str, alarm: bool = False) -> list[str]:
        self.storage.put(name, 1)
        if alarm:
            self.set_alarm(timedelta(days=1))
        return list(self.storage.list())

    async def fail(self) -> None:
        self.storage.put("never", 1)
        raise ValueError

    async def names(self) -> list[str]:
        return list(self.storage.list())

    @holdfast.reads
    async def seen(self) -> list[Any]:
        return [*self.storage.list(), *(alarm.name for alarm in self.list_alarms())]

    async def clear(self) -> None:
        self.storage.delete_all(alarms=True)

    async def hold(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def slow_add(self, name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.storage.put(name, 1)

    async def alarm_names(self) -> list[str]:
        return [alarm.name for alarm in self.list_alarms()]

    async def on_alarm(self, alarm: Alarm) -> None:
        self.storage.put("fired", 1)


@app.kind(ttl=timedelta(hours=1))
class Evicting(DurableObject):
    async def add(self, name: str) -> None:
        self.storage.put(name, 1)

    async def names(self) -> list[str]:
        return list(self.storage.list())

    def on_evict(self) -> None:
        self.storage.put("saved", self.storage.list())


@pytest.fixture
def bench_app() -> App:
    return app


@pytest.fixture
async def bench(bench: Bench) -> Bench:
    bench.set_clock()
    return bench


async def answer(bench: Bench, key: str, method: str, *arguments: Any, kind: str = "Cache") -> Any:
    (value,) = await bench.answered(bench.call(key, method, *arguments, kind=kind))
    return value


def rows(bench: Bench) -> list[bytes]:
    bench.flusher.write()
    return [key for key, _ in bench.store.scan("state", b"", None)]


async def test_a_value_is_gone_for_everybody_once_its_time_has_come(bench: Bench) -> None:
    await answer(bench, "o", "put", "a", 1, 10.0)
    await answer(bench, "o", "put", "b", 2)
    bench.clock.ms += 9_999
    assert await answer(bench, "o", "seen") == [1, True, {"a": 1, "b": 2}, {"a": 1, "b": 2}]
    bench.clock.ms += 1
    assert await answer(bench, "o", "seen") == [None, False, {"b": 2}, {"b": 2}]
    assert await answer(bench, "o", "all") == {"b": 2}
    assert await answer(bench, "o", "remove", "a") == 0
    await answer(bench, "o", "put", "a", 1, 10.0)
    bench.clock.ms += 10_000
    assert await answer(bench, "o", "all") == {"b": 2}
    bench.clock.ms -= 1
    assert await answer(bench, "o", "all") == {"a": 1, "b": 2}, (
        "not yet swept: nothing but the time tells"
    )


async def test_what_has_expired_is_removed_from_disk(bench: Bench) -> None:
    for n in range(50):
        await answer(bench, f"o{n}", "put", "a", n, 10.0)
    await answer(bench, "o0", "put", "b", 2)
    await bench.tick(3)
    assert len(rows(bench)) > 100
    bench.clock.ms += 12_000
    bench.engine.eviction.evict_share(1.0)
    await bench.tick(3)
    bench.engine.eviction.evict_share(1.0)
    await bench.tick(2)
    prefix = keys.row_prefix(0, "Cache", "o0")
    assert [key for key in rows(bench) if key.startswith(b"\0\0") and key[2:3] != b"\0"] == [
        prefix + b"b"
    ]
    assert [key for key in rows(bench) if key[:4] == keys.index_prefix(0, keys.EXPIRY)] == []
    assert bench.objects.expiry.removed == 50


async def test_a_value_that_is_written_anew_lives_as_its_newest_ttl_says(bench: Bench) -> None:
    await answer(bench, "o", "put", "a", 1, 10.0)
    await answer(bench, "o", "put", "b", 1, 10.0)
    await answer(bench, "o", "put", "c", 1, 1000.0)
    bench.clock.ms += 9_000
    await answer(bench, "o", "put", "a", 2, 10.0)
    await answer(bench, "o", "put", "b", 2)
    await answer(bench, "o", "put", "c", 2, 1.0)
    bench.clock.ms += 3_000
    bench.engine.eviction.evict_share(1.0)
    await bench.tick(5)
    assert await answer(bench, "o", "all") == {"a": 2, "b": 2}
    bench.clock.ms += 3_600_000
    bench.engine.eviction.evict_share(1.0)
    await bench.tick(5)
    assert await answer(bench, "o", "all") == {"b": 2}
    assert len(rows(bench)) == 1


async def test_a_session_that_is_renewed_all_the_time_does_not_fill_the_index(bench: Bench) -> None:
    for _ in range(500):
        await answer(bench, "o", "put", "a", 1, 600.0)
        bench.clock.ms += 500
        bench.objects.services.tick()
    index = [key for key in rows(bench) if key[:4] == keys.index_prefix(0, keys.EXPIRY)]
    assert len(index) < 40
    assert await answer(bench, "o", "all") == {"a": 1}


async def test_what_a_failed_transaction_wrote_leaves_nothing(bench: Bench) -> None:
    await answer(bench, "o", "put_and_undo", "a", 10.0)
    assert rows(bench) == []


async def test_values_of_a_busy_object_are_removed_as_well(bench: Bench) -> None:
    running = bench.call("o", "hold", 100.0, kind="Cache")
    read = bench.call("o", "slow_read", 100.0, kind="Cache")
    await bench.tick()
    for n in range(20):
        await bench.answered(bench.call("other", "put", f"k{n}", n, 5.0, kind="Cache"))
    activation = bench.engine.find("Cache", "o")
    assert activation is not None
    activation.turn.cancel()  # type: ignore[union-attr]
    await bench.answered(running)
    for n in range(20):
        await answer(bench, "o", "put", f"k{n}", n, 5.0)
    running = bench.call("o", "hold", 100.0, kind="Cache")
    bench.clock.ms += 7_000
    await bench.tick(3)
    assert [key for key in rows(bench) if key[2:3] != b"\0"] == []
    activation.turn.cancel()  # type: ignore[union-attr]
    for waiting in list(activation.reads or ()):
        waiting.cancel()
    await bench.answered(running, read)


async def test_what_a_look_that_was_cut_short_left_is_not_forgotten(bench: Bench) -> None:
    await answer(bench, "s", "add", "x", kind="Session")
    held = bench.call("s", "hold", 100.0, kind="Session")
    for n in range(30):
        for m in range(100):
            bench.call(f"o{n}", "put", f"k{m}", m, 3_600.0, kind="Cache")
        await answer(bench, f"o{n}", "all")
    bench.clock.ms += 8 * 3_600_000
    await bench.tick(2)
    bench.engine.find("Session", "s").turn.cancel()  # type: ignore[union-attr]
    await bench.answered(held)
    for _ in range(10):
        bench.clock.ms += 1_000
        await bench.tick(3)
    assert rows(bench) == []


async def test_a_read_only_shard_answers_reading_turns_of_expired_objects_and_of_none(
    bench: Bench,
) -> None:
    await answer(bench, "s", "add", "x", True, kind="Session")
    bench.clock.ms += 2 * 3_600_000
    entries = bench.objects.writes._committer.entries
    bench.shard.read_only = "too few copies"
    assert await answer(bench, "s", "names", kind="Session") == []
    assert await answer(bench, "never", "names", kind="Session") == []
    bench.shard.read_only = None
    assert await answer(bench, "s", "names", kind="Session") == []
    assert bench.objects.writes._committer.entries == entries, "who only reads writes nothing"
    assert await answer(bench, "s", "alarm_names", kind="Session") == []
    assert await answer(bench, "s", "add", "y", kind="Session") == ["y"]
    assert await answer(bench, "s", "alarm_names", kind="Session") == []
    bench.flusher.write()
    assert (
        list(
            bench.store.scan(
                "state", keys.index_prefix(0, keys.ALARMS), keys.index_prefix(0, keys.DEAD_LETTERS)
            )
        )
        == []
    )


async def test_an_object_that_a_turn_found_alive_stays_so_for_reads_until_that_has_ended(
    bench: Bench,
) -> None:
    await answer(bench, "s", "add", "x", kind="Session")
    running = bench.call("s", "slow_add", "slow", 0.2, kind="Session")
    bench.clock.ms += 2 * 3_600_000
    assert await answer(bench, "s", "seen", kind="Session") == ["x"]
    await bench.answered(running)
    assert await answer(bench, "s", "seen", kind="Session") == ["slow", "x"]


async def test_nothing_comes_back_with_an_owner_whose_clock_has_not_started(bench: Bench) -> None:
    await answer(bench, "o", "put", "a", 1, 10.0)
    bench.clock.ms += 20_000
    bench.shard.stamp = bench.clock.ms << 16  # as the newest entry has it
    bench.clock.ms -= 3_600_000
    bench.clock.started = False
    assert await answer(bench, "o", "all") == {}
    error = await answer(bench, "o", "put", "b", 1, 10.0)
    assert (error.code, error.retryable) == (pb.CODE_UNAVAILABLE, True)


async def test_an_expired_object_has_no_on_evict(bench: Bench) -> None:
    await answer(bench, "e", "add", "secret", kind="Evicting")
    bench.clock.ms += 2 * 3_600_000
    bench.engine.eviction.evict_share(1.0)
    assert await answer(bench, "e", "names", kind="Evicting") == []


async def test_nothing_is_removed_while_its_object_may_have_written_it_anew(bench: Bench) -> None:
    await answer(bench, "o", "put", "a", 1, 10.0)
    bench.clock.ms += 12_000
    bench.may_sync.clear()
    wrote = bench.call("o", "put", "a", 2, None, kind="Cache")
    bench.objects.services.tick()
    bench.may_sync.set()
    await bench.answered(wrote)
    bench.engine.eviction.evict_share(1.0)
    await bench.tick(5)
    assert await answer(bench, "o", "all") == {"a": 2}


@pytest.mark.parametrize("ttl", [0.0, -1.0, 1e12])
async def test_a_ttl_that_makes_no_sense_is_refused(bench: Bench, ttl: float) -> None:
    error = await answer(bench, "o", "put", "a", 1, ttl)
    assert (error.code, rows(bench)) == (pb.CODE_APPLICATION, [])


async def test_while_a_node_does_not_know_it_nothing_may_expire(bench: Bench) -> None:
    bench.shards.features.on = frozenset()
    error = await answer(bench, "o", "put", "a", 1, 10.0)
    assert (error.code, error.definite) == (pb.CODE_UNAVAILABLE, True)
    await answer(bench, "s", "add", "x", kind="Session")
    assert [key for key in rows(bench) if b"\x30" in key[-1:]] == []
    bench.clock.ms += 10 * 3_600_000
    assert await answer(bench, "s", "names", kind="Session") == ["x"]


async def test_an_object_that_stores_nothing_for_its_ttl_is_as_if_it_never_was(
    bench: Bench,
) -> None:
    await answer(bench, "s", "add", "x", True, kind="Session")
    for _ in range(5):
        bench.clock.ms += 3_500_000
        assert "x" in await answer(bench, "s", "add", "y", kind="Session")
        await bench.tick(3)
    bench.clock.ms += 3_600_000
    assert await answer(bench, "s", "names", kind="Session") == ["x", "y"]
    bench.clock.ms += 3_600_000 // 16 + 1_000
    assert await answer(bench, "s", "seen", kind="Session") == []
    assert (await answer(bench, "s", "fail", kind="Session")).code == pb.CODE_APPLICATION
    assert await answer(bench, "s", "seen", kind="Session") == [], (
        "a turn that failed leaves it expired"
    )
    assert await answer(bench, "s", "add", "z", kind="Session") == ["z"]
    bench.engine.eviction.evict_share(1.0)
    assert await answer(bench, "s", "seen", kind="Session") == ["z"]


async def test_an_expired_object_is_deleted_without_anybody_asking(bench: Bench) -> None:
    for n in range(100):
        await answer(bench, f"s{n}", "add", "x", True, kind="Session")
    await answer(bench, "cleared", "add", "x", kind="Session")
    await answer(bench, "cleared", "clear", kind="Session")
    await bench.tick(2)
    assert len(rows(bench)) > 300
    bench.engine.eviction.evict_share(1.0)
    bench.clock.ms += 3_600_000 + 3_600_000 // 16 + 1
    for _ in range(10):
        await bench.tick(5)
        bench.clock.ms += 1_000
    assert list(rows(bench)) == []
    assert bench.objects.expiry.removed >= 100


async def test_deleting_an_object_takes_its_expiry_with_it(bench: Bench) -> None:
    from holdfast.v1 import admin_pb2
    from holdfast_node.admin.inspection import Inspection

    await answer(bench, "s", "add", "x", kind="Session")
    inspection = Inspection(
        bench.store,
        bench.shards,
        bench.objects,
        lambda number: None,
        lambda: "n",
        lambda: None,  # type: ignore[arg-type, return-value]
    )
    await answer(bench, "gone", "add", "x", kind="Session")
    await answer(bench, "gone", "clear", kind="Session")
    listed = await inspection.list_objects(admin_pb2.ListObjectsRequest(kind="Session"))
    assert list(listed.keys) == ["s"], "an object that has nothing but its expiry is not there"
    counted = await inspection.count_objects(admin_pb2.CountObjectsRequest())
    assert dict(counted.objects) == {"Session": 1}
    await answer(bench, "o", "put", "a", 5, 10.0)
    shown = await inspection.show_object(admin_pb2.ShowObjectRequest(kind="Cache", key="o"))
    [row] = shown.rows
    assert (row.value, row.expires_ms) == (b"\x05", bench.clock.ms + 10_000)
    bench.clock.ms += 10_000
    assert not (
        await inspection.show_object(admin_pb2.ShowObjectRequest(kind="Cache", key="o"))
    ).rows
    await inspection.delete_these(admin_pb2.DeleteTheseRequest(kind="Session", keys=["s"]))
    bench.flusher.write()
    assert bench.store.get("state", keys.expiry_key(0, "Session", "s")) is None


@given(st.integers(0, 1 << 44), st.integers(1, 1 << 40))
def test_the_time_of_the_index_is_late_by_a_part_of_the_ttl_at_most(expiry: int, ttl: int) -> None:
    due = rounded_up(expiry, ttl)
    assert expiry <= due <= expiry + max(1 << 10, ttl // 16)


def test_a_stored_value_with_an_expiry_reads_back_without_it() -> None:
    now = [1_000]
    reader = MemoryReader()
    rows = Rows(reader, StorageLimits(), WallExpiry(lambda: now[0]))
    storage = Storage(rows, None)  # type: ignore[arg-type]
    rows.begin()
    storage.put_many({"a": [1], "b": None}, ttl=timedelta(seconds=1))
    storage.put("c", 1)
    assert storage.list() == {"a": [1], "b": None, "c": 1}
    assert storage.delete("b", "missing") == 1
    cleared, writes, _ = rows.take()
    reader.apply(cleared, writes)
    rows.rollback()
    assert read_expiry(reader.rows[b"a"]) == 2_000
    assert read_value(reader.rows[b"a"]) == b"\x91\x01"
    assert read_expiry(reader.rows[b"c"]) is None
    now[0] = 2_000
    rows.begin()
    assert storage.get("a", default="none") == "none"
    assert storage.delete("a") == 0
    assert storage.list() == {"c": 1}
