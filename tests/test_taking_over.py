"""Adopting what a process has: exporters wrapped in place, foreign server spans, structlog, `logging`, a registry."""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import flask
import pytest
import structlog
from flask.logging import default_handler
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import ProxyTracerProvider, SpanKind, get_current_span, set_span_in_context
from prometheus_client import CollectorRegistry, Counter, generate_latest
from uvicorn.logging import AccessFormatter

from asgi_calls import call_asgi
from healthobs import Observability, Settings, asgi, traced, use
from healthobs.compliance import Control, Outcome
from healthobs.exceptions import ConfigurationError
from healthobs.flask import init_app, remove_app
from healthobs.logs import LogMode

PHI = Settings(service_name="records", frameworks=("hipaa",))
#: Not in a test, where it would be written in a function that is running.
WHO = "Ottoline"


def _bound() -> Any:
    return structlog.get_logger().bind(**{WHO: 1}, shift=4)


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

    def test_names_are_learnt_in_strict(self) -> None:
        """On somebody else's exporting thread too, names and keys of the code pass, and those of data do not."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        obs = Observability(Settings(redaction="strict"), tracer_provider=provider)

        def work() -> None:
            with obs.tracing.tracer.start_as_current_span("claim settled") as span:
                span.set_attribute("batch_total", 3)
                span.add_event("step done", {"left": 1, WHO: 1})

        work()
        provider.force_flush()
        obs.close()
        (span,) = exporter.get_finished_spans()
        (event,) = span.events
        assert (span.name, dict(span.attributes or {})) == ("claim settled", {"batch_total": 3})
        assert (event.name, dict(event.attributes or {})) == (
            "step done",
            {"left": 1, "[PHI:strict]": "[PHI:key]"},
        )
        held: Any = provider
        assert len(held._active_span_processor._span_processors) == 1

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


class TestSeveralOnOneProvider:
    """Two that adopt one provider: a reload makes the new one before it closes the old."""

    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("strict", [0, 1])
    def test_each_redacts_until_it_is_closed(self, first: int, strict: int) -> None:
        """The stricter decides while it is there, in any order, through processors that come later too."""
        provider, exporters = TracerProvider(), [InMemorySpanExporter() for _ in range(2)]
        processor = SimpleSpanProcessor(exporters[0])
        provider.add_span_processor(processor)

        def seen() -> set[tuple[Any, ...]]:
            fields = {"ward.word": WHO, "patient.name": WHO}
            provider.get_tracer("contrib").start_span("x", attributes=fields).end()
            spans = [one.get_finished_spans()[-1] for one in exporters if one.get_finished_spans()]
            return {tuple((span.attributes or {})[key] for key in fields) for span in spans}

        modes = ["mask", "mask"]
        modes[strict] = "strict"
        several = [
            Observability(Settings(redaction=mode), tracer_provider=provider, logs="off")  # type: ignore[arg-type]
            for mode in modes
        ]
        provider.add_span_processor(SimpleSpanProcessor(exporters[1]))
        both = seen()
        several.pop(first).close()
        provider.add_span_processor(SimpleSpanProcessor(late := InMemorySpanExporter()))
        exporters.append(late)
        one = seen()
        several.pop().close()
        assert both == {("[PHI:strict]", "[PHI:key]")}
        assert one == {("[PHI:strict]" if first != strict else WHO, "[PHI:key]")}
        assert seen() == {(WHO, WHO)}
        assert processor.span_exporter is exporters[0]
        assert "add_span_processor" not in vars(provider)

    def test_a_later_patch_of_somebody_else_stays(self) -> None:
        """What stands in front of us when we are closed is not taken off, and nothing is redacted through it."""
        provider, exporter = TracerProvider(), InMemorySpanExporter()
        obs = Observability(Settings(), tracer_provider=provider, logs="off")
        ours = provider.add_span_processor

        def theirs(span_processor: Any) -> None:
            ours(span_processor)

        provider.add_span_processor = theirs  # type: ignore[method-assign]
        obs.close()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("contrib").start_span("x", attributes={"patient.name": WHO}).end()
        assert provider.add_span_processor is theirs
        assert name_of(exporter) == WHO


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

    def test_names_of_fields_in_strict(self, root: io.StringIO) -> None:
        """Fields of the format stay, whoever sets them; a name made of data goes, in fields and in arguments."""
        fields: list[str] = []
        handler, log = logging.getLogger().handlers[0], logging.getLogger("app")
        handler.setFormatter(logging.Formatter("%(message)s %(" + "bed" + "s)s"))
        obs = Observability(Settings(redaction="strict"), logs="processor")

        def note(record: logging.LogRecord) -> bool:
            fields.extend(vars(record))
            return True

        handler.addFilter(note)
        names = {"beds": 3, WHO: 1}
        log.info("beds %r", {WHO: 3}, extra=names)
        handler.removeFilter(note)
        obs.close()
        assert root.getvalue() == "beds {'[PHI:strict]': '[PHI:key]'} 3\n"
        assert WHO not in fields
        assert "[PHI:strict]" in fields

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

    def test_names_of_fields_in_strict(self) -> None:
        """A name made of data goes with its value; those of the code and of the set-up stay."""
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.processors.TimeStamper(key="_".join(("at", "utc"))),
                structlog.processors.CallsiteParameterAdder({structlog.processors.CallsiteParameter.LINENO}),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        try:
            obs = Observability(Settings(redaction="strict"), logs="processor")
            structlog.get_logger().info("found", bed=3, **{WHO: 1})
            obs.close()
        finally:
            structlog.reset_defaults()
        line = json.loads(stream.getvalue())
        assert (line["bed"], line["[PHI:strict]"]) == (3, "[PHI:key]")
        assert {"at_utc", "lineno"} <= line.keys()
        assert WHO not in stream.getvalue()


class TestBareWordsOfASetUp:
    """What a set-up and healthobs put under `timestamp`, `level`, `logger` and the ids passes; what callers put does not."""

    #: A line of its own, so that its ids and times are not among the constants of a test.
    PROCESSORS = (
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
        structlog.processors.format_exc_info,
    )  # fmt: skip

    @pytest.fixture(params=["printed", "formatted", "kwargs"])
    def lines(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Set structlog up in one of three ways; call for the lines written since."""
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        last: list[Any] = [structlog.processors.JSONRenderer()]
        if request.param == "kwargs":
            last = [structlog.stdlib.render_to_log_kwargs]
            handler.setFormatter(Json())
        logger = logging.getLogger("healthobs.planted")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        printed = structlog.PrintLoggerFactory(stream)
        structlog.configure(
            processors=[*self.PROCESSORS[: 2 if request.param == "printed" else 4],
                        structlog.processors.TimeStamper("iso"), *last],
            logger_factory=printed if request.param == "printed" else lambda *_: logger,
        )  # fmt: skip
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
        structlog.reset_defaults()
        logger.handlers.clear()
        logger.propagate = True

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_what_the_set_up_adds(self, lines: Any, mode: Any) -> None:
        """Level, logger and the time of the line stay; a date of birth under `timestamp` and an address go."""
        obs = Observability(Settings(redaction=mode), logs="processor")
        with obs.tracing.tracer.start_as_current_span("op") as span:
            ids = span.get_span_context()
            structlog.get_logger().warning("seen", trace_id=f"{ids.trace_id:032x}", status="ok")
            structlog.get_logger().warning("seen", timestamp="1961-04-12", trace_id="078-05-1120")
        obs.close()
        first, second = lines()
        assert (first["status"], first["trace_id"]) == ("ok", f"{ids.trace_id:032x}")
        assert first.get("level", "warning") == "warning"
        assert first["timestamp"].startswith("20")
        assert ("1961-04" in str(second), "078-05" in str(second)) == (False, False)

    def test_two_adoptions(self) -> None:
        """The second leaves what the first told of an exception: one id, one type; it pickles as plain text."""
        seen: list[logging.LogRecord] = []

        class Kept(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(record)

        handler = Kept()
        logging.getLogger().addHandler(handler)
        both = [Observability(Settings(redaction="strict"), logs="processor") for _ in range(2)]
        try:
            raise LookupError("Jane " + WHO)
        except LookupError:
            logging.getLogger("app").exception("failed")
        for obs in both:
            obs.close()
        logging.getLogger().removeHandler(handler)
        told = vars(seen[0])
        assert told["exception_type"] == "LookupError"
        assert f"error_id={told['error_id']}" in str(seen[0].exc_info and seen[0].exc_info[1])
        assert type(pickle.loads(pickle.dumps(told["error_id"]))) is str

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_a_day_is_somebodys(self, mode: Any) -> None:
        """Where no set-up states the time of the line, a caller's day under `timestamp` goes, today's too."""
        stream = io.StringIO()
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        obs = Observability(Settings(redaction=mode), logs="processor")
        now = datetime.now(UTC)
        structlog.get_logger().warning("born", timestamp=now.date().isoformat())
        structlog.get_logger().warning("seen", timestamp=now.isoformat())
        obs.close()
        structlog.reset_defaults()
        born, seen = (json.loads(line)["timestamp"] for line in stream.getvalue().splitlines())
        assert born == ("[PHI:date]" if mode == "mask" else "[PHI:strict]")
        assert seen == now.isoformat()

    def test_bound_elsewhere(self, lines: Any) -> None:
        """In strict, what a function that has returned bound to a logger is known by its names."""
        obs = Observability(Settings(redaction="strict"), logs="processor")
        _bound().warning("seen")
        obs.close()
        (line,) = lines()
        assert (4 in line.values(), WHO in line) == (True, False)
        assert structlog.get_config()["wrapper_class"].__name__ != "NotingLogger"

    @pytest.mark.parametrize("first", [0, 1])
    def test_two_adoptions_give_the_logger_back(self, lines: Any, first: int) -> None:
        """In whichever order they end, structlog makes the loggers that it made before."""
        before = structlog.get_config()["wrapper_class"]
        both = [Observability(Settings(redaction="strict"), logs="processor") for _ in range(2)]
        both.pop(first).close()
        assert structlog.get_config()["wrapper_class"] is not before
        both.pop().close()
        assert structlog.get_config()["wrapper_class"] is before
        assert lines() == []

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_our_lines_and_facts(self, lines: Any, mode: Any) -> None:
        """They come out as we made them: type, places and id of an exception, words of our own."""
        obs = Observability(Settings(redaction=mode), logs="processor")
        try:
            raise LookupError("Jane " + WHO)
        except LookupError:
            structlog.get_logger().exception("failed")
            obs.logs.emit("error", "ours", {"exc_info": True}, own={"check": ".".join(("a", "b"))})
        obs.close()
        theirs, ours = lines()
        for line in (theirs, ours):
            assert line["exception_type"] == "LookupError"
            assert line["exception_frames"][0].startswith(f"{__name__}:")
            assert len(line["error_id"]) == 32
        assert ours["check"] == "a.b"
        assert WHO not in str((theirs, ours))


class Json(logging.Formatter):
    """A formatter that writes every field of a record that came with the call."""

    def format(self, record: logging.LogRecord) -> str:
        """Write message and further fields."""
        known = vars(logging.makeLogRecord({})).keys() | {"message", "_healthobs_done"}
        more = {key: value for key, value in vars(record).items() if key not in known}
        return json.dumps({"event": record.getMessage(), **more}, default=str)


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


NAME = "Ottoline Morrell"


@contextmanager
def bare() -> Generator[io.StringIO]:
    """Take all handlers off the root logger (pytest's come for each call), and let the one of last resort write here."""
    stream, logger = io.StringIO(), logging.getLogger()
    handlers, last = logger.handlers[:], logging.lastResort
    logger.handlers[:], logging.lastResort = [], logging.StreamHandler(stream)
    try:
        yield stream
    finally:
        logger.handlers[:], logging.lastResort = handlers, last


class TestStrict:
    """A service that declares PHI: what is not written in the code does not leave."""

    def test_messages_of_the_standard_library(self, root: io.StringIO) -> None:
        """However the caller formatted it, before or through arguments, no name passes; templates do."""
        obs = Observability(PHI, logs="processor")
        log = logging.getLogger("app")
        log.info(f"patient {NAME} admitted")  # noqa: G004
        log.info("patient %s admitted" % NAME)  # noqa: G002, UP031
        log.info("patient {} admitted".format(NAME))  # noqa: G001, UP032
        log.info("patient " + NAME)  # noqa: G003
        log.info(NAME)
        log.info({"event": f"{NAME} admitted"})
        log.info("patient %s admitted, %d beds left", NAME, 3)
        logging.LoggerAdapter(log, {}).info("patient admitted")
        obs.logs.emit("info", "ours")
        obs.close()
        assert root.getvalue().splitlines() == [
            *["INFO|app|[PHI:strict]"] * 5,
            "INFO|app|{'event': '[PHI:strict]'}",
            "INFO|app|patient [PHI:strict] admitted, 3 beds left",
            "INFO|app|patient admitted",
            "INFO|healthobs|ours",
        ]

    def test_a_template_that_comes_through_helpers(self, root: io.StringIO) -> None:
        """An adapter and helpers of the application's own do not hide that a message is written in the code."""
        adapter = logging.LoggerAdapter(logging.getLogger("app"), {})

        def helper(depth: int, message: str) -> None:
            helper(depth - 1, message) if depth else adapter.info(message)

        obs = Observability(PHI, logs="processor")
        helper(3, "bed assigned")
        helper(3, NAME)
        obs.close()
        assert root.getvalue() == "INFO|app|bed assigned\nINFO|app|[PHI:strict]\n"

    @pytest.mark.parametrize("wrapper", [None, structlog.stdlib.BoundLogger])
    def test_events_of_structlog(self, wrapper: Any) -> None:
        """An event that was formatted is replaced; one that structlog formats later keeps its template."""
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.EventRenamer("message"),
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
            wrapper_class=wrapper or structlog.make_filtering_bound_logger(0),
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        try:
            obs = Observability(PHI, logs="processor")
            log = structlog.get_logger()
            log.info(f"{NAME} admitted")  # noqa: G004
            log.info("hello %s", NAME)
            log.info("patient admitted", beds=3)
            obs.close()
        finally:
            structlog.reset_defaults()
        made, formatted, written = (json.loads(line) for line in stream.getvalue().splitlines())
        assert made["message"] == "[PHI:strict]"
        assert formatted["message"] == ("hello [PHI:strict]" if wrapper else "[PHI:strict]")
        assert (written["message"], written["beds"]) == ("patient admitted", 3)

    @pytest.mark.parametrize("through", ["text", "formatter", "kwargs"])
    def test_structlog_through_the_standard_library(self, root: io.StringIO, through: str) -> None:
        """What structlog rendered is not judged a second time, in whichever form it goes on."""
        last: Any = {
            "text": structlog.processors.KeyValueRenderer(key_order=["event"]),
            "formatter": structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            "kwargs": structlog.stdlib.render_to_log_kwargs,
        }[through]
        if through == "formatter":
            logging.getLogger().handlers[0].setFormatter(
                structlog.stdlib.ProcessorFormatter(processor=structlog.processors.KeyValueRenderer())
            )
        structlog.configure(
            processors=[last],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        try:
            obs = Observability(PHI, logs="processor")
            structlog.get_logger().info("patient admitted", beds=3)
            structlog.get_logger().info(f"{NAME} admitted")
            obs.close()
        finally:
            structlog.reset_defaults()
        written, made = root.getvalue().splitlines()
        assert "patient admitted" in written
        assert "[PHI:strict]" in made
        assert "Ottoline" not in made

    def test_messages_of_exceptions(self, root: io.StringIO) -> None:
        """One that is a literal of the code is told; a field of the caller's by that name is none."""
        logging.getLogger().handlers[0].setFormatter(
            logging.Formatter("%(message)s|%(exception_message)s", defaults={"exception_message": ""})
        )
        obs = Observability(PHI, logs="processor")
        try:
            raise RuntimeError("no such bed")
        except RuntimeError as exc:
            obs.logs.emit("error", "failed", {"exc_info": exc})
        logging.getLogger("app").error("failed", extra={"exception_message": NAME})
        obs.close()
        assert root.getvalue().splitlines() == ["failed|no such bed", "failed|[PHI:key]"]

    def test_structlog_that_nobody_configured(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Its default prints, and is covered as well."""
        obs = Observability(PHI, logs="processor")
        structlog.get_logger().info("found", patient_name=NAME)
        obs.close()
        assert "Ottoline" not in capsys.readouterr().out


class TestEveryHandler:
    """Handlers that are there, that come later, and that write when there is none."""

    def test_one_that_is_added_later(self, root: io.StringIO) -> None:
        """It is covered with the first record, and given back."""
        stream, log = io.StringIO(), logging.getLogger("healthobs.test.late")
        original = logging.Logger.callHandlers
        obs = Observability(PHI, logs="processor")
        handler = logging.StreamHandler(stream)
        log.addHandler(handler)
        log.propagate = False
        try:
            log.warning(f"{NAME} admitted")  # noqa: G004
            obs.close()
            assert (handler.filters, logging.Logger.callHandlers) == ([], original)
            log.warning(NAME)
        finally:
            log.removeHandler(handler)
            log.propagate = True
        assert (stream.getvalue(), root.getvalue()) == (f"[PHI:strict]\n{NAME}\n", "")

    def test_the_one_of_last_resort(self) -> None:
        """Without any handler the standard library writes to standard error."""
        with bare() as stream:
            obs = Observability(PHI, logs="processor")
            logging.getLogger("app").warning(f"{NAME} admitted")  # noqa: G004
            obs.close()
            logging.getLogger("app").warning(NAME)
        assert stream.getvalue() == f"[PHI:strict]\n{NAME}\n"

    def test_two_at_a_time(self) -> None:
        """Closed in any order, the second covers until it is closed too."""
        original = logging.Logger.callHandlers
        with bare() as stream:
            one, two = Observability(PHI, logs="processor"), Observability(PHI, logs="processor")
            one.close()
            logging.getLogger("app").warning(NAME)
            two.close()
        assert (stream.getvalue(), logging.Logger.callHandlers) == ("[PHI:strict]\n", original)

    @pytest.mark.parametrize("mode", ["own", "processor"])
    def test_a_flask_application_without_any_set_up(
        self, mode: LogMode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Flask adds its handler with the first line, and quotes path and exception."""
        app, stream = flask.Flask("healthobs_test_ward"), io.StringIO()
        monkeypatch.setattr(default_handler, "stream", stream)
        with bare() as last:
            obs = Observability(PHI, logs=mode, log_stream=io.StringIO())
            init_app(app, obs)

            @app.get("/patients/<name>/boom")
            def boom(name: str) -> str:
                app.logger.warning(f"{name} admitted")  # noqa: G004
                raise LookupError(name)

            try:
                assert app.test_client().get("/patients/Ottoline/boom").status_code == 500
                remove_app(app)
                obs.close()
                assert default_handler.filters == []
            finally:
                app.logger.removeHandler(default_handler)
        written = stream.getvalue() + last.getvalue()
        assert "Ottoline" not in written
        assert "Exception on /patients/<name>/boom [GET]" in written
        assert "LookupError: error_id=" in written

    def test_nothing_is_taken_where_no_phi_is_declared(self, root: io.StringIO) -> None:
        """Lines of its own leave all others alone."""
        obs = Observability(Settings(redaction="strict"), log_stream=io.StringIO())
        logging.getLogger("app").info(NAME)
        obs.close()
        assert root.getvalue() == f"INFO|app|{NAME}\n"

    def test_captured_records_keep_their_facts(self, root: io.StringIO) -> None:
        """A record that a covered handler has seen still tells type, places and id on its line."""
        stream, lines = io.StringIO(), io.StringIO()
        log, handler = logging.getLogger("healthobs.test.both"), logging.StreamHandler(stream)
        log.addHandler(handler)
        obs = Observability(replace(PHI, capture_stdlib=True), log_stream=lines)
        try:
            try:
                raise LookupError(NAME)
            except LookupError:
                log.exception("failed")
        finally:
            log.removeHandler(handler)
            obs.close()
        line = json.loads(lines.getvalue())
        assert (line["event"], line["exception_type"]) == ("failed", "LookupError")
        assert line["error_id"] in stream.getvalue()
        assert line["exception_frames"]


class TestServers:
    """Records of known servers: their paths never leave, and their formatters still work."""

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    def test_uvicorns_access_log(self, redaction: Any) -> None:
        """Method, version and status stay useful; the path becomes a mark."""
        stream, log = io.StringIO(), logging.getLogger("uvicorn.access")
        handler = logging.StreamHandler(stream)
        handler.setFormatter(AccessFormatter("%(request_line)s %(status_code)s", use_colors=False))
        before = log.handlers[:], log.propagate, log.level
        log.handlers[:], log.propagate, log.level = [handler], False, logging.INFO
        obs = Observability(Settings(redaction=redaction), logs="processor")
        try:
            log.info(
                '%s - "%s %s HTTP/%s" %d', "127.0.0.1:54321", "GET", "/patients/Ottoline?q=1", "1.1", 200
            )
        finally:
            log.handlers[:], log.propagate, log.level = before
            obs.close()
        assert stream.getvalue() == "GET [PHI:url] HTTP/1.1 200 OK\n"

    @pytest.mark.parametrize("capture", [True, False])
    @pytest.mark.parametrize(
        ("name", "message", "arguments", "shown"),
        [
            ("uvicorn.access", '%s - "%s %s HTTP/%s" %d', ("-", "GET", "/Ottoline", "1.1", 200), '- - "GET [PHI:url] HTTP/1.1" 200'),
            ("uvicorn.error", '%s - "WebSocket %s" [accepted]', ("-", "/Ottoline"), '- - "WebSocket [PHI:url]" [accepted]'),
            ("any", "Exception on /patients/Otto line/boom [GET]", (), "Exception on [PHI:url] [GET]"),
            ("any", "Exception on /x [OTTOLINE]", (), "Exception on [PHI:url] [_OTHER]"),
            ("gunicorn.error", "Error handling request %s", ("/Ottoline?q",), "Error handling request [PHI:url]"),
            ("gunicorn.error", "no /Ottoline", (), "no [PHI:url]"),
            ("gunicorn.error", "Invalid line 'GET /x/Otto line HTTP/1.1'", (), "Invalid line 'GET [PHI:url] HTTP/1.1'"),
            ("django.request", "%s: %s", ("Not Found", "/x/O'Tto Ottoline\n HTTP/1.1 x"), "Not Found: [PHI:url]"),
            ("hypercorn.access", '"%(r)s"', ({"r": "GET /Otto line 1.1"},), '"GET [PHI:url]"'),
            ("waitress", "Exception while serving %s", ("/Otto line",), "Exception while serving [PHI:url]"),
            ("django.db.backends", "(%.3f) %s; args=%s", (0.5, "SELECT 'Ottoline'", ("Ottoline",)), "(0.500) [PHI:value]; args=[PHI:value]"),
            ("werkzeug", '- "%s" %s %s', ("GET /Ottoline HTTP/1.1", 200, "-"), '- "GET [PHI:url] HTTP/1.1" 200 -'),
            ("werkzeug", '- - "%s" %s %s\n', ("\x1b[31mGET /Otto line HTTP/1.1\x1b[0m", 404, "-"), '"GET [PHI:url] HTTP/1.1" 404 -'),
            ("werkzeug", '- - "%s" %s %s\n', ("OTTOLINE", "Ottoline", "-"), '"_OTHER [PHI:url] ?" - -'),
            ("werkzeug", "x Error on request:\nTraceback Ottoline", (), "x Error on request:"),
        ],
    )  # fmt: skip
    def test_paths(
        self,
        root: io.StringIO,
        name: str,
        message: str,
        arguments: tuple[Any, ...],
        shown: str,
        capture: bool,
    ) -> None:
        """In `mask` too, through any set-up and through captured records."""
        lines = io.StringIO()
        obs = Observability(
            Settings(capture_stdlib=capture), logs="own" if capture else "processor", log_stream=lines
        )
        log = logging.getLogger(name)
        propagate, log.propagate = log.propagate, True
        try:
            log.error(message, *arguments)
        finally:
            log.propagate = propagate
            obs.close()
        if capture:
            assert json.loads(lines.getvalue())["event"] == shown
        else:
            assert root.getvalue() == f"ERROR|{name}|{shown}\n"

    def test_gunicorns_access_log(self, root: io.StringIO) -> None:
        """Of its atoms only those of a closed vocabulary pass."""
        obs = Observability(Settings(), logs="processor")
        atoms = {
            "h": "10.1.2.3", "t": "[26/Nov/2026:00:00:00 +0000]", "r": "GET /Ottoline HTTP/1.1", "s": "200",
            "b": "12", "f": "https://x/Ottoline", "a": "Ottoline", "m": "GET", "H": "HTTP/1.1", "{x-name}i": "Ottoline",
        }  # fmt: skip
        logging.getLogger("gunicorn.access").info(
            '%(h)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %({x-name}i)s', atoms
        )
        obs.close()
        assert root.getvalue() == (
            "INFO|gunicorn.access|[PHI:ip] [26/Nov/2026:00:00:00 +0000] "
            '"GET [PHI:url] HTTP/1.1" 200 12 "[PHI:key]" "[PHI:key]" [PHI:key]\n'
        )

    def test_watch_changes_nothing(self, root: io.StringIO) -> None:
        """The step before masking leaves paths as well."""
        obs = Observability(Settings(redaction="watch"), logs="processor")
        logging.getLogger("gunicorn.error").error("Error handling request %s", "/x")
        obs.close()
        assert root.getvalue() == "ERROR|gunicorn.error|Error handling request /x\n"


class TestAStartThatFails:
    """What was taken over when `Observability` raises."""

    @pytest.mark.parametrize(
        ("settings", "controls", "error"),
        [
            ({"audit_database_url": "sqlite:////proc/nope/a.db"}, 0, "audit database file cannot be created"),
            ({}, 2, "id"),
            ({"out_of_scope": ("nothing",)}, 1, "out_of_scope must name some of"),
        ],
    )
    def test_is_given_back(
        self, settings: dict[str, Any], controls: int, error: str, root: io.StringIO
    ) -> None:
        """Nothing of ours is left in provider, registry, `logging` and structlog, and the next try tells the same."""
        same = Control(
            "S-1", "policy 7", "company", "x", "x", "measure", lambda _context: Outcome("pass", "x")
        )
        provider, exporter, registry = TracerProvider(), InMemorySpanExporter(), CollectorRegistry()
        provider.add_span_processor(processor := SimpleSpanProcessor(exporter))
        call_handlers, chain = logging.Logger.callHandlers, structlog.get_config()["processors"]
        steps, exposed = list(chain), generate_latest(registry)
        handlers = logging.getLogger().handlers[:]
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=error):
                Observability(
                    replace(PHI, capture_stdlib=True, **settings),
                    tracer_provider=provider,
                    registry=registry,
                    controls=(same,) * controls,
                )
            assert processor.span_exporter is exporter
            assert "add_span_processor" not in vars(provider)
            assert logging.Logger.callHandlers is call_handlers
            assert (logging.getLogger().handlers, handlers[0].filters) == (handlers, [])
            assert (chain, generate_latest(registry)) == (steps, exposed)
        assert root.getvalue() == ""
