"""A simulated world: nodes with disks and clocks, links, etcd, clients. One seed is one world; the
same seed is the same story.

It drives the very `Replica` and `plan` that production runs. Real time is `world.now`; a node sees
its own clock, whose rate is wrong by up to 5 %. Disks lose what was not flushed, in order from a
point on. Messages are lost, doubled and overtaken. etcd is a correct store whose replies may be
lost, whose watches lag, and which may be away. Checkers (checks.py) watch from outside.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Member,
    Versioned,
    View,
)
from holdfast_cluster.placement.plan import Transition, plan
from holdfast_cluster.placement.ring import Ring, RingNode
from holdfast_node import replication as r
from holdfast_node.log.changes import encode_changes, is_term
from holdfast_node.replication.core.chain import until
from holdfast_node.replication.core.slowness import Held, Slowness

from .checks import Checks, Operation

SHARD = 0
LEASE_S = 3.0
EXPECTED_S = 4.0
SETTINGS = ClusterSettings(shards=1, replication=3, points=16)


STRIKES = (
    *("crash", "crash", "pause", "cut one way", "cut off", "slow disk", "etcd", "lag"),
    *(
        "owner without etcd",
        "owner without etcd",
        "release",
        "drain",
        "lose disk",
        "all",
        "misjudge",
    ),
)


@dataclass
class Disk:
    """What is durable. `state` is the list of what was applied; it and `applied`
    change together."""

    incarnation: int = 0
    epoch: int = 0
    base: r.Position = field(default_factory=lambda: r.Position(0, 0))
    entries: list[r.LogEntry] = field(default_factory=list)
    applied: int = 0
    state: list[bytes] = field(default_factory=list)
    chain: list[r.Term] = field(default_factory=list)
    high: int = 0


@dataclass(frozen=True)
class Faults:
    """How likely things go wrong."""

    loss: float = 0.02
    doubled: float = 0.02
    lost_replies: float = 0.1
    between_s: float = 1.5
    """Mean time between faults."""


class World:
    """Everything there is. `replica` and `planner` can be replaced by broken ones; `strikes` are
    the faults to draw from."""

    def __init__(
        self,
        seed: int,
        nodes: int = 5,
        replica: type[r.Replica] = r.Replica,
        planner: Callable[[View, int, dict[str, Member]], list[Transition]] = plan,
        shell: type[Node] | None = None,
        strikes: tuple[str, ...] = STRIKES,
    ) -> None:
        self.strikes = strikes
        self.random = random.Random(seed)
        self.seed = seed
        self.now = 0.0
        self.lone_never = seed % 3 == 0
        """Whether no copy ever counts alone: where disks are put back, for a copy that is alone may
        be the one that lost writes."""
        self.puts_back = self.lone_never
        """Whether a disk is put back to an earlier state in this world, once, instead of disks that
        are lost."""
        self.went_back = False
        self.replica = replica
        self.planner = planner
        self.faults = Faults()
        self.story: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.blocked: set[tuple[str, str]] = set()
        self.checks = Checks(self)
        self.etcd = Etcd(self)
        self.shell = shell or Node
        self.nodes: dict[str, Node] = {}
        for i in range(nodes):
            self.add_node(f"n{i}")
        self._operations = 0
        self.working = True

    # -- time

    def at(self, delay: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, do))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, do = heapq.heappop(self._queue)
            do()
            self.checks.after_each_event()
        self.now = until

    def tell(self, what: str) -> None:
        self.story.append(f"{self.now:9.4f}  {what}")

    # -- what is in it

    def add_node(self, name: str) -> None:
        node = self.nodes[name] = self.shell(self, name)
        node.start()

    def send(self, sender: Node, to: str, message: Any) -> None:
        if (sender.name, to) in self.blocked or self.random.random() < self.faults.loss:
            return
        copies = 2 if self.random.random() < self.faults.doubled else 1
        for _ in range(copies):
            delay = self.random.expovariate(1 / 0.002) + (
                self.random.random() if self.random.random() < 0.01 else 0.0
            )
            self.at(delay, lambda: self._arrive(sender.name, to, message))

    def _arrive(self, sender: str, to: str, message: Any) -> None:
        if (sender, to) not in self.blocked and (node := self.nodes.get(to)) is not None:
            node.deliver(r.Received(sender, message))

    # -- clients

    def clients(self, mean_s: float = 0.02) -> None:
        """Calls arrive all the time, at any node that may think that it owns the shard."""

        def one() -> None:
            if self.working:
                self.at(self.random.expovariate(1 / mean_s), one)
                self._operations += 1
                owners = [node for node in self.nodes.values() if node.up and node.replica.owning]
                if owners:
                    node = self.random.choice(owners)
                    kind = "write" if self.random.random() < 0.6 else "read"
                    node.call(Operation(self._operations, kind, self.now))

        one()

    # -- faults

    def trouble(self) -> None:
        """Faults arrive until the world is healed."""

        def one() -> None:
            if self.working:
                self.at(self.random.expovariate(1 / self.faults.between_s), one)
                self._strike()

        self.at(self.random.random(), one)

    def _strike(self) -> None:
        node = self.random.choice(list(self.nodes.values()))
        if self.random.random() < 0.3:
            node = next(
                (each for each in self.nodes.values() if each.up and each.replica.owning), node
            )
        match self.random.choice(self.strikes):
            case "crash":
                node.crash()
                self.at(self.random.expovariate(1 / 1.5), node.start)
            case "all":
                for each in list(self.nodes.values()):
                    if self.random.random() < 0.7:
                        each.crash()
                        self.at(self.random.expovariate(1 / 0.7), each.start)
            case "pause":
                node.pause(self.random.choice((0.5, 4.0, 8.0)) * self.random.random())
            case "cut one way":
                other = self.random.choice([*self.nodes, "etcd"])
                self._cut(
                    {(node.name, other)} if self.random.random() < 0.5 else {(other, node.name)}
                )
            case "cut off":
                others = [*self.nodes, "etcd"] if self.random.random() < 0.5 else list(self.nodes)
                self._cut(
                    {
                        pair
                        for other in others
                        if other != node.name
                        for pair in ((node.name, other), (other, node.name))
                    }
                )
            case "slow disk":
                node.slow_until = self.now + 3.0 * self.random.random()
                self.tell(f"{node.name}: its disk is slow until {node.slow_until:.2f}")
            case "misjudge":
                node.misjudges = frozenset(
                    name for name in self.nodes if self.random.random() < 0.5
                )
                self.tell(f"{node.name}: takes for slow: {', '.join(sorted(node.misjudges))}")
                self.at(4.0 * self.random.random(), lambda: setattr(node, "misjudges", frozenset()))
            case "etcd":
                self.etcd.go_away(6.0 * self.random.random())
            case "lag":
                node.lag_until = self.now + 4.0 * self.random.random()
                self.tell(f"{node.name}: its watch lags until {node.lag_until:.2f}")
            case "release":
                owners = [each for each in self.nodes.values() if each.up and each.replica.owning]
                if owners:
                    owners[0].release()
            case "owner without etcd":
                # Its lease ends while it works on: the moment that promises are for.
                for each in self.nodes.values():
                    if each.up and each.replica.owning:
                        self._cut(
                            {(each.name, "etcd"), ("etcd", each.name)},
                            3.0 + 2.0 * self.random.random(),
                        )
            case "drain":
                if self.random.random() < 0.5:
                    node.set_state(self.random.choice(("stopping", "full")))
                    self.at(8.0 * self.random.random(), lambda: node.set_state("active"))
                else:
                    self.etcd.drain(node.name, True)
                    self.at(8.0 * self.random.random(), lambda: self.etcd.drain(node.name, False))
            case "lose disk" if self.puts_back:
                self._put_back_later(node)
            case "lose disk":
                self._lose_disk(node)

    def at_a_bad_moment(self, before: Assignment | None, after: Assignment) -> None:
        """Faults like to come while the assignment changes: the owner does not hear of it, is cut
        off from who joined, dies soon."""
        if not self.working or before is None or self.random.random() < 0.85:
            return
        owner = self.nodes.get(before.owner)
        changed = set(before.in_sync) ^ set(after.in_sync) or {after.owner}
        if owner is None:
            return
        if self.random.random() < 0.5:
            self._cut({("etcd", owner.name)})
        if self.random.random() < 0.7:
            self._cut(
                {
                    pair
                    for name in sorted(changed)
                    for pair in ((owner.name, name), (name, owner.name))
                }
            )
        if self.random.random() < 0.5:
            self.at(self.random.random() * 1.5, owner.crash)
            self.at(1.5 + self.random.expovariate(1 / 2.0), owner.start)

    def at_the_end_of_a_lease(self, name: str) -> None:
        """Faults like to come when an owner is about to be replaced: it is cut off just now, and
        the next one restarts."""
        node = self.nodes.get(name)
        if (
            not self.working
            or node is None
            or not node.up
            or not node.replica.owning
            or self.random.random() < 0.5
        ):
            return
        self._cut({pair for other in self.nodes for pair in ((name, other), (other, name))})
        in_sync = self.etcd.assignment.in_sync if self.etcd.assignment is not None else ()
        others = [each for each in in_sync if each != name and each in self.nodes]
        if not others:
            return
        other = self.nodes[self.random.choice(others)]
        other.crash()
        self.at(0.02, other.start)

    def _lose_disk(self, node: Node) -> None:
        """At most one at a time, and only while all copies are there: more is more than what is
        promised."""
        assignment = self.etcd.assignment
        if assignment is None or sum(name in self.nodes for name in assignment.in_sync) < 3:
            return
        node.crash()
        del self.nodes[node.name]
        name = f"{node.name.split('.')[0]}.{int(self.now * 1000)}"
        self.tell(f"{node.name}: its disk is lost; it comes back as {name}")
        self.at(0.5, lambda: self.add_node(name))

    def _put_back_later(self, node: Node) -> None:
        """A snapshot of a running node comes back after a crash. Its start counter fits if the node
        was not restarted since."""
        if not node.up:
            return
        taken, life = copy.deepcopy(node.disk), node.life
        self.tell(f"{node.name}: a snapshot of its disk is taken")

        def put_back() -> None:
            if self.working and self.puts_back and node.up and node.life == life:
                self.puts_back = False
                self.went_back = True
                node.crash()
                node.disk = taken
                self.tell(
                    f"{node.name}: its disk is put back; its log ends with"
                    f" {taken.base.seq + len(taken.entries)}"
                )
                self.at(self.random.expovariate(1 / 0.5), node.start)

        self.at(self.random.choice((0.1, 1.0, 6.0)) * self.random.random(), put_back)

    def _cut(self, pairs: Iterable[tuple[str, str]], seconds: float | None = None) -> None:
        cut = {(a, b) for a, b in pairs if a != b}
        self.blocked |= cut
        self.tell(f"cut: {', '.join(f'{a}>{b}' for a, b in sorted(cut))}")
        self.at(6.0 * self.random.random() if seconds is None else seconds, lambda: self._mend(cut))

    def _mend(self, cut: set[tuple[str, str]]) -> None:
        self.blocked -= cut
        self.tell(f"mended: {', '.join(f'{a}>{b}' for a, b in sorted(cut))}")

    def wanted(self) -> list[str]:
        """The copies that the ring wants, the owner first, when everybody is there."""
        nodes = [RingNode(name, f"h{name.split('.')[0]}") for name in self.nodes]
        return Ring(nodes, SETTINGS.shards, SETTINGS.points).preference_list(
            SHARD, SETTINGS.replication
        )

    def heal(self) -> None:
        """No more faults from now on; everybody is started."""
        self.working = False
        self.faults = Faults(0.0, 0.0, 0.0)
        self.blocked.clear()
        self.etcd.away_until = 0.0
        for name in list(self.etcd.drains):
            self.etcd.drain(name, False)
        self.tell("healed")
        for node in list(self.nodes.values()):
            node.slow_until = node.lag_until = 0.0
            node.wake()
            node.set_state("active")
            if not node.up:
                node.start()


class Etcd:
    """A correct store that is far away."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.revision = 1
        self.members: dict[str, tuple[Member, float]] = {}
        self.incarnations: dict[str, int] = {}
        self.assignment: Assignment | None = None
        self.assignment_revision = 0
        self.away_until = 0.0
        self.drains: dict[str, Drain] = {}
        self._expire()

    @property
    def up(self) -> bool:
        return self.world.now >= self.away_until

    def view(self) -> View:
        assignments = (
            {}
            if self.assignment is None
            else {SHARD: Versioned(self.assignment, self.assignment_revision)}
        )
        return View(
            self.revision,
            SETTINGS,
            {name: member for name, (member, _) in self.members.items()},
            assignments,
            "",
            dict(self.drains),
        )

    def go_away(self, seconds: float) -> None:
        self.away_until = self.world.now + seconds
        self.world.tell(f"etcd is away until {self.away_until:.2f}")
        # A new leader gives every lease its whole time again.
        self.members = {
            name: (member, self.away_until + LEASE_S) for name, (member, _) in self.members.items()
        }

    def request(self, node: Node, do: Callable[[], Any], answer: Callable[[Any], None]) -> None:
        """Run `do` here and `answer` there, with None when the outcome is unknown. Requests of a
        node that crashes meanwhile still happen."""
        world = self.world
        life = node.life

        def there() -> None:
            reached = self.up and (node.name, "etcd") not in world.blocked
            result = do() if reached else None
            lost = (
                not reached
                or ("etcd", node.name) in world.blocked
                or world.random.random() < world.faults.lost_replies
            )
            delay = 1.0 if lost else world.random.expovariate(1 / 0.003)
            world.at(delay, lambda: node.when_awake(life, lambda: answer(None if lost else result)))

        world.at(world.random.expovariate(1 / 0.003), there)

    # -- what is asked of it

    def join(self, member: Member) -> bool:
        if self.incarnations.get(member.id, 0) >= member.incarnation:
            return False
        self.incarnations[member.id] = member.incarnation
        self.members[member.id] = (member, self.world.now + LEASE_S)
        self._changed()
        return True

    def state(self, member: Member, state: str) -> bool:
        found = self.members.get(member.id)
        if found is None or found[0].incarnation != member.incarnation:
            return False
        self.members[member.id] = (msgspec.structs.replace(found[0], state=state), found[1])
        self._changed()
        return True

    def drain(self, name: str, wanted: bool) -> None:
        """An operator's wish; it is in etcd until it is taken back."""
        if wanted:
            self.drains[name] = Drain(self.world.now)
        else:
            self.drains.pop(name, None)
        self.world.tell(f"{name}: {'to be drained' if wanted else 'not to be drained'}")
        self._changed()

    def renew(self, name: str, incarnation: int) -> bool:
        found = self.members.get(name)
        if found is None or found[0].incarnation != incarnation:
            return False
        self.members[name] = (found[0], self.world.now + LEASE_S)
        return True

    def reconfigure(self, revision: int, to: Assignment) -> tuple[bool, int, Assignment | None]:
        if self.assignment_revision != revision:
            return False, 0, None
        to = msgspec.structs.replace(
            to, version=to.version + 1, nonce=self.world.random.getrandbits(53)
        )
        self.revision += 1
        before = self.assignment
        self.assignment, self.assignment_revision = to, self.revision
        self.world.checks.assigned(before, to)
        self.world.tell(
            f"etcd: epoch {to.epoch}, owner {to.owner}, in sync {to.in_sync}, joining"
            f" {to.joining}{' released' * to.released}"
        )
        self._publish()
        self.world.at_a_bad_moment(before, to)
        return True, self.revision, to

    def _expire(self) -> None:
        self.world.at(0.1, self._expire)
        if not self.up:
            return
        gone = [name for name, (_, until) in self.members.items() if until < self.world.now]
        for name in gone:
            del self.members[name]
            self.world.tell(f"etcd: the lease of {name} has ended")
            self._changed()
            self.world.at_the_end_of_a_lease(name)

    def _changed(self) -> None:
        self.revision += 1
        self._publish()

    def _publish(self) -> None:
        view = self.view()
        for node in getattr(self.world, "nodes", {}).values():
            self.deliver(node, view)

    def deliver(self, node: Node, view: View) -> None:
        world = self.world

        def arrive() -> None:
            if world.now < node.lag_until or not self.up or ("etcd", node.name) in world.blocked:
                world.at(0.2, arrive)
            else:
                node.saw(view)

        world.at(world.random.expovariate(1 / 0.01), arrive)


