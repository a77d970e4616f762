"""The requests of operators about dead letters and alarms of the shards that this node owns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
from holdfast.admin_limits import PAGE_BYTES, page_rows
from holdfast.ids import dead_letter_id, dead_letter_place
from holdfast.v1 import admin_pb2, objects_pb2
from holdfast_cluster.clocks.boottime import boottime

from holdfast_node.effects.dead_letters import DeadLetters
from holdfast_node.effects.notifications import Notifications
from holdfast_node.effects.outbox import PendingNotification
from holdfast_node.effects.records import DeadLetter, decode_alarm, decode_dead_letter, encode
from holdfast_node.effects.writes import ShardWrites
from holdfast_node.log.shards import Shard, Shards
from holdfast_node.services.alarms import AlarmService
from holdfast_node.store import keys
from holdfast_node.store.rocks import Store

_LOOK_MAX = 500  # after so many rows the event loop does other work


class DeadLetterAdmin:
    """Lists, replays and drops dead letters, and lists alarms. Pages are in the order of (shard,
    key)."""

    def __init__(
        self,
        store: Store,
        shards: Shards,
        writes: ShardWrites,
        letters: DeadLetters,
        notifications: Notifications,
        alarms: AlarmService,
    ) -> None:
        self._store = store
        self._shards = shards
        self._writes = writes
        self._dead_letters = letters
        self._notifications = notifications
        self._alarms = alarms
        self._changing: set[bytes] = set()

    def answers(self) -> dict[str, Callable[[Any], Awaitable[Any]]]:
        """Return the methods of the Peer service by name."""
        return {
            "DeadLetters": self.letters,
            "ChangeDeadLetters": self.change,
            "Alarms": self.alarms,
        }

    async def letters(self, request: admin_pb2.DeadLettersRequest) -> admin_pb2.DeadLettersResponse:
        """Return a page of dead letters after `request.after`."""
        response = admin_pb2.DeadLettersResponse()
        page = _Page(request.limit)
        serving = self._shards.serving(boottime())
        async for place, value in self._scan(serving, keys.DEAD_LETTERS, request.after):
            letter = decode_dead_letter(value)
            if not _matches(letter, request):
                continue
            if page.full:
                response.more = True
                break
            page.add(len(value))
            response.letters.append(_shown(place, letter))
        response.served.extend(self._served(serving))
        return response

    async def alarms(self, request: admin_pb2.AlarmsRequest) -> admin_pb2.AlarmsResponse:
        """Return a page of pending alarms after `request.after`."""
        response = admin_pb2.AlarmsResponse()
        page = _Page(request.limit)
        serving = self._shards.serving(boottime())
        async for place, _ in self._scan(serving, keys.ALARMS, request.after):
            shard = int.from_bytes(place[:2], "big")
            due, rest = keys.read_due_key(place[:2] + b"\0\0" + place[2:])
            kind, key, name = keys.read_ident(rest)
            if (request.kind and kind != request.kind) or not key.startswith(request.prefix):
                continue
            if page.full:
                response.more = True
                break
            raw = self._store.get("state", keys.alarm_prefix(shard, kind, key) + name)
            if raw is None:
                continue
            page.add(len(raw) + len(place))
            record = decode_alarm(raw)
            response.alarms.append(
                admin_pb2.PendingAlarm(
                    kind=kind,
                    key=key,
                    name=name.decode(),
                    due_ms=due,
                    scheduled_ms=record.scheduled_ms,
                    every=str(record.every)
                    if isinstance(record.every, str)
                    else f"{record.every} ms"
                    if record.every
                    else "",
                    attempt=record.attempt,
                    payload=record.payload,
                    place=place,
                )
            )
        response.served.extend(self._served(serving))
        return response

    async def change(
        self, request: admin_pb2.ChangeDeadLettersRequest
    ) -> admin_pb2.ChangeDeadLettersResponse:
        """Replay or drop dead letters: the named ones, or all that match. Returns when the change
        is committed."""
        response = admin_pb2.ChangeDeadLettersResponse()
        waits = []
        places = []
        for text in request.ids:
            try:
                places.append(dead_letter_place(text))
            except ValueError as error:
                response.refused[text] = str(error)
        self._writes.flush_visible()
        if request.all:
            filters = admin_pb2.DeadLettersRequest(
                kind=request.kind,
                key=request.key,
                sender_kind=request.sender_kind,
                sender_key=request.sender_key,
            )
            serving = self._shards.serving(boottime())
            found = self._scan(serving, keys.DEAD_LETTERS, b"")
            places += [
                place
                async for place, value in found
                if _matches(decode_dead_letter(value), filters)
            ]
        for i, place in enumerate(places):
            shard = self._shards.get(int.from_bytes(place[:2], "big"))
            if shard is None or shard.until <= boottime():
                response.refused[dead_letter_id(place)] = (
                    "its shard is not served by this node at the moment"
                )
                continue
            if shard.closing or shard.read_only is not None:
                response.refused[dead_letter_id(place)] = (
                    shard.read_only or "its shard is about to be handed over"
                )
                continue
            row = keys.index_prefix(shard.number, keys.DEAD_LETTERS) + place[2:]
            raw = self._store.get("state", row)
            if raw is None:
                response.refused[dead_letter_id(place)] = "there is no such dead letter"
                continue
            if row in self._changing:
                response.refused[dead_letter_id(place)] = "it is being replayed or dropped already"
                continue
            self._changing.add(row)
            waits.append((place, self._change(shard, row, decode_dead_letter(raw), request.replay)))
            if i % 100 == 99:
                await asyncio.sleep(0)
        for place, wait in waits:
            try:
                await wait
                response.changed += 1
            except Exception as error:
                response.refused[dead_letter_id(place)] = str(error)
        return response

    def _change(
        self, shard: Shard, row: bytes, letter: DeadLetter, replay: bool
    ) -> asyncio.Future[None]:
        """Start to replay or drop a dead letter. The future is done when the change is
        committed."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        notification = letter.notification
        if replay and letter.alarm is not None:

            def told(error: objects_pb2.Error | None, ran: bool) -> None:
                if error is None:
                    self._dead_letters.changed(shard, -1)
                    self._writes.flush_visible()
                self._changing.discard(row)
                if not done.done():
                    if error is None:
                        done.set_result(None)
                    else:
                        done.set_exception(
                            RuntimeError(f"it failed again: {error.type} {error.message}")
                        )

            self._alarms.fire_dead_letter(
                notification.kind, notification.key, letter.alarm_name, letter.alarm, row, told
            )
            return done
        rows: list[tuple[bytes, bytes | None]] = [(row, None)]
        pending: list[PendingNotification] = []
        if replay:
            again = msgspec.structs.replace(
                notification, attempts=0, first_ms=0, error="", created_ms=shard.clock.now_ms()
            )
            replayed = PendingNotification(
                shard, self._writes.next_sequence(shard), again, backlog=True
            )
            rows.append(
                (keys.index_prefix(shard.number, keys.OUTBOX) + replayed.sequence, encode(again))
            )
            pending.append(replayed)
        self._dead_letters.changed(shard, -1)
        self._notifications.opened(shard)
        entry = self._writes.write(shard, rows)
        self._notifications.leave_with(entry, pending)

        def settled() -> None:
            self._changing.discard(row)
            if done.done():
                return
            if entry.committed:
                done.set_result(None)
            else:
                done.set_exception(
                    RuntimeError("its shard went to another node meanwhile; try it again")
                )

        self._writes.when_visible(entry, settled)
        return done

    @staticmethod
    def _served(asked: list[Shard]) -> list[int]:
        """Return those of the `asked` shards that this node still serves: the rows found in them
        count."""
        now = boottime()
        return [shard.number for shard in asked if shard.until > now]

    async def _scan(
        self, shards: list[Shard], index: int, after: bytes
    ) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yield the rows of an index after `after`, with their place: the shard's number and the
        rest of the key."""
        looked = 0
        self._writes.flush_visible()
        for shard in sorted(shards, key=lambda shard: shard.number):
            prefix = keys.index_prefix(shard.number, index)
            first = after[2:] if after and int.from_bytes(after[:2], "big") == shard.number else b""
            if after and shard.number < int.from_bytes(after[:2], "big"):
                continue
            start = prefix + first + b"\0" if first else prefix
            for key, value in self._store.scan("state", start, keys.after(prefix)):
                looked += 1
                if looked % _LOOK_MAX == 0:
                    await asyncio.sleep(0)
                yield shard.prefix + key[keys.INDEX_PREFIX_BYTES :], value


class _Page:
    """Counts the rows and bytes of a page. `limit`: the request's limit; 0: none."""

    def __init__(self, limit: int) -> None:
        self._rows_left = page_rows(limit)
        self._bytes_left = PAGE_BYTES

    @property
    def full(self) -> bool:
        """Whether the page takes no more rows."""
        return self._rows_left <= 0 or self._bytes_left < 0

    def add(self, size: int) -> None:
        """Count a row of this many bytes."""
        self._rows_left -= 1
        self._bytes_left -= size


def _matches(letter: DeadLetter, request: admin_pb2.DeadLettersRequest) -> bool:
    row = letter.notification
    return all(
        not wanted or wanted == is_
        for wanted, is_ in (
            (request.kind, row.kind),
            (request.key, row.key),
            (request.sender_kind, row.sender_kind),
            (request.sender_key, row.sender_key),
        )
    )


def _shown(place: bytes, letter: DeadLetter) -> admin_pb2.DeadLetter:
    row = letter.notification
    return admin_pb2.DeadLetter(
        id=dead_letter_id(place),
        place=place,
        sender_kind=row.sender_kind,
        sender_key=row.sender_key,
        kind=row.kind,
        key=row.key,
        method=row.method,
        arguments=row.arguments,
        alarm=letter.alarm_name,
        attempts=row.attempts,
        code=letter.code,
        error=letter.error,
        created_ms=row.created_ms,
        died_ms=letter.died_ms,
    )
