"""Reads of the trail: filters, pages and their cursors.

The log is read in windows, each its own short statement, so that a long search does not hold up appends (with
a rollback journal a reader keeps writers out). Entries only ever come at the end, so windows of different
moments still make one consistent answer. Search is by scan.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from healthobs.audit import approval, governance, store
from healthobs.audit.checkpoint import Verifier, open_checkpoint
from healthobs.audit.entry import canonical, decode
from healthobs.audit.governance import APPROVERS, PRUNE, Order
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.records import Page
from healthobs.audit.store import ReadConnection
from healthobs.clock import rfc3339

MAX_LIMIT = 1_000
_WINDOW = 10_000
#: No store has a higher index.
_HIGHEST = 2**63 - 1
#: Filter by name, and where its value is in the body.
_PATHS = {
    "actor": ("actor", "id"),
    "action": ("action",),
    "subject": ("subject",),
    "resource_id": ("resource", "id"),
    "trace_id": ("trace_id",),
}
_LIKE = "body LIKE ? ESCAPE '!'"
_LITERAL = str.maketrans({"!": "!!", "%": "!%", "_": "!_"})


def page(
    connection: ReadConnection,
    *,
    start: datetime | str | None,
    end: datetime | str | None,
    equal: Mapping[str, tuple[str | None, ...]],
    limit: int,
    cursor: str | None,
) -> Page:
    """Return the newest matching entries before `cursor`; `equal` has the values that each filter takes, None for none.

    Raises:
        ValueError: A bad limit, cursor or time; the message names which.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit must be 1 to {MAX_LIMIT}")
    before = _position(cursor)
    wanted = _Filter(
        None if start is None else _time(start, "start"),
        None if end is None else _time(end, "end"),
        {
            name: tuple(value.encode("utf-8", "replace").decode() for value in values if value is not None)
            for name, values in equal.items()
            if any(value is not None for value in values)
        },
    )
    asked = wanted.equal or wanted.start or wanted.end
    size, _ = store.head(connection)
    indices, total = _matching(connection, size, wanted if asked else None, before, limit + 1)
    more = len(indices) > limit
    entries = [_entry(connection, index) for index in indices[:limit]]
    return Page(entries, str(indices[limit - 1]) if more else None, total)


def about(connection: ReadConnection, subjects: Collection[str]) -> list[int]:
    """Return the entries about one of the subjects, by what their bodies say, newest first."""
    size, _ = store.head(connection)
    return _matching(connection, size, _Filter(None, None, {"subject": tuple(subjects)}), None, size)[0]


def _position(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdecimal()) or len(cursor) > 19 or int(cursor) > _HIGHEST:
        raise ValueError("cursor is not one that an earlier page returned")
    return int(cursor)


@dataclass(frozen=True, slots=True)
class _Filter:
    """What a page asks for."""

    start: str | None
    end: str | None
    equal: Mapping[str, tuple[str, ...]]

    def patterns(self) -> list[list[str]]:
        """Return what the text of every match is LIKE, one of each: the database need not hand out the rest."""
        return [
            [f"%{canonical(value).translate(_LITERAL)}%" for value in values]
            for values in self.equal.values()
        ]

    def matches(self, body: object) -> bool:
        """Return whether a body, which somebody may have tampered with, is one that is asked for."""
        try:
            entry = json.loads(cast("str", body))
            time = entry["time"]
            return (
                (self.start is None or self.start <= time)
                and (self.end is None or time < self.end)
                and all(_value(entry, _PATHS[name]) in values for name, values in self.equal.items())
            )
        except (TypeError, ValueError, LookupError):
            return False


