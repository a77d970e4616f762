"""Forgetting kept replies whose time has passed."""

from __future__ import annotations

from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.log.commit import Committer
from holdfast_node.log.shards import Shards
from holdfast_node.objects.responses import ResponseCache

INTERVAL_S = 60.0


class ResponseService:
    """Puts into the owned shards' entries which replies to forget, about once a minute. Implements
    `Periodic`."""

    def __init__(self, responses: ResponseCache, shards: Shards, committer: Committer) -> None:
        self._responses = responses
        self._shards = shards
        self._committer = committer
        self._at = boottime()

    def tick(self, now_ms: int) -> None:
        if boottime() - self._at > INTERVAL_S:
            self._at = boottime()
            self.forget()

    def forget(self) -> None:
        """Have the shards forget all replies that they may forget now."""
        self._committer.flush_visible()
        for shard in self._shards.serving(boottime()):
            if shard.may_write() and (due := self._responses.due(shard)) is not None:
                entry = self._committer.entry(shard)
                entry.forgotten = due if entry.forgotten is None else entry.forgotten.merged(due)
