"""Adopting what a process has: exporters wrapped in place, foreign server spans, structlog, `logging`, a registry."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import ProxyTracerProvider, SpanKind, get_current_span, set_span_in_context
from prometheus_client import CollectorRegistry, Counter, generate_latest

from fronts import call_asgi
from healthobs import Observability, Settings, asgi, traced, use
from healthobs.exceptions import ConfigurationError


def name_of(exporter: InMemorySpanExporter) -> Any:
    """Return the patient's name as the last span shows it."""
    return (exporter.get_finished_spans()[-1].attributes or {})["patient.name"]


class TestTracerProvider:
    """`Observability(tracer_provider=…)`."""

    def test_exporters_are_wrapped_and_given_back(self) -> None:
        """Whatever records through the provider is redacted meanwhile, through processors of any kind and age."""
        exporters = [InMemorySpanExporter() for _ in range(3)]
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporters[0]))
        provider.add_span_processor(BatchSpanProcessor(exporters[1]))
        foreign = provider.get_tracer("contrib")

        def seen() -> list[Any]:
            foreign.start_span("x", attributes={"patient.name": "Jane"}).end()
            provider.force_flush()
            return [name_of(exporter) for exporter in exporters if exporter.get_finished_spans()]

        before = seen()
        obs = Observability(Settings(), tracer_provider=provider)
        provider.add_span_processor(SimpleSpanProcessor(exporters[2]))
        during = seen()
        obs.close()
        assert before == ["Jane"] * 2
        assert during == ["[PHI:key]"] * 3
        assert seen() == ["Jane"] * 3
        assert "add_span_processor" not in vars(provider)

    def test_spans_are_made_there(self) -> None:
        """Our spans and other instrumentation's are of one trace; closing leaves the provider running."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        obs = Observability(Settings(), tracer_provider=provider)

        @traced("ours")
        def ours() -> None:
            provider.get_tracer("contrib").start_span("theirs").end()

        with use(obs):
            ours()
        obs.close()
        theirs, mine = exporter.get_finished_spans()
        assert theirs.parent is not None
        assert theirs.parent.span_id == mine.context.span_id
        provider.get_tracer("contrib").start_span("after").end()
        assert exporter.get_finished_spans()[-1].name == "after"

    def test_refusals(self) -> None:
        """A provider that is none of the SDK's, and exporters beside an adopted one."""
        with pytest.raises(ConfigurationError, match="holds no provider of the OpenTelemetry SDK"):
            Observability(Settings(), tracer_provider=ProxyTracerProvider())
        with pytest.raises(ConfigurationError, match="give one or the other"):
            Observability(
                Settings(), tracer_provider=TracerProvider(), span_exporters=[InMemorySpanExporter()]
            )

    def test_disabled(self) -> None:
        """Switched off, the provider is wrapped all the same, and we record nothing in it."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        obs = Observability(Settings(disabled=True), tracer_provider=provider)
        obs.tracing.tracer.start_span("ours").end()
        provider.get_tracer("contrib").start_span("theirs", attributes={"patient.name": "Jane"}).end()
        obs.close()
        assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]
        assert name_of(exporter) == "[PHI:key]"


class Around:
    """Another instrumentation's ASGI middleware: a server span around, and one of its own around each send."""

    def __init__(self, app: Any, provider: TracerProvider) -> None:
        self.app = app
        self.tracer = provider.get_tracer("opentelemetry.instrumentation.asgi")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            with self.tracer.start_as_current_span("http send"):
                await send(message)

        with self.tracer.start_as_current_span("GET /x", kind=SpanKind.SERVER):
            await self.app(scope, receive, sending)


