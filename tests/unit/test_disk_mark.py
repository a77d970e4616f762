"""The mark in etcd that shows whether a data directory was put back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import EtcdError
from holdfast_cluster.membership.member import NotAccepted
from holdfast_node.log import disk_mark
from holdfast_node.log.disk_mark import DiskMark, Mark

from tests.unit.fake_etcd import KEYS, Rows


class Etcd:
    """One that can be away."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.asked = 0
        self.refuses = 0
        """So many requests fail."""

    def _request(self) -> None:
        self.asked += 1
        if self.refuses:
            self.refuses -= 1
            raise EtcdError("away")

    async def get(self, key: str) -> pb.KeyValue | None:
        self._request()
        return self.rows.rows.get(key.encode())

    async def txn(self, compare: list[pb.Compare], success: list[pb.RequestOp]) -> int:
        self._request()
        self.rows.do(success)
        return self.rows.revision

    @property
    def marked(self) -> int | None:
        raw = self.rows.value(KEYS.mark("n"))
        return None if raw is None else msgspec.json.decode(raw, type=Mark).written


class Flusher:
    """The test says when what was written is on disk."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def when_durable(self, done: Callable[[], None]) -> None:
        self.waiting.append(done)


class World:
    def __init__(self) -> None:
        self.etcd, self.flusher = Etcd(), Flusher()
        self.store = SimpleNamespace(written=10)
        store: Any = self.store
        flusher: Any = self.flusher
        etcd: Any = self.etcd
        self.mark = DiskMark(store, flusher, etcd, KEYS, "n")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.002)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(disk_mark, "INTERVAL_S", 0.005)
    monkeypatch.setattr(disk_mark, "_RETRY_S", 0.005)
    return World()


async def test_a_directory_is_refused_when_it_is_behind_its_mark_alone(world: World) -> None:
    await world.mark.check()  # etcd knows nothing of it
    for marked in (9, 10):
        world.etcd.rows.put(KEYS.mark("n"), msgspec.json.encode(Mark(marked)))
        await world.mark.check()
    world.etcd.rows.put(KEYS.mark("n"), msgspec.json.encode(Mark(11)))
    with pytest.raises(NotAccepted, match="10 of 11 are there"):
        await world.mark.check()


async def test_a_mark_that_cannot_be_read_is_refused_and_its_key_named(world: World) -> None:
    world.etcd.rows.put(KEYS.mark("n"), b"\xff")
    with pytest.raises(NotAccepted, match=f"at {KEYS.mark('n')} in etcd, cannot be read"):
        await world.mark.check()


async def test_a_check_waits_for_an_etcd_that_is_away(world: World) -> None:
    world.etcd.rows.put(KEYS.mark("n"), msgspec.json.encode(Mark(11)))
    world.etcd.refuses = 3
    with pytest.raises(NotAccepted):
        await world.mark.check()
    assert world.etcd.asked == 4


async def test_a_mark_is_put_when_what_it_counts_is_on_disk_and_again_when_etcd_failed(
    world: World,
) -> None:
    running = asyncio.create_task(world.mark.run())
    try:
        await world.until(lambda: bool(world.flusher.waiting))
        world.store.written = 20  # after the number was read: this fsync need not cover it
        await asyncio.sleep(0.02)
        assert world.etcd.asked == 0
        world.etcd.refuses = 1
        world.flusher.waiting.pop()()
        await world.until(lambda: bool(world.flusher.waiting))
        assert (world.etcd.asked, world.etcd.marked) == (1, None)
        world.flusher.waiting.pop()()
        await world.until(lambda: world.etcd.marked is not None)
        assert world.etcd.marked == 20
        await asyncio.sleep(0.02)
        assert not world.flusher.waiting, "nothing was written, so nothing is put"
        assert world.etcd.asked == 2
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_mark_does_not_count_what_was_written_after_the_fsync_began(world: World) -> None:
    running = asyncio.create_task(world.mark.run())
    try:
        await world.until(lambda: bool(world.flusher.waiting))
        world.store.written = 20
        world.flusher.waiting.pop()()
        await world.until(lambda: world.etcd.marked is not None)
        assert world.etcd.marked == 10
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
