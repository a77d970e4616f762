"""The types of stubs with `plugins = ["holdfast.mypy_plugin"]`. Programs never use these classes at
run time.

Python's type hints cannot say "the methods of this class, but awaited" or "but without a result".
Without the plugin, the stub of an asyncio client and of `self.objects` is typed as the class
itself. That is right for `async def` handlers. The stubs of a blocking client and of `notify` are
`Any`.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class AsyncStub(Generic[T]):
    """The stub of an asyncio client: every handler, `def` or `async def`, returns an awaitable of
    its result.
    """

    def __getattr__(self, handler: str) -> Any: ...


class BlockingStub(Generic[T]):
    """The stub of a blocking client: every handler returns its result."""

    def __getattr__(self, handler: str) -> Any: ...


class NotifyStub(Generic[T]):
    """The stub of `self.notify`, and of `notify` of a blocking client: every handler returns
    nothing.
    """

    def __getattr__(self, handler: str) -> Any: ...


class AsyncNotifyStub(Generic[T]):
    """The stub of `notify` of an asyncio client: every handler returns an awaitable of nothing."""

    def __getattr__(self, handler: str) -> Any: ...
