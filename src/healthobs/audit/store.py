"""The audit log in one SQLite file: schema, guards, and reads of leaves and kept nodes.

`entry` holds the log, `checkpoint` every signed root, `tile` the hash of each complete run of 256**level
leaves (C2SP tlog-tiles), `log` who this is. Triggers refuse changes by accident; only the Merkle root and a
copy of it elsewhere shows changes by intent (45 CFR 164.312(c)(1), PCI DSS 4.0 requirement 10.3).

Limits: a local file; anyone who may write the file may drop the triggers, which verification then reports.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from healthobs.audit import merkle
from healthobs.audit.keys import sync_directory
from healthobs.audit.sqlite import connect_pragmas
from healthobs.exceptions import AuditError, AuditTamperedError, ConfigurationError

#: Format of the file (`log.format`).
FORMAT = 1
_STRICT = " STRICT" if sqlite3.sqlite_version_info >= (3, 37) else ""
_TABLES = (
    f"""CREATE TABLE log (one INTEGER PRIMARY KEY CHECK (one = 1), format INTEGER NOT NULL,
    origin TEXT NOT NULL, vkey TEXT NOT NULL){_STRICT}""",
    f"""CREATE TABLE entry (idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL CHECK (length(leaf) = 32),
    body TEXT){_STRICT}""",
    f"""CREATE TABLE tile (level INTEGER NOT NULL, n INTEGER NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32), PRIMARY KEY (level, n)) WITHOUT ROWID{_STRICT and ", STRICT"}""",
    f"CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, note TEXT NOT NULL){_STRICT}",
)


def _refuse(name: str, event: str, what: str) -> str:
    return f"CREATE TRIGGER {name} BEFORE {event} BEGIN SELECT RAISE(ABORT, 'audit: {what}'); END"


#: Guards by name. REPLACE needs its own: it deletes without firing the DELETE trigger.
GUARDS = {
    "entry_no_update": _refuse("entry_no_update", "UPDATE ON entry", "entries are never changed"),
    "entry_no_delete": _refuse("entry_no_delete", "DELETE ON entry", "entries are never deleted"),
    "entry_no_replace": _refuse(
        "entry_no_replace",
        "INSERT ON entry WHEN EXISTS (SELECT 1 FROM entry WHERE idx = new.idx)",
        "entries are never replaced",
    ),
    "entry_no_gap": _refuse(
        "entry_no_gap",
        "INSERT ON entry WHEN new.idx IS NOT (SELECT coalesce(max(idx), -1) + 1 FROM entry)",
        "entries are numbered without gaps",
    ),
    "checkpoint_no_update": _refuse(
        "checkpoint_no_update", "UPDATE ON checkpoint", "checkpoints are never changed"
    ),
    "checkpoint_no_delete": _refuse(
        "checkpoint_no_delete", "DELETE ON checkpoint", "checkpoints are never deleted"
    ),
    "checkpoint_no_replace": _refuse(
        "checkpoint_no_replace",
        "INSERT ON checkpoint WHEN EXISTS (SELECT 1 FROM checkpoint WHERE size = new.size)",
        "checkpoints are never replaced",
    ),
}

_LEAVES_AT_ONCE = 256


def path_of(url: str) -> Path:
    """Return the file that ``sqlite:///PATH`` names (an absolute path has four slashes).

    Raises:
        ConfigurationError: Another scheme, or no file.

    Example:
        >>> path_of("sqlite:////var/lib/phi.audit.db")
        PosixPath('/var/lib/phi.audit.db')
    """
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite" or path in ("", ":memory:"):
        raise ConfigurationError("the audit database URL must be sqlite:///PATH and name a file")
    return Path(path)


def create_file(path: Path) -> None:
    """Make an empty database file that only its owner can read, unless there is one.

    Raises:
        ConfigurationError: The file cannot be made there.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        raise ConfigurationError(f"the audit database file cannot be created ({reason})") from None


