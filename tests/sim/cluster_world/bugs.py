"""Ways to break production's shell, each by one rule. The simulator, or a unit test, has to catch
every one of them.

A bug is a list of replacements, (owner, name, value), that hold for a world; `faults` names what
brings it out soonest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from holdfast_cluster.clocks.cluster_time import Clock
from holdfast_cluster.membership import controller
from holdfast_cluster.placement import plan as plan_module
from holdfast_cluster.placement.model import Member, View
from holdfast_cluster.placement.plan import Transition, plan
from holdfast_node.log.commit import Flusher
from holdfast_node.replication.copies import CopyStore
from holdfast_node.replication.copy import Copy
from holdfast_node.replication.core.events import Persist
from holdfast_node.replication.core.replica import Replica
from holdfast_node.replication.host import Replicas
from holdfast_node.store.rocks import Store

from .faults import DEFAULT, often
from .machine import Machine

_serves_until = Replica.serves_until
_begin = Replica._begin
_install = CopyStore.install
_persist = CopyStore.persist
_synced = Flusher._synced
_look = Replicas._look
_joined = Replicas.joined
_scan_now = Store.scan_now
_snapshot_started = Replicas.snapshot_started
_proposal_result = Replica._proposal_result


def _serves_before_its_first_entry(self: Replica, now: float) -> float:
    committed, self.committed = self.committed, max(self.committed, self.first_seq)
    try:
        return _serves_until(self, now)
    finally:
        self.committed = committed


def _serves_by_the_last_promise(self: Replica, now: float) -> float:
    if not _serves_until(self, now):
        return 0.0
    return max((self.promises.until(name) for name in self._counted), default=float("inf"))


def _begins_with_what_was_persisted_before(self: Replica, *given: Any) -> None:
    persisted = self.persisted
    _begin(self, *given)
    self.persisted = persisted


def _installs_without_fsync(self: CopyStore, shard: int, effect: Persist) -> None:
    sync, self._store.sync = self._store.sync, lambda: None  # type: ignore[method-assign]
    try:
        _install(self, shard, effect)
    finally:
        self._store.sync = sync  # type: ignore[method-assign]


def _leaves_the_log_in_the_page_cache(self: Store) -> None:
    self._db.flush_wal(False)
    self.syncs += 1


def _runs_the_next_callbacks_too(self: Flusher, waiting: Any) -> None:
    early, self._waiting = self._waiting, []
    _synced(self, waiting + early)


def _never_lowers_until(self: Replicas, touched: set[Copy], done: Any) -> None:
    before = [(copy.shard, copy.shard.until) for copy in touched if copy.shard is not None]
    _look(self, touched, done)
    for shard, until in before:
        if shard.owned:
            shard.until = max(shard.until, until)


def _does_not_tell_that_it_joined_again(self: Replicas, member: Member, view: View) -> None:
    if self._incarnation == 0:
        _joined(self, member, view)
    else:
        self._incarnation = member.incarnation
        self.follow(view)


def _plans_joining_ones_in_sync(view: View, members_min: int, *given: Any) -> list[Transition]:
    return [
        msgspec_replace(
            transition, in_sync=(*transition.to.in_sync, *transition.to.joining), joining=()
        )
        for transition in plan(view, members_min, *given)
    ]


def _plans_without_generations(view: View, members_min: int, *given: Any) -> list[Transition]:
    return [
        msgspec_replace(transition, void_before=0) for transition in plan(view, members_min, *given)
    ]


def msgspec_replace(transition: Transition, **changes: Any) -> Transition:
    return Transition(
        transition.shard,
        transition.revision,
        msgspec.structs.replace(transition.to, **changes),
        transition.why,
    )


def _does_not_persist_epochs(self: CopyStore, batch: Any, shard: int, effect: Persist) -> None:
    if effect.wipe is None and shard in self._written:
        effect = msgspec.structs.replace(effect, epoch=self._written[shard][0])
    _persist(self, batch, shard, effect)


def _sends_no_replies(
    self: Store, family: str, start: bytes, end: bytes | None
) -> Iterator[tuple[bytes, bytes]]:
    return iter(()) if family == "replies" else _scan_now(self, family, start, end)


def _tells_a_later_position(self: Replicas, number: int, to: str) -> Any:
    _, times, _ = _snapshot_started(self, number, to)
    replica = self._copies[number].replica
    return replica.log.last, times, tuple(replica.log.chain)


def _gives_an_unknown_proposal_up(
    self: Replica, happened: bool | None, revision: int, written: Any, now: float
) -> None:
    if happened is None and self._proposal is not None:
        self._proposal = None
        self.releasing = False
        self._counted = frozenset(self.counted())
    else:
        _proposal_result(self, happened, revision, written, now)


def _takes_any_clock(offsets: list[float]) -> tuple[float, float]:
    return max(offsets), max(offsets)


@dataclass(frozen=True)
class Bug:
    replaced: list[tuple[Any, str, Any]]
    faults: tuple[str, ...] = DEFAULT


BUGS = {
    "served before its first entry": Bug(
        [(Replica, "serves_until", _serves_before_its_first_entry)]
    ),
    "serves until the last promise": Bug(
        [(Replica, "serves_until", _serves_by_the_last_promise)], often(("torn owner",))
    ),
    "flush_wal(False)": Bug([(Store, "sync", _leaves_the_log_in_the_page_cache)]),
    "an fsync error only logged": Bug([(Flusher, "die", staticmethod(lambda why: None))]),
    "Rejoined not passed on": Bug([(Replicas, "joined", _does_not_tell_that_it_joined_again)]),
    "cluster time by the own clock": Bug(
        [(Clock, "_middle", staticmethod(_takes_any_clock))], often(("wall clock", "kill"))
    ),
    "a controller that adds to in_sync": Bug([(controller, "plan", _plans_joining_ones_in_sync)]),
    "snapshot without kept replies": Bug(
        [(Store, "scan_now", _sends_no_replies)], often(("replaced disk", "drain"))
    ),
    "snapshot's position taken late": Bug(
        [(Replicas, "snapshot_started", _tells_a_later_position)], often(("replaced disk", "drain"))
    ),
    "CLOCK_MONOTONIC for CLOCK_BOOTTIME": Bug(
        [(Machine, "boottime", Machine.monotonic)], often(("suspend",))
    ),
}

UNIT_TEST_OF: dict[str, tuple[Bug, str]] = {
    # By now one copy that acknowledges too early is found out by the others: only the loss of all
    # shows it.
    "callbacks of the next flush run early": (
        Bug(
            [(Flusher, "_synced", _runs_the_next_callbacks_too)],
            often(("power of all", "slow disk")),
        ),
        "test_commit.py::test_what_is_staged_during_an_fsync_waits_for_the_next_one",
    ),
    "persisted not reset by an epoch": (
        Bug(
            [(Replica, "_begin", _begins_with_what_was_persisted_before)],
            often(("power of all", "slow disk")),
        ),
        "test_replica.py::test_what_was_persisted_under_an_earlier_epoch_says_nothing_of_the_same_places_now",
    ),
    "ingest without fsync": (
        Bug(
            [(CopyStore, "install", _installs_without_fsync)],
            often(("replaced disk", "drain", "power of all", "power")),
        ),
        "test_disk.py::test_a_snapshot_deletes_what_was_there_for_good_before_its_files_come",
    ),
    "until never lowered": (
        Bug([(Replicas, "_look", _never_lowers_until)], often(("torn owner",))),
        "test_host.py::test_a_shard_is_answered_for_no_longer_than_one_that_came_in_sync_has_promised",
    ),
    "epochs not persisted": (
        Bug(
            [(CopyStore, "persist", _does_not_persist_epochs)],
            often(("kill all", "power of all", "owner without etcd")),
        ),
        "test_disk.py::test_a_tail_is_cut_and_a_log_is_shortened",
    ),
    "unknown proposal given up": (
        Bug(
            [(Replica, "_proposal_result", _gives_an_unknown_proposal_up)],
            often(("etcd's replies", "etcd late", "drain", "kill")),
        ),
        "test_replica.py::test_a_proposal_whose_result_is_unknown_is_tried_again_and_counts_until_then",
    ),
    "a fail-over that forgets the generation": (
        Bug([(plan_module, "plan", _plans_without_generations)]),
        "test_plan.py::test_a_fail_over_keeps_all_that_it_does_not_concern",
    ),
}
"""Not found in a few dozen worlds each, with the faults that should bring them out: a unit test
catches each of them."""

# The first world known to catch it: tried first, so that the test is quick.
CAUGHT_BY = {
    "served before its first entry": 14,
    "serves until the last promise": 3,
    "flush_wal(False)": 0,
    "an fsync error only logged": 26,
    "Rejoined not passed on": 1,
    "cluster time by the own clock": 5,
    "a controller that adds to in_sync": 0,
    "snapshot without kept replies": 0,
    "snapshot's position taken late": 0,
    "CLOCK_MONOTONIC for CLOCK_BOOTTIME": 2,
}
