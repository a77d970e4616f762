"""Processes of Holdfast on simulated machines: nodes, and gateways as far as calls pass through
them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.lineage import Memory
from holdfast_cluster.membership.member import NotAccepted, agree_on_settings
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import Keys
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.pending import DispatchLimits
from holdfast_node.log.shards import Shards
from holdfast_node.process.config import NodeConfig
from holdfast_node.process.server import NodeServer
from holdfast_node.replication.copies import CopyStore
from holdfast_node.replication.host import Replicas
from holdfast_node.store.directory import WrongDirectory

from .app import app
from .checks import first
from .machine import Machine, Process
from .rocks import Database, Family, SimPath

if TYPE_CHECKING:
    from .world import World

CLUSTER = "default"
ENDPOINTS = ("etcd:2379",)
SHARDS = 4
REPLICATION = 3
LEASE_S = 2
REPAIR_AFTER_S = 4.0
_GRPC_PORT, _STREAM_PORT = 7401, 7501


class Node:
    """A node: a data directory on a machine, and the process that serves it, if there is one."""

    def __init__(self, world: World, machine: Machine, name: str) -> None:
        self.world = world
        self.machine = machine
        self.name = name
        self.process: Process | None = None
        self.server: Any = None
        self._stop: asyncio.Event | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and not self.process.ended

    @property
    def shards(self) -> Shards | None:
        node = self.server.node if self.server is not None else None
        return None if node is None else node.shards

    @property
    def replicas(self) -> Replicas | None:
        node = self.server.node if self.server is not None else None
        return None if node is None else node.copies.replicas

    @property
    def path(self) -> str:
        return f"/{self.name}"

    def start(self) -> None:
        if self.runs or not self.machine.up or self.world.nodes.get(self.name) is not self:
            return
        process = self.process = Process(self.machine, self.name)
        self._stop = asyncio.Event()
        config = NodeConfig(
            app="-",
            data=SimPath(self.path),  # type: ignore[arg-type]
            etcd_endpoints=ENDPOINTS,
            insecure=True,
            cluster=CLUSTER,
            name=self.name,
            listen=f"{self.machine.name}:{_GRPC_PORT}",
            stream_listen=f"{self.machine.name}:{_STREAM_PORT}",
            host=self.machine.name,
            settings={"shards": SHARDS, "replication": REPLICATION, "points": 16},
            members_min=REPLICATION,
            lease_ttl_s=LEASE_S,
            repair_after_s=REPAIR_AFTER_S,
            drain_timeout_s=3.0,
        )
        self.server = NodeServer(config, app)
        self.world.tell(f"{self.name}: starts")
        task = process.loop.start(process, self.server.run(self._stop), self.name)
        task.add_done_callback(lambda task: self._returned(process, task))

    def _returned(self, process: Process, task: asyncio.Task[Any]) -> None:
        if process.ended:
            return
        raised = None if task.cancelled() else task.exception()
        error = None if raised is None else first(raised)
        self.world.tell(
            f"{self.name}: returns {error!r}" if error is not None else f"{self.name}: has stopped"
        )
        refused = isinstance(error, NotAccepted | WrongDirectory)
        if refused and self.world.faults.may_be_refused(self):
            if isinstance(error, NotAccepted):
                self.world.faults.replace_disk(self)  # as its message tells the operator
        elif error is not None and process not in self.machine.disk.failed:
            self.world.failed(f"{self.name} ended by itself", error)
        process.end("it returned")

    def kill(self) -> None:
        if self.process is not None and self.runs:
            self.world.tell(f"{self.name}: killed")
            self.process.end("killed")

    def stop(self) -> None:
        """SIGTERM."""
        if self.process is not None and self.runs and self._stop is not None:
            self.world.tell(f"{self.name}: asked to stop")
            self.process.loop.post(self.process, self._stop.set)

    # -- what is looked at from outside

    def database(self) -> Database:
        return self.machine.disk.databases[self.path]

    def rows(self, shard: int) -> dict[str, dict[bytes, bytes]]:
        """The state of a copy: what the store has, and what waits in the log to be applied."""
        shown = Database()
        for name in ("state", "replies"):
            family = self.database().families[name]
            made = shown.families[name] = Family()
            made.rows, made.order = dict(family.rows), list(family.order)
        replicas = self.replicas
        copy = None if replicas is None else replicas.get(shard)
        if copy is not None and copy.behind:
            store = self.server.node.copies._store
            batch = store.batch()
            CopyStore.apply_many(replicas._disk, batch, copy.number, copy.behind)  # type: ignore[union-attr]
            for operation in batch.raw.ops:
                shown.do_one(operation, [])
        prefix = shard.to_bytes(2, "big")
        return {
            name: {key: value for key, value in family.rows.items() if key.startswith(prefix)}
            for name, family in shown.families.items()
        }


class Gateway:
    """Takes calls to the nodes, by production's routing."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.process: Process | None = None
        self.dispatcher: Dispatcher | None = None

    @property
    def runs(self) -> bool:
        return self.process is not None and not self.process.ended

    def start(self) -> None:
        if not self.runs and self.machine.up:
            self.process = Process(self.machine, self.machine.name)
            self.dispatcher = None
            self.process.loop.start(self.process, self._run(), self.machine.name)

    async def _run(self) -> None:
        keys = Keys(CLUSTER)
        etcd = GuardedEtcd(ENDPOINTS, keys)
        settings = await agree_on_settings(etcd, keys, None, {})
        watcher = ViewWatcher(etcd, keys, Memory(settings.id), f"gateway {self.machine.name}")
        self.dispatcher = Dispatcher(watcher, DispatchLimits())
        await watcher.run()

    def submit(self, call: pb.Call, origin: Any) -> None:
        """Take a call, if the process runs. A call that it does not get is lost without a word."""
        process, dispatcher = self.process, self.dispatcher
        if process is not None and dispatcher is not None:
            process.loop.post(process, dispatcher.submit, call, origin)
