"""The audit log in PostgreSQL, in the schema `healthobs_audit`, for services with several replicas.

The row of `log` is locked for each batch, so the writers of all replicas come one after the other. Guards refuse
update, delete, truncate and gaps. Keep owner and application apart: the owner runs `prepare` once, and the
application may read and insert, no more (45 CFR 164.312(c)(1), PCI DSS 4.0 requirement 10.3.2).

Limits: PostgreSQL 12 or newer. A superuser, and the owner of the tables, may drop the guards, which verification
then reports. What the server acknowledges is as durable as its disk and its settings; of those `fsync`,
`full_page_writes` and `synchronous_commit` are checked with each batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from healthobs.audit.store import FORBIDDEN, Connection, Row, StoreError, described, holds_log
from healthobs.exceptions import AuditError, ConfigurationError

SCHEMA = "healthobs_audit"
CONNECT_SECONDS = 5
#: The server ends a session that holds the lock and does nothing (a stopped process) after this time.
IDLE_MILLIS = 30_000
#: How long `attempting` waits for the lock.
ATTEMPT_MILLIS = 250
#: Any number, the same in every process: the lock under which tables are made.
_ADVISORY_LOCK = 4_911_024
#: Columns and constraints by table, as the server writes them itself.
_TABLES = {
    "log": (
        "one integer NOT NULL", "format integer NOT NULL", "origin text NOT NULL", "vkey text NOT NULL",
        "PRIMARY KEY (one)", "CHECK ((one = 1))",
    ),
    "entry": (
        "idx bigint NOT NULL", "leaf bytea NOT NULL", "body text",
        "PRIMARY KEY (idx)", "CHECK ((length(leaf) = 32))",
    ),
    "tile": (
        "level integer NOT NULL", "n bigint NOT NULL", "width integer NOT NULL", "hashes bytea NOT NULL",
        "PRIMARY KEY (level, n, width)", "CHECK ((length(hashes) = (32 * width)))",
    ),
    "checkpoint": ("size bigint NOT NULL", "note text NOT NULL", "PRIMARY KEY (size)"),
    "sequenced": ("id text NOT NULL", "idx bigint NOT NULL", "PRIMARY KEY (id)"),
}  # fmt: skip
#: A plain table whose every row counts: none that a crash empties, that hides rows, or that shares them with another.
_PLAIN = "table"
_DEFINED = f"""WITH found AS (
    SELECT pg_class.*, pg_class.oid AS place FROM pg_class
    JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = ?
)
SELECT relname, CASE WHEN relkind = 'r' AND relpersistence = 'p' AND NOT relrowsecurity
    AND NOT EXISTS (SELECT FROM pg_inherits WHERE place IN (inhrelid, inhparent)) THEN '{_PLAIN}' ELSE '' END FROM found
UNION ALL SELECT relname, attname || ' ' || format_type(atttypid, atttypmod)
    || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END
    || CASE WHEN atthasdef OR attidentity <> '' OR attcollation <> typcollation THEN ' and more' ELSE '' END
    FROM found JOIN pg_attribute ON attrelid = place JOIN pg_type ON pg_type.oid = atttypid
    WHERE attnum > 0 AND NOT attisdropped
