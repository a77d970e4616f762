"""Draws the way back of a call in docs/architecture.md, from the fsync to the reply, from the code.

Each step is a function, and has to call the next one: `--check` fails when one does not any more,
or when the picture is not what would be drawn. Without it the picture is written.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1] / "node/holdfast_node"
PAGE = Path(__file__).parent / "architecture.md"
BEGIN, END = "<!-- made by way_back.py -->\n", "<!-- end -->"


@dataclass(frozen=True)
class Step:
    """`function`, in `file`, calls `calls`, which is how the next step is reached."""

    file: str
    function: str
    calls: str
    says: str


ONE_COPY = (
    Step("log/commit.py", "Flusher._sync", "call_soon_threadsafe", "the fsync has ended"),
    Step("log/commit.py", "Flusher._synced", "done", "tells those who waited for it"),
    Step("log/single.py", "SingleLog.append.durable", "settle", "the entries are committed"),
    Step("log/shards.py", "Entry.settle", "settled", "tells those who wait for the entry"),
    Step("objects/requests.py", "_Answer.settled", "finish", "the turn's answer waited for it"),
    Step("objects/requests.py", "Requests.finish", "reply", "the reply leaves"),
)
THREE_COPIES = (
    Step("log/commit.py", "Flusher._synced", "done", "this node has the entry on disk"),
    Step("replication/host.py", "Replicas._persisted", "_do_often", "asks the shard's core"),
    Step("replication/host.py", "Replicas._do_often", "_apply", "the core says: committed"),
    Step("replication/host.py", "Replicas._end", "settle", "the entries are committed"),
    Step("log/shards.py", "Entry.settle", "settled", "tells those who wait for the entry"),
    Step("objects/requests.py", "_Answer.settled", "finish", "the turn's answer waited for it"),
    Step("objects/requests.py", "Requests.finish", "reply", "the reply leaves"),
)
FILES_MAX = 4


def check(steps: tuple[Step, ...]) -> None:
    """Raises AssertionError when a step does not call the next one, or the way leads too far."""
    for step in steps:
        node: ast.AST = ast.parse((ROOT / step.file).read_text())
        for name in step.function.split("."):
            node = next(
                inner
                for inner in ast.walk(node)
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and inner.name == name
            )
        called = {_name(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
        assert step.calls in called, f"{step.file}: {step.function} does not call {step.calls}"
    files = {step.file for step in steps}
    assert len(files) <= FILES_MAX, f"the way back leads through {len(files)} files: {files}"


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def drawn(steps: tuple[Step, ...]) -> str:
    """The way as text: what each step says, and where it is."""
    wide = max(len(f"{step.file}  {step.function}") for step in steps)
    lines = []
    for number, step in enumerate(steps, 1):
        where = f"{step.file}  {step.function}".ljust(wide)
        lines.append(f"    {number}  {where}   {step.says}")
    return "\n".join(lines)


def page() -> str:
    """The page with the pictures as they are today."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END, 1)
    pictures = f"With one copy:\n\n{drawn(ONE_COPY)}\n\nWith replicas:\n\n{drawn(THREE_COPIES)}\n\n"
    return f"{before}{BEGIN}\n{pictures}{END}{after}"


def main() -> int:
    for steps in (ONE_COPY, THREE_COPIES):
        check(steps)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page())
    elif page() != PAGE.read_text():
        print("docs/architecture.md: the way back is another one; run docs/way_back.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
