"""`healthobs explain ID`: everything that log files tell of one trace, request or failure.

An error id (in a problem's body, a span event and a log line) leads to its trace, and the trace to every line of
every service that took part, in the order of time.

Limits: it reads JSON lines as `healthobs` writes them; what is no JSON object is skipped and counted. The exit
status is 0 when something was found, 1 when nothing was, 2 when a file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, cast

_IDS = ("error_id", "trace_id", "request_id", "span_id", "exception_fingerprint")
_SHOWN_FIRST = ("timestamp", "service", "level", "event")

Line = dict[str, Any]


def find(lines: Iterable[Line], identifier: str) -> list[Line]:
    """Return the lines that belong to `identifier`, and those of the traces they name, by time.

    Args:
        lines: Decoded log lines.
        identifier: An error, trace, request or span id, or an exception's fingerprint.

    Example:
        >>> lines = [{"trace_id": "a1", "error_id": "e7"}, {"trace_id": "a1"}, {"trace_id": "b2"}]
        >>> find(lines, "e7")
        [{'trace_id': 'a1', 'error_id': 'e7'}, {'trace_id': 'a1'}]
    """
    known = list(lines)
    named = [line for line in known if any(line.get(key) == identifier for key in _IDS)]
    traces = {line["trace_id"] for line in named if line.get("trace_id")}
    found = [line for line in known if line.get("trace_id") in traces or line in named]
    return sorted(found, key=lambda line: str(line.get("timestamp", "")))


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="healthobs explain", description="Print what log files tell of one trace or failure."
    )
    parser.add_argument("id", help="an error id, trace id, request id, span id or fingerprint")
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
    found = find(lines, arguments.id.strip().lower())
    _report(found)
    if skipped:
        print(f"{skipped} lines were no JSON objects and were skipped")  # noqa: T201
    return 0 if found else 1


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


def _report(found: Sequence[Line]) -> None:
    if not found:
        print("no line names that id")  # noqa: T201
        return
    services = list(dict.fromkeys(str(line.get("service", "?")) for line in found))
    traces = list(dict.fromkeys(str(line["trace_id"]) for line in found if line.get("trace_id")))
    print(f"{len(found)} lines of {', '.join(services)}; trace {', '.join(traces) or 'unknown'}")  # noqa: T201
    for line in found:
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
