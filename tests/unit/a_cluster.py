"""What a process has of a cluster, for tests of its parts."""

from __future__ import annotations

from typing import Any

from holdfast_cluster.membership.access import ClusterAccess
from holdfast_cluster.placement.model import ClusterSettings, Keys

from tests.unit.fake_etcd import KEYS


def a_cluster(etcd: Any, watcher: Any, keys: Keys = KEYS) -> ClusterAccess:
    return ClusterAccess(etcd, keys, ClusterSettings(id="c"), watcher)
