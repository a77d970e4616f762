"""Logging: text for people, or one JSON object a line for machines. It is configured once, before
gRPC starts threads.
"""

from __future__ import annotations

import datetime
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

from holdfast import codec

_FIELDS = ("kind", "key", "method", "request_id", "epoch")


class JsonFormatter(logging.Formatter):
    """Writes one JSON object a line: time, level, process, logger, message, the fields of the
    running turn, the traceback.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": (
                datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(
                    timespec="milliseconds"
                )
            ),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        for name in _FIELDS:
            if (value := getattr(record, name, None)) is not None:
                line[name] = value
        if record.exc_info:
            line["traceback"] = _clean(self.formatException(record.exc_info))
        return codec.encode_json(line).decode()


LOGGED_PER_S = 10
"""How many refusals of each sort are logged in a second. All refusals are counted."""


class RateLimitedLog:
    """Limits the log lines that callers can cause: so many in each second."""

    def __init__(
        self, per_s: int = LOGGED_PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s = per_s
        self._clock = clock
        self._second = -1
        self._passed = 0

    def allow(self) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._passed = second, 0
        self._passed += 1
        return self._passed <= self._per_s


def _clean(text: str) -> str:
    """Return the text without lone surrogates, which JSON cannot carry."""
    return text.encode(errors="replace").decode()


class TextFormatter(logging.Formatter):
    """Writes a line for a terminal, with the fields of the turn behind the message."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)-7s {process} %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = [
            f"{name}={getattr(record, name)}"
            for name in _FIELDS
            if getattr(record, name, None) is not None
        ]
        text = super().formatMessage(record)
        return _one_line(f"{text} [{' '.join(fields)}]" if fields else text)

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def _one_line(text: str) -> str:
    """Return the text with control characters as escapes. So text from a caller cannot begin a new
    line of the log.
    """
    return (
        text
        if text.isprintable()
        else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    )


def _indented(text: str) -> str:
    """Return a traceback with each line indented. It may contain text from callers, so none of its
    lines may look like a line of the log.
    """
    return "\n".join(f"    {_one_line(line)}" for line in text.splitlines())


def configure(process: str, level: str, style: str) -> None:
    """Send all logging to standard error. `style`: `text`, `json`, or `auto` (text on a terminal,
    else JSON).
    """
    handler = logging.StreamHandler(sys.stderr)
    as_text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(TextFormatter(process) if as_text else JsonFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # If a caller goes away while it is refused, gRPC logs a traceback, and `RateLimitedLog` does
    # not limit that.
    logging.getLogger("grpc._cython.cygrpc").addFilter(
        lambda record: not str(record.msg).startswith("ExecuteBatchError")
    )
