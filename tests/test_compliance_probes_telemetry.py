"""Probes of what leaves: each exporter redacts, and neither identifiers nor cards come out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.controlled_service import context

from healthobs.audit import open_trail
from healthobs.compliance import Outcome
from healthobs.compliance.probes_telemetry import (
    _card_number,
    hides_authentication_data,
    hides_card_numbers,
    masks_identifiers,
    wraps_every_exporter,
)
from healthobs.redaction import Redactor
from healthobs.redaction.identifiers import luhn
from healthobs.tracing import RedactingSpanExporter


def masking_is_seen(url: str, key: Path) -> bool:
    """Return whether C-3.5 and C-3.3 pass on a trail that masks and fail on one that masks nothing, by what it records."""
    states: list[str] = []
    for redactor in (Redactor(), Redactor("watch")):
        with closing(open_trail(url, service="s", key_file=key, redactor=redactor)) as trail:
            outcomes = [
                probe(context(audit=trail)) for probe in (hides_card_numbers, hides_authentication_data)
            ]
            states += [outcome.state for outcome in outcomes]
    assert all("an audit entry" in outcome.text for outcome in outcomes)
    return states == ["pass", "pass", "fail", "fail"]


class Quiet(SpanProcessor):
    """A processor that shows no exporter."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing."""


class TestWrapping:
    """`G-wrap`, its span exporters; of sinks see `tests/test_sinks.py`."""

    @pytest.fixture(autouse=True)
    def no_sinks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leave out what else writes in this process."""
        monkeypatch.setattr("healthobs.compliance.probes_telemetry.raw_sinks", list)
        monkeypatch.setattr("healthobs.compliance.probes_telemetry.sends_raw_baggage", bool)

    @pytest.fixture
    def provider(self) -> Iterator[TracerProvider]:
        """Return a provider of its own."""
        made = TracerProvider(shutdown_on_exit=False)
        yield made
        made.shutdown()

    @pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
    def test_each_processor_is_seen_through(self, provider: TracerProvider, kind: Any) -> None:
        """A wrapped exporter passes and a bare one fails in either processor of the SDK."""
        provider.add_span_processor(kind(RedactingSpanExporter(InMemorySpanExporter(), Redactor())))
        seen = [wraps_every_exporter(context(provider=provider))]
        provider.add_span_processor(kind(ConsoleSpanExporter(out=io.StringIO())))
        seen.append(wraps_every_exporter(context(provider=provider)))
        assert seen == [
            Outcome("pass", "every span exporter redacts", 1),
            Outcome("fail", "not wrapped: ConsoleSpanExporter", 1),
        ]

    def test_a_weaker_redactor_does_not_count(self, provider: TracerProvider) -> None:
        """A wrapper is one only when it masks as much as the service asks, whatever stands around it."""
        inner = RedactingSpanExporter(InMemorySpanExporter(), Redactor("mask"))
        states: list[str] = []
        for mode in ("mask", "strict"):
            provider.add_span_processor(SimpleSpanProcessor(inner))
            outcome = wraps_every_exporter(context(provider=provider, redactor=Redactor("strict")))
            states.append(outcome.state)
            inner = RedactingSpanExporter(inner, Redactor(mode))
        weaker = "not wrapped: InMemorySpanExporter, InMemorySpanExporter"
        assert (states, outcome.text) == (["fail", "fail"], weaker)
        strict = TracerProvider(shutdown_on_exit=False)
        strict.add_span_processor(SimpleSpanProcessor(inner))
        assert wraps_every_exporter(context(provider=strict, redactor=Redactor("strict"))).state == "pass"
        strict.shutdown()

    def test_watch(self, provider: TracerProvider) -> None:
        """On the step that changes nothing, nothing redacts."""
        provider.add_span_processor(
            SimpleSpanProcessor(RedactingSpanExporter(InMemorySpanExporter(), Redactor("watch")))
        )
        assert wraps_every_exporter(context(provider=provider, redactor=Redactor("watch"))).state == "fail"

    def test_opaque_processor(self, provider: TracerProvider) -> None:
        """A processor that shows no exporter may export by itself: that is unknown."""
        provider.add_span_processor(Quiet())
        assert wraps_every_exporter(context(provider=provider)).state == "unknown"

    def test_processors_that_only_begin_or_nest(self, provider: TracerProvider) -> None:
        """One that does nothing at a span's end exports nothing, and one inside others is seen."""

        class Begins(SpanProcessor):
            def on_start(self, span: Any, parent_context: Any = None) -> None: ...

        both = SynchronousMultiSpanProcessor()
        both.add_span_processor(
            SimpleSpanProcessor(RedactingSpanExporter(InMemorySpanExporter(), Redactor()))
        )
        provider.add_span_processor(Begins())
        provider.add_span_processor(both)
        outcome = wraps_every_exporter(context(provider=provider))
        assert (outcome.state, outcome.n) == ("pass", 1)

    def test_a_processor_that_looks_at_spans_before_their_end(self, provider: TracerProvider) -> None:
        """The SDK hands it spans as they end, not redacted: where they go is not known."""

        class Before(SpanProcessor):
            def _on_ending(self, span: Any) -> None: ...

        provider.add_span_processor(Before())
        assert wraps_every_exporter(context(provider=provider)).state == "unknown"

    def test_no_provider(self) -> None:
        """Nothing to look at is unknown; a provider without exporters lets nothing out."""
        bare = TracerProvider(shutdown_on_exit=False)
        states = [wraps_every_exporter(context()).state, wraps_every_exporter(context(provider=bare)).state]
        bare.shutdown()
        assert states == ["unknown", "pass"]


