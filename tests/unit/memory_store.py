"""A store and a clock in memory, for tests of storage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from holdfast_node.effects.rows import Write


class MemoryReader:
    """A store in memory. Implements `holdfast_node.effects.row_layers.Reader`."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted(
            (k for k in self.rows if k >= start and (end is None or k < end)), reverse=reverse
        )
        return ((k, self.rows[k]) for k in keys)

    def apply(self, cleared: bool, writes: Iterable[Write]) -> None:
        """Make a turn's writes visible."""
        if cleared:
            self.rows.clear()
        for key, raw in writes:
            if raw is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = raw


class WallExpiry:
    """Expiry by this machine's clock, as a shard decides it. Implements
    `holdfast_node.effects.rows.Expiring`."""

    def __init__(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now_ms = now_ms

    def expiry_ms(self, ttl_ms: int) -> int:
        return self._now_ms() + ttl_ms

    def expired(self, expiry_ms: int) -> bool:
        return self._now_ms() >= expiry_ms
