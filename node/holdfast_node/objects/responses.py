"""The response cache: what makes a request that is sent again take effect once.

A turn that writes also writes `request id -> identity of the request, reply`, in its own entry. So
does every turn whose caller brought the id or an idempotency key of its own, whatever the turn
wrote. A later attempt is answered from there.

Forgetting follows no wall clock. A row is kept in a bucket of the *shard's time* (see `shards.py`),
in which the row came. The owner forgets whole buckets: it logs a `Forgotten`, which every copy
applies and every snapshot carries. Ids begin with the time at which they were made, so of the
buckets that are gone one thing is remembered: the newest id among them. A later attempt that is not
found is refused only if its id is not newer than that: nobody can tell any more whether it has
happened. Anything newer has not happened.
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
"""What the identity begins with of a reply that format 1 kept: a checksum follows, for nothing
better was kept."""
_RESULT, _ERROR = b"\0", b"\1"
_row = Struct(f">{IDENTITY_BYTES}s8sQc")


class Response(NamedTuple):
    """A kept reply: the result, or the application's own final error."""

    result: bytes
    error: pb.Error | None


class ResponseCache:
    """The kept replies of a node. `window_s`: how long, of a shard's time, a request may be sent
    again after it came.

    A request may have been run before, and has to be looked up with `find`, when it is a later
    attempt, when its id tells no time, when a later attempt of it may have been run by this owner
    (`may_have_run`), or by one before (`Shard.look_until`).
    """

    def __init__(
        self, store: Store, window_s: float, clock: Callable[[], int] | None = None
    ) -> None:
        """`clock`: Unix time in ms. It decides only how long a reply is kept whose id tells a time
        that is far ahead."""
        self._store = store
        self._now_ms = clock or WALL.now_ms
        self._window_ms = int(window_s * 1000)
        self.ahead_to = b""
        self._retried: dict[bytes, float] = {}  # by id, when: the oldest first
        self._forgot_at = float("-inf")
        self.tick()

    def tick(self) -> None:
        """Follow the clock; call it a few times a second."""
        self.ahead_to = id_prefix(self._now_ms() + _AHEAD_MAX_MS)

    def find(
        self, shard: Shard, identity: bytes, call: pb.Call, before: bool = False
    ) -> Response | None:
        """The kept reply of the request with this identity (see `identity_of`). `before`: only one
        that an owner before kept lately, which is all that a first attempt has to fear that is
        late.

        Raises DeadlineExceeded for a later attempt whose reply may have been forgotten, and
        InvalidArgument for an id that another call had.
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
        """Where a reply may lie: in any bucket that is not forgotten, the newest first. What is
        there counts, however old it is."""
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
        """Where an owner before may have kept the reply of a request of which an attempt is still
        on its way."""
        taken_ms = shard.taken_ms
        first_ms = max(0, taken_ms - int(LATE_S * 1000))
        # which of them hung on that owner's clock
        for kept, width in (
            (keys.TIMED, TIMED_BUCKET_MS),
            (keys.DAY, DAY_BUCKET_MS),
        ):
            for bucket in range(taken_ms // width, first_ms // width - 1, -1):
                yield keys.reply_bucket(shard.number, kept, bucket) + request_id

    def _first(self, shard: Shard, kept: int, forgotten: int) -> int:
        """The first bucket that holds anything. Entries commit in order, so none before it is
        filled later."""
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
        """The row that keeps a reply: a result, or the error of an application as protobuf."""
        if request_id[0] >= EFFECT or request_id >= self.ahead_to:
            # its id tells no time, or one that would be the newest for long
            key = shard.day_bucket + request_id
        else:
            key = shard.timed_bucket + request_id
        return key, identity + object_hash + shard.time_bytes + (
            _ERROR + error if error else _RESULT + result
        )

    def note_retried(self, request_id: bytes) -> None:
        """This request was run as a retry: should its first attempt arrive later, it must be looked
        up."""
        self._retried.pop(request_id, None)  # it is the newest now
        self._retried[request_id] = boottime()
        if len(self._retried) > _RETRIED_MAX:
            self._forgot_at = self._retried.pop(next(iter(self._retried)))

    def may_have_run(self, request_id: bytes, now: float) -> bool:
        """Whether a later attempt of a request that comes now (seconds of `boottime`) as its first
        may have been run here."""
        return request_id in self._retried or now < self._forgot_at + LATE_S

    # -- forgetting

    def forgotten(self, shard: int) -> Forgotten:
        """What a shard has forgotten, as the store shows it."""
        raw = self._store.get("replies", keys.forgotten_key(shard))
        return NOTHING_FORGOTTEN if raw is None else decode_forgotten(raw)

    def due(self, shard: Shard) -> Forgotten | None:
        """What a shard may forget now, when there is anything to forget: the owner logs it."""
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
        """The buckets from `first` on that hold anything, up to the key `stop`."""
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
    """The oldest bucket that holds anything of the window."""
    return max(0, (int(shard.time_ms) - window_ms) // bucket_ms)


def identity_of(object_digest: bytes, handler: Handler | Sending, call: pb.Call) -> bytes:
    """What tells requests apart that came under one id: 128 bits of BLAKE2b over object, method,
    codec and arguments.

    A checksum would not do: whoever chooses the arguments can choose a checksum.
    """
    digest = handler.identity[call.codec == pb.CODEC_JSON].copy()
    digest.update(object_digest + call.arguments)
    return digest.digest()


def object_digest(kind: str, key: str) -> bytes:
    """The object's part of a request's identity, 16 bytes."""
    raw = kind.encode()
    return blake2b(len(raw).to_bytes(4, "big") + raw + key.encode(), digest_size=16).digest()


def _legacy_checksum(call: pb.Call) -> bytes:
    """How format 1 told requests apart that came under one id."""
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
