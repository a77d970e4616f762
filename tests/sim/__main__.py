"""Replay a seed, or look for one that fails.

python -m tests.sim SEED                       tells the story of a world of replicas (world.py)
python -m tests.sim effects SEED               runs a world of effects (effects.py)
python -m tests.sim cluster SEED               tells the story of a world of whole nodes (cluster_world/)
python -m tests.sim cluster 0-500              runs many, and shows which fail and how
       ... --faults "disk put back,log tail"   adds these faults, and has them come often; `all` adds all that come later
       ... --bug "flush_wal(False)"            with one of cluster_world/bugs.py planted
       ... --logs                              shows what production logs, with the world's time
"""

from __future__ import annotations

import argparse
import logging
import sys

from . import effects
from .checks import Broken
from .cluster_world import checks as cluster_checks
from .cluster_world import world as cluster
from .cluster_world.bugs import BUGS, UNIT_TEST_OF
from .cluster_world.faults import DEFAULT, LATER, often
from .test_replication import live
from .verdicts import Broken as BrokenByEffects

_BUGS = BUGS | {name: bug for name, (bug, _) in UNIT_TEST_OF.items()}


def _cluster(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("seeds", help="a seed, or FIRST-END")
    parser.add_argument("--faults", default="", help=f"any of: {', '.join(LATER)}; or `all`")
    parser.add_argument("--bug", choices=sorted(_BUGS))
    parser.add_argument("--logs", action="store_true")
    given = parser.parse_args(arguments)
    bug = _BUGS[given.bug] if given.bug else None
    faults = bug.faults if bug is not None else DEFAULT
    if given.faults:
        faults = often(LATER if given.faults == "all" else given.faults.split(","))
    if given.logs:
        cluster.show_logs()
    else:
        logging.disable(logging.WARNING)
    first, _, end = given.seeds.partition("-")
    failed = 0
    for seed in range(int(first), int(end) if end else int(first) + 1):
        try:
            world = cluster.live(seed, faults, bug.replaced if bug is not None else ())
        except cluster_checks.Broken as broken:
            failed += 1
            print(str(broken).splitlines()[0] if end else broken)
        else:
            if not end:
                print("\n".join(world.story))
                print(f"{world.history.answers} answers in {world.loop.now:.1f} s")
    if end:
        print(f"{failed} of {int(end) - int(first)} worlds failed")
    return 1 if failed else 0


try:
    if sys.argv[1] == "cluster":
        raise SystemExit(_cluster(sys.argv[2:]))
    if sys.argv[1] == "effects":
        once = effects.live(int(sys.argv[2]))
        print(f"{once.hops} hops, {once.transfers} transfers, {once.alarms} alarms: each once")
    else:
        world = live(int(sys.argv[1]))
        print("\n".join(world.story))
        print(f"{world.checks.replies} replies, {len(world.checks.history)} entries committed")
except (Broken, BrokenByEffects) as broken:
    print(broken)
    raise SystemExit(1) from None