class Node:
    """A node's shell: what production does around the core, as far as it matters here."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.rate = 1.0 + world.random.uniform(-0.05, 0.05)
        self.offset = world.random.uniform(0, 1000)
        self.disk = Disk()
        self.up = False
        self.life = 0
        self.paused_until = 0.0
        self.slow_until = 0.0
        self.lag_until = 0.0
        self.misjudges: frozenset[str] = frozenset()
        """Nodes that it takes for slow, whether they are or not."""
        self._waiting: list[Callable[[], None]] = []
        self.state_wanted = "active"

    @property
    def clock(self) -> float:
        """This node's own clock; it counts while the process is paused."""
        return self.offset + self.world.now * self.rate

    @property
    def paused(self) -> bool:
        return self.world.now < self.paused_until

    # -- life

    def start(self) -> None:
        if self.up or self.world.nodes.get(self.name) is not self:
            return
        self.up = True
        self.life += 1
        self.staged: list[Callable[[Disk], int]] = []
        self.flushing = False
        self.view = View()
        self.state = list(self.disk.state)
        self.operations: list[tuple[int, Operation, list[bytes] | None]] = []
        self.last_write = 0
        self.joined = False
        self.seen: dict[str, tuple[Member, float]] = {}
        self.sending: set[str] = set()
        self.disk.incarnation += 1
        self.slowness = Slowness(self.clock, (1.0, 4.0))
        settings = r.ReplicationSettings(
            log_keep_max=6, lone_patience_s=1e9 if self.world.lone_never else 6.0
        )
        self.replica = self.world.replica.start(
            self.name, self.disk.incarnation, settings, self.disk, self.clock
        )
        self.world.tell(
            f"{self.name}: starts, incarnation {self.disk.incarnation}, epoch {self.disk.epoch},"
            f" log to {self.replica.log.last}"
        )
        self._every(0.1, self._tick, self.life)
        self._every(LEASE_S / 3, self._renew, self.life)
        self._every(0.3, self._control, self.life)
        self._join()

    def crash(self) -> None:
        if not self.up:
            return
        kept = self.world.random.randint(0, len(self.staged))
        for write in self.staged[:kept]:
            write(self.disk)
        self.world.tell(f"{self.name}: crashes, {len(self.staged) - kept} of its writes are lost")
        self.up = False
        self.life += 1
        for other in self.world.nodes.values():
            if other is not self and (self.name, other.name) not in self.world.blocked:
                self.world.at(
                    self.world.random.expovariate(1 / 0.01),
                    partial(other.deliver, r.Lost(self.name)),
                )
        self.paused_until = 0.0
        self._waiting = []

    def pause(self, seconds: float) -> None:
        if self.up and not self.paused:
            self.paused_until = self.world.now + seconds
            self.world.tell(f"{self.name}: paused until {self.paused_until:.2f}")
            self.world.at(seconds, self.wake)

    def wake(self) -> None:
        self.paused_until = 0.0
        waiting, self._waiting = self._waiting, []
        for do in waiting:
            do()

    def when_awake(self, life: int, do: Callable[[], object]) -> None:
        if self.life != life or not self.up:
            return
        if self.paused:
            self._waiting.append(lambda: self.when_awake(life, do))
        else:
            do()

    def _every(self, seconds: float, do: Callable[[], None], life: int) -> None:
        def again() -> None:
            if self.life == life and self.up:
                self.world.at(
                    seconds * self.world.random.uniform(0.8, 1.2),
                    lambda: self.when_awake(life, again),
                )
                do()

        self.world.at(seconds * self.world.random.random(), lambda: self.when_awake(life, again))

    # -- membership and control

    def _join(self) -> None:
        member = Member(
            self.name,
            self.name,
            self.replica.incarnation,
            f"h{self.name.split('.')[0]}",
            state=self.state_wanted,
        )

        def answered(done: Any) -> None:
            self.joined = bool(done)
            if done:
                self.world.etcd.deliver(self, self.world.etcd.view())

        self.world.etcd.request(self, lambda: self.world.etcd.join(member), answered)

    def _renew(self) -> None:
        incarnation = self.replica.incarnation

        def answered(there: Any) -> None:
            if there is False and self.replica.incarnation == incarnation:
                self.disk.incarnation += 1  # on disk at once: the directory's own fsync
                self.do(r.Rejoined(self.disk.incarnation))
                self._join()

        if self.joined:
            self.world.etcd.request(
                self, lambda: self.world.etcd.renew(self.name, incarnation), answered
            )
        else:
            self.disk.incarnation += 1
            self.do(r.Rejoined(self.disk.incarnation))
            self._join()

    def set_state(self, state: str) -> None:
        """Drain, or take part again."""
        self.state_wanted = state
        member = self.view.members.get(self.name) if self.up else None
        if member is not None and member.state != state:
            self.world.tell(f"{self.name}: {state}")
            self.world.etcd.request(
                self, lambda: self.world.etcd.state(member, state), lambda _: None
            )

    def _control(self) -> None:
        """Every node is the controller now and then: two at once must do no harm, nor one that dies
        half-way."""
        if self.view.settings is None or self.world.random.random() < 0.5:
            return
        for name, member in self.view.members.items():
            self.seen[name] = (member, self.clock)
        expected = {
            name: member for name, (member, at) in self.seen.items() if self.clock - at < EXPECTED_S
        }
        mine = self.view.members.get(self.name)
        if mine is not None and mine.state != self.state_wanted:
            self.set_state(self.state_wanted)
        for transition in self.world.planner(self.view, len(self.world.nodes), expected):
            self.world.etcd.request(
                self,
                partial(self.world.etcd.reconfigure, transition.revision, transition.to),
                lambda _: None,
            )

    def saw(self, view: View) -> None:
        def take() -> None:
            if view.revision > self.view.revision:
                self.view = view
                if SHARD in view.assignments:
                    versioned = view.assignments[SHARD]
                    self.do(r.Assigned(versioned.assignment, versioned.revision))

        self.when_awake(self.life, take)

    # -- the core

    def deliver(self, event: r.Event) -> None:
        self.when_awake(self.life, lambda: self.do(event))

    def _tick(self) -> None:
        held = {
            (name, SHARD): Held(*how) for name, *how in self.replica.held_up(self.slowness.slow)
        }
        if self.slowness.look(held, (), self.clock):
            self.world.tell(f"{self.name}: slow are now: {', '.join(sorted(self.slowness.slow))}")
        self.do(r.Tick(self.slowness.slow | self.misjudges))
        assignment = self.replica.assignment
        if (
            self.replica.owning
            and assignment is not None
            and assignment.handover in self.view.members
            and not self.operations
        ):
            incarnation = self.view.members[assignment.handover].incarnation
            self.do(r.Release(assignment.handover, incarnation))
        if assignment is not None and (
            self.replica.concedes_to or self.replica.unheard(self.clock)
        ):
            others = [name for name in assignment.in_sync if name != self.name]
            others = [self.replica.concedes_to] if self.replica.concedes_to else others
            there = [name for name in others if name in self.view.members]
            if there:
                self.world.tell(f"{self.name}: concedes to {there[0]}")
                self.do(r.Concede(there[0], self.view.members[there[0]].incarnation))
        elif assignment is not None and self.replica.isolated(self.clock):
            others = [
                name
                for name in assignment.in_sync
                if name != self.name and name in self.view.members
            ]
            if others:
                to = self.world.random.choice(others)
                self.world.tell(f"{self.name}: hears nobody, gives the shard to {to}")
                self.do(r.Abdicate(to, self.view.members[to].incarnation))

    def do(self, event: r.Event) -> list[r.Effect]:
        was = self.replica.owning
        effects = self.replica.handle(event, self.clock)
        for effect in effects:
            match effect:
                case r.Persist():
                    self._stage(partial(_persist, effect))
                case r.Apply(entries, trim):
                    self.state += [entry.data for entry in entries if not is_term(entry.data)]
                    self.world.checks.applied(self.name, entries)
                    chain = until(self.replica.log.chain, trim)
                    self._stage(partial(_apply, entries, trim, chain))
                case r.KeepHigh(high):
                    self._stage(partial(_keep_high, high))
                case r.Send(to, message):
                    self.world.send(self, to, message)
                case r.SendSnapshot(to, epoch):
                    self._send_snapshot(to, epoch)
                case r.Propose(revision, to_assignment):
                    self._propose(revision, to_assignment)
            if isinstance(effect, r.Persist) and effect.install is not None:
                self.state = msgspec.msgpack.decode(effect.install.state)
                self.world.checks.installed(self.name, effect.install.position, self.state)
            if isinstance(effect, r.Persist) and effect.wipe is not None:
                self.world.tell(f"{self.name}: drops its copy")
                self.state = []
        if was and not self.replica.owning:
            self.world.tell(f"{self.name}: owns no more")
            self.operations = []
            self.last_write = 0
        self._reply()
        return effects

    def _send_snapshot(self, to: str, epoch: int) -> None:
        """The state is taken now, and on its way for a while."""
        if to in self.sending:
            return
        self.sending.add(to)
        snapshot = self.snapshot(epoch)
        life = self.life
        self.do(r.SnapshotStarted(to))

        def ended() -> None:
            self.sending.discard(to)
            self.do(r.SnapshotEnded(to, self.world.random.random() < 0.5))

        seconds = self.world.random.expovariate(1 / 0.2)
        self.world.at(
            seconds, lambda: self.when_awake(life, lambda: self.world.send(self, to, snapshot))
        )
        self.world.at(seconds + 0.3, lambda: self.when_awake(life, ended))

    def snapshot(self, epoch: int) -> r.Snapshot:
        """The state with the position that it is at: both read at once."""
        seq = self.replica.log.applied
        position = self.replica.log.position_at(seq)
        assert position.seq == seq
        chain = tuple(until(self.replica.log.chain, seq))
        return r.Snapshot(
            epoch, position, msgspec.msgpack.encode(self.state), self.clock, chain=chain
        )

    def _propose(self, revision: int, to: Assignment) -> None:
        def answered(result: Any) -> None:
            self.do(r.ProposalResult(*(result if result is not None else (None, 0))))

        self.world.etcd.request(self, lambda: self.world.etcd.reconfigure(revision, to), answered)

    def release(self) -> None:
        assignment = self.replica.assignment
        if assignment is None or self.operations:
            return
        others = [
            name for name in assignment.in_sync if name != self.name and name in self.view.members
        ]
        if others:
            to = self.world.random.choice(others)
            self.world.tell(f"{self.name}: releases the shard to {to}")
            incarnation = self.view.members[to].incarnation
            self.when_awake(self.life, lambda: self.do(r.Release(to, incarnation)))

    # -- the disk

    def _stage(self, write: Callable[[Disk], int]) -> None:
        self.staged.append(write)
        if not self.flushing:
            self._flush()

    def _flush(self) -> None:
        self.flushing = True
        life, count = self.life, len(self.staged)
        slow = self.world.now < self.slow_until
        seconds = self.world.random.expovariate(1 / (1.0 if slow else 0.003))
        self.world.at(seconds, lambda: self._flushed(life, count))

    def _flushed(self, life: int, count: int) -> None:
        if self.life != life or not self.up:
            return
        number = 0
        for write in self.staged[:count]:
            number = max(number, write(self.disk))
        del self.staged[:count]
        if self.staged:
            self._flush()
        else:
            self.flushing = False
        if number:
            self.deliver(r.Persisted(number))

    # -- the engine

    def call(self, operation: Operation) -> None:
        """Take a call: checked when it starts, and again when its reply leaves."""

        def begin() -> None:
            if not self.replica.serving(self.clock) or (
                operation.kind == "write" and self.replica.read_only()
            ):
                return
            self.world.checks.called(operation)
            if operation.kind == "read":
                # As in production: it waits for what this owner itself has written to the object,
                # and for nothing else.
                self.operations.append((self.last_write, operation, None))
                self._reply()
                return
            data = encode_changes([], [(b"", b"w%d" % operation.number)])
            for effect in self.do(r.Append(data)):
                if isinstance(effect, r.Appended):
                    self.last_write = effect.seq
                    self.operations.append((effect.seq, operation, [data]))
            self._reply()

        self.when_awake(self.life, begin)

    def _reply(self) -> None:
        if not self.operations or not self.replica.serving(self.clock):
            return
        ready = [entry for entry in self.operations if entry[0] <= self.replica.log.applied]
        if ready:
            self.operations = [
                entry for entry in self.operations if entry[0] > self.replica.log.applied
            ]
            for _, operation, data in ready:
                self.world.checks.replied(operation, self.state if data is None else data)


