"""Writes the way back of a call, from the fsync to the reply, into docs/architecture.md.

The steps below are written by hand, and checked against the code: each function has to be called
by the step before it, or by the step that it names. Where a step calls what it was given, the code
has to have the place that gives it. Without `--check` the lists are written; with it the script
fails when the code or the page says something else.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1] / "node/holdfast_node"
PAGE = Path(__file__).parent / "architecture.md"
BEGIN, END = "<!-- made by way_back.py -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Given:
    """How a step gets what it calls: `function`, in `file`, gives the next step's function to a
    call of `to`. The step before calls it as `called`, or gives it itself."""

    file: str
    function: str
    to: str
    called: str


@dataclass(frozen=True)
class Step:
    """`function`, in `file`. The step before calls it by its name, or as it was `given`.

    `by`: the function of an earlier step in the same file, which calls it instead, when the step
    before has returned.
    """

    file: str
    function: str
    says: str
    given: Given | None = None
    by: str = ""


ANSWER = (
    Step("log/shards.py", "Entry.settle", "tells those who wait for the entry"),
    Step(
        "objects/requests.py",
        "_Answer.settled",
        "the turn's answer waited for it",
        Given("objects/requests.py", "Requests.finish_with", "entry.waiters.append", "settled"),
    ),
    Step("objects/requests.py", "Requests.finish", "the reply leaves"),
)
ONE_COPY = (
    Step("log/commit.py", "Flusher._sync", "the fsync has ended"),
    Step(
        "log/commit.py",
        "Flusher._synced",
        "tells those who waited for it",
        Given("log/commit.py", "Flusher._sync", "self._loop.call_soon_threadsafe", "run"),
    ),
    Step(
        "log/single.py",
        "SingleLog.append.durable",
        "the entries are committed",
        Given("log/single.py", "SingleLog.append", "self._flusher.when_durable", "done"),
    ),
    *ANSWER,
)
HOST, CORE = "replication/host.py", "replication/core/replica.py"
THREE_COPIES = (
    *ONE_COPY[:2],
    Step(
        HOST,
        "Replicas._persisted",
        "this node has the entry on disk",
        Given(HOST, "Replicas._end", "self._flusher.when_durable", "done"),
    ),
    Step(HOST, "Replicas._do_often", "asks the shard's core"),
    Step(CORE, "Replica.handle", "the core gets the event"),
    Step(CORE, "Replica._persisted", "notes what is on disk"),
    Step(CORE, "Replica._advance", "every counted replica has the entry"),
    Step(CORE, "Replica._apply", "decides: committed"),
    Step(HOST, "Replicas._apply", "the host obeys", by="Replicas._do_often"),
    Step(HOST, "Replicas._end", "the entries are committed", by="Replicas._persisted"),
    *ANSWER,
)
LAST = "turn.port.reply"
"""What the last step calls."""
FILES = {ONE_COPY: 4, THREE_COPIES: 5}
"""Through how many files each way leads, as the page says."""


def check(steps: tuple[Step, ...], root: Path = ROOT) -> None:
    """Raise AssertionError when a step is not reached as it says."""
    for before, step in pairwise(steps):
        _check_link(before, step, root)
    end = steps[-1]
    calls = _calls(root, end.file, end.function)
    assert LAST in {ast.unparse(call.func) for call in calls}, (
        f"{end.file}: {end.function} does not call {LAST}"
    )


def _check_link(before: Step, step: Step, root: Path) -> None:
    _find(root, step.file, step.function)
    if step.given is not None:
        _check_given(step, step.given, root)
    caller, file = (step.by, step.file) if step.by else (before.function, before.file)
    calls = {ast.unparse(call.func) for call in _calls(root, file, caller)}
    owner, _, name = step.function.rpartition(".")
    if step.given is not None:
        if step.given.to in calls:  # the step before gives it itself
            return
        name = step.given.called
        found = any(call.rpartition(".")[2] == name for call in calls)
    elif (file, caller.rpartition(".")[0]) == (step.file, owner):
        found = f"self.{name}" in calls
    else:
        found = any(call.rpartition(".")[2] == name for call in calls)
    assert found, f"{file}: {caller} does not call {name}"


def _check_given(step: Step, given: Given, root: Path) -> None:
    owner, _, name = step.function.rpartition(".")
    # The function itself, a lambda that calls it, or an object whose method it is.
    names = {name, owner}
    given_names = {
        inner.attr if isinstance(inner, ast.Attribute) else inner.id
        for call in _calls(root, given.file, given.function)
        if ast.unparse(call.func) == given.to
        for argument in call.args
        for inner in ast.walk(argument)
        if isinstance(inner, ast.Attribute | ast.Name)
    }
    assert names & given_names, (
        f"{given.file}: {given.function} does not give {step.function} to {given.to}"
    )


_parsed = lru_cache(maxsize=32)(ast.parse)


def _find(root: Path, file: str, function: str) -> ast.AST:
    node: ast.AST = _parsed((root / file).read_text())
    for name in function.split("."):
        inner = next(
            (
                inner
                for inner in ast.iter_child_nodes(node)
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and inner.name == name
            ),
            None,
        )
        assert inner is not None, f"{file}: there is no {function}"
        node = inner
    return node


def _calls(root: Path, file: str, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(_find(root, file, function)):
        if isinstance(node, ast.Call):
            yield node


def check_length(steps: tuple[Step, ...]) -> None:
    """Raise AssertionError when the way does not lead through as many files as the page says."""
    files = {step.file for step in steps}
    assert len(files) == FILES[steps], f"the way back leads through {len(files)} files: {files}"


def drawn(steps: tuple[Step, ...]) -> str:
    """The way as text: what each step says, and where it is."""
    wide = max(len(f"{step.file}  {step.function}") for step in steps)
    lines = []
    for number, step in enumerate(steps, 1):
        where = f"{step.file}  {step.function}".ljust(wide)
        by = next((n for n, other in enumerate(steps, 1) if other.function == step.by), 0)
        caller = f" (step {by} calls it)" if by else ""
        lines.append(f"    {number:>2}  {where}   {step.says}{caller}")
    return "\n".join(lines)


def page() -> str:
    """The page with the lists as they are today."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END, 1)
    lists = f"With one copy:\n\n{drawn(ONE_COPY)}\n\nWith replicas:\n\n{drawn(THREE_COPIES)}\n\n"
    return f"{before}{BEGIN}\n{lists}{END}{after}"


def main() -> int:
    for steps in (ONE_COPY, THREE_COPIES):
        check(steps)
        check_length(steps)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
    elif page() != PAGE.read_text():
        print("docs/architecture.md: the way back is another one; run docs/way_back.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
