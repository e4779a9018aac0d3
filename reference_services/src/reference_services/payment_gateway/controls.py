"""What payment-gateway observes about itself, beside the library's controls.

* S-sod, separation of duties, and S-dual, dual control (15 U.S.C. 7262): what is stored is counted, and the
  rule in force is put to the test. Thresholds are judged by amounts, so the ledger and the audit trail must tell the same.
* C-3.5.db (PCI DSS 4.0.1, 3.5.1): a canary card goes the way of any card; then what is stored is searched.

Limits: the files are searched for the canary in every written form, for other published cards in plain; of each
file the first `MAX_SEARCHED_BYTES`; of a PostgreSQL database only the canary's row is seen. Of the trail the newest
thousand entries of each way to a capture are looked at.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from healthobs.compliance import Control, Outcome, control
from reference_services._kit.controls import contents
from reference_services.payment_gateway import cards, domain, lifecycle, money, store

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail
    from reference_services.payment_gateway.service import Service

_DUAL = (
    "every payment beyond a threshold has the approvers it needs, each threshold is in force, and the ledger and the "
    "audit trail tell of the same captured amounts"
)
_NO_CARD = "a canary card leaves no number in its row, and no published card is in any file of the service"
CANARY = "4000056655665556"
MAX_SEARCHED_BYTES = 16 * 1024 * 1024


def controls(service: Callable[[], Service]) -> tuple[Control, ...]:
    """Return the controls of the service that `service` returns once it exists."""
    return (
        control("S-sod")(lambda _context: separation_of_duties(service())),
        control("S-dual", criterion=_DUAL)(lambda context: dual_control(service(), context.audit)),
        control("C-3.5", part="db", criterion=_NO_CARD, valid_for_s=900, every_s=60)(
            lambda _context: no_card_stored(service())
        ),
    )


def separation_of_duties(service: Service) -> Outcome:
    """Count decisions of initiators, and try one."""
    with service.kit.reading() as connection:
        decisions, own = store.self_approved(connection)
    if own:
        return Outcome("fail", f"{own} of {decisions} decisions are the initiator's own", decisions)
    pending = domain.Pending(lifecycle.Status.REQUIRES_APPROVAL, "canary", 1, frozenset(), 0.0)
    try:
        domain.decide(pending, "canary", approve=True, outcome_event=lifecycle.Event.AUTHORIZE)
    except domain.ApprovalError:
        return Outcome("pass", f"none of {decisions} decisions, and a self-approval was refused", decisions)
    return Outcome("fail", "a self-approval was let through", decisions)


def dual_control(service: Service, trail: AuditTrail | None) -> Outcome:
    """Count payments beyond a threshold that lack an approver, and amounts that differ; try each threshold."""
    told = _captured(trail)  # first: what it tells of was stored before
    with service.kit.reading() as connection:
        large, lacking = store.under_approved(connection)
        unentered, otherwise = store.unbalanced(connection), store.captured_otherwise(connection, told)
    if unentered:
        return Outcome("fail", f"{unentered} payments are not in the ledger as they were captured", unentered)
    if otherwise:
        text = f"{otherwise} payments are gone that the audit trail tells of, or have another amount"
        return Outcome("fail", text, otherwise)
    if lacking:
        return Outcome("fail", f"{lacking} of {large} large payments lack an approver", large)
    for currency in money.CURRENCIES:
        first = domain.threshold(currency)
        asked = [domain.approvals_required(first * times, currency) for times in (1, domain.SECOND_FACTOR)]
        if asked != [1, 2]:
            return Outcome("fail", f"the thresholds of {currency} are not in force", large)
    return Outcome("pass", f"{large} large payments have their approvers", large)


def _captured(trail: AuditTrail | None) -> dict[str, tuple[int, str]]:
    """Return amount and currency of each payment that the newest entries of the audit trail say was captured."""
    entries = [
        entry
        for action in ("payment.process", "payment.charge", "payment.decide", "payment.capture")
        for entry in (() if trail is None else trail.read(action=action, limit=1_000).entries)
        if entry["details"].get("status") == lifecycle.Status.CAPTURED.value and entry.get("outcome") == "ok"
    ]
    return {
        entry["resource"]["id"]: (entry["details"]["amount_minor"], entry["details"]["currency"])
        for entry in entries
    }


def no_card_stored(service: Service) -> Outcome:
    """Tokenise a canary, look at its row, take it back, and search every file of the service."""
    token_id = f"tok_{uuid.uuid4().hex}"
    year = service.kit.clock.now().year + 1
    with service.kit.engine.connect() as connection, connection.begin() as transaction:
        service.keep(connection, token_id, CANARY, 12, year, "000")
        row = store.token_texts(connection, token_id)
        transaction.rollback()
    forms = cards.written_forms(CANARY)
    if any(form in text.encode() for form in forms for text in row):
        return Outcome("fail", "the row of a canary card holds its number")
    wanted = (*forms, *(number.encode() for number in cards.TEST_CARDS))
    searched = 0
    for content in _files(service):
        searched += 1
        if any(form in content for form in wanted):
            return Outcome("fail", "a file of the service holds a card number", searched)
    return Outcome("pass", f"no card number in a canary's row and {searched} files", searched)


def _files(service: Service) -> Iterator[bytes]:
    return contents(sorted(service.kit.settings.data_dir.rglob("*")), MAX_SEARCHED_BYTES)
