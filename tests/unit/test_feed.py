"""The view after what etcd says."""

from __future__ import annotations

import msgspec
from holdfast_cluster.etcd import Changes, Listing
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.feed import apply
from holdfast_cluster.model import Assignment, ClusterSettings, Keys, Lineage, Member, Versioned, View, encode

KEYS = Keys("default")
MEMBER = Member("a", "127.0.0.1:1", 1, "h")
ASSIGNED = Assignment(1, "a", 1, ("a",))
SETTINGS = ClusterSettings(id="c")
LINEAGE = Lineage(generation=2, nonce=7)
ASSIGNED_ROW = Versioned(ASSIGNED, 5, encode(ASSIGNED), 2)


def row(key: str, value: bytes, revision: int = 3) -> pb.KeyValue:
    return pb.KeyValue(key=key.encode(), value=value, mod_revision=revision)


def listing() -> Listing:
    rows = [
        row(KEYS.lineage, encode(LINEAGE)),
        row(KEYS.settings, encode(SETTINGS)),
        row(KEYS.member("a"), encode(MEMBER)),
        row(KEYS.shard(7), encode(ASSIGNED), 5),
        row(KEYS.controller, b"a"),
        row(KEYS.incarnation("a"), b"1"),
    ]
    return Listing(revision=9, rows=rows)


def test_a_listing_is_the_whole_truth() -> None:
    old = View(2, SETTINGS, {"gone": MEMBER}, {1: Versioned(ASSIGNED, 1)}, "gone")
    new = apply(old, listing(), KEYS)
    assert new == View(
        9,
        SETTINGS,
        {"a": MEMBER},
        {7: ASSIGNED_ROW},
        "a",
        settings_raw=encode(SETTINGS),
        lineage=LINEAGE,
        lineage_raw=encode(LINEAGE),
    )


def test_changes_are_applied_one_by_one() -> None:
    view = apply(View(), listing(), KEYS)
    moved = Assignment(2, "b", 1, ("b",))
    events = [
        pb.Event(type=pb.Event.PUT, kv=row(KEYS.shard(7), encode(moved), 11)),
        pb.Event(type=pb.Event.DELETE, kv=row(KEYS.member("a"), b"")),
        pb.Event(type=pb.Event.DELETE, kv=row(KEYS.controller, b"")),
    ]
    new = apply(view, Changes(revision=11, events=events), KEYS)
    assert new == msgspec.structs.replace(
        view, revision=11, members={}, assignments={7: Versioned(moved, 11, encode(moved), 2)}, controller=""
    )
    assert view.assignments[7].assignment == ASSIGNED  # the old picture is untouched
