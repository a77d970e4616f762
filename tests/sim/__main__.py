"""Replay one seed: `python -m tests.sim SEED` prints the story of a world of replicas, `... effects SEED` runs one of effects."""

from __future__ import annotations

import sys

from . import effects
from .checks import Broken
from .test_replication import live

try:
    if sys.argv[1] == "effects":
        once = effects.live(int(sys.argv[2]))
        print(f"{once.hops} hops, {once.transfers} transfers, {once.alarms} alarms: each once")
    else:
        world = live(int(sys.argv[1]))
        print("\n".join(world.story))
        print(f"{world.checks.replies} replies, {len(world.checks.history)} entries committed")
except (Broken, effects.Broken) as broken:
    print(broken)
    raise SystemExit(1) from None
