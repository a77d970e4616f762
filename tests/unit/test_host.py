"""The copies of three nodes on real stores, in one process: what is written to disk, and when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.placement.model import Assignment, ClusterSettings, Member, Versioned, View
from holdfast_node.log import changes
from holdfast_node.log.shards import Entry, Shard, Shards
from holdfast_node.replication import host
from holdfast_node.replication.copies import CopyStore
from holdfast_node.replication.core.events import (
    Abdicate,
    Append,
    Assigned,
    Concede,
    Effect,
    Event,
    Fenced,
    Lost,
    Persisted,
    Position,
    ProposalResult,
    Received,
    Rejoined,
    Release,
    ReplicationSettings,
    Snapshot,
    SnapshotEnded,
    SnapshotStarted,
    Tick,
)
from holdfast_node.replication.core.replica import Replica
from holdfast_node.replication.host import NoSuchShard, Replicas
from holdfast_node.replication.links import pack, unpack
from holdfast_node.store.rocks import Batch, Store

SHARD = 7
NAMES = ("a", "b", "c")
KEY = b"\0\x07Kind\0key"


class Died(BaseException):
    """The process would have ended."""


class Flusher:
    """Flushes when it is told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.staged: Batch | None = None
        self.waiting: list[Callable[[], None]] = []

    @property
    def batch(self) -> Batch:
        if self.staged is None:
            self.staged = self.store.batch()
        return self.staged

    def when_visible(self, entries: list[Entry]) -> None:
        pass

    def when_durable(self, done: Callable[[], None]) -> None:
        self.waiting.append(done)

    def write(self) -> None:
        batch, self.staged = self.staged, None
        if batch is not None:
            self.store.write(batch)

    @staticmethod
    def die(why: str) -> None:
        raise Died(why)

    def flush(self) -> None:
        self.write()
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done()


class Node:
    """Implements `Surroundings`: messages wait in `outbox`."""

    def __init__(self, name: str, path: Path, settings: ReplicationSettings) -> None:
        self.name = name
        self.path = path
        self.settings = settings
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        self.flusher = Flusher(self.store)
        self.shards = Shards(8)
        self.replicas = Replicas(
            self.name,
            CopyStore(self.store),
            self.flusher,  # type: ignore[arg-type]
            self.shards,
            self.settings,
            self,
        )
        self.asked: list[tuple[int, bytes, Assignment]] = []
        self.full_because: str | None = None
        self.committed: list[Entry] = []
        self.outbox: list[tuple[str, int, Any]] = []

    def stop(self) -> None:
        self.store.sync()
        self.store.close()

    def send(self, to: str, shard: int, message: Any) -> None:
        self.outbox.append((to, shard, message))

    def propose(self, shard: int, old: bytes, to: Assignment) -> None:
        self.asked.append((shard, old, to))

    def send_snapshot(self, shard: int, to: str, epoch: int) -> None:
        raise AssertionError("nobody sends snapshots")

    def full(self, assignment: Assignment) -> str | None:
        return self.full_because and f"{self.full_because} for a shard of {assignment.owner}"

    def settled(self, entry: Entry) -> None:
        self.committed.append(entry)

    def rows(self, family: str) -> dict[bytes, bytes]:
        return dict(self.store.scan(family, b"\0\x07", b"\0\x08"))


