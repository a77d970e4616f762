"""What the engine counts for each method: how many calls ended how, and how long each part took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from holdfast.metrics import LATENCY_BOUNDS, Histogram
from holdfast.v1 import objects_pb2 as pb


class MethodStats:
    """Seconds: `queue` from arrival to the turn's begin, of calls that had to wait; `turn` from there to its end; `total` from
    arrival to the reply.

    `failed`: how many of those ended with an error, by code; `refused`: calls that came to no turn.
    """

    __slots__ = ("failed", "queue", "refused", "total", "turn")

    def __init__(self) -> None:
        self.queue = Histogram()
        self.turn = Histogram()
        self.total = Histogram()
        self.failed: dict[int, int] = {}
        self.refused: dict[int, int] = {}

    def ended(self, arrived: float, began: float, ended: float, now: float, error: pb.Error | None) -> None:
        """A call is answered. `ended`: when its turn did; 0 when there was none. `began` is `arrived` itself when it did not wait."""
        # Every call passes here: `Histogram.observe`, written out.
        histogram = self.total
        seconds = now - arrived
        histogram.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        histogram.total += seconds
        if ended:
            histogram = self.turn
            seconds = ended - began
            histogram.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
            histogram.total += seconds
        if began is not arrived:
            self.queue.observe(began - arrived)
        if error is not None:
            self.failed[error.code] = self.failed.get(error.code, 0) + 1

    def codes(self) -> Counter[int]:
        """Calls by code; CODE_UNSPECIFIED stands for success."""
        codes = Counter(self.failed)
        codes[pb.CODE_UNSPECIFIED] = self.total.count - codes.total()
        codes.update(self.refused)
        return codes


class KindStats(dict[str, MethodStats]):
    """By method: those of the class, `on_alarm`, and Holdfast's own; nothing that a caller makes up."""

    def __missing__(self, method: str) -> MethodStats:
        stats = self[method] = MethodStats()
        return stats
