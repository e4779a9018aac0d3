"""Tracing: the provider, exporters that survive a fork, exceptions on spans, and `traceparent` read strictly."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, StatusCode, TraceFlags
from tests.span_sinks import NEEDLE, SPAN_ID, TRACE_ID, CountingIds, Failing, Keeping, shown

from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.redaction import Redactor, describe_exception
from healthobs.tracing import (
    LazyExporter,
    Tracing,
    build_resource,
    build_tracing,
    format_traceparent,
    parse_traceparent,
    record_exception,
)

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def memory() -> InMemorySpanExporter:
    """What was exported."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(memory: InMemorySpanExporter) -> Iterator[Tracing]:
    """Tracing into `memory`, span by span."""
    built = build_tracing(Settings(service_name="demo"), Redactor(), exporters=[memory], simple=True)
    yield built
    built.close()


class TestLazyExporter:
    """`LazyExporter`: made at the first export, one per process."""

    def test_is_made_at_the_first_export_and_once(self) -> None:
        """Nothing is opened before there is something to send."""
        made: list[Keeping] = []

        def make() -> Keeping:
            made.append(Keeping())
            return made[-1]

        exporter = LazyExporter(make)
        assert exporter.force_flush()
        exporter.shutdown()
        assert made == []
        exporter.export([])
        exporter.export([])
        exporter.force_flush(3)
        exporter.shutdown()
        assert [one.calls for one in made] == [["flush 3", "shutdown"]]

    def test_a_forked_child_makes_its_own(self) -> None:
        """Sockets and threads of the parent are not used in the child."""
        made: list[int] = []

        def make() -> Keeping:
            made.append(os.getpid())
            return Keeping()

        exporter = LazyExporter(make)
        exporter.export([])
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            exporter.export([])
            os.write(writer, str(len(made) == 2 and made[1] == os.getpid()).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            assert answer.read() == "True"


class TestBuildTracing:
    """`build_tracing`: a provider of one's own."""

    def test_leaves_the_process_wide_provider_alone(self, tracing: Tracing) -> None:
        """Two of them can live in one process."""
        assert trace.get_tracer_provider() is not tracing.provider

    def test_names_the_service(self, tracing: Tracing, memory: InMemorySpanExporter) -> None:
        """Resource attributes of the semantic conventions, one instance id per process."""
        tracing.tracer.start_span("op").end()
        attributes = memory.get_finished_spans()[0].resource.attributes
        assert attributes["service.name"] == "demo"
        assert attributes["service.version"] == "0.0.0"
        assert attributes["deployment.environment.name"] == "development"
        assert attributes["telemetry.sdk.language"] == "python"
        assert (
            attributes["service.instance.id"] == build_resource(Settings()).attributes["service.instance.id"]
        )

    def test_takes_resource_attributes_of_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`OTEL_RESOURCE_ATTRIBUTES` adds, and names the service where the settings do not."""
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=env,k8s.pod.name=p1")
        assert build_resource(Settings()).attributes["service.name"] == "env"
        named = build_resource(Settings(service_name="mine")).attributes
        assert (named["service.name"], named["k8s.pod.name"]) == ("mine", "p1")

    def test_uses_the_id_generator(self, memory: InMemorySpanExporter) -> None:
        """Tests and twin runs fix the ids."""
        tracing = build_tracing(
            Settings(), Redactor(), exporters=[memory], simple=True, id_generator=CountingIds()
        )
        tracing.tracer.start_span("op").end()
        context = memory.get_finished_spans()[0].context
        assert context is not None
        assert {context.trace_id, context.span_id} == {1, 2}
        tracing.close()

    def test_batches_are_exported_on_flush(self, memory: InMemorySpanExporter) -> None:
        """Without `simple`, spans wait for the batch, and `flush` does not."""
        tracing = build_tracing(Settings(), Redactor(), exporters=[memory])
        tracing.tracer.start_span(f"op {NEEDLE}").end()
        assert tracing.flush()
        assert [span.name for span in memory.get_finished_spans()] == ["op [PHI:ssn]"]
        tracing.close()

    def test_disabled_records_and_exports_nothing(self, memory: InMemorySpanExporter) -> None:
        """One setting switches telemetry off; no exporter is even made."""
        settings = Settings(disabled=True, otlp_endpoint="http://127.0.0.1:1")
        tracing = build_tracing(settings, Redactor(), exporters=[memory], simple=True)
        with tracing.tracer.start_as_current_span("op") as span:
            assert not span.is_recording()
        tracing.close()
        assert (tracing.enabled, memory.get_finished_spans()) == (False, ())

    def test_a_failing_exporter_reaches_nobody(self) -> None:
        """Ending a span, flushing and closing never raise."""
        told: list[str] = []
        tracing = build_tracing(
            Settings(), Redactor(), exporters=[Failing()], simple=True, on_error=told.append
        )
        tracing.tracer.start_span("op").end()
        tracing.flush()
        tracing.close()
        assert set(told) == {"tracing"}

    def test_a_failing_provider_reaches_nobody(
        self, tracing: Tracing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`flush` answers False, `close` warns."""

        def fail(*_arguments: object) -> None:
            raise RuntimeError(NEEDLE)

        with monkeypatch.context() as patch:
            patch.setattr(tracing.provider, "force_flush", fail)
            patch.setattr(tracing.provider, "shutdown", fail)
            assert tracing.flush() is False
            tracing.close()
        assert "closing the tracer provider failed" in caplog.text
        assert NEEDLE not in caplog.text

    @pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"])
    def test_an_endpoint_gets_an_otlp_exporter_made_late(
        self, endpoint: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The base URL is completed as the OTLP specification says, and spans arrive redacted."""
        sent: list[ReadableSpan] = []

        def export(exporter: Any, spans: Sequence[ReadableSpan], *_rest: object) -> SpanExportResult:
            assert exporter._endpoint == "http://127.0.0.1:4318/v1/traces"
            sent.extend(spans)
            return SpanExportResult.SUCCESS

        monkeypatch.setattr(OTLPSpanExporter, "export", export)
        tracing = build_tracing(Settings(otlp_endpoint=endpoint), Redactor(), simple=True)
        tracing.tracer.start_span(f"op {NEEDLE}").end()
        tracing.close()
        assert [span.name for span in sent] == ["op [PHI:ssn]"]

    def test_an_endpoint_without_the_extra_is_a_configuration_error(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message names the extra to install."""
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
        with pytest.raises(ConfigurationError, match=r"install healthobs\[otlp\]"):
            build_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"), Redactor())


class TestParseTraceparent:
    """`parse_traceparent`: W3C Trace Context level 1 §3.2.2, §4.3."""

    def test_reads_ids_and_the_sampled_flag(self) -> None:
        """The parent is remote."""
        context = parse_traceparent(HEADER)
        assert context is not None
        assert (context.trace_id, context.span_id, context.is_remote) == (TRACE_ID, SPAN_ID, True)
        assert context.trace_flags == TraceFlags.SAMPLED

    @pytest.mark.parametrize(("flags", "expected"), [("00", 0), ("01", 1), ("02", 0), ("ff", 1)])
    def test_only_the_sampled_flag_counts(self, flags: str, expected: int) -> None:
        """Unknown flags are not passed on (§3.2.2.5.2)."""
        context = parse_traceparent(HEADER[:-2] + flags)
        assert context is not None
        assert context.trace_flags == expected

    @pytest.mark.parametrize("rest", ["", "-", "-what follows", "-\n"])
    def test_a_later_version_is_read_as_far_as_known(self, rest: str) -> None:
        """Version 01 may append fields after a dash."""
        context = parse_traceparent(f"01{HEADER[2:]}{rest}")
        assert context is not None
        assert context.trace_id == TRACE_ID

    @pytest.mark.parametrize(
        "header",
        [
            "", "00", HEADER[:-1], HEADER + "-", HEADER + "-00", HEADER + "0", HEADER.upper(), "ff" + HEADER[2:],
            "0" + HEADER[2:], "x0" + HEADER[2:], " " + HEADER, HEADER + "\n", HEADER.replace("-", "_"),
            "01" + HEADER[2:] + "0", f"00-{0:032x}-{SPAN_ID:016x}-01", f"00-{TRACE_ID:032x}-{0:016x}-01",
            f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-0x", "00-" + "\u0661" * 32 + "-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e47_6-00f067aa0ba902b7-01",
        ],
    )  # fmt: skip
    def test_anything_else_is_refused(self, header: str) -> None:
        """An invalid header starts a new trace."""
        assert parse_traceparent(header) is None

    @given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 1))
    def test_reads_back_what_is_formatted(self, trace_id: int, span_id: int, flags: int) -> None:
        """Format and parse are inverse."""
        context = SpanContext(trace_id, span_id, True, TraceFlags(flags))
        assert parse_traceparent(format_traceparent(context)) == context

    @given(st.text())
    def test_never_raises(self, header: str) -> None:
        """Whatever a client sends is a context or None; a parsed one formats to its own beginning."""
        context = parse_traceparent(header)
        assert context is None or format_traceparent(context)[3:52] == header[3:52]


