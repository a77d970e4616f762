"""Replay one seed and print its story: `python -m tests.sim SEED`."""

from __future__ import annotations

import sys

from .checks import Broken
from .test_replication import live

try:
    world = live(int(sys.argv[1]))
except Broken as broken:
    print(broken)
    raise SystemExit(1) from None
print("\n".join(world.story))
print(f"{world.checks.replies} replies, {len(world.checks.history)} entries committed")
