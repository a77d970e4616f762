"""The engine takes calls, and runs turns one at a time for each object.

The path of a call: `deliver` finds the activation, and queues the turn or starts it. `ended` puts
the turn's writes into its shard's entry, and the answer waits for that entry (`gate`). This path
makes no task, takes no lock and awaits nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any

from holdfast.app import App
from holdfast.errors import (
    Deadlock,
    HoldfastError,
    Rejected,
    UnfitArguments,
    WrongOwner,
    error_to_proto,
    not_definite_after,
)
from holdfast.ids import EFFECT, RequestIds
from holdfast.object import DurableObject
from holdfast.signature import Handler, Sending
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clocks.boottime import boottime
from holdfast_cluster.routing.pending import wrong_key

from holdfast_node.log.commit import Committer
from holdfast_node.log.shards import Entry, Shard, Shards
from holdfast_node.objects.activation import (
    ON_ACTIVATE_CALLS,
    QUEUED,
    RUNNING,
    Activation,
    ReplyPort,
    Turn,
)
from holdfast_node.objects.activations import Activations
from holdfast_node.objects.cancellation import Cancellation
from holdfast_node.objects.context import TurnContext, make_instance
from holdfast_node.objects.environment import Environment
from holdfast_node.objects.eviction import Eviction
from holdfast_node.objects.gate import answer_when_committed
from holdfast_node.objects.hand_off import ShardTurns
from holdfast_node.objects.handlers import Firing, InternalHandler
from holdfast_node.objects.hosted_kinds import ShardKinds
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.objects.outcome import Outcomes
from holdfast_node.objects.reads import Reads, runs_beside
from holdfast_node.objects.requests import Requests, moved, overloaded
from holdfast_node.objects.responses import ResponseCache, identity_of
from holdfast_node.objects.spans import TurnSpan
from holdfast_node.objects.stats import KindStats
from holdfast_node.objects.top_keys import SAMPLE, TopKeys

_TURNS_IN_A_ROW = 64  # of one object; then the event loop does other work


class Engine:
    """Runs the objects of a node. Not thread-safe: it runs on the event loop. Implements
    `TurnRunner`."""

    def __init__(
        self,
        app: App,
        limits: EngineLimits,
        shards: Shards,
        committer: Committer,
        responses: ResponseCache,
        environment: Environment,
        activations: Activations,
        kinds: ShardKinds,
    ) -> None:
        self._app = app
        self.limits = limits
        self._shards = shards
        self._committer = committer
        self._responses = responses
        self._environment = environment
        self._activations = activations
        self._kinds = kinds
        self._tracing = environment.tracing
        self.loop = asyncio.get_running_loop()
        self.requests = Requests(self.deliver)
        self.outcomes = Outcomes(committer, responses, environment, limits.result_bytes_max)
        self.cancellation = Cancellation(self.requests, activations, self.outcomes)
        self.cancel = self.cancellation.cancel
        self.reads = Reads(self.requests, self.outcomes, self.cancellation, environment)
        self.shard_turns = ShardTurns(shards, self.requests, activations, self.cancellation)
        self.eviction = Eviction(app, limits, activations, environment.cache, self._run_on_evict)
        self._in_flight = self.requests.turns
        self._draining = False
        self._ids = RequestIds()
        self._starting = False
        self.turns = 0
        self.activations_created = 0
        self.stats: dict[str, KindStats] = {name: KindStats() for name in app.kinds}
        for name, kind in app.kinds.items():
            for method in kind.handlers:
                # Metrics show zero before the first call, so that rates begin there.
                _ = self.stats[name][method]
        self.top_keys = TopKeys(self.loop.time())

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def find(self, kind: str, key: str) -> Activation | None:
        """Return the activation of an object; None if it is not in memory."""
        return self._activations.get(kind, key)

    # -- a call comes

    def deliver(self, call: pb.Call, port: ReplyPort) -> None:
        """Take a call. Its reply goes to `port`, now or later."""
        request_id = call.request_id
        running = self._in_flight.get(request_id)
        if running is not None:
            self.requests.join(running, call, port)
            return
        try:
            activation = self._activations.use(call.kind, call.key)
            if activation is None:
                activation = self._activate(call)
            shard = activation.shard
            now = boottime()
            if shard.until <= now or (shard.closing and not call.chain):
                raise WrongOwner(
                    f"shard {shard.number} is not served by this node at the moment",
                    definite=True,
                    retryable=True,
                )
            method = call.method
            found = activation.kind.handlers.get(method) or activation.kind.handler(method)
            handler: Handler | Sending | InternalHandler = found
            if call.send or found.reads:
                handler = runs_beside(found, call, shard)
            attempt = call.attempt
            responses = self._responses
            again = attempt or request_id[0] >= EFFECT or responses.may_have_run(request_id, now)
            if (again or now < shard.lookup_all_until) and not handler.reads:
                if call.notification:
                    if activation.already_received(call.notification):
                        # A turn of its own, so that its answer waits for the same entry as the
                        # first one's.
                        handler = _AGAIN
                        # A copy, because a sender on this node may still use the original.
                        other = pb.Call()
                        other.CopyFrom(call)
                        other.ClearField("notification")
                        call = other
                else:
                    if again:
                        self._committer.flush_visible()  # committed rows may be staged still
                    identity = identity_of(activation.digest, handler, call)  # type: ignore[arg-type]
                    kept = responses.find(shard, identity, call, before=not again)
                    if kept is not None:
                        error = (
                            None if kept.error is None else not_definite_after(attempt, kept.error)
                        )
                        port.reply(call.id, kept.result, error, shard)
                        return
            if activation.turn is not None and call.chain and not handler.reads:
                self._check_chain(call, activation)
            if len(self._in_flight) >= self.limits.in_flight_max:
                raise overloaded(f"{self.limits.in_flight_max} calls are in flight on this node")
            if handler.reads and len(activation.reads or ()) >= self.limits.mailbox_max:
                raise overloaded(
                    f"{self.limits.mailbox_max} reads of {activation.name} are under way"
                )
        except HoldfastError as error:
            error.request_id = request_id
            told = not_definite_after(call.attempt, error_to_proto(error, call.codec))
            if (stats := self.stats.get(call.kind)) is not None and call.method in stats:
                refused = stats[call.method].refused
                refused[told.code] = refused.get(told.code, 0) + 1
            port.reply(call.id, b"", told, None)
            return
        if handler.reads or type(handler) is Sending:
            self._run_beside(activation, call, handler, port)  # type: ignore[arg-type]
        else:
            self._enqueue(activation, call, handler, port)

    def _enqueue(
        self,
        activation: Activation,
        call: pb.Call,
        handler: Handler | Sending | Firing | InternalHandler,
        port: ReplyPort,
    ) -> None:
        """Start a turn, or queue it behind the earlier ones."""
        request_id = call.request_id
        shard = activation.shard
        now = self.loop.time()
        activation.last_used = now
        timeout = call.timeout_ms / 1000 or self.limits.turn_timeout_s
        deadline = now + min(timeout, self.limits.queue_timeout_max_s)
        turn = Turn(self, activation, call, handler, port, deadline)
        if self._tracing is not None:
            turn.trace(
                TurnSpan.of(self._tracing, call, shard, turn.arrived, alarm=type(handler) is Firing)
            )
        if activation.turn is None and not activation.mailbox:
            self._in_flight[request_id] = turn
            self._start(turn, now)
        else:
            mailbox = activation.mailbox
            if mailbox is None:
                mailbox = activation.mailbox = deque()
            elif len(mailbox) >= self.limits.mailbox_max:
                full = overloaded(f"{self.limits.mailbox_max} calls wait for {activation.name}")
                full.request_id = request_id
                refused = activation.stats[handler.name].refused
                refused[pb.CODE_OVERLOADED] = refused.get(pb.CODE_OVERLOADED, 0) + 1
                port.reply(
                    call.id, b"", not_definite_after(call.attempt, error_to_proto(full)), shard
                )
                return
            self._in_flight[request_id] = turn
            mailbox.append(turn)
            self.cancellation.watch(deadline)

    def _run_beside(
        self, activation: Activation, call: pb.Call, handler: Handler | Sending, port: ReplyPort
    ) -> None:
        """Run a call that waits for no turn: a read, or a call that is stored to run later."""
        now = self.loop.time()
        activation.last_used = now
        deadline = now + min(
            call.timeout_ms / 1000 or self.limits.turn_timeout_s, self.limits.turn_timeout_s
        )
        turn = Turn(self.reads, activation, call, handler, port, deadline)
        if self._tracing is not None:
            turn.trace(
                TurnSpan.of(self._tracing, call, activation.shard, turn.arrived, alarm=False)
            )
        if isinstance(handler, Sending):
            self.reads.store(turn, handler)
        else:
            self.reads.run(turn, handler)

    def _activate(self, call: pb.Call) -> Activation:
        if (wrong := wrong_key(call.key)) is not None:
            raise wrong
        number = self._shards.number_of(call.kind, call.key)
        shard = self._shards.get(number)
        # Turns that may still end can call other objects, so a call with a chain is taken.
        if (
            shard is None
            or shard.until <= boottime()
            or ((self._draining or shard.closing) and not call.chain)
        ):
            raise WrongOwner(
                f"shard {number} is not served by this node", definite=True, retryable=True
            )
        kind = self._app.kinds.get(call.kind)
        if kind is None:
            raise self._kinds.refusal(shard, call.kind, call.key, call.attempt)
        while len(self._activations) >= self.limits.activations_max:
            if not self.eviction.evict_oldest():
                raise overloaded(
                    f"{self.limits.activations_max} objects are active and busy on this node"
                )
        activation = Activation(self._environment, kind, call.key, shard, self.stats[kind.name])
        self._activations.add(activation)
        shard.kinds.add(kind.name)
        self.activations_created += 1
        return activation

    def _check_chain(self, call: pb.Call, activation: Activation) -> None:
        """Raise Deadlock if the object is in the call's chain: its running turn waits for this very
        call."""
        chain = list(call.chain)
        if activation.name in chain:
            cycle = (*chain[chain.index(activation.name) :], activation.name)
            raise Deadlock(
                f"the call would wait for itself: {' -> '.join(cycle)}", cycle=cycle, definite=True
            )

    # -- a turn runs

    def _start(self, turn: Turn, now: float) -> None:
        activation = turn.activation
        handler = turn.handler
        turn.state = RUNNING
        limit = now + self.limits.turn_timeout_s
        if limit < turn.deadline:
            turn.deadline = limit
        activation.turn = turn
        activation.storage.begin()
        if activation.expiry_ms and activation.has_expired():
            activation.expire()
        self.turns += 1
        activation.shard.turns += 1
        if not self.turns % SAMPLE:
            self.top_keys.count((activation.kind.name, activation.key))
        self._starting = True
        if activation.instance is None and type(handler) is not InternalHandler:
            turn.run(self._first(turn))
        elif handler.is_async:
            try:
                coroutine = handler.invoke(
                    activation.instance, turn.call.arguments, turn.call.codec == pb.CODEC_JSON
                )
            except BaseException as error:  # raised by a user's class while arguments are decoded
                self.ended(turn, None, error)
            else:
                turn.run(coroutine)
        else:
            turn.run(_as_coroutine(handler, activation.instance, turn.call))
        self._starting = False
        if turn.state == RUNNING:  # the handler waits, so its deadline matters now
            self.cancellation.watch(turn.deadline)

    async def _first(self, turn: Turn) -> Any:
        """Make, activate and call an instance in its first turn, all in one transaction."""
        activation = turn.activation
        activation.instance = instance = make_instance(TurnContext(activation, self._environment))
        if activation.kind.on_activate is not None:
            # The calls of `on_activate` have numbers of their own. Whether it runs depends on the
            # objects in memory, and the handler's calls must have the same ids in a retry.
            turn.call_number = ON_ACTIVATE_CALLS
            waits = activation.kind.on_activate(instance)
            if inspect.isawaitable(waits):
                await waits
            turn.call_number = 0
        try:
            result = turn.handler.invoke(
                instance, turn.call.arguments, turn.call.codec == pb.CODEC_JSON
            )
        except UnfitArguments:
            activation.instance = None  # the writes of on_activate are rolled back
            raise
        return await result if turn.handler.is_async else result

    def ended(self, turn: Turn, value: Any, error: BaseException | None) -> None:
        """Answer a turn whose handler has ended, or roll it back. Implements `TurnRunner`."""
        activation = turn.activation
        storage = activation.storage
        outcomes = self.outcomes
        entry: Entry | None = None
        turn.ended_at = perf_counter()
        if not activation.shard.owned:
            # The shard has left this node during the turn: roll it back. The next owner runs it
            # again.
            storage.rollback()
            activation.deactivating = False
            activation.turn = None
            self.requests.finish(turn, b"", moved(activation.shard.number))
            return
        if error is None:
            try:
                outcomes.set_result(turn, value)
                if outcomes.writes(turn):
                    entry = outcomes.write(turn)
            except Exception as unfit:
                error = unfit
                entry = None
        if error is not None:
            storage.rollback()
            activation.deactivating = False
            # With unfit arguments the handler did not run, so the instance may stay.
            if not isinstance(error, UnfitArguments):
                activation.instance = None
            outcomes.set_error(turn, error)
            if (
                turn.call.keep_reply
                and isinstance(error, Rejected)
                and turn.stopped is None
                and type(turn.handler) is Handler
            ):
                entry = outcomes.keep_refusal(turn, turn.handler)
        else:
            storage.close(entry)
        activation.account()
        activation.turn = None
        answer_when_committed(self.requests, turn, entry)
        if activation.deactivating:
            self.eviction.deactivate(activation)
        # While `_starting`, the loop in `_next` goes on by itself.
        if activation.mailbox and not self._starting:
            self._next(activation)

    def _next(self, activation: Activation) -> None:
        """Start the turns that wait for an object, until one of them has to wait."""
        mailbox = activation.mailbox
        for _ in range(_TURNS_IN_A_ROW):
            if activation.turn is not None or not mailbox:
                break
            turn = mailbox.popleft()
            if turn.state == QUEUED:
                turn.began = perf_counter()
                self._start(turn, self.loop.time())
        else:
            self.loop.call_soon(self._next, activation)
        if not mailbox:
            activation.mailbox = None

    # -- turns of Holdfast's own

    def run_internal(
        self,
        kind: str,
        key: str,
        request_id: bytes,
        handler: Callable[[Activation], Firing | InternalHandler],
        done: Callable[[pb.Error | None], None],
        timeout_s: float = 0.0,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Run a turn of Holdfast's own on an object. `done` gets the turn's error, or None when it
        is committed.

        `handler` returns the stand-in for a handler; a HoldfastError that it raises is the turn's
        error. `timeout_s`: the deadline in seconds, with the time in the mailbox; 0: the default
        deadline.
        """
        call = pb.Call(
            kind=kind,
            key=key,
            method="on_alarm",
            request_id=request_id,
            timeout_ms=int(timeout_s * 1000),
            metadata=metadata,
        )
        port = _Told(done)
        if request_id in self._in_flight:
            port.reply(
                0, b"", error_to_proto(overloaded("the same turn is under way already")), None
            )
            return
        try:
            activation = self._activations.use(kind, key) or self._activate(call)
            shard = activation.shard
            if shard.until <= boottime() or shard.closing:
                raise WrongOwner(
                    f"shard {shard.number} is not served by this node at the moment",
                    definite=True,
                    retryable=True,
                )
            bound = handler(activation)
        except HoldfastError as error:
            port.reply(0, b"", error_to_proto(error), None)
            return
        self._enqueue(activation, call, bound, port)

    def _run_on_evict(self, activation: Activation, instance: DurableObject) -> None:
        """Run the `on_evict` hook, if there is one, of an instance that the activation has lost. An
        expired object runs none."""
        hook = activation.kind.on_evict
        if hook is None or activation.has_expired():
            return
        call = pb.Call(
            kind=activation.kind.name,
            key=activation.key,
            method="on_evict",
            request_id=self._ids.next(),
        )
        turn = Turn(
            self, activation, call, _EVICT, _Nobody(), self.loop.time() + self.limits.turn_timeout_s
        )

        async def run() -> None:
            waits = hook(instance)
            if inspect.isawaitable(waits):
                await waits

        turn.state = RUNNING
        self._in_flight[turn.request_id] = turn
        activation.turn = turn
        activation.storage.begin()
        turn.run(run())
        if turn.state == RUNNING:
            self.cancellation.watch(turn.deadline)

    # -- time passes, and ends

    def tick(self) -> None:
        """Follow the clock, and evict objects. Call it a few times a second."""
        self._responses.tick()
        self._shards.tick(boottime())
        self.top_keys.tick(self.loop.time())
        self.eviction.tick()

    async def drain(self, timeout_s: float) -> None:
        """Activate no more objects, let running turns end within `timeout_s` seconds, and flush
        their writes."""
        self._draining = self.outcomes.draining = True
        until = self.loop.time() + timeout_s
        while self._in_flight and self.loop.time() < until:
            await asyncio.sleep(0.01)
        for turn in list(self._in_flight.values()):
            if turn.state == RUNNING:
                turn.cancel()
        await asyncio.sleep(0)
        await self._committer.drain()

    async def close(self) -> None:
        """Stop the engine for good."""
        self.cancellation.close()


class _Nobody:
    """The port of turns that no caller has asked for."""

    closed = False

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        pass


class _Told:
    """The port of a turn of Holdfast's own: it calls a function."""

    __slots__ = ("_done",)
    closed = False

    def __init__(self, done: Callable[[pb.Error | None], None]) -> None:
        self._done = done

    def reply(
        self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None
    ) -> None:
        self._done(error)


def _on_evict(self: object) -> None:
    """Stand in for the handler in the logs of an eviction."""


_EVICT = Handler("on_evict", _on_evict, "DurableObject")
_AGAIN = InternalHandler("a notification that was taken before", lambda: None)


async def _as_coroutine(
    handler: Handler | Sending | Firing | InternalHandler, instance: Any, call: pb.Call
) -> Any:
    return handler.invoke(instance, call.arguments, call.codec == pb.CODEC_JSON)
