"""Faults on a local cluster. Each fault strikes, lasts a while, and is mended; then the cluster
must become whole again.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from holdfast.channels import open_channel
from holdfast.local import ClusterFailed, LocalCluster, free_port
from holdfast.v1 import admin_pb2
from holdfast.verify import inside
from holdfast.verify.proxy import FaultProxy

FAULTS = (
    *("kill", "pause", "restart", "partition", "etcd", "drain", "join", "disk", "gateway"),
    *("disk-rollback", "etcd-rollback", "slow-disk", "slow-node", "clock"),
)
TYPICAL_S = {
    "kill": 15.0,
    "pause": 17.0,
    "restart": 19.0,
    "partition": 15.0,
    "etcd": 11.0,
    "drain": 14.0,
    "join": 9.0,
    "disk": 12.0,
    "gateway": 9.0,
    "disk-rollback": 20.0,
    "etcd-rollback": 35.0,
    "slow-disk": 15.0,
    "slow-node": 14.0,
    "clock": 8.0,
}
"""About how many seconds each fault took until the cluster was whole again, in a run of three nodes
on two cores.
"""
APP = "holdfast.verify.app"

_WHOLE_S = 90.0
_EXIT_S = 20.0
_REFUSED_S = 6
_REFUSED = "has lost writes that were on disk"  # the error of a node whose disk is too old


class Victims(LocalCluster):
    """A cluster whose nodes are reached through proxies, so that they can be cut off."""

    def __init__(self, folder: Path, nodes: int, replication: int) -> None:
        super().__init__(folder)
        self.replication = replication
        self.nodes = [f"n{i}" for i in range(1, nodes + 1)]
        self.gateway_port = free_port()
        self._formed = nodes
        self._ports: dict[str, tuple[int, int, int, int]] = {}
        self._data: dict[str, str] = {}
        self.proxies: dict[str, FaultProxy] = {}

    @property
    def gateway(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"

    async def start_all(self) -> None:
        self.start_etcd()
        for name in self.nodes:
            await self.node(name)
        self.start_gateway("gateway", self.gateway_port)
        await asyncio.to_thread(self.wait_ready, self.gateway)
        await self.whole()

    async def node(self, name: str) -> None:
        """Start a node on the data that it had."""
        if name not in self._ports:
            self._ports[name] = free_port(), free_port(), free_port(), free_port()
            outside, within, streams_outside, streams_within = self._ports[name]
            proxy = self.proxies[name] = FaultProxy(
                {outside: within, streams_outside: streams_within}
            )
            await proxy.start()
        outside, within, streams_outside, streams_within = self._ports[name]
        self.environment[name] = {inside.FOLDER: str(self.faults_of(name))}
        self.start_node(
            name,
            APP,
            "--members-min",
            str(self._formed),
            "--replication",
            str(self.replication),
            "--listen",
            f"127.0.0.1:{within}",
            "--advertise",
            f"127.0.0.1:{outside}",
            "--stream-listen",
            f"127.0.0.1:{streams_within}",
            "--stream-advertise",
            f"127.0.0.1:{streams_outside}",
            "--data",
            str(self.data_of(name)),
            "--repair-after",
            "5",
        )

    def faults_of(self, name: str) -> Path:
        """Return the folder in which a node looks for the faults inside it; see
        `holdfast.verify.inside`.
        """
        return self.folder / "faults" / name

    def data_of(self, name: str) -> Path:
        """Return a node's data directory."""
        return self.folder / self._data.get(name, name)

    def lose_disk(self, name: str) -> None:
        """Delete a node's data directory. A node that starts in its place is a new node."""
        shutil.rmtree(self.data_of(name))
        self._data[name] = f"{name}-{time.monotonic_ns()}"

    def signal(self, name: str, number: int) -> None:
        self.processes[name].send_signal(number)

    async def end(self, name: str, number: int) -> None:
        """Send a signal to a process, and wait until the process has ended."""
        process = self.processes.pop(name)
        process.send_signal(number)
        await asyncio.to_thread(process.wait, _EXIT_S)

    async def status(self) -> Any:
        """Return the gateway's status of the cluster; None if the gateway does not answer."""
        channel = open_channel(self.gateway)
        try:
            ask = channel.unary_unary(
                "/holdfast.v1.Admin/Status",
                request_serializer=admin_pb2.StatusRequest.SerializeToString,
                response_deserializer=admin_pb2.StatusResponse.FromString,
            )
            return await ask(admin_pb2.StatusRequest(), timeout=3)
        except grpc.aio.AioRpcError:
            return None
        finally:
            await channel.close()

    async def drain_node(self, node: str, cancel: bool) -> None:
        channel = open_channel(self.gateway)
        try:
            ask = channel.unary_unary(
                "/holdfast.v1.Admin/Drain",
                request_serializer=admin_pb2.DrainRequest.SerializeToString,
                response_deserializer=admin_pb2.DrainResponse.FromString,
            )
            await ask(admin_pb2.DrainRequest(node=node, cancel=cancel), timeout=5)
        finally:
            await channel.close()

    async def until(self, holds: Callable[[Any], bool], what: str) -> None:
        """Wait until `holds` is true for the status. Raise ClusterFailed if that takes too long."""
        deadline = time.monotonic() + _WHOLE_S
        status = None
        while time.monotonic() < deadline:
            if why := self.ended():
                raise ClusterFailed(why)
            status = await self.status()
            if status is not None and holds(status):
                return
            await asyncio.sleep(0.25)
        problems = (
            "; ".join(f"{p.what}: {p.why}" for p in status.problems)
            if status is not None
            else "the gateway does not answer"
        )
        raise ClusterFailed(f"{what} within {_WHOLE_S:.0f} s: {problems}")

    async def whole(self) -> None:
        """Wait until every node is there and every copy is in sync, and no shard is moving."""

        def holds(status: Any) -> bool:
            moves = status.moves
            there = sum(node.state == "active" for node in status.nodes)
            return (
                there == len(self.nodes)
                and not status.problems
                and not (moves.joining or moves.handovers or moves.leaving)
            )

        await self.until(holds, "the cluster did not become whole again")

    async def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(self.stop)
        for proxy in self.proxies.values():
            await proxy.close()


