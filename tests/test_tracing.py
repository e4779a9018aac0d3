"""Tracing: every place of a span is redacted on export, and `traceparent` is read strictly."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.redaction import Phi, Redactor, describe_exception
from healthobs.redaction.keys import Action, classify
from healthobs.tracing import (
    LazyExporter,
    RedactingSpanExporter,
    Tracing,
    build_resource,
    build_tracing,
    format_traceparent,
    parse_traceparent,
    record_exception,
)

NEEDLE = "078-05-1120"
TRACE_ID, SPAN_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class CountingIds(IdGenerator):
    """Ids 1, 2, 3 and so on."""

    def __init__(self) -> None:
        self.last = 0

    def generate_span_id(self) -> int:
        """Count."""
        self.last += 1
        return self.last

    generate_trace_id = generate_span_id


class Failing(SpanExporter):
    """An exporter whose every method raises, with the needle in the error."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail."""
        raise RuntimeError(NEEDLE)

    def shutdown(self) -> None:
        """Fail."""
        raise RuntimeError(NEEDLE)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Fail."""
        raise RuntimeError(NEEDLE)


class Keeping(SpanExporter):
    """Keeps what it is given, and what it was told."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []
        self.calls: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Keep."""
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Note."""
        self.calls.append("shutdown")

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Note."""
        self.calls.append(f"flush {timeout_millis}")
        return True


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


def shown(span: ReadableSpan) -> str:
    """Everything a backend would get of `span`."""
    assert span.context is not None
    scope = span.instrumentation_scope
    contexts = [span.context, span.parent, *(link.context for link in span.links)]
    parts: list[object] = [
        span.name,
        span.status.description,
        dict(span.attributes or {}),
        [(event.name, dict(event.attributes or {})) for event in span.events],
        [dict(link.attributes or {}) for link in span.links],
        [context.trace_state.to_header() for context in contexts if context is not None],
        dict(span.resource.attributes),
        dict(scope.attributes or {}) if scope else {},
    ]
    return repr(parts)


REMOTE = SpanContext(TRACE_ID, SPAN_ID, True, TraceFlags(1), TraceState([("vendor", NEEDLE)]))


def plant_name(tracer: trace.Tracer) -> None:
    tracer.start_span(f"patient {NEEDLE}").end()


def plant_status(tracer: trace.Tracer) -> None:
    span = tracer.start_span("op")
    span.set_status(Status(StatusCode.ERROR, f"ValueError: {NEEDLE}"))
    span.end()


def plant_attribute(tracer: trace.Tracer) -> None:
    tracer.start_span("op", attributes={"step": NEEDLE}).end()


def plant_attribute_key(tracer: trace.Tracer) -> None:
    tracer.start_span("op", attributes={NEEDLE: 1}).end()


def plant_sequence(tracer: trace.Tracer) -> None:
    tracer.start_span("op", attributes={"steps": ("a", NEEDLE)}).end()


def plant_object(tracer: trace.Tracer) -> None:
    tracer.start_span("op", attributes={"step": [NEEDLE.encode()], "p": f"Patient(ssn='{NEEDLE}')"}).end()


def plant_event_name(tracer: trace.Tracer) -> None:
    span = tracer.start_span("op")
    span.add_event(f"found {NEEDLE}")
    span.end()


def plant_event_attribute(tracer: trace.Tracer) -> None:
    span = tracer.start_span("op")
    span.add_event("found", {"step": NEEDLE})
    span.end()


def plant_exception(tracer: trace.Tracer) -> None:
    with pytest.raises(ValueError), tracer.start_as_current_span("op"):
        int(NEEDLE)


def plant_link(tracer: trace.Tracer) -> None:
    context = SpanContext(TRACE_ID, SPAN_ID, False)
    tracer.start_span("op", links=[Link(context, {"step": NEEDLE})]).end()


def plant_link_state(tracer: trace.Tracer) -> None:
    tracer.start_span("op", links=[Link(REMOTE, {})]).end()


def plant_parent_state(tracer: trace.Tracer) -> None:
    context = trace.set_span_in_context(trace.NonRecordingSpan(REMOTE))
    tracer.start_span("op", context=context).end()


PLANTS = [
    plant_name, plant_status, plant_attribute, plant_attribute_key, plant_sequence, plant_object, plant_event_name,
    plant_event_attribute, plant_exception, plant_link, plant_link_state, plant_parent_state,
]  # fmt: skip


class TestRedactingSpanExporter:
    """`RedactingSpanExporter`: nothing passes unread."""

    @pytest.mark.parametrize("plant", PLANTS)
    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_no_place_of_a_span_leaks(self, plant: Callable[[trace.Tracer], None], mode: Any) -> None:
        """Name, status, attributes, events, links, and what came with the context."""
        memory = InMemorySpanExporter()
        tracing = build_tracing(Settings(), Redactor(mode), exporters=[memory], simple=True)
        plant(tracing.tracer)
        (span,) = memory.get_finished_spans()
        assert NEEDLE not in shown(span)
        tracing.close()

    @pytest.mark.parametrize("plant", PLANTS)
    def test_the_needle_is_seen_without_redaction(self, plant: Callable[[trace.Tracer], None]) -> None:
        """The test above would notice a bypass: a bare exporter shows every planted needle."""
        memory = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(memory))
        plant(provider.get_tracer("bare"))
        (span,) = memory.get_finished_spans()
        assert NEEDLE in shown(span)
        provider.shutdown()

    def test_resource_and_scope_are_redacted(self) -> None:
        """They come from the environment and from libraries."""
        memory = InMemorySpanExporter()
        provider = TracerProvider(resource=Resource({"step": NEEDLE, "service.name": "demo"}))
        provider.add_span_processor(SimpleSpanProcessor(RedactingSpanExporter(memory, Redactor())))
        tracer = provider.get_tracer("lib", "1", attributes={"owner": NEEDLE, "a": 1})
        tracer.start_span("one").end()
        tracer.start_span("two").end()
        first, second = memory.get_finished_spans()
        assert NEEDLE not in shown(first) + shown(second)
        assert first.resource.attributes["service.name"] == "demo"
        assert second.resource is first.resource
        provider.shutdown()

    def test_a_clean_span_is_passed_on_itself(self) -> None:
        """Spans in which nothing changes are not copied."""
        keeping = Keeping()
        provider = TracerProvider(resource=Resource({"service.name": "demo"}))
        span = provider.get_tracer("x").start_span(
            "op",
            attributes={"http.route": "/x", "step": "plain"},
            links=[Link(SpanContext(1, 1, False), {"n": 1})],
        )
        span.add_event("found", {"count": 2})
        span.end()
        assert isinstance(span, ReadableSpan)
        RedactingSpanExporter(keeping, Redactor()).export([span])
        assert keeping.spans[0] is span
        provider.shutdown()

    def test_a_clean_span_with_every_part_is_passed_on_itself(self) -> None:
        """Trace state, scope attributes, description and exception of a clean span change nothing either."""
        keeping = Keeping()
        state = TraceState([("vendor", "abc")])
        parent = trace.NonRecordingSpan(SpanContext(1, 1, True, TraceFlags(1), state))
        provider = TracerProvider(resource=Resource({"service.name": "demo"}))
        tracer = provider.get_tracer("x", attributes={"a": 1})
        span = tracer.start_span("op", context=trace.set_span_in_context(parent))
        try:
            raise ValueError("a literal")
        except ValueError as exc:
            record_exception(span, describe_exception(exc))
        span.end()
        assert isinstance(span, ReadableSpan)
        RedactingSpanExporter(keeping, Redactor()).export([span])
        assert keeping.spans[0] is span
        provider.shutdown()

    def test_names_made_of_data_do_not_grow_the_memory(self) -> None:
        """Clean names are remembered, but not without bound."""
        exporter = RedactingSpanExporter(Keeping(), Redactor())
        for number in range(3_000):
            exporter.export([ReadableSpan(f"op{number}x", context=SpanContext(1, 1, False))])
        assert len(exporter._clean_names) <= 1_024

    def test_a_copy_keeps_everything_else(self) -> None:
        """Ids, times, kind, status and the counts of what was dropped survive redaction."""
        keeping = Keeping()
        provider = TracerProvider(id_generator=CountingIds())
        span: Any = provider.get_tracer("lib", "2").start_span(
            "op", kind=SpanKind.SERVER, attributes={"patient.name": "J", "n": 1}, start_time=5
        )
        span.set_status(Status(StatusCode.OK))
        span.end(end_time=9)
        RedactingSpanExporter(keeping, Redactor()).export([span])
        copy = keeping.spans[0]
        assert copy is not span
        same = (
            "name",
            "context",
            "parent",
            "kind",
            "start_time",
            "end_time",
            "resource",
            "instrumentation_scope",
        )
        assert [getattr(copy, name) for name in same] == [getattr(span, name) for name in same]
        assert copy.status.status_code is StatusCode.OK
        assert dict(copy.attributes or {}) == {
            "patient.name": "[PHI:key]",
            "n": 1,
            "healthobs.redacted": "key=1",
        }
        dropped = ("dropped_attributes", "dropped_events", "dropped_links")
        assert [getattr(copy, name) for name in dropped] == [getattr(span, name) for name in dropped]
        provider.shutdown()

    def test_masked_kinds_are_counted_on_the_span(
        self, tracing: Tracing, memory: InMemorySpanExporter
    ) -> None:
        """`healthobs.redacted` says what was masked, never which value."""
        tracing.tracer.start_span(
            "op", attributes={"a": f"{NEEDLE} a@b.org", "b": NEEDLE, "c": (NEEDLE,)}
        ).end()
        attributes = memory.get_finished_spans()[0].attributes or {}
        assert attributes["healthobs.redacted"] == "email=1,ssn=3"

    def test_a_raw_path_is_taken_out_of_the_name(
        self, tracing: Tracing, memory: InMemorySpanExporter
    ) -> None:
        """Instrumentation that names spans by path is caught by the attribute it also sets."""
        tracing.tracer.start_span(
            "GET /patients/john-smith", attributes={"url.path": "/patients/john-smith"}
        ).end()
        assert memory.get_finished_spans()[0].name == "GET [PHI:key]"

    def test_phi_values_are_masked_by_their_own_rendering(
        self, tracing: Tracing, memory: InMemorySpanExporter
    ) -> None:
        """The SDK turns unknown types into text; a Phi's text is its mark."""
        attributes: Any = {"step": Phi("John Smith", "name")}
        tracing.tracer.start_span("op", attributes=attributes).end()
        assert "John" not in shown(memory.get_finished_spans()[0])

    def test_a_foreign_exception_event_loses_text_and_stack(
        self, tracing: Tracing, memory: InMemorySpanExporter
    ) -> None:
        """The SDK's own `record_exception` writes both; a name in them has no pattern, so they go whole."""
        with pytest.raises(KeyError), tracing.tracer.start_as_current_span("op"):
            raise KeyError("John Smith")
        (span,) = memory.get_finished_spans()
        assert "John" not in shown(span)
        assert span.status.description == "KeyError"
        assert (span.events[0].attributes or {})["exception.type"] == "KeyError"

    @pytest.mark.parametrize(
        ("description", "kept"),
        [(None, None), ("PaymentError", "PaymentError"), ("PaymentError: John", "PaymentError"),
         ("card declined", "card declined"), (f"for {NEEDLE}", "for [PHI:ssn]")],
    )  # fmt: skip
    def test_a_status_description_is_at_most_the_type(
        self, tracing: Tracing, memory: InMemorySpanExporter, description: str | None, kept: str | None
    ) -> None:
        """What follows the exception's type in it is the exception's text."""
        span = tracing.tracer.start_span("op", attributes={"error.type": "PaymentError"})
        span.set_status(Status(StatusCode.ERROR, description))
        span.end()
        assert memory.get_finished_spans()[0].status.description == kept

    def test_a_failing_exporter_is_counted_and_never_raises(self, caplog: pytest.LogCaptureFixture) -> None:
        """Its error text may quote a span, so it is not logged either."""
        told: list[str] = []
        exporter = RedactingSpanExporter(Failing(), Redactor(), on_error=told.append)
        assert exporter.export([]) is SpanExportResult.FAILURE
        assert exporter.force_flush() is False
        exporter.shutdown()
        assert (exporter.failures, told) == (3, ["tracing"] * 3)
        assert NEEDLE not in caplog.text
        assert len(caplog.records) == 1

    def test_a_span_that_cannot_be_redacted_is_dropped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fail closed: the other spans go out."""
        keeping, redactor = Keeping(), Redactor()
        provider = TracerProvider()
        good, bad = (provider.get_tracer("x").start_span(name) for name in ("good", "bad"))
        original = redactor.text

        def fail(text: str, *, signal: str = "log") -> str:
            if text == "bad":
                raise RuntimeError(NEEDLE)
            return original(text, signal=signal)

        monkeypatch.setattr(redactor, "text", fail)
        exporter = RedactingSpanExporter(keeping, redactor)
        assert exporter.export([bad, good]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
        assert [span.name for span in keeping.spans] == ["good"]
        assert exporter.failures == 1
        provider.shutdown()

    def test_a_broken_counter_does_not_raise(self) -> None:
        """The hook's fault stays with the hook."""

        def broken(_component: str) -> None:
            raise RuntimeError

        assert (
            RedactingSpanExporter(Failing(), Redactor(), on_error=broken).export([])
            is SpanExportResult.FAILURE
        )

    def test_flush_and_shutdown_reach_the_inner_exporter(self) -> None:
        """The wrapper adds nothing to either."""
        keeping = Keeping()
        exporter = RedactingSpanExporter(keeping, Redactor())
        assert exporter.force_flush(7)
        exporter.shutdown()
        assert keeping.calls == ["flush 7", "shutdown"]

    def test_many_resources_do_not_grow_the_memory(self) -> None:
        """Resources are remembered, but not without bound."""
        exporter = RedactingSpanExporter(Keeping(), Redactor())
        for number in range(50):
            span = ReadableSpan("op", context=SpanContext(1, 1, False), resource=Resource({"n": number}))
            exporter.export([span])
        assert len(exporter._resources) <= 17

    @given(st.text(max_size=10), st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=4))
    def test_planted_anywhere_it_never_comes_out(self, name: str, attributes: dict[str, str]) -> None:
        """Any name and attributes around the needle; values under allow-listed keys pass unread by design."""
        keeping = Keeping()
        scanned = {
            key: value for key, value in attributes.items() if classify(key, frozenset()) is not Action.ALLOW
        }
        planted = {key: f"{value} {NEEDLE}" for key, value in scanned.items()}
        span = ReadableSpan(f"{name} {NEEDLE}", context=SpanContext(1, 1, False), attributes=planted)
        RedactingSpanExporter(keeping, Redactor()).export([span])
        assert NEEDLE not in shown(keeping.spans[0])


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