UNION ALL SELECT relname, pg_get_constraintdef(pg_constraint.oid) FROM found JOIN pg_constraint ON conrelid = place
    WHERE contype NOT IN ('n', 't')"""  # noqa: S608 - NOT NULL is with the columns, constraint triggers with the triggers
_ON_TABLES = """SELECT kind, name, relname FROM (
    SELECT 'trigger' AS kind, tgname AS name, tgrelid AS place FROM pg_trigger
    UNION ALL SELECT 'rule', rulename, ev_class FROM pg_rewrite
    UNION ALL SELECT 'policy', polname, polrelid FROM pg_policy
    UNION ALL SELECT 'index', relname, indrelid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE NOT indisprimary
) AS found JOIN pg_class ON pg_class.oid = place JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = ?"""
_RAISE = "RAISE EXCEPTION 'audit: {}' USING ERRCODE = 'integrity_constraint_violation';"
#: Bodies of the trigger functions.
_FUNCTIONS = {
    "append_only": f"BEGIN {_RAISE.format('the log only grows')} END",
    "no_gap": (
        f"BEGIN IF new.idx IS DISTINCT FROM (SELECT coalesce(max(idx), -1) + 1 FROM {SCHEMA}.entry) THEN "  # noqa: S608
        f"{_RAISE.format('entries are numbered without gaps')} END IF; RETURN new; END"
    ),
}
#: Guards by name: table, function, when (as SQL and as `pg_trigger.tgtype`).
GUARDS = {
    f"{table}_append_only": (
        table,
        "append_only",
        "UPDATE OR DELETE OR TRUNCATE",
        "STATEMENT",
        2 + 8 + 16 + 32,
    )
    for table in _TABLES
} | {"entry_no_gap": ("entry", "no_gap", "INSERT", "ROW", 1 + 2 + 4)}
_DURABLE = {"synchronous_commit": ("on", "remote_apply"), "fsync": ("on",), "full_page_writes": ("on",)}
#: Read with `current_setting`; see `refuse_loss`.
DURABILITY = f"SELECT {', '.join(f'current_setting({name!r})' for name in _DURABLE)}"
_LOCK = f"{DURABILITY} FROM log WHERE one = 1 FOR UPDATE"


def prepare(owner_url: str, application_role: str) -> None:
    """Make schema, tables and guards as their owner, and let the application read and insert.

    Args:
        owner_url: How the owner connects; the application must not have it.
        application_role: Role of the application; it must exist, and own nothing here.

    Raises:
        AuditError: The database refused; the message has its code.
        ConfigurationError: The URL is malformed.
    """
    role = sql.Identifier(application_role)
    grants = (
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {{}}",
        f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {SCHEMA} TO {{}}",
        f"GRANT UPDATE (one) ON {SCHEMA}.log TO {{}}",  # to lock the row; the guard refuses the update itself
    )
    with PostgresStore(owner_url).initialising() as connection:
        for grant in grants:
            connection.execute(sql.SQL(grant).format(role).as_string())  # pyright: ignore[reportArgumentType]


def options_of(url: str, whose: str) -> dict[str, object]:
    """Return how to connect to what `url` names.

    Args:
        url: ``postgresql://...`` as libpq or SQLAlchemy has it.
        whose: What the error says before ``URL``.

    Raises:
        ConfigurationError: The URL is malformed.
    """
    try:
        options = conninfo_to_dict(url.replace("postgresql+psycopg://", "postgresql://", 1))
    except psycopg.Error:
        raise ConfigurationError(f"{whose} URL is no valid postgresql:// URL") from None
    defaults = {"connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 2_000 * CONNECT_SECONDS}
    return {**defaults, **options, "client_encoding": "UTF8"}


def code_of(exc: Exception) -> str:
    """Return the code and name of what failed: the server's DETAIL quotes values, connection errors name hosts and users."""
    code = getattr(exc, "sqlstate", None)
    return f"{code} {type(exc).__name__}" if code else type(exc).__name__


def refuse_loss(found: Row) -> None:
    """Return when the settings of `DURABILITY` lose nothing.

    Raises:
        AuditError: One does.
    """
    for (name, wanted), value in zip(_DURABLE.items(), found, strict=True):
        if value not in wanted:
            raise AuditError(
                f"PostgreSQL runs with {name}={value}, so what it confirms can be lost; set it to {wanted[0]}"
            )


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except psycopg.Error as exc:
        refused = isinstance(exc, (psycopg.IntegrityError, errors.InsufficientPrivilege))
        busy = isinstance(exc, errors.LockNotAvailable)
        raise StoreError(code_of(exc), refused=refused, busy=busy) from None


class PostgresStore:
    """A log in the database that `url` names.

    Args:
        url: ``postgresql://...`` as libpq has it.

    Raises:
        ConfigurationError: The URL is malformed.
    """

    path: Path | None = None

    def __init__(self, url: str) -> None:
        self._options = options_of(url, "the audit database")
        where = (str(self._options.get(part, "")) for part in ("host", "port", "dbname"))
        self.name: str = "postgresql:" + ":".join(where)

    def connect(self, *, read_only: bool = False, live: bool = False) -> PostgresConnection:  # noqa: ARG002
        """Open a connection.

        Raises:
            StoreError: The server cannot be reached, or refuses.
        """
        with _translated():
            return PostgresConnection(self._options, read_only=read_only)

    @contextmanager
    def initialising(self) -> Generator[Connection]:
        """Make the tables where they are missing.

        Raises:
            StoreError: It cannot be done.
        """
        with contextlib.closing(self.connect()) as connection, connection.transaction("BEGIN", "COMMIT"):
            connection.execute("SELECT pg_advisory_xact_lock(?)", (_ADVISORY_LOCK,))
            if not holds_log(connection):
                for statement in _schema():
                    connection.execute(statement)
            yield connection


def _schema() -> Generator[str]:
    yield f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"
    for name, columns in _TABLES.items():
        yield f"CREATE TABLE {SCHEMA}.{name} ({', '.join(columns)})"
    for name, body in _FUNCTIONS.items():
        yield f"CREATE FUNCTION {SCHEMA}.{name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
    for name, (table, function, event, each, _) in GUARDS.items():
        yield (
            f"CREATE TRIGGER {name} BEFORE {event} ON {SCHEMA}.{table} FOR EACH {each} "
            f"EXECUTE FUNCTION {SCHEMA}.{function}()"
        )