class TestRecordException:
    """`record_exception`: type, places and id; text only when literal."""

    def test_sets_event_status_and_error_type(self, tracing: Tracing, memory: InMemorySpanExporter) -> None:
        """A literal message passes."""
        span = tracing.tracer.start_span("op")
        try:
            try:
                int(NEEDLE)
            except ValueError as cause:
                raise TimeoutError("no answer") from cause
        except TimeoutError as exc:
            facts = describe_exception(exc)
        record_exception(span, facts)
        span.end()
        (done,) = memory.get_finished_spans()
        assert (done.status.status_code, done.status.description) == (StatusCode.ERROR, "TimeoutError")
        assert (done.attributes or {})["error.type"] == "TimeoutError"
        assert [(event.name, dict(event.attributes or {})) for event in done.events] == [
            (
                "exception",
                {
                    "exception.type": "TimeoutError",
                    "exception.message": "no answer",
                    "healthobs.exception.frames": facts.frames,
                    "healthobs.exception.fingerprint": facts.fingerprint,
                    "healthobs.exception.causes": ("ValueError",),
                    "healthobs.error_id": facts.error_id,
                },
            )
        ]

    def test_tells_no_formatted_message(self, tracing: Tracing, memory: InMemorySpanExporter) -> None:
        """The interpreter's message quotes the value."""
        span = tracing.tracer.start_span("op")
        try:
            int("John Smith")
        except ValueError as exc:
            record_exception(span, describe_exception(exc))
        span.end()
        (done,) = memory.get_finished_spans()
        assert "exception.message" not in (done.events[0].attributes or {})
        assert "John" not in shown(done)

    def test_a_literal_message_is_scanned_all_the_same(
        self, tracing: Tracing, memory: InMemorySpanExporter
    ) -> None:
        """A programmer may have written an example into it."""
        span = tracing.tracer.start_span("op")
        try:
            raise ValueError("such as 078-05-1120")
        except ValueError as exc:
            record_exception(span, describe_exception(exc))
        span.end()
        event = memory.get_finished_spans()[0].events[0]
        assert (event.attributes or {})["exception.message"] == "such as [PHI:ssn]"
