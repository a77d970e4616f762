"""The promises of replicas to serve under no higher epoch. Pure.

`Acknowledge`, `Mismatch`, `Report` and `Conflict` all promise. The replica counts `promise_s` from
when its answer leaves. The owner counts `promise_owner_s`, which is less, from when it *sent* the
answered message. So the owner stops serving before a new owner may begin.

Source: leases of the primary at its secondaries, Lin et al., PacificA, MSR-TR-2008-25.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

from holdfast_node.replication.core.events import ReplicationSettings


@dataclass(slots=True)
class Promises:
    """The promise that a replica has given, and those that an owner has received."""

    given_until: float = float("-inf")
    """The end of this node's own promise. A new owner serves no earlier, unless the owner before
    it released the shard."""
    _received: dict[str, float] = field(default_factory=dict)

    def give(self, now: float, settings: ReplicationSettings) -> None:
        """Record that this node promises now: an answer leaves."""
        self.given_until = max(self.given_until, now + settings.promise_s)

    def receive(self, name: str, sent_at: float, settings: ReplicationSettings) -> None:
        """Record the promise of a replica, which has answered a message sent at `sent_at`."""
        until = sent_at + settings.promise_owner_s
        if until > self._received.get(name, 0.0):
            self._received[name] = until

    def until(self, name: str) -> float:
        """Return the end of this replica's promise; 0 if it has not promised."""
        return self._received.get(name, 0.0)

    def all_until(self, names: Collection[str]) -> float:
        """Return when the first of these replicas' promises ends.

        Return 0 if one of them has not promised, and infinity if there are none.
        """
        until = inf
        received = self._received
        for name in names:
            promised = received.get(name, 0.0)
            if promised < until:
                until = promised
        return until

    def forget(self, name: str) -> None:
        """Forget the promise of this replica: it may have dropped its copy since."""
        self._received.pop(name, None)

    def forget_all(self) -> None:
        """Forget all promises that this node has received."""
        self._received = {}
