"""Writes docs/reference/limits.md: every number is read from the code that enforces it.

A limit that has an option names the command, and the option's default has to be that number.
The codes of errors have to be those of the error table. `--check` fails when the page is another.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import click
from holdfast import admin_limits, alarms, app, channels, deadlines, errors, frames, ids, storage
from holdfast.client import requests as client_requests
from holdfast.client import retry_budget, session
from holdfast_cluster.placement import model, plan
from holdfast_cluster.routing import pending as dispatch
from holdfast_gateway.admission.access import SubjectLimits
from holdfast_gateway.edges import session as edge
from holdfast_gateway.process.command import gateway
from holdfast_node.effects import alarms as node_alarms
from holdfast_node.effects import records
from holdfast_node.objects import calls, cancellation, notifier, requests, responses
from holdfast_node.objects.limits import EngineLimits
from holdfast_node.process import peer
from holdfast_node.process.command import node
from holdfast_node.process.config import NodeConfig
from holdfast_node.services import alarms as firing
from holdfast_node.store import disk_space
from made import table, write

ENGINE = EngineLimits()
OUTBOX = ENGINE.outbox
STORAGE = ENGINE.storage
DISPATCH = dispatch.DispatchLimits()
KIND = app.KindOptions()
SETTINGS = model.ClusterSettings()
NODE: Any = NodeConfig.__dataclass_fields__


def count(number: float) -> str:
    return f"{number:,.0f}"


def size(number: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor and number % factor == 0:
            return f"{number // factor:,} {unit}"
    return f"{number:,} bytes"


def seconds(number: float) -> str:
    if number < 1:
        return f"{number * 1000:g} ms"
    return f"{number:g} s"


def days(time: timedelta) -> str:
    return f"{time.days:,} day{'s' * (time.days != 1)}"


def milliseconds(number: float) -> str:
    return seconds(number / 1000)


@dataclass(frozen=True)
class Limit:
    """One line of the page. `option`: of which commands, its name, and its default there."""

    what: str
    is_: str
    error: str = ""
    option: tuple[tuple[click.Command, ...], str, Any] | None = None
    set_by: str = ""

    def row(self) -> list[str]:
        where = self.set_by
        if self.option is not None:
            commands, name, default = self.option
            for command in commands:
                found = next(one for one in command.params if name in one.opts)
                if found.default != default:
                    raise AssertionError(f"{command.name} {name} is {found.default}, not {default}")
            where += ", ".join(f"`holdfast {command.name} {name}`" for command in commands)
        return [self.what, self.is_, where, self.error]


def option(name: str, default: Any, *commands: click.Command) -> Any:
    return commands or (node,), name, default


CALLS = [
    Limit(
        "key of an object",
        f"1 to {count(dispatch.KEY_BYTES_MAX)} bytes of UTF-8",
        "INVALID_ARGUMENT",
    ),
    Limit("arguments of a call", size(DISPATCH.argument_bytes_max), "TOO_LARGE"),
    Limit("result of a call", size(ENGINE.result_bytes_max), "TOO_LARGE"),
    Limit("names and metadata of a call", size(frames.ENVELOPE_BYTES_MAX), "TOO_LARGE"),
    Limit(
        "deadline of a call that brings none",
        seconds(client_requests.TIMEOUT_S),
        "DEADLINE_EXCEEDED",
        set_by="`timeout=`, `timeout_ms`",
    ),
    Limit(
        "longest deadline",
        seconds(deadlines.TIMEOUT_MAX_S) + "; a call that asks for more gets this",
        "DEADLINE_EXCEEDED",
    ),
    Limit(
        "one turn",
        seconds(ENGINE.turn_timeout_s),
        "DEADLINE_EXCEEDED",
        option("--turn-timeout", ENGINE.turn_timeout_s),
    ),
    Limit(
        "time for a cancelled turn to end; then the node abandons it",
        seconds(cancellation._ABANDON_S),
    ),
    Limit("chain of calls between objects", f"{calls.CHAIN_MAX} turns", "TOO_LARGE"),
    Limit(
        "calls that wait for one object",
        count(ENGINE.mailbox_max),
        "OVERLOADED",
        option("--mailbox-max", ENGINE.mailbox_max),
    ),
    Limit(
        "reads of one object under way",
        count(ENGINE.mailbox_max),
        "OVERLOADED",
        option("--mailbox-max", ENGINE.mailbox_max),
    ),
    Limit(
        "calls under way on a node, at a gateway",
        f"{count(ENGINE.in_flight_max)} each",
        "OVERLOADED",
        option("--in-flight-max", DISPATCH.in_flight_max, node, gateway),
    ),
    Limit("their bytes at a gateway, or from node to node", size(DISPATCH.bytes_max), "OVERLOADED"),
    Limit(
        "calls held at a gateway",
        count(DISPATCH.held_max),
        "OVERLOADED",
        option("--held-max", DISPATCH.held_max, gateway),
    ),
    Limit("calls under way of one client", count(session.CALLS_IN_FLIGHT_MAX), "OVERLOADED"),
    Limit(
        "retries of a client, in all and for each kind",
        f"{retry_budget._FIRST:g}, and {retry_budget.RATIO:g} for each call",
        "the refusal itself",
        set_by="`connect(retry_budget=)`",
    ),
    Limit(
        "attempts of one request that wait for its turn, beside the first",
        count(requests._JOINED_MAX),
        "OVERLOADED",
    ),
    Limit(
        "time in which a request may be sent again, of its shard's served time",
        seconds(NODE["replies_window_s"].default),
        option=option("--replies-window", NODE["replies_window_s"].default),
    ),
    Limit(
        "the same, with an idempotency key",
        f"{responses._DAY_MS // 3_600_000} h",
    ),
    Limit(
        "idempotency key",
        f"1 to {size(ids.IDEMPOTENCY_KEY_BYTES_MAX)}",
        "ValueError; INVALID_ARGUMENT in other languages",
    ),
]
SESSIONS = [
    Limit(
        "sessions at a gateway",
        count(edge.SESSIONS_MAX),
        "gRPC RESOURCE_EXHAUSTED",
        option("--sessions-max", edge.SESSIONS_MAX, gateway),
    ),
    Limit(
        "of one subject: calls a second, bytes a second, calls under way",
        "none",
        "OVERLOADED",
        set_by="`calls_per_s`, `bytes_per_s`, `in_flight` in the access file",
    ),
    Limit(
        "sessions of one subject",
        "none",
        "gRPC RESOURCE_EXHAUSTED",
        set_by="`sessions` in the access file",
    ),
    Limit(
        "calls and sessions under way on one gRPC connection, at every port",
        count(channels.STREAMS_MAX),
        "clients queue the rest",
    ),
    Limit("one gRPC message", size(channels.MESSAGE_BYTES_MAX), "gRPC RESOURCE_EXHAUSTED"),
    Limit("compression of gRPC messages", "none is taken", "gRPC UNIMPLEMENTED"),
    Limit(
        "calls in one frame of a session, and numbers in its `cancel`",
        f"{count(frames.MESSAGES_MAX)} each",
        "gRPC INVALID_ARGUMENT ends the session",
    ),
    Limit(
        "replies that wait for one client to read them",
        size(edge.BACKLOG_BYTES_MAX),
        "gRPC RESOURCE_EXHAUSTED ends the session",
    ),
    Limit(
        "replies that wait to be written to one gateway or node",
        f"{size(peer._UNREAD_BYTES_MAX)}; then results over {size(peer._SMALL_BYTES)} stay behind,"
        " and a retry finds them",
        "OVERLOADED",
    ),
    Limit("message of an error", f"{count(errors.MESSAGE_CHARS_MAX)} characters", "cut"),
    Limit(
        "`path` and `type` of an error", f"{count(errors.PATH_CHARS_MAX)} characters each", "cut"
    ),
    Limit("data of an error", size(errors.DATA_BYTES_MAX), "left out"),
]
OBJECTS = [
    Limit(
        "storage key",
        f"1 to {count(STORAGE.key_bytes)} bytes of UTF-8",
        "ValueError if empty; TOO_LARGE",
    ),
    Limit("one stored value", size(STORAGE.value_bytes), "TOO_LARGE"),
    Limit("all that one turn writes", size(STORAGE.turn_bytes), "TOO_LARGE"),
    Limit("all that one `list()` returns", size(STORAGE.turn_bytes), "TOO_LARGE"),
    Limit(
        "`ttl` of a value",
        f"more than 0, at most {days(storage.TTL_MAX)}",
        "ValueError",
        set_by="`put(ttl=)`",
    ),
    Limit(
        "`ttl` of a kind",
        f"none; {app.TTL_MIN.total_seconds():g} s to {days(app.TTL_MAX)}",
        "ValueError",
        set_by="`@app.kind(ttl=)`",
    ),
    Limit(
        "objects in memory on a node",
        count(ENGINE.activations_max) + "; then the node evicts",
        "OVERLOADED if all are busy",
        option("--activations-max", ENGINE.activations_max),
    ),
    Limit(
        "time in memory without a call",
        seconds(ENGINE.idle_s),
        "the node evicts",
        option("--idle", ENGINE.idle_s),
        set_by="`@app.kind(idle=)`, ",
    ),
    Limit("hot cache of one object", size(STORAGE.cache_bytes), "read from the store"),
    Limit("hot caches of a node", size(ENGINE.cache_bytes_max), "the node evicts"),
    Limit(
        "resident memory of a node",
        "none",
        "the node evicts",
        option("--memory-max-mb", NODE["memory_max_bytes"].default),
    ),
]
EFFECTS = [
    Limit(
        "notifications of one object that wait, or sent calls of one caller to the objects of one"
        " shard",
        count(OUTBOX.object_max),
        "OVERLOADED",
    ),
    Limit(
        "notifications of all objects of a node that wait",
        f"{count(OUTBOX.node_max)}, or {size(OUTBOX.node_bytes_max)}",
        "OVERLOADED",
    ),
    Limit("delayed notifications of a shard", count(OUTBOX.shard_delayed_max), "OVERLOADED"),
    Limit(
        "delay of a notification",
        days(notifier.DELAY_MAX),
        "ValueError; INVALID_ARGUMENT for a client's",
    ),
    Limit(
        "metadata that a notification or an alarm takes along",
        size(records.CARRIED_BYTES_MAX),
        "TOO_LARGE",
    ),
    Limit(
        "notifications on their way from a node; of them tried again",
        f"{count(OUTBOX.on_way_max)}; {count(OUTBOX.on_way_max // 2)}",
        "the rest waits",
    ),
    Limit(
        "notifications on their way to one receiver",
        count(OUTBOX.receiver_on_way_max),
        "the rest waits",
    ),
    Limit(
        "failures of a notification",
        count(KIND.notify_attempts),
        "dead letter",
        set_by="`@app.kind(notify_attempts=)` of the sender",
    ),
    Limit(
        "age of a notification since its first attempt",
        f"{days(KIND.notify_age)}; at most {days(app.NOTIFY_AGE_MAX)}",
        "dead letter",
        set_by="`@app.kind(notify_age=)` of the sender",
    ),
    Limit(
        "pause between its attempts",
        f"{seconds(OUTBOX.backoff_s[0])} to {seconds(OUTBOX.backoff_s[1])}, doubling, with jitter",
    ),
    Limit("alarms of one object", count(node_alarms.ALARMS_MAX), "TOO_LARGE"),
    Limit("name of an alarm", f"1 to {size(alarms.NAME_BYTES_MAX)}", "TOO_LARGE"),
    Limit("payload of an alarm", size(alarms.PAYLOAD_BYTES_MAX), "TOO_LARGE"),
    Limit(
        "repetition of an alarm",
        f"{seconds(alarms.EVERY_MIN.total_seconds())} to {days(alarms.EVERY_MAX)}",
        "ValueError",
        set_by="`set_alarm(every=)`",
    ),
    Limit(
        "lateness from which an alarm is missed",
        milliseconds(node_alarms.MISFIRE_GRACE_MS),
        "as `misfire=` says",
    ),
    Limit(
        "failures of an alarm",
        count(KIND.alarm_attempts),
        "dead letter",
        set_by="`@app.kind(alarm_attempts=)`",
    ),
    Limit(
        "pause between its attempts",
        f"{milliseconds(node_alarms.RETRY_MS[0])} to {milliseconds(node_alarms.RETRY_MS[1])},"
        " doubling",
    ),
    Limit("alarms of a node that fire at once", count(firing.FIRING_MAX), "the rest waits"),
    Limit(
        "backlog of notifications and late alarms, delivered by each node",
        f"{count(OUTBOX.backlog_per_s)}/s",
        "the rest waits",
        option("--backlog-rate", OUTBOX.backlog_per_s),
    ),
    Limit(
        "dead letters of a shard",
        count(OUTBOX.dead_letters_max) + "; above it the owner tries on for ever what fails",
    ),
]
CLUSTER = [
    Limit(
        "shards",
        f"{count(SETTINGS.shards)}; 1 to {count(model.SHARDS_MAX)}",
        "the process does not start",
        set_by="`--shards`, at formation",
    ),
    Limit(
        "copies of each shard",
        f"{SETTINGS.replication}; 1 to 7",
        "the process does not start",
        set_by="`--replication`, at formation",
    ),
    Limit(
        "copies that have to be in sync for writes",
        "a majority",
        "UNAVAILABLE: the shard is read-only",
        set_by="`--min-in-sync`, at formation",
    ),
    Limit(
        "points of a node on the ring",
        f"{SETTINGS.points}; 1 to 4,096",
        "the process does not start",
        set_by="`--points`, at formation",
    ),
    Limit("shards that move at a time", count(plan.MOVES_MAX), "the rest waits"),
    Limit(
        "lease of a node",
        f"{NODE['lease_ttl_s'].default} s; 2 to 600 s",
        "the process does not start",
        option("--lease-ttl", NODE["lease_ttl_s"].default),
    ),
    Limit(
        "time for which a vanished node is expected back",
        seconds(NODE["repair_after_s"].default),
        option=option("--repair-after", NODE["repair_after_s"].default),
    ),
    Limit(
        "copies sent by a node",
        f"{NODE['move_rate'].default / 1e6:g} MB/s; at least 0.1",
        "the rest waits",
        option("--move-rate", NODE["move_rate"].default / 1e6),
    ),
    Limit(
        "free space below which a node is full",
        size(NODE["disk_reserve_bytes"].default),
        "UNAVAILABLE where no other node can own the shard",
        option("--disk-reserve", NODE["disk_reserve_bytes"].default >> 20),
    ),
    Limit("ballast file of a running node", size(disk_space.BALLAST_BYTES)),
    Limit(
        "time for a process to stop",
        seconds(NODE["drain_timeout_s"].default),
        option=option("--drain-timeout", NODE["drain_timeout_s"].default, node, gateway),
    ),
    Limit(
        "objects, rows, alarms or dead letters in one answer to an operator",
        f"{count(admin_limits.PAGE_MAX)}, about {size(admin_limits.PAGE_BYTES)}",
        "the next page has the rest",
        set_by="`--limit`",
    ),
    Limit(
        "objects and shards of `holdfast top`",
        f"at most {admin_limits.TOP_MAX}",
        set_by="`holdfast top --limit`",
    ),
]


def check() -> None:
    """Raises AssertionError when the page would name an error that is not, or say of two limits of
    the code that they are one."""
    statuses = {status.name for _, status, _ in errors.CODES.values()} | {"UNIMPLEMENTED"}
    for limit in (*CALLS, *SESSIONS, *OBJECTS, *EFFECTS, *CLUSTER):
        known = statuses if limit.error.startswith("gRPC") else errors.CODES
        for code in re.findall(r"\b[A-Z_]{6,}\b", limit.error):
            assert code in known, limit
    assert ENGINE.in_flight_max == DISPATCH.in_flight_max
    assert client_requests.TIMEOUT_S == ENGINE.turn_timeout_s == DISPATCH.timeout_s
    assert SubjectLimits() == SubjectLimits(None, None, None, None)
    for value in (("shards", 0), ("replication", 8), ("points", 4097)):
        try:
            model.ClusterSettings(**{value[0]: value[1]}).validate()
        except ValueError:
            continue
        raise AssertionError(value)


def rows(limits: list[Limit]) -> str:
    return table(["what", "limit", "set by", "above it"], [limit.row() for limit in limits])


def main() -> int:
    check()
    parts = {
        "calls": rows(CALLS),
        "sessions and errors": rows(SESSIONS),
        "objects and storage": rows(OBJECTS),
        "notifications and alarms": rows(EFFECTS),
        "the cluster": rows(CLUSTER),
    }
    return write("reference/limits.md", "reference_limits.py", parts)


if __name__ == "__main__":
    sys.exit(main())
