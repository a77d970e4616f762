"""A client of `holdfast verify` that forks: a process with a client that it has used, and children
that go on with it.

`python -m holdfast.verify.forking GATEWAY KEY PREFIX` appends to the journal KEY, before and after
its children. Each child appends too. Each line that it prints is an element, and whether it was
acknowledged (`True`), certainly failed (`False`), or nobody knows.
"""

from __future__ import annotations

import os
import sys

from holdfast.client.blocking import BlockingClient
from holdfast.errors import HoldfastError
from holdfast.verify.app import Journal

CHILDREN = 3
EACH = 4
TIMEOUT_S = 30.0


def append(client: BlockingClient, key: str, element: str) -> None:
    """Append an element, and tell what came of it."""
    ok: bool | None = True
    try:
        client.get(Journal, key).append(element)
    except HoldfastError as error:
        ok = False if error.definite else None
    os.write(1, f"{element} {ok}\n".encode())  # in one piece: the children write to the same pipe


def main(gateway: str, key: str, prefix: str) -> int:
    with BlockingClient(gateway, timeout=TIMEOUT_S) as client:
        append(client, key, f"{prefix}-before")
        children = []
        for child in range(CHILDREN):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    for i in range(EACH):
                        append(client, key, f"{prefix}-child{child}.{i}")
                    status = 0
                finally:
                    os._exit(status)
            children.append(pid)
        append(client, key, f"{prefix}-after")
        return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in children)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
