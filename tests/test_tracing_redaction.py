"""Every place of a span in which something can hide is redacted on export."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from tests.span_sinks import NEEDLE, SPAN_ID, TRACE_ID, CountingIds, Failing, Keeping, shown

from healthobs.config import Settings
from healthobs.redaction import Phi, Redactor, describe_exception
from healthobs.redaction.keys import Action, classify
from healthobs.tracing import (
    RedactingSpanExporter,
    Tracing,
    build_tracing,
    record_exception,
)


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


#: Not in a test, where it would be written in a function that is running.
NAME = "Ottoline"
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

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_a_message_of_ours_is_not_counted(self, mode: Any) -> None:
        """A literal of the raising code passes, so nothing counts as masked."""
        counted: list[tuple[str, str]] = []
        memory = InMemorySpanExporter()
        redactor = Redactor(mode, on_redaction=lambda signal, kind: counted.append((signal, kind)))
        tracing = build_tracing(Settings(), redactor, exporters=[memory], simple=True)
        with tracing.tracer.start_as_current_span("read") as span:
            try:
                raise ValueError("no such bed")
            except ValueError as exc:
                record_exception(span, describe_exception(exc))
        (event,) = memory.get_finished_spans()[0].events
        assert (event.attributes or {})["exception.message"] == "no such bed"
        assert counted == []
        tracing.close()

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

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_each_part_of_a_scope(self, mode: Any) -> None:
        """What is made of data is not kept: name, version, schema and attributes; what names an instrumentation is."""
        memory = InMemorySpanExporter()
        tracing = build_tracing(Settings(), Redactor(mode), exporters=[memory], simple=True)
        schema = "https://opentelemetry.io/schemas/1.11.0"
        get = tracing.provider.get_tracer
        get(NEEDLE, NEEDLE, f"https://x/{NEEDLE}", {"step": NEEDLE}).start_span("op").end()
        get(f"ward.{NAME}", NAME, f"urn:{NAME}", {NAME: 1}).start_span("op").end()
        get("opentelemetry.sdk.trace", "0.48b0", schema).start_span("op").end()
        get("ledger", "edge", "urn:ledger", {"beds": 3}).start_span("op").end()
        tracing.close()
        found = [span.instrumentation_scope for span in memory.get_finished_spans()]
        scopes = [(one.name, one.version, one.schema_url, dict(one.attributes or {})) for one in found if one]
        free = mode == "mask"
        assert scopes == [
            (
                "[PHI:ssn]" if free else "[PHI:strict]",
                None,
                "",
                {"step": "[PHI:ssn]" if free else "[PHI:strict]"},
            ),
            (f"ward.{NAME}", NAME, f"urn:{NAME}", {NAME: 1})
            if free
            else ("[PHI:strict]", None, "", {"[PHI:strict]": "[PHI:key]"}),
            ("opentelemetry.sdk.trace", "0.48b0", schema, {}),
            ("ledger", "edge", "urn:ledger", {"beds": 3}),
        ]

    def test_watch_leaves_the_scope(self) -> None:
        """Nothing of it is left out."""
        memory = InMemorySpanExporter()
        tracing = build_tracing(Settings(), Redactor("watch"), exporters=[memory], simple=True)
        tracing.provider.get_tracer(NEEDLE, NEEDLE, f"https://x/{NEEDLE}").start_span("op").end()
        scope = memory.get_finished_spans()[0].instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version, scope.schema_url) == (NEEDLE, NEEDLE, f"https://x/{NEEDLE}")
        tracing.close()

    def test_the_version_of_the_service_is_configuration(self) -> None:
        """Whatever its form, it is that of our scope, in `strict` too."""
        memory = InMemorySpanExporter()
        settings = Settings(service_version="".join("gab1"))
        tracing = build_tracing(settings, Redactor("strict"), exporters=[memory], simple=True)
        tracing.tracer.start_span("op").end()
        scope = memory.get_finished_spans()[0].instrumentation_scope
        assert scope is not None
        assert (scope.name, scope.version) == ("healthobs", "gab1")
        tracing.close()

    def test_a_name_that_is_learned_late(self) -> None:
        """A batch is exported by a thread of its own, where no function that knows the name is running."""
        keeping = Keeping()
        tracing = build_tracing(Settings(), Redactor("strict"), exporters=[keeping])
        tracing.provider.get_tracer("storeroom", "edge").start_span("op").end()
        tracing.provider.get_tracer(f"ward.{NAME}").start_span("op").end()
        tracing.close()
        found = [span.instrumentation_scope for span in keeping.spans]
        assert [(one.name, one.version) for one in found if one] == [
            ("storeroom", "edge"),
            ("[PHI:strict]", ""),
        ]

    def test_a_tracer_that_a_module_holds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """OpenTelemetry's proxy of one counts, another tracer does not; so it is in a thread of its own."""
        memory = InMemorySpanExporter()
        tracing = build_tracing(Settings(), Redactor("strict"), exporters=[memory], simple=True)
        proxy = trace.ProxyTracer("-".join(("store", "room")))
        monkeypatch.setattr(trace, "_TRACER_PROVIDER", tracing.provider)
        for holding in (tracing.provider.get_tracer("another"), proxy):
            monkeypatch.setitem(globals(), "holding", holding)
            thread = threading.Thread(target=lambda: proxy.start_span("op").end())
            thread.start()
            thread.join()
        tracing.close()
        found = [span.instrumentation_scope for span in memory.get_finished_spans()]
        assert [one.name.split("-") for one in found if one] == [["[PHI:strict]"], ["store", "room"]]

    def test_a_tracer_that_nobody_seems_to_hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is looked for with its first spans, and costs the later ones nothing."""
        looked: list[object] = []
        monkeypatch.setattr("healthobs.tracing.exporters.is_held", looked.append)
        tracing = build_tracing(Settings(), Redactor("strict"), exporters=[Keeping()], simple=True)
        tracer = tracing.provider.get_tracer(f"ward.{NAME}")
        for _ in range(100):
            tracer.start_span("op").end()
        tracing.close()
        assert len(looked) == 64

    def test_a_scope_that_is_no_text(self) -> None:
        """The span begins all the same, and what cannot be judged is not exported."""
        keeping = Keeping()
        tracing = build_tracing(Settings(), Redactor("strict"), exporters=[keeping], simple=True)
        name: Any = 7
        tracing.provider.get_tracer(name).start_span("op").end()
        tracing.close()
        assert keeping.spans == []

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
        described = {"context": SpanContext(1, 1, False), "resource": Resource.get_empty()}
        for number in range(3_000):
            exporter.export([ReadableSpan(f"op{number}x", **described)])
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
        assert memory.get_finished_spans()[0].attributes == {"step": "[PHI:name]"}

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
