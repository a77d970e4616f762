"""What the engine counts for each method: how many calls ended how, and how long each part took."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from holdfast.errors import code_name, is_refusal
from holdfast.metrics import LATENCY_BOUNDS, Histogram
from holdfast.v1 import objects_pb2 as pb

REJECTED = "REJECTED"
"""How metrics name what is APPLICATION on the wire, and no failure: the handler
raised `Rejected`."""


class MethodStats:
    """Seconds: `queue` from arrival to the turn's begin, of calls that had to wait; `turn` from
    there to its end; `total` from arrival to the reply.

    `failed`: how many of those ended with an error, by code, without those that the handler refused
    (`rejected`). `refused`: calls that came to no turn.
    """

    __slots__ = ("failed", "queue", "refused", "rejected", "total", "turn")

    def __init__(self) -> None:
        self.queue = Histogram()
        self.turn = Histogram()
        self.total = Histogram()
        self.failed: dict[int, int] = {}
        self.rejected = 0
        self.refused: dict[int, int] = {}

    def ended(
        self, arrived: float, began: float, ended: float, now: float, error: pb.Error | None
    ) -> None:
        """A call is answered. `ended`: when its turn did; 0 when there was none. `began` is
        `arrived` itself when it did not wait."""
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
        if error is None:
            return
        if error.code == pb.CODE_APPLICATION and is_refusal(error):
            self.rejected += 1
        else:
            self.failed[error.code] = self.failed.get(error.code, 0) + 1

    def codes(self) -> Counter[str]:
        """Calls by the name of their code; OK for success, REJECTED for an APPLICATION that is a
        `Rejected`."""
        codes = Counter({code_name(code): count for code, count in self.failed.items()})
        if self.rejected:
            codes[REJECTED] = self.rejected
        codes["OK"] = self.total.count - codes.total()
        codes.update({code_name(code): count for code, count in self.refused.items()})
        return codes


class KindStats(dict[str, MethodStats]):
    """By method: those of the class, `on_alarm`, and Holdfast's own; nothing that a caller makes
    up."""

    def __missing__(self, method: str) -> MethodStats:
        stats = self[method] = MethodStats()
        return stats
