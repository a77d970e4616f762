"""The dispatcher: routing, holding, sending again. Views and replies in, calls and replies out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from holdfast.errors import (
    CODES,
    DeadlineExceeded,
    HoldfastError,
    LacksKind,
    NotFound,
    Overloaded,
    Rejected,
    WrongOwner,
    error_to_proto,
)
from holdfast.ids import RequestIds
from holdfast.v1 import objects_pb2 as pb
from holdfast_cluster.placement.model import Assignment, ClusterSettings, Member, Versioned, View
from holdfast_cluster.routing.dispatch import Dispatcher
from holdfast_cluster.routing.pending import DispatchLimits

SHARDS = 4
NODE = Member("n", "127.0.0.1:1", 1, "h")
IDS = RequestIds()


class Watcher:
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
        self.cancelled: list[tuple[int, bytes]] = []

    def cancel(self, number: int, request_id: bytes) -> None:
        self.cancelled.append((number, request_id))

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
    assigned = {
        shard: Versioned(Assignment(epoch, "n", 1, ("n",)), epoch) for shard in range(SHARDS)
    }
    return View(
        epoch, ClusterSettings(shards=SHARDS), {m.id: m for m in members or (NODE,)}, assigned, "n"
    )


def call(number: int = 1, **rest: Any) -> pb.Call:
    given = {
        "kind": "K",
        "key": "a",
        "method": "m",
        "request_id": IDS.next(),
        "timeout_ms": 5000,
        **rest,
    }
    return pb.Call(id=number, **given)


def world(limits: DispatchLimits | None = None) -> tuple[Watcher, Pipe, Dispatcher, Origin]:
    watcher, pipe = Watcher(), Pipe()
    dispatcher = Dispatcher(watcher, limits or DispatchLimits())  # type: ignore[arg-type]
    dispatcher.attach("n", pipe)
    return watcher, pipe, dispatcher, Origin()


def wrong_owner(number: int) -> pb.Reply:
    return pb.Reply(id=number, error=error_to_proto(WrongOwner("not here", retryable=True)))


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_call_goes_to_the_owner_and_its_reply_comes_back_under_its_own_number() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    dispatcher.submit(call(77), origin)
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x01"))
    assert [(reply.id, reply.result) for reply in origin.replies] == [(77, b"\x01")]
    assert dispatcher.in_flight == 0
    await dispatcher.close()


async def test_a_refused_call_is_held_and_sent_again_with_the_next_attempt() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    dispatcher.submit(call(), origin)
    dispatcher.on_reply(pipe, wrong_owner(pipe.sent[0].id))
    assert (dispatcher.held, len(pipe.sent), origin.replies) == (1, 1, [])
    await until(lambda: len(pipe.sent) == 2)
    first, second = pipe.sent
    assert (second.request_id, second.attempt) == (first.request_id, first.attempt + 1)
    assert 0 < second.timeout_ms <= first.timeout_ms
    await dispatcher.close()


async def test_what_comes_while_a_shard_is_held_waits_behind_and_keeps_its_order() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
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
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view(1))
    dispatcher.submit(call(), origin)
    watcher.show(view(2))
    await until(lambda: len(pipe.sent) == 2)
    assert pipe.sent[1].attempt == 1
    # whichever attempt is first to tell
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x05"))
    assert [reply.result for reply in origin.replies] == [b"\x05"]
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x05"))
    assert len(origin.replies) == 1
    await dispatcher.close()


async def test_a_held_call_fails_at_its_deadline_and_says_why() -> None:
    watcher, _pipe, dispatcher, origin = world()
    watcher.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    dispatcher.submit(call(timeout_ms=50), origin)
    await until(lambda: origin.replies)
    error = origin.replies[0].error
    assert (error.code, error.definite, error.retryable) == (pb.CODE_UNAVAILABLE, True, True)
    assert "the only copy is on node n, which is absent" in error.message
    assert dispatcher.in_flight == dispatcher.held == 0
    await dispatcher.close()


async def test_a_sent_call_without_an_answer_fails_indefinitely_at_its_deadline() -> None:
    watcher, _pipe, dispatcher, origin = world()
    watcher.show(view())
    dispatcher.submit(call(timeout_ms=50), origin)
    await until(lambda: origin.replies)
    assert (origin.replies[0].error.code, origin.replies[0].error.definite) == (
        pb.CODE_DEADLINE_EXCEEDED,
        False,
    )
    await dispatcher.close()


async def test_limits_refuse_with_when_to_come_back() -> None:
    watcher, _pipe, dispatcher, origin = world(
        DispatchLimits(in_flight_max=2, argument_bytes_max=10)
    )
    dispatcher.submit(call(1), origin)
    assert origin.replies[-1].error.code == pb.CODE_UNAVAILABLE  # no routes yet
    watcher.show(view())
    for number in (2, 3, 4):
        dispatcher.submit(call(number), origin)
    overloaded = origin.replies[-1]
    assert (overloaded.id, overloaded.error.code, overloaded.error.retry_after_ms) == (
        4,
        pb.CODE_OVERLOADED,
        200,
    )
    dispatcher.submit(call(5, arguments=b"x" * 11), origin)
    assert origin.replies[-1].error.code == pb.CODE_TOO_LARGE
    await dispatcher.close()


async def test_too_many_held_calls_are_refused() -> None:
    watcher, _pipe, dispatcher, origin = world(DispatchLimits(held_max=3))
    watcher.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    for number in range(1, 6):
        dispatcher.submit(call(number), origin)
    assert [(reply.id, reply.error.code) for reply in origin.replies] == [
        (4, pb.CODE_OVERLOADED),
        (5, pb.CODE_OVERLOADED),
    ]
    assert (dispatcher.held, dispatcher.in_flight) == (3, 3)
    await dispatcher.close()


async def test_an_origin_that_is_gone_gets_nothing_more() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    dispatcher.submit(call(1), origin)
    dispatcher.forget(origin)
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x01"))
    assert (origin.replies, dispatcher.in_flight) == ([], 0)
    await dispatcher.close()


async def test_what_a_gone_origin_has_sent_is_answered_to_its_heir() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    dispatcher.submit(call(1), origin)
    dispatcher.submit(call(2), origin)
    dispatcher.on_reply(pipe, wrong_owner(pipe.sent[1].id))  # this one is held: it is dropped
    heir = Origin()
    assert dispatcher.forget(origin, heir) == 1
    assert (dispatcher.in_flight, dispatcher.held) == (1, 0)
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[0].id, result=b"\x01"))
    assert (origin.replies, len(heir.replies), dispatcher.in_flight) == ([], 1, 0)
    await dispatcher.close()


DEFINITE = [
    WrongOwner("refused before it ran", definite=True, retryable=True),
    Overloaded("the mailbox is full", definite=True, retryable=True),
    DeadlineExceeded("rolled back", definite=True),
    Rejected("no"),
    NotFound("no such method", definite=True),
]


def refused(number: int, error: HoldfastError) -> pb.Reply:
    return pb.Reply(id=number, error=error_to_proto(error))


@pytest.mark.parametrize("error", DEFINITE[1:], ids=lambda error: error.code)
@pytest.mark.parametrize(
    "before",
    [
        "arrived as a retry",
        "pipe broke",
        "shard moved",
        "refused and perhaps run",
        "refused",
        "nothing",
    ],
)
async def test_a_definite_error_is_passed_on_only_if_no_earlier_attempt_is_unknown(
    error: HoldfastError, before: str
) -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view(1))
    dispatcher.submit(call(attempt=int(before == "arrived as a retry")), origin)
    number = pipe.sent[0].id
    match before:
        case "pipe broke":
            dispatcher.on_pipe_down(pipe)
        case "shard moved":
            watcher.show(view(2))
        case "refused and perhaps run":
            dispatcher.on_reply(pipe, wrong_owner(number))
        case "refused":
            dispatcher.on_reply(pipe, refused(number, DEFINITE[0]))
    again = before not in ("arrived as a retry", "nothing")
    await until(lambda: len(pipe.sent) == 1 + again)
    unknown = before not in ("refused", "nothing")
    assert pipe.sent[-1].attempt == int(unknown)  # the next hop has to know as well
    dispatcher.on_reply(pipe, refused(number, error))
    (reply,) = origin.replies
    assert (reply.error.code, reply.error.definite) == (CODES[error.code][0], not unknown)
    await dispatcher.close()


@pytest.mark.parametrize("before", ["pipe broke", "shard moved", "refused and perhaps run"])
async def test_a_call_that_arrives_with_the_highest_attempt_is_sent_again_and_those_beside_it_too(
    before: str,
) -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view(1))
    for number, attempt in ((1, 2**32 - 1), (2, 0)):
        dispatcher.submit(call(number, attempt=attempt), origin)
    match before:
        case "pipe broke":
            dispatcher.on_pipe_down(pipe)
        case "shard moved":
            watcher.show(view(2))
        case "refused and perhaps run":
            for sent in list(pipe.sent):
                dispatcher.on_reply(pipe, wrong_owner(sent.id))
    await until(lambda: len(pipe.sent) == 4)
    assert [sent.attempt for sent in pipe.sent[2:]] == [2**32 - 1, 1]
    await dispatcher.close()


@pytest.mark.parametrize("attempt", [0, 1, 7])
async def test_no_refusal_of_the_dispatchers_own_is_definite_for_a_call_that_arrives_as_a_retry(
    attempt: int,
) -> None:
    watcher, _pipe, dispatcher, origin = world(
        DispatchLimits(in_flight_max=3, held_max=1, argument_bytes_max=10)
    )
    dispatcher.submit(call(1, attempt=attempt), origin)  # no routes yet
    watcher.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    dispatcher.submit(call(2, attempt=attempt, timeout_ms=50), origin)  # held until its deadline
    dispatcher.submit(call(3, attempt=attempt), origin)  # the queue is full
    dispatcher.submit(call(4, attempt=attempt, arguments=b"x" * 11), origin)
    dispatcher.submit(call(5, attempt=attempt, key="k" * 1025), origin)
    dispatcher.submit(call(6, attempt=attempt, request_id=b"short"), origin)
    await until(lambda: len(origin.replies) == 6)
    watcher.show(view(1))
    for number in (7, 8, 9, 10):
        dispatcher.submit(call(number, attempt=attempt), origin)  # the last is too much
    assert sorted(reply.id for reply in origin.replies) == [1, 2, 3, 4, 5, 6, 10]
    assert {reply.error.definite for reply in origin.replies} == {attempt == 0}
    await dispatcher.close()


@pytest.mark.parametrize("sent_before", [False, True])
async def test_a_call_that_overflows_the_queue_or_ends_in_it_tells_whether_it_was_sent(
    sent_before: bool,
) -> None:
    watcher, _pipe, dispatcher, origin = world(DispatchLimits(held_max=1))
    if sent_before:
        watcher.show(view(1))
    for number in (1, 2):
        dispatcher.submit(call(number, timeout_ms=80), origin)
    watcher.show(view(2, Member("other", "127.0.0.1:2", 1, "h")))
    if not sent_before:
        origin.replies.clear()  # they came before the routes
        for number in (1, 2):
            dispatcher.submit(call(number, timeout_ms=80), origin)
    await until(lambda: len(origin.replies) == 2)
    assert [reply.error.code for reply in origin.replies] == [
        pb.CODE_OVERLOADED,
        pb.CODE_UNAVAILABLE,
    ]
    assert {reply.error.definite for reply in origin.replies} == {not sent_before}
    await dispatcher.close()


async def test_a_call_that_was_held_and_never_sent_is_a_first_attempt_when_it_is_sent() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    dispatcher.submit(call(), origin)
    watcher.show(view(2))
    await until(lambda: pipe.sent)
    assert pipe.sent[0].attempt == 0
    await dispatcher.close()


async def test_routes_that_lag_behind_the_nodes_for_long_are_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watcher, pipe, dispatcher, _origin = world()
    assert not dispatcher.ready()
    watcher.show(view(3))
    dispatcher.on_revision(pipe, view(3).order)
    assert dispatcher.ready()
    dispatcher.on_revision(pipe, view(9).order)
    monkeypatch.setattr("holdfast_cluster.routing.dispatch._STALE_S", 0.05)
    assert dispatcher.ready()
    await asyncio.sleep(0.1)
    assert not dispatcher.ready()
    watcher.show(view(9))
    assert dispatcher.ready()
    await dispatcher.close()


def lacks_kind(number: int) -> pb.Reply:
    return pb.Reply(
        id=number, error=error_to_proto(LacksKind("not here", definite=True, retryable=True))
    )


async def test_nothing_waits_behind_a_call_whose_kind_the_owner_lacks() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    dispatcher.submit(call(1, kind="Order"), origin)
    dispatcher.on_reply(pipe, lacks_kind(pipe.sent[0].id))
    assert (dispatcher.held, origin.replies) == (1, [])
    for number in range(2, 30):  # in every shard, that of the call too
        dispatcher.submit(call(number, key=str(number)), origin)
    assert len(pipe.sent) == 29
    assert dispatcher.reachable("Order", "a")
    dispatcher.submit(call(30, kind="Order"), origin)
    assert len(pipe.sent) == 30
    await dispatcher.close()


async def test_a_call_whose_kind_the_owner_lacks_is_sent_again_after_a_backoff_and_at_once_to_the_next_owner() -> (  # noqa: E501
    None
):
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view(1))
    dispatcher.submit(call(7, kind="Order"), origin)
    for attempt in range(4):
        await until(lambda attempt=attempt: len(pipe.sent) == attempt + 1)
        assert pipe.sent[-1].attempt == 0  # a refusal for the kind is definite
        dispatcher.on_reply(pipe, lacks_kind(pipe.sent[-1].id))
    assert dispatcher.held == 1  # for 0.4 s or longer by now
    watcher.show(view(2))
    assert len(pipe.sent) == 5
    dispatcher.on_reply(pipe, pb.Reply(id=pipe.sent[-1].id, result=b"\x01"))
    assert [(reply.id, reply.result) for reply in origin.replies] == [(7, b"\x01")]
    await until(lambda: not dispatcher._lacking)
    assert (len(pipe.sent), dispatcher.held, dispatcher.in_flight) == (5, 0, 0)
    await dispatcher.close()


async def test_a_call_whose_kind_nobody_serves_fails_at_its_deadline_and_says_who_has_it() -> None:
    watcher, pipe, dispatcher, origin = world()
    owner, other = (
        Member("n", "127.0.0.1:1", 1, "h", kinds=("K",)),
        Member("m", "127.0.0.1:2", 1, "h", kinds=("K", "Order")),
    )
    watcher.show(view(1, owner, other))
    dispatcher.submit(call(kind="Order", timeout_ms=400), origin)

    async def refuse() -> None:
        answered = 0
        while not origin.replies:
            for sent in pipe.sent[answered:]:
                dispatcher.on_reply(pipe, lacks_kind(sent.id))
            answered = len(pipe.sent)
            await asyncio.sleep(0.005)

    async with asyncio.timeout(5):
        await refuse()
    error = origin.replies[0].error
    assert (error.code, error.definite, error.retryable) == (pb.CODE_UNAVAILABLE, True, True)
    assert (
        error.message == "Order/a.m(): shard 0: its owner n lacks kind Order; nodes that have it: m"
    )
    assert len(pipe.sent) > 2
    assert dispatcher.in_flight == dispatcher.held == 0
    await dispatcher.close()


async def test_calls_that_wait_for_a_kind_count_among_those_that_are_held_and_go_with_their_caller() -> (  # noqa: E501
    None
):
    watcher, pipe, dispatcher, origin = world(DispatchLimits(held_max=2))
    watcher.show(view())
    for number in range(3):
        dispatcher.submit(call(number, kind="Order"), origin)
    for sent in list(pipe.sent):
        dispatcher.on_reply(pipe, lacks_kind(sent.id))
    assert [reply.error.code for reply in origin.replies] == [pb.CODE_OVERLOADED]
    assert dispatcher.held == 2
    dispatcher.forget(origin)
    assert dispatcher.held == dispatcher.in_flight == 0
    await dispatcher.close()


def pipe_down(dispatcher: Dispatcher, pipe: Pipe) -> None:
    dispatcher.on_pipe_down(pipe)


async def test_a_cancelled_call_that_is_held_is_forgotten_at_once() -> None:
    watcher, _pipe, dispatcher, origin = world()
    watcher.show(view(1, Member("other", "127.0.0.1:2", 1, "h")))
    heir = Origin()
    number = dispatcher.submit(call(7), origin)
    other = dispatcher.submit(call(8), origin)
    assert dispatcher.held == 2
    assert dispatcher.cancel(number, heir)
    assert (dispatcher.held, dispatcher.in_flight, origin.replies) == (1, 1, [])
    assert dispatcher.cancel(other, heir)
    assert (dispatcher.held, dispatcher.in_flight, dispatcher._bytes, origin.replies) == (
        0,
        0,
        0,
        [],
    )
    assert [(reply.id, reply.error.code) for reply in heir.replies] == [
        (7, pb.CODE_ABORTED),
        (8, pb.CODE_ABORTED),
    ]
    assert not dispatcher.cancel(number, heir), "it is gone"
    assert len(heir.replies) == 2
    await dispatcher.close()


async def test_a_node_is_told_of_a_cancelled_call_whose_answer_is_counted_once() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    heir = Origin()
    request = call(7)
    number = dispatcher.submit(request, origin)
    dispatcher.cancel(number, heir)
    assert pipe.cancelled == [(number, request.request_id)]
    assert dispatcher.in_flight == 1, "it counts until it is over"
    dispatcher.on_reply(pipe, pb.Reply(id=number, result=b"\x01"))
    assert (dispatcher.in_flight, origin.replies, [reply.id for reply in heir.replies]) == (
        0,
        [],
        [7],
    )
    await dispatcher.close()


@pytest.mark.parametrize("what", ["refused", "pipe down", "new epoch"])
async def test_a_cancelled_call_is_not_sent_again(what: str) -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    heir = Origin()
    number = dispatcher.submit(call(7), origin)
    dispatcher.cancel(number, heir)
    if what == "refused":
        dispatcher.on_reply(pipe, wrong_owner(number))
    elif what == "pipe down":
        pipe_down(dispatcher, pipe)
    else:
        watcher.show(view(2))
    assert (dispatcher.in_flight, dispatcher.held, len(pipe.sent), len(heir.replies)) == (
        0,
        0,
        1,
        1,
    )
    await dispatcher.close()


async def test_no_deadline_is_further_than_five_minutes() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    number = dispatcher.submit(call(7, timeout_ms=(1 << 32) - 1), origin)
    assert pipe.sent[0].timeout_ms == 300_000
    assert dispatcher._pending[number].deadline <= asyncio.get_running_loop().time() + 300
    await dispatcher.close()


async def test_a_cancel_takes_the_attempt_along_whose_connection_was_lost() -> None:
    watcher, pipe, dispatcher, origin = world()
    watcher.show(view())
    request = call(7)
    first = dispatcher.submit(request, origin)
    gone, again, heir = Origin(), Origin(), Origin()
    assert dispatcher.forget(origin, gone) == 1
    second = dispatcher.submit(call(1, request_id=request.request_id, attempt=1), again)
    assert dispatcher.cancel(second, heir)
    assert sorted(pipe.cancelled) == [(first, request.request_id), (second, request.request_id)]
    for number in (first, second):
        dispatcher.on_reply(pipe, pb.Reply(id=number, result=b"\x01"))
    assert (len(gone.replies), len(heir.replies), len(again.replies)) == (1, 1, 0)
    assert (dispatcher.in_flight, dispatcher._orphans) == (0, {})
    third = dispatcher.submit(call(7), origin)
    dispatcher.forget(origin, gone)
    dispatcher.on_reply(pipe, pb.Reply(id=third, result=b"\x01"))
    assert dispatcher._orphans == {}
    await dispatcher.close()
