"""The blocks of `storage.transaction()`: parts of a turn that can fail alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Block:
    """A `transaction()` of a turn, with the steps that undo it."""

    __slots__ = ("blocks", "closed", "failed", "outer", "task", "undo")

    def __init__(self, blocks: Blocks, outer: Block | None, task: str) -> None:
        """Begin a block inside `outer`. `task` is the name of the task that began it."""
        self.blocks = blocks
        self.outer = outer
        self.task = task
        self.undo: list[Callable[[], None]] = []
        self.closed = False
        self.failed = False

    @property
    def innermost_open(self) -> Block | None:
        """This block if it is open, or the nearest open one around it."""
        block: Block | None = self
        while block is not None and block.closed:
            block = block.outer
        return block


_IN_BLOCK: ContextVar[Block | None] = ContextVar("holdfast transaction", default=None)
"""The block of the running code. Tasks that the code begins inherit it. Turns of other objects that
the code calls may inherit it too."""


class Blocks:
    """The blocks of one turn.

    A block can undo the changes by its own code. Changes by other tasks stay. A mark in `touched`
    identifies the last change of each row. So a block does not undo a change that a later write has
    replaced.
    """

    __slots__ = ("_innermost", "touched")

    def __init__(self) -> None:
        self._innermost: Block | None = None  # the innermost open block
        self.touched: dict[str, object] = {}
        """While blocks are open: the last change of each row."""

    def own(self) -> Block | None:
        """Return the open block of this turn to which the running code belongs, if any.

        Raises RuntimeError if the code was begun in a block that has failed since.
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
        """Open a block of the running turn. An exception that leaves the block undoes its changes.

        `is_running` returns whether the turn of these blocks still runs. Raises RuntimeError if
        another task's block is open.
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
                # later changes by tasks that this block began belong to the outer block
                block.undo = outer.undo
        finally:
            block.closed = True
            _IN_BLOCK.set(around)
            if self._innermost is not None:
                self._innermost = self._innermost.innermost_open

    def _undo(self, block: Block) -> None:
        """Undo a block. First undo the open blocks inside it: they have failed with it."""
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
