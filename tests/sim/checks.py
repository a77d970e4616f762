"""What must always hold in a simulated world, seen from outside. Each check raises `Broken` with
the rule's name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast_node.log.changes import is_term

if TYPE_CHECKING:
    from holdfast_cluster.placement.model import Assignment
    from holdfast_node.replication import LogEntry, Position

    from .world import World


class Broken(AssertionError):
    """A rule does not hold."""


@dataclass
class Operation:
    """One client's call."""

    number: int
    kind: str
    called_at: float


class Checks:
    """Rules: one committed history; no committed entry lost; one owner that serves; linearizable
    appends and reads."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.history: dict[int, LogEntry] = {}
        self.acknowledged: dict[bytes, float] = {}
        self._longest: list[bytes] = []
        self.replies = 0
        self._snapshots: dict[int, list[bytes]] = {}
        # (replied at, length) of the longest lists seen so far
        self._seen: list[tuple[float, int]] = []

    def applied(self, node: str, entries: tuple[LogEntry, ...]) -> None:
        """There is one committed history: all nodes apply the same entry at one seq."""
        for entry in entries:
            known = self.history.setdefault(entry.seq, entry)
            if known != entry and self._world.went_back and is_term(known.data):
                self.history[entry.seq] = (
                    # a disk that went back may lose a first entry, which holds no data
                    entry
                )
            elif known != entry:
                raise Broken(
                    f"one history: {node} applies {entry}, but {known} was committed at that seq"
                )

    def installed(self, node: str, position: Position, state: list[bytes]) -> None:
        """A snapshot is the committed history up to its position."""
        expected = [
            entry.data
            for seq in range(1, position.seq + 1)
            if not is_term((entry := self.history[seq]).data)
        ]
        if state != expected:
            raise Broken(
                f"one history: {node} takes a snapshot at {position} that is not the history up to"
                " there"
            )

    def assigned(self, before: Assignment | None, after: Assignment) -> None:
        """The next owner was in sync, and epochs grow by one. With a disk that went back it may
        also be one that has more."""
        if before is None:
            return
        if after.epoch not in (before.epoch, before.epoch + 1):
            raise Broken(f"epochs: {before.epoch} then {after.epoch}")
        conceded = self._world.went_back and after.in_sync == (*before.in_sync, after.owner)
        if after.epoch > before.epoch and after.owner not in before.in_sync and not conceded:
            raise Broken(
                f"rule 7: {after.owner} becomes the owner, but {before.in_sync} were in sync"
            )

    def called(self, operation: Operation) -> None:
        operation.called_at = self._world.now

    def replied(self, operation: Operation, result: list[bytes]) -> None:
        """Linearizable: every answer is a prefix of one growing list, and nothing that was told
        before the call is missing."""
        self.replies += 1
        now = self._world.now
        if operation.kind == "write":
            self.acknowledged[result[0]] = now
            return
        if result[: len(self._longest)] != self._longest[: len(result)]:
            raise Broken(
                f"linearizable: a read returns {result[-3:]}, another one {self._longest[-3:]}"
            )
        known = max((length for at, length in self._seen if at < operation.called_at), default=0)
        if len(result) < known:
            raise Broken(
                f"linearizable: a read returns {len(result)} elements, an earlier one had {known}"
            )
        there = set(result)
        missing = [
            data
            for data, at in self.acknowledged.items()
            if at < operation.called_at and data not in there
        ]
        if missing:
            raise Broken(
                f"acknowledged means kept: {missing[:3]} were acknowledged before a read that does"
                " not have them"
            )
        if len(there) != len(result):
            raise Broken("once: an element is there twice")
        if len(result) > len(self._longest):
            self._longest = list(result)
            self._seen.append((now, len(result)))

    def after_each_event(self) -> None:
        """At no time do two nodes serve."""
        serving = [
            node.name
            for node in self._world.nodes.values()
            if node.up and not node.paused and node.replica.serving(node.clock)
        ]
        if len(serving) > 1:
            raise Broken(f"one owner: {' and '.join(serving)} serve at once")

    def _kept_by_one_of(self, forked: Iterable[str]) -> None:
        """A disk went back, and an operator has to choose: what was acknowledged is in the copies
        to choose from."""
        if not set(forked) <= set(self._world.nodes):
            return  # one of them was lost as well: more than is promised
        copies = []
        for name in forked:
            node = self._world.nodes[name]
            copies.append(
                {
                    *node.state,
                    *(entry.data for entry in node.replica.log.entries if not is_term(entry.data)),
                }
            )
        if not any(one - other and other - one for one in copies for other in copies):
            raise Broken(
                f"progress: {forked} count as forked, but one of them has all that the others have"
            )
        if missing := set(self.acknowledged) - set().union(*copies):
            raise Broken(
                f"acknowledged means kept: {sorted(missing)[:3]} are in none of the copies that"
                " differ"
            )

    def finally_(self) -> None:
        """After healing: somebody serves, everything acknowledged is there once, and all replicas
        agree."""
        world = self._world
        serving = [
            node for node in world.nodes.values() if node.up and node.replica.serving(node.clock)
        ]
        assignment = world.etcd.assignment
        forked = assignment.forked if assignment is not None else ()
        if not serving and forked and world.went_back:
            self._kept_by_one_of(forked)
            return
        if (
            not serving
            and world.lone_never
            and assignment is not None
            and set(assignment.in_sync) - set(world.nodes)
        ):
            # a restarted owner waits for a copy whose disk is lost: in these worlds its own never
            # counts alone
            return
        if not serving:
            raise Broken("progress: nobody serves after everything was healed")
        owner = serving[0]
        there = owner.state
        for data in self.acknowledged:
            if there.count(data) != 1:
                raise Broken(
                    f"acknowledged means kept: {data!r} is there {there.count(data)} times in"
                    " the end"
                )
        assert owner.replica.assignment is not None
        in_sync = owner.replica.assignment.in_sync
        wanted = world.wanted()
        if owner.name != wanted[0] or set(in_sync) != set(wanted):
            raise Broken(
                f"progress: {owner.name} owns and {in_sync} are in sync, but the ring wants"
                f" {wanted}, the first as the owner"
            )
