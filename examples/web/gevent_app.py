"""gevent: make gRPC use gevent's loop before anything uses gRPC. All greenlets share one blocking
client.

python -m examples.web.gevent_app
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import grpc.experimental.gevent as grpc_gevent  # noqa: E402

grpc_gevent.init_gevent()

import os  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
import holdfast  # noqa: E402

from examples.web.counter import Counter  # noqa: E402


def main() -> None:
    with holdfast.connect_blocking(os.environ["HOLDFAST_GATEWAY"]) as client:
        began = time.monotonic()
        greenlets = [
            gevent.spawn(client.get(Counter, f"gevent-{i}").slow_increment, 1.0) for i in range(20)
        ]
        gevent.joinall(greenlets, raise_error=True)
        print(
            f"20 calls of a second each in {time.monotonic() - began:.1f} s:"
            f" {sum(each.value for each in greenlets)}"
        )


if __name__ == "__main__":
    main()
