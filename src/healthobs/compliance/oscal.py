"""Exports a compliance status as OSCAL ``assessment-results`` (NIST OSCAL 1.2), for tools that read that.

One observation per control, its state as a property in a namespace of ours; a finding only where a probe passed or
failed, because a finding's target is ``satisfied`` or ``not-satisfied`` and nothing else; attestations that count apart.
Not applicable, unknown, partial and attested are never findings, and a waived failure is not satisfied.

Limits: ids are derived from the content (RFC 9562 §5.5), so that one status has one export. The plan that OSCAL asks
for is a reference within the document: there is no plan document. Needs a status with evidence.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from healthobs.exceptions import ConfigurationError

OSCAL_VERSION = "1.2.1"
#: Namespace of our properties.
NS = "https://healthobs.example/ns/oscal"
_FINDINGS = {"pass": "satisfied", "fail": "not-satisfied"}
_METHODS = {"attestation": "INTERVIEW", "config": "EXAMINE", "sample": "EXAMINE"}


def assessment_results(status: Mapping[str, Any], *, published: str) -> dict[str, Any]:
    """Return the OSCAL document of a status.

    Args:
        status: Body of `GET /compliance/status` with evidence.
        published: When it was read (RFC 3339).

    Raises:
        ConfigurationError: The status is none, or has no evidence.
    """
    try:
        controls: Sequence[Mapping[str, Any]] = status["controls"]
        return {"assessment-results": _results(status, controls, published)}
    except (KeyError, TypeError, AttributeError):
        raise ConfigurationError(
            "this is no compliance status with evidence: ask /compliance/status with a token that has compliance:read"
        ) from None


def _results(
    status: Mapping[str, Any], controls: Sequence[Mapping[str, Any]], published: str
) -> dict[str, Any]:
    service: str = status["service"]
    seed = uuid.uuid5(uuid.NAMESPACE_URL, f"{NS}/{service}/{published}")
    plan = _id(seed, "plan")
    observations = [_observation(seed, row, published) for row in controls]
    findings = [_finding(seed, row) for row in controls if row["state"] in _FINDINGS]
    attested = [row for row in controls if row["state"] == "attested"]
    result: dict[str, Any] = {
        "uuid": _id(seed, "result"),
        "title": f"Controls of {service}",
        "description": status["disclaimer"],
        "start": min([row["observed_at"] for row in controls if row["observed_at"]], default=published),
        "end": published,
        "reviewed-controls": {
            "control-selections": [
                {"include-controls": [{"control-id": _token(row["id"])} for row in controls]}
            ]
        },
        "observations": observations,
    }
    if findings:
        result["findings"] = findings
    if attested:
        result["attestations"] = [_attestation(row) for row in attested]
    return {
        "uuid": _id(seed, "document"),
        "metadata": {
            "title": f"Run-time compliance evidence of {service}",
            "last-modified": published,
            "version": status["catalogue_version"],
            "oscal-version": OSCAL_VERSION,
        },
        "import-ap": {"href": f"#{plan}"},
        "results": [result],
        "back-matter": {
            "resources": [
                {
                    "uuid": plan,
                    "title": "Assessment plan",
                    "description": "The controls of the catalogue are probed on a schedule while the service runs.",
                }
            ]
        },
    }


def _id(seed: uuid.UUID, name: str) -> str:
    """Return an id that the same content always has; OSCAL asks for version 4 or 5."""
    return str(uuid.uuid5(seed, name))


def _token(name: str) -> str:
    return name.lower()


def _prop(name: str, value: object) -> dict[str, str]:
    return {"name": name, "ns": NS, "value": str(value)}


def _observation(seed: uuid.UUID, row: Mapping[str, Any], published: str) -> dict[str, Any]:
    evidence: Mapping[str, Any] = row["evidence"]
    props = [_prop("control", row["id"]), _prop("state", row["state"]), _prop("required", row["required"])]
    known = {
        "citation": row["cite"],
        "digest": evidence["digest"],
        "audit-index": row["audit_index"],
        "waived-until": row["waived_until"],
    }
    props += [_prop(name, value) for name, value in known.items() if value is not None]
    props += [_prop("missing", part) for part in evidence.get("missing", ())]
    return {
        "uuid": _id(seed, f"observation {row['id']}"),
        "title": row["title"],
        "description": f"{row['criterion']}: {evidence['text']}",
        "props": props,
        "methods": [_METHODS.get(row["method"], "TEST")],
        "types": ["control-objective"],
        "collected": row["observed_at"] or published,
    }


def _finding(seed: uuid.UUID, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uuid": _id(seed, f"finding {row['id']}"),
        "title": row["title"],
        "description": row["evidence"]["text"],
        "target": {
            "type": "objective-id",
            "target-id": _token(row["id"]),
            "status": {"state": _FINDINGS[row["state"]]},
        },
        "related-observations": [{"observation-uuid": _id(seed, f"observation {row['id']}")}],
    }


def _attestation(row: Mapping[str, Any]) -> dict[str, Any]:
    said: Mapping[str, str] = row["attestation"]
    return {
        "parts": [
            {
                "name": "attestation",
                "ns": NS,
                "title": row["title"],
                "props": [
                    _prop("control", row["id"]),
                    _prop("person", said["person"]),
                    _prop("issued", said["issued"]),
                    _prop("expires", said["expires"]),
                    _prop("document-sha256", said["document_sha256"]),
                ],
                "prose": said["statement"],
            }
        ]
    }
