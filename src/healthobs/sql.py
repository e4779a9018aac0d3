"""SQLAlchemy: one CLIENT span for each statement, with its shape and never a value.

OpenTelemetry semantic conventions for database spans (stable): `db.system.name`, `db.operation.name`; the shape is the
statement with its literals and comments taken out, on `healthobs.db.shape`; where its quoting can be read in two ways, the
operation alone. In ``strict`` the shape is left out, as text that no code need hold, unless `Settings.allowed_keys` names it.
Parameters are not looked at.

Limits: only what SQLAlchemy executes is seen; a span covers the statement, not the fetching of rows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode

from healthobs._runtime import current_or_none

_NUMBER = r"\b\d[\w.]*(?:(?<=[eE])[+-]\d+)?"
_STRINGS = (  # the standard's, then those in which a backslash escapes (MySQL); which it is depends on the server
    r"""'(?:[^']|'')*+'|(?P<double>"(?:[^"]|"")*+")""",
    r"""'(?:[^'\\]|\\.|'')*+'|(?P<double>"(?:[^"\\]|\\.|"")*+")""",
)
_TOKENS = [
    re.compile(
        # No reading of these is safe: Oracle's q'[...]', a nested comment, what is a comment in MySQL only.
        r"(?P<unclear>\b[nN]?[qQ]'|/\*(?:(?!\*/).)*?/\*|\#)"
        r"|(?P<comment>/\*.*?\*/|--[^\n]*)"
        r"|\b[eE]'(?:[^'\\]|\\.|'')*+'"
        r"|(?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$"
        r"|(?P<name>`[^`]*+`)"
        rf"|{strings}|{_NUMBER}"
        r"|(?P<open>['\"`]|/\*|\*/|\$(?:[^\W\d]\w*)?\$)",
        re.DOTALL,
    )
    for strings in _STRINGS
]
#: Where ``"..."`` is a name and never a string, and ``#`` an operator.
_NAMES_IN_QUOTES = "postgresql"
_OPERATION = re.compile(r"\s*([A-Za-z]+)")
#: First words of statements in the dialects of SQLAlchemy's own.
_VERBS = frozenset(
    """
    ABORT ALTER ANALYZE ATTACH BACKUP BEGIN CALL CHECK CHECKPOINT CLOSE CLUSTER COMMENT COMMIT COPY CREATE DEALLOCATE DECLARE
    DELETE DENY DESC DESCRIBE DETACH DISCARD DO DROP END EXEC EXECUTE EXPLAIN FETCH FLUSH GRANT HANDLER IMPORT INSERT KILL
    LISTEN LOAD LOCK MERGE MOVE NOTIFY OPTIMIZE PRAGMA PREPARE REASSIGN REFRESH REINDEX RELEASE RENAME REPAIR REPLACE RESET
    RESTORE REVOKE ROLLBACK SAVE SAVEPOINT SECURITY SELECT SET SHOW START TABLE TRUNCATE UNLISTEN UNLOCK UPDATE USE VACUUM
    VALUES WITH XA
    """.split()  # noqa: SIM905 - a list of words reads better
)
_SPANS = "healthobs.spans"
_SHAPE = "healthobs.db.shape"
_Hooks = tuple[tuple[str, Callable[..., None]], ...]
#: By engine: its hooks, and one object for each time it is observed.
_observed: WeakKeyDictionary[Any, tuple[_Hooks, set[object]]] = WeakKeyDictionary()
_lock = threading.Lock()


def shape(statement: str, dialect: str = "") -> str:
    """Return `statement` without literals and comments; its operation alone where its quoting can be read in two ways.

    Args:
        statement: The statement.
        dialect: SQLAlchemy's name of it; only ``postgresql`` keeps ``"..."``, which others take for a string.

    Example:
        >>> shape("select * from bed where ward = 'west' and number in (3, 4.5) and id = :id")
        'select * from bed where ward = ? and number in (?, ?) and id = :id'
    """
    readings = _TOKENS if "\\" in statement else _TOKENS[:1]
    shapes = {_shaped(statement, tokens, names=dialect == _NAMES_IN_QUOTES) for tokens in readings} - {None}
    found = shapes.pop() if len(shapes) == 1 else None
    return _operation(statement) if found is None else found


