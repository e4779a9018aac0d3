"""Exporters for tests, and all that a backend would get of a span."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator

NEEDLE = "078-05-1120"
TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7


class CountingIds(IdGenerator):
    """Ids 1, 2, 3 and so on."""

    def __init__(self) -> None:
        self.last = 0

    def generate_span_id(self) -> int:
        """Count."""
        self.last += 1
        return self.last

    generate_trace_id = generate_span_id


class Failing(SpanExporter):
    """An exporter whose every method raises, with the needle in the error."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail."""
        raise RuntimeError(NEEDLE)

    def shutdown(self) -> None:
        """Fail."""
        raise RuntimeError(NEEDLE)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Fail."""
        raise RuntimeError(NEEDLE)


class Keeping(SpanExporter):
    """Keeps what it is given, and what it was told."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.calls: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keep."""
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Note."""
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Note."""
        self.calls.append(f"flush {timeout_millis}")
        return True


def shown(span: ReadableSpan) -> str:
    """Everything a backend would get of `span`."""
    assert span.context is not None
    scope = span.instrumentation_scope
    contexts = [span.context, span.parent, *(link.context for link in span.links)]
    parts: list[object] = [
        span.name,
        span.status.description,
        dict(span.attributes or {}),
        [(event.name, dict(event.attributes or {})) for event in span.events],
        [dict(link.attributes or {}) for link in span.links],
        [context.trace_state.to_header() for context in contexts if context is not None],
        dict(span.resource.attributes),
        dict(scope.attributes or {}) if scope else {},
    ]
    return repr(parts)
