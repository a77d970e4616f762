"""What the controller decides: a view in, transitions out."""

from __future__ import annotations

import msgspec
from holdfast_cluster.membership.controller import AT_ONCE_S, HOLD_MOVES_S, Expected
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Hosting,
    Member,
    ShardLoads,
    Versioned,
    View,
)
from holdfast_cluster.placement.plan import MOVES_MAX, Transition, plan, too_many_away

SETTINGS = ClusterSettings(shards=8, replication=1, id="c")
A, B = Member("a", "127.0.0.1:1", 1, "h1"), Member("b", "127.0.0.1:2", 1, "h2")


def view(
    *members: Member,
    assignments: dict[int, Versioned] | None = None,
    settings: ClusterSettings | None = SETTINGS,
) -> View:
    return View(10, settings, {member.id: member for member in members}, assignments or {}, "a")


def formed(*members: Member) -> dict[int, Versioned]:
    return {t.shard: Versioned(t.to, 5) for t in plan(view(*members), len(members))}


def test_nothing_is_assigned_before_there_are_settings_and_enough_members() -> None:
    assert plan(view(A, settings=None), 1) == []
    assert plan(view(A), 2) == []


def test_formation_assigns_every_shard_once_to_the_node_that_the_ring_names() -> None:
    picture = view(A, B)
    transitions = plan(picture, 2)
    assert [t.shard for t in transitions] == list(range(8))
    assert all(t.revision == 0 and t.to.epoch == 1 and t.why == "formation" for t in transitions)
    assert [t.to.owner for t in transitions] == picture.ring.owners
    assert all(t.to.in_sync == (t.to.owner,) for t in transitions)


def test_a_node_that_drains_does_not_count_for_formation() -> None:
    picture = msgspec.structs.replace(view(A, B), drains={"b": Drain(0.0)})
    assert plan(picture, 2) == []


def test_a_formed_cluster_needs_nothing() -> None:
    assert plan(view(A, B, assignments=formed(A, B)), 2) == []


def test_a_shard_whose_node_is_away_waits_for_it() -> None:
    assert plan(view(A, assignments=formed(A, B)), 1) == []


def test_a_restarted_node_gets_its_shards_under_the_next_epoch_and_from_the_revision_seen() -> None:
    again = Member("b", "127.0.0.1:9", 2, "h2")
    assignments = formed(A, B)
    owned = [shard for shard, versioned in assignments.items() if versioned.assignment.owner == "b"]
    assert plan(view(A, again, assignments=assignments), 2) == [
        Transition(shard, 5, Assignment(2, "b", 2, ("b",)), "restart") for shard in owned
    ]


def test_an_older_incarnation_than_the_assigned_one_gets_nothing() -> None:
    assignments = {0: Versioned(Assignment(4, "a", 7, ("a",)), 9)}
    assert [t for t in plan(view(A, assignments=assignments), 1) if t.shard == 0] == []


# -- three copies

THREE = ClusterSettings(shards=8, replication=3, id="c")
NODES = [Member(name, f"127.0.0.1:{i}", 1, f"h-{name}") for i, name in enumerate("abcde", 1)]


def replicated(*members: Member, assignments: dict[int, Versioned] | None = None) -> View:
    return view(*members, assignments=assignments, settings=THREE)


def settle(picture: View, rounds: int = 200) -> tuple[View, list[list[str]]]:
    """What comes of a picture when every transition is applied and owners do at once what they are
    asked."""
    reasons: list[list[str]] = []
    revision = picture.revision
    for _ in range(rounds):
        transitions = plan(picture, 1)
        if not transitions:
            return picture, reasons
        reasons.append([t.why for t in transitions])
        assignments = dict(picture.assignments)
        for t in transitions:
            revision += 1
            now = t.to
            if now.joining:
                now = msgspec.structs.replace(now, in_sync=(*now.in_sync, *now.joining), joining=())
            if now.handover:
                now = msgspec.structs.replace(
                    now, epoch=now.epoch + 1, owner=now.handover, handover="", released=True
                )
            if now.leaving:
                now = msgspec.structs.replace(
                    now, in_sync=tuple(n for n in now.in_sync if n not in now.leaving), leaving=()
                )
            assert len(now.in_sync) >= 3
            assignments[t.shard] = Versioned(now, revision)
        picture = msgspec.structs.replace(picture, revision=revision, assignments=assignments)
    raise AssertionError("it never settles")


