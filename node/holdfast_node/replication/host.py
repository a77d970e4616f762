"""The host of the replicas of all shards that this node has a copy of: events in, effects out.

Work comes in rounds: a frame of messages, a view, a flush, a tick. The writes of a round are staged
for the next flush. The end of a round asks for a flush if a write has to be on disk. It also tells
the engine which entries are committed, and until when the node may answer for each shard. The
messages of a round to one node leave in one frame.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import ParamSpec, Protocol, TypeVar

from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.placement.model import SHARDS_MAX, Assignment, Member, Versioned, View
from holdfast_cluster.streams.tcp import FRAME_BYTES_MAX

from holdfast_node.log.changes import encode_changes
from holdfast_node.log.commit import Flusher
from holdfast_node.log.shards import Entry, Shard, Shards
from holdfast_node.replication.copies import CopyStore, StoredCopy, Times
from holdfast_node.replication.copy import Copy
from holdfast_node.replication.core.chain import Term, until
from holdfast_node.replication.core.events import (
    Abdicate,
    Append,
    Appended,
    Apply,
    Assigned,
    Concede,
    Effect,
    Event,
    KeepHigh,
    Lost,
    NotAppended,
    Persist,
    Persisted,
    Position,
    ProposalResult,
    Propose,
    Received,
    Rejoined,
    Release,
    ReplicationSettings,
    Send,
    SendSnapshot,
    Snapshot,
    SnapshotEnded,
    SnapshotStarted,
    Tick,
    WireMessage,
)
from holdfast_node.replication.core.replica import Replica
from holdfast_node.replication.slow_nodes import SlowNodes

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_TICKS_ROUND = 10
_DATA_BYTES_MAX = FRAME_BYTES_MAX - (1 << 20)  # an entry has to fit into a frame to a replica
# after a change that concerns many copies, all copies get every tick for this long
_HURRY_S = 1.0
# if the node may answer for a shard for less than this, the round looks at the shard again; ticks
# look more often than that
_REFRESH_S = 1.0


class NoSuchShard(ValueError):
    """The error for a shard number that cannot exist, in a message of a node."""


def _ends_the_node(step: Callable[P, T]) -> Callable[P, T]:
    """Make a step of `Replicas` end the node if it fails.

    Otherwise the caller would only log the exception, or end a task that no other task waits for.
    The replicas would then go on half changed.
    """

    @functools.wraps(step)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return step(*args, **kwargs)
        except NoSuchShard:
            raise
        except Exception:
            args[0]._flusher.die(f"{step.__name__}: a bug in replication")  # type: ignore[attr-defined]
            raise

    return guarded


class Surroundings(Protocol):
    """The actions that replicas ask of the rest of the node."""

    def send(self, to: str, shard: int, message: WireMessage) -> None:
        """Send a message to a node."""

    def propose(self, shard: int, old: bytes, to: Assignment) -> None:
        """Ask etcd to replace exactly the bytes `old` by an assignment.

        The answer goes to `Replicas.proposal_answered`.
        """

    def send_snapshot(self, shard: int, to: str, epoch: int) -> None:
        """Send a shard to a node, unless that is under way."""

    def full(self, assignment: Assignment) -> str | None:
        """Return why this node's disk stops writes to owned shards with such an assignment.

        Return None if they take writes, or are about to be handed over.
        """


class Replicas:
    """All copies of a node, with their replicas. Implements `holdfast_node.log.shards.ShardLog`."""

    def __init__(
        self,
        node: str,
        copies: CopyStore,
        flusher: Flusher,
        shards: Shards,
        settings: ReplicationSettings,
        surroundings: Surroundings,
    ) -> None:
        self._node = node
        self._disk = copies
        self._flusher = flusher
        self._shards = shards
        self._settings = settings
        self._surroundings = surroundings
        self._send = surroundings.send
        self.slow_nodes = SlowNodes(node, flusher, boottime())
        self._incarnation = 0
        self._incarnations: dict[str, int] = {}
        self._orders: dict[int, int] = {}  # by shard: the order of its newest assignment
        self._now = boottime()
        self._ticks = 0
        self._unsettled: set[Copy] = set()  # owned, and not serving or about to change
        self._hurry_until = 0.0
        self._unseen = False  # staged committed changes are unknown to activations
        self._numbers: dict[Copy, int] = {}
        self._touched: set[Copy] = set()
        self._done: list[Entry] = []
        self._copies: dict[int, Copy] = {}
        self._in_turn: list[set[Copy]] = [set() for _ in range(_TICKS_ROUND)]
        for number, stored in copies.load().items():
            self._new(number, stored)

    def copies(self) -> Iterable[Copy]:
        return self._copies.values()

    def get(self, number: int) -> Copy | None:
        return self._copies.get(number)

    def unsettled(self) -> Iterable[Copy]:
        """Return the owned copies that do not serve, or whose assignment is to change."""
        return list(self._unsettled)

    # -- events

    @_ends_the_node
    def joined(self, member: Member, view: View) -> None:
        """Take note that the node is a member under a new incarnation."""
        self._incarnation = member.incarnation
        self._now = boottime()
        for copy in self._copies.values():
            self._do(copy, Rejoined(member.incarnation))
        self._end()
        self.follow(view)

    @_ends_the_node
    def follow(self, view: View) -> None:
        """Take new assignments that etcd shows. Their rows are staged.

        Replicas learn of them only when the rows are on disk.
        """
        for name, member in view.members.items():
            if self._incarnations.get(name, member.incarnation) != member.incarnation:
                self.slow_nodes.renewed(name)
            self._incarnations[name] = member.incarnation
        new = []
        for number, versioned in view.assignments.items():
            if versioned.order > self._orders.get(number, 0):
                self._orders[number] = versioned.order
                to = versioned.assignment
                if number in self._copies or self._node in (to.owner, *to.in_sync, *to.joining):
                    new.append((number, versioned))
        if new:
            self._flusher.when_durable(lambda: self._assigned(new))

    def _assigned(self, new: list[tuple[int, Versioned]]) -> None:
        self._now = boottime()
        for number, versioned in new:
            copy = self._copy(number)
            if versioned.order > copy.order:  # else etcd's answer to a proposal came sooner
                copy.order, copy.raw = versioned.order, versioned.raw
                self._do(copy, Assigned(versioned.assignment, versioned.order))
        self._end()

    @_ends_the_node
    def received(self, sender: str, messages: list[tuple[int, WireMessage]]) -> None:
        """Take the messages of a frame from a node."""
        self._now = boottime()
        for number, message in messages:
            self._do_often(self._copy(number), Received(sender, message))
        self._end()

    @_ends_the_node
    def append(self, entries: list[Entry]) -> None:
        """Take entries of shards that this node owns. The host settles them in order."""
        self._now = boottime()
        for entry in entries:
            copy = self._copies[entry.shard.number]
            assert copy.shard is entry.shard, "an entry of an epoch that is over was not abandoned"
            copy.waiting.append(entry)
            shard = entry.shard
            data = encode_changes(
                entry.rows, entry.replies, entry.forgotten, int(shard.time_ms), shard.next_stamp()
            )
            assert len(data) <= _DATA_BYTES_MAX, (
                f"shard {copy.number}: an entry of {len(data)} bytes: a turn wrote more than it may"
            )
            self._do_often(copy, Append(data), entry)
        self._end()

    @_ends_the_node
    def proposal_answered(
        self, number: int, written: Versioned | None, proposed: Assignment
    ) -> None:
        """Take the answer to a proposal.

        `written`: the assignment that etcd has taken; its row is staged. None: it is unknown
        whether etcd has taken the proposal.
        """
        if written is not None:
            self._flusher.when_durable(lambda: self._written(number, written))
        else:
            self._now = boottime()
            self._do(self._copies[number], ProposalResult(None, 0, proposed))
            self._end()

    def _written(self, number: int, written: Versioned) -> None:
        self._now = boottime()
        copy = self._copies[number]
        if written.order > copy.order:
            copy.order, copy.raw = written.order, written.raw
        self._do(copy, ProposalResult(True, written.order, written.assignment))
        self._end()

    @_ends_the_node
    def lost(self, node: str) -> None:
        """Take note that the connection to a node broke."""
        self._now = boottime()
        self._hurry_until = self._now + _HURRY_S
        for copy in self._copies.values():
            if node in copy.replica.peers:
                self._do(copy, Lost(node))
        self._end()

    @_ends_the_node
    def tick(self) -> None:
        """Tell replicas that time has passed. Call it about twenty times a second.

        Settled copies get only every tenth tick.
        """
        self._now = boottime()
        self._ticks += 1
        if self.slow_nodes.judge(self._copies.values(), self._now):
            self._hurry_until = self._now + _HURRY_S
        tick = Tick(self.slow_nodes.names)
        hurry = self._now < self._hurry_until
        due = (
            self._copies.values()
            if hurry
            else self._unsettled | self._in_turn[self._ticks % _TICKS_ROUND]
        )
        for copy in list(due):
            self._do(copy, tick)
        self._end()
        self._flusher.write()

    @_ends_the_node
    def release(self, number: int, to: Member) -> None:
        """Give an owned shard to another in-sync replica. All its replies have left."""
        self._now = boottime()
        self._do(self._copies[number], Release(to.id, to.incarnation))
        self._end()

    @_ends_the_node
    def abdicate(self, number: int, to: Member) -> None:
        """Give an owned shard to one of its replicas, if this node hears too few of them."""
        self._now = boottime()
        self._do(self._copies[number], Abdicate(to.id, to.incarnation))
        self._end()

    @_ends_the_node
    def concede(self, number: int, to: Member) -> None:
        """Give an owned shard to the node whose copy has entries that this one lacks.

        If no replica has reported to this owner, `to` may be any in-sync node.
        """
        self._now = boottime()
        self._do(self._copies[number], Concede(to.id, to.incarnation))
        self._end()

    @_ends_the_node
    def snapshot_started(self, number: int, to: str) -> tuple[Position, Times, tuple[Term, ...]]:
        """Begin a snapshot to `to`. Return the position, times and chain of the state.

        The store shows exactly this state until the event loop goes on.
        """
        self._flusher.write()
        replica = self._copies[number].replica
        position = replica.log.position_at(replica.log.applied)
        assert position.seq == replica.log.applied
        self._now = boottime()
        self._do(self._copies[number], SnapshotStarted(to))
        self._end()
        return (
            position,
            self._disk.times(number, replica.log.entries),
            tuple(until(replica.log.chain, position.seq)),
        )

    @_ends_the_node
    def snapshot_ended(self, number: int, to: str, delivered: bool) -> None:
        """Take note that the snapshot to `to` was delivered, or given up."""
        self._now = boottime()
        self._do(self._copies[number], SnapshotEnded(to, delivered))
        self._end()

    @_ends_the_node
    def snapshot_arrived(self, sender: str, number: int, snapshot: Snapshot) -> None:
        """Take a snapshot from `sender`. All its files have arrived."""
        self._now = boottime()
        copy = self._copy(number)
        before = copy.replica.log.base, copy.replica.log.applied
        self._do(copy, Received(sender, snapshot))
        if (copy.replica.log.base, copy.replica.log.applied) == before:
            self._disk.discard(snapshot.state)
        self._end()

    # -- one round

    def _new(self, number: int, stored: StoredCopy) -> Copy:
        copy = Copy(
            number, Replica.start(self._node, self._incarnation, self._settings, stored, self._now)
        )
        self._copies[number] = copy
        self._in_turn[number % _TICKS_ROUND].add(copy)
        return copy

    def _copy(self, number: int) -> Copy:
        copy = self._copies.get(number)
        if copy is None:
            if not 0 <= number < SHARDS_MAX:
                raise NoSuchShard(f"no shard has the number {number}")
            copy = self._new(number, StoredCopy())
        return copy

    def _do(self, copy: Copy, event: Event) -> None:
        """Let a copy's replica handle an event. The end of the round looks at the copy."""
        self._do_often(copy, event)
        if copy.shard is not None or copy.replica.owning:
            self._touched.add(copy)

    def _do_often(self, copy: Copy, event: Event, entry: Entry | None = None) -> None:
        """Do the same for events that come with every entry.

        The end of the round skips the copy while the node owns the shard and may answer for long.
        """
        number = copy.number
        replica = copy.replica
        try:
            for effect in replica.handle(event, self._now):
                # by identity, as in `Replica.handle`: the first three come with every entry
                kind = type(effect)
                if kind is Send:
                    self._send(effect.to, number, effect.message)  # type: ignore[union-attr, arg-type]
                elif kind is Persist:
                    self._persist(copy, effect)  # type: ignore[arg-type]
                elif kind is Apply:
                    self._apply(copy, effect)  # type: ignore[arg-type]
                else:
                    self._do_rarely(copy, effect, entry)
        except Exception:  # the replica counts its effects as done
            self._flusher.die(f"shard {number}: an effect of its replica failed")
        shard = copy.shard
        if shard is None:
            if replica.owning:
                self._touched.add(copy)
        elif (
            shard.until < self._now + _REFRESH_S
            or not replica.owning
            or replica.releasing
            or replica.epoch != shard.epoch
        ):
            self._touched.add(copy)

    def _persist(self, copy: Copy, effect: Persist) -> None:
        if effect.install is not None or effect.wipe is not None:
            copy.behind.clear()  # their state is replaced
        if effect.install is None:
            self._disk.persist(self._flusher.batch, copy.number, effect)
        else:
            self._flusher.write()  # staged writes come first
            self._disk.install(copy.number, effect)
            log.info("shard %d: took a snapshot", copy.number)
        self._numbers[copy] = effect.number

    def _do_rarely(self, copy: Copy, effect: Effect, entry: Entry | None) -> None:
        match effect:
            case Appended(seq):
                assert entry is not None
                entry.seq = seq
            case Propose(revision, assignment):
                # A proposal made from an older assignment must fail. No row equals the empty bytes,
                # so etcd refuses it.
                self._surroundings.propose(
                    copy.number, copy.raw if revision == copy.order else b"", assignment
                )
            case SendSnapshot(to, epoch):
                self._surroundings.send_snapshot(copy.number, to, epoch)
            case KeepHigh(high):
                self._disk.keep_high(self._flusher.batch, copy.number, high)
            case NotAppended(why):
                raise AssertionError(
                    f"shard {copy.number}: an entry of an epoch that is over was not abandoned:"
                    f" {why}"
                )

    def _apply(self, copy: Copy, effect: Apply) -> None:
        entries = effect.entries
        waiting = copy.waiting
        if not copy.replica.owning and not waiting:
            copy.behind += entries
        else:
            if copy.behind:
                self._catch_up(copy)
            batch = self._flusher.batch
            epoch = waiting[0].shard.epoch if waiting else 0
            for logged in entries:
                if waiting and waiting[0].seq == logged.seq and epoch == logged.epoch:
                    entry = waiting.popleft()
                    self._done.append(entry)
                    self._disk.stage(batch, copy.number, entry.rows, entry.replies, entry.forgotten)
                else:
                    self._unseen |= copy.replica.owning  # an entry of an earlier owner
                    self._disk.apply(batch, copy.number, logged)
        if self._disk.base(copy.number) != copy.replica.log.base:
            self._catch_up(copy)
            self._disk.shorten(
                self._flusher.batch,
                copy.number,
                copy.replica.log.base,
                entries[-1],
                copy.replica.log.chain,
            )

    def _catch_up(self, copy: Copy) -> None:
        """Apply to the state of a copy the entries that are only in its log.

        Many entries at once cost less, because they often write the same rows.
        """
        behind, copy.behind = copy.behind, []
        self._disk.apply_many(self._flusher.batch, copy.number, behind)

    def _end(self) -> None:
        """End a round: make its effects visible."""
        if self._numbers:
            numbers, self._numbers = self._numbers, {}
            self._flusher.when_durable(lambda: self._persisted(numbers))
        if self._unseen:
            self._unseen = False
            self._flusher.write()
        done, self._done = self._done, []
        if done:
            self._flusher.when_visible(done)
            for entry in done:
                entry.committed = True
        if self._touched:
            touched, self._touched = self._touched, set()
            self._look(touched, done)
        for entry in done:
            entry.settle()

    def _look(self, touched: set[Copy], done: list[Entry]) -> None:
        """Update which shards this node owns, and until when it may answer for them.

        Add abandoned entries to `done`.
        """
        lost: set[Shard] = set()
        for copy in touched:
            replica, shard = copy.replica, copy.shard
            if shard is not None and not (
                replica.owning and replica.epoch == shard.epoch and not replica.releasing
            ):
                lost.add(shard)
                copy.shard = shard = None
                for entry in copy.waiting:
                    entry.abandoned = True
                    done.append(entry)
                copy.waiting.clear()
        if lost:
            self._shards.drop(lost)
        for copy in touched:
            if (
                copy.shard is None
                and copy.replica.owning
                and not copy.replica.releasing
                and not copy.replica.electing
            ):
                if copy.replica.alone:
                    log.critical(
                        "shard %d: no other in-sync copy was heard, so this one alone counts from"
                        " now on; if its disk lost writes, so has the shard",
                        copy.number,
                    )
                try:
                    self._catch_up(copy)
                except Exception:
                    self._flusher.die(f"shard {copy.number}: its log could not be applied")
                self._flusher.write()  # makes the applied entries readable
                times = self._disk.times(copy.number, copy.replica.log.entries)
                epoch = copy.replica.epoch
                copy.shard = Shard(copy.number, epoch, self, times.shard_ms, times.cluster_time)
                self._shards.take(copy.shard)
            assignment = copy.replica.assignment
            if copy.shard is None or assignment is None:
                if copy.replica.owning:
                    self._unsettled.add(copy)
                else:
                    self._unsettled.discard(copy)
                continue
            copy.shard.until = copy.replica.serves_until(self._now)
            copy.shard.read_only = copy.replica.read_only() or self._surroundings.full(assignment)
            if (
                copy.shard.until <= self._now
                or assignment.joining
                or assignment.leaving
                or assignment.handover
            ):
                self._unsettled.add(copy)
            else:
                self._unsettled.discard(copy)

    @_ends_the_node
    def _persisted(self, numbers: dict[Copy, int]) -> None:
        self._now = boottime()
        for copy, number in numbers.items():
            self._do_often(copy, Persisted(number))
        self._end()
