"""The outbox: when it sends a notification, and what it does with one that failed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from holdfast_node.effects.outbox import (
    Dead,
    Delivered,
    Failed,
    Failure,
    Outbox,
    OutboxLimits,
    PendingNotification,
)
from holdfast_node.effects.records import Notification

LIMITS = OutboxLimits(
    object_max=5,
    node_max=20,
    on_way_max=6,
    receiver_on_way_max=2,
    backlog_per_s=10,
    backoff_s=(0.1, 60.0),
    dead_letters_max=10,
)
OOPS = Failure("APPLICATION", "oops", counts=True)
AWAY = Failure("UNAVAILABLE", "away", counts=False)
REJECTED = Failure("APPLICATION", "Rejected: no", counts=True, final=True)
DAY_MS = 86_400_000


@dataclass(eq=False)
class AShard:
    owned: bool = True


SHARD = AShard()


def note(
    sender: str, receiver: str, number: int, shard: AShard = SHARD, backlog: bool = False
) -> PendingNotification:
    return PendingNotification(
        shard,
        number.to_bytes(16, "big"),
        Notification("S", sender, "R", receiver, "m", b"x" * 10, 0),
        backlog,
    )


def outbox(limits: OutboxLimits = LIMITS) -> Outbox:
    return Outbox(limits, random.Random(1).uniform, 0.0)


def go(
    box: Outbox, now: float = 0.0, paused: set[str] | None = None, away: set[str] | None = None
) -> list[PendingNotification]:
    return box.take(
        now,
        lambda target: target[1] not in (away or ()),
        lambda target: target[1] in (paused or ()),
    )


def answer(
    box: Outbox,
    one: PendingNotification,
    failure: Failure | None = None,
    now: float = 0.0,
    wall_ms: int = 1000,
    may_die: bool = True,
) -> Delivered | Failed | Dead | None:
    return box.answered(
        one, failure, now, wall_ms, attempts_max=3, age_max_ms=DAY_MS, may_die=may_die
    )


def test_of_each_pair_one_is_on_its_way_and_the_next_follows_its_answer() -> None:
    box = outbox()
    first, second, other = note("a", "x", 1), note("a", "x", 2), note("a", "y", 3)
    box.add([first, second, other])
    assert go(box) == [first, other]
    assert go(box) == []
    assert answer(box, first) == Delivered(first)
    assert go(box) == [second]
    answer(box, second)
    answer(box, other)
    assert (box.depth, box.bytes, box.on_way, box.delivered) == (0, 0, 0, 3)


def test_one_that_failed_is_tried_again_later_and_those_behind_it_wait() -> None:
    box = outbox()
    first, second = note("a", "x", 1), note("a", "x", 2)
    box.add([first, second])
    go(box)
    assert answer(box, first, OOPS) == Failed(first)
    assert (first.row.attempts, first.row.first_ms, first.row.error) == (1, 1000, "oops")
    assert go(box, 0.04) == []
    assert go(box, 0.11) == [first]
    answer(box, first, None, 0.11)
    assert go(box, 0.12) == [second]


def test_pauses_double_up_to_the_longest() -> None:
    box = outbox()
    one = note("a", "x", 1)
    box.add([one])
    now = 0.0
    pauses = []
    for _ in range(14):
        while not go(box, now):
            now += 0.01
        answer(box, one, AWAY, now)
        due = box.due(now)
        assert due is not None
        pauses.append(due - now)
    for i, pause in enumerate(pauses):
        longest = min(60.0, 0.1 * 2**i)
        assert longest / 2 <= pause <= longest


def test_it_dies_after_its_attempts_by_its_age_and_when_it_is_rejected_at_once() -> None:
    box = outbox()
    one, two, three = note("a", "x", 1), note("a", "y", 2), note("a", "z", 3)
    box.add([one, two, three])
    go(box)
    assert answer(box, three, REJECTED) == Dead(three, REJECTED)
    # its first failure is kept, for the sake of its age
    assert answer(box, two, AWAY) == Failed(two)
    now = 1.0
    assert go(box, now) == [two]
    assert answer(box, two, AWAY, now, wall_ms=1000 + DAY_MS + 1) == Dead(two, AWAY)
    for i in range(3):
        outcome = answer(box, one, OOPS, now)
        assert outcome == (Failed(one) if i < 2 else Dead(one, OOPS))
        now += 1.0
        go(box, now)
    assert box.depth == 0


def test_what_is_away_does_not_count_as_an_attempt_and_is_written_once() -> None:
    box = outbox()
    one = note("a", "x", 1)
    box.add([one])
    now = 0.0
    outcomes = []
    for _ in range(5):
        while not go(box, now):
            now += 0.05
        outcomes.append(answer(box, one, AWAY, now))
    assert outcomes == [Failed(one), None, None, None, None]
    assert one.row.attempts == 0


def test_where_there_are_too_many_dead_letters_nothing_dies() -> None:
    box = outbox()
    one = note("a", "x", 1)
    box.add([one])
    go(box)
    assert answer(box, one, REJECTED, may_die=False) == Failed(one)
    assert box.depth == 1


def test_a_receiver_that_is_stuck_has_a_few_on_their_way_and_delays_nobody_else() -> None:
    box = outbox()
    stuck = [note(f"s{i}", "stuck", i) for i in range(10)]
    box.add([*stuck, note("a", "x", 20)])
    gone = go(box)
    assert [one.row.key for one in gone] == ["stuck", "stuck", "x"]
    answer(box, gone[0])
    assert go(box) == [stuck[2]]


def test_what_cannot_be_reached_waits_and_what_is_paused_until_it_is_resumed() -> None:
    box = outbox()
    away, held = note("a", "away", 1), note("a", "held", 2)
    box.add([away, held])
    assert go(box, 0.0, paused={"held"}, away={"away"}) == []
    assert go(box, 0.6, paused={"held"}) == [away]
    box.resumed(lambda target: True)
    assert go(box, 100.0, paused={"held"}) == []
    box.resumed(lambda target: False)
    assert go(box, 101.0) == [held]


def test_a_backlog_goes_at_its_rate_and_what_is_fresh_before_it() -> None:
    box = outbox()
    box.add([note(f"s{i}", f"r{i}", i, backlog=True) for i in range(6)])
    fresh = note("a", "x", 99)
    box.add([fresh])
    gone = go(box, 0.0)
    assert gone[0] is fresh
    assert len(gone) == 2
    for one in gone:
        answer(box, one)
    assert len(go(box, 0.3)) <= 3


def test_it_is_bounded_for_each_object_and_in_all() -> None:
    box = outbox()
    box.add([note("a", f"r{i}", i) for i in range(3)])
    assert box.room(SHARD, ("S", "a"), 1) is None
    assert "5 notifications of S/a" in (box.room(SHARD, ("S", "a"), 2) or "")
    box.add([note(f"s{i}", "x", 10 + i) for i in range(17)])
    assert "on this node" in (box.room(SHARD, ("S", "new"), 0) or "")


def test_a_shard_that_goes_takes_its_notifications_along() -> None:
    box = outbox()
    other = AShard()
    mine, theirs = note("a", "x", 1), note("a", "x", 2, other)
    box.add([mine, theirs])
    assert len(go(box)) == 2
    box.drop({other})
    assert answer(box, theirs) is None
    assert answer(box, mine) == Delivered(mine)
    assert (box.depth, box.on_way) == (0, 0)


def test_what_cannot_be_reached_takes_nothing_of_the_rate_of_others() -> None:
    box = outbox()
    limits = OutboxLimits(backlog_per_s=10)
    box = Outbox(limits, random.Random(1).uniform, 0.0)
    box.add([note(f"s{i}", "away", i, backlog=True) for i in range(500)])
    now = 0.0
    for _ in range(50):
        assert go(box, now, away={"away"}) == []
        now += 0.05
    healthy = note("a", "x", 999, backlog=True)
    box.add([healthy])
    assert healthy in go(box, now + 0.2, away={"away"})


def test_what_is_tried_again_leaves_room_for_what_is_new() -> None:
    box = outbox(OutboxLimits(on_way_max=6, backlog_per_s=1000))
    box.add([note(f"s{i}", f"stuck{i}", i, backlog=True) for i in range(10)])
    assert len(go(box)) == 3
    fresh = note("a", "x", 99)
    box.add([fresh])
    assert go(box) == [fresh]


def test_those_that_wait_for_a_crowded_receiver_go_on_after_a_pause_and_the_loss_of_a_shard() -> (
    None
):
    box = outbox()
    other = AShard()
    away = [note(f"s{i}", "x", i, other) for i in range(3)]
    here = [note(f"t{i}", "x", 10 + i) for i in range(3)]
    box.add([*away, *here])
    first, second = go(box)
    answer(box, first)
    go(box, 0.0, paused={"x"})
    box.drop({other})
    answer(box, second)
    box.resumed(lambda target: False)
    gone: list[PendingNotification] = []
    for step in range(1, 50):
        for one in go(box, step / 10):
            gone.append(one)
            answer(box, one, None, step / 10)
    assert sorted(one.sequence for one in gone) == [one.sequence for one in here]
    assert (box.depth, box.on_way) == (0, 0)


# -- what an object has sent is forgotten


def test_what_is_forgotten_does_not_go_and_makes_room_and_others_go_on() -> None:
    box = outbox()
    on_way, behind, paused, waiting = (
        note("a", "x", 1),
        note("a", "x", 2),
        note("a", "p", 3),
        note("a", "w", 4),
    )
    crowd = [note("b", "x", 5), note("c", "x", 6)]  # two at a time for one receiver
    box.add([on_way, behind, paused, waiting, *crowd])
    assert go(box, paused={"p"}) == [on_way, waiting, crowd[0]]
    answer(box, waiting, OOPS)
    assert {one.sequence for one in box.of(SHARD, ("S", "a"))} == {
        one.sequence for one in (on_way, behind, paused, waiting)
    }
    assert set(map(id, box.forget(SHARD, ("S", "a")))) == set(
        map(id, (on_way, behind, paused, waiting))
    )
    assert box.of(SHARD, ("S", "a")) == []
    assert box.forget(SHARD, ("S", "a")) == []
    assert (box.depth, box.bytes, box.on_way) == (2, 20, 2)
    assert box.room(SHARD, ("S", "a"), 4) is None
    assert answer(box, on_way) is None  # it may have arrived; nothing follows from that here
    assert answer(box, crowd[0]) == Delivered(crowd[0])
    assert go(box) == [crowd[1]]
    box.resumed(lambda target: False)
    answer(box, crowd[1])
    assert go(box, now=1000.0) == []
    assert (box.depth, box.on_way) == (0, 0)


def test_what_others_and_other_shards_have_sent_is_not_forgotten() -> None:
    box = outbox()
    elsewhere = AShard()
    mine, namesake, other = note("a", "x", 1), note("a", "y", 1, elsewhere), note("b", "z", 2)
    box.add([mine, namesake, other])
    assert box.forget(SHARD, ("S", "a")) == [mine]
    assert go(box) == [namesake, other]


def test_what_is_sent_again_after_it_was_forgotten_goes() -> None:
    box = outbox()
    before, after = note("a", "x", 1), note("a", "x", 2)
    box.add([before])
    assert go(box) == [before]
    box.forget(SHARD, ("S", "a"))
    box.add([after])
    assert go(box) == [after]
    assert answer(box, before, OOPS) is None
    assert answer(box, after) == Delivered(after)
