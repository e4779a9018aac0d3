"""The stacks that users assemble from peers, as their documentation says; each only where it is installed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from bench import apps


def _otel_flask() -> apps.WsgiApp:
    """OpenTelemetry's Flask instrumentation, spans only."""
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import TracerProvider

    app = apps.bare()
    FlaskInstrumentor().instrument_app(app, tracer_provider=TracerProvider(shutdown_on_exit=False))
    return app


def _documented() -> apps.WsgiApp:
    """All four signals: OpenTelemetry Flask, prometheus_flask_exporter, flask-talisman, a structlog access line."""
    import structlog
    from flask import g, request
    from flask_talisman import Talisman
    from opentelemetry.instrumentation.flask import FlaskInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    app = apps.bare()
    FlaskInstrumentor().instrument_app(app, tracer_provider=TracerProvider(shutdown_on_exit=False))
    PrometheusMetrics(app, group_by="url_rule", registry=CollectorRegistry())
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

    return app


def _logfire() -> apps.WsgiApp:
    """logfire.instrument_flask, nothing sent."""
    import logfire

    app = apps.bare()
    logfire.configure(send_to_logfire=False, console=False, inspect_arguments=False)
    logfire.instrument_flask(app)
    return app


#: Name -> what must be importable, how it is built.
PEERS: dict[str, tuple[tuple[str, ...], Callable[[], apps.WsgiApp]]] = {
    "otel flask, spans only": (("opentelemetry.instrumentation.flask",), _otel_flask),
    "peers: otel + exporter + talisman + structlog": (
        ("opentelemetry.instrumentation.flask", "prometheus_flask_exporter", "flask_talisman"),
        _documented,
    ),
    "logfire": (("logfire",), _logfire),
}


def _installed(names: tuple[str, ...]) -> bool:
    try:
        return all(find_spec(name) is not None for name in names)
    except ModuleNotFoundError:
        return False


def stacks() -> dict[str, apps.WsgiApp]:
    """Return the peers' stacks that can be built here."""
    return {name: build() for name, (needs, build) in PEERS.items() if _installed(needs)}


def missing() -> list[str]:
    """Return the names of the stacks that cannot."""
    return [name for name, (needs, _) in PEERS.items() if not _installed(needs)]
