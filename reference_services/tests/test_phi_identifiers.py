"""Tests of phi-service over HTTP: which identifiers two records may share, and how a record is found by one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from one_service import refusal
from phi_bench import Phi, record
from reference_services._kit import database
from reference_services.phi.store import IDENTIFIERS, METADATA, PATIENTS, SHARED_SYSTEMS, STEPS, VERSION
from reference_services.synthetic_phi import domain as synthetic


class TestSearch:
    """`POST /patients/search`: the identifier is in the body, never in a URL."""

    def test_found(self, phi: Phi) -> None:
        """By system and value together, in the caller's view."""
        key = phi.made()
        for identifier in record()["identifiers"]:
            body = phi.call(
                "POST", "/patients/search", json={"identifier": identifier}, role="billing"
            ).get_json()
            assert (body["total"], body["patients"][0]["id"], body["patients"][0]["view"]) == (
                1,
                key,
                "billing",
            )
        assert {entry["subject"] for entry in phi.entries("patient.search")} == {phi.token(key)}

    def test_not_found(self, phi: Phi) -> None:
        """The right value under another system is another identifier."""
        phi.made()
        identifier = {**record()["identifiers"][0], "system": "urn:oid:2.999.9"}
        assert phi.call("POST", "/patients/search", json={"identifier": identifier}).get_json() == {
            "total": 0,
            "patients": [],
        }

    def test_researchers_may_not(self, phi: Phi) -> None:
        """Looking up an identifier would undo the de-identification."""
        phi.made()
        answer = phi.call(
            "POST", "/patients/search", json={"identifier": record()["identifiers"][0]}, role="researcher"
        )
        assert answer.status_code == 403


class TestUnique:
    """Which identifiers name one record."""

    def test_identifier_of_another_record(self, phi: Phi) -> None:
        """A record number is one record's, and the refusal stores nothing."""
        phi.made()
        answer = phi.create(record(1, identifiers=[*record(1)["identifiers"], record()["identifiers"][0]]))
        assert (answer.status_code, answer.get_json()["code"]) == (409, "identifier_taken")
        entry = phi.entries("patient.create")[0]
        assert (entry["outcome"], entry["details"]["code"]) == ("failed", "identifier_taken")
        assert (entry["subject"], entry["resource"]["id"]) == (None, None)
        assert phi.create(record(1)).status_code == 201

    def test_changed_to_that_of_another(self, phi: Phi) -> None:
        """A change takes no record number from another record either."""
        phi.made()
        key = phi.made(1)
        taking = record(1, identifiers=record()["identifiers"])
        answer = phi.call("PUT", f"/patients/{key}", json=taking, If_Match='W/"1"')
        assert (answer.status_code, answer.get_json()["code"]) == (409, "identifier_taken")
        assert phi.call("GET", f"/patients/{key}").get_json()["version"] == 1


class TestShared:
    """Social security numbers are no record numbers."""

    def twins(self, phi: Phi) -> tuple[str, str, dict[str, str]]:
        """Store two records with one social security number; return their ids and the number."""
        ssn = record()["identifiers"][1]
        assert ssn["system"] in SHARED_SYSTEMS
        second = phi.create(record(1, identifiers=[record(1)["identifiers"][0], ssn]))
        assert second.status_code == 201, second.get_data(as_text=True)
        return phi.made(), str(second.get_json()["id"]), ssn

    def test_both_are_kept_and_none_is_guessed(self, phi: Phi) -> None:
        """Two records may have one; a search by it says so, and shows neither: it could be the wrong person's."""
        first, second, ssn = self.twins(phi)
        answer = phi.call("POST", "/patients/search", json={"identifier": ssn})
        assert (answer.status_code, answer.get_json()["code"]) == (409, "identifier_shared")
        assert ssn["value"] not in answer.get_data(as_text=True)
        (entry,) = phi.entries("patient.search")
        assert (entry["outcome"], entry["subject"]) == ("failed", None)
        for index, key in enumerate((first, second)):
            sought = {"identifier": record(index)["identifiers"][0]}
            found = phi.call("POST", "/patients/search", json=sought).get_json()
            assert (found["total"], found["patients"][0]["id"]) == (1, key)

    def test_one_again_once_the_other_changed(self, phi: Phi) -> None:
        """As soon as one record alone has it, it is found by it."""
        first, second, ssn = self.twins(phi)
        changed = phi.call("PUT", f"/patients/{second}", json=record(2), If_Match='W/"1"')
        assert changed.status_code == 200
        found = phi.call("POST", "/patients/search", json={"identifier": ssn}).get_json()
        assert (found["total"], found["patients"][0]["id"]) == (1, first)

    def test_thousands_of_synthetic_patients_fit(self) -> None:
        """Among some thousand synthetic patients numbers of that kind repeat, and no others do."""
        people = synthetic.patients(7, 0, 5_000)
        seen = {(one["system"], one["value"]) for person in people for one in person["identifiers"]}
        missing = 2 * len(people) - len(seen)
        numbers = {one["value"] for person in people for one in person["identifiers"][:1]}
        assert (len(numbers), missing > 0) == (5_000, True)
        assert {person["identifiers"][1]["system"] for person in people} < SHARED_SYSTEMS


