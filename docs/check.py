"""Checks the prose of the documents: one sentence a line, and at most 30 words in a sentence.

`python docs/check.py` says what is wrong; `--write` puts each sentence on a line of its own.
Tables, code and headings are left alone.

It also checks two things that documents say of the code: docs/architecture.md names every module
in the row of its folder, and docs/guarantees.md has the simulators' numbers of worlds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS_MAX = 30
_END = re.compile(r"(?<=[.!?])[)\"”*]*\s+(?=[A-Z`*\[\"“(0-9])")
_NO_END = ("e.g.", "i.e.", " etc.", " vs.", "et al.", " No.", " cf.")
_ITEM = re.compile(r"(\s*)([-*] |\d+\. )(.*)")

PACKAGES = (
    "sdk/holdfast",
    "cluster/holdfast_cluster",
    "node/holdfast_node",
    "gateway/holdfast_gateway",
)
TOP = "(top)"
"""The row of the modules that are in no folder."""
WORLDS = ("test_replication", "test_effects", "test_cluster_world")
"""The files of tests/sim that draw worlds."""
_GENERATED = "_pb2"
_SEEDS = re.compile(r"^SEEDS = .*\"SEEDS\", \"(\d+)\"", re.MULTILINE)


def documents() -> list[Path]:
    """All that people read."""
    top = [path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"]
    return sorted([*top, *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/*.md")])


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph."""
    found: list[str] = []
    for part in _split(text):
        if found and found[-1].endswith(_NO_END):
            found[-1] += f" {part}"
        else:
            found.append(part)
    return found


def _split(text: str) -> list[str]:
    parts, begin, in_code = [], 0, False
    for at, letter in enumerate(text):
        if letter == "`":
            in_code = not in_code
        elif letter == " " and not in_code and _END.match(text, _before(text, at)):
            parts.append(text[begin:at].strip())
            begin = at + 1
    parts.append(text[begin:].strip())
    return [part for part in parts if part]


def _before(text: str, at: int) -> int:
    """Where the quotes and brackets begin that stand between the end of a sentence and a space."""
    while at > 0 and text[at - 1] in ')"”*':
        at -= 1
    return at


def paragraphs(lines: list[str]) -> Iterator[tuple[int, list[str], bool]]:
    """Runs of lines, with the number of their first: a paragraph or an item of a list, or one line
    that is left alone. The last says whether it is prose."""
    at, fenced = 0, False
    while at < len(lines):
        line = lines[at]
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if not _is_prose(line) or fenced:
            yield at, [line], False
            at += 1
            continue
        begin = at
        at += 1
        while at < len(lines) and _is_prose(lines[at]) and not _ITEM.match(lines[at]):
            at += 1
        yield begin, lines[begin:at], True


def _is_prose(line: str) -> bool:
    bare = line.strip()
    indented = line.startswith("    ") and not _ITEM.match(line)
    left_alone = ("#", "|", "```", "<", "![", ">", ":::")
    return bool(bare) and not indented and not bare.startswith(left_alone)


def reflowed(lines: list[str]) -> list[str]:
    """The same text, each sentence on a line of its own."""
    out: list[str] = []
    for _, run, is_prose in paragraphs(lines):
        if not is_prose:
            out += run
            continue
        item = _ITEM.match(run[0])
        first = f"{item[1]}{item[2]}" if item else ""
        text = " ".join(line.strip() for line in run)
        text = text[len(item[2]) :].strip() if item else text
        for number, sentence in enumerate(sentences(text)):
            out.append((first if number == 0 else " " * len(first)) + sentence)
    return out


def modules(package: Path) -> Iterator[tuple[str, str]]:
    """The folder and the name of each module that people wrote. The modules of a folder's folders
    count as the folder's own."""
    for path in sorted(package.rglob("*.py")):
        folder = path.relative_to(package).parts[0] if path.parent != package else TOP
        if not path.stem.startswith("__") and _GENERATED not in path.stem:
            yield folder, path.stem


def named(page: str, package: str) -> dict[str, set[str]]:
    """What each row of a package's table has in backticks, by the row's folder."""
    rows: dict[str, set[str]] = {}
    table = page.partition(f"| `{package}` |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        folder, _, rest = line.removeprefix("| ").partition(" | ")
        rows[folder.strip("`")] = set(re.findall(r"`([^`]+)`", rest))
    return rows


def unnamed(root: Path = ROOT) -> list[str]:
    """The modules that docs/architecture.md does not name in the row of their folder."""
    page = (root / "docs/architecture.md").read_text()
    return [
        f"docs/architecture.md: the row {folder} of {package} does not name `{name}`"
        for package in PACKAGES
        for rows in [named(page, package)]
        for folder, name in modules(root / package)
        if name not in rows.get(folder, ())
    ]


def wrong_worlds(root: Path = ROOT) -> list[str]:
    """The numbers of worlds of docs/guarantees.md that are not those of the tests."""
    page = (root / "docs/guarantees.md").read_text()
    wrong = []
    for name in WORLDS:
        found = _SEEDS.search((root / f"tests/sim/{name}.py").read_text())
        assert found is not None, f"tests/sim/{name}.py: there is no default of SEEDS"
        says = f"`tests/sim/{name}`: {int(found[1]):,} "
        if says not in page:
            wrong.append(f'docs/guarantees.md: it does not say "{says}... worlds"')
    return wrong


def main() -> int:
    of_the_code = [*unnamed(), *wrong_worlds()]
    for line in of_the_code:
        print(line)
    wrong = len(of_the_code)
    for path in documents():
        lines = path.read_text().split("\n")
        want = reflowed(lines)
        if "--write" in sys.argv[1:]:
            path.write_text("\n".join(want))
        elif want != lines:
            wrong += 1
            at = next(i for i, line in enumerate([*lines, ""]) if [*want, ""][i : i + 1] != [line])
            print(f"{path.relative_to(ROOT)}:{at + 1}: more than one sentence on a line, or less")
        for begin, run, is_prose in paragraphs(want):
            if not is_prose:
                continue
            for offset, line in enumerate(run):
                words = len(line.replace("—", " ").split())
                if words > WORDS_MAX:
                    wrong += 1
                    where = f"{path.relative_to(ROOT)}:{begin + offset + 1}"
                    print(f"{where}: a sentence of {words} words: {line.strip()[:160]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
