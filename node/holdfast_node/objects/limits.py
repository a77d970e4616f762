"""The bounds of one node's engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_node.effects.outbox import OutboxLimits
from holdfast_node.effects.rows import StorageLimits


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one node's engine."""

    in_flight_max: int = 10_000
    """Calls that were taken and not answered yet."""
    mailbox_max: int = 1_000
    """Calls that wait for one object. Also the reads of one object that run at once."""
    turn_timeout_s: float = 30.0
    """How long a turn may run. Also the deadline of a call that has none of its own."""
    queue_timeout_max_s: float = 600.0
    """The longest deadline of a call while it waits: a longer one of the caller is cut to this."""
    result_bytes_max: int = 4 << 20
    activations_max: int = 200_000
    cache_bytes_max: int = 256 << 20
    """The bytes of all activations' hot caches together."""
    idle_s: float = 300.0
    """An activation that had no call for so long is evicted, unless its kind has its own time
    (`KindOptions.idle`)."""
    storage: StorageLimits = field(default_factory=StorageLimits)
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
