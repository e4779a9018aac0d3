"""The tracer provider of one service, and `traceparent` in and out (W3C Trace Context §3.2)."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NoOpTracer,
    Span,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)
from opentelemetry.trace import TracerProvider as ApiTracerProvider

from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.redaction import ExceptionFacts, Redactor
from healthobs.tracing.adoption import Adoption, sdk_provider
from healthobs.tracing.exporters import OUR_EXCEPTION, LazyExporter, NotesNames, RedactingSpanExporter

_logger = logging.getLogger(__name__)

_EXPORT_DELAY_MILLIS = 1_000
_RELEASE_MILLIS = 5_000
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_LATER_VERSION = re.compile(
    r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?", re.DOTALL
)
_EMPTY_STATE = TraceState()


class Tracing:
    """A tracer provider of one's own, and its tracer.

    Args:
        provider: The provider; its exporters redact.
        enabled: When False, `tracer` makes spans that record nothing.
        exporters: Those of `provider`.
        adopted: What was wrapped in place, when the provider is somebody else's.
        source: What makes the tracer; default the provider.
    """

    def __init__(
        self,
        provider: TracerProvider,
        *,
        version: str,
        enabled: bool = True,
        exporters: Sequence[RedactingSpanExporter] = (),
        adopted: Adoption | None = None,
        source: ApiTracerProvider | None = None,
    ) -> None:
        self.provider = provider
        self._exporters = exporters
        self.enabled = enabled
        self._adopted = adopted
        self.tracer: Tracer = (
            (source or provider).get_tracer("healthobs", version) if enabled else NoOpTracer()
        )
        # The provider flushes at exit; a child of multiprocessing skips `atexit` and runs finalizers only.
        self._finalizer = Finalize(None, self.close, exitpriority=100) if exporters else None

    def failures(self) -> int:
        """Return how many exports have failed so far."""
        return sum(exporter.failures for exporter in self._exporters)

    @property
    def is_adopted(self) -> bool:
        """Whether the provider is somebody else's."""
        return self._adopted is not None

    def flush(self, timeout_millis: int = 5_000) -> bool:
        """Export what has ended; return whether all of it went in `timeout_millis`."""
        try:
            return self.provider.force_flush(timeout_millis)
        except Exception:  # noqa: BLE001  # a fault of telemetry is not the caller's
            return False

    def close(self) -> None:
        """Flush and stop; spans that end later are dropped. An adopted provider is flushed and given back."""
        if self._finalizer is not None:
            self._finalizer.cancel()
        try:
            if self._adopted is None:
                self.provider.shutdown()
            else:
                try:
                    self.provider.force_flush(_RELEASE_MILLIS)
                finally:
                    self._adopted.release()
        except Exception:  # noqa: BLE001
            _logger.warning("closing the tracer provider failed")


def build_tracing(
    settings: Settings,
    redactor: Redactor,
    *,
    exporters: Sequence[SpanExporter] = (),
    id_generator: IdGenerator | None = None,
    simple: bool = False,
    on_error: Callable[[str], None] | None = None,
    adopt: ApiTracerProvider | None = None,
) -> Tracing:
    """Build the tracer provider of one `Observability`, or adopt one; the process-wide one is never set.

    Args:
        settings: Names the service and says where spans go.
        redactor: Wraps every exporter.
        exporters: Where spans go besides `settings.otlp_endpoint`.
        id_generator: Makes trace and span ids; default random.
        simple: Export each span when it ends, on the caller's thread (for tests).
        on_error: Called with ``tracing`` for each failed export.
        adopt: A provider that is there already: its exporters are wrapped in place, none is added.

    Raises:
        ConfigurationError: When an OTLP endpoint is set and the extra ``otlp`` is not installed, or the adopted
            provider is none of the SDK's.

    Example:
        >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        >>> memory = InMemorySpanExporter()
        >>> tracing = build_tracing(Settings(), Redactor(), exporters=[memory], simple=True)
        >>> with tracing.tracer.start_as_current_span("op", attributes={"patient.name": "John"}):
        ...     pass
        >>> memory.get_finished_spans()[0].attributes["patient.name"]
        '[PHI:key]'
        >>> tracing.close()
    """
    if settings.service_version:  # the version of our scope
        redactor.written(settings.service_version)
    if adopt is not None:
        return _adopted(adopt, settings, redactor, on_error)
    provider = TracerProvider(resource=build_resource(settings), id_generator=id_generator)
    enabled = not settings.disabled
    sinks = list(exporters)
    if enabled and settings.otlp_endpoint:
        sinks.append(_otlp(settings.otlp_endpoint))
    exporting = [RedactingSpanExporter(sink, redactor, on_error=on_error) for sink in sinks if enabled]
    for wrapped in exporting:
        processor = _Simple(wrapped) if simple else _Batch(wrapped, schedule_delay_millis=_export_delay())
        processor.redactor = redactor
        provider.add_span_processor(processor)
    return Tracing(provider, version=settings.service_version, enabled=enabled, exporters=exporting)


