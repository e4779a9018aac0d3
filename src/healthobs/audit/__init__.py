"""The audit trail: a Merkle log with signed checkpoints (RFC 9162, C2SP tlog-checkpoint) in SQLite.

Importing this package loads neither a database nor cryptography; `open_trail` does. Limits: see
`healthobs.audit.trail`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from healthobs.audit.draft import AuditDraft, annotate

if TYPE_CHECKING:
    from healthobs.audit.opening import open_trail
    from healthobs.audit.outbox import Outbox
    from healthobs.audit.records import (
        Checkpoint,
        ConsistencyProof,
        InclusionProof,
        Page,
        Problem,
        Receipt,
        Verification,
    )
    from healthobs.audit.trail import AuditTrail

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


#: What `import healthobs` need not pay for, and the module that has it.
_LATER = {"AuditTrail": "trail", "Outbox": "outbox", "open_trail": "opening"} | dict.fromkeys(
    ("Checkpoint", "ConsistencyProof", "InclusionProof", "Page", "Problem", "Receipt", "Verification"),
    "records",
)


def __getattr__(name: str) -> Any:
    """Load a name of `_LATER` when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
