"""A program that makes processes in one of many ways while it has clients. Run as `forking.py WAY
GATEWAY KEY`; test_forks.py reads what it prints: how many increments were acknowledged, by all
processes together, and every result."""

from __future__ import annotations

import asyncio
import ctypes
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import holdfast

WAY, GATEWAY, KEY = (
    sys.argv[1:4]
    if len(sys.argv) > 3
    else ("", *os.environ.get("FORKING", "127.0.0.1:1 -").split())
)
CHILDREN = 4
CALLS = 60
client = holdfast.connect_blocking(GATEWAY, timeout=30)


def increments(calls: int = CALLS) -> list[int]:
    counter = client.get("Counter", KEY)
    return [counter.increment() for _ in range(calls)]


def of_pool(_: int) -> list[int]:
    return increments(CALLS)


def in_children(
    children: int, work: Callable[[], Any], fork: Callable[[], int] = os.fork
) -> list[Any]:
    """Fork, and return what `work` returns in each child. A child that hangs is given up by its
    alarm."""
    pipes = []
    for _ in range(children):
        reads, writes = os.pipe()
        if fork() == 0:
            os.close(reads)
            threading.Timer(40, os._exit, (9,)).start()
            try:
                told: Any = work()
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"
            os.write(writes, json.dumps(told).encode())
            os._exit(0)
        os.close(writes)
        pipes.append(reads)
    answers = []
    for reads in pipes:
        with os.fdopen(reads, "rb") as stream:
            answers.append(json.loads(stream.read() or b'"died"'))
    for _ in range(children):
        os.wait()
    return answers


def with_grandchild() -> list[int]:
    own = increments(20)
    deeper: list[int]
    (deeper,) = in_children(1, lambda: increments(20))
    return own + deeper + increments(20)


def while_threads_call() -> list[Any]:
    """Fork again and again while other threads of the parent are in calls on the same client."""
    stop = threading.Event()
    results: list[Any] = []

    def call() -> None:
        mine = []
        while not stop.is_set():
            mine += increments(1)
        results.append(mine)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    for _ in range(5):
        results += in_children(CHILDREN, lambda: increments(20))
    stop.set()
    for thread in threads:
        thread.join()
    return results


async def with_open_asyncio_client() -> list[Any]:
    """The parent's own client goes on; errors tell what a child may do with it, with a new one and
    with a blocking one."""
    async with holdfast.connect(GATEWAY) as inherited:
        await inherited.get("Counter", KEY).increment()

        def use_it() -> list[str]:
            async def call() -> None:
                await inherited.get("Counter", KEY).increment()

            async def enter() -> None:
                async with inherited:
                    pass

            async def close() -> None:
                await inherited.close()

            async def open_another() -> None:
                async with holdfast.connect(GATEWAY) as another:
                    await another.get("Counter", KEY).increment()

            def run(made: Callable[[], Coroutine[Any, Any, None]]) -> str:
                return told(lambda: asyncio.run(made()))

            return [
                *(run(made) for made in (call, enter, close, open_another)),
                told(increments),
            ]

        answers = in_children(1, lambda: in_a_thread(use_it))
        await inherited.get("Counter", KEY).increment()
        return answers


def in_a_thread(work: Callable[[], Any]) -> Any:
    """A child that was forked by a coroutine has its parent's loop in this thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def told(work: Callable[[], Any]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def main() -> list[Any]:
    if WAY != "cold" and not WAY.startswith("asyncio"):
        increments(3)
    match WAY:
        case "cold":
            return [*in_children(CHILDREN, increments), increments()]
        case "warm":
            return [*in_children(CHILDREN, increments), increments()]
        case "untold":  # as uWSGI does, which does not tell Python
            return [*in_children(CHILDREN, increments, ctypes.PyDLL(None).fork), increments()]
        case "grandchildren":
            return in_children(CHILDREN, with_grandchild)
        case "threads":
            with ThreadPoolExecutor(8) as pool:
                return list(pool.map(of_pool, range(8)))
        case "threads and forks":
            return while_threads_call()
        case "fork" | "spawn" | "forkserver":
            os.environ["FORKING"] = f"{GATEWAY} {KEY}"
            with multiprocessing.get_context(WAY).Pool(CHILDREN) as processes:
                return [increments(), *processes.map(of_pool, range(CHILDREN), chunksize=1)]
        case "ProcessPoolExecutor":
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(CHILDREN, mp_context=context) as executor:
                return [increments(), *executor.map(of_pool, range(CHILDREN * 2))]
        case "asyncio":
            return asyncio.run(with_open_asyncio_client())
        case "asyncio before":

            async def once() -> int:
                async with holdfast.connect(GATEWAY) as one:
                    count: int = await one.get("Counter", KEY).increment()
                    return count

            asyncio.run(once())
            return in_children(CHILDREN, lambda: [asyncio.run(once())])
    raise ValueError(WAY)


if __name__ == "__main__":
    print(json.dumps(main()))
