"""The shards that this node owns, as its engine sees them, and the entries that are on their way
into the shards' logs."""

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
"""A time, in ms, that does not come."""

TIMED_BUCKET_MS = 120_000
"""Kept replies whose ids tell a time are forgotten by buckets of so much of a shard's time."""
DAY_BUCKET_MS = 4 * 3_600_000
"""The same for those that are kept for a day."""
# a longer pause between two ticks is one of the process, in which nothing was served
_TICK_MAX_S = 1.0

LATE_S = 300.0
"""How long a first attempt of a request may be on its way: twice as long as a call is held. So long
after a shard was taken all requests are looked up, for an owner before may have run a later attempt
of any of them."""


class Features:
    """What is in use in the cluster, as of the newest view; see `ClusterSettings.features`."""

    def __init__(self) -> None:
        self.on: frozenset[str] = frozenset(FEATURES)


class Waiter(Protocol):
    """What waits for an entry: a turn, an effect, a future. The entry knows nothing else of it."""

    def settled(self, entry: Entry) -> None:
        """The entry has come to what was waited for; see `Entry.waiters` and `Entry.followers`."""


class Entry:
    """One record of a shard's log, while it is on its way: what it changes, and who waits for it.

    `waiters` are told, in the order in which they came, when the entry is committed or abandoned.
    `followers` are told when it is committed and the store shows what is in it.
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
        self.deletes = False  # whether `rows` hold anything but puts
        self.replies: Replies = []
        self.forgotten: Forgotten | None = None
        self.bytes = 0
        self.waiters: list[Waiter] = []
        self.followers: list[Waiter] = []
        self.applied = False
        self.committed = False
        self.abandoned = False

    def settle(self) -> None:
        """Tell those who wait: the entry is committed, or abandoned. Called once by the log that it
        was appended to."""
        for waiter in self.waiters:
            waiter.settled(self)
        if self.applied:
            self._tell_followers()

    def show(self) -> None:
        """The store shows what is in the entry."""
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
    """Where the entries of shards go: to this node's disk alone, or to replicas as well."""

    def append(self, entries: list[Entry]) -> None:
        """Take entries of owned shards that have this log. Each is settled, in their order, when it
        is committed or abandoned."""


class Shard:
    """One shard under one epoch of ours. It is `owned` until it is not, and never again after.

    `until`: while the clock (`boottime`) is below it, the node may answer for the shard: 0 when it
    may not at the moment. `closing`: it is about to be handed over, so no turn begins. `read_only`:
    why turns may not write at the moment. `log`: where its entries go. `look_until`: until this
    time of `boottime` a later attempt of any request may have been run by an owner before. `turns`:
    how many began. `kinds`: those that objects were taken into memory of.

    `time_ms` is the *shard's time*: how long the shard has been served, by whichever owner. It
    follows no wall clock, goes from owner to owner with the entries, and never runs back.
    `taken_ms` is what it was when this owner took the shard, 0 when nobody had it before.
    `timed_bucket` and `day_bucket` are where replies are kept that come now.

    `clock` tells the cluster's time, and `stamp` is that of the newest entry. Implements
    `holdfast_node.effects.rows.Expiring`.
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
        "look_until",
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
        self.look_until = 0.0
        self.taken_ms = int(time_ms)
        self.clock: Time | WallTime = WALL
        self.features = Features()
        self.stamp = stamp
        self.time_ms = time_ms
        self._ticked = 0.0
        self.first_buckets: dict[int, int] = {}  # by class of kept replies, for the response cache
        self._show_time()

    def tick(self, now: float) -> None:
        """Have the shard's time go on while the shard is served; `now` in seconds of `boottime`."""
        passed, self._ticked = now - (self._ticked or now), now
        if self.until > now:
            self.time_ms += min(passed, _TICK_MAX_S) * 1000
            self._show_time()

    def may_write(self) -> bool:
        """Whether Holdfast itself may write into the shard now."""
        return self.owned and not self.closing and self.read_only is None

    def check_owned(self) -> None:
        """Raises WrongOwner when the shard is not owned any more: the end of a turn that was
        cancelled, say, brings nothing back."""
        if not self.owned:
            raise WrongOwner(
                f"shard {self.number} is no longer served by this node", retryable=True
            )

    def expiry_ms(self, ttl_ms: int) -> int:
        """When something expires that lives so long from now. Raises Unavailable while a member
        does not know what expires."""
        self.check_feature(EXPIRY, "values cannot expire")
        if not self.clock.started:
            raise Unavailable(
                "what time it is in the cluster is not known yet",
                definite=True,
                retryable=True,
                retry_after_s=1.0,
            )
        return self.clock.now_ms() + ttl_ms

    def expired(self, expiry_ms: int) -> bool:
        """Whether that time has come: by the cluster's time, and as long as that is not known by
        the newest entry's."""
        return expiry_ms <= max(self.clock.now_ms() if self.clock.started else 0, self.stamp >> 16)

    def check_feature(self, feature: str, what: str) -> None:
        """Raises Unavailable, which begins with `what` cannot be done, while a member of the
        cluster does not know a feature."""
        if feature not in self.features.on:
            message = f"{what} while a node of the cluster is too old to know it"
            raise Unavailable(message, definite=True, retryable=True, retry_after_s=1.0)

    def next_stamp(self) -> int:
        """The cluster time of an entry that is appended now: 48 bits of Unix time in ms and 16 of a
        counter. It always grows.

        It is the clock of Kulkarni et al., Logical Physical Clocks, OPODIS 2014, of one shard.
        """
        self.stamp = stamp = max(self.clock.now_ms() << 16, self.stamp + 1)
        return stamp

    def _show_time(self) -> None:
        now = int(self.time_ms)
        self.time_bytes = now.to_bytes(8, "big")
        self.timed_bucket = keys.reply_bucket(self.number, keys.TIMED, now // TIMED_BUCKET_MS)
        self.day_bucket = keys.reply_bucket(self.number, keys.DAY, now // DAY_BUCKET_MS)


class Shards:
    """The owned shards by number. `listeners` are called with those that stop being owned under the
    epoch they had.

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
        """The shard if this node owns it; whether it may answer for it now is told by `until`."""
        return self._owned.get(number)

    def number_of(self, kind: str, key: str) -> int:
        """The number of an object's shard."""
        return shard_of(kind, key, self.total)

    def owned(self) -> list[Shard]:
        return list(self._owned.values())

    def serving(self, now: float) -> list[Shard]:
        """Those that may be answered for."""
        return [shard for shard in self._owned.values() if shard.until > now]

    def tick(self, now: float) -> None:
        """Have the time of the shards go on; `now` in seconds of `boottime`."""
        for shard in self._owned.values():
            shard.tick(now)

    def take(self, shard: Shard) -> None:
        """Own a shard under a new epoch."""
        assert shard.number not in self._owned
        shard.clock = self.clock
        shard.features = self.features
        shard.look_until = boottime() + LATE_S if shard.taken_ms else 0.0
        self._owned[shard.number] = shard
        self.taken += 1

    def drop(self, shards: set[Shard]) -> None:
        """Own these no longer."""
        if shards:
            for shard in shards:
                shard.owned = False
                shard.until = 0.0
                del self._owned[shard.number]
            for listener in self.listeners:
                listener(shards)