Mend = Callable[[], Awaitable[None]]


async def strike(fault: str, victims: Victims, chance: random.Random) -> tuple[str, float, Mend]:
    """Begin a fault. Return its description, how many seconds it lasts, and the function that mends
    it.
    """
    name = chance.choice(victims.nodes)
    match fault:
        case "kill":
            await victims.end(name, signal.SIGKILL)
            return f"{name} killed", 5.0, lambda: victims.node(name)
        case "pause":
            victims.signal(name, signal.SIGSTOP)

            async def go_on() -> None:
                victims.signal(name, signal.SIGCONT)

            return f"{name} stopped for 10 s (SIGSTOP)", 10.0, go_on
        case "restart":

            async def one_after_the_other() -> None:
                for each in [*victims.nodes]:
                    await victims.end(each, signal.SIGTERM)
                    await victims.node(each)
                    await victims.whole()
                await victims.end("gateway", signal.SIGTERM)
                victims.start_gateway("gateway", victims.gateway_port)

            return (
                "every node, then the gateway, restarted one after the other",
                0.0,
                one_after_the_other,
            )
        case "partition":
            direction = chance.choice(("inward", "outward"))
            victims.proxies[name].cut(direction)

            async def mend() -> None:
                victims.proxies[name].mend()

            return f"nothing goes {direction} through the connections to {name}", 8.0, mend
        case "etcd":
            await victims.end("etcd", signal.SIGKILL)

            async def restart() -> None:
                victims.start_etcd()

            return "etcd killed", 8.0, restart
        case "drain":
            node = await _id_of(victims, name)
            await victims.drain_node(node, cancel=False)
            stays = len(victims.nodes) - 1 < victims.replication

            async def cancel() -> None:
                await victims.until(
                    lambda status: all(
                        not n.shards_owned and (stays or not n.shards_in_sync)
                        for n in status.nodes
                        if n.id == node
                    ),
                    f"{name} was not drained",
                )
                await victims.drain_node(node, cancel=True)

            return f"{name} drained", 0.0, cancel
        case "join":
            new = f"n{len(victims.nodes) + 1}"
            victims.nodes.append(new)
            await victims.node(new)

            async def nothing() -> None:
                pass

            return f"{new} joined", 0.0, nothing
        case "gateway":
            await asyncio.gather(
                victims.end("gateway", signal.SIGKILL), victims.end(name, signal.SIGKILL)
            )
            victims.start_gateway("gateway", victims.gateway_port)
            return f"the gateway and {name} killed at once", 5.0, lambda: victims.node(name)
        case "disk":
            await victims.end(name, signal.SIGKILL)
            victims.lose_disk(name)
            return f"{name} killed, its disk lost", 5.0, lambda: victims.node(name)
        case "disk-rollback":
            return await _put_disk_back(victims, name, chance)
        case "etcd-rollback":
            return await _put_etcd_back(victims, name)
        case "slow-disk":
            seconds = chance.choice((0.15, 0.4, 1.0))
            return _inside(
                victims,
                name,
                inside.FSYNC_S,
                seconds,
                f"each fsync of {name} takes {seconds} s more",
            )
        case "clock":
            off = chance.choice((-1, 1)) * chance.choice((60, 3_600, 172_800))
            return _inside(
                victims, name, inside.CLOCK_S, off, f"the wall clock of {name} is {off:+} s ahead"
            )
        case "slow-node":
            stopped_s = chance.choice((0.3, 0.9, 1.8))
            stutter = asyncio.create_task(_stutter(victims, name, stopped_s))

            async def run_on() -> None:
                stutter.cancel()
                await asyncio.wait([stutter])
                if not stutter.cancelled():
                    stutter.result()  # it failed, so there was no fault

            return f"{name} is stopped for {stopped_s} s again and again", 8.0, run_on
    raise AssertionError(fault)


