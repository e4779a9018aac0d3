"""Tests of phi-service over HTTP: views, versions, encryption at rest, audit, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.another_writer import another_writer

from healthobs.compliance import ProbeContext
from healthobs.testing import assert_no_phi
from phi_bench import Phi, record
from reference_services.phi import domain as phi_domain
from reference_services.phi.controls import _stored, controls
from reference_services.phi.crypto import Vault


class TestCreate:
    """`POST /patients`."""

    def test_stored_and_read_again(self, phi: Phi) -> None:
        """The answer is the record, with its id, version, place and tag."""
        answer = phi.create(record())
        assert answer.status_code == 201
        body = answer.get_json()
        assert {name: body[name] for name in phi_domain.RECORD_FIELDS} == record()
        assert (body["view"], body["version"]) == ("full", 1)
        assert answer.headers["Location"] == f"/patients/{body['id']}"
        assert answer.headers["ETag"] == 'W/"1"'
        assert phi.call("GET", answer.headers["Location"]).get_json() == body

    def test_same_key_makes_one_record(self, phi: Phi) -> None:
        """A repeated request gets the first one's answer."""
        first, again = phi.create(record(), key="k"), phi.create(record(), key="k")
        assert first.get_json()["id"] == again.get_json()["id"]
        assert again.headers["Idempotent-Replayed"] == "true"

    def test_a_repeated_answer_is_a_disclosure(self, phi: Phi) -> None:
        """The audit entry of a replay names the patient as the first one does, and says that it was repeated."""
        made = [phi.create(record(), key="k").get_json()["id"] for _ in range(2)]
        first, again = sorted(phi.entries("patient.create"), key=lambda entry: entry["index"])
        told = ("subject", "resource", "purpose", "outcome")
        assert {name: again[name] for name in told} == {name: first[name] for name in told}
        assert (again["resource"]["id"], again["details"]) == (
            phi.token(made[0]),
            {**first["details"], "replayed": True},
        )

    def test_an_answer_is_not_repeated_for_another_purpose(self, phi: Phi) -> None:
        """The same key for another purpose of use is another request: the full view does not come back for it."""
        phi.create(record(), key="k")
        answer = phi.create(record(), key="k", purpose="HPAYMT")
        assert (answer.status_code, answer.get_json()["code"]) == (422, "idempotency_key_reused")
        assert record()["last_name"] not in answer.get_data(as_text=True)

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"telecom": [{"system": "phone", "value": "(212) 736-5000"}]}, "/telecom"),
            (
                {"identifiers": [{"system": "http://hl7.org/fhir/sid/us-ssn", "value": "078-05-1120"}]},
                "/identifiers",
            ),
            ({"address": {**record()["address"], "postal_code": "10118"}}, "/address"),
        ],
    )
    def test_unproven_is_refused_outside_production(
        self, phi: Phi, changes: dict[str, Any], pointer: str
    ) -> None:
        """What might be a real person's never gets in, and is not echoed."""
        answer = phi.create(record(**changes))
        assert (answer.status_code, answer.get_json()["code"]) == (422, "not_proven_synthetic")
        assert [error["pointer"] for error in answer.get_json()["errors"]] == [pointer]
        assert "736-5000" not in answer.get_data(as_text=True)

    def test_production_takes_it(self, world: Any, tmp_path: Path) -> None:
        """Real patients belong in production."""
        world.environ["phi-service"] = {"HEALTHOBS_ENVIRONMENT": "production"}
        answer = Phi(world, tmp_path).create(record(telecom=[{"system": "phone", "value": "(212) 736-5000"}]))
        assert answer.status_code == 201

    def test_nobody_can_tell(self, phi: Phi) -> None:
        """Without the verifier nothing is stored: the guard fails closed."""
        kit = phi.world["phi-service"].extensions["reference_services"]
        kit._clients["synthetic-phi-service"] = Down()
        answer = phi.create(record())
        assert (answer.status_code, answer.get_json()["code"]) == (503, "verifier_unavailable")

    def test_a_replay_asks_nobody(self, phi: Phi) -> None:
        """A remembered answer needs no verifier."""
        made = phi.create(record(), "again")
        phi.world["phi-service"].extensions["reference_services"]._clients["synthetic-phi-service"] = Down()
        again = phi.create(record(), "again")
        assert (made.status_code, again.status_code, again.headers["Idempotent-Replayed"]) == (
            201,
            201,
            "true",
        )

    def test_who_may_not_write_asks_nobody(self, phi: Phi) -> None:
        """Role and purpose are looked at before the verifier is asked; the access counts once."""
        phi.world["phi-service"].extensions["reference_services"]._clients["synthetic-phi-service"] = Down()
        assert phi.create(record(), role="billing", purpose="HPAYMT").status_code == 403
        counted = {
            outcome: phi.sample(
                "records_accessed_total", resource="patient", purpose="HPAYMT", outcome=outcome
            )
            for outcome in ("ok", "denied", "failed")
        }
        assert counted == {"ok": 0, "denied": 1, "failed": 0}

    def test_a_stored_record_counts_once(self, phi: Phi) -> None:
        """Admission and storing are one access."""
        assert phi.create(record()).status_code == 201
        labels = {"resource": "patient", "purpose": "TREAT"}
        assert phi.sample("records_accessed_total", **labels, outcome="ok") == 1

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"date_of_birth": "2999-01-01"}, "/date_of_birth"),
            ({"date_of_birth": "17.05.1970"}, "/date_of_birth"),
            ({"date_of_birth": 0}, "/date_of_birth"),
            ({"gender": "x"}, "/gender"),
            ({"identifiers": []}, "/identifiers"),
            ({"first_name": ""}, "/first_name"),
            ({"ssn": "078-05-1120"}, ""),
        ],
    )
    def test_bad_input(self, phi: Phi, changes: dict[str, Any], pointer: str) -> None:
        """A precise pointer, no echo."""
        answer = phi.create(record(**changes))
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.get_json()["errors"]] == [pointer]
        assert "078-05" not in answer.get_data(as_text=True)

    @pytest.mark.parametrize("role", ["billing", "researcher", "nurse", "admin"])
    def test_only_treatment_writes(self, phi: Phi, role: str) -> None:
        """Scope alone is not enough."""
        assert phi.create(record(), role=role).status_code == 403