def test_formation_puts_every_copy_where_the_ring_wants_it() -> None:
    picture, _ = settle(replicated(*NODES))
    for shard, versioned in picture.assignments.items():
        assert list(versioned.assignment.in_sync) == picture.ring.preference_list(shard, 3)


def test_a_dead_owner_is_replaced_from_the_in_sync_set_and_nobody_is_forgotten() -> None:
    picture, _ = settle(replicated(*NODES))
    gone = picture.assignments[0].assignment.owner
    left = replicated(
        *[node for node in NODES if node.id != gone], assignments=dict(picture.assignments)
    )
    first = next(t for t in plan(left, 1) if t.shard == 0)
    before = picture.assignments[0].assignment
    assert first.why == "fail-over"
    assert first.to.epoch == before.epoch + 1
    assert first.to.owner in set(before.in_sync) - {gone}
    assert first.to.in_sync == before.in_sync
    assert not first.to.released


def test_nothing_is_taken_from_a_member_that_cannot_be_read() -> None:
    picture, _ = settle(replicated(*NODES))
    gone = picture.assignments[0].assignment.owner
    left = replicated(
        *[node for node in NODES if node.id != gone], assignments=dict(picture.assignments)
    )
    assert any(t.why == "fail-over" for t in plan(left, 1))
    hidden = msgspec.structs.replace(left, hidden=frozenset((gone,)))
    assert not [t for t in plan(hidden, 1) if picture.assignments[t.shard].assignment.owner == gone]


def test_a_fail_over_keeps_all_that_it_does_not_concern() -> None:
    """A field that comes later is kept too, unless it is named here."""
    before = Assignment(
        4, "a", 1, ("a", "b", "c"), void_before=2, keeper="a", version=9, nonce=77, level=3
    )
    left = replicated(*NODES[1:3], assignments={0: Versioned(before, 5)})
    [after] = [t.to for t in plan(left, 1) if t.shard == 0]
    changed = {
        name for name in before.__struct_fields__ if getattr(after, name) != getattr(before, name)
    }
    assert {"epoch", "owner"} <= changed <= {"epoch", "owner", "incarnation", "joining"}


def test_with_no_in_sync_member_present_a_shard_waits() -> None:
    picture, _ = settle(replicated(*NODES))
    copies = set(picture.assignments[0].assignment.in_sync)
    left = replicated(
        *[node for node in NODES if node.id not in copies], assignments={0: picture.assignments[0]}
    )
    assert [t for t in plan(left, 1) if t.shard == 0] == []


def test_a_join_moves_a_few_shards_at_a_time_until_the_ring_is_met() -> None:
    picture, _ = settle(replicated(*NODES[:4]))
    joined = replicated(*NODES, assignments=dict(picture.assignments))
    assert 0 < len(plan(joined, 1)) <= MOVES_MAX
    after, _ = settle(joined)
    for shard, versioned in after.assignments.items():
        wanted = after.ring.preference_list(shard, 3)
        assert versioned.assignment.owner == wanted[0]
        assert set(versioned.assignment.in_sync) == set(wanted)


def test_a_draining_node_loses_everything_and_a_cluster_that_drains_as_a_whole_stays() -> None:
    picture, _ = settle(replicated(*NODES))
    drained = msgspec.structs.replace(picture, drains={"a": Drain(0.0)})
    after, _ = settle(drained)
    assert all("a" not in versioned.assignment.in_sync for versioned in after.assignments.values())
    assert (
        plan(msgspec.structs.replace(picture, drains={node.id: Drain(0.0) for node in NODES}), 1)
        == []
    )


def with_state(picture: View, state: str, *names: str) -> View:
    members = {
        n: msgspec.structs.replace(m, state=state) if n in names else m
        for n, m in picture.members.items()
    }
    return msgspec.structs.replace(picture, members=members)


def stopping(picture: View, *names: str) -> View:
    return with_state(picture, "stopping", *names)


def test_a_node_that_stops_owns_nothing_at_once_leaves_the_in_sync_sets_and_moves_no_data() -> None:
    picture, _ = settle(replicated(*NODES))
    of_a = {
        shard
        for shard, versioned in picture.assignments.items()
        if versioned.assignment.owner == "a"
    }
    with_a = {
        shard
        for shard, versioned in picture.assignments.items()
        if "a" in versioned.assignment.in_sync
    }
    transitions = plan(stopping(picture, "a"), 1)
    assert {t.shard for t in transitions if t.to.handover} == of_a
    assert {t.shard for t in transitions if t.to.leaving == ("a",)} == with_a - of_a
    assert {t.shard for t in transitions} == with_a
    assert not any(t.to.joining for t in transitions)
    assert all(
        t.to.handover in t.to.in_sync and t.to.handover != "a" for t in transitions if t.to.handover
    )


