"""The small worlds that are searched, and the rules broken on purpose that each of them has to
find."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from holdfast_node import replication as r

from tests.sim import bugs

from .search import Found, search, settled
from .world import Broken, Budget, Event, World


class Start(NamedTuple):
    """Replicas, what has happened to them since their first owner served, and what may
    happen yet."""

    names: str
    budget: Budget
    before: tuple[Event, ...] = ()

    def world(self, kind: type[r.Replica] = r.Replica) -> World:
        world = settled(World(self.names, self.budget, kind))
        for event in self.before:
            world = world.step(event)
        return world


_NONE = Budget(*[0] * len(Budget._fields))


def _may(names: str = "abc", before: tuple[Event, ...] = (), **what: int) -> Start:
    return Start(names, _NONE._replace(**what), before)


STARTS = {
    "two copies": _may("ab", writes=1, owners=1, crashes=1, advances=1),
    "two copies, a change of owner": _may("ab", owners=1, advances=1),
    "two copies, a late message": _may("ab", writes=2, owners=1, late=1, advances=1),
    "two copies, a proposal with a lost answer": _may("ab", writes=1, owners=1, lost=1, advances=2),
    "two copies, a stalled disk": _may("ab", writes=1, stalls=2, crashes=1, advances=1),
    "two copies, a disk put back": _may(
        "ab", writes=1, owners=1, crashes=1, rollbacks=1, advances=1
    ),
    "a change of owner": _may(writes=2, owners=1, late=1, advances=1),
    "an owner that does not hear that it was replaced": _may(
        before=(("elect", "b"), ("view", "b")), owners=1, advances=2
    ),
    "a crash": _may(writes=1, owners=1, crashes=1, stalls=1, advances=1),
    "a restarted copy that is elected": _may(
        before=(("crash", "c"), ("start", "c"), ("elect", "c"), ("view", "c")),
        owners=1,
        crashes=1,
        advances=2,
    ),
    "a proposal with a lost answer": _may(writes=1, owners=1, lost=1, breaks=1, advances=2),
    "a slow copy": _may(writes=1, owners=1, lost=1, slow=1, advances=1),
    "a release": _may(writes=1, releases=1, lost=1, late=1, advances=1),
    "a release with a lost answer": _may(
        before=(("release", "a", "b"), ("etcd", 0, True, False), ("view", "b")),
        releases=1,
        lost=1,
        advances=2,
    ),
    "a release by an owner that waits": _may(
        before=(("elect", "b"), ("view", "b")), owners=1, releases=1, advances=2
    ),
    "a disk put back": _may(writes=2, owners=1, crashes=1, rollbacks=1, advances=1),
    "everything": _may(writes=2, owners=1, crashes=1, lost=1, late=1, advances=2),
}


def look(
    start: Start,
    worlds_max: int,
    kind: type[r.Replica] = r.Replica,
    seed: int | None = None,
    seconds: float = 1e9,
) -> Found:
    """Search from a start; with a seed, depth first in an order that it draws."""
    try:
        first = start.world(kind)
    except (Broken, AssertionError) as broken:
        return Found(worlds=1, broken=Broken(str(broken)))
    return search(first, worlds_max, seconds, None if seed is None else random.Random(seed))


BUGS: dict[str, Any] = {
    name: broken["replica"] for name, broken in bugs.BUGS.items() if "replica" in broken
}
"""Those of the first simulator that are bugs of the core."""
