"""The outbox: an audit entry in the caller's own transaction, which the trail puts into the log afterwards.

No effect without its entry and no entry for an effect that did not happen, whenever the process dies: the row
is committed or rolled back with the effect, and stays until the log has its entry. The row's id makes that
happen once, also when the two databases are different ones (21 CFR 11.10(e), PCI DSS 4.0 requirement 10.2.1).

Limits: between the commit and `flush` the entry is durable, but not yet in the log or under a checkpoint; what the log
does not take then is tried again every few seconds, on a thread of its own, by the process that found it waiting. A row
that a killed process left is put into the log by the next `flush` of any process. Whoever may insert into the table can
record what an application can, and no more: other rows, and those that reuse a key, stay aside under ids that begin
with ``refused-``.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from healthobs import _runtime
from healthobs.audit.draft import CARE, AuditDraft
from healthobs.audit.forking import Process, process
from healthobs.audit.records import Receipt
from healthobs.audit.trail import AuditTrail
from healthobs.exceptions import AuditWriteError

TABLE = "healthobs_outbox"
#: How long what waits for the log does so before the next attempt.
RETRY_SECONDS = 5.0
#: Rows that one flush hands over at a time.
_AT_ONCE = 500
#: PostgreSQL's, for who makes the table.
_ADVISORY_LOCK = 4_911_026
_CREATE = f"CREATE TABLE IF NOT EXISTS {TABLE} (id VARCHAR(48) PRIMARY KEY, body TEXT NOT NULL)"
_INSERT = f"INSERT INTO {TABLE} (id, body) VALUES (?, ?)"  # noqa: S608  # the table's name is ours
_ASIDE = "refused-"
_WAITING = f"substr(id, 1, {len(_ASIDE)}) <> '{_ASIDE}'"
#: What names a row, its id and its body. SQLite keeps what is no text in a column of texts: it is read as bytes, and named
#: by its place and its id, because a place is given anew.
_COLUMNS = {False: "id, id, body", True: "rowid, CAST(id AS BLOB), CAST(body AS BLOB)"}
_NAMED = {False: "id = ? AND id = ?", True: "rowid = ? AND CAST(id AS BLOB) = ?"}


class Outbox:
    """The outbox in one business database.

    Args:
        trail: Where entries go.
        begin: Gives a connection in a transaction of its own, which commits at the end of the context
            (SQLAlchemy's ``engine.begin``). A connection is SQLAlchemy's, `sqlite3`'s or psycopg's. While a row waits, a
            thread of the outbox's own asks for one, too.

    Example:
        >>> outbox = Outbox(trail, engine.begin)  # doctest: +SKIP
        >>> with engine.begin() as connection:  # doctest: +SKIP
        ...     connection.execute(update_the_chart)
        ...     outbox.add(connection, {"action": "chart.update", "subject": "s-17"})
        >>> outbox.flush()  # doctest: +SKIP
    """

    def __init__(self, trail: AuditTrail, begin: Callable[[], AbstractContextManager[Any]]) -> None:
        self._trail = trail
        self._begin = begin
        #: Another object whenever a row may wait again.
        self._behind = object()
        #: The process that put into the log what was left before, and what `_behind` was when it began to.
        self._caught_up: tuple[Process, object] | None = None
        #: By process, because a fork takes no thread along: what tries again.
        self._retries: dict[Process, threading.Timer] = {}

    def create_table(self) -> None:
        """Make the table where it is missing; of several that make it at once, one does."""
        with self._begin() as connection:
            # Its IF NOT EXISTS fails where another makes it meanwhile.
            if _is_of(connection, "postgresql", "psycopg"):
                _execute(connection, "SELECT pg_advisory_xact_lock(?)", (_ADVISORY_LOCK,))
            _execute(connection, _CREATE)

    def add(self, connection: Any, draft: Mapping[str, object] | AuditDraft) -> str:
        """Write the entry into the caller's transaction, beside the effect that it records.

        Args:
            connection: The one that the effect is written on.
            draft: As `AuditTrail.append` takes it.

        Returns:
            The row's id.

        Raises:
            AuditWriteError: The entry is malformed; roll back.
        """
        body = self._trail.encode(draft)
        key = self._trail.new_key()
        _execute(connection, _INSERT, (key, body.decode()))
        return key

    def record(self, connection: Any) -> None:
        """Write the entry of the `@audited` call under way into the caller's transaction, as the last thing in it.

        The call puts it into the log when it ends, and answers with its receipt. Where the log does not take it then, the
        call is answered all the same, because effect and entry are both durable: the entry waits, counted and logged
        (``audit_entry_waiting``), some seconds for the next attempt, and `ready` refuses the next effect until the log has it. Where the transaction is rolled back, the call is
        recorded as any other. The transaction must end within the call: one that is committed later is recorded once more, by
        the next `ready`. Outside an audited call nothing happens.

        Args:
            connection: The one that the effect is written on.

        Raises:
            AuditWriteError: The entry is malformed; roll back.
        """
        draft = _runtime.audit_draft.get()
        if not isinstance(draft, AuditDraft):
            return
        if isinstance(draft.placed, _Placed) and _is_in(connection, draft.placed.key):
            return  # by an earlier transaction of the call
        body = self._trail.encode(draft)
        placed = draft.placed = _Placed(self, self._trail.new_key(), body)
        _execute(connection, _INSERT, (placed.key, body.decode()))

    def ready(self) -> None:
        """Put into the log what earlier calls or a killed process left; to be called before an effect begins.

        Care under break-glass (purpose BTG or ETREAT of the audited call) is not refused: its entry waits with the others.

        Raises:
            AuditWriteError: The log does not take it now; do not begin.
        """
        here = (process(), self._behind)
        if self._caught_up == here:
            return
        try:
            self.flush()
        except AuditWriteError:
            if getattr(_runtime.audit_draft.get(), "purpose", None) not in CARE:
                raise
        else:
            self._caught_up = here

    def has(self, key: str, body: bytes) -> bool:
        """Return whether a row was committed: it is in the table, or in the log by somebody's `flush`."""
        found = False
        try:
            with self._begin() as connection:
                found = _is_in(connection, key)
            found = found or self._trail.has(key, body)
        except BaseException:
            self._retry_soon()  # it may be there
            raise
        finally:
            if not found:
                self._behind = object()  # as above, or it comes yet
        return found

    def settle(self, key: str, body: bytes) -> Receipt | None:
        """Put one committed row into the log and remove it here; None where the log does not take it now, and it stays."""
        receipt = None
        removed = False
        try:
            (receipt,) = self._trail.sequence([(key, body)])
            with self._begin() as connection:
                _execute(connection, f"DELETE FROM {TABLE} WHERE id = ?", (key,))  # noqa: S608
            removed = True
        except AuditWriteError:
            pass  # it waits
        except Exception:
            if receipt is None:
                raise
            # Effect and entry are durable; the row goes with the next flush.
        finally:
            if not removed:
                self._behind = object()
                self._retry_soon()
        return receipt

    def flush(self) -> dict[str, Receipt]:
        """Put every committed row into the log, oldest first, and remove it here once it is durable there.

        A row that is no entry of an application (`AuditTrail.acceptable`), or whose id has another entry in the log,
        stays aside, counted and logged.

        Returns:
            Receipts by row id.

        Raises:
            AuditWriteError: The log does not take them now; they stay, and are tried again some seconds later.
        """
        try:
            receipts = self._flush()
        except BaseException:
            self._retry_soon()
            raise
        self._tell(0)
        return receipts

    def _flush(self) -> dict[str, Receipt]:
        receipts: dict[str, Receipt] = {}
        while True:
            with self._begin() as connection:
                rows = _rows(connection)
                codec = _codec(connection)
            keyed = [(_text(key, codec), _text(body, codec).encode()) for _, key, body in rows]
            good = [place for place, row in enumerate(keyed) if self._trail.acceptable(*row)]
            told = self._trail.hand_over([keyed[place] for place in good]) if good else []
            done = {place: receipt for place, receipt in zip(good, told, strict=True) if receipt is not None}
            receipts.update({keyed[place][0]: receipt for place, receipt in done.items()})
            if rows:
                with self._begin() as connection:
                    for place, (name, key, _) in enumerate(rows):
                        _settle(connection, name, key, recorded=place in done)
            if len(done) < len(rows):
                self._trail.set_aside(len(rows) - len(done))
            if len(rows) < _AT_ONCE:
                return receipts

    def _retry_soon(self) -> None:
        """Have a thread flush in some seconds, so that what waits needs no other write to come into the log."""
        timer = threading.Timer(RETRY_SECONDS, self._retry)
        timer.name, timer.daemon = "healthobs-outbox", True
        if self._trail.closed or self._retries.setdefault(process(), timer) is not timer:
            return
        try:
            timer.start()
        except RuntimeError:  # no thread can be had: the next write flushes
            del self._retries[process()]

    def _retry(self) -> None:
        del self._retries[process()]  # first: what begins to wait from now on needs another one
        if self._trail.closed:
            return
        try:
            self.flush()
        except Exception:  # noqa: BLE001 - it was counted and logged when the row began to wait, and is tried again
            with suppress(Exception), self._begin() as connection:
                self._tell(int(_execute(connection, f"SELECT count(*) FROM {TABLE} WHERE {_WAITING}")[0][0]))  # noqa: S608

    def _tell(self, waiting: int) -> None:
        if self._trail.on_waiting is not None:
            with suppress(Exception):  # a fault of telemetry is not the caller's
                self._trail.on_waiting(waiting)


@dataclass(frozen=True, slots=True)
class _Placed:
    """The row of a call's entry."""

    outbox: Outbox
    key: str
    body: bytes

    def committed(self) -> bool:
        """Return whether the row is there, or in the log by somebody's flush."""
        return self.outbox.has(self.key, self.body)

    def settle(self) -> Receipt | None:
        """Put it into the log; None when it waits for that beside its effect."""
        return self.outbox.settle(self.key, self.body)


def _is_in(connection: Any, key: str) -> bool:
    return bool(_execute(connection, f"SELECT 1 FROM {TABLE} WHERE id = ?", (key,)))  # noqa: S608


def _rows(connection: Any) -> list[tuple[Any, ...]]:
    columns = _COLUMNS[_is_sqlite(connection)]
    return _execute(
        connection,
        f"SELECT {columns} FROM {TABLE} WHERE {_WAITING} ORDER BY id LIMIT {_AT_ONCE}",  # noqa: S608
    )


def _codec(connection: Any) -> str:
    """Return how texts are encoded where they are read as bytes: SQLite casts them as the database holds them."""
    return str(_execute(connection, "PRAGMA encoding")[0][0]) if _is_sqlite(connection) else "utf-8"


def _text(value: object, codec: str) -> str:
    """Return a text of the row; in what is none a character stands that no entry has."""
    return value.decode(codec, errors="replace") if isinstance(value, bytes) else str(value)


def _settle(connection: Any, name: object, key: object, *, recorded: bool) -> None:
    """Remove a row that is in the log; any other keeps its body, aside."""
    named = _NAMED[_is_sqlite(connection)]
    if recorded:
        _execute(connection, f"DELETE FROM {TABLE} WHERE {named}", (name, key))  # noqa: S608
    else:
        aside = f"{_ASIDE}{secrets.token_hex(16)}"
        _execute(connection, f"UPDATE {TABLE} SET id = ? WHERE {named}", (aside, name, key))  # noqa: S608


def _is_sqlite(connection: Any) -> bool:
    """Return whether a SQLAlchemy or DB-API connection is one to SQLite."""
    return _is_of(connection, "sqlite", "sqlite")


def _is_of(connection: Any, dialect: str, module: str) -> bool:
    """Return whether it is SQLAlchemy's of that dialect, or of a driver with that in its module's name."""
    if hasattr(connection, "exec_driver_sql"):
        return bool(connection.dialect.name == dialect)
    return module in type(connection).__module__


def _execute(connection: Any, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Run a statement on a SQLAlchemy or DB-API connection and return its rows."""
    if not _is_sqlite(connection):
        statement = statement.replace("?", "%s")
    if hasattr(connection, "exec_driver_sql"):
        result = connection.exec_driver_sql(statement, tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []
    cursor = connection.cursor()
    try:
        cursor.execute(statement, tuple(parameters))
        return cursor.fetchall() if cursor.description else []
    finally:
        cursor.close()