def test_when_all_stop_at_once_everything_stays_where_it_is() -> None:
    picture, _ = settle(replicated(*NODES[:3]))
    assert plan(stopping(picture, "a", "b", "c"), 1) == []


def test_a_member_that_is_away_is_waited_for_before_its_copies_are_made_elsewhere() -> None:
    picture, _ = settle(replicated(*NODES))
    gone = next(node for node in NODES if node.id == picture.assignments[0].assignment.in_sync[1])
    now = picture.assignments[0].assignment
    without = msgspec.structs.replace(
        now, in_sync=tuple(name for name in now.in_sync if name != gone.id)
    )
    left = replicated(*[n for n in NODES if n is not gone], assignments={0: Versioned(without, 7)})
    assert [t for t in plan(left, 1, {gone.id: gone}) if t.shard == 0] == []
    [repair] = [t for t in plan(left, 1) if t.shard == 0]
    assert repair.why == "repair"
    assert len(repair.to.joining) == 1


def test_a_member_that_is_away_for_a_moment_moves_nothing() -> None:
    picture, _ = settle(replicated(*NODES))
    left = replicated(*NODES[:4], assignments=dict(picture.assignments))
    away = {"e": NODES[4]}
    assert {t.why for t in plan(left, 1, away)} == {"fail-over"}


def test_when_more_than_a_third_is_away_nothing_moves() -> None:
    picture, _ = settle(replicated(*NODES[:4]))
    joined = replicated(*NODES, assignments=dict(picture.assignments))
    away = {f"x{i}": Member(f"x{i}", "127.0.0.1:9", 1, f"hx{i}") for i in range(3)}
    assert plan(joined, 1, away) == []


def test_a_hand_over_to_a_node_that_fell_out_of_sync_is_taken_back() -> None:
    picture, _ = settle(replicated(*NODES[:3]))
    now = picture.assignments[0].assignment
    gone = next(name for name in now.in_sync if name != now.owner)
    stale = msgspec.structs.replace(
        now, in_sync=tuple(n for n in now.in_sync if n != gone), joining=(gone,), handover=gone
    )
    [back] = [
        t
        for t in plan(replicated(*NODES[:3], assignments={0: Versioned(stale, 7)}), 1)
        if t.shard == 0
    ]
    assert back.to.handover == ""


def test_of_two_that_stop_at_once_one_leaves_the_in_sync_set() -> None:
    picture, _ = settle(replicated(*NODES[:3]))
    owner = picture.assignments[0].assignment.owner
    others = [name for name in "abc" if name != owner]
    [leave] = [t for t in plan(stopping(picture, *others), 1) if t.shard == 0]
    assert len(leave.to.leaving) == 1


def test_quiet_shards_move_first_and_the_busiest_last() -> None:
    many = msgspec.structs.replace(THREE, shards=64)
    formed = plan(view(*NODES[:3], settings=many), 3)
    picture = view(
        *NODES[:4], assignments={t.shard: Versioned(t.to, 5) for t in formed}, settings=many
    )

    def first_to_move(turns_per_s: dict[int, float]) -> list[int]:
        loads = {node.id: ShardLoads(turns_per_s) for node in NODES[:3]}
        return [
            t.shard
            for t in plan(msgspec.structs.replace(picture, loads=loads), 1)
            if t.why == "move"
        ]

    low = first_to_move({shard: float(shard) for shard in range(64)})
    high = first_to_move({shard: float(64 - shard) for shard in range(64)})
    assert len(low) == len(high) == MOVES_MAX
    assert low == sorted(low)
    assert high == sorted(high, reverse=True)
    assert max(low) < min(high)
    told_by_another = {"e": ShardLoads(dict.fromkeys(low, 1.0))}  # who does not own them
    assert [
        t.shard
        for t in plan(msgspec.structs.replace(picture, loads=told_by_another), 1)
        if t.why == "move"
    ] == low


def test_a_busy_shard_that_moves_already_goes_on_moving() -> None:
    picture, _ = settle(replicated(*NODES[:3]))
    picture = replicated(*NODES[:4], assignments=dict(picture.assignments))
    [one, *_] = [t for t in plan(picture, 1) if t.why == "move"]
    now = one.to  # its copy is made by now
    there = msgspec.structs.replace(now, in_sync=(*now.in_sync, *now.joining), joining=())
    assignments = {**picture.assignments, one.shard: Versioned(there, 99)}
    busy = {now.owner: ShardLoads({one.shard: 1000.0})}
    after = msgspec.structs.replace(picture, assignments=assignments, loads=busy)
    assert one.shard in [t.shard for t in plan(after, 1)]


