"""How fast a lost disk is made good, and what calls do meanwhile: python -m tests.bench.catch_up
[MB] [MOVE_RATE]."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvloop
from holdfast import App, DurableObject, connect
from holdfast.channels import open_channel
from holdfast.local import LocalCluster, free_port
from holdfast.v1 import admin_pb2

app = App()
VALUE = "x" * 16_000


@app.kind("Blob")
class Blob(DurableObject):
    """State to be moved."""

    async def fill(self, rows: int) -> int:
        for i in range(rows):
            self.storage.put(f"r{i:04d}", VALUE)
        return rows


@app.kind("Counter")
class Counter(DurableObject):
    """Calls beside it."""

    async def increment(self) -> int:
        n = self.storage.get("n", int, default=0) + 1
        self.storage.put("n", n)
        return n


async def measure(
    cluster: LocalCluster, gateway: str, megabytes: int, folder: Path, move_rate: str
) -> dict[str, Any]:
    objects = megabytes * 1_000_000 // (16_000 * 50)
    channel = open_channel(gateway)
    ask = channel.unary_unary(
        "/holdfast.v1.Admin/Status",
        request_serializer=admin_pb2.StatusRequest.SerializeToString,
        response_deserializer=admin_pb2.StatusResponse.FromString,
    )
    async with connect(gateway, timeout=60) as client:
        for start in range(0, objects, 8):
            await asyncio.gather(
                *(client.get(Blob, f"b{i}").fill(50) for i in range(start, min(start + 8, objects)))
            )
        calls = 0
        stopping = False

        async def call(i: int) -> None:
            nonlocal calls
            n = 0
            while not stopping:
                n += 1
                await client.get(Counter, f"c{i}-{n % 30}").increment()
                calls += 1

        tasks = [asyncio.create_task(call(i)) for i in range(16)]

        async def rate(seconds: float) -> float:
            before, began = calls, time.monotonic()
            await asyncio.sleep(seconds)
            return (calls - before) / (time.monotonic() - began)

        alone = await rate(5)
        cluster.processes.pop("n3").kill()
        shutil.rmtree(folder / "n3")
        await asyncio.sleep(8)
        two_copies = await rate(5)
        cluster.start_node("n3", __file__, "--replication", "3", "--move-rate", move_rate)

        async def sent() -> tuple[int, bool]:
            status = await ask(admin_pb2.StatusRequest())
            return sum(
                int(node.stats.snapshot_bytes_sent) for node in status.nodes
            ), not status.problems

        began = begin_bytes = None
        before = calls
        while True:
            total, healthy = await sent()
            if began is None and total:
                began, begin_bytes, before = time.monotonic(), total, calls
            if healthy and began is not None:
                break
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
        meanwhile = (calls - before) / seconds
        stopping = True
        await asyncio.gather(*tasks)
        await channel.close()
        return {
            "moved_mb": round(total / 1e6, 1),
            "seconds": round(seconds, 2),
            "mb_per_s": round((total - (begin_bytes or 0)) / 1e6 / seconds, 1),
            "calls_per_s": {
                "three copies": round(alone),
                "two copies": round(two_copies),
                "while copies are made": round(meanwhile),
            },
        }


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    rate = sys.argv[2] if len(sys.argv) > 2 else "100"
    folder = Path(tempfile.mkdtemp(prefix="holdfast-catch-up-"))
    cluster = LocalCluster(folder)
    gateway = f"127.0.0.1:{free_port()}"
    try:
        cluster.start_etcd()
        for i in range(1, 4):
            options = (
                "--members-min",
                "3",
                "--replication",
                "3",
                "--repair-after",
                "2",
                "--move-rate",
                rate,
            )
            cluster.start_node(f"n{i}", __file__, *options)
        cluster.start_gateway("gateway", int(gateway.rpartition(":")[2]))
        cluster.wait_ready(gateway)
        print(json.dumps(uvloop.run(measure(cluster, gateway, megabytes, folder, rate))))
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
