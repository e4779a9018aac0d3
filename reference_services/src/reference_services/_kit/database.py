"""The state of a service: one SQLAlchemy Core engine on SQLite or PostgreSQL, and its schema version.

SQLite transactions begin with BEGIN IMMEDIATE, so a writer waits at its start and never fails half-way with
SQLITE_BUSY; durability is the audit trail's (`healthobs.audit.sqlite`), but for a journal that keeps nothing. Parameters never
appear in exceptions (`hide_parameters`); PostgreSQL's own DETAIL text still can, which redaction drops.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine, make_url

from healthobs.audit.sqlite import set_up
from healthobs.clock import rfc3339
from healthobs.exceptions import ConfigurationError

_READ = {"healthobs_read_only": True}
#: Kept apart from the service's own tables.
_META = sa.MetaData()
_VERSION = sa.Table(
    "schema_version",
    _META,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)
#: Name of a key file and what its key is known by.
_KEYS = sa.Table(
    "key_check",
    _META,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("value", sa.String(64), nullable=False),
)


class SchemaError(Exception):
    """The database holds another schema version than this code; migrate before starting it."""


def make_engine(url: str) -> Engine:
    """Return an engine for `url` whose transactions are safe for concurrent writers.

    Raises:
        ConfigurationError: SQLite without a file: each of its connections would be a database of its own.
    """
    parsed = make_url(url)
    if parsed.drivername == "postgresql":  # for which releases of SQLAlchemy have drivers of their own choice
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, hide_parameters=True, pool_pre_ping=True)
    if not parsed.database or parsed.database == ":memory:":
        raise ConfigurationError("DATABASE_URL must name a file (sqlite:///PATH) or a PostgreSQL database")
    path = Path(parsed.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    address = f"{path.absolute().as_uri()}?mode=rw"  # a file that vanished is not made anew, and empty

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(address, uri=True, check_same_thread=False)

    engine = sa.create_engine(parsed, creator=connect, hide_parameters=True, pool_size=8, max_overflow=24)

    @sa.event.listens_for(engine, "connect")
    def _connect(dbapi_connection: Any, record: Any) -> None:
        record.info["inode"] = path.stat().st_ino
        dbapi_connection.isolation_level = None
        set_up(dbapi_connection)

    @sa.event.listens_for(engine, "checkout")
    def _checkout(_connection: object, record: Any, _proxy: object) -> None:
        if not path.exists() or path.stat().st_ino != record.info["inode"]:
            raise sa.exc.DisconnectionError  # what is written to a file that has no name any more is lost

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("healthobs_read_only")
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection that takes no write lock; what is read is one snapshot."""
    with engine.connect().execution_options(**_READ) as connection:
        yield connection


def insert(connection: Connection, table: sa.Table) -> Any:
    """Return an INSERT into `table` that knows `ON CONFLICT`, in the dialect of `connection`.

    Whether a row was new is told by `returning`: a driver's row count can be -1.
    """
    dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


def add_new(connection: Connection, table: sa.Table, **values: Any) -> bool:
    """Insert a row; return False, with nothing changed, where one that it conflicts with is there."""
    made = insert(connection, table).values(**values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(made).first() is not None


def by_id(connection: Connection, table: sa.Table, key: str, *, lock: bool = False) -> dict[str, Any] | None:
    """Return the row of `table` whose ``id`` is `key`, or None; `lock` keeps others from changing it meanwhile."""
    query = sa.select(table).where(table.c.id == key)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else dict(row)


def rows(connection: Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """Return the rows that `query` finds, in its order."""
    return [dict(row) for row in connection.execute(query).mappings()]


def page(connection: Connection, query: sa.Select[Any], limit: int) -> tuple[int, list[dict[str, Any]]]:
    """Return how many rows `query` finds, and the first `limit` of them in its order."""
    return count(connection, query.order_by(None).subquery()), rows(connection, query.limit(limit))


def count(connection: Connection, counted: sa.FromClause) -> int:
    """Return how many rows a table or a subquery has."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one())


def moment(wall_ns: int) -> str:
    """Return an instant, stored in nanoseconds, as RFC 3339 text to the millisecond.

    Example:
        >>> moment(1_500_000_000)
        '1970-01-01T00:00:01.500Z'
    """
    return rfc3339(datetime.fromtimestamp(wall_ns // 1_000_000 / 1000, UTC), timespec="milliseconds")


@contextmanager
def starting(engine: Engine) -> Iterator[Connection]:
    """Give the connection of one transaction that excludes those of other replicas that start.

    SQLite serialises them by BEGIN IMMEDIATE, PostgreSQL by an advisory lock.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4911023)")
        yield connection


def migrate(
    engine: Engine,
    *metadata: sa.MetaData,
    version: int = 1,
    steps: Mapping[int, Callable[[Connection], None]] | None = None,
) -> None:
    """Create the tables of `metadata`, or bring an older schema to `version`, in one transaction; replicas may start together.

    Args:
        engine: Where.
        metadata: The tables as `version` has them.
        version: The version this code needs; 1 or more.
        steps: For each version from 2 on, what brings the schema there from the one before.

    Raises:
        SchemaError: The database is newer than this code, or a step is missing.
    """
    with starting(engine) as connection:
        _META.create_all(connection)
        found = connection.execute(sa.select(_VERSION.c.version)).scalar()
        if found is None:
            connection.execute(_VERSION.insert().values(one=1, version=version))
            found = version
        if found > version:
            raise SchemaError(f"the database has schema {found}, this code needs {version}: start newer code")
        for step in range(found + 1, version + 1):
            if step not in (steps or {}):
                raise SchemaError(f"no step leads to schema {step}")
            (steps or {})[step](connection)
        connection.execute(_VERSION.update().values(version=version))
        for tables in metadata:
            tables.create_all(connection)


def key_check(engine: Engine, name: str) -> str | None:
    """Return what the key `name` is known by, or None before there was one."""
    with reading(engine) as connection:
        value: str | None = connection.execute(sa.select(_KEYS.c.value).where(_KEYS.c.name == name)).scalar()
    return value


def keep_key_check(engine: Engine, name: str, value: str) -> str:
    """Store what the key `name` is known by, unless that is stored; return what is."""
    with engine.begin() as connection:
        add_new(connection, _KEYS, name=name, value=value)
        kept: str = connection.execute(sa.select(_KEYS.c.value).where(_KEYS.c.name == name)).scalar_one()
    return kept


def check(engine: Engine, version: int = 1) -> None:
    """Begin, read the schema version and roll back: the readiness check of a database.

    Raises:
        SchemaError: The schema has another version.
        sqlalchemy.exc.SQLAlchemyError: The database does not answer.
    """
    with reading(engine) as connection:
        found = connection.execute(sa.select(_VERSION.c.version)).scalar()
    if found != version:
        raise SchemaError(f"the database has schema {found}, this code needs {version}")