def open_lock(path: Path) -> int:
    """Return a descriptor of the side file whose `flock` orders the writers of all processes."""
    return os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file for writing; it must exist. Transactions are begun by hand, threads kept apart by the caller."""
    uri = f"{path.absolute().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        for pragma in connect_pragmas():
            connection.execute(pragma)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open the file so that nothing in or beside it is changed.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    uri = f"{path.absolute().as_uri()}?mode=ro"
    if not any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-journal")):
        with path.open("rb") as file:
            if (
                file.read(20)[18:] == b"\x02\x02"
            ):  # a resting copy in WAL mode would need files made beside it
                uri += "&immutable=1"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def create_schema(connection: sqlite3.Connection, origin: str, vkey: str, note: str) -> None:
    """Make tables, guards and the checkpoint of the empty log, inside the caller's transaction."""
    for statement in (*_TABLES, *GUARDS.values()):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO log (one, format, origin, vkey) VALUES (1, ?, ?, ?)", (FORMAT, origin, vkey)
    )
    connection.execute("INSERT INTO checkpoint (size, note) VALUES (0, ?)", (note,))


def read_log(connection: sqlite3.Connection) -> tuple[str, str] | None:
    """Return origin and vkey of the log in this database; None when there is none yet.

    Raises:
        AuditError: The database belongs to something else, or to a newer release.
    """
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return None
    if "log" not in tables:
        raise AuditError("the file is no audit trail of healthobs; choose a file of its own")
    row = connection.execute("SELECT format, origin, vkey FROM log").fetchone()
    if row is None or row[0] != FORMAT or not isinstance(row[1], str) or not isinstance(row[2], str):
        raise AuditError("the audit trail has a format that this release cannot read; use a newer one")
    return row[1], row[2]


def head(connection: sqlite3.Connection) -> tuple[int, str | None]:
    """Return the number of entries and the latest checkpoint's note."""
    (top,) = connection.execute("SELECT max(idx) FROM entry").fetchone()
    row = connection.execute("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
    return (0 if top is None else top + 1), (None if row is None else row[0])


def leaves(connection: sqlite3.Connection, start: int, end: int) -> list[bytes]:
    """Return the leaves [start, end).

    Raises:
        AuditTamperedError: One of them is missing.
    """
    rows = connection.execute(
        "SELECT idx, leaf FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end)
    ).fetchall()
    for expected, (index, _) in enumerate(rows, start):
        if index != expected:
            raise AuditTamperedError("the entry is missing", index=expected)
    if len(rows) != end - start:
        raise AuditTamperedError("the entry is missing", index=start + len(rows))
    return [leaf for _, leaf in rows]


def subtree(connection: sqlite3.Connection, start: int, end: int) -> bytes:
    """Return the hash over the perfect aligned subtree [start, end), from kept nodes where there are any."""
    size = end - start
    height = size.bit_length() - 1
    if height and height % merkle.TILE_HEIGHT == 0:
        row = connection.execute(
            "SELECT hash FROM tile WHERE level = ? AND n = ?", (height // merkle.TILE_HEIGHT, start >> height)
        ).fetchone()
        if row is not None:
            return bytes(row[0])
    if size <= _LEAVES_AT_ONCE:
        return merkle.root_of(leaves(connection, start, end))
    middle = start + size // 2
    return merkle.node_hash(subtree(connection, start, middle), subtree(connection, middle, end))


def load_range(connection: sqlite3.Connection, size: int) -> merkle.CompactRange:
    """Return the right edge of the tree of the first `size` entries."""
    return merkle.CompactRange(
        size, [subtree(connection, start, end) for start, end in merkle.peak_bounds(size)]
    )


def insert(
    connection: sqlite3.Connection,
    rows: Iterable[tuple[int, bytes, str]],
    tiles: Iterable[tuple[int, int, bytes]],
    size: int,
    note: str,
) -> None:
    """Add entries, completed nodes and the checkpoint over all, inside the caller's transaction."""
    connection.executemany("INSERT INTO entry (idx, leaf, body) VALUES (?, ?, ?)", rows)
    connection.executemany("INSERT INTO tile (level, n, hash) VALUES (?, ?, ?)", tiles)
    connection.execute("INSERT INTO checkpoint (size, note) VALUES (?, ?)", (size, note))


def missing_guards(connection: sqlite3.Connection) -> tuple[str, ...]:
    """Return the names of guards that are gone or were altered."""
    present: dict[str, str] = dict(
        connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    )
    return tuple(name for name, statement in GUARDS.items() if present.get(name) != statement)
