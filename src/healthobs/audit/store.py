"""What a database must offer to keep the log, and the reads and writes of the log that every one of them shares.

`entry` holds the log, `checkpoint` every signed root, `tile` the nodes over complete runs of 256 leaves as C2SP
tlog-tiles has them (a tile that grew is a new row, so that rows are only ever added), `log` who this is, `sequenced`
which entry came from which row of an outbox or spool. Statements are those that SQLite and PostgreSQL have in common, with ``?``
for parameters. Guards refuse changes by accident; only the Merkle root and a copy of it elsewhere shows changes
by intent (45 CFR 164.312(c)(1), PCI DSS 4.0 requirement 10.3).

Limits: whoever owns the tables may drop the guards, which verification then reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeGuard

from healthobs.audit import merkle
from healthobs.audit.records import Checkpoint
from healthobs.exceptions import AuditError, AuditTamperedError

#: Statements that no store may accept, by name.
FORBIDDEN = {
    "UPDATE": "UPDATE entry SET body = NULL WHERE idx = (SELECT max(idx) FROM entry)",
    "DELETE": "DELETE FROM entry WHERE idx = (SELECT max(idx) FROM entry)",
    "gap": "INSERT INTO entry (idx, leaf, body) SELECT idx + 2, leaf, body FROM entry ORDER BY idx DESC LIMIT 1",
}
#: Format of the tables (`log.format`).
FORMAT = 1
#: The tables of a log, but for the one that says whose it is.
_BESIDE_LOG = {"entry", "checkpoint", "tile", "sequenced"}
#: No index: another entry has the key.
TAKEN = -1
#: Rows that a walk reads at a time.
AT_ONCE = 2_000
#: Parameters of one statement: SQLite before 3.32 takes 999.
_AT_A_TIME = 500
#: What a database can number: somebody may have tampered with it.
LOWEST, HIGHEST = -(2**63), 2**63 - 1

Row = tuple[Any, ...]


class StoreError(AuditError):
    """The database failed or refused a statement.

    Args:
        code: What it called the failure (``SQLITE_FULL``, ``53100 DiskFull``), never its text, which may hold values.
        refused: A guard or a missing privilege refused the statement.
        busy: Another connection had the lock for as long as it was waited for.
    """

    def __init__(self, code: str, *, refused: bool = False, busy: bool = False) -> None:
        self.code = code
        self.refused = refused
        self.busy = busy
        super().__init__(f"the audit store cannot be used ({code}); check the database and its disk")


class ReadConnection(Protocol):
    """A connection for one reader at a time; whatever the database raises comes as a `StoreError`."""

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return its rows."""
        ...

    def reading(self) -> AbstractContextManager[None]:
        """Let every read see the same moment."""
        ...

    def tables(self) -> set[str]:
        """Return the names of the tables that are there."""
        ...

    def missing_guards(self) -> tuple[str, ...]:
        """Return the names of guards that are gone or were altered."""
        ...

    def altered_tables(self) -> tuple[str, ...]:
        """Return the names of tables that are gone, or whose columns, types or constraints are not those that were made."""
        ...

    def foreign(self) -> tuple[str, ...]:
        """Return what is on the tables or beside them and is none of ours, as `described`.

        A trigger could drop or change what is written, an index answer with what is no longer there, or stop the log.
        """
        ...

    def close(self) -> None:
        """Close it and give back every lock."""
        ...


