"""The number of waiting alarms, and of late ones. There may be millions, so they are counted a few
rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast_node.log.shards import Shards
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

ROWS = 2_000
"""The rows of one step, which takes about two milliseconds."""
PAUSE_MS = 5_000
LATE_MS = 1_000
"""An alarm that fires within a second of its time is on time."""


class AlarmCounter:
    """Counts the alarms of the owned shards. `pending` and `late` are those of the last complete
    count; `tick` goes on with the next one. A million alarms take some 50 s. Implements
    `Periodic`."""

    def __init__(self, store: Store, shards: Shards) -> None:
        self._store = store
        self._shards = shards
        self.pending = 0
        self.late = 0
        self._shards_left: Iterator[int] = iter(())
        self._at: tuple[int, bytes] | None = None
        self._counted = [0, 0]
        self._next_ms = 0

    def tick(self, wall_ms: int) -> None:
        """Count the next rows."""
        if self._at is None:
            if wall_ms < self._next_ms:
                return
            self._shards_left = iter(sorted(shard.number for shard in self._shards.owned()))
            self._counted = [0, 0]
            self._advance(wall_ms)
        rows_left = ROWS
        while self._at is not None and rows_left > 0:
            number, start = self._at
            prefix = keys.index_prefix(number, keys.ALARMS)
            for key, _ in self._store.scan("state", start, keys.after(prefix)):
                if rows_left <= 0:
                    self._at = number, key
                    break
                rows_left -= 1
                self._counted[0] += 1
                self._counted[1] += keys.read_due_key(key)[0] < wall_ms - LATE_MS
            else:
                rows_left -= 1
                self._advance(wall_ms)

    def _advance(self, wall_ms: int) -> None:
        number = next(self._shards_left, None)
        if number is None:
            self._at = None
            self.pending, self.late = self._counted
            self._next_ms = wall_ms + PAUSE_MS
        else:
            self._at = number, keys.index_prefix(number, keys.ALARMS)
