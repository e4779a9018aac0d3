"""A real service under its control engine, built for one test, and the context that a probe is given."""

from __future__ import annotations

import io
import json
import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from flask import Flask, request
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs import Observability, Settings
from healthobs.audit import keys, open_trail
from healthobs.audit.checkpoint import Verifier as NoteVerifier
from healthobs.audit.cosigning import Witnesses, WitnessPeer
from healthobs.audit.witness import Cosigner, Witness, WitnessState
from healthobs.clock import Clock
from healthobs.compliance import (
    Control,
    ProbeContext,
    Route,
    library_controls,
)
from healthobs.compliance.catalogue import with_catalogue
from healthobs.compliance.probes_audit import FULL_SECONDS
from healthobs.compliance.probes_clock import KernelClock
from healthobs.config import AuditPolicy
from healthobs.exceptions import TokenError
from healthobs.flask import init_app
from healthobs.redaction import Redactor
from healthobs.tokens import Verifier

HEALTHY = {
    "H-312.a1": "pass",
    "H-312.a2i": "unknown",  # nobody's record is in it
    "H-312.a2ii": "unknown",  # no spool is configured
    "H-312.b": "pass",
    "H-312.c": "pass",
    "H-312.d": "pass",
    "H-316": "pass",
    "H-514": "pass",
    "G-wrap": "pass",
    "P-10d": "pass",
    "P-10c": "pass",
    "P-10b": "pass",
    "C-3.3": "pass",
    "C-3.5": "pass",
    "C-10.2": "unknown",  # nobody did anything
    "C-10.3": "pass",
    "C-10.5": "pass",
    "C-10.6": "pass",
    "C-10.7": "pass",
    "S-ret": "pass",
    "HDR": "pass",
}


#: Requirements that nothing observes here.
UNSEEN = {made.id: "unknown" for made in with_catalogue(library_controls()) if made.id not in HEALTHY}


ISSUER, AUDIENCE = "https://auth.example", "records"


NOW = 1_800_000_000


IN_SYNC = KernelClock(True, 0.01)


