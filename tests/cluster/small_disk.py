"""A small file system of its own for a data directory, which a test fills and empties. Needs the
right to mount."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest


class SmallDisk:
    """A file system of `size` MiB at `where`: `tmpfs`, or `ext4` in a file beside it."""

    def __init__(self, where: Path, size: int, kind: str = "tmpfs") -> None:
        self.where = where
        self._filler = where / "filler"
        self._image = where.with_name(f"{where.name}.img")
        where.mkdir(parents=True, exist_ok=True)
        if kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "holdfast-test", str(where)]
        elif shutil.which("mkfs.ext4") is None:
            pytest.skip("no file system can be made here: mkfs.ext4 is not installed")
        else:
            with self._image.open("wb") as image:
                image.truncate(size << 20)
            # No room is kept for root: tests run as root, who would get it.
            subprocess.run(
                ["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(self._image)], check=True
            )
            command = ["mount", "-o", "loop", str(self._image), str(where)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            self._image.unlink(missing_ok=True)
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        for path in where.iterdir():  # lost+found
            path.rmdir()

    @property
    def free(self) -> int:
        """Bytes."""
        stat = os.statvfs(self.where)
        return stat.f_bavail * stat.f_frsize

    def fill(self, leave: int) -> None:
        """Have so many bytes free, by a file that takes the rest. Others may write meanwhile: then
        it is tried again."""
        for _ in range(50):
            size = self._filler.stat().st_size if self._filler.exists() else 0
            with self._filler.open("ab") as filler:
                try:
                    if (more := self.free - leave) > 0:
                        os.posix_fallocate(filler.fileno(), size, more)
                    else:
                        filler.truncate(max(0, size + more))
                    return
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        raise AssertionError("the disk cannot be filled")

    def empty(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)

    def remove(self) -> None:
        """Unmount it, even while a process still uses it."""
        subprocess.run(["umount", "-l", str(self.where)], check=True)
        self._image.unlink(missing_ok=True)
