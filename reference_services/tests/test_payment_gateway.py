"""Tests of payment-gateway over HTTP: tokens, dual control, idempotency, and that no card number stays anywhere."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import stat
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healthobs.clock import Clock
from healthobs.compliance import ProbeContext
from reference_services._kit import ServiceSettings
from reference_services._kit.idempotency import Idempotency
from reference_services.payment_gateway import cards, domain, store
from reference_services.payment_gateway.api import INFO, create_app
from reference_services.payment_gateway.controls import CANARY, controls
from reference_services.synthetic_phi import domain as synthetic

CVC = "737"
NUMBER = "4242424242424242"
CARD: dict[str, Any] = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2035, "cvc": CVC}
SCOPES = ("payment:write", "payment:read", "payment:approve", "patient:read", "device:read")
UDI = "(01)00844588003288(17)290101(10)LOT42(21)SN4711"


class Gateway:
    """payment-gateway with what a test asks it most."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.folder = folder / "payment-gateway"
        self.client = world.client("payment-gateway")
        self._headers: dict[str, dict[str, str]] = {}

    def headers(self, role: str) -> dict[str, str]:
        """Return the header of the client of a role; its token is asked for once."""
        return self._headers.setdefault(role, self.world.bearer(*SCOPES, role=role))

    def post(self, path: str, body: Any, *, role: str = "billing", key: str | None = None) -> Any:
        """Post a body as the client of a role."""
        headers = {**self.headers(role), "Idempotency-Key": key or str(uuid.uuid4())}
        return self.client.post(path, json=body, headers=headers)

    def get(self, path: str, role: str = "billing") -> Any:
        """Get a path as the client of a role."""
        return self.client.get(path, headers=self.headers(role))

    def token(self, number: str = NUMBER, **changes: Any) -> str:
        """Turn a card into a token."""
        found = cards.brand_of(number)
        assert found is not None
        answer = self.post("/tokens", {**CARD, "number": number, "cvc": "7" * found[1], **changes})
        assert answer.status_code == 201, answer.get_data(as_text=True)
        return str(answer.get_json()["id"])

    def bill(self, amount: int, token: str | None = None, **more: Any) -> dict[str, Any]:
        """Return the body of a payment."""
        return {"amount": amount, "currency": "USD", "payment_method": token or self.token(), **more}

    def held(self, amount: int = 2_500_000, **more: Any) -> str:
        """Make a payment that awaits approval and return its id."""
        answer = self.post("/process", self.bill(amount, **more))
        assert answer.status_code == 202
        return str(answer.get_json()["id"])

    def decide(self, payment: str, role: str, decision: str = "approve", key: str | None = None) -> Any:
        """Decide on a payment as the client of a role."""
        return self.post(
            f"/payments/{payment}/approvals",
            {"decision": decision, "reason": "invoice checked"},
            role=role,
            key=key,
        )

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value."""
        registry = self.world.obs("payment-gateway").metrics.registry
        return registry.get_sample_value(f"payment_gateway_{name}", labels) or 0.0

    def entries(self, action: str) -> list[dict[str, Any]]:
        """Return the audit entries of an action."""
        return list(self.world.obs("payment-gateway").audit.read(action=action).entries)

    def database(self, statement: str) -> list[Any]:
        """Run a statement on the database from outside."""
        connection = sqlite3.connect(self.folder / "payment_gateway.db")
        try:
            found = connection.execute(statement).fetchall()
            connection.commit()
        finally:
            connection.close()
        return found


@pytest.fixture
def gateway(world: Any, tmp_path: Path) -> Gateway:
    """A running payment-gateway."""
    return Gateway(world, tmp_path)


def refusal(answer: Any) -> tuple[int, str, list[tuple[str, str]]]:
    body = answer.get_json()
    assert answer.content_type == "application/problem+json"
    return (
        answer.status_code,
        body["code"],
        [(error["pointer"], error["code"]) for error in body.get("errors", [])],
    )


class TestTokens:
    """`POST /tokens`."""

    def test_a_token(self, gateway: Gateway) -> None:
        """Brand, last four digits and expiry come back; the rest is forgotten."""
        answer = gateway.post("/tokens", CARD)
        assert answer.status_code == 201
        body = answer.get_json()
        assert body.pop("id").startswith("tok_")
        assert body == {"brand": "visa", "last4": "4242", "exp": "12/2035"}
        assert gateway.sample("tokens_total", result="ok") == 1

    def test_what_the_database_knows(self, gateway: Gateway) -> None:
        """A keyed fingerprint, equal for the same card, and no number."""
        gateway.token()
        gateway.token()
        rows = gateway.database("SELECT fingerprint, brand, last4, outcome FROM token")
        assert len(rows) == 2
        assert rows[0] == rows[1]
        assert rows[0][1:] == ("visa", "4242", "approved")

    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"number": "4242424242424241"}, "/number", "card_number_invalid"),
            ({"number": "4539578763621486"}, "/number", "not_a_published_test_card"),
            ({"number": "4242"}, "/number", "too_short"),
            ({"number": 4242424242424242}, "/number", "string_type"),
            ({"cvc": "7373"}, "/cvc", "cvc_invalid"),
            ({"exp_month": 1, "exp_year": 2020}, "/exp_year", "card_expired"),
            ({"exp_month": 13}, "/exp_month", "less_than_equal"),
            ({"holder": "4242424242424242"}, "", "extra_forbidden"),
        ],
    )
    def test_refused(self, gateway: Gateway, changes: dict[str, Any], pointer: str, code: str) -> None:
        """A precise pointer, and no digit of the card."""
        answer = gateway.post("/tokens", {**CARD, **changes})
        assert refusal(answer) == (422, "invalid_request", [(pointer, code)])
        assert str(changes.get("number", CARD["number"]))[:12] not in answer.get_data(as_text=True)

    def test_any_pan_is_a_setting(self, world: Any, tmp_path: Path) -> None:
        """Cards that are not published need the setting; the fingerprint key is private."""
        world.environ["payment-gateway"] = {"PAYMENT_ALLOW_ANY_PAN": "true"}
        gateway = Gateway(world, tmp_path)
        assert gateway.token("4539578763621486").startswith("tok_")
        key = gateway.folder / "payment_gateway.fingerprint.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


class TestProcess:
    """`POST /process` and `POST /charge`."""

    @pytest.mark.parametrize("path", ["/process", "/charge"])
    def test_captured(self, gateway: Gateway, path: str) -> None:
        """A small payment is captured at once, counted, timed, entered twice in the ledger, and audited."""
        answer = gateway.post(path, gateway.bill(12_500, description="copay"))
        body = answer.get_json()
        assert answer.status_code == 201
        assert (body["status"], body["amount"], body["amount_decimal"]) == ("captured", 12_500, "125.00")
        assert body["approvals"] == {"required": 0, "given": []}
        assert body["card"] == {"brand": "visa", "last4": "4242"}
        assert body["id"] == body["transaction_id"]
        assert gateway.sample("transactions_total", status="captured", compliance_type="pci") == 1
        assert gateway.sample("processing_duration_seconds_count", status="captured") == 1
        assert sorted(gateway.database("SELECT account, minor FROM ledger")) == [
            ("receivable:processor", 12_500),
            ("revenue", -12_500),
        ]
        (entry,) = gateway.entries(f"payment.{path[1:]}")
        assert (entry["outcome"], entry["resource"]["id"], entry["actor"]["id"]) == (
            "ok",
            body["id"],
            "billing",
        )
        assert (entry["details"]["status"], entry["details"]["amount_minor"]) == ("captured", 12_500)
        assert gateway.get(f"/payments/{body['id']}").get_json() == body

    def test_authorised_only(self, gateway: Gateway) -> None:
        """Without capture no money moves."""
        answer = gateway.post("/process", gateway.bill(12_500, capture=False))
        assert (answer.status_code, answer.get_json()["status"]) == (201, "authorized")
        assert gateway.database("SELECT * FROM ledger") == []

    @pytest.mark.parametrize(
        ("number", "code"),
        [(number, outcome) for number, outcome in cards.TEST_CARDS.items() if outcome != "approved"],
    )
    def test_declined(self, gateway: Gateway, number: str, code: str) -> None:
        """The published cards decline as documented: 402 with the code, stored as such."""
        answer = gateway.post("/charge", gateway.bill(100, gateway.token(number)))
        body = answer.get_json()
        assert (answer.status_code, body["status"], body["decline_code"]) == (402, "declined", code)
        assert gateway.sample("transactions_total", status="declined", compliance_type="pci") == 1
        assert gateway.database("SELECT * FROM ledger") == []

    def test_decimal_amount(self, gateway: Gateway) -> None:
        """A decimal text says the same as minor units."""
        body = gateway.bill(1)
        del body["amount"]
        found = [
            gateway.post("/charge", {**body, "currency": currency, "amount_decimal": text}).get_json()[
                "amount"
            ]
            for currency, text in (("USD", "150.00"), ("JPY", "150"), ("KWD", "1.005"))
        ]
        assert found == [15_000, 150, 1005]

    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"amount": 150.0}, "/amount", "int_type"),
            ({"amount": 150.5}, "/amount", "int_type"),
            ({"amount": "150"}, "/amount", "int_type"),
            ({"amount": True}, "/amount", "int_type"),
            ({"amount": 0}, "/amount", "greater_than_equal"),
            ({"amount": None}, "/amount", "amount_missing"),
            ({"amount_decimal": "1.5e3"}, "/amount_decimal", "string_pattern_mismatch"),
            ({"amount_decimal": "2.00"}, "/amount", "amounts_differ"),
            ({"amount_decimal": "1.001", "amount": None}, "/amount", "amount_not_representable"),
            ({"currency": "XXX"}, "/currency", "currency_not_supported"),
            ({"currency": "usd"}, "/currency", "string_pattern_mismatch"),
            ({"payment_method": "4242424242424242"}, "/payment_method", "string_pattern_mismatch"),
            ({"payment_method": "tok_" + "0" * 32}, "/payment_method", "token_unknown"),
            ({"description": "card 4242-4242-4242-4242"}, "/description", "card_number_in_text"),
            ({"description": "4242\n4242\n4242\n4242"}, "/description", "card_number_in_text"),
            ({"description": "4242x4242x4242x4242"}, "/description", "card_number_in_text"),
            ({"description": "4242\u200b4242\u200b4242\u200b4242"}, "/description", "card_number_in_text"),
            ({"description": "copay of 123-45-6789"}, "/description", "identifier_in_text"),
            ({"description": "ask jane@example.org"}, "/description", "identifier_in_text"),
            ({"patient_id": "SYN-1"}, "/patient_id", "uuid_parsing"),
            ({"card": "4242424242424242"}, "", "extra_forbidden"),
        ],
    )
    def test_refused(self, gateway: Gateway, changes: dict[str, Any], pointer: str, code: str) -> None:
        """JSON floats, unknown currencies, card numbers in any field: a pointer, no echo, nothing stored."""
        answer = gateway.post("/process", {**gateway.bill(100), **changes})
        status, word, errors = refusal(answer)
        assert (status, word) == (422, "invalid_request")
        assert errors == [(pointer, code)]
        assert "42424242" not in answer.get_data(as_text=True).replace("-", "")
        assert gateway.database("SELECT * FROM payment") == []

    @pytest.mark.parametrize("path", ["/process", "/charge", "/tokens"])
    def test_scope_and_key(self, gateway: Gateway, path: str) -> None:
        """401 without a token, 403 without the scope, 400 without a key; each is audited."""
        body = CARD if path == "/tokens" else gateway.bill(100)
        reader = gateway.world.bearer("payment:read", role="billing")
        found = [
            gateway.client.post(path, json=body, headers=headers).status_code
            for headers in ({}, {**reader, "Idempotency-Key": "k"}, gateway.headers("billing"))
        ]
        assert found == [401, 403, 400]
        action = "card.tokenise" if path == "/tokens" else f"payment.{path[1:]}"
        outcomes = [entry["outcome"] for entry in gateway.entries(action) if entry["outcome"] != "ok"]
        assert sorted(outcomes) == ["denied", "denied", "failed"]

    def test_unknown_payment(self, gateway: Gateway) -> None:
        """404, also where the id is a card number; that one is in no entry."""
        assert refusal(gateway.get("/payments/4242424242424242"))[:2] == (404, "payment_unknown")
        assert gateway.decide("4242424242424242", "approver").status_code == 404
        assert "4242424242424242" not in json.dumps(gateway.entries("payment.read"))


class TestReferences:
    """Patient and device are asked for at their services, in the caller's name."""

    def patient(self, gateway: Gateway) -> str:
        """Store a patient's record and return its id."""
        made = synthetic.patient(42, 0)
        names = (
            "first_name",
            "last_name",
            "date_of_birth",
            "gender",
            "address",
            "telecom",
            "identifiers",
            "conditions",
        )
        headers = {
            **gateway.world.bearer("patient:write", role="clinician"), "Purpose-Of-Use": "TREAT", "Idempotency-Key": "p",
        }  # fmt: skip
        answer = gateway.world.client("phi-service").post(
            "/patients", json={name: made[name] for name in names}, headers=headers
        )
        return str(answer.get_json()["id"])

    def device(self, gateway: Gateway) -> str:
        """Register a device and return its id."""
        headers = {**gateway.world.bearer("device:write"), "Idempotency-Key": "d"}
        answer = gateway.world.client("medical-device").post(
            "/devices", json={"udi": UDI, "name": "Pulse oximeter"}, headers=headers
        )
        return str(answer.get_json()["id"])

    def test_both_exist(self, gateway: Gateway) -> None:
        """The payment refers to them, one trace goes through all three services, the label is the strictest regime."""
        patient, device = self.patient(gateway), self.device(gateway)
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {
            **gateway.headers("billing"), "Idempotency-Key": "k", "traceparent": f"00-{trace}-00f067aa0ba902b7-01",
        }  # fmt: skip
        body = gateway.bill(100, patient_id=patient, device_id=device)
        answer = gateway.client.post("/charge", json=body, headers=headers)
        assert answer.status_code == 201
        assert (answer.get_json()["patient_id"], answer.get_json()["device_id"]) == (patient, device)
        assert gateway.sample("transactions_total", status="captured", compliance_type="fda") == 1
        (entry,) = gateway.entries("payment.charge")
        subjects = gateway.world.obs("payment-gateway").audit.subjects
        assert subjects.identifier(entry["subject"]) == patient
        for service in ("payment-gateway", "phi-service", "medical-device"):
            assert trace in {format(span.context.trace_id, "032x") for span in gateway.world.spans(service)}

    @pytest.mark.parametrize("name", ["patient_id", "device_id"])
    def test_unknown(self, gateway: Gateway, name: str) -> None:
        """422 with a pointer, nothing stored."""
        answer = gateway.post("/charge", gateway.bill(100, **{name: str(uuid.uuid4())}))
        assert refusal(answer) == (422, "invalid_request", [(f"/{name}", "not_found")])
        assert gateway.database("SELECT * FROM payment") == []

    def test_not_permitted(self, gateway: Gateway) -> None:
        """Who may not see the patient may not bill them: the caller's own token is what counts."""
        headers = {**gateway.world.bearer("payment:write", role="billing"), "Idempotency-Key": "k"}
        body = gateway.bill(100, patient_id=self.patient(gateway))
        answer = gateway.client.post("/charge", json=body, headers=headers)
        assert refusal(answer) == (403, "reference_not_permitted", [("/patient_id", "denied")])

    def test_nobody_can_tell(self, gateway: Gateway) -> None:
        """503 and nothing stored, so the same key may be used again."""
        kit = gateway.world["payment-gateway"].extensions["reference_services"]
        device = self.device(gateway)
        kit._clients["medical-device"], real = Down(), kit.client("medical-device")
        body = gateway.bill(100, device_id=device)
        answer = gateway.post("/charge", body, key="k")
        assert refusal(answer) == (503, "peer_unavailable", [("/device_id", "unchecked")])
        kit._clients["medical-device"] = real
        assert gateway.post("/charge", body, key="k").status_code == 201
        kit._clients["medical-device"] = Down()
        assert gateway.post("/charge", body, key="k").headers["Idempotent-Replayed"] == "true"

    def test_nobody_waits_for_a_peer(self, gateway: Gateway) -> None:
        """While a peer is asked no transaction is open: another writer gets on."""
        kit = gateway.world["payment-gateway"].extensions["reference_services"]
        device = self.device(gateway)
        real, wrote = kit.client("medical-device"), list[bool]()

        class Watching(Down):
            def request(self, *args: Any, **options: Any) -> Any:
                with kit.engine.begin():  # BEGIN IMMEDIATE: raises when another holds the lock
                    wrote.append(True)
                return real.request(*args, **options)

        kit._clients["medical-device"] = Watching()
        assert gateway.post("/charge", gateway.bill(100, device_id=device)).status_code == 201
        assert wrote == [True]


