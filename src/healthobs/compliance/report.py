"""The body of `GET /compliance/status`, and the digest that ties a piece of evidence to its run.

Limits: summary rows carry states, and what the set-up lacks where that leaves nothing to look at; evidence is for readers
who may see it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from typing import Any, NamedTuple

from healthobs.compliance.control import ACCEPTED, STATES, Control, Outcome, Result, State
from healthobs.compliance.documents import Signed

DISCLAIMER = "run-time evidence, not certification"


class Row(NamedTuple):
    """One control as it is reported: its state now, its last result, where that was recorded, who vouches for it."""

    control: Control
    state: State
    result: Result | None
    audit_index: int | None
    required: bool
    waiver: Signed | None
    attestation: Signed | None


def evidence_digest(control: Control, outcome: Outcome, observed_at: str) -> str:
    """Return the SHA-256 (hex) over the evidence in canonical JSON (RFC 8785).

    Example:
        >>> control = Control("S-1", "p", "company", "t", "c", "measure", lambda context: Outcome("pass", ""))
        >>> evidence_digest(control, Outcome("pass", "sum is 0"), "2026-11-23T07:30:00.000000Z")[:8]
        '924c5dc5'
    """
    # All names are ASCII and there are no floats, so sorted compact JSON is the canonical form.
    evidence = {
        "control": control.id,
        "criterion": control.criterion,
        "missing": list(outcome.missing),
        "n": outcome.n,
        "observed_at": observed_at,
        "state": outcome.state,
        "text": outcome.text,
    }
    canonical = json.dumps(evidence, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(canonical.encode("utf-8", "replace")).hexdigest()


def report(service: str, catalogue_version: str, rows: Iterable[Row], *, detail: bool) -> dict[str, Any]:
    """Return the body.

    Args:
        service: Name of the service.
        catalogue_version: Version of the library's controls.
        rows: One per control, in the order to show.
        detail: Include criterion, evidence, method, scope and audit index.
    """
    rows = list(rows)
    counts = dict.fromkeys(STATES, 0)
    for row in rows:
        counts[row.state] += 1
    return {
        "service": service,
        "catalogue_version": catalogue_version,
        "disclaimer": DISCLAIMER,
        "counts": counts,
        "controls": [_summary(row) | (_detail(row) if detail else {}) for row in rows],
    }


def gate_is_open(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the rows of a status let the gate open: something is required, and all of that is shown or waived."""
    required = [row for row in rows if row["required"]]
    return bool(required) and not gate_failures(required)


def gate_failures(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return which rows of a status keep the gate shut, by id, and why.

    Example:
        >>> row = {"id": "S-1", "required": True, "state": "unknown", "waived_until": None, "observed_at": None}
        >>> gate_failures([row, {**row, "id": "S-2", "state": "pass"}])
        {'S-1': 'unknown: nothing has observed it yet'}
    """
    return {
        row["id"]: f"{row['state']}: {_why(row)}"
        for row in rows
        if row["required"] and row["state"] not in ACCEPTED and not row["waived_until"]
    }


def _why(row: Mapping[str, Any]) -> str:
    evidence: Mapping[str, Any] = row.get("evidence") or {}
    if evidence.get("text"):
        return str(evidence["text"])
    if row.get("lacks"):
        return str(row["lacks"])
    if row["state"] == "unknown":
        return (
            "nothing has observed it yet"
            if row["observed_at"] is None
            else "what was seen is too old, or told nothing"
        )
    if row["observed_at"] is None:
        return "what vouched for it has run out"
    return "a part was not shown" if row["state"] == "partial" else "what was seen breaks it"


def _summary(row: Row) -> dict[str, Any]:
    control, result = row.control, row.result
    lacks: dict[str, str] = {}
    if result is not None and result.outcome.unset:
        lacks = {"lacks": result.outcome.text}
    return {
        "id": control.id,
        "cite": control.cite,
        "framework": control.framework,
        "title": control.title,
        "state": row.state,
        "observed_at": None if result is None else result.observed_at,
        "valid_for_s": control.valid_for_s,
        "required": row.required,
        "waived_until": None if row.waiver is None else row.waiver.document.expires,
        **lacks,
    }


def _detail(row: Row) -> dict[str, Any]:
    control = row.control
    return {
        "criterion": control.criterion,
        "evidence": _evidence(control, row.state, row.result),
        "method": control.method,
        "scope": control.scope,
        "audit_index": row.audit_index,
        "waiver": _vouched(row.waiver),
        "attestation": _vouched(row.attestation),
    }


def _vouched(signed: Signed | None) -> dict[str, str] | None:
    return None if signed is None else {"person": signed.person, **asdict(signed.document)}


def _evidence(control: Control, state: State, result: Result | None) -> dict[str, Any]:
    if result is None:
        observed = control.probe is not None
        text = "not run yet" if observed else "nothing observes it here, and nobody has attested it"
        return {"text": text, "n": None, "digest": None}
    outcome = result.outcome
    stale = state != outcome.state
    evidence: dict[str, Any] = {
        "text": f"stale; was {outcome.state}: {outcome.text}" if stale else outcome.text,
        "n": outcome.n,
        "digest": result.digest,
    }
    if outcome.missing:
        evidence["missing"] = list(outcome.missing)
    return evidence
