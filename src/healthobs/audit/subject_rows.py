"""Where the rows of a map of subjects are kept: what any place must offer, and the SQLite file.

A row is a token, a keyed hash by which it is found, and the identifier sealed; whoever keeps rows can read none.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from healthobs.audit import keys
from healthobs.audit.forking import ForkGate, SqliteFile
from healthobs.audit.sqlite import BUSY_TIMEOUT_MILLIS, forget, make_file, path_of, set_up
from healthobs.exceptions import AuditError, ConfigurationError

#: Token, hash and sealed identifier.
Row = tuple[str, bytes, bytes]
#: Whose row: the hash of an identifier, or the token that it may be itself.
About = tuple[bytes, str]
#: Takes the key, having tried it on these (a token, what was sealed for it); returns what was sealed for `MARK` with it.
Unlock = Callable[[list[tuple[str, bytes]]], bytes]
#: In place of a token, under what shows which key a map has.
MARK = "key"
#: Rows that an opening tries the key on; one that opens is enough, because any may have been altered.
TRIED = 20
WAIT_SECONDS = BUSY_TIMEOUT_MILLIS / 1_000
_TABLE = (
    "CREATE TABLE IF NOT EXISTS subject (token TEXT PRIMARY KEY, lookup BLOB NOT NULL UNIQUE,"
    " sealed BLOB NOT NULL)"
)
_PRESENT = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'subject'"
_ABOUT = "FROM subject WHERE lookup = ? OR token = ?"


class Rows(Protocol):
    """The rows of one map. Safe in threads and forks; what fails is an `AuditError` without any value."""

    def open(self, unlock: Unlock) -> None:
        """Make what is missing, and have the key taken; with no rows yet it may be made."""
        ...

    def token(self, about: About, make: Callable[[], Row] | None, wait_seconds: float) -> str | None:
        """Return the token of a row, durable by now; where there is none, of the row that `make` gives."""
        ...

    def sealed(self, token: str) -> bytes | None:
        """Return the sealed identifier of a token."""
        ...

    def erase(self, about: About) -> bool:
        """Take a row away, durably and as far as can be unreadably; return whether there was one."""
        ...

    def check(self) -> None:
        """Return when a row could be added now, as far as can be told without adding one."""
        ...

    def close(self) -> None:
        """Close what is open in this process; the next call opens it again."""
        ...


def rows_of(place: Path | str, key_file: Path | None) -> tuple[Rows, Path]:
    """Return the rows in a file, or where a URL says (``sqlite:///PATH`` or ``postgresql://...``), and their key file.

    Raises:
        ConfigurationError: The URL is neither, or what it needs is not installed, or no key is named for PostgreSQL.
    """
    if not isinstance(place, str) or not place.startswith(("postgresql://", "postgresql+psycopg://")):
        path = path_of(place, "the subject map's") if isinstance(place, str) else place
        key_file = key_file or path.with_name(f"{path.name}.key")
        return SqliteRows(path, key_file), key_file
    try:
        from healthobs.audit.postgres_subjects import PostgresRows
    except ImportError:
        raise ConfigurationError(
            "a subject map in PostgreSQL needs psycopg; install healthobs[postgres]"
        ) from None
    rows = PostgresRows(place)
    if key_file is None:
        raise ConfigurationError(
            "a subject map in PostgreSQL needs audit_subjects_key_file: name the key that its replicas share"
        )
    return rows, key_file


class SqliteRows:
    """Rows in the file `path`; beside `key_file` stands that they were begun (`healthobs.audit.keys.note_begun`)."""

    def __init__(self, path: Path, key_file: Path) -> None:
        self._path = path
        self._key_file = key_file
        #: Its own: within a trail's, a fork that waits at this one first would keep both waiting.
        self._gate = ForkGate(lambda: None)

    def open(self, unlock: Unlock) -> None:
        """Make file and table where they are missing, but not in place of those that the key began."""
        name = str(self._path.absolute())
        # Asked before anybody looks for the table: another process may make it, and then write that down, meanwhile.
        begun = keys.begun(self._key_file, name) is not None
        with self._connected(make=True, begun=begun) as connection:
            if begun and not connection.execute(_PRESENT).fetchone():
                raise keys.gone(self._key_file, "subject map")
            _begin(connection)
            connection.execute(_TABLE)
            connection.execute("COMMIT")
            rows = connection.execute("SELECT token, sealed FROM subject LIMIT ?", (TRIED,)).fetchall()
        unlock(rows)
        keys.note_begun(self._key_file, name, keys.MAP)

    def token(self, about: About, make: Callable[[], Row] | None, wait_seconds: float) -> str | None:
        """Look first: only who adds a row waits for others that write."""
        with self._connected(wait_seconds) as connection:
            token = _known(connection, about)
            if token is None and make is not None:
                _begin(connection, wait_seconds)
                token = _known(connection, about)
                if token is None:
                    row = make()
                    connection.execute("INSERT INTO subject VALUES (?, ?, ?)", row)
                    token = row[0]
                connection.execute("COMMIT")
            return token

    def sealed(self, token: str) -> bytes | None:
        """Return the sealed identifier of a token."""
        with self._connected() as connection:
            row = connection.execute("SELECT sealed FROM subject WHERE token = ?", (token,)).fetchone()
        return None if row is None else row[0]

    def erase(self, about: About) -> bool:
        """Delete a row and have it overwritten."""
        with self._connected() as connection:
            _begin(connection)
            erased = connection.execute(f"DELETE {_ABOUT}", about).rowcount
            connection.execute("COMMIT")
            forget(connection)
            return erased > 0

    def check(self) -> None:
        """Take SQLite's lock, and look."""
        with self._connected() as connection:
            _begin(connection)
            connection.execute("SELECT 1 FROM subject LIMIT 1")

    def close(self) -> None:
        """Do nothing: each task has a connection of its own."""

    @contextmanager
    def _connected(
        self, wait_seconds: float = WAIT_SECONDS, *, make: bool = False, begun: bool = False
    ) -> Generator[sqlite3.Connection]:
        """Give a connection for one task, with no fork meanwhile; what it leaves uncommitted is rolled back.

        The file is made by an opening alone: in place of one that vanished an empty one would give second tokens.
        """
        try:
            if make and not self._path.exists():
                if begun:
                    raise keys.gone(self._key_file, "subject map")
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                make_file(self._path)
                keys.sync_directory(self._path.parent)
            with (
                self._gate,
                contextlib.closing(SqliteFile(self._path, wait_seconds=wait_seconds)) as connection,
            ):
                yield connection
        except (sqlite3.Error, OSError) as exc:
            name = getattr(exc, "sqlite_errorname", None) or type(exc).__name__
            raise AuditError(f"the subject map cannot be used ({name}); check its file and disk") from None


def _begin(connection: sqlite3.Connection, wait_seconds: float = WAIT_SECONDS) -> None:
    """Begin to write durably; who only reads, as most do, need not set all that."""
    set_up(connection, wait_seconds=wait_seconds)
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute("BEGIN IMMEDIATE")


def _known(connection: sqlite3.Connection, about: About) -> str | None:
    row = connection.execute(f"SELECT token {_ABOUT}", about).fetchone()
    return None if row is None else str(row[0])
