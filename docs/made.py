"""What the scripts share that write parts of a page from the code.

A page holds each such part between `<!-- made by SCRIPT: PART -->` and `<!-- end -->`.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
_END = "<!-- end -->"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(page: str, script: str, parts: dict[str, str]) -> int:
    """Put the parts into a page. With `--check` change nothing, and return 1 when the page is not
    what the code says."""
    path = DOCS / page
    before = text = path.read_text()
    for name, part in parts.items():
        begin = f"<!-- made by {script}: {name} -->"
        if text.count(begin) != 1:
            print(f"docs/{page}: there is no part `{begin}`")
            return 1
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{part}\n\n{_END}{rest.split(_END, 1)[1]}"
    if text == before:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"docs/{page}: the code says something else; run `make reference`")
        return 1
    path.write_text(text)
    return 0
