"""What medical-device keeps. SQLAlchemy Core inside the caller's transaction.

An observation's key is its primary key, so a repeated batch changes nothing; whether a row was new is told by
RETURNING, because a driver's row count can be -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from reference_services._kit import insert, rows
from reference_services.medical_device.alarms import Alarm
from reference_services.medical_device.domain import Key, Observation

METADATA = sa.MetaData()
_ID = sa.String(36)
_SHORT = sa.String(64)
DEVICES = sa.Table(
    "device",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("device_identifier", sa.String(14), nullable=False),
    sa.Column("serial", sa.String(20), nullable=False),
    sa.Column("lot", sa.String(20)),
    sa.Column("manufactured", sa.String(10)),
    sa.Column("expiry", sa.String(10)),
    sa.Column("name", sa.String(80), nullable=False),
    sa.Column("status", _SHORT, nullable=False),
    sa.Column("registered_ns", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("device_identifier", "serial"),
)
OBSERVATIONS = sa.Table(
    "observation",
    METADATA,
    sa.Column("device_id", _ID, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("code", _SHORT, primary_key=True),
    sa.Column("effective_ms", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("value", _SHORT, nullable=False),
    sa.Column("unit", _SHORT, nullable=False),
    sa.Column("validity", _SHORT, nullable=False),
    sa.Column("flags", _SHORT, nullable=False),
)
ALARMS = sa.Table(
    "alarm",
    METADATA,
    sa.Column("device_id", _ID, sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("cause", _SHORT, primary_key=True),
    sa.Column("kind", _SHORT, nullable=False),
    sa.Column("priority", _SHORT, nullable=False),
    sa.Column("first_ms", sa.BigInteger, nullable=False),
    sa.Column("last_ms", sa.BigInteger, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
)
CALIBRATIONS = sa.Table(
    "calibration",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("device_id", _ID, sa.ForeignKey("device.id"), nullable=False, index=True),
    sa.Column("as_found", _SHORT, nullable=False),
    sa.Column("as_left", _SHORT, nullable=False),
    sa.Column("performed_by", _SHORT, nullable=False),
    sa.Column("due", sa.String(10), nullable=False),
    sa.Column("recorded_by", sa.String(128), nullable=False),
    sa.Column("recorded_ns", sa.BigInteger, nullable=False),
)
SIGNATURES = sa.Table(
    "signature",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("kind", _SHORT, nullable=False),
    sa.Column("record_id", _ID, nullable=False, index=True),
    sa.Column("jws", sa.Text, nullable=False),
    sa.Column("signed_ns", sa.BigInteger, nullable=False),
)
LATEST_ALARMS = sa.select(ALARMS).order_by(ALARMS.c.last_ms.desc(), ALARMS.c.device_id, ALARMS.c.cause)
#: Kind of record that can be signed -> its table; a signature covers the row as it is stored.
RECORDS: Mapping[str, sa.Table] = {"devices": DEVICES, "calibrations": CALIBRATIONS}


def add(connection: Connection, table: sa.Table, values: Mapping[str, Any]) -> None:
    """Insert one row."""
    connection.execute(table.insert().values(**values))


def calibrations(connection: Connection, device_id: str) -> list[tuple[int, str]]:
    """Return the calibrations of a device, oldest first: when each was recorded, in milliseconds, and the day it is due."""
    query = sa.select(CALIBRATIONS.c.recorded_ns, CALIBRATIONS.c.due).where(
        CALIBRATIONS.c.device_id == device_id
    )
    found = connection.execute(query.order_by(CALIBRATIONS.c.recorded_ns))
    return [(recorded_ns // 1_000_000, due) for recorded_ns, due in found]


def ingest(
    connection: Connection, device_id: str, batch: Sequence[Observation], validities: Sequence[str]
) -> tuple[set[Key], dict[Key, tuple[Decimal, str]]]:
    """Store what is new; return its keys, and value and unit of what was there already.

    The keys within `batch` are distinct.
    """
    if not batch:
        return set(), {}
    added = [
        {**asdict(item), "flags": " ".join(item.flags), "device_id": device_id, "validity": validity}
        for item, validity in zip(batch, validities, strict=True)
    ]
    key = (OBSERVATIONS.c.code, OBSERVATIONS.c.effective_ms, OBSERVATIONS.c.sequence)
    statement = insert(connection, OBSERVATIONS).on_conflict_do_nothing().returning(*key)
    new: set[Key] = {(code, at, sequence) for code, at, sequence in connection.execute(statement, added)}
    known = [item.key for item in batch if item.key not in new]
    query = sa.select(*key, OBSERVATIONS.c.value, OBSERVATIONS.c.unit).where(
        OBSERVATIONS.c.device_id == device_id, sa.tuple_(*key).in_(known)
    )
    found = connection.execute(query) if known else ()
    return new, {(row.code, row.effective_ms, row.sequence): (Decimal(row.value), row.unit) for row in found}


def raise_alarms(connection: Connection, device_id: str, alarms: Iterable[Alarm]) -> list[Alarm]:
    """Store alarms, whatever order they come in; return those whose cause was not in force yet."""
    return [alarm for alarm in alarms if _raise(connection, device_id, alarm) == alarm.count]


def _raise(connection: Connection, device_id: str, alarm: Alarm) -> int:
    """Store an alarm, or count it again; return how often its cause has been seen by now."""
    made = insert(connection, ALARMS).values(device_id=device_id, **asdict(alarm))
    earlier, later = ALARMS.c.first_ms > made.excluded.first_ms, ALARMS.c.last_ms < made.excluded.last_ms
    both = {
        "first_ms": sa.case((earlier, made.excluded.first_ms), else_=ALARMS.c.first_ms),
        "last_ms": sa.case((later, made.excluded.last_ms), else_=ALARMS.c.last_ms),
        "count": ALARMS.c.count + made.excluded.count,
    }
    seen = made.on_conflict_do_update(index_elements=ALARMS.primary_key, set_=both)
    return int(connection.execute(seen.returning(ALARMS.c.count)).scalar_one())


def counts(connection: Connection, column: sa.Column[str]) -> dict[str, int]:
    """Count the rows of a table by the values of one of its columns."""
    query = sa.select(column, sa.func.count()).group_by(column)
    return {str(value): int(number) for value, number in connection.execute(query)}


def signatures(connection: Connection, **of: str) -> list[dict[str, Any]]:
    """Return the signatures, oldest first: all, or those whose columns have the values `of`."""
    query = sa.select(SIGNATURES).filter_by(**of).order_by(SIGNATURES.c.signed_ns, SIGNATURES.c.id)
    return rows(connection, query)


def signed_records(connection: Connection) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the records that have a signature, by kind and id."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for kind, table in RECORDS.items():
        signed = sa.select(SIGNATURES.c.record_id).where(SIGNATURES.c.kind == kind)
        query = sa.select(table).where(table.c.id.in_(signed))
        found |= {(kind, row["id"]): row for row in rows(connection, query)}
    return found


def identifiers(connection: Connection) -> list[str]:
    """Return the device identifiers of all devices."""
    return list(connection.execute(sa.select(DEVICES.c.device_identifier).distinct()).scalars())
