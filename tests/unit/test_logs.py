"""Logs for people: no caller writes a line of them."""

from __future__ import annotations

import logging

import pytest
from holdfast.logs import TextFormatter

FORGED = "alice\n12:00:00 CRITICAL gateway all is lost\r\x1b[2J\u2028x"


def line(message: str, *given: object, error: BaseException | None = None, **fields: object) -> str:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, message, given, None)
    if error is not None:
        record.exc_info = type(error), error, error.__traceback__
    vars(record).update(fields)
    return TextFormatter("gateway").format(record)


def test_what_a_caller_sends_stays_on_its_line() -> None:
    for text in (line("refused: %s", FORGED), line("it failed", kind="Shop", key=FORGED)):
        assert text.isprintable()
        assert r"alice\n12:00:00 CRITICAL" in text
        assert r"\r\x1b[2J\u2028x" in text
    assert line("größer: %s", "é").endswith("INFO    gateway größer: é")


def test_no_line_of_a_traceback_looks_like_one_of_the_log() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError as error:
        text = line("it failed", error=error, kind="Shop")
    first, *rest = text.split("\n")
    assert first.endswith("it failed [kind=Shop]")
    assert rest
    assert all(one.startswith("    ") for one in rest)
    assert "\x1b" not in text
    with pytest.raises(StopIteration):
        next(one for one in rest if one.startswith("12:00"))
