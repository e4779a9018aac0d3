"""Where sealed records and blind indexes live. SQLAlchemy Core; no column holds anything readable."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from reference_services._kit import add_new, database
from reference_services.phi.crypto import SealError, Vault

#: Who assigns what is no record number: several people have one by mistake or fraud, and of synthetic ones there are
#: less than a million.
SHARED_SYSTEMS = frozenset(
    {"http://hl7.org/fhir/sid/us-ssn", "urn:oid:2.16.840.1.113883.4.1", "urn:oid:2.999.1.2"}
)
METADATA = sa.MetaData()
PATIENTS = sa.Table(
    "patient",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("dek", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)
IDENTIFIERS = sa.Table(
    "identifier_index",
    METADATA,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("patient_id", sa.String(36), sa.ForeignKey("patient.id"), primary_key=True, index=True),
    sa.Column("shared", sa.Boolean, nullable=False),
)
_OWN = IDENTIFIERS.c.shared.is_(False)
sa.Index(
    "identifier_of_one_record", IDENTIFIERS.c.digest, unique=True, sqlite_where=_OWN, postgresql_where=_OWN
)

#: Holds a row while the index is of before schema 3, for the records after one: what is typed otherwise finds none.
_STALE = sa.Table("stale_index", METADATA, sa.Column("after", sa.String(36), primary_key=True))
REINDEXED_AT_ONCE = 500


class IdentifierTaken(Exception):  # noqa: N818 - an outcome, named as such
    """Another record has one of these identifiers."""


class IdentifierShared(Exception):  # noqa: N818 - an outcome, named as such
    """Several records have this identifier."""


@dataclass(frozen=True, slots=True)
class Patient:
    """One version of one record."""

    id: str
    version: int
    record: Mapping[str, Any]


class Store:
    """Reads and writes records inside the caller's transaction.

    Args:
        vault: Seals what is written.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    def create(self, connection: Connection, patient_id: str, record: Mapping[str, Any]) -> Patient:
        """Store version 1 of a record.

        Raises:
            IdentifierTaken: One of its identifiers belongs to another record.
        """
        key, wrapped = self._vault.new_key(patient_id)
        sealed = self._vault.encrypt(key, patient_id, 1, _encode(record))
        connection.execute(PATIENTS.insert().values(id=patient_id, version=1, dek=wrapped, record=sealed))
        self._index(connection, patient_id, record)
        return Patient(patient_id, 1, record)

    def read(self, connection: Connection, patient_id: str) -> Patient | None:
        """Return the current version, or None.

        Raises:
            SealError: The stored record does not open.
        """
        row = connection.execute(sa.select(PATIENTS).where(PATIENTS.c.id == patient_id)).first()
        if row is None:
            return None
        key = self._vault.unwrap(patient_id, row.dek)
        plain = self._vault.decrypt(key, patient_id, row.version, row.record)
        return Patient(patient_id, row.version, json.loads(plain))

    def exists(self, connection: Connection, patient_id: str) -> bool:
        """Tell whether there is a record, without opening it."""
        return (
            connection.execute(sa.select(PATIENTS.c.id).where(PATIENTS.c.id == patient_id)).first()
            is not None
        )

    def update(
        self, connection: Connection, patient_id: str, expected: int, record: Mapping[str, Any]
    ) -> Patient | None:
        """Store the version after `expected`; None when the current version is another one, or none.

        Raises:
            IdentifierTaken: One of its identifiers belongs to another record.
        """
        wrapped = connection.execute(sa.select(PATIENTS.c.dek).where(PATIENTS.c.id == patient_id)).scalar()
        if wrapped is None:
            return None
        version = expected + 1
        key = self._vault.unwrap(patient_id, wrapped)
        sealed = self._vault.encrypt(key, patient_id, version, _encode(record))
        current = (PATIENTS.c.id == patient_id) & (PATIENTS.c.version == expected)
        changed = PATIENTS.update().where(current).values(version=version, record=sealed)
        if connection.execute(changed.returning(PATIENTS.c.id)).first() is None:
            return None
        had = IDENTIFIERS.delete().where(IDENTIFIERS.c.patient_id == patient_id)
        before = set(connection.execute(had.returning(IDENTIFIERS.c.digest)).scalars())
        self._index(connection, patient_id, record, before)
        return Patient(patient_id, version, record)

    def find(self, connection: Connection, system: str, value: str) -> Patient | None:
        """Return the record with this identifier, found by its blind index.

        Raises:
            IdentifierShared: There are several.
        """
        digest = self._vault.blind_index(system, value)
        found = sa.select(IDENTIFIERS.c.patient_id).where(IDENTIFIERS.c.digest == digest).limit(2)
        records = list(connection.execute(found).scalars())
        if len(records) > 1:
            raise IdentifierShared
        return self.read(connection, records[0]) if records else None

    def unindexed(self, connection: Connection, patient: Patient) -> int:
        """Return how many identifiers of a record do not find it; 0 when it has another version by now."""
        found = sa.select(IDENTIFIERS.c.digest).where(IDENTIFIERS.c.patient_id == patient.id)
        lost = self._digests(patient.record).keys() - set(connection.execute(found).scalars())
        version = sa.select(PATIENTS.c.version).where(PATIENTS.c.id == patient.id)
        return len(lost) if connection.execute(version).scalar() == patient.version else 0

    def reindex(self, engine: Engine) -> None:
        """Have every record found however its identifiers were typed: once, at the first start after schema 3 came.

        Where several turn out to have one, all keep it, and a search by it shows none. One that does not open stays
        indexed as it is. It goes on where a start that was ended left it; writes wait only while records that are not found
        are indexed.
        """
        while True:
            with database.reading(engine) as connection:
                after = connection.execute(sa.select(_STALE.c.after)).scalar()
                if after is None:
                    return
                ids = sa.select(PATIENTS.c.id).where(PATIENTS.c.id > after).order_by(PATIENTS.c.id)
                some = connection.execute(ids.limit(REINDEXED_AT_ONCE)).scalars().all()
                lost = [patient_id for patient_id in some if self._lost(connection, patient_id)]
            own = _STALE.c.after == after  # not once another worker did these
            done = _STALE.update().where(own).values(after=some[-1]) if some else _STALE.delete().where(own)
            with engine.begin() as connection:
                if connection.execute(done.returning(_STALE.c.after)).first() is not None:
                    for patient_id in lost:
                        self._reindex(connection, patient_id)

    def raw(self, connection: Connection, limit: int) -> list[tuple[str, int, str, str]]:
        """Return id, version, wrapped key and sealed record of some rows, as stored."""
        rows = connection.execute(sa.select(PATIENTS).order_by(PATIENTS.c.id).limit(limit))
        return [(row.id, row.version, row.dek, row.record) for row in rows]

    def raw_row(self, connection: Connection, patient_id: str) -> list[str]:
        """Return every column of a record's row and of its index rows, as stored."""
        row = connection.execute(sa.select(PATIENTS).where(PATIENTS.c.id == patient_id)).one()
        index = connection.execute(sa.select(IDENTIFIERS).where(IDENTIFIERS.c.patient_id == patient_id))
        return [str(column) for found in (row, *index) for column in found]

    def _lost(self, connection: Connection, patient_id: str) -> Patient | None:
        """Return a record that opens and that not all of its identifiers find."""
        with suppress(SealError):
            patient = self.read(connection, patient_id)
            if patient is not None and self.unindexed(connection, patient):
                return patient
        return None

    def _reindex(self, connection: Connection, patient_id: str) -> None:
        # Nobody changes it meanwhile; SQLite's writers have the whole database.
        locked = sa.select(PATIENTS.c.id).where(PATIENTS.c.id == patient_id).with_for_update()
        connection.execute(locked)
        if patient := self._lost(connection, patient_id):
            connection.execute(IDENTIFIERS.delete().where(IDENTIFIERS.c.patient_id == patient_id))
            self._index(connection, patient_id, patient.record, self._digests(patient.record))

    def _index(
        self,
        connection: Connection,
        patient_id: str,
        record: Mapping[str, Any],
        before: Container[str] = frozenset(),
    ) -> None:
        """Index a record that is not; what it had `before`, it keeps though another record has it too.

        Raises:
            IdentifierTaken: One of its identifiers belongs to another record.
        """
        digests = self._digests(record)
        found = sa.select(IDENTIFIERS.c.digest).where(IDENTIFIERS.c.digest.in_(digests))
        others = set(connection.execute(found).scalars())
        # One order for all writers, so that none waits for another in a circle.
        for digest, shared in sorted(digests.items()):
            kept = digest in others and digest in before
            taken = digest in others and not (shared or kept)
            row = {"digest": digest, "patient_id": patient_id, "shared": shared or kept}
            if taken or not add_new(connection, IDENTIFIERS, **row):
                raise IdentifierTaken

    def _digests(self, record: Mapping[str, Any]) -> dict[str, bool]:
        """Return the digest of each identifier, and whether other records may have it."""
        identifiers: Iterable[Mapping[str, str]] = record.get("identifiers") or ()
        return {
            self._vault.blind_index(item["system"], item["value"]): item["system"] in SHARED_SYSTEMS
            for item in identifiers
        }


def _tell_shared_apart(connection: Connection) -> None:
    """Bring schema 1, in which no two records had an identifier in common, to 2."""
    before = [
        tuple(row) for row in connection.exec_driver_sql("SELECT digest, patient_id FROM identifier_index")
    ]
    connection.exec_driver_sql("DROP TABLE identifier_index")
    IDENTIFIERS.create(connection)
    if before:
        rows = [{"digest": digest, "patient_id": of, "shared": False} for digest, of in before]
        connection.execute(IDENTIFIERS.insert(), rows)


def _mark_stale(connection: Connection) -> None:
    """Bring schema 2, whose index may have identifiers as they were typed, to 3; see `Store.reindex`."""
    _STALE.create(connection, checkfirst=True)
    connection.execute(_STALE.insert().values(after=""))


#: See `database.migrate`.
VERSION, STEPS = 3, {2: _tell_shared_apart, 3: _mark_stale}


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
