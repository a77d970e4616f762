"""When a node says that its disk is full, and what becomes of files for which there is no room."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import msgspec
import pytest
from holdfast_cluster.placement.model import Assignment, ClusterSettings, Member, Versioned, View
from holdfast_node.process.leaving import is_needed
from holdfast_node.replication import Position
from holdfast_node.replication.snapshots import (
    Backoff,
    Chunk,
    End,
    Header,
    SnapshotReceiver,
    SnapshotSender,
)
from holdfast_node.store import rocks as store
from holdfast_node.store.disk_space import (
    BALLAST_BYTES,
    FORGET_S,
    START_BYTES_MIN,
    STAY_S,
    DiskSpace,
    DiskWatch,
    Level,
)
from holdfast_node.store.rocks import RowFiles

MIB = 1 << 20
ENOUGH, LOW, CRITICAL = Level
NO_SPACE = (
    "IO error: No space left on device: While appending to file: /data/1.sst: No space left on"
    " device"
)


def test_a_disk_is_low_below_its_reserve_and_critical_below_a_quarter_of_it() -> None:
    space = DiskSpace(100)
    assert [space.look(free, 0.0) for free in (1000, 100, 99, 25, 24, -5)] == [
        ENOUGH,
        ENOUGH,
        LOW,
        LOW,
        CRITICAL,
        CRITICAL,
    ]


def test_each_way_back_needs_more_room_and_time() -> None:
    space = DiskSpace(100)
    space.look(20, 0.0)
    assert space.look(1000, STAY_S[0] - 1) is CRITICAL
    now = STAY_S[0]
    assert [space.look(free, now) for free in (25, 49, 50, 124, 125)] == [
        CRITICAL,
        CRITICAL,
        LOW,
        LOW,
        ENOUGH,
    ]
    assert space.look(100, now) is ENOUGH


def test_a_disk_that_is_low_again_and_again_stays_so_longer_each_time() -> None:
    space = DiskSpace(100)
    stayed = []
    now = 0.0
    for _ in range(10):
        space.look(50, now)
        began = now
        while space.look(500, now) is not ENOUGH:
            now += 1.0
        stayed.append(now - began)
        now += 10.0
    assert stayed == [min(STAY_S[0] * 2**n, STAY_S[1]) for n in range(10)]
    now += FORGET_S
    space.look(50, now)
    assert space.look(500, now + STAY_S[0]) is ENOUGH, "it was well for long"


def test_a_file_for_which_there_was_no_room_makes_a_disk_low_whatever_is_free() -> None:
    space = DiskSpace(0)
    assert space.look(0, 0.0) is ENOUGH
    space.failed(1.0)
    assert space.level is LOW
    assert [space.look(10**12, now) for now in (1.0 + STAY_S[0] - 1, 1.0 + STAY_S[0])] == [
        LOW,
        ENOUGH,
    ]
    space.look(10**12, 7.0)
    space.failed(8.0)
    assert not space.can_start(10**12, 8.0 + STAY_S[0]), "it has failed again soon"
    assert space.can_start(10**12, 8.0 + 2 * STAY_S[0])


def test_a_start_needs_half_the_reserve() -> None:
    space = DiskSpace(100 * MIB)
    assert [space.can_start(free * MIB, 0.0) for free in (49, 50)] == [False, True]
    assert [DiskSpace(0).can_start(free * MIB, 0.0) for free in (15, 16)] == [False, True]


class Disk:
    """What the file system says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int, files_free: int = 10**6) -> None:
        self.free = free
        self.files_free = files_free
        monkeypatch.setattr(os, "statvfs", self._statvfs)

    def _statvfs(self, path: Path) -> Any:
        ballast = sum(file.stat().st_blocks * 512 for file in path.iterdir())
        return SimpleNamespace(
            f_bavail=self.free - ballast, f_frsize=1, f_files=10**7, f_favail=self.files_free
        )


