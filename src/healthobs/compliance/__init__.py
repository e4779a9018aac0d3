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
    Attestation,
    Call,
    Control,
    Outcome,
    Probe,
    ProbeContext,
    Reply,
    Result,
    Route,
    State,
)
from healthobs.compliance.engine import CATALOGUE_VERSION, ControlEngine
from healthobs.compliance.selfcall import self_caller

__all__ = [
    "CANARY_ACTION",
    "CANARY_SUBJECT",
    "CATALOGUE_VERSION",
    "STATES",
    "Attestation",
    "Call",
    "Control",
    "ControlEngine",
    "Outcome",
    "Probe",
    "ProbeContext",
    "Reply",
    "Result",
    "Route",
    "State",
    "library_controls",
    "self_caller",
]
