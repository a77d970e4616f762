"""The view after what etcd says."""

from __future__ import annotations

import msgspec
import pytest
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import Changes, Listing
from holdfast_cluster.membership.view_watcher import apply
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Keys,
    Lineage,
    Member,
    Unreadable,
    Versioned,
    View,
    encode,
)

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
        view,
        revision=11,
        members={},
        assignments={7: Versioned(moved, 11, encode(moved), 2)},
        controller="",
    )
    assert view.assignments[7].assignment == ASSIGNED  # the old picture is untouched


JUNK = [
    b'{"turns_per_s":',
    b"\xff\xfe",
    b"[" * 100_000,
    b"null",
    b'{"id": 7, "generation": "x"}',
    b"",
]


@pytest.mark.parametrize("junk", JUNK)
def test_of_a_value_that_cannot_be_read_what_was_there_before_stays(junk: bytes) -> None:
    before = apply(View(), listing(), KEYS)
    keys = [
        KEYS.member("a"),
        KEYS.shard(7),
        KEYS.load("n"),
        KEYS.drain("n"),
        f"{KEYS.pauses}K/a",
        KEYS.kinds("n"),
        KEYS.hosting("n"),
    ]
    after = apply(
        before,
        Changes(
            revision=11, events=[pb.Event(type=pb.Event.PUT, kv=row(key, junk, 11)) for key in keys]
        ),
        KEYS,
    )
    passed_over = set(after.unreadable)
    assert {KEYS.member("a"), KEYS.shard(7)} <= passed_over
    assert (after.members, after.assignments) == (before.members, before.assignments)
    listed = Listing(revision=12, rows=[*listing().rows[:2], *(row(key, junk, 11) for key in keys)])
    again = apply(after, listed, KEYS)
    assert (again.members, again.assignments, set(again.unreadable)) == (
        before.members,
        before.assignments,
        passed_over,
    )
    mended = apply(
        again,
        Changes(
            revision=13,
            events=[pb.Event(type=pb.Event.DELETE, kv=row(key, b"", 13)) for key in keys],
        ),
        KEYS,
    )
    assert (mended.members, mended.assignments, mended.unreadable) == ({}, {}, {})


@pytest.mark.parametrize("junk", JUNK)
def test_a_member_a_drain_and_a_pause_that_cannot_be_read_are_there_all_the_same(
    junk: bytes,
) -> None:
    """At a start there is no older value. Their being there is what matters of drains and pauses;
    of a member it is not known."""
    rows = [
        *listing().rows,
        row(KEYS.member("x"), junk),
        row(KEYS.drain("x"), junk),
        row(f"{KEYS.pauses}K/a", junk),
    ]
    view = apply(View(), Listing(revision=9, rows=rows), KEYS)
    assert (set(view.members), set(view.hidden)) == ({"a"}, {"x"})
    assert (set(view.drains), set(view.pauses)) == ({"x"}, {("K", "a")})
    known = apply(
        view,
        Changes(
            revision=10, events=[pb.Event(type=pb.Event.PUT, kv=row(KEYS.member("a"), junk, 10))]
        ),
        KEYS,
    )
    now = known.members, set(known.hidden)
    assert now == (view.members, {"x"}), "of a it is known what it was"
    gone = apply(
        view,
        Changes(
            revision=10, events=[pb.Event(type=pb.Event.DELETE, kv=row(KEYS.member("x"), b"", 10))]
        ),
        KEYS,
    )
    assert gone.hidden == frozenset()


@pytest.mark.parametrize("junk", [one for one in JUNK if one])
def test_settings_and_lineage_stay_as_they_were(junk: bytes) -> None:
    before = apply(View(), listing(), KEYS)
    for key in (KEYS.settings, KEYS.lineage):
        after = apply(
            before,
            Changes(revision=11, events=[pb.Event(type=pb.Event.PUT, kv=row(key, junk, 11))]),
            KEYS,
        )
        assert (after.settings, after.lineage) == (before.settings, before.lineage)
        with pytest.raises(Unreadable, match=key):
            apply(View(), Listing(revision=12, rows=[row(key, junk, 11)]), KEYS)


def test_a_start_without_an_assignment_that_can_be_read_takes_nothing_for_the_cluster() -> None:
    """Read over, the shard would look as if it had never been assigned."""
    with pytest.raises(Unreadable, match=KEYS.shard(8)):
        apply(View(), Listing(revision=9, rows=[*listing().rows, row(KEYS.shard(8), b"{")]), KEYS)


@pytest.mark.parametrize("name", ["", "x", "-1", "1" * 5_000, "\N{SUPERSCRIPT TWO}", "7 "])
def test_a_key_that_is_no_shard_is_passed_over(name: str) -> None:
    view = apply(
        View(),
        Listing(revision=9, rows=[*listing().rows, row(KEYS.shards + name, encode(ASSIGNED))]),
        KEYS,
    )
    assert set(view.assignments) == {7}
    assert len(view.unreadable) == 1


def test_a_key_that_is_no_text_is_passed_over() -> None:
    odd = pb.KeyValue(key=KEYS.members.encode() + b"\xff", value=encode(MEMBER))
    view = apply(View(), Listing(revision=9, rows=[*listing().rows, odd]), KEYS)
    assert set(view.assignments) == {7}
