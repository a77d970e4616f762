"""The metrics of a node for Prometheus; docs/reference/metrics.md describes each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from holdfast.metrics import Histogram, counter, gauge, histogram
from holdfast.processes import version
from holdfast.tls import Certificates
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.clocks.cluster_time import Time
from holdfast_cluster.membership.controller import Controller
from holdfast_cluster.membership.member import Membership
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.process.metrics import (
    certificate_metrics,
    dispatcher_metrics,
    watcher_metrics,
)
from holdfast_cluster.routing.dispatch import Dispatcher
from prometheus_client.core import Metric

from holdfast_node.log.commit import Committer, Flusher
from holdfast_node.log.shards import Shards
from holdfast_node.objects.engine import Engine
from holdfast_node.objects.stats import MethodStats
from holdfast_node.replication.replication import Replication
from holdfast_node.services.host import ObjectHost
from holdfast_node.store.disk_space import DiskWatch
from holdfast_node.store.rocks import Store

_CALLS = (
    "Calls and fired alarms that the node has answered. `code` is REJECTED if the handler raised"
    " `Rejected`, which is no failure."
)


@dataclass
class NodeMetrics:
    """Collects the metrics from the parts of a node. Runs on the event loop."""

    objects: ObjectHost
    committer: Committer
    flusher: Flusher
    store: Store
    shards: Shards
    replication: Replication | None
    controller: Controller
    membership: Membership
    dispatcher: Dispatcher
    watcher: ViewWatcher
    loop_lag: Histogram
    memory_max_bytes: int
    certificates: Certificates | None
    watch: DiskWatch
    time: Time

    @property
    def engine(self) -> Engine:
        return self.objects.engine

    def collect(self) -> Iterator[Metric]:
        me = self.membership.member
        yield gauge(
            "holdfast_build_info", "The version that runs.", [((version(),), 1)], ("version",)
        )
        yield gauge(
            "holdfast_node_member", "1 while the node is a member of the cluster.", me is not None
        )
        yield from self._calls()
        yield from self._commits()
        yield from self._shards()
        yield from self._effects()
        yield from self._store_metrics()
        yield histogram(
            "holdfast_loop_lag_seconds",
            "How late the event loop wakes up a task that slept.",
            self.loop_lag,
        )
        yield gauge(
            "holdfast_etcd_session_remaining_seconds",
            "Time until the node's lease ends if it is not renewed; 0 without a lease.",
            max(0.0, self.membership.lease_expires_at - boottime()) if me is not None else 0.0,
        )
        yield gauge(
            "holdfast_wall_clock_ahead_seconds",
            "How far the machine's wall clock is ahead of the cluster's time; below 0: behind.",
            self.time.wall_ahead_s,
        )
        yield from certificate_metrics(self.certificates)
        yield from watcher_metrics(self.watcher)
        yield from dispatcher_metrics(self.dispatcher)

    def _methods(self) -> Iterator[tuple[tuple[str, str], MethodStats]]:
        for kind, methods in self.engine.stats.items():
            for method, stats in methods.items():
                yield (kind, method), stats

    def _calls(self) -> Iterator[Metric]:
        engine = self.engine
        by_method = ("kind", "method")
        methods = list(self._methods())
        codes = [
            ((*labels, code), count)
            for labels, stats in methods
            for code, count in sorted(stats.codes().items())
        ]
        yield counter("holdfast_calls", _CALLS, codes, (*by_method, "code"))
        for name, text, part in (
            ("call", "From a call's arrival at the node to its reply.", "total"),
            (
                "queue",
                "How long calls waited in their object's mailbox, for calls that had to wait.",
                "queue",
            ),
            ("turn", "How long turns ran, from begin to end.", "turn"),
        ):
            yield histogram(
                f"holdfast_{name}_seconds",
                text,
                [(labels, getattr(stats, part)) for labels, stats in methods],
                by_method,
            )
        yield counter("holdfast_turns", "Turns begun.", engine.turns)
        yield counter(
            "holdfast_turns_failed",
            "Turns whose handler failed; those that it rejected do not count.",
            engine.outcomes.failed,
        )
        yield counter(
            "holdfast_activations_created", "Objects taken into memory.", engine.activations_created
        )
        yield counter(
            "holdfast_evictions",
            "Objects evicted from memory.",
            engine.eviction.count,
        )
        alive = self.objects.activations.kinds()
        yield gauge(
            "holdfast_activations",
            "Objects in memory.",
            [((kind,), alive.get(kind, 0)) for kind in engine.stats],
            ("kind",),
        )
        yield gauge(
            "holdfast_activations_limit",
            "Objects that may be in memory.",
            engine.limits.activations_max,
        )
        yield gauge(
            "holdfast_cache_bytes", "Bytes of the objects' caches.", self.objects.cached_bytes
        )
        yield gauge(
            "holdfast_memory_limit_bytes",
            "Resident memory above which the node evicts objects; 0: no bound.",
            self.memory_max_bytes,
        )
        yield gauge("holdfast_calls_in_flight", "Calls taken and not answered.", engine.in_flight)
        yield gauge(
            "holdfast_calls_in_flight_limit",
            "Calls that may be in flight.",
            engine.limits.in_flight_max,
        )

    def _commits(self) -> Iterator[Metric]:
        yield counter(
            "holdfast_entries",
            "Entries appended by shards that the node owns.",
            self.committer.entries,
        )
        yield histogram(
            "holdfast_commit_seconds",
            "From the first write of an entry to its commit on every copy that counts.",
            self.committer.commit_seconds,
        )
        yield counter(
            "holdfast_entry_bytes",
            "About how many bytes the entries hold.",
            self.committer.entry_bytes,
        )
        yield histogram(
            "holdfast_fsync_seconds",
            "How long fsyncs of the store took.",
            self.flusher.sync_seconds,
        )

    def _shards(self) -> Iterator[Metric]:
        owned = self.shards.owned()
        yield gauge("holdfast_shards_owned", "Shards that the node owns.", len(owned))
        yield gauge(
            "holdfast_shards_serving",
            "Owned shards for which the node may answer now.",
            len(self.shards.serving(boottime())),
        )
        yield gauge(
            "holdfast_shards_read_only",
            "Owned shards that take no writes.",
            sum(s.read_only is not None for s in owned),
        )
        yield counter(
            "holdfast_epoch_changes", "Shards taken under a new epoch.", self.shards.taken
        )
        settings = self.watcher.view.settings
        wanted = settings.replication if settings is not None else 0
        in_sync = [
            len(versioned.assignment.in_sync)
            for shard in owned
            if (versioned := self.watcher.view.assignments.get(shard.number)) is not None
        ]
        yield gauge(
            "holdfast_shards_under_replicated",
            "Owned shards with fewer copies in sync than wanted.",
            sum(n < wanted for n in in_sync),
        )
        yield gauge(
            "holdfast_shards_forked",
            "Shards that no node serves because their copies hold different acknowledged writes,"
            " by this node's view.",
            sum(
                bool(versioned.assignment.forked)
                for versioned in self.watcher.view.assignments.values()
            ),
        )
        yield gauge(
            "holdfast_in_sync_copies_min",
            "Copies in sync of the owned shard that has the fewest.",
            min(in_sync, default=wanted),
        )
        yield gauge("holdfast_replication_wanted", "Copies that each shard should have.", wanted)
        stats = self.replication.stats() if self.replication is not None else {}
        yield gauge(
            "holdfast_copies",
            "Shards of which the node has a copy.",
            stats.get("copies", len(owned)),
        )
        yield gauge(
            "holdfast_entries_uncommitted",
            "Entries of owned shards that are not committed.",
            stats.get("entries_uncommitted", 0),
        )
        yield gauge(
            "holdfast_replication_lag_entries",
            "Entries that the replica furthest behind has not acknowledged.",
            stats.get("replica_lag", 0),
        )
        slow = self.replication.slow if self.replication is not None else frozenset()
        members = self.watcher.view.members if self.replication is not None else ()
        yield gauge(
            "holdfast_slow_node",
            "1 for a node that this node finds slow: writes waited only for its copies.",
            [((name,), name in slow) for name in sorted({*members, *slow})],
            ("node",),
        )
        yield counter(
            "holdfast_snapshots_sent",
            "Copies of shards sent to other nodes.",
            stats.get("snapshots_sent", 0),
        )
        yield counter(
            "holdfast_snapshot_sent_bytes",
            "Bytes of the copies sent to other nodes.",
            stats.get("snapshot_bytes_sent", 0),
        )
        yield counter(
            "holdfast_snapshots_failed",
            "Copies of shards that another node did not take.",
            self.replication.sender.failed if self.replication is not None else 0,
        )
        yield gauge(
            "holdfast_snapshots_waiting",
            "Copies that are being sent, or wait to be sent.",
            stats.get("snapshots_waiting", 0),
        )
        yield counter(
            "holdfast_handovers",
            "Shards given to another node while both served.",
            stats.get("handovers", 0),
        )
        yield counter(
            "holdfast_controller_transitions",
            "Changes of assignments made by this node as the controller.",
            [((why,), count) for why, count in sorted(self.controller.transitions.items())],
            ("why",),
        )
        yield gauge(
            "holdfast_controller",
            "1 for the node that is the controller.",
            self.controller.is_acting,
        )
        yield gauge(
            "holdfast_controller_holds_moves",
            "1 while too many members are away to move data.",
            bool(self.controller.notice),
        )

    def _effects(self) -> Iterator[Metric]:
        counts = self.objects.counts()
        yield gauge(
            "holdfast_outbox_depth", "Notifications that wait to be delivered.", counts["outbox"]
        )
        yield gauge(
            "holdfast_outbox_oldest_seconds",
            "How long the oldest notification in the outbox has waited.",
            counts["outbox_oldest_ms"] / 1000,
        )
        yield gauge(
            "holdfast_notifications_delayed",
            "Delayed notifications whose time has not come.",
            counts["notifications_delayed"],
        )
        yield counter(
            "holdfast_notifications_delivered",
            "Notifications taken by their receivers.",
            counts["notifications_delivered"],
        )
        yield counter(
            "holdfast_notification_retries",
            "Attempts to deliver a notification after the first one.",
            counts["notification_retries"],
        )
        yield gauge(
            "holdfast_dead_letters",
            "Notifications and alarms that were given up.",
            counts["dead_letters"],
        )
        yield counter(
            "holdfast_deliveries_given_up",
            "Notifications and alarms that this process has given up.",
            self.objects.dead_letters.given_up,
        )
        yield gauge(
            "holdfast_alarms_pending",
            "Alarms set and not fired, counted every few seconds.",
            self.objects.alarm_counter.pending,
        )
        yield gauge(
            "holdfast_alarms_late",
            "Alarms that are due for more than a second.",
            self.objects.alarm_counter.late,
        )
        yield counter(
            "holdfast_alarms_fired", "Alarms whose handler has run.", counts["alarms_fired"]
        )
        yield counter(
            "holdfast_expired",
            "Values and objects removed because their ttl had passed.",
            counts["expired"],
        )
        yield counter(
            "holdfast_alarm_failures",
            "Times that the handler of an alarm failed.",
            counts["alarms_failed"],
        )

    def _store_metrics(self) -> Iterator[Metric]:
        properties = self.store.properties()
        yield gauge(
            "holdfast_store_size_bytes", "Bytes of the store's files.", properties.files_bytes
        )
        yield gauge(
            "holdfast_store_memtable_bytes",
            "Bytes of writes that are not in files yet.",
            properties.memtable_bytes,
        )
        yield gauge(
            "holdfast_store_block_cache_bytes",
            "Bytes in the block cache.",
            properties.block_cache_bytes,
        )
        yield gauge(
            "holdfast_store_compaction_pending_bytes",
            "Bytes that compaction has to rewrite.",
            properties.compaction_pending_bytes,
        )
        yield gauge(
            "holdfast_store_compactions_running",
            "Compactions under way.",
            properties.compactions_running,
        )
        yield gauge(
            "holdfast_store_level0_files",
            "Files at level 0, not compacted yet, in the column family that has the most.",
            properties.level0_files,
        )
        yield gauge(
            "holdfast_store_writes_stopped",
            "1 while RocksDB stops writes to catch up.",
            properties.writes_stopped,
        )
        yield gauge(
            "holdfast_store_write_rate_limit_bytes",
            "Bytes a second to which RocksDB slows writes; 0: no limit.",
            properties.write_rate_limit,
        )
        yield gauge(
            "holdfast_store_keys",
            "About how many rows the store has, kept replies and indexes included.",
            properties.keys,
        )
        yield gauge(
            "holdfast_disk_free_bytes",
            "Free bytes on the disk of the data directory.",
            properties.disk_free_bytes,
        )
        yield gauge(
            "holdfast_disk_size_bytes",
            "Size of the data directory's disk.",
            properties.disk_size_bytes,
        )
        yield gauge(
            "holdfast_disk_reserve_bytes",
            "If less than this is free, the node is full; 0: no check.",
            self.watch.reserve,
        )
        yield gauge(
            "holdfast_disk_full",
            "1 while the node is full: it takes no copies, and gives its shards to other owners.",
            self.watch.full is not None,
        )
