"""A service's own database: one engine, one write transaction at a time in a context, reads that wait for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from healthobs.audit import Outbox
from reference_services._kit import database, idempotency
from reference_services._kit.settings import ServiceSettings

#: The connection of the innermost `Storage.transaction` of this context.
_transaction: ContextVar[Connection | None] = ContextVar("reference_services.transaction", default=None)


class Storage:
    """The part of a `Kit` that keeps state; `settings` says where.

    Args:
        settings: Names the database.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self._schema_version: int | None = None
        #: Keeps the audit entry of a write beside it; None without a trail.
        self.outbox: Outbox | None = None

    @cached_property
    def engine(self) -> Engine:
        """The engine of the service's own database, made on first use."""
        return database.make_engine(self.settings.database_url)

    def migrate(
        self,
        metadata: sa.MetaData,
        *,
        version: int = 1,
        steps: Mapping[int, Callable[[Connection], None]] | None = None,
    ) -> None:
        """Bring the database to `version`; adds the readiness check ``database``. See `database.migrate`."""
        database.migrate(self.engine, metadata, version=version, steps=steps)
        idempotency.METADATA.create_all(self.engine)
        if self.outbox is not None:
            self.outbox.create_table()
        self._schema_version = version

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give the connection of one write transaction: commits at the end, rolls back on an exception.

        Inside an idempotent route, and inside another `transaction`, it is the one already open, which
        commits (with the remembered answer) when the outermost ends. With what it writes it commits the entry of the
        audited call, so what is told of that call is told before.

        Raises:
            AuditWriteError: An earlier entry still waits for the log; nothing is begun.
        """
        held = _transaction.get()
        if held is not None and held.engine is self.engine:
            yield held
            return
        if self.outbox is not None:
            self.outbox.ready()
        with self.engine.begin() as connection:
            token = _transaction.set(connection)
            try:
                yield connection
                if self.outbox is not None:
                    self.outbox.record(connection)
            finally:
                _transaction.reset(token)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for reads only, which waits for no writer; inside `transaction`, that one's."""
        held = _transaction.get()
        if held is not None and held.engine is self.engine:
            yield held
            return
        with database.reading(self.engine) as connection:
            yield connection

    def dispose(self) -> None:
        """Close every connection."""
        if "engine" in self.__dict__:
            self.engine.dispose()
