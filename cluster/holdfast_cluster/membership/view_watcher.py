"""The view of the cluster, kept current by a watch on etcd."""

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
    Heat,
    Hosting,
    Keys,
    Lineage,
    Member,
    Pause,
    Unreadable,
    Versioned,
    View,
    decode,
    decode_kinds,
)

log = logging.getLogger(__name__)

S = TypeVar("S", bound=msgspec.Struct)

FOREIGN_S = 7.5
"""After how long an etcd that is not believed is listed again: 5 s on average, with jitter."""
_HALTING_S = 0.2
_SHARD_CHARS_MAX = 9
_UNREADABLE = "unreadable"
_BACKOFF_S = (0.1, 1.0)
WHAT_TO_DO = (
    "Assignments are not invented, and nothing of this is acted on: what is known goes on. Put"
    " etcd's newest data back, or run `holdfast adopt-etcd`"
)


class ViewWatcher:
    """`view` is the newest picture; listeners are called with each one, in order, and must not
    block or raise.

    With etcd away the view stays as it was; `disconnected_s` says for how long. So it does while
    etcd is foreign (lineage.py): it was emptied or put back to an older state, and `foreign` says
    so. Then it is listed again and again, until it is believed.
    """

    def __init__(self, etcd: GuardedEtcd, keys: Keys, memory: Memory, name: str) -> None:
        """`memory` learns of every view before listeners do. `name`: of this process, for whoever
        asks who has halted etcd."""
        self._etcd = etcd
        self._keys = keys
        self._memory = memory
        self._name = name
        self._state = WatchState()
        self._changed = asyncio.Event()
        self.view = View()
        self.foreign = ""
        self.listed_at = float("-inf")
        """When etcd was listed last and believed, in monotonic seconds."""
        self.listeners: list[Callable[[View], None]] = []

    @property
    def disconnected_s(self) -> float:
        """Seconds since the watch broke; 0 while it is connected."""
        return 0.0 if self._state.connected else time.monotonic() - self._state.disconnected_since

    async def run(self) -> None:
        """Follow etcd until cancelled. Raises Refused when the cluster has come to use what this
        program does not know."""
        backoff_s = _BACKOFF_S[0]
        while True:
            shown = self.view
            try:
                pause_s = await self._watch()
            except Unreadable as error:
                foreign = (
                    f"etcd has what cannot be read: {error}. Nothing of it is acted on, until that"
                    " is mended"
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
        """Show views until one is not to be shown: the seconds after which to list again. Raises
        EtcdError when the watch breaks."""
        # before anything is listed: what is learnt meanwhile may be newer than the listing
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
                            "etcd is what this process knows again, at revision %d: it is followed",
                            view.revision,
                        )
                        self.foreign = ""
                    self.listed_at = time.monotonic()
                elif is_suspicious(self.view, view):
                    log.warning(
                        "etcd shows what does not follow from what it said before; listing again"
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
                "etcd's value of %s cannot be read: %s; what was known before stays in force",
                key,
                view.unreadable[key],
            )
        self.view = view
        for listener in self.listeners:
            listener(view)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _refuse(self, view: View, verdict: Verdict, known: Known) -> float:
        """Act on nothing of a view, and have nobody act on it if it proves that etcd went back:
        when to list again."""
        foreign = f"{verdict.why} (revision {view.revision}). {WHAT_TO_DO}"
        if verdict.why not in self.foreign:
            log.critical("%s", foreign)
        self.foreign = foreign
        found = view.lineage or known.lineage
        if not verdict.halt or found is None:
            return FOREIGN_S
        try:
            if await self._etcd.halt(found, view.lineage_raw or None, self._name, verdict.why):
                log.critical("halted etcd's lineage: no process acts on what this etcd says")
        except EtcdError as error:
            log.warning("etcd's lineage could not be halted: %s", error)
        return _HALTING_S  # it is halted now, or is to be halted soon

    async def until(self, condition: Callable[[View], bool]) -> View:
        """The first view, from now on, for which `condition` holds."""
        while not condition(self.view):
            await self._changed.wait()
        return self.view


def apply(view: View, update: Listing | Changes, keys: Keys) -> View:
    """The view after an update. Pure.

    Of a value that cannot be read, what the view had before stays. Raises Unreadable when it had no
    assignment, settings or lineage in place of one that cannot be read: as if there were none, the
    cluster would be another one.
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
    members, assignments, drains, heat, hosting, kinds, pauses = (
        dict(view.members),
        dict(view.assignments),
        dict(view.drains),
        dict(view.heat),
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
        _Table(keys.heats, heat, before.heat, lambda row: decode(row.value, Heat)),
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
        heat,
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
    """A value that cannot be read, in place of which there is an older one, or none is needed."""


def _read_or(key: str, raw: bytes, type: type[S], before: S | None) -> S | None:
    """A value that a view cannot do without; the one before when it cannot be read. Raises
    Unreadable without one."""
    try:
        return decode(raw, type) if raw else None
    except Unreadable as error:
        if before is None:
            raise Unreadable(f"{key}: {error}") from None
        return before


@dataclass(slots=True)
class _Table:
    """The rows of one prefix. `name` makes what they are kept by of the rest of the key.

    `instead`: what stands in place of a value that cannot be read and had none before, where its
    being there is what matters.
    """

    prefix: str
    rows: dict[Any, Any]
    before: Mapping[Any, Any]
    read: Callable[[pb.KeyValue], Any]
    name: Callable[[str], Any] = str
    instead: Any = None

    def take(self, key: str, row: pb.KeyValue, there: bool) -> None:
        """Raises _PassedOver, or Unreadable for an assignment that there was none of before."""
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
        raise ValueError(f"{text[:100]!r} is no number of a shard")
    return int(text)


def _paused(text: str) -> tuple[str, str]:
    kind, _, name = text.partition("/")
    return kind, name
