"""What payment-gateway keeps: card tokens without numbers, payments, decisions, a ledger, alerts.

SQLAlchemy Core inside the caller's transaction. A change of status names the status it starts from
(compare and set), and tells by RETURNING whether it happened: a driver's row count can be -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from reference_services._kit import insert
from reference_services.payment_gateway.cards import Card
from reference_services.payment_gateway.domain import (
    CURRENCIES,
    SECOND_FACTOR,
    Event,
    Status,
    advance,
    ledger_entries,
)

METADATA = sa.MetaData()
_ID = sa.String(40)
_SHORT = sa.String(64)
TOKENS = sa.Table(
    "token",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("fingerprint", _SHORT, nullable=False, index=True),
    sa.Column("brand", _SHORT, nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("exp_month", sa.Integer, nullable=False),
    sa.Column("exp_year", sa.Integer, nullable=False),
    sa.Column("outcome", _SHORT, nullable=False),
)
PAYMENTS = sa.Table(
    "payment",
    METADATA,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("status", _SHORT, nullable=False, index=True),
    sa.Column("amount", sa.BigInteger, sa.CheckConstraint("amount > 0"), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("capture", sa.Boolean, nullable=False),
    sa.Column("token_id", _ID, sa.ForeignKey("token.id"), nullable=False),
    sa.Column("patient_id", _ID),
    sa.Column("device_id", _ID),
    sa.Column("description", sa.String(200)),
    sa.Column("initiator", sa.String(128), nullable=False),
    sa.Column("required", sa.Integer, nullable=False),
    sa.Column("decline_code", _SHORT),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)
APPROVALS = sa.Table(
    "approval",
    METADATA,
    sa.Column("payment_id", _ID, sa.ForeignKey("payment.id"), primary_key=True),
    sa.Column("approver", sa.String(128), primary_key=True),
    sa.Column("decision", _SHORT, nullable=False),
    sa.Column("reason", sa.String(200), nullable=False),
    sa.Column("at_ns", sa.BigInteger, nullable=False),
)
LEDGER = sa.Table(
    "ledger",
    METADATA,
    sa.Column("payment_id", _ID, sa.ForeignKey("payment.id"), primary_key=True),
    sa.Column("account", _SHORT, primary_key=True),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("minor", sa.BigInteger, nullable=False),
)
ALERTS = sa.Table(
    "alert",
    METADATA,
    sa.Column("payment_id", _ID, sa.ForeignKey("payment.id"), primary_key=True),
    sa.Column("kind", _SHORT, primary_key=True),
    sa.Column("severity", _SHORT, nullable=False),
    sa.Column("first_ns", sa.BigInteger, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
)


def add_token(connection: Connection, token_id: str, card: Card) -> None:
    """Keep a card under `token_id`; there is no number in it."""
    connection.execute(TOKENS.insert().values(id=token_id, **asdict(card)))


def card_of(connection: Connection, token_id: str) -> Card | None:
    """Return what is known of the card under `token_id`."""
    row = connection.execute(sa.select(TOKENS).where(TOKENS.c.id == token_id)).mappings().first()
    return None if row is None else Card(**{name: row[name] for name in Card.__slots__})


def token_texts(connection: Connection, token_id: str) -> list[str]:
    """Return every column of a token's row as text."""
    return [
        str(value) for value in connection.execute(sa.select(TOKENS).where(TOKENS.c.id == token_id)).one()
    ]


def add_payment(connection: Connection, **values: Any) -> None:
    """Insert a payment in its first status, ``created``."""
    connection.execute(PAYMENTS.insert().values(status=Status.CREATED.value, **values))


