"""What a gateway is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_cluster.dispatch import DispatchLimits


@dataclass(frozen=True)
class GatewayConfig:
    """One gateway process. Addresses are host:port."""

    etcd_endpoints: tuple[str, ...]
    cluster: str = "default"
    listen: str = "127.0.0.1:7400"
    settings: dict[str, int] = field(default_factory=dict)
    """The cluster settings that were given explicitly: they must agree with the cluster's."""
    reflection: bool = False
    """Serve gRPC server reflection: for development, it tells everybody the API."""
    metrics_port: int | None = None
    """Where the page for Prometheus is, at the host of `listen`; 0: any free port; None: there is none."""
    drain_timeout_s: float = 10.0
    """How long calls under way may take when the gateway is stopped."""
    dispatch: DispatchLimits = field(default_factory=DispatchLimits)