class PostgresConnection:
    """A connection to a log in PostgreSQL; see `healthobs.audit.store.Connection`."""

    def __init__(self, options: Mapping[str, object], *, read_only: bool) -> None:
        self._connection = psycopg.connect(autocommit=True, **options)  # type: ignore[arg-type]
        try:
            self._connection.execute(
                "SELECT set_config('search_path', %s, false), set_config('default_transaction_read_only', %s, false),"
                " set_config('idle_in_transaction_session_timeout', %s, false)",
                (f"{SCHEMA}, pg_temp", "on" if read_only else "off", str(IDLE_MILLIS)),
            )
        except BaseException:
            self._connection.close()
            raise

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Run one statement and return its rows."""
        with _translated():
            if not parameters:
                cursor = self._connection.execute(statement.encode())
            else:
                cursor = self._connection.execute(statement.replace("?", "%s").encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def insert(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for each row of parameters, without waiting for each answer."""
        with _translated(), self._connection.cursor() as cursor:
            cursor.executemany(statement.replace("?", "%s").encode(), rows)

    @contextmanager
    def writing(self) -> Generator[None]:
        """Lock the row of the log, and commit at the end."""
        with self.transaction("BEGIN", "COMMIT"):
            self._lock()
            yield

    @contextmanager
    def amending(self) -> Generator[None]:
        """As `writing`, with the guards of entries and checkpoints lifted until its end; only their owner may."""
        guarded = ("entry", "checkpoint")
        with self.writing():
            for table in guarded:
                self.execute(f"ALTER TABLE {table} DISABLE TRIGGER {table}_append_only")
            yield
            for table in guarded:
                self.execute(f"ALTER TABLE {table} ENABLE TRIGGER {table}_append_only")

    @contextmanager
    def attempting(self) -> Generator[None]:
        """Lock the row of the log without a long wait, and roll back at the end."""
        with self.transaction("BEGIN", "ROLLBACK"):
            self.execute(f"SET LOCAL lock_timeout = {ATTEMPT_MILLIS}")
            self._lock()
            yield

    @contextmanager
    def reading(self) -> Generator[None]:
        """Read from one snapshot."""
        with self.transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "COMMIT"):
            yield

    @contextmanager
    def transaction(self, begin: str, end: str) -> Generator[None]:
        """Run the body between two statements, and roll back on an exception."""
        self.execute(begin)
        try:
            yield
            self.execute(end)
        except BaseException:
            with contextlib.suppress(StoreError):
                self.execute("ROLLBACK")
            raise

    def _lock(self) -> None:
        rows = self.execute(_LOCK)
        if not rows:
            raise AuditError("the log was never begun; open the trail once before it is used")
        refuse_loss(rows[0])

    def tables(self) -> set[str]:
        """Return the names of the tables in the schema."""
        rows = self.execute("SELECT tablename FROM pg_tables WHERE schemaname = ?", (SCHEMA,))
        return {name for (name,) in rows}

    def damage(self) -> str | None:
        """Return None: what a server finds wrong with its own pages it reports where they are read."""
        return None

    def missing_guards(self) -> tuple[str, ...]:
        """Return the names of guards that are gone, switched off or were altered."""
        rows = self.execute(
            "SELECT tgname, relname, prosrc, tgtype, proconfig IS NULL FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
            "JOIN pg_namespace ON pg_namespace.oid = relnamespace JOIN pg_proc ON pg_proc.oid = tgfoid "
            "WHERE nspname = ? AND tgenabled IN ('O', 'A') AND tgqual IS NULL AND tgattr::text = ''",
            (SCHEMA,),
        )
        present = set(rows)
        return tuple(
            name
            for name, (table, function, _, _, kind) in GUARDS.items()
            if (name, table, _FUNCTIONS[function], kind, True) not in present
        )

    def altered_tables(self) -> tuple[str, ...]:
        """Return the names of tables that are gone, or whose columns, types or constraints are not those that were made."""
        found: dict[str, set[str]] = {}
        for name, what in self.execute(_DEFINED, (SCHEMA,)):
            found.setdefault(name, set()).add(what)
        return tuple(name for name, made in _TABLES.items() if found.get(name) != {_PLAIN, *made})

    def foreign(self) -> tuple[str, ...]:
        """Return the triggers, rules, policies and indexes that the tables have beyond the guards and keys.

        Triggers that the server calls its own are none of ours either: those of a foreign key that refers to the log.
        """
        return tuple(
            described(kind, name)
            for kind, name, table in self.execute(_ON_TABLES, (SCHEMA,))
            if table in _TABLES and not (kind == "trigger" and GUARDS.get(name, ("",))[0] == table)
        )

    @property
    def forbidden(self) -> Mapping[str, str]:
        """Statements that must be refused, by name."""
        replace = (
            "INSERT INTO entry (idx, leaf, body) SELECT idx, leaf, NULL FROM entry ORDER BY idx DESC LIMIT 1 "
            "ON CONFLICT (idx) DO UPDATE SET body = NULL"
        )
        return {**FORBIDDEN, "REPLACE": replace, "TRUNCATE": "TRUNCATE entry"}

    def usable(self) -> bool:
        """Return whether the connection is open, as far as this side knows."""
        return not self._connection.closed

    def close(self) -> None:
        """Close the connection; the server gives its locks back."""
        self._connection.close()
