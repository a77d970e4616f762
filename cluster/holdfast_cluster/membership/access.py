"""What a process has of its cluster."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.tls import Certificates

from holdfast_cluster.membership.guarded import GuardedEtcd
from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import ClusterSettings, Keys


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """One cluster's etcd, its key space and settings, the view that a watch keeps current, and the
    certificates, if there are any."""

    etcd: GuardedEtcd
    keys: Keys
    settings: ClusterSettings
    feed: ViewWatcher
    certificates: Certificates | None = None
