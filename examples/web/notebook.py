"""Cells of a notebook. IPython runs an event loop, so an asyncio client is opened without `async
with`. It stays open from cell to cell.

python -m examples.web.notebook runs them as Jupyter does
"""

from __future__ import annotations

import asyncio

from IPython.core.interactiveshell import InteractiveShell

CELLS = [
    "import os, holdfast\nfrom examples.web.counter import Counter",
    "client = await holdfast.connect(os.environ['HOLDFAST_GATEWAY']).open()",
    "print(await client.get(Counter, 'notebook').increment())",
    "print(await client.get(Counter, 'notebook').increment())",
    (
        "blocking ="
        " holdfast.connect_blocking(os.environ['HOLDFAST_GATEWAY'])\nprint(blocking.get(Counter,"
        " 'notebook').increment())"
    ),
    "await client.close()",
]


async def main() -> None:
    shell = InteractiveShell.instance()
    for cell in CELLS:
        (
            await shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell))
        ).raise_error()


if __name__ == "__main__":
    asyncio.run(main())
