"""A connection for long walks, with room for a fork between any two statements.

Each statement, or short transaction, is inside the fork gate (`healthobs.audit.forking`); whoever forks between them
closes what is open here, and the next statement opens it again. A walk over a whole log keeps no fork, and so no
append, waiting.

Limits: one statement is one window, however long it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from healthobs.audit.forking import ForkGate, Process, process
from healthobs.audit.store import ReadConnection, Row


class Windows:
    """A read-only connection of one thread.

    Args:
        connect: Opens it.
        gate: What each window is inside of.
    """

    def __init__(self, connect: Callable[[], ReadConnection], gate: ForkGate) -> None:
        self._connect = connect
        self._gate = gate
        self._held = False
        self._process: Process | None = None
        self._connection: ReadConnection | None = None

    @contextmanager
    def window(self) -> Generator[ReadConnection]:
        """Give the open connection, and no fork meanwhile."""
        if self._held:  # a gate that a fork waits at lets nobody in, not even who is inside already
            yield self._opened()
            return
        with self._gate:
            self._held = True
            try:
                yield self._opened()
            finally:
                self._held = False

    def _opened(self) -> ReadConnection:
        if self._connection is None or self._process != process():
            self._connection, self._process = self._connect(), process()
        return self._connection

    def release(self) -> None:
        """Close what is open; the next window opens it again. Only with nobody in the gate but the caller."""
        connection, self._connection = self._connection, None
        if connection is not None and self._process == process():
            connection.close()

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement in a window of its own."""
        with self.window() as connection:
            return connection.execute(statement, parameters)

    @contextmanager
    def reading(self) -> Generator[None]:
        """Read as of one moment, in one window."""
        with self.window() as connection, connection.reading():
            yield

    def tables(self) -> set[str]:
        """Return the names of the tables."""
        with self.window() as connection:
            return connection.tables()

    def missing_guards(self) -> tuple[str, ...]:
        """Return the names of guards that are not there."""
        with self.window() as connection:
            return connection.missing_guards()

    def altered_tables(self) -> tuple[str, ...]:
        """Return the names of tables that are not as they were made."""
        with self.window() as connection:
            return connection.altered_tables()

    def foreign(self) -> tuple[str, ...]:
        """Return what is none of ours."""
        with self.window() as connection:
            return connection.foreign()

    def close(self) -> None:
        """Close it."""
        with self._gate:
            self.release()
