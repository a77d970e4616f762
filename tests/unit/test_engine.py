"""The engine with a store whose fsync waits: nothing that rests on a write leaves before it is on disk."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from cluster_app import app
from holdfast import codec
from holdfast.ids import RequestIds, keyed_id
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb
from holdfast_node import keys
from holdfast_node.commit import ENTRY_BYTES, Flusher
from holdfast_node.delivery.alarms import firing_id
from holdfast_node.delivery.letters import Letters
from holdfast_node.delivery.outbox import Failure, Note
from holdfast_node.delivery.records import Letter, Notification, decode_alarm, decode_notification, encode
from holdfast_node.engine import Engine, EngineLimits
from holdfast_node.replies import KeptReplies
from holdfast_node.shards import FOR_EVER, Shard, Shards
from holdfast_node.store import Store

IDS = RequestIds()


class Port:
    """Collects replies by the number of their call."""

    def __init__(self) -> None:
        self.replies: dict[int, Any] = {}

    def reply(self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None) -> None:
        assert number not in self.replies, "answered twice"
        self.replies[number] = error if error is not None else codec.decode(result)


class Bench:
    """An engine of one shard on a real store, whose fsyncs can be held back."""

    def __init__(self, path: Path) -> None:
        self.store = Store(path)
        self.may_sync = Event()
        self.may_sync.set()
        sync = self.store.sync

        def gated() -> None:
            self.may_sync.wait()
            sync()

        self.store.sync = gated  # type: ignore[method-assign]
        shards = Shards(lambda shards: None)
        self.shard = shard = Shard(0, 1)
        shard.until = FOR_EVER
        shards.take(shard)
        self.flusher = Flusher(self.store)
        kept = KeptReplies(self.store, 600)
        self.engine = Engine(app, self.store, self.flusher, 1, shards, kept, None, EngineLimits(), lambda entries: None)  # type: ignore[arg-type]
        self.port = Port()
        self.numbers = iter(range(1, 1000))

    def call(
        self, key: str, method: str, *arguments: Any, request_id: bytes | None = None, attempt: int = 0, kind: str = "Counter"
    ) -> int:
        number = next(self.numbers)
        self.engine.deliver(
            pb.Call(
                id=number,
                kind=kind,
                key=key,
                method=method,
                arguments=codec.encode(arguments),
                request_id=request_id or IDS.next(),
                attempt=attempt,
            ),
            self.port,
        )
        return number

    async def answered(self, *numbers: int) -> list[Any]:
        async with asyncio.timeout(5):
            while not all(number in self.port.replies for number in numbers):
                await asyncio.sleep(0.002)
        return [self.port.replies[number] for number in numbers]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "store")
    yield bench
    bench.may_sync.set()
    await bench.engine.close()
    await bench.flusher.close()
    bench.store.close()


async def test_no_reply_that_rests_on_a_write_leaves_before_its_fsync(bench: Bench) -> None:
    await bench.answered(bench.call("a", "increment"))
    bench.may_sync.clear()
    wrote = bench.call("a", "increment")
    read = bench.call("a", "value")
    failed = bench.call("a", "increment_then", "raise")
    elsewhere = bench.call("b", "value")
    assert await bench.answered(elsewhere) == [0]  # another object has nothing to wait for
    await asyncio.sleep(0.05)
    later = bench.call("a", "value")
    await asyncio.sleep(0.05)
    assert not {wrote, read, failed, later} & set(bench.port.replies)
    bench.may_sync.set()
    values = await bench.answered(wrote, read, failed, later)
    assert (values[0], values[1], values[3]) == (2, 2, 2)
    assert values[2].code == pb.CODE_APPLICATION


async def test_a_turn_that_ends_while_an_fsync_runs_waits_for_the_next_one(bench: Bench) -> None:
    bench.may_sync.clear()
    first = bench.call("a", "increment")
    await asyncio.sleep(0.02)  # its fsync is under way
    second = bench.call("b", "increment")
    syncs = bench.store.syncs
    bench.may_sync.set()
    await bench.answered(first, second)
    assert bench.store.syncs == syncs + 2


async def test_the_same_request_is_one_turn_however_often_it_comes(bench: Bench) -> None:
    request_id = IDS.next()
    bench.may_sync.clear()
    first = bench.call("a", "increment", request_id=request_id)
    again = bench.call("a", "increment", request_id=request_id, attempt=1)
    bench.may_sync.set()
    assert await bench.answered(first, again) == [1, 1]
    assert await bench.answered(bench.call("a", "increment", request_id=request_id, attempt=2)) == [1]
    assert await bench.answered(bench.call("a", "value")) == [1]


async def test_a_first_attempt_that_arrives_after_its_retry_was_run_is_not_run_again(bench: Bench) -> None:
    request_id = IDS.next()
    assert await bench.answered(bench.call("a", "increment", request_id=request_id, attempt=1)) == [1]
    assert await bench.answered(bench.call("a", "increment", request_id=request_id, attempt=0)) == [1]


async def test_nothing_of_the_engine_grows_with_calls_that_ended(bench: Bench) -> None:
    for i in range(50):
        await bench.answered(bench.call(f"k{i % 5}", "increment"), bench.call(f"k{i % 5}", "increment_then", "raise"))
    assert (bench.engine.in_flight, bench.engine.activations) == (0, 5)
    assert bench.engine.turns_failed == 50
    limit = EngineLimits().storage.cache_bytes
    assert 0 < bench.engine.cached_bytes < 5 * limit
    bench.engine.evict(1.0)
    assert (bench.engine.activations, bench.engine.cached_bytes) == (0, 0)


async def test_an_entry_that_is_full_is_closed_and_the_next_one_gathers(bench: Bench) -> None:
    shard = bench.shard
    first = bench.engine._committer.entry(shard)
    first.bytes = ENTRY_BYTES + 1
    second = bench.engine._committer.entry(shard)
    assert second is not first
    assert bench.engine._committer.entry(shard) is second
    await bench.flusher.drain()
    assert first.committed
    assert second.committed


async def test_a_read_behind_a_write_that_waits_is_refused_while_there_are_too_few_copies(bench: Bench) -> None:
    bench.may_sync.clear()
    wrote = bench.call("a", "increment")
    await asyncio.sleep(0.02)
    bench.shard.read_only = "1 copies are in sync, writes need 2"
    read, other, write = bench.call("a", "value"), bench.call("b", "value"), bench.call("b", "increment")
    refused, value, read_only = await bench.answered(read, other, write)
    assert (refused.code, value, read_only.code) == (pb.CODE_UNAVAILABLE, 0, pb.CODE_UNAVAILABLE)
    bench.shard.read_only = None
    bench.may_sync.set()
    assert await bench.answered(wrote) == [1]


async def test_what_cannot_be_stored_fails_the_turn_and_nothing_of_it_is_kept(bench: Bench) -> None:
    for kind, method in (("Receiver", "alarm_in_no_time_zone"), ("Plain", "notify_nobody")):
        (error,) = await bench.answered(bench.call("bad", method, kind=kind))
        assert error.type in ("ValueError", "UnicodeEncodeError"), error
    assert await bench.answered(bench.call("bad", "value", kind="Plain")) == [0]
    bench.flusher.write()
    assert list(bench.store.scan("state", b"", None)) == []
    assert bench.engine.deliveries.outbox.depth == 0


async def test_a_row_that_cannot_be_read_stops_its_shard_and_not_the_node(bench: Bench) -> None:
    batch = bench.store.batch()
    batch.put("state", keys.due_key(0, keys.ALARMS, 5, keys.ident("Receiver", "r") + b"x"), b"")
    batch.put("state", keys.alarm_prefix(0, "Receiver", "r") + b"x", b"no alarm")
    bench.store.write(batch)
    bench.engine.deliveries.tick()
    assert await bench.answered(bench.call("a", "increment")) == [1]


async def test_an_outbox_that_cannot_be_read_gets_nothing_more_and_stops_nothing_else(bench: Bench) -> None:
    batch = bench.store.batch()
    batch.put("state", keys.index_prefix(0, keys.OUTBOX) + keys.sequence(1, 1), b"no notification")
    bench.store.write(batch)
    bench.engine.deliveries.tick()
    for method in ("alarm", "alarm_at"):
        (error,) = await bench.answered(bench.call("r", method, 1_900_000_000, kind="Receiver"))
        assert error.type == "ValidationError" or error.type == "DecodeError", error
    assert await bench.answered(bench.call("a", "increment")) == [1]
    bench.flusher.write()
    assert not list(bench.store.scan("state", keys.alarm_prefix(0, "Receiver", "r"), keys.alarm_prefix(0, "Receiver", "s")))


async def test_an_alarm_set_again_for_the_same_time_is_another_one(bench: Bench) -> None:
    found = set()
    for _ in range(3):
        await bench.answered(bench.call("r", "alarm_at", 1_900_000_000, kind="Receiver"))
        bench.flusher.write()
        (raw,) = [value for _, value in bench.store.scan("state", keys.alarm_prefix(0, "Receiver", "r"), None)]
        found.add(firing_id("Receiver", "r", "default", decode_alarm(raw)))
    assert len(found) == 3


async def test_an_alarm_that_is_refused_elsewhere_backs_off_and_dies_like_any_other(bench: Bench) -> None:
    await bench.answered(bench.call("r", "alarm", 0, "busy", "overloaded", kind="Receiver"))
    deadline = asyncio.get_running_loop().time() + 10
    while not bench.engine.deliveries.letters and asyncio.get_running_loop().time() < deadline:
        bench.engine.deliveries.tick()
        await asyncio.sleep(0.02)
    assert bench.engine.deliveries.letters == 1
    assert bench.engine.deliveries.alarms.failed == 2


async def test_a_notification_that_comes_again_takes_effect_once_and_stays_what_it_is(bench: Bench) -> None:
    def told(number: int, epoch: int, count: int) -> pb.Call:
        sequence = keys.sequence(epoch, count)
        return pb.Call(
            id=number,
            kind="Receiver",
            key="r",
            method="take",
            arguments=codec.encode(("s", count)),
            request_id=keyed_id(sequence),
            notification=sequence + keys.ident("Sender", "s"),
        )

    call = told(500, 1, 7)
    bench.engine.deliver(call, bench.port)
    await bench.answered(500)
    for number, again in ((501, told(501, 1, 7)), (502, told(502, 1, 3))):  # the same, and an older one
        bench.engine.deliver(again, bench.port)
        await bench.answered(number)
        assert again.notification  # a node's own dispatcher may have to send this very object again
    bench.engine.evict(1.0)
    assert bench.engine.activations == 0
    bench.engine.deliver(told(503, 1, 7), bench.port)
    bench.engine.deliver(told(504, 2, 1), bench.port)
    await bench.answered(503, 504)
    assert await bench.answered(bench.call("r", "took", kind="Receiver")) == [[["s", 7], ["s", 1]]]


async def test_a_machine_that_slept_does_not_hold_its_backlog_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_node.delivery.deliveries.boottime", lambda: asyncio.get_running_loop().time() + 10_000)
    bench = Bench(tmp_path / "store")  # CLOCK_BOOTTIME is ahead of the loop's clock by as long as the machine slept
    assert bench.engine.deliveries.outbox.bucket.take(asyncio.get_running_loop().time())
    await bench.engine.close()
    await bench.flusher.close()
    bench.store.close()


def a_notification(size: int) -> Notification:
    return Notification("Sender", "s", "Receiver", "r", "take", b"x" * size, 1)


async def test_delayed_notifications_that_are_due_together_are_moved_in_pieces(bench: Bench) -> None:
    batch = bench.store.batch()
    for i in range(10):
        batch.put("state", keys.due_key(0, keys.DELAYED, 5, keys.sequence(1, i)), encode(a_notification(400_000)))
    bench.store.write(batch)
    deliveries = bench.engine.deliveries
    deliveries._router = Nowhere()
    moved = [0]
    for _ in range(20):
        deliveries.tick()
        await bench.flusher.drain()
        await asyncio.sleep(0.01)
        moved.append(sum(1 for _ in bench.store.scan("state", keys.index_prefix(0, keys.OUTBOX), keys.index_prefix(0, keys.DELAYED))))
        if deliveries.outbox.depth == 10:
            break
    assert deliveries.outbox.depth == 10
    assert deliveries.counts()["notifications_delayed"] == 0
    at_once = [later - earlier for earlier, later in itertools.pairwise(moved)]
    assert max(at_once) <= 3, at_once  # 1 MiB, and the one that passes it


class Nowhere:
    """A router that reaches nobody."""

    def reachable(self, kind: str, key: str) -> bool:
        return False

    def submit(self, call: pb.Call, origin: Any) -> None:
        raise AssertionError("nothing can be reached")


async def test_what_a_read_only_shard_owes_does_not_grow_with_the_attempts(bench: Bench) -> None:
    deliveries = bench.engine.deliveries
    deliveries._router = Nowhere()
    note = Note(bench.shard, deliveries.next_sequence(bench.shard), a_notification(1000))
    duties = deliveries._known(bench.shard)
    deliveries.outbox.add([note])
    bench.shard.read_only = "too few copies"
    now = 0.0
    for _ in range(50):
        while not deliveries.outbox.take(now, lambda target: True, lambda target: False):
            now += 1.0
        deliveries._answered(note, Failure("APPLICATION", "no", counts=True))
    assert len(duties.owed) == 1
    assert deliveries.letters == 0  # nothing dies that could not be written down
    bench.shard.read_only = None
    deliveries.tick()
    await bench.flusher.drain()
    ((_, raw),) = bench.store.scan("state", keys.index_prefix(0, keys.OUTBOX), keys.index_prefix(0, keys.DELAYED))
    assert decode_notification(raw).attempts == 50


async def test_a_page_of_dead_letters_ends_before_it_is_too_large_for_a_message(bench: Bench) -> None:
    batch = bench.store.batch()
    for i in range(300):
        letter = Letter(a_notification(30_000), 1, "APPLICATION", "no")
        batch.put("state", keys.index_prefix(0, keys.LETTERS) + keys.sequence(1, i), encode(letter))
    bench.store.write(batch)
    letters = Letters(bench.store, bench.engine._shards, bench.engine.deliveries)
    found: list[str] = []
    after = b""
    pages = 0
    while True:
        page = await letters.letters(admin_pb2.DeadLettersRequest(after=after))
        assert page.ByteSize() < 4 << 20
        found += [letter.id for letter in page.letters]
        pages += 1
        if not page.more:
            break
        after = page.letters[-1].place
    assert found == [f"0-1-{i}" for i in range(300)]
    assert pages > 1
