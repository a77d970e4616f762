"""Which nodes hold up commits that would go on without them: judged per node, over all shards that
this node owns. Pure.

A copy *holds up* an entry that as many copies as writes need have on disk, while it has not. Holds
shorter than `FLOOR_S` are the ordinary course of things. A node whose copies held up entries for
`PATIENCE_S` of the last `WINDOW_S` is *slow*: owners take its copies out of the in-sync sets, go on
sending to them, and take them back when the node has kept up for a while: `BACKOFF_S`, doubled each
time that it is slow again within `FORGET_S`. One node at a time is found slow: what the others held
up counts anew from then on.

Per shard, each shard would have to wait by itself until the node is found out. The node that judges
may be slow itself, or all may be because they share a machine that has too much to do. So of the
time between two looks no more than `STEP_S` counts, and while looks come late, holds have to be
longer by `PER_LATE` times as much: a stall of its own is blamed on nobody. When its own disk is
what the others wait for, it finds itself slow.
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
"""How long a slow node has to keep up before it is trusted again: at first, and at most."""
FORGET_S = 600.0
_LATE_HALF_S = 2.5


class Held(NamedTuple):
    """How far a copy is on disk, and how far it should be: `wanted` is what enough of the others
    have."""

    reached: int
    wanted: int


class _Mark(NamedTuple):
    """An entry that a copy holds up, and since when."""

    seq: int
    since: float


@dataclass(slots=True)
class _Node:
    """`held`: when it held entries up, as (begin, end), oldest first. `clean_since`: it has held up
    nothing since then."""

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
    """What one node knows of how slow the others are, and itself. `slow` has the names."""

    def __init__(self, now: float, backoff_s: tuple[float, float] = BACKOFF_S) -> None:
        """`now`, here and below, in seconds of any clock that does not go back."""
        self._backoff_s = backoff_s
        self.slow: frozenset[str] = frozenset()
        self._looked_at = now
        self._late_s = 0.0  # how late looks come; a late one is half forgotten after `_LATE_HALF_S`
        self._time = 0.0  # that this process has watched; everything below is counted in it
        self._marks: dict[tuple[str, int], _Mark] = {}
        self._nodes: dict[str, _Node] = {}

    def look(
        self, held: Mapping[tuple[str, int], Held], unwell: Collection[str], now: float
    ) -> bool:
        """See which copies hold entries up, by node and shard. True when `slow` has changed; call
        it every `LOOK_S`.

        `unwell`: slow nodes of which something else tells that they are still slow.
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
        """The node has joined again, perhaps as another process: it has to keep up for no longer
        than the first time."""
        if name in self.slow:
            node = self._nodes[name]
            node.clean_since, node.backoff_s = self._time, self._backoff_s[0]

    def backoff_s(self, name: str) -> float:
        """How long a slow node has to keep up until it is trusted."""
        return self._nodes[name].backoff_s

    def _mark(self, held: Mapping[tuple[str, int], Held]) -> dict[str, float]:
        """Note what is held up. Since when, by node, if for long enough."""
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
        """Trust a slow node again that has kept up for long enough."""
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
        """The one that has held up most, if it is too much."""
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
