"""Server spans that another instrumentation makes: they are used as they are, and no second one is made."""

from __future__ import annotations

from typing import Any

from opentelemetry.context import get_current
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, get_current_span

#: Where OpenTelemetry's instrumentations are, and what they set on an application.
PACKAGE = "opentelemetry.instrumentation."
INSTRUMENTED = "_is_instrumented_by_opentelemetry"
_OURS = "healthobs"
_MAX_DEPTH = 16


def is_instrumented(app: Any) -> bool:
    """Return whether OpenTelemetry's instrumentation is on `app` or on what it wraps.

    Example:
        >>> is_instrumented(lambda environ, start_response: [])
        False
    """
    for _ in range(_MAX_DEPTH):
        if app is None:
            return False
        if getattr(app, INSTRUMENTED, False) or _is_theirs(app):
            return True
        app = getattr(app, "app", None) or getattr(app, "wsgi", None)
    return False


def _is_theirs(layer: Any) -> bool:
    module: object = getattr(layer, "__module__", None)
    return isinstance(module, str) and module.startswith(PACKAGE)


def enclosing_span() -> SpanContext | None:
    """Return the context of a server span that was opened around the code that runs, by anything but healthobs."""
    current = get_current()
    if not current:  # the usual case, on every request
        return None
    span: Any = get_current_span(current)
    context: SpanContext = span.get_span_context()
    if not context.is_valid or context.is_remote:
        return None
    if type(span) is NonRecordingSpan:  # unsampled, so that its kind is not known
        return context
    scope = getattr(span, "instrumentation_scope", None)
    is_theirs = getattr(scope, "name", _OURS) != _OURS and getattr(span, "kind", None) is SpanKind.SERVER
    return context if is_theirs else None


def answering_span() -> SpanContext:
    """Return the context of the server span under which a response is being started.

    OpenTelemetry's ASGI instrumentation sends inside a span of its own, whose parent is the server's.
    """
    span: Any = get_current_span()
    parent: SpanContext | None = getattr(span, "parent", None)
    if getattr(span, "kind", None) is SpanKind.INTERNAL and parent is not None and not parent.is_remote:
        return parent
    context: SpanContext = span.get_span_context()
    return context