def test_who_stopped_in_order_is_expected_for_a_while_and_holds_no_moves_after_that() -> None:
    members = [Member(name, f"127.0.0.1:{i}", 1, f"h{i}") for i, name in enumerate("abcde")]
    leaving = msgspec.structs.replace(members[4], state="stopping")
    expected = Expected(30.0)
    expected.look(view(*members), 0.0)
    expected.look(view(*members[:4], leaving), 1.0)
    assert set(expected.look(view(*members[:4]), 2.0)) == set("abcde")  # it may be a restart
    assert set(expected.look(view(*members[:4]), 40.0)) == set("abcd")
    gone = view(*members[:3])  # another one vanishes: one of four, which is no reason to hold moves
    assert set(expected.look(gone, 41.0)) == set("abcd")
    assert not too_many_away(gone, expected.look(gone, 41.0))
    assert set(expected.look(gone, 80.0)) == set("abc")


def test_when_more_than_a_third_vanished_they_are_expected_for_long() -> None:
    members = [Member(name, f"127.0.0.1:{i}", 1, f"h{i}") for i, name in enumerate("abcde")]
    expected = Expected(30.0)
    expected.look(view(*members), 0.0)
    few = view(*members[:3])
    assert set(expected.look(few, 100.0)) == set("abcde")
    assert too_many_away(few, expected.look(few, 100.0))
    assert set(expected.look(few, HOLD_MOVES_S + 1)) == set("abc")


def test_patience_may_be_longer_than_moves_are_held() -> None:
    members = [Member(name, f"127.0.0.1:{i}", 1, f"h{i}") for i, name in enumerate("abcde")]
    expected = Expected(3 * HOLD_MOVES_S)
    expected.look(view(*members), 0.0)
    assert set(expected.look(view(*members[:4]), 2 * HOLD_MOVES_S)) == set("abcde")


def five(*replaced: str) -> list[Member]:
    """Nodes as they name themselves: `n3-x` after the disk of `n3-a` was replaced, at the same
    address."""
    return [
        Member(f"n{i}-{'x' if f'n{i}' in replaced else 'a'}", f"10.0.0.{i}:7401", 1, f"h{i}")
        for i in range(1, 6)
    ]


def test_who_takes_the_name_and_address_of_an_absent_member_supersedes_it() -> None:
    expected = Expected(30.0)
    expected.look(view(*five()), 0.0)
    without_n4 = [member for member in five() if member.name != "n4"]
    assert "n4-a" in expected.look(view(*without_n4), 1.0)
    elsewhere = Member("n4-y", "10.0.0.9:7401", 1, "h9")
    other_name = Member("n9-y", "10.0.0.4:7401", 1, "h4")
    assert "n4-a" in expected.look(view(*without_n4, elsewhere, other_name), 2.0), (
        "a name alone, or an address, is no proof"
    )
    now = view(*five("n4"))
    assert set(expected.look(now, 3.0)) == {*now.members, "n4-y", "n9-y"}
    assert expected.superseded == {"n4-a"}
    back = view(*five())  # the old disk is in its place again
    assert "n4-a" in expected.look(back, 4.0)
    assert expected.superseded == {"n4-x"}


def test_two_disks_that_are_replaced_one_after_the_other_are_two_members_that_are_there() -> None:
    expected = Expected(30.0)
    expected.look(view(*five()), 0.0)
    expected.look(view(*[member for member in five() if member.name != "n4"]), 1.0)
    expected.look(view(*five("n4")), 5.0)
    expected.look(view(*[member for member in five("n4") if member.name != "n5"]), 9.0)
    now = view(*five("n4", "n5"))
    assert set(expected.look(now, 13.0)) == set(now.members)
    assert not expected.holding
    assert not too_many_away(now, expected.look(now, 14.0))


def test_members_that_vanish_one_after_the_other_are_each_waited_for_as_one() -> None:
    members = [Member(name, f"127.0.0.1:{i}", 1, f"h{i}") for i, name in enumerate("abcde")]
    expected = Expected(30.0)
    expected.look(view(*members), 0.0)
    # d is seen once more, so e has vanished long before it
    expected.look(view(*members[:4]), AT_ONCE_S + 1)
    few = view(*members[:3])
    assert set(expected.look(few, 20.0)) == set("abcde")
    assert not expected.holding
    assert set(expected.look(few, 35.0)) == set("abcd")
    assert set(expected.look(few, 60.0)) == set("abc")


