"""A small OTLP/HTTP sink: takes the spans that the services export and keeps them in memory.

Implements the receiving side of the OpenTelemetry Protocol 1.x over HTTP with protobuf bodies
(`POST /v1/traces`, gzip or identity). It answers 200 with an empty response message and bounds each
body to 16 MiB after decompression.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

MAX_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """One exported span, ids as lower-case hex, times in nanoseconds since the Unix epoch."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start_ns: int
    end_ns: int
    status: int
    attributes: dict[str, Any]
    text: str

    @property
    def is_server(self) -> bool:
        """Tell whether this is the SERVER span of a request."""
        return self.kind == 2


class Collector:
    """The spans received so far."""

    def __init__(self) -> None:
        self._spans: list[SpanRecord] = []
        self._lock = threading.Lock()

    def spans(self) -> list[SpanRecord]:
        """Return what has arrived, in order of arrival."""
        with self._lock:
            return list(self._spans)

    def receive(self, body: bytes) -> None:
        """Decode one export request and keep its spans."""
        request = ExportTraceServiceRequest.FromString(body)
        records = [
            _record(resource_spans.resource, span)
            for resource_spans in request.resource_spans
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        with self._lock:
            self._spans.extend(records)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


def _record(resource: Any, span: Any) -> SpanRecord:
    facts = {pair.key: _value(pair.value) for pair in resource.attributes}
    return SpanRecord(
        service=str(facts.get("service.name", "")),
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=span.status.code,
        attributes={pair.key: _value(pair.value) for pair in span.attributes},
        text=str(resource) + str(span),
    )


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """Serve a `Collector` on a free loopback port; yield it and its base URL."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = zlib.decompressobj(wbits=31).decompress(body, MAX_BODY_BYTES)
            collector.receive(body)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="otlp-sink", daemon=True)
    thread.start()
    try:
        yield collector, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