class TestBlank:
    """What is nothing but blanks identifies nobody."""

    @pytest.mark.parametrize("value", [" ", "\t\r\n", "\u00a0\u2003\u3000", "\x1d"])
    def test_refused(self, phi: Phi, value: str) -> None:
        """No record is stored with it, changed to it, or sought by it."""
        blank = {"system": "urn:oid:2.999.1.1", "value": value}
        key = phi.made()
        body = record(1, identifiers=[record(1)["identifiers"][0], blank])
        for answer, pointer in (
            (phi.create(body), "/identifiers/1/value"),
            (phi.call("PUT", f"/patients/{key}", json=body, If_Match='W/"1"'), "/identifiers/1/value"),
            (phi.call("POST", "/patients/search", json={"identifier": blank}), "/identifier/value"),
        ):
            assert refusal(answer) == (422, "invalid_request", [(pointer, "string_pattern_mismatch")])

    def test_stored_before_it_is_shown(self, phi: Phi) -> None:
        """A record of before that has one is shown as it is."""
        service, key = phi.world["phi-service"].extensions["phi-service"], str(uuid.uuid4())
        blank = record(identifiers=[{"system": "urn:oid:2.999.1.1", "value": " "}])
        with service.kit.engine.begin() as connection:
            service.store.create(connection, key, blank)
        answer = phi.call("GET", f"/patients/{key}")
        assert (answer.status_code, answer.get_json()["identifiers"]) == (200, blank["identifiers"])


SCHEMA_1 = """
CREATE TABLE schema_version (one INTEGER NOT NULL PRIMARY KEY, version INTEGER NOT NULL);
INSERT INTO schema_version VALUES (1, 1);
CREATE TABLE patient (id VARCHAR(36) NOT NULL PRIMARY KEY, version INTEGER NOT NULL, dek TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE identifier_index (digest VARCHAR(64) NOT NULL PRIMARY KEY, patient_id VARCHAR(36) NOT NULL REFERENCES patient (id));
CREATE INDEX ix_identifier_index_patient_id ON identifier_index (patient_id);
INSERT INTO patient VALUES ('p', 1, 'dek', 'sealed');
INSERT INTO identifier_index VALUES ('d', 'p');
"""


class TestSchema:
    """A database of before is brought up."""

    @pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
    def engine(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
        """Give a database with the tables of schema 1."""
        url = f"sqlite:///{tmp_path}/phi.db"
        if request.param == "postgresql":
            postgres = request.getfixturevalue("postgres")
            url = postgres.url(postgres.database()).replace("postgresql://", "postgresql+psycopg://")
        engine = database.make_engine(url)
        with engine.begin() as connection:
            for statement in filter(str.strip, SCHEMA_1.split(";")):
                connection.exec_driver_sql(statement)
        yield engine
        engine.dispose()

    def test_from_1(self, engine: sa.Engine) -> None:
        """What is indexed stays, as one record's own; what may be shared from now on may be shared with it."""
        for _ in range(2):
            database.migrate(engine, METADATA, version=VERSION, steps=STEPS)
        database.check(engine, VERSION)
        with engine.begin() as connection:
            connection.execute(PATIENTS.insert().values(id="q", version=1, dek="dek", record="sealed"))
            assert not database.add_new(connection, IDENTIFIERS, digest="d", patient_id="q", shared=False)
            assert database.add_new(connection, IDENTIFIERS, digest="d", patient_id="q", shared=True)
            found = connection.execute(sa.select(IDENTIFIERS).order_by(IDENTIFIERS.c.patient_id)).all()
        assert [tuple(row) for row in found] == [("d", "p", False), ("d", "q", True)]