class Down:
    """A peer that does not answer."""

    def request(self, *_args: Any, **_options: Any) -> Any:
        """Fail as the client does."""
        from healthobs.exceptions import ClientError

        raise ClientError("down")

    def close(self) -> None:
        """Nothing is open."""


class TestIdempotency:
    """One key, one payment."""

    def test_replayed(self, gateway: Gateway) -> None:
        """The same request again gets the first answer; another body under the key is refused."""
        body = gateway.bill(12_500)
        first, again = (gateway.post("/charge", body, key="k") for _ in range(2))
        assert (again.status_code, again.data) == (201, first.data)
        assert again.headers["Idempotent-Replayed"] == "true"
        assert refusal(gateway.post("/charge", {**body, "amount": 1}, key="k"))[:2] == (
            422,
            "idempotency_key_reused",
        )
        assert len(gateway.database("SELECT * FROM payment")) == 1
        assert gateway.sample("transactions_total", status="captured", compliance_type="pci") == 1

    def test_memory_of_a_card(self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither number nor code goes into the fingerprint of a request, keyed or not (PCI DSS 3.3.1, 3.5.1)."""
        digested: list[bytes] = []
        digest = Idempotency.fingerprint

        def noting(memory: Idempotency, canonical: bytes) -> str:
            digested.append(canonical)
            return digest(memory, canonical)

        monkeypatch.setattr(Idempotency, "fingerprint", noting)
        first = gateway.post("/tokens", CARD, key="k")
        again = gateway.post("/tokens", {**CARD, "cvc": "111", "number": "4242 4242 4242 4242"}, key="k")
        assert (again.status_code, again.data) == (201, first.data)
        assert again.headers["Idempotent-Replayed"] == "true"
        (stored,) = gateway.database("SELECT fingerprint FROM token")
        kept = {"exp_month": 12, "exp_year": 2035, "number": stored[0]}
        assert [json.loads(canonical)[3] for canonical in digested] == [kept, kept]
        assert [form for form in cards.written_forms(NUMBER) if form in b"".join(digested)] == []
        other = gateway.post("/tokens", {**CARD, "number": "5555555555554444"}, key="k")
        assert refusal(other)[:2] == (422, "idempotency_key_reused")

    def test_declined_is_replayed(self, gateway: Gateway) -> None:
        """A decline is an outcome too: it is not tried again."""
        body = gateway.bill(100, gateway.token("4000000000000002"))
        assert [gateway.post("/charge", body, key="k").status_code for _ in range(2)] == [402, 402]
        assert len(gateway.database("SELECT * FROM payment")) == 1

    def test_at_the_same_time(self, gateway: Gateway) -> None:
        """Eight threads with one key make one payment; each gets its answer, or 409 to retry."""
        body, answers = gateway.bill(12_500), list[Any]()
        headers = {**gateway.headers("billing"), "Idempotency-Key": "k"}
        app = gateway.world["payment-gateway"]
        start = threading.Barrier(8)

        def charge() -> None:
            start.wait()
            answers.append(app.test_client().post("/charge", json=body, headers=headers))

        threads = [threading.Thread(target=charge) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert len({answer.get_json()["id"] for answer in answers if answer.status_code == 201}) == 1
        assert len(gateway.database("SELECT * FROM payment")) == 1


class TestApprovals:
    """`POST /payments/{id}/approvals`: dual control and separation of duties."""

    @pytest.mark.parametrize("path", ["/process", "/charge"])
    def test_one_other_person(self, gateway: Gateway, path: str) -> None:
        """From $10,000 on nothing is captured until someone else approves."""
        answer = gateway.post(path, gateway.bill(1_000_000))
        body = answer.get_json()
        assert (answer.status_code, body["status"], body["approvals"]["required"]) == (
            202,
            "requires_approval",
            1,
        )
        assert gateway.database("SELECT * FROM ledger") == []
        assert gateway.sample("pending_approvals") == 1
        done = gateway.decide(body["id"], "approver")
        assert (done.status_code, done.get_json()["status"]) == (200, "captured")
        assert done.get_json()["approvals"]["given"] == [
            {"approver": "approver", "decision": "approve", "reason": "invoice checked"}
        ]
        assert gateway.sample("pending_approvals") == 0
        assert gateway.sample("approvals_total", decision="approve") == 1
        assert gateway.sample("transactions_total", status="captured", compliance_type="sox") == 1

    def test_two_other_persons(self, gateway: Gateway) -> None:
        """From $100,000 on two, and they are different ones."""
        payment = gateway.held(10_000_000)
        assert gateway.decide(payment, "approver").get_json()["status"] == "requires_approval"
        assert refusal(gateway.decide(payment, "approver"))[:2] == (409, "already_decided")
        assert gateway.decide(payment, "admin").get_json()["status"] == "captured"

    def test_never_ones_own(self, gateway: Gateway) -> None:
        """403, an alert that stays, the violation counted, logged and audited; the payment still waits."""
        payment = gateway.held()
        answer = gateway.decide(payment, "billing")
        assert refusal(answer)[:2] == (403, "self_approval")
        assert gateway.sample("sox_violations_total", control="S-sod") == 1
        (entry,) = gateway.entries("payment.decide")
        assert (entry["outcome"], entry["resource"]["id"], entry["actor"]["id"]) == (
            "denied",
            payment,
            "billing",
        )
        assert [
            line["control"]
            for line in gateway.world.log_lines("payment-gateway")
            if line["event"] == "sox_violation"
        ] == ["S-sod"]
        alerts = gateway.get("/alerts").get_json()
        assert alerts["total_alerts"] == 1
        found = alerts["active_alerts"][0]
        assert (found["type"], found["severity"], found["payment_id"], found["count"]) == (
            "self_approval",
            "high",
            payment,
            1,
        )
        assert gateway.get(f"/payments/{payment}").get_json()["status"] == "requires_approval"
        gateway.decide(payment, "billing", "reject")
        assert gateway.get("/alerts").get_json()["active_alerts"][0]["count"] == 2
        assert gateway.decide(payment, "approver").get_json()["status"] == "captured"

    def test_repeated_self_approval(self, gateway: Gateway) -> None:
        """The same request again is the same attempt: it is answered alike and counted once."""
        payment = gateway.held()
        assert [gateway.decide(payment, "billing", key="k").status_code for _ in range(2)] == [403, 403]
        assert gateway.sample("sox_violations_total", control="S-sod") == 1

    def test_rejected(self, gateway: Gateway) -> None:
        """One rejection ends it; the status of an ended payment is in the refusal."""
        payment = gateway.held(10_000_000)
        assert gateway.decide(payment, "approver", "reject").get_json()["status"] == "rejected"
        assert refusal(gateway.decide(payment, "admin")) == (
            409,
            "transition_not_permitted",
            [("/status", "rejected")],
        )
        assert gateway.sample("approvals_total", decision="reject") == 1

    def test_declined_after_approval(self, gateway: Gateway) -> None:
        """The processor has the last word."""
        payment = gateway.held(token=gateway.token("4000000000009995"))
        body = gateway.decide(payment, "approver").get_json()
        assert (body["status"], body["decline_code"]) == ("declined", "insufficient_funds")

    def test_scope(self, gateway: Gateway) -> None:
        """Approving is a right of its own."""
        payment = gateway.held()
        headers = {
            **gateway.world.bearer("payment:write", "payment:read", role="approver"),
            "Idempotency-Key": "k",
        }
        answer = gateway.client.post(
            f"/payments/{payment}/approvals", json={"decision": "approve", "reason": "x"}, headers=headers
        )
        assert refusal(answer)[:2] == (403, "scope_missing")

    def test_card_number_in_the_reason(self, gateway: Gateway) -> None:
        """Refused like anywhere else."""
        body = {"decision": "approve", "reason": "card 4242 4242 4242 4242"}
        answer = gateway.post(f"/payments/{gateway.held()}/approvals", body, role="approver")
        assert refusal(answer) == (422, "invalid_request", [("/reason", "card_number_in_text")])

    def test_too_late(self, gateway: Gateway) -> None:
        """After a day the payment has expired, for good."""
        payment = gateway.held()
        kit = gateway.world["payment-gateway"].extensions["reference_services"]
        later = (domain.APPROVAL_SECONDS + 1) * 1_000_000_000
        kit.clock = Clock(wall_ns=lambda: time.time_ns() + later)
        assert refusal(gateway.decide(payment, "approver"))[:2] == (409, "approval_expired")
        kit.clock = Clock()
        assert gateway.get(f"/payments/{payment}").get_json()["status"] == "expired"
        assert gateway.sample("pending_approvals") == 0

    def test_at_the_same_time(self, gateway: Gateway) -> None:
        """Of two approvers at once, one captures; money moves once."""
        payment, answers = gateway.held(), list[Any]()
        roles = ("approver", "admin", "auditor", "qa")
        headers = {role: {**gateway.headers(role), "Idempotency-Key": role} for role in roles}
        app = gateway.world["payment-gateway"]
        start = threading.Barrier(len(roles))

        def approve(role: str) -> None:
            start.wait()
            body = {"decision": "approve", "reason": "x"}
            path = f"/payments/{payment}/approvals"
            answers.append(app.test_client().post(path, json=body, headers=headers[role]).status_code)

        threads = [threading.Thread(target=approve, args=(role,)) for role in roles]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == [200, 409, 409, 409]
        assert len(gateway.database("SELECT * FROM ledger")) == 2


class TestReadiness:
    """The ledger is a readiness check."""

    def test_unbalanced(self, gateway: Gateway) -> None:
        """An entry changed from outside makes the service unready."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]
        gateway.post("/charge", gateway.bill(100))
        assert service.ledger_balances()
        gateway.database("UPDATE ledger SET minor = 1 WHERE account = 'revenue'")
        assert not service.ledger_balances()

    def test_emptied(self, gateway: Gateway) -> None:
        """So does a ledger without the entries of a captured payment."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]
        gateway.post("/charge", gateway.bill(100))
        gateway.database("DELETE FROM ledger")
        assert not service.ledger_balances()


class TestControls:
    """The service's own controls pass on a sound service and fail on each sabotage from outside."""

    @pytest.fixture
    def run(self, gateway: Gateway) -> Callable[[str], tuple[str, int | None]]:
        """Run one control and return its state and how much it looked at."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]
        obs = gateway.world.obs("payment-gateway")
        context = ProbeContext(settings=obs.settings, clock=obs.clock, redactor=obs.redactor, audit=obs.audit)
        made = {control.id: control for control in controls(lambda: service)}

        def once(name: str) -> tuple[str, int | None]:
            probe = made[name].probe
            assert probe is not None
            outcome = probe(context)
            return outcome.state, outcome.n

        return once

    def test_sound(self, gateway: Gateway, run: Any) -> None:
        """All pass; what they count is there; the canary is not kept."""
        gateway.decide(gateway.held(), "approver")
        gateway.post("/charge", gateway.bill(100))
        assert [run(name) for name in ("S-sod", "S-dual")] == [("pass", 1), ("pass", 1)]
        assert run("C-3.5.db")[0] == "pass"
        assert len(gateway.database("SELECT * FROM token")) == 2

    def test_empty(self, run: Any) -> None:
        """Nothing stored is nothing wrong."""
        assert [run(name)[0] for name in ("S-sod", "S-dual", "C-3.5.db")] == ["pass"] * 3

    @pytest.mark.parametrize(
        ("statement", "control"),
        [
            ("UPDATE approval SET approver = 'billing'", "S-sod"),
            ("UPDATE payment SET initiator = 'approver'", "S-sod"),
            ("DELETE FROM approval", "S-dual"),
            ("UPDATE payment SET amount = 10000000", "S-dual"),
            ("UPDATE approval SET decision = 'reject'", "S-dual"),
            ("DELETE FROM ledger", "S-dual"),
            ("UPDATE payment SET amount = 1", "S-dual"),
            ("UPDATE token SET brand = '4242424242424242'", "C-3.5.db"),
        ],
    )
    def test_sabotaged_database(self, gateway: Gateway, run: Any, statement: str, control: str) -> None:
        """A row changed by hand is found by its control."""
        gateway.decide(gateway.held(), "approver")
        gateway.database(statement)
        assert run(control)[0] == "fail"

    @pytest.mark.parametrize(
        "statements",
        [
            ("DELETE FROM ledger", "DELETE FROM approval", "DELETE FROM payment"),
            (
                "UPDATE payment SET amount = 1",
                "UPDATE ledger SET minor = CASE WHEN minor < 0 THEN -1 ELSE 1 END",
            ),
        ],
    )
    def test_nothing_left_of_it(self, gateway: Gateway, run: Any, statements: tuple[str, ...]) -> None:
        """A payment that was destroyed, or made smaller in all places, is missed: the audit trail tells of it."""
        gateway.decide(gateway.held(), "approver")
        assert run("S-dual") == ("pass", 1)
        for statement in statements:
            gateway.database(statement)
        assert run("S-dual") == ("fail", 1)

    def test_only_the_one_concerned(self, gateway: Gateway, run: Any) -> None:
        """A card number in the database says nothing about approvals."""
        gateway.decide(gateway.held(), "approver")
        gateway.database("UPDATE token SET brand = '4242424242424242'")
        assert [run(name)[0] for name in ("S-sod", "S-dual", "C-3.5.db")] == ["pass", "pass", "fail"]

    @pytest.mark.parametrize("form", range(8))
    def test_file(self, gateway: Gateway, run: Any, form: int) -> None:
        """The canary in any file of the service, in any form, is found."""
        (gateway.folder / "core.dump").write_bytes(b"\0\xff" + cards.written_forms(CANARY)[form] + b"\0")
        assert run("C-3.5.db")[0] == "fail"

    def test_file_in_a_folder(self, gateway: Gateway, run: Any) -> None:
        """A file below the folder is one of the service's too."""
        (gateway.folder / "dumps" / "old").mkdir(parents=True)
        assert run("C-3.5.db")[0] == "pass"
        (gateway.folder / "dumps" / "old" / "core").write_bytes(b"\0" + CANARY.encode() + b"\0")
        assert run("C-3.5.db")[0] == "fail"

    def test_rule_switched_off(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rule that lets everything through is found before anything is stored by it."""
        monkeypatch.setattr(domain, "check_separation", lambda *_: None)
        assert run("S-sod") == ("fail", 0)
        monkeypatch.setattr(domain, "approvals_required", lambda *_: 0)
        assert run("S-dual") == ("fail", 0)

    def test_number_kept(self, gateway: Gateway, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A service that keeps the number is found by the canary alone."""
        service = gateway.world["payment-gateway"].extensions["payment-gateway"]

        def keep(connection: Any, token_id: str, number: str, *rest: Any) -> None:
            card = cards.read_card(number, *rest, key=b"k" * 32, now=(2026, 1))
            store.add_token(connection, token_id, dataclasses.replace(card, fingerprint=number))

        monkeypatch.setattr(service, "keep", keep)
        assert run("C-3.5.db")[0] == "fail"

    def test_they_are_observed(self, tmp_path: Path) -> None:
        """Started on its own the service shows them beside the library's."""
        environ = {"HEALTHOBS_DATA_DIR": str(tmp_path / "own"), "HEALTHOBS_CAPTURE_STDLIB": "false"}
        app = create_app(
            ServiceSettings.from_env(INFO, {**environ, "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0"})
        )
        kit = app.extensions["reference_services"]
        try:
            engine = kit.obs.controls
            assert engine is not None
            assert engine.run(["S-sod", "S-dual", "C-3.5.db"]) == {
                "S-sod": "pass",
                "S-dual": "pass",
                "C-3.5.db": "pass",
            }
        finally:
            kit.close()


def evidence(gateway: Gateway) -> bytes:
    """Return everything that the service left: files, log lines, spans, metrics, audit entries."""
    world, name = gateway.world, "payment-gateway"
    left = [path.read_bytes() for path in gateway.folder.rglob("*") if path.is_file()]
    left.append(json.dumps(world.log_lines(name)).encode())
    left += [span.to_json().encode() for span in world.spans(name)]
    left.append(world.obs(name).metrics.exposition(None)[1])
    left.append(json.dumps(world.obs(name).audit.read(limit=1000).entries).encode())
    return b"\n".join(left)


def found_numbers(left: bytes) -> list[str]:
    return [
        number for number in cards.TEST_CARDS if any(form in left for form in cards.written_forms(number))
    ]


class TestNoCardNumber:
    """PCI DSS 4.0.1, 3.3.1 and 3.5.1: no card number and no security code anywhere."""

    def test_nowhere(self, gateway: Gateway) -> None:
        """Every published card is tokenised, used, mistyped and put where it does not belong; then all is searched."""
        bodies = list[bytes]()
        secret_code = "9137"
        for number in cards.TEST_CARDS:
            found = cards.brand_of(number)
            assert found is not None
            cvc = secret_code if found[1] == 4 else secret_code[1:]
            made = gateway.post("/tokens", {**CARD, "number": number, "cvc": cvc})
            bodies.append(made.data)
            bodies.append(gateway.post("/charge", gateway.bill(100, made.get_json()["id"])).data)
            for wrong in (
                {"number": number, "cvc": "12"}, {"number": f"{number}x"}, {"number": int(number)},
                {"holder": number}, {number: number},
            ):  # fmt: skip
                bodies.append(gateway.post("/tokens", {**CARD, **wrong}).data)
        number = NUMBER
        for wrong in (
            {"payment_method": number},
            {"description": number},
            {"currency": number},
            {"patient_id": number},
        ):
            bodies.append(gateway.post("/process", {**gateway.bill(100), **wrong}).data)
        bodies.append(gateway.post("/tokens", number, key=number).data)
        bodies.append(gateway.get(f"/payments/{number}?card={number}").data)
        bodies.append(gateway.client.get(f"/{number}", headers={"User-Agent": number}).data)
        left = evidence(gateway)
        assert found_numbers(b"\n".join(bodies)) == []
        assert found_numbers(left) == []
        assert f'"{secret_code}"'.encode() not in left

    def test_request_id(self, gateway: Gateway) -> None:
        """A card number sent as request id is not repeated either."""
        answer = gateway.client.get("/nowhere", headers={"X-Request-Id": "4242424242424242"})
        assert found_numbers(answer.data + str(answer.headers).encode() + evidence(gateway)) == []

    @pytest.mark.parametrize("form", range(len(cards.written_forms("4242424242424242"))))
    def test_the_search_finds_them(self, gateway: Gateway, form: int) -> None:
        """A number written anywhere in any of the forms is found, so that finding none means something."""
        gateway.token()
        written = cards.written_forms("4242424242424242")[form].decode()
        gateway.database(f"UPDATE token SET brand = 'x{written}x'")
        assert found_numbers(evidence(gateway)) == ["4242424242424242"]
