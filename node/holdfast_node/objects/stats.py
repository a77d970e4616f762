"""The engine's counters for each method: the calls by their outcome, and the time of each part."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

from holdfast.errors import code_name, is_refusal
from holdfast.metrics import LATENCY_BOUNDS, Histogram
from holdfast.v1 import objects_pb2 as pb

REJECTED = "REJECTED"
"""The code in metrics for calls whose handler raised `Rejected`. On the wire it is APPLICATION, but
it is no failure."""


class MethodStats:
    """The counters of one method. Times are in seconds. `queue`: from arrival to the turn's begin,
    for calls that had to wait. `turn`: from the turn's begin to its end. `total`: from arrival to
    the reply.

    `failed`: the calls that ended with an error, by code, without `rejected`. `rejected`: the calls
    that the handler rejected. `refused`: the calls that came to no turn, by code.
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
        """Count an answered call. `ended`: when its turn ended; 0 if it had no turn. `began` is the
        very object `arrived` if the call did not wait."""
        # This is `Histogram.observe`, written out for speed: every call passes here.
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
        """Return the number of calls by the name of their code: OK for success, REJECTED for a
        `Rejected`."""
        codes = Counter({code_name(code): count for code, count in self.failed.items()})
        if self.rejected:
            codes[REJECTED] = self.rejected
        codes["OK"] = self.total.count - codes.total()
        codes.update({code_name(code): count for code, count in self.refused.items()})
        return codes


class KindStats(dict[str, MethodStats]):
    """The counters by method: methods of the class, `on_alarm`, and Holdfast's own. Names that a
    caller invents are not counted."""

    def __missing__(self, method: str) -> MethodStats:
        stats = self[method] = MethodStats()
        return stats
