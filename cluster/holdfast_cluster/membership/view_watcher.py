"""The view of the cluster, which a watch on etcd keeps current."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership.etcd import Changes, EtcdError, Listing, WatchState
from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.lineage import Known, Memory, Verdict, is_suspicious, judge
from holdfast_cluster.membership.member import refuse_unknown_features
from holdfast_cluster.placement.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Hosting,
    Keys,
    Lineage,
    Member,
    Pause,
    ShardLoads,
    Unreadable,
    Versioned,
    View,
    decode,
    decode_kinds,
)

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)

FOREIGN_S = 7.5
"""The longest pause before a foreign etcd is listed again: with jitter, 5.6 s on average."""
_HALTING_S = 0.2
_SHARD_CHARS_MAX = 9
_UNREADABLE = "unreadable"
_BACKOFF_S = (0.1, 1.0)
WHAT_TO_DO = (
    "This process does not act on this etcd. It invents no assignments, and goes on with those that"
    " it knows. Put etcd's newest data back, or run `holdfast adopt-etcd`"
)


class ViewWatcher:
    """The watcher of etcd. `view` is the newest view.

    The watcher calls the listeners with each view, in order. Listeners must not block or raise.
    While etcd is away the view stays as it was, and `disconnected_s` says for how long. The view
    also stays while etcd is foreign (lineage.py), because it was emptied or put back to an older
    state. Then `foreign` says why, and the watcher lists etcd again and again until it believes it.
    """

    def __init__(self, etcd: GuardedEtcd, keys: Keys, memory: Memory, name: str) -> None:
        """Set up the watcher. `memory` learns of every view before the listeners do.

        `name`: this process's name, which etcd shows if this process halts its lineage.
        """
        self._etcd = etcd
        self._keys = keys
        self._memory = memory
        self._name = name
        self._state = WatchState()
        self._changed = asyncio.Event()
        self.view = View()
        self.foreign = ""
        self.listed_at = float("-inf")
        """When a listing of etcd was last believed, in monotonic seconds."""
        self.listeners: list[Callable[[View], None]] = []

    @property
    def disconnected_s(self) -> float:
        """Seconds since the watch broke; 0 while it is connected."""
        return 0.0 if self._state.connected else time.monotonic() - self._state.disconnected_since

    async def run(self) -> None:
        """Follow etcd until cancelled.

        Raise NotAccepted when the cluster begins to use a feature that this program does not know.
        """
        backoff_s = _BACKOFF_S[0]
        while True:
            shown = self.view
            try:
                pause_s = await self._watch()
            except Unreadable as error:
                foreign = (
                    f"a value in etcd cannot be read: {error}. This process does not act on this"
                    " etcd until the value is mended"
                )
                if foreign != self.foreign:
                    log.error("%s", foreign)
                self.foreign = foreign
                pause_s = FOREIGN_S
            except EtcdError as error:
                if shown is not self.view:
                    log.warning("watch on etcd broke (%s); listing again", error)
                    backoff_s = _BACKOFF_S[0]
                else:
                    log.debug("etcd cannot be followed: %s", error)
                pause_s = backoff_s
                backoff_s = min(backoff_s * 2, _BACKOFF_S[1])
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    async def _watch(self) -> float:
        """Show views until one must not be shown. Return the seconds to wait before listing again.

        Raise EtcdError when the watch breaks.
        """
        # This comes before the listing: knowledge of a later moment may be newer than the listing.
        known = self._memory.known()
        async with contextlib.aclosing(self._etcd.watch(self._keys.prefix, self._state)) as updates:
            async for update in updates:
                view = apply(self.view, update, self._keys)
                if isinstance(update, Listing):
                    verdict = judge(known, view)
                    if verdict.why:
                        return await self._refuse(view, verdict, known)
                    if self.foreign:
                        log.warning(
                            "etcd agrees with this process again, at revision %d, and is followed",
                            view.revision,
                        )
                        self.foreign = ""
                    self.listed_at = time.monotonic()
                elif is_suspicious(self.view, view):
                    log.warning(
                        "etcd shows a change that contradicts its earlier state; listing again"
                    )
                    return 0.0
                self._show(view)
        raise AssertionError("a watch ends by breaking")

    def _show(self, view: View) -> None:
        assert view.settings is not None
        assert view.lineage is not None
        refuse_unknown_features(view.settings)
        self._etcd.follow(view.lineage, view.lineage_raw)
        self._memory.follow(view)
        for key in view.unreadable.keys() - self.view.unreadable.keys():
            log.error(
                "etcd's value of %s cannot be read: %s; the value before it stays in force",
                key,
                view.unreadable[key],
            )
        self.view = view
        for listener in self.listeners:
            listener(view)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _refuse(self, view: View, verdict: Verdict, known: Known) -> float:
        """Refuse a view. If it proves that etcd went back, halt the lineage, for all processes.

        Return the seconds to wait before listing again.
        """
        foreign = f"{verdict.why} (revision {view.revision}). {WHAT_TO_DO}"
        if verdict.why not in self.foreign:
            log.critical("%s", foreign)
        self.foreign = foreign
        found = view.lineage or known.lineage
        if not verdict.halt or found is None:
            return FOREIGN_S
        try:
            if await self._etcd.halt(found, view.lineage_raw or None, self._name, verdict.why):
                log.critical("halted etcd's lineage: no process acts on this etcd")
        except EtcdError as error:
            log.warning("etcd's lineage could not be halted: %s", error)
        return _HALTING_S  # the lineage is halted now, or this process tries again soon

    async def until(self, condition: Callable[[View], bool]) -> View:
        """Wait for a view for which `condition` holds, and return it. The present view counts."""
        while not condition(self.view):
            await self._changed.wait()
        return self.view


def apply(view: View, update: Listing | Changes, keys: Keys) -> View:
    """Return the view after an update. Pure.

    If a value cannot be read, the value of the view before stays. Raise Unreadable when there is
    none and the value is an assignment, the settings or the lineage. Without such a value the view
    would be of another cluster.
    """
    before = view
    if isinstance(update, Listing):
        raw = next((row.value for row in update.rows if row.key == keys.lineage.encode()), b"")
        lineage, lineage_raw = _read_or(keys.lineage, raw, Lineage, before.lineage), raw
        view = View(revision=update.revision)
        rows: Iterable[tuple[bool, pb.KeyValue]] = ((True, row) for row in update.rows)
    else:
        lineage, lineage_raw = view.lineage, view.lineage_raw
        rows = ((event.type == pb.Event.PUT, event.kv) for event in update.events)
    settings, settings_raw, controller = view.settings, view.settings_raw, view.controller
    generation = lineage.generation if lineage is not None else 0
    members, assignments, drains, loads, hosting, kinds, pauses = (
        dict(view.members),
        dict(view.assignments),
        dict(view.drains),
        dict(view.loads),
        dict(view.hosting),
        dict(view.kinds),
        dict(view.pauses),
    )

    def versioned(row: pb.KeyValue) -> Versioned:
        return Versioned(decode(row.value, Assignment), row.mod_revision, row.value, generation)

    tables: tuple[_Table, ...] = (
        _Table(keys.shards, assignments, before.assignments, versioned, _shard),
        _Table(keys.members, members, before.members, lambda row: decode(row.value, Member)),
        _Table(
            keys.drains,
            drains,
            before.drains,
            lambda row: decode(row.value, Drain),
            instead=Drain(0.0, _UNREADABLE),
        ),
        _Table(keys.loads, loads, before.loads, lambda row: decode(row.value, ShardLoads)),
        _Table(keys.hostings, hosting, before.hosting, lambda row: decode(row.value, Hosting)),
        _Table(keys.all_kinds, kinds, before.kinds, lambda row: decode_kinds(row.value)),
        _Table(
            keys.pauses,
            pauses,
            before.pauses,
            lambda row: decode(row.value, Pause),
            _paused,
            Pause(0.0, _UNREADABLE),
        ),
    )
    unreadable = dict(view.unreadable)
    for there, row in rows:
        key = row.key.decode(errors="backslashreplace")
        unreadable.pop(key, None)
        try:
            if key == keys.settings:
                settings_raw = row.value if there else b""
                settings = _read_or(key, settings_raw, ClusterSettings, before.settings)
            elif key == keys.lineage:
                lineage_raw = row.value if there else b""
                lineage = _read_or(key, lineage_raw, Lineage, before.lineage)
            elif key == keys.controller:
                controller = row.value.decode(errors="backslashreplace") if there else ""
            else:
                for table in tables:
                    if key.startswith(table.prefix):
                        table.take(key, row, there)
        except _PassedOver as error:
            unreadable[key] = str(error)
    return View(
        update.revision,
        settings,
        members,
        assignments,
        controller,
        drains,
        pauses,
        loads,
        hosting,
        kinds,
        settings_raw,
        lineage,
        lineage_raw,
        unreadable,
        frozenset(key[len(keys.members) :] for key in unreadable if key.startswith(keys.members))
        - members.keys(),
    )


class _PassedOver(Exception):
    """A value cannot be read, and the view goes on with an older value, or without one."""


def _read_or(key: str, raw: bytes, type: type[S], before: S | None) -> S | None:
    """Return a value that a view needs; if it cannot be read, the value before.

    Raise Unreadable when there is no value before.
    """
    try:
        return decode(raw, type) if raw else None
    except Unreadable as error:
        if before is None:
            raise Unreadable(f"{key}: {error}") from None
        return before


@dataclass(slots=True)
class _Table:
    """The rows of one prefix. `name` turns the rest of an etcd key into the key in `rows`.

    `instead`: the value to use when a row cannot be read and had no value before. It is given for
    rows whose presence matters more than their value.
    """

    prefix: str
    rows: dict[Any, Any]
    before: Mapping[Any, Any]
    read: Callable[[pb.KeyValue], Any]
    name: Callable[[str], Any] = str
    instead: Any = None

    def take(self, key: str, row: pb.KeyValue, there: bool) -> None:
        """Add or remove a row. Raise _PassedOver when the row cannot be read.

        Raise Unreadable when the row is an assignment and there was none of its shard before.
        """
        try:
            name = self.name(key[len(self.prefix) :])
        except ValueError as error:
            raise _PassedOver(str(error)) from None
        if not there:
            self.rows.pop(name, None)
            return
        try:
            self.rows[name] = self.read(row)
        except Unreadable as error:
            if name in self.before:
                self.rows[name] = self.before[name]
            elif self.name is _shard:
                raise Unreadable(f"{key}: {error}") from None
            elif self.instead is not None:
                self.rows[name] = self.instead
            raise _PassedOver(str(error)) from None


def _shard(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _SHARD_CHARS_MAX):
        raise ValueError(f"{text[:100]!r} is not the number of a shard")
    return int(text)


def _paused(text: str) -> tuple[str, str]:
    kind, _, name = text.partition("/")
    return kind, name
