"""What goes wrong in a world. Each fault has a name; a world draws from the names that it is given.

`DEFAULT` are those that production is made to survive by itself. The two of `LATER` may need a
person, and no world has one:

- *etcd put back*: nothing moves until an operator adopts etcd, or puts the newest data back.
- *etcd emptied*: a node that starts then with an empty directory forms a cluster of its own. It
  stays in that cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from holdfast_cluster.placement.model import Assignment, Drain, Keys, encode

from .node import CLUSTER, Gateway, Node

if TYPE_CHECKING:
    from .world import World

MEAN_S = 1.4
"""Mean time between faults."""
_OFTEN = 6
_LONG_S = 3.5
"""Longer than a lease, and than a promise."""


class Faults:
    """Draws faults until it is told to heal."""

    def __init__(self, world: World, names: Iterable[str]) -> None:
        self._world = world
        self._names = sorted(names)
        self._chance = world.chance
        self._replaced = False
        self._aim: Node | None = None
        self._put_back: set[str] = set()
        self._etcd_changed = False
        self._etcd_is_empty = False

    async def run(self) -> None:
        while self._world.working and self._names:
            await asyncio.sleep(self._chance.expovariate(1 / MEAN_S))
            self.strike(self._chance.choice(self._names))

    def strike(self, name: str) -> None:
        FAULTS[name](self)

    def at_a_change(self, before: Assignment, now: Assignment) -> None:
        """Faults like to come while an assignment changes, and to those whom it concerns."""
        world = self._world
        if not world.working or not self._names or self._chance.random() < 0.6:
            return
        by_id = {
            node.replicas._node: node for node in world.nodes.values() if node.replicas is not None
        }
        changed = sorted(
            (
                {before.owner, now.owner}
                if before.owner != now.owner
                else set(before.in_sync) ^ set(now.in_sync)
            )
            & set(by_id)
        )
        if not changed:
            return
        node = by_id[self._chance.choice(changed)]
        name = self._chance.choice([name for name in _AIMED if name in self._names] or self._names)
        world.loop.world_later(0.02 * self._chance.random(), lambda: self._strike_at(name, node))

    def _strike_at(self, name: str, node: Node) -> None:
        if self._world.working:
            self._aim = node
            self.strike(name)
            self._aim = None

    def heal(self) -> None:
        """No more faults from now on; everything is started."""
        world = self._world
        world.tell("healed")
        world.network.mend_all()
        world.etcd.away_until = world.etcd.lag_until = 0.0
        world.etcd.lost_replies = 0.0
        world.etcd.come_back()
        drains = Keys(CLUSTER).drains.encode()
        # also of nodes that do not run
        for key in [key for key in world.etcd.rows if key.startswith(drains)]:
            world.etcd.delete(key.decode())
        for node in list(world.nodes.values()):
            disk = node.machine.disk
            disk.failing.clear()
            disk.full = False
            disk.slow_until = 0.0
        for machine in world.network.machines.values():
            machine.up = True
            machine.wall_ahead_s = max(-0.5, min(0.5, machine.wall_ahead_s))
            for process in machine.processes:
                process.step_s = 0.0
                process.busy_until = min(process.busy_until, world.loop.now + 0.01)
        for node in list(world.nodes.values()):
            node.start()
        for gateway in world.gateways:
            gateway.start()

    # -- whom it meets

    def _node(self) -> Node:
        """A node; more often than chance would have it one that owns something."""
        if self._aim is not None:
            return self._aim
        nodes = list(self._world.nodes.values())
        owners = [
            node for node in nodes if node.runs and node.shards is not None and node.shards.owned()
        ]
        return self._chance.choice(owners if owners and self._chance.random() < 0.5 else nodes)

    def _seconds(self, longest: float = _LONG_S) -> float:
        return self._chance.random() * self._chance.choice((0.3, longest, longest))

    def _later(self, seconds: float, do: Callable[[], None]) -> None:
        self._world.loop.world_later(seconds, lambda: do() if self._world.working else None)

    def _cut(self, ways: list[tuple[str, str]], seconds: float) -> None:
        ways = [(a, b) for a, b in ways if a != b]
        world = self._world
        world.tell(f"cut for {seconds:.2f} s: {', '.join(f'{a}>{b}' for a, b in ways)}")
        world.network.cut(ways)
        world.loop.world_later(seconds, lambda: world.network.mend(ways) if world.working else None)

    # -- processes and machines

    def kill(self) -> None:
        self._node().kill()

    def kill_all(self) -> None:
        for node in list(self._world.nodes.values()):
            node.kill()

    def stop_in_order(self) -> None:
        self._node().stop()

    def kill_gateway(self) -> None:
        gateway: Gateway = self._chance.choice(self._world.gateways)
        if gateway.runs and gateway.process is not None:
            self._world.tell(f"{gateway.machine.name}: killed")
            gateway.process.end("killed")
            self._later(0.5, gateway.start)

    def power(self) -> None:
        self._lose_power([self._node()])

    def power_all(self) -> None:
        self._lose_power(list(self._world.nodes.values()))

    def _lose_power(self, nodes: list[Node]) -> None:
        for node in nodes:
            machine = node.machine
            if machine.up:
                lost = {
                    path: len(database.unsynced)
                    for path, database in machine.disk.databases.items()
                }
                self._world.tell(f"{node.name}: loses power, not synced: {lost}")
                machine.fail(self._chance)
                self._later(self._seconds(2.0), partial(setattr, machine, "up", True))

    def pause(self) -> None:
        node = self._node()
        if node.runs and node.process is not None:
            seconds = self._seconds()
            self._world.tell(f"{node.name}: stopped for {seconds:.2f} s")
            node.process.stop_for(seconds)

    def suspend(self) -> None:
        node = self._node()
        seconds = self._seconds(6.0)
        self._world.tell(f"{node.name}: its machine sleeps for {seconds:.2f} s")
        node.machine.sleep(seconds)

    def slow_process(self) -> None:
        node = self._node()
        if node.runs and (process := node.process) is not None:
            process.step_s = self._chance.choice((0.0005, 0.002, 0.005))
            self._world.tell(f"{node.name}: slow, {process.step_s * 1000} ms a callback")
            self._world.loop.world_later(self._seconds(), lambda: setattr(process, "step_s", 0.0))

    # -- disks

    def slow_disk(self) -> None:
        node = self._node()
        disk = node.machine.disk
        disk.slow_until = self._world.loop.now + self._seconds()
        disk.slow_s = self._chance.choice((0.05, 0.3, 1.5))
        self._world.tell(
            f"{node.name}: its disk takes up to {disk.slow_s} s until {disk.slow_until:.2f}"
        )

    def sync_error(self) -> None:
        node = self._node()
        node.machine.disk.failing.add("sync")
        self._world.tell(f"{node.name}: its next fsync fails")

    def write_error(self) -> None:
        node = self._node()
        node.machine.disk.failing.add("write")
        self._world.tell(f"{node.name}: its next write fails")

    def sync_error_then_power(self) -> None:
        """What an fsync that failed did not write is lost, if anybody relies on it."""
        for node in self._world.nodes.values():
            node.machine.disk.failing.add("sync")
        self._world.tell("the next fsync of every disk fails")
        self._later(0.5, self.power_all)

    def replace(self) -> None:
        """A disk is lost, and its node replaced by one with an empty disk: once in a world, and
        while all copies are there."""
        world = self._world
        if self._replaced or any(len(now.in_sync) < 3 for now in world.assignments().values()):
            return
        self._replaced = True
        self.replace_disk(self._node())

    def replace_disk(self, node: Node) -> None:
        world = self._world
        node.kill()
        del world.nodes[node.name]
        node.machine.disk.databases.clear()
        node.machine.disk.files.clear()
        world.tell(f"{node.name}: its disk is replaced")
        world.loop.world_later(0.5, lambda: world.add_node(f"{node.name}r", node.machine))

    def may_be_refused(self, node: Node) -> bool:
        """Whether a node may refuse to serve its data, or the cluster a node: somebody has put
        something back."""
        return self._etcd_changed or node.name in self._put_back

    def _may_lose_a_disk(self) -> bool:
        """Once in a world, and while all copies are there: more is more than what is promised."""
        return not self._replaced and all(
            len(now.in_sync) >= 3 for now in self._world.assignments().values()
        )

    def disk_full(self) -> None:
        node = self._node()
        node.machine.disk.full = True
        self._world.tell(f"{node.name}: its disk is full")
        self._later(self._seconds(4.0), lambda: setattr(node.machine.disk, "full", False))

    def disk_put_back(self) -> None:
        """A snapshot of the disk, taken while the node ran, is put back. It counts as the one disk
        that a world may lose."""
        node = self._node()
        if not node.runs or node.path not in node.machine.disk.databases:
            return
        database = node.machine.disk.databases[node.path]
        before = database.copy()
        self._world.tell(f"{node.name}: a copy of its disk is taken, at {before.sequence}")

        def put_back() -> None:
            if self._world.nodes.get(node.name) is node and self._may_lose_a_disk():
                self._replaced = True
                node.kill()
                self._put_back.add(node.name)
                sequence = node.machine.disk.databases[node.path].sequence
                node.machine.disk.databases[node.path] = before
                self._world.tell(
                    f"{node.name}: its disk is put back to {before.sequence}, from {sequence}"
                )

        self._later(0.2 + self._seconds(), put_back)

    def log_tail(self) -> None:
        """The newest records of the log are lost, though they were synced. It counts as a lost
        disk, too."""
        if not self._may_lose_a_disk():
            return
        self._replaced = True
        node = self._node()
        node.kill()
        self._put_back.add(node.name)
        database = node.machine.disk.databases.get(node.path)
        if database is not None:
            lost = database.cut_tail(self._chance.randint(1, 30))
            self._world.tell(f"{node.name}: the newest {lost} records of its log are lost")

    # -- clocks

    def wall_clock(self) -> None:
        """Of one machine at a time: what the majority shows is what time it is."""
        node = self._node()
        machine = node.machine
        before = machine.wall_ahead_s
        if any(abs(other.machine.wall_ahead_s) > 1 for other in self._world.nodes.values()):
            return
        machine.wall_ahead_s += self._chance.choice((-1, 1)) * self._chance.choice(
            (60.0, 700.0, 3600.0, 172_800.0)
        )
        self._world.tell(f"{node.name}: its wall clock is {machine.wall_ahead_s:.0f} s ahead")
        self._later(self._seconds(), lambda: setattr(machine, "wall_ahead_s", before))

    # -- the network

    def cut_one_way(self) -> None:
        node = self._node().machine.name
        other = self._chance.choice(sorted(self._world.network.machines))
        self._cut(
            [(node, other)] if self._chance.random() < 0.5 else [(other, node)], self._seconds()
        )

    def cut_off(self) -> None:
        """From everybody, from the other nodes, or from etcd."""
        node = self._node().machine.name
        nodes = [each.machine.name for each in self._world.nodes.values()]
        others = self._chance.choice((sorted(self._world.network.machines), nodes, ["etcd"]))
        self._cut(
            [way for other in others for way in ((node, other), (other, node))], self._seconds()
        )

    def owner_without_etcd(self) -> None:
        """Its lease ends while it works on: the moment that promises are for. Then its copies lose
        it as well."""
        node = self._node().machine.name
        self._cut([(node, "etcd"), ("etcd", node)], _LONG_S)
        nodes = [each.machine.name for each in self._world.nodes.values()]
        if self._chance.random() < 0.6:
            ways = [way for other in nodes for way in ((node, other), (other, node))]
            self._later(1.2 + self._chance.random() * 1.6, lambda: self._cut(ways, self._seconds()))

    def torn_owner(self) -> None:
        """An owner loses etcd and one replica, which may be elected; then the others. Some callers
        do not hear of it."""
        node = self._node().machine.name
        others = [
            each.machine.name for each in self._world.nodes.values() if each.machine.name != node
        ]
        gateway = self._chance.choice(self._world.gateways).machine.name
        lost = ["etcd", self._chance.choice(others)]
        ways = [way for other in lost for way in ((node, other), (other, node))]
        self._cut([*ways, ("etcd", gateway), (gateway, "etcd")], 2 * _LONG_S)
        rest = [way for other in others for way in ((node, other), (other, node))]
        self._later(1.8 + self._chance.random(), lambda: self._cut(rest, _LONG_S))

    def lose_connections(self) -> None:
        for _ in range(self._chance.choice((1, 3, 10))):
            self._world.network.lose_one()
        self._world.tell("connections are lost")

    def lag(self) -> None:
        world = self._world
        node = self._node().machine.name
        until = world.loop.now + self._seconds()
        for other in world.network.machines:
            world.network.lag_until[node, other] = until
            if self._chance.random() < 0.5:
                world.network.lag_until[other, node] = until
        world.tell(f"{node}: what it sends is late until {until:.2f}")

    # -- etcd

    def etcd_away(self) -> None:
        seconds = self._seconds()
        self._world.tell(f"etcd is away for {seconds:.2f} s")
        self._world.etcd.go_away(seconds)

    def etcd_lag(self) -> None:
        etcd = self._world.etcd
        etcd.lag_until = self._world.loop.now + self._seconds()
        self._world.tell(f"what etcd shows is late until {etcd.lag_until:.2f}")

    def etcd_replies(self) -> None:
        etcd = self._world.etcd
        etcd.lost_replies = 0.5
        self._world.tell("half of etcd's replies are lost")
        self._later(self._seconds(), lambda: setattr(etcd, "lost_replies", 0.0))

    def etcd_emptied(self) -> None:
        """Emptied, and a little later given back what it had."""
        etcd = self._world.etcd
        if self._etcd_is_empty:
            return  # it is to be given back what it had before
        self._etcd_is_empty = True
        backup = etcd.backup()
        etcd.empty()
        self._etcd_changed = True
        self._world.tell("etcd is emptied")

        def put_back() -> None:
            self._etcd_is_empty = False
            etcd.put_back(backup, bump=False)
            self._world.tell("etcd has its own data again")

        self._world.loop.world_later(self._seconds(3.0), put_back)

    def etcd_put_back(self) -> None:
        etcd = self._world.etcd
        backup = etcd.backup()
        bump = self._chance.random() < 0.5

        def put_back() -> None:
            etcd.put_back(backup, bump)
            self._etcd_changed = True
            self._world.tell(f"etcd is put back to revision {backup.revision}{', raised' * bump}")

        self._later(0.5 + self._seconds(), put_back)

    def drain(self) -> None:
        node = self._node()
        if node.replicas is not None:
            key = Keys(CLUSTER).drain(node.replicas._node)
            self._world.tell(f"{node.name}: to be drained")
            self._world.etcd.put(key, encode(Drain(0.0)))
            self._later(self._seconds(), lambda: self._world.etcd.delete(key))


FAULTS: dict[str, Callable[[Faults], None]] = {
    "kill": Faults.kill,
    "kill all": Faults.kill_all,
    "stop in order": Faults.stop_in_order,
    "kill gateway": Faults.kill_gateway,
    "power": Faults.power,
    "power of all": Faults.power_all,
    "pause": Faults.pause,
    "suspend": Faults.suspend,
    "slow process": Faults.slow_process,
    "slow disk": Faults.slow_disk,
    "sync error": Faults.sync_error,
    "write error": Faults.write_error,
    "sync error, then power": Faults.sync_error_then_power,
    "replaced disk": Faults.replace,
    "cut one way": Faults.cut_one_way,
    "cut off": Faults.cut_off,
    "owner without etcd": Faults.owner_without_etcd,
    "torn owner": Faults.torn_owner,
    "lost connections": Faults.lose_connections,
    "late": Faults.lag,
    "etcd away": Faults.etcd_away,
    "etcd late": Faults.etcd_lag,
    "etcd's replies": Faults.etcd_replies,
    "drain": Faults.drain,
    "full disk": Faults.disk_full,
    "disk put back": Faults.disk_put_back,
    "log tail": Faults.log_tail,
    "wall clock": Faults.wall_clock,
    "etcd emptied": Faults.etcd_emptied,
    "etcd put back": Faults.etcd_put_back,
}
_AIMED = (
    "slow disk",
    "slow disk",
    "pause",
    "cut one way",
    "cut off",
    "power",
    "kill",
    "late",
    "etcd late",
    "etcd's replies",
    "owner without etcd",
    "suspend",
)
LATER = ("etcd emptied", "etcd put back")
DEFAULT = tuple(name for name in FAULTS if name not in LATER)


def often(names: Iterable[str]) -> tuple[str, ...]:
    """The default faults, and these so often that every world has some."""
    unknown = set(names) - set(FAULTS)
    if unknown:
        raise ValueError(f"no such fault: {', '.join(sorted(unknown))}")
    return (*DEFAULT, *(name for name in names for _ in range(_OFTEN)))
