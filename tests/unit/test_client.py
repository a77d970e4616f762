"""The asynchronous client without a cluster."""

from __future__ import annotations

import holdfast
import pytest


async def test_a_client_that_was_never_opened_can_be_closed() -> None:
    client = holdfast.connect("localhost:1")
    await client.close()
    with pytest.raises(RuntimeError, match="opened already"):
        await client.open()


async def test_a_client_can_be_closed_twice() -> None:
    client = await holdfast.connect("localhost:1").open()
    await client.close()
    await client.close()
