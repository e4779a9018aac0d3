"""Money, the life of a payment, and who may decide on it. Pure: no framework, no store, no telemetry.

Money is integer minor units with the exponents of ISO 4217. Separation of duties and dual control are the
internal controls that 15 U.S.C. 7262 (Sarbanes-Oxley §404) has management assess: who initiates a payment
never approves it, and large ones need one or two others. The thresholds are this service's policy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

#: Currency -> decimals (ISO 4217) and the amount, in major units, from which one approval is needed.
CURRENCIES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "USD": (2, 10_000), "EUR": (2, 9_000), "GBP": (2, 7_500), "CHF": (2, 8_000), "CAD": (2, 13_000),
        "AUD": (2, 14_000), "SEK": (2, 90_000), "JPY": (0, 1_000_000), "KRW": (0, 10_000_000), "KWD": (3, 3_000),
        "BHD": (3, 3_500), "TND": (3, 30_000),
    }
)  # fmt: skip
#: From so many times the first threshold on, two approvals are needed.
SECOND_FACTOR = 10
MAX_MINOR = 10**12
APPROVAL_SECONDS = 24 * 3600
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,12})(?:\.([0-9]+))?")


class DomainError(Exception):
    """A rule refuses; carries a code, never a value of the request."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


class MoneyError(DomainError):
    """An amount is not one."""


class ApprovalError(DomainError):
    """An approval is not permitted."""


class TransitionError(DomainError):
    """The payment's state does not permit this; the code is its current status."""


class Status(StrEnum):
    """Where a payment is in its life."""

    CREATED = "created"
    REQUIRES_APPROVAL = "requires_approval"
    AUTHORIZED = "authorized"
    CAPTURED = "captured"
    DECLINED = "declined"
    REJECTED = "rejected"
    EXPIRED = "expired"
    VOIDED = "voided"


class Event(StrEnum):
    """What can happen to a payment."""

    HOLD = "hold"
    AUTHORIZE = "authorize"
    DECLINE = "decline"
    REJECT = "reject"
    EXPIRE = "expire"
    CAPTURE = "capture"
    VOID = "void"


#: Every permitted step; whatever is not here is refused.
TRANSITIONS: Mapping[tuple[Status, Event], Status] = MappingProxyType(
    {
        (Status.CREATED, Event.HOLD): Status.REQUIRES_APPROVAL,
        (Status.CREATED, Event.AUTHORIZE): Status.AUTHORIZED,
        (Status.CREATED, Event.DECLINE): Status.DECLINED,
        (Status.REQUIRES_APPROVAL, Event.AUTHORIZE): Status.AUTHORIZED,
        (Status.REQUIRES_APPROVAL, Event.DECLINE): Status.DECLINED,
        (Status.REQUIRES_APPROVAL, Event.REJECT): Status.REJECTED,
        (Status.REQUIRES_APPROVAL, Event.EXPIRE): Status.EXPIRED,
        (Status.AUTHORIZED, Event.CAPTURE): Status.CAPTURED,
        (Status.AUTHORIZED, Event.VOID): Status.VOIDED,
    }
)


def advance(status: Status, event: Event) -> Status:
    """Return the status after `event`.

    Raises:
        TransitionError: `TRANSITIONS` does not have the step.
    """
    following = TRANSITIONS.get((status, event))
    if following is None:
        raise TransitionError(status.value)
    return following


def to_minor(text: str, currency: str) -> int:
    """Read a decimal text as minor units of `currency`, exactly.

    Raises:
        MoneyError: Not a plain decimal number, more decimals than the currency has, or a currency not taken.

    Example:
        >>> to_minor("150.00", "USD"), to_minor("150", "JPY"), to_minor("0.005", "KWD")
        (15000, 150, 5)
    """
    exponent = _exponent(currency)
    found = _DECIMAL.fullmatch(text)
    if found is None or len(found[2] or "") > exponent:
        raise MoneyError("amount_not_representable")
    return int(found[1] + (found[2] or "").ljust(exponent, "0"))


def to_decimal(minor: int, currency: str) -> str:
    """Return minor units as a decimal text with exactly the currency's decimals.

    Example:
        >>> to_decimal(15000, "USD"), to_decimal(150, "JPY"), to_decimal(5, "KWD")
        ('150.00', '150', '0.005')
    """
    exponent = _exponent(currency)
    digits = str(minor).rjust(exponent + 1, "0")
    return f"{digits[:-exponent]}.{digits[-exponent:]}" if exponent else digits


def amount_of(minor: int | None, text: str | None, currency: str) -> int:
    """Return the one amount that a request states, in either form or in both alike.

    Raises:
        MoneyError: None is stated, they differ, or the amount is out of range.
    """
    if text is None:
        _exponent(currency)
        stated = minor
    else:
        stated = to_minor(text, currency)
        if minor not in (None, stated):
            raise MoneyError("amounts_differ")
    if stated is None:
        raise MoneyError("amount_missing")
    if not 1 <= stated <= MAX_MINOR:
        raise MoneyError("amount_out_of_range")
    return stated


def approvals_required(minor: int, currency: str) -> int:
    """Return how many persons besides the initiator must approve: 0, 1 or 2.

    Example:
        >>> [approvals_required(cents, "USD") for cents in (999_999, 1_000_000, 10_000_000)]
        [0, 1, 2]
    """
    first = CURRENCIES[currency][1] * 10 ** _exponent(currency)
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


def decide(pending: Pending, approver: str, *, approve: bool, outcome_event: Event) -> Event | None:
    """Return what the decision makes happen: nothing yet, rejection, expiry, or the processor's `outcome_event`.

    Raises:
        TransitionError: The payment awaits no decision.
        ApprovalError: This approver may not decide.
    """
    advance(pending.status, Event.EXPIRE)  # only what awaits approval can expire
    check_separation(pending.initiator, approver, pending.approvers)
    if pending.age_seconds > APPROVAL_SECONDS:
        return Event.EXPIRE
    if not approve:
        return Event.REJECT
    return outcome_event if len(pending.approvers) + 1 >= pending.required else None


def ledger_entries(minor: int) -> tuple[tuple[str, int], ...]:
    """Return the double entry of a capture: account and signed minor units, which sum to zero."""
    return (("receivable:processor", minor), ("revenue", -minor))


def compliance_type(required: int, patient: bool, device: bool) -> str:
    """Return the strictest regime that a payment falls under, as a metric label."""
    return "sox" if required else "fda" if device else "hipaa" if patient else "pci"


def _exponent(currency: str) -> int:
    if currency not in CURRENCIES:
        raise MoneyError("currency_not_supported")
    return CURRENCIES[currency][0]
