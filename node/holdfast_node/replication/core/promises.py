"""Who has promised to serve under no higher epoch, and until when. Pure.

An acknowledgement is a promise of `promise_s`. Its replica counts from the moment at which the
acknowledgement leaves; the owner counts from the moment at which it *sent* what was acknowledged,
and a little less (`promise_owner_s`). So an owner stops before a new one may begin.

Source: leases of the primary at its secondaries, Lin et al., PacificA, MSR-TR-2008-25.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from holdfast_node.replication.core.events import ReplicationSettings

_FOR_EVER = float("inf")


@dataclass(slots=True)
class Promises:
    """The promise that a replica has given, and those that an owner has received."""

    given_until: float = float("-inf")
    """When this node may serve under a higher epoch than the one it promised to."""
    _received: dict[str, float] = field(default_factory=dict)

    def give(self, now: float, settings: ReplicationSettings) -> None:
        """Promise: an acknowledgement leaves now."""
        self.given_until = max(self.given_until, now + settings.promise_s)

    def receive(self, name: str, sent_at: float, settings: ReplicationSettings) -> None:
        """Count the promise of a replica: it has acknowledged what this owner sent at `sent_at`."""
        until = sent_at + settings.promise_owner_s
        if until > self._received.get(name, 0.0):
            self._received[name] = until

    def until(self, name: str) -> float:
        """Return until when this replica has promised; 0 when it has not."""
        return self._received.get(name, 0.0)

    def all_until(self, names: Collection[str]) -> float:
        """Return until when all of these have promised; 0 when one has not."""
        until = _FOR_EVER
        received = self._received
        for name in names:
            promised = received.get(name, 0.0)
            if promised < until:
                until = promised
        return until

    def forget(self, name: str) -> None:
        """Count no more what this replica has promised: it may have dropped its copy since."""
        self._received.pop(name, None)

    def forget_all(self) -> None:
        """Count no more what was promised to this node as an owner."""
        self._received = {}
