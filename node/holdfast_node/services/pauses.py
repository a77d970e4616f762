"""Which kinds and objects operators have paused: deliveries and alarms to them wait."""

from __future__ import annotations

from collections.abc import Callable

from holdfast_node.effects.outbox import Target


class Pauses:
    """`listeners` are called when something was paused or resumed."""

    def __init__(self) -> None:
        self._paused: frozenset[tuple[str, str]] = frozenset()
        self.listeners: list[Callable[[], None]] = []

    def follow(self, paused: frozenset[tuple[str, str]]) -> None:
        """Operators have paused these: kinds (with an empty key) and objects."""
        if paused != self._paused:
            self._paused = paused
            for listener in self.listeners:
                listener()

    def paused(self, target: Target) -> bool:
        """Whether deliveries and alarms to an object wait."""
        return bool(self._paused) and (target in self._paused or (target[0], "") in self._paused)
