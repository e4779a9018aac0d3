"""The five services in one process: each with its own data folder and signals, calling the others through WSGI."""

from __future__ import annotations

import base64
import io
import json
import secrets
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask
from flask.testing import FlaskClient
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs import Observability
from reference_services._kit import ServiceSettings
from reference_services.services import SERVICES

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

SCOPES = (
    "patient:read", "patient:write", "payment:write", "payment:read", "payment:approve", "device:read",
    "device:write", "device:sign", "audit:read", "compliance:read", "clients:write",
)  # fmt: skip
#: One OAuth client per role, named after it.
ROLES = (
    "clinician", "nurse", "billing", "researcher", "auditor", "device-engineer", "qa", "privacy-officer",
    "approver", "admin",
)  # fmt: skip


class ClosingClient(FlaskClient):
    """A client that closes each response, as a server does: only then is an exchange over."""

    def open(self, *arguments: Any, buffered: bool = True, **options: Any) -> Any:
        """Send a request."""
        return super().open(*arguments, buffered=buffered, **options)


class World(Mapping[str, "WSGIApplication"]):
    """The five services in one process, each created when it is first needed.

    Example: `world.client("phi-service").get("/patients/1", headers=world.bearer("patient:read"))`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._apps: dict[str, Flask] = {}
        self._secret = secrets.token_urlsafe(24)
        self._log: dict[str, io.StringIO] = {}
        self._spans: dict[str, InMemorySpanExporter] = {}
        self._obs: dict[str, Observability] = {}
        self.environ: dict[str, dict[str, str]] = {}

    def __getitem__(self, name: str) -> Flask:
        if name not in self._apps:
            self._apps[name] = self._create(name)
        return self._apps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SERVICES)

    def __len__(self) -> int:
        return len(SERVICES)

    def _create(self, name: str) -> Flask:
        service = SERVICES[name]
        environ = {
            "HEALTHOBS_DATA_DIR": str(self._folder / name),
            "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0",
            "HEALTHOBS_CAPTURE_STDLIB": "false",
            "AUTH_CLIENTS_FILE": str(self._clients_file()),
            **self.environ.get(name, {}),
        }
        settings = ServiceSettings.from_env(service.info, environ)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._log[name] = io.StringIO()
        self._spans[name] = InMemorySpanExporter()
        self._obs[name] = Observability(
            settings.observability,
            span_exporters=[self._spans[name]],
            simple_spans=True,
            log_stream=self._log[name],
        )
        return service.create_app(settings, obs=self._obs[name], transport=self)

    def _clients_file(self) -> Path:
        path = self._folder / "clients.json"
        digest = sha256(self._secret.encode()).hexdigest()
        clients = [
            {"client_id": role, "secret_sha256": digest, "scopes": list(SCOPES), "roles": [role]}
            for role in ROLES
        ]
        path.write_text(json.dumps(clients), encoding="utf-8")
        path.chmod(0o600)
        return path

    def client(self, name: str) -> Any:
        """Return a Flask test client of the service `name`."""
        app = self[name]
        app.test_client_class = ClosingClient
        return app.test_client()

    def obs(self, name: str) -> Observability:
        """Return the `Observability` of the service `name`."""
        _ = self[name]
        return self._obs[name]

    def log_lines(self, name: str) -> list[dict[str, Any]]:
        """Return what the service `name` has logged."""
        return [json.loads(line) for line in self._log[name].getvalue().splitlines()]

    def spans(self, name: str) -> list[Any]:
        """Return the finished spans of the service `name`."""
        return list(self._spans[name].get_finished_spans())

    def bearer(self, *scopes: str, role: str = "admin") -> dict[str, str]:
        """Return the `Authorization` header of the client with `role`, its token limited to `scopes`."""
        basic = base64.b64encode(f"{role}:{self._secret}".encode()).decode()
        answer = self.client("auth-service").post(
            "/token",
            data={"grant_type": "client_credentials", "scope": " ".join(scopes)},
            headers={"Authorization": f"Basic {basic}"},
        )
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return {"Authorization": f"Bearer {answer.get_json()['access_token']}"}

    def close(self) -> None:
        """Close every service that was created."""
        for name, app in self._apps.items():
            app.extensions["reference_services"].close()
            self._obs[name].close()
