"""The configuration of a gateway."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from holdfast.tls import Certificates, check_exposed
from holdfast_cluster.membership.etcd import EtcdTLS
from holdfast_cluster.routing.pending import DispatchLimits

from holdfast_gateway.edges.session import SESSIONS_MAX


@dataclass(frozen=True)
class GatewayConfig:
    """The configuration of one gateway process. Addresses are host:port."""

    etcd_endpoints: tuple[str, ...]
    etcd_tls: EtcdTLS | None = None
    certificates: Certificates | None = None
    """TLS towards clients and nodes; None: no connection is encrypted."""
    access: Path | None = None
    """The file that says who may call what; None: every caller may do everything."""
    insecure: bool = False
    """Whether the gateway may listen beyond loopback without TLS."""
    health_port: int | None = None
    """The port for health checks without TLS, at the host of `listen`. 0: any free port. None: no
    such port."""
    cluster: str = "default"
    listen: str = "127.0.0.1:7400"
    settings: dict[str, int] = field(default_factory=dict)
    """The cluster settings that were given explicitly. They have to agree with the cluster's."""
    reflection: bool = False
    """Whether to serve gRPC server reflection. It shows the API to every caller; it is meant for
    development."""
    trace: float = 0.0
    """The part of the traces that begin here which is sampled, 0 to 1; 0: no spans at all."""
    metrics_port: int | None = None
    """The port of the Prometheus page, at the host of `listen`. 0: any free port. None: no page."""
    drain_timeout_s: float = 10.0
    """How long calls under way get to end when the gateway stops."""
    sessions_max: int = SESSIONS_MAX
    dispatch: DispatchLimits = field(default_factory=DispatchLimits)

    def validate(self) -> None:
        """Raise ValueError if the gateway would listen beyond loopback without TLS or
        `insecure`."""
        check_exposed(self.listen, self.certificates is not None, self.insecure)
