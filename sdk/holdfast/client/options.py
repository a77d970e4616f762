"""The options of calls. A stub has one `CallOptions`, which holds for all of its calls."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class CallOptions(msgspec.Struct, frozen=True):
    """The options of `Client.get` and `Client.notify`, for both clients.

    A program that makes a stub for each call makes one of these for each call, too. A `Struct` is
    several times cheaper to make than a frozen dataclass.
    """

    timeout: float | None = None
    """The deadline in seconds; None: the client's."""
    request_id: bytes | None = None
    metadata: Mapping[str, str] | None = None
    idempotency_key: str | None = None
    send: bool = False
    """The cluster stores calls and answers, and runs them later."""
    delay_ms: int = 0
    """How long the cluster keeps a stored call before it runs the call, in ms."""

    @property
    def own_id(self) -> bool:
        """Whether the caller named the effect, so that the call may have run before."""
        return self.request_id is not None or self.idempotency_key is not None