class Down:
    """A peer that does not answer."""

    def request(self, *_args: Any, **_options: Any) -> Any:
        """Fail as the client does."""
        from healthobs.exceptions import ClientError

        raise ClientError("down")

    def close(self) -> None:
        """Nothing is open."""


class TestRead:
    """`GET /patients/{id}`: role and purpose decide."""

    def test_billing(self, phi: Phi) -> None:
        """Demographics and identifiers; the diagnosis is withheld, and the audit entry says so."""
        key = phi.made()
        body = phi.call("GET", f"/patients/{key}", role="billing").get_json()
        assert (body["view"], "conditions" in body) == ("billing", False)
        assert body["identifiers"] == record()["identifiers"]
        (entry,) = phi.entries("patient.read")
        assert entry["details"] == {"view": "billing", "withheld": "conditions"}

    def test_researcher(self, phi: Phi) -> None:
        """De-identified: not even the id comes back."""
        answer = phi.call("GET", f"/patients/{phi.made()}", role="researcher")
        body = answer.get_json()
        assert body.keys() <= {"view", "gender", "conditions", "birth_year", "age_group", "zip3"}
        for name in ("first_name", "last_name", "date_of_birth"):
            assert record()[name] not in answer.get_data(as_text=True)

    def test_researcher_reads_no_free_text(self, phi: Phi) -> None:
        """What a clinician wrote beside a code stays with those who treat; the audit entry names it as withheld."""
        written = {**record()["conditions"][0], "display": "Jane Real, SSN 123-45-6789, tel 617-555-2368"}
        key = phi.create(record(conditions=[written])).get_json()["id"]
        answer = phi.call("GET", f"/patients/{key}", role="researcher")
        assert answer.get_json()["conditions"] == [{name: written[name] for name in ("code", "system")}]
        assert "Jane" not in answer.get_data(as_text=True)
        assert "conditions" in phi.entries("patient.read")[0]["details"]["withheld"]
        assert phi.call("GET", f"/patients/{key}").get_json()["conditions"] == [written]

    @pytest.mark.parametrize(
        ("role", "purpose"),
        [
            ("clinician", ""),
            ("clinician", "HPAYMT"),
            ("billing", "TREAT"),
            ("researcher", "TREAT"),
            ("nurse", "TREAT"),
            ("admin", "TREAT"),
            ("clinician", "078-05-1120"),
            ("clinician", "OTTOLINE"),
        ],
    )
    def test_other_pairs(self, phi: Phi, role: str, purpose: str) -> None:
        """Refused, counted and audited; the header's text is not kept."""
        key = phi.made()
        answer = phi.call("GET", f"/patients/{key}", role=role, purpose=purpose)
        assert (answer.status_code, answer.get_json()["code"]) == (403, "purpose_not_permitted")
        (entry,) = phi.entries("patient.read")
        assert (entry["outcome"], entry["subject"]) == ("denied", phi.token(key))
        known = ("TREAT", "HPAYMT")
        assert entry["purpose"] == (purpose if purpose in known else None)
        assert not purpose or purpose in known or purpose not in json.dumps(entry)

    def test_without_token_or_scope(self, phi: Phi) -> None:
        """401 and 403, both audited."""
        key = phi.made()
        assert phi.client.get(f"/patients/{key}").status_code == 401
        other = phi.world.bearer("device:read", role="clinician")
        assert phi.client.get(f"/patients/{key}", headers=other).status_code == 403
        entries = phi.entries("patient.read")
        assert [entry["outcome"] for entry in entries] == ["denied", "denied"]
        assert [entry["actor"]["id"] for entry in entries] == ["clinician", None]
        assert {entry["subject"] for entry in entries} == {phi.token(key)}
        assert {entry["resource"]["id"] for entry in entries} == {phi.token(key)}

    def test_unknown(self, phi: Phi) -> None:
        """No such record; and a path that is no id reaches no record at all."""
        assert phi.call("GET", f"/patients/{uuid.uuid4()}").status_code == 404
        assert phi.call("GET", "/patients/078-05-1120").status_code == 404

    def test_counted_as_audited(self, phi: Phi) -> None:
        """Samples and entries agree."""
        key = phi.made()
        phi.call("GET", f"/patients/{key}")
        phi.call("GET", f"/patients/{key}", role="nurse", purpose="TREAT")
        phi.call("GET", f"/patients/{uuid.uuid4()}")
        counted = {
            outcome: phi.sample(
                "records_accessed_total", resource="patient", purpose="TREAT", outcome=outcome
            )
            for outcome in ("ok", "denied", "failed")
        }
        assert counted == {"ok": 2, "denied": 1, "failed": 1}
        assert [entry["outcome"] for entry in phi.entries("patient.read")].count("ok") == 1

    @pytest.mark.parametrize(("role", "status"), [("billing", 200), ("device-engineer", 200)])
    def test_head_tells_existence_only(self, phi: Phi, role: str, status: int) -> None:
        """Another service may ask whether a patient exists, without a purpose and without seeing anything."""
        key = phi.made()
        answer = phi.call("HEAD", f"/patients/{key}", role=role)
        assert (answer.status_code, answer.data, "ETag" in answer.headers) == (status, b"", False)
        assert phi.call("HEAD", f"/patients/{uuid.uuid4()}", role=role).status_code == 404
        assert [entry["details"]["view"] for entry in phi.entries("patient.read")] == [
            "existence",
            "existence",
        ]


