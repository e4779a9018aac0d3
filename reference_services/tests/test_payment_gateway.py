"""Tests of payment-gateway over HTTP: tokens, payments, what they refer to, idempotency, readiness."""

from __future__ import annotations

import json
import stat
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from one_service import refusal
from payment_bench import CARD, NUMBER, Gateway
from reference_services._kit.idempotency import Idempotency
from reference_services.payment_gateway import cards
from reference_services.phi.domain import RECORD_FIELDS
from reference_services.synthetic_phi import domain as synthetic

UDI = "(01)00844588003288(17)290101(10)LOT42(21)SN4711"


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

    def step(self, gateway: Gateway, payment: str, name: str, role: str = "billing", key: str = "") -> Any:
        """Capture or void a payment; there is nothing to send with it."""
        headers = {**gateway.headers(role), "Idempotency-Key": key or name}
        return gateway.client.post(f"/payments/{payment}/{name}", headers=headers)

    @pytest.mark.parametrize(
        ("name", "status", "entries"),
        [
            ("capture", "captured", [("receivable:processor", 12_500), ("revenue", -12_500)]),
            ("void", "voided", []),
        ],
    )
    def test_captured_or_voided_later(
        self, gateway: Gateway, name: str, status: str, entries: list[tuple[str, int]]
    ) -> None:
        """What was authorised is captured, or given up, once: counted, entered in the ledger, audited."""
        payment = gateway.post("/process", gateway.bill(12_500, capture=False)).get_json()["id"]
        answer = self.step(gateway, payment, name)
        assert (answer.status_code, answer.get_json()["status"]) == (200, status)
        assert self.step(gateway, payment, name).headers["Idempotent-Replayed"] == "true"
        assert sorted(gateway.database("SELECT account, minor FROM ledger")) == entries
        assert gateway.sample("transactions_total", status=status, compliance_type="pci") == 1
        told = gateway.entries(f"payment.{name}")
        assert [(entry["outcome"], entry["resource"]["id"]) for entry in told] == [("ok", payment)] * 2
        assert (told[0]["details"]["status"], told[0]["details"]["amount_minor"]) == (status, 12_500)
        for other in ("capture", "void"):
            refused = refusal(self.step(gateway, payment, other, key="again"))
            assert refused == (409, "transition_not_permitted", [("/status", status)])

    def test_capture_of_what_waits(self, gateway: Gateway) -> None:
        """Nobody captures past dual control, or anybody's payment without the scope."""
        payment = gateway.held(capture=False)
        waits = (409, "transition_not_permitted", [("/status", "requires_approval")])
        assert refusal(self.step(gateway, payment, "capture")) == waits
        gateway.decide(payment, "approver")
        reader = {**gateway.world.bearer("payment:read", "payment:approve"), "Idempotency-Key": "k"}
        for name in ("capture", "void"):
            assert gateway.client.post(f"/payments/{payment}/{name}", headers=reader).status_code == 403
        assert self.step(gateway, payment, "capture", key="k").get_json()["status"] == "captured"
        assert self.step(gateway, "pay_none", "void").status_code == 404

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
            ({"amount_decimal": "1.001", "amount": None}, "/amount_decimal", "amount_not_representable"),
            ({"amount_decimal": "1.001"}, "/amount_decimal", "amount_not_representable"),
            ({"amount_decimal": "0.00", "amount": None}, "/amount_decimal", "amount_out_of_range"),
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
        headers = {
            **gateway.world.bearer("patient:write", role="clinician"), "Purpose-Of-Use": "TREAT", "Idempotency-Key": "p",
        }  # fmt: skip
        answer = gateway.world.client("phi-service").post(
            "/patients", json={name: made[name] for name in RECORD_FIELDS}, headers=headers
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
