"""The view of the cluster, kept current by a watch on etcd."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable

from holdfast_cluster.etcd import Changes, Etcd, Listing, WatchState
from holdfast_cluster.etcdpb import etcd_pb2 as pb
from holdfast_cluster.membership import refuse_unknown_features
from holdfast_cluster.model import (
    Assignment,
    ClusterSettings,
    Drain,
    Heat,
    Hosting,
    Keys,
    Member,
    Pause,
    Versioned,
    View,
    decode,
    decode_kinds,
)

log = logging.getLogger(__name__)


class ViewFeed:
    """`view` is the newest picture; listeners are called with each one, in order, and must not block or raise.

    With etcd away the view stays as it was; `disconnected_s` says for how long. So it does when etcd suddenly knows no cluster, or
    another one: it was emptied or restored from nothing, and `strange` says so.
    """

    def __init__(self, etcd: Etcd, keys: Keys) -> None:
        self._etcd = etcd
        self._keys = keys
        self._state = WatchState()
        self._changed = asyncio.Event()
        self.view = View()
        self.strange = ""
        self.listeners: list[Callable[[View], None]] = []

    @property
    def disconnected_s(self) -> float:
        """Seconds since the watch broke; 0 while it is connected."""
        return 0.0 if self._state.connected else time.monotonic() - self._state.disconnected_since

    async def run(self) -> None:
        """Follow etcd until cancelled. Raises Refused when the cluster has come to use what this program does not know."""
        async with contextlib.aclosing(self._etcd.watch(self._keys.prefix, self._state)) as updates:
            async for update in updates:
                view = apply(self.view, update, self._keys)
                if self._is_strange(view, isinstance(update, Listing)):
                    continue
                if view.settings is not None:
                    refuse_unknown_features(view.settings)
                self.view = view
                for listener in self.listeners:
                    listener(self.view)
                self._changed.set()
                self._changed = asyncio.Event()

    def _is_strange(self, view: View, listed: bool) -> bool:
        if self.strange and not listed:
            return True
        known = self.view.settings
        if known is None or (view.settings is not None and view.settings.id == known.id):
            self.strange = ""
            return False
        if not self.strange:
            what = "knows no cluster of this name" if view.settings is None else f"describes cluster {view.settings.id}"
            self.strange = (
                f"etcd {what} (revision {view.revision}), but this process is of cluster {known.id}: etcd was emptied, or restored "
                "from nothing. Assignments are not invented: what is known goes on; restore etcd from a backup"
            )
            log.critical("%s", self.strange)
        return True

    async def until(self, condition: Callable[[View], bool]) -> View:
        """The first view, from now on, for which `condition` holds."""
        while not condition(self.view):
            await self._changed.wait()
        return self.view


def apply(view: View, update: Listing | Changes, keys: Keys) -> View:
    """The view after an update. Pure."""
    if isinstance(update, Listing):
        view = View(revision=update.revision)
        rows: Iterable[tuple[bool, pb.KeyValue]] = ((True, row) for row in update.rows)
    else:
        rows = ((event.type == pb.Event.PUT, event.kv) for event in update.events)
    settings, settings_revision, controller = view.settings, view.settings_revision, view.controller
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
                assignments[shard] = Versioned(decode(row.value, Assignment), row.mod_revision)
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
            settings_revision = row.mod_revision
        elif key == keys.controller:
            controller = row.value.decode() if there else ""
    return View(update.revision, settings, members, assignments, controller, drains, pauses, heat, hosting, kinds, settings_revision)
