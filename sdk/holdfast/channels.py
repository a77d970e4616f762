"""gRPC channel and server options, the same in every process.

Servers take 128 streams of a connection at a time: without a limit, one that opens and resets
streams as fast as it can takes 2 GiB of a process in 3 s. They take no compressed messages: gRPC
inflates one before it looks at its size, 1 MB to 1 GiB. With decompression merely off a client
would hear that its call is malformed; the set of algorithms tells it UNIMPLEMENTED and why.

Keepalive alone does not notice a peer that is frozen: since gRPC's 60 s ping_timeout default
overrides the keepalive timeout, `http2.ping_timeout_ms` has to be set as well. Servers must allow
pings that often, and must not share a port silently with another process (SO_REUSEPORT is gRPC's
default).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import grpc

from holdfast.processes import who_listens
from holdfast.tls import TLS, Certificates

STREAMS_MAX = 128
"""Calls and sessions under way on one connection, which clients queue beyond it."""

MESSAGE_BYTES_MAX = 8 << 20
"""The largest message on any stream: one call of the largest size, with its envelope. Batches are
cut far below."""

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
# a new channel is a new connection, not one that is in backoff elsewhere
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    (
        "grpc.use_local_subchannel_pool",
        1,
    ),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.http2.min_ping_interval_without_data_ms", 2000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # identity
    ("grpc.per_message_decompression", 0),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


def open_channel(
    address: str,
    options: Sequence[tuple[str, int | str]] = (),
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """A channel to `host:port`, with TLS when there are credentials; `options` in place of ours.
    Whoever opens it closes it.

    Raises ValueError for what is no address.
    """
    address = canonical(address)
    merged = [*dict([*CHANNEL_OPTIONS, *options]).items()]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=merged)
    return grpc.aio.secure_channel(address, credentials, options=merged)


def open_client_channel(address: str, tls: TLS | None) -> grpc.aio.Channel:
    """A client's channel to a gateway."""
    return (
        open_channel(address)
        if tls is None
        else open_channel(address, tls.options(), tls.credentials())
    )


def open_process_channel(
    address: str, certificates: Certificates | None, options: Sequence[tuple[str, int | str]] = ()
) -> grpc.aio.Channel:
    """A channel from one process of a cluster to another."""
    if certificates is None:
        return open_channel(address, options)
    return open_channel(
        address, [*options, *certificates.channel_options()], certificates.channel_credentials()
    )


def open_blocking_channel(gateway: str, tls: TLS | None) -> grpc.Channel:
    """A channel from a client without an event loop to a gateway."""
    if tls is None:
        return grpc.insecure_channel(gateway, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(
        gateway, tls.credentials(), options=[*CHANNEL_OPTIONS, *tls.options()]
    )


class AddressInUse(Exception):
    """Another process listens at this address, or it is none."""


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`. An IPv6 host is written in brackets; Kubernetes'
    `$(POD_IP):7401`, without, is taken as well.

    Raises ValueError.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if (
        not host
        or not port.isdigit()
        or int(port) > 65_535
        or not set("[]/").isdisjoint(host)
        or (":" in host and not _ip(host))
    ):
        raise ValueError(f"{address!r} is no address: write host:port")
    return host, int(port)


def check_address(address: str) -> None:
    """Raises ValueError unless the address is `host:port`."""
    split_address(address)


def canonical(address: str) -> str:
    """The address, with an IPv6 host in brackets. Raises ValueError."""
    host, port = split_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(address: str) -> bool:
    """Whether this is every address of the machine: a process can listen there, and nobody can
    reach it there."""
    ip = _ip(address.rpartition(":")[0].strip("[]"))
    return ip is not None and ip.is_unspecified


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Listen at `host:port` (port 0: any free one); the port. Raises AddressInUse."""
    try:
        address = canonical(address)
    except ValueError as error:
        raise AddressInUse(f"cannot listen: {error}") from None
    try:
        port = (
            server.add_insecure_port(address)
            if credentials is None
            else server.add_secure_port(address, credentials)
        )
    except RuntimeError as failed:
        port, why = 0, f" ({failed})"
    else:
        why = ""
    if port == 0:
        who = who_listens(split_address(address)[1])
        raise AddressInUse(
            f"cannot listen at {address}: "
            + (f"the port is in use{who}" if who else f"is the port in use?{why}")
        )
    return port
