"""The judging of nodes that hold up commits: per node, over all shards that this node owns. Pure.

A copy *holds up* an entry if the copy lacks it on disk, while as many copies as writes need have
it. Holds shorter than `FLOOR_S` are normal. A node whose copies held up entries for `PATIENCE_S` of
the last `WINDOW_S` is *slow*. Owners take its copies out of the in-sync sets, and go on sending to
them. They take them back when the node has kept up for `BACKOFF_S`. This time doubles each time
that the node is slow again within `FORGET_S`. The judge finds one node slow at a time. From then on
the holds of the other nodes count anew.

Nodes are judged over all shards, so that not every shard has to find a slow node by itself.

The judging node may be slow itself. All nodes may be slow because they share an overloaded machine.
So at most `STEP_S` of the time between two looks counts. While looks come late, holds have to be
longer by `PER_LATE` times the lateness. Thus the judge blames no other node for its own stall. If
the others wait for the judge's own disk, it finds itself slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PATIENCE_S = 0.5
WINDOW_S = 5.0
FLOOR_S = 0.1
LOOK_S = 0.05
STEP_S = 0.1
PER_LATE = 3.0
BACKOFF_S = 5.0, 60.0
"""How long a slow node has to keep up before owners trust it again: at first, and at most."""
FORGET_S = 600.0
_LATE_HALF_S = 2.5


class Held(NamedTuple):
    """The seq that a copy has on disk, and the seq that it should have.

    `wanted` is the seq that enough other copies have.
    """

    reached: int
    wanted: int


class _Mark(NamedTuple):
    """An entry that a copy holds up, and the start of the hold."""

    seq: int
    since: float


@dataclass(slots=True)
class _Node:
    """The record of one node.

    `held`: the times when it held entries up, as (begin, end), oldest first. `clean_since`: the
    node has held up nothing since then.
    """

    held: deque[tuple[float, float]] = field(default_factory=deque)
    counted_until: float = float("-inf")
    clean_since: float = float("-inf")
    backoff_s: float = 0.0
    trusted_at: float = float("-inf")

    def held_s(self, now: float) -> float:
        while self.held and self.held[0][1] <= now - WINDOW_S:
            self.held.popleft()
        return sum(end - max(begin, now - WINDOW_S) for begin, end in self.held)


class Slowness:
    """One node's judgement of the other nodes and itself. `slow` has the names of slow nodes."""

    def __init__(self, now: float, backoff_s: tuple[float, float] = BACKOFF_S) -> None:
        """Begin to judge. `now`, here and below, is in seconds of any clock that never goes
        back."""
        self._backoff_s = backoff_s
        self.slow: frozenset[str] = frozenset()
        self._looked_at = now
        self._late_s = 0.0  # how late looks come; it halves every `_LATE_HALF_S`
        self._time = 0.0  # the watched time; all times below are counted in it
        self._marks: dict[tuple[str, int], _Mark] = {}
        self._nodes: dict[str, _Node] = {}

    def look(
        self, held: Mapping[tuple[str, int], Held], unwell: Collection[str], now: float
    ) -> bool:
        """Take the copies that hold entries up, by node and shard. Return whether `slow` changed.

        Call it every `LOOK_S`. `unwell`: slow nodes that another measurement still finds slow.
        """
        passed = now - self._looked_at
        self._time += min(passed, STEP_S)
        self._looked_at = now
        self._late_s = max(passed - LOOK_S, self._late_s * 0.5 ** (passed / _LATE_HALF_S))
        if not held and not self._marks and not self.slow:
            return False
        oldest = self._mark(held)
        for name, since in oldest.items():
            self._count(name, since)
        before = self.slow
        for name in before:
            self._weigh(name, name in unwell)
        self._find_slow(oldest)
        return self.slow != before

    def renewed(self, name: str) -> None:
        """Take note that a node has joined again, perhaps as another process.

        It has to keep up only for the shortest time.
        """
        if name in self.slow:
            node = self._nodes[name]
            node.clean_since, node.backoff_s = self._time, self._backoff_s[0]

    def backoff_s(self, name: str) -> float:
        """Return how long a slow node has to keep up until owners trust it."""
        return self._nodes[name].backoff_s

    def _mark(self, held: Mapping[tuple[str, int], Held]) -> dict[str, float]:
        """Record the holds. Return by node the start of its oldest hold that is long enough."""
        floor = FLOOR_S + PER_LATE * self._late_s
        marks: dict[tuple[str, int], _Mark] = {}
        oldest: dict[str, float] = {}
        for place, (reached, wanted) in held.items():
            mark = self._marks.get(place)
            if mark is None or reached >= mark.seq:
                mark = _Mark(wanted, self._time)
            marks[place] = mark
            if self._time - mark.since >= floor:
                name = place[0]
                oldest[name] = min(mark.since, oldest.get(name, mark.since))
        self._marks = marks
        return oldest

    def _count(self, name: str, since: float) -> None:
        node = self._nodes.setdefault(name, _Node())
        begin = max(since, node.counted_until)
        if begin < self._time:
            node.held.append((begin, self._time))
        node.counted_until = node.clean_since = self._time

    def _weigh(self, name: str, unwell: bool) -> None:
        """Trust a slow node again if it has kept up for long enough."""
        node = self._nodes[name]
        if unwell:
            node.clean_since = self._time
        elif self._time - node.clean_since >= node.backoff_s:
            self._trust(name)

    def _trust(self, name: str) -> None:
        self.slow -= {name}
        node = self._nodes[name]
        node.held.clear()
        node.trusted_at = self._time

    def _find_slow(self, holding: Collection[str]) -> None:
        """Find the node with the longest holds slow, if they are too long."""
        blamed = {
            name: self._nodes[name].held_s(self._time) for name in holding if name not in self.slow
        }
        name = max(blamed, key=lambda each: (blamed[each], each), default="")
        if not name or blamed[name] < PATIENCE_S:
            return
        node = self._nodes[name]
        shortest, longest = self._backoff_s
        again = self._time - node.trusted_at < FORGET_S
        node.backoff_s = min(node.backoff_s * 2, longest) if again else shortest
        self.slow |= {name}
        for other, each in self._nodes.items():
            if other != name:
                each.held.clear()
                each.counted_until = self._time
