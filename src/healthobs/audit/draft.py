"""What an audited call tells about itself while it runs: the draft, and `annotate` to fill it.

The decorator makes the draft, the code it wraps annotates it, and the trail turns it into an entry. Nothing
here imports a database or cryptography, so domain code may import it freely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, cast

from healthobs import _runtime
from healthobs.exceptions import InstrumentationError
from healthobs.redaction.phi import is_purpose

if TYPE_CHECKING:
    from healthobs.audit.records import Receipt

#: What a value in `details` may be. Floats are left out: RFC 8785 can write them, people cannot read them back.
DetailValue = str | int | bool
#: HL7 v3 PurposeOfUse codes of care that must not wait for the store: break the glass, emergency treatment.
CARE = ("BTG", "ETREAT")


class Placed(Protocol):
    """The row of an outbox that has the entry."""

    def committed(self) -> bool:
        """Return whether the transaction that it was written in was committed."""
        ...

    def settle(self) -> Receipt | None:
        """Put it into the log; None when it waits for that beside its effect."""
        ...


@dataclass(slots=True)
class AuditDraft:
    """An entry in the making.

    Args:
        action: What was done, as ``noun.verb`` (``patient.read``).
        outcome: ``ok``, ``denied``, ``failed`` or ``error``.
        actor: Opaque id of who did it; never a name, which no pattern would find.
        actor_kind: What the actor is (``client``, ``user``, ``system``).
        subject: Opaque token of the person it was about; never a medical record number.
        resource_type: Kind of the thing it touched.
        resource_id: Opaque id of that thing; in this and other ids, what a pattern finds is masked.
        purpose: Why, as a v3 PurposeOfUse code (``TREAT``).
        classification: v3 Confidentiality code of what was touched (``R``).
        reason: Free text, redacted; for break-glass and refusals.
        details: Further facts, redacted; values are text, whole numbers or booleans.

    Example:
        >>> AuditDraft("patient.read", actor="client-1").as_mapping()["actor"]
        'client-1'
    """

    action: str
    outcome: str = "ok"
    actor: str | None = None
    actor_kind: str | None = None
    subject: str | None = None
    resource_type: str | None = None
    resource_id: str | None = None
    purpose: str | None = None
    classification: str | None = None
    reason: str | None = None
    details: dict[str, DetailValue] = field(default_factory=dict[str, DetailValue])
    #: Where the entry was written in a transaction of the call's own (`Outbox.record`).
    placed: Placed | None = field(default=None, init=False, repr=False, compare=False)

    def as_mapping(self) -> dict[str, object]:
        """Return the fields by name, as `AuditTrail.append` takes them."""
        return {name: getattr(self, name) for name in FIELDS}


#: Names that a draft has and `annotate` takes.
FIELDS = tuple(spec.name for spec in fields(AuditDraft) if spec.init)
_KNOWN = frozenset(FIELDS)


def annotate(**values: Any) -> None:
    """Set fields of the audit entry that the surrounding `@audited` call will write.

    `details` are merged key by key; every other field is replaced. Outside an audited call nothing happens,
    so that a function can be used in both. What comes after the entry was written, in the body of a streamed response
    or after a generator's first item, is not in it: it is counted and logged (`audit_annotation_lost`).

    Args:
        **values: Fields of `AuditDraft`.

    Raises:
        InstrumentationError: A name that no draft has, details that are no mapping, or a purpose that is no code
            but free text.

    Example:
        >>> annotate(subject="subject-17", details={"view": "clinician"})
    """
    if not _KNOWN.issuperset(values):
        raise InstrumentationError(  # a literal, because log lines keep no other message
            "annotate takes action, outcome, actor, actor_kind, subject, resource_type, resource_id, purpose, "
            "classification, reason and details; put further facts into details"
        )
    details = values.get("details")
    if isinstance(values.get("purpose"), str) and not is_purpose(values["purpose"]):
        raise InstrumentationError("in annotate, purpose takes a code such as 'TREAT', not free text")
    if details is not None and not isinstance(details, Mapping):
        raise InstrumentationError("in annotate, details takes a mapping of names to values")
    draft: AuditDraft | None = _runtime.open_draft()
    if draft is None:
        return
    for name, value in values.items():
        if name != "details":
            setattr(draft, name, value)
    if details:
        draft.details = {**draft.details, **cast("Mapping[str, DetailValue]", details)}
