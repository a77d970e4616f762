"""Puts production onto simulated machines. Of Holdfast it replaces only what starts threads.

It replaces clocks, chance and the end of a process in the standard library. It replaces rocksdict's
names in `holdfast_node.store.rocks`, and the fsync thread and its queue in
`holdfast_node.log.commit`. It replaces the makers of channels and servers in `grpc.aio`. Sets of
copies, shards and streams are ordered by number, not by address, so that a seed is one story.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import random
import secrets
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import grpc
from holdfast_cluster.streams.tcp import Stream
from holdfast_node.log.shards import Shard
from holdfast_node.replication import ReplicationSettings
from holdfast_node.replication.copy import Copy
from holdfast_node.store.disk_space import DiskWatch

from . import rocks
from .loop import PROCESS
from .machine import START_S
from .rpc import Channel, Server

if TYPE_CHECKING:
    from .world import World

_LOG_KEEP_MAX = 8
"""Entries that stay in a log: so few that replicas that come back often need a snapshot."""
_Random = random.Random
_CLOCK_MONOTONIC = time.CLOCK_MONOTONIC


class _Copy(Copy):
    __slots__ = ()

    def __hash__(self) -> int:
        return self.number


class _Shard(Shard):
    __slots__ = ()

    def __hash__(self) -> int:
        return self.number


class _Stream(Stream):
    _numbers = itertools.count()

    def __init__(self, *given: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(*given)

    def __hash__(self) -> int:
        return self._number


class _Watchdog:
    """No thread watches a simulated loop."""

    def __init__(self, *_: Any) -> None:
        pass

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class _DiskWatch(DiskWatch):
    """A simulated disk has no file system to look at: what is full is told by the writes
    that fail."""

    def _free(self) -> int:
        return 1 << 40

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.look()


async def _no_lag(histogram: Any) -> None:
    """How late the real loop is says nothing here."""


@contextlib.contextmanager
def production_on(world: World, broken: Iterable[tuple[Any, str, Any]] = ()) -> Iterator[None]:
    """While it is open, production runs on this world's machines; `broken` is replaced in it as
    well."""

    def monotonic() -> float:
        process = PROCESS.get()
        return world.loop.now if process is None else process.machine.monotonic()

    def clock_gettime(clock: int) -> float:
        process = PROCESS.get()
        if process is None:
            return world.loop.now
        return (
            process.machine.monotonic() if clock == _CLOCK_MONOTONIC else process.machine.boottime()
        )

    def wall() -> float:
        process = PROCESS.get()
        return START_S + world.loop.now if process is None else process.machine.wall()

    def end(code: int) -> None:
        process = PROCESS.get()
        assert process is not None, "the world does not end itself"
        process.die(f"it exited with {code}")

    def seeded(*given: Any) -> random.Random:
        return _Random(*given) if given else _Random(world.chance.random())

    replaced: list[tuple[Any, str, Any]] = [
        (time, "monotonic", monotonic),
        (time, "clock_gettime", clock_gettime),
        (time, "time", wall),
        (time, "time_ns", lambda: int(wall() * 1e9)),
        (os, "urandom", world.chance.randbytes),
        (os, "_exit", end),
        (logging, "shutdown", lambda: None),
        (random, "Random", seeded),
        (secrets, "token_hex", lambda count: world.chance.randbytes(count).hex()),
        (
            grpc.aio,
            "insecure_channel",
            lambda address, options=None: Channel(world.network, address),
        ),
        (grpc.aio, "server", lambda *_, **__: Server(world.network)),
    ]
    named: dict[str, Any] = {
        "holdfast_node.store.rocks.Rdict": rocks.Rdict,
        "holdfast_node.store.rocks.WriteBatch": rocks.WriteBatch,
        "holdfast_node.store.rocks.SstFileWriter": rocks.SstFileWriter,
        **{
            f"holdfast_node.store.rocks.{name}": rocks.Anything
            for name in (
                "BlockBasedOptions",
                "Cache",
                "IngestExternalFileOptions",
                "Options",
                "ReadOptions",
                "WriteOptions",
            )
        },
        "holdfast_node.store.rocks.DBRecoveryMode": rocks.Anything(),
        "holdfast_node.replication.copies.Path": rocks.SimPath,
        "holdfast_node.log.commit.Thread": rocks.SimThread,
        "holdfast_node.log.commit.SimpleQueue": rocks.SimQueue,
        "holdfast_node.process.node.Watchdog": _Watchdog,
        "holdfast_node.process.server.DiskWatch": _DiskWatch,
        "holdfast_cluster.process.watched.gc": SimpleNamespace(
            collect=lambda: 0, freeze=lambda: None, set_threshold=lambda *_: None
        ),
        "holdfast_node.replication.replication.ReplicationSettings": functools.partial(
            ReplicationSettings, log_keep_max=_LOG_KEEP_MAX
        ),
        "holdfast_node.services.responses.INTERVAL_S": 1.0,
        "holdfast_cluster.process.watched.measure_lag": _no_lag,
        "holdfast_cluster.streams.tcp.Stream": _Stream,
        "holdfast_node.replication.host.Copy": _Copy,
        "holdfast_node.replication.host.Shard": _Shard,
    }
    _Stream._numbers = itertools.count()
    chance = random.getstate()
    with contextlib.ExitStack() as stack:
        for owner, name, value in (*replaced, *broken):
            stack.enter_context(mock.patch.object(owner, name, value))
        for name, value in named.items():
            stack.enter_context(mock.patch(name, value))
        random.seed(world.chance.random())
        try:
            yield
        finally:
            random.setstate(chance)
