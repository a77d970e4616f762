"""Storage: every operation is whole or not at all, and a transaction undoes what it did alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import holdfast
import pytest
from holdfast.storage import Storage
from holdfast_node.effects.rows import Rows, StorageLimits
from holdfast_node.log.shards import Entry

from tests.unit.memory_store import MemoryReader, WallExpiry

LIMITS = StorageLimits(turn_bytes=10_000, value_bytes=5_000)


@pytest.fixture
def rows() -> Rows:
    rows = Rows(MemoryReader(), LIMITS, WallExpiry())
    rows.begin()
    return rows


@pytest.fixture
def storage(rows: Rows) -> Storage:
    return Storage(rows, None)  # type: ignore[arg-type]


def test_users_hold_nothing_but_what_is_documented() -> None:
    public = {name for name in dir(Storage) if not name.startswith("_")}
    assert public == {
        "get",
        "get_many",
        "list",
        "put",
        "put_many",
        "delete",
        "delete_all",
        "transaction",
    }


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (b"k", TypeError),
        (5, TypeError),
        (None, TypeError),
        (["a"], TypeError),
        ("", ValueError),
        ("\udc80", ValueError),
        ("k" * 1025, holdfast.TooLarge),
        ("ü" * 513, holdfast.TooLarge),
    ],
)
def test_a_key_that_is_none_is_refused_at_once_everywhere(
    storage: Storage, rows: Rows, key: Any, error: type[Exception]
) -> None:
    storage.put("a", 1)
    before = rows.write_bytes
    for use in (
        lambda: storage.get(key),
        lambda: storage.get_many(["a", key]),
        lambda: key in storage,
        lambda: storage.put(key, 1),
        lambda: storage.put_many({"b": 1, key: 2} if not isinstance(key, list) else {"b": 1, 5: 2}),  # type: ignore[dict-item]
        lambda: storage.delete("a", key) if not isinstance(key, list) else storage.delete("a", 5),  # type: ignore[arg-type]
    ):
        with pytest.raises(error):
            use()
    assert storage.list() == {"a": 1}
    assert rows.write_bytes == before


@pytest.mark.parametrize(
    "value", [object(), 1 << 70, {"x": {1, (2,), object}}, "half \udc80", ["deep"]]
)
def test_a_value_that_cannot_be_stored_changes_nothing(
    storage: Storage, rows: Rows, value: Any
) -> None:
    if value == ["deep"]:
        for _ in range(100_000):
            value = [value]
    uses: tuple[Callable[[], object], ...] = (
        lambda: storage.put("a", value),
        lambda: storage.put_many({"a": 1, "b": value, "c": 2}),
    )
    for use in uses:
        with pytest.raises(TypeError, match="cannot be stored"):
            use()
    assert (storage.list(), rows.changed(), rows.write_bytes) == ({}, False, 0)


def test_a_refused_write_leaves_the_turn_as_it_was(storage: Storage, rows: Rows) -> None:
    storage.put("a", bytes(4_000))
    storage.put("b", bytes(4_000))
    before = rows.write_bytes
    for use in (
        lambda: storage.put("c", bytes(3_000)),
        lambda: storage.put("c", bytes(5_000)),
        lambda: storage.put_many({"c": bytes(1_000), "d": bytes(1_000)}),
        lambda: rows.add_effect(Sized(3_000)),
        lambda: storage.delete(*(f"{i:0500}" for i in range(5))),
    ):
        with pytest.raises(holdfast.TooLarge):
            use()
        assert rows.write_bytes == before
    storage.put("c", 1)
    storage.put("a", bytes(3_000))
    storage.put("d", bytes(1_500))
    assert set(storage.list()) == {"a", "b", "c", "d"}


def test_delete_tells_how_many_there_were(storage: Storage) -> None:
    storage.put_many({"a": 1, "b": 2})
    assert storage.delete("a", "a", "x") == 1
    assert storage.delete("a") == 0
    assert storage.delete() == 0
    assert storage.list() == {"b": 2}


def test_pages_follow_each_other_by_their_last_key(storage: Storage) -> None:
    names = ["a", "a\0", "ab", "b", "ä"]
    storage.put_many(dict.fromkeys(names, 0))
    for reverse in (False, True):
        wanted = sorted(names, reverse=reverse)
        seen: list[str] = []
        while page := list(
            storage.list(limit=2, reverse=reverse, start_after=seen[-1] if seen else None)
        ):
            seen += page
        assert seen == wanted
    assert list(storage.list("a", start_after="a")) == ["a\0", "ab"]
    assert list(storage.list(start_after="b", end="c")) == []
    assert list(storage.list(reverse=True, start_after="b", end="aa")) == ["a\0", "a"]
    with pytest.raises(ValueError, match="not both"):
        storage.list(start="a", start_after="b")


# -- transactions


class Sized:
    """An effect. Implements `TurnEffect`."""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def stage(self, entry: Entry) -> None:
        raise AssertionError("no turn of this test commits")


async def test_a_block_undoes_nothing_that_other_tasks_did(storage: Storage, rows: Rows) -> None:
    mine, theirs = Sized(10), Sized(10)

    async def good() -> None:
        await asyncio.sleep(0.01)
        storage.put("theirs", 1)
        storage.put("both", "good")
        storage.put("same", 7)
        rows.add_effect(theirs)

    async def bad() -> None:
        with storage.transaction():
            storage.put("mine", 1)
            storage.put("both", "bad")
            storage.put("same", 7)
            rows.add_effect(mine)
            await asyncio.sleep(0.05)
            storage.put("late", 1)
            raise KeyError

    storage.put("both", "before")
    results = await asyncio.gather(good(), bad(), return_exceptions=True)
    assert isinstance(results[1], KeyError)
    assert storage.list() == {"theirs": 1, "both": "good", "same": 7}
    assert rows.effects == [theirs]
    _, writes, _ = rows.take()
    assert rows.write_bytes == 10 + sum(len(key) + len(raw or b"") for key, raw in writes)


async def test_clearing_is_undone_around_what_others_wrote_and_not_when_they_cleared_too(
    storage: Storage, rows: Rows
) -> None:
    storage.put_many({"old": 1, "changed": 1})
    with pytest.raises(KeyError), storage.transaction():
        storage.delete_all()
        storage.put("mine", 1)
        await asyncio.create_task(put_outside(storage, "changed", 2))
        raise KeyError
    assert storage.list() == {"old": 1, "changed": 2}

    async def clears() -> None:
        await asyncio.sleep(0.01)
        storage.delete_all()
        storage.put("after", 1)

    async def bad() -> None:
        with storage.transaction():
            storage.put("mine", 1)
            storage.delete_all()
            await asyncio.sleep(0.03)
            raise KeyError

    await asyncio.gather(clears(), bad(), return_exceptions=True)
    assert storage.list() == {"after": 1}
    assert rows.write_bytes == len("after") + 1


async def put_outside(storage: Storage, key: str, value: Any) -> None:
    """As a task that was begun before any block would."""
    from holdfast_node.effects.transactions import _IN_BLOCK

    _IN_BLOCK.set(None)
    storage.put(key, value)


async def test_what_tasks_do_that_a_block_began_belongs_to_it(storage: Storage) -> None:
    async def child(name: str) -> None:
        await asyncio.sleep(0)
        storage.put(name, 1)

    with pytest.raises(KeyError), storage.transaction():
        await asyncio.gather(child("a"), child("b"))
        raise KeyError
    assert storage.list() == {}


async def test_blocks_that_overlap_in_two_tasks_are_refused_by_name(storage: Storage) -> None:
    async def block(seconds: float) -> None:
        with storage.transaction():
            storage.put("a", 1)
            await asyncio.sleep(seconds)

    first = asyncio.create_task(block(0.05), name="first")
    await asyncio.sleep(0)
    second = asyncio.create_task(block(0.05), name="second")
    with pytest.raises(
        RuntimeError, match=r"second begins a transaction\(\) while first is in one"
    ):
        await second
    await first
    assert storage.list() == {"a": 1}
    with storage.transaction():  # one after the other is fine
        storage.put("a", 2)


async def test_siblings_inside_a_block_may_not_both_open_one(storage: Storage) -> None:
    async def nested(name: str) -> None:
        with storage.transaction():
            storage.put(name, 1)
            await asyncio.sleep(0.01)

    with pytest.raises(RuntimeError, match="begins a transaction"), storage.transaction():
        await asyncio.gather(nested("a"), nested("b"))
    assert "b" not in storage


async def test_a_block_that_ends_before_one_inside_it_fails(storage: Storage) -> None:
    async def inner() -> None:
        with storage.transaction():
            await asyncio.sleep(0.05)

    with (
        pytest.raises(RuntimeError, match="inner was still in one that it began inside"),
        storage.transaction(),
    ):
        storage.put("a", 1)
        task = asyncio.create_task(inner(), name="inner")
        await asyncio.sleep(0.01)
    assert storage.list() == {}
    with pytest.raises(RuntimeError, match="ended after the one that it was begun in"):
        await task


def test_nested_blocks_fail_alone_or_together(storage: Storage) -> None:
    with pytest.raises(KeyError), storage.transaction():
        storage.put("outer", 1)
        with pytest.raises(IndexError), storage.transaction():
            storage.put("inner", 1)
            storage.put("outer", 2)
            raise IndexError
        assert storage.list() == {"outer": 1}
        with storage.transaction():
            storage.put("kept inside", 1)
            storage.delete("outer")
        raise KeyError
    assert storage.list() == {}
    with storage.transaction(), storage.transaction():
        storage.put("a", 1)
    assert storage.list() == {"a": 1}


def test_a_block_that_outlives_its_turn_touches_nothing_of_the_next_one(
    storage: Storage, rows: Rows
) -> None:
    block = storage.transaction()
    block.__enter__()
    storage.put("a", 1)
    rows.rollback()
    rows.begin()
    storage.put("a", 2)
    with storage.transaction():
        storage.put("b", 1)
        assert block.__exit__(KeyError, KeyError(), None) is not True
        storage.put("c", 1)
    assert storage.list() == {"a": 2, "b": 1, "c": 1}


def test_many_rows_of_which_a_later_one_makes_room_for_an_earlier_one_are_one_write(
    storage: Storage, rows: Rows
) -> None:
    storage.put("b", bytes(4_900))
    storage.put("c", bytes(4_000))
    storage.put_many({"a": bytes(4_000), "b": 1})
    assert len(storage.get("a")) == 4_000
    assert storage.get("b") == 1
    assert rows.write_bytes < 10_000


async def test_a_block_of_another_object_has_no_part_in_what_this_one_writes() -> None:
    """A call from inside a block carries its context along, to a turn of an object on the same
    node."""
    first, second = (Rows(MemoryReader(), LIMITS, WallExpiry()) for _ in range(2))
    caller, called = Storage(first, None), Storage(second, None)  # type: ignore[arg-type]

    async def turn_of_the_other() -> None:
        second.begin()

        async def in_a_block() -> None:
            with called.transaction():
                called.put("x", 1)
                await asyncio.sleep(0.01)

        async def beside_it() -> None:
            await asyncio.sleep(0)
            called.put("y", 2)

        await asyncio.gather(in_a_block(), beside_it())

    first.begin()
    with pytest.raises(KeyError), caller.transaction():
        caller.put("a", 1)
        await turn_of_the_other()
        raise KeyError
    assert caller.list() == {}
    assert called.list() == {"x": 1, "y": 2}


async def test_a_task_that_outlives_its_block_belongs_to_the_one_around_it(
    storage: Storage,
) -> None:
    async def late() -> None:
        await asyncio.sleep(0.01)
        storage.put("late", 1)

    with pytest.raises(KeyError), storage.transaction():
        with storage.transaction():
            task = asyncio.create_task(late())
        await task
        raise KeyError
    assert storage.list() == {}
    with storage.transaction():
        storage.put("a", 1)
    assert storage.list() == {"a": 1}


async def test_after_blocks_that_ended_out_of_order_others_may_begin(storage: Storage) -> None:
    async def inner() -> None:
        with storage.transaction():
            storage.put("a", 2)
            await asyncio.sleep(0.03)

    with pytest.raises(RuntimeError, match="inner was still in one"), storage.transaction():
        storage.put("a", 1)
        task = asyncio.create_task(inner(), name="inner")
        await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="ended after"):
        await task
    assert storage.list() == {}
    with storage.transaction():
        storage.put("b", 1)
    assert storage.list() == {"b": 1}


async def test_what_a_block_began_can_change_nothing_once_the_block_has_failed(
    storage: Storage, rows: Rows
) -> None:
    """Else half of a transfer is committed: the part that was not done yet when the other one
    failed."""

    async def debit() -> None:
        storage.put("a", -5)
        await asyncio.sleep(0.01)
        raise KeyError

    async def credit() -> None:
        await asyncio.sleep(0.03)
        for use in (
            lambda: storage.put("b", 5),
            lambda: storage.put_many({"b": 5}),
            lambda: storage.delete("c"),
            lambda: storage.delete_all(),
            lambda: rows.add_effect(Sized(5)),
        ):
            with pytest.raises(
                RuntimeError, match=r"was begun in a transaction\(\) that has failed"
            ):
                use()
        assert storage.get("c") == 1

    storage.put("c", 1)
    crediting = asyncio.create_task(asyncio.sleep(0))
    with pytest.raises(KeyError), storage.transaction():
        crediting = asyncio.create_task(credit())
        await debit()
    storage.put("d", 1)  # the handler that caught the error goes on
    await crediting
    assert storage.list() == {"c": 1, "d": 1}
    assert rows.effects == []
    rows.rollback()
    rows.begin()
    storage.put("e", 1)
