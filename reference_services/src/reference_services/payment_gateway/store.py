"""What payment-gateway keeps: card tokens without numbers, payments, decisions, a ledger, alerts.

SQLAlchemy Core inside the caller's transaction. A change of status names the status it starts from
(compare and set), and tells by RETURNING whether it happened: a driver's row count can be -1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from reference_services._kit import by_id, count, insert, rows
from reference_services.payment_gateway.cards import Card
from reference_services.payment_gateway.domain import SECOND_FACTOR, ledger_entries, threshold
from reference_services.payment_gateway.lifecycle import Event, Status, advance
from reference_services.payment_gateway.money import CURRENCIES

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
LATEST_ALERTS = sa.select(ALERTS).order_by(ALERTS.c.first_ns.desc(), ALERTS.c.payment_id)


def add_token(connection: Connection, token_id: str, card: Card) -> None:
    """Keep a card under `token_id`; there is no number in it."""
    connection.execute(TOKENS.insert().values(id=token_id, **asdict(card)))


def card_of(connection: Connection, token_id: str) -> Card | None:
    """Return what is known of the card under `token_id`."""
    row = by_id(connection, TOKENS, token_id)
    return None if row is None else Card(**{name: row[name] for name in Card.__slots__})


def token_texts(connection: Connection, token_id: str) -> list[str]:
    """Return every column of a token's row as text."""
    return list(map(str, connection.execute(sa.select(TOKENS).where(TOKENS.c.id == token_id)).one()))


def add_payment(connection: Connection, **values: Any) -> None:
    """Insert a payment in its first status, ``created``."""
    connection.execute(PAYMENTS.insert().values(status=Status.CREATED.value, **values))


def payment(connection: Connection, payment_id: str, *, lock: bool = False) -> dict[str, Any] | None:
    """Return the payment with its card, or None; `lock` keeps others from deciding on it meanwhile."""
    row = by_id(connection, PAYMENTS, payment_id, lock=lock)
    return None if row is None else {**row, "card": card_of(connection, row["token_id"])}


def happen(connection: Connection, payment_id: str, status: Status, event: Event, **values: Any) -> Status:
    """Let `event` happen to a payment that is in `status`, and return its new status.

    Raises:
        TransitionError: Its status does not permit it.
        LookupError: It is not in `status` any more; nothing was changed.
    """
    following = advance(status, event)
    unchanged = (PAYMENTS.c.id == payment_id) & (PAYMENTS.c.status == status.value)
    changed = PAYMENTS.update().where(unchanged).values(status=following.value, **values)
    row = connection.execute(changed.returning(PAYMENTS.c.amount, PAYMENTS.c.currency)).first()
    if row is None:
        raise LookupError("the payment has changed meanwhile")
    if following is Status.CAPTURED:
        shared = {"payment_id": payment_id, "currency": row.currency}
        entries = [{**shared, "account": name, "minor": minor} for name, minor in ledger_entries(row.amount)]
        connection.execute(LEDGER.insert(), entries)
    return following


def add_decision(
    connection: Connection, payment_id: str, approver: str, decision: str, reason: str, at_ns: int
) -> None:
    """Record who decided what, why and when."""
    row = {"payment_id": payment_id, "approver": approver, "decision": decision, "reason": reason}
    connection.execute(APPROVALS.insert().values(**row, at_ns=at_ns))


def decisions(connection: Connection, payment_id: str) -> list[dict[str, Any]]:
    """Return the decisions on a payment, oldest first."""
    query = sa.select(APPROVALS).where(APPROVALS.c.payment_id == payment_id).order_by(APPROVALS.c.at_ns)
    return rows(connection, query)


def raise_alert(connection: Connection, payment_id: str, kind: str, severity: str, now_ns: int) -> None:
    """Store an alert, or count it again."""
    row = {"payment_id": payment_id, "kind": kind, "severity": severity, "first_ns": now_ns, "count": 1}
    again = {"index_elements": ALERTS.primary_key, "set_": {"count": ALERTS.c.count + 1}}
    connection.execute(insert(connection, ALERTS).values(row).on_conflict_do_update(**again))


def pending(connection: Connection, since_ns: int) -> int:
    """Count the payments that await a decision; those made before `since_ns` do so no more."""
    waiting = sa.select(PAYMENTS).where(PAYMENTS.c.status == Status.REQUIRES_APPROVAL.value)
    return count(connection, waiting.where(PAYMENTS.c.created_ns >= since_ns).subquery())


def unbalanced(connection: Connection) -> int:
    """Count the captured payments that the ledger does not hold in their amount and currency, and others that it holds."""
    captured, held = PAYMENTS.c.status == Status.CAPTURED.value, PAYMENTS.c.id == LEDGER.c.payment_id
    double = ledger_entries(1)
    right = [
        sa.func.sum(LEDGER.c.minor).filter(LEDGER.c.account == name) == share * PAYMENTS.c.amount
        for name, share in double
    ]
    of_currency = sa.func.count().filter(LEDGER.c.currency == PAYMENTS.c.currency) == len(double)
    entered = sa.and_(sa.func.count(LEDGER.c.payment_id) == len(double), of_currency, *right)
    payments = sa.select(PAYMENTS.c.id).select_from(PAYMENTS.outerjoin(LEDGER, held)).where(captured)
    wrong = payments.group_by(PAYMENTS.c.id).having(sa.func.coalesce(entered, sa.false()) == sa.false())
    known = sa.exists().where(held, captured)
    others = sa.select(LEDGER.c.payment_id).where(~known).distinct()
    return count(connection, wrong.subquery()) + count(connection, others.subquery())


def captured_otherwise(connection: Connection, audited: Mapping[str, tuple[int, str]]) -> int:
    """Count those of `audited` (id -> amount, currency) that are not captured payments, or of another amount."""
    query = sa.select(PAYMENTS.c.id, PAYMENTS.c.amount, PAYMENTS.c.currency)
    query = query.where(PAYMENTS.c.status == Status.CAPTURED.value, PAYMENTS.c.id.in_(audited))
    stored = {row.id: (row.amount, row.currency) for row in connection.execute(query)}
    return sum(stored.get(key) != told for key, told in audited.items())


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
    firsts = {currency: sa.literal(threshold(currency), sa.BigInteger) for currency in CURRENCIES}
    amount, first = PAYMENTS.c.amount, sa.case(firsts, value=PAYMENTS.c.currency)
    needed = sa.case((amount >= SECOND_FACTOR * first, 2), (amount >= first, 1), else_=0)
    done = PAYMENTS.c.status.in_([Status.AUTHORIZED.value, Status.CAPTURED.value, Status.VOIDED.value])
    lacking = sa.func.count().filter(given < needed)
    query = sa.select(sa.func.count(), lacking).select_from(PAYMENTS).where(done, needed > 0)
    row = connection.execute(query).one()
    return int(row[0]), int(row[1])
