"""gRPC channel and server options, the same in every process.

Servers accept 128 streams of a connection at a time. Without this limit, a connection that opens
and resets streams as fast as it can takes 2 GiB of a process in 3 s.

Servers accept no compressed messages, because gRPC inflates a message before it looks at its size:
1 MB becomes 1 GiB. If only decompression were off, a client would hear that its call is malformed.
With the set of allowed algorithms, the client gets UNIMPLEMENTED and the reason.

Keepalive alone does not notice a frozen peer: gRPC's default ping_timeout of 60 s overrides the
keepalive timeout. So `http2.ping_timeout_ms` is set as well. Servers must allow pings as frequent
as these. They must not share a port silently with another process, as gRPC's default SO_REUSEPORT
would let them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import grpc

from holdfast.processes import who_listens
from holdfast.tls import TLS, Certificates

STREAMS_MAX = 128
"""The most calls and sessions under way on one connection. Clients queue those beyond it."""

MESSAGE_BYTES_MAX = 8 << 20
"""The largest message on any stream: one call of the largest size, with its envelope. Batches are
much smaller.
"""

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 5000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]
# With `use_local_subchannel_pool` a new channel makes a connection of its own. Otherwise it would
# join one that another channel has, even if that one is in backoff.
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
    """Open a channel to `host:port`, with TLS if there are credentials. `options` override the
    defaults.

    The caller closes the channel. Raises ValueError if the address is malformed.
    """
    address = canonical(address)
    merged = [*dict([*CHANNEL_OPTIONS, *options]).items()]
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=merged)
    return grpc.aio.secure_channel(address, credentials, options=merged)


def open_client_channel(address: str, tls: TLS | None) -> grpc.aio.Channel:
    """Open a client's channel to a gateway."""
    return (
        open_channel(address)
        if tls is None
        else open_channel(address, tls.options(), tls.credentials())
    )


def open_process_channel(
    address: str, certificates: Certificates | None, options: Sequence[tuple[str, int | str]] = ()
) -> grpc.aio.Channel:
    """Open a channel from one process of a cluster to another."""
    if certificates is None:
        return open_channel(address, options)
    return open_channel(
        address, [*options, *certificates.channel_options()], certificates.channel_credentials()
    )


def open_blocking_channel(gateway: str, tls: TLS | None) -> grpc.Channel:
    """Open a channel to a gateway from a client without an event loop."""
    if tls is None:
        return grpc.insecure_channel(gateway, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(
        gateway, tls.credentials(), options=[*CHANNEL_OPTIONS, *tls.options()]
    )


class AddressInUse(Exception):
    """Another process listens at this address, or the address is malformed."""


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`. Raise ValueError if the address is malformed.

    An IPv6 host is written in brackets. Kubernetes' `$(POD_IP):7401`, without brackets, is accepted
    as well.
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
        raise ValueError(f"{address!r} is not an address: write host:port")
    return host, int(port)


def check_address(address: str) -> None:
    """Raise ValueError unless the address is `host:port`."""
    split_address(address)


def canonical(address: str) -> str:
    """Return the address, with an IPv6 host in brackets. Raise ValueError if it is malformed."""
    host, port = split_address(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(address: str) -> bool:
    """Return whether this address means every address of the machine. A process can listen there,
    but others cannot reach it there.
    """
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
    """Listen at `host:port` (port 0: any free one), and return the port. Raise AddressInUse."""
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
