"""The audit log in one SQLite file, opened so that what SQLite acknowledges is durable.

SQLite 3.7.0 to 3.51.2 have a race in write-ahead logging: with two connections, a checkpoint that overlaps a
commit can lose that commit after it was acknowledged (https://sqlite.org/wal.html, "The WAL-Reset Bug"; fixed
in 3.51.3, 3.50.7 and 3.44.6). Below the fix the rollback journal is used, which has no such race. It is not removed after
a commit, because SQLite does not sync that: a removed journal that a power cut brings back undoes the commit
(https://sqlite.org/pragma.html#pragma_synchronous; `tests/test_audit_power.py`). The log's own is kept, with its header
overwritten: its size stays, so a sync costs less. Where something is taken away it is truncated.

Limits: local disks only: file locks over a network file system are not reliable. Anyone who may write the file
may drop the guards, which verification then reports.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from healthobs.audit.forking import SqliteFile, inode_of
from healthobs.audit.keys import sync_directory
from healthobs.audit.store import FORBIDDEN, Connection, Row, StoreError, described, holds_log
from healthobs.exceptions import AuditError, ConfigurationError

#: What SQLite calls a log that nobody reads before somebody who may write has undone what a killed writer had begun.
CUT_OFF = "SQLITE_READONLY_ROLLBACK"
#: How long a statement waits for another connection's lock.
BUSY_TIMEOUT_MILLIS = 5_000
_POLL_SECONDS = 0.01
#: How long `attempting` waits.
ATTEMPT_MILLIS = 250
_TABLES = {
    "log": """one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL,
    origin TEXT NOT NULL, vkey TEXT NOT NULL)""",
    "entry": """idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL CHECK (length(leaf) = 32),
    body TEXT)""",
    "tile": """level INTEGER NOT NULL, n INTEGER NOT NULL, width INTEGER NOT NULL,
    hashes BLOB NOT NULL CHECK (length(hashes) = 32 * width), PRIMARY KEY (level, n, width))""",
    "checkpoint": "size INTEGER PRIMARY KEY, note TEXT NOT NULL)",
    "sequenced": "id TEXT PRIMARY KEY, idx INTEGER NOT NULL) WITHOUT ROWID",
}
#: What SQLite adds to the schema by itself: the key of tiles, and what ANALYZE writes, which orders reads and no more.
_OF_SQLITE = (
    ("index", "sqlite_autoindex_tile_1", "tile", None),
    ("table", "sqlite_stat1", "sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"),
    ("table", "sqlite_stat4", "sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"),
)


def table_statements(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> dict[str, str]:
    """Return the statements that make the tables, by name; without STRICT on a SQLite that has it not (before 3.37)."""
    strict = version >= (3, 37)
    return {
        name: f"CREATE TABLE {name} ({rest}{(',' if rest.endswith('ROWID') else '') + ' STRICT' if strict else ''}"
        for name, rest in _TABLES.items()
    }


def _refuse(name: str, event: str, what: str) -> str:
    return f"CREATE TRIGGER {name} BEFORE {event} BEGIN SELECT RAISE(ABORT, 'audit: {what}'); END"


#: By table, when a row that is inserted would take another's place.
_REPLACES = {
    "entry": "idx = new.idx",
    "checkpoint": "size = new.size",
    "tile": "level = new.level AND n = new.n AND width = new.width",
    "sequenced": "id = new.id",
    "log": "one = new.one",
}
#: Guards by name. REPLACE needs its own: it deletes without firing the DELETE trigger.
GUARDS = {
    name: _refuse(name, event, what)
    for table, same in _REPLACES.items()
    for name, event, what in (
        (f"{table}_no_update", f"UPDATE ON {table}", "rows are never changed"),
        (f"{table}_no_delete", f"DELETE ON {table}", "rows are never deleted"),
        (
            f"{table}_no_replace",
            f"INSERT ON {table} WHEN EXISTS (SELECT 1 FROM {table} WHERE {same})",  # noqa: S608 - names of ours
            "rows are never replaced",
        ),
    )
} | {
    "entry_no_gap": _refuse(
        "entry_no_gap",
        "INSERT ON entry WHEN new.idx IS NOT (SELECT coalesce(max(idx), -1) + 1 FROM entry)",
        "entries are numbered without gaps",
    )
}
#: Those that erasing and pruning lift.
_LIFTED = ("entry_no_update", "entry_no_delete", "checkpoint_no_delete")


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Return whether this SQLite has the fix of the WAL-reset race.

    Example:
        >>> wal_is_safe((3, 51, 2)), wal_is_safe((3, 51, 3)), wal_is_safe((3, 44, 6)), wal_is_safe((3, 45, 0))
        (False, True, True, False)
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def forget(connection: sqlite3.Connection) -> None:
    """Have what was taken away overwritten: in WAL mode it is still in the database, and in the log beside it.

    Raises:
        AuditError: Somebody reads what was before for longer than the busy timeout; it is to be called again then.
    """
    ((busy, *_),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # else does nothing
    if busy:
        raise AuditError(
            "it is erased, but stays in the log beside the database while somebody reads what was before;"
            " end that reader and do it again"
        )


def connect_pragmas(
    version: tuple[int, ...] = sqlite3.sqlite_version_info, *, journal: str = "TRUNCATE"
) -> tuple[str, ...]:
    """Return the statements to run on every new connection of a durable database, in this order.

    Args:
        version: Version of SQLite, default the one that is linked.
        journal: What becomes of a rollback journal after the commit: ``TRUNCATE``, or ``PERSIST``, with which it goes on
            holding what was before, and so what was taken away.

    Example:
        >>> connect_pragmas((3, 40, 1))[1:3]
        ('PRAGMA journal_mode = TRUNCATE', 'PRAGMA synchronous = FULL')
    """
    return (
        f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MILLIS}",  # first: changing the journal mode may have to wait
        f"PRAGMA journal_mode = {'WAL' if wal_is_safe(version) else journal}",
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    )


def set_up(
    connection: sqlite3.Connection, *, journal: str = "TRUNCATE", wait_seconds: float | None = None
) -> None:
    """Run `connect_pragmas`.

    SQLite does not wait for whoever writes to change to WAL, but fails at once: that is tried again as long as anything else waits.

    Args:
        connection: A new one.
        journal: As there.
        wait_seconds: The busy timeout that the connection has; default that of `connect_pragmas`.

    Raises:
        sqlite3.Error: It cannot be done.
    """
    timeout, *pragmas = connect_pragmas(journal=journal)
    if wait_seconds is None:
        connection.execute(timeout).close()
    deadline = time.monotonic() + (BUSY_TIMEOUT_MILLIS / 1000 if wait_seconds is None else wait_seconds)
    for pragma in pragmas:
        while True:
            try:
                connection.execute(pragma).close()
                break
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)


def make_file(path: Path) -> None:
    """Make an empty file that its owner only can read; one that is there is not opened, see `healthobs.files`.

    Raises:
        OSError: It cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _text(raw: bytes) -> str | bytes:
    """Read text as text, and what is none (somebody tampered with it) as it is."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _store_error(exc: Exception) -> StoreError:
    code = getattr(exc, "sqlite_errorname", None) or getattr(exc, "strerror", None) or type(exc).__name__
    busy = code.startswith("SQLITE_BUSY")
    return StoreError(code, refused=isinstance(exc, sqlite3.IntegrityError), busy=busy)


class SqliteStore:
    """A log in the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self.name: str = str(path.absolute())
        self._path = path

    def connect(self, *, read_only: bool = False, live: bool = False) -> SqliteConnection:
        """Open the file, which must exist.

        Raises:
            StoreError: It cannot be opened.
        """
        try:
            return SqliteConnection(self._path, read_only=read_only, live=live)
        except (sqlite3.Error, OSError) as exc:
            raise _store_error(exc) from None

    @contextmanager
    def initialising(self) -> Generator[Connection]:
        """Make the file, readable by its owner only, and the tables in it where they are missing.

        Raises:
            ConfigurationError: The file cannot be made there.
            StoreError: It cannot be used.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_file(self._path)
            sync_directory(self._path.parent)
        except OSError as exc:
            reason = exc.strerror or type(exc).__name__
            raise ConfigurationError(f"the audit database file cannot be created ({reason})") from None
        with _lock_file(self._path) as lock_file:  # the change of the journal mode fails rather than waits
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            connection = self.connect()
        with contextlib.closing(connection), connection.writing():
            if not holds_log(connection):
                for statement in (*table_statements().values(), *GUARDS.values()):
                    connection.execute(statement)
            yield connection


@contextmanager
def _lock_file(path: Path) -> Generator[int]:
    try:
        descriptor = _open_lock(path)
    except OSError as exc:
        raise _store_error(exc) from None
    try:
        yield descriptor
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor, too
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Return a descriptor of the side file whose `flock` orders the writers of all processes."""
    return os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


