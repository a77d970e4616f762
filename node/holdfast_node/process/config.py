"""What a node is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from holdfast.channels import is_wildcard
from holdfast.tls import Certificates, check_exposed
from holdfast_cluster.membership.etcd import EtcdTLS
from holdfast_cluster.placement.model import NODE_ID
from holdfast_cluster.routing.dispatch import DispatchLimits

from holdfast_node.objects.limits import EngineLimits


@dataclass(frozen=True)
class NodeConfig:
    """One node process. Addresses are host:port, times seconds, sizes bytes."""

    app: str
    """The app file or module; see holdfast.loading."""
    data: Path
    """The data directory; it makes the node: its id lives there."""
    etcd_endpoints: tuple[str, ...]
    etcd_tls: EtcdTLS | None = None
    certificates: Certificates | None = None
    """TLS between the processes of the cluster; None: nothing is encrypted."""
    insecure: bool = False
    """Whether it may listen beyond loopback without that."""
    health_port: int | None = None
    """Serves health checks without TLS at the host of `listen`; 0: any free port; None: there is
    none."""
    cluster: str = "default"
    name: str | None = None
    """The first part of the node's id, fixed at the directory's first start."""
    listen: str = "127.0.0.1:7401"
    advertise: str | None = None
    """Where others reach this node; the listening address when it is None."""
    stream_listen: str | None = None
    """Where calls and replication come in; any free port of the host of `listen` when it
    is None."""
    stream_advertise: str | None = None
    """Where others reach that; the host of `advertise` and the listening port when it is None."""
    trace: float = 0.0
    """The share of traces that begin here which is sampled; 0: no spans at all."""
    metrics_port: int | None = None
    """Where the page for Prometheus is, at the host of `listen`; 0: any free port; None: there is
    none."""
    host: str = ""
    """The machine, for keeping copies apart; the system's host name when empty."""
    zone: str = ""
    weight: int = 1
    settings: dict[str, int] = field(default_factory=dict)
    """The cluster settings that were given explicitly: they form the cluster, or must agree with
    it."""
    members_min: int | None = None
    """How many nodes the controller waits for before it assigns a new cluster's shards; None: the
    cluster's `replication`."""
    repair_after_s: float = 30.0
    """How long this node, as the controller, expects a vanished member back before its copies are
    made elsewhere."""
    move_rate: float = 50e6
    """Bytes a second that the node sends at most to make copies of shards elsewhere."""
    lease_ttl_s: int = 3
    replies_window_s: float = 600.0
    """How long a request can be sent again."""
    drain_timeout_s: float = 10.0
    memory_max_bytes: int = 0
    """Above this resident memory activations are evicted; 0: no such bound."""
    disk_reserve_bytes: int = 512 << 20
    """With less free on the disk of `data` the node is full; see holdfast_node.store.disk_space. 0:
    nobody looks ahead."""
    limits: EngineLimits = field(default_factory=EngineLimits)
    dispatch: DispatchLimits = field(default_factory=DispatchLimits)

    def validate(self) -> None:
        """Raises ValueError naming what is out of its range."""
        for address in (self.listen, *([self.stream_listen] if self.stream_listen else [])):
            check_exposed(address, self.certificates is not None, self.insecure)
        for reached, flag in (
            (self.advertise or self.listen, "--advertise"),
            (self.stream_advertise or "", "--stream-advertise"),
        ):
            if is_wildcard(reached):
                raise ValueError(
                    f"others cannot reach this node at {reached}: say by {flag} where they do"
                )
        if self.name is not None and not NODE_ID.fullmatch(self.name):
            raise ValueError(f"node name {self.name!r}: letters, digits and _.-, up to 128")
        if not 2 <= self.lease_ttl_s <= 600:
            raise ValueError(f"lease-ttl is {self.lease_ttl_s}; 2 to 600 seconds")
        if not 1 <= self.weight <= 100:
            raise ValueError(f"weight is {self.weight}; 1 to 100")
        if self.move_rate < 1e5:
            raise ValueError(f"move-rate is {self.move_rate / 1e6}; at least 0.1 MB/s")
        if self.limits.outbox.backlog_per_s < 1:
            raise ValueError(
                f"backlog-rate is {self.limits.outbox.backlog_per_s}; at least 1 a second"
            )
        if self.disk_reserve_bytes < 0:
            raise ValueError(f"disk-reserve is {self.disk_reserve_bytes >> 20}; at least 0 MiB")
        if self.members_min is not None and self.members_min < 1:
            raise ValueError(f"members-min is {self.members_min}; at least 1")
        if self.replies_window_s < 60:
            raise ValueError(f"replies-window is {self.replies_window_s}; at least 60 seconds")
