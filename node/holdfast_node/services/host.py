"""The objects of a node and all the parts that they need: the engine, the effects of turns, and the
duties of an owner."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import ClassVar

from holdfast.app import App
from holdfast.tracing import Tracing
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.membership.kinds import KnownKinds

from holdfast_node.effects.dead_letters import DeadLetters
from holdfast_node.effects.delayed import DelayedNotifications
from holdfast_node.effects.due_index import DueIndex
from holdfast_node.effects.expiry import ExpiryIndex
from holdfast_node.effects.notifications import Notifications
from holdfast_node.effects.outbox import Outbox
from holdfast_node.effects.sent import Sent
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.commit import Committer
from holdfast_node.log.shard_service import ShardServices
from holdfast_node.log.shards import Shards
from holdfast_node.objects.activations import Activations
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.environment import CacheSize, Environment, Outgoing
from holdfast_node.objects.hosted_kinds import ShardKinds
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.objects.responses import ResponseCache
from holdfast_node.services.alarm_counter import AlarmCounter
from holdfast_node.services.alarms import AlarmService
from holdfast_node.services.dedup_marks import DedupMarkService
from holdfast_node.services.expiry import ExpiryService
from holdfast_node.services.notifications import NotificationService
from holdfast_node.services.pauses import Pauses
from holdfast_node.services.responses import ResponseService
from holdfast_node.store import keys


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The options of a node's objects. `known`: the kinds of the cluster's nodes. `chance`: for the
    jitter of pauses."""

    limits: EngineLimits = field(default_factory=EngineLimits)
    known: KnownKinds | None = None
    tracing: Tracing | None = None
    chance: random.Random | None = None


class ObjectHost:
    """All objects of a node. It runs on the event loop. Call `tick` about ten times a second.

    The parts are made in the order in which they need each other. Each is complete when it is made.
    """

    engine_class: ClassVar[type[Engine]] = Engine
    alarms_class: ClassVar[type[AlarmService]] = AlarmService
    notifications_class: ClassVar[type[NotificationService]] = NotificationService

    def __init__(
        self,
        app: App,
        options: HostOptions,
        committer: Committer,
        shards: Shards,
        responses: ResponseCache,
        outgoing: Outgoing,
    ) -> None:
        """`outgoing`: takes calls to other objects, and notifications."""
        limits = options.limits
        loop = asyncio.get_running_loop()
        store = committer.store
        cache = self._cache = CacheSize()
        self.activations = Activations(cache)
        self.kinds = ShardKinds(
            app.kinds,
            options.known or KnownKinds(0.0, boottime),
            store,
            shards,
            self.activations.of_shards,
            loop.time,
        )
        self.pauses = Pauses()
        self.writes = ShardWrites(committer)
        self.dead_letters = DeadLetters(store, self.writes, limits.outbox.dead_letters_max)
        self.outbox = Outbox(
            limits.outbox, (options.chance or random.Random()).uniform, loop.time()
        )
        self.notifications = Notifications(store, self.writes, self.outbox)
        self.delays = DelayedNotifications(
            store, self.writes, self.notifications, limits.outbox.shard_delayed_max
        )
        self.sent = Sent(self.notifications, self.delays, self.writes)
        self._alarm_index = DueIndex(store, keys.ALARMS)
        self._expiry_index = ExpiryIndex(store, keys.EXPIRY)
        environment = Environment(
            store,
            limits.storage,
            outgoing,
            self.sent,
            self._alarm_index,
            self._expiry_index,
            cache,
            options.tracing,
        )
        self.engine = self.engine_class(
            app, limits, shards, committer, responses, environment, self.activations, self.kinds
        )
        self.delivery = self.notifications_class(
            app,
            self.notifications,
            self.dead_letters,
            self.writes,
            outgoing,
            self.kinds,
            self.pauses,
            shards.clock.now_ms,
        )
        self.alarms = self.alarms_class(
            app,
            self.engine,
            self._alarm_index,
            self.dead_letters,
            self.writes,
            self.kinds,
            self.pauses,
            limits.outbox.backlog_per_s,
        )
        self.expiry = ExpiryService(app, self.engine, self._expiry_index, self.writes)
        self.responses = ResponseService(responses, shards, committer)
        self.alarm_counter = AlarmCounter(store, shards)
        self.services = ShardServices(
            shards,
            committer.flush_visible,
            [
                self.dead_letters,
                self.notifications,
                self.delays,
                self.writes,
                self.alarms,
                self.expiry,
            ],
            [
                DedupMarkService(store, shards, self.writes),
                self.responses,
                self.alarm_counter,
                self.delivery,
            ],
        )
        self._now_ms = shards.clock.now_ms

    def tick(self) -> None:
        """Do the work that time brings: evict, deliver, fire, expire, forget."""
        self.engine.tick()
        self.services.tick()

    @property
    def cached_bytes(self) -> int:
        """The bytes of all objects' hot caches together."""
        return self._cache.bytes

    def next_due_ms(self) -> int:
        """Return when the first delayed notification, alarm or expiry of the owned shards is due:
        Unix time in ms."""
        return min(
            self.delays.next_due_ms(),
            self._alarm_index.next_due_ms(),
            self._expiry_index.next_due_ms(),
        )

    def counts(self) -> dict[str, int]:
        """Return the counts for `StatsResponse`."""
        oldest = self.outbox.oldest_ms()
        return {
            "outbox": self.outbox.depth,
            "outbox_oldest_ms": 0 if oldest is None else max(0, self._now_ms() - oldest),
            "notifications_delivered": self.outbox.delivered,
            "notification_retries": self.outbox.retries,
            "notifications_delayed": self.delays.count,
            "dead_letters": self.dead_letters.count,
            "alarms_fired": self.alarms.fired,
            "alarms_failed": self.alarms.failed,
            "expired": self.expiry.removed,
        }
