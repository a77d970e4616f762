"""The outcome of a turn: its result or its error, and its writes into its shard's entry."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

from holdfast import codec
from holdfast.errors import (
    Aborted,
    ApplicationError,
    HoldfastError,
    InternalError,
    InvalidArgument,
    NotFound,
    Rejected,
    TooLarge,
    Unavailable,
    WrongOwner,
    error_to_proto,
)
from holdfast.ids import EFFECT
from holdfast.signature import Handler, Sending
from holdfast.v1 import objects_pb2 as pb

from holdfast_node.log.changes import Until
from holdfast_node.log.commit import Committer
from holdfast_node.log.shards import Entry
from holdfast_node.objects.activation import LastError, Turn
from holdfast_node.objects.environment import Environment
from holdfast_node.objects.handlers import InternalHandler
from holdfast_node.objects.notifier import sent_by_client
from holdfast_node.objects.requests import moved
from holdfast_node.objects.responses import ResponseCache, identity_of
from holdfast_node.store import keys

log = logging.getLogger(__name__)

_ONES_OWN = InvalidArgument | NotFound | TooLarge
"""Errors that say that the call is wrong. If a handler made the call, they are the handler's own
fault."""


class Outcomes:
    """Makes the outcomes of turns. `draining`: the node stops, so a cancelled turn runs again on
    another node."""

    def __init__(
        self,
        committer: Committer,
        responses: ResponseCache,
        environment: Environment,
        result_bytes_max: int,
    ) -> None:
        self._committer = committer
        self._responses = responses
        self._environment = environment
        self._result_bytes_max = result_bytes_max
        self.draining = False
        self.failed = 0
        """The number of turns whose handler failed; turns that it rejected do not count."""

    # -- the answer

    def set_result(self, turn: Turn, value: Any) -> None:
        """Make a handler's value the turn's result. Raises the error with which the turn was
        stopped, TooLarge, or TypeError if the value cannot be encoded."""
        if turn.stopped is not None:
            raise turn.stopped
        turn.result = _encode(turn, value)
        if len(turn.result) > self._result_bytes_max:
            raise TooLarge(
                f"a result of {len(turn.result)} bytes, at most {self._result_bytes_max}",
                definite=turn.calls_made == 0,
            )

    def set_error(self, turn: Turn, error: BaseException) -> None:
        """Make an exception the turn's error, and log it if the handler failed."""
        turn.result = b""
        try:
            turn.error = self._failure(turn, error)
        except Exception as worse:  # of the user's exception, whose text cannot be read
            log.exception(
                "%s.%s failed, and its exception cannot be read",
                turn.activation.name,
                turn.handler.name,
            )
            told = InternalError(
                f"{type(error).__name__}, which cannot be read: {type(worse).__name__}",
                request_id=turn.request_id,
            )
            turn.error = error_to_proto(told)

    def _failure(self, turn: Turn, error: BaseException) -> pb.Error:
        activation = turn.activation
        if (
            turn.stopped is None
            and isinstance(error, asyncio.CancelledError)
            and (self.draining or activation.shard.closing)
        ):
            return moved(activation.shard.number)  # the next owner runs it again
        failed = _told_as(turn, error)
        failed.request_id = turn.request_id
        self.failed += not isinstance(failed, Rejected)
        activation.last_error = LastError(
            failed.code,
            failed.message,
            turn.handler.name,
            activation.shard.clock.now_ms(),
            turn.request_id,
        )
        if not isinstance(failed, Rejected | InvalidArgument | Aborted):
            log.error(
                "%s.%s failed: %s",
                activation.name,
                turn.handler.name,
                failed.message or failed.code,
                exc_info=error if turn.stopped is None else None,
                extra={**activation.log_fields(turn), "method": turn.handler.name},
            )
        return error_to_proto(failed, turn.call.codec)

    # -- the writes

    def writes(self, turn: Turn) -> bool:
        """Return whether a turn that ended well has anything to write: rows, effects, its reply or
        a dedup mark."""
        call = turn.call
        return (
            turn.activation.storage.changed()
            or call.keep_reply
            or (turn.request_id[0] >= EFFECT and bool(call.notification))
        )

    def write(self, turn: Turn) -> Entry:
        """Put all writes of a turn into its shard's entry. If this raises, nothing is in the entry:
        Unavailable while the shard is read-only, or an error of the expiry index."""
        activation, handler = turn.activation, turn.handler
        shard, storage, prefix = activation.shard, activation.storage, activation.row_prefix
        if shard.read_only is not None:
            raise _read_only(turn)
        cleared, writes, deletes = storage.take(prefix)
        expires = (
            storage.some_expire or activation.expiry_ms or activation.kind.options.ttl is not None
        )
        if expires:
            # Raises if the index cannot be read, so that staging cannot fail.
            self._environment.expiry.of(shard)
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
            effect.stage(entry)
        if expires:
            if storage.some_expire:
                self._environment.expiry.stage_rows(
                    entry, keys.ident(activation.kind.name, activation.key), writes, len(prefix)
                )
            activation.expiry_ms = self._environment.expiry.stage_object(
                entry,
                activation.kind,
                activation.key,
                activation.expiry_ms,
                deletes=type(handler) is InternalHandler and handler.deletes,
            )
        if turn.call.notification:
            entry.rows.append(activation.record(turn.call.notification))
        elif type(handler) is Handler:
            if turn.attempt and turn.request_id[0] < EFFECT:
                self._responses.note_retried(turn.request_id)
            self._keep_reply(entry, turn, handler, turn.result)
        activation.wrote_to(entry)
        return entry

    def keep_refusal(self, turn: Turn, handler: Handler) -> Entry | None:
        """Keep the final error of a turn whose caller brought its own id, so that each retry gets
        the same answer. Return None, and change the error, while the shard is read-only."""
        shard = turn.activation.shard
        assert turn.error is not None
        if shard.read_only is not None:
            turn.error = error_to_proto(_read_only(turn))
            return None
        raw = turn.error.SerializeToString()
        entry = self._committer.entry(shard)
        self._keep_reply(entry, turn, handler, b"", raw)
        entry.bytes += len(raw)
        turn.activation.wrote_to(entry)
        return entry

    def store_call(self, turn: Turn, handler: Sending) -> Entry:
        """Put a client's notification into the outbox of its receiver's shard, and keep the reply
        with it.

        Raises HoldfastError if the notification is refused, and other errors if its arguments or
        the shard's rows cannot be read.
        """
        shard = turn.activation.shard
        if shard.read_only is not None:
            raise _read_only(turn)
        sent = self._environment.sent
        effect = sent_by_client(sent, turn, handler.handler)
        sent.check_room(shard, (effect.row.sender_kind, effect.row.sender_key), 0, effect.delay_ms)
        turn.result = _encode(turn, None)
        if turn.attempt and turn.request_id[0] < EFFECT:
            self._responses.note_retried(turn.request_id)
        entry = self._committer.entry(shard)
        effect.stage(entry)
        self._keep_reply(entry, turn, handler, turn.result)
        entry.bytes += len(effect.raw)
        return entry

    def _keep_reply(
        self,
        entry: Entry,
        turn: Turn,
        handler: Handler | Sending,
        result: bytes,
        error: bytes = b"",
    ) -> None:
        activation = turn.activation
        identity = identity_of(activation.digest, handler, turn.call)
        entry.replies.append(
            self._responses.row(
                entry.shard, identity, activation.hash, turn.request_id, result, error
            )
        )


