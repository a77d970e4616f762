"""The engine: takes calls, runs turns one at a time for each object, and lets replies out when what they rest on is committed.

The path of a call: `deliver` finds the activation, queues the turn or starts it; `_ended` puts what it wrote into its shard's
entry, on which the turn waits; when that is settled, `_answer` sends the reply. Nothing on this path makes a task, takes a lock or
awaits.

Output gate: a reply whose turn wrote leaves with the entry it wrote to. Any other reply of that object, an error's too, that
comes while the object's newest entry is not committed, leaves with that entry, so no reply tells of what may yet be lost.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from holdfast import codec
from holdfast.app import App
from holdfast.deadlines import Deadlines
from holdfast.errors import (
    Aborted,
    ApplicationError,
    DeadlineExceeded,
    Deadlock,
    HoldfastError,
    InternalError,
    InvalidArgument,
    NotFound,
    Overloaded,
    Rejected,
    TooLarge,
    Unavailable,
    UnfitArguments,
    WrongOwner,
    error_to_proto,
    not_definite_after,
)
from holdfast.ids import EFFECT, RequestIds
from holdfast.object import DurableObject
from holdfast.signature import Handler, Sending
from holdfast.storage import Limits
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.clock import boottime
from holdfast_cluster.dispatch import KEY_BYTES_MAX
from holdfast_cluster.model import SEND

from holdfast_node import keys
from holdfast_node.activation import Activation, Environment, LastError
from holdfast_node.activations import Activations
from holdfast_node.commit import Committer
from holdfast_node.effects.outbox import OutboxLimits
from holdfast_node.hosting import ShardKinds
from holdfast_node.hottest import SAMPLE, Hottest
from holdfast_node.internal import Firing, InternalHandler
from holdfast_node.outgoing import delay_of, sent_by_client
from holdfast_node.reading import ReadContext
from holdfast_node.replication.changes import Until
from holdfast_node.replies import ResponseCache, identity_of
from holdfast_node.shards import Entry, Shard, Shards
from holdfast_node.spans import TurnSpan
from holdfast_node.stats import KindStats
from holdfast_node.turn import COMMITTING, DONE, ON_ACTIVATE_CALLS, QUEUED, RUNNING, ReplyPort, Turn

log = logging.getLogger(__name__)

REST_PATIENCE_S = 10.0
"""How long an operator waits for a busy object; less than gateways wait for a node."""
_ONES_OWN = InvalidArgument | NotFound | TooLarge
"""Errors that say that the call is wrong: of a call that a handler made they are the handler's."""
_JOINED_MAX = 64
"""Attempts that may wait for one turn beside the first: an honest caller has one or two, for each gateway that it has tried."""
_TURNS_IN_A_ROW = 64  # of one object, before the loop gets a chance to do something else
_NEVER = float("inf")
_EVICTED_MAX = 1_000  # at once
_ABANDON_AGAIN_S = 0.5
_ABANDON_S = 5.0  # how long a turn that was cancelled may take to end


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Bounds of one node's engine."""

    in_flight_max: int = 10_000
    """Calls taken and not answered."""
    mailbox_max: int = 1_000
    """Calls that wait for one object; and reads that run beside its turns."""
    turn_timeout_s: float = 30.0
    """How long a turn may run; also the deadline of a call that brings none."""
    queue_timeout_max_s: float = 600.0
    """The longest deadline of a caller that is honoured while its call waits."""
    result_bytes_max: int = 4 << 20
    activations_max: int = 200_000
    cache_bytes_max: int = 256 << 20
    """The hot caches of all activations together."""
    idle_s: float = 300.0
    """An activation that had no call for this long is evicted, unless its kind says otherwise (`KindOptions.idle`)."""
    storage: Limits = field(default_factory=Limits)
    outbox: OutboxLimits = field(default_factory=OutboxLimits)


