"""The demo's OTLP sink, fed by the real exporter."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

from reference_services.demo.collector import collecting


class TestCollector:
    """`collecting`."""

    @pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
    def test_receives_what_the_exporter_sends(self, compression: Compression) -> None:
        """A span arrives with its service, ids, kind, parent and attributes, compressed or not."""
        with collecting() as (collector, url):
            exporter = OTLPSpanExporter(endpoint=f"{url}/v1/traces", compression=compression)
            provider = TracerProvider(resource=Resource({"service.name": "sender"}), shutdown_on_exit=False)
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            tracer = provider.get_tracer("test")
            with (
                tracer.start_as_current_span("parent"),
                tracer.start_as_current_span(
                    "child", kind=SpanKind.SERVER, attributes={"n": 1, "list": ["a", "b"]}
                ),
            ):
                pass
            provider.shutdown()
            child, parent = collector.spans()
        assert (child.service, child.name, child.attributes) == (
            "sender",
            "child",
            {"n": 1, "list": ["a", "b"]},
        )
        assert child.is_server
        assert not parent.is_server
        assert (child.parent_id, child.trace_id) == (parent.span_id, parent.trace_id)
        assert parent.parent_id == ""
        assert child.end_ns >= child.start_ns
