"""Attempts on a log that are always undone: could an entry be added now, and is every change refused?

45 CFR 164.312(c)(1), PCI DSS 4.0 requirement 10.3.2 (trails are protected from changes), shown rather than said.

Limits: a store that nobody can write to says nothing about its guards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from healthobs.audit import store
from healthobs.audit.store import Connection, StoreError

_T = TypeVar("_T")
#: How often the lock is asked for before nothing can be said of the guards: others may write all the time.
_TRIES = 8


def append(connection: Connection) -> tuple[int, str | None]:
    """Add an entry and undo it; return the number of entries and the latest checkpoint's note, as `store.head` does.

    Where others hold the lock all the time and the log grows, it takes entries.
    """
    try:
        return _undone(connection, _append)
    except StoreError as exc:
        if not exc.busy:
            raise
    before, _ = store.head(connection)
    try:
        return _undone(connection, _append)
    except StoreError as again:
        after = store.head(connection)
        if not again.busy or after[0] <= before:
            raise
        return after


def accepted_changes(connection: Connection) -> tuple[str, ...]:
    """Try to change, delete, replace and misnumber an entry, and undo it; return what was not refused."""
    for _ in range(_TRIES - 1):
        try:
            return _undone(connection, _changes)
        except StoreError as exc:
            if not exc.busy:
                raise
    return _undone(connection, _changes)


def _undone(connection: Connection, attempt: Callable[[Connection], _T]) -> _T:
    with connection.attempting():
        return attempt(connection)


def _changes(connection: Connection) -> tuple[str, ...]:
    accepted: list[str] = []
    _append(connection)
    for name, statement in connection.forbidden.items():
        connection.execute("SAVEPOINT attempt")
        try:
            connection.execute(statement)
            accepted.append(name)
        except StoreError as exc:
            if not exc.refused:
                raise
        connection.execute("ROLLBACK TO attempt")
    return tuple(accepted)


def _append(connection: Connection) -> tuple[int, str | None]:
    size, note = store.head(connection)
    connection.execute("INSERT INTO entry (idx, leaf, body) VALUES (?, ?, '{}')", (size, bytes(32)))
    return size, note
