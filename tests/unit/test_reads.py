"""What waits for no turn: reads beside a running one, and calls that clients store to be
run later."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import holdfast
import pydantic
import pytest
from holdfast import Alarm, App, DurableObject, Rejected
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.effects.outbox import OutboxLimits
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.store import keys

from tests.unit.engine_bench import IDS, Bench, Port

app = App()


class Broken(pydantic.BaseModel):
    x: int

    @pydantic.field_serializer("x")
    def _break(self, x: int) -> int:
        raise ValueError("not this one")


class Exits(pydantic.BaseModel):
    x: int

    @pydantic.field_validator("x")
    @classmethod
    def _exit(cls, x: int) -> int:
        raise SystemExit(3)


@app.kind(notify_attempts=3)
class Board(DurableObject):
    def __init__(self) -> None:
        self.seen = 0

    def on_activate(self) -> None:
        self.seen = 100

    async def add(self, what: str, wait: bool = False) -> int:
        self.seen += 1
        n = self.storage.get("n", int, default=0) + 1
        self.storage.put("n", n)
        self.storage.put(f"line {n:03}", what)
        if wait:
            await asyncio.sleep(1000)
        return n

    async def clear(self) -> None:
        self.storage.delete_all()

    async def stick(self) -> None:
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

    async def fail(self, what: str) -> None:
        self.storage.put("failed", what)
        raise ValueError(what)

    async def refuse(self) -> None:
        raise Rejected("no")

    async def told(self) -> list[Any]:
        return [self.caller, dict(self.request.metadata)]

    async def add_slowly(self, seconds: float) -> int:
        n = self.storage.get("n", int, default=0) + 1
        self.storage.put("n", n)
        await asyncio.sleep(seconds)
        return n

    async def take_broken(self, model: Broken) -> None: ...

    async def take_exit(self, model: Exits) -> None: ...

    async def take_floats(self, numbers: list[float]) -> None: ...

    async def note_told(self) -> None:
        self.storage.put("told", [self.caller, dict(self.request.metadata)])

    async def pass_on(self, other: str) -> None:
        self.notify(Board, other).note_told()
        self.set_alarm(timedelta(seconds=1))

    async def on_alarm(self, alarm: Alarm) -> None:
        self.storage.put("alarm", dict(self.request.metadata))

    @holdfast.reads
    def lines(self) -> dict[str, Any]:
        return self.storage.list()

    @holdfast.reads
    async def look(self, wait: float = 0.0) -> list[Any]:
        before = self.storage.get("n", int, default=0)
        await asyncio.sleep(wait)
        return [before, self.storage.get("n", int, default=0), "n" in self.storage, self.seen]

    @holdfast.reads
    async def stuck(self) -> None:
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                pass

    @holdfast.reads
    async def about(self) -> list[Any]:
        return [
            self.kind,
            self.key,
            self.epoch,
            self.request.metadata.get("tag"),
            [alarm.name for alarm in self.list_alarms()],
        ]

    @holdfast.reads
    async def ask(self, other: str) -> Any:
        return await self.objects.get(Board, other).add("asked by a read")

    @holdfast.reads
    async def ask_around(self, other: str) -> Any:
        """A call that comes back to the object, whose turns it does not hold up."""
        return await self.objects.get("Board", other).ask_back(self.key)

    async def ask_back(self, first: str) -> Any:
        return await self.objects.get(Board, first).add("asked back")

    @holdfast.reads
    async def write(self, how: str) -> None:
        match how:
            case "put":
                self.storage.put("n", 1)
            case "put_many":
                self.storage.put_many({"n": 1})
            case "put with a ttl":
                self.storage.put("n", 1, ttl=timedelta(days=1))
            case "delete":
                self.storage.delete("n")
            case "delete_all":
                self.storage.delete_all()
            case "transaction":
                with self.storage.transaction():
                    pass
            case "notify":
                self.notify(Board, "other").note_told()
            case "set_alarm":
                self.set_alarm(timedelta(days=1))
            case "delete_alarm":
                self.delete_alarm()
            case "deactivate":
                self.deactivate()

    @holdfast.reads
    async def leak(self) -> int:
        kept.append(self)
        return 0


kept: list[Board] = []


@pytest.fixture
def bench_app() -> App:
    return app


def call(bench: Bench, key: str, method: str, *arguments: Any, **options: Any) -> int:
    return bench.call(key, method, *arguments, kind="Board", **options)


async def test_a_read_does_not_wait_for_a_running_turn_and_does_not_see_it(bench: Bench) -> None:
    await bench.answered(call(bench, "a", "add", "one"))
    request_id = IDS.next()
    running = call(bench, "a", "add", "two", True, request_id=request_id)
    behind = call(bench, "a", "add", "three")
    assert await bench.answered(call(bench, "a", "lines")) == [{"line 001": "one", "n": 1}]
    bench.engine.cancel(request_id, bench.port, running)
    assert (await bench.answered(behind))[0] == 2
    assert await bench.answered(call(bench, "a", "lines")) == [
        {"line 001": "one", "line 002": "three", "n": 2}
    ]


async def test_a_read_tells_nothing_that_is_not_committed(bench: Bench) -> None:
    bench.may_sync.clear()
    wrote = call(bench, "a", "add", "one")
    read = call(bench, "a", "look")
    other = call(bench, "b", "look")
    assert (await bench.answered(other))[0][0] == 0
    await asyncio.sleep(0.05)
    assert read not in bench.port.replies
    assert wrote not in bench.port.replies
    bench.may_sync.set()
    assert (await bench.answered(wrote, read))[1][0] == 1


async def test_what_was_acknowledged_is_read(bench: Bench) -> None:
    """Also before the store shows it."""
    for n in range(1, 50):
        await bench.answered(call(bench, "a", "add", "x"))
        assert (await bench.answered(call(bench, "a", "look")))[0][0] == n
    await bench.answered(call(bench, "a", "clear"))
    assert await bench.answered(call(bench, "a", "lines")) == [{}]


async def test_a_read_runs_on_an_instance_of_its_own(bench: Bench) -> None:
    await bench.answered(call(bench, "a", "add", "one"))
    assert bench.engine.find("Board", "a").instance.seen == 101  # type: ignore[union-attr]
    assert (await bench.answered(call(bench, "a", "look")))[0][3] == 0
    [about] = await bench.answered(call(bench, "a", "about", metadata={"tag": "x"}))
    assert about == ["Board", "a", 1, "x", []]


async def test_a_read_that_waits_sees_what_turns_store_meanwhile_and_holds_none_of_them_up(
    bench: Bench,
) -> None:
    read = call(bench, "a", "look", 0.1)
    assert await bench.answered(call(bench, "a", "add", "one")) == [1]
    assert read not in bench.port.replies
    assert not bench.engine.find("Board", "a").at_rest()  # type: ignore[union-attr]
    assert (await bench.answered(read))[0] == [0, 1, True, 0]


@pytest.mark.parametrize(
    "how",
    [
        "put",
        "put_many",
        "put with a ttl",
        "delete",
        "delete_all",
        "transaction",
        "notify",
        "set_alarm",
        "delete_alarm",
        "deactivate",
    ],
)
async def test_a_read_cannot_write(bench: Bench, how: str) -> None:
    await bench.answered(call(bench, "a", "add", "one"))
    entries = bench.objects.writes._committer.entries
    [error] = await bench.answered(call(bench, "a", "write", how))
    assert (error.code, error.type) == (pb.CODE_APPLICATION, "RuntimeError")
    assert "@holdfast.reads" in error.message
    assert bench.objects.writes._committer.entries == entries


async def test_after_its_end_a_read_sees_nothing(bench: Bench) -> None:
    await bench.answered(call(bench, "a", "leak"))
    leaked = kept.pop()
    for use in (
        lambda: leaked.storage.get("n"),
        leaked.storage.list,
        lambda: leaked.request,
        leaked.list_alarms,
    ):
        with pytest.raises(RuntimeError, match="only"):
            use()


async def test_a_read_calls_others_and_even_its_own_object(bench: Bench) -> None:
    assert await bench.answered(call(bench, "a", "ask", "b")) == [1]
    running = call(bench, "a", "ask", "a")
    assert await bench.answered(running) == [1]
    assert await bench.answered(call(bench, "a", "ask_around", "c")) == [2]


async def test_a_read_is_cancelled_like_a_turn_and_at_its_deadline(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast_node.objects.cancellation._ABANDON_S", 0.05)
    request_id = IDS.next()
    read = call(bench, "a", "look", 100.0, request_id=request_id)
    bench.engine.cancel(request_id, bench.port, read)
    assert (await bench.answered(read))[0].code == pb.CODE_ABORTED
    late, stuck = (
        call(bench, "a", "look", 100.0, timeout_ms=50),
        call(bench, "a", "stuck", timeout_ms=50),
    )
    for error in await bench.answered(late, stuck):
        assert error.code == pb.CODE_DEADLINE_EXCEEDED
    assert bench.engine.find("Board", "a").at_rest()  # type: ignore[union-attr]
    assert bench.engine.in_flight == 0


async def test_a_read_of_an_object_that_was_abandoned_is_made_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast_node.objects.cancellation._ABANDON_S", 0.05)
    read = call(bench, "a", "look", 100.0)
    stuck = call(bench, "a", "stick", timeout_ms=50)
    [gone, error] = await bench.answered(stuck, read)
    assert (gone.code, error.code) == (pb.CODE_DEADLINE_EXCEEDED, pb.CODE_WRONG_OWNER)


async def test_reads_end_with_their_shard(bench: Bench) -> None:
    read = call(bench, "a", "look", 100.0)
    assert not bench.engine.shard_turns.are_over(bench.shard)
    bench.shard.owned = False
    bench.lose_shard()
    assert (await bench.answered(read))[0].code == pb.CODE_WRONG_OWNER


async def test_reads_are_bounded_with_the_calls_of_the_node(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "few", app, EngineLimits(in_flight_max=2))
    reads = [call(bench, "a", "look", 0.2) for _ in range(3)]
    answers = await bench.answered(*reads)
    assert [getattr(answer, "code", 0) for answer in answers] == [0, 0, pb.CODE_OVERLOADED]
    await bench.close()


async def test_an_id_of_the_callers_own_does_nothing_for_a_read(bench: Bench) -> None:
    request_id = IDS.next()
    for n in range(2):
        read = call(bench, "a", "look", request_id=request_id, attempt=1, keep_reply=True)
        assert (await bench.answered(read))[0][0] == n
        await bench.answered(call(bench, "a", "add", "x"))


# -- calls that are stored


async def delivered(bench: Bench, key: str) -> dict[str, Any]:
    await bench.tick(20)
    (lines,) = await bench.answered(call(bench, key, "lines"))
    return lines  # type: ignore[no-any-return]


async def test_a_call_that_is_sent_is_answered_when_it_is_stored_and_runs_later(
    bench: Bench,
) -> None:
    request_id = IDS.next()
    running = call(bench, "a", "add", "slow", True, request_id=request_id)
    bench.may_sync.clear()
    sent = call(bench, "a", "add", "sent", send=True)
    await asyncio.sleep(0.05)
    assert sent not in bench.port.replies, "it was accepted before it was on disk"
    bench.may_sync.set()
    assert await bench.answered(sent) == [None]  # though a turn runs, and waits
    bench.engine.cancel(request_id, bench.port, running)
    assert (await delivered(bench, "a"))["line 001"] == "sent"
    assert bench.objects.outbox.depth == 0


async def test_what_one_caller_sends_comes_in_its_order_and_once(bench: Bench) -> None:
    request_id = IDS.next()
    for n in range(20):
        await bench.answered(call(bench, "a", "add", str(n), send=True, caller="shop"))
    for attempt in (0, 1, 2):
        sent = call(
            bench,
            "a",
            "add",
            "once",
            send=True,
            caller="shop",
            request_id=request_id,
            attempt=attempt,
        )
        assert await bench.answered(sent) == [None]
    bench.outgoing.lose = 7
    lines = await delivered(bench, "a")
    while bench.objects.outbox.depth:
        lines = await delivered(bench, "a")
    assert [lines[f"line {n:03}"] for n in range(1, 22)] == [*map(str, range(20)), "once"]
    assert lines["n"] == 21
    [other] = await bench.answered(
        call(bench, "a", "add", "else", send=True, request_id=request_id, attempt=1)
    )
    assert other.code == pb.CODE_INVALID_ARGUMENT
    [ran] = await bench.answered(call(bench, "a", "add", "once", request_id=request_id, attempt=1))
    assert ran.code == pb.CODE_INVALID_ARGUMENT, (
        "a call under the id of one that was sent is another call"
    )


async def test_a_delayed_one_waits_for_its_time(bench: Bench) -> None:
    bench.set_clock()
    await bench.answered(call(bench, "a", "add", "later", send=True, delay_ms=60_000))
    assert await delivered(bench, "a") == {}
    bench.clock.ms += 61_000
    assert (await delivered(bench, "a"))["n"] == 1


async def test_who_sent_it_and_its_metadata_arrive_and_are_carried_on(bench: Bench) -> None:
    bench.set_clock()
    metadata = {"tenant": "x", "traceparent": "not this"}
    await bench.answered(call(bench, "a", "note_told", send=True, caller="shop", metadata=metadata))
    assert (await delivered(bench, "a"))["told"] == ["shop", {"tenant": "x"}]
    await bench.answered(
        call(bench, "a", "pass_on", "b", send=True, caller="shop", metadata=metadata)
    )
    await bench.tick(20)
    assert (await delivered(bench, "b"))["told"] == ["object:Board/a", {"tenant": "x"}]
    bench.clock.ms += 2_000
    assert (await delivered(bench, "a"))["alarm"] == {"tenant": "x"}


@pytest.mark.parametrize("codec_", [pb.CODEC_MSGPACK, pb.CODEC_JSON])
async def test_arguments_are_checked_before_they_are_stored_and_travel_in_any_codec(
    bench: Bench, codec_: pb.Codec
) -> None:
    [wrong] = await bench.answered(call(bench, "a", "add", 7, send=True, codec_=codec_))
    assert (wrong.code, wrong.path, wrong.definite) == (pb.CODE_INVALID_ARGUMENT, "$.what", True)
    [unknown] = await bench.answered(call(bench, "a", "nonsense", send=True, codec_=codec_))
    assert unknown.code == pb.CODE_NOT_FOUND
    assert await bench.answered(call(bench, "a", "add", "ä", send=True, codec_=codec_)) == [None]
    assert (await delivered(bench, "a"))["line 001"] == "ä"


async def test_one_that_fails_is_a_dead_letter_and_those_behind_it_come(bench: Bench) -> None:
    await bench.answered(
        call(bench, "a", "fail", "x", send=True),
        call(bench, "a", "refuse", send=True),
        call(bench, "a", "add", "y", send=True),
    )
    async with asyncio.timeout(5):
        while (await delivered(bench, "a")).get("n") != 1:
            pass
    assert bench.objects.dead_letters.count == 2
    assert "failed" not in await delivered(bench, "a")


async def test_a_read_can_be_told_nothing(bench: Bench) -> None:
    for fields in ({"send": True}, {"notification": bytes(16) + b"x"}):
        [error] = await bench.answered(call(bench, "a", "look", **fields))
        assert (error.code, error.path) == (pb.CODE_INVALID_ARGUMENT, "method")
    with pytest.raises(TypeError, match="only reads"):
        holdfast.connect("127.0.0.1:1").notify(Board, "a").look()  # type: ignore[unused-coroutine]


async def test_limits_of_what_is_sent(tmp_path: Path) -> None:
    limits = EngineLimits(outbox=OutboxLimits(object_max=3, shard_delayed_max=1))
    bench = Bench(tmp_path / "few", app, limits)
    bench.outgoing.reachable = lambda kind, key: False  # type: ignore[method-assign]
    calls = [call(bench, "a", "add", "x", send=True) for _ in range(3)]
    assert await bench.answered(*calls) == [None] * 3
    delayed = [call(bench, "a", "add", "x", send=True, delay_ms=10_000) for _ in range(2)]
    [accepted, full] = await bench.answered(*delayed)
    assert (accepted, full.code) == (None, pb.CODE_OVERLOADED)
    [full, far] = await bench.answered(
        call(bench, "a", "add", "x", send=True),
        call(bench, "a", "add", "x", send=True, delay_ms=400 * 86_400_000),
    )
    assert (full.code, full.definite, far.path) == (pb.CODE_OVERLOADED, True, "delay_ms")
    bench.shard.read_only = "too few copies"
    [refused] = await bench.answered(call(bench, "b", "add", "x", send=True))
    assert refused.code == pb.CODE_UNAVAILABLE
    await bench.close()


async def test_the_same_id_in_flight_for_a_call_and_one_that_is_sent_are_two(bench: Bench) -> None:
    request_id = IDS.next()
    bench.may_sync.clear()
    first = call(bench, "a", "add", "x", request_id=request_id)
    bench.port, port = Port(), bench.port
    again = call(bench, "a", "add", "x", send=True, request_id=request_id, attempt=1)
    assert (await bench.answered(again))[0].code == pb.CODE_INVALID_ARGUMENT
    bench.may_sync.set()
    bench.port = port
    assert await bench.answered(first) == [1]


# -- what a reviewer found


async def test_a_read_that_calls_others_does_not_starve_beside_a_writer(bench: Bench) -> None:
    sync = bench.store.sync

    def slow() -> None:
        time.sleep(0.005)
        sync()

    bench.store.sync = slow  # type: ignore[method-assign]
    stop = False

    async def write() -> None:
        while not stop:
            call(bench, "busy", "add", "x")
            await asyncio.sleep(0.002)

    writing = asyncio.create_task(write())
    await asyncio.sleep(0.02)
    assert await bench.answered(call(bench, "busy", "ask", "other", timeout_ms=3_000)) == [1]
    stop = True
    await writing


async def test_what_cannot_be_read_of_a_shard_is_an_error_of_a_send_and_leaves_nothing_behind(
    bench: Bench,
) -> None:
    batch = bench.store.batch()
    batch.put("state", keys.index_prefix(0, keys.OUTBOX) + bytes(16), b"\xc1 no record")
    bench.store.write(batch)
    [error] = await bench.answered(call(bench, "a", "add", "x", send=True))
    assert error.code in (pb.CODE_APPLICATION, pb.CODE_INTERNAL)
    assert bench.engine.in_flight == 0
    assert bench.engine.shard_turns.are_over(bench.shard)


async def test_json_that_grows_too_large_as_msgpack_is_refused_at_once(bench: Bench) -> None:
    numbers = list(range(10, 1_200_000))
    [error] = await bench.answered(
        call(bench, "a", "take_floats", numbers, send=True, codec_=pb.CODEC_JSON)
    )
    assert (error.code, error.definite) == (pb.CODE_TOO_LARGE, True)
    assert bench.objects.writes._committer.entries == 0


async def test_too_much_metadata_is_not_carried_along_and_what_is_counts(bench: Bench) -> None:
    [error] = await bench.answered(
        call(bench, "a", "add", "x", send=True, metadata={"a": "x" * 17_000})
    )
    assert error.code == pb.CODE_TOO_LARGE
    bench.outgoing.reachable = lambda kind, key: False  # type: ignore[method-assign]
    await bench.answered(call(bench, "a", "add", "x", send=True, metadata={"a": "x" * 10_000}))
    assert bench.objects.outbox.bytes > 10_000


async def test_an_older_gateway_cannot_have_a_call_stored_that_older_nodes_do_not_know(
    bench: Bench,
) -> None:
    bench.shards.features.on = frozenset()
    [error] = await bench.answered(call(bench, "a", "add", "x", send=True))
    assert (error.code, error.definite) == (pb.CODE_UNAVAILABLE, True)


async def test_what_waits_is_bounded_however_much_comes_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "few", app, EngineLimits(outbox=OutboxLimits(object_max=5)))
    bench.outgoing.reachable = lambda kind, key: False  # type: ignore[method-assign]
    bench.may_sync.clear()
    calls = [call(bench, "a", "add", "x", send=True) for _ in range(20)]
    bench.may_sync.set()
    answers = await bench.answered(*calls)
    assert [getattr(answer, "code", 0) for answer in answers] == [0] * 5 + [pb.CODE_OVERLOADED] * 15
    outbox = bench.objects.outbox
    assert (outbox.depth, len(outbox.from_clients(bench.shard, ("Board", "a")))) == (5, 5)
    bench.shard.owned = False
    bench.lose_shard()
    assert (outbox.depth, outbox.bytes) == (0, 0)
    await bench.close()


async def test_arguments_that_break_when_they_are_read_break_nothing_else(bench: Bench) -> None:
    slow = call(bench, "a", "add_slowly", 0.1)
    for method, codec_ in (
        ("take_broken", pb.CODEC_JSON),
        ("take_exit", pb.CODEC_MSGPACK),
        ("take_exit", pb.CODEC_JSON),
    ):
        [error] = await bench.answered(
            call(bench, "a", method, {"x": 13}, send=True, codec_=codec_)
        )
        assert error.code in (pb.CODE_APPLICATION, pb.CODE_INVALID_ARGUMENT)
    assert await bench.answered(slow) == [1]
    assert (await bench.answered(call(bench, "a", "take_exit", {"x": 13})))[
        0
    ].code == pb.CODE_APPLICATION
    assert await bench.answered(call(bench, "a", "add", "after")) == [2]
    assert bench.engine.in_flight == 0


async def test_reads_end_at_once_when_their_shard_is_to_go_and_operators_end_them(
    bench: Bench,
) -> None:
    stuck, asleep = call(bench, "a", "stuck"), call(bench, "a", "look", 100.0)
    bench.engine.shard_turns.close(bench.shard)
    bench.engine.shard_turns.cancel(bench.shard)
    assert bench.engine.shard_turns.are_over(bench.shard)
    assert [error.code for error in await bench.answered(stuck, asleep)] == [
        pb.CODE_WRONG_OWNER
    ] * 2
    bench.engine.shard_turns.open(bench.shard)
    read = call(bench, "a", "look", 100.0)
    assert bench.engine.cancellation.abort("Board", "a") is not None
    [error] = await bench.answered(read)
    assert error.code == pb.CODE_ABORTED
    assert bench.engine.cancellation.abort("Board", "a") is None


async def test_reads_of_one_object_are_bounded(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "few", app, EngineLimits(mailbox_max=3))
    reads = [call(bench, "a", "look", 0.1) for _ in range(5)]
    other = call(bench, "b", "look")
    answers = await bench.answered(*reads, other)
    assert [getattr(answer, "code", 0) for answer in answers] == [
        0,
        0,
        0,
        pb.CODE_OVERLOADED,
        pb.CODE_OVERLOADED,
        0,
    ]
    await bench.close()
