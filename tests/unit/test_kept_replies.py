"""Kept replies, with a clock that the test drives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from holdfast.errors import DeadlineExceeded, InvalidArgument
from holdfast.ids import id_prefix, idempotent_id
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.replies import KeptReplies, fingerprint
from holdfast_node.shards import Shard
from holdfast_node.store import Store

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


class Clock:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def keep(store: Store, kept: KeptReplies, shard: Shard, request_id: bytes, arguments: bytes = b"a", result: bytes = b"r") -> pb.Call:
    call = pb.Call(request_id=request_id, arguments=arguments, attempt=1)
    batch = store.batch()
    batch.put("replies", kept.key(shard, request_id), fingerprint(7, call) + result)
    store.write(batch)
    return call


def rows(store: Store) -> int:
    return sum(1 for _ in store.scan("replies", b"", None))


def test_a_week_of_load_does_not_grow_the_store(store: Store) -> None:
    clock = Clock()
    kept = KeptReplies(store, 600, clock)
    shards = [Shard(number, 1) for number in range(4)]
    most = 0
    for step in range(7 * 24 * 12):  # of five minutes
        for i in range(40):
            keep(store, kept, shards[i % 4], id_prefix(clock.ms + i) + step.to_bytes(10, "big"))
        clock.ms += 5 * MINUTE_MS
        kept.drop_old(range(4))
        if step % 300 == 0:
            most = max(most, rows(store))
    assert most <= 40 * 3  # ten minutes of them, and those that came since
    clock.ms += HOUR_MS
    kept.drop_old(range(4))
    assert rows(store) == 0


def test_an_idempotency_key_is_remembered_for_a_day_and_no_week(store: Store) -> None:
    clock = Clock()
    kept = KeptReplies(store, 600, clock)
    shard = Shard(3, 1)
    call = keep(store, kept, shard, idempotent_id("Order", "o-1", "pay"))
    for _ in range(24):
        assert kept.find(shard, 7, call) == b"r"
        clock.ms += HOUR_MS
        kept.drop_old([3])
    assert kept.find(shard, 7, call) == b"r"
    clock.ms += 2 * HOUR_MS
    kept.drop_old([3])
    assert kept.find(shard, 7, call) is None
    assert rows(store) == 0


def test_an_idempotency_key_that_was_used_for_something_else_is_refused(store: Store) -> None:
    kept = KeptReplies(store, 600, Clock())
    shard = Shard(3, 1)
    keep(store, kept, shard, idempotent_id("Order", "o-1", "pay"))
    other = pb.Call(request_id=idempotent_id("Order", "o-1", "pay"), arguments=b"b", attempt=1)
    with pytest.raises(InvalidArgument, match="idempotency_key was used for another call"):
        kept.find(shard, 7, other)


def test_a_retry_that_is_older_than_the_window_is_refused_and_one_from_the_future(store: Store) -> None:
    clock = Clock()
    kept = KeptReplies(store, 600, clock)
    shard = Shard(3, 1)
    old = keep(store, kept, shard, id_prefix(clock.ms) + bytes(10))
    clock.ms += 11 * MINUTE_MS
    with pytest.raises(DeadlineExceeded, match="whether it took effect is not known"):
        kept.find(shard, 7, old)
    with pytest.raises(InvalidArgument, match="ahead of this node's clock"):
        kept.find(shard, 7, pb.Call(request_id=id_prefix(clock.ms + 11 * MINUTE_MS) + bytes(10)))
