"""The views of payment-gateway. No answer, log line, span, audit entry or row ever holds a card number."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response, request
from sqlalchemy.engine import Connection

from healthobs.audit import annotate
from healthobs.clock import rfc3339
from healthobs.exceptions import ClientError
from reference_services._kit import Kit, Principal, Problem
from reference_services._kit.idempotency import load_secret
from reference_services._kit.problems import render
from reference_services.payment_gateway import cards, domain, store
from reference_services.payment_gateway.cards import Card
from reference_services.payment_gateway.domain import Event, Status
from reference_services.payment_gateway.models import (
    AlertQuery,
    Alerts,
    AlertView,
    Approvals,
    CardInput,
    CardView,
    ChargeRequest,
    Decision,
    Given,
    Payment,
    PaymentRequest,
    Token,
)

_HTTP_STATUS = {Status.REQUIRES_APPROVAL: 202, Status.DECLINED: 402}
_COMPLIANCE_TYPES = ("sox", "fda", "hipaa", "pci")
_COUNTED = tuple(status.value for status in Status if status is not Status.CREATED)


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        metrics = kit.obs.metrics
        self.kit = kit
        self.any_pan = kit.settings.environ.get("PAYMENT_ALLOW_ANY_PAN", "").lower() in ("1", "true")
        self.key = load_secret(
            kit.settings.file("PAYMENT_FINGERPRINT_KEY_FILE", "payment_gateway.fingerprint.key")
        )
        self.transactions = metrics.counter(
            "payment_gateway_transactions_total",
            "Payments by the status they reached.",
            ("status", "compliance_type"),
        )
        self.duration = metrics.histogram(
            "payment_gateway_processing_duration_seconds",
            "Time to process a payment, once its references are checked.",
            ("status",),
        )
        self.approvals = metrics.counter("payment_gateway_approvals_total", "Decisions made.", ("decision",))
        self.violations = metrics.counter(
            "payment_gateway_sox_violations_total", "Attempts against a control.", ("control",)
        )
        self.waiting = metrics.gauge(
            "payment_gateway_pending_approvals",
            "Payments that await a decision.",
            multiprocess_mode="mostrecent",
        )
        self.tokens = metrics.counter(
            "payment_gateway_tokens_total", "Cards tokenised or refused.", ("result",)
        )
        self.transactions.seed(*((status, kind) for status in _COUNTED for kind in _COMPLIANCE_TYPES))
        self.duration.seed(
            *((status,) for status in ("authorized", "captured", "declined", "requires_approval"))
        )
        self.approvals.seed(("approve",), ("reject",))
        self.violations.seed(("S-sod",))
        self.tokens.seed(("ok",), ("refused",))
        with kit.reading() as connection:
            self.waiting.set(store.pending(connection))

    def tokenise(self, body: CardInput) -> tuple[Token, int]:
        """Forget a card's number and return the token that stands for it."""
        token_id = f"tok_{uuid.uuid4().hex}"
        number, cvc = body.number.get_secret_value(), body.cvc.get_secret_value()
        try:
            with self.kit.transaction() as connection:
                card = self.keep(connection, token_id, number, body.exp_month, body.exp_year, cvc)
        except cards.CardError as refused:
            self.tokens.labels("refused").inc()
            raise _invalid("The card was refused.", f"/{refused.field}", refused.code) from None
        annotate(resource_id=token_id, details={"brand": card.brand})
        self.tokens.labels("ok").inc()
        exp = f"{card.exp_month:02}/{card.exp_year}"
        return Token(id=token_id, brand=card.brand, last4=card.last4, exp=exp), 201

    def keep(
        self, connection: Connection, token_id: str, number: str, exp_month: int, exp_year: int, cvc: str
    ) -> Card:
        """Check a card and store what may be kept of it; the one way in for card numbers.

        Raises:
            CardError: The card is not acceptable.
        """
        today = self.kit.clock.now()
        card = cards.read_card(
            number,
            exp_month,
            exp_year,
            cvc,
            key=self.key,
            now=(today.year, today.month),
            any_pan=self.any_pan,
        )
        store.add_token(connection, token_id, card)
        return card

    def process(self, body: PaymentRequest, principal: Principal) -> tuple[Payment, int]:
        """Make a payment, captured at once or only authorised."""
        return self._pay(body, principal, capture=body.capture)

    def charge(self, body: ChargeRequest, principal: Principal) -> tuple[Payment, int]:
        """Make a payment that is captured at once; the same controls hold."""
        return self._pay(body, principal, capture=True)

    def read(self, payment_id: str) -> Payment:
        """Show a payment."""
        with self.kit.reading() as connection:
            return self._shown(connection, self._found(connection, payment_id))

    def decide(self, payment_id: str, body: Decision, principal: Principal) -> Payment | Response:
        """Approve or reject a payment that awaits it; never one's own."""
        _refuse_card_number(body.reason, "/reason")
        with self.kit.transaction() as connection:
            row = self._found(connection, payment_id, lock=True)
            event, refusal = self._judged(connection, row, body, principal)
            if refusal is None:
                decision = (principal.subject, body.decision, body.reason, self.kit.clock.wall_ns())
                store.add_decision(connection, payment_id, *decision)
                self.approvals.labels(body.decision).inc()
            if event is not None:
                self._settle(connection, row, event)
            self.waiting.set(store.pending(connection))
            if refusal is not None:
                return render(refusal)  # returned, not raised: the alert, or the expiry, is to stay
            return self._shown(connection, self._found(connection, payment_id))

    def alerts(self, query: AlertQuery) -> Alerts:
        """Show the latest alerts."""
        with self.kit.reading() as connection:
            total, rows = store.alerts(connection, query.limit)
        shown = [
            AlertView(
                type=row["kind"], severity=row["severity"], payment_id=row["payment_id"],
                first_seen=_moment(row["first_ns"]), count=row["count"],
            )
            for row in rows
        ]  # fmt: skip
        return Alerts(total_alerts=total, active_alerts=shown)

    def ledger_balances(self) -> bool:
        """Tell whether the entries of every payment sum to zero."""
        with self.kit.reading() as connection:
            return store.unbalanced(connection) == 0

    def admit(self, body: ChargeRequest) -> None:
        """Refuse what may not be paid, and what refers to no patient or device, before a transaction is open."""
        _amount(body)
        _refuse_card_number(body.description or "", "/description")
        patient_id, device_id = _references(body)
        self._require_peer("phi-service", "HEAD", "/patients/{id}", patient_id, "/patient_id")
        self._require_peer("medical-device", "GET", "/devices/{id}", device_id, "/device_id")

    def _pay(self, body: ChargeRequest, principal: Principal, *, capture: bool) -> tuple[Payment, int]:
        started = self.kit.clock.monotonic_ns()
        amount = _amount(body)
        patient_id, device_id = _references(body)
        payment_id = f"pay_{uuid.uuid4().hex}"
        required = domain.approvals_required(amount, body.currency)
        annotate(subject=patient_id, resource_id=payment_id)
        with self.kit.transaction() as connection:
            if store.card_of(connection, body.payment_method) is None:
                raise _invalid("There is no such token.", "/payment_method", "token_unknown")
            store.add_payment(
                connection, id=payment_id, amount=amount, currency=body.currency, capture=capture,
                token_id=body.payment_method, patient_id=patient_id, device_id=device_id, description=body.description,
                initiator=principal.subject, required=required, created_ns=self.kit.clock.wall_ns(),
            )  # fmt: skip
            row = self._found(connection, payment_id)
            status = self._settle(
                connection, row, Event.HOLD if required else self._outcome(connection, row)[0]
            )
            shown = self._shown(connection, self._found(connection, payment_id))
            self.waiting.set(store.pending(connection))
        self.duration.labels(status.value).observe((self.kit.clock.monotonic_ns() - started) / 1e9)
        return shown, _HTTP_STATUS.get(status, 201)

    def _judged(
        self, connection: Connection, row: Mapping[str, Any], body: Decision, principal: Principal
    ) -> tuple[Event | None, Problem | None]:
        """Return what the decision makes happen, and the refusal that is to be stored with it.

        Raises:
            Problem: The decision is refused and leaves nothing behind.
        """
        annotate(resource_id=row["id"], subject=row["patient_id"], details={"decision": body.decision})
        approvers = frozenset(decision["approver"] for decision in store.decisions(connection, row["id"]))
        age_seconds = (self.kit.clock.wall_ns() - row["created_ns"]) / 1e9
        pending = domain.Pending(
            Status(row["status"]), row["initiator"], row["required"], approvers, age_seconds
        )
        outcome, _ = self._outcome(connection, row)
        try:
            event = domain.decide(
                pending, principal.subject, approve=body.decision == "approve", outcome_event=outcome
            )
        except domain.TransitionError as refused:
            errors = [("/status", refused.code)]
            raise Problem(
                409, "transition_not_permitted", "The payment awaits no decision.", errors
            ) from None
        except domain.ApprovalError as refused:
            if refused.code != "self_approval":
                raise Problem(409, refused.code, "The caller has decided on this payment already.") from None
            store.raise_alert(connection, row["id"], "self_approval", "high", self.kit.clock.wall_ns())
            self.violations.labels("S-sod").inc()
            self.kit.log.warning("sox_violation", control="S-sod", payment=row["id"])
            return None, Problem(403, "self_approval", "Who initiates a payment may not decide on it.")
        if event is Event.EXPIRE:
            return event, Problem(
                409, "approval_expired", "The time to decide is over; make the payment anew."
            )
        return event, None

    def _outcome(self, connection: Connection, row: Mapping[str, Any]) -> tuple[Event, str | None]:
        """Return what the processor answers now, and its decline code."""
        card, today = store.card_of(connection, row["token_id"]), self.kit.clock.now()
        outcome = "processing_error" if card is None else card.outcome_at(today.year, today.month)
        return (Event.AUTHORIZE, None) if outcome == cards.APPROVED else (Event.DECLINE, outcome)

    def _settle(self, connection: Connection, row: Mapping[str, Any], event: Event) -> Status:
        """Let `event` happen, capture what is to be captured, count and audit where it led."""
        code = self._outcome(connection, row)[1] if event is Event.DECLINE else None
        status = store.happen(connection, row["id"], Status(row["status"]), event, decline_code=code)
        if status is Status.AUTHORIZED and row["capture"]:
            status = store.happen(connection, row["id"], status, Event.CAPTURE)
        kind = domain.compliance_type(
            row["required"], row["patient_id"] is not None, row["device_id"] is not None
        )
        self.transactions.labels(status.value, kind).inc()
        annotate(
            details={
                "status": status.value, "amount_minor": row["amount"], "currency": row["currency"],
                "approvals_required": row["required"],
            }
        )  # fmt: skip
        return status

    def _require_peer(self, peer: str, method: str, route: str, wanted: str | None, pointer: str) -> None:
        """Ask another service, in the caller's name, whether a record exists.

        Raises:
            Problem: 422 it does not, 403 the caller may not see it, 503 nobody can tell.
        """
        if wanted is None:
            return
        headers = {"Authorization": request.headers["Authorization"]}
        try:
            answer = self.kit.client(peer).request(method, route, headers=headers, path_params={"id": wanted})
            status = answer.status
        except ClientError:
            status = 503
        if status == 404:
            raise _invalid("The payment refers to what does not exist.", pointer, "not_found")
        if status in (401, 403):
            raise Problem(
                403, "reference_not_permitted", "The caller may not refer to this.", [(pointer, "denied")]
            )
        if status != 200:
            raise Problem(
                503,
                "peer_unavailable",
                "A reference cannot be checked; retry.",
                [(pointer, "unchecked")],
                {"Retry-After": "1"},
            )

    def _found(self, connection: Connection, payment_id: str, *, lock: bool = False) -> Mapping[str, Any]:
        row = store.payment(connection, payment_id, lock=lock)
        if row is None:
            raise Problem(404, "payment_unknown", "There is no such payment.")
        annotate(resource_id=payment_id, subject=row["patient_id"])
        return row

    def _shown(self, connection: Connection, row: Mapping[str, Any]) -> Payment:
        given = [
            Given(approver=made["approver"], decision=made["decision"], reason=made["reason"])
            for made in store.decisions(connection, row["id"])
        ]
        same = ("id", "status", "amount", "currency", "capture", "initiator", "patient_id", "device_id")
        return Payment(
            **{name: row[name] for name in (*same, "description", "decline_code")},
            transaction_id=row["id"],
            amount_decimal=domain.to_decimal(row["amount"], row["currency"]),
            approvals=Approvals(required=row["required"], given=given),
            card=CardView(brand=row["brand"], last4=row["last4"]),
            created=_moment(row["created_ns"]),
        )


def _moment(wall_ns: int) -> str:
    return rfc3339(datetime.fromtimestamp(wall_ns // 1_000_000 / 1000, UTC), timespec="milliseconds")


def _amount(body: ChargeRequest) -> int:
    try:
        return domain.amount_of(body.amount, body.amount_decimal, body.currency)
    except domain.MoneyError as refused:
        pointer = "/currency" if refused.code == "currency_not_supported" else "/amount"
        raise _invalid("The amount was refused.", pointer, refused.code) from None


def _references(body: ChargeRequest) -> tuple[str | None, str | None]:
    patient_id, device_id = (
        None if found is None else str(found) for found in (body.patient_id, body.device_id)
    )
    return patient_id, device_id


def _invalid(title: str, pointer: str, code: str) -> Problem:
    return Problem(422, "invalid_request", title, [(pointer, code)])


def _refuse_card_number(text: str, pointer: str) -> None:
    if cards.holds_card_number(text):
        raise _invalid("A text may not hold a card number.", pointer, "card_number_in_text")
