"""The configuration of a node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from holdfast.channels import is_wildcard
from holdfast.tls import Certificates, check_exposed
from holdfast_cluster.membership.etcd import EtcdTLS
from holdfast_cluster.placement.model import NODE_ID
from holdfast_cluster.routing.pending import DispatchLimits

from holdfast_node.objects.limits import EngineLimits


@dataclass(frozen=True)
class NodeConfig:
    """The configuration of one node process. Addresses are host:port, times are in seconds, sizes
    in bytes."""

    app: str
    """The app file or module; see holdfast.loading."""
    data: Path
    """The data directory. The node's id lives there."""
    etcd_endpoints: tuple[str, ...]
    etcd_tls: EtcdTLS | None = None
    certificates: Certificates | None = None
    """TLS between the processes of the cluster; None: no encryption."""
    insecure: bool = False
    """Whether the node may listen beyond loopback without TLS."""
    health_port: int | None = None
    """The port for health checks without TLS, at the host of `listen`; 0: any free port; None: no
    such port."""
    cluster: str = "default"
    name: str | None = None
    """The first part of the node's id, fixed at the directory's first start."""
    listen: str = "127.0.0.1:7401"
    advertise: str | None = None
    """The address at which other processes reach this node; None: the listening address."""
    stream_listen: str | None = None
    """The address for streams of calls and replication; None: any free port at the host of
    `listen`."""
    stream_advertise: str | None = None
    """The address at which other processes reach `stream_listen`; None: the host of `advertise` and
    the listening port."""
    trace: float = 0.0
    """The share of traces beginning in this node that is sampled; 0: no spans at all."""
    metrics_port: int | None = None
    """The port of the page for Prometheus, at the host of `listen`; 0: any free port; None: no
    page."""
    host: str = ""
    """The name of the machine, to keep copies on different machines; empty: the system's host
    name."""
    zone: str = ""
    weight: int = 1
    settings: dict[str, int] = field(default_factory=dict)
    """The cluster settings that were given explicitly. They form a new cluster, or must agree with
    the existing one."""
    members_min: int | None = None
    """The number of nodes for which the controller waits before it assigns a new cluster's shards;
    None: the cluster's `replication`."""
    repair_after_s: float = 30.0
    """How long the controller on this node waits for a vanished member, before it has the member's
    copies made on other nodes."""
    move_rate: float = 50e6
    """The most bytes a second that the node sends to make copies of shards on other nodes."""
    lease_ttl_s: int = 3
    replies_window_s: float = 600.0
    """For how long a request can be sent again, by the shard's time."""
    drain_timeout_s: float = 10.0
    memory_max_bytes: int = 0
    """Above this resident memory the node evicts activations; 0: no bound."""
    disk_reserve_bytes: int = 512 << 20
    """If less is free on the disk of `data`, the node is full; see holdfast_node.store.disk_space.
    0: no check ahead."""
    limits: EngineLimits = field(default_factory=EngineLimits)
    dispatch: DispatchLimits = field(default_factory=DispatchLimits)

    def validate(self) -> None:
        """Raise ValueError for the first option that is out of its range."""
        for address in (self.listen, *([self.stream_listen] if self.stream_listen else [])):
            check_exposed(address, self.certificates is not None, self.insecure)
        for reached, flag in (
            (self.advertise or self.listen, "--advertise"),
            (self.stream_advertise or "", "--stream-advertise"),
        ):
            if is_wildcard(reached):
                raise ValueError(
                    f"other processes cannot reach this node at {reached}:"
                    f" give its reachable address with {flag}"
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
