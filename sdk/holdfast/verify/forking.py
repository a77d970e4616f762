"""A client of `holdfast verify` that forks. A process uses a client, forks, and its children go on
with the same client.

`python -m holdfast.verify.forking GATEWAY KEY PREFIX` appends to the journal KEY, before and after
it forks. Each child appends too. Each line of its output is an element and its outcome: `True`
(acknowledged), `False` (certainly failed) or `None` (unknown).
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
    """Append an element, and print the outcome."""
    ok: bool | None = True
    try:
        client.get(Journal, key).append(element)
    except HoldfastError as error:
        ok = False if error.definite else None
    os.write(1, f"{element} {ok}\n".encode())  # one write: the children share the pipe


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
