"""The rows of a map of subjects in PostgreSQL, in the schema `healthobs_subjects`, for services with several replicas.

Apart from the log: who may read entries has no privilege here, and a copy of the log does not hold the map. The owner
runs `prepare` once; the application may read, insert and delete subjects. Replicas share one key, which the first of
them marks, so that one with another key does not start.

Limits: PostgreSQL 12 or newer. A process has one connection, which its threads take in turn; opening it may take two
seconds for each host, however short a caller would wait. A deleted row is unreadable in the table only after a VACUUM, which
only its owner may run (from PostgreSQL 17 on whoever has MAINTAIN, too), and where the space was used again; write-ahead logs, replicas and backups keep it longer.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import uuid
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from psycopg import sql
from psycopg.waiting import Ready

from healthobs.audit import postgres
from healthobs.audit.forking import ForkGate, Process, process
from healthobs.audit.subject_rows import MARK, TRIED, WAIT_SECONDS, About, Row, Unlock
from healthobs.exceptions import AuditError

if TYPE_CHECKING:
    from psycopg.abc import PQGen

_T = TypeVar("_T")
SCHEMA = "healthobs_subjects"
#: Any number, the same in every process: the lock under which tables are made and the key is marked.
_ADVISORY_LOCK = 4_911_025
_TABLES = {
    "subject": "token TEXT PRIMARY KEY, lookup BYTEA NOT NULL UNIQUE, sealed BYTEA NOT NULL",
    "mark": "one INTEGER PRIMARY KEY CHECK (one = 1), sealed BYTEA NOT NULL",
}
_ABOUT = "FROM subject WHERE lookup = %s OR token = %s"
_ADD = "INSERT INTO subject VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
#: An erasure between an insertion that met another row and the look at it makes another round; more are no chance.
_ROUNDS = 5
#: A statement takes a moment, also where nobody is in its way.
_LEAST_SECONDS = 0.1


def prepare(owner_url: str, application_role: str) -> None:
    """Make schema and tables as their owner, and let the application read, insert and delete.

    Args:
        owner_url: How the owner connects; the application must not have it.
        application_role: Role of the application; it must exist, and own nothing here.

    Raises:
        AuditError: The database refused; the message has its code.
        ConfigurationError: The URL is malformed.
    """
    role = sql.Identifier(application_role)
    rows = PostgresRows(owner_url)
    with contextlib.closing(rows), rows.initialising() as connection:
        for grant in (
            f"GRANT USAGE ON SCHEMA {SCHEMA} TO {{}}",
            "GRANT SELECT, INSERT, DELETE ON subject TO {}",
            "GRANT SELECT, INSERT ON mark TO {}",
        ):
            connection.execute(sql.SQL(grant).format(role))  # pyright: ignore[reportArgumentType]


class PostgresRows:
    """Rows in the database that `url` names; see `healthobs.audit.subject_rows.Rows`.

    Args:
        url: ``postgresql://...`` as libpq has it.

    Raises:
        ConfigurationError: The URL is malformed.
    """

    def __init__(self, url: str) -> None:
        self._options = postgres.options_of(url, "the subject map's")
        #: By process: after a fork the child finds none of its own and starts afresh.
        sessions = self._sessions = dict[Process, _Session]()
        # Neither gate nor finalizer may hold the rows themselves.
        self._gate = ForkGate(lambda: _close(sessions))
        weakref.finalize(self, _close, sessions)

    def open(self, unlock: Unlock) -> None:
        """Make what is missing and mark the key, one process at a time."""
        with self.initialising() as connection:
            tried = connection.execute("SELECT %s, sealed FROM mark", (MARK,)).fetchall()
            if not tried:
                some = connection.execute("SELECT token, sealed FROM subject LIMIT %s", (TRIED,))
                mark = unlock(some.fetchall())
                connection.execute("INSERT INTO mark VALUES (1, %s)", (mark,))
            else:
                unlock(tried)

    @contextmanager
    def initialising(self) -> Generator[_Connection]:
        """Give a connection in a transaction, with the tables made where they are missing."""
        present = "SELECT 1 FROM pg_tables WHERE schemaname = %s"
        with self._connected() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_ADVISORY_LOCK,))
            if not connection.execute(present, (SCHEMA,)).fetchone():
                connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                for name, columns in _TABLES.items():
                    connection.execute(f"CREATE TABLE {name} ({columns})".encode())
            _refuse_loss(connection)
            yield connection

    def token(self, about: About, make: Callable[[], Row] | None, wait_seconds: float) -> str | None:
        """Insert where nobody else does at the same time, and take what is there then."""
        with self._connected(wait_seconds) as connection:
            for _ in range(_ROUNDS):
                row = connection.execute(f"SELECT token {_ABOUT}", about).fetchone()
                if row is not None or make is None:
                    return None if row is None else row[0]
                _refuse_loss(connection)
                connection.execute(_ADD, make())
            raise AuditError(
                "the subject map does not keep what is added; look for triggers and rules on its table"
            )

    def sealed(self, token: str) -> bytes | None:
        """Return the sealed identifier of a token."""
        with self._connected() as connection:
            row = connection.execute("SELECT sealed FROM subject WHERE token = %s", (token,)).fetchone()
        return None if row is None else row[0]

    def erase(self, about: About) -> bool:
        """Delete a row, and have its space freed where the role may do that."""
        with self._connected() as connection:
            _refuse_loss(connection)
            erased = connection.execute(f"DELETE {_ABOUT}", about).rowcount > 0
        with contextlib.suppress(AuditError), self._connected(alone=True) as connection:
            connection.execute("VACUUM (SKIP_LOCKED) subject")
        return erased

    def check(self) -> None:
        """Add a row that nobody can find, and take it back."""
        with self._connected() as connection, connection.transaction(force_rollback=True):
            _refuse_loss(connection)
            connection.execute(_ADD, (str(uuid.uuid4()), os.urandom(32), b""))

    def close(self) -> None:
        """Close this process's connection; the next call opens one again."""
        with self._gate:
            _close(self._sessions)

    @contextmanager
    def _connected(
        self, wait_seconds: float = WAIT_SECONDS, *, alone: bool = False
    ) -> Generator[_Connection]:
        """Give the connection of this process for one task, with no fork meanwhile; `alone` one that keeps nobody else waiting."""
        try:
            with self._gate:
                session = _Session() if alone else self._sessions.setdefault(process(), _Session())
                with session.taken(self._options, wait_seconds) as connection:
                    yield connection
                if alone:
                    session.close()
        except (psycopg.Error, OSError) as exc:
            raise AuditError(
                f"the subject map cannot be used ({postgres.code_of(exc)}); check its database"
            ) from None