def test_members_that_vanish_within_ten_seconds_have_vanished_at_once() -> None:
    members = [Member(name, f"127.0.0.1:{i}", 1, f"h{i}") for i, name in enumerate("abcde")]
    expected = Expected(30.0)
    expected.look(view(*members), 0.0)
    expected.look(view(*members[:4]), AT_ONCE_S - 1)
    few = view(*members[:3])
    assert set(expected.look(few, 100.0)) == set("abcde")
    assert expected.holding
    assert expected.look(view(*members[:4]), 101.0).keys() == set("abcd"), (
        "with one back, the other is one that is away"
    )
    assert not expected.holding


def assigned(
    shard: int, in_sync: tuple[str, ...], joining: tuple[str, ...] = ()
) -> dict[int, Versioned]:
    return {shard: Versioned(Assignment(2, in_sync[0], 1, in_sync, joining), 7)}


def test_the_in_sync_place_of_a_superseded_member_is_repaired_at_once() -> None:
    now = view(*five("n5"), assignments=assigned(0, ("n1-a", "n2-a", "n5-a")), settings=THREE)
    assert [
        t for t in plan(now, 9) if t.shard == 0 and t.why == "repair"
    ] == []  # its owner has it removed when it is silent
    [repair] = [t for t in plan(now, 9, {}, {"n5-a"}) if t.shard == 0]
    assert (repair.why, repair.to.in_sync, len(repair.to.joining)) == (
        "repair",
        ("n1-a", "n2-a", "n5-a"),
        1,
    )


def test_shards_with_the_fewest_copies_are_repaired_first() -> None:
    a, b, c, _, _ = [node.id for node in NODES]
    copies = [(a, b), (a,), (a, b, c), (b, c), (c,), (a, c)]
    assignments = {shard: assigned(shard, in_sync)[shard] for shard, in_sync in enumerate(copies)}
    repairs = [t for t in plan(replicated(*NODES, assignments=assignments), 9) if t.why == "repair"]
    assert [len(t.to.in_sync) for t in repairs] == [1, 1, 2, 2, 2]


def test_below_what_writes_need_a_shard_is_repaired_whatever_is_away() -> None:
    left, away = NODES[:3], {node.id: node for node in NODES[3:]}
    assert too_many_away(replicated(*left), {**{node.id: node for node in left}, **away})
    assignments = {shard: assigned(shard, ("a",))[shard] for shard in range(8)}
    repaired = {
        t.shard: t.to.joining for t in plan(replicated(*left, assignments=assignments), 9, away)
    }
    assert set(repaired) == set(range(8))
    assert all(set(joining) == {"b", "c"} for joining in repaired.values())


# -- a disk that is full


def test_a_full_member_gives_its_shards_away_and_keeps_its_copies() -> None:
    picture, _ = settle(replicated(*NODES))
    full = picture.assignments[0].assignment.owner
    owned = {
        shard
        for shard, versioned in picture.assignments.items()
        if versioned.assignment.owner == full
    }
    transitions = plan(with_state(picture, "full", full), 1)
    assert {t.shard for t in transitions} == owned
    assert all(
        t.to.handover not in ("", full) and not t.to.leaving and not t.to.joining
        for t in transitions
    )
    after, _ = settle(with_state(picture, "full", full))
    assert not any(versioned.assignment.owner == full for versioned in after.assignments.values())
    assert [v.assignment.in_sync for v in after.assignments.values()] == [
        v.assignment.in_sync for v in picture.assignments.values()
    ]
    again, _ = settle(with_state(after, "active", full))
    assert {
        shard
        for shard, versioned in again.assignments.items()
        if versioned.assignment.owner == full
    } == owned


def test_a_full_member_gets_no_copy_and_none_that_was_on_its_way() -> None:
    picture = replicated(
        *NODES[:4],
        assignments={shard: assigned(shard, ("a", "b"), ("c",))[shard] for shard in range(8)},
    )
    transitions = plan(with_state(picture, "full", "c"), 9)
    assert {t.shard for t in transitions} == set(range(8))
    assert all(t.to.joining == ("d",) for t in transitions)
    nowhere = with_state(picture, "full", "c", "d")
    assert all(t.to.joining == () for t in plan(nowhere, 9))
    joined = replicated(*NODES, assignments=dict(settle(replicated(*NODES[:4]))[0].assignments))
    assert plan(with_state(joined, "full", "e"), 1) == []


