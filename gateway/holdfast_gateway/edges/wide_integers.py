"""Integers in JSON that JavaScript cannot hold."""

from __future__ import annotations

import re

_WIDE = re.compile(rb"\d{16}")
_TEXT_OR_WIDE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|(?<![\d.eE+])-?\d{16,}(?![\d.eE])')


def wide_integers_as_text(json: bytes) -> bytes:
    """Return the JSON with quotes around all integers beyond +-(2^53 - 1).

    Doubles do not hold all such integers exactly.
    """

    def quoted(found: re.Match[bytes]) -> bytes:
        token = found[0]
        return token if token[:1] == b'"' or abs(int(token)) < 1 << 53 else b'"' + token + b'"'

    return _TEXT_OR_WIDE.sub(quoted, json) if _WIDE.search(json) else json
