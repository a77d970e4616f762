"""A small world around the replicas of one shard. The search tries every order of its events.

The world drives the very `Replica` that production runs. `step` gives the world that follows an
event, and raises Broken when a promise is broken. The world is small: it has a few writes, and as
many of each fault as `Budget` says. None of these reductions hides an order that matters to the
core:

- A link is a queue, as a TCP stream is. One message may be late: it is taken out, and comes at any
  time. One link may break.
- A disk writes at once, unless it is stalled. A stalled disk writes when it goes on, or loses what
  it has not written.
- etcd takes a proposal and answers in one step. The answer may be lost, with or without the proposal. Views
  come later, node by node.
- All clocks are one. Time passes in steps that matter to the core, and every node ticks then.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from holdfast_cluster.placement.model import Assignment
from holdfast_node import replication as r
from holdfast_node.log.changes import encode_changes, is_term
from holdfast_node.replication.core.chain import until
from holdfast_node.replication.core.log import ReplicaLog
from holdfast_node.replication.core.promises import Promises

STEPS_S = (0.5, 1.1, 3.2)
"""A heartbeat; more than half of what makes a replica silent; beyond a promise."""
_NEVER_S = 1e9
_FAR_S = 40.0
_QUEUE_MAX = 3
_HISTORY_MAX = 4


class Broken(Exception):
    """A promise is broken."""


class Budget(NamedTuple):
    """How many of each there may be still."""

    writes: int = 2
    owners: int = 1
    """Changes of the owner that it is not asked about."""
    releases: int = 0
    crashes: int = 1
    lost: int = 1
    """Answers of etcd that do not come."""
    late: int = 1
    breaks: int = 0
    stalls: int = 0
    advances: int = 2
    rollbacks: int = 0
    """Disks that are put back when their node crashes."""
    joins: int = 0
    slow: int = 0
    """Nodes that are taken for slow."""


class Disk(NamedTuple):
    """What is durable."""

    epoch: int = 0
    base: r.Position = r.Position(0, 0)
    entries: tuple[r.LogEntry, ...] = ()
    applied: int = 0
    state: tuple[bytes, ...] = ()
    chain: tuple[r.Term, ...] = ()
    high: int = 0


class Node:
    """One node: the core, its disk, and what the shell around it knows."""

    __slots__ = (
        "disk",
        "history",
        "incarnation",
        "name",
        "replica",
        "seen",
        "staged",
        "stalled",
        "state",
    )

    def __init__(self, name: str, kind: type[r.Replica]) -> None:
        self.name = name
        self.incarnation = 1
        self.disk = Disk()
        self.history: tuple[Disk, ...] = ()
        self.staged: tuple[Any, ...] = ()
        self.stalled = False
        self.state: tuple[bytes, ...] = ()
        self.seen = 0
        self.replica: r.Replica | None = kind.start(name, 1, SETTINGS, _Stored(self.disk), -100.0)


SETTINGS = r.ReplicationSettings(lone_patience_s=_NEVER_S, log_keep_max=3)
_LISTS = ("_own", "_held")
_DICTS = ("reports",)


def _copy_of(thing: Any, slots: tuple[str, ...]) -> Any:
    new = object.__new__(type(thing))
    for name in slots:
        setattr(new, name, getattr(thing, name))
    return new


def _copy_replica(replica: r.Replica) -> r.Replica:
    new: r.Replica = _copy_of(replica, r.Replica.__slots__)
    new.log = _copy_of(replica.log, ReplicaLog.__slots__)
    new.log.entries = replica.log.entries.copy()
    new.log.chain = replica.log.chain.copy()
    new.promises = _copy_of(replica.promises, Promises.__slots__)
    new.promises._received = replica.promises._received.copy()
    for name in _LISTS:
        setattr(new, name, getattr(replica, name).copy())
    new.reports = replica.reports.copy()
    new.peers = {name: copy.copy(peer) for name, peer in replica.peers.items()}
    new._proposal = copy.copy(replica._proposal)
    new._out = []
    return new


def _copy_node(node: Node) -> Node:
    new = object.__new__(Node)
    for name in Node.__slots__:
        setattr(new, name, getattr(node, name))
    if node.replica is not None:
        new.replica = _copy_replica(node.replica)
    return new


Event = tuple[Any, ...]


class World:
    """Everything there is. `links`: messages under way, by sender and receiver. `late`: the one
    that was taken out."""

    __slots__ = (
        "acknowledged", "assignments", "budget", "committed", "contents", "kind", "late", "links", "nodes", "now", "requests",
        "rolled",
    )  # fmt: skip

    def __init__(
        self,
        names: str = "abc",
        budget: Budget | None = None,
        kind: type[r.Replica] = r.Replica,
    ) -> None:
        self.kind = kind
        self.budget = budget or Budget()
        self.now = 0.0
        self.nodes = {name: Node(name, kind) for name in names}
        self.links: dict[tuple[str, str], tuple[Any, ...]] = {}
        self.late: tuple[str, str, Any] | None = None
        self.requests: tuple[tuple[str, int, r.Propose], ...] = ()
        first = Assignment(1, names[0], 1, tuple(names), released=True, version=1, nonce=1)
        self.assignments: tuple[Assignment, ...] = (first,)
        self.acknowledged: frozenset[bytes] = frozenset()
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.contents: dict[tuple[int, int], bytes] = {}
        self.rolled = False

    def copy(self) -> World:
        new = object.__new__(World)
        for name in World.__slots__:
            setattr(new, name, getattr(self, name))
        new.nodes = dict(self.nodes)
        new.links = dict(self.links)
        return new

    # -- what may happen

    def events(self) -> Iterator[Event]:
        left = self.budget
        for name, node in self.nodes.items():
            replica = node.replica
            if replica is None:
                yield "start", name
                continue
            if node.seen < len(self.assignments):
                yield "view", name
            if (
                left.writes
                and replica.owning
                and not replica.releasing
                and not replica.electing
                and replica.serving(self.now)
            ):
                yield "write", name
            if node.stalled:
                yield "go on", name
            elif left.stalls:
                yield "stall", name
            if replica.concedes_to and replica.may_propose and self._there(replica.concedes_to):
                yield "concede", name
            if left.crashes:
                yield "crash", name
                if left.rollbacks:
                    for i, disk in enumerate(node.history):
                        if disk != node.disk:
                            yield "crash", name, i
            if left.releases and replica.may_release(self.now) and replica.may_propose:
                for other in sorted(set(self.assignments[-1].in_sync) - {name}):
                    if self._there(other):
                        yield "release", name, other
            if left.slow and replica.owning:
                for other in sorted(replica.peers):
                    yield "slow", name, other
        for (sender, to), queue in self.links.items():
            if queue:
                yield "deliver", sender, to
                if left.late and self.late is None:
                    yield "hold", sender, to
                if left.breaks:
                    yield "break", sender, to
        if self.late is not None:
            yield ("arrive",)
        for i in range(len(self.requests)):
            yield "etcd", i, True, True
            if left.lost:
                yield "etcd", i, True, False
                yield "etcd", i, False, False
        newest = self.assignments[-1]
        stale = (
            not self._there(newest.owner)
            or self.nodes[newest.owner].incarnation != newest.incarnation
        )
        if left.owners or stale:
            for name in newest.in_sync:
                if self._there(name) and (stale or name != newest.owner):
                    yield "elect", name
        if left.joins:
            for name in self.nodes:
                if self._there(name) and name not in (*newest.in_sync, *newest.joining):
                    yield "join", name
        if left.advances:
            for i in range(len(STEPS_S)):
                yield "advance", i

    def _there(self, name: str) -> bool:
        return self.nodes[name].replica is not None

    # -- what follows

    def step(self, event: Event) -> World:
        """The world after an event. Raises Broken."""
        new = self.copy()
        getattr(new, "_" + event[0].replace(" ", "_"))(*event[1:])
        new.check()
        return new

    def _spend(self, what: str) -> None:
        left = self.budget
        self.budget = left._replace(**{what: getattr(left, what) - 1})

    def _take(self, name: str) -> Node:
        """A node, to be changed."""
        node = self.nodes[name] = _copy_node(self.nodes[name])
        return node

    def _start(self, name: str) -> None:
        node = self._take(name)
        node.incarnation += 1
        node.staged, node.stalled, node.seen = (), False, len(self.assignments) - 1
        node.state = node.disk.state
        stored = _Stored(node.disk)
        node.replica = self.kind.start(name, node.incarnation, SETTINGS, stored, self.now)
        self._do(node, r.Rejoined(node.incarnation))

    def _view(self, name: str) -> None:
        node = self._take(name)
        node.seen += 1
        self._do(node, r.Assigned(self.assignments[node.seen - 1], node.seen))

    def _write(self, name: str) -> None:
        data = encode_changes([], [(b"", b"w%d" % self.budget.writes)])
        self._spend("writes")
        self._do(self._take(name), r.Append(data))

    def _go_on(self, name: str) -> None:
        node = self._take(name)
        node.stalled = False
        self._flush(node)

    def _stall(self, name: str) -> None:
        self._spend("stalls")
        self._take(name).stalled = True

    def _concede(self, name: str) -> None:
        node = self._take(name)
        assert node.replica is not None
        to = node.replica.concedes_to
        self._do(node, r.Concede(to, self.nodes[to].incarnation))

    def _crash(self, name: str, back: int | None = None) -> None:
        self._spend("crashes")
        node = self._take(name)
        node.replica = None
        node.staged = ()
        if back is not None:
            self._spend("rollbacks")
            self.rolled = True
            node.disk = node.history[back]
        for link in [link for link in self.links if name in link]:
            del self.links[link]
        self.requests = tuple(request for request in self.requests if request[0] != name)

    def _release(self, name: str, to: str) -> None:
        self._spend("releases")
        self._do(self._take(name), r.Release(to, self.nodes[to].incarnation))

    def _slow(self, name: str, other: str) -> None:
        self._spend("slow")
        self._do(self._take(name), r.Tick(frozenset({other})))

    def _pop(self, sender: str, to: str) -> Any:
        message, *rest = self.links[sender, to]
        self.links[sender, to] = tuple(rest)
        return message

    def _deliver(self, sender: str, to: str) -> None:
        message = self._pop(sender, to)
        if self._there(to):
            self._do(self._take(to), r.Received(sender, message))

    def _hold(self, sender: str, to: str) -> None:
        self._spend("late")
        self.late = sender, to, self._pop(sender, to)

    def _arrive(self) -> None:
        assert self.late is not None
        sender, to, message = self.late
        self.late = None
        if self._there(to):
            self._do(self._take(to), r.Received(sender, message))

    def _break(self, sender: str, to: str) -> None:
        self._spend("breaks")
        self.links[sender, to] = ()
        if self._there(sender):
            self._do(self._take(sender), r.Lost(to))

    def _etcd(self, i: int, done: bool, told: bool) -> None:
        name, life, proposal = self.requests[i]
        self.requests = self.requests[:i] + self.requests[i + 1 :]
        if not told:
            self._spend("lost")
        written = None
        if done and proposal.revision == len(self.assignments):
            written = self._write_assignment(proposal.to)
        node = self.nodes[name]
        if node.replica is None or node.incarnation != life:
            return
        # A proposal that etcd refused counts as unknown, as in production.
        event = (
            r.ProposalResult(None)
            if not told or written is None
            else r.ProposalResult(True, len(self.assignments), written)
        )
        node = self._take(name)
        if event.happened:
            node.seen = max(node.seen, len(self.assignments))
        self._do(node, event)

    def _write_assignment(self, to: Assignment) -> Assignment:
        version = len(self.assignments) + 1
        to = msgspec.structs.replace(to, version=version, nonce=version)
        before = self.assignments[-1]
        if to.epoch > before.epoch and to.owner not in before.in_sync and not self.rolled:
            raise Broken(f"rule 7: {to.owner} becomes the owner, but {before.in_sync} were in sync")
        self.assignments = (*self.assignments, to)
        return to

    def _elect(self, name: str) -> None:
        now = self.assignments[-1]
        if self._there(now.owner) and self.nodes[now.owner].incarnation == now.incarnation:
            self._spend("owners")
        self._write_assignment(
            msgspec.structs.replace(
                now,
                epoch=now.epoch + 1,
                owner=name,
                incarnation=self.nodes[name].incarnation,
                released=False,
                leaving=(),
            )
        )

    def _join(self, name: str) -> None:
        self._spend("joins")
        now = self.assignments[-1]
        self._write_assignment(msgspec.structs.replace(now, joining=(*now.joining, name)))

    def _advance(self, i: int) -> None:
        self._spend("advances")
        self.now += STEPS_S[i]
        for name in self.nodes:
            if self._there(name):
                self._do(self._take(name), r.Tick())

    # -- the shell

    def _do(self, node: Node, event: r.Event) -> None:
        replica = node.replica
        assert replica is not None
        for effect in replica.handle(event, self.now):
            if type(effect) is r.Persist:
                node.staged = (*node.staged, effect)
                if effect.install is not None:
                    node.state = msgspec.msgpack.decode(
                        effect.install.state, type=tuple[bytes, ...]
                    )
                elif effect.wipe is not None:
                    node.state = ()
            elif type(effect) is r.Apply:
                self._apply(node, effect)
            elif type(effect) is r.KeepHigh:
                node.staged = (*node.staged, effect)
            elif type(effect) is r.Send:
                self._send(node.name, effect.to, effect.message)
            elif type(effect) is r.SendSnapshot:
                self._send_snapshot(node, effect.to, effect.epoch)
            elif type(effect) is r.Propose:
                self.requests = (*self.requests, (node.name, node.incarnation, effect))
        if node.staged and not node.stalled:
            self._flush(node)

    def _check_kept(self, owner: Node, entry: r.LogEntry) -> None:
        """What an owner commits is on the disk of every copy that etcd has in sync. Any one of
        them may be the only copy that is left."""
        newest = self.assignments[-1]
        replica = owner.replica
        if replica is None or newest.epoch != replica.epoch or self.rolled:
            return
        for name in newest.in_sync:
            disk = self.nodes[name].disk
            at = entry.seq - disk.base.seq - 1
            if at >= len(disk.entries) or (at >= 0 and disk.entries[at] != entry):
                raise Broken(
                    f"3: {owner.name} commits {entry[:2]}, which is not on the disk of {name}, who"
                    " is in sync"
                )

    def _apply(self, node: Node, effect: r.Apply) -> None:
        replica = node.replica
        assert replica is not None
        self.committed = dict(self.committed)
        for entry in effect.entries:
            what = entry.epoch, entry.data
            known = self.committed.setdefault(entry.seq, what)
            if known != what:
                if not self.rolled or not is_term(known[1]):
                    raise Broken(
                        f"{node.name} applies {what} at {entry.seq}, where {known} is committed"
                    )
                self.committed[entry.seq] = what
            if replica.owning:
                self._check_kept(node, entry)
            if not is_term(entry.data):
                node.state = (*node.state, entry.data)
                if replica.owning and entry.epoch == replica.epoch and replica.serving(self.now):
                    self.acknowledged |= {entry.data}
        node.staged = (*node.staged, (effect, tuple(until(replica.log.chain, effect.trim))))

    def _send(self, sender: str, to: str, message: Any) -> None:
        if to not in self.nodes or not self._there(to):
            return
        queue = self.links.get((sender, to), ())
        if len(queue) < _QUEUE_MAX or not _says_nothing_new(message, queue):
            self.links[sender, to] = (*queue, message)

    def _send_snapshot(self, node: Node, to: str, epoch: int) -> None:
        replica = node.replica
        assert replica is not None
        position = replica.log.position_at(replica.log.applied)
        chain = tuple(until(replica.log.chain, position.seq))
        snapshot = r.Snapshot(
            epoch, position, msgspec.msgpack.encode(node.state), self.now, chain=chain
        )
        self._do(node, r.SnapshotStarted(to))
        self._send(node.name, to, snapshot)
        self._do(node, r.SnapshotEnded(to, True))

    def _flush(self, node: Node) -> None:
        while node.staged:
            number, disk = 0, node.disk
            for effect in node.staged:
                number, disk = _written(effect, number, disk)
            node.staged = ()
            if disk != node.disk and self.budget.rollbacks:
                node.history = (*node.history, node.disk)[-_HISTORY_MAX:]
            node.disk = disk
            if number:
                self._do(node, r.Persisted(number))

    # -- what has to hold at all times

    def check(self) -> None:
        """Raises Broken. The numbers are those of the ten invariants that the design asks for."""
        serving = [
            node
            for node in self.nodes.values()
            if node.replica is not None and node.replica.serving(self.now)
        ]
        if len(serving) > 1:
            raise Broken(f"5: {' and '.join(node.name for node in serving)} serve at once")
        contents = self.contents
        for node in self.nodes.values():
            replica = node.replica
            if replica is None:
                continue
            for entry in replica.log.entries:
                known = contents.get((entry.epoch, entry.seq))
                if known is None:
                    if contents is self.contents:
                        contents = self.contents = dict(contents)
                    contents[entry.epoch, entry.seq] = entry.data
                elif known != entry.data:
                    raise Broken(f"4: two contents of {entry.epoch}, {entry.seq}")
            if replica.forked and not self.rolled:
                raise Broken(f"10: {node.name} takes the shard for forked, and no disk went back")
        for node in serving:
            self._check_owner(node)
        newest = self.assignments[-1]
        # Where a disk went back, first entries may be lost, and others stand in their place: they
        # say nothing.
        top = max(
            (
                seq
                for seq, (_, data) in self.committed.items()
                if not (self.rolled and is_term(data))
            ),
            default=0,
        )
        for name in newest.in_sync:
            replica = self.nodes[name].replica
            if replica is not None and replica.unbroken and top and not self._holds(replica, top):
                raise Broken(
                    f"6: {name} is in sync and unbroken, and does not hold what is committed up to"
                    f" {top}"
                )

    def _check_owner(self, node: Node) -> None:
        replica = node.replica
        assert replica is not None
        if missing := self.acknowledged - set(node.state):
            raise Broken(f"1: {node.name} serves without {sorted(missing)}, which was acknowledged")
        newest = self.assignments[-1]
        if (
            newest.epoch == replica.epoch
            and newest.owner == node.name
            and not set(newest.in_sync) <= replica._counted | {node.name}
        ):
            raise Broken(
                f"7: {newest.in_sync} are in sync, {node.name} counts {sorted(replica._counted)}"
            )
        for other in self.nodes.values():
            copy_ = other.replica
            if (
                copy_ is None
                or copy_ is replica
                or copy_.epoch > replica.epoch
                or not copy_.log.high
            ):
                continue
            entry = copy_.log.at(copy_.log.high)
            mine = replica.log.at(copy_.log.high)
            if entry is not None and mine is not None and entry != mine and not is_term(entry.data):
                raise Broken(
                    f"2: {other.name} knows {entry[:2]} to be committed, and {node.name} serves"
                    " with another"
                )
            if (
                copy_.log.high > replica.log.last_seq
                and copy_.log.last_turn.seq > replica.log.last_seq
            ):
                raise Broken(
                    f"2: {other.name} knows more to be committed than {node.name} has, who serves"
                )

    def _holds(self, replica: r.Replica, seq: int) -> bool:
        if replica.log.last_seq < seq:
            return False
        entry = replica.log.at(seq)
        return entry is None or (entry.epoch, entry.data) == self.committed[seq]

    # -- telling worlds apart

    def key(self) -> int:
        """The same for worlds that differ only in names of replicas that do the same."""
        names = list(self.nodes)
        owner = self.assignments[-1].owner
        others = [name for name in names if name != owner]
        orders = [others] if len(others) < 2 else [others, others[::-1]]
        return min(
            hash(self._frozen({owner: 0, **{name: i for i, name in enumerate(order, 1)}}))
            for order in orders
        )

    def _frozen(self, of: dict[str, int]) -> Any:
        def ago(at: float) -> float:
            return max(-_FAR_S, min(_FAR_S, round(at - self.now, 3)))

        def told(message: Any) -> Any:
            fields = [
                (ago(v) if name == "sent_at" else v)
                for name in message.__struct_fields__
                for v in (getattr(message, name),)
            ]
            return type(message).__name__, tuple(fields)

        def assignment(a: Assignment) -> Any:
            return (
                a.epoch, of[a.owner], a.incarnation, tuple(sorted(of[n] for n in a.in_sync)), tuple(sorted(of[n] for n in a.joining)),
                a.released, tuple(sorted(of[n] for n in a.forked)), a.version,
            )  # fmt: skip

        def peer(p: Any, promised_until: float) -> Any:
            times = (
                ago(p.met_at),
                ago(p.heard_at),
                ago(p.matched_at),
                ago(p.sent_at),
                max(ago(promised_until), 0.0),
            )
            return p.next, p.matched, p.lost, p.holds, times

        def replica(x: r.Replica | None) -> Any:
            if x is None:
                return None
            return (
                x.epoch, x.log.base, tuple(x.log.entries), x.log.applied, x.committed, x.matched, tuple(x.log.chain), x.log.high,
                x.unbroken, x.electing,
                tuple(sorted((of[n], told(m)) for n, m in x.reports.items())), ago(x.elected_at), of.get(x.concedes_to), x.alone,
                tuple(sorted(of[n] for n in x.forked)), max(0.0, ago(x.promises.given_until)), x.revision, x.owning, x.releasing,
                tuple(sorted((of[n], peer(p, x.promises.until(n))) for n, p in x.peers.items())), x.first_seq, max(0.0, ago(x.wait_until)), x.persisted,
                tuple(sorted(of[n] for n in x._counted)), x._high_kept, tuple((n - x._number, s) for n, s in x._own),
                tuple((h.number - x._number, of[h.to], told(h.message)) for h in x._held),
                None if x._proposal is None else (assignment(x._proposal.effect.to), ago(min(x._proposal.retry_at, 1e12))),
                x._number - x._flushed,
            )  # fmt: skip

        nodes = sorted(
            (
                of[n],
                x.incarnation,
                x.disk,
                x.history,
                len(x.staged),
                x.stalled,
                x.state,
                x.seen,
                replica(x.replica),
            )
            for n, x in self.nodes.items()
        )
        links = sorted(
            (of[a], of[b], tuple(told(m) for m in queue))
            for (a, b), queue in self.links.items()
            if queue
        )
        late = (
            None if self.late is None else (of[self.late[0]], of[self.late[1]], told(self.late[2]))
        )
        requests = tuple(
            (of[name], life, proposal.revision, assignment(proposal.to))
            for name, life, proposal in self.requests
        )
        return (
            tuple(nodes), tuple(links), late, requests, assignment(self.assignments[-1]), len(self.assignments), self.acknowledged,
            self.budget, self.rolled, tuple(sorted(self.committed.items())),
        )  # fmt: skip


class _Stored:
    """What a start finds."""

    def __init__(self, disk: Disk) -> None:
        self.epoch, self.base, self.applied, self.high = (
            disk.epoch,
            disk.base,
            disk.applied,
            disk.high,
        )
        self.entries, self.chain = list(disk.entries), list(disk.chain)


def _says_nothing_new(message: Any, queue: tuple[Any, ...]) -> bool:
    """A heartbeat or an answer behind one of its kind: a slow link has its senders say it later."""
    if type(message) is r.Replicate and message.entries:
        return False
    if type(message) not in (r.Replicate, r.Acknowledge, r.Canvass):
        return False
    return type(queue[-1]) is type(message)


def _written(effect: Any, number: int, disk: Disk) -> tuple[int, Disk]:
    if type(effect) is r.KeepHigh:
        return number, disk._replace(high=effect.high)
    if type(effect) is tuple:
        apply, chain = effect
        disk = disk._replace(
            state=(
                *disk.state,
                *(entry.data for entry in apply.entries if not is_term(entry.data)),
            ),
            applied=apply.entries[-1].seq,
        )
        gone = apply.trim - disk.base.seq
        if gone > 0:
            last = disk.entries[gone - 1]
            disk = disk._replace(
                base=r.Position(last.epoch, last.seq), entries=disk.entries[gone:], chain=chain
            )
        return number, disk
    disk = disk._replace(epoch=max(disk.epoch, effect.epoch))
    if effect.entries:
        disk = disk._replace(high=max(disk.high, effect.high))
    if effect.install is not None:
        position = effect.install.position
        state = msgspec.msgpack.decode(effect.install.state, type=tuple[bytes, ...])
        disk = disk._replace(
            base=position,
            entries=(),
            applied=position.seq,
            state=state,
            chain=effect.install.chain,
            high=position.seq,
        )
    if effect.wipe is not None:
        disk = disk._replace(
            base=effect.wipe,
            entries=(),
            applied=effect.wipe.seq,
            state=(),
            chain=(),
            high=effect.wipe.seq,
        )
    if effect.cut is not None:
        disk = disk._replace(entries=disk.entries[: effect.cut - disk.base.seq - 1])
    return effect.number, disk._replace(entries=(*disk.entries, *effect.entries))
