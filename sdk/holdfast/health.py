"""Health for probes: `grpc.health.v1` on a port of its own. It has no TLS, because probes of
Kubernetes cannot use TLS.

The service "" says whether calls should come (readiness). The service LIVE says that the process
runs (liveness). Only readiness depends on etcd.
"""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from holdfast.channels import SERVER_OPTIONS, bind

LIVE = "live"
_BYTES_MAX = 4096  # of a request, which is the name of a service


class HealthPort:
    """Serves the answers of `servicer`, and nothing else."""

    def __init__(self, servicer: health.aio.HealthServicer) -> None:
        self._servicer = servicer
        self._server: grpc.aio.Server | None = None

    async def listen(self, address: str) -> int:
        """Listen at `host:port` (port 0: any free one), and return the port. Raise AddressInUse."""
        self._server = grpc.aio.server(
            options=[
                *dict([*SERVER_OPTIONS, ("grpc.max_receive_message_length", _BYTES_MAX)]).items()
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, self._server)
        port = bind(self._server, address)
        await self._server.start()
        return port

    async def close(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
