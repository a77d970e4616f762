"""The objects that get the most turns, in a table whose size does not grow with the number of
objects.

It is the space-saving sketch (Metwally, Agrawal and El Abbadi, Efficient Computation of Frequent
and Top-k Elements in Data Streams, ICDT 2005). A new object takes the place, and the count, of the
object with the lowest count. So no noted turn is missing in a count, and an object with more than
1/SIZE of all turns is always in the table. One turn of SAMPLE is noted. Counts halve every HALVE_S
seconds, so the table shows about the last minute.
"""

from __future__ import annotations

SIZE = 256
SAMPLE = 64
HALVE_S = 30.0

Ident = tuple[str, str]


class TopKeys:
    """The table of objects. `count` counts one turn of SAMPLE; `top` returns the objects with the
    most turns."""

    def __init__(self, now: float) -> None:
        self._counts: dict[Ident, float] = {}
        self._seconds = 0.0  # covered by the counts up to the last halving; halved with them
        self._halved_at = now

    def count(self, ident: Ident) -> None:
        counts = self._counts
        if ident in counts:
            counts[ident] += 1
        elif len(counts) < SIZE:
            counts[ident] = 1
        else:
            least = min(counts, key=counts.__getitem__)
            counts[ident] = counts.pop(least) + 1

    def tick(self, now: float) -> None:
        """Halve the counts, so that earlier turns count less and less."""
        while now - self._halved_at >= HALVE_S:
            self._halved_at += HALVE_S
            self._seconds = (self._seconds + HALVE_S) / 2
            self._counts = {ident: count / 2 for ident, count in self._counts.items() if count > 1}

    def top(self, limit: int, now: float) -> list[tuple[Ident, float]]:
        """Return the objects with the most turns, and about how many turns a second each had
        lately."""
        seconds = max(self._seconds + now - self._halved_at, 1.0)
        busiest = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
        return [(ident, count * SAMPLE / seconds) for ident, count in busiest]
