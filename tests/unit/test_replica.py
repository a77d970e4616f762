"""The core of replication, event by event: what the simulator reaches only now and then."""

from __future__ import annotations

from typing import Any

from holdfast_cluster.model import Assignment
from holdfast_node import replication as r

SETTINGS = r.ReplicationSettings()


class Stored:
    epoch = 0
    base = r.Position(0, 0)
    entries: list[r.LogEntry] = []  # noqa: RUF012
    applied = 0


def effects(out: list[Any], kind: type) -> list[Any]:
    return [effect for effect in out if isinstance(effect, kind)]


def owner(now: float = 100.0, **assignment: Any) -> r.Replica:
    """Node a as the owner under epoch 1, with b and c in sync and its first entry committed."""
    replica = r.Replica.start("a", 1, SETTINGS, Stored(), now - 10)
    to = Assignment(1, "a", 1, ("a", "b", "c"), released=True, **assignment)
    persist_all(replica, replica.handle(r.Assigned(to, 1), now), now)
    answer(replica, now)
    assert replica.serving(now)
    return replica


def persist_all(replica: r.Replica, out: list[Any], now: float) -> list[Any]:
    numbers = [effect.number for effect in effects(out, r.Persist)]
    return replica.handle(r.Persisted(max(numbers)), now) if numbers else []


def answer(replica: r.Replica, now: float, *names: str) -> list[Any]:
    """These replicas (b and c) have everything, and promise."""
    out = []
    for name in names or ("b", "c"):
        out += replica.handle(r.Received(name, r.Acknowledge(replica.epoch, replica.last.seq, now)), now)
    return out


def test_an_entry_is_committed_when_every_replica_and_its_own_disk_have_it() -> None:
    replica = owner()
    out = replica.handle(r.Append(b"x"), 101.0)
    assert [effect.to for effect in effects(out, r.Send)] == ["b", "c"]
    assert not effects(answer(replica, 101.0), r.Apply)  # the own disk has it not yet
    [applied] = effects(persist_all(replica, out, 101.0), r.Apply)
    assert [entry.data for entry in applied.entries] == [b"x"]


def test_what_was_appended_with_enough_copies_is_not_committed_with_too_few() -> None:
    replica = owner()
    persist_all(replica, replica.handle(r.Append(b"x"), 101.0), 101.0)
    out = replica.handle(r.Assigned(Assignment(1, "a", 1, ("a",)), 2), 102.0)
    assert not effects(out, r.Apply)
    assert replica.read_only() == "1 copies are in sync, writes need 2"
    assert replica.serving(102.0)  # reads go on
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b")), 3), 103.0)
    assert effects(answer(replica, 103.0, "b"), r.Apply)


def test_a_node_whose_connection_broke_is_removed_soon_and_a_silent_one_later() -> None:
    replica = owner()
    answer(replica, 101.0)
    replica.handle(r.Lost("b"), 101.0)
    assert not effects(replica.handle(r.Tick(), 101.3), r.Swap)
    [swap] = effects(replica.handle(r.Tick(), 101.5), r.Swap)
    assert swap.to.in_sync == ("a", "c")


def test_an_owner_that_hears_nobody_can_give_its_shard_up_and_serves_no_more() -> None:
    replica = owner()
    answer(replica, 101.0)
    assert not replica.cornered(102.9)
    assert not effects(replica.handle(r.Tick(), 103.1), r.Swap)  # it does not make itself the only copy at once
    assert replica.cornered(103.1)
    [swap] = effects(replica.handle(r.Abdicate("c", 7), 103.1), r.Swap)
    assert (swap.to.owner, swap.to.incarnation, swap.to.epoch, swap.to.released) == ("c", 7, 2, True)
    assert not replica.serving(103.1)


def test_an_owner_that_is_really_alone_goes_on_alone_after_a_while() -> None:
    replica = owner()
    answer(replica, 101.0)
    [swap] = effects(replica.handle(r.Tick(), 105.1), r.Swap)
    assert swap.to.in_sync == ("a",)


def test_what_a_replica_said_before_it_was_met_again_does_not_count() -> None:
    replica = owner()
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b")), 2), 102.0)
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b"), joining=("c",)), 3), 103.0)
    late = r.Received("c", r.Acknowledge(1, replica.last.seq, 101.0))
    replica.handle(late, 103.1)
    assert replica.peers["c"].matched == 0
    answer(replica, 103.2, "c")
    assert replica.peers["c"].matched == replica.last.seq


