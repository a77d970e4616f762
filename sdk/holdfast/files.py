"""Files that a process follows while it runs: certificates, access rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def fingerprint(files: Iterable[Path | None]) -> tuple[object, ...]:
    """Return a value that changes when one of the files is written, replaced, created or
    removed.
    """
    states: list[object] = []
    for file in files:
        try:
            stat = None if file is None else file.stat()
        except OSError:
            stat = None
        states.append(stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(states)
