"""How SQLite is opened so that what it acknowledges is durable.

SQLite 3.7.0 to 3.51.2 have a race in write-ahead logging: with two connections, a checkpoint that overlaps a
commit can lose that commit after it was acknowledged (https://sqlite.org/wal.html, "The WAL-Reset Bug"; fixed
in 3.51.3, 3.50.7 and 3.44.6). Below the fix the rollback journal is used, which has no such race.

Limits: local disks only: file locks over a network file system are not reliable. With a rollback journal and
`synchronous=FULL` the directory is not synced after the journal is removed; a power cut right after a commit
can bring the journal, and with it the state before that commit, back (https://sqlite.org/pragma.html,
`synchronous`). A killed process loses nothing in either mode.
"""

from __future__ import annotations

import sqlite3

#: How long a statement waits for another connection's lock.
BUSY_TIMEOUT_MILLIS = 5_000


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Return whether this SQLite has the fix of the WAL-reset race.

    Example:
        >>> wal_is_safe((3, 51, 2)), wal_is_safe((3, 51, 3)), wal_is_safe((3, 44, 6)), wal_is_safe((3, 45, 0))
        (False, True, True, False)
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def connect_pragmas(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> tuple[str, ...]:
    """Return the statements to run on every new connection of a durable database, in this order.

    Args:
        version: Version of SQLite, default the one that is linked.

    Example:
        >>> connect_pragmas((3, 40, 1))[1:3]
        ('PRAGMA journal_mode = DELETE', 'PRAGMA synchronous = FULL')
    """
    return (
        f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MILLIS}",  # first: changing the journal mode may have to wait
        f"PRAGMA journal_mode = {'WAL' if wal_is_safe(version) else 'DELETE'}",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    )
