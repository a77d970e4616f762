"""How stubs are typed with `plugins = ["holdfast.mypy_plugin"]`. Programs never meet these classes.

Python's type hints cannot say "the methods of this class, but awaited", or "but without a result".
Without the plugin, the stub of an asyncio client and of `self.objects` is typed as the class
itself: right for `async def` handlers. Those of a blocking client and of `notify` are `Any`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class AsyncStub(Generic[T]):
    """Every handler, `def` or `async def`, returns an awaitable of its result."""

    def __getattr__(self, handler: str) -> Any: ...


class BlockingStub(Generic[T]):
    """Every handler returns its result."""

    def __getattr__(self, handler: str) -> Any: ...


class NotifyStub(Generic[T]):
    """Every handler returns nothing: `self.notify`, and `notify` of a blocking client."""

    def __getattr__(self, handler: str) -> Any: ...


class AsyncNotifyStub(Generic[T]):
    """Every handler returns an awaitable of nothing: `notify` of an asyncio client."""

    def __getattr__(self, handler: str) -> Any: ...
