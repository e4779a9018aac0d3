"""The description of the routes that every service has because healthobs mounts them, and of problem details.

`GET /` and `GET /openapi.json` are routes of the kit itself. Limits: the aliases (`/livez`, `/readyz`,
`/startupz`) answer as well and are not described.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import pydantic

from healthobs.endpoints import MAX_LIMIT
from reference_services._kit.validation import Model

Mode = Literal["validation", "serialization"]
Key = tuple[type[pydantic.BaseModel], Mode]
SERIALIZATION: Mode = "serialization"
#: What healthobs mounts beside the service's own routes.
OPERATIONAL_LINKS: Mapping[str, str] = {
    "GET /health": "Liveness",
    "GET /readiness": "Readiness",
    "GET /metrics": "Metrics for Prometheus",
    "GET /compliance/status": "State of every control",
    "GET /audit/trail": "Audit entries (scope audit:read)",
}


class ProblemError(Model):
    """One thing that is wrong with a request."""

    pointer: str
    code: str


class ProblemDetails(pydantic.BaseModel):
    """RFC 9457 problem details."""

    model_config = pydantic.ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    instance: str | None = None
    trace_id: str | None = None
    errors: list[ProblemError] | None = None


class Index(Model):
    """Answer of `GET /`."""

    service: str
    version: str
    description: str
    links: dict[str, str]


class Description(pydantic.BaseModel):
    """Answer of `GET /openapi.json`: an OpenAPI 3.1 document."""

    model_config = pydantic.ConfigDict(extra="allow")

    openapi: Literal["3.1.0"]
    info: dict[str, Any]
    paths: dict[str, Any]


class Liveness(Model):
    """Answer of `GET /health`."""

    status: Literal["healthy", "unhealthy"]
    service: str
    version: str
    timestamp: str
    checks: dict[str, str] | None = None


class Readiness(Model):
    """Answer of `GET /readiness`."""

    ready: bool
    checks: dict[str, str]


class ControlState(pydantic.BaseModel):
    """One control; with a token that carries compliance:read also what its state rests on."""

    model_config = pydantic.ConfigDict(extra="allow")

    id: str
    cite: str
    framework: str
    title: str
    state: Literal["pass", "fail", "partial", "not-applicable", "unknown", "attested"]
    observed_at: str | None
    valid_for_s: float


class Controls(Model):
    """Answer of `GET /compliance/status`."""

    service: str
    catalogue_version: str
    disclaimer: str
    counts: dict[str, int]
    controls: list[ControlState]


class AuditEntry(pydantic.BaseModel):
    """One audit entry."""

    model_config = pydantic.ConfigDict(extra="allow")

    index: int
    timestamp: str
    action: str
    user: str | None
    outcome: str
    subject: str | None
    resource_type: str | None
    resource_id: str | None
    transaction_id: str | None
    purpose: str | None
    reason: str | None
    classification: str | None
    details: dict[str, str | int | bool]
    trace_id: str | None
    request_id: str | None
    hash: str


class Checkpoint(Model):
    """What the whole trail was when it was read: its size and the root of its tree, in base64."""

    origin: str
    size: int
    root: str


class AuditTrail(Model):
    """Answer of `GET /audit/trail`."""

    total_entries: int
    retention_days: int
    checkpoint: Checkpoint
    recent_entries: list[AuditEntry]
    next_cursor: str | None


MODELS: tuple[type[pydantic.BaseModel], ...] = (ProblemDetails, Liveness, Readiness, Controls, AuditTrail)
_DIGITS = {"type": "integer", "minimum": 0, "maximum": 10**18 - 1}
_MOMENT = {"type": "string", "format": "date-time"}
_TRAIL_QUERY: Mapping[str, Mapping[str, Any]] = {
    "actor": {"type": "string"},
    "action": {"type": "string"},
    "subject": {"type": "string"},
    "transaction_id": {"type": "string"},
    "trace_id": {"type": "string"},
    "start_date": _MOMENT,
    "end_date": _MOMENT,
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 100},
    "cursor": _DIGITS,
}


def paths(refs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the path items.

    Args:
        refs: The reference to the schema of each of `MODELS`.
    """
    problem = {"application/problem+json": {"schema": refs[ProblemDetails, SERIALIZATION]}}
    live, ready, controls, trail = (
        {"application/json": {"schema": refs[model, SERIALIZATION]}}
        for model in (Liveness, Readiness, Controls, AuditTrail)
    )
    text = {"schema": {"type": "string"}}
    return {
        "/health": _get("Liveness", {200: live, 503: live}),
        "/readiness": _get("Readiness", {200: ready, 503: ready}),
        "/metrics": _get("Metrics", {200: {"text/plain": text, "application/openmetrics-text": text}}),
        "/compliance/status": _get(
            "Controls",
            {200: controls, 409: controls, 401: problem, 403: problem, 422: problem, 503: problem},
            description="409 when asked with `gate=1` and a required control is not shown. Evidence needs the "
            "scope `compliance:read`.",
            parameters=[_in_query("gate", {"type": "string", "enum": ["0", "1"]})],
            security=[{}, {"bearer": []}],
        ),
        "/audit/trail": _get(
            "Audit entries",
            {200: trail, 401: problem, 403: problem, 422: problem, 503: problem},
            description="Needs the scope `audit:read`; reading is an entry of its own.",
            parameters=[_in_query(name, schema) for name, schema in _TRAIL_QUERY.items()],
            security=[{"bearer": []}],
        ),
    }


def _in_query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": dict(schema)}


def _get(summary: str, content: Mapping[int, Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    responses = {
        str(status): {"description": _what(status), "content": dict(media)}
        for status, media in content.items()
    }
    operation_id = re.sub(r"\W+", "_", summary.lower()).strip("_")
    return {
        "get": {
            "summary": summary,
            "operationId": operation_id,
            **more,
            "responses": dict(sorted(responses.items())),
        }
    }


def _what(status: int) -> str:
    return "Success" if status < 400 else "Refused"