Around.__module__ = "opentelemetry.instrumentation.asgi"


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Answer, and mark the span that is current."""
    get_current_span().set_attribute("marked", True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


class TestServerSpan:
    """An application that is instrumented already gets no second one."""

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("sampled", [True, False])
    def test_theirs_is_used(self, inside: bool, sampled: bool) -> None:
        """Whether it is around ours or inside: the access line carries its ids, and the application sees it."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider() if sampled else TracerProvider(sampler=ALWAYS_OFF)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        stream = io.StringIO()
        obs = Observability(Settings(), tracer_provider=provider, log_stream=stream)
        app: Any = (
            asgi.Middleware(Around(plain, provider), obs)  # type: ignore[arg-type]
            if inside
            else Around(asgi.Middleware(plain, obs), provider)
        )
        assert call_asgi(app, "GET", "/x").status == 200
        obs.close()
        spans = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        line = json.loads(stream.getvalue().splitlines()[-1])
        assert len(spans) == (1 if sampled else 0)
        if sampled:
            assert (spans[0].attributes or {})["marked"] is True
            assert f"{spans[0].context.trace_id:032x}" == line["trace_id"]
            assert f"{spans[0].context.span_id:016x}" == line["span_id"]

    def test_a_remote_or_inner_span_is_none(self) -> None:
        """A span that is no server's does not keep the request from having its own."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        obs = Observability(Settings(), tracer_provider=provider, logs="off")
        token = attach(set_span_in_context(provider.get_tracer("test").start_span("test")))
        try:
            call_asgi(asgi.Middleware(plain, obs), "GET", "/x")
        finally:
            detach(token)
            obs.close()
        assert [span.kind for span in exporter.get_finished_spans()] == [SpanKind.SERVER]


@pytest.fixture
def root() -> Iterator[io.StringIO]:
    """Give the root logger one handler with a format of its own."""
    stream, logger = io.StringIO(), logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s|%(name)s|%(message)s"))
    logger.handlers[:], logger.level = [handler], logging.INFO
    yield stream
    logger.handlers[:], logger.level = handlers, level


class TestStdlib:
    """`logs="processor"` over `logging`."""

    def test_format_stays(self, root: io.StringIO) -> None:
        """Messages are redacted, arguments one by one; given back, nothing is."""
        log = logging.getLogger("app")
        obs = Observability(Settings(), logs="processor")
        log.info("call %s about %d", "212-555-0123", 5)
        log.info("call 212-555-0123")
        log.info("%(phone)s", {"phone": "x"})
        log.info({"patient_name": "Jane"})
        obs.logs.emit("info", "ours", {"name": "x", "count": 2})
        obs.close()
        log.info("call %s", "212-555-0123")
        obs.logs.emit("info", "ours")
        assert root.getvalue().splitlines() == [
            "INFO|app|call [PHI:phone] about 5",
            "INFO|app|call [PHI:phone]",
            "INFO|app|[PHI:key]",
            "INFO|app|{'patient_name': '[PHI:key]'}",
            "INFO|healthobs|ours",
            "INFO|app|call 212-555-0123",
        ]

    def test_fields_and_ids(self, root: io.StringIO) -> None:
        """Extra fields are redacted, ids are there under the names that were asked for."""
        handler = logging.getLogger().handlers[0]
        handler.setFormatter(logging.Formatter("%(ward)s %(patient_name)s %(otelTraceID)s"))
        obs = Observability(Settings(log_fields=("trace_id=otelTraceID",)), logs="processor")
        with obs.tracing.tracer.start_as_current_span("x") as span:
            logging.getLogger("app").info("x", extra={"ward": "west", "patient_name": "Jane"})
        obs.close()
        assert root.getvalue() == f"west [PHI:key] {span.get_span_context().trace_id:032x}\n"

    def test_exception(self, root: io.StringIO) -> None:
        """A traceback is its type and an error id: no message of the caller's, no source, no locals."""
        obs = Observability(Settings(), logs="processor")
        name = "Jane Roe"
        try:
            raise LookupError(f"no {name}")
        except LookupError:
            logging.getLogger("app").exception("failed")
        obs.close()
        first, second = root.getvalue().splitlines()
        assert first == "ERROR|app|failed"
        assert second.startswith("LookupError: error_id=")

    def test_off(self, root: io.StringIO) -> None:
        """`logs="off"` writes nothing and touches nothing."""
        stream = io.StringIO()
        obs = Observability(Settings(), logs="off", log_stream=stream)
        obs.logs.emit("error", "x")
        logging.getLogger("app").info("212-555-0123")
        obs.close()
        assert (stream.getvalue(), root.getvalue()) == ("", "INFO|app|212-555-0123\n")


class TestStructlog:
    """`logs="processor"` over structlog."""

    def test_format_stays(self) -> None:
        """Loggers that were used already are covered too; taken out, lines are as before."""
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
            logger_factory=structlog.PrintLoggerFactory(stream),
            cache_logger_on_first_use=True,
        )
        try:
            log = structlog.get_logger()
            log.info("found", patient_name="Jane", bed=3)
            obs = Observability(Settings(), logs="processor")
            log.info("found", patient_name="Jane", bed=3)
            name = "Jane Roe"
            try:
                raise LookupError(f"no {name}")
            except LookupError:
                log.exception("failed")
            obs.logs.emit("warning", "ours", {"event_count": 1})
            obs.close()
            log.info("found", patient_name="Jane", bed=3)
        finally:
            structlog.reset_defaults()
        before, during, failed, ours, after = stream.getvalue().splitlines()
        assert before == after == '{"bed": 3, "event": "found", "patient_name": "Jane"}'
        assert json.loads(during) == {
            "bed": 3, "event": "found", "patient_name": "[PHI:key]", "trace_id": "", "span_id": "",
        }  # fmt: skip
        assert json.loads(failed)["exception"].startswith("LookupError: error_id=")
        assert json.loads(failed)["exception_type"] == "LookupError"
        assert json.loads(ours)["event_count"] == 1
        assert "Jane Roe" not in failed


class TestFieldNames:
    """`Settings.log_fields`."""

    def test_own_lines(self) -> None:
        """Fields of our own lines take the names that were asked for."""
        stream = io.StringIO()
        obs = Observability(Settings(log_fields=("event=message", "level=severity")), log_stream=stream)
        obs.logs.emit("info", "x")
        obs.close()
        line = json.loads(stream.getvalue())
        assert (line["message"], line["severity"], "event" in line) == ("x", "info", False)

    def test_refusal(self) -> None:
        """What is no pair is refused when the settings are made."""
        with pytest.raises(ConfigurationError, match="log_fields must be pairs"):
            Settings(log_fields=("trace_id",))


class TestRegistry:
    """`Observability(registry=…)`."""

    def test_given_back(self) -> None:
        """Old series stay in it; ours leave it when we close, and can come again."""
        registry = CollectorRegistry()
        old = Counter("old_total", "Old", registry=registry)
        old.inc()
        before = generate_latest(registry)
        for _ in range(2):
            obs = Observability(Settings(), registry=registry)
            assert b"healthobs_build_info" in generate_latest(registry)
            assert b"old_total 1.0" in obs.metrics.exposition(None)[1]
            obs.close()
            assert generate_latest(registry) == before
