"""payment-gateway with what a test asks it most."""

from __future__ import annotations

from typing import Any

from one_service import OneService
from reference_services.payment_gateway import cards

CVC = "737"
NUMBER = "4242424242424242"
CARD: dict[str, Any] = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2035, "cvc": CVC}


class Gateway(OneService):
    """payment-gateway with what a test asks it most."""

    name = "payment-gateway"
    prefix = "payment_gateway"
    scopes = ("payment:write", "payment:read", "payment:approve", "patient:read", "device:read")
    role = "billing"

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
