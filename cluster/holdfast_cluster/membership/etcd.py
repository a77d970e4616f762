"""A thin etcd client: endpoints, transactions, a lease that is kept alive, a watch.

docs/decisions/0002-etcd-client.md says why Holdfast has its own client. Its rules:

- The client tries a read on every endpoint in turn. It sends a transaction once. If the reply is
  lost, the transaction may have happened (`EtcdUnknown`), and only a read tells.
- A lease's local end counts from the moment when the renewal was *sent*. So the lease never ends
  later here than in etcd.
- A watch lists the rows first, then follows from that revision until it breaks. Then its user lists
  again: an etcd that was put back may be at any revision. So a watch that resumed at the next
  revision could miss every change. A stream demands a leader: an etcd member that is cut off from
  its quorum ends the stream, and does not go silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from holdfast.files import fingerprint
from holdfast.tls import TLS

from holdfast_cluster.etcdpb import etcd_pb2 as pb

log = logging.getLogger(__name__)

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),  # etcd refuses pings more often than every 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", 64 << 20),
]
_HAS_LEADER = (("hasleader", "true"),)
_PAGE_ROWS = 1_000
TXN_OPS_MAX = 100
"""How many operations a transaction may have here. etcd accepts 128 by default."""


class EtcdError(Exception):
    """etcd refused a request, or a request to etcd failed."""


class EtcdUnavailable(EtcdError):
    """No endpoint answered. The request was no transaction, so it may be sent again."""


class EtcdUnknown(EtcdError):
    """The reply to a transaction was lost. Only a read tells whether the transaction happened."""


class EtcdTLS:
    """The files of a TLS connection to etcd.

    `cert` and `key` are needed where etcd demands a client certificate. New connections use changed
    files. If changed files are missing or do not fit together, this logs an error, and the last
    correct ones stay in use. Raise ValueError when the first files are wrong.
    """

    def __init__(self, ca: Path, cert: Path | None = None, key: Path | None = None) -> None:
        self._files = (ca, cert, key)
        self._version = 0
        self._seen = fingerprint(self._files)
        self._load()

    def version(self) -> int:
        """Read the files again if they changed, and return the number of readings so far."""
        seen = fingerprint(self._files)
        if seen != self._seen:
            self._seen = seen
            try:
                self._load()
            except ValueError as error:
                log.error("etcd's certificates: %s; the old ones stay in use", error)
            else:
                log.info("etcd's certificates: the changed files are in use")
        return self._version

    def credentials(self) -> grpc.ChannelCredentials:
        return self._credentials

    def _load(self) -> None:
        try:
            self._credentials = TLS(*self._files).credentials()
        except OSError as error:
            raise ValueError(str(error)) from None
        self._version += 1


def etcd_tls(ca: Path | None, cert: Path | None, key: Path | None) -> EtcdTLS | None:
    """Return the TLS files that the options name; None if they name none.

    Raise ValueError when a file that belongs to the named ones is missing or wrong.
    """
    if ca is None and cert is None and key is None:
        return None
    if ca is None or (cert is None) != (key is None):
        raise ValueError(
            "TLS to etcd needs --etcd-ca; give --etcd-cert and --etcd-key both, or neither"
        )
    return EtcdTLS(ca, cert, key)


@dataclass(frozen=True, slots=True)
class Listing:
    """Every row of a watched prefix as of `revision`. It replaces all earlier rows."""

    rows: list[pb.KeyValue]
    revision: int


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of a watched prefix up to `revision`, in order."""

    events: list[pb.Event]
    revision: int


@dataclass(slots=True)
class WatchState:
    """The state of a watch: whether it is connected, and since when not (monotonic seconds)."""

    connected: bool = False
    disconnected_since: float = field(default_factory=time.monotonic)


def get(key: str) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=key.encode()))


def put(key: str, value: bytes, lease: int = 0) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key.encode(), value=value, lease=lease))


def delete(key: str) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key.encode()))


def delete_prefix(prefix: str) -> pb.RequestOp:
    return pb.RequestOp(
        request_delete_range=pb.DeleteRangeRequest(
            key=prefix.encode(), range_end=_prefix_end(prefix)
        )
    )


def absent(key: str) -> pb.Compare:
    """Return a comparison that holds while there is no such row."""
    return pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key.encode(), mod_revision=0
    )


def unchanged(key: str, value: bytes | None) -> pb.Compare:
    """Return a comparison that holds while the row has this value; None: while there is no such
    row.

    No comparison uses revisions: an etcd that was put back counts them a second time.
    """
    if value is None:
        return absent(key)
    return pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.VALUE, key=key.encode(), value=value
    )


