"""Tries all orders of events in small worlds around the core of replication.

    python -m tests.model [--worlds 1000000] [--start NAME] [--bug NAME] [--seed N]

Without `--start` all starts share the worlds. It prints how far it came, and the events that led to
what is broken.
"""

from __future__ import annotations

import argparse
import sys
from multiprocessing import Pool

from holdfast_node import replication as r

from .search import Found
from .starts import BUGS, STARTS, look


def _look(job: tuple[str, int, str | None, int | None]) -> tuple[str, Found]:
    name, worlds, bug, seed = job
    return name, look(STARTS[name], worlds, BUGS[bug] if bug else r.Replica, seed)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--worlds", type=int, default=1_000_000)
    parser.add_argument("--start", choices=STARTS)
    parser.add_argument("--bug", choices=BUGS)
    parser.add_argument(
        "--seed", type=int, help="depth first, in an order that is drawn; without it breadth first"
    )
    given = parser.parse_args()
    names = [given.start] if given.start else list(STARTS)
    jobs = [(name, given.worlds // len(names) + 1, given.bug, given.seed) for name in names]
    total = 0
    status = 0
    with Pool(min(2, len(jobs))) as pool:
        for name, found in pool.imap_unordered(_look, jobs):
            total += found.worlds
            far = "all there are" if found.whole else f"up to {found.depth} events deep"
            print(f"{name}: {found.worlds:,} worlds in {found.steps:,} steps, {far}", flush=True)
            if found.broken is not None:
                status = 1
                print(f"  {found.broken}\n  after {found.story}", flush=True)
    print(f"{total:,} worlds")
    return status


if __name__ == "__main__":
    sys.exit(main())
