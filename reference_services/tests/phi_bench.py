"""phi-service with what its tests ask it most."""

from __future__ import annotations

import uuid
from typing import Any

from one_service import OneService
from reference_services.phi.domain import RECORD_FIELDS
from reference_services.synthetic_phi import domain as synthetic

PURPOSE = {"clinician": "TREAT", "billing": "HPAYMT", "researcher": "HRESCH"}


def record(index: int = 0, **changes: Any) -> dict[str, Any]:
    made = synthetic.patient(42, index)
    return {**{name: made[name] for name in RECORD_FIELDS}, **changes}


class Phi(OneService):
    """phi-service with what a test asks it most."""

    name = "phi-service"
    prefix = "phi"

    def call(
        self,
        method: str,
        path: str,
        *,
        role: str = "clinician",
        purpose: str | None = None,
        json: Any = None,
        **headers: str,
    ) -> Any:
        """Make a request as the client of a role, for the role's purpose unless told otherwise."""
        scope = "patient:write" if method == "PUT" or path == "/patients" else "patient:read"
        stated = PURPOSE.get(role, "") if purpose is None else purpose
        sent = {
            **self.world.bearer(scope, role=role),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        if stated:
            sent["Purpose-Of-Use"] = stated
        return self.client.open(path, method=method, json=json, headers=sent)

    def create(self, body: dict[str, Any], key: str | None = None, **options: Any) -> Any:
        """Store a record."""
        return self.call("POST", "/patients", json=body, Idempotency_Key=key or str(uuid.uuid4()), **options)

    def made(self, index: int = 0) -> str:
        """Store a record and return its id."""
        answer = self.create(record(index))
        assert answer.status_code == 201, answer.get_data(as_text=True)
        return str(answer.get_json()["id"])

    def token(self, patient: str) -> str | None:
        """Return the token that audit entries about a patient have."""
        return self.world.obs("phi-service").audit.subjects.find(patient)

    def raw(self) -> bytes:
        """Return every byte that the service wrote."""
        return b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())
