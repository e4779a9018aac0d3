"""The body of `GET /compliance/status`, and the digest that ties a piece of evidence to its run.

Limits: summary rows carry states only; evidence is for readers who may see it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from healthobs.compliance.control import STATES, Control, Outcome, Result, State

DISCLAIMER = "run-time evidence, not certification"
#: A control, its state now, its last result, and the index of the audit entry about its last change.
Row = tuple[Control, State, "Result | None", "int | None"]


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
    for _, state, _, _ in rows:
        counts[state] += 1
    return {
        "service": service,
        "catalogue_version": catalogue_version,
        "disclaimer": DISCLAIMER,
        "counts": counts,
        "controls": [_summary(row) | (_detail(row) if detail else {}) for row in rows],
    }


def _summary(row: Row) -> dict[str, Any]:
    control, state, result, _ = row
    return {
        "id": control.id,
        "cite": control.cite,
        "framework": control.framework,
        "title": control.title,
        "state": state,
        "observed_at": None if result is None else result.observed_at,
        "valid_for_s": control.valid_for_s,
    }


def _detail(row: Row) -> dict[str, Any]:
    control, state, result, audit_index = row
    return {
        "criterion": control.criterion,
        "evidence": _evidence(state, result),
        "method": control.method,
        "required": control.required,
        "scope": control.scope,
        "audit_index": audit_index,
    }


def _evidence(state: State, result: Result | None) -> dict[str, Any]:
    if result is None:
        return {"text": "not run yet", "n": None, "digest": None}
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