class Trio:
    """Three nodes; all that they say and write is delivered and done by `settle`."""

    def __init__(self, path: Path, **settings: Any) -> None:
        chosen = ReplicationSettings(**settings)
        self.nodes = {name: Node(name, path / name, chosen) for name in NAMES}
        self.members = {name: Member(name, "127.0.0.1:1", 1, name) for name in NAMES}
        self.revision = 0

    def assign(
        self,
        owner: str,
        epoch: int,
        in_sync: tuple[str, ...] = NAMES,
        *,
        joined: tuple[str, ...] = NAMES,
        seen_by: tuple[str, ...] = NAMES,
    ) -> None:
        """Show an assignment; nodes that are in `joined` hear that they are members."""
        self.revision += 1
        assignment = Assignment(epoch, owner, 1, in_sync, released=True, version=self.revision)
        settings = ClusterSettings(shards=8, id="test")
        view = View(
            self.revision,
            settings,
            self.members,
            {SHARD: Versioned(assignment, self.revision)},
            "a",
        )
        for name, node in self.nodes.items():
            if name in joined:
                node.replicas.joined(self.members[name], view)
            elif name in seen_by:
                node.replicas.follow(view)
        self.settle()

    def settle(self) -> None:
        for _ in range(50):
            for node in self.nodes.values():
                node.flusher.flush()
            for node in self.nodes.values():
                messages, node.outbox = node.outbox, []
                for to, shard, message in messages:
                    self.nodes[to].replicas.received(node.name, unpack(pack([(shard, message)])))
            if not any(node.outbox or node.flusher.waiting for node in self.nodes.values()):
                for node in self.nodes.values():
                    node.flusher.write()
                return
        raise AssertionError("they talk on and on")

    def put(self, owner: str, *values: bytes, tick: bool = True) -> None:
        """Commit one entry for each value, which writes the same row and a reply of its own."""
        node = self.nodes[owner]
        shard = node.shards.get(SHARD)
        assert shard is not None
        for value in values:
            entry = Entry(shard)
            entry.rows, entry.replies = [(KEY, value)], [(b"\0\x07" + value, b"reply")]
            entry.waiters.append(node)
            node.replicas.append([entry])
        self.settle()
        assert len(node.committed) == len(values)
        node.committed.clear()
        if tick:
            self.tick()  # replicas hear that the last one is committed

    def tick(self) -> None:
        """Let enough time pass for heartbeats, and for a copy that is not needed to be dropped."""
        for _ in range(10):  # each copy's turn comes with one of them
            for node in self.nodes.values():
                node.replicas.tick()
        self.settle()


@pytest.fixture
def trio(tmp_path: Path) -> Trio:
    trio = Trio(tmp_path, log_keep_max=6, heartbeat_s=0.0, proposal_retry_s=0.0)
    trio.assign("a", 1)
    return trio


def replies(*values: bytes) -> dict[bytes, bytes]:
    return {b"\0\x07" + value: b"reply" for value in values}


def test_a_copy_that_nobody_reads_lives_in_its_log(trio: Trio) -> None:
    trio.put("a", b"1", b"2", b"3")
    assert trio.nodes["a"].rows("state") == {KEY: b"3"}
    for name in ("b", "c"):
        assert trio.nodes[name].rows("state") == trio.nodes[name].rows("replies") == {}
        assert len(trio.nodes[name].rows("log")) == 4  # with the owner's first


def test_whoever_comes_to_own_a_shard_has_all_of_it(trio: Trio) -> None:
    trio.put("a", b"1", b"2", b"3")
    b = trio.nodes["b"]
    take, seen = b.shards.take, []

    def taken(shard: Shard) -> None:
        seen.append(b.rows("state"))
        take(shard)

    b.shards.take = taken  # type: ignore[method-assign]
    trio.assign("b", 2, joined=())
    assert seen == [{KEY: b"3"}]
    assert b.rows("replies") == replies(b"1", b"2", b"3")
    trio.put("b", b"4")
    assert b.rows("state") == {KEY: b"4"}
    trio.assign("a", 3, joined=())
    assert trio.nodes["a"].rows("state") == {KEY: b"4"}, (
        "what came while it was no owner is not there"
    )


def test_a_log_that_is_shortened_leaves_all_that_it_held_in_the_state(trio: Trio) -> None:
    trio.put("a", *(b"%d" % n for n in range(1, 10)))
    b = trio.nodes["b"]
    base = next(iter(b.replicas.copies())).replica.log.base.seq
    assert base > 1, "nine entries are more than a log of six keeps"
    assert b.rows("state"), "what the log holds no longer has to be in the state"
    b.stop()
    b.start()
    stored = next(iter(b.replicas.copies())).replica
    assert stored.log.base.seq == base
    assert stored.log.applied >= base
    trio.assign("b", 2, joined=("b",))
    assert b.rows("state") == {KEY: b"9"}
    assert b.rows("replies") == replies(*(b"%d" % n for n in range(1, 10)))