class Engine:
    """All objects of a node. Not thread-safe: it lives on the event loop."""

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
        self._limits = limits
        self._shards = shards
        self._committer = committer
        self._responses = responses
        self._environment = environment
        self._activations = activations
        self._kinds = kinds
        self._tracing = environment.tracing
        self._loop = asyncio.get_running_loop()
        shards.listeners.append(self.drop_shards)
        self._in_flight: dict[bytes, Turn] = {}
        self._deadlines = Deadlines(self._in_flight, self._expire)
        self._draining = False
        self._ids = RequestIds()
        self._starting = False
        self.turns = 0
        self.turns_failed = 0
        self.activations_created = 0
        self.evictions = 0
        self.stats: dict[str, KindStats] = {name: KindStats() for name in app.kinds}
        for name, kind in app.kinds.items():
            for method in kind.handlers:
                _ = self.stats[name][method]  # shown as zero before the first call, so that rates begin there
        self.hottest = Hottest(self._loop.time())

    @property
    def activations(self) -> int:
        return len(self._activations)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    @property
    def committer(self) -> Committer:
        return self._committer

    def active_kinds(self) -> dict[str, int]:
        """How many objects of each kind are in memory."""
        return self._activations.kinds()

    @property
    def entries(self) -> int:
        return self._committer.entries

    @property
    def cached_bytes(self) -> int:
        return self._activations.cached_bytes

    # -- a call comes

    def deliver(self, call: pb.Call, port: ReplyPort) -> None:
        """Take a call; its reply goes to `port`, now or later."""
        request_id = call.request_id
        running = self._in_flight.get(request_id)
        if running is not None:
            self._join(running, call, port)
            return
        try:
            activation = self._activations.use(call.kind, call.key)
            if activation is None:
                activation = self._activate(call)
            shard = activation.shard
            now = boottime()
            if shard.until <= now or (shard.closing and not call.chain):
                raise WrongOwner(f"shard {shard.number} is not served by this node at the moment", definite=True, retryable=True)
            method = call.method
            found = activation.kind.handlers.get(method) or activation.kind.handler(method)
            handler: Handler | Sending | InternalHandler = found
            if call.send or found.reads:
                handler = _runs_beside(found, call, shard)
            attempt = call.attempt
            responses = self._responses
            again = attempt or request_id[0] >= EFFECT or responses.may_have_run(request_id, now)
            if (again or now < shard.look_until) and not handler.reads:
                if call.notification:
                    if activation.already_received(call.notification):
                        handler = _AGAIN  # as a turn of its own, so that its answer waits for what the first one's waits for
                        other = pb.Call()  # the sender, on this very node perhaps, still has the one that came
                        other.CopyFrom(call)
                        other.ClearField("notification")
                        call = other
                else:
                    if again:
                        self._committer.flush_visible()  # what is committed may be staged still
                    identity = identity_of(activation.digest, handler, call)  # type: ignore[arg-type]
                    kept = responses.find(shard, identity, call, before=not again)
                    if kept is not None:
                        error = None if kept.error is None else not_definite_after(attempt, kept.error)
                        port.reply(call.id, kept.result, error, shard)
                        return
            if activation.turn is not None and call.chain and not handler.reads:
                self._check_chain(call, activation)
            if len(self._in_flight) >= self._limits.in_flight_max:
                raise _overloaded(f"{self._limits.in_flight_max} calls are in flight on this node")
            if handler.reads and len(activation.reads or ()) >= self._limits.mailbox_max:
                raise _overloaded(f"{self._limits.mailbox_max} reads of {activation.name} are under way")
        except HoldfastError as error:
            error.request_id = request_id
            told = not_definite_after(call.attempt, error_to_proto(error, call.codec))
            if (stats := self.stats.get(call.kind)) is not None and call.method in stats:
                refused = stats[call.method].refused
                refused[told.code] = refused.get(told.code, 0) + 1
            port.reply(call.id, b"", told, None)
            return
        if handler.reads or type(handler) is Sending:
            self._run_beside(activation, call, handler, port)
        else:
            self._enqueue(activation, call, handler, port)

    def _enqueue(
        self, activation: Activation, call: pb.Call, handler: Handler | Sending | Firing | InternalHandler, port: ReplyPort
    ) -> None:
        """Start a turn, or have it wait for those before it."""
        request_id = call.request_id
        shard = activation.shard
        now = self._loop.time()
        activation.last_used = now
        timeout = call.timeout_ms / 1000 or self._limits.turn_timeout_s
        deadline = now + min(timeout, self._limits.queue_timeout_max_s)
        turn = Turn(self._loop, activation, call, handler, port, deadline, self._ended, self._answer)
        if self._tracing is not None:
            turn.span = TurnSpan.of(self._tracing, turn)
        if activation.turn is None and not activation.mailbox:
            self._in_flight[request_id] = turn
            self._start(turn, now)
        else:
            mailbox = activation.mailbox
            if mailbox is None:
                mailbox = activation.mailbox = deque()
            elif len(mailbox) >= self._limits.mailbox_max:
                full = _overloaded(f"{self._limits.mailbox_max} calls wait for {activation.name}")
                full.request_id = request_id
                refused = activation.stats[handler.name].refused
                refused[pb.CODE_OVERLOADED] = refused.get(pb.CODE_OVERLOADED, 0) + 1
                port.reply(call.id, b"", not_definite_after(call.attempt, error_to_proto(full)), shard)
                return
            self._in_flight[request_id] = turn
            mailbox.append(turn)
            self._deadlines.watch(deadline)

    def _activate(self, call: pb.Call) -> Activation:
        size = len(call.key.encode())
        if not 0 < size <= KEY_BYTES_MAX:
            raise InvalidArgument(f"an object's key has 1 to {KEY_BYTES_MAX} bytes, this one {size}", path="key", definite=True)
        number = self._shards.number_of(call.kind, call.key)
        shard = self._shards.get(number)
        if (
            shard is None or shard.until <= boottime() or ((self._draining or shard.closing) and not call.chain)
        ):  # a turn that is let end may call others
            raise WrongOwner(f"shard {number} is not served by this node", definite=True, retryable=True)
        kind = self._app.kinds.get(call.kind)
        if kind is None:
            raise self._kinds.refusal(shard, call.kind, call.key, call.attempt)
        while len(self._activations) >= self._limits.activations_max:
            if not self._evict_oldest():
                raise _overloaded(f"{self._limits.activations_max} objects are active and busy on this node")
        activation = Activation(self._environment, kind, call.key, shard, self.stats[kind.name])
        self._activations.add(activation)
        shard.kinds.add(kind.name)
        self.activations_created += 1
        return activation

    def _check_chain(self, call: pb.Call, activation: Activation) -> None:
        """Only an object with a running turn can be in the chain: those that are in it wait for this very call."""
        chain = list(call.chain)
        if activation.name in chain:
            cycle = (*chain[chain.index(activation.name) :], activation.name)
            raise Deadlock(f"the call would wait for itself: {' -> '.join(cycle)}", cycle=cycle, definite=True)

    def _join(self, turn: Turn, call: pb.Call, port: ReplyPort) -> None:
        """The same request again while its first attempt is under way: one turn, and everybody who asked is answered."""
        before = turn.call
        if (call.kind, call.key, call.method, call.codec, call.arguments, call.send) != (
            before.kind,
            before.key,
            before.method,
            before.codec,
            before.arguments,
            before.send,
        ):
            error = InvalidArgument(f"request id {call.request_id.hex()} is in use by another call", path="request_id", definite=True)
            port.reply(call.id, b"", not_definite_after(call.attempt, error_to_proto(error)), None)
            return
        if len(turn.also or ()) + len(turn.late or ()) >= _JOINED_MAX:
            full = _overloaded(f"{_JOINED_MAX} attempts of request {call.request_id.hex()} wait already")
            full.definite = False
            port.reply(call.id, b"", error_to_proto(full), None)
            return
        turn.attempt = max(turn.attempt, call.attempt)
        if turn.given_up:  # its turn is being rolled back for those who cancelled it: this one gets another
            turn.late = [*(turn.late or ()), (port, call.id)]
            return
        if turn.also is None:
            turn.also = []
        turn.also.append((port, call.id))

    # -- a turn runs

    def _start(self, turn: Turn, now: float) -> None:
        activation = turn.activation
        handler = turn.handler
        turn.state = RUNNING
        limit = now + self._limits.turn_timeout_s
        if limit < turn.deadline:
            turn.deadline = limit
        activation.turn = turn
        activation.storage.begin()
        if activation.expiry_ms and activation.has_expired():
            activation.expire()
        self.turns += 1
        activation.shard.turns += 1
        if not self.turns % SAMPLE:
            self.hottest.note((activation.kind.name, activation.key))
        self._starting = True
        if activation.instance is None and type(handler) is not InternalHandler:
            turn.run(self._first(turn))
        elif handler.is_async:
            try:
                coroutine = handler.invoke(activation.instance, turn.call.arguments, turn.call.codec == pb.CODEC_JSON)
            except BaseException as error:  # what a class of the user's raises when its arguments are made
                self._ended(turn, None, error)
            else:
                turn.run(coroutine)
        else:
            turn.run(_as_coroutine(handler, activation.instance, turn.call))
        self._starting = False
        if turn.state == RUNNING:  # it waits for something: from now on its deadline matters
            self._deadlines.watch(turn.deadline)

    async def _first(self, turn: Turn) -> Any:
        """The first turn of an instance: it is made, activated and called, all in one transaction."""
        activation = turn.activation
        activation.instance = instance = activation.make_instance()
        if activation.kind.on_activate is not None:
            # Its calls are numbered apart: whether it runs at all depends on what is in memory, and a retry must find its own ids.
            turn.call_number = ON_ACTIVATE_CALLS
            waits = activation.kind.on_activate(instance)
            if inspect.isawaitable(waits):
                await waits
            turn.call_number = 0
        try:
            result = turn.handler.invoke(instance, turn.call.arguments, turn.call.codec == pb.CODEC_JSON)
        except UnfitArguments:
            activation.instance = None  # what on_activate did is rolled back
            raise
        return await result if turn.handler.is_async else result

    def _ended(self, turn: Turn, value: Any, error: BaseException | None) -> None:
        activation = turn.activation
        storage = activation.storage
        entry: Entry | None = None
        turn.ended_at = perf_counter()
        if not activation.shard.owned:
            # The shard went away under it: nothing of it may be kept, and somebody else will run it.
            storage.rollback()
            activation.deactivating = False
            activation.turn = None
            self._finish(turn, b"", error_to_proto(_moved(activation.shard.number)))
            return
        if error is None:
            try:
                self._set_result(turn, value)
                if storage.changed() or turn.call.keep_reply or (turn.request_id[0] >= EFFECT and turn.call.notification):
                    entry = self._write(turn)
            except Exception as unfit:
                error = unfit
                entry = None
        if error is not None:
            storage.rollback()
            activation.deactivating = False
            if not isinstance(error, UnfitArguments):  # of those the handler, and so the instance, has not seen anything
                activation.instance = None
            self._fail(turn, error)
            if turn.call.keep_reply and isinstance(error, Rejected) and turn.stopped is None and type(turn.handler) is Handler:
                entry = self._keep_refusal(turn, turn.handler)
        else:
            storage.close(entry)
        self._activations.account(activation)
        activation.turn = None
        self._answer_when_committed(turn, entry)
        if activation.deactivating:
            self._deactivate(activation)
        if activation.mailbox and not self._starting:  # whoever starts turns in a row goes on by itself
            self._next(activation)

    def _answer_when_committed(self, turn: Turn, entry: Entry | None) -> None:
        """Answer a turn, or a call beside turns, when what it wrote (`entry`), or may have seen, is committed."""
        activation = turn.activation
        gate = entry or activation.uncommitted
        if gate is not None and entry is None and activation.shard.read_only is not None:
            # What it saw may wait for long: it must not wait with it, and fill the node.
            held = Unavailable(
                f"{activation.name} has a write that waits: {activation.shard.read_only}",
                definite=turn.calls_made == 0,
                retryable=True,
                retry_after_s=1.0,
            )
            held.request_id = turn.request_id
            self._finish(turn, b"", error_to_proto(held))
        elif gate is None:
            self._finish(turn, turn.result, turn.error)
        else:
            turn.state = COMMITTING
            turn.deadline = _NEVER
            gate.waiters.append(turn)

    def _fail(self, turn: Turn, error: BaseException) -> None:
        """Make an exception the turn's error."""
        turn.result = b""
        try:
            turn.error = self._failure(turn, error)
        except Exception as worse:  # an exception of the user's that cannot even be told
            log.exception("%s.%s failed, and so did telling why", turn.activation.name, turn.handler.name)
            told = InternalError(f"{type(error).__name__}, which cannot be told: {type(worse).__name__}", request_id=turn.request_id)
            turn.error = error_to_proto(told)

    def _set_result(self, turn: Turn, value: Any) -> None:
        """Take what a handler returned for the turn's result. Raises what is wrong with it."""
        if turn.stopped is not None:
            raise turn.stopped
        turn.result = _encode(turn, value)
        if len(turn.result) > self._limits.result_bytes_max:
            raise TooLarge(
                f"a result of {len(turn.result)} bytes, at most {self._limits.result_bytes_max}",
                definite=turn.calls_made == 0,
            )

    # -- calls beside turns

    def _run_beside(
        self, activation: Activation, call: pb.Call, handler: Handler | Sending | InternalHandler, port: ReplyPort
    ) -> None:
        """Run a call that waits for no turn: a read, or one that is stored to be run later."""
        now = self._loop.time()
        activation.last_used = now
        deadline = now + min(call.timeout_ms / 1000 or self._limits.turn_timeout_s, self._limits.turn_timeout_s)
        turn = Turn(self._loop, activation, call, handler, port, deadline, self._read_ended, self._answer)
        if self._tracing is not None:
            turn.span = TurnSpan.of(self._tracing, turn)
        turn.state = RUNNING
        if isinstance(handler, Sending):
            self._store_call(turn, handler)
            return
        self._in_flight[call.request_id] = turn
        if activation.reads is None:
            activation.reads = set()
        activation.reads.add(turn)
        turn.reading = context = ReadContext(activation, self._environment.outgoing, turn)

        async def run() -> Any:
            result = handler.invoke(context.make_instance(), call.arguments, call.codec == pb.CODEC_JSON)
            return await result if handler.is_async else result

        turn.run(run())
        if turn.state == RUNNING:
            self._deadlines.watch(turn.deadline)

    def _read_ended(self, turn: Turn, value: Any, error: BaseException | None) -> None:
        turn.ended_at = perf_counter()
        activation = turn.activation
        self._close_read(turn)
        if not activation.shard.owned or activation.forgotten:
            self._finish(turn, b"", error_to_proto(_moved(activation.shard.number)))
            return
        if error is None:
            try:
                self._set_result(turn, value)
            except Exception as unfit:
                error = unfit
        if error is not None:
            self._fail(turn, error)
        self._activations.account(activation)
        self._answer_when_committed(turn, None)

    @staticmethod
    def _close_read(turn: Turn) -> None:
        activation = turn.activation
        assert turn.reading is not None
        turn.reading.close()
        assert activation.reads is not None
        activation.reads.discard(turn)
        if not activation.reads:
            activation.reads = None

    def _store_call(self, turn: Turn, handler: Sending) -> None:
        """A client's notification: it goes to the outbox of its receiver's own shard, with the reply that says so."""
        activation, call = turn.activation, turn.call
        shard = activation.shard
        entry: Entry | None = None
        try:
            if shard.read_only is not None:
                raise _read_only(turn)
            sent = self._environment.sent
            effect = sent_by_client(sent, turn, handler.handler)
            sent.check_room(shard, (effect.row.sender_kind, effect.row.sender_key), 0, effect.delay_ms)
            turn.result = _encode(turn, None)
            if turn.attempt and turn.request_id[0] < EFFECT:
                self._responses.note_retried(turn.request_id)
            identity = identity_of(activation.digest, handler, call)
            entry = self._committer.entry(shard)
            effect.stage(entry)
            entry.replies.append(self._responses.row(shard, identity, activation.hash, turn.request_id, turn.result))
            entry.bytes += len(effect.raw)
        except HoldfastError as refusal:
            refusal.request_id = turn.request_id
            turn.error = error_to_proto(refusal, call.codec)
        except BaseException as error:  # of arguments that break when they are read, or of what the shard has to send
            self._fail(turn, error)
        turn.ended_at = perf_counter()
        if entry is None:
            self._finish(turn, b"", turn.error)
        else:
            self._in_flight[turn.request_id] = turn
            turn.state = COMMITTING
            turn.deadline = _NEVER
            entry.waiters.append(turn)

    def _keep_refusal(self, turn: Turn, handler: Handler) -> Entry | None:
        """Keep the final error of a turn whose caller brought an id of its own: the answer stays the same however often it asks."""
        activation = turn.activation
        shard = activation.shard
        assert turn.error is not None
        if shard.read_only is not None:
            turn.error = error_to_proto(_read_only(turn))
            return None
        raw = turn.error.SerializeToString()
        entry = self._committer.entry(shard)
        identity = identity_of(activation.digest, handler, turn.call)
        entry.replies.append(self._responses.row(shard, identity, activation.hash, turn.request_id, b"", raw))
        entry.bytes += len(raw)
        activation.wrote_to(entry)
        return entry

    def _write(self, turn: Turn) -> Entry:
        activation = turn.activation
        shard = activation.shard
        if shard.read_only is not None:
            raise _read_only(turn)
        prefix = activation.row_prefix
        storage = activation.storage
        cleared, writes, deletes = storage.take(prefix)
        expires = storage.some_expire or activation.expiry_ms or activation.kind.options.ttl is not None
        if expires:
            self._environment.expiry.of(shard)  # raises what is wrong with it: staging cannot fail
        entry = self._committer.entry(shard)
        if cleared:
            end = keys.after(prefix)
            assert end is not None
            entry.rows.append((prefix, Until(end)))
        entry.rows += writes
        entry.bytes += storage.write_bytes + len(turn.result)
        if deletes or cleared:
            entry.deletes = True
        if storage.emptied:
            activation.alarms.stage_all_gone(entry)
        for effect in storage.effects:
            effect.stage(entry)  # type: ignore[attr-defined]
        if expires:
            handler = turn.handler
            self._environment.expiry.stage(entry, activation, writes, type(handler) is InternalHandler and handler.deletes)
        request_id = turn.request_id
        if turn.call.notification:
            entry.rows.append(activation.record(turn.call.notification))
        elif type(turn.handler) is Handler:
            if turn.attempt and request_id[0] < EFFECT:
                self._responses.note_retried(request_id)
            identity = identity_of(activation.digest, turn.handler, turn.call)
            entry.replies.append(self._responses.row(shard, identity, activation.hash, request_id, turn.result))
        activation.wrote_to(entry)
        return entry

    def _next(self, activation: Activation) -> None:
        """Start the turns that wait for an object, until one of them has to wait itself."""
        mailbox = activation.mailbox
        for _ in range(_TURNS_IN_A_ROW):
            if activation.turn is not None or not mailbox:
                break
            turn = mailbox.popleft()
            if turn.state == QUEUED:
                turn.began = perf_counter()
                self._start(turn, self._loop.time())
        else:
            self._loop.call_soon(self._next, activation)
        if not mailbox:
            activation.mailbox = None

    # -- replies leave

    def _answer(self, turn: Turn) -> None:
        """What the turn's answer waited for is committed, or abandoned with its shard."""
        self._finish(turn, turn.result, turn.error)

    def _finish(self, turn: Turn, result: bytes, error: pb.Error | None) -> None:
        self._in_flight.pop(turn.request_id, None)
        shard = turn.activation.shard
        if not shard.owned and error is None:
            # Committed or not, this node may no longer speak for the shard; the next attempt finds the kept reply.
            result, error = b"", error_to_proto(_moved(shard.number))
        if error is not None:
            not_definite_after(turn.attempt, error)
        turn.activation.stats[turn.handler.name].ended(turn.arrived, turn.began, turn.ended_at, perf_counter(), error)
        if turn.span is not None:
            turn.span.ended(turn, error)
        turn.state = DONE
        turn.port.reply(turn.number, result, error, shard)
        for port, number in turn.also or ():
            port.reply(number, result, error, shard)
        if turn.late:
            self._deliver_again(turn, turn.late)

    # -- what goes wrong

    def _failure(self, turn: Turn, error: BaseException) -> pb.Error:
        definite = turn.calls_made == 0
        if turn.stopped is not None:
            failed: HoldfastError = turn.stopped
            failed.definite = definite
        elif isinstance(error, _ONES_OWN) and error.callee:  # the fault of this handler, which called so, not of its caller
            failed = ApplicationError(f"{error.callee}: {error.message}", type=type(error).__name__, definite=definite)
        elif isinstance(error, InvalidArgument | Rejected):
            failed = error
            failed.definite = definite
        elif isinstance(error, WrongOwner):  # a call's; raised at this turn's caller it would look like our own
            failed = InternalError(f"WRONG_OWNER: {error.message}", definite=False)
        elif isinstance(error, HoldfastError):
            failed = error
            failed.definite = failed.definite and definite and turn.calls_made == 0
        elif isinstance(error, asyncio.CancelledError) and (self._draining or turn.activation.shard.closing):
            return error_to_proto(_moved(turn.activation.shard.number))  # it is run again where the shard is served next
        elif isinstance(error, asyncio.CancelledError):
            failed = InternalError("the turn was cancelled", definite=definite, retryable=True)
        else:
            failed = ApplicationError(str(error), type=type(error).__name__, definite=definite)
        failed.request_id = turn.request_id
        self.turns_failed += not isinstance(failed, Rejected)
        turn.activation.last_error = LastError(
            failed.code, failed.message, turn.handler.name, turn.activation.shard.clock.now_ms(), turn.request_id
        )
        if not isinstance(failed, Rejected | InvalidArgument | Aborted):
            log.error(
                "%s.%s failed: %s",
                turn.activation.name,
                turn.handler.name,
                failed.message or failed.code,
                exc_info=error if turn.stopped is None else None,
                extra={
                    **turn.activation.log_fields(turn),
                    "method": turn.handler.name,
                },
            )
        return error_to_proto(failed, turn.call.codec)

    def _expire(self, turn: Turn) -> None:
        """A deadline passed: a turn that waits in the mailbox never starts, one that runs is cancelled and rolled back."""
        if turn.state == QUEUED:
            self._unqueue(turn, _expired(turn))
        elif turn.state == RUNNING and turn.stopped is None:
            self._stop(turn, _expired(turn))
        elif turn.state == RUNNING and turn.reading is not None:
            self._abandon_read(turn)
        elif turn.state == RUNNING:
            self._abandon(turn)

    def _stop(self, turn: Turn, why: HoldfastError) -> None:
        """Cancel a running turn, which is rolled back; one that goes on all the same is abandoned."""
        turn.stopped = why
        turn.deadline = self._loop.time() + _ABANDON_S
        self._deadlines.watch(turn.deadline)
        turn.cancel()

    def cancel(self, request_id: bytes, port: ReplyPort, number: int) -> None:
        """Who made call `number` waits no more. When nobody else waits for the request, its turn does not begin, or is rolled back.

        What is committed already stays. The answer still goes to `port`, which counts it.
        """
        turn = self._in_flight.get(request_id)
        if turn is None:
            return
        if turn.late and (port, number) in turn.late:
            turn.late.remove((port, number))
            self._tell_given_up(turn, port, number)
            return
        if turn.state == COMMITTING:
            return
        waiters = [(turn.port, turn.number), *(turn.also or ())]
        if turn.given_up or (port, number) not in waiters:
            return
        waiters.remove((port, number))
        waiters = [(other, its) for other, its in waiters if not other.closed]  # a connection that is gone waits for nothing
        error = Aborted("its caller waits no more", definite=True)
        error.request_id = request_id
        if waiters:
            turn.port, turn.number = waiters[0]
            turn.also = waiters[1:]
            self._tell_given_up(turn, port, number)
            return
        turn.port, turn.number, turn.also = port, number, None
        if turn.state == QUEUED:
            self._unqueue(turn, error)
        elif turn.stopped is None:
            turn.given_up = True
            self._stop(turn, error)

    def _tell_given_up(self, turn: Turn, port: ReplyPort, number: int) -> None:
        """Answer one who waits no more for a turn that goes on for others, or runs again for them."""
        error = Aborted("its caller waits no more")
        error.request_id = turn.request_id
        port.reply(number, b"", error_to_proto(error), turn.activation.shard)

    def abort(self, kind: str, key: str) -> Turn | None:
        """Roll back the running turn of an object, for an operator, or end a read when no turn runs.

        The turn, or None when none runs or it is committed already.
        """
        activation = self._activations.get(kind, key)
        turn = None if activation is None else activation.turn
        if turn is None and activation is not None and activation.reads:
            turn = next(iter(activation.reads))
        if turn is None or turn.state != RUNNING:
            return None
        if turn.stopped is None:
            self._stop(turn, Aborted(f"{turn.activation.name}.{turn.handler.name}() was aborted by an operator"))
        return turn

    def _unqueue(self, turn: Turn, error: HoldfastError) -> None:
        """Answer a turn that waits in its mailbox: it never begins."""
        turn.state = DONE
        error.request_id = turn.request_id
        self._finish(turn, b"", error_to_proto(error))
        mailbox = turn.activation.mailbox
        if mailbox is not None and turn in mailbox:
            mailbox.remove(turn)

    def _abandon_read(self, turn: Turn) -> None:
        """A read goes on though it was cancelled: it is answered, and sees nothing any more."""
        assert turn.stopped is not None
        turn.stopped.request_id = turn.request_id
        turn.stopped.definite = turn.calls_made == 0
        self._drop_read(turn, error_to_proto(turn.stopped))

    def _drop_read(self, turn: Turn, error: pb.Error) -> None:
        """Answer a read; whatever it still does is void."""
        turn.ended = lambda turn, value, error: None
        self._close_read(turn)
        self._finish(turn, b"", error)

    def _abandon(self, turn: Turn) -> None:
        """A handler goes on though it was cancelled: its object goes on without it, from storage, and what it still does is void."""
        activation = turn.activation
        assert activation.turn is turn
        if not activation.forgotten and (activation.uncommitted is not None or not activation.storage.settled()):
            # The next activation would read the store, which does not show yet what this one wrote.
            turn.deadline = self._loop.time() + _ABANDON_AGAIN_S
            self._deadlines.watch(turn.deadline)
            return
        log.error(
            "%s.%s was cancelled and did not end: it is abandoned",
            activation.name,
            turn.handler.name,
            extra={**activation.log_fields(turn), "method": turn.handler.name},
        )
        turn.ended = lambda turn, value, error: None
        waiting, activation.mailbox = activation.mailbox, None
        self._activations.forget(activation)
        activation.storage.rollback()
        for read in list(activation.reads or ()):
            read.cancel()  # its rows are no longer those of the object: it is made again
        self.turns_failed += 1
        assert turn.stopped is not None
        turn.stopped.request_id = turn.request_id
        turn.stopped.definite = turn.calls_made == 0
        self._finish(turn, b"", error_to_proto(turn.stopped))
        for queued in waiting or ():
            if queued.state == QUEUED:
                self._in_flight.pop(queued.request_id, None)
                queued.state = DONE
                if type(queued.handler) is not Handler:  # Holdfast's own, bound to this activation: whoever wanted it asks again
                    queued.port.reply(queued.number, b"", error_to_proto(_moved(activation.shard.number)), None)
                    continue
                self._deliver_again(queued, ((queued.port, queued.number), *(queued.also or ())))

    def _deliver_again(self, turn: Turn, waiters: Iterable[tuple[ReplyPort, int]]) -> None:
        """Take the call of a turn that is over anew, for each of those who wait for it."""
        for port, number in waiters:
            again = pb.Call()
            again.CopyFrom(turn.call)
            again.id = number
            again.attempt = max(again.attempt, turn.attempt)
            self.deliver(again, port)

    def drop_shards(self, shards: set[Shard]) -> None:
        """These shards are no longer served: forget their activations, and let what waits be sent elsewhere."""
        for activation in self._activations.of_shards(shards):
            self._activations.forget(activation)
            for turn in activation.mailbox or ():
                if turn.state == QUEUED:
                    self._finish(turn, b"", error_to_proto(_moved(activation.shard.number)))
            activation.mailbox = None
            if activation.turn is not None:
                activation.turn.cancel()
            for read in list(activation.reads or ()):
                read.cancel()
        for shard in shards:
            entry, shard.gathering = shard.gathering, None
            if entry is not None:
                entry.abandoned = True
                entry.settle()

    # -- Holdfast's own turns; holdfast_node.internal.InternalTurns

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
        """Run a turn of Holdfast's own on an object; `done` gets its error, or None, when it is committed.

        `handler` makes what stands in for its handler; a HoldfastError that it raises is the turn's. `timeout_s`: its deadline,
        with the time in which it waits; 0: that of any call.
        """
        call = pb.Call(
            kind=kind, key=key, method="on_alarm", request_id=request_id, timeout_ms=int(timeout_s * 1000), metadata=metadata
        )
        port = _Told(done)
        if request_id in self._in_flight:
            port.reply(0, b"", error_to_proto(_overloaded("it fires already")), None)
            return
        try:
            activation = self._activations.use(kind, key) or self._activate(call)
            shard = activation.shard
            if shard.until <= boottime() or shard.closing:
                raise WrongOwner(f"shard {shard.number} is not served by this node at the moment", definite=True, retryable=True)
            bound = handler(activation)
        except HoldfastError as error:
            port.reply(0, b"", error_to_proto(error), None)
            return
        self._enqueue(activation, call, bound, port)

    # -- a shard goes to another node; holdfast_node.replication.handover.Turns

    def close_shard(self, shard: Shard) -> None:
        """Begin no new turns of a shard; those that wait are sent elsewhere."""
        shard.closing = True
        for turn in list(self._in_flight.values()):
            activation = turn.activation
            if activation.shard is shard and turn.state == QUEUED and not turn.call.chain:
                assert activation.mailbox is not None
                activation.mailbox.remove(turn)
                self._finish(turn, b"", error_to_proto(_moved(shard.number)))

    def open_shard(self, shard: Shard) -> None:
        """Begin turns again."""
        shard.closing = False

    def shard_is_quiet(self, shard: Shard) -> bool:
        """Whether nothing of a shard runs, or waits to be committed."""
        return shard.gathering is None and not any(turn.activation.shard is shard for turn in self._in_flight.values())

    def cancel_shard(self, shard: Shard) -> None:
        """Cancel what still runs of a closed shard; it is run again by the next owner. Reads, which can do no harm, end at once."""
        for turn in list(self._in_flight.values()):
            if turn.activation.shard is shard and turn.state == RUNNING:
                if turn.reading is not None:
                    self._drop_read(turn, error_to_proto(_moved(shard.number)))
                turn.cancel()

    # -- eviction

    def tick(self) -> None:
        """Follow the clock and evict what is idle or too much; call it a few times a second."""
        self._responses.tick()
        self._shards.tick(boottime())
        for _ in range(_EVICTED_MAX):
            if self._activations.cached_bytes <= self._limits.cache_bytes_max or not self._evict_oldest():
                break
        now = self._loop.time()
        for kind in self._activations.kinds():
            idle = self._app.kinds[kind].options.idle
            self._evict_idle(kind, now - (self._limits.idle_s if idle is None else idle.total_seconds()))

    def forget_responses(self) -> None:
        """Have the owned shards forget the kept replies whose time has passed; call it about once a minute."""
        self._committer.flush_visible()
        now = boottime()
        for shard in self._shards.serving(now):
            if not shard.closing and shard.read_only is None and (due := self._responses.due(shard)) is not None:
                entry = self._committer.entry(shard)
                entry.forgotten = due if entry.forgotten is None else entry.forgotten.merged(due)

    def evict(self, share: float) -> None:
        """Evict this share of the activations, least recently used first: the process uses too much memory."""
        for _ in range(min(10_000, int(len(self._activations) * share) + 1)):
            if not self._evict_oldest():
                break

    def find(self, kind: str, key: str) -> Activation | None:
        """The activation of an object, if it is in memory."""
        return self._activations.get(kind, key)

    async def evict_object(self, kind: str, key: str) -> bool:
        """Take an object out of memory when it is at rest; whether it was there. Raises Overloaded while it is busy."""
        until = self._loop.time() + REST_PATIENCE_S
        activation = self._activations.get(kind, key)
        if activation is None:
            return False
        while not activation.forgotten:
            if activation.at_rest():
                self._evict(activation)
            elif self._loop.time() > until:
                raise _overloaded(f"{activation.name} is busy: it did not come to rest for {REST_PATIENCE_S:.0f} s")
            else:
                await asyncio.sleep(0.01)
        return True

    def _evict_oldest(self) -> bool:
        """Evict the least recently used activation that is at rest; False when there is none."""
        for activation in self._activations.oldest_first():
            if activation.at_rest():
                self._evict(activation)
                return True
        return False

    def _evict_idle(self, kind: str, unused_since: float) -> None:
        """Evict those of a kind that had no call since then."""
        idle: list[Activation] = []
        for activation in self._activations.of_kind(kind):
            if activation.last_used > unused_since or len(idle) >= _EVICTED_MAX:
                break
            if activation.at_rest():
                idle.append(activation)
        for activation in idle:
            self._evict(activation)

    def _evict(self, activation: Activation) -> None:
        """Take one that is at rest out of memory, or have it run its `on_evict`: then it is evicted when that has ended."""
        instance, activation.instance = activation.instance, None
        if instance is not None:
            self._run_on_evict(activation, instance)
            if not activation.at_rest():
                return
        self._activations.forget(activation)
        self.evictions += 1

    def _deactivate(self, activation: Activation) -> None:
        """Its handler has asked to leave memory. Turns that wait already get a new instance."""
        activation.deactivating = False
        self._activations.retire(activation)
        instance, activation.instance = activation.instance, None
        if instance is not None:
            self._run_on_evict(activation, instance)  # with which turns that wait may begin

    def _run_on_evict(self, activation: Activation, instance: DurableObject) -> None:
        """Run the hook of an instance that the activation has lost, if there is one and anything is left of the object."""
        hook = activation.kind.on_evict
        if hook is None or activation.has_expired():
            return
        call = pb.Call(kind=activation.kind.name, key=activation.key, method="on_evict", request_id=self._ids.next())
        turn = Turn(
            self._loop,
            activation,
            call,
            _EVICT,
            _Nobody(),
            self._loop.time() + self._limits.turn_timeout_s,
            self._ended,
            self._answer,
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
            self._deadlines.watch(turn.deadline)

    # -- the end

    async def drain(self, timeout_s: float) -> None:
        """Take no new objects, let running turns end (at most `timeout_s`), and flush what they wrote."""
        self._draining = True
        until = self._loop.time() + timeout_s
        while self._in_flight and self._loop.time() < until:
            await asyncio.sleep(0.01)
        for turn in list(self._in_flight.values()):
            if turn.state == RUNNING:
                turn.cancel()
        await asyncio.sleep(0)
        await self._committer.drain()

    async def close(self) -> None:
        """Stop for good."""
        self._deadlines.close()


class _Nobody:
    """The port of turns that nobody asked for."""

    closed = False

    def reply(self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None) -> None:
        pass


class _Told:
    """The port of a turn of Holdfast's own: tells a function."""

    __slots__ = ("_done",)
    closed = False

    def __init__(self, done: Callable[[pb.Error | None], None]) -> None:
        self._done = done

    def reply(self, number: int, result: bytes, error: pb.Error | None, shard: Shard | None) -> None:
        self._done(error)


def _on_evict(self: object) -> None:
    """Stands in for the handler of an eviction in logs."""


_EVICT = Handler("on_evict", _on_evict, "DurableObject")
_AGAIN = InternalHandler("a notification that was taken before", lambda: None)


def _encode(turn: Turn, value: Any) -> bytes:
    try:
        result = codec.encode_json(value) if turn.call.codec == pb.CODEC_JSON else codec.encode(value)
        if not result:
            raise TypeError("it is encoded to nothing")
        return result
    except (TypeError, OverflowError) as error:
        hint = "; is an await missing?" if inspect.isawaitable(value) else ""
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(f"{turn.handler.name}() returned what cannot be sent: {error}{hint}") from None


async def _as_coroutine(handler: Handler | Sending | Firing | InternalHandler, instance: Any, call: pb.Call) -> Any:
    return handler.invoke(instance, call.arguments, call.codec == pb.CODEC_JSON)


def _runs_beside(handler: Handler, call: pb.Call, shard: Shard) -> Handler | Sending:
    """What a call that waits for no turn runs. Raises InvalidArgument, and Unavailable while a node does not know such calls."""
    if handler.reads and (call.send or call.notification):
        raise InvalidArgument(f"{call.kind}.{call.method} only reads: there is nothing to tell it", path="method", definite=True)
    if not call.send:
        return handler
    shard.check_feature(SEND, "calls cannot be sent")
    delay_of(call)
    return handler.sending


def _overloaded(message: str) -> Overloaded:
    return Overloaded(message, definite=True, retryable=True, retry_after_s=0.1)


def _expired(turn: Turn) -> DeadlineExceeded:
    if turn.state in (QUEUED, DONE):
        where = "while it waited for its turn"
    else:
        where = "while it ran" if turn.reading is not None else "while it ran: it was rolled back"
    return DeadlineExceeded(
        f"{turn.activation.name}.{turn.handler.name}: the deadline passed {where}",
        definite=turn.calls_made == 0,
        retryable=True,
    )


def _read_only(turn: Turn) -> Unavailable:
    shard = turn.activation.shard
    return Unavailable(
        f"shard {shard.number} is read-only: {shard.read_only}",
        definite=turn.calls_made == 0,
        retryable=True,
        retry_after_s=1.0,
    )


def _moved(shard: int) -> WrongOwner:
    return WrongOwner(f"shard {shard} is no longer served by this node", retryable=True)
