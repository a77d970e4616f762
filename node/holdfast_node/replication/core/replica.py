"""Replication of one shard: primary-backup, configured through etcd. Pure: `handle(event, now) ->
[Effect]`, no I/O, clock or chance.

Terms. The *owner* of an *epoch* appends *entries* to its log and streams them. An entry is
*committed* when every counted replica has it on disk. The *counted* replicas are those in etcd's
`in_sync`, and those that a pending proposal would put there. So the owner demands everything that
etcd may believe at any moment. Therefore each replica in `in_sync` holds everything that was ever
committed.

Rules (each has a method of its own, and a test that breaks it):

- own disk: the owner counts its own entry only after `Persisted`. A replica acknowledges only
  entries that it has persisted.
- fence: a replica that has heard of an epoch refuses every lower one. It writes the epoch to disk
  before it answers. It takes back acknowledgements under a lower epoch that have not left yet.
- match: a replica appends only behind an entry equal to the owner's in (epoch, nonce of its term,
  seq). It cuts its tail at the first entry that differs. It applies up to a commit position only
  as far as it has matched with the owner of its epoch.
- high-water: the seq up to which a copy knows its log to be committed. It is on disk with each
  entry. A replica never cuts entries at or below its high-water. It installs no snapshot that
  would replace them, and accepts no log that differs from them: it answers `Conflict`. The owner
  then compares the chains, and finds the place where the logs part. If the replica knows no entry
  of a turn behind that place to be committed, the replica gives way (`Yield`). Else, if the owner
  has no entry of a turn there, the owner concedes. If both have some, the shard is *forked* until
  an operator chooses. An owner that concedes, or is forked, does not serve and removes no replica.
- election: a new owner asks all of `in_sync` for reports. It writes its first entry if no report
  shows a committed entry of a turn that its log lacks, and if one of these holds: its copy is
  unbroken; all have reported; one has reported, and `canvass_patience_s` has passed; none has
  reported, and `lone_patience_s` has passed. Both times count from the start of the election. A
  copy is *unbroken* if it held everything committed at some moment in this life of its process,
  and was not replaced or dropped since. An unbroken copy has lost nothing. Any other copy may have
  lost entries with its disk. If a report has later entries of turns, the owner of such a copy
  concedes. If a report shows a committed entry of a turn that the log lacks, every owner concedes,
  or the shard is forked.
- first entry: before an owner serves, it commits an empty entry of its own epoch. This commits
  everything before that entry too.
- lost tail: a copy has acknowledged up to a seq. Then the owner sends a message, and the copy
  answers with a mismatch below that seq. This proves that it lost its tail: the owner removes it.
- slow copies: the shell names slow nodes (`Tick.slow`, see slowness.py). The owner takes their
  copies out of the in-sync set, and streams to them as to joining ones. It takes them back when
  they are slow no more, or when too few other copies are left to write. It never leaves fewer
  copies than writes need.
- promise: an acknowledgement promises to serve under no higher epoch for `promise_s`. The owner
  counts this time from when it *sent* the acknowledged message, the replica from when it answers.
  An owner serves while it holds promises of all counted replicas. A new owner waits until its own
  promise ends, unless the earlier owner released the shard itself. After a start, a replica counts
  as having promised.
- proposals to etcd: one at a time. A lost reply is no answer. The owner counts both sets until
  etcd shows a later revision.

Sources: Lin et al., PacificA, MSR-TR-2008-25 (configuration in a separate store, leases of the
primary at its secondaries); Ongaro and Ousterhout, Raft, ATC 2014, 5.3 (log matching), 5.4.2
(entries of older epochs); Apache Kafka KIP-497 / KIP-966 (maximal in-sync set).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import msgspec
from holdfast_cluster.placement.model import Assignment

from holdfast_node.log.changes import term_data
from holdfast_node.replication.core.chain import Term, turns_between
from holdfast_node.replication.core.events import (
    Abdicate,
    Acknowledge,
    Append,
    Appended,
    Apply,
    Assigned,
    Canvass,
    Concede,
    Conflict,
    Drop,
    Effect,
    Event,
    Fenced,
    KeepHigh,
    LogEntry,
    Lost,
    MayDrop,
    Message,
    Mismatch,
    NotAppended,
    Persist,
    Persisted,
    Position,
    ProposalResult,
    Propose,
    Received,
    Rejoined,
    Release,
    Replicate,
    ReplicationSettings,
    Report,
    Send,
    SendSnapshot,
    Snapshot,
    SnapshotEnded,
    SnapshotStarted,
    Tick,
    Yield,
)
from holdfast_node.replication.core.log import ReplicaLog
from holdfast_node.replication.core.promises import Promises

_NOT_YET = 1 << 62

SEQS_PER_BIRTH = 1 << 40
"""The distance between the old log and the new log of a shard that was given up and begun anew. No
log will ever have this many entries."""


class Disk(Protocol):
    """The data that a replica finds on its disk when it starts.

    `base` is the position of the entry before the first of `entries`. `chain` has the terms up to
    there. `high` is the high-water.
    """

    epoch: int
    base: Position
    entries: list[LogEntry]
    applied: int
    chain: list[Term]
    high: int


@dataclass(slots=True)
class Peer:
    """The owner's knowledge of a replica.

    `next`: the seq to send next. `matched`: the seq up to which the replica has acknowledged.
    `matched_at`: when it last acknowledged more than before. `heard_at`: when it answered last, or
    was met. The owner moves it back to wait less long. `met_at`: when it became a replica. Its
    answers to earlier messages do not count, because it may have dropped its copy since. `holds`:
    the log keeps the entries behind this seq for a replica that gets a snapshot, until the replica
    has caught up. `lost`: the replica has lost entries that it had acknowledged.
    """

    next: int
    met_at: float
    heard_at: float
    matched: int = 0
    matched_at: float = float("-inf")
    lost: bool = False
    sent_at: float = float("-inf")
    holds: int | None = None


@dataclass(slots=True)
class _Proposal:
    effect: Propose
    retry_at: float


@dataclass(slots=True)
class _Held:
    """A message that may leave once the write `number` is on disk."""

    number: int
    to: str
    message: Acknowledge | Mismatch | Report | Conflict


@dataclass(slots=True)
class Replica:
    """One node's replica of one shard. Callers may read its fields; only `handle` changes them."""

    log_class: ClassVar[type[ReplicaLog]] = ReplicaLog

    me: str
    incarnation: int
    settings: ReplicationSettings
    epoch: int = 0
    """The highest epoch that the replica has heard of. It follows no lower one."""
    log: ReplicaLog = field(default_factory=ReplicaLog)
    promises: Promises = field(default_factory=Promises)
    committed: int = 0
    matched: int = 0
    """As a replica: the seq up to which the log equals the log of this epoch's owner."""
    unbroken: bool = False
    """Whether the copy held every committed entry at some moment in this life of the process, and
    was not replaced or dropped since."""
    electing: bool = False
    """As an owner: it still waits for the reports that the first entry needs."""
    reports: dict[str, Report] = field(default_factory=dict)
    elected_at: float = 0.0
    """As an owner: when its election began, with the assignment of this epoch to this node."""
    concedes_to: str = ""
    """The node whose copy has entries that this owner's copy lacks."""
    alone: bool = False
    """As an owner: it began the term without a report of any other in-sync replica."""
    forked: frozenset[str] = frozenset()
    """As an owner: nodes whose copies hold committed entries of turns where this copy holds
    different ones."""
    assignment: Assignment | None = None
    revision: int = 0
    owning: bool = False
    releasing: bool = False
    peers: dict[str, Peer] = field(default_factory=dict)
    first_seq: int = 0
    """The seq of the empty entry of the epoch that this node owns."""
    wait_until: float = 0.0
    persisted: int = 0
    heard: int = 0
    """The number of messages taken from owners. It shows whether an owner has sent anything since
    this node sent `MayDrop`."""
    _counted: frozenset[str] = frozenset()
    _asked: tuple[float, int, int] = (float("-inf"), -1, 0)
    _questions: int = 0
    _high_kept: int = 0
    _high_since: float = 0.0
    _high_number: int = 0
    _number: int = 0
    _flushed: int = 0
    _own: list[tuple[int, int]] = field(default_factory=list)
    _held: list[_Held] = field(default_factory=list)
    _proposal: _Proposal | None = None
    _out: list[Effect] = field(default_factory=list)

    @classmethod
    def start(
        cls, me: str, incarnation: int, settings: ReplicationSettings, disk: Disk, now: float
    ) -> Replica:
        """Return a replica as it is after a start.

        It has the data on its disk and no role. It counts as having just promised.
        """
        self = cls(me, incarnation, settings)
        self.epoch = disk.epoch
        self.log = cls.log_class.of(disk.base, disk.entries, disk.chain, disk.applied, disk.high)
        self.committed = disk.applied
        self._high_kept = self.log.high
        self.persisted = self.log.last_seq
        self.promises.give(now, settings)
        return self

    # -- questions of the shell

    def serving(self, now: float) -> bool:
        """Return whether this node may answer for the shard at this moment.

        The shell asks when a turn starts, and again when its reply leaves.
        """
        return self.serves_until(now) > now

    def serves_until(self, now: float) -> float:
        """Return until when this node may answer for the shard if no other event comes.

        If it may not answer now, return 0 or an earlier time than now.
        """
        if (
            not self.owning
            or self.releasing
            or self.committed < self.first_seq
            or now < self.wait_until
        ):
            return 0.0
        if self.concedes_to or self.is_forked:
            return 0.0
        return self.promises.all_until(self._counted)

    def read_only(self) -> str | None:
        """Return why turns may not write at the moment; None if they may."""
        assert self.assignment is not None
        if len(self.assignment.in_sync) >= self.settings.min_in_sync:
            return None
        return (
            f"{len(self.assignment.in_sync)} copies are in sync, writes need"
            f" {self.settings.min_in_sync}"
        )

    def counted(self) -> set[str]:
        """Return the other replicas whose acknowledgement a commit needs."""
        assert self.assignment is not None
        names = set(self.assignment.in_sync)
        if self._proposal is not None:
            names |= set(self._proposal.effect.to.in_sync)
        return names - {self.me}

    def held_up(self, slow: Collection[str]) -> list[tuple[str, int, int]]:
        """Return the copies that hold up entries which enough other copies have on disk.

        Each item is (node, seq that it has reached, seq that it should have reached). Copies of
        `slow` nodes that are not counted are included if they lack committed entries.
        """
        if not self.owning or self.releasing or self.committed < self.first_seq:
            return []
        behind = [
            (name, peer.matched, self.committed)
            for name in slow
            if (peer := self.peers.get(name)) is not None
            and name not in self._counted
            and peer.matched < self.committed
        ]
        if self.persisted == self.committed == self.log.last_seq:
            return behind
        reached = [
            (self.me, self.persisted),
            *((name, self.peers[name].matched) for name in self._counted),
        ]
        enough = self.settings.min_in_sync
        if len(reached) > enough:
            wanted = sorted((seq for _, seq in reached), reverse=True)[enough - 1]
            behind += [(name, seq, wanted) for name, seq in reached if seq < wanted]
        return behind

    def deadline(self, now: float) -> float:
        """Return the latest time for the next `Tick`."""
        return now + self.settings.heartbeat_s / 2

    # -- events

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take an event and return the effects to carry out."""
        # These three events come with every entry. A match statement would cost ten times as much.
        kind = type(event)
        if kind is Received:
            self._received(event.sender, event.message, now)  # type: ignore[union-attr]
        elif kind is Persisted:
            self._persisted(event.number, now)  # type: ignore[union-attr]
        elif kind is Append:
            self._append(event.data, now)  # type: ignore[union-attr]
        else:
            self._happened(event, now)
        out = self._out
        self._out = []
        return out

    def _happened(self, event: Event, now: float) -> None:
        match event:
            case Tick(slow):
                self._tick(slow, now)
            case Assigned(assignment, revision):
                self._assigned(assignment, revision, now)
            case ProposalResult(happened, revision, written):
                self._proposal_result(happened, revision, written, now)
            case Release(to, incarnation):
                self._release(to, incarnation, now)
            case Abdicate(to, incarnation):
                if self.isolated(now):
                    self._give_to(to, incarnation)
            case Concede(to, incarnation):
                if self._proposal is None and (to == self.concedes_to or self.unheard(now)):
                    self._concede(to, incarnation)
            case Rejoined(incarnation):
                self.incarnation = incarnation
                self._own_no_more()
                if (
                    self.assignment is not None
                    and self._is_mine(self.assignment)
                    and self.assignment.epoch >= self.epoch
                ):
                    self._begin(self.assignment, now)  # the view came before etcd's answer
            case Lost(node):
                if (peer := self.peers.get(node)) is not None:
                    patience = self.settings.replica_timeout_s - self.settings.first_patience_s
                    peer.heard_at = min(peer.heard_at, now - patience)
            case SnapshotStarted(to):
                if (peer := self.peers.get(to)) is not None:
                    peer.holds = self.log.applied
            case SnapshotEnded(to, delivered):
                if not delivered and (peer := self.peers.get(to)) is not None:
                    peer.holds = None

    def _received(self, sender: str, message: Message, now: float) -> None:
        kind = type(message)
        if kind is Replicate:
            if self._heard(sender, message.epoch):
                self._replicate(sender, message, now)  # type: ignore[arg-type]
        elif kind is Acknowledge:
            self._acknowledged(sender, message, now)  # type: ignore[arg-type]
        else:
            self._received_rarely(sender, message, now)

    def _acknowledged(self, sender: str, message: Acknowledge, now: float) -> None:
        peer = self._answered(sender, message.epoch, message.sent_at)
        if peer is None:
            return
        matched = message.matched
        self._promised(sender, peer, message.sent_at, now)
        if matched >= peer.next:
            peer.next = matched + 1
        if matched > peer.matched:
            peer.matched = matched
            peer.matched_at = now
            if peer.holds is not None:
                peer.holds = None if matched >= self.log.applied else max(peer.holds, matched)
            self._advance()
        if peer.next <= self.log.last_seq and not self.electing:
            self._stream(sender, peer, now)

    def _received_rarely(self, sender: str, message: Message, now: float) -> None:
        match message:
            case Snapshot():
                if self._heard(sender, message.epoch):
                    self._install(sender, message, now)
            case Mismatch(epoch, last, sent_at):
                if (peer := self._answered(sender, epoch, sent_at)) is not None:
                    self._promised(sender, peer, sent_at, now)
                    self._mismatched(sender, peer, last, sent_at, now)
            case Canvass(epoch, sent_at):
                if self._heard(sender, epoch):
                    report = Report(
                        epoch,
                        self.log.last,
                        self.log.last_turn,
                        self.log.high,
                        tuple(self.log.chain),
                        self.unbroken,
                        sent_at,
                    )
                    self._hold(sender, report, now)
            case Report(epoch, sent_at=sent_at):
                if (peer := self._answered(sender, epoch, sent_at)) is not None:
                    self._promised(sender, peer, sent_at, now)
                    if self.electing:
                        self.reports[sender] = message
                        self._weigh(now)
                        self._try_first_entry(now)
            case Conflict(epoch, sent_at=sent_at):
                if (peer := self._answered(sender, epoch, sent_at)) is not None:
                    self._promised(sender, peer, sent_at, now)
                    self._conflicts(sender, message, now)
            case Yield(epoch, seq):
                if self._heard(sender, epoch):
                    self._yielded(seq)
            case Fenced(epoch):
                if epoch > self.epoch:
                    self._raise(epoch)
            case MayDrop(epoch, number):
                if self.owning and epoch == self.epoch and sender not in self.peers:
                    self._out.append(Send(sender, Drop(epoch, number)))
            case Drop(epoch, number):
                if (
                    not self.owning
                    and self.accepts(epoch)
                    and self._asked[1:] == (self.heard, number)
                ):
                    self._drop(Position(0, 0))

    def _answered(self, sender: str, epoch: int, sent_at: float) -> Peer | None:
        """Return the replica that answered; None if its answer does not count."""
        peer = self.peers.get(sender)
        return (
            peer
            if peer is not None and self.owning and self.accepts(epoch) and sent_at >= peer.met_at
            else None
        )

    # -- the fence

    def accepts(self, epoch: int) -> bool:
        """Return whether an answer under this epoch is still true."""
        return epoch == self.epoch

    def outdated(self, epoch: int) -> bool:
        """Return whether a message is from an owner that has been replaced."""
        return epoch < self.epoch

    def _heard(self, sender: str, epoch: int) -> bool:
        if self.outdated(epoch):
            self._out.append(Send(sender, Fenced(self.epoch)))
            return False
        if epoch > self.epoch:
            self._raise(epoch)
        self.heard += 1
        return not self.owning

    def _raise(self, epoch: int) -> None:
        """Follow a higher epoch from now on. It is on disk before any answer under it leaves."""
        self.epoch = epoch
        self.matched = 0
        self.releasing = False
        self._own_no_more()
        self._persist()

    def _own_no_more(self) -> None:
        self.owning = self.electing = False
        self.peers = {}
        self.promises.forget_all()
        self.reports = {}
        self._proposal = None
        self.concedes_to = ""
        self.forked = frozenset()
        self.alone = False

    # -- as a replica

    def _replicate(self, sender: str, message: Replicate, now: float) -> None:
        log = self.log
        if not log.matches(message.previous, message.nonce):
            if message.previous.seq <= self.log.high:
                self._object(sender, message.epoch, message.sent_at, now)
            else:
                last = min(self.log.last_seq, message.previous.seq - 1)
                self._hold(
                    sender, Mismatch(message.epoch, max(last, self.log.high), message.sent_at), now
                )
            return
        new = []
        cut = None
        entries = message.entries
        for entry in entries:
            seq = entry.seq
            if seq <= self.log.last_seq:
                if log.has(entry):
                    continue
                if seq <= self.log.high:
                    self._object(sender, message.epoch, message.sent_at, now)
                    return
                cut = seq
                log.cut(seq)
            log.append(entry)
            new.append(entry)
        reached = entries[-1].seq if entries else message.previous.seq
        if reached > self.matched:
            self.matched = reached
        if new or cut is not None:
            self._persist(cut, tuple(new))
        if self.matched >= message.commit:
            self.unbroken = True
        self._hold(sender, Acknowledge(message.epoch, self.matched, message.sent_at), now)
        self._apply(min(message.commit, self.matched))

    def _object(self, owner: str, epoch: int, sent_at: float, now: float) -> None:
        """Answer `Conflict` and change nothing: the owner's message would undo entries that this
        copy knows to be committed."""
        log = self.log
        self._hold(owner, Conflict(epoch, log.last, log.high, tuple(log.chain), sent_at), now)

    def _yielded(self, seq: int) -> None:
        """Give up the log behind `seq`, where it parts from the owner's log.

        This is safe only if the log holds nothing but first entries of terms there.
        """
        log = self.log
        if self.owning or seq >= log.high or turns_between(log.chain, seq, log.high):
            return
        if log.base.seq > seq:
            self._drop(Position(0, 0))
            return
        log.high = seq
        log.applied = min(log.applied, seq)
        self.committed = min(self.committed, seq)
        self.matched = min(self.matched, seq)
        log.cut(seq + 1)
        self._persist(seq + 1)
        self._keep_high()

    def _install(self, sender: str, message: Snapshot, now: float) -> None:
        position = message.position
        same = self.log.parting(message.chain, position.seq)
        if same < min(self.log.high, position.seq):
            self._object(sender, message.epoch, message.sent_at, now)
            return
        if same < position.seq:
            self.log.replace(position, list(message.chain))
            self.committed = self._high_kept = position.seq
            self.unbroken = False
            self._persist(install=message)
        self.matched = max(self.matched, position.seq)
        self._hold(sender, Acknowledge(message.epoch, self.matched, message.sent_at), now)

    def _drop(self, base: Position) -> None:
        """Forget the copy, but not the epoch: the replica goes on refusing lower epochs."""
        self.log.replace(base, [])
        self.committed = self._high_kept = base.seq
        self.unbroken = False
        self.matched = 0
        self._persist(wipe=base)

    def _hold(
        self, to: str, message: Acknowledge | Mismatch | Report | Conflict, now: float
    ) -> None:
        """Hold an answer until all earlier writes are on disk."""
        self._held.append(_Held(self._number, to, message))
        if self.on_disk(self._number):
            self._let_go(now)

    def _let_go(self, now: float) -> None:
        """Send the answers whose writes are on disk and that are still true.

        A higher epoch that the replica has heard of since takes them back.
        """
        still = []
        last: _Held | None = None
        for held in self._held:
            if not self.on_disk(held.number):
                still.append(held)
            elif self.accepts(held.message.epoch):
                if last is not None and not self._supersedes(held, last):
                    self._out.append(Send(last.to, last.message))
                last = held
        if last is not None:
            self.promises.give(now, self.settings)
            self._out.append(Send(last.to, last.message))
        self._held = still

    @staticmethod
    def _supersedes(held: _Held, last: _Held) -> bool:
        """Return whether an answer contains everything in the answer before it."""
        return (
            held.to == last.to
            and isinstance(held.message, Acknowledge)
            and isinstance(last.message, Acknowledge)
        )

    def on_disk(self, number: int) -> bool:
        """Return whether this write and all earlier ones are on disk."""
        return number <= self._flushed

    # -- as the owner

    def _assigned(self, assignment: Assignment, revision: int, now: float) -> None:
        if revision <= self.revision:
            return
        self.assignment, self.revision = assignment, revision
        if assignment.epoch < self.epoch:
            return  # a message has named a later epoch
        mine = self._is_mine(assignment)
        if assignment.void_before > self.log.last.epoch and assignment.keeper != self.me:
            # All copies but the keeper's are void. The new log begins at a seq that no old log
            # reaches, so an old log cannot be taken for a part of it.
            void = self.log.last != (0, 0)
            if assignment.owner == self.me:
                self._drop(
                    Position(assignment.void_before, assignment.void_before * SEQS_PER_BIRTH)
                )
            elif void:
                self._drop(Position(0, 0))
        if mine and not (self.owning and assignment.epoch == self.epoch):
            self._begin(assignment, now)
        elif assignment.epoch > self.epoch:
            self._raise(assignment.epoch)
        elif self.owning:
            if self._proposal is not None and revision > self._proposal.effect.revision:
                self._proposal = None
                # The proposal has ended and this node is still the owner. It serves again when
                # all appended entries are committed.
                if self.releasing:
                    self.releasing = False
                    self.first_seq = self.log.last_seq
            self._counted = frozenset(self.counted())
            self._know_peers(now)
            for name, peer in self.peers.items():
                # the replica joins again: its earlier answers no longer count
                if peer.lost and name not in self._counted:
                    self._meet(name, now)
            self._advance()

    def _is_mine(self, assignment: Assignment) -> bool:
        return assignment.owner == self.me and assignment.incarnation == self.incarnation

    def _begin(self, assignment: Assignment, now: float) -> None:
        """Own the shard under a new epoch.

        Ask the other replicas for reports. Then begin with an entry that commits everything before
        it.
        """
        self._own_no_more()
        self.epoch = assignment.epoch
        self.owning = self.electing = True
        self.releasing = False
        self.matched = 0
        self.wait_until = self.may_serve_from(assignment)
        self._own = []
        self.persisted = 0
        self.first_seq = _NOT_YET
        self.elected_at = now
        self._counted = frozenset(self.counted())
        self._persist()
        self._know_peers(now)
        if not assignment.released:
            for peer in self.peers.values():
                peer.heard_at = (
                    now - self.settings.replica_timeout_s + self.settings.first_patience_s
                )
        self._try_first_entry(now)

    def _try_first_entry(self, now: float) -> None:
        """Begin the term if the owner knows enough about the other copies."""
        if (
            self.electing
            and not self.concedes_to
            and not self.is_forked
            and self._proposal is None
            and self.may_begin(now)
        ):
            assert self.assignment is not None
            self.electing = False
            self.alone = (
                not self.unbroken and not self.reports and set(self.assignment.in_sync) != {self.me}
            )
            self.first_seq = self.log.last_seq + 1
            self._log(term_data(self.assignment.nonce))
            for name, peer in self.peers.items():
                peer.next = self.first_seq
                self._stream(name, peer, now)

    def may_begin(self, now: float) -> bool:
        """Return whether the owner may rely on its copy after the reports received so far.

        `_weigh` has already checked that the reports fit this copy.
        """
        assert self.assignment is not None
        others = set(self.assignment.in_sync) - {self.me}
        waited = now - self.elected_at
        if self.unbroken or others <= set(self.reports):
            return True
        if self.reports:
            return waited >= self.settings.canvass_patience_s
        return waited >= self.settings.lone_patience_s

    @property
    def may_propose(self) -> bool:
        """Whether no proposal is under way."""
        return self._proposal is None

    def unheard(self, now: float) -> bool:
        """Return whether no replica has reported since this node's election began, for a long time.

        Then this node itself is probably cut off.
        """
        patience = self.settings.replica_timeout_s + self.settings.corner_patience_s
        return (
            self.electing
            and not self.reports
            and self._proposal is None
            and now - self.elected_at >= patience
        )

    @property
    def is_forked(self) -> bool:
        """Whether copies hold different committed entries of turns, so that an operator has to
        choose one."""
        return bool(self.forked or (self.assignment is not None and self.assignment.forked))

    def _weigh(self, now: float) -> None:
        """Decide from the fresh reports whether to concede, and to which node."""
        self.concedes_to = ""
        most = self.log.last_turn
        differing = False
        for name, report in list(self.reports.items()):
            if (
                name not in self.peers
                or now - self.peers[name].heard_at > self.settings.replica_timeout_s
            ):
                del self.reports[name]
            elif not self._fits(name, report):
                if not differing or report.turn > most:
                    self.concedes_to, most, differing = name, report.turn, True
            elif not differing and not self.unbroken and report.turn > most:
                # that copy has entries that this restarted copy has lost, or never had
                self.concedes_to, most = (
                    name,
                    report.turn,
                )

    def _conflicts(self, name: str, theirs: Conflict, now: float) -> None:
        """Decide which side gives way when a replica refuses to follow."""
        peer = self.peers[name]
        same = self.log.parting(theirs.chain, theirs.last.seq)
        if theirs.high <= same:
            # The chains show what the replica could not see: there is no conflict.
            if not self.electing and peer.next != theirs.high + 1:
                peer.next = theirs.high + 1
                self._stream(name, peer, now)
        elif not self._fits(name, theirs):
            if not self.forked:
                self.concedes_to = name
        elif not self.electing:
            self._out.append(Send(name, Yield(self.epoch, same)))

    def _fits(self, name: str, theirs: Report | Conflict) -> bool:
        """Return whether this log has all entries of turns that another copy knows to be committed.

        If each log has entries of turns that the other lacks, add the node to `forked`.
        """
        assert self.assignment is not None
        if theirs.last.epoch < self.assignment.void_before and name != self.assignment.keeper:
            return True  # an operator gave that copy up; its node has not heard of it yet
        same = self.log.parting(theirs.chain, theirs.last.seq)
        if not turns_between(theirs.chain, same, theirs.high):
            return True
        if turns_between(self.log.chain, same, self.log.last_seq):
            self.forked |= {name}
        return False

    def _concede(self, to: str, incarnation: int) -> None:
        """Propose another node to etcd as the owner, and do not waive promises.

        That node waits until its own promise to this owner ends.
        """
        assert self.assignment is not None
        self._propose(
            msgspec.structs.replace(
                self.assignment,
                epoch=self.epoch + 1,
                owner=to,
                incarnation=incarnation,
                in_sync=(
                    self.assignment.in_sync
                    if to in self.assignment.in_sync
                    else (*self.assignment.in_sync, to)
                ),
                joining=tuple(name for name in self.assignment.joining if name != to),
                released=False,
                handover="",
                leaving=(),
            )
        )

    def _mismatched(self, name: str, peer: Peer, last: int, sent_at: float, now: float) -> None:
        # the replica answers a message that was sent after it had acknowledged more
        if last < peer.matched and sent_at > peer.matched_at:
            if name in self._counted:
                peer.lost = True
            else:
                peer.matched, peer.next, peer.lost = last, last + 1, False
                self._stream(name, peer, now)
        elif last + 1 < peer.next and peer.next > peer.matched + 1 and not self.electing:
            peer.next = max(peer.matched, last) + 1
            self._stream(name, peer, now)

    def may_serve_from(self, assignment: Assignment) -> float:
        """Return when a new owner may serve at the earliest.

        It waits until its own promise ends, unless the earlier owner released the shard itself.
        """
        return 0.0 if assignment.released else self.promises.given_until

    def _know_peers(self, now: float) -> None:
        assert self.assignment is not None
        wanted = {*self.assignment.in_sync, *self.assignment.joining} - {self.me}
        for name in sorted(wanted - set(self.peers)):
            self._speak(name, self._meet(name, now), now)
        for name in set(self.peers) - wanted - self._counted:
            del self.peers[name]
            self.promises.forget(name)

    def _meet(self, name: str, now: float) -> Peer:
        """Begin anew with a replica: forget all its earlier answers."""
        peer = Peer(next=self.log.last_seq + 1, met_at=now, heard_at=now)
        self.peers[name] = peer
        self.promises.forget(name)
        return peer

    def _append(self, data: bytes, now: float) -> None:
        if not self.owning or self.releasing or self.electing:
            self._out.append(NotAppended("this node does not own the shard"))
            return
        self._log(data)
        self._out.append(Appended(self.log.last_seq))
        made: Replicate | None = None
        for name, peer in self.peers.items():
            made = self._stream(name, peer, now, made)

    def _log(self, data: bytes) -> None:
        entry = LogEntry(self.epoch, self.log.last_seq + 1, data)
        self.log.append(entry)
        self._persist(entries=(entry,))
        self._own.append((self._number, entry.seq))

    def _persisted(self, number: int, now: float) -> None:
        if number > self._flushed:
            self._flushed = number
        own = self._own
        while own and self.on_disk(own[0][0]):
            self.persisted = own.pop(0)[1]
        if self._held:
            self._let_go(now)
        if self.owning:
            self._advance()

    def _advance(self) -> None:
        """Commit the entries that every counted replica has on disk.

        Commit none until they include the first entry of this epoch.
        """
        reached = self.persisted
        for name in self._counted:
            peer = self.peers.get(name)
            if peer is None:
                return
            if peer.matched < reached:
                reached = peer.matched
        assert self.assignment is not None
        if len(self.assignment.in_sync) < self.settings.min_in_sync:
            # Entries appended while there were enough copies wait until there are enough again.
            # Until then the owner does not count them as committed.
            reached = min(reached, max(self.first_seq, self.committed))
        if reached >= self.first_seq:
            self.unbroken = True
            self._apply(reached)

    def _apply(self, upto: int) -> None:
        if upto > self.committed:
            self.committed = upto
        log = self.log
        if upto > log.high:
            log.high = upto
        if upto <= log.applied:
            return
        base = log.base.seq
        entries = tuple(log.entries[log.applied - base : upto - base])
        log.applied = upto
        if log.is_long(self.settings):
            self._shorten()
        self._out.append(Apply(entries, log.base.seq))

    def _shorten(self) -> None:
        """Shorten the log, but keep the entries that replicas need after their snapshots.

        If the log has more than `log_hold_bytes`, keep no entries for them.
        """
        keep_after = self.log.applied
        for peer in self.peers.values():
            if peer.holds is not None:
                if self.log.bytes > self.settings.log_hold_bytes:
                    peer.holds = None
                else:
                    keep_after = min(keep_after, peer.holds)
        self.log.shorten(keep_after, self.settings)

    def _promised(self, name: str, peer: Peer, sent_at: float, now: float) -> None:
        self.promises.receive(name, sent_at, self.settings)
        peer.heard_at = now

    def _speak(self, name: str, peer: Peer, now: float) -> None:
        """Send a replica the entries that it lacks; before the first entry, ask for its report."""
        if not self.electing:
            self._stream(name, peer, now)
            return
        assert self.assignment is not None
        if name in self.assignment.in_sync:
            self._out.append(Send(name, Canvass(self.epoch, now)))
        peer.sent_at = now

    def _stream(
        self, name: str, peer: Peer, now: float, made: Replicate | None = None
    ) -> Replicate | None:
        """Send a replica the entries that it lacks, or a heartbeat.

        `made` is the message just sent to another replica. Send the same message if both replicas
        get the same seq next.
        """
        log = self.log
        if peer.next <= log.base.seq:
            self._out.append(SendSnapshot(name, self.epoch))
            peer.next = log.base.seq + 1
            peer.sent_at = now
            return made
        if made is None or made.previous.seq + 1 != peer.next:
            after = peer.next - 1
            made = Replicate(
                self.epoch,
                log.position_at(after),
                log.batch(after, self.settings),
                self.committed,
                now,
                log.nonce_at(after),
            )
        self._out.append(Send(name, made))
        peer.next += len(made.entries)
        peer.sent_at = now
        return made

    def _tick(self, slow: frozenset[str], now: float) -> None:
        if self._held:
            self._let_go(now)
        if self.log.high == self._high_kept or self._number != self._high_number:
            self._high_since, self._high_number = now, self._number
        elif now - self._high_since >= self.settings.high_patience_s:
            self._keep_high()
        if not self.owning:
            self._ask_to_drop(now)
            return
        assert self.assignment is not None
        for name, peer in self.peers.items():
            if now - peer.sent_at >= self.settings.heartbeat_s:
                if peer.next > peer.matched + 1:
                    peer.next = max(peer.matched + 1, 1)  # not acknowledged: send it again
                self._speak(name, peer, now)
        if self._proposal is not None:
            if now >= self._proposal.retry_at:
                self._proposal.retry_at = float("inf")
                self._out.append(self._proposal.effect)
            return
        if self.forked - set(self.assignment.forked):
            names = sorted({*self.assignment.forked, *self.forked, self.me})
            self._propose(
                msgspec.structs.replace(
                    self.assignment, forked=tuple(names), handover="", leaving=()
                )
            )
            return
        if self.electing:
            self._weigh(now)
            self._try_first_entry(now)
        if self.electing or self.concedes_to or self.is_forked:
            return  # an owner removes no replica until it is sure to hold everything
        self._change_copies(slow, now)

    def _change_copies(self, slow: frozenset[str], now: float) -> None:
        """Propose to etcd the copies that have to leave or enter the in-sync set, if there are
        any."""
        assert self.assignment is not None
        in_sync = set(self.assignment.in_sync)
        if (
            not self.assignment.joining
            and not self.assignment.leaving
            and self._all_heard(now)
            and in_sync.isdisjoint(slow)
        ):
            return
        enough = self.settings.min_in_sync
        unheard = {
            name
            for name, peer in self.peers.items()
            if now - peer.heard_at > self.settings.replica_timeout_s
        }
        joining = set(self.assignment.joining) - {self.me}
        ready = {
            name for name in joining if self.caught_up(name, now) and not self.peers[name].lost
        }
        silent = in_sync & unheard
        if len((in_sync | ready) - unheard) < enough:
            earliest = now - self.settings.replica_timeout_s - self.settings.corner_patience_s
            silent = {name for name in silent if self.peers[name].heard_at < earliest}
        gone = silent | {name for name in in_sync - {self.me} if self.peers[name].lost}
        leaving = in_sync.intersection(self.assignment.leaving) - {self.me}
        if len(in_sync - leaving - gone) >= enough:
            gone |= leaving
        caught_up = ready - slow
        if len((in_sync - gone) | caught_up) < enough:
            caught_up = ready  # a slow copy is better than none
        held_back: set[str] = set()
        taking = {self.me} | {
            name for name, peer in self.peers.items() if peer.matched >= self.first_seq
        }
        for name in sorted(slow & (in_sync - gone) - {self.me}):
            # a copy that has taken nothing yet may be dead
            if len(((in_sync - gone - held_back - {name}) & taking) | caught_up) >= enough:
                held_back.add(name)
        if gone or caught_up or held_back:
            out = gone | held_back
            to = tuple(name for name in self.assignment.in_sync if name not in out) + tuple(
                sorted(caught_up)
            )
            come = tuple(name for name in self.assignment.joining if name not in caught_up) + tuple(
                sorted(held_back)
            )
            still = tuple(name for name in self.assignment.leaving if name in to)
            self._propose(
                msgspec.structs.replace(self.assignment, in_sync=to, joining=come, leaving=still)
            )

    def _all_heard(self, now: float) -> bool:
        oldest = now - self.settings.replica_timeout_s
        return all(peer.heard_at >= oldest and not peer.lost for peer in self.peers.values())

    def _ask_to_drop(self, now: float) -> None:
        """Ask the owner from time to time whether a copy that is not assigned to this node may go.

        Such a copy only takes room.
        """
        assignment = self.assignment
        if (
            assignment is None
            or assignment.epoch != self.epoch
            or self.me in (*assignment.in_sync, *assignment.joining)
        ):
            return
        if self.log.last != (0, 0) and now - self._asked[0] >= self.settings.proposal_retry_s:
            self._questions += 1
            self._asked = now, self.heard, self.incarnation << 20 | self._questions & 0xFFFFF
            self._out.append(Send(assignment.owner, MayDrop(self.epoch, self._asked[2])))

    def caught_up(self, name: str, now: float) -> bool:
        """Return whether a joining replica holds all committed entries, and has promised.

        The owner counts the replica from the proposal on.
        """
        return (
            self.committed >= self.first_seq
            and self.peers[name].matched >= self.committed
            and self.promises.until(name) > now
        )

    def _propose(self, to: Assignment) -> None:
        effect = Propose(self.revision, to)
        self._proposal = _Proposal(effect, float("inf"))
        self._counted = frozenset(self.counted())
        self._out.append(effect)

    def _proposal_result(
        self, happened: bool | None, revision: int, written: Assignment | None, now: float
    ) -> None:
        if self._proposal is None:
            return
        if happened:
            self._assigned(written or self._proposal.effect.to, revision, now)
        elif happened is None:
            self._proposal.retry_at = now + self.settings.proposal_retry_s
        # Refused: the assignment has changed, perhaps by an earlier try of this owner. The view
        # will show the change. Until then the owner counts both sets.

    def may_release(self, now: float) -> bool:
        """Return whether this owner may waive promises.

        It may only while it serves: then all earlier owners have certainly stopped serving.
        """
        return self.serving(now)

    def _release(self, to: str, incarnation: int, now: float) -> None:
        assert self.assignment is not None
        peer = self.peers.get(to)
        alive = peer is not None and now - peer.heard_at < self.settings.replica_timeout_s
        if (
            self.may_release(now)
            and self._proposal is None
            and to in self.assignment.in_sync
            and alive
        ):
            self._give_to(to, incarnation)

    def isolated(self, now: float) -> bool:
        """Return whether this owner hears too few replicas to go on writing.

        It must have served before, so that it can waive promises.
        """
        if (
            not self.owning
            or self.releasing
            or self._proposal is not None
            or self.committed < self.first_seq
            or now < self.wait_until
        ):
            return False
        assert self.assignment is not None
        oldest = now - self.settings.replica_timeout_s
        heard = sum(
            name == self.me or self.peers[name].heard_at >= oldest
            for name in self.assignment.in_sync
        )
        return heard < min(self.settings.min_in_sync, len(self.assignment.in_sync))

    def _give_to(self, to: str, incarnation: int) -> None:
        """Stop serving, and propose another replica as the owner to etcd."""
        assert self.assignment is not None
        if to in self.assignment.in_sync and to != self.me:
            self.releasing = True
            self._propose(
                msgspec.structs.replace(
                    self.assignment,
                    epoch=self.epoch + 1,
                    owner=to,
                    incarnation=incarnation,
                    released=True,
                    handover="",
                    leaving=(),
                )
            )

    # -- disk

    def _keep_high(self) -> None:
        self._high_kept = self.log.high
        self._out.append(KeepHigh(self.log.high))

    def _persist(
        self,
        cut: int | None = None,
        entries: tuple[LogEntry, ...] = (),
        install: Snapshot | None = None,
        wipe: Position | None = None,
    ) -> None:
        self._number += 1
        if entries:
            self._high_kept = self.log.high
        self._out.append(
            Persist(self._number, self.epoch, cut, entries, install, wipe, self.log.high)
        )
