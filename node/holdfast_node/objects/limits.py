"""The bounds of one node's engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_node.effects.outbox import OutboxLimits
from holdfast_node.effects.rows import StorageLimits


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one node's engine."""

    in_flight_max: int = 10_000
    """Calls taken and not answered."""
    mailbox_max: int = 1_000
    """Calls that wait for one object; and reads that run beside its turns."""
    turn_timeout_s: float = 30.0
    """How long a turn may run; also the deadline of a call that brings none."""
    queue_timeout_max_s: float = 600.0
    """The longest deadline of a caller that is honoured while its call waits."""
    result_bytes_max: int = 4 << 20
    activations_max: int = 200_000
    cache_bytes_max: int = 256 << 20
    """The hot caches of all activations together."""
    idle_s: float = 300.0
    """An activation that had no call for this long is evicted, unless its kind says otherwise
    (`KindOptions.idle`)."""
    storage: StorageLimits = field(default_factory=StorageLimits)
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
