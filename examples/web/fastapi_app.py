"""FastAPI, or any ASGI framework with a lifespan: one asyncio client for each worker process. The
client is opened on the worker's own event loop.

uvicorn --factory examples.web.fastapi_app:make_app --workers 2
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import holdfast
from fastapi import FastAPI, HTTPException, Request

from examples.web.counter import Counter


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with holdfast.connect(os.environ["HOLDFAST_GATEWAY"], timeout=10) as client:
        yield {"holdfast": client}


def make_app() -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.post("/counters/{key}")
    async def increment(key: str, request: Request) -> dict[str, Any]:
        client: holdfast.Client = request.state.holdfast
        # If a browser sends its request again, it sends the same key, and the request counts once.
        once = request.headers.get("idempotency-key")
        try:
            n = await client.get(Counter, key, idempotency_key=once).increment()
        except holdfast.Rejected as refused:
            raise HTTPException(409, str(refused)) from None
        except holdfast.Overloaded as busy:
            raise HTTPException(
                503, str(busy), {"Retry-After": str(int(busy.retry_after_s) + 1)}
            ) from None
        return {"n": n, "pid": os.getpid()}

    @app.post("/counters/{key}/later", status_code=202)
    async def later(key: str, request: Request) -> None:
        client: holdfast.Client = request.state.holdfast
        await client.notify(Counter, key).increment()

    @app.post("/counters/{key}/slow")
    async def slow(key: str, request: Request) -> int:
        client: holdfast.Client = request.state.holdfast
        return await client.get(Counter, key).slow_increment(3.0)

    return app
