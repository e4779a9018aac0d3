"""The stacks that users assemble from peers, as their documentation says; each only where it is installed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from bench import apps
from bench.exporting import provider
from bench.floor import HEADERS


def _otel_flask(exporter: SpanExporter | None = None) -> apps.Stack:
    """OpenTelemetry's Flask instrumentation, spans only."""
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    app, tracing = apps.flask_app(), provider(exporter)
    FlaskInstrumentor().instrument_app(app, tracer_provider=tracing)
    return apps.Stack(app, tracing.force_flush)


def _documented(exporter: SpanExporter | None = None) -> apps.Stack:
    """All four signals: OpenTelemetry Flask, prometheus_flask_exporter, flask-talisman, a structlog access line."""
    import structlog
    from flask import g, request
    from flask_talisman import Talisman
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    app, tracing, registry = apps.flask_app(), provider(exporter), CollectorRegistry()
    FlaskInstrumentor().instrument_app(app, tracer_provider=tracing)
    PrometheusMetrics(app, group_by="url_rule", registry=registry)
    Talisman(app, force_https=False)
    log = structlog.wrap_logger(
        structlog.WriteLogger(apps.DevNull()),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(json.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()

    @app.after_request
    def end(response: Any) -> Any:
        log.info(
            "http_request",
            method=request.method,
            route=str(request.url_rule),
            status=response.status_code,
            duration_seconds=time.perf_counter() - g.started,
        )
        return response

    return apps.Stack(app, tracing.force_flush, registry, "/metrics")


def _logfire(exporter: SpanExporter | None = None) -> apps.Stack:
    """logfire.instrument_flask, nothing sent."""
    import logfire

    app = apps.flask_app()
    own = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        inspect_arguments=False,
        distributed_tracing=True,  # otherwise each incoming `traceparent` is a warning
        additional_span_processors=[] if exporter is None else [BatchSpanProcessor(exporter)],
    )
    own.instrument_flask(app)
    return apps.Stack(app, own.force_flush)


def _leanest(exporter: SpanExporter | None = None) -> apps.Stack:
    """The least one can assemble: OpenTelemetry's WSGI middleware, the rest by hand in Flask's hooks."""
    from flask import g, request
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.trace import get_current_span
    from prometheus_client import CollectorRegistry, Gauge, Histogram

    app, registry, stream = apps.flask_app(), CollectorRegistry(), apps.DevNull()
    duration = Histogram("request_seconds", "Duration", ("method", "route", "status"), registry=registry)
    active = Gauge("active_requests", "Active", registry=registry)
    children: dict[tuple[str, str, str], Any] = {}

    @app.before_request
    def begin() -> None:
        g.started = time.perf_counter()
        active.inc()

    @app.after_request
    def end(response: Any) -> Any:
        elapsed = time.perf_counter() - g.started
        active.dec()
        key = (request.method, str(request.url_rule), str(response.status_code))
        child = children.get(key)
        if child is None:
            child = children[key] = duration.labels(*key)
        child.observe(elapsed)
        response.headers.extend(HEADERS)
        ids = get_current_span().get_span_context()
        line = {"time": time.time(), "trace_id": f"{ids.trace_id:032x}", "key": key, "seconds": elapsed}
        stream.write(json.dumps(line) + "\n")
        return response

    tracing = provider(exporter)
    middleware: apps.WsgiApp = OpenTelemetryMiddleware(
        app.wsgi_app, tracer_provider=tracing, meter_provider=NoOpMeterProvider()
    )
    return apps.Stack(middleware, tracing.force_flush, registry)


#: Name -> what must be importable, how it is built.
PEERS: dict[str, tuple[tuple[str, ...], Callable[[SpanExporter | None], apps.Stack]]] = {
    "otel flask, spans only": (("opentelemetry.instrumentation.flask",), _otel_flask),
    "peers: otel + exporter + talisman + structlog": (
        ("opentelemetry.instrumentation.flask", "prometheus_flask_exporter", "flask_talisman"),
        _documented,
    ),
    "peers: the leanest stack": (("opentelemetry.instrumentation.wsgi",), _leanest),
    "logfire": (("logfire",), _logfire),
}


def _installed(names: tuple[str, ...]) -> bool:
    try:
        return all(find_spec(name) is not None for name in names)
    except ModuleNotFoundError:
        return False


def stacks() -> dict[str, Callable[[SpanExporter | None], apps.Stack]]:
    """Return what builds the peers' stacks that can be built here."""
    return {name: build for name, (needs, build) in PEERS.items() if _installed(needs)}


def missing() -> list[str]:
    """Return the names of the stacks that cannot."""
    return [name for name, (needs, _) in PEERS.items() if not _installed(needs)]