def _shaped(statement: str, tokens: re.Pattern[str], *, names: bool) -> str | None:
    """Return the shape in one reading; None when that does not come out even."""
    parts, end = list[str](), 0
    for match in tokens.finditer(statement):
        parts.append(statement[end : match.start()])
        end = match.end()
        kind = match.lastgroup
        if kind == "open" or (kind == "unclear" and not (names and match[0] == "#")):
            return None
        kept = kind in ("name", "unclear") or (kind == "double" and names)
        parts.append(match[0] if kept else " " if kind == "comment" else "?")
    return "".join((*parts, statement[end:])).rstrip()


def _operation(statement: str) -> str:
    """Return the statement's first word, where it is one that SQL has; what else stands there can be anybody's."""
    found = _OPERATION.match(statement)
    word = found[1].upper() if found else ""
    return word if word in _VERBS else "SQL"


def observe_engine(engine: Any) -> Callable[[], None]:
    """Make a span of every statement that `engine` executes where an `Observability` is in force.

    It may be observed again, as by a factory that runs twice: a statement stays one span.

    Args:
        engine: A SQLAlchemy engine; of an asynchronous one, its `sync_engine`.

    Returns:
        What takes it off again; the last one, where it is observed several times.
    """
    from sqlalchemy import event

    mine = object()
    with _lock:
        known = _observed.get(engine)
        if known is None:
            known = _hooks(engine.dialect.name), set[object]()
            for name, hook in known[0]:
                event.listen(engine, name, hook)
            _observed[engine] = known
        hooks, observers = known
        observers.add(mine)

    def remove() -> None:
        with _lock:
            if mine not in observers:
                return
            observers.remove(mine)
            if observers:
                return
            del _observed[engine]
            for name, hook in hooks:
                event.remove(engine, name, hook)

    return remove


def _hooks(dialect: str) -> _Hooks:
    """Return what listens to an engine, by the name of the event."""
    system = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}.get(dialect, "other_sql")

    def begin(
        connection: Any, _cursor: Any, statement: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        obs = current_or_none()
        spans: list[tuple[Any, Span]] = connection.info.setdefault(_SPANS, [])
        if obs is None or (context is not None and spans and spans[-1][0] is context):
            return
        spans.append((context, INVALID_SPAN))  # what ends pops, whether there is a span or not
        operation = _operation(statement)
        attributes = {"db.system.name": system, "db.operation.name": operation}
        if not obs.redactor.strict or obs.redactor.allows(_SHAPE):
            attributes[_SHAPE] = shape(statement, dialect)
        span = obs.tracing.tracer.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes)
        spans[-1] = context, span

    def ended(connection: Any, context: Any) -> Span | None:
        spans: list[tuple[Any, Span]] = connection.info.get(_SPANS, []) if connection is not None else []
        return spans.pop()[1] if spans and spans[-1][0] is context else None

    def end(
        connection: Any, _cursor: Any, _statement: str, _parameters: Any, context: Any, _many: bool
    ) -> None:
        span = ended(connection, context)
        if span is not None:
            span.end()

    def fail(failure: Any) -> None:
        span = ended(failure.connection, failure.execution_context)
        if span is not None:
            kind = type(failure.original_exception).__qualname__
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, kind))
            span.end()

    return tuple(
        (name, _guarded(name, hook))
        for name, hook in (
            ("before_cursor_execute", begin), ("after_cursor_execute", end), ("handle_error", fail)
        )
    )  # fmt: skip


def _guarded(event: str, hook: Callable[..., None]) -> Callable[..., None]:
    """Return `hook` so that what it raises is counted, and is not the statement's."""

    def guarded(*arguments: Any) -> None:
        try:
            hook(*arguments)
        except Exception as exc:  # noqa: BLE001 - a processor or sampler of the process
            obs = current_or_none()
            if obs is not None:
                obs.fault("sql", event, exc)

    return guarded