class TestUpdate:
    """`PUT /patients/{id}` needs the current version."""

    def test_next_version(self, phi: Phi) -> None:
        """The record is replaced, its old identifiers no longer find it."""
        key = phi.made()
        answer = phi.call("PUT", f"/patients/{key}", json=record(1), If_Match='W/"1"')
        assert (answer.status_code, answer.headers["ETag"], answer.get_json()["version"]) == (200, 'W/"2"', 2)
        assert phi.call("GET", f"/patients/{key}").get_json()["last_name"] == record(1)["last_name"]
        old, new = ({"identifier": record(index)["identifiers"][0]} for index in (0, 1))
        assert phi.call("POST", "/patients/search", json=old).get_json()["total"] == 0
        assert phi.call("POST", "/patients/search", json=new).get_json()["total"] == 1

    def test_missing_if_match(self, phi: Phi) -> None:
        """428: no change without having read."""
        assert phi.call("PUT", f"/patients/{phi.made()}", json=record()).status_code == 428

    @pytest.mark.parametrize("stated", ['W/"2"', 'W/"0"', "*", "nonsense"])
    def test_stale(self, phi: Phi, stated: str) -> None:
        """412, counted, nothing changed."""
        key = phi.made()
        assert phi.call("PUT", f"/patients/{key}", json=record(1), If_Match=stated).status_code == 412
        assert phi.call("GET", f"/patients/{key}").get_json()["version"] == 1
        assert phi.sample("version_conflicts_total") == 1

    def test_two_writers_of_one_version(self, phi: Phi) -> None:
        """One wins, the other learns it."""
        key = phi.made()
        answers = [
            phi.call("PUT", f"/patients/{key}", json=record(), If_Match='W/"1"').status_code for _ in range(2)
        ]
        assert answers == [200, 412]

    def test_identifier_of_another_record(self, phi: Phi) -> None:
        """Refused as a whole: the old version stays."""
        key = phi.made()
        phi.made(1)
        assert phi.call("PUT", f"/patients/{key}", json=record(1), If_Match='W/"1"').status_code == 409
        assert phi.call("GET", f"/patients/{key}").get_json()["version"] == 1
        assert (
            phi.call("POST", "/patients/search", json={"identifier": record()["identifiers"][0]}).get_json()[
                "total"
            ]
            == 1
        )

    def test_unknown(self, phi: Phi) -> None:
        """Nothing is made by PUT."""
        assert (
            phi.call("PUT", f"/patients/{uuid.uuid4()}", json=record(), If_Match='W/"1"').status_code == 404
        )

    def test_only_treatment_writes(self, phi: Phi) -> None:
        """Billing may see, not change."""
        assert (
            phi.call(
                "PUT", f"/patients/{phi.made()}", json=record(), role="billing", If_Match='W/"1"'
            ).status_code
            == 403
        )


