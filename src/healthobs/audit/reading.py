"""Reads of the trail: filters, pages and their cursors.

The log is read in windows, each its own short statement, so that a long search does not hold up appends (with
a rollback journal a reader keeps writers out). Entries only ever come at the end, so windows of different
moments still make one consistent answer. Search is by scan: about a quarter of a million entries a second.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from healthobs.audit import store
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.records import Page
from healthobs.clock import rfc3339

MAX_LIMIT = 1_000
_WINDOW = 10_000
#: Filter by name, and where its value is in the body.
_PATHS = {
    "actor": "$.actor.id",
    "action": "$.action",
    "subject": "$.subject",
    "resource_id": "$.resource.id",
    "trace_id": "$.trace_id",
}


def page(
    connection: sqlite3.Connection,
    *,
    start: datetime | str | None,
    end: datetime | str | None,
    equal: Mapping[str, str | None],
    limit: int,
    cursor: str | None,
) -> Page:
    """Return the newest matching entries before `cursor`.

    Raises:
        ValueError: A bad limit, cursor or time; the message names which.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be 1 to {MAX_LIMIT}")
    before = _position(cursor)
    condition, values = _condition(start, end, equal)
    size, _ = store.head(connection)
    indices, total = _matching(connection, size, condition, values, before, limit + 1)
    more = len(indices) > limit
    entries = [_entry(connection, index) for index in indices[:limit]]
    return Page(entries, str(indices[limit - 1]) if more else None, total)


def _position(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal()) or len(cursor) > 18:
        raise ValueError("cursor is not one that an earlier page returned")
    return int(cursor)


def _condition(
    start: datetime | str | None, end: datetime | str | None, equal: Mapping[str, str | None]
) -> tuple[str, list[str]]:
    """Return the SQL condition on a valid body, and its parameters; both empty when everything matches."""
    parts: list[str] = []
    values: list[str] = []
    for operator, moment, name in ((">=", start, "start"), ("<", end, "end")):
        if moment is not None:
            parts.append(f"json_extract(body, '$.time') {operator} ?")
            values.append(_time(moment, name))
    for name, value in equal.items():
        if value is not None:
            parts.append(f"json_extract(body, '{_PATHS[name]}') = ?")
            values.append(value.encode("utf-8", "replace").decode())
    return " AND ".join(parts), values


def _time(moment: datetime | str, name: str) -> str:
    """Return `moment` as entries write it, so that text order is time order; without a zone it is UTC."""
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            raise ValueError(f"{name} must be an RFC 3339 time") from None
    try:
        return rfc3339(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except OverflowError:  # the first or last hours that there are, in a zone where they are none in UTC
        return "0001-01-01T00:00:00.000000Z" if moment.year == 1 else "9999-12-31T23:59:59.999999Z"


def _matching(
    connection: sqlite3.Connection,
    size: int,
    condition: str,
    values: list[str],
    before: int | None,
    wanted: int,
) -> tuple[list[int], int]:
    """Return up to `wanted` matching indices below `before`, newest first, and how many match in all."""
    below = size if before is None else min(before, size)
    if not condition:
        return list(range(below - 1, max(below - 1 - wanted, -1), -1)), size
    # CASE, because AND may evaluate both sides, and a tampered body need not be JSON.
    statement = (
        "SELECT idx FROM entry WHERE idx >= ? AND idx < ?"  # noqa: S608  # names come from _PATHS, values are bound
        f" AND CASE WHEN json_valid(body) THEN {condition} ELSE 0 END ORDER BY idx DESC"
    )
    found: list[int] = []
    total = 0
    for top in range(size, 0, -_WINDOW):
        rows = connection.execute(statement, (max(top - _WINDOW, 0), top, *values)).fetchall()
        total += len(rows)
        if len(found) < wanted:
            found += [index for (index,) in rows if index < below][: wanted - len(found)]
    return found, total


def _entry(connection: sqlite3.Connection, index: int) -> dict[str, Any]:
    row = connection.execute("SELECT leaf, CAST(body AS BLOB) FROM entry WHERE idx = ?", (index,)).fetchone()
    leaf, body = (None, None) if row is None else row
    return decoded(index, leaf, body)


def decoded(index: int, leaf: object, body: object) -> dict[str, Any]:
    """Return an entry as pages and exports show it.

    A body that is not the one that was recorded is not shown: its entry has index, hash, ``unreadable`` and
    nulls where every entry has something.
    """
    shown = {"index": index, "hash": leaf.hex() if isinstance(leaf, bytes) else None}
    if isinstance(body, bytes) and leaf_hash(body) == leaf:
        return {**cast("dict[str, Any]", json.loads(body)), **shown}
    return {"time": None, "action": None, "outcome": None, **shown, "unreadable": True}