@cache
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def jwks() -> dict[str, Any]:
    numbers = private_key().public_key().public_numbers()
    n, e = (encode(number.to_bytes((number.bit_length() + 7) // 8)) for number in (numbers.n, numbers.e))
    return {"keys": [{"kty": "RSA", "kid": "k1", "n": n, "e": e}]}


def token(**changes: Any) -> str:
    """Return a token that the issuer signed."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "a",
        "client_id": "a",
        "jti": "t",
        "iat": NOW,
        "exp": NOW + 300,
    }
    header = {"alg": "RS256", "kid": "k1", "typ": "at+jwt"}
    signed = ".".join(encode(json.dumps(part).encode()) for part in (header, {**claims, **changes}))
    signature = private_key().sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encode(signature)}"


def signed_anew(sent: str) -> str:
    """Return the token with the issuer's signature, which is what a service sees that checks none."""
    try:
        header, claims, _ = (part + "==" for part in sent.split("."))
        kid = json.loads(urlsafe_b64decode(header)).get("kid")
        return token(**json.loads(urlsafe_b64decode(claims))) if kid == "k1" else sent
    except ValueError:
        return sent


class Service:
    """A real service: Flask, tokens, audit trail, tracing, and its control engine. Options are its sabotage."""

    def __init__(
        self,
        folder: Path,
        *,
        allowed_keys: tuple[str, ...] = (),
        trail_allowed_keys: tuple[str, ...] = (),
        headers: bool = True,
        authentication: str = "required",
        leeway_seconds: int = 0,
        signatures: bool = True,
        audience: str = AUDIENCE,
        kernel: KernelClock | None = IN_SYNC,
        controls: tuple[Control, ...] = (),
        out_of_scope: tuple[str, ...] = (),
        independent: bool | None = True,
        retention_days: int = 2_555,
        policy: AuditPolicy = "deny",
    ) -> None:
        self.path = folder / "audit.db"
        self.elapsed = 0.0
        self.wall_step = 0.0
        self.kernel = kernel
        self.clock = Clock(
            lambda: int((NOW + self.elapsed + self.wall_step) * 1e9), lambda: int((9 + self.elapsed) * 1e9)
        )
        self.trail = open_trail(
            f"sqlite:///{self.path}",
            service="phi-service",
            clock=self.clock,
            redactor=Redactor(allowed_keys=trail_allowed_keys),
            timeout_seconds=2.0,
            spool_file=folder / "spool" if policy == "spool" else None,
        )
        self.obs = Observability(
            Settings(
                service_name="phi-service",
                prefix="phi",
                headers=headers,
                audience="all",
                frameworks=("hipaa",),
                endpoints=True,
                allowed_keys=allowed_keys,
                control_interval_seconds=0,
                out_of_scope=out_of_scope,
                audit_retention_days=retention_days,
                audit_policy=policy,
            ),
            clock=self.clock,
            span_exporters=[InMemorySpanExporter()],
            log_stream=io.StringIO(),
            audit=self.trail,
            controls=controls,
        )
        key_file = folder / "witness.key"
        cosigner = Cosigner("witness.example/w", keys.load_or_create(key_file))
        state = WitnessState(folder / "witness.db", key_file)
        self.witness = Witness(
            cosigner, {self.trail.origin: NoteVerifier(self.trail.vkey)}, state, self.clock
        )

        self.witness_is_silent = False

        def send(_url: str, body: bytes) -> tuple[int, bytes]:
            if self.witness_is_silent:
                raise ConnectionRefusedError
            answer = self.witness.add_checkpoint(body)
            return answer.status, answer.body

        peers = () if independent is None else (WitnessPeer(cosigner.vkey, "https://w.example", independent),)
        self.witnesses = Witnesses(self.trail, peers, send, clock=self.clock, fresh_seconds=FULL_SECONDS)
        self.witnesses.ask()
        verifier = Verifier(
            jwks, issuer=ISSUER, audience=audience, clock=self.clock, leeway_seconds=leeway_seconds
        )
        app = Flask("phi-service")

        @app.before_request
        def authenticate() -> Any:
            credentials = request.headers.get("Authorization")
            if authentication == "off" or (authentication == "optional" and credentials is None):
                return None
            sent = (credentials or "").removeprefix("Bearer ")
            try:
                verifier.verify(sent if signatures else signed_anew(sent))
            except TokenError:
                return {"code": "credentials"}, 401
            return None

        @app.get("/patients/<name>")
        def patient(name: str) -> Any:
            return {}

        @app.post("/patients")
        def create() -> Any:
            return {}, 201

        self.app = init_app(
            app,
            self.obs,
            protected=[Route("GET", "/patients/canary"), Route("POST", "/patients")],
            refused_tokens=lambda: {
                "bad_signature": verifier.forged(),
                "expired": token(exp=NOW - 3600, iat=NOW - 7200),
                "wrong_audience": token(aud="other"),
            },
        )
        engine = self.obs.controls
        assert engine is not None
        self.engine = engine

    def run(self) -> dict[str, Any]:
        """Run every control; return the states of those that something observes."""
        states = self.engine.run()
        assert {name: states[name] for name in UNSEEN} == UNSEEN
        return {name: state for name, state in states.items() if name not in UNSEEN}

    def raw(self, *statements: str) -> None:
        """Change the audit database with a connection of one's own."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    def unguarded(self, *statements: str) -> None:
        """Change it with the triggers taken away and put back."""
        with closing(sqlite3.connect(self.path)) as connection:
            triggers = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
        drops = [f"DROP TRIGGER {name}" for name, _ in triggers]
        self.raw(*drops, *statements, *(sql for _, sql in triggers))

    def metric(self, line: str) -> list[str]:
        """Return the samples that begin with `line`."""
        return [
            row for row in self.obs.metrics.exposition(None)[1].decode().splitlines() if row.startswith(line)
        ]

    def close(self) -> None:
        """Release everything."""
        self.engine.stop()
        self.obs.close()
        self.trail.close()


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    """Return what builds services and closes them at the end."""
    monkeypatch.setattr("healthobs._runtime.process.default", None)
    built: list[Service] = []
    # The state of the machine's clock is part of the environment that tests set.
    monkeypatch.setattr(
        "healthobs.compliance.wiring.library_controls",
        lambda: library_controls(kernel_clock=lambda: built[-1].kernel if built else IN_SYNC),
    )

    def make(**options: Any) -> Service:
        folder = tmp_path / str(len(built))
        folder.mkdir()
        built.append(Service(folder, **options))
        return built[-1]

    yield make
    for service in built:
        service.close()


def context(**changes: Any) -> ProbeContext:
    fields: dict[str, Any] = {"settings": Settings(audience="all"), "clock": Clock(), "redactor": Redactor()}
    return ProbeContext(**{**fields, **changes})
