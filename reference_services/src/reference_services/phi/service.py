"""The views of phi-service. Each access, refused ones too, is audited before its answer leaves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Response, request

from healthobs.audit import annotate
from healthobs.exceptions import ClientError
from reference_services._kit import Kit, Principal, Problem, invalid, unavailable
from reference_services.phi import domain
from reference_services.phi.crypto import Vault
from reference_services.phi.domain import View
from reference_services.phi.models import PatientRecord, PatientView, Search, SearchResult
from reference_services.phi.store import IdentifierShared, IdentifierTaken, Patient, Store

PURPOSE = "Purpose-Of-Use"
REASON = "Access-Reason"
MAX_REASON = 200
#: What a generator of test data can prove about a record; names and dates prove nothing.
PROVABLE = ("identifiers", "telecom", "address")


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.projected = 0
        self.operations = kit.counter(
            "encryption_operations_total", "Cryptographic operations.",
            op=("wrap", "unwrap", "encrypt", "decrypt"), result=("ok", "failed"),
        )  # fmt: skip
        self.accesses = kit.counter(
            "records_accessed_total", "Accesses to records.",
            resource=("patient",), purpose=(*domain.PURPOSES, "other"), outcome=("ok", "denied", "failed"),
        )  # fmt: skip
        self.conflicts = kit.counter("version_conflicts_total", "Updates refused as stale.")
        index_key = kit.secret("PHI_INDEX_KEY_FILE", "phi.index.key")
        self.vault = Vault(kit.secret("PHI_KEK_FILE", "phi.kek"), index_key, self._count)
        self.store = Store(self.vault)
        self.store.reindex(kit.engine)

    def admit_new(self, body: PatientRecord, principal: Principal) -> None:
        """Refuse a new record that may not be stored, before a transaction is open."""
        with self.accessing(principal, last=False) as view:
            _require(view.may_write)
            self._admit(body)

    def create(self, body: PatientRecord, principal: Principal) -> tuple[PatientView, int, dict[str, str]]:
        """Store a new record."""
        with self.accessing(principal) as view:
            _require(view.may_write)
            patient_id = str(uuid.uuid4())
            with self._unique(), self.kit.transaction() as connection:
                patient = self.store.create(connection, patient_id, body.model_dump(mode="json"))
                annotate(subject=patient_id, resource_id=patient_id)
            headers = {"Location": f"/patients/{patient_id}", "ETag": domain.etag(1)}
            return self.shown(view, patient), 201, headers

    def read(
        self, patient_id: uuid.UUID, principal: Principal
    ) -> tuple[PatientView, int, dict[str, str]] | Response:
        """Show one record; `HEAD` tells only whether it exists, for any purpose."""
        key = str(patient_id)
        if request.method == "HEAD":
            return self._exists(key)
        with self.accessing(principal) as view, self.kit.reading() as connection:
            patient = self.store.read(connection, key)
            if patient is None:
                raise _unknown()
            return self.shown(view, patient), 200, {"ETag": domain.etag(patient.version)}

    def admit_change(self, body: PatientRecord, principal: Principal) -> None:
        """Refuse a change that may not be made, before a transaction is open."""
        with self.accessing(principal, last=False) as view:
            _require(view.may_write)
            self._expected_version()
            self._admit(body)

    def update(
        self, patient_id: uuid.UUID, body: PatientRecord, principal: Principal
    ) -> tuple[PatientView, int, dict[str, str]]:
        """Replace one record, if the caller has seen its current version."""
        key = str(patient_id)
        with self.accessing(principal) as view:
            _require(view.may_write)
            expected, record = self._expected_version(), body.model_dump(mode="json")
            with self._unique(), self.kit.transaction() as connection:
                if not self.store.exists(connection, key):
                    raise _unknown()
                patient = self.store.update(connection, key, expected, record)
                if patient is None:
                    self.conflicts.inc()
                    raise Problem(
                        412, "version_stale", "The record has changed; read it again and repeat the change."
                    )
            return self.shown(view, patient), 200, {"ETag": domain.etag(patient.version)}

    def search(self, body: Search, principal: Principal) -> SearchResult:
        """Find a record by one of its identifiers."""
        with self.accessing(principal) as view, self.kit.reading() as connection:
            _require(view.may_search)
            try:
                patient = self.store.find(connection, body.identifier.system, body.identifier.value)
            except (
                IdentifierShared
            ):  # which of them is meant is for who asks to say: a guess may be another person
                errors = [("/identifier", "shared")]
                title = "Several records have this identifier; search by another one."
                raise Problem(409, "identifier_shared", title, errors) from None
            if patient is None:
                return SearchResult(total=0, patients=[])
            annotate(subject=patient.id, resource_id=patient.id)
            return SearchResult(total=1, patients=[self.shown(view, patient)])

    @contextmanager
    def accessing(self, principal: Principal, *, last: bool = True) -> Iterator[View]:
        """Give the caller's view, and count how the access ends.

        Args:
            principal: The caller.
            last: Whether the access is over when this is left; a refusal always ends it.

        Raises:
            Problem: Role and purpose of use allow nothing.
        """
        stated = request.headers.get(PURPOSE, "")
        purpose = stated if stated in domain.PURPOSES else "other"
        if stated in domain.PURPOSES:
            annotate(purpose=stated)
        if purpose in domain.EMERGENCIES and request.headers.get(REASON):
            annotate(reason=request.headers[REASON][:MAX_REASON])
        outcome = "failed"
        try:
            view = domain.view_for(principal.roles, purpose)
            if view is None:
                raise _forbidden()
            annotate(details={"view": view.name, "withheld": ",".join(view.withheld)})
            yield view
            outcome = "ok" if last else ""
        except Problem as problem:
            outcome = "denied" if problem.status == 403 else "failed"
            raise
        finally:
            if outcome:
                self.accesses.labels("patient", purpose, outcome).inc()

    def shown(self, view: View, patient: Patient) -> PatientView:
        """Return the one form in which a record leaves this service: its projection."""
        self.projected += 1
        today = self.kit.clock.now().date()
        projected = domain.project(view, patient.id, patient.version, patient.record, today)
        return PatientView.model_validate(projected, strict=False)

    def check_birth_date(self, body: PatientRecord) -> None:
        """Refuse a birth date in the future; a day's grace for time zones ahead of UTC."""
        if (body.date_of_birth - self.kit.clock.now().date()).days > 1:
            raise invalid("The birth date lies in the future.", "/date_of_birth", "in_the_future")

    def refuse_unproven(self, record: Mapping[str, Any]) -> None:
        """Outside production take only what synthetic-phi-service proves to be synthetic.

        Raises:
            Problem: 422 not proven, 503 nobody can tell.
        """
        if self.kit.settings.observability.environment == "production":
            return
        asked = {name: record[name] for name in PROVABLE if record.get(name)}
        try:
            answer = self.kit.client("synthetic-phi-service").request(
                "POST", "/synthetic-patient/verify", json={"patient": asked}
            )
            verdict = answer.json() if answer.status == 200 else None
        except ClientError:
            verdict = None
        if verdict is None:
            raise unavailable("verifier_unavailable", "synthetic-phi-service does not answer; retry.")
        proven = {item.get("member") for item in verdict["members"] if item.get("verdict") == "proven"}
        unproven = [name for name in asked if name not in proven]
        if unproven:
            raise Problem(
                422,
                "not_proven_synthetic",
                "Outside production only provably synthetic records are taken.",
                [(f"/{name}", "not_proven_synthetic") for name in unproven],
            )

    def _exists(self, patient_id: str) -> Response:
        annotate(details={"view": "existence"})
        with self.kit.reading() as connection:
            found = self.store.exists(connection, patient_id)
        self.accesses.labels("patient", "other", "ok" if found else "failed").inc()
        if not found:
            raise _unknown()
        return Response(status=200, content_type="application/json")

    def _admit(self, body: PatientRecord) -> None:
        self.check_birth_date(body)
        self.refuse_unproven(body.model_dump(mode="json"))

    def _expected_version(self) -> int:
        stated = request.headers.get("If-Match")
        if stated is None:
            raise Problem(428, "if_match_missing", "Send the record's ETag as If-Match.")
        version = domain.version_of(stated)
        if version is None:
            self.conflicts.inc()
            raise Problem(412, "version_stale", "If-Match names no version of this record; read it again.")
        return version

    @contextmanager
    def _unique(self) -> Iterator[None]:
        try:
            yield
        except IdentifierTaken:
            errors = [("/identifiers", "taken")]
            raise Problem(409, "identifier_taken", "Another record has this identifier.", errors) from None

    def _count(self, operation: str, result: str) -> None:
        self.operations.labels(operation, result).inc()


def _require(allowed: bool) -> None:
    if not allowed:
        raise _forbidden()


def _forbidden() -> Problem:
    return Problem(
        403, "purpose_not_permitted", "The caller's role does not permit this for the stated purpose of use."
    )


def _unknown() -> Problem:
    return Problem(404, "patient_unknown", "There is no such patient.")