def test_with_a_full_member_the_others_still_drain_and_join() -> None:
    picture, _ = settle(replicated(*NODES))
    full = with_state(picture, "full", "a")
    held = {
        shard
        for shard, versioned in picture.assignments.items()
        if "a" in versioned.assignment.in_sync
    }
    after, _ = settle(msgspec.structs.replace(full, drains={"b": Drain(0.0)}))
    assert all("b" not in versioned.assignment.in_sync for versioned in after.assignments.values())
    assert held >= {
        shard
        for shard, versioned in after.assignments.items()
        if "a" in versioned.assignment.in_sync
    }
    assert all(versioned.assignment.owner not in "ab" for versioned in after.assignments.values())
    took = 0
    for name in "fghij":
        new = Member(name, "127.0.0.1:6", 1, f"h-{name}")
        joined, _ = settle(msgspec.structs.replace(full, members={**full.members, name: new}))
        assert any(
            name in versioned.assignment.in_sync for versioned in joined.assignments.values()
        )
        holds = {
            shard
            for shard, versioned in joined.assignments.items()
            if "a" in versioned.assignment.in_sync
        }
        assert holds <= held
        took += len(held - holds)
    assert took, "who joins takes copies off a full one too"


def test_a_full_member_becomes_an_owner_only_when_nobody_else_can() -> None:
    full = with_state(
        replicated(*NODES, assignments={0: Versioned(Assignment(2, "z", 1, ("z", "a", "b")), 7)}),
        "full",
        "a",
    )
    [one] = [t for t in plan(full, 9) if t.shard == 0]
    assert (one.why, one.to.owner) == ("fail-over", "b")
    [other] = [t for t in plan(with_state(full, "full", "a", "b"), 9) if t.shard == 0]
    assert other.to.owner in ("a", "b")


def test_a_cluster_is_formed_without_those_whose_disks_are_full() -> None:
    picture = with_state(replicated(*NODES), "full", "a", "b")
    assert plan(picture, 4) == []
    formed = plan(picture, 3)
    assert all(
        set(t.to.in_sync) == {"c", "d", "e"} and t.to.owner == t.to.in_sync[0] for t in formed
    )


def test_when_all_are_full_everything_stays_where_it_is() -> None:
    picture, _ = settle(replicated(*NODES[:3]))
    assert plan(with_state(picture, "full", "a", "b", "c"), 1) == []


# -- a disk that is slow


def test_a_slow_member_gives_its_shards_away_and_goes_on_joining() -> None:
    picture, _ = settle(replicated(*NODES[:3]))
    slow = picture.assignments[0].assignment.owner
    transitions = plan(with_state(picture, "slow", slow), 1)
    assert transitions
    assert all(t.to.handover not in ("", slow) and not t.to.leaving for t in transitions)
    others = tuple(name for name in "abc" if name != slow)
    out = replicated(
        *NODES[:3],
        assignments={shard: assigned(shard, others, (slow,))[shard] for shard in range(8)},
    )
    assert plan(with_state(out, "slow", slow), 1) == [], (
        "its owners have it joining, and nothing is copied to others for a while"
    )
    well, _ = settle(with_state(picture, "active", slow))
    assert well.assignments[0].assignment.owner == slow


def test_a_slow_member_gets_no_new_copies() -> None:
    picture = replicated(
        *NODES[:4], assignments={shard: assigned(shard, ("a", "b"))[shard] for shard in range(8)}
    )
    joining = {name for t in plan(with_state(picture, "slow", "c"), 9) for name in t.to.joining}
    assert joining == {"d"}


# -- members with different kinds


def having(**kinds: str) -> list[Member]:
    """The first nodes, each with the kinds whose letters are given; the others with all of them."""
    union = tuple(sorted(set("".join(kinds.values()))))
    return [
        msgspec.structs.replace(node, version=2, kinds=tuple(kinds.get(node.id, union)))
        for node in NODES
    ]


def mixed(members: list[Member], assignments: dict[int, Versioned], **hosting: Hosting) -> View:
    return msgspec.structs.replace(
        replicated(*members, assignments=assignments),
        hosting=hosting,
        kinds={node.id: node.kinds for node in NODES + members},
    )


def one_shard(picture: View, shard: int = 0) -> Assignment:
    return picture.assignments[shard].assignment


