"""The free space of the data directory's disk. A node becomes `full` before its writes fail, and
active again when there is enough room.

The disk has a *reserve* (`--disk-reserve`). If less than the reserve is free, the level is low. The
node then says that it is full: it gets no new copies, and gives its shards to other owners. If less
than a quarter of the reserve is free, the level is critical. The node then leaves the cluster, when
the others can do without it, and waits for room. A level improves only after some time, and needs
more free room than the limit at which it worsened. That time grows whenever the room is soon gone
again, so that the level does not flap.

Beside the reserve a *ballast* file of 64 MiB takes room while the process runs. When the disk is
critical, the node removes the ballast, so that it can write its last records and leave. The free
bytes are always counted as if the ballast were there, so its removal changes no level.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

EXIT_DISK_FULL = 71
"""The exit status of a process that ended because its disk was full. Its next start waits for
room."""
BALLAST_BYTES = 64 << 20
START_BYTES_MIN = 16 << 20
"""A start waits for at least so many free bytes, however small the reserve is: RocksDB writes files
when it opens."""
STAY_S = 5.0, 600.0
"""The shortest and the longest time for which a low disk counts as low at least. The time doubles
whenever the disk is low again within FORGET_S."""
FORGET_S = 600.0
_FILES_MIN = 64
_LOOK_S = 0.5
_SAY_EVERY_S = 60.0


class Level(enum.IntEnum):
    """Levels of free space."""

    ENOUGH = 0
    LOW = 1
    CRITICAL = 2


class DiskSpace:
    """Decides the level from the free bytes. Pure."""

    def __init__(self, reserve: int) -> None:
        self.reserve = reserve
        self.level = Level.ENOUGH
        self._enough_at = float("-inf")
        self._stay_s = STAY_S[0]
        self._stays_until = float("-inf")

    def can_start(self, free: int, now: float) -> bool:
        """Return whether there is room to open the store."""
        return free >= self.start_from and not self.stays(now)

    @property
    def start_from(self) -> int:
        """The bytes that must be free for a start."""
        return max(self.reserve // 2, START_BYTES_MIN)

    def stays(self, now: float) -> bool:
        """Return whether the level may not improve yet, however much is free."""
        return now < self._stays_until

    def look(self, free: int, now: float) -> Level:
        """Update and return the level for so many free bytes, at `now` in seconds."""
        critical_from = self.reserve // 2 if self.level is Level.CRITICAL else self.reserve // 4
        enough_from = (
            self.reserve if self.level is Level.ENOUGH else self.reserve + self.reserve // 4
        )
        level = (
            Level.CRITICAL
            if free < critical_from
            else Level.LOW
            if free < enough_from
            else Level.ENOUGH
        )
        if level > self.level:
            self._worsen(level, now)
        elif level < self.level and not self.stays(now):
            self.level = level
            self._enough_at = now
        return self.level

    def failed(self, now: float) -> None:
        """Note that there was no room for a file, whatever the file system says is free (a quota,
        for example)."""
        self._worsen(max(self.level, Level.LOW), now)

    def _worsen(self, level: Level, now: float) -> None:
        if self.level is Level.ENOUGH:
            shortest, longest = STAY_S
            self._stay_s = (
                min(self._stay_s * 2, longest) if now - self._enough_at < FORGET_S else shortest
            )
        self.level = level
        self._stays_until = now + self._stay_s


class DiskWatch:
    """Looks at the disk of a data directory, and keeps the ballast there. With a reserve of 0 only
    failed writes count."""

    def __init__(
        self, folder: Path, reserve: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._ballast = folder / "ballast"
        self._clock = clock
        self._space = DiskSpace(reserve)
        self.free = self._free()
        self.look()

    @property
    def reserve(self) -> int:
        return self._space.reserve

    @property
    def level(self) -> Level:
        return self._space.level

    @property
    def full(self) -> str | None:
        """Why the node takes nothing more; None while it takes more."""
        if self.level is Level.ENOUGH:
            return None
        wanted = (
            f"the reserve is {self.reserve >> 20} MiB"
            if self.reserve
            else "too little for a file that was written"
        )
        return (
            f"the disk of {self._folder} is full: {max(self.free, 0) >> 20} MiB are free, {wanted}"
        )

    @property
    def cannot_start(self) -> str | None:
        """Why there is no room to open the store; None when there is room."""
        if self._space.can_start(self.free, self._clock()):
            return None
        free, wanted = max(self.free, 0) >> 20, self._space.start_from >> 20
        return (
            f"the disk of {self._folder} is full: {free} MiB are free, the node starts when"
            f" {wanted} MiB are"
        )

    def look(self) -> Level:
        """Read how much is free now, and return the level."""
        before = self.level
        self.free = self._free()
        level = self._space.look(self.free, self._clock())
        if level is not before:
            self._say(before)
        if level is Level.CRITICAL:
            self._ballast.unlink(missing_ok=True)
        return level

    def failed(self) -> None:
        """Note that there was no room for a file on this disk."""
        before = self.level
        self._space.failed(self._clock())
        if before is not self.level:
            self._say(before)

    def has_spare(self) -> bool:
        """Return whether there is room for incoming files of copies beside the log."""
        return self._free() >= START_BYTES_MIN

    async def run(self) -> None:
        """Look at the disk until cancelled; make the ballast when there is room for it."""
        failed = ""
        try:
            while True:
                try:
                    if self.look() is Level.ENOUGH and self.reserve and not self._ballast.exists():
                        await asyncio.to_thread(self._make_ballast)
                except OSError as error:
                    if (text := str(error)) != failed:
                        log.error(
                            "cannot read how much room the disk of %s has: %s", self._folder, text
                        )
                    failed = text
                await asyncio.sleep(_LOOK_S)
        finally:
            self._ballast.unlink(missing_ok=True)

    def _free(self) -> int:
        """Return the bytes that are free beside the ballast."""
        stat = os.statvfs(self._folder)
        if stat.f_files and stat.f_favail < _FILES_MIN:
            return 0  # no file can be made
        missing = 0
        if self._space.reserve:
            try:
                missing = BALLAST_BYTES - self._ballast.stat().st_blocks * 512
            except FileNotFoundError:
                missing = BALLAST_BYTES
        return stat.f_bavail * stat.f_frsize - max(missing, 0)

    def _make_ballast(self) -> None:
        try:
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)
        except OSError as error:
            log.warning("the ballast %s cannot be made: %s", self._ballast, error)
            self._ballast.unlink(missing_ok=True)

    def _say(self, before: Level) -> None:
        if self.level is Level.ENOUGH:
            log.warning(
                "the disk of %s has room again: %d MiB are free", self._folder, self.free >> 20
            )
        elif self.level > before:
            log.error("%s%s", self.full, "; it is critical" if self.level is Level.CRITICAL else "")


async def wait_for_room(watch: DiskWatch) -> None:
    """Return when the disk has room for a start."""
    said_at = float("-inf")
    while why := watch.cannot_start:
        if time.monotonic() - said_at >= _SAY_EVERY_S:
            said_at = time.monotonic()
            log.error("%s", why)
        await asyncio.sleep(_LOOK_S)
        watch.look()
    log.warning("the disk has room: the node starts")
