"""`holdfast deadletters` and `holdfast alarms`, with a gateway whose pages are small."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from holdfast.cli import dead_letters
from holdfast.ids import dead_letter_id
from holdfast.v1 import admin_pb2

PAGE = 2  # rows


def place(number: int) -> bytes:
    return bytes(2) + number.to_bytes(16, "big")


class Gateway:
    """Has five dead letters and five alarms. The first page of each lacks a node and a shard."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self.rows = range(1, 6)

    def ask(self, gateway: str, method: str, request: Any, answer: Any, timeout: float) -> Any:
        self.limits.append(request.limit)
        left = [number for number in self.rows if place(number) > request.after]
        rows = left[: min(PAGE, request.limit)]
        missing = {} if request.after > place(0) else {"silent": ["n-1"], "unserved": [3, 4]}
        if method == "DeadLetters":
            letters = [
                admin_pb2.DeadLetter(
                    id=dead_letter_id(place(n)), place=place(n), kind="K", key=str(n)
                )
                for n in rows
            ]
            return answer(letters=letters, more=len(left) > len(rows), **missing)
        alarms = [
            admin_pb2.PendingAlarm(kind="K", key=str(n), name="a", place=place(n)) for n in rows
        ]
        return answer(alarms=alarms, more=len(left) > len(rows), **missing)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Gateway:
    gateway = Gateway()
    monkeypatch.setattr(dead_letters, "ask", gateway.ask)
    return gateway


def run(command: click.Command, *arguments: str) -> Result:
    result = CliRunner().invoke(command, arguments)
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    return result


COMMANDS = [
    pytest.param(dead_letters.deadletters, ["list"], "letters", "dead letters", id="deadletters"),
    pytest.param(dead_letters.alarms, [], "alarms", "alarms", id="alarms"),
]


@pytest.mark.parametrize(("command", "arguments", "rows", "what"), COMMANDS)
def test_a_list_has_all_pages(
    gateway: Gateway, command: click.Command, arguments: list[str], rows: str, what: str
) -> None:
    shown = json.loads(run(command, *arguments, "--json").stdout)
    assert [row["key"] for row in shown[rows]] == ["1", "2", "3", "4", "5"]
    assert not shown["more"]
    assert (shown["silent"], shown["unserved"]) == (["n-1"], [3, 4])
    assert gateway.limits == [100, 98, 96]


@pytest.mark.parametrize(("command", "arguments", "rows", "what"), COMMANDS)
def test_a_list_ends_at_its_limit(
    gateway: Gateway, command: click.Command, arguments: list[str], rows: str, what: str
) -> None:
    shown = json.loads(run(command, *arguments, "--json", "--limit", "3").stdout)
    assert [row["key"] for row in shown[rows]] == ["1", "2", "3"]
    assert shown["more"]
    gateway.limits.clear()
    assert "raise --limit" in run(command, *arguments, "--limit", "3").stdout
    assert "raise --limit" not in run(command, *arguments, "--limit", "5000").stdout


@pytest.mark.parametrize(("command", "arguments", "rows", "what"), COMMANDS)
def test_a_list_names_what_is_missing(
    gateway: Gateway, command: click.Command, arguments: list[str], rows: str, what: str
) -> None:
    told = run(command, *arguments).stderr
    assert f"the {what} of 2 shards are missing" in told
    assert f"node n-1 did not answer: the {what} of its shards are missing" in told
    assert "objects" not in told


def test_a_dead_letter_that_is_not_found_may_be_on_a_node_that_is_silent(gateway: Gateway) -> None:
    gateway.rows = range(0)
    result = run(dead_letters.deadletters, "show", dead_letter_id(place(1)))
    assert "the dead letters of 2 shards are missing" in result.stderr
    assert "there is no dead letter" in result.stderr