def _inside(
    victims: Victims, name: str, fault: str, amount: float, what: str
) -> tuple[str, float, Mend]:
    inside.set_fault(victims.faults_of(name), fault, amount)

    async def end() -> None:
        inside.set_fault(victims.faults_of(name), fault, 0)

    return what, 8.0, end


async def _stutter(victims: Victims, name: str, stopped_s: float) -> None:
    while True:
        victims.signal(name, signal.SIGSTOP)
        try:
            await asyncio.sleep(stopped_s)
        finally:
            victims.signal(name, signal.SIGCONT)
        await asyncio.sleep(0.2)


async def _put_disk_back(
    victims: Victims, name: str, chance: random.Random
) -> tuple[str, float, Mend]:
    """Put an older snapshot of a node's disk back. The node is refused, or the other copies replace
    its copies.
    """
    snapshot = victims.folder / "snapshot"
    victims.signal(name, signal.SIGSTOP)  # a snapshot of a volume shows one moment
    try:
        await asyncio.to_thread(shutil.copytree, victims.data_of(name), snapshot)
    finally:
        victims.signal(name, signal.SIGCONT)
    age_s = chance.choice((1.0, 3.0, 9.0))
    await asyncio.sleep(age_s)
    await victims.end(name, signal.SIGKILL)
    shutil.rmtree(victims.data_of(name))
    snapshot.rename(victims.data_of(name))

    async def start() -> None:
        await victims.node(name)
        for _ in range(_REFUSED_S * 10):
            await asyncio.sleep(0.1)
            if victims.processes[name].poll() is not None:
                break
        else:
            return
        why = victims.ended() or ""
        if _REFUSED not in why:
            raise ClusterFailed(why)
        victims.lose_disk(name)  # as an operator does with a directory that is refused
        await victims.node(name)

    return f"the disk of {name} is put back to what it was {age_s:.0f} s before", 1.0, start


async def _put_etcd_back(victims: Victims, name: str) -> tuple[str, float, Mend]:
    """Put an older state of etcd back, in which another node owns some shards. Then put etcd's own
    data back.
    """
    data, old, good = (victims.folder / folder for folder in ("etcd", "etcd-old", "etcd-good"))
    await victims.end("etcd", signal.SIGKILL)
    await asyncio.to_thread(shutil.copytree, data, old)
    victims.start_etcd()
    await victims.end(name, signal.SIGKILL)
    await asyncio.sleep(8.0)
    await victims.node(name)
    await victims.whole()
    await victims.end("etcd", signal.SIGKILL)
    data.rename(good)
    old.rename(data)
    victims.start_etcd()

    async def end() -> None:
        await victims.end("etcd", signal.SIGKILL)
        shutil.rmtree(data)
        good.rename(data)
        victims.start_etcd()

    return (
        f"etcd is put back to what it was before {name} was killed, then its own data is back",
        6.0,
        end,
    )


async def _id_of(victims: Victims, name: str) -> str:
    status = await victims.status()
    return str(
        next(
            node.id
            for node in status.nodes
            if node.id.startswith(f"{name}-") and node.state == "active"
        )
    )
