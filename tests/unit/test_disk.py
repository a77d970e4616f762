"""Copies of shards on a real store: what a start finds is what was put there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from holdfast_node.log.changes import Until, encode_changes, term_data
from holdfast_node.replication import LogEntry, Persist, Position, Snapshot, Term
from holdfast_node.replication.copies import CopyStore, SnapshotFiles, StoredCopy
from holdfast_node.store import keys
from holdfast_node.store.rocks import RowFiles, Store

SHARD = 5


class Copy:
    """A store with one copy of shard 5, as the host would drive it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path)
        self.disk = CopyStore(self.store)
        self.disk.load()

    def persist(self, effect: Persist) -> None:
        if effect.install is not None:
            self.disk.install(SHARD, effect)
            return
        batch = self.store.batch()
        self.disk.persist(batch, SHARD, effect)
        self.store.write(batch)

    def apply(
        self, *entries: LogEntry, base: Position | None = None, chain: tuple[Term, ...] = ()
    ) -> None:
        batch = self.store.batch()
        for entry in entries:
            self.disk.apply(batch, SHARD, entry)
        if base is not None:
            self.disk.shorten(batch, SHARD, base, entries[-1], chain)
        self.store.write(batch)

    def again(self) -> StoredCopy:
        """What the next start finds."""
        self.store.sync()
        self.store.close()
        self.store = Store(self.path)
        self.disk = CopyStore(self.store)
        return self.disk.load()[SHARD]

    def state(self) -> dict[bytes, bytes]:
        return dict(
            self.store.scan("state", keys.shard_prefix(SHARD), keys.shard_prefix(SHARD + 1))
        )


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "data")


def key(name: str) -> bytes:
    return keys.shard_prefix(SHARD) + name.encode()


def put(seq: int, name: str, value: str, epoch: int = 1) -> LogEntry:
    return LogEntry(
        epoch, seq, encode_changes([(key(name), value.encode())], [(key("r" + name), b"reply")])
    )


def test_log_epoch_and_state_are_there_after_a_start(copy: Copy) -> None:
    entries = [
        put(1, "a", "1"),
        put(2, "b", "2"),
        LogEntry(1, 3, encode_changes([(key("a"), None)], [])),
    ]
    copy.persist(Persist(1, 1, None, tuple(entries)))
    copy.apply(*entries[:2])
    found = copy.again()
    assert (found.epoch, found.base, found.entries) == (1, (0, 0), entries)
    # it is told only when the log is shortened; applying again changes nothing
    assert found.applied == 0
    assert copy.state() == {key("a"): b"1", key("b"): b"2"}
    copy.apply(*entries)
    assert copy.state() == {key("b"): b"2"}


def test_a_tail_is_cut_and_a_log_is_shortened(copy: Copy) -> None:
    entries = tuple(put(n, "k", str(n)) for n in range(1, 7))
    copy.persist(Persist(1, 1, None, entries))
    copy.persist(Persist(2, 2, 6, (put(6, "k", "other", 2),)))
    copy.apply(*entries[:5], base=Position(1, 3))
    found = copy.again()
    assert (found.epoch, found.base, found.applied) == (2, (1, 3), 5)
    assert found.entries == [*entries[3:5], put(6, "k", "other", 2)]


def test_ranges_are_deleted_where_they_stand_among_the_changes(copy: Copy) -> None:
    changes = encode_changes([(key("a"), Until(key("b"))), (key("a1"), b"new")], [])
    copy.persist(Persist(1, 1, None, (put(1, "a0", "old"), LogEntry(1, 2, changes))))
    copy.apply(put(1, "a0", "old"), LogEntry(1, 2, changes))
    assert copy.state() == {key("a1"): b"new"}


def test_many_entries_at_once_do_what_they_do_one_by_one(copy: Copy, tmp_path: Path) -> None:
    def rows(seq: int, *rows: tuple[bytes, bytes | Until | None]) -> LogEntry:
        return LogEntry(1, seq, encode_changes(list(rows), [(key(f"r{seq}"), b"reply")]))

    entries = [
        rows(1, (key("a1"), b"old"), (key("b"), b"1"), (key("c"), b"1")),
        LogEntry(1, 2, term_data(5)),
        rows(3, (key("b"), None), (key("c"), b"2")),
        rows(4, (key("a"), Until(key("b"))), (key("a2"), b"new")),
        rows(5, (key("c"), b"3"), (key("b"), b"3"), (key("b"), None)),
    ]
    copy.apply(*entries)
    many = Copy(tmp_path / "many")
    batch = many.store.batch()
    many.disk.apply_many(batch, SHARD, entries)
    many.store.write(batch)
    assert many.state() == copy.state() == {key("a2"): b"new", key("c"): b"3"}
    kept = list(many.store.scan("replies", key(""), keys.shard_prefix(SHARD + 1)))
    assert kept == [(key(f"r{n}"), b"reply") for n in (1, 3, 4, 5)]


