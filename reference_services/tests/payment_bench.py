"""payment-gateway with what a test asks it most."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path
from typing import Any

from reference_services.payment_gateway import cards

CVC = "737"
NUMBER = "4242424242424242"
CARD: dict[str, Any] = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2035, "cvc": CVC}
SCOPES = ("payment:write", "payment:read", "payment:approve", "patient:read", "device:read")


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


def refusal(answer: Any) -> tuple[int, str, list[tuple[str, str]]]:
    body = answer.get_json()
    assert answer.content_type == "application/problem+json"
    return (
        answer.status_code,
        body["code"],
        [(error["pointer"], error["code"]) for error in body.get("errors", [])],
    )
