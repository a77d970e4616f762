"""One world: machines, a network, etcd, nodes, gateways, callers and faults, from a seed. See the
package's docstring."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterable
from typing import Any

import msgspec
from holdfast.errors import HoldfastError
from holdfast_cluster.placement.model import Assignment, Keys

from . import checks
from .checks import Broken, History, first
from .clients import KEYS, Clients
from .etcd import Etcd
from .faults import DEFAULT, Faults
from .loop import PROCESS, VirtualLoop
from .machine import Machine, Process
from .network import Network
from .node import CLUSTER, REPLICATION, Gateway, Node
from .seams import production_on

UNDER_FIRE_S = 10.0
HEALED_S = 45.0  # more than the 30 s after which a lone restarted copy counts
QUIET_S = 2.0
_CLIENTS = 4
_LOOK_S = 0.02
_START_AGAIN_S = 0.5


class World:
    """Everything there is."""

    def __init__(self, seed: int, faults: Iterable[str] = DEFAULT) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.loop = VirtualLoop()
        self.network = self.loop.network = Network(self.loop, self.chance)
        self.story: list[str] = []
        self.failures: list[str] = []
        self.history = History()
        self.working = False  # under fire
        self._known: dict[int, Assignment] = {}
        self.nodes: dict[str, Node] = {}
        self.gateways: list[Gateway] = []
        self.faults = Faults(self, faults)

    def tell(self, what: str) -> None:
        self.story.append(f"{self.loop.now:9.4f}  {what}")

    def failed(self, what: str, error: BaseException | None = None) -> None:
        """Something happened that must not."""
        self.failures.append(what if error is None else f"{what}: {first(error)!r}")
        self.tell(f"FAILED {self.failures[-1]}")

    def machine(self, name: str) -> Machine:
        machine = self.network.machines[name] = Machine(self.loop, name, self.chance)
        return machine

    async def live(self) -> None:
        """From beginning to end. Raises Broken."""
        self.etcd = Etcd(
            self.loop, self.network, Process(self.machine("etcd"), "etcd"), self.chance
        )
        self.etcd.wrote = self._assigned
        for i in range(self.chance.choice((3, 3, 4))):
            self.add_node(f"n{i}", self.machine(f"m{i}"))
        for i in range(2):
            gateway = Gateway(self, self.machine(f"g{i}"))
            gateway.start()
            self.gateways.append(gateway)
        self.clients = Clients(self)
        await self._until(self._settled, 20.0, "the cluster is not formed")
        self.working = True
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(self.clients.work()) for _ in range(_CLIENTS)]
            watch = group.create_task(self._watch())
            trouble = group.create_task(self.faults.run())
            await asyncio.sleep(UNDER_FIRE_S)
            self.working = False
            trouble.cancel()
            self.faults.heal()
            await self._until(self._settled, HEALED_S, "the cluster is not whole again")
            await self.clients.end(callers)
            lists = {key: await self._progress(key) for key in KEYS}
            await asyncio.sleep(QUIET_S)
            watch.cancel()
        self._look()
        self.history.check(lists)
        self._copies_agree()

    def add_node(self, name: str, machine: Machine) -> Node:
        node = self.nodes[name] = Node(self, machine, name)
        node.start()
        return node

    def _assigned(self, key: bytes, value: bytes) -> None:
        """etcd has a new assignment: a good moment for faults."""
        prefix = Keys(CLUSTER).shards.encode()
        if key.startswith(prefix):
            number, now = int(key[len(prefix) :]), msgspec.json.decode(value, type=Assignment)
            before, self._known[number] = self._known.get(number), now
            if before is not None:
                joining = f", joining {', '.join(now.joining)}" if now.joining else ""
                in_sync = ", ".join(now.in_sync)
                self.tell(
                    f"shard {number}: epoch {now.epoch}, {now.owner}, in sync"
                    f" {in_sync}{joining}{', released' * now.released}"
                )
                try:
                    checks.in_sync_grows_by_its_owner(self, number, before, now)
                except Broken as broken:
                    self.failed(str(broken))
                self.faults.at_a_change(before, now)

    # -- watching

    async def _watch(self) -> None:
        """Look at everything all the time, and start what ended, as a supervisor does."""
        due: dict[str, float] = {}
        while True:
            await asyncio.sleep(_LOOK_S)
            self._look()
            for node in list(self.nodes.values()):
                if node.process is not None and node.process.ended and node.machine.up:
                    at = due.setdefault(
                        node.name, self.loop.now + _START_AGAIN_S * (0.2 + self.chance.random())
                    )
                    if self.loop.now >= at:
                        del due[node.name]
                        node.start()
                else:
                    due.pop(node.name, None)

    def _look(self) -> None:
        checks.one_serves(self)
        checks.time_is_right(self)
        for node in self.nodes.values():
            process = node.process
            if (
                process is not None
                and process.why.startswith("it exited")
                and process not in node.machine.disk.failed
            ):
                raise Broken(
                    f"no process dies by itself: {node.name} ({process.why});"
                    f" {'; '.join(self.failures)}"
                )
        for process, message, error in self.loop.errors:
            if process is None or process not in process.machine.disk.failed:
                who = "the world" if process is None else process.name
                self.failures.append(
                    f"{who}: {message}: {first(error) if error is not None else ''!r}"
                )
        self.loop.errors.clear()
        if self.failures:
            raise Broken(f"no errors: {self.failures[0]}")

    # -- the end

    def assignments(self) -> dict[int, Assignment]:
        prefix = Keys(CLUSTER).shards.encode()
        return {
            int(key[len(prefix) :]): msgspec.json.decode(row.value, type=Assignment)
            for key, row in self.etcd.rows.items()
            if key.startswith(prefix)
        }

    def _settled(self) -> str:
        """What is not as it should be; empty when nothing is to be done."""
        assignments = self.assignments()
        if not assignments:
            return "nothing is assigned"
        for number, now in assignments.items():
            if len(now.in_sync) < REPLICATION or now.joining or now.handover or now.leaving:
                return f"shard {number}: {now}"
        for node in self.nodes.values():
            if not node.runs:
                return f"{node.name} does not run"
        return ""

    async def _until(self, wrong: Any, seconds: float, what: str) -> None:
        until = self.loop.now + seconds
        while why := wrong():
            if self.loop.now > until:
                raise Broken(f"progress: {what} after {seconds:.0f} s: {why}")
            await asyncio.sleep(0.1)

    async def _progress(self, key: str) -> list[str]:
        """A client that writes is answered, and reads what it wrote."""
        if not await self.clients.append(key, 4):
            raise Broken(f"progress: nobody can append to {key} after everything was healed")
        elements = await self.clients.read(key, 4)
        if elements is None:
            raise Broken(f"progress: nobody can read {key} after everything was healed")
        return elements

    def _copies_agree(self) -> None:
        for number, now in self.assignments().items():
            shown = {
                node.name: node.rows(number)
                for node in self.nodes.values()
                if _node_id(node) in now.in_sync
            }
            first, *others = shown
            for name in others:
                for family, rows in shown[name].items():
                    if differing := sorted(
                        key for key, _ in rows.items() ^ shown[first][family].items()
                    ):
                        raise Broken(
                            f"copies agree: {first} and {name} differ in {family} of shard"
                            f" {number}: {differing[:3]}"
                        )


def _node_id(node: Node) -> str:
    replicas = node.replicas
    return "" if replicas is None else replicas._node


class _Errors(logging.Handler):
    """An error that is logged with a traceback is one that no code expected."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = PROCESS.get()
        if (
            record.exc_info
            and not isinstance(record.exc_info[1], HoldfastError)
            and (
                process is None
                or (not process.ended and process not in process.machine.disk.failed)
            )
        ):
            self._world.failed(
                f"{process.name if process is not None else 'the world'}: {record.getMessage()}",
                record.exc_info[1],
            )


