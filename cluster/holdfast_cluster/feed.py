"""The view of the cluster, kept current by a watch on etcd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable

from holdfast_cluster.etcd import Changes, EtcdError, Listing, WatchState
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.guarded import GuardedEtcd
from holdfast_cluster.lineage import Known, Memory, Verdict, is_suspicious, judge
from holdfast_cluster.membership import refuse_unknown_features
from holdfast_cluster.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Heat,
    Hosting,
    Keys,
    Lineage,
    Member,
    Pause,
    Versioned,
    View,
    decode,
    decode_kinds,
)

log = logging.getLogger(__name__)

FOREIGN_S = 7.5
"""After how long an etcd that is not believed is listed again: 5 s on average, with jitter."""
_HALTING_S = 0.2
_BACKOFF_S = (0.1, 1.0)
WHAT_TO_DO = (
    "Assignments are not invented, and nothing of this is acted on: what is known goes on. Put etcd's newest data back, or run "
    "`holdfast adopt-etcd`"
)


class ViewFeed:
    """`view` is the newest picture; listeners are called with each one, in order, and must not block or raise.

    With etcd away the view stays as it was; `disconnected_s` says for how long. So it does while etcd is foreign (lineage.py): it
    was emptied or put back to an older state, and `strange` says so. Then it is listed again and again, until it is believed.
    """

    def __init__(self, etcd: GuardedEtcd, keys: Keys, memory: Memory, name: str) -> None:
        """`memory` learns of every view before listeners do. `name`: of this process, for whoever asks who has halted etcd."""
        self._etcd = etcd
        self._keys = keys
        self._memory = memory
        self._name = name
        self._state = WatchState()
        self._changed = asyncio.Event()
        self.view = View()
        self.strange = ""
        self.listed_at = float("-inf")
        """When etcd was listed last and believed, in monotonic seconds."""
        self.listeners: list[Callable[[View], None]] = []

    @property
    def disconnected_s(self) -> float:
        """Seconds since the watch broke; 0 while it is connected."""
        return 0.0 if self._state.connected else time.monotonic() - self._state.disconnected_since

    async def run(self) -> None:
        """Follow etcd until cancelled. Raises Refused when the cluster has come to use what this program does not know."""
        backoff_s = _BACKOFF_S[0]
        while True:
            shown = self.view
            try:
                pause_s = await self._watch()
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
        """Show views until one is not to be shown: the seconds after which to list again. Raises EtcdError when the watch breaks."""
        known = self._memory.known()  # before anything is listed: what is learnt meanwhile may be newer than the listing
        async with contextlib.aclosing(self._etcd.watch(self._keys.prefix, self._state)) as updates:
            async for update in updates:
                view = apply(self.view, update, self._keys)
                if isinstance(update, Listing):
                    verdict = judge(known, view)
                    if verdict.why:
                        return await self._refuse(view, verdict, known)
                    if self.strange:
                        log.warning("etcd is what this process knows again, at revision %d: it is followed", view.revision)
                        self.strange = ""
                    self.listed_at = time.monotonic()
                elif is_suspicious(self.view, view):
                    log.warning("etcd shows what does not follow from what it said before; listing again")
                    return 0.0
                self._show(view)
        raise AssertionError("a watch ends by breaking")

    def _show(self, view: View) -> None:
        assert view.settings is not None
        assert view.lineage is not None
        refuse_unknown_features(view.settings)
        self._etcd.follow(view.lineage, view.lineage_raw)
        self._memory.follow(view)
        self.view = view
        for listener in self.listeners:
            listener(view)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _refuse(self, view: View, verdict: Verdict, known: Known) -> float:
        """Act on nothing of a view, and have nobody act on it if it proves that etcd went back: when to list again."""
        strange = f"{verdict.why} (revision {view.revision}). {WHAT_TO_DO}"
        if verdict.why not in self.strange:
            log.critical("%s", strange)
        self.strange = strange
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
    """The view after an update. Pure."""
    if isinstance(update, Listing):
        raw = next((row.value for row in update.rows if row.key == keys.lineage.encode()), b"")
        view = View(revision=update.revision, lineage=decode(raw, Lineage) if raw else None, lineage_raw=raw)
        rows: Iterable[tuple[bool, pb.KeyValue]] = ((True, row) for row in update.rows)
    else:
        rows = ((event.type == pb.Event.PUT, event.kv) for event in update.events)
    settings, settings_raw, controller = view.settings, view.settings_raw, view.controller
    lineage, lineage_raw = view.lineage, view.lineage_raw
    generation = lineage.generation if lineage is not None else 0
    members, assignments, drains, heat, hosting, kinds, pauses = (
        dict(view.members),
        dict(view.assignments),
        dict(view.drains),
        dict(view.heat),
        dict(view.hosting),
        dict(view.kinds),
        view.pauses,
    )
    for there, row in rows:
        key = row.key.decode()
        if key.startswith(keys.shards):
            shard = int(key[len(keys.shards) :])
            if there:
                assignments[shard] = Versioned(decode(row.value, Assignment), row.mod_revision, row.value, generation)
            else:
                assignments.pop(shard, None)
        elif key.startswith(keys.members):
            node = key[len(keys.members) :]
            if there:
                members[node] = decode(row.value, Member)
            else:
                members.pop(node, None)
        elif key.startswith(keys.drains):
            node = key[len(keys.drains) :]
            if there:
                drains[node] = decode(row.value, Drain)
            else:
                drains.pop(node, None)
        elif key.startswith(keys.heats):
            node = key[len(keys.heats) :]
            if there:
                heat[node] = decode(row.value, Heat)
            else:
                heat.pop(node, None)
        elif key.startswith(keys.hostings):
            node = key[len(keys.hostings) :]
            if there:
                hosting[node] = decode(row.value, Hosting)
            else:
                hosting.pop(node, None)
        elif key.startswith(keys.all_kinds):
            node = key[len(keys.all_kinds) :]
            if there:
                kinds[node] = decode_kinds(row.value)
            else:
                kinds.pop(node, None)
        elif key.startswith(keys.pauses):
            kind, _, name = key[len(keys.pauses) :].partition("/")
            pauses = {what: pause for what, pause in pauses.items() if what != (kind, name)}
            if there:
                pauses[kind, name] = decode(row.value, Pause)
        elif key == keys.settings:
            settings = decode(row.value, ClusterSettings) if there else None
            settings_raw = row.value if there else b""
        elif key == keys.lineage:
            lineage = decode(row.value, Lineage) if there else None
            lineage_raw = row.value if there else b""
        elif key == keys.controller:
            controller = row.value.decode() if there else ""
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
    )
