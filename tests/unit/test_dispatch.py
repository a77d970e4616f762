"""The dispatcher: routing, holding, sending again. Views and replies in, calls and replies out."""

from __future__ import annotations

import asyncio
from typing import Any

from holdfast.errors import WrongOwner, error_to_proto
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.dispatch import Dispatcher, DispatchLimits
from holdfast_cluster.model import Assignment, ClusterSettings, Member, Versioned, View

SHARDS = 4
NODE = Member("n", "127.0.0.1:1", 1, "h")
IDS = RequestIds()


class Feed:
    def __init__(self) -> None:
        self.view = View()
        self.listeners: list[Any] = []

    def show(self, view: View) -> None:
        self.view = view
        for listener in self.listeners:
            listener(view)


class Pipe:
    def __init__(self) -> None:
        self.sent: list[pb.Call] = []

    def send(self, call: pb.Call, size: int) -> None:
        sent = pb.Call()
        sent.CopyFrom(call)
        self.sent.append(sent)


class Origin:
    def __init__(self) -> None:
        self.replies: list[pb.Reply] = []

    def push(self, reply: pb.Reply, size: int) -> None:
        self.replies.append(reply)


def view(epoch: int = 1, *members: Member) -> View:
    assigned = {shard: Versioned(Assignment(epoch, "n", 1, ("n",)), epoch) for shard in range(SHARDS)}
    return View(epoch, ClusterSettings(shards=SHARDS), {m.id: m for m in members or (NODE,)}, assigned, "n")


def call(number: int = 1, **rest: Any) -> pb.Call:
    given = {"kind": "K", "key": "a", "method": "m", "request_id": IDS.next(), "timeout_ms": 5000, **rest}
    return pb.Call(id=number, **given)


def world(limits: DispatchLimits | None = None) -> tuple[Feed, Pipe, Dispatcher, Origin]:
    feed, pipe = Feed(), Pipe()
    dispatcher = Dispatcher(feed, limits or DispatchLimits(), ("n", pipe))  # type: ignore[arg-type]
    return feed, pipe, dispatcher, Origin()


def wrong_owner(number: int) -> pb.Reply:
    return pb.Reply(id=number, error=error_to_proto(WrongOwner("not here", retryable=True)))


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_call_goes_to_the_owner_and_its_reply_comes_back_under_its_own_number() -> None:
    feed, pipe, dispatcher, origin = world()
    feed.show(view())
    dispatcher.submit(call(77), origin)
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x01"))
    assert [(reply.id, reply.result) for reply in origin.replies] == [(77, b"\x01")]
    assert dispatcher.in_flight == 0
    await dispatcher.close()


async def test_a_refused_call_is_held_and_sent_again_with_the_next_attempt() -> None:
    feed, pipe, dispatcher, origin = world()
    feed.show(view())
    dispatcher.submit(call(), origin)
    dispatcher.on_reply(pipe, wrong_owner(pipe.sent[0].id))
    assert (dispatcher.held, len(pipe.sent), origin.replies) == (1, 1, [])
    await until(lambda: len(pipe.sent) == 2)
    first, second = pipe.sent
    assert (second.request_id, second.attempt) == (first.request_id, first.attempt + 1)
    assert 0 < second.timeout_ms <= first.timeout_ms
    await dispatcher.close()


async def test_what_comes_while_a_shard_is_held_waits_behind_and_keeps_its_order() -> None:
    feed, pipe, dispatcher, origin = world()
    feed.show(view())
    dispatcher.submit(call(1), origin)
    dispatcher.on_reply(pipe, wrong_owner(pipe.sent[0].id))
    later = [call(number) for number in (2, 3)]
    for one in later:
        dispatcher.submit(one, origin)
    assert len(pipe.sent) == 1
    await until(lambda: len(pipe.sent) == 4)
    assert [sent.request_id for sent in pipe.sent[2:]] == [one.request_id for one in later]
    await dispatcher.close()


async def test_a_new_epoch_sends_what_is_under_way_again_and_ignores_the_old_refusal() -> None:
    feed, pipe, dispatcher, origin = world()
    feed.show(view(1))
    dispatcher.submit(call(), origin)
    feed.show(view(2))
    await until(lambda: len(pipe.sent) == 2)
    assert pipe.sent[1].attempt == 1
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x05"))  # whichever attempt is first to tell
    assert [reply.result for reply in origin.replies] == [b"\x05"]
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x05"))
    assert len(origin.replies) == 1
    await dispatcher.close()