def _persist(effect: r.Persist, disk: Disk) -> int:
    disk.epoch = max(disk.epoch, effect.epoch)
    if effect.entries:
        disk.high = max(disk.high, effect.high)
    if effect.install is not None:
        disk.base, disk.entries = effect.install.position, []
        disk.applied, disk.state = (
            effect.install.position.seq,
            msgspec.msgpack.decode(effect.install.state),
        )
        disk.chain, disk.high = list(effect.install.chain), effect.install.position.seq
    if effect.wipe is not None:
        disk.base, disk.entries, disk.applied, disk.state = effect.wipe, [], effect.wipe.seq, []
        disk.chain, disk.high = [], effect.wipe.seq
    if effect.cut is not None:
        del disk.entries[effect.cut - disk.base.seq - 1 :]
    disk.entries += effect.entries
    return effect.number


def _keep_high(high: int, disk: Disk) -> int:
    disk.high = high
    return 0


def _apply(entries: tuple[r.LogEntry, ...], trim: int, chain: list[r.Term], disk: Disk) -> int:
    disk.state = disk.state + [entry.data for entry in entries if not is_term(entry.data)]
    disk.applied = entries[-1].seq
    if trim > disk.base.seq:
        gone = disk.entries[trim - disk.base.seq - 1]
        del disk.entries[: trim - disk.base.seq]
        disk.chain = chain
        disk.base = r.Position(gone.epoch, gone.seq)
    return 0
