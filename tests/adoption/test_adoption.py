"""Three existing applications: adopted in at most five lines, old series and fields unchanged, removed without a trace."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

# Where this is set, a library that is missing fails the run.
if not os.environ.get("HEALTHOBS_MUST_HAVE_PEERS"):
    for needed in (
        "logfire",
        "prometheus_flask_exporter",
        "opentelemetry.instrumentation.sqlalchemy",
        "opentelemetry.instrumentation.fastapi",
    ):
        pytest.importorskip(needed, reason="the existing applications need their libraries: nox -s peers")

from opentelemetry import trace
from opentelemetry.trace import SpanKind
from opentelemetry.util._once import Once

from asgi_calls import call_asgi
from healthobs.doctor import examine

MAX_LINES, MAX_LINES_OFF = 5, 2


def adopt_otel(app: Any, service: ModuleType) -> Any:
    from healthobs import Observability, Settings
    from healthobs.flask import init_app

    obs = Observability(
        Settings(), tracer_provider=service.provider, registry=service.registry, logs="processor"
    )
    init_app(app, obs)
    return obs


def adopt_logfire(app: Any, service: ModuleType) -> Any:
    from opentelemetry import trace

    from healthobs import Observability, Settings, asgi

    obs = Observability(Settings(), tracer_provider=trace.get_tracer_provider(), logs="off")
    asgi.init_app(app, obs)
    return obs


def adopt_structlog(app: Any, service: ModuleType) -> Any:
    from healthobs import Observability, Settings
    from healthobs.flask import init_app

    obs = Observability(Settings(), logs="processor")
    init_app(app, obs)
    return obs


def remove_flask(app: Any, obs: Any) -> None:
    from healthobs.flask import remove_app

    remove_app(app)
    obs.close()


def remove_asgi(app: Any, obs: Any) -> None:
    from healthobs import asgi

    asgi.remove_app(app)
    obs.close()


def lines_of(function: Callable[..., Any]) -> int:
    """Return how many lines a user writes: imports of healthobs aside, each statement counts; so does an import."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    return sum(not isinstance(statement, ast.Return) for statement in tree.body)


def flask_answer(app: Any) -> tuple[int, list[tuple[str, str]], bytes]:
    """Make the request; return everything that a client sees."""
    with app.test_client().get("/patients/pt-4711") as response:
        return response.status_code, list(response.headers), response.data


def asgi_answer(app: Any) -> tuple[int, list[tuple[str, str]], bytes]:
    """Make the request; return everything that a client sees."""
    return tuple(call_asgi(app, "GET", "/patients/pt-4711"))  # type: ignore[return-value]


class Existing:
    """One application before, while and after healthobs is on it."""

    def __init__(self, name: str) -> None:
        self.out = io.StringIO()
        with contextlib.redirect_stdout(self.out):
            sys.modules.pop(name, None)
            self.service = importlib.import_module(name)
        self.app = self.service.app

    def written(self, ask: Callable[[Any], Any]) -> tuple[Any, list[str]]:
        """Return the answer and the lines that it left on standard output."""
        start = len(self.out.getvalue())
        with contextlib.redirect_stdout(self.out):
            answer = ask(self.app)
        return answer, self.out.getvalue()[start:].splitlines()

    def spans(self) -> list[Any]:
        """Return the spans since the last call."""
        self.service.exporter.clear, found = (
            self.service.exporter.clear,
            self.service.exporter.get_finished_spans(),
        )
        self.service.exporter.clear()
        return [span for span in found if (span.attributes or {}).get("logfire.span_type") != "pending_span"]


@pytest.fixture(scope="module")
def otel() -> Existing:
    """Give the service on OpenTelemetry and prometheus_flask_exporter."""
    return Existing("otel_service")


