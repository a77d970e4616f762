"""What the stubs of both clients have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any, Generic, TypeVar

from holdfast.app import kind_name
from holdfast.signature import check_notified, return_type

C = TypeVar("C")


class BaseStub(Generic[C]):
    """Stands for one object. Each attribute is one of its methods."""

    __slots__ = (
        "_client",
        "_delay_ms",
        "_idempotency_key",
        "_key",
        "_kind",
        "_metadata",
        "_name",
        "_request_id",
        "_send",
        "_timeout",
    )

    def __init__(
        self,
        client: C,
        kind: type | str,
        key: str,
        timeout: float | None = None,
        request_id: bytes | None = None,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        send: bool = False,
        delay_ms: int = 0,
    ) -> None:
        """`send`: calls are stored, to be run after `delay_ms`, or at once if it is 0."""
        self._client = client
        self._send = send
        self._delay_ms = delay_ms
        self._idempotency_key = idempotency_key
        self._kind = kind
        self._name = kind_name(kind)
        self._key = key
        self._timeout = timeout
        self._request_id = request_id
        self._metadata = metadata

    def __getattr__(self, method: str) -> Any:
        if method.startswith("__"):
            raise AttributeError(method)
        if self._send:
            check_notified(self._kind, method)
            return partial(self._call, method, None)
        return partial(self._call, method, return_type(self._kind, method))

    @abstractmethod
    def _call(self, method: str, returns: Any, /, *positional: Any, **named: Any) -> Any:
        """Make a call, and decode its result as `returns`, or drop it if that is None."""