class SqliteConnection:
    """A connection to a log's file; see `healthobs.audit.store.Connection`.

    Between processes a lock on a side file orders the writers (fair, unlike SQLite's own busy handler, which
    backs off); BEGIN IMMEDIATE excludes everybody else.
    """

    def __init__(self, path: Path, *, read_only: bool, live: bool) -> None:
        self._path = path
        self._name = str(path)
        self._lock: int | None = None
        self._inode = inode_of(self._name)
        options = "mode=ro" if read_only and not live else "mode=rw"
        if read_only and not live and _is_resting_wal(path):
            options += "&immutable=1"
        self._connection = SqliteFile(path, options)
        self._connection.text_factory = _text
        try:
            # One that is live undoes what a killed writer had begun, as SQLite does when it may write.
            if read_only:
                self._connection.execute("PRAGMA query_only = ON")
            else:
                set_up(self._connection, journal="PERSIST")
        except BaseException:
            self._connection.close()
            raise

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return its rows."""
        try:
            return self._connection.execute(statement, tuple(parameters)).fetchall()
        except (sqlite3.Error, OSError, OverflowError) as exc:  # OverflowError: a number of more than 64 bits
            raise _store_error(exc) from None

    def insert(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        try:
            self._connection.executemany(statement, rows)
        except (sqlite3.Error, OSError, OverflowError) as exc:
            raise _store_error(exc) from None

    @contextmanager
    def writing(self) -> Generator[None]:
        """Take the lock on the side file, then SQLite's own, and commit at the end."""
        try:
            lock = self._lock = self._lock or _open_lock(self._path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as exc:
            raise _store_error(exc) from None
        try:
            self.execute("BEGIN IMMEDIATE")  # `_transaction` written out: every batch comes through here
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    @contextmanager
    def amending(self) -> Generator[None]:
        """Drop guards of entries and checkpoints and make them again, in one transaction: nobody sees the log without."""
        with self.writing():
            self.execute("PRAGMA secure_delete = ON")
            self.execute("PRAGMA journal_size_limit = 0")  # the journal holds what was before, too
            for name in _LIFTED:
                self.execute(f"DROP TRIGGER IF EXISTS {name}")
            yield
            for name in _LIFTED:
                self.execute(GUARDS[name])
        try:
            forget(self._connection)
        except sqlite3.Error as exc:
            raise _store_error(exc) from None

    @contextmanager
    def attempting(self) -> Generator[None]:
        """Take SQLite's own lock only, without a long wait, and roll back at the end."""
        self.execute(f"PRAGMA busy_timeout = {ATTEMPT_MILLIS}")
        with self._transaction("BEGIN IMMEDIATE", "ROLLBACK"):
            yield

    @contextmanager
    def reading(self) -> Generator[None]:
        """Read from one snapshot."""
        with self._transaction("BEGIN", "COMMIT"):
            yield

    @contextmanager
    def _transaction(self, begin: str, end: str) -> Generator[None]:
        self.execute(begin)
        try:
            yield
            self.execute(end)
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(StoreError):
                self.execute("ROLLBACK")

    def tables(self) -> set[str]:
        """Return the names of the tables that are there."""
        return {name for kind, name, _, _ in self._schema() if kind == "table"}

    def damage(self) -> str | None:
        """Return whether SQLite's own check finds damage."""
        found = self.execute("PRAGMA integrity_check(10)")
        return None if found == [("ok",)] else f"{len(found)} faults in its pages or indexes"

    def missing_guards(self) -> tuple[str, ...]:
        """Return the names of guards that are gone or were altered."""
        present = self._defined("trigger")
        return tuple(name for name, statement in GUARDS.items() if present.get(name) != statement)

    def altered_tables(self) -> tuple[str, ...]:
        """Return the names of tables that are gone, or whose columns, types or constraints are not those that were made.

        A log that a SQLite without STRICT made has none that is; where one table is, all must be.
        """
        found = self._defined("table")
        present = {name: _normal(found.get(name)) for name in _TABLES}
        strict = any(text.endswith(" STRICT") for text in present.values())
        made = table_statements((3, 37) if strict else (3, 36))
        return tuple(name for name, statement in made.items() if present[name] != _normal(statement))

    def foreign(self) -> tuple[str, ...]:
        """Return what the schema has beyond the tables, the guards and what SQLite itself adds, compared case and all."""
        own = {*(("table", name) for name in _TABLES), *(("trigger", name) for name in GUARDS)}
        return tuple(
            described(row[0], row[1])
            for row in self._schema()
            if row[:2] not in own and row not in _OF_SQLITE
        )

    def _schema(self) -> list[Row]:
        """Return kind, name, table and text of all that there is, and of the rows themselves: an index over them may lie."""
        return self.execute("SELECT type, name, tbl_name, sql FROM sqlite_master NOT INDEXED")

    def _defined(self, kind: str) -> dict[object, object]:
        """Return the texts of what is of one kind, by name; None for what is there twice, or filed under another table."""
        found: dict[object, object] = {}
        for other, name, table, text in self._schema():
            if other == kind:
                once = name not in found and table == str(name).partition("_")[0]
                found[name] = text if once else None
        return found

    @property
    def forbidden(self) -> Mapping[str, str]:
        """Statements that must be refused, by name."""
        replace = (
            "REPLACE INTO entry (idx, leaf, body) SELECT idx, leaf, NULL FROM entry ORDER BY idx DESC LIMIT 1"
        )
        return {**FORBIDDEN, "REPLACE": replace}

    def usable(self) -> bool:
        """Return whether the file that is open still is the one under its name."""
        try:
            return inode_of(self._name) == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Close the database and the lock file."""
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)  # gives the lock back, too
            self._lock = None


def _normal(statement: object) -> str:
    """Return a statement with one space between any two words and signs, however it was laid out.

    Only what SQLite itself skips is layout: of PRIMARY KEY with another blank of Unicode in it, it makes the name of a type.
    """
    if not isinstance(statement, str):
        return ""
    return " ".join(re.findall(r"[A-Za-z0-9_]+|[^ \t\n\f\r]", statement))


def is_wal(path: Path) -> bool:
    """Return whether the file says that it is in WAL mode (https://sqlite.org/fileformat.html §1.3.3)."""
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def _is_resting_wal(path: Path) -> bool:
    """Return whether this is a copy in WAL mode at rest, for which SQLite would make files beside it."""
    beside = (path.with_name(path.name + suffix) for suffix in ("-wal", "-journal"))
    return not any(file.exists() for file in beside) and is_wal(path)


def path_of(url: str, whose: str = "the audit database") -> Path:
    """Return the file that ``sqlite:///PATH`` names (an absolute path has four slashes).

    Args:
        url: It.
        whose: What the error says before ``URL``.

    Raises:
        ConfigurationError: Another scheme, or no file.

    Example:
        >>> path_of("sqlite:////var/lib/phi.audit.db")
        PosixPath('/var/lib/phi.audit.db')
    """
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or path in ("", ":memory:"):
        raise ConfigurationError(f"{whose} URL must be sqlite:///PATH and name a file, or postgresql://...")
    return Path(path)
