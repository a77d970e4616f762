"""The parts that give a process access to its cluster."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.tls import Certificates

from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import ClusterSettings, Keys


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """Access to one cluster: its etcd, keys, settings and view, and its certificates if it has any.

    A watch on etcd keeps the view current.
    """

    etcd: GuardedEtcd
    keys: Keys
    settings: ClusterSettings
    watcher: ViewWatcher
    certificates: Certificates | None = None