def test_a_start_finds_in_the_log_what_was_not_applied(trio: Trio) -> None:
    trio.put("a", b"1", b"2")
    b = trio.nodes["b"]
    b.stop()
    b.start()
    assert b.rows("state") == {}
    trio.assign("b", 2, joined=("b",))
    assert b.rows("state") == {KEY: b"2"}
    assert b.rows("replies") == replies(b"1", b"2")


def test_what_was_not_applied_goes_with_the_copy(trio: Trio) -> None:
    trio.put("a", b"1", b"2")
    trio.assign("a", 1, ("a", "b"), joined=())
    trio.tick()  # it asks whether the copy may go, and hears that it may
    c = trio.nodes["c"]
    assert c.rows("log") == c.rows("state") == {}
    trio.put("a", b"3")
    # never by etcd's own rules: only to see whether anything comes back
    trio.assign("c", 2, ("a", "b"), joined=("c",))
    assert c.rows("state") == c.rows("replies") == {}


def test_how_long_a_shard_may_be_answered_for_grows_with_what_replicas_promise(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = boottime()
    monkeypatch.setattr(host, "boottime", lambda: now)
    trio.tick()
    shard = trio.nodes["a"].shards.get(SHARD)
    assert shard is not None
    # Promises count from when they were asked for, a moment before.
    assert now + 1.0 < shard.until <= now + 2.8
    for _ in range(20):
        now += 0.5
        trio.put("a", b"%d" % int(now * 10), tick=False)
        assert shard.until - now >= 1.0, "it was not looked at anew while there was time"


def test_a_shard_is_answered_for_no_longer_than_one_that_came_in_sync_has_promised(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on it may be elected, and waits for nothing but its own promise."""
    trio.assign("a", 1, ("a", "b"), joined=())
    trio.tick()
    shard = trio.nodes["a"].shards.get(SHARD)
    assert shard is not None
    assert shard.until > boottime() + 2
    monkeypatch.setattr(trio.nodes["c"].replicas, "received", lambda *given: None)
    trio.assign("a", 1, joined=())
    assert (shard.owned, shard.until) == (True, 0.0), "c has promised nothing yet"


def test_a_shard_is_dropped_as_soon_as_a_replica_tells_of_a_later_epoch(trio: Trio) -> None:
    trio.put("a", b"1")
    a = trio.nodes["a"]
    shard = a.shards.get(SHARD)
    assert shard is not None
    assert shard.until > boottime() + 1
    trio.assign("b", 2, joined=(), seen_by=("b", "c"))
    assert a.shards.get(SHARD) is None, "b's first entry has told"
    assert (shard.owned, shard.until) == (False, 0.0)
    assert trio.nodes["b"].shards.get(SHARD) is not None


def test_entries_that_wait_are_given_up_with_the_shard(trio: Trio) -> None:
    a = trio.nodes["a"]
    shard = a.shards.get(SHARD)
    assert shard is not None
    entry = Entry(shard)
    entry.rows = [(KEY, b"1")]
    entry.waiters.append(a)
    a.replicas.append([entry])
    a.outbox.clear()  # no node hears of it
    trio.assign("b", 2, joined=(), seen_by=("b", "c"))
    assert a.committed == [entry]
    assert (entry.abandoned, entry.committed) == (True, False)
    assert trio.nodes["b"].rows("state") == {}


@pytest.mark.parametrize(
    "when",
    ["the log is shortened", "the shard is taken", "an owner applies what an earlier one has left"],
)
def test_a_node_ends_when_what_is_committed_cannot_be_applied(
    trio: Trio, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Else the log would be shortened later, and what was in it would be gone without a word."""

    def no_memory(data: bytes) -> Any:
        raise MemoryError

    if when == "the log is shortened":
        trio.put("a", *(b"%d" % n for n in range(1, 6)))
        monkeypatch.setattr(changes, "_decode", no_memory)
        with pytest.raises(Died, match="shard 7: an effect of its replica failed"):
            trio.put("a", b"6", b"7")
    elif when == "the shard is taken":
        trio.put("a", b"1")
        monkeypatch.setattr(changes, "_decode", no_memory)
        with pytest.raises(Died, match="shard 7: its log could not be applied"):
            trio.assign("b", 2, joined=())
    else:
        trio.put("a", b"1", tick=False)  # b has it, and does not know that it is committed
        monkeypatch.setattr(changes, "_decode", no_memory)
        with pytest.raises(Died, match="shard 7: an effect of its replica failed"):
            trio.assign("b", 2, joined=())


ROUNDS: dict[type[Event] | type[Snapshot], Callable[[Trio], object]] = {
    Rejoined: lambda trio: trio.assign("a", 2),
    Assigned: lambda trio: trio.assign("b", 2, joined=()),
    Append: lambda trio: trio.put("a", b"1"),
    Persisted: lambda trio: trio.put("a", b"1"),
    Received: lambda trio: trio.put("a", b"1"),
    ProposalResult: lambda trio: trio.nodes["a"].replicas.proposal_answered(
        SHARD, None, Assignment(1, "a", 1, NAMES)
    ),
    Lost: lambda trio: trio.nodes["a"].replicas.lost("b"),
    Tick: lambda trio: trio.tick(),
    Release: lambda trio: trio.nodes["a"].replicas.release(SHARD, trio.members["b"]),
    Abdicate: lambda trio: trio.nodes["a"].replicas.abdicate(SHARD, trio.members["b"]),
    Concede: lambda trio: trio.nodes["a"].replicas.concede(SHARD, trio.members["b"]),
    SnapshotStarted: lambda trio: trio.nodes["a"].replicas.snapshot_started(SHARD, "b"),
    SnapshotEnded: lambda trio: trio.nodes["a"].replicas.snapshot_ended(SHARD, "b", True),
    Snapshot: lambda trio: trio.nodes["b"].replicas.snapshot_arrived(
        "a", SHARD, Snapshot(1, Position(1, 9), b"", 0.0)
    ),
}
"""What brings each event to a core."""


def test_every_event_has_a_round() -> None:
    assert set(get_args(Event)) == set(ROUNDS) - {Snapshot}  # which comes as a message


@pytest.mark.parametrize("event", ROUNDS, ids=lambda event: event.__name__)
def test_a_core_that_asserts_ends_the_node_in_every_path(
    trio: Trio, monkeypatch: pytest.MonkeyPatch, event: type
) -> None:
    """A stream, a call of gRPC or a task brings the event. It would log the exception, and the node
    would go on."""
    handle = Replica.handle

    def asserts(self: Replica, what: Event, now: float) -> list[Effect]:
        assert not isinstance(getattr(what, "message", what) if event is Snapshot else what, event)
        return handle(self, what, now)

    monkeypatch.setattr(Replica, "handle", asserts)
    with pytest.raises(Died, match="shard 7: an effect of its replica failed"):
        ROUNDS[event](trio)


@pytest.mark.parametrize("asked", ["serves_until", "read_only"])
def test_a_core_that_asserts_when_it_is_asked_ends_the_node(
    trio: Trio, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    def asserts(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Replica, asked, asserts)
    with pytest.raises(Died, match="a bug in replication"):
        trio.tick()


def test_an_exception_of_who_is_told_of_commits_ends_the_node(
    trio: Trio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(self: Entry) -> None:
        raise KeyError

    monkeypatch.setattr(Entry, "settle", raises)
    with pytest.raises(Died, match="a bug in replication"):
        trio.put("a", b"1")


def test_a_shard_that_there_cannot_be_is_the_fault_of_who_speaks_of_it(trio: Trio) -> None:
    with pytest.raises(NoSuchShard):
        trio.nodes["a"].replicas.received("b", [(1 << 20, Fenced(1))])


def test_an_owner_takes_no_writes_while_its_disk_is_full(trio: Trio) -> None:
    a = trio.nodes["a"]
    shard = a.shards.get(SHARD)
    assert shard is not None
    a.full_because = "no room"
    trio.tick()
    assert shard.read_only == "no room for a shard of a"
    a.full_because = None
    trio.tick()
    assert shard.read_only is None