class _Simple(NotesNames, SimpleSpanProcessor):
    """Exports each span when it ends."""


class _Batch(NotesNames, BatchSpanProcessor):
    """Exports from a thread of its own."""


class _Notes(NotesNames, SpanProcessor):
    """Exports nothing: for a provider whose processors are somebody else's."""


def _adopted(
    given: ApiTracerProvider, settings: Settings, redactor: Redactor, on_error: Callable[[str], None] | None
) -> Tracing:
    provider = sdk_provider(given)
    notes: _Notes | None = None
    if redactor.strict:
        notes = _Notes()
        notes.redactor = redactor
    adoption = Adoption(
        provider, lambda inner: RedactingSpanExporter(inner, redactor, on_error=on_error), notes
    )
    enabled = not settings.disabled
    return Tracing(
        provider, version=settings.service_version, enabled=enabled, adopted=adoption, source=given
    )


def _export_delay() -> float | None:
    """Return the batch delay in milliseconds: a second, because a worker that is killed loses what waits."""
    # None: the SDK reads it
    return None if os.environ.get("OTEL_BSP_SCHEDULE_DELAY") else _EXPORT_DELAY_MILLIS


def build_resource(settings: Settings) -> Resource:
    """Return who emits: service, environment, instance and SDK, over `OTEL_RESOURCE_ATTRIBUTES`."""
    attributes = {
        "service.version": settings.service_version,
        "deployment.environment.name": settings.environment,
    }
    if settings.service_name != "unknown_service":
        attributes["service.name"] = settings.service_name
    return Resource.create(attributes)


def _otlp(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise ConfigurationError(
            "an OTLP endpoint is set but its exporter is not installed; install healthobs[otlp] or unset it"
        ) from None
    base = endpoint.rstrip("/")
    url = base if base.endswith("/v1/traces") else f"{base}/v1/traces"
    return LazyExporter(lambda: OTLPSpanExporter(endpoint=url))


def parse_traceparent(header: str) -> SpanContext | None:
    """Return the remote parent that a `traceparent` header names, or None when the header is invalid.

    Strict as W3C Trace Context level 1 §3.2.2 and §4.3 ask: lower-case hexadecimal, no zero ids, version
    ``ff`` refused, nothing after the flags of version ``00``; of a later version the known fields are used.

    Example:
        >>> context = parse_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        >>> f"{context.trace_id:032x}", context.trace_flags.sampled
        ('4bf92f3577b34da6a3ce929d0e0e4736', True)
        >>> parse_traceparent("00-00000000000000000000000000000000-00f067aa0ba902b7-01") is None
        True
    """
    match = _TRACEPARENT.fullmatch(header)
    if match is None:
        match = _LATER_VERSION.fullmatch(header)
        if match is None or header.startswith("00"):
            return None
    trace_id, span_id = int(match[1], 16), int(match[2], 16)
    if not trace_id or not span_id:
        return None
    # Only the sampled flag is defined in level 1; others must not be passed on (§3.2.2.5.2).
    return SpanContext(trace_id, span_id, True, TraceFlags(int(match[3], 16) & 1), _EMPTY_STATE)


def format_traceparent(ctx: SpanContext) -> str:
    """Return the `traceparent` header that names `ctx` as parent (W3C Trace Context §3.2).

    Example:
        >>> header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        >>> format_traceparent(parse_traceparent(header)) == header
        True
    """
    return f"00-{ctx.trace_id:032x}-{ctx.span_id:016x}-{ctx.trace_flags & 1:02x}"


def record_exception(span: Span, facts: ExceptionFacts) -> None:
    """Put an exception on `span`: event, `error.type` and status, without what it says about a patient.

    Semantic conventions, "Exceptions on spans"; `exception.message` only when it is a literal of the raising
    code, `exception.stacktrace` never (`healthobs.exception.frames` names the places instead).
    """
    attributes: dict[str, str | Sequence[str]] = {
        "exception.type": facts.type,
        "healthobs.exception.frames": facts.frames,
        OUR_EXCEPTION: facts.fingerprint,
        "healthobs.error_id": facts.error_id,
    }
    if facts.causes:
        attributes["healthobs.exception.causes"] = facts.causes
    if facts.message is not None:
        attributes["exception.message"] = facts.message
    span.add_event("exception", attributes)
    span.set_attribute("error.type", facts.type)
    span.set_status(Status(StatusCode.ERROR, facts.type))
