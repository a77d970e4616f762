"""A log for shards whose entries a test does not commit."""

from __future__ import annotations

from holdfast_node.log.shards import Entry


class _NoLog:
    """Implements `holdfast_node.log.shards.ShardLog`."""

    def append(self, entries: list[Entry]) -> None:
        raise AssertionError("nothing is committed here")


NO_LOG = _NoLog()
