"""What every process tells about itself."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import time
from collections.abc import Coroutine, Iterator
from importlib import metadata
from typing import Any, TypeVar

import click

from holdfast.v1 import admin_pb2

T = TypeVar("T")

FILES_WANTED = 65_536

_started = time.monotonic()


@functools.cache
def _process() -> Any:
    import psutil  # which only servers need

    return psutil.Process()


def process_stats() -> admin_pb2.ProcessStats:
    """This process: id, CPU seconds used, resident memory, uptime."""
    times = _process().cpu_times()
    return admin_pb2.ProcessStats(
        pid=os.getpid(),
        cpu_s=times.user + times.system,
        rss_bytes=_process().memory_info().rss,
        uptime_s=time.monotonic() - _started,
    )


def version() -> str:
    """The version of Holdfast that is installed."""
    return metadata.version("holdfast")


def raise_file_limit() -> None:
    """Have as many connections open as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def use_batch_scheduling() -> None:
    """Have this process, and the threads that it begins from now on, interrupt nobody who runs when
    something arrives for it.

    Where processes share cores, each would otherwise push the other off for every frame that it
    sends, and find its caches cold when it is back; so frames gather a little, and more is done in
    one go (docs/performance.md). With a core for each it changes nothing.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(_process().memory_info().rss)


def whys(error: BaseException) -> Iterator[BaseException]:
    """An exception, or what is in a group of them, however deep."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from whys(each)
    else:
        yield error


def told_as_refusal(
    error: BaseException, refusals: tuple[type[BaseException], ...]
) -> click.ClickException:
    """What a command raises for an exception, or a group of them, which all are its user's to mend.
    Raises any other again.

    Commands do not use `except*`: CPython 3.11 up to 3.11.3 wraps what is raised in it, and click
    does not know that.
    """
    all_whys = list(whys(error))
    if not all(isinstance(why, refusals) for why in all_whys):
        raise error
    return click.ClickException("; ".join(dict.fromkeys(str(why) for why in all_whys)))


def who_listens(port: int) -> str:
    """Who listens at a port, as " by process 4711 (holdfast gateway)", as far as that can be told;
    else nothing."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and _port_of(connection) == port
                and connection.pid
            ):
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" by process {connection.pid} ({command[:100] or 'of another user'})"
    except psutil.Error:
        pass
    return ""


def _port_of(connection: Any) -> int:
    return connection.laddr.port if connection.laddr else 0


class Stopped(Exception):
    """The process was told to stop before what it waited for had come."""


async def unless_stopped(stop: asyncio.Event, waiting: Coroutine[Any, Any, T]) -> T:
    """The result of `waiting`. Raises Stopped, and cancels it, when `stop` is set first."""
    task = asyncio.ensure_future(waiting)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Stopped
        return task.result()
    finally:
        task.cancel()
        stopping.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
