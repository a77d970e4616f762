"""The blocks of `storage.transaction()`: parts of a turn that can fail alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Block:
    """An open `transaction()` of a turn, and how to undo it."""

    __slots__ = ("blocks", "closed", "failed", "outer", "task", "undo")

    def __init__(self, blocks: Blocks, outer: Block | None, task: str) -> None:
        """`task`: the name of the task that began the block."""
        self.blocks = blocks
        self.outer = outer
        self.task = task
        self.undo: list[Callable[[], None]] = []
        self.closed = False
        self.failed = False

    @property
    def innermost_open(self) -> Block | None:
        """This block, or the nearest one around it that is open still."""
        block: Block | None = self
        while block is not None and block.closed:
            block = block.outer
        return block


_IN_BLOCK: ContextVar[Block | None] = ContextVar("holdfast transaction", default=None)
"""The block that the running code belongs to. Tasks that it begins inherit it, and so may turns of
other objects that it calls."""


class Blocks:
    """The blocks of one turn.

    What code of a block changes, the block can undo; what other tasks change meanwhile stays. The
    last change of each row is remembered by a `touch`, so that a block undoes only what nobody has
    written over.
    """

    __slots__ = ("_innermost", "touched")

    def __init__(self) -> None:
        self._innermost: Block | None = None  # of those that are open
        self.touched: dict[str, object] = {}
        """While blocks are open: the last change of each row."""

    def own(self) -> Block | None:
        """Return the open block of this turn that the running code belongs to.

        Raises RuntimeError when the code was begun in a block that has failed since.
        """
        block = _IN_BLOCK.get()
        if block is None or block.blocks is not self:
            return None
        around: Block | None = block
        while around is not None:
            if around.failed:
                raise RuntimeError(
                    f"{_task_name()} was begun in a transaction() that has failed: it can change"
                    " nothing any more"
                )
            around = around.outer
        return block.innermost_open

    @contextmanager
    def block(self, is_running: Callable[[Blocks], bool]) -> Iterator[None]:
        """Open a block of the running turn; an exception that leaves it undoes what it did.

        `is_running`: whether the turn of these blocks runs still. Raises RuntimeError when another
        task's block is open.
        """
        around = _IN_BLOCK.get()
        outer = self._innermost
        if outer is not None and outer is not self.own():
            raise RuntimeError(
                f"{_task_name()} begins a transaction() while {outer.task} is in one: blocks of a"
                " turn are nested in each other, or follow each other"
            )
        if outer is None:
            self.touched.clear()
        block = self._innermost = Block(self, outer, _task_name())
        _IN_BLOCK.set(block)
        try:
            yield
            if self._innermost is not block:
                if self._innermost is None or block.closed:
                    raise RuntimeError("a transaction() ended after the one that it was begun in")
                raise RuntimeError(
                    f"a transaction() ended while {self._innermost.task} was still in one that it"
                    " began inside"
                )
        except BaseException:
            if is_running(self):
                self._undo(block)
            raise
        else:
            if outer is not None:
                outer.undo += block.undo
                # what a task that it began does from now on belongs to the outer one
                block.undo = outer.undo
        finally:
            block.closed = True
            _IN_BLOCK.set(around)
            if self._innermost is not None:
                self._innermost = self._innermost.innermost_open

    def _undo(self, block: Block) -> None:
        """Undo a block, and before it the blocks that were begun inside and are open still: they
        have failed with it."""
        inner = self._innermost
        while inner is not None and inner is not block:
            if not inner.closed:
                inner.closed = True
                self._undo_all(inner)
            inner = inner.outer
        self._undo_all(block)

    def _undo_all(self, block: Block) -> None:
        block.failed = True
        undo, block.undo = block.undo, []
        for one in reversed(undo):
            one()


def _task_name() -> str:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # there is no loop, as in tests
        task = None
    return "the handler" if task is None else task.get_name()
