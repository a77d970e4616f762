"""The entries of shards with a single copy. Such shards have no log: the entries go into the state
at once, and the fsync commits them."""

from __future__ import annotations

from holdfast_node.log.commit import Flusher
from holdfast_node.log.shards import Entry
from holdfast_node.log.staging import stage_changes


class SingleLog:
    """Writes entries into the state at once. Implements `holdfast_node.log.shards.ShardLog`."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher

    def append(self, entries: list[Entry]) -> None:
        batch = self._flusher.batch
        for entry in entries:
            if not entry.deletes and entry.forgotten is None:
                batch.put_all("state", entry.rows)  # type: ignore[arg-type]
                batch.put_all("replies", entry.replies)
            else:
                stage_changes(
                    self._flusher.store,
                    batch,
                    entry.shard.number,
                    entry.rows,
                    entry.replies,
                    entry.forgotten,
                )

        def durable() -> None:
            for entry in entries:
                entry.committed = True
            for entry in entries:
                entry.settle()

        self._flusher.when_visible(entries)
        self._flusher.when_durable(durable)
