"""A patient's journey through the five services, and the experiments around it.

The demo is itself a user of the library: its calls go through `healthobs.client`, so the root of the
trace and each client span are its own.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import urllib3

from healthobs.client import Client
from healthobs.clock import Clock, rfc3339
from reference_services.demo.cluster import Identity, Service
from reference_services.demo.evidence import Evidence, Step
from reference_services.phi.domain import RECORD_FIELDS

CARD = "4242424242424242"
CARD_CVC = "737"
SEED = 42

IDENTITIES = (
    Identity("clinician-app", ("patient:read", "patient:write", "device:read"), ("clinician",)),
    Identity(
        "billing-app",
        ("patient:read", "payment:write", "payment:read", "payment:approve", "device:read"),
        ("billing",),
    ),
    Identity("finance-approver", ("payment:read", "payment:approve"), ("approver",)),
    Identity("engineering-app", ("device:read", "device:write", "device:sign"), ("device-engineer",)),
    Identity("auditor", ("audit:read", "compliance:read"), ("auditor",)),
)


class Journey:
    """Drives the services and records every step into the evidence.

    Args:
        services: The running services by name.
        evidence: Where steps, needles and experiments go.
        progress: Told the name of each step as it starts.
    """

    def __init__(
        self, services: Mapping[str, Service], evidence: Evidence, progress: Callable[[str], None]
    ) -> None:
        self._services = services
        self._evidence = evidence
        self._progress = progress
        self._clients = {
            name: Client(service.url, peer=name, timeout_seconds=20.0) for name, service in services.items()
        }
        self._tokens: dict[str, str] = {}

    def call(
        self,
        name: str,
        service: str,
        method: str,
        route: str,
        *,
        expect: int = 200,
        who: str | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **request: Any,
    ) -> Any:
        """Make one request, record it as a step, and return the decoded body.

        Args:
            name: What the step is called in the report.
            service: Which service answers.
            method: HTTP method.
            route: Path template; values go into `path_params`.
            expect: The expected status.
            who: Client id whose token is sent.
            key: Idempotency key.
            headers: More headers.
            **request: `json`, `form` and `path_params` of `healthobs.client.Client.request`.
        """
        self._progress(name)
        sent = dict(headers or {})
        if who:
            sent["Authorization"] = f"Bearer {self._tokens[who]}"
        if key:
            sent["Idempotency-Key"] = key
        answer = self._clients[service].request(method, route, headers=sent, **request)
        lowered = {header.lower(): value for header, value in answer.headers.items()}
        step = Step(name, service, method, route, expect, answer.status, lowered, answer.body)
        self._evidence.steps.append(step)
        return step.json() or {}

    def run(self) -> None:
        """Walk the whole way: tokens, patient, record, device, payment, audit."""
        self._get_tokens()
        patient = self._create_patient()
        device = self._use_device()
        self._pay(patient, device)
        self._read_trails()

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            client.close()

    def _get_tokens(self) -> None:
        for identity in IDENTITIES:
            credentials = base64.b64encode(f"{identity.client_id}:{identity.secret}".encode()).decode()
            answer = self.call(
                f"token for {identity.client_id}",
                "auth-service",
                "POST",
                "/token",
                form={"grant_type": "client_credentials", "scope": " ".join(identity.scopes)},
                headers={"Authorization": f"Basic {credentials}"},
            )
            self._tokens[identity.client_id] = answer.get("access_token", "missing")
            self._evidence.needles.values[f"secret of {identity.client_id}"] = identity.secret
            self._evidence.needles.values[f"token of {identity.client_id}"] = self._tokens[identity.client_id]
            self._evidence.disk_needles.values[f"token of {identity.client_id}"] = self._tokens[
                identity.client_id
            ]

    def _create_patient(self) -> str:
        answer = self.call(
            "generate a synthetic patient",
            "synthetic-phi-service",
            "POST",
            "/synthetic-patient",
            json={"count": 1, "seed": SEED},
        )
        patient = (answer.get("patients") or [{}])[0]
        self._plant(patient)
        record = self.call(
            "create the record", "phi-service", "POST", "/patients", expect=201, who="clinician-app",
            key=str(uuid.uuid4()), json=record_of(patient), headers={"Purpose-Of-Use": "TREAT"},
        )  # fmt: skip
        patient_id = str(record.get("id", "missing"))
        self._evidence.audit_needles.values["patient's id"] = patient_id
        for who, purpose in (("clinician-app", "TREAT"), ("billing-app", "HPAYMT")):
            self.call(
                f"read the record as {who}", "phi-service", "GET", "/patients/{patient_id}", who=who,
                path_params={"patient_id": patient_id}, headers={"Purpose-Of-Use": purpose},
            )  # fmt: skip
        self.call(
            "read without a token", "phi-service", "GET", "/patients/{patient_id}", expect=401,
            path_params={"patient_id": patient_id},
        )  # fmt: skip
        return patient_id

    def _plant(self, patient: Mapping[str, Any]) -> None:
        """Remember what must be found nowhere: in telemetry at all, in phi-service's files in plain."""
        address = patient.get("address") or {}
        found = {
            "family name": str(patient.get("last_name", "")),
            "birth date": str(patient.get("date_of_birth", "")),
            "medical record number": str(patient.get("medical_record_number", "")),
            "street": str(address.get("line", "")),
            "card number": CARD,
        }
        for system_value in patient.get("identifiers") or ():
            found[f"identifier {len(found)}"] = str(system_value.get("value", ""))
        for contact in patient.get("telecom") or ():
            found[f"contact {len(found)}"] = str(contact.get("value", ""))
        needles = {kind: value for kind, value in found.items() if len(value) > 3}
        self._evidence.needles.values.update(needles)
        self._evidence.disk_needles.values.update(needles)

    def _use_device(self) -> str:
        device = self.call(
            "register a device", "medical-device", "POST", "/devices", expect=201, who="engineering-app",
            key=str(uuid.uuid4()),
            json={"udi": "(01)00844588003288(17)290101(10)LOT42(21)SN4711", "name": "Pulse oximeter"},
        )  # fmt: skip
        device_id = str(device.get("id", "missing"))
        path = {"device_id": device_id}
        self.call(
            "calibrate it", "medical-device", "POST", "/devices/{device_id}/calibrations", expect=201,
            who="engineering-app", key=str(uuid.uuid4()), path_params=path,
            json={"as_found": "1.2", "as_left": "0.1", "performed_by": "engineer-7", "due": _next_year()},
        )  # fmt: skip
        now = rfc3339(Clock().now(), timespec="milliseconds")
        batch = {
            "observations": [
                {
                    "code": "8867-4",
                    "value": "72",
                    "unit": "/min",
                    "effective": now,
                    "sequence": 2,
                },
                {
                    "code": "59408-5",
                    "value": "82",
                    "unit": "%",
                    "effective": now,
                    "sequence": 1,
                },
            ]
        }
        for name in ("ingest observations", "ingest them again"):
            self.call(
                name, "medical-device", "POST", "/devices/{device_id}/observations", who="engineering-app",
                path_params=path, json=batch,
            )  # fmt: skip
        self.call("list the alarms", "medical-device", "GET", "/alarms", who="engineering-app")
        return device_id

    def _pay(self, patient_id: str, device_id: str) -> None:
        token = self.call(
            "tokenise the card", "payment-gateway", "POST", "/tokens", expect=201, who="billing-app", key=str(uuid.uuid4()),
            json={"number": CARD, "exp_month": 12, "exp_year": 2099, "cvc": CARD_CVC},
        )  # fmt: skip
        bill = {
            "amount": 12_500,
            "currency": "USD",
            "payment_method": token.get("id", "missing"),
            "patient_id": patient_id,
            "device_id": device_id,
        }
        key = str(uuid.uuid4())
        for name in ("charge", "charge again with the same key"):
            self.call(
                name, "payment-gateway", "POST", "/charge", expect=201, who="billing-app", key=key, json=bill
            )
        large = self.call(
            "process a large payment", "payment-gateway", "POST", "/process", expect=202, who="billing-app",
            key=str(uuid.uuid4()), json={**bill, "amount": 2_500_000, "capture": True},
        )  # fmt: skip
        path = {"payment_id": str(large.get("id", "missing"))}
        decision = {"decision": "approve", "reason": "invoice checked"}
        self.call(
            "approve own payment", "payment-gateway", "POST", "/payments/{payment_id}/approvals", expect=403,
            who="billing-app", key=str(uuid.uuid4()), path_params=path, json=decision,
        )  # fmt: skip
        self.call(
            "second person approves", "payment-gateway", "POST", "/payments/{payment_id}/approvals", expect=200,
            who="finance-approver", key=str(uuid.uuid4()), path_params=path, json=decision,
        )  # fmt: skip
        self.call(
            "read the payment",
            "payment-gateway",
            "GET",
            "/payments/{payment_id}",
            who="finance-approver",
            path_params=path,
        )

    def _read_trails(self) -> None:
        for service in self._services:
            answer = self.call(f"audit trail of {service}", service, "GET", "/audit/trail", who="auditor")
            if not answer.get("total_entries"):
                self._progress(f"{service} has an empty trail")


def _next_year() -> str:
    return (datetime.now(UTC) + timedelta(days=365)).date().isoformat()


def record_of(patient: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a generated patient into what `POST /patients` takes."""
    return {name: patient[name] for name in RECORD_FIELDS if name in patient}


def probe(
    evidence: Evidence, experiment: str, service: Service, method: str, path: str, expect: int, **request: Any
) -> Step:
    """Make one untraced request outside the journey and record it under `experiment`."""
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        answer = pool.request(method, service.url + path, **request)
        lowered = {name.lower(): value for name, value in answer.headers.items()}
        step = Step(experiment, service.name, method, path, expect, answer.status, lowered, answer.data)
    evidence.experiments[experiment].append(step)
    return step
