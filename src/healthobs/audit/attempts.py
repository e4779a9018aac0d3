"""Attempts on a log that are always undone: could an entry be added now, and is every change refused?

45 CFR 164.312(c)(1), PCI DSS 4.0 requirement 10.3.2 (trails are protected from changes), shown rather than said.

Limits: a store that nobody can write to says nothing about its guards.
"""

from __future__ import annotations

from healthobs.audit import store
from healthobs.audit.store import Connection, StoreError


def append(connection: Connection) -> tuple[int, str | None]:
    """Add an entry and undo it; return the number of entries and the latest checkpoint's note, as `store.head` does."""
    with connection.attempting():
        return _append(connection)


def accepted_changes(connection: Connection) -> tuple[str, ...]:
    """Try to change, delete, replace and misnumber an entry, and undo it; return what was not refused."""
    accepted: list[str] = []
    with connection.attempting():
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
