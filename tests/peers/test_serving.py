"""Requests: what is right here, and a known defect of a peer (a strict expected failure there)."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import structlog
from flask import Flask
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter
from serving import Served, make_app, serving
from sides import versus

from healthobs import Observability, Settings
from healthobs.flask import init_app, remove_app
from healthobs.metrics import Metrics

pytestmark = pytest.mark.filterwarnings("ignore")

STREAM_SECONDS = 0.06
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


def seconds(span: Any) -> float:
    return (span.end_time - span.start_time) / 1e9


@versus("otel-flask")
def test_a_streams_span_ends_at_its_close(side: str) -> None:
    """The server span covers the body as it is sent (prometheus_flask_exporter#143)."""
    with serving(side, make_app(lambda: time.sleep(STREAM_SECONDS / 3))) as served:
        served.get("/stream")
        (span,) = served.spans()
        assert seconds(span) >= STREAM_SECONDS * 0.9


@versus("otel-wsgi", "prometheus-flask-exporter")
def test_a_streams_duration_is_measured_to_its_close(side: str) -> None:
    """The histogram covers the body too."""
    with serving(side, make_app(lambda: time.sleep(STREAM_SECONDS / 3))) as served:
        served.get("/stream")
        duration = served.duration()
        assert duration.value / (1000 if duration.unit == "ms" else 1) >= STREAM_SECONDS * 0.9


@versus("otel-wsgi")
def test_span_and_histogram_are_one_measurement(side: str) -> None:
    """Both say the same duration, to the nanosecond."""
    with serving(side, make_app()) as served:
        served.get("/patients/1")
        (span,) = served.spans()
        duration = served.duration()
        assert duration.value / (1000 if duration.unit == "ms" else 1) == pytest.approx(
            seconds(span), rel=1e-9
        )


@versus("otel-flask", "prometheus-flask-exporter")
def test_a_stream_is_in_flight_until_its_close(side: str) -> None:
    """The gauge counts a request while its body is sent."""
    seen: list[float] = []
    kept: list[Served] = []
    with serving(side, make_app(lambda: seen.append(kept[0].in_flight()))) as served:
        kept.append(served)
        served.get("/stream")
        assert (seen, served.in_flight()) == ([1.0] * 3, 0.0)


@versus("otel-flask")
def test_stable_conventions_by_default(side: str) -> None:
    """Attributes are those of the stable HTTP conventions, without an environment variable (contrib#2453)."""
    with serving(side, make_app()) as served:
        served.get("/patients/1")
        attributes = served.spans()[0].attributes or {}
        assert {"http.request.method", "url.scheme", "http.response.status_code"} <= attributes.keys()


@versus("otel-flask")
def test_durations_are_in_seconds(side: str) -> None:
    """One unit, the base unit, by default."""
    with serving(side, make_app()) as served:
        served.get("/patients/1")
        assert served.duration().unit == "s"


@versus("otel-flask", "prometheus-flask-exporter")
def test_the_raw_path_stays_inside(side: str) -> None:
    """A path carries identifiers: no span, sample or line has it (prometheus_flask_exporter#182)."""
    with serving(side, make_app()) as served:
        served.get("/patients/pt-4711")
        assert served.text()
        assert "pt-4711" not in served.text()


@versus("otel-flask")
def test_the_query_stays_inside(side: str) -> None:
    """Nor does anything have the query (contrib#2992)."""
    with serving(side, make_app()) as served:
        served.get("/patients/1?ssn=078-05-1120")
        assert "078-05-1120" not in served.text()


@versus("otel-flask")
def test_an_unmatched_paths_span_is_named_by_the_method(side: str) -> None:
    """A scanner's path is nobody's span name (contrib#2155)."""
    with serving(side, make_app()) as served:
        served.get("/.env")
        assert served.spans()[0].name == "GET"


@versus("prometheus-flask-exporter")
@pytest.mark.parametrize("what", ["path", "method"])
def test_what_callers_make_up_makes_no_series(side: str, what: str) -> None:
    """Fifty paths that do not exist, or fifty methods, are at most two series more than one."""
    with serving(side, make_app()) as served:
        counts: list[int] = []
        for number in range(50):
            served.get(
                f"/{number}.php" if what == "path" else "/x", "GET" if what == "path" else f"BREW{number}"
            )
            counts.append(len(served.samples()))
        assert counts[-1] - counts[0] <= 2


@versus("opentelemetry", "prometheus_client")
def test_the_series_of_one_metric_are_capped(side: str) -> None:
    """Of 5,000 label values at most the cap and one overflow series remain (artifact-keeper#2220)."""
    if side == "ours":
        metrics = Metrics(Settings())
        counter = metrics.counter("a_total", "", ("x",))
        for number in range(5000):
            counter.labels(str(number)).inc()
        series = sum(s.name == "a_total" for family in metrics.collect() for s in family.samples)
    elif side == "opentelemetry":
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], shutdown_on_exit=False)
        otel_counter = provider.get_meter("peer").create_counter("a")
        for number in range(5000):
            otel_counter.add(1, {"x": str(number)})
        data: Any = reader.get_metrics_data()
        series = len(data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points)
    else:
        registry = CollectorRegistry()
        plain = Counter("a_total", "", ("x",), registry=registry)
        for number in range(5000):
            plain.labels(str(number)).inc()
        series = sum(s.name == "a_total" for family in registry.collect() for s in family.samples)
    assert series <= 201


