"""What phi-service observes about itself, beside the library's controls.

* H-312.a2iv, encryption at rest (45 CFR 164.312(a)(2)(iv)): what is stored is read back as stored, found by its
  identifiers, and there.
* H-502b, minimum necessary (45 CFR 164.502(b), 164.514(d)): what views show, of stored records too, is compared
  with what they declare.

Limits: the files are searched where the database is SQLite; of PostgreSQL only the columns are seen. Of the trail the
newest fifty records are looked at; whom an erased subject was, nobody can look for.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healthobs.compliance import Control, Outcome, ProbeContext, control
from reference_services._kit.controls import contents
from reference_services.phi import domain
from reference_services.phi.crypto import SealError
from reference_services.phi.store import Patient

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail
    from reference_services.phi.service import Service

_SEALED = (
    "a canary and every sampled record are stored unreadable, open under the key in use and are found by their "
    "identifiers, and none that the audit trail tells of is gone"
)
_DECLARED = "no view shows a field that it does not declare, nor repeats what a stored record has in one"
SAMPLE = 50
#: Shorter values occur in any file by chance.
SHORTEST_SEARCHED = 8
MAX_SEARCHED_BYTES = 64 * 1024 * 1024


def controls(service: Callable[[], Service]) -> tuple[Control, ...]:
    """Return the controls of the service that `service` returns once it exists."""
    return (
        control("H-312.a2iv", criterion=_SEALED)(
            lambda context: encryption_at_rest(service(), context.audit)
        ),
        control("H-502b", criterion=_DECLARED)(lambda context: minimum_necessary(service(), context)),
    )


def encryption_at_rest(service: Service, trail: AuditTrail | None) -> Outcome:
    """Seal a canary, sample stored records, search what is stored for what they say, and look for what is gone."""
    told = _told(trail)  # first: what the trail tells of was stored before
    with service.kit.reading() as connection:
        rows = service.store.raw(connection, SAMPLE)
        gone = sum(not service.store.exists(connection, patient_id) for patient_id in told)
    if gone:
        return Outcome("fail", f"{gone} records that the audit trail tells of are gone", gone)
    if _canary_is_readable(service):
        return Outcome("fail", "a canary record is stored readable")
    records, unopened = _opened(service, rows)
    if unopened:
        return Outcome("fail", f"{unopened} of {len(rows)} sampled records do not open as sealed", len(rows))
    with service.kit.reading() as connection:
        lost = sum(
            service.store.unindexed(connection, Patient(row[0], row[1], record))
            for row, record in zip(rows, records, strict=True)
        )
    if lost:
        return Outcome("fail", f"{lost} identifiers of sampled records find nothing", len(rows))
    stored = b"".join(_stored(service, rows))
    values = [value for record in records for value in _texts(record)]
    readable = sum(value.encode() in stored for value in values if len(value) >= SHORTEST_SEARCHED)
    if readable:
        return Outcome("fail", f"{readable} values are readable in what is stored", len(rows))
    return Outcome(
        "pass", f"canary and {len(rows)} sampled records unreadable in {len(stored)} stored bytes", len(rows)
    )


def _told(trail: AuditTrail | None) -> set[str]:
    """Return the newest records that the trail tells of, but for those whom nobody can name any more."""
    if trail is None:
        return set()
    entries = trail.read(action="patient.create", limit=SAMPLE).entries
    names = {entry["resource"]["id"] for entry in entries if entry["outcome"] == "ok"} - {None}
    subjects = trail.subjects
    found = names if subjects is None else {subjects.identifier(name) for name in names}
    return {name for name in found if name is not None}


def _opened(service: Service, rows: list[tuple[str, int, str, str]]) -> tuple[list[Mapping[str, Any]], int]:
    """Return the sampled records, and how many do not open."""
    records: list[Mapping[str, Any]] = []
    for patient_id, version, wrapped, sealed in rows:
        with contextlib.suppress(SealError):
            key = service.vault.unwrap(patient_id, wrapped)
            records.append(json.loads(service.vault.decrypt(key, patient_id, version, sealed)))
    return records, len(rows) - len(records)


def _canary_is_readable(service: Service) -> bool:
    """Store a record as any other, look at its row, and take it back."""
    marker, patient_id = f"canary-{uuid.uuid4()}", str(uuid.uuid4())
    record = {"last_name": marker, "identifiers": [{"system": "urn:oid:2.999", "value": marker}]}
    with service.kit.engine.connect() as connection, connection.begin() as transaction:
        service.store.create(connection, patient_id, record)
        stored = service.store.raw_row(connection, patient_id)
        transaction.rollback()
    return any(marker in text for text in stored)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _stored(service: Service, rows: list[tuple[str, int, str, str]]) -> Iterator[bytes]:
    for _, _, wrapped, sealed in rows:
        yield wrapped.encode()
        yield sealed.encode()
    database = service.kit.engine.url.database
    if service.kit.engine.dialect.name == "sqlite" and database:
        beside = (Path(f"{database}{suffix}") for suffix in ("", "-wal", "-journal"))
        yield from contents(beside, MAX_SEARCHED_BYTES)


def minimum_necessary(service: Service, context: ProbeContext) -> Outcome:
    """Project a record of markers and every sampled record through each view; look for what it does not declare."""
    today = context.clock.now().date()
    leaks = domain.undeclared_fields(today)
    if leaks:
        named = ", ".join(f"{view}: {' '.join(fields)}" for view, fields in sorted(leaks.items()))
        return Outcome("fail", f"views show undeclared fields ({named})", len(domain.POLICY))
    with service.kit.reading() as connection:
        rows = service.store.raw(connection, SAMPLE)
    records, _ = _opened(service, rows)
    showing = sum(_shows_more(view, record, today) for record in records for view in domain.POLICY.values())
    if showing:
        return Outcome(
            "fail", f"{showing} views of stored records repeat what they do not declare", len(rows)
        )
    return Outcome(
        "pass",
        f"{len(domain.POLICY)} views show only declared fields, of {len(records)} stored records too; "
        f"{service.projected} answers were views",
        len(domain.POLICY),
    )


def _shows_more(view: domain.View, record: Mapping[str, Any], today: date) -> bool:
    """Tell whether a declared field repeats a value of a field that the view does not declare."""
    shown = domain.project(view, "", 1, record, today)
    own = (view.name, domain.ICD_10_CM)
    values = [text for text in _texts(shown) if text not in own and not domain.is_code(text)]
    hidden = (_texts(value) for name, value in record.items() if name not in view.fields)
    return any(
        text in value
        for texts in hidden
        for text in texts
        for value in values
        if len(text) >= SHORTEST_SEARCHED
    )
