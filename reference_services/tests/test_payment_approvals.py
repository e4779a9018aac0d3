"""Dual control of large payments: who decides, how often, and on what."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from healthobs.clock import Clock
from one_service import refusal
from payment_bench import Gateway
from reference_services.payment_gateway import domain


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
        other = gateway.world.bearer("payment:write", role="billing")
        assert gateway.client.get("/alerts", headers=other).status_code == 403
        seen = [(entry["outcome"], entry["actor"]["id"]) for entry in gateway.entries("alerts.read")]
        assert seen == [("denied", "billing"), ("ok", "billing")]
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

    def test_nobody_decides(self, gateway: Gateway) -> None:
        """A payment that nobody decides on has expired after a day, and awaits nothing any more."""
        payment = gateway.held()
        app = gateway.world["payment-gateway"]
        kit, service = app.extensions["reference_services"], app.extensions["payment-gateway"]
        for seconds, status, waiting in ((-60, "requires_approval", 1), (1, "expired", 0)):
            later = (domain.APPROVAL_SECONDS + seconds) * 1_000_000_000
            kit.clock = Clock(wall_ns=lambda later=later: time.time_ns() + later)
            assert gateway.get(f"/payments/{payment}").get_json()["status"] == status
            assert service.ledger_balances()
            assert gateway.sample("pending_approvals") == waiting
        assert refusal(gateway.decide(payment, "approver"))[:2] == (409, "approval_expired")
        kit.clock = Clock()

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
