"""Putting the changes of an entry into a batch of the store. Owners and replicas do it alike."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from holdfast_node.log.changes import (
    NOTHING_FORGOTTEN,
    Forgotten,
    Replies,
    Rows,
    Until,
    decode_forgotten,
    encode_forgotten,
)
from holdfast_node.store import keys
from holdfast_node.store.rocks import Batch, Store

_ROWS_FEW = 2_000


def stage_changes(
    store: Store,
    batch: Batch,
    shard: int,
    rows: Rows,
    replies: Replies,
    forgotten: Forgotten | None,
) -> None:
    """Put the changes of an entry into a batch."""
    stage_rows(batch, rows)
    if replies:
        batch.put_all("replies", replies)
    if forgotten is not None:
        stage_forgotten(store, batch, shard, forgotten)


def stage_rows(batch: Batch, rows: Iterable[tuple[bytes, bytes | Until | None]]) -> None:
    """Put changes of state into a batch."""
    for key, value in rows:
        if value is None:
            batch.delete("state", key)
        elif type(value) is bytes:
            batch.put("state", key, value)
        else:
            batch.delete_range("state", key, value.end)  # type: ignore[union-attr]


def stage_forgotten(
    store: Store, batch: Batch, shard: int, forgotten: Forgotten, late: bool = False
) -> None:
    """Put the deletion of forgotten replies into a batch. `late`: the batch itself may hold rows
    that are to be deleted.

    A few rows are deleted one by one. After each new range deletion, RocksDB sorts all range
    deletions of the memtable again at the next read.
    """
    raw = store.get("replies", keys.forgotten_key(shard))
    before = NOTHING_FORGOTTEN if raw is None else decode_forgotten(raw)
    after = before.merged(forgotten)
    for kept, first, end in (
        (keys.TIMED, before.timed, after.timed),
        (keys.DAY, before.day, after.day),
    ):
        start, stop = keys.reply_bucket(shard, kept, first), keys.reply_bucket(shard, kept, end)
        rows = (
            []
            if late
            else [key for key, _ in islice(store.scan("replies", start, stop), _ROWS_FEW)]
        )
        if late or len(rows) == _ROWS_FEW:
            batch.delete_range("replies", start, stop)
        else:
            for key in rows:
                batch.delete("replies", key)
    batch.put("replies", keys.forgotten_key(shard), encode_forgotten(after))
