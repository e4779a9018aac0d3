"""Streams that log lines go to, and what reads them."""

from __future__ import annotations

import io
import json
from typing import Any

from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.logs import Logs
from healthobs.redaction import Redactor

NEEDLE = "078-05-1120"


class Stream(io.StringIO):
    """A stream that keeps every call."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        """Keep."""
        self.writes.append(text)
        return super().write(text)


class BrokenStream(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        """Fail, with the text in the error."""
        raise BrokenPipeError(text)


def make(stream: Any, *, mode: Any = "mask", on_error: Any = None, **settings: Any) -> Logs:
    clock = Clock(wall_ns=lambda: 1_763_893_800_123_456_789)
    return Logs(Settings(service_name="demo", **settings), Redactor(mode), clock, stream, on_error=on_error)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def last(stream: io.StringIO) -> dict[str, Any]:
    return lines(stream)[-1]


def failing(value: str) -> None:
    try:
        int(value)
    except ValueError as exc:
        exc.add_note(value)
        raise ExceptionGroup(f"group {value}", [exc]) from exc
