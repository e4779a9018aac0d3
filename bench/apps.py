"""The applications that are compared: one trivial view, with each stack around it.

What a stack needs is imported when it is built, so that the memory of a process is that of its stack alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from flask import Flask

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from prometheus_client import CollectorRegistry

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WsgiApp = Callable[..., Iterable[bytes]]


@dataclass(frozen=True)
class Stack:
    """The application with what one stack puts around it.

    Args:
        app: What a server would call.
        flush: Exports the spans that wait, so that a stack's export is its own cost and nobody else's.
        registry: Where its metrics are, if it has any to be scraped.
        scrape: Path at which they are served; None: straight from the registry.
    """

    app: WsgiApp
    flush: Callable[[], object] = bool
    registry: CollectorRegistry | None = None
    scrape: str | None = None


class DevNull(io.StringIO):
    """Takes lines and forgets them."""

    def write(self, text: str) -> int:
        """Take a line."""
        return len(text)


def flask_app() -> Flask:
    """Return the application without anything around it."""
    app = Flask("bench")

    @app.get("/items/<item>")
    def item(item: str) -> dict[str, str]:
        return {"item": item}

    return app


def bare(_exporter: SpanExporter | None = None) -> Stack:
    """Return it as it is."""
    return Stack(flask_app())


def floor(exporter: SpanExporter | None = None) -> Stack:
    """Return it with the hand-written four signals."""
    from bench.exporting import provider
    from bench.floor import Floor

    tracing = provider(exporter)
    made = Floor(flask_app().wsgi_app, tracing, DevNull())
    return Stack(made, tracing.force_flush, made.registry)


def ours(exporter: SpanExporter | None = None, **overrides: Any) -> Stack:
    """Return it with healthobs: span, metrics, access line and headers."""
    from healthobs import Observability, Settings
    from healthobs.flask import init_app

    settings = Settings(
        service_name="bench", prefix="bench", headers=True, audience="all", frameworks=("hipaa",), endpoints=True,
        **overrides,
    )  # fmt: skip
    app = flask_app()
    obs = Observability(settings, log_stream=DevNull(), span_exporters=[] if exporter is None else [exporter])
    init_app(app, obs)
    return Stack(app, obs.flush, obs.metrics.registry, "/metrics")


def ours_unsampled(_exporter: SpanExporter | None = None) -> Stack:
    """Return it with healthobs and a sampler that keeps nothing."""
    before = os.environ.get("OTEL_TRACES_SAMPLER")
    os.environ["OTEL_TRACES_SAMPLER"] = "always_off"
    try:
        return ours()
    finally:
        if before is None:
            del os.environ["OTEL_TRACES_SAMPLER"]
        else:
            os.environ["OTEL_TRACES_SAMPLER"] = before


def with_health_view() -> Stack:
    """Return the bare application with a hand-written health view, what a probe costs without healthobs."""
    app = flask_app()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {
            "status": "healthy",
            "service": "bench",
            "version": "0",
            "timestamp": datetime.now(UTC).isoformat(),
        }

    return Stack(app)


def request(stack: Stack, path: str = "/items/1") -> Callable[[], None]:
    """Return a function that makes one sampled GET through the WSGI callable and reads the whole body."""

    def start_response(
        _status: str, _headers: list[tuple[str, str]], _exc_info: Any = None
    ) -> Callable[[bytes], Any]:
        return lambda _data: None

    def run() -> None:
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SCRIPT_NAME": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8080",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost:8080",
            "HTTP_TRACEPARENT": TRACEPARENT,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        body = stack.app(environ, start_response)
        for _ in body:
            pass
        close = getattr(body, "close", None)
        if close is not None:
            close()

    return run
