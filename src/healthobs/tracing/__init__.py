"""Traces: an own tracer provider whose every exporter redacts, and `traceparent` in and out.

Standards: OpenTelemetry trace SDK and semantic conventions (stable ones), W3C Trace Context level 1 §3.2,
OTLP over HTTP. Spans are redacted on export, see `RedactingSpanExporter`.

A provider that is there already can be adopted: `Observability(tracer_provider=…)`.

Limits: the process-wide tracer provider is never set; sampler and span limits come from the SDK's own
`OTEL_*` variables.
"""

from healthobs.tracing.baggage import read_baggage, write_baggage
from healthobs.tracing.exporters import LazyExporter, RedactingSpanExporter
from healthobs.tracing.foreign import answering_span, enclosing_span, is_instrumented
from healthobs.tracing.provider import (
    Tracing,
    build_resource,
    build_tracing,
    format_traceparent,
    parse_traceparent,
    record_exception,
)

__all__ = [
    "LazyExporter",
    "RedactingSpanExporter",
    "Tracing",
    "answering_span",
    "build_resource",
    "build_tracing",
    "enclosing_span",
    "format_traceparent",
    "is_instrumented",
    "parse_traceparent",
    "read_baggage",
    "record_exception",
    "write_baggage",
]