def payment(connection: Connection, payment_id: str, *, lock: bool = False) -> Mapping[str, Any] | None:
    """Return the payment with its card, or None; `lock` keeps others from deciding on it meanwhile."""
    query = sa.select(PAYMENTS).where(PAYMENTS.c.id == payment_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else {**row, "card": card_of(connection, row["token_id"])}


def happen(connection: Connection, payment_id: str, status: Status, event: Event, **values: Any) -> Status:
    """Let `event` happen to a payment that is in `status`, and return its new status.

    Raises:
        TransitionError: Its status does not permit it.
        LookupError: It is not in `status` any more; nothing was changed.
    """
    following = advance(status, event)
    changed = (
        PAYMENTS.update()
        .where(PAYMENTS.c.id == payment_id, PAYMENTS.c.status == status.value)
        .values(status=following.value, **values)
        .returning(PAYMENTS.c.amount, PAYMENTS.c.currency)
    )
    row = connection.execute(changed).first()
    if row is None:
        raise LookupError("the payment has changed meanwhile")
    if following is Status.CAPTURED:
        entries = ledger_entries(row.amount)
        named = [
            {"payment_id": payment_id, "account": account, "currency": row.currency, "minor": minor}
            for account, minor in entries
        ]
        connection.execute(LEDGER.insert(), named)
    return following


def add_decision(
    connection: Connection, payment_id: str, approver: str, decision: str, reason: str, at_ns: int
) -> None:
    """Record who decided what, why and when."""
    row = {
        "payment_id": payment_id,
        "approver": approver,
        "decision": decision,
        "reason": reason,
        "at_ns": at_ns,
    }
    connection.execute(APPROVALS.insert().values(row))


def decisions(connection: Connection, payment_id: str) -> list[Mapping[str, Any]]:
    """Return the decisions on a payment, oldest first."""
    query = sa.select(APPROVALS).where(APPROVALS.c.payment_id == payment_id).order_by(APPROVALS.c.at_ns)
    return [dict(row) for row in connection.execute(query).mappings()]


def raise_alert(connection: Connection, payment_id: str, kind: str, severity: str, now_ns: int) -> None:
    """Store an alert, or count it again."""
    row = {"payment_id": payment_id, "kind": kind, "severity": severity, "first_ns": now_ns, "count": 1}
    key, counted = [ALERTS.c.payment_id, ALERTS.c.kind], {"count": ALERTS.c.count + 1}
    connection.execute(
        insert(connection, ALERTS).values(row).on_conflict_do_update(index_elements=key, set_=counted)
    )


def alerts(connection: Connection, limit: int) -> tuple[int, list[Mapping[str, Any]]]:
    """Return how many alerts there are, and the `limit` latest."""
    total = connection.execute(sa.select(sa.func.count()).select_from(ALERTS)).scalar_one()
    query = sa.select(ALERTS).order_by(ALERTS.c.first_ns.desc(), ALERTS.c.payment_id).limit(limit)
    return total, [dict(row) for row in connection.execute(query).mappings()]


def pending(connection: Connection) -> int:
    """Count the payments that await a decision."""
    waiting = PAYMENTS.c.status == Status.REQUIRES_APPROVAL.value
    return int(
        connection.execute(sa.select(sa.func.count()).select_from(PAYMENTS).where(waiting)).scalar_one()
    )


def unbalanced(connection: Connection) -> int:
    """Count the payments whose ledger entries do not sum to zero."""
    sums = (
        sa.select(LEDGER.c.payment_id).group_by(LEDGER.c.payment_id).having(sa.func.sum(LEDGER.c.minor) != 0)
    )
    return int(connection.execute(sa.select(sa.func.count()).select_from(sums.subquery())).scalar_one())


def self_approved(connection: Connection) -> tuple[int, int]:
    """Return how many decisions there are, and how many of them are the initiator's own."""
    joined = APPROVALS.join(PAYMENTS, APPROVALS.c.payment_id == PAYMENTS.c.id)
    own = sa.func.count().filter(APPROVALS.c.approver == PAYMENTS.c.initiator)
    row = connection.execute(sa.select(sa.func.count(), own).select_from(joined)).one()
    return int(row[0]), int(row[1])


def under_approved(connection: Connection) -> tuple[int, int]:
    """Return how many authorised payments reach a threshold, and how many of them lack an approver.

    The thresholds are applied to the amounts anew, so a payment that was stored as needing fewer is found.
    """
    given = (
        sa.select(sa.func.count())
        .where(APPROVALS.c.payment_id == PAYMENTS.c.id, APPROVALS.c.decision == "approve")
        .where(APPROVALS.c.approver != PAYMENTS.c.initiator)
        .scalar_subquery()
    )
    needed = sa.case(*_required_by_amount(), else_=0)
    done = PAYMENTS.c.status.in_([Status.AUTHORIZED.value, Status.CAPTURED.value, Status.VOIDED.value])
    lacking = sa.func.count().filter(given < needed)
    query = sa.select(sa.func.count(), lacking).select_from(PAYMENTS).where(done, needed > 0)
    row = connection.execute(query).one()
    return int(row[0]), int(row[1])


def _required_by_amount() -> Iterable[tuple[sa.ColumnElement[bool], int]]:
    for currency, (exponent, major) in CURRENCIES.items():
        first = major * 10**exponent
        for approvals, threshold in ((2, first * SECOND_FACTOR), (1, first)):
            yield sa.and_(PAYMENTS.c.currency == currency, PAYMENTS.c.amount >= threshold), approvals
