"""The hand-written floor: the same four signals straight on the APIs, for one Flask application.

What a careful engineer would write: an SDK server span with `traceparent` in, one histogram and one gauge of
prometheus_client, one JSON access line, the header list. Nothing is redacted and nothing is guarded.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TextIO

from opentelemetry import context as otel_context
from opentelemetry.propagate import extract
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, set_span_in_context
from prometheus_client import CollectorRegistry, Gauge, Histogram

HEADERS = [
    ("Compliance", 'frameworks=("hipaa");catalogue="2026.1"'),
    ("Data-Classification", "conf=R"),
    ("Data-Handling", "no-store, retention=220752000, redisclose=?0"),
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
]


class Floor:
    """WSGI middleware with all four signals and nothing else."""

    def __init__(self, app: Callable[..., Iterable[bytes]], provider: TracerProvider, stream: TextIO) -> None:
        self.registry = registry = CollectorRegistry()
        labels = ("method", "scheme", "route", "status", "error", "protocol")
        self.app, self.stream, self.tracer = app, stream, provider.get_tracer("floor")
        self.duration = Histogram("request_duration_seconds", "Duration", labels, registry=registry)
        self.active = Gauge("active_requests", "Active", registry=registry)
        self.children: dict[tuple[str, ...], Any] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        method, scheme = environ["REQUEST_METHOD"], environ["wsgi.url_scheme"]
        wall, start = time.time_ns(), time.perf_counter_ns()
        self.active.inc()
        parent = (
            extract({"traceparent": environ["HTTP_TRACEPARENT"]}) if "HTTP_TRACEPARENT" in environ else None
        )
        attributes = {
            "http.request.method": method,
            "url.scheme": scheme,
            "server.address": environ["SERVER_NAME"],
            "server.port": int(environ["SERVER_PORT"]),
            "network.protocol.version": "1.1",
        }
        span = self.tracer.start_span(method, parent, SpanKind.SERVER, attributes, start_time=wall)
        token = otel_context.attach(set_span_in_context(span))
        seen: list[Any] = ["unmatched", "500"]

        def respond(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            rule = environ["werkzeug.request"].url_rule
            seen[:] = [rule.rule if rule else "unmatched", status[:3]]
            headers.extend(HEADERS)
            return start_response(status, headers, exc_info)

        try:
            body = self.app(environ, respond)
            try:
                return list(body)
            finally:
                body.close()  # type: ignore[attr-defined]
        finally:
            otel_context.detach(token)
            elapsed = time.perf_counter_ns() - start
            route, status = seen
            span.update_name(f"{method} {route}")
            span.set_attributes({"http.route": route, "http.response.status_code": int(status)})
            span.end(wall + elapsed)
            key = (method, scheme, route, status, "", "1.1")
            child = self.children.get(key)
            if child is None:
                child = self.children[key] = self.duration.labels(*key)
            child.observe(elapsed / 1e9)
            self.active.dec()
            ids = span.get_span_context()
            line = {
                "timestamp": datetime.now(UTC).isoformat(),
                "level": "info",
                "event": "http_request",
                "trace_id": f"{ids.trace_id:032x}",
                "span_id": f"{ids.span_id:016x}",
                "method": method,
                "route": route,
                "status": int(status),
                "duration_seconds": elapsed / 1e9,
            }
            self.stream.write(json.dumps(line) + "\n")
