"""The audit trail: a Merkle log with signed checkpoints (RFC 9162, C2SP tlog-checkpoint) in SQLite.

Importing this package loads neither a database nor cryptography; `open_trail` does. Limits: see
`healthobs.audit.trail`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from healthobs.audit.draft import AuditDraft, annotate
from healthobs.audit.records import (
    Checkpoint,
    ConsistencyProof,
    InclusionProof,
    Page,
    Problem,
    Receipt,
    Verification,
)
from healthobs.clock import Clock

if TYPE_CHECKING:
    from healthobs.audit.outbox import Outbox
    from healthobs.audit.trail import AuditTrail
    from healthobs.redaction import Redactor

__all__ = [
    "AuditDraft",
    "AuditTrail",
    "Checkpoint",
    "ConsistencyProof",
    "InclusionProof",
    "Outbox",
    "Page",
    "Problem",
    "Receipt",
    "Verification",
    "annotate",
    "open_trail",
]


def open_trail(
    url: str,
    *,
    service: str,
    key_file: Path | None = None,
    clock: Clock | None = None,
    origin: str | None = None,
    redactor: Redactor | None = None,
    timeout_seconds: float = 10.0,
    spool_file: Path | None = None,
) -> AuditTrail:
    """Open the audit trail at `url`; see `healthobs.audit.opening.open_trail`.

    Example:
        >>> trail = open_trail("sqlite:///phi.audit.db", service="phi-service")
        >>> trail.verify().ok
        True
    """
    from healthobs.audit import opening  # keeps sqlite3 and cryptography out of `import healthobs`

    return opening.open_trail(
        url,
        service=service,
        key_file=key_file,
        clock=clock,
        origin=origin,
        redactor=redactor,
        timeout_seconds=timeout_seconds,
        spool_file=spool_file,
    )


def __getattr__(name: str) -> Any:
    """Load `AuditTrail` and `Outbox` when they are first asked for."""
    if name == "AuditTrail":
        from healthobs.audit.trail import AuditTrail

        return AuditTrail
    if name == "Outbox":
        from healthobs.audit.outbox import Outbox

        return Outbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
