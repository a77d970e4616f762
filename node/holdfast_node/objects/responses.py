"""The response cache. With it a request that is sent again takes effect only once.

A turn that writes also writes `request id -> identity of the request, reply` into its own entry. If
the caller brought its own id or idempotency key, a turn without writes does the same. A later
attempt gets this kept reply.

Forgetting follows no wall clock. A row is kept in a bucket of the *shard's time* (see `shards.py`)
at which it came. The owner forgets whole buckets: it logs a `Forgotten`, which every copy applies
and every snapshot carries. Ids begin with the time at which they were made. So the shard remembers
only the newest id of the forgotten buckets. A later attempt may not be found. If its id is newer
than that, the request has not been run. Otherwise the owner cannot know, and refuses it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

from holdfast.errors import DeadlineExceeded, InvalidArgument
from holdfast.ids import EFFECT, KEYED, id_prefix
from holdfast.signature import Handler, Sending
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.clocks.cluster_time import WALL

from holdfast_node.log.changes import NOTHING_FORGOTTEN, Forgotten, decode_forgotten
from holdfast_node.log.shards import DAY_BUCKET_MS, LATE_S, TIMED_BUCKET_MS, Shard
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

_AHEAD_MAX_MS = 600_000
_RETRIED_MAX = 100_000
_DAY_MS = 24 * 3_600_000
_NO_BUCKET = 1 << 32

IDENTITY_BYTES = 16
LEGACY_CHECKSUM_BYTES = 4
LEGACY_IDENTITY = bytes(IDENTITY_BYTES - LEGACY_CHECKSUM_BYTES)
"""The first bytes of the identity of a reply that format 1 kept. A checksum follows, because format
1 kept nothing better."""
_RESULT, _ERROR = b"\0", b"\1"
_row = Struct(f">{IDENTITY_BYTES}s8sQc")


class Response(NamedTuple):
    """A kept reply: the result, or the final error of the application."""

    result: bytes
    error: pb.Error | None


class ResponseCache:
    """The kept replies of a node. `window_s`: for how many seconds of a shard's time a request may
    be sent again.

    A request that may have been run before has to be looked up with `find`. That holds in four
    cases: it is a later attempt; its id tells no time; this owner may have run a later attempt of
    it (`may_have_run`); an earlier owner may have done so (`Shard.lookup_all_until`).
    """

    def __init__(
        self, store: Store, window_s: float, clock: Callable[[], int] | None = None
    ) -> None:
        """`clock`: Unix time in ms. If an id tells a time that is far ahead of it, the reply is
        kept for a day."""
        self._store = store
        self._now_ms = clock or WALL.now_ms
        self._window_ms = int(window_s * 1000)
        self.ahead_to = b""
        self._retried: dict[bytes, float] = {}  # time by id, the oldest first
        self._forgot_at = float("-inf")
        self.tick()

    def tick(self) -> None:
        """Follow the clock. Call it a few times a second."""
        self.ahead_to = id_prefix(self._now_ms() + _AHEAD_MAX_MS)

    def find(
        self, shard: Shard, identity: bytes, call: pb.Call, before: bool = False
    ) -> Response | None:
        """Return the kept reply of the request with this identity (see `identity_of`); None if
        there is none. `before`: look only for replies that an earlier owner kept lately. That is
        enough for a first attempt that may be late.

        Raises DeadlineExceeded for a later attempt whose reply may have been forgotten, and
        InvalidArgument if another call had the id.
        """
        request_id = call.request_id
        for key in (
            self._places_before(shard, request_id) if before else self._places(shard, request_id)
        ):
            row = self._store.get("replies", key)
            if row is not None:
                return _read(row, identity, call)
        if (
            call.attempt
            and request_id[0] < EFFECT
            and request_id <= (newest := self.forgotten(shard.number).newest)
        ):
            raise DeadlineExceeded(
                f"shard {shard.number} has forgotten requests up to {_time_of(newest)}, and the id"
                f" of this one was made at {_time_of(request_id)} by its maker's clock: whether it"
                " took effect is not known. If it was made just now, that clock is behind"
            )
        return None

    def _places(self, shard: Shard, request_id: bytes) -> Iterator[bytes]:
        """Yield the keys where a reply may lie: in each bucket that is not forgotten, the newest
        first. A reply that is there counts, however old it is."""
        forgotten = self.forgotten(shard.number)
        if request_id[0] < EFFECT:
            for bucket in range(
                int(shard.time_ms) // TIMED_BUCKET_MS,
                self._first(shard, keys.TIMED, forgotten.timed) - 1,
                -1,
            ):
                yield keys.reply_bucket(shard.number, keys.TIMED, bucket) + request_id
        for bucket in range(
            int(shard.time_ms) // DAY_BUCKET_MS, self._first(shard, keys.DAY, forgotten.day) - 1, -1
        ):
            yield keys.reply_bucket(shard.number, keys.DAY, bucket) + request_id

    def _places_before(self, shard: Shard, request_id: bytes) -> Iterator[bytes]:
        """Yield the keys where an earlier owner may have kept the reply to a request whose first
        attempt is still on its way."""
        taken_ms = shard.taken_ms
        first_ms = max(0, taken_ms - int(LATE_S * 1000))
        # The earlier owner's clock decided which of the two classes it used.
        for kept, width in (
            (keys.TIMED, TIMED_BUCKET_MS),
            (keys.DAY, DAY_BUCKET_MS),
        ):
            for bucket in range(taken_ms // width, first_ms // width - 1, -1):
                yield keys.reply_bucket(shard.number, kept, bucket) + request_id

    def _first(self, shard: Shard, kept: int, forgotten: int) -> int:
        """Return the first bucket that is not empty. Entries commit in order, so no earlier bucket
        is filled later."""
        first = shard.first_buckets.get(kept)
        if first is None:
            first = next(
                self._there(shard, kept, forgotten, keys.reply_bucket(shard.number, kept + 1, 0)),
                None,
            )
            if first is None:
                return _NO_BUCKET
            shard.first_buckets[kept] = first
        return max(first, forgotten)

    def row(
        self,
        shard: Shard,
        identity: bytes,
        object_hash: bytes,
        request_id: bytes,
        result: bytes,
        error: bytes = b"",
    ) -> tuple[bytes, bytes]:
        """Return the row that keeps a reply: a result, or an application's error as protobuf."""
        if request_id[0] >= EFFECT or request_id >= self.ahead_to:
            # The id tells no time, or a time so far ahead that it would be the newest forgotten id
            # for long.
            key = shard.day_bucket + request_id
        else:
            key = shard.timed_bucket + request_id
        return key, identity + object_hash + shard.time_bytes + (
            _ERROR + error if error else _RESULT + result
        )

    def note_retried(self, request_id: bytes) -> None:
        """Note that a request was run as a retry. If its first attempt arrives later, it must be
        looked up."""
        self._retried.pop(request_id, None)  # it is the newest now
        self._retried[request_id] = boottime()
        if len(self._retried) > _RETRIED_MAX:
            self._forgot_at = self._retried.pop(next(iter(self._retried)))

    def may_have_run(self, request_id: bytes, now: float) -> bool:
        """Return whether this owner may have run a later attempt of a request whose first attempt
        comes now. `now`: seconds of `boottime`."""
        return request_id in self._retried or now < self._forgot_at + LATE_S

    # -- forgetting

    def forgotten(self, shard: int) -> Forgotten:
        """Return what a shard has forgotten, from the store."""
        raw = self._store.get("replies", keys.forgotten_key(shard))
        return NOTHING_FORGOTTEN if raw is None else decode_forgotten(raw)

    def due(self, shard: Shard) -> Forgotten | None:
        """Return what a shard may forget now, for the owner to log; None if there is nothing to
        forget."""
        before = self.forgotten(shard.number)
        timed = max(before.timed, _oldest(shard, TIMED_BUCKET_MS, self._window_ms))
        day = max(before.day, _oldest(shard, DAY_BUCKET_MS, _DAY_MS))
        newest = before.newest
        there = False
        for bucket in self._there(
            shard, keys.TIMED, before.timed, keys.reply_bucket(shard.number, keys.TIMED, timed)
        ):
            there = True
            newest = max(newest, self._last(shard, bucket))
        for _ in self._there(
            shard, keys.DAY, before.day, keys.reply_bucket(shard.number, keys.DAY, day)
        ):
            there = True
        return Forgotten(timed, day, newest) if there else None

    def _there(self, shard: Shard, kept: int, first: int, stop: bytes) -> Iterator[int]:
        """Yield the buckets from `first` up to the key `stop` that are not empty."""
        while True:
            found = next(
                self._store.scan("replies", keys.reply_bucket(shard.number, kept, first), stop),
                None,
            )
            if found is None:
                return
            bucket = int.from_bytes(
                found[0][keys.REPLY_BUCKET_BYTES - 4 : keys.REPLY_BUCKET_BYTES], "big"
            )
            yield bucket
            first = bucket + 1

    def _last(self, shard: Shard, bucket: int) -> bytes:
        start, end = (keys.reply_bucket(shard.number, keys.TIMED, n) for n in (bucket, bucket + 1))
        key, _ = next(self._store.scan("replies", start, end, reverse=True))
        return key[keys.REPLY_BUCKET_BYTES :]


