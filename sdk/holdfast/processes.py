"""Facts about this process, and helpers that all processes use."""

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
    import psutil  # clients may lack this package

    return psutil.Process()


def process_stats() -> admin_pb2.ProcessStats:
    """Return this process's id, CPU seconds used, resident memory in bytes, and uptime in
    seconds.
    """
    times = _process().cpu_times()
    return admin_pb2.ProcessStats(
        pid=os.getpid(),
        cpu_s=times.user + times.system,
        rss_bytes=_process().memory_info().rss,
        uptime_s=time.monotonic() - _started,
    )


def version() -> str:
    """Return the version of Holdfast that is installed."""
    return metadata.version("holdfast")


def raise_file_limit() -> None:
    """Raise the limit of open files as far as the system allows, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def use_batch_scheduling() -> None:
    """Use batch scheduling for this process, and for the threads that it starts from now on. Then a
    process that wakes up does not interrupt another running process.

    If processes share cores, each would otherwise push another off its core for every frame that
    arrives, and that one would find its caches cold afterwards. With batch scheduling frames gather
    a little, and more is done at once (docs/performance.md). With a core for each process it
    changes nothing.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def rss_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(_process().memory_info().rss)


def whys(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, or all exceptions in a group, however deep."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from whys(each)
    else:
        yield error


def told_as_refusal(
    error: BaseException, refusals: tuple[type[BaseException], ...]
) -> click.ClickException:
    """Return the exception that a command raises for an error, or a group of errors, that its user
    can mend. Raise any other error again.

    Commands do not use `except*`: CPython 3.11.0 to 3.11.3 wraps an exception raised in it, and
    click does not know the wrapper.
    """
    all_whys = list(whys(error))
    if not all(isinstance(why, refusals) for why in all_whys):
        raise error
    return click.ClickException("; ".join(dict.fromkeys(str(why) for why in all_whys)))


def who_listens(port: int) -> str:
    """Return the process that listens at a port, as " by process 4711 (holdfast gateway)". Return
    an empty text if it cannot be found.
    """
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
    """The process was told to stop while it waited."""


async def unless_stopped(stop: asyncio.Event, waiting: Coroutine[Any, Any, T]) -> T:
    """Return the result of `waiting`. If `stop` is set first, cancel `waiting` and raise
    Stopped.
    """
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