class Connection(ReadConnection, Protocol):
    """A connection for one user at a time, who may write."""

    def insert(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Exclude every other writer, then commit durably at the end, or roll back on an exception."""
        ...

    def amending(self) -> AbstractContextManager[None]:
        """As `writing`, with the guards against changes lifted until its end; only for `healthobs.audit.disposal`."""
        ...

    def attempting(self) -> AbstractContextManager[None]:
        """Exclude every other writer unless that takes long, and roll back at the end."""
        ...

    def damage(self) -> str | None:
        """Return what the database finds wrong with its own structure, without any value; None when nothing."""
        ...

    @property
    def forbidden(self) -> Mapping[str, str]:
        """Statements that must be refused inside a transaction that has added an entry, by name."""
        ...

    def usable(self) -> bool:
        """Return whether this still is a connection to the store, as far as can be told without a statement."""
        ...


class Store(Protocol):
    """Where one log is kept: a SQLite file or a PostgreSQL database."""

    @property
    def path(self) -> Path | None:
        """The database file, where it is one."""
        ...

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        ...

    def connect(self, *, read_only: bool = False, live: bool = False) -> Connection:
        """Open a connection; one that is read only changes nothing, not even beside the file, unless that is `live`.

        What is not may be read as a file that nobody changes meanwhile. What is has undone what a killed writer had begun.
        """
        ...

    def initialising(self) -> AbstractContextManager[Connection]:
        """Give a connection inside `writing`, with the tables made where there are none, one process at a time."""
        ...


def described(kind: object, name: object) -> str:
    """Return the kind and name of a thing in the database that is none of ours; its kind alone when the name is not plain.

    Example:
        >>> described("Trigger", "zz"), described("x", "two words")
        ('trigger zz', 'object')
    """
    known = str(kind).lower()
    known = known if known in {"index", "policy", "rule", "table", "trigger", "view"} else "object"
    return f"{known} {name}" if re.fullmatch(r"[A-Za-z_]\w{0,62}", str(name), re.ASCII) else known


def holds_log(connection: ReadConnection) -> bool:
    """Return whether the tables of a log are there.

    Raises:
        AuditError: The database belongs to something else.
        AuditTamperedError: All of them are but the one that says whose log it is.
    """
    tables = connection.tables()
    if tables and "log" not in tables:
        if tables >= _BESIDE_LOG:
            raise AuditTamperedError("the table log is gone")
        raise AuditError("the database is no audit trail of healthobs; choose one of its own")
    return bool(tables)


def read_log(connection: ReadConnection) -> tuple[str, str] | None:
    """Return origin and vkey of the log in this database; None when none was begun yet.

    Raises:
        AuditError: The database belongs to something else, or to a newer release.
        AuditTamperedError: What says whose log it is was altered, or is gone.
    """
    if not holds_log(connection):
        return None
    rows = connection.execute("SELECT format, origin, vkey FROM log")
    if not rows:
        if any(connection.execute(f"SELECT 1 FROM {table} LIMIT 1") for table in ("checkpoint", "entry")):  # noqa: S608 - names of ours
            raise AuditTamperedError("the row that says whose log it is is gone")
        return None
    version, origin, vkey = rows[0]
    if not isinstance(version, int) or not isinstance(origin, str) or not isinstance(vkey, str):
        raise AuditTamperedError("the row that says whose log it is was altered")
    if version != FORMAT:
        raise AuditError("the audit trail has a format that this release cannot read; use a newer one")
    return origin, vkey


def begin_log(connection: Connection, origin: str, vkey: str, note: str) -> None:
    """Write who the log is and the checkpoint of the empty log, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO log (one, format, origin, vkey) VALUES (1, ?, ?, ?)", (FORMAT, origin, vkey)
    )
    connection.execute("INSERT INTO checkpoint (size, note) VALUES (0, ?)", (note,))


def head(connection: ReadConnection) -> tuple[int, str | None]:
    """Return the number of entries and the latest checkpoint's note; None where that is no text.

    Raises:
        AuditTamperedError: The last entry has no number that an entry can have.
    """
    ((top, note),) = connection.execute(
        "SELECT (SELECT max(idx) FROM entry), (SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1)"
    )
    return (0 if top is None else number(top) + 1), note if isinstance(note, str) else None


def first_index(connection: ReadConnection) -> int:
    """Return the first entry that is there: 0, unless entries were pruned.

    Raises:
        AuditTamperedError: It has no number that an entry can have.
    """
    ((first,),) = connection.execute("SELECT min(idx) FROM entry")
    return 0 if first is None else number(first)


