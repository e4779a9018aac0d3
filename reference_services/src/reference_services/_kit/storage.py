"""A service's own database: one engine, one write transaction at a time in a context, reads that wait for nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from healthobs.audit import Outbox
from healthobs.exceptions import ConfigurationError
from reference_services._kit import database, idempotency, keys
from reference_services._kit.settings import ServiceSettings

_Key = TypeVar("_Key")
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
        #: Every key file that was loaded.
        self.key_files: list[keys.KeyFile] = []
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
        database.migrate(self.engine, metadata, idempotency.METADATA, version=version, steps=steps)
        if self.outbox is not None:
            self.outbox.create_table()
        self._schema_version = version

    def key(
        self, variable: str, name: str, load: Callable[[Path], _Key], known_by: Callable[[_Key], str]
    ) -> _Key:
        """Return the key in a file, once the database knows which one it works under; after `migrate`.

        Args:
            variable: Names the file.
            name: Its name in the data folder otherwise, and the key's in the database.
            load: Reads the file, and makes it where it is missing.
            known_by: Returns up to 64 characters that tell keys apart and tell nothing of one.

        Raises:
            ConfigurationError: The file is missing or holds another key, and what is stored was written under the
                one that is known: with a new one it would be unreadable, forged, or done twice.
        """
        path, stored = self.settings.file(variable, name), self._schema_version is not None
        remedy = (
            f"what the database holds was written with it: restore it from backup, or from where {variable} is kept. "
            f"To give that up and begin with another key, delete the row '{name}' of its table key_check"
        )
        # The database is asked before anybody looks for the file: another replica may make it, and then tell, meanwhile.
        known = stored and database.key_check(self.engine, name) is not None
        if known and not path.exists():
            raise ConfigurationError(f"the key file {path.name} is missing; {remedy}")
        key = load(path)
        value = known_by(key)
        if stored and database.keep_key_check(self.engine, name, value) != value:
            raise ConfigurationError(f"the key file {path.name} holds another key than before; {remedy}")
        self.key_files.append(keys.KeyFile.of(path))
        return key

    def secret(self, variable: str, name: str) -> bytes:
        """Return the 32-byte secret in a file; see `key`."""
        return self.key(variable, name, keys.load_secret, keys.check_value)

    def key_faults(self) -> list[str]:
        """Return which key files are not as they were loaded, or not the service's alone, and why."""
        found = ((file.path.name, file.fault()) for file in self.key_files)
        return [f"{name} is {fault}" for name, fault in found if fault is not None]

    def keys_are_sound(self) -> bool:
        """Tell whether every key file is private and holds what was loaded: the readiness check ``keys``."""
        return not self.key_faults()

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
