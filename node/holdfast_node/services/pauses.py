"""The kinds and objects that operators have paused. Deliveries and alarms to them wait."""

from __future__ import annotations

from collections.abc import Callable

from holdfast_node.effects.outbox import Target


class Pauses:
    """The paused kinds and objects. The `listeners` are called when a kind or an object is paused
    or resumed."""

    def __init__(self) -> None:
        self._paused: frozenset[tuple[str, str]] = frozenset()
        self.listeners: list[Callable[[], None]] = []

    def follow(self, paused: frozenset[tuple[str, str]]) -> None:
        """Follow the list of paused objects and kinds. A kind has an empty key."""
        if paused != self._paused:
            self._paused = paused
            for listener in self.listeners:
                listener()

    def paused(self, target: Target) -> bool:
        """Return whether deliveries and alarms to an object wait."""
        return bool(self._paused) and (target in self._paused or (target[0], "") in self._paused)