class TestTelemetryProbes:
    """Identifiers and card data."""

    def test_what_no_pattern_finds_is_listed(self) -> None:
        """The five that free text can carry are named, and nothing else is."""
        outcome = masks_identifiers(context())
        assert (outcome.state, outcome.n, [part[1] for part in outcome.missing]) == (
            "partial",
            13,
            list("ABPQR"),
        )

    def test_strict_mode_shows_all(self) -> None:
        """Where free text is dropped all eighteen stay out, so the missing are measured, not listed."""
        assert masks_identifiers(context(redactor=Redactor("strict"))).state == "pass"

    @pytest.mark.parametrize(
        ("key", "letter"),
        [
            ("patient_name", "A"),
            ("birth_date", "C"),
            ("mrn", "H"),
            ("ip", "O"),
            ("photo", "Q"),
            ("patient_id", "R"),
        ],
    )
    def test_allowed_key_is_named(self, key: str, letter: str) -> None:
        """A key that was allowed by mistake fails under its identifier."""
        outcome = masks_identifiers(context(redactor=Redactor(allowed_keys=[key])))
        assert (outcome.state, outcome.text.startswith(f"let through: ({letter})")) == ("fail", True)

    def test_allowed_free_text(self) -> None:
        """Free text let through unscanned fails every identifier that a pattern would have found."""
        outcome = masks_identifiers(context(redactor=Redactor(allowed_keys=["event_text"])))
        assert (outcome.state, outcome.n) == ("fail", 0)

    def test_card_without_trail(self) -> None:
        """Without a trail only a part was shown."""
        assert hides_card_numbers(context()).state == "partial"

    def test_trail_that_masks_nothing(self, tmp_path: Path) -> None:
        """What the trail would record counts, not only what leaves as telemetry."""
        assert masking_is_seen(f"sqlite:///{tmp_path}/audit.db", tmp_path / "key")

    @pytest.mark.server
    def test_trail_in_postgresql_that_masks_nothing(self, postgres: Any, tmp_path: Path) -> None:
        """A trail without a file of its own is no blind spot."""
        assert masking_is_seen(postgres.url(postgres.database()), tmp_path / "key")

    def test_canary_card_is_a_card(self) -> None:
        """The canary has sixteen digits and its check digit, so a redactor must take it for a card."""
        numbers = [_card_number() for _ in range(200)]
        assert [(len(number), luhn(number)) for number in numbers] == [(16, True)] * 200

    @pytest.mark.parametrize("mode", ["watch", "mask", "strict"])
    def test_probes_are_not_counted_as_redactions(self, mode: Any, tmp_path: Path) -> None:
        """A probe is no redaction of a signal, and none of an entry; what is recorded after it is one."""
        counted: list[Any] = []
        redactor = Redactor(mode, on_redaction=lambda *facts: counted.append(facts))
        url, key = f"sqlite:///{tmp_path}/a.db", tmp_path / "key"
        with closing(open_trail(url, service="s", key_file=key, redactor=redactor)) as trail:
            asked = context(redactor=redactor, audit=trail)
            masks_identifiers(asked)
            hides_card_numbers(asked)
            hides_authentication_data(asked)
            assert counted == []
            trail.append({"action": "card.read", "details": {"pan": _card_number()}})
        assert counted == [("audit", "key")]