def test_a_copy_is_dropped_only_with_the_word_of_an_owner_that_does_not_know_it() -> None:
    replica = r.Replica.start("d", 1, SETTINGS, Stored(), 0.0)
    replica.handle(r.Received("a", r.Replicate(1, r.Position(0, 0), (r.LogEntry(1, 1, b"x"),), 0, 1.0)), 10.0)
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c")), 5), 11.0)
    [asked] = effects(replica.handle(r.Tick(), 12.0), r.Send)
    assert (asked.to, asked.message) == ("a", r.MayDrop(1))
    assert effects(owner().handle(r.Received("d", r.MayDrop(1)), 101.0), r.Send)[0].message == r.Drop(1)
    assert not effects(owner().handle(r.Received("b", r.MayDrop(1)), 101.0), r.Send)
    replica.handle(r.Received("a", r.Replicate(1, r.Position(1, 1), (), 0, 2.0)), 12.1)  # it was asked to join meanwhile
    assert not effects(replica.handle(r.Received("a", r.Drop(1)), 12.2), r.Persist)
    replica.handle(r.Tick(), 14.0)
    [wiped] = effects(replica.handle(r.Received("a", r.Drop(1)), 14.1), r.Persist)
    assert (wiped.wipe, replica.last, replica.epoch) == ((0, 0), (0, 0), 1)


def test_a_shard_that_was_given_up_begins_where_no_old_log_reaches() -> None:
    old = r.Replica.start("b", 1, SETTINGS, Stored(), 0.0)
    entries = tuple(r.LogEntry(1, n, b"old") for n in range(1, 4))
    persist_all(old, old.handle(r.Received("a", r.Replicate(1, r.Position(0, 0), entries, 3, 1.0)), 10.0), 10.0)
    assert old.applied == 3
    fresh = r.Replica.start("d", 1, SETTINGS, Stored(), 0.0)
    out = fresh.handle(r.Assigned(Assignment(2, "d", 1, ("d",), born=2), 9), 20.0)
    assert next(effect.wipe for effect in effects(out, r.Persist)) == (2, 2 << 40)
    persist_all(fresh, out, 20.0)
    first = r.Replicate(2, r.Position(2, 2 << 40), (r.LogEntry(2, (2 << 40) + 1, b""),), 0, 21.0)
    out = old.handle(r.Received("d", first), 21.0)  # it has not heard of the new assignment
    assert isinstance(persist_all(old, out, 21.0)[0].message, r.Mismatch)
    out = old.handle(r.Assigned(Assignment(2, "d", 1, ("d",), joining=("b",), born=2), 10), 22.0)
    assert [effect.wipe for effect in effects(out, r.Persist)] == [(0, 0)]


def test_a_snapshot_on_its_way_keeps_the_log_that_has_to_follow_it() -> None:
    replica = owner(joining=("d",))
    replica.handle(r.SnapshotStarted("d"), 101.0)
    for _ in range(SETTINGS.log_keep_max + 50):
        persist_all(replica, replica.handle(r.Append(b"x"), 102.0), 102.0)
        answer(replica, 102.0)
    assert replica.base.seq == 1  # where the snapshot was taken
    replica.handle(r.SnapshotEnded("d", True), 103.0)
    persist_all(replica, replica.handle(r.Append(b"x"), 103.0), 103.0)
    answer(replica, 103.0)
    assert replica.base.seq == 1  # it was delivered, but what came since was not
    answer(replica, 103.0, "d")
    persist_all(replica, replica.handle(r.Append(b"x"), 103.0), 103.0)
    answer(replica, 103.0)
    assert replica.applied - replica.base.seq <= SETTINGS.log_keep_max


def test_a_node_that_is_assigned_before_it_knows_that_it_is_a_member_takes_the_shard_then() -> None:
    replica = r.Replica.start("a", 0, SETTINGS, Stored(), 0.0)
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c"), released=True), 1), 100.0)
    assert not replica.owning
    replica.handle(r.Rejoined(1), 100.1)
    assert replica.owning


def test_silent_replicas_and_those_that_leave_are_counted_together() -> None:
    replica = owner()
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c"), leaving=("c",)), 2), 101.0)
    answer(replica, 101.0)
    answer(replica, 103.5, "c")
    [swap] = effects(replica.handle(r.Tick(), 103.6), r.Swap)
    assert swap.to.in_sync == ("a", "c")  # b is silent; c would be asked to leave too few


def test_a_release_that_did_not_come_about_serves_again_when_everything_appended_is_committed() -> None:
    replica = owner()
    out = replica.handle(r.Append(b"x"), 101.0)
    answer(replica, 101.0, "c")
    replica.handle(r.Release("b", 1), 101.1)
    assert replica.releasing
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c")), 2), 101.2)
    assert not replica.releasing
    assert not replica.serving(101.2)
    persist_all(replica, out, 101.3)
    answer(replica, 101.3)
    assert replica.serving(101.3)
