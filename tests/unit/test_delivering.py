"""Notifications, alarms and dead letters on an engine of one shard, with what the store or a user
does wrong."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from holdfast import App, DurableObject, codec
from holdfast.errors import WrongOwner
from holdfast.ids import dead_letter_id, effect_id
from holdfast.v1 import admin_pb2
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.admin.dead_letters import DeadLetterAdmin
from holdfast_node.effects.alarms import firing_id
from holdfast_node.effects.outbox import Failure, PendingNotification
from holdfast_node.effects.records import (
    AlarmRecord,
    DeadLetter,
    Notification,
    decode_alarm,
    decode_notification,
    encode,
)
from holdfast_node.store import keys

from tests.unit.engine_bench import Bench


async def test_what_cannot_be_stored_fails_the_turn_and_nothing_of_it_is_kept(bench: Bench) -> None:
    for kind, method in (("Receiver", "alarm_in_no_time_zone"), ("Plain", "notify_nobody")):
        (error,) = await bench.answered(bench.call("bad", method, kind=kind))
        assert error.type in ("ValueError", "UnicodeEncodeError"), error
    assert await bench.answered(bench.call("bad", "value", kind="Plain")) == [0]
    bench.flusher.write()
    assert list(bench.store.scan("state", b"", None)) == []
    assert bench.objects.outbox.depth == 0


async def test_a_row_that_cannot_be_read_stops_its_shard_and_not_the_node(bench: Bench) -> None:
    batch = bench.store.batch()
    batch.put("state", keys.due_key(0, keys.ALARMS, 5, keys.ident("Receiver", "r") + b"x"), b"")
    batch.put("state", keys.alarm_prefix(0, "Receiver", "r") + b"x", b"no alarm")
    bench.store.write(batch)
    bench.objects.services.tick()
    assert await bench.answered(bench.call("a", "increment")) == [1]


async def test_an_outbox_that_cannot_be_read_gets_nothing_more_and_stops_nothing_else(
    bench: Bench,
) -> None:
    batch = bench.store.batch()
    batch.put("state", keys.index_prefix(0, keys.OUTBOX) + keys.sequence(1, 1), b"no notification")
    bench.store.write(batch)
    bench.objects.services.tick()
    for delay in (0, 60_000):
        (error,) = await bench.answered(
            bench.call("s", "send", "r", 1, "take", delay, kind="Sender")
        )
        assert error.type == "ValidationError" or error.type == "DecodeError", error
    assert await bench.answered(bench.call("a", "increment")) == [1]
    await bench.answered(bench.call("r", "alarm_at", 1_900_000_000, kind="Receiver"))
    bench.flusher.write()
    (found,) = bench.store.scan(
        "state", keys.index_prefix(0, keys.OUTBOX), keys.index_prefix(0, keys.DELAYED)
    )
    assert found[1] == b"no notification"


async def test_an_alarm_set_again_for_the_same_time_is_another_one(bench: Bench) -> None:
    found = set()
    for _ in range(3):
        await bench.answered(bench.call("r", "alarm_at", 1_900_000_000, kind="Receiver"))
        bench.flusher.write()
        (raw,) = [
            value
            for _, value in bench.store.scan("state", keys.alarm_prefix(0, "Receiver", "r"), None)
        ]
        found.add(firing_id("Receiver", "r", "default", decode_alarm(raw)))
    assert len(found) == 3


async def test_an_alarm_that_is_refused_elsewhere_backs_off_and_dies_like_any_other(
    bench: Bench,
) -> None:
    await bench.answered(bench.call("r", "alarm", 0, "busy", "overloaded", kind="Receiver"))
    deadline = asyncio.get_running_loop().time() + 10
    while not bench.objects.dead_letters.count and asyncio.get_running_loop().time() < deadline:
        bench.objects.services.tick()
        await asyncio.sleep(0.02)
    assert bench.objects.dead_letters.count == 1
    assert bench.objects.alarms.failed == 2


async def test_a_notification_that_comes_again_takes_effect_once_and_stays_what_it_is(
    bench: Bench,
) -> None:
    def told(number: int, epoch: int, count: int) -> pb.Call:
        sequence = keys.sequence(epoch, count)
        return pb.Call(
            id=number,
            kind="Receiver",
            key="r",
            method="take",
            arguments=codec.encode(("s", count)),
            request_id=effect_id(sequence),
            notification=sequence + keys.ident("Sender", "s"),
        )

    call = told(500, 1, 7)
    bench.engine.deliver(call, bench.port)
    await bench.answered(500)
    # the same, and an older one
    for number, again in (
        (501, told(501, 1, 7)),
        (502, told(502, 1, 3)),
    ):
        bench.engine.deliver(again, bench.port)
        await bench.answered(number)
        assert again.notification  # a node's own dispatcher may have to send this very object again
    bench.engine.eviction.evict_share(1.0)
    assert len(bench.objects.activations) == 0
    bench.engine.deliver(told(503, 1, 7), bench.port)
    bench.engine.deliver(told(504, 2, 1), bench.port)
    await bench.answered(503, 504)
    assert await bench.answered(bench.call("r", "took", kind="Receiver")) == [[["s", 7], ["s", 1]]]


async def test_a_machine_that_slept_does_not_hold_its_backlog_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "holdfast_node.log.shard_service.boottime",
        lambda: asyncio.get_running_loop().time() + 10_000,
    )
    # CLOCK_BOOTTIME is ahead of the loop's clock by as long as the machine slept
    bench = Bench(tmp_path / "store")
    assert bench.objects.outbox.bucket.take(asyncio.get_running_loop().time())
    await bench.close()


def a_notification(size: int) -> Notification:
    return Notification("Sender", "s", "Receiver", "r", "take", b"x" * size, 1)


async def test_delayed_notifications_that_are_due_together_are_moved_in_pieces(
    bench: Bench,
) -> None:
    batch = bench.store.batch()
    for i in range(10):
        batch.put(
            "state",
            keys.due_key(0, keys.DELAYED, 5, keys.sequence(1, i)),
            encode(a_notification(400_000)),
        )
    bench.store.write(batch)
    objects = bench.objects
    objects.delivery._outgoing = Nowhere()
    moved = [0]
    for _ in range(20):
        objects.services.tick()
        await bench.flusher.drain()
        await asyncio.sleep(0.01)
        moved.append(
            sum(
                1
                for _ in bench.store.scan(
                    "state", keys.index_prefix(0, keys.OUTBOX), keys.index_prefix(0, keys.DELAYED)
                )
            )
        )
        if objects.outbox.depth == 10:
            break
    assert objects.outbox.depth == 10
    assert objects.counts()["notifications_delayed"] == 0
    at_once = [later - earlier for earlier, later in itertools.pairwise(moved)]
    assert max(at_once) <= 3, at_once  # 1 MiB, and the one that passes it


async def test_many_objects_are_asked_for_their_delayed_ones_by_one_scan_until_another_is_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = []
    scan = bench.store.scan

    def seen(family: str, start: bytes, end: bytes | None, reverse: bool = False) -> Any:
        if start == keys.index_prefix(0, keys.DELAYED):
            scans.append(keys.DELAYED)
        return scan(family, start, end, reverse)

    bench.objects.delays.opened(bench.shard)
    monkeypatch.setattr(bench.store, "scan", seen)

    async def delayed(*senders: str) -> list[int]:
        scans.clear()
        return [
            len(await bench.objects.delays.of(bench.shard, ("Sender", sender)))
            for sender in senders
        ]

    for sender in ("a", "b"):
        await bench.answered(bench.call(sender, "send", "r", 3, "take", 60_000, kind="Sender"))
    assert await delayed("x", "y", "z", "b", "x") == [0, 0, 0, 3, 0]
    assert scans == [keys.DELAYED] * 2  # the first, and that of who has some
    bench.may_sync.clear()
    number = bench.call("x", "send", "r", 1, "take", 60_000, kind="Sender")
    await asyncio.sleep(0.05)  # sent, and not committed
    await delayed("y")
    bench.may_sync.set()
    await bench.answered(number)
    assert await delayed("x", "y") == [1, 0]
    assert await delayed("y", "z") == [0, 0]
    assert scans == []


async def test_nothing_of_a_shard_comes_back_once_it_is_dropped(bench: Bench) -> None:
    batch = bench.store.batch()
    batch.put(
        "state", keys.index_prefix(0, keys.OUTBOX) + keys.sequence(1, 1), encode(a_notification(10))
    )
    bench.store.write(batch)
    bench.shard.owned = False
    bench.lose_shard()
    with pytest.raises(WrongOwner):  # as the end of a turn that is cancelled may ask
        bench.objects.delays.room(bench.shard)
    with pytest.raises(WrongOwner):
        bench.objects.notifications.opened(bench.shard)
    assert bench.objects.outbox.depth == 0
    bench.shard.owned = True


class Nowhere:
    """A dispatcher that reaches no node."""

    def reachable(self, kind: str, key: str) -> bool:
        return False

    def submit(self, call: pb.Call, origin: Any) -> int:
        raise AssertionError("nothing can be reached")

    def cancel(self, number: int, heir: Any) -> bool:
        return False


async def test_what_a_read_only_shard_owes_does_not_grow_with_the_attempts(bench: Bench) -> None:
    objects = bench.objects
    objects.delivery._outgoing = Nowhere()
    note = PendingNotification(
        bench.shard, objects.writes.next_sequence(bench.shard), a_notification(1000)
    )
    for service in (objects.dead_letters, objects.notifications):
        service.opened(bench.shard)
    objects.outbox.add([note])
    bench.shard.read_only = "too few copies"
    now = 0.0
    for _ in range(50):
        while not objects.outbox.take(now, lambda target: True, lambda target: False):
            now += 1.0
        objects.delivery._settle(note, Failure("APPLICATION", "no", counts=True))
    assert len(objects.writes._deferred[bench.shard]) == 1
    assert objects.dead_letters.count == 0  # nothing dies that could not be written down
    bench.shard.read_only = None
    objects.services.tick()
    await bench.flusher.drain()
    ((_, raw),) = bench.store.scan(
        "state", keys.index_prefix(0, keys.OUTBOX), keys.index_prefix(0, keys.DELAYED)
    )
    assert decode_notification(raw).attempts == 50


async def test_a_page_of_dead_letters_ends_before_it_is_too_large_for_a_message(
    bench: Bench,
) -> None:
    batch = bench.store.batch()
    for i in range(300):
        letter = DeadLetter(a_notification(30_000), 1, "APPLICATION", "no")
        batch.put(
            "state", keys.index_prefix(0, keys.DEAD_LETTERS) + keys.sequence(1, i), encode(letter)
        )
    bench.store.write(batch)
    objects = bench.objects
    letters = DeadLetterAdmin(
        bench.store,
        bench.shards,
        objects.writes,
        objects.dead_letters,
        objects.notifications,
        objects.alarms,
    )
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
    assert found == [dead_letter_id(bytes(2) + keys.sequence(1, i)) for i in range(300)]
    assert pages > 1


def store_alarm(
    bench: Bench, name: str, late_s: float, misfire: Any, every: int | None = None
) -> None:
    """An alarm of Receiver/r that was due so long ago."""
    due = time.time_ns() // 1_000_000 - int(late_s * 1000)
    batch = bench.store.batch()
    batch.put(
        "state", keys.due_key(0, keys.ALARMS, due, keys.ident("Receiver", "r") + name.encode()), b""
    )
    record = AlarmRecord(due, due, codec.encode(None), every, misfire=misfire)
    batch.put("state", keys.alarm_prefix(0, "Receiver", "r") + name.encode(), encode(record))
    bench.store.write(batch)


async def test_what_was_missed_fires_or_is_skipped_as_its_alarm_says(bench: Bench) -> None:
    store_alarm(bench, "skipped", 120, "skip")
    store_alarm(bench, "skipped and repeated", 120, "skip", every=3_600_000)
    store_alarm(bench, "only late", 30, "skip")
    store_alarm(bench, "made up for", 120, "once")
    for _ in range(20):
        bench.objects.services.tick()
        await asyncio.sleep(0.02)
    took = (await bench.answered(bench.call("r", "took", kind="Receiver")))[0]
    assert sorted(who for who, _ in took) == ["alarm made up for", "alarm only late"]
    assert (await bench.answered(bench.call("r", "alarms", kind="Receiver")))[0] == [
        "skipped and repeated"
    ]


async def test_an_alarm_by_a_cron_expression_is_set_to_when_that_comes_next(bench: Bench) -> None:
    await bench.answered(
        bench.call("r", "alarm_by_cron", "0 9 * * *", "Asia/Tokyo", kind="Receiver")
    )
    bench.flusher.write()
    ((_, raw),) = bench.store.scan(
        "state", keys.alarm_prefix(0, "Receiver", "r"), keys.alarm_prefix(0, "Receiver", "s")
    )
    due = datetime.fromtimestamp(decode_alarm(raw).due_ms / 1000, UTC)
    assert (due.hour, due.minute) == (0, 0)  # 9 o'clock in Tokyo
    assert timedelta() < due - datetime.now(UTC) <= timedelta(days=1)


@pytest.mark.parametrize(
    ("how", "error", "what"),
    [
        ("long name", "TOO_LARGE", "an alarm's name of 257 bytes"),
        ("large payload", "TOO_LARGE", "at most 65536"),
        ("too many", "TOO_LARGE", "has 1000 alarms"),
        ("no time zone", "ValueError", "has no time zone"),
        ("never", "ValueError", "needs `when`, `every`, or both"),
        ("year 9999", "ValueError", "would never fire"),
        ("misfire", "ValueError", "once, all or skip"),
        ("delay", "ValueError", "366 days at most"),
        ("notify key", "INVALID_ARGUMENT", "1 to 1024 bytes"),
        ("arguments", "TOO_LARGE", "at most 4194304"),
    ],
)
async def test_every_limit_of_alarms_and_notifications_is_told(
    bench: Bench, how: str, error: str, what: str
) -> None:
    (told,) = await bench.answered(bench.call("r", "beyond_a_limit", how, kind="Receiver"))
    assert error in (told.type, pb.Code.Name(told.code).removeprefix("CODE_")), told
    assert what in told.message
    bench.flusher.write()
    assert list(bench.store.scan("state", b"", None)) == []


def test_the_limits_of_a_kind_are_checked_when_it_is_registered() -> None:
    app = App()
    for wrong in (
        {"notify_attempts": 0},
        {"alarm_attempts": 0},
        {"notify_age": timedelta(days=4)},
        {"notify_age": timedelta()},
    ):
        with pytest.raises(ValueError, match=r"at least 1|at most"):
            app.kind("k", **wrong)
    with pytest.raises(TypeError):
        app.kind("k", notify_atempts=3)  # type: ignore[call-overload]

    @app.kind("k", notify_attempts=3, notify_age=timedelta(hours=1), alarm_attempts=2)
    class K(DurableObject):
        pass

    retries = app.get("k").options
    assert (retries.notify_attempts, retries.notify_age, retries.alarm_attempts) == (
        3,
        timedelta(hours=1),
        2,
    )
