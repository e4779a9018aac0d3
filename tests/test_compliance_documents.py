"""Tests of attestations and waivers: who signed, for how long, and that nothing else counts."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from healthobs import ConfigurationError, Observability, Settings
from healthobs.audit import open_trail
from healthobs.audit.checkpoint import Signer
from healthobs.clock import Clock
from healthobs.compliance import Control, Document, history
from healthobs.compliance.documents import NO_DOCUMENTS, Signed, counting, judge, read, read_folder, sign
from healthobs.compliance.history import CHANGED_ACTION, FIRST_ACTION
from healthobs.compliance.recording import Recorder
from healthobs.testing import Capture

OFFICER = Signer("privacy-officer", Ed25519PrivateKey.generate())
OTHER = Signer("privacy-officer", Ed25519PrivateKey.generate())
TRAINED = Document("attestation", "H-308.5", "2026-01-01", "2026-11-23", "all were trained: ü", "ab" * 32)
WAIVER = Document("waiver", "HDR", "2026-01-01", "2026-11-23", "mended in release 7")
TODAY = date(2026, 11, 23)


def edited(**changes: Any) -> bytes:
    """Return a signed attestation whose text was changed afterwards."""
    parsed = json.loads(sign(TRAINED, OFFICER))
    parsed["document"] |= changes
    return json.dumps(parsed).encode()


def lasting(place: Path, documents: Path, keys: tuple[str, ...] = (OFFICER.vkey,), **more: Any) -> Settings:
    """Return settings of a service that every process with them has in common, its trail too."""
    return Settings(
        audit_database_url=f"sqlite:///{place / 'a.db'}",
        endpoints=True,
        control_interval_seconds=0,
        compliance_documents=documents,
        compliance_keys=keys,
        **more,
    )


class TestDocument:
    """`Document`."""

    @pytest.mark.parametrize(
        "wrong",
        [
            {"kind": "promise"},
            {"control": ""},
            {"statement": ""},
            {"document_sha256": ""},
            {"document_sha256": "AB" * 32},
            {"document_sha256": "ab" * 32 + "\n"},
            {"issued": "20260101"},
            {"expires": "soon"},
            {"issued": "2026-11-24"},
        ],
    )
    def test_wrong_field(self, wrong: dict[str, Any]) -> None:
        """Each wrong field is refused by itself."""
        with pytest.raises(ConfigurationError) as caught:
            replace(TRAINED, **wrong)
        assert len(caught.value.problems) == 1

    @given(st.dates(date(2025, 1, 1), date(2027, 12, 31)))
    def test_holds_from_first_to_last_day(self, day: date) -> None:
        """It counts from its first through its last day."""
        assert TRAINED.holds(day) == (date(2026, 1, 1) <= day <= TODAY)


class TestRead:
    """`read`: the signature decides."""

    @pytest.mark.parametrize("document", [TRAINED, WAIVER])
    def test_round_trip(self, document: Document) -> None:
        """What was signed is read again, with the name of its signer; other listed keys do no harm."""
        content = sign(document, OFFICER).encode()
        assert read(content, ["no vkey", OTHER.vkey, OFFICER.vkey]) == Signed(document, "privacy-officer")

    @pytest.mark.parametrize("vkeys", [[], [OTHER.vkey], ["privacy-officer"]])
    def test_other_key(self, vkeys: list[str]) -> None:
        """A key that is not listed signs nothing, whatever name it takes."""
        with pytest.raises(ConfigurationError, match="not signed"):
            read(sign(TRAINED, OFFICER).encode(), vkeys)

    @pytest.mark.parametrize(
        "changes",
        [
            {"expires": "2027-11-23"},
            {"control": "H-308.b"},
            {"kind": "waiver"},
            {"statement": "none was trained"},
            {"document_sha256": "cd" * 32},
            {"issued": "2025-12-31"},
        ],
    )
    def test_edited_after_signing(self, changes: dict[str, str]) -> None:
        """Every field is under the signature."""
        with pytest.raises(ConfigurationError, match="not signed"):
            read(edited(**changes), [OFFICER.vkey])

    def test_character_that_nothing_encodes(self) -> None:
        """A lone surrogate is not the question mark that was signed."""
        asked = replace(TRAINED, statement="all were trained?")
        content = sign(asked, OFFICER)
        assert read(content.encode(), [OFFICER.vkey]).document == asked
        with pytest.raises(ConfigurationError, match="not signed"):
            read(content.replace("trained?", "trained\\ud83f").encode(), [OFFICER.vkey])

    @pytest.mark.parametrize("name", list(asdict(TRAINED)))
    def test_signed_list(self, name: str) -> None:
        """A member that is no text is refused, also where it was signed."""
        signed = replace(TRAINED)
        object.__setattr__(signed, name, ["H-308.5"])
        with pytest.raises(ConfigurationError, match="every member of a document is a text"):
            read(sign(signed, OFFICER).encode(), [OFFICER.vkey])

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"[]",
            b"{}",
            b"\xff",
            b'{"document": 1, "signature": ""}',
            b"[" * 100_000,
            edited(expires=7),
            edited(more="x"),
            json.dumps({"document": asdict(TRAINED)}).encode(),
        ],
        ids=[
            "empty",
            "array",
            "object",
            "bytes",
            "types",
            "depth",
            "field type",
            "surplus field",
            "no signature",
        ],
    )
    def test_malformed(self, content: bytes) -> None:
        """Anything else is refused in one way."""
        with pytest.raises(ConfigurationError):
            read(content, [OFFICER.vkey])

    @given(st.binary(max_size=200))
    def test_any_bytes(self, content: bytes) -> None:
        """No content is read by accident, and none breaks it."""
        with pytest.raises(ConfigurationError):
            read(content, [OFFICER.vkey])


class TestFolder:
    """`read_folder`."""

    def test_all_of_a_control_and_the_rest_is_counted(self, tmp_path: Path) -> None:
        """Several about one control are kept, oldest first; what is refused is counted; other files are not read."""
        newer = replace(TRAINED, issued="2026-06-01", expires="2026-12-31")
        for name, document, signer in (
            ("1.json", newer, OFFICER),
            ("2.json", TRAINED, OFFICER),
            ("3.json", WAIVER, OFFICER),
            ("4.json", replace(WAIVER, control="H-312.b"), OTHER),
            ("5.txt", WAIVER, OTHER),
        ):
            (tmp_path / name).write_text(sign(document, signer))
        (tmp_path / "6.json").mkdir()
        documents = read_folder(tmp_path, [OFFICER.vkey])
        assert {name: [each.document for each in held] for name, held in documents.attestations.items()} == {
            "H-308.5": [TRAINED, newer]
        }
        assert [each.document for each in documents.waivers["HDR"]] == [WAIVER]
        assert documents.waivers.keys() == {"HDR"}
        assert documents.refused == 2

    def test_none(self, tmp_path: Path) -> None:
        """No folder, and one that is not there, hold nothing."""
        assert read_folder(None, [OFFICER.vkey]) == NO_DOCUMENTS
        assert read_folder(tmp_path / "none", [OFFICER.vkey]) == NO_DOCUMENTS


class TestCounting:
    """`counting`: which of several documents about one control."""

    @pytest.mark.parametrize(
        ("days", "chosen"),
        [
            ((("2026-01-01", "2026-12-31"), ("2026-11-24", "2027-12-31")), 0),  # the renewal is not yet
            ((("2026-01-01", "2026-12-31"), ("2026-11-01", "2026-11-22")), 0),  # the newer one is over
            ((("2026-01-01", "2026-12-31"), ("2026-11-23", "2027-12-31")), 1),  # both hold
            ((("2026-01-01", "2026-12-31"), ("2026-01-01", "2027-12-31")), 1),  # both hold, one longer
            ((("2025-01-01", "2025-12-31"), ("2026-11-24", "2027-12-31")), 0),  # a gap between them
            ((("2025-01-01", "2025-12-31"), ("2026-01-01", "2026-11-22")), 1),  # both are over
            ((("2026-11-24", "2026-12-31"), ("2026-12-01", "2027-12-31")), 0),  # neither is yet
        ],
    )
    def test_choice(self, days: tuple[tuple[str, str], ...], chosen: int) -> None:
        """The newest that holds; where none does the newest that is over; else the next to come."""
        held = [
            Signed(replace(TRAINED, issued=issued, expires=expires), "privacy-officer")
            for issued, expires in days
        ]
        assert counting(held, TODAY) is held[chosen]
        assert counting(held[::-1], TODAY) is held[chosen]

    def test_none(self) -> None:
        """Of none none."""
        assert counting((), TODAY) is None


class TestJudge:
    """`judge`."""

    @pytest.mark.parametrize(
        ("document", "state"),
        [
            (TRAINED, "attested"),
            (replace(TRAINED, expires="2026-11-22"), "fail"),
            (replace(TRAINED, issued="2026-11-24", expires="2027-01-01"), "unknown"),
        ],
    )
    def test_judgement(self, document: Document, state: str) -> None:
        """It holds through its last day, fails after it, and is nothing before its first; it is never a pass."""
        assert judge(Signed(document, "privacy-officer"), TODAY).state == state

    def test_none(self) -> None:
        """What nobody attested is unknown."""
        assert judge(None, TODAY).state == "unknown"


class TestInService:
    """Documents of a running service."""

    def test_put_there_and_taken_away(self, tmp_path: Path) -> None:
        """A file counts from the next round on, and revoking its key or taking it away ends that; each is recorded."""
        (tmp_path / "training.json").write_text(sign(replace(TRAINED, expires="2026-12-31"), OFFICER))
        settings = Settings(
            endpoints=True, compliance_documents=tmp_path, compliance_keys=(OFFICER.vkey, "broken")
        )
        with Capture(settings, audit=True) as capture:
            assert capture.obs.controls is not None
            states = [capture.obs.controls.run()["H-308.5"]]
            row = next(
                row for row in capture.obs.controls.status(detail=True)["controls"] if row["id"] == "H-308.5"
            )
            (tmp_path / "training.json").write_text(sign(TRAINED, OTHER))
            states.append(capture.obs.controls.run()["H-308.5"])
            assert "H-308.5" in capture.obs.controls.gate_failures()
        assert states == ["attested", "unknown"]
        assert row["attestation"]["person"] == "privacy-officer"
        assert capture.metric("healthobs_internal_errors_total", component="documents") == 1
        changes = [
            entry["details"]
            for entry in capture.audit_entries
            if entry["resource"]["id"] == "H-308.5" and entry["action"] == "control.state_changed"
        ]
        assert changes == [{"control.old": "attested", "control.new": "unknown"}]

    def test_survives_restarts(self, tmp_path: Path) -> None:
        """What was attested once shuts the gate in every later process too, whoever took the attestation away, until it is attested."""
        folder = tmp_path / "documents"
        folder.mkdir()
        paper = folder / "training.json"
        held = replace(TRAINED, expires="2099-12-31")

        def gate(there: bool, keys: tuple[str, ...] = (OFFICER.vkey,), **more: Any) -> tuple[str, bool]:
            paper.unlink(missing_ok=True)
            if there:
                paper.write_text(sign(held, OFFICER))
            settings = lasting(tmp_path, folder, keys, **more)
            obs = Observability(settings, log_stream=io.StringIO())
            assert obs.controls is not None
            # One entry of all states, and later a change, tell of it
            state = obs.controls.run(["H-308.5"])["H-308.5"]
            shut = "H-308.5" in obs.controls.gate_failures()
            obs.close()
            return state, shut

        assert gate(there=False) == ("unknown", False)  # nobody ever attested it
        assert gate(there=True) == ("attested", False)
        for _ in range(3):
            assert gate(there=False) == ("unknown", True)
        assert gate(there=True, keys=(OTHER.vkey,)) == ("unknown", True)
        assert gate(there=False, out_of_scope=("phi",)) == ("not-applicable", False)
        assert gate(there=False) == ("unknown", True)
        assert gate(there=True) == ("attested", False)

    def test_survives_a_restart_after_a_change(self, tmp_path: Path) -> None:
        """So does what began to be attested, and ended, while a process ran."""
        settings = lasting(tmp_path, tmp_path)
        seen: list[Any] = []
        for documents in ((False, True, False), (False,)):
            obs = Observability(settings, log_stream=io.StringIO())
            assert obs.controls is not None
            for there in documents:
                (tmp_path / "t.json").unlink(missing_ok=True)
                if there:
                    (tmp_path / "t.json").write_text(sign(replace(TRAINED, expires="2099-12-31"), OFFICER))
                obs.controls.run(["H-308.5"])
                seen.append("H-308.5" in obs.controls.gate_failures())
            obs.close()
        assert seen == [False, False, True, True]

    def test_waiver_that_ends_between_two_processes(self, tmp_path: Path) -> None:
        """The process after it records its end, once; that of the control's other waivers is not touched."""
        folder = tmp_path / "documents"
        folder.mkdir()
        held = [replace(WAIVER, control=name, expires="2099-12-31") for name in ("HDR", "C-10.7")]
        told: list[list[tuple[str, str]]] = []
        newest = -1
        for count in (2, 1, 1, 0, 0):
            for path in folder.iterdir():
                path.unlink()
            for waiver in held[:count]:
                (folder / f"{waiver.control}.json").write_text(sign(waiver, OFFICER))
            settings = lasting(tmp_path, folder)
            obs = Observability(settings, log_stream=io.StringIO())
            assert obs.controls is not None
            assert obs.audit is not None
            obs.controls.run()
            told.append(
                [
                    (entry["action"].removeprefix("control."), entry["resource"]["id"])
                    for entry in reversed(obs.audit.read(limit=100).entries)
                    if entry["index"] > newest and "waive" in entry["action"]
                ]
            )
            (first, *_) = obs.audit.read(action=FIRST_ACTION).entries
            listed = first["details"].get("control.waived", "").split()
            told[-1].append(("listed", " ".join(listed)))
            newest = obs.audit.checkpoint().size - 1
            obs.close()
        assert [sorted(each) for each in told] == [
            [("listed", "C-10.7 HDR"), ("waived", "C-10.7"), ("waived", "HDR")],
            [("listed", "C-10.7 HDR"), ("waived", "HDR"), ("waiver_ended", "C-10.7")],
            [("listed", "HDR"), ("waived", "HDR")],
            [("listed", "HDR"), ("waiver_ended", "HDR")],
            [("listed", "")],
        ]

    def test_waivers_among_many_entries(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The latest of what a process listed, a beginning and an end counts, under any number of others."""
        monkeypatch.setattr(history, "_AT_ONCE", 2)
        trail = open_trail(f"sqlite:///{tmp_path / 'a.db'}", service="svc")
        assert history.waived(trail) == set()

        def record(action: str, control: str | None = None, **details: str) -> None:
            shown = {f"control.{name}": text for name, text in details.items()}
            trail.append_own({"action": action, "actor": "svc", "resource_id": control, "details": shown})

        record(FIRST_ACTION, waived="HDR P-10ij")
        record(FIRST_ACTION, **{"waived": "H-316 C-10.7", "waived.2": "C-3.3"})
        record("control.waived", "P-10k")
        record("control.waived", "P-10k")
        record("control.waived")
        for name in ("P-10ij", "C-10.7", "H-308.5"):
            record("control.waiver_ended", name)
        record("control.waived", "C-10.7")
        assert history.waived(trail) == {"HDR", "H-316", "C-3.3", "P-10k", "C-10.7"}
        trail.close()

    def test_many_controls_survive_a_restart(self, tmp_path: Path) -> None:
        """A list that one detail does not hold, or in which a pattern finds something across ids, is recorded and read whole."""
        folder = tmp_path / "documents"
        folder.mkdir()
        names = [f"company-policy.on.something-{number:03}" for number in range(80)]
        names += ["Patient", "H-999.5", "mrn", "B1234567"]
        own = [
            Control(name, "policy", "company", "Title", "seen", "attestation", required=False)
            for name in names
        ]
        seen: list[Any] = []
        for there in (True, False, False):
            for name in names:
                paper = folder / f"{name}.json"
                paper.unlink(missing_ok=True)
                if there:
                    said = replace(TRAINED, control=name, expires="2099-12-31")
                    paper.write_text(sign(said, OFFICER))
            settings = lasting(tmp_path, folder)
            obs = Observability(settings, controls=own, log_stream=io.StringIO())
            assert obs.controls is not None
            assert obs.audit is not None
            obs.controls.run()
            seen.append(len(obs.controls.once_attested & set(names)))
            (first, *_) = obs.audit.read(action=FIRST_ACTION).entries
            lists = [text for name, text in first["details"].items() if "attested" in name]
            obs.close()
            assert all(len(text) <= 1_000 and "[PHI:" not in text for text in lists)
            assert " ".join(lists).split() == (names if there else sorted(names))
        assert seen == [84, 84, 84]

    def test_details_of_several_entries(self, tmp_path: Path) -> None:
        """What is too much for one entry goes into the next."""
        trail = open_trail(f"sqlite:///{tmp_path / 'a.db'}", service="svc")
        names = [f"company-rule-about-{''.join(each)}" for each in product("abcdefgh", repeat=4)]
        index = Recorder(trail, "svc", Clock()).first(dict.fromkeys(names, "attested"), (), names[:1], 7)
        entries = trail.read(action=FIRST_ACTION).entries
        assert (len(entries), index) == (2, entries[0]["index"])
        assert {entry["details"]["control.late_s"] for entry in entries} == {7}
        assert history.once_attested(trail) == set(names)
        assert history.waived(trail) == {names[0]}
        trail.close()

    def test_many_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is found under any number of other changes, and entries that others make count for nothing."""
        monkeypatch.setattr(history, "_AT_ONCE", 2)
        trail = open_trail(f"sqlite:///{tmp_path / 'a.db'}", service="svc")
        assert history.once_attested(trail) == set()

        def record(action: str, control: str | None, **details: str) -> None:
            shown = {f"control.{name}": text for name, text in details.items()}
            trail.append_own({"action": action, "actor": "svc", "resource_id": control, "details": shown})

        record(FIRST_ACTION, None, attested="H-308.5 P-10ij", once_attested="H-308.b")
        record(CHANGED_ACTION, "P-10k", old="attested", new="unknown")
        for _ in range(9):
            record(CHANGED_ACTION, "HDR", old="pass", new="fail")
        record("control.waived", "S-ret", new="attested")
        record(CHANGED_ACTION, None, new="attested")
        assert history.once_attested(trail) == {"H-308.5", "P-10ij", "H-308.b", "P-10k"}
        trail.close()