class Etcd:
    """A client of one etcd cluster.

    `endpoints` are `host:port`. `timeout_s` bounds each attempt of a request.
    """

    def __init__(
        self, endpoints: Iterable[str], *, timeout_s: float = 2.0, tls: EtcdTLS | None = None
    ) -> None:
        self.endpoints = [e.removeprefix("http://").removeprefix("https://") for e in endpoints]
        if not self.endpoints:
            raise ValueError("etcd needs at least one endpoint")
        self._timeout_s = timeout_s
        self._tls = tls
        self._channels: dict[tuple[str, object], grpc.aio.Channel] = {}
        self._at = random.randrange(len(self.endpoints))

    @property
    def endpoint(self) -> str:
        """The endpoint in use now."""
        return self.endpoints[self._at % len(self.endpoints)]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def get(self, key: str) -> pb.KeyValue | None:
        """Return the row of a key, None if there is none. Linearizable. Raise EtcdUnavailable."""
        reply = await self._unary(
            "KV/Range", pb.RangeRequest(key=key.encode()), pb.RangeResponse, repeat=True
        )
        return reply.kvs[0] if reply.kvs else None

    async def list_prefix(self, prefix: str) -> Listing:
        """Return all rows under a prefix, as of one revision. Raise EtcdUnavailable."""
        start, end = prefix.encode(), _prefix_end(prefix)
        rows: list[pb.KeyValue] = []
        revision = 0
        while True:
            request = pb.RangeRequest(key=start, range_end=end, limit=_PAGE_ROWS, revision=revision)
            reply = await self._unary("KV/Range", request, pb.RangeResponse, repeat=True)
            rows.extend(reply.kvs)
            revision = revision or reply.header.revision
            if not reply.more:
                return Listing(rows, revision)
            start = reply.kvs[-1].key + b"\0"

    async def txn(self, compare: list[pb.Compare], success: list[pb.RequestOp]) -> int:
        """Do `success` if every comparison holds. Return its revision; 0 when it was not done.

        Raise EtcdUnknown when the reply was lost.
        """
        reply = await self.transact(compare, success, [])
        return int(reply.header.revision) if reply.succeeded else 0

    async def transact(
        self, compare: list[pb.Compare], success: list[pb.RequestOp], failure: list[pb.RequestOp]
    ) -> pb.TxnResponse:
        """Run a transaction, and return etcd's response. Raise EtcdUnknown when it was lost."""
        assert len(success) <= TXN_OPS_MAX
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        return await self._unary("KV/Txn", request, pb.TxnResponse)  # type: ignore[no-any-return]

    async def grant(self, ttl_s: int) -> int:
        """Create a lease, and return its id.

        Repeating this is safe: a lease whose id was lost expires by itself.
        """
        reply = await self._unary(
            "Lease/LeaseGrant", pb.LeaseGrantRequest(TTL=ttl_s), pb.LeaseGrantResponse, repeat=True
        )
        return int(reply.ID)

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys."""
        await self._unary(
            "Lease/LeaseRevoke",
            pb.LeaseRevokeRequest(ID=lease),
            pb.LeaseRevokeResponse,
            repeat=True,
        )

    async def alarms(self) -> set[str]:
        """Return the alarms for which etcd takes no writes. Raise EtcdError.

        NOSPACE: etcd has reached its quota. CORRUPT: its data is corrupt.
        """
        reply = await self._unary(
            "Maintenance/Alarm", pb.AlarmRequest(), pb.AlarmResponse, repeat=True
        )
        return {pb.AlarmType.Name(member.alarm) for member in reply.alarms}

    async def renew(self, lease: int, timeout_s: float) -> int:
        """Renew a lease, and return the seconds that it has now; 0 when it has ended.

        Raise EtcdUnavailable.
        """
        # Each renewal has a short stream of its own: gRPC ends it at its deadline, so no read has
        # to be abandoned.
        call: Any = self._channel().stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )(timeout=timeout_s, metadata=_HAS_LEADER)
        try:
            await call.write(pb.LeaseKeepAliveRequest(ID=lease))
            reply = await call.read()
            if reply is grpc.aio.EOF:
                raise EtcdUnavailable(f"{self.endpoint}: the keep-alive stream ended")
            return int(reply.TTL)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, unknown=False) from None
        except asyncio.InvalidStateError:
            self._at += 1
            raise EtcdUnavailable(f"{self.endpoint}: the keep-alive stream broke") from None
        finally:
            call.cancel()

    async def watch(
        self, prefix: str, state: WatchState
    ) -> AsyncGenerator[Listing | Changes, None]:
        """Follow a prefix. Yield a Listing, then Changes; none is skipped, none is repeated.

        Raise EtcdError when etcd does not answer, when the watch breaks, when etcd has compacted
        the next revision away, or when etcd went back.
        """
        listing = await self.list_prefix(prefix)
        yield listing
        revision = listing.revision
        async with contextlib.aclosing(self._watch_from(prefix, revision + 1, state)) as batches:
            async for changes in batches:
                if changes.revision > revision:
                    revision = changes.revision
                    yield changes

    async def _watch_from(
        self, prefix: str, revision: int, state: WatchState
    ) -> AsyncGenerator[Changes, None]:
        call: Any = self._channel().stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )(metadata=_HAS_LEADER)
        create = pb.WatchCreateRequest(
            key=prefix.encode(),
            range_end=_prefix_end(prefix),
            start_revision=revision,
            progress_notify=True,
        )
        try:
            await call.write(pb.WatchRequest(create_request=create))
            while (reply := await call.read()) is not grpc.aio.EOF:
                if reply.header.revision < revision - 1:
                    # The watch would wait for a revision that this process has seen already.
                    raise EtcdError(
                        f"{self.endpoint}: etcd went back: it is at revision"
                        f" {reply.header.revision}, but was at {revision - 1} before"
                    )
                if reply.compact_revision:
                    raise EtcdError(f"{self.endpoint}: revision {revision} was compacted away")
                if reply.canceled:
                    raise EtcdUnavailable(
                        f"{self.endpoint}: watch cancelled: {reply.cancel_reason}"
                    )
                if not state.connected:
                    state.connected = True
                    log.info("watching etcd at %s", self.endpoint)
                if reply.events:
                    # All events of a revision come in one message, because the request asks for no
                    # fragments. So the changes are complete up to this revision.
                    yield Changes(list(reply.events), reply.events[-1].kv.mod_revision)
            raise EtcdUnavailable(f"{self.endpoint}: the watch ended")
        except grpc.aio.AioRpcError as error:
            raise self._failed(error, unknown=False) from None
        except asyncio.InvalidStateError:
            self._at += 1
            raise EtcdUnavailable(f"{self.endpoint}: the watch broke") from None
        finally:
            call.cancel()
            self._away(state)

    @staticmethod
    def _away(state: WatchState) -> None:
        if state.connected:
            state.connected = False
            state.disconnected_since = time.monotonic()

    async def _unary(
        self, method: str, request: Any, reply_type: Any, *, repeat: bool = False
    ) -> Any:
        attempts = len(self.endpoints) if repeat else 1
        for attempt in range(attempts):
            call = self._channel().unary_unary(
                f"/etcdserverpb.{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=reply_type.FromString,
            )
            try:
                return await call(request, timeout=self._timeout_s)
            except grpc.aio.AioRpcError as error:
                failure = self._failed(error, unknown=not repeat)
                if attempt == attempts - 1 or not isinstance(failure, EtcdUnavailable):
                    raise failure from None
        raise AssertionError("unreachable")

    def _failed(self, error: grpc.aio.AioRpcError, *, unknown: bool) -> EtcdError:
        what = f"{self.endpoint}: {error.code().name}: {error.details()}"
        if error.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
        ):
            self._at += 1
            return EtcdUnknown(what) if unknown else EtcdUnavailable(what)
        return EtcdError(what)

    def _channel(self) -> grpc.aio.Channel:
        key = self.endpoint, None if self._tls is None else self._tls.version()
        channel = self._channels.get(key)
        if channel is None:
            if self._tls is not None:
                channel = grpc.aio.secure_channel(
                    self.endpoint, self._tls.credentials(), options=_OPTIONS
                )
            else:
                channel = grpc.aio.insecure_channel(self.endpoint, options=_OPTIONS)
            # A channel with older certificates stays for the requests under way on it.
            self._channels[key] = channel
        return channel


class Lease:
    """A lease that is kept alive.

    `expires_at`, in seconds of `clock`: until then the lease has certainly not ended in etcd.
    """

    def __init__(
        self, etcd: Etcd, ttl_s: int, clock: Callable[[], float], renewed: Callable[[float], None]
    ) -> None:
        """Set up the lease. Each renewal calls `renewed` with the lease's new end."""
        self._etcd = etcd
        self._clock = clock
        self._renewed = renewed
        self.ttl_s = ttl_s
        self.id = 0
        self.expires_at = 0.0

    async def grant(self) -> None:
        """Create the lease in etcd. Raise EtcdUnavailable."""
        sent = self._clock()
        self.id = await self._etcd.grant(self.ttl_s)
        self.expires_at = sent + self.ttl_s

    async def keep(self) -> None:
        """Renew the lease until etcd says that it has ended, then return.

        While etcd is away, try again and again.
        """
        interval = self.ttl_s / 3
        while True:
            await asyncio.sleep(interval)
            if not await self.renew():
                return

    async def renew(self) -> bool:
        """Renew once. Wait for etcd without limit. Return False when the lease has ended."""
        while True:
            sent = self._clock()
            try:
                ttl = await self._etcd.renew(self.id, timeout_s=max(self.ttl_s / 3, 0.5))
            except EtcdError as error:
                log.debug("renewing the lease: %s", error)
                await asyncio.sleep(min(self.ttl_s / 10, 0.3))
                continue
            if ttl <= 0:
                return False
            self.expires_at = sent + ttl
            self._renewed(self.expires_at)
            return True


def _prefix_end(prefix: str) -> bytes:
    raw = prefix.encode()
    assert raw, "an empty prefix would match every key"
    assert raw[-1] != 0xFF
    return raw[:-1] + bytes([raw[-1] + 1])
