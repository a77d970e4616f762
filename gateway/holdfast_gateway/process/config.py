"""What a gateway is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from holdfast.tls import Certificates, check_exposed
from holdfast_cluster.membership.etcd import EtcdTLS
from holdfast_cluster.routing.dispatch import DispatchLimits

from holdfast_gateway.edges.grpc import SESSIONS_MAX


@dataclass(frozen=True)
class GatewayConfig:
    """One gateway process. Addresses are host:port."""

    etcd_endpoints: tuple[str, ...]
    etcd_tls: EtcdTLS | None = None
    certificates: Certificates | None = None
    """TLS, towards clients and nodes; None: nothing is encrypted."""
    access: Path | None = None
    """The file that says who may call what; None: everybody may everything."""
    insecure: bool = False
    """Whether it may listen beyond loopback without TLS."""
    health_port: int | None = None
    """Serves health checks without TLS at the host of `listen`; 0: any free port; None: there is
    none."""
    cluster: str = "default"
    listen: str = "127.0.0.1:7400"
    settings: dict[str, int] = field(default_factory=dict)
    """The cluster settings that were given explicitly: they must agree with the cluster's."""
    reflection: bool = False
    """Serve gRPC server reflection: for development, it tells everybody the API."""
    trace: float = 0.0
    """The share of traces that begin here which is sampled; 0: no spans at all."""
    metrics_port: int | None = None
    """Where the page for Prometheus is, at the host of `listen`; 0: any free port; None: there is
    none."""
    drain_timeout_s: float = 10.0
    """How long calls under way may take when the gateway is stopped."""
    sessions_max: int = SESSIONS_MAX
    dispatch: DispatchLimits = field(default_factory=DispatchLimits)

    def validate(self) -> None:
        """Raises ValueError for what may not be."""
        check_exposed(self.listen, self.certificates is not None, self.insecure)