class _Shown(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        process = PROCESS.get()
        if process is not None and not process.ended:
            print(
                f"{process.loop.now:9.4f}  {process.name:5} {record.levelname:8}"
                f" {record.getMessage()}"
            )


def show_logs() -> None:
    """Print what production logs, with the world's time and the name of the process."""
    logging.getLogger().addHandler(_Shown())
    logging.getLogger().setLevel(logging.INFO)


def live(
    seed: int, faults: Iterable[str] = DEFAULT, replaced: Iterable[tuple[Any, str, Any]] = ()
) -> World:
    """One world from beginning to end. Raises Broken with the seed and the end of its story.

    `replaced`: what is broken in production for this world: owners, names and what stands there
    instead.
    """
    world = World(seed, faults)
    errors = _Errors(world)
    root = logging.getLogger()
    root.addHandler(errors)
    try:
        with production_on(world, replaced):
            try:
                world.loop.run_until_complete(world.live())
            finally:
                with contextlib.suppress(BaseException):
                    for node in world.nodes.values():
                        if node.process is not None:
                            node.process.end("the world is over")
                world.loop.bury()
    except Exception as error:
        story = "\n".join(world.story[-60:])
        raise Broken(
            f"seed {seed}: {first(error)!r}\nreplay: python -m tests.sim cluster {seed}\n{story}"
        ) from error
    finally:
        root.removeHandler(errors)
        world.loop.close()
    return world