def asks_of(now: Assignment, kinds: str, holds: str | None = None) -> dict[str, Hosting]:
    """The owner of shard 0 asks for another one, and has perhaps said what the shard holds."""
    told = {} if holds is None else {0: tuple(holds)}
    return {now.owner: Hosting(1, looked_for=tuple("XYZ"), holds=told, asks={0: tuple(kinds)})}


def only(picture: View, shard: int = 0) -> View:
    """The picture without the other shards' assignments."""
    return msgspec.structs.replace(
        picture,
        settings=msgspec.structs.replace(THREE, shards=1),
        assignments={shard: picture.assignments[shard]},
    )


def test_kinds_change_nothing_while_all_members_have_the_same() -> None:
    plain, _ = settle(replicated(*NODES))
    same, _ = settle(mixed(having(), {}))
    assert {s: v.assignment for s, v in plain.assignments.items()} == {
        s: v.assignment for s, v in same.assignments.items()
    }


def test_fail_over_takes_one_that_has_what_the_owner_had_and_waits_for_nobody() -> None:
    formed_, _ = settle(replicated(*NODES))
    now = one_shard(formed_)
    first, second = now.in_sync[1:]
    # the ring's favourite lacks what the owner had
    # both have it: the one with more of all kinds
    for kinds, owner in (
        (
            {now.owner: "X", first: "Y", second: "XY"},
            second,
        ),
        ({now.owner: "X", first: "XY", second: "Y"}, first),
        ({now.owner: "X", first: "Y", second: "Z"}, first),  # no node has it: the data decides
        (
            {now.owner: "Y", first: "XYZ", second: "XY"},
            first,
        ),
        ({now.owner: "Y", first: "XY", second: "XYZ"}, second),
    ):
        members = having(**kinds)
        left = [node for node in members if node.id != now.owner]
        picture = msgspec.structs.replace(
            mixed(left, dict(formed_.assignments)), kinds={node.id: node.kinds for node in members}
        )
        moved = next(t for t in plan(picture, 1) if t.shard == 0)
        assert (moved.why, moved.to.owner) == ("fail-over", owner), kinds
    nobody = [node for node in having(**dict.fromkeys("abcde", "Y")) if node.id != now.owner]
    picture = msgspec.structs.replace(
        mixed(nobody, dict(formed_.assignments)), kinds={now.owner: ("X",)}
    )
    assert next(t for t in plan(picture, 1) if t.shard == 0).to.owner == first


def test_a_shard_that_is_asked_for_a_kind_is_handed_to_an_in_sync_member_that_has_it_and_stays_there() -> (  # noqa: E501
    None
):
    formed_, _ = settle(replicated(*NODES))
    now = one_shard(formed_)
    host = now.in_sync[2]
    members = having(**{node.id: "X" for node in NODES if node.id != host}, **{host: "XY"})
    picture = mixed(members, dict(formed_.assignments), **asks_of(now, "Y"))
    asked = next(t for t in plan(picture, 1) if t.shard == 0)
    assert (asked.why, asked.to) == ("hosting", msgspec.structs.replace(now, handover=host))
    after, _ = settle(picture)
    assert one_shard(after).owner == host
    assert set(one_shard(after).in_sync) == set(now.in_sync)
    told = {host: Hosting(1, looked_for=("Y",), holds={0: ("Y",)})}
    assert plan(only(msgspec.structs.replace(after, hosting=told)), 1) == []
    # It has no object of Y any more: the ring decides again.
    told = {host: Hosting(1, looked_for=("Y",), holds={0: ()})}
    back, _ = settle(msgspec.structs.replace(after, hosting=told))
    assert one_shard(back).owner == now.owner


def test_a_hand_over_for_a_kind_moves_no_data_and_does_not_wait_until_all_are_back() -> None:
    formed_, _ = settle(replicated(*NODES))
    now = one_shard(formed_)
    host = now.in_sync[1]
    members = having(**{node.id: "X" for node in NODES if node.id != host}, **{host: "XY"})
    there = [node for node in members if node.id in now.in_sync]
    expected = {node.id: node for node in members}
    assert too_many_away(replicated(*there), expected)
    picture = mixed(there, {0: formed_.assignments[0]}, **asks_of(now, "Y"))
    assert [(t.why, t.to.handover) for t in plan(only(picture), 1, expected)] == [("hosting", host)]


