"""SQLAlchemy: one CLIENT span for each statement, with its shape and never a value.

OpenTelemetry semantic conventions for database spans (stable): `db.system.name`, `db.operation.name`; the shape is the
statement with its literals taken out, on `healthobs.db.shape`. Parameters are not looked at.

Limits: only what SQLAlchemy executes is seen; a span covers the statement, not the fetching of rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from healthobs._runtime import current_or_none

_LITERAL = re.compile(r"'(?:[^']|'')*'|\b(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?)\b")
_OPERATION = re.compile(r"\s*([A-Za-z]+)")
_SPANS = "healthobs.spans"


def shape(statement: str) -> str:
    """Return `statement` without literals.

    Example:
        >>> shape("select * from bed where ward = 'west' and number in (3, 4.5) and id = :id")
        'select * from bed where ward = ? and number in (?, ?) and id = :id'
    """
    return _LITERAL.sub("?", statement)


def observe_engine(engine: Any) -> Callable[[], None]:
    """Make a span of every statement that `engine` executes where an `Observability` is in force.

    Args:
        engine: A SQLAlchemy engine; of an asynchronous one, its `sync_engine`.

    Returns:
        What takes it off again.
    """
    from sqlalchemy import event

    system = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}.get(
        engine.dialect.name, "other_sql"
    )

    def begin(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        obs = current_or_none()
        if obs is None:
            return
        found = _OPERATION.match(statement)
        operation = found[1].upper() if found else "SQL"
        attributes = {
            "db.system.name": system,
            "db.operation.name": operation,
            "healthobs.db.shape": shape(statement),
        }
        span = obs.tracing.tracer.start_span(operation, kind=SpanKind.CLIENT, attributes=attributes)
        connection.info.setdefault(_SPANS, []).append(span)

    def end(connection: Any, *_rest: Any) -> None:
        spans: list[Span] = connection.info.get(_SPANS, [])
        if spans:
            spans.pop().end()

    def fail(context: Any) -> None:
        spans: list[Span] = context.connection.info.get(_SPANS, []) if context.connection is not None else []
        if spans:
            span, kind = spans.pop(), type(context.original_exception).__qualname__
            span.set_attribute("error.type", kind)
            span.set_status(Status(StatusCode.ERROR, kind))
            span.end()

    hooks = (("before_cursor_execute", begin), ("after_cursor_execute", end), ("handle_error", fail))
    for name, hook in hooks:
        event.listen(engine, name, hook)

    def remove() -> None:
        for name, hook in hooks:
            event.remove(engine, name, hook)

    return remove
