"""What a kind, an app and a handler may say about how objects run: idle times, leaving memory,
functions around handlers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import holdfast
import pytest
from holdfast import Alarm, App, DurableObject, Invocation, Rejected
from holdfast.alarms import check_every
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import FEATURES
from holdfast_node.effects.alarms import following
from holdfast_node.effects.records import AlarmRecord

from tests.unit.engine_bench import Bench

app = App()
log: list[Any] = []


class Base(DurableObject):
    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    async def value(self) -> int:
        return self.storage.get("n", int, default=0)

    async def leave(self, fail: bool = False) -> int:
        self.storage.put("n", 1 + await self.value())
        self.deactivate()
        if fail:
            raise ValueError
        return type(self).made


@app.kind(idle=timedelta(milliseconds=30))
class Short(Base):
    pass


@app.kind
class Long(Base):
    async def set_alarm_by(
        self, times: Any, until_s: float | None, every_s: float | None = 10.0
    ) -> None:
        until = None if until_s is None else timedelta(seconds=until_s)
        every = None if every_s is None else timedelta(seconds=every_s)
        self.set_alarm(timedelta(seconds=10), every=every, times=times, until=until)

    async def alarm(self) -> list[Any]:
        alarm = self.get_alarm()
        return [] if alarm is None else [alarm.times, alarm.until]

    async def on_alarm(self, alarm: Alarm) -> None:
        self.storage.put("n", 1 + await self.value())


@app.kind
class Evicting(Base):
    async def on_evict(self) -> None:
        self.storage.put("evicted", 1 + self.storage.get("evicted", int, default=0))

    async def evictions(self) -> int:
        return self.storage.get("evicted", int, default=0)


@app.kind
class WriteBehind(DurableObject):
    """Writes its count when it leaves memory, and at no other time."""

    def on_activate(self) -> None:
        self.count = self.storage.get("count", int, default=0)

    async def bump(self, wait_and_leave: float = 0.0) -> int:
        self.count += 1
        if wait_and_leave:
            await asyncio.sleep(wait_and_leave)
            self.deactivate()
        return self.count

    def on_evict(self) -> None:
        self.storage.put("count", self.count)


@pytest.fixture
def bench_app() -> App:
    return app


async def answer(bench: Bench, kind: str, method: str, *arguments: Any) -> Any:
    (value,) = await bench.answered(bench.call("o", method, *arguments, kind=kind))
    return value


async def test_an_idle_object_leaves_memory_as_its_kind_says(bench: Bench) -> None:
    await answer(bench, "Short", "value")
    await answer(bench, "Long", "value")
    bench.engine.tick()
    assert len(bench.objects.activations) == 2
    await asyncio.sleep(0.05)
    bench.engine.tick()
    assert bench.objects.activations.kinds() == {"Short": 0, "Long": 1}


async def test_the_least_recently_used_of_all_kinds_leave_first(bench: Bench) -> None:
    for kind in ("Long", "Short", "Evicting"):
        await answer(bench, kind, "value")
        await asyncio.sleep(0.002)
    await answer(bench, "Long", "value")
    bench.engine.eviction.evict_share(0.1)
    assert bench.objects.activations.kinds() == {"Long": 1, "Short": 0, "Evicting": 1}


@pytest.mark.parametrize("kind", ["Long", "Evicting"])
async def test_an_object_leaves_memory_when_it_asks_to_and_the_turn_ended_well(
    bench: Bench, kind: str
) -> None:
    cls = app.get(kind).cls
    cls.made = 0  # type: ignore[attr-defined]
    assert await answer(bench, kind, "value") == 0
    leave, behind = bench.call("o", "leave", kind=kind), bench.call("o", "value", kind=kind)
    assert await bench.answered(leave, behind) == [1, 1]
    assert cls.made == 2, "the turn behind it has a new instance"  # type: ignore[attr-defined]
    assert (await answer(bench, kind, "leave", True)).code == pb.CODE_APPLICATION
    assert await answer(bench, kind, "value") == 1
    assert await answer(bench, kind, "leave") == 3
    bench.engine.tick()
    await bench.flusher.drain()
    bench.engine.tick()
    assert len(bench.objects.activations) == 0
    if kind == "Evicting":
        assert await answer(bench, kind, "evictions") == 2


async def test_an_object_that_leaves_after_a_wait_loses_nothing_that_its_on_evict_keeps(
    bench: Bench,
) -> None:
    first = bench.call("o", "bump", 0.01, kind="WriteBehind")
    second = bench.call("o", "bump", kind="WriteBehind")
    assert await bench.answered(first, second) == [1, 2]
    assert await answer(bench, "WriteBehind", "bump") == 3
    bench.engine.tick()
    assert await answer(bench, "WriteBehind", "bump") == 4


async def test_on_evict_runs_for_each_of_many_that_leave_one_after_the_other(bench: Bench) -> None:
    calls = [bench.call("many", "bump", 0.001, kind="WriteBehind") for _ in range(50)]
    assert await bench.answered(*calls) == list(range(1, 51))


@pytest.mark.parametrize(
    ("use", "what"),
    [
        (lambda: App().kind("k", ttl=30), "ttl must be a timedelta, not 30"),  # type: ignore[call-overload]
        (lambda: App().kind("k", idle=60.0), "idle must be a timedelta"),  # type: ignore[call-overload]
        (lambda: App().kind("k", notify_attempts=True), "notify_attempts must be a whole number"),
        (lambda: App().kind("k", foo=1), "no option 'foo'; there are notify_attempts"),  # type: ignore[call-overload]
        (
            lambda: holdfast.connect("a:1").notify("K", "k", delay=5),  # type: ignore[call-overload]
            "a delay must be a timedelta, not 5",
        ),
        (lambda: check_every(5), "every must be a timedelta, or a cron expression"),  # type: ignore[arg-type]
    ],
)
def test_what_is_of_a_wrong_type_is_told_by_its_name(use: Any, what: str) -> None:
    with pytest.raises(TypeError) as told:
        use()
    assert what in str(told.value)


def test_an_alarm_that_would_come_after_all_years_comes_no_more() -> None:
    assert following(AlarmRecord(1_000, 1_000, b"\xc0", every=253_370_764_800_000), 1_000) is None
    for every in (timedelta.max, timedelta(days=3_000_000)):
        with pytest.raises(ValueError, match="is too long"):
            check_every(every)


async def test_until_and_times_wait_for_nodes_that_know_them(bench: Bench) -> None:
    bench.shards.features.on = frozenset()
    for arguments in ((3, None), (None, 50.0)):
        error = await answer(bench, "Long", "set_alarm_by", *arguments)
        assert error.code == pb.CODE_UNAVAILABLE
    await answer(bench, "Long", "set_alarm_by", None, None)
    bench.shards.features.on = frozenset(FEATURES)
    assert (
        "year 9999"
        in (
            await answer(
                bench, "Long", "set_alarm_by", None, timedelta(days=3_000_000).total_seconds()
            )
        ).message
    )


async def test_an_alarm_ends_after_its_times_or_at_its_time(bench: Bench) -> None:
    bench.set_clock()
    for times, until_s, fired in ((3, None, 3), (None, 45.0, 4), (2, 45.0, 2), (None, 10.0, 1)):
        await answer(bench, "Long", "set_alarm_by", times, until_s)
        assert (await answer(bench, "Long", "alarm"))[0] == times
        before = await answer(bench, "Long", "value")
        for _ in range(6):
            bench.clock.ms += 10_000
            await bench.tick(8)
            await asyncio.sleep(0.06)
            await bench.tick(2)
        assert await answer(bench, "Long", "value") == before + fired
        assert await answer(bench, "Long", "alarm") == []


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((0, None), "at least 1"),
        ((True, None), "a whole number"),
        (("3", None), "a whole number"),
        ((None, 5.0), "never fire"),
        ((3, None, None), "give `every`"),
        ((None, 50.0, None), "give `every`"),
    ],
)
async def test_limits_of_an_alarm_that_make_no_sense_are_refused(
    bench: Bench, arguments: tuple[Any, ...], what: str
) -> None:
    error = await answer(bench, "Long", "set_alarm_by", *arguments)
    assert what in error.message


def test_what_was_missed_counts_once_for_all_and_what_is_skipped_not_at_all() -> None:
    record = AlarmRecord(
        1_000,
        1_000,
        b"\xc0",
        every=1_000,
        options={"times": 2, "until": 9_000, "metadata": {"a": "b"}},
    )
    after = following(record, 5_500)
    assert after is not None
    assert (after.due_ms, after.options) == (
        6_000,
        {"times": 1, "until": 9_000, "metadata": {"a": "b"}},
    )
    skipped = following(record, 5_500, fired=False)
    assert skipped is not None
    assert skipped.options == record.options
    assert following(after, 6_000) is None, "that was the last one"
    assert following(record, 9_500) is None, "the next one would be too late"


def test_until_may_be_a_time_and_shows_as_one() -> None:
    from holdfast_node.effects.alarms import to_alarm

    record = AlarmRecord(1_000, 1_000, b"\xc0", every=1_000, options={"until": 9_000})
    assert to_alarm("a", record).until == datetime(1970, 1, 1, 0, 0, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl": timedelta(milliseconds=1)},
        {"ttl": timedelta(days=40_000)},
        {"idle": timedelta()},
        {"idle": timedelta(days=-1)},
    ],
)
def test_times_of_a_kind_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"ttl|idle"):
        App().kind("k", **wrong)


def test_keys_that_are_made_differ_and_are_fit_for_every_place() -> None:
    made = {holdfast.new_key() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(
        len(key) == 26 and key.isalnum() and key.isascii() and key == key.lower() for key in made
    )


# -- around handlers

surrounded = App()


@surrounded.around
async def outer(invocation: Invocation) -> Any:
    log.append(("outer", invocation.object.key, invocation.method, invocation.arguments))
    return await invocation.proceed()


@surrounded.kind
class Shop(DurableObject):
    def plain(self, n: int, m: int = 2) -> int:
        return n + m

    async def waits(self, n: int) -> int:
        await asyncio.sleep(0.001)
        return n

    @holdfast.reads
    def look(self) -> str:
        return self.caller

    async def write(self, refused: bool) -> None:
        self.storage.put("n", 1)
        self.set_alarm(timedelta(milliseconds=1))

    async def stored(self) -> list[str]:
        return list(self.storage.list())

    def on_alarm(self, alarm: Alarm) -> None:
        self.storage.put("alarm", 1)


@surrounded.around
async def inner(invocation: Invocation) -> Any:
    if invocation.arguments.get("n") == 13:
        raise Rejected("not that one")
    if invocation.arguments.get("n") == 14:
        return "instead"
    result = await invocation.proceed()
    if invocation.arguments.get("refused"):
        raise Rejected("after all")
    log.append(("inner", result))
    return result


async def test_functions_are_called_around_handlers_in_their_turn(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", surrounded)
    try:
        assert await answer(bench, "Shop", "plain", 1) == 3
        assert log == [("outer", "o", "plain", {"n": 1}), ("inner", 3)]
        assert await answer(bench, "Shop", "waits", 5) == 5
        assert (await answer(bench, "Shop", "plain", 13)).type == "Rejected"
        assert await answer(bench, "Shop", "plain", 14) == "instead"
        assert (await answer(bench, "Shop", "plain", "x")).path == "$.n", (
            "arguments are checked before anything runs"
        )
        assert (await bench.answered(bench.call("o", "look", kind="Shop", caller="me"))) == ["me"]
        assert (await answer(bench, "Shop", "write", True)).type == "Rejected"
        assert await answer(bench, "Shop", "stored") == [], "what it raises rolls the turn back"
        await answer(bench, "Shop", "write", False)
        log.clear()
        await asyncio.sleep(0.01)
        await bench.tick(3)
        [(who, key, method, arguments), after] = log
        assert (who, key, method, list(arguments), after) == (
            "outer",
            "o",
            "on_alarm",
            ["alarm"],
            ("inner", None),
        )
        assert await answer(bench, "Shop", "stored") == ["alarm", "n"]
    finally:
        await bench.close()


def test_only_an_async_function_of_one_argument_goes_around() -> None:
    def plain(invocation: Invocation) -> None: ...
    async def none() -> None: ...

    for wrong in (plain, none, 5):
        with pytest.raises(TypeError, match="async def"):
            App().around(wrong)  # type: ignore[type-var]
