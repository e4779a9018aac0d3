"""The routes of phi-service."""

from __future__ import annotations

from flask import Flask

from reference_services._kit import Kit, ServiceInfo, application
from reference_services._kit.routes import Header
from reference_services.phi import domain, service
from reference_services.phi.controls import controls
from reference_services.phi.models import PatientRecord, PatientView, Search, SearchResult
from reference_services.phi.store import METADATA, STEPS, VERSION

INFO = ServiceInfo(
    name="phi-service",
    title="Protected health information service",
    version="0.1.0",
    prefix="phi",
    port=8083,
    frameworks=("hipaa", "hitech", "gdpr"),
    description="Keeps patients' records encrypted and shows of them what role and purpose of use allow.",
    conf="R",
    break_glass=True,
)
PURPOSE = Header(
    service.PURPOSE,
    "Why the record is wanted (HL7 v3 PurposeOfUse).",
    {"enum": [*domain.PURPOSES], "type": "string"},
)
REASON = Header(
    service.REASON,
    "Why, in an emergency (BTG, ETREAT); for the audit trail.",
    {"type": "string"},
    required=False,
)
IF_MATCH = Header(
    "If-Match", "ETag of the version to replace.", {"type": "string", "pattern": '^(W/)?"[1-9][0-9]{0,8}"$'}
)


@application(INFO, METADATA, service.Service, controls, version=VERSION, steps=STEPS)
def create_app(kit: Kit, views: service.Service) -> Flask:
    """Add the routes."""
    kit.post(
        "/patients", body=PatientRecord, returns={201: PatientView}, scope="patient:write", audit="patient.create",
        resource_type="patient", idempotent=True, before=views.admit_new, headers=(PURPOSE, REASON),
        summary="Store a record",
    )(views.create)  # fmt: skip
    kit.get(
        "/patients/<uuid:patient_id>", returns={200: PatientView}, scope="patient:read", audit="patient.read",
        resource_type="patient", person=True, headers=(PURPOSE, REASON), summary="Show a record",
    )(views.read)  # fmt: skip
    kit.put(
        "/patients/<uuid:patient_id>", body=PatientRecord, returns={200: PatientView}, scope="patient:write",
        audit="patient.update", resource_type="patient", person=True, before=views.admit_change, headers=(PURPOSE, REASON, IF_MATCH),
        problems=(409, 412, 428), summary="Replace a record (If-Match)",
    )(views.update)  # fmt: skip
    kit.post(
        "/patients/search", body=Search, returns={200: SearchResult}, scope="patient:read", audit="patient.search",
        resource_type="patient", headers=(PURPOSE, REASON), problems=(409,), summary="Find a record by identifier",
    )(views.search)  # fmt: skip
    return kit.finish()