class _Connection(psycopg.Connection[Any]):
    """A connection on which no statement is waited for after a moment, also where the server falls silent."""

    deadline = 0.0

    def wait(self, gen: PQGen[_T], *_more: Any, **_options: Any) -> _T:
        """Do as psycopg, but until `deadline`."""
        polled = select.poll()
        try:
            wanted = next(gen)
            while True:
                events = (select.POLLIN if wanted & Ready.R else 0) | (
                    select.POLLOUT if wanted & Ready.W else 0
                )
                polled.register(self.fileno(), events)
                found = polled.poll(max(self.deadline - monotonic(), 0) * 1_000)
                if not found:
                    raise TimeoutError
                # What is not that it can be written to, as the end of the connection, is found by reading.
                said = found[0][1]
                ready = (Ready.R if said & ~select.POLLOUT else 0) | (Ready.W if said & select.POLLOUT else 0)
                wanted = gen.send(Ready(ready))
        except StopIteration as done:
            return cast("_T", done.value)

    def usable(self) -> bool:
        """Return whether the server left the connection open, as far as can be told without a statement."""
        said = select.poll()
        said.register(self.fileno(), select.POLLIN)
        return not said.poll(0)  # between two statements it says nothing but a farewell


class _Session:
    """The connection of one process, and whose turn it is."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._connection: _Connection | None = None

    @contextmanager
    def taken(self, options: dict[str, object], wait_seconds: float) -> Generator[_Connection]:
        """Give the connection; what failed on it leaves none."""
        waits = max(wait_seconds, _LEAST_SECONDS)
        deadline = monotonic() + waits
        if not self._turn.acquire(timeout=waits):
            raise TimeoutError
        try:
            if self._connection is None or not self._connection.usable():
                self.close()
                left = {"connect_timeout": max(2, int(deadline - monotonic()))}
                self._connection = _Connection.connect(autocommit=True, **{**options, **left})  # type: ignore[arg-type]
                self._connection.deadline = deadline
                self._connection.execute(
                    "SELECT set_config('search_path', %s, false), set_config('statement_timeout', %s, false),"
                    " set_config('idle_in_transaction_session_timeout', %s, false)",
                    (f"{SCHEMA}, pg_temp", *(str(postgres.IDLE_MILLIS),) * 2),
                )
            self._connection.deadline = deadline
            yield self._connection
        except BaseException:
            self.close()
            raise
        finally:
            self._turn.release()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _close(sessions: dict[Process, _Session]) -> None:
    session = sessions.get(process())
    if session is not None:
        session.close()


def _refuse_loss(connection: _Connection) -> None:
    postgres.refuse_loss(connection.execute(postgres.DURABILITY.encode()).fetchall()[0])
