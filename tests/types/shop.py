"""A kind whose handlers are of every form."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import holdfast
from holdfast import Alarm, App, DurableObject, Invocation

app = App()


@app.around
async def around(invocation: Invocation) -> Any:
    return await invocation.proceed()


@app.kind
class Cart(DurableObject):
    async def add(self, what: str, *, count: int = 1) -> int:
        return count

    def plain(self, n: int) -> list[str]:
        return [str(n)]

    @holdfast.reads
    def total(self) -> float:
        return 0.0

    async def on_alarm(self, alarm: Alarm) -> None: ...


@app.kind("other", ttl=timedelta(days=1), idle=timedelta(minutes=1), notify_attempts=3)
class Named(Cart):
    async def more(self) -> dict[str, int]:
        return {}