class TestBreakGlass:
    """45 CFR 164.312(a)(2)(ii): a clinician in an emergency is not stopped by what stops everybody else."""

    @contextlib.contextmanager
    def audit_store_away(self, phi: Phi) -> Iterator[None]:
        """Have another connection hold the audit database for a time."""
        with contextlib.closing(sqlite3.connect(phi.folder / "phi.audit.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("ROLLBACK")

    def state(self, phi: Phi) -> tuple[int, str]:
        """Return what `/readiness` says, and of the audit trail."""
        answer = phi.client.get("/readiness")
        return answer.status_code, answer.get_json()["checks"]["audit_trail"]

    @pytest.mark.parametrize("purpose", ["BTG", "ETREAT"])
    def test_reads_and_writes(self, phi: Phi, purpose: str) -> None:
        """The whole record, a change and a search; every entry and sample says for what it was."""
        key = phi.made()
        path, sought = f"/patients/{key}", {"identifier": record()["identifiers"][0]}
        assert phi.call("GET", path, purpose=purpose).get_json()["view"] == "full"
        assert phi.call("POST", "/patients/search", json=sought, purpose=purpose).get_json()["total"] == 1
        changed = phi.call("PUT", path, json=record(1), purpose=purpose, If_Match='W/"1"')
        assert (changed.status_code, phi.create(record(2), purpose=purpose).status_code) == (200, 201)
        used = [
            entry
            for action in ("read", "search", "update", "create")
            for entry in phi.entries(f"patient.{action}")
        ]
        assert [entry["purpose"] for entry in used] == [purpose] * 4 + ["TREAT"]
        labels = {"resource": "patient", "purpose": purpose, "outcome": "ok"}
        assert phi.sample("records_accessed_total", **labels) == 4

    @pytest.mark.parametrize(
        ("purpose", "reason"), [("BTG", "unconscious, no record of allergies"), ("TREAT", None)]
    )
    def test_says_why(self, phi: Phi, purpose: str, reason: str | None) -> None:
        """The reason that is stated is in the entry of an emergency, and of nothing else."""
        path, stated = f"/patients/{phi.made()}", "unconscious, no record of allergies"
        assert phi.call("GET", path, purpose=purpose, Access_Reason=stated).status_code == 200
        assert phi.entries("patient.read")[0]["reason"] == reason

    @pytest.mark.parametrize("role", ["billing", "researcher", "nurse", "admin"])
    def test_for_clinicians_only(self, phi: Phi, role: str) -> None:
        """To state an emergency opens nothing for anybody else; the attempt is recorded as one."""
        answer = phi.call("GET", f"/patients/{phi.made()}", role=role, purpose="BTG")
        assert (answer.status_code, answer.get_json()["code"]) == (403, "purpose_not_permitted")
        (entry,) = phi.entries("patient.read")
        assert (entry["outcome"], entry["purpose"], entry["actor"]["id"]) == ("denied", "BTG", role)

    @pytest.mark.server  # waits half a minute for a store that does not answer
    def test_the_audit_store_is_away(self, phi: Phi) -> None:
        """Care is served against the fsynced spool, and an alarm; nothing else is; later the log has every entry once."""
        key = phi.made()
        path, spool = f"/patients/{key}", phi.folder / "phi.audit.spool"
        assert self.state(phi) == (200, "ready")
        with self.audit_store_away(phi):
            assert phi.call("GET", path, purpose="BTG").get_json()["last_name"] == record()["last_name"]
            assert [line for line in spool.read_text().splitlines() if "patient.read" in line]
            assert (stat.S_IMODE(spool.stat().st_mode), key in spool.read_text()) == (0o600, False)
            assert phi.sample("healthobs_audit_spooled_total") == 1
            refused = phi.call("GET", path)
            assert (refused.status_code, refused.get_json()["code"]) == (503, "audit_unavailable")
            assert phi.call("GET", path, role="billing", purpose="BTG").status_code == 403
            written = [
                phi.call("PUT", path, json=record(), purpose="ETREAT", If_Match=f'W/"{version}"').status_code
                for version in (1, 2)
            ]
            assert written == [200, 200]
            assert phi.call("PUT", path, json=record(1), If_Match='W/"3"').status_code == 503
            assert self.state(phi) in {(200, "not_ready"), (200, "timeout")}
        told = [line["event"] for line in phi.world.log_lines("phi-service")]
        assert (told.count("audit_entry_spooled"), told.count("audit_entry_waiting")) == (2, 2)
        assert phi.call("GET", path).status_code == 200
        assert phi.call("PUT", path, json=record(), If_Match='W/"3"').status_code == 200
        read, changed = (
            sorted(phi.entries(action), key=lambda entry: entry["index"])
            for action in ("patient.read", "patient.update")
        )
        said = [(entry["purpose"], entry["outcome"]) for entry in read]
        assert said == [("BTG", "ok"), ("BTG", "denied"), ("TREAT", "ok")]
        assert [entry["purpose"] for entry in changed] == ["ETREAT", "ETREAT", "TREAT"]
        assert {entry["subject"] for entry in (*read, *changed)} == {phi.token(key)}
        assert spool.read_bytes() == b""
        phi.world.obs("phi-service").audit.verify()


class TestAtRest:
    """45 CFR 164.312(a)(2)(iv): nothing readable on the disk."""

    def test_no_plain_value_in_any_file(self, phi: Phi) -> None:
        """Not in the database, its journal, the audit trail or the idempotency memory."""
        phi.made()
        made, written = record(), phi.raw()
        values = [
            made["first_name"],
            made["last_name"],
            made["date_of_birth"],
            made["address"]["line"],
            made["conditions"][0]["display"],
        ]
        values += [item["value"] for item in (*made["telecom"], *made["identifiers"])]
        assert [value for value in values if value.encode() in written] == []
        assert b"hx1." in written

    def test_keys_are_private(self, phi: Phi) -> None:
        """0600."""
        phi.made()
        for name in ("phi.kek", "phi.index.key"):
            assert stat.S_IMODE((phi.folder / name).stat().st_mode) == 0o600

    def test_altered_row(self, phi: Phi) -> None:
        """A record changed behind the service's back is a 500 that tells nothing, audited as an error, and counted."""
        key = phi.made()
        connection = sqlite3.connect(phi.folder / "phi.db")
        connection.execute("UPDATE patient SET record = replace(record, 'hx1', 'hx2')")
        connection.commit()
        connection.close()
        answer = phi.call("GET", f"/patients/{key}")
        assert answer.status_code == 500
        assert phi.sample("encryption_operations_total", op="decrypt", result="failed") == 1
        assert phi.entries("patient.read")[0]["outcome"] == "error"


class TestSubjects:
    """Whom audit entries are about: random tokens from an encrypted map."""

    def trail(self, phi: Phi, **query: str) -> list[Any]:
        """Ask `GET /audit/trail` as an auditor."""
        headers = phi.world.bearer("audit:read", role="auditor")
        answer = phi.client.get("/audit/trail", query_string=query, headers=headers)
        assert answer.status_code == 200
        return list(answer.get_json()["recent_entries"])

    def test_no_patient_in_the_audit_database(self, phi: Phi) -> None:
        """No file of the trail or the map has the patient's id in any form; once the map is unplugged, the search is red."""
        key = phi.made()
        phi.call("GET", f"/patients/{key}")
        files = [path for name in ("audit", "subjects") for path in phi.folder.glob(f"phi.{name}.*")]
        assert len(files) >= 4
        assert_no_phi({"id": key}, *files)
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        phi.world.obs("phi-service").audit._encoder.subjects = None
        phi.call("GET", f"/patients/{key}")
        with pytest.raises(AssertionError, match=r"id as plain in phi.audit.db"):
            assert_no_phi({"id": key}, *files)

    def test_auditor_asks_by_the_patient(self, phi: Phi) -> None:
        """`subject` is the patient's id; it is not in the answer, and one that is unknown has no entries."""
        key, other = phi.made(0), phi.made(1)
        phi.call("GET", f"/patients/{key}")
        found = self.trail(phi, subject=key)
        assert [entry["action"] for entry in found] == ["patient.read", "patient.create"]
        assert_no_phi({"id": key, "other": other}, json.dumps(found))
        assert self.trail(phi, subject=str(uuid.uuid4())) == []

    def test_erased_subject(self, phi: Phi) -> None:
        """Once the subject's row is erased, the log verifies as before and its entries are about nobody."""
        key = phi.made()
        audit, token = phi.world.obs("phi-service").audit, phi.token(key)
        assert audit.subjects.erase(key)
        assert (self.trail(phi, subject=key), audit.subjects.identifier(token)) == ([], None)
        assert audit.verify().ok
        phi.call("GET", f"/patients/{key}")
        assert [entry["action"] for entry in self.trail(phi, subject=key)] == ["patient.read"]
        assert phi.token(key) != token


class TestControls:
    """The service's own controls pass on a sound service and fail on each sabotage from outside."""

    def observe(self, phi: Phi) -> dict[str, str]:
        """Run the probes and return the states."""
        service = phi.world["phi-service"].extensions["phi-service"]
        obs = phi.world.obs("phi-service")
        context = ProbeContext(settings=obs.settings, clock=obs.clock, redactor=obs.redactor, audit=obs.audit)
        made = {control.id: control for control in controls(lambda: service)}
        return {
            name: control.probe(context).state for name, control in made.items() if control.probe is not None
        }

    def alter(self, phi: Phi, statement: str, *values: str) -> None:
        """Change the database with the owner's rights."""
        with contextlib.closing(sqlite3.connect(phi.folder / "phi.db")) as connection:
            connection.execute(statement, values)
            connection.commit()

    def test_sound(self, phi: Phi) -> None:
        """Both pass, with and without records, and leave no canary behind."""
        assert self.observe(phi) == {"H-312.a2iv": "pass", "H-502b": "pass"}
        phi.made()
        assert self.observe(phi) == {"H-312.a2iv": "pass", "H-502b": "pass"}
        assert (
            phi.call("POST", "/patients/search", json={"identifier": record()["identifiers"][0]}).get_json()[
                "total"
            ]
            == 1
        )

    def test_the_search_of_files_lets_no_second_writer_in(self, phi: Phi) -> None:
        """The service's own connections hold locks by the process: to close a file of theirs would drop them."""
        service = phi.world["phi-service"].extensions["phi-service"]
        with service.kit.transaction():
            assert len(list(_stored(service, []))) > 0
            assert another_writer(Path(service.kit.engine.url.database)) == "database is locked"

    def test_plain_record_in_the_database(self, phi: Phi) -> None:
        """A row that somebody stored readable is no envelope."""
        phi.made()
        self.alter(phi, "UPDATE patient SET record = ?", json.dumps(record()))
        assert self.observe(phi) == {"H-312.a2iv": "fail", "H-502b": "pass"}

    def test_readable_copy_beside_it(self, phi: Phi) -> None:
        """A copy in another table of the same file is found."""
        phi.made()
        self.alter(phi, "CREATE TABLE export (line TEXT)")
        self.alter(phi, "INSERT INTO export VALUES (?)", record()["address"]["line"])
        assert self.observe(phi)["H-312.a2iv"] == "fail"

    @pytest.mark.parametrize("table", ["identifier_index", "patient"])
    def test_deleted_rows(self, phi: Phi, table: str) -> None:
        """A record that is gone, or that nobody can find any more, is missed; one of several too."""
        kept, lost = phi.made(), phi.made(1)
        column = "id" if table == "patient" else "patient_id"
        self.alter(phi, f"DELETE FROM {table} WHERE {column} = ?", lost)
        assert phi.call("GET", f"/patients/{kept}").status_code == 200
        assert self.observe(phi) == {"H-312.a2iv": "fail", "H-502b": "pass"}

    def test_erased_subject_is_no_loss(self, phi: Phi) -> None:
        """Whom the trail told of and nobody can say any more is not counted as gone."""
        key = phi.made()
        self.alter(phi, "DELETE FROM identifier_index")
        self.alter(phi, "DELETE FROM patient")
        assert self.observe(phi)["H-312.a2iv"] == "fail"
        phi.world.obs("phi-service").audit.subjects.erase(key)
        assert self.observe(phi)["H-312.a2iv"] == "pass"

    def test_canary_sealed_in_name_only(self, phi: Phi, monkeypatch: pytest.MonkeyPatch) -> None:
        """A vault that no longer encrypts is found before any patient's record is."""
        monkeypatch.setattr(Vault, "encrypt", lambda _self, _key, _row, _version, plain: plain.decode())
        assert self.observe(phi)["H-312.a2iv"] == "fail"

    def test_view_that_leaks(self, phi: Phi, monkeypatch: pytest.MonkeyPatch) -> None:
        """A derived field that shows the whole address fails the other control, and only that."""
        derived = {**phi_domain._DERIVED, "zip3": lambda stored, _today: stored["address"]}
        monkeypatch.setattr(phi_domain, "_DERIVED", derived)
        assert self.observe(phi) == {"H-312.a2iv": "pass", "H-502b": "fail"}


class TestTelemetry:
    """No patient's data in spans, logs or metrics; one trace over the services."""

    def test_nothing_leaks(self, phi: Phi) -> None:
        """Every planted value is searched for in all of it."""
        key = phi.made()
        phi.call("GET", f"/patients/{key}", role="billing")
        phi.call("POST", "/patients/search", json={"identifier": record()["identifiers"][0]})
        phi.create(record(last_name=""))
        obs = phi.world.obs("phi-service")
        left = json.dumps(phi.world.log_lines("phi-service")) + obs.metrics.exposition(None)[1].decode()
        left += "".join(span.to_json() for span in phi.world.spans("phi-service"))
        left += json.dumps(
            [
                entry
                for action in ("patient.create", "patient.read", "patient.search")
                for entry in phi.entries(action)
            ]
        )
        made = record()
        values = [made["last_name"], made["date_of_birth"], made["address"]["line"]]
        values += [item["value"] for item in (*made["telecom"], *made["identifiers"])]
        assert [value for value in values if value in left] == []

    def test_verification_is_in_the_same_trace(self, phi: Phi) -> None:
        """The hop to synthetic-phi-service continues the caller's trace."""
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        phi.create(record(), traceparent=f"00-{trace}-00f067aa0ba902b7-01")
        for service in ("phi-service", "synthetic-phi-service"):
            assert trace in {format(span.context.trace_id, "032x") for span in phi.world.spans(service)}
