"""Kept replies: what makes a request that is sent again take effect once.

A turn that writes also writes `request id -> fingerprint of the call, reply`, in its own entry. A later attempt is answered from
there. Ids begin with the time at which they were made, so what the window has passed is one range, dropped whole; an attempt
whose id is older than the window is refused, because nobody could tell any more whether it has happened.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

from holdfast.errors import DeadlineExceeded, InvalidArgument
from holdfast.ids import EFFECT, KEYED, id_prefix
from holdfast.v1 import objects_pb2 as pb

from holdfast_node import keys
from holdfast_node.shards import Shard
from holdfast_node.store import Batch, Store

_AHEAD_MAX_MS = 600_000
_RETRIED_MAX = 100_000
_FRESH_MS = 2_000
_FINGERPRINT_BYTES = 4
_HOUR_MS = 3_600_000
_ROWS_FEW = 2_000

KEYED_HOURS = 24
"""How long replies to requests with an idempotency key are kept, at least."""


class KeptReplies:
    """The kept replies of a node. `window_s`: how long a request may be sent again after its id was made.

    A request may have been run before, and has to be looked up with `find`, when it is a later attempt, when its id does not
    lie between `fresh_from` and `ahead_to` (a first attempt that was long on its way), or when it is in `retried`.
    """

    def __init__(self, store: Store, window_s: float, clock: Callable[[], int] | None = None) -> None:
        """`clock`: Unix time in ms."""
        self._store = store
        self._now_ms = clock or _now_ms
        self._window_ms = int(window_s * 1000)
        self._dropped: dict[int, tuple[bytes, bytes]] = {}
        self._dropped_hour = 0
        self.fresh_from = b""
        self.ahead_to = b""
        self.retried: set[bytes] = set()
        self._retried_order: deque[bytes] = deque()
        self.tick()

    def tick(self) -> None:
        """Follow the clock; call it a few times a second."""
        now = self._now_ms()
        self.fresh_from = id_prefix(now - _FRESH_MS)
        self.ahead_to = id_prefix(now + _AHEAD_MAX_MS)

    def find(self, shard: Shard, target: int, call: pb.Call) -> bytes | None:
        """The kept reply of a request to `target` (see `fingerprint`).

        Raises DeadlineExceeded for a retry that is older than the window, InvalidArgument for an id that another call had, or
        one from the future: its record would have to be kept for as long.
        """
        request_id, attempt = call.request_id, call.attempt
        if request_id[0] >= EFFECT:
            kept = self._find_keyed(shard, request_id)
            return None if kept is None else _checked(kept, target, call)
        if request_id >= self.ahead_to:
            raise InvalidArgument(
                "the request id's time is more than 10 minutes ahead of this node's clock: check the clocks",
                path="request_id",
                definite=not attempt,
            )
        if request_id < id_prefix(self._now_ms() - self._window_ms):
            if not attempt:
                return None
            raise DeadlineExceeded(
                f"the request was made more than {self._window_ms // 1000} s ago: whether it took effect is not known any more"
            )
        kept = self._store.get("replies", keys.reply_key(shard.number, request_id))
        return None if kept is None else _checked(kept, target, call)

    def key(self, shard: Shard, request_id: bytes) -> bytes:
        """Where the reply to a request is kept."""
        if request_id[0] >= EFFECT:
            return keys.keyed_reply_key(shard.number, self._now_ms() // _HOUR_MS, request_id)
        return shard.prefix + request_id

    def _find_keyed(self, shard: Shard, request_id: bytes) -> bytes | None:
        """Such an id does not tell its time: it is looked for in each hour of the day."""
        hour = self._now_ms() // _HOUR_MS
        for back in range(-1, KEYED_HOURS + 1):  # the owner before may have been a little ahead
            kept = self._store.get("replies", keys.keyed_reply_key(shard.number, hour - back, request_id))
            if kept is not None:
                return kept
        return None

    def note_retried(self, request_id: bytes) -> None:
        """This request was run as a retry: should its first attempt arrive later, it must be looked up."""
        self.retried.add(request_id)
        self._retried_order.append(request_id)
        if len(self._retried_order) > _RETRIED_MAX:
            self.retried.discard(self._retried_order.popleft())

    def drop_old(self, shards: Iterable[int]) -> None:
        """Drop the replies of these shards whose window has passed. Each copy is cut by its own node's clock."""
        now = self._now_ms()
        oldest = id_prefix(now - self._window_ms)
        oldest_hour = max(0, now // _HOUR_MS - KEYED_HOURS)
        if oldest_hour != self._dropped_hour:  # a snapshot, or a log that was applied late, may have brought older ones since
            self._dropped_hour = oldest_hour
            self._dropped.clear()
        batch = self._store.batch()
        for shard in shards:
            timed, keyed = self._dropped.get(shard) or (keys.reply_key(shard, b""), keys.keyed_reply_key(shard, 0, b""))
            self._dropped[shard] = (
                self._drop(batch, timed, keys.reply_key(shard, oldest)),
                self._drop(batch, keyed, keys.keyed_reply_key(shard, oldest_hour, b"")),
            )
        self._store.write(batch)

    def _drop(self, batch: Batch, start: bytes, end: bytes) -> bytes:
        """Delete a range; where the next time begins. Few rows are deleted one by one: RocksDB sorts all ranges that a memtable has
        had deleted anew for each read after another one, and a read has to pass everything that was deleted at its beginning.
        """
        rows = [key for key, _ in islice(self._store.scan("replies", start, end), _ROWS_FEW)]
        if len(rows) < _ROWS_FEW:
            for key in rows:
                batch.delete("replies", key)
        else:
            batch.delete_range("replies", start, end)
        return max(start, end)


def _checked(kept: bytes, target: int, call: pb.Call) -> bytes:
    if kept[:_FINGERPRINT_BYTES] != fingerprint(target, call):
        what = "idempotency_key was" if call.request_id[0] == KEYED else f"request id {call.request_id.hex()} was"
        raise InvalidArgument(f"this {what} used for another call", path="request_id", definite=True)
    return kept[_FINGERPRINT_BYTES:]


def fingerprint(target: int, call: pb.Call) -> bytes:
    """Tells calls apart that came under one request id: a checksum of the object and method (`target`), codec and arguments."""
    return zlib.crc32(call.arguments, target ^ call.codec).to_bytes(_FINGERPRINT_BYTES, "big")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
