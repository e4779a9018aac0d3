"""One service in this process with its real controls, its peers beside it, and something in its stores."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import secrets
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flask import Flask

from healthobs import Observability
from healthobs.clock import Clock
from healthobs.compliance import Control, ControlEngine
from reference_services._kit import ServiceSettings
from reference_services._kit.controls import controls as kit_controls
from reference_services.services import SERVICES
from reference_services.synthetic_phi import domain as synthetic

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_SCOPES = (
    "patient:read", "patient:write", "payment:read", "payment:write", "payment:approve", "device:read",
    "device:write", "device:sign", "audit:read", "compliance:read",
)  # fmt: skip
_ROLES = ("admin", "approver", "billing", "clinician", "device-engineer", "qa")
_RECORD = (
    "first_name", "last_name", "date_of_birth", "gender", "address", "telecom", "identifiers", "conditions",
)  # fmt: skip
_UDI = "(01)00844588003288(11)250130(17)290101(10)LOT42(21)SN4711"


class World(Mapping[str, "WSGIApplication"]):
    """The service `target`, observed; the others are created when it calls them.

    Args:
        folder: Where everything is stored.
        target: Name of the service that is observed.
        environ: Variables of the target beside its folder.
        settings: Fields of its `Settings` that differ from what the environment gives.
    """

    def __init__(
        self,
        folder: Path,
        target: str,
        *,
        environ: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder / target
        self.target = target
        #: Added to the wall clock, and to both clocks.
        self.wall_step_seconds = 0
        self.elapsed_seconds = 0
        #: What a sabotage did to the process, to be taken back when this world ends.
        self.undo = contextlib.ExitStack()
        self._root = folder
        self._environ = dict(environ or {})
        self._settings = dict(settings or {})
        self._secret = secrets.token_urlsafe(24)
        self._apps: dict[str, Flask] = {}
        self._obs: dict[str, Observability] = {}

    # ---- services

    def __getitem__(self, name: str) -> Flask:
        if name not in self._apps:
            self._create(name)
        return self._apps[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SERVICES)

    def __len__(self) -> int:
        return len(SERVICES)

    def _create(self, name: str) -> None:
        environ = {
            "HEALTHOBS_DATA_DIR": str(self._root / name),
            "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0",
            "HEALTHOBS_CAPTURE_STDLIB": "false",
            "AUTH_CLIENTS_FILE": str(self._clients_file()),
            **(self._environ if name == self.target else {}),
        }
        settings = ServiceSettings.from_env(SERVICES[name].info, environ)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        observed = settings.observability
        if name == self.target:
            observed = replace(observed, **self._settings)
        self._obs[name] = Observability(
            observed, clock=self._clock(), log_stream=io.StringIO(), controls=self._own_controls(name)
        )
        self._apps[name] = SERVICES[name].create_app(settings, obs=self._obs[name], transport=self)

    def _clock(self) -> Clock:
        system = Clock()
        return Clock(
            lambda: system.wall_ns() + (self.elapsed_seconds + self.wall_step_seconds) * 10**9,
            lambda: system.monotonic_ns() + self.elapsed_seconds * 10**9,
        )

    def _own_controls(self, name: str) -> tuple[Control, ...]:
        of_all = kit_controls(lambda: self._apps[name].extensions["reference_services"])
        module = f"{SERVICES[name].module}.controls"
        if find_spec(module) is None:
            return of_all
        make: Callable[..., tuple[Control, ...]] = import_module(module).controls
        return (*make(lambda: self._apps[name].extensions[name]), *of_all)

    def _clients_file(self) -> Path:
        path = self._root / "clients.json"
        digest = sha256(self._secret.encode()).hexdigest()
        clients = [
            {"client_id": role, "secret_sha256": digest, "scopes": list(_SCOPES), "roles": [role]}
            for role in _ROLES
        ]
        path.write_text(json.dumps(clients), encoding="utf-8")
        path.chmod(0o600)
        return path

    @property
    def obs(self) -> Observability:
        """The `Observability` of the target."""
        _ = self[self.target]
        return self._obs[self.target]

    @property
    def engine(self) -> ControlEngine:
        """The controls of the target."""
        engine = self.obs.controls
        assert engine is not None  # noqa: S101 - every reference service has endpoints, and so controls
        return engine

    def bearer(self, role: str = "admin") -> str:
        """Return the credentials of a client with this role and every scope."""
        basic = base64.b64encode(f"{role}:{self._secret}".encode()).decode()
        with self["auth-service"].test_client() as client:
            answer = client.post(
                "/token",
                data={"grant_type": "client_credentials", "scope": " ".join(_SCOPES)},
                headers={"Authorization": f"Basic {basic}"},
            )
            return f"Bearer {answer.get_json()['access_token']}"

    def post(self, path: str, body: Any, role: str, **headers: str) -> Any:
        """Send a body to the target as a client with this role; return what it answers."""
        sent = {"Authorization": self.bearer(role), "Idempotency-Key": str(uuid.uuid4()), **headers}
        with self[self.target].test_client() as client:
            answer = client.post(path, json=body, headers=sent)
            if answer.status_code >= 300:
                raise RuntimeError(f"POST {path} answered {answer.status_code}")
            return answer.get_json()

    def database(self, name: str, *statements: str) -> None:
        """Run statements on a file of the target's, as whoever has its rights can."""
        with contextlib.closing(sqlite3.connect(self.folder / name, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    # ---- something to look at

    def fill(self) -> None:
        """Have the target do some of what it is there for."""
        fill: Callable[[], None] = {
            "payment-gateway": self._pay,
            "phi-service": self._admit,
            "medical-device": self._sign,
        }.get(self.target, lambda: None)
        fill()

    def _pay(self) -> None:
        year = (self.obs.clock.now() + timedelta(days=800)).year
        card = {"number": "4242424242424242", "exp_month": 12, "exp_year": year, "cvc": "737"}
        token = self.post("/tokens", card, "billing")["id"]
        held = self.post(
            "/process", {"amount": 2_500_000, "currency": "USD", "payment_method": token}, "billing"
        )
        decision = {"decision": "approve", "reason": "invoice checked"}
        self.post(f"/payments/{held['id']}/approvals", decision, "approver")

    def _admit(self) -> None:
        self.post("/patients", self.record(), "clinician", **{"Purpose-Of-Use": "TREAT"})

    @staticmethod
    def record() -> dict[str, Any]:
        """Return the record that `fill` has phi-service store."""
        made: Mapping[str, Any] = synthetic.patient(42, 0)
        return {name: made[name] for name in _RECORD}

    def _sign(self) -> None:
        device = self.post("/devices", {"udi": _UDI, "name": "Pulse oximeter"}, "device-engineer")["id"]
        meaning = {"meaning": "approval", "reason": "as specified"}
        self.post(f"/records/devices/{device}/signatures", meaning, "qa")

    # ---- its end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo.close()
        for name, app in self._apps.items():
            app.extensions["reference_services"].close()
            self._obs[name].close()
