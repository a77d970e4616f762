"""The response cache: by the shard's time, whatever wall clocks say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast.errors import DeadlineExceeded, InvalidArgument
from holdfast.ids import id_prefix, idempotent_id
from holdfast.signature import Handler
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.boottime import boottime
from holdfast_node.log.changes import Forgotten
from holdfast_node.log.shards import FOR_EVER, LATE_S, Shard, Shards
from holdfast_node.log.staging import stage_forgotten
from holdfast_node.objects import responses as replies
from holdfast_node.objects.responses import ResponseCache, identity_of, object_digest
from holdfast_node.store.rocks import Store

from tests.unit.no_log import NO_LOG

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
NOW_MS = 1_800_000_000_000


def pay(self: object, amount: int) -> int:
    return amount


PAY = Handler("pay", pay, "Order")
OBJECT = object_digest("Order", "o-1")


class Cache:
    """The responses of one shard on a real store, with a wall clock that the test drives."""

    def __init__(self, store: Store, number: int = 3) -> None:
        self.store = store
        self.wall_ms = NOW_MS
        self.responses = ResponseCache(store, 600, lambda: self.wall_ms)
        self.shard = Shard(number, 1, NO_LOG)
        self.shard.until = FOR_EVER
        self.boot_s = 1000.0
        self.shard.tick(self.boot_s)

    def passes(self, ms: int, served: bool = True) -> None:
        """Time passes for the shard, in ticks of a second."""
        self.shard.until = FOR_EVER if served else 0.0
        for _ in range(ms // 1000):
            self.boot_s += 1.0
            self.shard.tick(self.boot_s)
        self.shard.until = FOR_EVER
        self.responses.tick()

    def keep(self, request_id: bytes, arguments: bytes = b"a", result: bytes = b"r") -> pb.Call:
        call = pb.Call(request_id=request_id, arguments=arguments, attempt=1)
        batch = self.store.batch()
        batch.put_all(
            "replies",
            [
                self.responses.row(
                    self.shard, identity_of(OBJECT, PAY, call), bytes(8), request_id, result
                )
            ],
        )
        self.store.write(batch)
        return call

    def find(self, call: pb.Call, before: bool = False) -> bytes | None:
        found = self.responses.find(self.shard, identity_of(OBJECT, PAY, call), call, before)
        return None if found is None else found.result

    def forget(self, late: bool = False) -> Forgotten | None:
        due = self.responses.due(self.shard)
        if due is not None:
            batch = self.store.batch()
            stage_forgotten(self.store, batch, self.shard.number, due, late)
            self.store.write(batch)
        return due

    def rows(self) -> int:
        return sum(1 for key, _ in self.store.scan("replies", b"", None) if key[2])


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    store = Store(tmp_path / "store")
    yield Cache(store)
    store.close()


def an_id(ms: int, n: int = 0) -> bytes:
    return id_prefix(ms) + n.to_bytes(10, "big")


@pytest.mark.parametrize("late", [False, True])
def test_a_week_of_load_does_not_grow_the_store(cache: Cache, late: bool) -> None:
    most = 0
    for step in range(24 * 12):  # of five minutes
        for i in range(10):
            cache.keep(an_id(cache.wall_ms + i, step))
        cache.wall_ms += 5 * MINUTE_MS
        cache.passes(5 * MINUTE_MS)
        cache.forget(late)
        if step % 30 == 0:
            most = max(most, cache.rows())
    assert most <= 10 * 4  # ten minutes of them, a bucket, and those that came since
    cache.passes(HOUR_MS)
    cache.forget(late)
    assert cache.rows() == 0
    assert cache.forget(late) is None  # an idle shard has nothing to say


def test_an_idempotency_key_is_remembered_for_a_day_and_no_week(cache: Cache) -> None:
    call = cache.keep(idempotent_id("Order", "o-1", "pay"))
    for _ in range(24):
        assert cache.find(call) == b"r"
        cache.passes(HOUR_MS)
        cache.forget()
    assert cache.find(call) == b"r"
    cache.passes(5 * HOUR_MS)
    cache.forget()
    assert cache.find(call) is None
    assert cache.rows() == 0


@pytest.mark.parametrize("request_id", [idempotent_id("Order", "o-1", "pay"), an_id(NOW_MS)])
def test_what_differs_from_the_first_request_is_refused(cache: Cache, request_id: bytes) -> None:
    cache.keep(request_id)
    with pytest.raises(InvalidArgument, match="was used for another call"):
        cache.find(pb.Call(request_id=request_id, arguments=b"b", attempt=1))
    with pytest.raises(InvalidArgument, match="was used for another call"):
        cache.find(pb.Call(request_id=request_id, arguments=b"a", codec=pb.CODEC_JSON, attempt=1))
    other = identity_of(
        object_digest("Order", "o-2"),
        PAY,
        call := pb.Call(request_id=request_id, arguments=b"a", attempt=1),
    )
    with pytest.raises(InvalidArgument, match="was used for another call"):
        cache.responses.find(cache.shard, other, call)


def test_identities_tell_apart_what_runs_together() -> None:
    """Kinds, keys, methods and arguments that have the same bytes one after the other are not the
    same request."""
    assert object_digest("Ab", "c") != object_digest("A", "bc")
    pays = Handler("pays", pay, "Order")
    call, more = pb.Call(arguments=b"x"), pb.Call(arguments=b"sx")
    assert (
        len(
            {
                identity_of(OBJECT, PAY, call),
                identity_of(OBJECT, pays, call),
                identity_of(OBJECT, PAY, more),
            }
        )
        == 3
    )
    assert len(identity_of(OBJECT, PAY, call)) == 16


def test_a_later_attempt_is_refused_only_when_its_reply_may_be_forgotten(cache: Cache) -> None:
    old = cache.keep(an_id(NOW_MS))
    cache.passes(13 * MINUTE_MS)
    assert cache.find(old) == b"r"  # its time is over, and it is still there
    cache.forget()
    with pytest.raises(
        DeadlineExceeded,
        match=r"has forgotten requests up to 2027-01-15T08:00:00Z.*clock is behind",
    ):
        cache.find(old)
    never_run = pb.Call(request_id=an_id(NOW_MS + 1), arguments=b"a", attempt=1)
    assert cache.find(never_run) is None  # nothing so new was forgotten, so it has not happened
    first = pb.Call(request_id=an_id(NOW_MS - 5), arguments=b"a")
    assert cache.find(first) is None


@pytest.mark.parametrize("off_ms", [-48 * HOUR_MS, -HOUR_MS, HOUR_MS, 48 * HOUR_MS])
def test_a_wall_clock_that_is_wrong_forgets_nothing_and_refuses_nothing(
    cache: Cache, off_ms: int
) -> None:
    cache.wall_ms += off_ms
    cache.responses.tick()
    call = cache.keep(an_id(NOW_MS))
    keyed = cache.keep(idempotent_id("Order", "o-1", "pay"))
    cache.passes(MINUTE_MS)
    cache.forget()
    assert cache.find(call) == b"r"
    assert cache.find(keyed) == b"r"
    cache.wall_ms -= 2 * off_ms
    cache.responses.tick()
    cache.passes(MINUTE_MS)
    cache.forget()
    assert cache.find(call) == b"r"
    assert cache.find(keyed) == b"r"
    assert cache.find(pb.Call(request_id=an_id(NOW_MS + 10), arguments=b"a", attempt=1)) is None


def test_time_in_which_nobody_serves_lengthens_memory(cache: Cache) -> None:
    call = cache.keep(an_id(NOW_MS))
    cache.passes(5 * HOUR_MS, served=False)
    cache.forget()
    assert cache.find(call) == b"r"
    before = cache.shard.time_ms
    cache.boot_s += 3600.0  # the process was stopped: nothing was served
    cache.shard.tick(cache.boot_s)
    assert cache.shard.time_ms - before <= 1000


def test_what_is_forgotten_never_comes_back(cache: Cache) -> None:
    """An older boundary, from a log that is applied again, takes nothing back."""
    call = cache.keep(an_id(NOW_MS))
    cache.passes(20 * MINUTE_MS)
    cache.forget()
    batch = cache.store.batch()
    stage_forgotten(cache.store, batch, cache.shard.number, Forgotten(0, 0, b""), False)
    cache.store.write(batch)
    with pytest.raises(DeadlineExceeded):
        cache.find(call)


def test_an_id_from_the_far_future_does_not_make_others_too_old(cache: Cache) -> None:
    cache.keep(an_id(NOW_MS + 48 * HOUR_MS))
    cache.keep(an_id(NOW_MS))
    cache.passes(20 * MINUTE_MS)
    due = cache.forget()
    assert due is not None
    assert due.newest == an_id(NOW_MS)


def test_a_late_first_attempt_finds_what_an_owner_before_kept_whatever_clocks_show(
    cache: Cache,
) -> None:
    cache.passes(900_000)
    cache.passes(int(LATE_S * 1000))
    far = [cache.keep(an_id(NOW_MS + off)) for off in (-86_400_000, 0, 86_400_000)]
    cache.shard = Shard(3, 2, NO_LOG, time_ms=cache.shard.time_ms)
    cache.wall_ms += 3_600_000
    cache.responses.tick()
    for call in far:
        assert cache.find(call, before=True) == b"r"
    cache.passes(600_000)
    later = cache.keep(an_id(NOW_MS, 2))
    assert cache.find(later, before=True) is None, "this owner's own"
    assert cache.find(later) == b"r"


def test_a_shard_that_somebody_had_before_is_looked_into_for_a_while() -> None:
    shards = Shards(8)
    new, old = Shard(1, 1, NO_LOG), Shard(2, 5, NO_LOG, time_ms=60_000)
    for shard in (new, old):
        shards.take(shard)
    assert new.lookup_all_until == 0.0
    assert LATE_S - 60 < old.lookup_all_until - boottime() <= LATE_S


def test_what_was_retried_here_is_remembered_and_when_that_is_too_much_everything_is_looked_up(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_RETRIED_MAX", 2)
    now = boottime()
    first, *others = [an_id(NOW_MS, n) for n in range(3)]
    cache.responses.note_retried(first)
    assert cache.responses.may_have_run(first, now)
    assert not cache.responses.may_have_run(others[0], now)
    for other in others:
        cache.responses.note_retried(other)
    assert cache.responses.may_have_run(first, now)
    assert cache.responses.may_have_run(an_id(NOW_MS, 9), now), "it may be one that was forgotten"
    assert not cache.responses.may_have_run(an_id(NOW_MS, 9), boottime() + LATE_S)
    assert cache.responses.may_have_run(others[0], boottime() + LATE_S)


def test_stamps_of_a_shard_grow_whatever_its_clock_does() -> None:
    class Back:
        started = True

        def __init__(self) -> None:
            self.ms = 5_000

        def now_ms(self) -> int:
            self.ms -= 100
            return self.ms

    shard = Shard(1, 2, NO_LOG, stamp=4_800 << 16)
    shard.clock = Back()  # type: ignore[assignment]
    stamps = [shard.next_stamp() for _ in range(5)]
    assert stamps == [4_900 << 16, *((4_900 << 16) + n for n in range(1, 5))]
