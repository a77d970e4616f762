"""Write coalescing: updates that are in flight together reach the disk together.

Every update is durable before its reply. An fsync carries all the turns that ended since the fsync
before. No turn waits for a timer: while one fsync runs, the next batch gathers.
"""

# pyright: basic
# gRPC's generated stubs, which this file uses to count fsyncs, have no types.

from __future__ import annotations

import asyncio

import holdfast
from holdfast.channels import open_channel
from holdfast.v1 import admin_pb2, admin_pb2_grpc

from examples.property.app import Change, ChangeType, Property


async def coalesce(gateway: str, properties: int, each: int) -> tuple[int, int]:
    """Update many properties many times at once. Return the number of updates, and how many fsyncs
    of all nodes they took.
    """
    before = await fsyncs(gateway)
    async with holdfast.connect(gateway) as client:
        await asyncio.gather(
            *(
                client.get(Property, f"coalesced-{i}").update(
                    Change(ChangeType.PRICE_UPDATE, price)
                )
                for price in range(1, each + 1)
                for i in range(properties)
            )
        )
    return properties * each, await fsyncs(gateway) - before


async def fsyncs(gateway: str) -> int:
    """Return the fsyncs of all nodes since they started."""
    async with open_channel(gateway) as channel:
        status: admin_pb2.StatusResponse = await admin_pb2_grpc.AdminStub(channel).Status(
            admin_pb2.StatusRequest()
        )
    return sum(node.stats.fsyncs for node in status.nodes)