def test_the_ballast_goes_when_the_disk_is_critical_and_its_going_changes_no_level(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = 0.0
    disk = Disk(monkeypatch, 1000 * MIB)
    watch = DiskWatch(tmp_path, 100 * MIB, lambda: now)
    free = watch.free
    watch._make_ballast()
    assert (tmp_path / "ballast").stat().st_size == BALLAST_BYTES
    watch.look()
    assert watch.free == pytest.approx(free, abs=MIB), "it is counted whether it is there or not"
    disk.free = BALLAST_BYTES + 60 * MIB
    assert watch.look() is LOW
    assert (tmp_path / "ballast").exists()
    assert (
        watch.full
        == f"the disk of {tmp_path} is full: {watch.free >> 20} MiB are free, the reserve is"
        " 100 MiB"
    )
    disk.free = BALLAST_BYTES + 20 * MIB
    assert watch.look() is CRITICAL
    assert not (tmp_path / "ballast").exists()
    now = 100.0
    assert watch.look() is CRITICAL
    assert watch.cannot_start is not None
    disk.free = 1000 * MIB
    assert watch.look() is ENOUGH
    assert watch.full is watch.cannot_start is None


def test_a_disk_on_which_no_file_can_be_made_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = Disk(monkeypatch, 1000 * MIB)
    watch = DiskWatch(tmp_path, 100 * MIB)
    assert watch.look() is ENOUGH
    disk.files_free = 3
    assert watch.look() is CRITICAL


def needed(in_sync: str, owner: str, full: str = "", absent: str = "") -> bool:
    """Whether node `a` is needed for a shard of three copies, two of which have to be in sync for
    writes."""
    members = {
        n: Member(n, "127.0.0.1:1", 1, n, state="full" if n in full else "active")
        for n in "abcd"
        if n not in absent
    }
    assignment = Assignment(1, owner, 1, tuple(in_sync))
    return is_needed(
        View(1, ClusterSettings(replication=3, id="c"), members, {0: Versioned(assignment, 1)}), "a"
    )


def test_a_critical_node_is_needed_while_calls_would_notice_that_it_is_gone() -> None:
    assert not needed("abc", "b", full="a")
    assert not needed("bcd", "b", full="a")
    assert needed("abc", "a", full="a"), "it owns the shard"
    assert needed("ab", "b", full="a"), "writes need its copy"
    assert needed("abc", "b", full="ac"), "c may be about to leave as well"
    assert needed("abc", "b", full="a", absent="c")
    assert needed("abc", "b", full="a", absent="b"), "it may have to own the shard"


# -- files


class NoRoom:
    """An SstFileWriter on a disk that is full after so many rows of all files."""

    left = 0

    def open(self, path: str) -> None:
        Path(path).write_bytes(b"")

    def __setitem__(self, key: bytes, value: bytes) -> None:
        NoRoom.left -= 1
        if NoRoom.left < 0:
            raise Exception(NO_SPACE)

    def finish(self) -> None:
        raise Exception(NO_SPACE)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> type[NoRoom]:
    monkeypatch.setattr(store, "SstFileWriter", lambda options: NoRoom())
    NoRoom.left = 10
    return NoRoom


def test_files_for_which_there_is_no_room_are_removed_without_a_word_of_that(
    no_room: type[NoRoom], tmp_path: Path
) -> None:
    files = RowFiles(tmp_path / "snapshots", "test")
    files.put(b"a", b"1")
    files.remove()
    assert list((tmp_path / "snapshots").iterdir()) == []


def test_a_file_that_cannot_be_removed_keeps_no_other(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"x")
    store.remove_files([tmp_path / "folder", tmp_path / "nothing", other])
    assert not other.exists()


class Aborted(Exception):
    pass


class Context:
    """A call of gRPC that brings these messages."""

    def __init__(self, *messages: Any) -> None:
        self._messages = [msgspec.msgpack.encode(message) for message in messages]
        self.aborted: tuple[grpc.StatusCode, str] | None = None

    async def read(self) -> Any:
        return self._messages.pop(0) if self._messages else grpc.aio.EOF

    async def abort(self, code: grpc.StatusCode, why: str) -> None:
        self.aborted = code, why
        raise Aborted


async def test_a_snapshot_leaves_the_last_room_to_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = DiskWatch(tmp_path, 0)
    monkeypatch.setattr(DiskWatch, "_free", lambda self: START_BYTES_MIN - 1)
    copies = SimpleNamespace(snapshots=tmp_path / "snapshots", has_rows=lambda shard, family: False)
    receiver = SnapshotReceiver(None, copies, None, watch)  # type: ignore[arg-type]
    context = Context(Header(1, 1, Position(1, 1)), Chunk("state", [(b"a", b"b")]))
    with pytest.raises(Aborted):
        await receiver.serve("b", context)
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert watch.level is LOW
    assert not copies.snapshots.exists()


@pytest.mark.parametrize(
    "rows", [3, 14, 20], ids=["when a file is finished", "in the second family", "in the first one"]
)
async def test_a_snapshot_that_finds_no_room_is_refused_with_the_disk_and_leaves_no_file(
    no_room: type[NoRoom], tmp_path: Path, rows: int
) -> None:
    watch = DiskWatch(tmp_path, 0)
    copies = SimpleNamespace(snapshots=tmp_path / "snapshots", has_rows=lambda shard, family: False)
    receiver = SnapshotReceiver(None, copies, None, watch)  # type: ignore[arg-type]
    parts = [(b"%d" % n, b"x") for n in range(rows)]
    state, replies = (parts, []) if rows == 20 else (parts[:5], parts[5:])
    context = Context(
        Header(3, 1, Position(1, 1)), Chunk("state", state), Chunk("replies", replies), End(0.0)
    )
    with pytest.raises(Aborted):
        await receiver.serve("b", context)
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"the disk of {tmp_path} is full" in context.aborted[1]
    assert watch.level is LOW
    assert list((tmp_path / "snapshots").iterdir()) == []
    again = Context(Header(3, 1, Position(1, 1)), Chunk("state", parts))
    with pytest.raises(Aborted):
        await receiver.serve("b", again)
    assert again.aborted == context.aborted
    assert len(again._messages) == 1, "nothing was read but the header"


# -- sending


def test_a_node_that_takes_nothing_is_left_alone_for_longer_each_time_until_it_takes_something() -> (  # noqa: E501
    None
):
    backoff = Backoff(lambda: 1.0)
    assert not backoff.waits("a", 1, 0.0)
    waits = [backoff.failed("a", 1, 0.0) for _ in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.waits("a", 1, 29.9)
    assert not backoff.waits("a", 1, 30.0)
    assert not backoff.waits("b", 1, 0.0)
    assert not backoff.waits("a", 2, 0.0), "it was started again"
    assert backoff.failed("a", 2, 0.0) == 0.5
    backoff.failed("a", 2, 0.0)
    backoff.succeeded("a")
    assert not backoff.waits("a", 2, 0.0)
    assert backoff.failed("a", 2, 0.0) == 0.5
    assert 0.25 <= Backoff().failed("a", 1, 0.0) <= 0.5


async def test_shards_with_the_fewest_copies_are_sent_first_and_none_to_whom_is_left_alone() -> (
    None
):
    copies = {1: 3, 2: 1, 3: 2}

    def get(shard: int) -> Any:
        return SimpleNamespace(
            replica=SimpleNamespace(assignment=SimpleNamespace(in_sync=("x",) * copies[shard]))
        )

    members = {name: SimpleNamespace(id=name, incarnation=1) for name in "bc"}
    links: Any = SimpleNamespace(connected_member=members.get)
    sender = SnapshotSender(None, SimpleNamespace(get=get), links, None, 1.0)  # type: ignore[arg-type]
    for shard in (1, 2, 3):
        sender.send(shard, "b", 1)
    sender.send(1, "gone", 1)
    assert [sender._next()[:2] for _ in range(3)] == [(2, "b"), (3, "b"), (1, "b")]
    sender._known.clear()
    sender._backoff.failed("b", 1, 1e12)
    for name in "bc":
        sender.send(1, name, 1)
    assert sender._queue == [(1, "c", 1)]
