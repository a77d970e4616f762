"""A data directory of format 1, as version 0.1 left it, becomes one of format 2."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from holdfast.errors import InvalidArgument
from holdfast.ids import id_prefix, idempotent_id
from holdfast.signature import Handler
from holdfast.v1 import objects_pb2 as pb
from holdfast_node.log.changes import decode_changes, is_term
from holdfast_node.log.shards import FOR_EVER, Shard
from holdfast_node.objects.responses import ResponseCache, identity_of, object_digest
from holdfast_node.process import conversion
from holdfast_node.replication.copies import CopyStore
from holdfast_node.store import keys
from holdfast_node.store.directory import DataDirectory, WrongDirectory
from holdfast_node.store.rocks import Store

from tests.unit.no_log import NO_LOG

SHARD = 5
TIMED = id_prefix(1_800_000_000_000) + bytes(10)
KEYED = idempotent_id("Order", "o-1", "pay")
ROW = keys.row_prefix(SHARD, "Order", "o-1") + b"row"
MARK = keys.mark_key(SHARD, "Order", "o-1", keys.ident("Sender", "s"))
SEQUENCE = keys.sequence(3, 9)


def pay(self: object, amount: int) -> int:
    return amount


PAY = Handler("pay", pay, "Order")


def kept(arguments: bytes, result: bytes) -> bytes:
    target = zlib.crc32(b"Order/o-1") ^ zlib.crc32(b"pay")
    return zlib.crc32(arguments, target).to_bytes(4, "big") + result


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "big")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Three entries, of which the state shows one: the empty first one, one that writes, and one
    with a mark and a kept reply."""
    store = Store(tmp_path / "data")
    batch = store.batch()
    shard = keys.shard_prefix(SHARD)
    keyed = shard + b"\xff" + number(7, 4) + KEYED
    entries = [
        b"",
        msgspec.msgpack.encode([[(ROW, b"\x01")], [(shard + TIMED, kept(b"a", b"r1"))]]),
        msgspec.msgpack.encode(
            [
                [(MARK, SEQUENCE + number(1_800_000_000_000)), (ROW, None)],
                [(keyed, kept(b"b", b"r2"))],
            ]
        ),
    ]
    for seq, data in enumerate(entries, 11):
        batch.put("log", keys.log_key(SHARD, seq), number(3) + data)
    batch.put("meta", keys.log_state_key(SHARD), number(3) + number(2) + number(10))
    batch.put("meta", keys.applied_key(SHARD), number(10))
    batch.put("meta", keys.FORMAT, b"1")
    batch.put("meta", keys.NODE_ID, b"n1-abc")
    batch.put("state", MARK, SEQUENCE + number(1_700_000_000_000))
    batch.put("replies", shard + TIMED, kept(b"a", b"r1"))
    batch.put("replies", keyed, kept(b"b", b"r2"))
    store.write(batch)
    yield store
    store.close()


def check(store: Store) -> None:
    copy = CopyStore(store).load()[SHARD]
    assert (copy.epoch, copy.base, copy.applied) == (3, (2, 10), 10)
    assert [entry.seq for entry in copy.entries] == [11, 12, 13]
    first, second, third = copy.entries
    assert is_term(first.data)
    assert decode_changes(second.data).rows == [(ROW, b"\x01")]
    assert decode_changes(third.data).rows == [(MARK, SEQUENCE + bytes(8)), (ROW, None)]
    assert store.get("state", MARK) == SEQUENCE + bytes(8)
    in_log = [*decode_changes(second.data).replies, *decode_changes(third.data).replies]
    assert sorted(in_log) == list(store.scan("replies", b"", None))
    responses, shard = ResponseCache(store, 600), Shard(SHARD, 4, NO_LOG)
    shard.until = FOR_EVER
    digest = object_digest("Order", "o-1")
    for request_id, arguments, result in ((TIMED, b"a", b"r1"), (KEYED, b"b", b"r2")):
        call = pb.Call(
            kind="Order",
            key="o-1",
            method="pay",
            request_id=request_id,
            arguments=arguments,
            attempt=1,
        )
        found = responses.find(shard, identity_of(digest, PAY, call), call)
        assert found is not None
        assert found.result == result
        call.arguments = b"other"
        with pytest.raises(InvalidArgument, match="was used for another call"):
            responses.find(shard, identity_of(digest, PAY, call), call)


def test_what_format_1_kept_is_there_in_format_2(store: Store) -> None:
    assert DataDirectory(store, conversion.convert).node_id(None) == "n1-abc"
    assert store.get("meta", keys.FORMAT) == b"2"
    check(store)


@pytest.mark.parametrize("step", ["_convert_replies", "_convert_marks", "_convert_logs"])
def test_a_conversion_that_was_cut_short_is_begun_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = getattr(conversion, step)

    def power_goes(store: Store) -> None:
        whole(store)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, step, power_goes)
        with pytest.raises(KeyboardInterrupt):
            DataDirectory(store, conversion.convert)
    assert store.get("meta", keys.FORMAT) == b"1"
    DataDirectory(store, conversion.convert)
    check(store)


def test_a_format_that_this_version_does_not_know_is_refused(store: Store) -> None:
    batch = store.batch()
    batch.put("meta", keys.FORMAT, b"3")
    store.write(batch)
    with pytest.raises(WrongDirectory, match="has format 3, this version reads format 2"):
        DataDirectory(store, conversion.convert)