@pytest.fixture(scope="module", autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The services set the root logger up; give it back."""
    import logging

    import structlog

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def series(existing: Existing) -> dict[str, float]:
    """Return the old series with their values, times of the clock left out."""
    from prometheus_client import generate_latest

    text = generate_latest(existing.service.registry).decode()
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(("flask_", "# ")))
    timed = re.compile(r"_sum|_created|_bucket|^# ")
    return {name: float(value) for name, value in pairs if not timed.search(name)}


class TestOtel:
    """OpenTelemetry's Flask and SQLAlchemy instrumentation with prometheus_flask_exporter."""

    def test_life(self, otel: Existing) -> None:
        """Adopted, nothing old changes but what identifies people; removed, nothing new is left."""
        before, old_lines = otel.written(flask_answer)
        otel.service.provider.force_flush()
        old_spans, old_series = otel.spans(), series(otel)
        obs = adopt_otel(otel.app, otel.service)
        during, lines = otel.written(flask_answer)
        obs.flush()
        spans, new_series = otel.spans(), series(otel)

        assert during[2] == before[2]
        assert [span.kind for span in spans].count(SpanKind.SERVER) == 1
        assert [span.name for span in spans] == [span.name for span in old_spans]
        (server,) = [span for span in spans if span.kind is SpanKind.SERVER]
        for span in spans:
            if span is not server:
                assert span.context.trace_id == server.context.trace_id
        assert "Jane Roe" in "".join(span.to_json() for span in old_spans)
        assert "Jane Roe" not in "".join(span.to_json() for span in spans)

        assert new_series.keys() == old_series.keys()
        assert {new_series[name] - old_series[name] for name in old_series if name.endswith("_total")} <= {
            0.0,
            1.0,
        }
        ours = obs.metrics.exposition(None)[1].decode()
        assert "http_server_request_duration_seconds_count{" in ours
        assert "flask_http_request_total" in ours

        assert [line for line in lines if " ward " in line] == [
            "INFO ward patient in ward found, call [PHI:phone]"
        ]
        assert [line for line in old_lines if " ward " in line] == [
            "INFO ward patient in ward found, call 212-555-0123"
        ]
        assert "INFO healthobs http_request" in lines

        assert examine(otel.app, environ={}, sqlite_version=(3, 51, 3)) == []
        remove_flask(otel.app, obs)
        after, after_lines = otel.written(flask_answer)
        otel.service.provider.force_flush()
        assert after == before
        assert after_lines == old_lines
        assert "Jane Roe" in "".join(span.to_json() for span in otel.spans())
        assert "http_server" not in "".join(name for name in _names(otel.service.registry))

    def test_own_spans_are_children(self, otel: Existing) -> None:
        """What decorators record inside a request hangs under OpenTelemetry's server span; ids agree in all signals."""
        from healthobs import traced

        obs = adopt_otel(otel.app, otel.service)
        view = otel.app.view_functions["patient"]

        def patient(**arguments: Any) -> Any:
            return view(**arguments)

        otel.app.view_functions["patient"] = traced("ours")(patient)
        try:
            otel.written(flask_answer)
            obs.flush()
        finally:
            otel.app.view_functions["patient"] = view
            remove_flask(otel.app, obs)
        by_name = {span.name: span for span in otel.spans()}
        server = next(span for span in by_name.values() if span.kind is SpanKind.SERVER)
        assert by_name["ours"].parent.span_id == server.context.span_id

    def test_doctor_finds_what_adoption_prevents(self, otel: Existing) -> None:
        """Without the tracer provider there are two pipelines, and one of them is not redacted."""
        from healthobs import Observability, Settings
        from healthobs.flask import init_app

        obs = Observability(Settings())
        init_app(otel.app, obs)
        try:
            names = [finding.name for finding in examine(otel.app, environ={}, sqlite_version=(3, 51, 3))]
        finally:
            remove_flask(otel.app, obs)
        assert names == ["double_instrumentation", "exporter_escapes_redaction"]


def _names(registry: Any) -> set[str]:
    return {family.name for family in registry.collect()}


class TestLogfire:
    """logfire on FastAPI."""

    def test_life(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Adopted, its spans stay and are redacted, with no second server span; removed, answers are as before."""
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
        monkeypatch.setattr(trace, "_TRACER_PROVIDER_SET_ONCE", Once())
        existing = Existing("logfire_service")
        before, _ = existing.written(asgi_answer)
        old_spans = existing.spans()
        obs = adopt_logfire(existing.app, existing.service)
        during, _ = existing.written(asgi_answer)
        spans = existing.spans()
        assert during[2] == before[2]
        assert [span.name for span in spans] == [span.name for span in old_spans]
        assert [span.kind for span in spans].count(SpanKind.SERVER) == 1
        assert len({span.context.trace_id for span in spans}) == 1
        assert "Jane Roe" in "".join(span.to_json() for span in old_spans)
        assert "Jane Roe" not in "".join(span.to_json() for span in spans)
        exposed = obs.metrics.exposition(None)[1].decode()
        assert 'http_route="/patients/{number}"' in exposed
        remove_asgi(existing.app, obs)
        after, _ = existing.written(asgi_answer)
        assert after == before
        assert "Jane Roe" in "".join(span.to_json() for span in existing.spans())


class TestStructlog:
    """structlog and `logging`, each with a format of its own."""

    def test_life(self) -> None:
        """Adopted, each line keeps its format and fields, and gains ids and redaction; removed, all is as before."""
        existing = Existing("structlog_service")
        before, old_lines = existing.written(flask_answer)
        obs = adopt_structlog(existing.app, existing.service)
        during, lines = existing.written(flask_answer)
        assert during[2] == before[2]
        old = [json.loads(line) for line in old_lines if line.startswith("{")]
        new = [json.loads(line) for line in lines if line.startswith("{")]
        found, failed, access = new
        assert old[0].items() - {("patient_name", "Jane Roe")} <= found.items()
        assert found["patient_name"] == "[PHI:key]"
        assert re.fullmatch("[0-9a-f]{32}", found["trace_id"])
        assert access["event"] == "http_request"
        assert access["trace_id"] == found["trace_id"] == failed["trace_id"]
        assert old[1].keys() <= failed.keys()
        assert failed["exception"].startswith("LookupError: ")
        assert "Jane Roe" not in "".join(lines)
        assert [line for line in lines if not line.startswith("{")] == ["INFO ward call [PHI:phone]"]
        remove_flask(existing.app, obs)
        after, after_lines = existing.written(flask_answer)
        assert after == before
        assert after_lines[0] == old_lines[0]
        assert len(after_lines) == len(old_lines)


class TestEffort:
    """How much a user writes."""

    @pytest.mark.parametrize("adopt", [adopt_otel, adopt_logfire, adopt_structlog])
    def test_at_most_five_lines(self, adopt: Callable[..., Any]) -> None:
        """Imports included."""
        assert lines_of(adopt) <= MAX_LINES

    @pytest.mark.parametrize("remove", [remove_flask, remove_asgi])
    def test_two_lines_take_it_off(self, remove: Callable[..., Any]) -> None:
        """The import aside."""
        assert lines_of(remove) - 1 <= MAX_LINES_OFF
