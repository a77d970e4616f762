"""Files that are followed while a process runs: certificates, access rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def state_of(files: Iterable[Path | None]) -> tuple[object, ...]:
    """Something that is another thing when one of the files was written or replaced, has come or
    gone."""
    states: list[object] = []
    for file in files:
        try:
            stat = None if file is None else file.stat()
        except OSError:
            stat = None
        states.append(stat and (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    return tuple(states)