def _told_as(turn: Turn, error: BaseException) -> HoldfastError:
    """Return the exception that ended a turn as its callers see it."""
    definite = turn.calls_made == 0
    if turn.stopped is not None:
        turn.stopped.definite = definite
        return turn.stopped
    # This handler made the wrong call, so it is not the fault of its caller.
    if isinstance(error, _ONES_OWN) and error.callee:
        return ApplicationError(
            f"{error.callee}: {error.message}", type=type(error).__name__, definite=definite
        )
    if isinstance(error, InvalidArgument | Rejected):
        error.definite = definite
        return error
    # The error of a call that the handler made. To the caller of this turn it would look like an
    # error of this node.
    if isinstance(error, WrongOwner):
        return InternalError(f"WRONG_OWNER: {error.message}", definite=False)
    if isinstance(error, HoldfastError):
        error.definite = error.definite and definite
        return error
    if isinstance(error, asyncio.CancelledError):
        return InternalError("the turn was cancelled", definite=definite, retryable=True)
    return ApplicationError(str(error), type=type(error).__name__, definite=definite)


def _encode(turn: Turn, value: Any) -> bytes:
    try:
        result = (
            codec.encode_json(value) if turn.call.codec == pb.CODEC_JSON else codec.encode(value)
        )
        if not result:
            raise TypeError("it is encoded to nothing")
        return result
    except (TypeError, OverflowError) as error:
        hint = "; is an await missing?" if inspect.isawaitable(value) else ""
        if inspect.iscoroutine(value):
            value.close()
        raise TypeError(
            f"{turn.handler.name}() returned a value that cannot be sent: {error}{hint}"
        ) from None


def _read_only(turn: Turn) -> Unavailable:
    shard = turn.activation.shard
    return Unavailable(
        f"shard {shard.number} is read-only: {shard.read_only}",
        definite=turn.calls_made == 0,
        retryable=True,
        retry_after_s=1.0,
    )
