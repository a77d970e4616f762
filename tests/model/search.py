"""Searches all worlds that can follow a world, those first that are nearest, or in the order of
chance."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

from .world import Broken, Event, World


@dataclass
class Found:
    """How far a search came. `whole`: there is no world that it has not seen. `depth`: all worlds
    up to so many events were seen."""

    worlds: int = 0
    steps: int = 0
    depth: int = 0
    whole: bool = False
    broken: Broken | None = None
    story: list[Event] = field(default_factory=list)


def settled(world: World, events: int = 200) -> World:
    """The world after what has to happen has happened: views, proposals, messages, until nothing is
    under way."""
    for _ in range(events):
        due = next(
            (
                event
                for event in world.events()
                if event[0] in ("view", "deliver") or event == ("etcd", 0, True, True)
            ),
            None,
        )
        if due is None:
            break
        world = world.step(due)
    return world


def search(
    start: World,
    worlds_max: int,
    seconds: float = float("inf"),
    chance: random.Random | None = None,
) -> Found:
    """Try every order of events from `start` on, breadth first; with `chance`, depth first in its
    order."""
    found = Found()
    seen = {start.key()}
    waiting: deque[tuple[World, int, tuple[Event, ...]]] = deque([(start, 0, ())])
    until = monotonic() + seconds
    while waiting:
        world, depth, story = waiting.pop() if chance is not None else waiting.popleft()
        found.depth = max(found.depth, depth)
        events = list(world.events())
        if chance is not None:
            chance.shuffle(events)
        for event in events:
            found.steps += 1
            try:
                after = world.step(event)
            except (Broken, AssertionError) as broken:
                found.broken = (
                    broken if isinstance(broken, Broken) else Broken(f"an assertion: {broken}")
                )
                found.story = [*story, event]
                found.worlds = len(seen)
                return found
            key = after.key()
            if key not in seen:
                seen.add(key)
                waiting.append((after, depth + 1, (*story, event)))
        if len(seen) >= worlds_max or monotonic() > until:
            found.worlds = len(seen)
            return found
    found.worlds, found.whole = len(seen), True
    return found