def extends(connection: ReadConnection, size: int, earlier: Checkpoint | None) -> bool:
    """Return whether the `size` entries that are there begin with those of an earlier checkpoint.

    Raises:
        AuditTamperedError: What is kept of the tree is not what it must be.
    """
    if earlier is None or earlier.size < first_index(connection):  # pruned: its root is not to be had
        return True
    return earlier.size <= size and load_range(connection, earlier.size).root() == earlier.root


def number(found: object) -> int:
    """Return the number of an entry as it was read: in a table that somebody made anew it can be anything.

    Raises:
        AuditTamperedError: It is none that an entry can have.
    """
    if not isinstance(found, int) or not 0 <= found < HIGHEST:
        raise AuditTamperedError("an entry is filed under what is no number of one")
    return found


def entries(connection: ReadConnection, after: int = LOWEST, last: int = HIGHEST) -> Iterator[Row]:
    """Yield index, leaf and body of each entry beyond `after` up to `last`, in order, piece by piece.

    In a table that somebody made anew each can be anything, the index too.
    """
    return _walk(
        connection, "SELECT idx, leaf, body FROM entry WHERE idx > ? AND idx <= ? ORDER BY idx", after, last
    )


def checkpoints(connection: ReadConnection, last: int, after: int = LOWEST) -> Iterator[Row]:
    """Yield size and note of each checkpoint beyond the size `after` up to `last`, in order, piece by piece."""
    statement = "SELECT size, note FROM checkpoint WHERE size > ? AND size <= ? ORDER BY size"
    return _walk(connection, statement, after, last)


def _walk(connection: ReadConnection, statement: str, after: int, last: int) -> Iterator[Row]:
    while rows := connection.execute(f"{statement} LIMIT ?", (after, last, AT_ONCE)):
        yield from rows
        found: object = rows[-1][0]
        if not isinstance(found, int) or found <= after:  # the rest is in no order that can be walked
            return
        after = found


def stored_bytes(body: object) -> bytes | None:
    """Return the bytes of a body as it was read; None when it was erased, no bytes when it is no text at all.

    Nor are bytes text, be they the right ones: in SQLite no search for text finds them, so an order could be hidden so.
    """
    if body is None:
        return None
    return body.encode() if isinstance(body, str) else b""


def is_hash(leaf: object) -> TypeGuard[bytes]:
    """Return whether a leaf as it was read is one."""
    return isinstance(leaf, bytes) and len(leaf) == merkle.HASH_BYTES


def leaves(connection: ReadConnection, start: int, end: int) -> list[bytes]:
    """Return the leaves [start, end).

    Raises:
        AuditTamperedError: One of them is missing, or is no hash.
    """
    rows = connection.execute(
        "SELECT idx, leaf FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (start, end)
    )
    for expected, (index, leaf) in enumerate(rows, start):
        if index != expected:
            raise AuditTamperedError("the entry is missing", index=expected)
        if not is_hash(leaf):
            raise AuditTamperedError("the leaf is no hash", index=expected)
    if len(rows) != end - start:
        raise AuditTamperedError("the entry is missing", index=start + len(rows))
    return [leaf for _, leaf in rows]


def erased(connection: ReadConnection, size: int) -> int:
    """Return how many of the first `size` entries have no body; asked in pieces, so that no writer waits for long."""
    statement = "SELECT count(*) FROM entry WHERE idx >= ? AND idx < ? AND body IS NULL"
    return sum(
        number(connection.execute(statement, (start, min(start + AT_ONCE, size)))[0][0])
        for start in range(0, size, AT_ONCE)
    )


def tiles(connection: ReadConnection) -> merkle.Fetch:
    """Return what reads tiles of the log: leaves from the entries, each tile above them from one row."""

    def fetch(level: int, number: int, width: int) -> bytes:
        if level == 0:
            start = number * merkle.TILE_WIDTH
            return b"".join(leaves(connection, start, start + width))
        rows = connection.execute(
            "SELECT hashes FROM tile WHERE level = ? AND n = ? AND width >= ? ORDER BY width LIMIT 1",
            (level, number, width),
        )
        hashes = rows[0][0] if rows else b""
        return hashes[: width * merkle.HASH_BYTES] if isinstance(hashes, bytes) else b""

    return fetch


