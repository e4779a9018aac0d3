"""Who may decide on a payment, and what follows. Pure: no framework, no store, no telemetry.

Separation of duties and dual control are the internal controls that 15 U.S.C. 7262 (Sarbanes-Oxley §404)
has management assess: who initiates a payment never approves it, and large ones need one or two others. The
thresholds are this service's policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reference_services.payment_gateway.lifecycle import Event, Status, advance
from reference_services.payment_gateway.money import CURRENCIES, DomainError

#: From so many times the first threshold on, two approvals are needed.
SECOND_FACTOR = 10
APPROVAL_SECONDS = 24 * 3600


class ApprovalError(DomainError):
    """An approval is not permitted."""


def threshold(currency: str) -> int:
    """Return the minor units from which on one approval is needed."""
    exponent, major = CURRENCIES[currency]
    return int(major * 10**exponent)


def approvals_required(minor: int, currency: str) -> int:
    """Return how many persons besides the initiator must approve: 0, 1 or 2.

    Example:
        >>> [approvals_required(cents, "USD") for cents in (999_999, 1_000_000, 10_000_000)]
        [0, 1, 2]
    """
    first = threshold(currency)
    return 0 if minor < first else 1 if minor < first * SECOND_FACTOR else 2


def check_separation(initiator: str, approver: str, earlier: Iterable[str]) -> None:
    """Hold separation of duties and dual control.

    Args:
        initiator: Who made the payment.
        approver: Who decides now.
        earlier: Who has decided already.

    Raises:
        ApprovalError: The approver is the initiator (``self_approval``), or decides twice (``already_decided``).
    """
    if approver == initiator:
        raise ApprovalError("self_approval")
    if approver in set(earlier):
        raise ApprovalError("already_decided")


@dataclass(frozen=True, slots=True)
class Pending:
    """What matters of a payment when someone decides on it."""

    status: Status
    initiator: str
    required: int
    approvers: frozenset[str]
    age_seconds: float


def status_at(age_seconds: float, status: Status) -> Status:
    """Return the status of a payment at an age: what nobody decided on in time has expired, recorded as such or not."""
    late = status is Status.REQUIRES_APPROVAL and age_seconds > APPROVAL_SECONDS
    return Status.EXPIRED if late else status


def decide(pending: Pending, approver: str, *, approve: bool, outcome_event: Event) -> Event | None:
    """Return what the decision makes happen: nothing yet, rejection, expiry, or the processor's `outcome_event`.

    Raises:
        TransitionError: The payment awaits no decision.
        ApprovalError: This approver may not decide.
    """
    advance(pending.status, Event.EXPIRE)  # only what awaits approval can expire
    check_separation(pending.initiator, approver, pending.approvers)
    if status_at(pending.age_seconds, pending.status) is Status.EXPIRED:
        return Event.EXPIRE
    if not approve:
        return Event.REJECT
    return outcome_event if len(pending.approvers) + 1 >= pending.required else None


def ledger_entries(minor: int) -> tuple[tuple[str, int], ...]:
    """Return the double entry of a capture: account and signed minor units, which sum to zero."""
    return (("receivable:processor", minor), ("revenue", -minor))


COMPLIANCE_TYPES = ("sox", "fda", "hipaa", "pci")


def compliance_type(required: int, patient: bool, device: bool) -> str:
    """Return the strictest regime that a payment falls under, as a metric label."""
    return "sox" if required else "fda" if device else "hipaa" if patient else "pci"
