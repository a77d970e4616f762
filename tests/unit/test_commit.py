"""What ends the process in the commit pipeline, and with which status."""

from __future__ import annotations

import asyncio
import logging
import os
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from holdfast_node.log.commit import EXIT_STORE_FAILED, Committer, Flusher
from holdfast_node.log.shards import Entry, Shard
from holdfast_node.store.disk_space import EXIT_DISK_FULL

from tests.unit.no_log import NO_LOG

NO_SPACE = (
    "IO error: No space left on device: While appending to file: /data/000012.log: No space left on"
    " device"
)


class Ended(BaseException):
    """The process would have ended."""


class Store:
    """Fails when it is told to."""

    def __init__(self) -> None:
        self.fails: Exception | None = None

    def batch(self) -> Any:
        return SimpleNamespace(put_all=lambda family, rows: None)

    def write(self, batch: Any) -> None:
        if self.fails is not None:
            raise self.fails

    def sync(self) -> None: ...


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses that the process would have ended with."""
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        raise Ended

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    return codes


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (Exception(NO_SPACE), EXIT_DISK_FULL, False),
        (OSError(122, "Disk quota exceeded"), EXIT_DISK_FULL, False),
        (Exception("IO error: While fsync: Input/output error"), EXIT_STORE_FAILED, True),
    ],
)
async def test_a_write_that_fails_ends_the_process_with_a_status_that_tells_a_full_disk(
    exits: list[int], caplog: pytest.LogCaptureFixture, error: Exception, code: int, traceback: bool
) -> None:
    store = Store()
    flusher = Flusher(store)  # type: ignore[arg-type]
    assert flusher.batch is not None
    store.fails = error
    with pytest.raises(Ended):
        flusher.write()
    assert exits == [code]
    [record] = caplog.records
    assert bool(record.exc_info) is traceback
    if not traceback:
        assert str(error) in record.getMessage(), "it names the file"
    await flusher.close()


class _Raises:
    def settled(self, entry: Entry) -> None:
        raise AssertionError


async def test_a_bug_in_a_flush_that_nobody_waits_for_ends_the_process(exits: list[int]) -> None:
    """The event loop would log it and go on, and the pipeline would stand still."""
    flusher = Flusher(Store())  # type: ignore[arg-type]

    entry = Entry(Shard(1, 1, NO_LOG))
    entry.committed = True
    entry.followers.append(_Raises())
    flusher.when_visible([entry])
    with pytest.raises(Ended):
        flusher.write()
    assert exits == [EXIT_STORE_FAILED]
    await flusher.close()


async def test_a_core_that_asserts_when_patience_is_over_ends_the_process(exits: list[int]) -> None:
    flusher = Flusher(Store())  # type: ignore[arg-type]

    committer = Committer(flusher)
    shard = Shard(1, 1, NO_LOG)
    shard.owned = True
    committer.entry(shard)
    with pytest.raises(Ended):
        committer._impatient()
    assert exits == [EXIT_STORE_FAILED]
    committer._gathering.clear()
    await asyncio.sleep(0)
    await flusher.close()


async def test_what_is_staged_during_an_fsync_waits_for_the_next_one() -> None:
    """That fsync may have begun before it was written."""
    store = Store()
    began, ends = SimpleQueue[None](), SimpleQueue[None]()

    def sync() -> None:
        began.put(None)
        ends.get(timeout=10)

    store.sync = sync  # type: ignore[method-assign]
    flusher = Flusher(store)  # type: ignore[arg-type]
    durable: list[str] = []
    flusher.when_durable(lambda: durable.append("first"))
    await asyncio.to_thread(began.get, timeout=10)
    flusher.when_durable(lambda: durable.append("second"))
    ends.put(None)
    await asyncio.to_thread(began.get, timeout=10)
    assert durable == ["first"]
    ends.put(None)
    await flusher.close()
    assert durable == ["first", "second"]
