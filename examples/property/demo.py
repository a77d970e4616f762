"""Starts the property example on a local cluster, calls it, and prints the results: `python -m
examples.property.demo`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import holdfast

from examples.property.app import Change, ChangeType, Portfolio, Property, PropertySession, Viewing
from examples.property.coalescing import coalesce

APP = Path(__file__).parent / "app.py"


async def show(gateway: str) -> None:
    async with holdfast.connect(gateway) as client:
        print("\nTwo properties get prices; their portfolio follows:")
        for key, price in (("p-1", 450_000), ("p-2", 320_000), ("p-1", 430_000)):
            now = await client.get(Property, key).update(
                Change(ChangeType.PRICE_UPDATE, price), portfolio="north"
            )
            print(f"  Property/{key} revision {now.revision}: {now.price:,} euros")
        metrics = await client.get(Portfolio, "north").metrics()
        while metrics.value != 750_000:  # notifications arrive a moment later
            await asyncio.sleep(0.01)
            metrics = await client.get(Portfolio, "north").metrics()
        print(f"  Portfolio/north: {metrics.properties} properties, {metrics.value:,} euros")
        print("\nA bad change is rejected and changes nothing:")
        try:
            await client.get(Property, "p-1").update(Change(ChangeType.STATUS_CHANGE, "haunted"))
        except holdfast.Rejected as error:
            print(f"  Rejected: {error}")
        for revision in await client.get(Property, "p-1").history():
            print(
                f"  Property/p-1 history {revision.number}: {revision.change.type.value}"
                f" {revision.change.value}"
            )
        print("\nA feed with a broken third line fails half-way, and changes nothing:")
        feed: list[dict[str, Any]] = [
            {"type": "PRICE_UPDATE", "value": 1},
            {"type": "PRICE_UPDATE", "value": 2},
            {"typ": "PRICE_UPDATE"},
        ]
        try:
            await client.get(Property, "p-1").import_feed(feed)
        except holdfast.ApplicationError as error:
            print(f"  {error} (the node's log has it too)")
        print(
            f"  Property/p-1 costs {(await client.get(Property, 'p-1').snapshot()).price:,} euros"
            " as before"
        )
        print("\nMany updates at once share few fsyncs:")
        updates, fsyncs = await coalesce(gateway, properties=100, each=20)
        print(f"  {updates:,} durable updates, {fsyncs:,} fsyncs")
        print("\nA viewing reminds its visitor by an alarm:")
        viewing = client.get(Viewing, "v-1")
        await viewing.arrange("p-1", "s-1", datetime.now(UTC) + timedelta(hours=1), remind_s=3599.8)
        while not (reminders := await client.get(PropertySession, "s-1").reminders()):
            await asyncio.sleep(0.05)
        print(f"  PropertySession/s-1 is reminded of {reminders[-1]['property']}")
        print("\nA session remembers what was viewed:")
        session = client.get(PropertySession, "s-1")
        try:
            await session.create("ada")
        except holdfast.Rejected:
            pass  # the cluster has the session from an earlier run
        print(f"  PropertySession/s-1: {await session.update('p-1')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stay", action="store_true", help="keep the cluster until Ctrl-C")
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        help="the gateway's port (default: 7400 with --stay, else a free one)",
    )
    arguments = parser.parse_args()
    port = arguments.port or (7400 if arguments.stay else _free_port())
    command = [
        sys.executable,
        "-m",
        "holdfast",
        "dev",
        str(APP),
        "--nodes",
        "3",
        "--port",
        str(port),
    ]
    for number in (signal.SIGTERM, signal.SIGHUP):
        # these signals end the cluster too, as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    print("Starting etcd, three nodes and a gateway ...", flush=True)
    cluster = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert cluster.stdout is not None
        ready = cluster.stdout.readline().strip()
        if not ready:
            return cluster.wait() or 1
        print(ready)
        gateway = f"127.0.0.1:{port}"
        asyncio.run(show(gateway))
        print("\nWhere the objects live:")
        for kind, key in (
            ("Property", "p-1"),
            ("Property", "p-2"),
            ("Portfolio", "north"),
            ("PropertySession", "s-1"),
        ):
            subprocess.run(
                [sys.executable, "-m", "holdfast", "where", kind, key, "--gateway", gateway],
                check=True,
            )
        if arguments.stay:
            print(f"\nThe cluster stays up at {gateway}; Ctrl-C ends it.", flush=True)
            cluster.wait()
    except KeyboardInterrupt:
        print("\nending ...")
    finally:
        if cluster.poll() is None:
            cluster.send_signal(signal.SIGTERM)
        code = cluster.wait(30)
    return code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