def _oldest(shard: Shard, bucket_ms: int, window_ms: int) -> int:
    """Return the oldest bucket of the window."""
    return max(0, (int(shard.time_ms) - window_ms) // bucket_ms)


def identity_of(object_digest: bytes, handler: Handler | Sending, call: pb.Call) -> bytes:
    """Return the identity of a request, which differs for different requests under one id: 128 bits
    of BLAKE2b over object, method, codec and arguments.

    A checksum would not be enough: a caller that chooses the arguments can choose the checksum.
    """
    digest = handler.identity[call.codec == pb.CODEC_JSON].copy()
    digest.update(object_digest + call.arguments)
    return digest.digest()


def object_digest(kind: str, key: str) -> bytes:
    """Return the object's part of a request's identity: 16 bytes."""
    raw = kind.encode()
    return blake2b(len(raw).to_bytes(4, "big") + raw + key.encode(), digest_size=16).digest()


def _legacy_checksum(call: pb.Call) -> bytes:
    """Return the checksum by which format 1 told requests under one id apart."""
    target = zlib.crc32(f"{call.kind}/{call.key}".encode()) ^ zlib.crc32(call.method.encode())
    return zlib.crc32(call.arguments, target ^ call.codec).to_bytes(LEGACY_CHECKSUM_BYTES, "big")


def _read(row: bytes, identity: bytes, call: pb.Call) -> Response:
    kept, _, _, outcome = _row.unpack_from(row)
    if kept != identity and not (
        kept.startswith(LEGACY_IDENTITY) and kept.endswith(_legacy_checksum(call))
    ):
        what = (
            "idempotency_key was"
            if call.request_id[0] == KEYED
            else f"request id {call.request_id.hex()} was"
        )
        raise InvalidArgument(
            f"this {what} used for another call", path="request_id", definite=True
        )
    body = row[_row.size :]
    return Response(body, None) if outcome == _RESULT else Response(b"", pb.Error.FromString(body))


def _time_of(request_id: bytes) -> str:
    seconds = int.from_bytes(request_id[:6], "big") / 1000
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s after 1970"
