"""Tests of phi-service over HTTP: which identifiers two records may share, and how a record is found by one."""

from __future__ import annotations

import contextlib
import hmac
import json
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from one_service import refusal
from phi_bench import Phi, record
from reference_services._kit import database
from reference_services.phi.crypto import Vault
from reference_services.phi.store import (
    IDENTIFIERS,
    METADATA,
    PATIENTS,
    SHARED_SYSTEMS,
    STEPS,
    VERSION,
    IdentifierShared,
    IdentifierTaken,
    Store,
)
from reference_services.synthetic_phi import domain as synthetic
from service_world import World


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


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
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


class TestSchema:
    """A database of before is brought up."""

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


SYSTEM = "urn:oid:2.999.1.1"
#: Stored under schema 1; "alike" and "nfd" differ in their Unicode form alone.
BEFORE = {"alike": "M\u00dcLLER-1", "blank": "A-17 ", "nfd": "MU\u0308LLER-1", "plain": "B-1"}
INDEX_KEY = b"i" * 32


def digest_before(value: str, key: bytes = INDEX_KEY) -> str:
    """Return the digest under which an identifier was indexed as it was typed."""
    return hmac.digest(key, json.dumps(["identifier", SYSTEM, value]).encode(), "sha256").hex()


def having(value: str) -> dict[str, Any]:
    return {"identifiers": [{"system": SYSTEM, "value": value}]}


