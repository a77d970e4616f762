"""Keys of the store: what is encoded comes back, and order and ranges are what they say."""

from __future__ import annotations

from holdfast_node.store import keys
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["\0", "\0\0a", "a\0", "a"]
)


@given(st.integers(0, 65_535), NAMES, NAMES, st.binary(max_size=8))
def test_object_keys_come_back(shard: int, kind: str, key: str, rest: bytes) -> None:
    raw = keys.object_prefix(shard, kind, key) + bytes([keys.ROW]) + rest
    assert keys.split_object(raw) == (shard, kind, key, bytes([keys.ROW]) + rest)


@given(st.integers(0, 65_535), NAMES, NAMES, NAMES, NAMES)
def test_no_object_lies_in_the_range_of_another(
    shard: int, kind: str, key: str, kind2: str, key2: str
) -> None:
    if (kind, key) != (kind2, key2):
        assert not keys.row_prefix(shard, kind2, key2).startswith(
            keys.object_prefix(shard, kind, key)
        )


@given(st.binary(min_size=1, max_size=6), st.binary(max_size=4))
def test_after_is_the_end_of_a_prefix(prefix: bytes, rest: bytes) -> None:
    end = keys.after(prefix)
    assert end is None or prefix + rest < end
