"""At start a canary span with all eighteen HIPAA identifiers must not pass, or nothing starts."""

from __future__ import annotations

import dataclasses

import pytest

from healthobs import Observability, RedactionError, Settings
from healthobs.redaction import Redactor
from healthobs.redaction.canary import IDENTIFIERS, telling
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
    monkeypatch.setattr("healthobs.redaction.redactor.scan", lambda text: (text, ()))
    with pytest.raises(RedactionError, match=r"\(G\) social security numbers"):
        Observability(Settings())


def test_a_hole_that_was_asked_for_is_left_to_the_control() -> None:
    """`allowed_keys` is configuration; the control H-514 fails for it while the service runs."""
    release_canary(Redactor(allowed_keys=("ssn", "patient_name")))
