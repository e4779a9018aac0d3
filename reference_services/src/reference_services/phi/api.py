"""The routes of phi-service. Each access, refused ones too, is audited before its answer leaves."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from healthobs import Observability
from healthobs.audit import annotate
from healthobs.exceptions import ClientError
from reference_services._kit import Kit, Principal, Problem, ServiceInfo, ServiceSettings
from reference_services._kit.idempotency import load_secret
from reference_services._kit.routes import Header
from reference_services.phi import domain
from reference_services.phi.controls import controls
from reference_services.phi.crypto import Vault
from reference_services.phi.domain import View
from reference_services.phi.models import PatientRecord, PatientView, Search, SearchResult
from reference_services.phi.store import METADATA, IdentifierTaken, Patient, Store

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

INFO = ServiceInfo(
    name="phi-service",
    title="Protected health information service",
    version="0.1.0",
    prefix="phi",
    port=8083,
    frameworks=("hipaa", "hitech", "gdpr"),
    description="Keeps patients' records encrypted and shows of them what role and purpose of use allow.",
    phi=True,
    conf="R",
)
PURPOSE_HEADER = "Purpose-Of-Use"
PURPOSE = Header(
    PURPOSE_HEADER,
    "Why the record is wanted (HL7 v3 PurposeOfUse).",
    {"enum": [*domain.PURPOSES], "type": "string"},
)
IF_MATCH = Header(
    "If-Match", "ETag of the version to replace.", {"type": "string", "pattern": '^(W/)?"[1-9][0-9]{0,8}"$'}
)
#: What a generator of test data can prove about a record; names and dates prove nothing.
PROVABLE = ("identifiers", "telecom", "address")


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        metrics, files = kit.obs.metrics, kit.settings.file
        self.kit = kit
        self.projected = 0
        self.operations = metrics.counter(
            "phi_encryption_operations_total", "Cryptographic operations.", ("op", "result")
        )
        self.accesses = metrics.counter(
            "phi_records_accessed_total", "Accesses to records.", ("resource", "purpose", "outcome")
        )
        self.conflicts = metrics.counter("phi_version_conflicts_total", "Updates refused as stale.")
        operations = ("wrap", "unwrap", "encrypt", "decrypt")
        self.operations.seed(*((op, result) for op in operations for result in ("ok", "failed")))
        purposes = (*domain.PURPOSES, "other")
        self.accesses.seed(*(("patient", p, o) for p in purposes for o in ("ok", "denied", "failed")))
        self.key_path = files("PHI_KEK_FILE", "phi.kek")
        self.vault = Vault(
            load_secret(self.key_path), load_secret(files("PHI_INDEX_KEY_FILE", "phi.index.key")), self._count
        )
        self.store = Store(self.vault)

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
            annotate(subject=patient_id, resource_id=patient_id)
            with self._unique(), self.kit.transaction() as connection:
                patient = self.store.create(connection, patient_id, body.model_dump(mode="json"))
            headers = {"Location": f"/patients/{patient_id}", "ETag": domain.etag(1)}
            return self.shown(view, patient), 201, headers

    def read(
        self, patient_id: uuid.UUID, principal: Principal
    ) -> tuple[PatientView, int, dict[str, str]] | Response:
        """Show one record; `HEAD` tells only whether it exists, for any purpose."""
        key = str(patient_id)
        annotate(subject=key, resource_id=key)
        if request.method == "HEAD":
            return self._exists(key)
        with self.accessing(principal) as view, self.kit.reading() as connection:
            patient = self.store.read(connection, key)
            if patient is None:
                raise Problem(404, "patient_unknown", "There is no such patient.")
            return self.shown(view, patient), 200, {"ETag": domain.etag(patient.version)}

    def admit_change(self, patient_id: uuid.UUID, body: PatientRecord, principal: Principal) -> None:
        """Refuse a change that may not be made, before a transaction is open."""
        annotate(subject=str(patient_id), resource_id=str(patient_id))
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
                    raise Problem(404, "patient_unknown", "There is no such patient.")
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
            patient = self.store.find(connection, body.identifier.system, body.identifier.value)
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
        stated = request.headers.get(PURPOSE_HEADER, "")
        purpose = stated if stated in domain.PURPOSES else "other"
        annotate(purpose=purpose)
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
            raise Problem(
                422,
                "invalid_request",
                "The birth date lies in the future.",
                [("/date_of_birth", "in_the_future")],
            )

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
            raise Problem(
                503,
                "verifier_unavailable",
                "synthetic-phi-service does not answer; retry.",
                headers={"Retry-After": "1"},
            )
        proven = {item.get("member") for item in verdict["members"] if item.get("verdict") == "proven"}
        unproven = [name for name in asked if name not in proven]
        if unproven:
            raise Problem(
                422,
                "not_proven_synthetic",
                "Outside production only provably synthetic records are taken.",
                [(f"/{name}", "not_proven_synthetic") for name in unproven],
            )

    def key_is_private(self) -> bool:
        """Tell whether only the owner can read the key file, and it still holds the key in use."""
        private = not self.key_path.stat().st_mode & 0o077
        return private and Vault(load_secret(self.key_path), b"", self._count).kek_id == self.vault.kek_id

    def _exists(self, patient_id: str) -> Response:
        annotate(details={"view": "existence"})
        with self.kit.reading() as connection:
            found = self.store.exists(connection, patient_id)
        self.accesses.labels("patient", "other", "ok" if found else "failed").inc()
        if not found:
            raise Problem(404, "patient_unknown", "There is no such patient.")
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
            raise Problem(
                409, "identifier_taken", "Another record has this identifier.", [("/identifiers", "taken")]
            ) from None

    def _count(self, operation: str, result: str) -> None:
        self.operations.labels(operation, result).inc()


def _require(allowed: bool) -> None:
    if not allowed:
        raise _forbidden()


def _forbidden() -> Problem:
    return Problem(
        403, "purpose_not_permitted", "The caller's role does not permit this for the stated purpose of use."
    )


def create_app(
    settings: ServiceSettings | None = None,
    *,
    obs: Observability | None = None,
    transport: Mapping[str, WSGIApplication] | None = None,
) -> Flask:
    """Build the service."""
    kit = Kit(INFO, settings, obs=obs, transport=transport, controls=controls(lambda: service))
    kit.migrate(METADATA)
    service = Service(kit)
    kit.app.extensions[INFO.name] = service
    kit.post(
        "/patients", body=PatientRecord, returns={201: PatientView}, scope="patient:write", audit="patient.create",
        resource_type="patient", idempotent=True, before=service.admit_new, headers=(PURPOSE,),
        summary="Store a record",
    )(service.create)  # fmt: skip
    kit.get(
        "/patients/<uuid:patient_id>", returns={200: PatientView}, scope="patient:read", audit="patient.read",
        resource_type="patient", headers=(PURPOSE,), summary="Show a record",
    )(service.read)  # fmt: skip
    kit.put(
        "/patients/<uuid:patient_id>", body=PatientRecord, returns={200: PatientView}, scope="patient:write",
        audit="patient.update", resource_type="patient", before=service.admit_change, headers=(PURPOSE, IF_MATCH),
        problems=(409, 412, 428), summary="Replace a record (If-Match)",
    )(service.update)  # fmt: skip
    kit.post(
        "/patients/search", body=Search, returns={200: SearchResult}, scope="patient:read", audit="patient.search",
        resource_type="patient", headers=(PURPOSE,), summary="Find a record by identifier",
    )(service.search)  # fmt: skip
    return kit.finish(checks={"encryption_key": service.key_is_private})
