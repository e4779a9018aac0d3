"""Where spans go in the bench: encoded as OTLP, as every exporter must, and sent nowhere."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult


class Encoder(SpanExporter):
    """Encodes spans as OTLP, as every exporter must, and sends them nowhere."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Encode."""
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Do nothing."""


def provider(exporter: SpanExporter | None) -> TracerProvider:
    """Return a tracer provider that batches to `exporter`, if there is one."""
    made = TracerProvider(shutdown_on_exit=False)
    if exporter is not None:
        made.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1_000))
    return made
