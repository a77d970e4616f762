"""Batching of a stream, and deadlines with one timer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from holdfast import frames
from holdfast.deadlines import Deadlines


async def written(messages: list[bytes], in_flight: int | None = None) -> list[list[bytes]]:
    """The frames in which messages that are pushed at once leave."""
    out: list[list[bytes]] = []
    frame: list[bytes] = []

    def pack(queue: list[bytes]) -> bytes:
        nonlocal frame
        frame = list(queue)
        return b""

    async def write(_: bytes) -> None:
        out.append(frame)
        await asyncio.sleep(0)

    writer = frames.FrameWriter(pack, len, None if in_flight is None else lambda: in_flight)
    task = asyncio.create_task(writer.run(write))
    await asyncio.sleep(0)
    for message in messages:
        writer.push(message, len(message))
    while sum(map(len, out)) < len(messages):
        await asyncio.sleep(0)
    await asyncio.wait_for(writer.drained(), 1)
    task.cancel()
    return out


async def test_all_that_waits_leaves_in_one_frame_in_order() -> None:
    messages = [bytes([i]) for i in range(40)]
    assert await written(messages) == [messages]


async def test_frames_are_cut_by_number_and_by_bytes() -> None:
    messages = [b"x"] * 300
    assert [len(frame) for frame in await written(messages)] == [128, 128, 44]
    large = [b"x" * 400_000] * 5
    assert [len(frame) for frame in await written(large)] == [2, 2, 1]
    assert [len(frame) for frame in await written([b"x" * (3 << 20)] * 2)] == [1, 1]


async def test_a_queue_that_is_all_there_is_leaves_in_halves() -> None:
    messages = [b"x"] * 64
    assert [len(frame) for frame in await written(messages, in_flight=64)] == [32, 32]
    assert [len(frame) for frame in await written(messages, in_flight=500)] == [64]
    assert [len(frame) for frame in await written([b"x"] * 20, in_flight=20)] == [20]


async def test_a_producer_waits_while_too_much_is_queued() -> None:
    blocked = asyncio.Event()

    async def write(_: bytes) -> None:
        await blocked.wait()

    writer: frames.FrameWriter[bytes] = frames.FrameWriter(lambda queue: b"", len)
    task = asyncio.create_task(writer.run(write))
    for _ in range(20):
        writer.push(b"x" * (1 << 20), 1 << 20)
    waiting = asyncio.create_task(writer.drained())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    blocked.set()
    await asyncio.wait_for(waiting, 1)
    task.cancel()


@dataclass
class Waiting:
    deadline: float


async def test_deadlines_fire_in_time_and_once() -> None:
    loop = asyncio.get_running_loop()
    pending: dict[int, Waiting] = {}
    fired: list[int] = []

    def expire(entry: Waiting) -> None:
        number = next(n for n, e in pending.items() if e is entry)
        del pending[number]
        fired.append(number)

    deadlines = Deadlines(pending, expire)
    for number, seconds in ((1, 0.10), (2, 0.02), (3, 60.0), (4, 0.05)):
        pending[number] = Waiting(loop.time() + seconds)
        deadlines.watch(pending[number].deadline)
    del pending[4]  # it ended in time
    await asyncio.sleep(0.25)
    assert fired == [2, 1]
    assert list(pending) == [3]
    deadlines.close()
