"""Routing of calls to the owners of their objects: sending, holding, sending again.

A gateway uses it for the calls of its clients, a node for the calls that its turns make.
A call is in exactly one of these states:

- *sent*: the call is on a pipe to the node that, by the newest view, may serve its shard.
- *held*: the call waits in its shard's queue. Either there is no such node, or no pipe to it, or
  the node refused the call. Later calls to the shard wait behind it. The dispatcher sends the
  queue when the view gives the shard another owner or epoch, when the pipe comes up, or after a
  backoff. A call whose kind the node lacks waits in a second queue of its shard, so that no other
  call waits behind it.
- *done*: the call was answered, or its deadline passed.

The dispatcher sends a call again with the same request id, so that its effect happens once. If
the outcome of the attempt before is unknown, the dispatcher sends the call with `attempt + 1`.
From then on no error of the call is definite (the rule of `definite` in holdfast.errors). The same
holds for a call that came with an `attempt`. The number of held calls and of calls in flight is
bounded. Beyond a bound the dispatcher refuses calls with OVERLOADED.

A cancelled call leaves its queue. If it was sent already, the dispatcher tells the node. It does
not send the call again. The `heir` that the origin names gets the answer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from time import perf_counter

from holdfast.deadlines import TIMEOUT_MAX_S, Deadlines
from holdfast.errors import (
    Aborted,
    DeadlineExceeded,
    HoldfastError,
    Overloaded,
    Unavailable,
    error_to_proto,
    not_definite_after,
)
from holdfast.ids import REQUEST_ID_BYTES
from holdfast.metrics import Histogram
from holdfast.tls import Certificates
from holdfast.v1 import objects_pb2 as pb

from holdfast_cluster.membership.view_watcher import ViewWatcher
from holdfast_cluster.placement.model import View
from holdfast_cluster.placement.ring import shard_of
from holdfast_cluster.routing.pending import (
    KEY_BYTES_MAX,
    DispatchLimits,
    Held,
    Origin,
    Pending,
    malformed,
    why_held,
)
from holdfast_cluster.routing.pipe import Pipe, RemotePipe

log = logging.getLogger(__name__)

_CALL_SMALL = 64 << 10
_KEY_SHORT = KEY_BYTES_MAX // 4  # a character takes at most 4 bytes
_ENVELOPE_BYTES = 100
_TIMEOUT_MAX_MS = int(TIMEOUT_MAX_S * 1000)
# After a call's deadline the dispatcher waits this long for the node's own answer.
_DEADLINE_SLACK_S = 0.15
_BACKOFF_S = (0.02, 0.5)
_LACKING_BACKOFF_S = (0.1, 5.0)  # a new owner has a new epoch, which sends these calls at once
_TICK_S = 0.02
_STALE_S = 5.0


class Dispatcher:
    """Routing of calls to nodes, by the views of `watcher`."""

    def __init__(
        self,
        watcher: ViewWatcher,
        limits: DispatchLimits,
        certificates: Certificates | None = None,
    ) -> None:
        self._watcher = watcher
        self._certificates = certificates
        self._limits = limits
        self._local: tuple[str, Pipe] | None = None
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._pending: dict[int, Pending] = {}
        self._deadlines = Deadlines(self._pending, self._expire)
        self._held: dict[int, Held] = {}
        self._lacking: dict[int, Held] = {}  # the calls whose kind the owner lacks
        self._held_count = 0
        # by request id: the calls that go on although their origin has gone
        self._orphans: dict[bytes, int] = {}
        self._bytes = 0
        # In a call of at most this size no part can pass its limit.
        self._small = min(_CALL_SMALL, limits.argument_bytes_max)
        self._shards = 0
        self._targets: list[Pipe | None] = []  # by shard; None: hold
        self._epochs: list[int] = []
        self._pipes: dict[tuple[str, str, int], RemotePipe] = {}
        self._ticking = False
        self.seconds = Histogram()
        """The time from `submit` to the answer."""
        self._failed: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()  # those that `submit` refused at once
        self.sent_again = 0
        """Attempts beyond the first."""
        # The order that each node told last. It is not the highest one: an etcd that was put back
        # has a lower revision.
        self._heard: dict[Pipe, int] = {}
        self._stale_since: float | None = None
        watcher.listeners.append(self._on_view)

    def attach(self, node: str, pipe: Pipe) -> None:
        """Send the calls for `node`, which is this process, by `pipe`."""
        self._local = node, pipe

    @property
    def in_flight(self) -> int:
        """Calls accepted and not answered yet."""
        return len(self._pending)

    @property
    def held(self) -> int:
        """Calls that wait for their shard to be served."""
        return self._held_count

    @property
    def pipes_up(self) -> int:
        """Nodes to which there is a connection."""
        return sum(pipe.up for pipe in self._pipes.values())

    @property
    def stale_s(self) -> float:
        """For how many seconds nodes have worked with newer routes than these."""
        self.ready()
        return 0.0 if self._stale_since is None else self._loop.time() - self._stale_since

    def knows(self, feature: str) -> bool:
        """Return whether the cluster uses the feature; see `ClusterSettings.features`."""
        return feature in self._watcher.view.features

    def codes(self) -> Counter[int]:
        """Return the number of calls answered, by code; CODE_UNSPECIFIED is success."""
        codes = Counter(dict.fromkeys(pb.Code.values(), 0))
        codes.update(self._failed)
        codes[pb.CODE_UNSPECIFIED] = self.seconds.count - self._failed.total()
        codes.update(self._refused)
        return codes

    def ready(self) -> bool:
        """Return whether the routes are fresh: loaded, and not older than those of the nodes.

        When all processes have lost etcd, no node has newer routes, and calls go on. When one
        gateway alone has lost etcd, the nodes tell it of newer routes. Then its routes count as
        fresh for 5 s more.
        """
        if self._shards == 0:
            return False
        if max(self._heard.values(), default=0) <= self._watcher.view.order:
            self._stale_since = None
            return True
        if self._stale_since is None:
            self._stale_since = self._loop.time()
        return self._loop.time() - self._stale_since < _STALE_S

    def reachable(self, kind: str, key: str) -> bool:
        """Return whether calls to an object leave at once, by the routes known here."""
        return bool(self._shards) and self._targets[shard_of(kind, key, self._shards)] is not None

    def submit(self, call: pb.Call, origin: Origin) -> int:
        """Send a call, and return its number, which `cancel` takes.

        The reply, or an error, goes to `origin`, with the id that the call has now. When the call
        is refused at once, `origin` has the error before this returns, and the number is 0.
        """
        key = call.key
        size = call.ByteSize()
        if (
            not self._shards
            or len(self._pending) >= self._limits.in_flight_max
            or not 0 < len(key) <= _KEY_SHORT
            or size > self._small
            or self._bytes > self._limits.bytes_max
            or len(call.request_id) != REQUEST_ID_BYTES
        ) and (error := self._refusal(call)) is not None:
            error.request_id = call.request_id
            told = not_definite_after(call.attempt, error_to_proto(error))
            self._refused[told.code] += 1
            origin.push(pb.Reply(id=call.id, error=told), _ENVELOPE_BYTES)
            return 0
        shard = shard_of(call.kind, key, self._shards)
        if call.timeout_ms > _TIMEOUT_MAX_MS:
            call.timeout_ms = _TIMEOUT_MAX_MS
        deadline = self._loop.time() + (call.timeout_ms / 1000 or self._limits.timeout_s)
        pending = Pending(call, origin, shard, deadline, size)
        self._bytes += size
        self._number = number = self._number + 1
        call.id = number
        self._pending[number] = pending
        self._deadlines.watch(deadline)
        pipe = self._targets[shard]
        if pipe is None:
            self._hold(pending)
        else:
            pending.pipe = pipe
            pipe.send(call, size)
        return number

    def cancel(self, number: int, heir: Origin) -> bool:
        """Cancel the call with the number that `submit` returned, because its caller is gone.

        Return whether the call was still under way. Its answer then goes to `heir`, once.
        """
        pending = self._pending.get(number)
        if pending is None:
            return False
        pending.origin = heir
        orphan = self._orphans.pop(pending.call.request_id, number)
        if orphan != number:
            # This is an earlier attempt, whose connection was lost. Its caller sent the call again,
            # and does not wait for the earlier attempt any more.
            self.cancel(orphan, self._pending[orphan].origin)
        if pending.pipe is None:
            self._unhold(pending)
            self._give_up(number, pending)
        else:
            pending.cancelled = True
            pending.pipe.cancel(number, pending.call.request_id)
        return True

    def _give_up(self, number: int, pending: Pending) -> None:
        """Answer a cancelled call that no node works on."""
        self._drop(number, pending)
        self._fail(pending, Aborted("the caller does not wait for it any more"))

    def forget(self, origin: Origin, heir: Origin | None = None) -> int:
        """Give up the calls of an origin that has gone, and return how many replies `heir` gets.

        Calls that were sent go on, and their replies go to `heir`. Without an `heir` their replies
        are dropped. Held calls are dropped.
        """
        inherited = 0
        for number, pending in list(self._pending.items()):
            if pending.origin is not origin:
                continue
            if heir is not None and pending.pipe is not None:
                pending.origin = heir
                pending.orphan = True
                self._orphans[pending.call.request_id] = number
                inherited += 1
            else:
                self._unhold(pending)
                self._drop(number, pending)
        return inherited

    async def close(self) -> None:
        """Close every pipe."""
        self._deadlines.close()
        await asyncio.gather(*(pipe.close() for pipe in self._pipes.values()))

    # -- events of pipes

    def on_reply(self, pipe: Pipe, reply: pb.Reply) -> None:
        """Pass a reply on to the call's origin.

        The origin does not see WRONG_OWNER: the dispatcher holds such a call and sends it again.
        """
        pending = self._pending.get(reply.id)
        if pending is None:
            return
        result = reply.result
        if not result:
            if pending.pipe is not pipe:
                return  # of an attempt that was given up: another one is under way
            if reply.error.code == pb.CODE_WRONG_OWNER:
                if not reply.error.definite:  # it ran, or may have run
                    pending.outcome_unknown()
                self._hold(pending, reply.error.lacks_kind)
                return
            not_definite_after(pending.call.attempt, reply.error)
        if pending.pipe is None:
            self._unhold(pending)
        self._drop(reply.id, pending)
        self.seconds.observe(perf_counter() - pending.submitted)
        if not result:
            self._failed[reply.error.code] += 1
        reply.id = pending.origin_id
        pending.origin.push(reply, len(result) + _ENVELOPE_BYTES if result else reply.ByteSize())

    def on_revision(self, pipe: Pipe, order: int) -> None:
        """Record the order of the view that a node works with."""
        self._heard[pipe] = order

    def on_pipe_up(self, pipe: Pipe) -> None:
        """Send the calls that wait for a pipe, which is connected now."""
        self._retarget(self._watcher.view)

    def on_pipe_down(self, pipe: Pipe) -> None:
        """Hold the calls of a pipe that broke, to send them again: their outcome is unknown."""
        self._heard.pop(pipe, None)
        self._targets = [None if target is pipe else target for target in self._targets]
        for pending in list(self._pending.values()):
            if pending.pipe is pipe:
                pending.outcome_unknown()
                self._hold(pending)

    # -- routes

    def _on_view(self, view: View) -> None:
        if view.settings is None:
            return
        if not self._shards:
            self._shards = view.settings.shards
            self._targets = [None] * self._shards
            self._epochs = [0] * self._shards
        self._open_pipes(view)
        epochs = [
            view.assignments[shard].assignment.epoch if shard in view.assignments else 0
            for shard in range(self._shards)
        ]
        moved = {shard for shard, epoch in enumerate(epochs) if epoch != self._epochs[shard]}
        self._epochs = epochs
        if moved:
            for pending in list(self._pending.values()):
                if pending.shard in moved and pending.pipe is not None:
                    pending.outcome_unknown()
                    self._hold(pending)
            for shard in moved:
                for held in (self._held.get(shard), self._lacking.get(shard)):
                    if held is not None:
                        held.retry_at = 0.0
        self._retarget(view)

    def _open_pipes(self, view: View) -> None:
        here = self._local[0] if self._local is not None else None
        wanted = {
            (m.id, m.streams, m.incarnation): m for m in view.members.values() if m.id != here
        }
        for identity, member in wanted.items():
            if identity not in self._pipes:
                self._pipes[identity] = RemotePipe(self, member, self._certificates)
        for identity in [identity for identity in self._pipes if identity not in wanted]:
            self._pipes.pop(identity).retire()

    def _retarget(self, view: View) -> None:
        self._targets = [self._pipe_of(view, shard) for shard in range(self._shards)]
        now = self._loop.time()
        for shard in list(self._held):
            self._release(shard, now)
        for shard in list(self._lacking):
            self._release_lacking(shard, now)

    def _pipe_of(self, view: View, shard: int) -> Pipe | None:
        """Return the connected pipe to the node that may serve the shard; None if there is none."""
        owner = view.owner_of(shard)
        if owner is None:
            return None
        if self._local is not None and owner.id == self._local[0]:
            return self._local[1]
        remote = self._pipes.get((owner.id, owner.streams, owner.incarnation))
        return remote if remote is not None and remote.up else None

    # -- holding

    def _hold(self, pending: Pending, lacking: bool = False) -> None:
        if pending.cancelled:
            self._give_up(pending.call.id, pending)
            return
        if self._held_count >= self._limits.held_max:
            self._drop(pending.call.id, pending)
            message = f"{self._limits.held_max} calls wait for shards that are not served"
            self._fail(
                pending, Overloaded(message, definite=True, retryable=True, retry_after_s=1.0)
            )
            return
        pending.pipe = None
        pending.lacking = lacking
        shard = pending.shard
        queues = self._lacking if lacking else self._held
        held = queues.get(shard)
        if held is None:
            held = queues[shard] = Held(
                self._loop.time(), _LACKING_BACKOFF_S if lacking else _BACKOFF_S
            )
        held.calls.append(pending)
        self._held_count += 1
        if not lacking:
            self._targets[shard] = None  # later calls wait behind it
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _drop(self, number: int, pending: Pending) -> None:
        del self._pending[number]
        self._bytes -= pending.size
        if pending.orphan and self._orphans.get(pending.call.request_id) == number:
            del self._orphans[pending.call.request_id]

    def _unhold(self, pending: Pending) -> None:
        queues = self._lacking if pending.lacking else self._held
        if (
            pending.pipe is None
            and (held := queues.get(pending.shard)) is not None
            and pending in held.calls
        ):
            held.calls.remove(pending)
            self._held_count -= 1

    def _tick(self) -> None:
        self._ticking = False
        now = self._loop.time()
        try:
            for shard in [shard for shard, held in self._held.items() if held.retry_at <= now]:
                self._release(shard, now)
            for shard in [shard for shard, held in self._lacking.items() if held.retry_at <= now]:
                self._release_lacking(shard, now)
        finally:  # if one call raises, a later tick sends the others
            if self._held or self._lacking:
                self._ticking = True
                self._loop.call_later(_TICK_S, self._tick)

    def _release(self, shard: int, now: float) -> None:
        """Send a shard's queue if there is a pipe for it and its backoff is over."""
        held = self._held[shard]
        if held.calls and held.retry_at > now:
            self._targets[shard] = None
            return
        pipe = self._pipe_of(self._watcher.view, shard)
        if not held.calls:
            del self._held[shard]
            self._targets[shard] = pipe
            return
        if self._send_again(held, pipe, now):
            self._targets[shard] = pipe

    def _release_lacking(self, shard: int, now: float) -> None:
        """Send a shard's calls whose kind the owner lacked, if their backoff is over.

        The owner may have the kind by now, or another node may own the shard.
        """
        held = self._lacking[shard]
        if not held.calls:
            del self._lacking[shard]
        elif held.retry_at <= now:
            self._send_again(held, self._pipe_of(self._watcher.view, shard), now)

    def _send_again(self, held: Held, pipe: Pipe | None, now: float) -> bool:
        """Send a queue, and return True, if there is a pipe for it."""
        held.backoff_s = min(held.backoff_s * 2, held.backoff_max_s)
        held.retry_at = now + held.backoff_s * random.uniform(0.5, 1.0)
        if pipe is None:
            return False
        # The emptied queue stays until the next round: calls refused again find their backoff
        # there.
        calls, held.calls = (
            held.calls,
            [],
        )
        self._held_count -= len(calls)
        for pending in calls:
            call = pending.call
            self.sent_again += 1
            call.timeout_ms = max(1, min(_TIMEOUT_MAX_MS, int((pending.deadline - now) * 1000)))
            pending.pipe = pipe
            pipe.send(call, pending.size)
        return True

    # -- errors

    def _expire(self, pending: Pending) -> None:
        call = pending.call
        what = f"{call.kind}/{call.key}.{call.method}()"
        if pending.pipe is not None and not pending.late:
            pending.late = True
            pending.deadline += _DEADLINE_SLACK_S
            self._deadlines.watch(pending.deadline)
            return
        self._drop(call.id, pending)
        if pending.pipe is None:
            self._unhold(pending)
            self._fail(
                pending,
                Unavailable(
                    f"{what}: {why_held(self._watcher.view, pending)}",
                    definite=True,
                    retryable=True,
                ),
            )
        else:
            self._fail(
                pending,
                DeadlineExceeded(
                    f"{what}: its node did not answer before the deadline", retryable=True
                ),
            )

    def _refusal(self, call: pb.Call) -> HoldfastError | None:
        """Return the reason to refuse a call; None when `submit` is to accept it."""
        if (wrong := malformed(call, self._limits)) is not None:
            return wrong
        if not self._shards:
            return Unavailable(
                "the cluster's routes are not loaded yet",
                definite=True,
                retryable=True,
                retry_after_s=0.5,
            )
        if len(self._pending) >= self._limits.in_flight_max or self._bytes > self._limits.bytes_max:
            message = f"{len(self._pending)} calls of {self._bytes} bytes are in flight here"
            return Overloaded(message, definite=True, retryable=True, retry_after_s=0.2)
        return None

    def _fail(self, pending: Pending, error: HoldfastError) -> None:
        """Answer a call with an error.

        `error.definite` is for a call all of whose attempts have a known outcome. After an attempt
        with an unknown outcome the error is never definite.
        """
        error.request_id = pending.call.request_id
        told = not_definite_after(pending.call.attempt, error_to_proto(error))
        self.seconds.observe(perf_counter() - pending.submitted)
        self._failed[told.code] += 1
        pending.origin.push(pb.Reply(id=pending.origin_id, error=told), _ENVELOPE_BYTES)