async def test_a_held_call_fails_at_its_deadline_and_says_why() -> None:
    feed, _pipe, dispatcher, origin = world()
    feed.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    dispatcher.submit(call(timeout_ms=50), origin)
    await until(lambda: origin.replies)
    error = origin.replies[0].error
    assert (error.code, error.definite, error.retryable) == (pb.CODE_UNAVAILABLE, True, True)
    assert "the only copy is on node n, which is absent" in error.message
    assert dispatcher.in_flight == dispatcher.held == 0
    await dispatcher.close()


async def test_a_sent_call_without_an_answer_fails_indefinitely_at_its_deadline() -> None:
    feed, _pipe, dispatcher, origin = world()
    feed.show(view())
    dispatcher.submit(call(timeout_ms=50), origin)
    await until(lambda: origin.replies)
    assert (origin.replies[0].error.code, origin.replies[0].error.definite) == (pb.CODE_DEADLINE, False)
    await dispatcher.close()


async def test_limits_refuse_with_when_to_come_back() -> None:
    feed, _pipe, dispatcher, origin = world(DispatchLimits(in_flight_max=2, argument_bytes_max=10))
    dispatcher.submit(call(1), origin)
    assert origin.replies[-1].error.code == pb.CODE_UNAVAILABLE  # no routes yet
    feed.show(view())
    for number in (2, 3, 4):
        dispatcher.submit(call(number), origin)
    overloaded = origin.replies[-1]
    assert (overloaded.id, overloaded.error.code, overloaded.error.retry_after_ms) == (4, pb.CODE_OVERLOADED, 200)
    dispatcher.submit(call(5, arguments=b"x" * 11), origin)
    assert origin.replies[-1].error.code == pb.CODE_TOO_LARGE
    await dispatcher.close()


async def test_too_many_held_calls_are_refused() -> None:
    feed, _pipe, dispatcher, origin = world(DispatchLimits(held_max=3))
    feed.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    for number in range(1, 6):
        dispatcher.submit(call(number), origin)
    assert [(reply.id, reply.error.code) for reply in origin.replies] == [(4, pb.CODE_OVERLOADED), (5, pb.CODE_OVERLOADED)]
    assert (dispatcher.held, dispatcher.in_flight) == (3, 3)
    await dispatcher.close()


async def test_an_origin_that_is_gone_gets_nothing_more() -> None:
    feed, pipe, dispatcher, origin = world()
    feed.show(view())
    dispatcher.submit(call(1), origin)
    dispatcher.forget(origin)
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x01"))
    assert (origin.replies, dispatcher.in_flight) == ([], 0)
    await dispatcher.close()


async def test_what_a_gone_origin_has_sent_is_answered_to_its_heir() -> None:
    feed, pipe, dispatcher, origin = world()
    feed.show(view())
    dispatcher.submit(call(1), origin)
    dispatcher.submit(call(2), origin)
    dispatcher.on_reply(pipe, wrong_owner(pipe.sent[1].id))  # this one is held: it is dropped
    heir = Origin()
    assert dispatcher.forget(origin, heir) == 1
    assert (dispatcher.in_flight, dispatcher.held) == (1, 0)
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x01"))
    assert (origin.replies, len(heir.replies), dispatcher.in_flight) == ([], 1, 0)
    await dispatcher.close()


async def test_routes_that_lag_behind_the_nodes_for_long_are_not_ready(monkeypatch: Any) -> None:
    feed, pipe, dispatcher, _origin = world()
    assert not dispatcher.ready()
    feed.show(view(3))
    dispatcher.on_revision(pipe, view(3).order)
    assert dispatcher.ready()
    dispatcher.on_revision(pipe, view(9).order)
    monkeypatch.setattr("holdfast_cluster.dispatch._STALE_S", 0.05)
    assert dispatcher.ready()
    await asyncio.sleep(0.1)
    assert not dispatcher.ready()
    feed.show(view(9))
    assert dispatcher.ready()
    await dispatcher.close()
