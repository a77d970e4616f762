"""Changes of the Python files of an app, for `holdfast dev`."""

from __future__ import annotations

import os
from pathlib import Path

FILES_MAX = 10_000


class Changes:
    """Changes of the Python files below a folder, without those in hidden folders, virtual
    environments and `data`.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self._folder = folder
        self._data = data.resolve()
        self._known = self._files()
        self._seen = self._known
        self.too_many = len(self._known) > FILES_MAX

    def settled(self) -> list[Path]:
        """Return the files that have changed since the last time. Return nothing while files are
        still changing.
        """
        now = self._files()
        before, self._seen = self._seen, now
        if now != before or now == self._known:
            return []
        changed = sorted({path for path, _ in set(now.items()) ^ set(self._known.items())})
        self._known = now
        return changed

    def _files(self) -> dict[Path, tuple[int, int]]:
        found: dict[Path, tuple[int, int]] = {}
        for folder, below, files in os.walk(self._folder):
            below[:] = [name for name in below if self._is_source(Path(folder, name), name)]
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    try:
                        about = path.stat()
                    except OSError:
                        continue
                    found[path] = about.st_mtime_ns, about.st_size
            if len(found) > FILES_MAX:
                break
        return found

    def _is_source(self, path: Path, name: str) -> bool:
        return (
            not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not (path / "pyvenv.cfg").exists()
            and path != self._data
        )
