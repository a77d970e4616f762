"""What version N does with what N+1 adds: it ignores it, on streams, in etcd and in the store."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Member,
    Pause,
    ShardLoads,
    decode,
    encode,
)
from holdfast_cluster.streams.tcp import PROTOCOL, Hello, _decode_hello
from holdfast_node.effects.records import (
    AlarmRecord,
    DeadLetter,
    Notification,
    decode_alarm,
    decode_dead_letter,
    decode_notification,
)
from holdfast_node.effects.records import encode as encode_record
from holdfast_node.replication.core.events import (
    Acknowledge,
    Drop,
    Fenced,
    LogEntry,
    MayDrop,
    Mismatch,
    Position,
    Replicate,
)
from holdfast_node.replication.links import pack, unpack

NOTE = Notification("S", "s", "K", "k", "m", b"\x90", 1)
ALARM = AlarmRecord(1, 1, b"p")


def longer(raw: bytes) -> bytes:
    """A msgpack array with two fields more at its end."""
    return msgspec.msgpack.encode([*msgspec.msgpack.decode(raw), "new", {"and": 1}])


def shorter(raw: bytes, fields: int) -> bytes:
    """As an earlier version wrote it, which had only the first fields."""
    return msgspec.msgpack.encode(msgspec.msgpack.decode(raw)[:fields])


@pytest.mark.parametrize(
    "message",
    [
        Replicate(3, Position(2, 9), (LogEntry(3, 10, b"data"),), 9, 1.5),
        Acknowledge(3, 10, 1.5),
        Mismatch(3, 10, 1.5),
        Fenced(4),
        MayDrop(4),
        Drop(4),
    ],
)
def test_replication_messages_with_more_fields_are_read(message: Any) -> None:
    [[shard, fields]] = msgspec.msgpack.decode(pack([(7, message)]))
    assert unpack(msgspec.msgpack.encode([[shard, [*fields, "new", 1]]])) == [(7, message)]


def test_a_hello_with_more_fields_is_read() -> None:
    hello = Hello(PROTOCOL, "pipe", "n:1", "m:2")
    assert _decode_hello(longer(msgspec.msgpack.encode(hello))) == hello


@pytest.mark.parametrize(
    ("record", "read", "first"),
    [
        (NOTE, decode_notification, 7),
        (ALARM, decode_alarm, 3),
        (DeadLetter(NOTE, 5, "INTERNAL", "why"), decode_dead_letter, 4),
    ],
)
def test_records_with_more_fields_are_read_and_so_are_those_of_earlier_versions(
    record: Any, read: Any, first: int
) -> None:
    raw = encode_record(record)
    assert read(longer(raw)) == record
    assert read(shorter(raw, first)) == record


@pytest.mark.parametrize(
    "value",
    [
        ClusterSettings(id="c"),
        Member("n", "127.0.0.1:1", 3, "h", "z", 2, "127.0.0.1:2"),
        Assignment(3, "n", 3, ("n", "m"), ("o",), True),
        Drain(1.0, "ops"),
        Pause(1.0, "ops"),
        ShardLoads({1: 2.0}),
    ],
)
def test_what_is_in_etcd_may_have_more_fields(value: Any) -> None:
    fields = msgspec.json.decode(encode(value))
    assert decode(msgspec.json.encode({**fields, "new": {"and": [1]}}), type(value)) == value


def test_calls_and_replies_with_more_fields_are_read() -> None:
    unknown = b"\xa2\x1f\x03new"  # field 500, length-delimited
    call = pb.Call(id=1, kind="K", key="k", method="m")
    assert pb.Call.FromString(call.SerializeToString() + unknown).method == "m"
    assert (
        pb.Reply.FromString(pb.Reply(id=1, result=b"r").SerializeToString() + unknown).result
        == b"r"
    )


def test_the_names_of_an_assignment_in_etcd_are_those_of_0_1() -> None:
    """A field may be called otherwise in the code; in etcd other versions read it."""
    raw = encode(Assignment(3, "a", 1, ("a",), void_before=2, keeper="a"))
    assert msgspec.json.decode(raw) == {
        "epoch": 3,
        "owner": "a",
        "incarnation": 1,
        "in_sync": ["a"],
        "joining": [],
        "released": False,
        "handover": "",
        "leaving": [],
        "born": 2,
        "forked": [],
        "keeper": "a",
        "version": 0,
        "nonce": 0,
        "level": 0,
    }
