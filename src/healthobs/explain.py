"""`healthobs explain ID`: everything that log files tell of one trace, request or failure.

An error id (in a problem's body, a span event and a log line) leads to its trace, and the trace to every line of
every service that took part: first the lines that name the id, then the others, each in the order of time.

Limits: it reads JSON lines as `healthobs` writes them; what is no JSON object is skipped and counted. The exit
status is 0 when something was found, 1 when nothing was, 2 when a file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

_IDS = ("error_id", "trace_id", "request_id", "span_id", "exception_fingerprint")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHOWN_FIRST = ("timestamp", "service", "level", "event")

Line = dict[str, Any]


def find(lines: Iterable[Line], identifier: str) -> tuple[list[Line], list[Line]]:
    """Return the lines that name `identifier`, and the others of the traces they name, each part by time.

    Args:
        lines: Decoded log lines.
        identifier: An error, trace, request or span id, or an exception's fingerprint.

    Example:
        >>> lines = [{"trace_id": "a1"}, {"trace_id": "a1", "error_id": "e7"}, {"trace_id": "b2"}]
        >>> find(lines, "e7")
        ([{'trace_id': 'a1', 'error_id': 'e7'}], [{'trace_id': 'a1'}])
    """
    known = sorted(lines, key=lambda line: str(line.get("timestamp", "")))
    named = [line for line in known if _names(line, identifier)]
    traces = {line["trace_id"] for line in named if line.get("trace_id")}
    return named, [line for line in known if line.get("trace_id") in traces and not _names(line, identifier)]


def _ids(text: str) -> list[str]:
    """Return the ids that `text` may mean: itself, the trace of a `traceparent`, a UUID with and without its dashes."""
    text = text.strip().lower()
    parent = _TRACEPARENT.fullmatch(text)
    if parent is not None:
        return [parent[1]]
    bare = text.removeprefix("urn:uuid:")
    return [bare, bare.replace("-", "")] if _UUID.fullmatch(bare) else [bare]


def _names(line: Line, identifier: str) -> bool:
    return any(line.get(key) == identifier for key in _IDS)


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="healthobs explain", description="Print what log files tell of one trace or failure."
    )
    parser.add_argument(
        "id",
        help="an error id (also as urn:uuid:…), trace id, traceparent, request id, span id or fingerprint",
    )
    parser.add_argument(
        "--logs", nargs="+", required=True, metavar="FILE", help="files of JSON lines; - is standard input"
    )
    arguments = parser.parse_args(argv)
    lines: list[Line] = []
    skipped = 0
    for name in arguments.logs:
        try:
            read, left = _read(name)
        except OSError as exc:
            print(f"healthobs explain: {name} cannot be read ({exc.strerror})", file=sys.stderr)  # noqa: T201
            return 2
        lines += read
        skipped += left
    named, others = max((find(lines, one) for one in _ids(arguments.id)), key=lambda found: len(found[0]))
    _report(named, others)
    if skipped:
        print(f"{skipped} lines were no JSON objects and were skipped")  # noqa: T201
    return 0 if named else 1


def _read(name: str) -> tuple[list[Line], int]:
    if name == "-":
        return _decode(sys.stdin)
    with open(name, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a name, not a path to keep
        return _decode(file)


def _decode(file: Iterable[str]) -> tuple[list[Line], int]:
    lines: list[Line] = []
    skipped = 0
    for text in file:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(cast("Line", line))
        elif text.strip():
            skipped += 1
    return lines, skipped


def _report(named: Sequence[Line], others: Sequence[Line]) -> None:
    found = [*named, *others]
    if not found:
        print("no line names that id")  # noqa: T201
        return
    services = list(dict.fromkeys(str(line.get("service", "?")) for line in found))
    traces = list(dict.fromkeys(str(line["trace_id"]) for line in found if line.get("trace_id")))
    print(f"{len(found)} lines of {', '.join(services)}; trace {', '.join(traces) or 'unknown'}")  # noqa: T201
    for position, line in enumerate(found):
        if position == len(named):
            print(f"and {len(others)} more of the same trace:")  # noqa: T201
        print("  ".join(str(line.get(key, "-")) for key in _SHOWN_FIRST))  # noqa: T201
        for key, value in line.items():
            if key in _SHOWN_FIRST or value in ("", None):
                continue
            if isinstance(value, list):
                print(f"    {key}:")  # noqa: T201
                for one in cast("list[object]", value):
                    print(f"      {one}")  # noqa: T201
            else:
                print(f"    {key}: {value}")  # noqa: T201
