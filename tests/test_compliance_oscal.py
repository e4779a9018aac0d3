"""Tests of the OSCAL export: what becomes an observation, a finding, an attestation; and that ids are stable.

That NIST's models accept it is shown in `tests/standards`.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from healthobs import ConfigurationError, Observability, Settings
from healthobs.audit.checkpoint import Signer
from healthobs.compliance import Control, Document, Outcome
from healthobs.compliance.documents import sign
from healthobs.compliance.oscal import NS, assessment_results

PUBLISHED = "2026-11-25T10:00:00.000000Z"
OFFICER = Signer("privacy-officer", Ed25519PrivateKey.generate())
TRAINED = Document("attestation", "H-308.5", "2026-01-01", "2099-12-31", "all were trained", "ab" * 32)
WAIVED = Document("waiver", "X-fail", "2026-01-01", "2099-12-31", "mended in release 7")


def make_status(folder: Path) -> dict[str, Any]:
    """Return the status of a service in which every state occurs."""
    for document in (TRAINED, WAIVED, replace(TRAINED, control="H-308.b", expires="2026-01-02")):
        (folder / f"{document.control}.json").write_text(sign(document, OFFICER))
    outcomes = {
        "pass": Outcome("pass", "seen", 3),
        "fail": Outcome("fail", "not refused: ü"),
        "partial": Outcome("partial", "1 of 2", 1, ("names",)),
    }

    def control(state: str, outcome: Outcome) -> Control:
        return Control(f"X-{state}", "policy 1", "company", "Title", "criterion", "probe", lambda _: outcome)

    settings = Settings(
        service_name="svc", endpoints=True, out_of_scope=("devices",),
        compliance_documents=folder, compliance_keys=(OFFICER.vkey,),
    )  # fmt: skip
    controls = [control(state, outcome) for state, outcome in outcomes.items()]
    obs = Observability(settings, log_stream=io.StringIO(), controls=controls)
    assert obs.controls is not None
    obs.controls.run()
    status = obs.controls.status(detail=True)
    obs.close()
    assert all(status["counts"].values())
    return status


@pytest.fixture
def status(tmp_path: Path) -> dict[str, Any]:
    """The status."""
    return make_status(tmp_path)


def of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the one result."""
    (result,) = document["assessment-results"]["results"]
    return dict(result)


def props(observation: dict[str, Any]) -> dict[str, str]:
    assert {prop["ns"] for prop in observation["props"]} == {NS}
    return {prop["name"]: prop["value"] for prop in observation["props"]}


class TestExport:
    """`assessment_results`."""

    def test_one_observation_a_control(self, status: dict[str, Any]) -> None:
        """Every control has one, with its state as a property of ours."""
        observations = of(assessment_results(status, published=PUBLISHED))["observations"]
        states = {props(each)["control"]: props(each)["state"] for each in observations}
        assert states == {row["id"]: row["state"] for row in status["controls"]}

    def test_findings_only_for_pass_and_fail(self, status: dict[str, Any]) -> None:
        """Not applicable, unknown, partial and attested are no findings; a waived failure is not satisfied."""
        result = of(assessment_results(status, published=PUBLISHED))
        found = {
            each["target"]["target-id"]: each["target"]["status"]["state"] for each in result["findings"]
        }
        wanted = {"pass": "satisfied", "fail": "not-satisfied"}
        assert found == {
            row["id"].lower(): wanted[row["state"]] for row in status["controls"] if row["state"] in wanted
        }
        assert found["x-fail"] == "not-satisfied"
        observed = {each["uuid"] for each in result["observations"]}
        assert all(
            each["related-observations"][0]["observation-uuid"] in observed for each in result["findings"]
        )

    def test_attestations_and_waivers(self, status: dict[str, Any]) -> None:
        """Who attested what until when stands apart while it counts; a waiver is a property."""
        result = of(assessment_results(status, published=PUBLISHED))
        said = [props(each["parts"][0]) for each in result["attestations"]]
        assert [(each["control"], each["person"], each["expires"]) for each in said] == [
            ("H-308.5", "privacy-officer", "2099-12-31"),
        ]
        assert [row["attestation"]["expires"] for row in status["controls"] if row["id"] == "H-308.b"] == [
            "2026-01-02"
        ]
        waived = {props(each)["control"]: props(each).get("waived-until") for each in result["observations"]}
        assert {name for name, until in waived.items() if until} == {"X-fail"}

    def test_evidence(self, status: dict[str, Any]) -> None:
        """An observation says what was seen, with the digest of the evidence and what is missing."""
        observations = of(assessment_results(status, published=PUBLISHED))["observations"]
        (partial,) = (each for each in observations if props(each)["control"] == "X-partial")
        assert partial["description"] == "criterion: 1 of 2"
        assert (props(partial)["missing"], len(props(partial)["digest"])) == ("names", 64)

    def test_same_status_same_document(self, status: dict[str, Any]) -> None:
        """Ids come from the content: exporting twice is the same, another moment is another document."""
        first, again = (assessment_results(status, published=PUBLISHED) for _ in range(2))
        later = assessment_results(status, published="2026-11-25T10:00:01.000000Z")
        ids = [each["assessment-results"]["uuid"] for each in (first, later)]
        assert (first == again, len(set(ids))) == (True, 2)

    def test_nothing_observed(self, status: dict[str, Any]) -> None:
        """Without pass, fail or attestation there are no empty lists, which OSCAL does not allow."""
        rows = [row for row in status["controls"] if row["observed_at"] is None]
        result = of(assessment_results({**status, "controls": rows}, published=PUBLISHED))
        assert ("findings" in result, "attestations" in result, result["start"]) == (False, False, PUBLISHED)

    def test_evidence_of_another_shape(self, status: dict[str, Any]) -> None:
        """Evidence or an attestation that is no object is none."""
        for member in ("evidence", "attestation"):
            wrong = {**status, "controls": [{**status["controls"][0], "state": "attested", member: "x"}]}
            with pytest.raises(ConfigurationError, match="compliance:read"):
                assessment_results(wrong, published=PUBLISHED)

    @pytest.mark.parametrize("wrong", [{}, {"controls": [{"id": "C-1"}]}, {"controls": None}])
    def test_no_evidence(self, wrong: dict[str, Any]) -> None:
        """A status without evidence is refused, and told how to get one."""
        with pytest.raises(ConfigurationError, match="compliance:read"):
            assessment_results(wrong, published=PUBLISHED)