class TestIndexOfBefore:
    """Records that were indexed by their identifiers as typed are found however those are typed, from the next start on."""

    @pytest.fixture
    def operations(self) -> list[tuple[str, str]]:
        return []

    @pytest.fixture
    def store(
        self, engine: sa.Engine, operations: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> Store:
        """Give the store on a database of schema 1 that was brought up, with records of then."""
        monkeypatch.setattr("reference_services.phi.store.REINDEXED_AT_ONCE", 2)
        vault = Vault(b"k" * 32, INDEX_KEY, lambda *told: operations.append(told))
        with engine.begin() as connection:
            for name, value in BEFORE.items():
                key, wrapped = vault.new_key(name)
                sealed = vault.encrypt(key, name, 1, json.dumps(having(value)).encode())
                row = PATIENTS.insert().values(id=name, version=1, dek=wrapped, record=sealed)
                connection.execute(row)
                connection.execute(
                    sa.text("INSERT INTO identifier_index VALUES (:digest, :of)"),
                    {"digest": digest_before(value), "of": name},
                )
        database.migrate(engine, METADATA, version=VERSION, steps=STEPS)
        operations.clear()
        return Store(vault)

    def found(self, engine: sa.Engine, store: Store, value: str) -> str | None:
        with database.reading(engine) as connection:
            patient = store.find(connection, SYSTEM, value)
        return None if patient is None else patient.id

    def test_found_again(self, engine: sa.Engine, store: Store) -> None:
        """By its identifier typed either way; no other record gets that, and it can be changed."""
        store.reindex(engine)
        for typed in ("A-17", "A-17 ", " A-17"):
            assert self.found(engine, store, typed) == "blank"
        assert self.found(engine, store, "B-1") == "plain"
        with database.reading(engine) as connection:
            patients = [store.read(connection, name) for name in BEFORE]
            assert [store.unindexed(connection, one) for one in patients if one is not None] == [0] * 4
        with pytest.raises(IdentifierTaken), engine.begin() as connection:
            store.create(connection, "new", having("A-17"))
        with engine.begin() as connection:
            assert store.update(connection, "blank", 1, having("A-17")) is not None
        assert self.found(engine, store, "A-17 ") == "blank"

    @pytest.mark.parametrize(("one", "other"), [("alike", "nfd"), ("nfd", "alike")])
    def test_two_have_the_same(self, engine: sa.Engine, store: Store, one: str, other: str) -> None:
        """Neither is shown, a third gets it in no case, each can be changed, and one that has it alone is found again."""
        store.reindex(engine)
        with pytest.raises(IdentifierShared):
            self.found(engine, store, BEFORE[one])
        for version, name in ((1, one), (1, other), (2, one)):
            with engine.begin() as connection:
                assert store.update(connection, name, version, having(BEFORE[one])) is not None
            with pytest.raises(IdentifierShared):
                self.found(engine, store, BEFORE[one])
        with engine.begin() as connection:
            assert store.update(connection, one, 3, having("C-1")) is not None
        assert self.found(engine, store, BEFORE[one]) == other
        for take in (
            lambda connection: store.create(connection, "new", having(BEFORE[one])),
            lambda connection: store.update(connection, one, 4, having(BEFORE[one])),
        ):
            with pytest.raises(IdentifierTaken), engine.begin() as connection:
                take(connection)

    def test_one_that_does_not_open(self, engine: sa.Engine, store: Store) -> None:
        """It keeps what it is indexed by, and keeps the others from nothing."""
        store.reindex(engine)
        with database.reading(engine) as connection:
            rows = connection.execute(sa.select(IDENTIFIERS).where(IDENTIFIERS.c.patient_id == "p")).all()
        assert [tuple(row) for row in rows] == [("d", "p", False)]

    def test_once(self, engine: sa.Engine, store: Store, operations: list[tuple[str, str]]) -> None:
        """The next start opens no record."""
        store.reindex(engine)
        assert ("decrypt", "ok") in operations
        operations.clear()
        database.migrate(engine, METADATA, version=VERSION, steps=STEPS)
        store.reindex(engine)
        assert operations == []

    def test_ended_in_between(
        self,
        engine: sa.Engine,
        store: Store,
        operations: list[tuple[str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The next start goes on where one was ended, and leaves it as one that was not."""
        read = store.read

        def ended(connection: sa.Connection, patient_id: str) -> Any:
            if patient_id == "nfd":
                raise KeyboardInterrupt
            return read(connection, patient_id)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(store, "read", ended)
            store.reindex(engine)
        operations.clear()
        store.reindex(engine)
        assert operations.count(("decrypt", "ok")) == 3  # two records, one of them to index
        assert self.found(engine, store, "A-17") == "blank"
        with pytest.raises(IdentifierShared):
            self.found(engine, store, BEFORE["nfd"])

    def test_changed_meanwhile(
        self, engine: sa.Engine, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A record that a process of before changes while it is indexed is found by what it has then."""
        lost, asked = store._lost, list[str]()

        def change() -> None:
            with engine.begin() as connection:
                store.update(connection, "blank", 1, having("NEW-1"))

        other = threading.Thread(target=change)

        def slow(connection: sa.Connection, patient_id: str) -> Any:
            found = lost(connection, patient_id)
            asked.append(patient_id)
            if asked[-1] == "blank" and asked.count("blank") == 2:  # to index it
                other.start()
                other.join(0.5)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(store, "_lost", slow)
            store.reindex(engine)
        other.join()
        assert (self.found(engine, store, "NEW-1"), self.found(engine, store, "A-17")) == ("blank", None)

    def test_several_workers(self, engine: sa.Engine, store: Store) -> None:
        """Those that start together leave it as one does."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(store.reindex, [engine] * 4))
        assert self.found(engine, store, "A-17") == "blank"
        with database.reading(engine) as connection:
            rows = connection.execute(sa.select(IDENTIFIERS.c.patient_id, IDENTIFIERS.c.shared)).all()
        assert sorted(tuple(row) for row in rows) == [
            ("alike", False), ("blank", False), ("nfd", True), ("p", False), ("plain", False),
        ]  # fmt: skip

    def test_at_start(self, tmp_path: Path) -> None:
        """The service does so when it starts on such a database, of schema 2 too."""
        with contextlib.closing(World(tmp_path)) as world:
            world.environ["phi-service"] = {"HEALTHOBS_ENVIRONMENT": "production"}
            phi = Phi(world, tmp_path)
            key = phi.create(record(**having("A-17 "))).get_json()["id"]
        secret = bytes.fromhex((phi.folder / "phi.index.key").read_text())
        phi.database("UPDATE identifier_index SET digest = ?", digest_before("A-17 ", secret))
        phi.database("DROP TABLE IF EXISTS stale_index")
        phi.database("UPDATE schema_version SET version = 2")
        with contextlib.closing(World(tmp_path)) as world:
            sought = {"identifier": {"system": SYSTEM, "value": "A-17"}}
            found = Phi(world, tmp_path).call("POST", "/patients/search", json=sought).get_json()
        assert [patient["id"] for patient in found["patients"]] == [key]