def _value(entry: Any, path: tuple[str, ...]) -> object:
    for name in path:
        entry = entry[name]
    return entry


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
    connection: ReadConnection, size: int, wanted: _Filter | None, before: int | None, limit: int
) -> tuple[list[int], int]:
    """Return up to `limit` matching indices below `before`, newest first, and how many match in all."""
    below = size if before is None else min(before, size)
    if wanted is None:
        first = pruned(connection)
        return list(range(below - 1, max(below - limit, first) - 1, -1)), size - first
    patterns = wanted.patterns()
    statement = "SELECT idx, body FROM entry WHERE idx >= ? AND idx < ?"
    for alternatives in patterns:
        statement += f" AND ({' OR '.join([_LIKE] * len(alternatives))})"
    statement += " ORDER BY idx DESC"
    likes = [pattern for alternatives in patterns for pattern in alternatives]
    found: list[int] = []
    total = 0
    top = size
    while top:
        bottom = max(top - _WINDOW, 0)
        rows = connection.execute(statement, (bottom, top, *likes))
        matching = [index for index, body in rows if isinstance(index, int) and wanted.matches(body)]
        total += len(matching)
        found += [index for index in matching if index < below][: limit - len(found)]
        # An entry that somebody filed far behind the others leaves a gap that no walk would come through.
        ((next_one,),) = connection.execute(
            "SELECT max(idx) FROM entry WHERE idx >= 0 AND idx < ?", (bottom,)
        )
        top = next_one + 1 if isinstance(next_one, int) else 0
    return found, total


def pruned(connection: ReadConnection, verifier: Verifier | None = None) -> int:
    """Return how many entries went by good order with the beginning; one that went without leaves a visible hole.

    Args:
        connection: The log.
        verifier: Opens the latest checkpoint, under whose root the order must be; without it the order is looked for among
            the entries that are said to be signed, which is for verification to find.

    Raises:
        NoteError: The latest checkpoint does not verify.
    """
    ((there,),) = connection.execute("SELECT min(idx) FROM entry WHERE idx >= 0")
    log = store.read_log(connection) if isinstance(there, int) and there else None
    if log is None:
        return 0
    found = _orders(connection, 0, lambda order: order.action in (PRUNE, APPROVERS), verifier)
    faults = approval.judge(found, log[0]).faults
    return max(
        (order.below for order in found if order.below <= there and order.index not in faults), default=0
    )


def erased_by(
    connection: ReadConnection, indices: Collection[int], verifier: Verifier | None = None
) -> dict[int, int]:
    """Return those of `indices` whose bodies were ordered to go, and are gone, each with the entry that ordered it.

    Args:
        connection: The log.
        indices: Entries.
        verifier: As for `pruned`.

    Raises:
        NoteError: The latest checkpoint does not verify.
    """
    gone = [
        index
        for index in indices
        if (None,) in connection.execute("SELECT body FROM entry WHERE idx = ?", (index,))
    ]

    def taken(order: Order) -> list[int]:
        ranges = governance.erased([order])
        return [index for index in gone if governance.covers(ranges, index)]

    found = _orders(connection, min(gone), lambda order: bool(taken(order)), verifier) if gone else []
    return {index: order.index for order in found for index in taken(order)}


def _orders(
    connection: ReadConnection, start: int, wanted: Callable[[Order], bool], verifier: Verifier | None
) -> list[Order]:
    """Return the signed orders from `start` on; what is gone must have been read before, so that its order is there."""
    if verifier is None:
        ((size,),) = connection.execute("SELECT max(size) FROM checkpoint WHERE size <= ?", (store.HIGHEST,))
        found = governance.orders(connection, start, size - 1) if isinstance(size, int) and size > 0 else []
        return list(filter(wanted, found))
    _, note = store.head(connection)
    signed = open_checkpoint(note or "", verifier)
    return [
        order
        for order in governance.orders(connection, start, signed.size - 1)
        if wanted(order) and governance.is_signed(connection, order, signed)
    ]


def _entry(connection: ReadConnection, index: int) -> dict[str, Any]:
    rows = connection.execute("SELECT leaf, body FROM entry WHERE idx = ?", (index,))
    leaf, body = rows[0] if rows else (None, None)
    return decoded(index, leaf, body)


def decoded(index: int, leaf: object, body: object) -> dict[str, Any]:
    """Return an entry as pages and exports show it.

    A body that is not the one that was recorded is not shown: its entry has index, hash, ``unreadable`` and
    nulls where every entry has something.
    """
    shown = {"index": index, "hash": leaf.hex() if isinstance(leaf, bytes) else None}
    stored = store.stored_bytes(body)
    said = decode(stored) if stored is not None and leaf_hash(stored) == leaf else None
    if said is not None:
        return {**said, **shown}
    return {"time": None, "action": None, "outcome": None, **shown, "unreadable": True}