def tree(connection: ReadConnection, size: int) -> merkle.TileTree:
    """Return the tree of the first `size` entries, read by tiles."""
    return merkle.TileTree(size, tiles(connection))


def load_range(connection: ReadConnection, size: int) -> merkle.CompactRange:
    """Return the right edge of the tree of the first `size` entries."""
    subtree = tree(connection, size).subtree
    return merkle.CompactRange(size, [subtree(start, end) for start, end in merkle.peak_bounds(size)])


def insert(
    connection: Connection,
    rows: Iterable[tuple[int, bytes, str]],
    nodes: Sequence[tuple[int, int, bytes]],
    size: int,
    note: str,
) -> None:
    """Add entries, completed nodes and the checkpoint over all, inside the caller's transaction."""
    connection.insert("INSERT INTO entry (idx, leaf, body) VALUES (?, ?, ?)", rows)
    if nodes:
        connection.insert(
            "INSERT INTO tile (level, n, width, hashes) VALUES (?, ?, ?, ?)", _grown(connection, nodes)
        )
    connection.execute("INSERT INTO checkpoint (size, note) VALUES (?, ?)", (size, note))


def keeps(
    connection: ReadConnection,
    rows: Sequence[tuple[int, bytes, str]],
    marks: Sequence[tuple[str, int]],
    size: int,
    note: str,
) -> bool:
    """Return whether the log ends with the entries `rows` and the checkpoint over all, whatever triggers did to them.

    And whether `marks` say which of them are rows of an outbox or spool: one without would come in again.
    """
    stored = connection.execute(
        "SELECT idx, leaf, body FROM entry WHERE idx >= ?"
        " UNION ALL SELECT size, NULL, note FROM checkpoint WHERE size >= ? ORDER BY 1",
        (rows[0][0], size),
    )
    return stored == [*rows, (size, None, note)] and all(
        _marked(connection, marks[start : start + _AT_A_TIME]) for start in range(0, len(marks), _AT_A_TIME)
    )


def _marked(connection: ReadConnection, marks: Sequence[tuple[str, int]]) -> bool:
    keys = [key for key, _ in marks]
    statement = f"SELECT id, idx FROM sequenced WHERE id IN ({', '.join('?' * len(keys))})"  # noqa: S608 - ? only
    return sorted(connection.execute(statement, keys)) == sorted(marks)


def _grown(
    connection: Connection, nodes: Iterable[tuple[int, int, bytes]]
) -> list[tuple[int, int, int, bytes]]:
    """Return the rows of the tiles that `nodes` (level, number, hash) are added to, each as wide as it has become."""
    fetch = tiles(connection)
    grown: dict[tuple[int, int], bytes] = {}
    for level, number, node in nodes:
        n, width = divmod(number, merkle.TILE_WIDTH)
        if (level, n) not in grown:
            grown[level, n] = fetch(level, n, width) if width else b""
        grown[level, n] += node
    return [(level, n, len(hashes) // merkle.HASH_BYTES, hashes) for (level, n), hashes in grown.items()]


def sequenced(connection: ReadConnection, key: str, leaf: bytes) -> int | None:
    """Return the index under which the row `key` of an outbox or spool is in the log.

    Returns:
        None when it is not yet; `TAKEN` when another entry stands where that row's should, or none.
    """
    rows = connection.execute(
        "SELECT idx, (SELECT leaf FROM entry WHERE entry.idx = sequenced.idx) FROM sequenced WHERE id = ?",
        (key,),
    )
    if not rows:
        return None
    index, found = rows[0]
    return (
        index if found == leaf and isinstance(index, int) else TAKEN
    )  # also what was pruned: nobody can tell any more


def insert_sequenced(connection: Connection, rows: Sequence[tuple[str, int]]) -> None:
    """Remember which rows of an outbox or spool became which entries, in the caller's transaction."""
    if rows:
        connection.insert("INSERT INTO sequenced (id, idx) VALUES (?, ?)", rows)
