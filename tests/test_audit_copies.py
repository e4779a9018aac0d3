"""Copies of entries: each form shows what was recorded, and one that does not is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.audit_trails import READ, _damage
from tests.retention_bench import YEAR, Bench

from healthobs.audit import AuditTrail, export
from healthobs.audit.checkpoint import Signer
from healthobs.audit.copies import unfaithful
from healthobs.exceptions import AuditError

ODD = (
    READ,
    {
        "action": "patient.search",
        "reason": '=1+1 "quoted", ä\r\n two lines\r',
        "subject": "s-1",
        "purpose": "TREAT",
    },
    {"action": "strange", "details": {"healthobs.index": 7, "": "x", "ü": True, "n": -3}, "actor": "@x"},
    {"action": "patient.disclose", "outcome": "denied", "reason": "'apostrophe", "request_id": "-"},
)


@pytest.fixture
def filled(trail: AuditTrail) -> AuditTrail:
    for draft in ODD:
        trail.append(draft)
    return trail


class TestFaithful:
    """Copies that show what was recorded."""

    def test_every_form(self, filled: AuditTrail) -> None:
        """Whatever an entry says, its copies say it."""
        assert unfaithful(filled, 0, 3) == set()

    def test_part(self, filled: AuditTrail) -> None:
        """Only what is asked for is copied, and what is not there is named."""
        assert unfaithful(filled, 1, 2) == set()
        assert unfaithful(filled, 3, 3) == set()
        assert unfaithful(filled, 3, 4) == {4}

    def test_erased(self, bench: Bench) -> None:
        """Of what was erased the copy shows nothing; the others are as before."""
        bench.add(4)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="a", reason="r", entries=(1, 2))
        assert unfaithful(bench.trail, 0, 3) == {1, 2}


class TestUnfaithful:
    """Copies that do not."""

    @pytest.mark.parametrize(
        ("statement", "bad"),
        [
            ("UPDATE entry SET body = replace(body, 'patient', 'impatient') WHERE idx = 1", {1}),
            ("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 1", {0, 1, 2, 3}),
        ],
    )
    def test_store(self, filled: AuditTrail, statement: str, bad: set[int]) -> None:
        """What somebody changed in the store is not copied as if it were good."""
        _damage(filled.path or Path(), statement)
        assert unfaithful(filled, 0, 3) == bad

    def test_missing(self, filled: AuditTrail) -> None:
        """Where an entry is missing no copy can be proved."""
        _damage(filled.path or Path(), "DELETE FROM entry WHERE idx = 2")
        with pytest.raises(AuditError):
            unfaithful(filled, 0, 3)

    def test_foreign_checkpoint(self, filled: AuditTrail) -> None:
        """What another key signed proves nothing."""
        checkpoint = filled.checkpoint()
        note = Signer(filled.origin, Ed25519PrivateKey.generate()).checkpoint(4, checkpoint.root).note
        _damage(filled.path or Path(), f"UPDATE checkpoint SET note = '{note}' WHERE size = 4")
        with pytest.raises(AuditError):
            unfaithful(filled, 0, 3)

    @pytest.mark.parametrize(
        ("form", "wrong"),
        [
            ("cell", lambda _value: "x"),
            ("cell", lambda value: "{}" if str(value).startswith("{") else str(value or "")),
            ("tlog_proof", lambda _proof, _note: ""),
            ("tlog_proof", lambda proof, note: export_proof(proof, note).replace("index ", "index 1", 1)),
            ("tlog_proof", lambda proof, note: export_proof(proof, note).replace("index ", "index x", 1)),
            ("tlog_proof", lambda proof, note: export_proof(proof, note + "x")),
            ("audit_event", lambda _entry: LATER),
        ],
    )
    def test_form(self, filled: AuditTrail, monkeypatch: pytest.MonkeyPatch, form: str, wrong: Any) -> None:
        """A form that shows something else is found."""
        monkeypatch.setattr(export, form, wrong)
        assert unfaithful(filled, 0, 3)

    def test_form_that_is_left_out(self, filled: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """So is one that leaves an entry out."""

        def none(*_: object) -> Iterator[dict[str, Any]]:
            return iter(())

        monkeypatch.setattr(export, "fhir", none)
        assert unfaithful(filled, 0, 3) == {0, 1, 2, 3}


export_proof = export.tlog_proof
LATER = {
    "recorded": "2000-01-01T00:00:00.000000Z",
    "entity": [
        {
            "detail": [
                {"type": "healthobs.index", "valueString": "1"},
                {"type": "healthobs.leaf", "valueString": ""},
            ]
        }
    ],
}
