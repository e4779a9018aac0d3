"""At start a canary span with all eighteen HIPAA identifiers must not pass, or nothing starts."""

from __future__ import annotations

import dataclasses

import pytest

from healthobs import Observability, RedactionError, Settings
from healthobs.clock import Clock
from healthobs.compliance.control import ProbeContext
from healthobs.compliance.probes_telemetry import masks_identifiers
from healthobs.redaction import Redactor, keys
from healthobs.redaction.canary import IDENTIFIERS, holes, telling
from healthobs.redaction.keys import Action
from healthobs.tracing import RedactingSpanExporter
from healthobs.tracing.canary import release_canary


@pytest.mark.parametrize("mode", ["watch", "mask", "strict"])
def test_a_sound_redactor_starts(mode: str) -> None:
    """At every step, and nothing of the canary is counted as a redaction."""
    obs = Observability(Settings(redaction=mode))  # type: ignore[arg-type]
    assert b"healthobs_redactions_total{" not in obs.metrics.exposition(None)[1]
    obs.close()


def test_all_eighteen_kinds() -> None:
    """The letters of 45 CFR 164.514(b)(2)(i), each once."""
    assert "".join(each.letter for each in IDENTIFIERS) == "ABCDEFGHIJKLMNOPQR"


@pytest.mark.parametrize("each", IDENTIFIERS, ids=lambda each: each.letter)
def test_each_kind_that_passes_stops_the_start(monkeypatch: pytest.MonkeyPatch, each: object) -> None:
    """A redactor that overlooks one kind, by key or in text, is not started with; the kind is named, not the sample."""
    assert dataclasses.is_dataclass(each) is False
    sample, key, title = each.sample, each.key, each.title  # type: ignore[attr-defined]
    action = Redactor.action
    monkeypatch.setattr(
        Redactor, "action", lambda self, name: Action.ALLOW if name == key else action(self, name)
    )
    with pytest.raises(RedactionError, match="let a canary pass at start") as found:
        Observability(Settings(redaction="strict"))
    assert title in str(found.value)
    assert telling(sample) not in str(found.value)


def test_an_exporter_that_redacts_nothing_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out is tried itself, not only the redactor."""
    monkeypatch.setattr(RedactingSpanExporter, "_redact", lambda _, span: span)
    with pytest.raises(RedactionError, match="names"):
        Observability(Settings())


def test_an_exporter_that_drops_everything_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A canary that never came out proves nothing."""
    monkeypatch.setattr(RedactingSpanExporter, "_redact", lambda *_: 1 / 0)
    with pytest.raises(RedactionError, match="no span came out at all"):
        Observability(Settings())


def test_a_scan_that_finds_nothing_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `mask` text is scanned."""
    monkeypatch.setattr("healthobs.redaction.scan.scan", lambda text: (text, ()))
    with pytest.raises(RedactionError, match=r"\(G\) social security numbers"):
        Observability(Settings())


def test_a_hole_that_was_asked_for_is_left_to_the_control() -> None:
    """`allowed_keys` is configuration; the control H-514 fails for it while the service runs."""
    release_canary(Redactor(allowed_keys=("ssn", "patient_name")))


class TestHoles:
    """Every key that the redactor treats apart is tried, and one that nobody knows in each namespace."""

    @pytest.mark.parametrize("mode", ["watch", "mask", "strict"])
    def test_there_are_none(self, mode: str) -> None:
        """Neither bare words nor keys of data pass unscanned; in `watch` all do, so nothing is said of it."""
        assert holes(Redactor(mode)) == []  # type: ignore[arg-type]

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    @pytest.mark.parametrize("key", ["endpoint", "status", "ward", "url.full", "patient.note"])
    def test_a_key_that_passes_is_found(self, monkeypatch: pytest.MonkeyPatch, mode: str, key: str) -> None:
        """A bare word, a key of data or one of no convention in the allow-list: named, the start and the control fail."""
        monkeypatch.setattr(keys, "ALLOWED", keys.ALLOWED | {key})
        redactor = Redactor(mode)  # type: ignore[arg-type]
        assert holes(redactor) == [key]
        with pytest.raises(RedactionError, match=f"under the key {key}"):
            release_canary(redactor)
        outcome = masks_identifiers(ProbeContext(settings=Settings(), clock=Clock(), redactor=redactor))
        assert (outcome.state, f"under the key {key}" in outcome.text) == ("fail", True)

    @pytest.mark.parametrize("prefix", ["control.", "os.", "k8s.pod."])
    def test_a_prefix_that_passes_is_found(self, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
        """By a key under it that nobody knows."""

        def classify(key: str, allowed: frozenset[str]) -> Action:
            return Action.ALLOW if key.startswith(prefix) else keys.classify(key, allowed)

        monkeypatch.setattr("healthobs.redaction.redactor.classify", classify)
        assert f"{prefix}canary" in holes(Redactor())

    def test_a_label_that_passes_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In `strict` a label with a bare name takes no text that is not declared."""
        monkeypatch.setattr("healthobs.redaction.redactor.LABELS", frozenset({"status"}))
        assert holes(Redactor("strict")) == ["status"]

    def test_a_key_that_the_settings_allow_is_none(self) -> None:
        """It was asked for."""
        assert holes(Redactor(allowed_keys=("endpoint",))) == []
