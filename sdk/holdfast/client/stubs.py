"""What the stubs of both clients have in common."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, Generic, TypeVar

from holdfast.app import kind_name
from holdfast.client.options import CallOptions
from holdfast.signature import check_notified, return_type

C = TypeVar("C")


class BaseStub(Generic[C]):
    """Stands for one object. Each attribute is one of its methods."""

    __slots__ = ("_client", "_key", "_kind", "_name", "_options")

    def __init__(self, client: C, kind: type | str, key: str, options: CallOptions) -> None:
        self._client = client
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._options = options

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        if self._options.send:
            check_notified(self._kind, method)
            return partial(self._call, method, None)
        return partial(self._call, method, return_type(self._kind, method))

    @abstractmethod
    def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        """Make a call, and decode its result as `returns`, or drop it if that is None."""
