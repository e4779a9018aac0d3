"""The views of payment-gateway. No answer, log line, span, audit entry or row ever holds a card number."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from flask import Response, request
from sqlalchemy.engine import Connection

from healthobs.audit import annotate
from healthobs.exceptions import ClientError
from reference_services._kit import Kit, Principal, Problem, invalid, moment, page, unavailable
from reference_services._kit.problems import render
from reference_services.payment_gateway import cards, domain, models, money, store
from reference_services.payment_gateway.lifecycle import Event, Status, TransitionError

_HTTP_STATUS = {Status.REQUIRES_APPROVAL: 202, Status.DECLINED: 402}
_COUNTED = tuple(status.value for status in Status if status is not Status.CREATED)


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.any_pan = kit.settings.environ.get("PAYMENT_ALLOW_ANY_PAN", "").lower() in ("1", "true")
        self.key = kit.secret("PAYMENT_FINGERPRINT_KEY_FILE", "payment_gateway.fingerprint.key")
        self.tokens = kit.counter("tokens_total", "Cards tokenised or refused.", result=("ok", "refused"))
        self.transactions = kit.counter(
            "transactions_total", "Payments by the status they reached.",
            status=_COUNTED, compliance_type=domain.COMPLIANCE_TYPES,
        )  # fmt: skip
        self.approvals = kit.counter("approvals_total", "Decisions made.", decision=("approve", "reject"))
        self.violations = kit.counter(
            "sox_violations_total", "Attempts against a control.", control=("S-sod",)
        )
        self.duration = kit.histogram(
            "processing_duration_seconds", "Time to process a payment, once its references are checked.",
            status=("authorized", "captured", "declined", "requires_approval"),
        )  # fmt: skip
        self.waiting = kit.gauge("pending_approvals", "Payments that await a decision.")
        with kit.reading() as connection:
            self._count_waiting(connection)

    def tokenise(self, body: models.CardInput) -> tuple[models.Token, int]:
        """Forget a card's number and return the token that stands for it."""
        token_id = f"tok_{uuid.uuid4().hex}"
        number, cvc = body.number.get_secret_value(), body.cvc.get_secret_value()
        try:
            with self.kit.transaction() as connection:
                card = self.keep(connection, token_id, number, body.exp_month, body.exp_year, cvc)
        except cards.CardError as refused:
            self.tokens.labels("refused").inc()
            raise invalid("The card was refused.", f"/{refused.field}", refused.code) from None
        annotate(resource_id=token_id, details={"brand": card.brand})
        self.tokens.labels("ok").inc()
        exp = f"{card.exp_month:02}/{card.exp_year}"
        return models.Token(id=token_id, brand=card.brand, last4=card.last4, exp=exp), 201

    def fingerprint(self, number: str) -> str:
        """Return what is kept of a card's number, in the memory of its request too."""
        return cards.fingerprint(number, self.key)

    def keep(
        self, connection: Connection, token_id: str, number: str, exp_month: int, exp_year: int, cvc: str
    ) -> cards.Card:
        """Check a card and store what may be kept of it; the one way in for card numbers.

        Raises:
            CardError: The card is not acceptable.
        """
        now, any_pan = self._month(), self.any_pan
        card = cards.read_card(number, exp_month, exp_year, cvc, key=self.key, now=now, any_pan=any_pan)
        store.add_token(connection, token_id, card)
        return card

    def admit(self, body: models.ChargeRequest) -> None:
        """Refuse what may not be paid, and what refers to no patient or device, before a transaction is open."""
        _amount(body)
        self._refuse_identifiers(body.description or "", "/description")
        self._require_peer("phi-service", "HEAD", "/patients/{id}", body.patient_id, "/patient_id")
        self._require_peer("medical-device", "GET", "/devices/{id}", body.device_id, "/device_id")

    def pay(self, body: models.ChargeRequest, principal: Principal) -> tuple[models.Payment, int]:
        """Make a payment; a charge is one that is captured at once, under the same controls."""
        started, amount = self.kit.clock.monotonic_ns(), _amount(body)
        payment_id, required = f"pay_{uuid.uuid4().hex}", domain.approvals_required(amount, body.currency)
        stated = body.model_dump(mode="json", include={"currency", "patient_id", "device_id", "description"})
        with self.kit.transaction() as connection:
            card = store.card_of(connection, body.payment_method)
            if card is None:
                raise invalid("There is no such token.", "/payment_method", "token_unknown")
            store.add_payment(
                connection, **stated, id=payment_id, amount=amount, capture=getattr(body, "capture", True),
                token_id=body.payment_method, initiator=principal.subject, required=required,
                created_ns=self.kit.clock.wall_ns(),
            )  # fmt: skip
            outcome = (Event.HOLD, None) if required else self._outcome(card)
            status = self._settle(connection, self._found(connection, payment_id), *outcome)
            self._count_waiting(connection)
            shown = self._shown(connection, payment_id)
        self.duration.labels(status.value).observe((self.kit.clock.monotonic_ns() - started) / 1e9)
        return shown, _HTTP_STATUS.get(status, 201)

    def read(self, payment_id: str) -> models.Payment:
        """Show a payment."""
        with self.kit.reading() as connection:
            return self._shown(connection, payment_id)

    def decide(
        self, payment_id: str, body: models.Decision, principal: Principal
    ) -> models.Payment | Response:
        """Approve or reject a payment that awaits it; never one's own."""
        self._refuse_identifiers(body.reason, "/reason")
        with self.kit.transaction() as connection:
            payment = self._found(connection, payment_id, lock=True)
            annotate(details={"decision": body.decision})
            outcome, code = self._outcome(payment["card"])
            event, refusal = self._judged(connection, payment, body, principal.subject, outcome)
            if event is not None:
                self._settle(connection, payment, event, code)
            self._count_waiting(connection)
            if refusal is not None:
                return render(refusal)  # returned, not raised: the alert, or the expiry, is to stay
            return self._shown(connection, payment_id)

    def capture(self, payment_id: str) -> models.Payment:
        """Capture what was only authorised."""
        return self._step(payment_id, Event.CAPTURE)

    def void(self, payment_id: str) -> models.Payment:
        """Give up what was only authorised."""
        return self._step(payment_id, Event.VOID)

    def _step(self, payment_id: str, event: Event) -> models.Payment:
        with self.kit.transaction() as connection:
            payment = self._found(connection, payment_id, lock=True)
            try:
                self._settle(connection, payment, event, None)
            except TransitionError as refused:
                title, errors = "Only what is authorised is captured or voided.", [("/status", refused.code)]
                raise Problem(409, "transition_not_permitted", title, errors) from None
            return self._shown(connection, payment_id)

    def alerts(self, query: models.AlertQuery) -> models.Alerts:
        """Show the latest alerts."""
        with self.kit.reading() as connection:
            total, rows = page(connection, store.LATEST_ALERTS, query.limit)
        shown = [
            models.AlertView.of(row, type=row["kind"], first_seen=moment(row["first_ns"])) for row in rows
        ]
        return models.Alerts(total_alerts=total, active_alerts=shown)

    def ledger_balances(self) -> bool:
        """Tell whether the ledger is the double entry of each captured payment, and nothing else.

        What awaits a decision is counted anew with it: time alone makes that less.
        """
        with self.kit.reading() as connection:
            self._count_waiting(connection)
            return store.unbalanced(connection) == 0

    def _judged(
        self, connection: Connection, payment: Mapping[str, Any], body: models.Decision, by: str, outcome: Event
    ) -> tuple[Event | None, Problem | None]:  # fmt: skip
        """Record a decision and return what it makes happen; or what its refusal does, and the refusal.

        Raises:
            Problem: The decision is refused and leaves nothing behind.
        """
        now_ns = self.kit.clock.wall_ns()
        pending = domain.Pending(
            Status(payment["status"]), payment["initiator"], payment["required"],
            frozenset(made["approver"] for made in store.decisions(connection, payment["id"])),
            self._age_seconds(payment),
        )  # fmt: skip
        try:
            event = domain.decide(pending, by, approve=body.decision == "approve", outcome_event=outcome)
        except TransitionError as refused:
            title, errors = "The payment awaits no decision.", [("/status", refused.code)]
            raise Problem(409, "transition_not_permitted", title, errors) from None
        except domain.ApprovalError as refused:
            if refused.code != "self_approval":
                raise Problem(409, refused.code, "The caller has decided on this payment already.") from None
            store.raise_alert(connection, payment["id"], "self_approval", "high", now_ns)
            self.violations.labels("S-sod").inc()
            self.kit.log.warning("sox_violation", control="S-sod", payment=payment["id"])
            return None, Problem(403, "self_approval", "Who initiates a payment may not decide on it.")
        if event is Event.EXPIRE:
            expired = "The time to decide is over; make the payment anew."
            return event, Problem(409, "approval_expired", expired)
        store.add_decision(connection, payment["id"], by, body.decision, body.reason, now_ns)
        self.approvals.labels(body.decision).inc()
        return event, None

    def _outcome(self, card: cards.Card) -> tuple[Event, str | None]:
        """Return what the processor answers now, and its decline code."""
        outcome = card.outcome_at(*self._month())
        return (Event.AUTHORIZE, None) if outcome == cards.APPROVED else (Event.DECLINE, outcome)

    def _settle(
        self, connection: Connection, payment: Mapping[str, Any], event: Event, code: str | None
    ) -> Status:
        """Let `event` happen, capture what is to be captured, count and audit where it led."""
        declined = {"decline_code": code} if event is Event.DECLINE else {}
        status = store.happen(connection, payment["id"], Status(payment["status"]), event, **declined)
        if status is Status.AUTHORIZED and payment["capture"]:
            status = store.happen(connection, payment["id"], status, Event.CAPTURE)
        kind = domain.compliance_type(
            payment["required"], payment["patient_id"] is not None, payment["device_id"] is not None
        )
        self.transactions.labels(status.value, kind).inc()
        details = {"status": status.value, "amount_minor": payment["amount"], "currency": payment["currency"]}
        annotate(details={**details, "approvals_required": payment["required"]})
        return status

    def _age_seconds(self, payment: Mapping[str, Any]) -> float:
        return float((self.kit.clock.wall_ns() - payment["created_ns"]) / 1e9)

    def _count_waiting(self, connection: Connection) -> None:
        since_ns = self.kit.clock.wall_ns() - domain.APPROVAL_SECONDS * 10**9
        self.waiting.set(store.pending(connection, since_ns))

    def _month(self) -> tuple[int, int]:
        today = self.kit.clock.now()
        return today.year, today.month

    def _require_peer(
        self, peer: str, method: str, route: str, wanted: uuid.UUID | None, pointer: str
    ) -> None:
        """Ask another service, in the caller's name, whether a record exists.

        Raises:
            Problem: 422 it does not, 403 the caller may not see it, 503 nobody can tell.
        """
        if wanted is None:
            return
        headers, path = {"Authorization": request.headers["Authorization"]}, {"id": str(wanted)}
        try:
            status = self.kit.client(peer).request(method, route, headers=headers, path_params=path).status
        except ClientError:
            status = 503
        if status == 404:
            raise invalid("The payment refers to what does not exist.", pointer, "not_found")
        if status in (401, 403):
            title = "The caller may not refer to this."
            raise Problem(403, "reference_not_permitted", title, [(pointer, "denied")])
        if status != 200:
            title = "A reference cannot be checked; retry."
            raise unavailable("peer_unavailable", title, [(pointer, "unchecked")])

    def _refuse_identifiers(self, text: str, pointer: str) -> None:
        """Refuse text that would put a card number, or what redaction knows as a person's identifier, into a row."""
        if cards.holds_card_number(text):
            raise invalid("A text may not hold a card number.", pointer, "card_number_in_text")
        if self.kit.obs.redactor.text(text, signal="request") != text:
            raise invalid("A text may not identify a person.", pointer, "identifier_in_text")

    def _found(self, connection: Connection, payment_id: str, *, lock: bool = False) -> Mapping[str, Any]:
        payment = store.payment(connection, payment_id, lock=lock)
        if payment is None:
            raise Problem(404, "payment_unknown", "There is no such payment.")
        annotate(resource_id=payment_id, subject=payment["patient_id"])
        return payment

    def _shown(self, connection: Connection, payment_id: str) -> models.Payment:
        payment = self._found(connection, payment_id)
        card, given = payment["card"], map(models.Given.of, store.decisions(connection, payment_id))
        return models.Payment.of(
            payment,
            transaction_id=payment_id,
            status=domain.status_at(self._age_seconds(payment), Status(payment["status"])).value,
            amount_decimal=money.to_decimal(payment["amount"], payment["currency"]),
            approvals=models.Approvals(required=payment["required"], given=list(given)),
            card=models.CardView(brand=card.brand, last4=card.last4),
            created=moment(payment["created_ns"]),
        )


def _amount(body: models.ChargeRequest) -> int:
    try:
        return money.amount_of(body.amount, body.amount_decimal, body.currency)
    except money.MoneyError as refused:
        of_both = ("amounts_differ", "amount_missing")
        stated = "amount" if body.amount_decimal is None or refused.code in of_both else "amount_decimal"
        member = "currency" if refused.code == "currency_not_supported" else stated
        raise invalid("The amount was refused.", f"/{member}", refused.code) from None
