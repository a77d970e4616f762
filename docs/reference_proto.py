"""Writes docs/reference/proto.md from proto/holdfast/v1/*.proto and their comments.

`--check` fails when the page is another. protoc tells the comments of each service, rpc, message
and field (of grpcio-tools, which `make proto` uses too).
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path

from check import sentences
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc
from made import table, write

PROTO = Path(__file__).parents[1] / "proto"
FILES = ("holdfast/v1/objects.proto", "holdfast/v1/admin.proto")
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6  # numbers of the fields of FileDescriptorProto
Comments = Callable[..., str]


def described() -> dict[str, FileDescriptorProto]:
    """The files, with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        google = resources.files("grpc_tools") / "_proto"
        arguments = [f"-I{PROTO}", f"-I{google}", "--include_source_info"]
        if protoc.main(["protoc", *arguments, f"--descriptor_set_out={out}", *FILES]):
            raise SystemExit("protoc failed")
        files = FileDescriptorSet.FromString(out.read_bytes()).file
    return {file.name: file for file in files}


def comments_of(file: FileDescriptorProto) -> Comments:
    """What is said above and behind the thing at a path, on one line."""
    found = {tuple(location.path): location for location in file.source_code_info.location}

    def comments(*path: int) -> str:
        location = found[path]
        text = f"{location.leading_comments} {location.trailing_comments}"
        text = " ".join(text.split()).replace("<", "&lt;")
        return re.sub(r"([|*])", r"\\\1", text)

    return comments


def linked(text: str) -> str:
    """A comment as Markdown: what it says of files leads there, and names are code."""
    text = text.replace(
        "docs/guide/other-languages.md", "[Other languages](../guide/other-languages.md)"
    )
    text = text.replace(
        'docs/reference/errors.md, "Definite errors"',
        "[Definite errors](errors.md#definite-errors)",
    ).replace("docs/reference/errors.md", "[Errors](errors.md)")
    text = re.sub(r'(?<![`\w])"([\w/-]+)"', r"`\1`", text)
    return re.sub(
        r"(?<![`.\w])((?:CODE_|self\.|google\.rpc\.|holdfast\.v1\.)[\w.]*\w)", r"`\1`", text
    )


def name_of(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """The type of a field, which leads to the message or enum that it is."""
    if field.type not in (field.TYPE_MESSAGE, field.TYPE_ENUM):
        plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    else:
        name = field.type_name.rpartition(".")[2]
        entry = next((one for one in message.nested_type if one.name == name), None)
        if entry is not None:
            key, value = (name_of(one, message) for one in entry.field)
            return f"map of {key} to {value}"
        plain = link(name)
    return f"repeated {plain}" if field.label == field.LABEL_REPEATED else plain


def link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def prose(text: str) -> str:
    """A comment as a paragraph of its own."""
    return "\n".join(sentences(linked(text))) + "\n\n" if text else ""


def service(of: ServiceDescriptorProto, at: int, comments: Comments) -> str:
    rows = []
    for number, rpc in enumerate(of.method):
        asked, told = (name.rpartition(".")[2] for name in (rpc.input_type, rpc.output_type))
        rows.append(
            [
                f"`{rpc.name}`",
                "stream of " * rpc.client_streaming + link(asked),
                "stream of " * rpc.server_streaming + link(told),
                linked(comments(_SERVICE, at, 2, number)),
            ]
        )
    rpcs = table(["rpc", "takes", "returns", "what"], rows)
    return f"### Service {of.name}\n\n{prose(comments(_SERVICE, at))}{rpcs}"


def message(of: DescriptorProto, at: int, comments: Comments) -> str:
    rows = []
    for number, field in enumerate(of.field):
        text = linked(comments(_MESSAGE, at, 2, number))
        if field.HasField("oneof_index"):
            text = f"one of `{of.oneof_decl[field.oneof_index].name}`" + f": {text}" * bool(text)
        rows.append([str(field.number), f"`{field.name}`", name_of(field, of), text])
    rows.sort(key=lambda row: int(row[0]))
    fields = table(["number", "field", "type", "what"], rows) if rows else "It has no fields."
    oneofs = [
        prose(f"`{one.name}`: {text}")
        for number, one in enumerate(of.oneof_decl)
        if (text := comments(_MESSAGE, at, 8, number))
    ]
    return f"### {of.name}\n\n{prose(comments(_MESSAGE, at))}{''.join(oneofs)}{fields}"


def enum(of: EnumDescriptorProto, at: int, comments: Comments) -> str:
    values = table(["number", "value"], [[str(one.number), f"`{one.name}`"] for one in of.value])
    return f"### {of.name}\n\n{prose(comments(_ENUM, at))}{values}"


def page(file: FileDescriptorProto) -> str:
    comments = comments_of(file)
    parts: list[Iterable[str]] = [
        (service(one, at, comments) for at, one in enumerate(file.service)),
        (message(one, at, comments) for at, one in enumerate(file.message_type)),
        (enum(one, at, comments) for at, one in enumerate(file.enum_type)),
    ]
    return "\n\n".join(text for part in parts for text in part)


def main() -> int:
    files = described()
    parts = {name: page(files[name]) for name in FILES}
    return write("reference/proto.md", "reference_proto.py", parts)


if __name__ == "__main__":
    sys.exit(main())
