"""Writes docs/reference/cli.md from the commands of `holdfast`: what their `--help` says, and the
environment variables of their options. `--check` fails when the page is another.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator

import click
from check import sentences
from holdfast.cli.main import main as holdfast
from made import table, write


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, in the order of their names."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if command.hidden:
            continue
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def marked(text: str) -> str:
    """Text of a help as Markdown: options are code, and nothing is taken for HTML."""
    text = " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
    text = text.replace("docs/security.md", "[Security](../security.md)")
    return re.sub(r"(?<![`\w])(--[a-z][\w-]*)", r"`\1`", text)


def told(text: str) -> str:
    """The help of a command: its paragraphs as quotations, and its examples as code."""
    paragraphs, examples = [], ""
    for part in inspect.cleandoc(text).split("\n\n"):
        lines = part.replace("\b", "").strip("\n").split("\n")
        if lines[0].strip().rstrip(":") in ("Example", "Examples"):
            body = inspect.cleandoc("\n".join(["", *lines[1:]]))
            examples = f"```sh\n{body}\n```"
        elif part.startswith("\b"):
            quoted = "\n".join(f"> {line}" for line in lines)
            paragraphs.append(f"> ```text\n{quoted}\n> ```")
        else:
            paragraphs.append("\n".join(f"> {sentence}" for sentence in sentences(marked(part))))
    return "\n>\n".join(paragraphs) + f"\n\n{examples}" * bool(examples)


def row(option: click.Option) -> list[str]:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    kind = "" if option.is_flag else f" {option.make_metavar(click.Context(holdfast))}"
    if kind and "|" not in kind:
        names += f" `{kind.strip()}`"
    default = option.to_info_dict()["default"]
    if option.required:
        shown = "required"
    elif option.is_flag or default in (None, (), "") or "UNSET" in str(default):
        shown = ""
    else:
        shown = f"`{default}`"
    return [names, shown, f"`{option.envvar}`" if option.envvar else "", marked(option.help or "")]


def section(path: str, command: click.Command) -> str:
    level = "#" * (len(path.split()))
    parts = [f"{level} {path}", told(command.help or "")]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    if not isinstance(command, click.Group):
        names = " ".join(one.make_metavar(click.Context(command)) for one in arguments)
        parts.append(f"```text\n{path} {names}{' ' * bool(names)}[OPTIONS]\n```")
    options = [
        row(one)
        for one in command.params
        if isinstance(one, click.Option) and not one.hidden and one.name != "help"
    ]
    if options:
        parts.append(table(["option", "default", "environment", "what"], options))
    return "\n\n".join(part for part in parts if part)


def main() -> int:
    text = "\n\n".join(section(path, one) for path, one in commands(holdfast, "holdfast"))
    return write("reference/cli.md", "reference_cli.py", {"commands": text})


if __name__ == "__main__":
    sys.exit(main())
