"""The logs of the processes of `holdfast dev`, as people read them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import click
import msgspec

from holdfast.local import LocalCluster

_COLORS = {"warning": "yellow", "error": "red", "critical": "red"}
_OWN = ("holdfast", "etcd")


class Terminal:
    """Shows the logs of a cluster's processes, as they come."""

    def __init__(
        self, cluster: LocalCluster, verbose: bool, echo: Callable[[str], None] = click.echo
    ) -> None:
        self._cluster = cluster
        self._verbose = verbose
        self._echo = echo
        self._began = time.monotonic()
        self._read: dict[str, int] = {}
        self._rest: dict[str, bytes] = {}
        self.starting = True
        """While a cluster starts, its processes wait for each other, so their warnings are not
        shown.
        """

    def say(self, text: str, timed: bool = False) -> None:
        """Print a text of this command's own. `timed`: add the seconds since the command began."""
        self._echo(f"{text} ({time.monotonic() - self._began:.1f} s)" if timed else text)

    def look(self) -> None:
        """Show all lines since the last look."""
        for name in list(self._cluster.processes):
            start = self._read.get(name, self._cluster.log_from(name))
            try:
                with self._cluster.log(name).open("rb") as log:
                    log.seek(start)
                    said = log.read()
            except OSError:
                continue
            self._read[name] = start + len(said)
            *lines, rest = (self._rest.get(name, b"") + said).split(b"\n")
            self._rest[name] = rest
            for line in lines:
                if (shown := self._shown(name, line.decode(errors="replace"))) is not None:
                    self._echo(shown)

    def _shown(self, name: str, line: str) -> str | None:
        """Return a line of a process's log as people read it. Return None if it must not be
        shown.
        """
        head = click.style(f"{name:<8}", fg="cyan")
        try:
            record = msgspec.json.decode(line)
            level, message = (
                str(record["level"]).lower(),
                str(record.get("message", record.get("msg", ""))),
            )
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            return None if name == "etcd" and not self._verbose else f"{head} | {line}"  # printed
        least = ("error", "critical") if self.starting else _COLORS
        logger = str(record.get("logger"))
        own = name == "etcd" or (logger.startswith(_OWN) and logger != "holdfast.objects")
        if (
            not self._verbose
            and own
            and level not in (("error", "fatal", "panic") if name == "etcd" else least)
        ):
            return None
        where = "/".join(str(record[field]) for field in ("kind", "key") if field in record)
        if where and "method" in record:
            where = f"{where}.{record['method']}"
        if where and not message.startswith(where):
            message = f"{where}: {message}"
        if "request_id" in record:
            message += click.style(f" (request {record['request_id']})", dim=True)
        if level in _COLORS:
            message = f"{click.style(level.upper(), fg=_COLORS[level])} {message}"
        trace = str(record.get("traceback", ""))
        return "\n".join(
            [
                f"{head} {_clock(record)} {message}",
                *(f"{head} | {one}" for one in trace.splitlines()),
            ]
        )


def _clock(record: dict[str, Any]) -> str:
    try:
        return (
            datetime.fromisoformat(str(record.get("time", record.get("ts"))))
            .astimezone()
            .strftime("%H:%M:%S")
        )
    except ValueError:
        return "--:--:--"
