"""Storage against a dumb model: a dict that is copied at every turn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from holdfast.storage import Storage
from holdfast_node.effects.rows import Rows, StorageLimits
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.memory_store import MemoryReader, WallExpiry

KEYS = st.sampled_from(["a", "ab", "abc", "b", "ä", "z\0", "zz"])
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(0, 99)),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("delete_all")),
    st.tuples(st.just("get"), KEYS),
    st.tuples(
        st.just("list"),
        st.sampled_from(["", "a", "z"]),
        st.booleans(),
        st.sampled_from([None, 1, 2]),
    ),
    st.tuples(st.just("fail_inside"), KEYS),
)
TURNS = st.lists(st.tuples(st.lists(STEPS, max_size=8), st.booleans(), st.booleans()), max_size=12)


class Entry:
    applied = False


@settings(max_examples=300, deadline=None)
@given(TURNS, st.sampled_from([0, 400, 1 << 20]))
def test_storage_is_a_dict_with_transactions(turns: list[Any], cache_bytes: int) -> None:
    reader = MemoryReader()
    rows_of = Rows(reader, StorageLimits(cache_bytes=cache_bytes), WallExpiry())
    storage = Storage(rows_of, None)  # type: ignore[arg-type]
    model: dict[str, int] = {}
    waiting: list[tuple[Entry, bool, Any]] = []
    for steps, commit, apply in turns:
        rows_of.begin()
        mine = dict(model)
        for step in steps:
            match step:
                case ("put", key, value):
                    storage.put(key, value)
                    mine[key] = value
                case ("delete", key):
                    assert storage.delete(key) == (key in mine)
                    mine.pop(key, None)
                case ("delete_all",):
                    storage.delete_all()
                    mine.clear()
                case ("get", key):
                    assert storage.get(key, int) == mine.get(key)
                case ("list", prefix, reverse, limit):
                    rows = sorted(
                        ((k, v) for k, v in mine.items() if k.startswith(prefix)), reverse=reverse
                    )[:limit]
                    assert list(storage.list(prefix, reverse=reverse, limit=limit).items()) == rows
                case ("fail_inside", key):
                    try:
                        with storage.transaction():
                            storage.put(key, -1)
                            storage.delete_all()
                            raise KeyError
                    except KeyError:
                        pass
        if commit:
            model = mine
            if rows_of.changed():
                entry = Entry()
                cleared, writes, _ = rows_of.take()
                assert rows_of.write_bytes == sum(len(key) + len(raw or b"") for key, raw in writes)
                rows_of.close(entry)
                waiting.append((entry, cleared, writes))
            else:
                rows_of.close(None)
        else:
            rows_of.rollback()
        if apply:
            for entry, cleared, writes in waiting:
                reader.apply(cleared, writes)
                entry.applied = True
            waiting.clear()
        assert rows_of.layers.cached_bytes <= cache_bytes


BLOCK: st.SearchStrategy[Any] = st.deferred(
    lambda: st.lists(
        st.one_of(
            st.tuples(st.just("put"), KEYS, st.integers(0, 9)),
            st.tuples(st.just("put_many"), st.dictionaries(KEYS, st.integers(0, 9), max_size=3)),
            st.tuples(st.just("delete"), KEYS),
            st.tuples(st.just("delete_all")),
            st.tuples(st.just("effect")),
            st.tuples(st.just("block"), BLOCK, st.booleans()),
        ),
        max_size=6,
    )
)


@settings(max_examples=500, deadline=None)
@given(BLOCK)
def test_blocks_that_fail_leave_everything_as_it_was_before_them(steps: list[Any]) -> None:
    reader = MemoryReader()
    reader.apply(False, [(b"a", b"\x07"), (b"b", b"\x07")])
    rows = Rows(reader, StorageLimits(), WallExpiry())
    storage = Storage(rows, None)  # type: ignore[arg-type]
    rows.begin()
    model: dict[str, int] = {"a": 7, "b": 7}
    effects: list[SimpleNamespace] = []

    def run(steps: list[Any]) -> None:
        for step in steps:
            match step:
                case ("put", key, value):
                    storage.put(key, value)
                    model[key] = value
                case ("put_many", values):
                    storage.put_many(values)
                    model.update(values)
                case ("delete", key):
                    storage.delete(key)
                    model.pop(key, None)
                case ("delete_all",):
                    storage.delete_all()
                    model.clear()
                case ("effect",):
                    effects.append(SimpleNamespace(size=5))
                    rows.add_effect(effects[-1])
                case ("block", inner, fails):
                    before, effects_before = dict(model), list(effects)
                    try:
                        with storage.transaction():
                            run(inner)
                            if fails:
                                raise KeyError
                    except KeyError:
                        model.clear()
                        model.update(before)
                        effects[:] = effects_before

    run(steps)
    assert storage.list() == dict(sorted(model.items()))
    assert rows.effects == effects
    _, writes, _ = rows.take()
    assert rows.write_bytes == 5 * len(effects) + sum(
        len(key) + len(raw or b"") for key, raw in writes
    )
