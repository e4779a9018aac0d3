"""Requests and answers of payment-gateway."""

from __future__ import annotations

import uuid
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from reference_services._kit import Model
from reference_services.payment_gateway.money import MAX_MINOR

_Currency = Annotated[str, Field(pattern="^[A-Z]{3}$", description="ISO 4217")]
_TokenId = Annotated[str, Field(pattern="^tok_[0-9a-f]{32}$")]
_Text = Annotated[str, Field(min_length=1, max_length=200)]
_Uuid = Annotated[uuid.UUID, Field(strict=False)]


class CardInput(Model):
    """A card; the one body that carries a card number."""

    number: Annotated[SecretStr, Field(min_length=12, max_length=40, examples=["4242424242424242"])]
    exp_month: Annotated[int, Field(ge=1, le=12, examples=[12])]
    exp_year: Annotated[int, Field(ge=2000, le=2099, examples=[2040])]
    cvc: Annotated[SecretStr, Field(min_length=3, max_length=4, examples=["123"])]


class Token(Model):
    """What stands for a card from now on."""

    id: str
    brand: str
    last4: str
    exp: str


class ChargeRequest(Model):
    """A payment that is captured at once, as soon as it is approved."""

    amount: Annotated[int | None, Field(ge=1, le=MAX_MINOR, description="Minor units of the currency")] = None
    amount_decimal: Annotated[str | None, Field(max_length=20, pattern="^[0-9]+([.][0-9]+)?$")] = None
    currency: _Currency
    payment_method: _TokenId
    patient_id: _Uuid | None = None
    device_id: _Uuid | None = None
    description: _Text | None = None


class PaymentRequest(ChargeRequest):
    """A payment, captured at once or only authorised."""

    capture: bool = True


class Decision(Model):
    """A decision of a second person."""

    decision: Literal["approve", "reject"]
    reason: _Text


class CardView(Model):
    """What a payment shows of its card."""

    brand: str
    last4: str


class Given(Model):
    """One decision that was made."""

    approver: str
    decision: str
    reason: str


class Approvals(Model):
    """How many approvals a payment needs, and the decisions made."""

    required: int
    given: list[Given]


class Payment(Model):
    """A payment."""

    omit_none: ClassVar[bool] = True

    id: str
    transaction_id: str
    status: str
    amount: int
    amount_decimal: str
    currency: str
    capture: bool
    approvals: Approvals
    card: CardView
    initiator: str
    patient_id: str | None = None
    device_id: str | None = None
    description: str | None = None
    decline_code: str | None = None
    created: str


class AlertView(Model):
    """An alert."""

    type: str
    severity: str
    payment_id: str
    first_seen: str
    count: int


class Alerts(Model):
    """The latest alerts, and how many there are."""

    total_alerts: int
    active_alerts: list[AlertView]


class AlertQuery(Model):
    """How many alerts to show."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
