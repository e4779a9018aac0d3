"""One Flask application observed by ours or by a peer, and what was recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from flask import Flask, Response
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from healthobs import Observability, Settings
from healthobs.flask import init_app, remove_app


class Sample(NamedTuple):
    """One number of a metric; a histogram gives its sum."""

    name: str
    unit: str
    labels: Mapping[str, Any]
    value: float


class Served(NamedTuple):
    """An observed application."""

    app: Flask
    spans: Callable[[], tuple[ReadableSpan, ...]]
    samples: Callable[[], list[Sample]]
    text: Callable[[], str]

    def get(self, path: str, method: str = "GET", **headers: str) -> Response:
        """Make one request and read the answer to its end."""
        with self.app.test_client() as client:
            response = client.open(path, method=method, headers=headers, buffered=True)
            response.close()
            return response

    def duration(self) -> Sample:
        """Return the sum of the server's request durations."""
        (found,) = [
            s for s in self.samples() if "duration" in s.name and s.name.startswith(("http", "flask"))
        ]
        return found

    def in_flight(self) -> float:
        """Return how many requests are in progress."""
        return sum(s.value for s in self.samples() if "active_requests" in s.name)


def make_app(while_streaming: Callable[[], object] = lambda: None) -> Flask:
    """Return an application with a view, a stream and one that fails."""
    app = Flask("served")

    @app.route("/patients/<patient_id>")
    def patient(patient_id: str) -> dict[str, str]:
        return {"status": "active"}

    @app.route("/broken")
    def broken() -> str:
        raise RuntimeError("no")

    @app.route("/stream")
    def stream() -> Response:
        def chunks() -> Iterator[bytes]:
            for _ in range(3):
                while_streaming()
                yield b"chunk"

        return Response(chunks(), mimetype="text/plain")

    return app


@contextmanager
def serving(side: str, app: Flask, **options: Any) -> Iterator[Served]:
    """Observe `app` with `side`."""
    with _SIDES[side](app, **options) as served:
        yield served


@contextmanager
def _ours(app: Flask, **options: Any) -> Iterator[Served]:
    import io

    exporter, log = InMemorySpanExporter(), io.StringIO()
    excluded = options.pop("excluded", None)
    settings = Settings(excluded=(excluded,) if excluded else (), max_series=20)
    obs = Observability(settings, span_exporters=[exporter], simple_spans=True, log_stream=log)

    def samples() -> list[Sample]:
        return [
            Sample(family.name, "s" if "seconds" in family.name else "", sample.labels, sample.value)
            for family in obs.metrics.collect()
            for sample in family.samples
            if family.type != "histogram" or sample.name.endswith("_sum")
        ]

    def text() -> str:
        spans = "".join(span.to_json() for span in exporter.get_finished_spans())
        return spans + log.getvalue() + obs.metrics.exposition(None)[1].decode()

    init_app(app, obs, **options)
    yield Served(app, exporter.get_finished_spans, samples, text)
    remove_app(app)
    obs.close()


def _points(reader: InMemoryMetricReader) -> list[Sample]:
    data = reader.get_metrics_data()
    return [
        Sample(metric.name, metric.unit or "", dict(point.attributes or {}), getattr(point, "sum", None) or getattr(point, "value", 0.0))
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]  # fmt: skip


@contextmanager
def _otel(app: Flask, attach: Callable[..., None]) -> Iterator[Served]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    attach(tracer_provider=provider, meter_provider=meters)

    def text() -> str:
        return "".join(span.to_json() for span in exporter.get_finished_spans()) + str(_points(reader))

    yield Served(app, exporter.get_finished_spans, lambda: _points(reader), text)


@contextmanager
def _otel_flask(app: Flask, excluded: str | None = None) -> Iterator[Served]:
    from opentelemetry.instrumentation.flask import FlaskInstrumentor

    def attach(**providers: Any) -> None:
        FlaskInstrumentor().instrument_app(app, excluded_urls=excluded, **providers)

    with _otel(app, attach) as served:
        yield served


@contextmanager
def _otel_wsgi(app: Flask) -> Iterator[Served]:
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    def attach(**providers: Any) -> None:
        app.wsgi_app = OpenTelemetryMiddleware(app.wsgi_app, **providers)  # type: ignore[method-assign]

    with _otel(app, attach) as served:
        yield served


@contextmanager
def _exporter(app: Flask) -> Iterator[Served]:
    from prometheus_flask_exporter import PrometheusMetrics

    registry = CollectorRegistry()
    PrometheusMetrics(app, registry=registry)

    def samples() -> list[Sample]:
        return [
            Sample(family.name, "s" if "seconds" in family.name else "", sample.labels, sample.value)
            for family in registry.collect()
            for sample in family.samples
            if family.type != "histogram" or sample.name.endswith("_sum")
        ]

    def text() -> str:
        return str([s for family in registry.collect() for s in family.samples])

    yield Served(app, tuple, samples, text)


_SIDES: dict[str, Callable[..., Any]] = {
    "ours": _ours,
    "otel-flask": _otel_flask,
    "otel-wsgi": _otel_wsgi,
    "prometheus-flask-exporter": _exporter,
}