def snapshot(copy: Copy, **rows: str) -> Snapshot:
    files = RowFiles(copy.disk.snapshots, "test")
    for name, value in sorted(rows.items()):
        files.put(key(name), value.encode())
    files.finish()
    state = msgspec.msgpack.encode(SnapshotFiles([str(file) for file in files.files], []))
    return Snapshot(3, Position(3, 40), state, 0.0)


def test_a_snapshot_replaces_everything_and_the_log_goes_on_behind_it(copy: Copy) -> None:
    copy.persist(Persist(1, 1, None, (put(1, "old", "1"),)))
    copy.apply(put(1, "old", "1"))
    copy.persist(Persist(2, 3, install=snapshot(copy, a="1", b="2")))
    copy.persist(Persist(3, 3, None, (put(41, "c", "3", 3),)))
    found = copy.again()
    assert (found.epoch, found.base, found.applied, found.entries) == (
        3,
        (3, 40),
        40,
        [put(41, "c", "3", 3)],
    )
    assert copy.state() == {key("a"): b"1", key("b"): b"2"}


def test_a_snapshot_deletes_what_was_there_for_good_before_its_files_come(
    copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ingested files outlast a power loss at once. Of a deletion that did not, old rows would come
    back among them."""
    done: list[str] = []

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def do(*given: Any) -> Any:
            done.append(name)
            return real(*given)

        return do

    for name in ("write", "sync", "ingest"):
        monkeypatch.setattr(copy.store, name, noted(name, getattr(copy.store, name)))
    copy.persist(Persist(1, 1, install=snapshot(copy, a="1")))
    assert done == ["write", "sync", "ingest", "write"]


def test_a_snapshot_that_was_cut_short_leaves_nothing_that_counts(copy: Copy) -> None:
    copy.persist(Persist(1, 1, None, (put(1, "old", "1"),)))
    copy.apply(put(1, "old", "1"))
    ingest = copy.store.ingest

    def power_goes(family: str, files: list[Path]) -> None:
        ingest(family, files)
        raise KeyboardInterrupt

    copy.store.ingest = power_goes  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        copy.persist(Persist(2, 3, install=snapshot(copy, a="1")))
    found = copy.again()
    assert (found.epoch, found.base, found.applied, found.entries) == (1, (0, 0), 0, [])
    assert copy.state() == {}


def test_what_is_dropped_is_gone_but_not_its_epoch(copy: Copy) -> None:
    copy.persist(Persist(1, 4, None, (put(1, "a", "1", 4),)))
    copy.apply(put(1, "a", "1", 4))
    copy.persist(Persist(2, 4, wipe=Position(0, 0)))
    found = copy.again()
    assert (found.epoch, found.base, found.applied, found.entries, copy.state()) == (
        4,
        (0, 0),
        0,
        [],
        {},
    )


def test_terms_and_high_water_are_there_after_a_start(copy: Copy) -> None:
    first = LogEntry(1, 1, term_data(11))
    entries = [first, *(put(n, "k", str(n)) for n in range(2, 6))]
    copy.persist(Persist(1, 1, None, tuple(entries), high=3))
    copy.apply(*entries[:4], base=Position(1, 3), chain=(Term(1, 11, 1), Term(2, 22, 6)))
    found = copy.again()
    assert (found.chain, found.high) == ([Term(1, 11, 1)], 3)
    batch = copy.store.batch()
    copy.disk.keep_high(batch, SHARD, 5)
    copy.store.write(batch)
    assert copy.again().high == 5
    copy.persist(Persist(2, 4, wipe=Position(0, 0)))
    found = copy.again()
    assert (found.chain, found.high) == ([], 0)


def test_a_snapshot_brings_its_terms_and_times(copy: Copy) -> None:
    taken = msgspec.structs.replace(
        snapshot(copy, a="1"), chain=(Term(1, 11, 1), Term(3, 33, 20)), shard_ms=77_000
    )
    copy.persist(Persist(1, 3, install=taken))
    found = copy.again()
    assert found.chain == [Term(1, 11, 1), Term(3, 33, 20)]
    assert copy.disk.times(SHARD).shard_ms == 77_000


def test_a_shards_time_goes_on_from_its_newest_entry(copy: Copy) -> None:
    entries = [
        LogEntry(1, 1, term_data(11)),
        *(LogEntry(1, n, encode_changes([], [], None, n * 1000)) for n in (2, 3, 4)),
    ]
    copy.persist(Persist(1, 1, None, tuple(entries)))
    copy.apply(*entries[:3], base=Position(1, 2))
    found = copy.again()
    assert copy.disk.times(SHARD).shard_ms == 3000
    assert copy.disk.times(SHARD, [*found.entries, LogEntry(2, 5, term_data(22))]).shard_ms == 4000
