"""Observability and compliance for healthcare services in Python.

Decorate functions, install one `Observability`, and each call leaves what its decorators ask for: a span,
metric samples, a JSON log line, an audit entry; none of them with protected health information in it.

Importing this package imports no framework, no exporter and no cryptography, and reads no environment.
"""

from __future__ import annotations

from healthobs._runtime import install, use
from healthobs.background import carry, job
from healthobs.config import Settings
from healthobs.decorators import audited, classified, counted, in_flight, logged, observe, timed, traced
from healthobs.exceptions import (
    AuditError,
    AuditTamperedError,
    AuditWriteError,
    ClientError,
    ConfigurationError,
    HealthobsError,
    HealthobsWarning,
    InstrumentationError,
    LabelError,
    MetricNameError,
    RedactionError,
    TokenError,
)
from healthobs.health import Degraded, health_check, readiness_check
from healthobs.observability import Observability, current
from healthobs.redaction import Phi
from healthobs.tenancy import set_tenant, use_tenant

__all__ = [
    "AuditError",
    "AuditTamperedError",
    "AuditWriteError",
    "ClientError",
    "ConfigurationError",
    "Degraded",
    "HealthobsError",
    "HealthobsWarning",
    "InstrumentationError",
    "LabelError",
    "MetricNameError",
    "Observability",
    "Phi",
    "RedactionError",
    "Settings",
    "TokenError",
    "audited",
    "carry",
    "classified",
    "counted",
    "current",
    "health_check",
    "in_flight",
    "install",
    "job",
    "logged",
    "observe",
    "readiness_check",
    "set_tenant",
    "timed",
    "traced",
    "use",
    "use_tenant",
]