@versus("prometheus_client")
def test_exemplars_in_multiprocess_mode(side: str, tmp_path: Path) -> None:
    """A scrape shows trace ids in multiprocess mode too (client_python#826)."""
    code = {
        "ours": """
            from healthobs import Settings
            from healthobs.metrics import Metrics
            metrics = Metrics(Settings())
            metrics.histogram("h_seconds", "").observe(0.1, {"trace_id": "ab"})
            print(metrics.exposition("application/openmetrics-text; version=1.0.0")[1].decode())
        """,
        "prometheus_client": """
            from prometheus_client import CollectorRegistry, Histogram, multiprocess
            from prometheus_client.openmetrics.exposition import generate_latest
            Histogram("h_seconds", "").observe(0.1, {"trace_id": "ab"})
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
            print(generate_latest(registry).decode())
        """,
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code[side])],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "h_seconds_bucket" in done.stdout
    assert 'trace_id="ab"' in done.stdout


def calls_of(app: Any, path: str) -> int:
    """Return the function calls of one request, Python's and C's."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SCRIPT_NAME": "", "SERVER_NAME": "h",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
    }  # fmt: skip

    def run() -> None:
        body = app(dict(environ), lambda *_: None)
        list(body)
        body.close()

    def count() -> int:
        seen = 0

        def profile(_frame: Any, event: str, _argument: Any) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            run()
        finally:
            sys.setprofile(None)
        return seen

    for _ in range(20):
        run()
    return min(count() for _ in range(3))


@versus("otel-flask")
def test_an_excluded_path_costs_next_to_nothing(side: str) -> None:
    """At most 15 calls more than the bare application (243 there)."""
    bare = calls_of(make_app(), "/patients/1")
    with serving(side, make_app(), excluded="/patients/1") as served:
        assert calls_of(served.app, "/patients/1") - bare <= 15


@versus("otel-flask")
def test_an_excluded_path_is_in_no_signal(side: str) -> None:
    """Excluded is excluded from all signals at once (docling-serve#533: still counted as active)."""
    with serving(side, make_app(), excluded="/patients/1") as served:
        served.get("/patients/1")
        assert served.spans() == ()
        assert [s for s in served.samples() if "active" in s.name or "duration" in s.name] == []


@versus("otel-flask")
def test_an_exception_that_propagates_is_measured(side: str) -> None:
    """Duration and `error.type` are recorded when the exception reaches the server."""
    app = make_app()
    app.config["PROPAGATE_EXCEPTIONS"] = True
    with serving(side, app) as served:
        with pytest.raises(RuntimeError, match="no"):
            served.get("/broken")
        found = {
            s.labels.get("error_type") or s.labels.get("error.type")
            for s in served.samples()
            if "duration" in s.name
        }
        assert found == {"RuntimeError"}


@versus("otel-flask")
def test_a_caller_cannot_switch_recording_off(side: str) -> None:
    """A `traceparent` that is not sampled, from outside, does not hide a request (contrib#2584)."""
    options: dict[str, Any] = {"trust_incoming": lambda environ: False} if side == "ours" else {}
    with serving(side, make_app(), **options) as served:
        served.get("/patients/1", traceparent=UNSAMPLED)
        assert len(served.spans()) == 1


@versus("structlog")
def test_context_of_one_request_is_gone_in_the_next(side: str) -> None:
    """What a request binds to structlog's context variables, the next on the same thread does not see."""
    app, seen = Flask("served"), []

    @app.get("/<patient>")
    def view(patient: str) -> str:
        seen.append(structlog.contextvars.get_contextvars())
        structlog.contextvars.bind_contextvars(patient=patient)
        return "ok"

    obs = Observability(Settings())
    if side == "ours":
        init_app(app, obs)
    for patient in ("a", "b"):
        calls_of_once(app, f"/{patient}")
    structlog.contextvars.clear_contextvars()
    if side == "ours":
        remove_app(app)
    obs.close()
    assert seen == [{}, {}]


def calls_of_once(app: Any, path: str) -> None:
    """Make one request through the WSGI callable, on this thread and in its context."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SCRIPT_NAME": "", "SERVER_NAME": "h",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = app(environ, lambda *_: None)
    list(body)
    body.close()


def test_each_process_has_an_instance_of_its_own() -> None:
    """Workers do not share a `service.instance.id` (opentelemetry-python#3885; fixed there in 1.44)."""
    code = """
        import os
        from healthobs import Observability, Settings
        def instance():
            return Observability(Settings()).tracing.provider.resource.attributes.get("service.instance.id")
        made = Observability(Settings())
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, str(made.tracing.provider.resource.attributes["service.instance.id"]).encode())
            os._exit(0)
        os.wait()
        print(os.read(read, 100).decode() != made.tracing.provider.resource.attributes["service.instance.id"])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr
