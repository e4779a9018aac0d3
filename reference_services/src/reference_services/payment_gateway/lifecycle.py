"""The life of a payment: a status, what can happen to it, and where that leads. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from reference_services.payment_gateway.money import DomainError


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
