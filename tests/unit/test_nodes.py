"""Channels to the nodes' Peer services."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from holdfast_cluster.routing.nodes import Nodes


class Channel:
    async def close(self, grace: float | None = None) -> None:
        raise RuntimeError("it cannot be closed")


async def test_a_channel_that_cannot_be_closed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    watcher: Any = None
    channel: Any = Channel()
    nodes = Nodes(watcher)
    nodes._channels["a:1"] = channel
    nodes.forget_others([])
    for _ in range(3):
        await asyncio.sleep(0)
    assert "a channel to a node could not be closed" in caplog.text
    assert "it cannot be closed" in caplog.text
    assert not nodes._closing
