"""The core of replication, event by event: what the simulator reaches only now and then."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from holdfast_cluster.placement.model import Assignment
from holdfast_node import replication as r
from holdfast_node.log.changes import encode_changes, term_data

SETTINGS = r.ReplicationSettings()
X = encode_changes([], [(b"", b"x")])


class Stored:
    epoch = 0
    base = r.Position(0, 0)
    entries: list[r.LogEntry] = []  # noqa: RUF012
    applied = 0
    chain: list[r.Term] = []  # noqa: RUF012
    high = 0


def effects(out: list[Any], kind: type) -> list[Any]:
    return [effect for effect in out if isinstance(effect, kind)]


def owner(now: float = 100.0, **assignment: Any) -> r.Replica:
    """Node a as the owner under epoch 1, with b and c in sync and its first entry committed."""
    replica = r.Replica.start("a", 1, SETTINGS, Stored(), now - 10)
    to = Assignment(1, "a", 1, ("a", "b", "c"), released=True, **assignment)
    persist_all(replica, replica.handle(r.Assigned(to, 1), now), now)
    report(replica, now)
    answer(replica, now)
    assert replica.serving(now)
    return replica


def report(replica: r.Replica, now: float, *names: str, **fields: Any) -> list[Any]:
    """These replicas (b and c) tell the new owner what they hold: nothing, unless `fields` says
    otherwise."""
    out = []
    for name in names or ("b", "c"):
        empty = r.Report(replica.epoch, r.Position(0, 0), r.Position(0, 0), 0, (), False, now)
        out += replica.handle(r.Received(name, msgspec.structs.replace(empty, **fields)), now)
    persist_all(replica, out, now)
    return out


def persist_all(replica: r.Replica, out: list[Any], now: float) -> list[Any]:
    numbers = [effect.number for effect in effects(out, r.Persist)]
    return replica.handle(r.Persisted(max(numbers)), now) if numbers else []


def answer(replica: r.Replica, now: float, *names: str) -> list[Any]:
    """These replicas (b and c) have everything, and promise."""
    out = []
    for name in names or ("b", "c"):
        out += replica.handle(
            r.Received(name, r.Acknowledge(replica.epoch, replica.log.last.seq, now)), now
        )
    return out


def test_an_entry_is_committed_when_every_replica_and_its_own_disk_have_it() -> None:
    replica = owner()
    out = replica.handle(r.Append(X), 101.0)
    assert [effect.to for effect in effects(out, r.Send)] == ["b", "c"]
    assert not effects(answer(replica, 101.0), r.Apply)  # the own disk has it not yet
    [applied] = effects(persist_all(replica, out, 101.0), r.Apply)
    assert [entry.data for entry in applied.entries] == [X]


def test_what_was_persisted_under_an_earlier_epoch_says_nothing_of_the_same_places_now() -> None:
    replica = owner()
    first = replica.log.last_seq
    for _ in range(3):  # no replica acknowledges these
        persist_all(replica, replica.handle(r.Append(X), 101.0), 101.0)
    assert replica.persisted == first + 3
    replica.handle(r.Assigned(Assignment(2, "b", 1, ("a", "b", "c"), released=True), 2), 101.1)
    [term] = [each for each in replica.log.chain if each.first == first]
    theirs = r.Replicate(
        2, r.Position(1, first), (r.LogEntry(2, first + 1, term_data(5)),), first, 101.2, term.nonce
    )
    persist_all(replica, replica.handle(r.Received("b", theirs), 101.2), 101.2)
    assert replica.log.last == (2, first + 1), "what nobody acknowledged is cut"
    out = replica.handle(
        r.Assigned(Assignment(3, "a", 1, ("a", "b", "c"), released=True), 3), 101.3
    )
    assert (replica.first_seq, replica.log.last) == (first + 2, (3, first + 2))
    assert not effects(answer(replica, 101.4), r.Apply), "its own disk has not got it"
    assert effects(persist_all(replica, out, 101.5), r.Apply)


def test_what_was_appended_with_enough_copies_is_not_committed_with_too_few() -> None:
    replica = owner()
    persist_all(replica, replica.handle(r.Append(X), 101.0), 101.0)
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
    assert not effects(replica.handle(r.Tick(), 101.3), r.Propose)
    [proposal] = effects(replica.handle(r.Tick(), 101.5), r.Propose)
    assert proposal.to.in_sync == ("a", "c")


def test_an_owner_that_hears_nobody_can_give_its_shard_up_and_serves_no_more() -> None:
    replica = owner()
    answer(replica, 101.0)
    assert not replica.isolated(102.9)
    # it does not make itself the only copy at once
    assert not effects(replica.handle(r.Tick(), 103.1), r.Propose)
    assert replica.isolated(103.1)
    [proposal] = effects(replica.handle(r.Abdicate("c", 7), 103.1), r.Propose)
    assert (
        proposal.to.owner,
        proposal.to.incarnation,
        proposal.to.epoch,
        proposal.to.released,
    ) == (
        "c",
        7,
        2,
        True,
    )
    assert not replica.serving(103.1)


def test_an_owner_that_is_really_alone_goes_on_alone_after_a_while() -> None:
    replica = owner()
    answer(replica, 101.0)
    [proposal] = effects(replica.handle(r.Tick(), 105.1), r.Propose)
    assert proposal.to.in_sync == ("a",)


def test_what_a_replica_said_before_it_was_met_again_does_not_count() -> None:
    replica = owner()
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b")), 2), 102.0)
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b"), joining=("c",)), 3), 103.0)
    late = r.Received("c", r.Acknowledge(1, replica.log.last.seq, 101.0))
    replica.handle(late, 103.1)
    assert replica.peers["c"].matched == 0
    answer(replica, 103.2, "c")
    assert replica.peers["c"].matched == replica.log.last.seq


def test_a_copy_is_dropped_only_with_the_word_of_an_owner_that_does_not_know_it() -> None:
    replica = r.Replica.start("d", 1, SETTINGS, Stored(), 0.0)
    replica.handle(
        r.Received("a", r.Replicate(1, r.Position(0, 0), (r.LogEntry(1, 1, X),), 0, 1.0)), 10.0
    )
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c")), 5), 11.0)
    [asked] = effects(replica.handle(r.Tick(), 12.0), r.Send)
    assert (asked.to, asked.message.epoch) == ("a", 1)
    assert effects(owner().handle(r.Received("d", r.MayDrop(1, 7)), 101.0), r.Send)[
        0
    ].message == r.Drop(1, 7)
    assert not effects(owner().handle(r.Received("b", r.MayDrop(1, 7)), 101.0), r.Send)
    # it was asked to join meanwhile
    replica.handle(r.Received("a", r.Replicate(1, r.Position(1, 1), (), 0, 2.0)), 12.1)
    assert not effects(
        replica.handle(r.Received("a", r.Drop(1, asked.message.number)), 12.2), r.Persist
    )
    [again] = effects(replica.handle(r.Tick(), 14.0), r.Send)
    overtaken = r.Drop(1, asked.message.number)  # the answer to the first question, late
    assert not effects(replica.handle(r.Received("a", overtaken), 14.05), r.Persist)
    [wiped] = effects(
        replica.handle(r.Received("a", r.Drop(1, again.message.number)), 14.1), r.Persist
    )
    assert (wiped.wipe, replica.log.last, replica.epoch) == ((0, 0), (0, 0), 1)


def test_a_shard_that_was_given_up_begins_where_no_old_log_reaches() -> None:
    old = r.Replica.start("b", 1, SETTINGS, Stored(), 0.0)
    entries = tuple(r.LogEntry(1, n, X) for n in range(1, 4))
    persist_all(
        old,
        old.handle(r.Received("a", r.Replicate(1, r.Position(0, 0), entries, 3, 1.0)), 10.0),
        10.0,
    )
    assert old.log.applied == 3
    fresh = r.Replica.start("d", 1, SETTINGS, Stored(), 0.0)
    out = fresh.handle(r.Assigned(Assignment(2, "d", 1, ("d",), void_before=2), 9), 20.0)
    assert next(effect.wipe for effect in effects(out, r.Persist)) == (2, 2 << 40)
    persist_all(fresh, out, 20.0)
    first = r.Replicate(
        2, r.Position(2, 2 << 40), (r.LogEntry(2, (2 << 40) + 1, term_data(5)),), 0, 21.0
    )
    out = old.handle(r.Received("d", first), 21.0)  # it has not heard of the new assignment
    assert isinstance(persist_all(old, out, 21.0)[0].message, r.Mismatch)
    out = old.handle(
        r.Assigned(Assignment(2, "d", 1, ("d",), joining=("b",), void_before=2), 10), 22.0
    )
    assert [effect.wipe for effect in effects(out, r.Persist)] == [(0, 0)]


def test_a_snapshot_on_its_way_keeps_the_log_that_has_to_follow_it() -> None:
    replica = owner(joining=("d",))
    replica.handle(r.SnapshotStarted("d"), 101.0)
    for _ in range(SETTINGS.log_keep_max + 50):
        persist_all(replica, replica.handle(r.Append(X), 102.0), 102.0)
        answer(replica, 102.0)
    assert replica.log.base.seq == 1  # where the snapshot was taken
    replica.handle(r.SnapshotEnded("d", True), 103.0)
    persist_all(replica, replica.handle(r.Append(X), 103.0), 103.0)
    answer(replica, 103.0)
    assert replica.log.base.seq == 1  # it was delivered, but what came since was not
    answer(replica, 103.0, "d")
    persist_all(replica, replica.handle(r.Append(X), 103.0), 103.0)
    answer(replica, 103.0)
    assert replica.log.applied - replica.log.base.seq <= SETTINGS.log_keep_max


def test_a_node_that_is_assigned_before_it_knows_that_it_is_a_member_takes_the_shard_then() -> None:
    replica = r.Replica.start("a", 0, SETTINGS, Stored(), 0.0)
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c"), released=True), 1), 100.0)
    assert not replica.owning
    replica.handle(r.Rejoined(1), 100.1)
    assert replica.owning


C_IS_SLOW = r.Tick(frozenset("c"))


def test_a_slow_copy_leaves_the_in_sync_set_is_streamed_to_and_comes_back() -> None:
    replica = owner()
    answer(replica, 101.0)
    [proposal] = effects(replica.handle(C_IS_SLOW, 101.0), r.Propose)
    assert (proposal.to.in_sync, proposal.to.joining) == (("a", "b"), ("c",))
    out = replica.handle(r.Append(X), 101.0)
    persist_all(replica, out, 101.0)
    assert not effects(answer(replica, 101.0, "b"), r.Apply), "etcd may not have heard yet"
    assert effects(replica.handle(r.ProposalResult(True, 2, proposal.to), 101.1), r.Apply)
    assert [effect.to for effect in effects(replica.handle(r.Append(X), 101.2), r.Send)] == [
        "b",
        "c",
    ]
    persist_all(replica, replica.handle(r.Append(X), 101.2), 101.2)
    answer(replica, 101.3)
    assert not effects(replica.handle(C_IS_SLOW, 101.4), r.Propose)
    [back] = effects(replica.handle(r.Tick(), 101.5), r.Propose)
    assert (back.to.in_sync, back.to.joining) == (("a", "b", "c"), ())


def test_a_slow_copy_that_has_lost_its_tail_does_not_come_back_with_it() -> None:
    replica = owner()
    persist_all(replica, replica.handle(r.Append(X), 101.0), 101.0)
    answer(replica, 101.1)
    [proposal] = effects(replica.handle(C_IS_SLOW, 101.2), r.Propose)
    replica.handle(r.Received("c", r.Mismatch(1, 1, 101.15)), 101.3)
    assert replica.peers["c"].lost
    replica.handle(r.ProposalResult(True, 2, proposal.to), 101.4)
    assert not effects(replica.handle(r.Tick(), 101.5), r.Propose), "nobody knows what it has"
    answer(replica, 101.6)
    [back] = effects(replica.handle(r.Tick(), 101.7), r.Propose)
    assert back.to.in_sync == ("a", "b", "c")


def test_a_slow_copy_stays_where_writes_would_end_without_it_and_is_taken_back_when_they_would() -> (  # noqa: E501
    None
):
    replica = owner()
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "c")), 2), 101.0)
    answer(replica, 101.0, "c")
    assert not effects(replica.handle(C_IS_SLOW, 101.0), r.Propose)
    other = owner()
    [proposal] = effects(other.handle(r.Tick(frozenset("bc")), 100.1), r.Propose)
    assert (proposal.to.in_sync, proposal.to.joining) == (("a", "c"), ("b",)), (
        "one of them has to stay"
    )
    late = owner()
    late.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b"), joining=("c",)), 2), 101.0)
    answer(late, 101.0)
    assert not effects(late.handle(C_IS_SLOW, 101.1), r.Propose)
    answer(late, 103.5, "c")
    [proposal] = effects(late.handle(C_IS_SLOW, 103.6), r.Propose)
    assert (proposal.to.in_sync, proposal.to.joining) == (("a", "c"), ()), "b is silent"


def test_a_slow_copy_stays_until_enough_others_have_taken_something_of_the_term() -> None:
    replica = r.Replica.start("a", 1, SETTINGS, Stored(), 90.0)
    out = replica.handle(
        r.Assigned(Assignment(1, "a", 1, ("a", "b", "c"), released=True), 1), 100.0
    )
    persist_all(replica, out, 100.0)
    report(replica, 100.0)
    answer(replica, 100.1, "c")
    assert not effects(replica.handle(C_IS_SLOW, 100.1), r.Propose), (
        "b may be dead, and then nothing could be committed"
    )
    answer(replica, 100.2, "b")
    [proposal] = effects(replica.handle(C_IS_SLOW, 100.2), r.Propose)
    assert (proposal.to.in_sync, proposal.to.joining) == (("a", "b"), ("c",))


def test_a_proposal_whose_result_is_unknown_is_tried_again_and_counts_until_then() -> None:
    replica = owner()
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b"), joining=("c",)), 2), 101.0)
    answer(replica, 101.0)
    [proposal] = effects(replica.handle(r.Tick(), 101.1), r.Propose)
    assert proposal.to.in_sync == ("a", "b", "c")
    replica.handle(r.ProposalResult(None), 101.2)
    persist_all(replica, replica.handle(r.Append(X), 101.3), 101.3)
    assert not effects(answer(replica, 101.3, "b"), r.Apply), "etcd may count c by now"
    [again] = effects(replica.handle(r.Tick(), 101.2 + SETTINGS.proposal_retry_s), r.Propose)
    assert again.to == proposal.to


def test_an_owner_tells_which_copies_hold_up_what_enough_others_have() -> None:
    replica = owner()
    base = replica.log.last.seq
    out = replica.handle(r.Append(X), 101.0)
    assert replica.held_up(()) == [], "nobody but the owner could have it"
    answer(replica, 101.0, "b", "c")
    assert replica.held_up(()) == [("a", base, base + 1)], "its own disk"
    persist_all(replica, out, 101.0)
    assert replica.held_up(()) == []
    persist_all(replica, replica.handle(r.Append(X), 101.1), 101.1)
    assert replica.held_up(()) == [], "two are late: neither is alone"
    answer(replica, 101.1, "b")
    assert replica.held_up(()) == [("c", base + 1, base + 2)]
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b"), joining=("c",)), 2), 101.2)
    assert replica.held_up(()) == []
    assert replica.held_up("c") == [("c", base + 1, base + 2)], "a slow one is watched on"


def test_silent_replicas_and_those_that_leave_are_counted_together() -> None:
    replica = owner()
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c"), leaving=("c",)), 2), 101.0)
    answer(replica, 101.0)
    answer(replica, 103.5, "c")
    [proposal] = effects(replica.handle(r.Tick(), 103.6), r.Propose)
    assert proposal.to.in_sync == ("a", "c")  # b is silent; c would be asked to leave too few


def test_a_release_that_did_not_come_about_serves_again_when_everything_appended_is_committed() -> (
    None
):
    replica = owner()
    out = replica.handle(r.Append(X), 101.0)
    answer(replica, 101.0, "c")
    replica.handle(r.Release("b", 1), 101.1)
    assert replica.releasing
    replica.handle(r.Assigned(Assignment(1, "a", 1, ("a", "b", "c")), 2), 101.2)
    assert not replica.releasing
    assert not replica.serving(101.2)
    persist_all(replica, out, 101.3)
    answer(replica, 101.3)
    assert replica.serving(101.3)


# -- disks that are put back

TURNS = (X, X, X)


class Log:
    """What a copy has on disk: an epoch's first entry and entries of turns for each term, all in
    the log."""

    base = r.Position(0, 0)
    applied = 0
    chain: list[r.Term] = []  # noqa: RUF012

    def __init__(self, *terms: tuple[int, int, int], high: int = 0) -> None:
        """`terms`: epoch, nonce, and how many entries of turns."""
        self.entries: list[r.LogEntry] = []
        for epoch, nonce, turns in terms:
            for data in (term_data(nonce), *(X for _ in range(turns))):
                self.entries.append(r.LogEntry(epoch, len(self.entries) + 1, data))
        self.epoch = terms[-1][0] if terms else 0
        self.high = high


def copy_of(name: str, *terms: tuple[int, int, int], high: int = 0, now: float = 90.0) -> r.Replica:
    return r.Replica.start(name, 1, SETTINGS, Log(*terms, high=high), now)


def elect(
    replica: r.Replica,
    epoch: int,
    now: float = 100.0,
    in_sync: tuple[str, ...] = ("a", "b", "c"),
    **more: Any,
) -> list[Any]:
    out = replica.handle(
        r.Assigned(
            Assignment(epoch, "a", 1, in_sync, released=True, nonce=epoch * 11, **more), epoch
        ),
        now,
    )
    return out + persist_all(replica, out, now)


def reported_by(copy: r.Replica, epoch: int, now: float) -> r.Report:
    out = copy.handle(r.Received("a", r.Canvass(epoch, now)), now)
    out += persist_all(copy, out, now)
    [sent] = [
        effect.message for effect in effects(out, r.Send) if isinstance(effect.message, r.Report)
    ]
    return sent


def test_a_restarted_owner_begins_only_when_enough_others_have_reported() -> None:
    replica = copy_of("a", (1, 11, 3), high=2)
    out = elect(replica, 2)
    assert {type(effect.message) for effect in effects(out, r.Send)} == {r.Canvass}
    assert replica.electing
    replica.handle(r.Received("b", reported_by(copy_of("b", (1, 11, 3)), 2, 100.1)), 100.1)
    assert replica.electing, "c has not reported"
    replica.handle(r.Tick(), 101.9)
    assert replica.electing
    replica.handle(r.Received("b", reported_by(copy_of("b", (1, 11, 3)), 2, 102.1)), 102.1)
    assert not replica.electing, "one other has, and two seconds have passed"
    assert replica.log.chain[-1] == r.Term(2, 22, 5)
    assert not replica.alone


def test_all_reports_are_waited_for_no_longer_and_a_copy_that_has_lost_nothing_waits_for_nobody() -> (  # noqa: E501
    None
):
    replica = copy_of("a", (1, 11, 3))
    elect(replica, 2)
    for name in ("b", "c"):
        replica.handle(r.Received(name, reported_by(copy_of(name, (1, 11, 3)), 2, 100.1)), 100.1)
    assert not replica.electing
    replica = copy_of("a", (1, 11, 3))
    heartbeat = r.Replicate(1, r.Position(1, 4), (), 4, 95.0, 11)
    replica.handle(r.Received("b", heartbeat), 95.0)
    assert replica.unbroken
    elect(replica, 2)
    assert not replica.electing


def test_an_owner_that_nobody_answers_begins_after_half_a_minute_and_says_so() -> None:
    replica = copy_of("a", (1, 11, 3))
    elect(replica, 2)
    assert not effects(replica.handle(r.Tick(), 129.0), r.Propose), (
        "it would be alone with what it may have lost"
    )
    assert replica.electing
    assert replica.unheard(129.0), "another in-sync node may take the shard, if one is there"
    replica.handle(r.Tick(), 130.1)
    assert not replica.electing
    assert replica.alone
    only = copy_of("a", (1, 11, 3))
    elect(only, 2, in_sync=("a",))
    assert not only.electing
    assert not only.alone


def test_a_restarted_owner_concedes_to_whoever_has_later_entries_of_turns() -> None:
    replica = copy_of("a", (1, 11, 1))  # its disk was put back: it acknowledged three
    elect(replica, 2)
    replica.handle(r.Received("c", reported_by(copy_of("c", (1, 11, 2)), 2, 100.1)), 100.1)
    replica.handle(r.Received("b", reported_by(copy_of("b", (1, 11, 3)), 2, 100.1)), 100.1)
    assert (replica.electing, replica.concedes_to) == (True, "b")
    assert not effects(replica.handle(r.Concede("c", 5), 100.2), r.Propose)
    silent = copy.deepcopy(replica)
    # b has not been heard for long: what it said does not hold the shard up for ever
    silent.handle(r.Tick(), 103.5)
    assert silent.concedes_to == ""
    [proposal] = effects(replica.handle(r.Concede("b", 5), 100.2), r.Propose)
    assert (
        proposal.to.owner,
        proposal.to.incarnation,
        proposal.to.epoch,
        proposal.to.released,
    ) == (
        "b",
        5,
        3,
        False,
    )
    replica.handle(r.ProposalResult(None), 100.3)
    for name in ("b", "c"):
        again = msgspec.structs.replace(
            reported_by(copy_of(name, (1, 11, 1)), 2, 100.4), sent_at=100.4
        )
        replica.handle(r.Received(name, again), 100.5)
    assert replica.electing, "it may have happened: another one may be the owner"


def test_what_is_known_to_be_committed_is_not_cut_and_the_owner_stops() -> None:
    """The owner's disk was put back, and it has written since: both sides hold entries of turns, so
    a person has to choose."""
    replica = copy_of("b", (1, 11, 3), high=4)
    entries = (r.LogEntry(2, 3, term_data(22)), r.LogEntry(2, 4, X))
    out = replica.handle(
        r.Received("a", r.Replicate(2, r.Position(1, 2), entries, 2, 100.0, 11)), 100.0
    )
    out += persist_all(replica, out, 100.0)
    [sent] = effects(out, r.Send)
    assert isinstance(sent.message, r.Conflict)
    assert (sent.message.high, replica.log.last) == (4, (1, 4))
    stale = copy_of("a", (1, 11, 1))
    elect(stale, 2, in_sync=("a",), joining=("b",))
    persist_all(stale, stale.handle(r.Append(X), 99.0), 99.0)
    out = stale.handle(r.Received("b", msgspec.structs.replace(sent.message, sent_at=100.0)), 100.1)
    assert not stale.serving(100.1)
    assert stale.forked == {"b"}
    [proposal] = effects(stale.handle(r.Tick(), 100.2), r.Propose)
    assert proposal.to.forked == ("a", "b")
    assert proposal.to.in_sync == ("a",)
    later = copy_of("a", (1, 11, 1))
    elect(later, 3, in_sync=("a",), forked=("a", "b"))
    assert later.electing, "no later owner serves it either"


def test_an_owner_with_first_entries_only_gives_way_to_a_copy_with_more() -> None:
    stale = copy_of("a", (1, 11, 1))
    elect(stale, 2, in_sync=("a",), joining=("b",))
    conflict = r.Conflict(2, r.Position(1, 4), 4, (r.Term(1, 11, 1),), 100.0)
    stale.handle(r.Received("b", conflict), 100.1)
    assert (stale.concedes_to, stale.forked, stale.serving(100.1)) == ("b", frozenset(), False)
    [proposal] = effects(stale.handle(r.Concede("b", 5), 100.2), r.Propose)
    assert (proposal.to.owner, proposal.to.in_sync) == ("b", ("a", "b"))


def test_a_copy_with_first_entries_only_gives_way_to_the_owner() -> None:
    owns = copy_of("a", (1, 11, 1))
    elect(owns, 3, in_sync=("a",), joining=("b",))
    persist_all(owns, owns.handle(r.Append(X), 99.0), 99.0)
    # what it knows to be committed behind entry 2 is an empty entry
    other = copy_of("b", (1, 11, 1), (2, 22, 0), high=3)
    message = r.Replicate(3, r.Position(1, 2), tuple(owns.log.entries[2:]), 4, 100.0, 11)
    out = other.handle(r.Received("a", message), 100.0)
    [sent] = effects(out + persist_all(other, out, 100.0), r.Send)
    assert isinstance(sent.message, r.Conflict)
    [said] = effects(owns.handle(r.Received("b", sent.message), 100.1), r.Send)
    assert said.message == r.Yield(3, 2)
    assert owns.serving(100.1)
    out = other.handle(r.Received("a", said.message), 100.2)
    assert effects(out, r.KeepHigh) == [r.KeepHigh(2)]
    other.handle(r.Received("a", message), 100.3)
    assert other.log.entries == owns.log.entries
    refuses = copy_of("b", (1, 11, 3), high=4)
    assert not refuses.handle(r.Received("a", r.Yield(1, 2)), 100.2), (
        "there are entries of turns behind it"
    )


@pytest.mark.parametrize("high", [0, 2, 4])
def test_a_snapshot_replaces_a_copy_only_if_it_has_what_is_committed_there(high: int) -> None:
    replica = copy_of("b", (1, 11, 3), high=high)
    snapshot = r.Snapshot(
        3, r.Position(3, 6), b"state", 100.0, chain=(r.Term(1, 11, 1), r.Term(3, 33, 3))
    )
    out = replica.handle(r.Received("a", snapshot), 100.0)
    installed = [effect for effect in effects(out, r.Persist) if effect.install is not None]
    assert bool(installed) is (high <= 2)
    [sent] = effects(out + persist_all(replica, out, 100.0), r.Send)
    assert isinstance(sent.message, r.Acknowledge if high <= 2 else r.Conflict)


def test_a_snapshot_that_was_overtaken_by_the_log_changes_nothing() -> None:
    replica = copy_of("b", (1, 11, 3), high=4)
    snapshot = r.Snapshot(1, r.Position(1, 3), b"state", 100.0, chain=(r.Term(1, 11, 1),))
    out = replica.handle(r.Received("a", snapshot), 100.0)
    assert not effects(out, r.Persist)
    [sent] = effects(out, r.Send)
    assert sent.message == r.Acknowledge(1, 3, 100.0)


def test_an_entry_of_the_same_epoch_and_seq_from_another_history_is_another_entry() -> None:
    """Etcd was put back, and gave one epoch twice."""
    replica = copy_of("b", (1, 11, 1), (2, 99, 1))
    heartbeat = r.Replicate(2, r.Position(2, 4), (), 0, 100.0, 22)
    out = replica.handle(r.Received("a", heartbeat), 100.0)
    [sent] = effects(out + persist_all(replica, out, 100.0), r.Send)
    assert isinstance(sent.message, r.Mismatch)
    first = r.Replicate(2, r.Position(1, 2), (r.LogEntry(2, 3, term_data(22)),), 0, 100.1, 11)
    replica.handle(r.Received("a", first), 100.1)
    assert replica.log.chain == [r.Term(1, 11, 1), r.Term(2, 22, 3)]
    assert replica.log.last == (2, 3)


def test_a_copy_that_has_lost_what_it_acknowledged_is_removed_and_one_that_is_late_is_not() -> None:
    replica = owner()
    persist_all(replica, replica.handle(r.Append(X), 101.0), 101.0)
    answer(replica, 101.0)
    late = r.Mismatch(1, 1, 101.0)  # sent before it acknowledged two
    replica.handle(r.Received("c", late), 101.1)
    assert not effects(replica.handle(r.Tick(), 101.2), r.Propose)
    replica.handle(r.Received("c", r.Mismatch(1, 1, 101.3)), 101.4)
    answer(replica, 101.4, "b")
    [proposal] = effects(replica.handle(r.Tick(), 101.5), r.Propose)
    assert proposal.to.in_sync == ("a", "b")


def test_a_joining_copy_that_has_lost_its_tail_is_sent_it_again() -> None:
    replica = owner(joining=("d",))
    answer(replica, 101.0, "d")
    out = replica.handle(r.Received("d", r.Mismatch(1, 0, 101.5)), 101.6)
    assert [effect.message.previous for effect in effects(out, r.Send)] == [(0, 0)]
    assert replica.peers["d"].matched == 0


def test_the_high_water_is_kept_with_entries_and_after_a_second_without_one() -> None:
    replica = owner()
    replica.handle(r.Tick(), 100.9)
    [kept] = effects(replica.handle(r.Append(X), 101.0), r.Persist)
    assert kept.high == 1
    persist_all(replica, [kept], 101.0)
    answer(replica, 101.0)
    assert not effects(replica.handle(r.Tick(), 101.5), r.KeepHigh)
    assert effects(replica.handle(r.Tick(), 102.6), r.KeepHigh) == [r.KeepHigh(2)]
    assert not effects(replica.handle(r.Tick(), 109.0), r.KeepHigh)


def test_a_start_counts_as_a_promise_to_whoever_was_the_owner() -> None:
    replica = copy_of("a", (1, 11, 3), now=99.9)
    out = replica.handle(r.Assigned(Assignment(2, "a", 1, ("a",), nonce=22), 2), 100.0)
    persist_all(replica, out, 100.0)
    assert not replica.serving(102.8)
    assert replica.serving(103.0)


def test_an_operator_keeps_one_of_several_copies_and_the_others_are_void() -> None:
    kept, void = copy_of("a", (1, 11, 3), high=4), copy_of("b", (1, 11, 1), (2, 22, 3), high=6)
    chosen: dict[str, Any] = {"in_sync": ("a",), "void_before": 3, "keeper": "a"}
    elect(kept, 3, **chosen)
    assert (kept.electing, kept.log.last, kept.log.chain[-1]) == (False, (3, 5), r.Term(3, 33, 5))
    out = elect(void, 3, **chosen)
    assert [effect.wipe for effect in effects(out, r.Persist) if effect.wipe] == [(0, 0)]
