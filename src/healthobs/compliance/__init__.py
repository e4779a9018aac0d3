"""Compliance that is measured: controls with probes that can fail, evidence that goes stale, a gate.

Basis: 45 CFR 164.308(a)(8) (evaluation), PCI DSS 4.0 requirement 10.4 and 11. Limits: run-time evidence, not
certification; see `healthobs.compliance.engine`.
"""

from __future__ import annotations

from healthobs.compliance.catalogue import library_controls
from healthobs.compliance.control import (
    CANARY_ACTION,
    CANARY_SUBJECT,
    STATES,
    Call,
    Control,
    Outcome,
    Probe,
    ProbeContext,
    Rehearsal,
    Reply,
    Result,
    Route,
    State,
)
from healthobs.compliance.documents import Document, Documents, Signed
from healthobs.compliance.engine import CATALOGUE_VERSION, ControlEngine
from healthobs.compliance.requirements import REQUIREMENTS, SCOPES, Requirement, control
from healthobs.compliance.selfcall import self_caller

__all__ = [
    "CANARY_ACTION",
    "CANARY_SUBJECT",
    "CATALOGUE_VERSION",
    "REQUIREMENTS",
    "SCOPES",
    "STATES",
    "Call",
    "Control",
    "ControlEngine",
    "Document",
    "Documents",
    "Outcome",
    "Probe",
    "ProbeContext",
    "Rehearsal",
    "Reply",
    "Requirement",
    "Result",
    "Route",
    "Signed",
    "State",
    "control",
    "library_controls",
    "self_caller",
]