def test_a_node_that_alone_has_a_kind_gets_a_copy_and_then_the_shard() -> None:
    formed_, _ = settle(replicated(*NODES))
    now = one_shard(formed_)
    host = next(node.id for node in NODES if node.id not in now.in_sync)
    members = having(**{node.id: "X" for node in NODES if node.id != host}, **{host: "XY"})
    picture = mixed(members, dict(formed_.assignments), **asks_of(now, "Y", holds="X"))
    joins = next(t for t in plan(picture, 1) if t.shard == 0)
    assert (joins.why, joins.to.joining) == ("move", (host,))
    after, _ = settle(picture)
    assert one_shard(after).owner == host
    assert len(one_shard(after).in_sync) == 3


def test_the_copy_that_gives_way_is_the_one_on_the_same_host_as_the_new_owner() -> None:
    formed_, _ = settle(replicated(*NODES))
    now = one_shard(formed_)
    host = next(node.id for node in NODES if node.id not in now.in_sync)
    twin = now.in_sync[1]
    members = [
        msgspec.structs.replace(node, host=f"h-{twin}") if node.id == host else node
        for node in having(**{node.id: "X" for node in NODES if node.id != host}, **{host: "XY"})
    ]
    after, _ = settle(mixed(members, {0: formed_.assignments[0]}, **asks_of(now, "Y", holds="X")))
    assert set(one_shard(after).in_sync) == {*now.in_sync, host} - {twin}


def test_nothing_moves_to_a_node_that_would_take_objects_out_of_service() -> None:
    """A node with another app joins: it gets copies, and owns only what it has all kinds of."""
    before, _ = settle(replicated(*having(**dict.fromkeys("abcd", "X"))[:4]))
    members = having(**dict.fromkeys("abcd", "X"), e="Y")
    unknown, _ = settle(mixed(members, dict(before.assignments)))
    owners = [versioned.assignment.owner for versioned in unknown.assignments.values()]
    assert "e" not in owners
    assert any("e" in versioned.assignment.in_sync for versioned in unknown.assignments.values())
    looked = {
        node.id: Hosting(
            1, looked_for=("X",), holds={shard: ("X",) if shard % 2 else () for shard in range(8)}
        )
        for node in members[:4]
    }
    known, _ = settle(mixed(members, dict(before.assignments), **looked))
    wanted = {shard for shard in range(8) if known.ring.owners[shard] == "e"}
    assert wanted
    assert {shard for shard, v in known.assignments.items() if v.assignment.owner == "e"} == {
        s for s in wanted if not s % 2
    }


def test_a_wish_for_what_nobody_has_or_of_an_earlier_life_changes_nothing() -> None:
    formed_, _ = settle(mixed(having(a="X", b="X", c="XY", d="X", e="XY"), {}))
    now = one_shard(formed_)
    assert plan(only(msgspec.structs.replace(formed_, hosting=asks_of(now, "Q"))), 1) == []
    before = {
        name: msgspec.structs.replace(told, incarnation=0)
        for name, told in asks_of(now, "Y").items()
    }
    assert plan(only(msgspec.structs.replace(formed_, hosting=before)), 1) == []


def test_one_that_stops_hands_its_shards_to_those_that_have_their_kinds() -> None:
    formed_, _ = settle(replicated(*NODES))
    now = one_shard(formed_)
    first, second = now.in_sync[1:]
    for holds, to in (("X", second), ("Y", first)):
        members = having(**{now.owner: "XY", first: "Y", second: "X"})
        members = [
            msgspec.structs.replace(node, state="stopping") if node.id == now.owner else node
            for node in members
        ]
        told = {now.owner: Hosting(1, looked_for=("X", "Y"), holds={0: tuple(holds)})}
        leaves = next(
            t for t in plan(mixed(members, dict(formed_.assignments), **told), 1) if t.shard == 0
        )
        assert (leaves.why, leaves.to.handover) == ("leave", to)


def test_a_member_of_the_version_before_is_in_nobodys_way() -> None:
    """It does not say which kinds it has: nothing is moved away from it, and it takes over like any
    other."""
    members = [*having(a="X", b="X", c="X", d="X")[:4], NODES[4]]
    plain, _ = settle(replicated(*NODES))
    picture = mixed(members, dict(plain.assignments))
    assert plan(picture, 1) == []
    before, _ = settle(replicated(*members[:4]))
    joined, _ = settle(mixed(members, dict(before.assignments)))
    assert {s: v.assignment.owner for s, v in joined.assignments.items()} == dict(
        enumerate(joined.ring.owners)
    )
    assert "e" in joined.ring.owners
