"""The shards that this node owns, and the entries on their way into the shards' logs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Protocol

from holdfast.errors import Unavailable, WrongOwner
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.clocks.cluster_time import WALL, Time, WallTime
from holdfast_cluster.placement.model import EXPIRY, FEATURES
from holdfast_cluster.placement.ring import shard_of

from holdfast_node.log.changes import Forgotten, Replies, Rows
from holdfast_node.store import keys

FOR_EVER = float("inf")

NEVER = 1 << 62
"""A time in ms that never comes."""

TIMED_BUCKET_MS = 120_000
"""Kept replies whose ids tell a time are forgotten in buckets of so many ms of the shard's time."""
DAY_BUCKET_MS = 4 * 3_600_000
"""The same for replies that are kept for a day."""
# After a longer pause between two ticks the process itself has paused, and served nothing.
_TICK_MAX_S = 1.0

LATE_S = 300.0
"""How long a first attempt of a request may be on its way: twice as long as a call is held. For so
long after it took a shard, the owner looks up all requests. An earlier owner may have run a later
attempt of any of them."""


class Features:
    """The features in use in the cluster, by the newest view; see `ClusterSettings.features`."""

    def __init__(self) -> None:
        self.on: frozenset[str] = frozenset(FEATURES)


class Waiter(Protocol):
    """A turn, an effect or a future that waits for an entry. The entry knows nothing else of it."""

    def settled(self, entry: Entry) -> None:
        """Act on the entry, which is settled or applied; see `Entry.waiters` and
        `Entry.followers`."""


class Entry:
    """One record of a shard's log while it is on its way: its changes, and those who wait for it.

    The `waiters` are told, in the order in which they came, when the entry is committed or
    abandoned. The `followers` are told when the entry is committed and its changes are visible in
    the store.
    """

    __slots__ = (
        "abandoned",
        "applied",
        "began",
        "bytes",
        "committed",
        "deletes",
        "followers",
        "forgotten",
        "replies",
        "rows",
        "seq",
        "shard",
        "waiters",
    )

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.seq = 0
        self.began = perf_counter()
        self.rows: Rows = []
        self.deletes = False  # whether `rows` has deletions
        self.replies: Replies = []
        self.forgotten: Forgotten | None = None
        self.bytes = 0
        self.waiters: list[Waiter] = []
        self.followers: list[Waiter] = []
        self.applied = False
        self.committed = False
        self.abandoned = False

    def settle(self) -> None:
        """Tell those who wait that the entry is committed or abandoned. The log to which the entry
        was appended calls this once."""
        for waiter in self.waiters:
            waiter.settled(self)
        if self.applied:
            self._tell_followers()

    def mark_applied(self) -> None:
        """Record that the entry's changes are visible in the store. Tell the followers if the entry
        is committed."""
        self.applied = True
        if self.committed:
            self._tell_followers()

    def _tell_followers(self) -> None:
        followers, self.followers = self.followers, []
        for follower in followers:
            follower.settled(self)

    async def wait(self) -> None:
        """Return when the entry is committed or abandoned."""
        if not (self.committed or self.abandoned):
            waiter = _Future()
            self.waiters.append(waiter)
            await waiter.future


class _Future:
    """A coroutine that waits for an entry."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settled(self, entry: Entry) -> None:
        if not self.future.done():
            self.future.set_result(None)


class ShardLog(Protocol):
    """The log to which entries of shards go: on this node's disk alone, or on replicas as well."""

    def append(self, entries: list[Entry]) -> None:
        """Take entries of owned shards that have this log. The log settles each of them, in order,
        when it is committed or abandoned."""


