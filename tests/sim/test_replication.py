"""Seeds of simulated worlds: safety under fire, then healing and progress."""

from __future__ import annotations

from typing import Any

from .checks import Broken
from .world import World

UNDER_FIRE_S = 20.0
HEALED_S = 25.0


def live(seed: int, **broken: Any) -> World:
    """One world from beginning to end. Raises Broken with the seed and the end of the story."""
    world = World(seed, **broken)
    try:
        world.clients()
        world.trouble()
        world.run(UNDER_FIRE_S)
        world.heal()
        world.run(UNDER_FIRE_S + HEALED_S)
        world.checks.finally_()
    except Exception as error:
        story = "\n".join(world.story[-60:])
        raise Broken(f"seed {seed}: {error!r}\nreplay: python -m tests.sim {seed}\n{story}") from None
    return world
