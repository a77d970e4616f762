"""Faults of `holdfast verify` that cannot be made."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from holdfast.verify.faults import strike


class Victims:
    """One node, whose process may be gone."""

    nodes = ("n1",)

    def __init__(self, gone: bool) -> None:
        self.gone = gone

    def signal(self, name: str, number: int) -> None:
        if self.gone:
            raise KeyError(name)


@pytest.mark.parametrize("gone", [True, False])
async def test_a_node_that_cannot_be_stopped_fails_the_fault(gone: bool) -> None:
    victims: Any = Victims(gone)
    _, _, mend = await strike("slow-node", victims, random.Random(1))
    await asyncio.sleep(0)
    if gone:
        with pytest.raises(KeyError, match="n1"):
            await mend()
    else:
        await mend()