class Shard:
    """One shard under one epoch of this node. Once it is not `owned` any more, it never is again.

    `until`: the time of `boottime` until which the node may answer for the shard; 0 if it may not
    now. `closing`: the shard is about to be handed over, so no turn begins. `read_only`: why turns
    may not write at the moment. `log`: the log of its entries. `lookup_all_until`: the time of
    `boottime` until which the owner looks up all requests (LATE_S). `turns`: how many turns began.
    `kinds`: the kinds of its objects that were taken into memory.

    `time_ms` is the *shard's time*: how many ms the shard has been served, by all its owners
    together. It follows no wall clock, goes from owner to owner with the entries, and never runs
    back. `taken_ms` is the shard's time at which this owner took the shard; 0 if the shard had no
    owner before. `timed_bucket` and `day_bucket` are the prefixes of the buckets for new replies.

    `clock` tells the cluster's time, and `stamp` is the cluster time of the newest entry.
    Implements `holdfast_node.effects.rows.Expiring`.
    """

    __slots__ = (
        "_ticked",
        "clock",
        "closing",
        "day_bucket",
        "epoch",
        "features",
        "first_buckets",
        "gathering",
        "kinds",
        "log",
        "lookup_all_until",
        "number",
        "owned",
        "prefix",
        "read_only",
        "stamp",
        "taken_ms",
        "time_bytes",
        "time_ms",
        "timed_bucket",
        "turns",
        "until",
    )

    def __init__(
        self, number: int, epoch: int, log: ShardLog, time_ms: float = 0.0, stamp: int = 0
    ) -> None:
        self.number = number
        self.prefix = keys.shard_prefix(number)
        self.epoch = epoch
        self.log = log
        self.owned = True
        self.until = 0.0
        self.closing = False
        self.read_only: str | None = None
        self.turns = 0
        self.kinds: set[str] = set()
        self.gathering: Entry | None = None
        self.lookup_all_until = 0.0
        self.taken_ms = int(time_ms)
        self.clock: Time | WallTime = WALL
        self.features = Features()
        self.stamp = stamp
        self.time_ms = time_ms
        self._ticked = 0.0
        self.first_buckets: dict[int, int] = {}  # by class of kept replies, for the response cache
        self._show_time()

    def tick(self, now: float) -> None:
        """Advance the shard's time if the shard is served; `now` in seconds of `boottime`."""
        passed, self._ticked = now - (self._ticked or now), now
        if self.until > now:
            self.time_ms += min(passed, _TICK_MAX_S) * 1000
            self._show_time()

    def may_write(self) -> bool:
        """Return whether Holdfast itself may write into the shard now."""
        return self.owned and not self.closing and self.read_only is None

    def check_owned(self) -> None:
        """Raise WrongOwner if this node does not own the shard any more. So a cancelled turn, for
        example, cannot load the shard's state again when it ends."""
        if not self.owned:
            raise WrongOwner(
                f"shard {self.number} is no longer served by this node", retryable=True
            )

    def expiry_ms(self, ttl_ms: int) -> int:
        """Return the time at which a value or object with this ttl expires: Unix time in ms. Raises
        Unavailable while a member is too old to know expiry, or while the cluster's time is not
        known."""
        self.check_feature(EXPIRY, "values cannot expire")
        if not self.clock.started:
            raise Unavailable(
                "the node does not know the cluster's time yet",
                definite=True,
                retryable=True,
                retry_after_s=1.0,
            )
        return self.clock.now_ms() + ttl_ms

    def expired(self, expiry_ms: int) -> bool:
        """Return whether `expiry_ms` has come, by the cluster's time and by the newest entry's
        stamp. While the cluster's time is not known, the stamp alone decides."""
        return expiry_ms <= max(self.clock.now_ms() if self.clock.started else 0, self.stamp >> 16)

    def check_feature(self, feature: str, what: str) -> None:
        """Raise Unavailable while a member of the cluster does not know a feature. `what` begins
        the message: it says what cannot be done."""
        if feature not in self.features.on:
            message = f"{what} while a node of the cluster is too old to know it"
            raise Unavailable(message, definite=True, retryable=True, retry_after_s=1.0)

    def next_stamp(self) -> int:
        """Return the cluster time of an entry that is appended now: 48 bits of Unix time in ms, and
        a counter of 16 bits. It always grows.

        It is the hybrid clock of one shard (Kulkarni et al., Logical Physical Clocks, OPODIS 2014).
        """
        self.stamp = stamp = max(self.clock.now_ms() << 16, self.stamp + 1)
        return stamp

    def _show_time(self) -> None:
        now = int(self.time_ms)
        self.time_bytes = now.to_bytes(8, "big")
        self.timed_bucket = keys.reply_bucket(self.number, keys.TIMED, now // TIMED_BUCKET_MS)
        self.day_bucket = keys.reply_bucket(self.number, keys.DAY, now // DAY_BUCKET_MS)


class Shards:
    """The owned shards by number. `listeners` are called with the shards that this node does not
    own any more.

    `total` is the cluster's number of shards. `clock` tells the cluster's time.
    """

    def __init__(self, total: int, clock: Time | WallTime = WALL) -> None:
        self.total = total
        self.listeners: list[Callable[[set[Shard]], None]] = []
        self.clock = clock
        self.features = Features()
        self._owned: dict[int, Shard] = {}
        self.taken = 0
        """How often a shard was taken under a new epoch."""

    def get(self, number: int) -> Shard | None:
        """Return the shard if this node owns it. `Shard.until` says whether the node may answer for
        it now."""
        return self._owned.get(number)

    def number_of(self, kind: str, key: str) -> int:
        """Return the number of an object's shard."""
        return shard_of(kind, key, self.total)

    def owned(self) -> list[Shard]:
        return list(self._owned.values())

    def serving(self, now: float) -> list[Shard]:
        """Return the shards for which this node may answer."""
        return [shard for shard in self._owned.values() if shard.until > now]

    def tick(self, now: float) -> None:
        """Advance the time of the shards; `now` in seconds of `boottime`."""
        for shard in self._owned.values():
            shard.tick(now)

    def take(self, shard: Shard) -> None:
        """Begin to own a shard under a new epoch."""
        assert shard.number not in self._owned
        shard.clock = self.clock
        shard.features = self.features
        shard.lookup_all_until = boottime() + LATE_S if shard.taken_ms else 0.0
        self._owned[shard.number] = shard
        self.taken += 1

    def drop(self, shards: set[Shard]) -> None:
        """Give up the ownership of these shards, and tell the listeners."""
        if shards:
            for shard in shards:
                shard.owned = False
                shard.until = 0.0
                del self._owned[shard.number]
            for listener in self.listeners:
                listener(shards)
