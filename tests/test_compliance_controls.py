"""Tests of the library's controls: each passes on a healthy service and fails under its sabotage, alone.

Every sabotage comes from outside the probe: settings, environment, database file, keys, exporters, clock. The
state of every control is compared each time, so a control that fails without being declared is found too.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask, request
from opentelemetry.context import Context
from opentelemetry.sdk.trace import (
    ReadableSpan,
    Span,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs import Observability, Settings
from healthobs.asgi import Middleware as AsgiMiddleware
from healthobs.audit import governance, keys, merkle, open_trail
from healthobs.audit.checkpoint import Signer
from healthobs.audit.checkpoint import Verifier as NoteVerifier
from healthobs.audit.cosigning import Witnesses, WitnessPeer
from healthobs.audit.entry import canonical
from healthobs.audit.retention import Retention, approve
from healthobs.audit.witness import Cosigner, Witness, WitnessState
from healthobs.clock import Clock
from healthobs.compliance import (
    CANARY_ACTION,
    CANARY_SUBJECT,
    Control,
    ControlEngine,
    Outcome,
    ProbeContext,
    Reply,
    Route,
    library_controls,
    self_caller,
)
from healthobs.compliance.catalogue import with_catalogue
from healthobs.compliance.documents import Document, sign
from healthobs.compliance.probes_audit import (
    CANARY_SECONDS,
    FULL_SECONDS,
    Integrity,
    Recording,
    canary,
    names_actors,
    samples_entries,
)
from healthobs.compliance.probes_clock import MAX_STEP_SECONDS, ClockInSync, KernelClock, read_kernel_clock
from healthobs.compliance.probes_http import refuses_bad_tokens, refuses_strangers, sends_headers
from healthobs.compliance.probes_telemetry import (
    _card_number,
    hides_authentication_data,
    hides_card_numbers,
    masks_identifiers,
    wraps_every_exporter,
)
from healthobs.compliance.selfcall import CANARY, OWN
from healthobs.exceptions import ConfigurationError, TokenError
from healthobs.flask import init_app
from healthobs.redaction import Redactor
from healthobs.redaction.identifiers import luhn
from healthobs.tokens import Verifier
from healthobs.tracing import RedactingSpanExporter

HEALTHY = {
    "H-312.a1": "pass",
    "H-312.a2i": "unknown",  # nobody's record is in it
    "H-312.b": "pass",
    "H-312.c": "pass",
    "H-312.d": "pass",
    "H-514": "pass",
    "G-wrap": "pass",
    "P-10d": "pass",
    "P-10c": "pass",
    "C-3.3": "pass",
    "C-3.5": "pass",
    "C-10.3": "pass",
    "C-10.6": "pass",
    "HDR": "pass",
}
#: Requirements that nothing observes here.
UNSEEN = {made.id: "unknown" for made in with_catalogue(library_controls()) if made.id not in HEALTHY}
CHANGED_ACTION = "control.state_changed"
FIRST_ACTION = "control.states_observed"
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
            ),
            clock=self.clock,
            span_exporters=[InMemorySpanExporter()],
            log_stream=io.StringIO(),
            audit=self.trail,
            controls=controls,
        )
        cosigner = Cosigner("witness.example/w", Ed25519PrivateKey.generate())
        state = WitnessState(folder / "witness.db")
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


def drop_triggers(service: Service) -> None:
    with closing(sqlite3.connect(service.path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    service.raw(*(f"DROP TRIGGER {name}" for (name,) in names))


def drop_replace_guards(service: Service) -> None:
    service.raw("DROP TRIGGER entry_no_replace", "DROP TRIGGER entry_no_gap")


def edit_entry(service: Service) -> None:
    service.elapsed = FULL_SECONDS
    service.unguarded("UPDATE entry SET body = replace(body, 'canary', 'barfly') WHERE idx = 0")


def edit_leaf(service: Service) -> None:
    service.unguarded("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 0")


def rewrite_what_comes(service: Service, change: str) -> None:
    service.elapsed = CANARY_SECONDS
    service.raw(
        "DROP TRIGGER entry_no_update",
        "CREATE TRIGGER rewriting AFTER INSERT ON entry BEGIN "
        f"UPDATE entry SET body = replace(body, {change}) WHERE idx = new.idx; END",
    )


def hide_what_comes(service: Service) -> None:
    rewrite_what_comes(service, "'canary', 'barfly'")


def resalt_what_comes(service: Service) -> None:
    rewrite_what_comes(service, '\'"salt":"\', \'"salt":"0\'')


def delete_tail(service: Service) -> None:
    service.unguarded("DELETE FROM entry WHERE idx = (SELECT max(idx) FROM entry)")


def roll_back(service: Service) -> None:
    copy = service.path.with_name("copy.db")
    shutil.copy(service.path, copy)
    service.trail.append({"action": "a.b"})
    service.engine.run()
    service.elapsed = CANARY_SECONDS
    service.path.write_bytes(copy.read_bytes())


def let_the_witness_be_silent(service: Service) -> None:
    service.elapsed = FULL_SECONDS + 1
    service.witness_is_silent = True


def show_the_witness_another_history(service: Service) -> None:
    signer = Signer(service.trail.origin, keys.load(service.path.with_name("audit.db.key")))
    seen = service.witnesses.ask().size
    leaves = [service.trail.inclusion_proof(index).leaf for index in range(seen)] + [bytes(32)] * 9
    path = merkle.consistency_path(seen, seen + 9, lambda start, end: merkle.root_of(leaves[start:end]))
    proof = "".join(f"{base64.b64encode(node).decode()}\n" for node in path)
    note = signer.checkpoint(seen + 9, merkle.root_of(leaves)).note
    assert service.witness.add_checkpoint(f"old {seen}\n{proof}\n{note}".encode()).status == 200


def destroy_file(service: Service) -> None:
    service.path.write_bytes(b"no database any more " * 512)


def remove_file(service: Service) -> None:
    service.path.unlink()


def sign_with_foreign_key(service: Service) -> None:
    checkpoint = service.trail.checkpoint()
    foreign = Signer(checkpoint.origin, Ed25519PrivateKey.generate())
    note = foreign.checkpoint(checkpoint.size, checkpoint.root).note
    service.unguarded(f"UPDATE checkpoint SET note = '{note}' WHERE size = {checkpoint.size}")


def add_bare_exporter(service: Service) -> None:
    service.obs.tracing.provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))


def step_wall_clock(service: Service) -> None:
    service.wall_step = -2 * MAX_STEP_SECONDS


def spoil_kernel_clock(service: Service) -> None:
    service.kernel = KernelClock(True, 4.0)


def leave_out_the_actor(service: Service) -> None:
    service.trail.append({"action": "patient.read", "subject": "p-1"})


def nothing(service: Service) -> None:
    """Leave it to the options."""


_UNRECORDABLE = {
    "H-312.b": "fail",
    "H-312.c": "fail",
    "P-10c": "fail",
}
_REWRITTEN = {
    **_UNRECORDABLE,
    "P-10c": "pass",
    "C-10.3": "fail",
}  # the store's doing is undone, not acknowledged
_UNREADABLE = {**_UNRECORDABLE, "C-10.3": "unknown"}

#: Name: options of the service, what is done to it after a healthy round, and every state that differs then.
SABOTAGE: dict[str, tuple[dict[str, Any], Callable[[Service], None], dict[str, str]]] = {
    "open routes": (
        {"authentication": "off"},
        nothing,
        {"H-312.a1": "fail", "P-10d": "fail", "H-312.d": "fail"},
    ),
    "strangers let in": ({"authentication": "optional"}, nothing, {"H-312.a1": "fail", "P-10d": "fail"}),
    "signatures not checked": ({"signatures": False}, nothing, {"H-312.d": "fail"}),
    "expiry ignored": ({"leeway_seconds": 10**6}, nothing, {"H-312.d": "fail"}),
    "other audience accepted": ({"audience": "other"}, nothing, {"H-312.d": "fail"}),
    "triggers dropped": ({}, drop_triggers, {"C-10.3": "fail", "H-312.c": "fail"}),
    "replace guards dropped": ({}, drop_replace_guards, {"C-10.3": "fail", "H-312.c": "fail"}),
    "entry edited": ({}, edit_entry, {"H-312.c": "fail", "P-10c": "fail"}),
    "leaf edited": ({}, edit_leaf, {"H-312.b": "fail", "H-312.c": "fail", "P-10c": "fail"}),
    "no witness": ({"independent": None}, nothing, {"H-312.c": "partial"}),
    "own witnesses only": ({"independent": False}, nothing, {"H-312.c": "partial"}),
    "witness silent": ({}, let_the_witness_be_silent, {"H-312.c": "partial"}),
    "witness holds another history": ({}, show_the_witness_another_history, {"H-312.c": "fail"}),
    "actor left out": ({}, leave_out_the_actor, {"H-312.a2i": "fail"}),
    "entries hidden as they come": ({}, hide_what_comes, _REWRITTEN),
    "entries altered as they come": ({}, resalt_what_comes, _REWRITTEN),
    "tail deleted": ({}, delete_tail, _UNRECORDABLE),
    "file put back": ({}, roll_back, {**_UNRECORDABLE, "P-10c": "pass"}),
    "file destroyed": ({}, destroy_file, _UNREADABLE),
    "file removed": ({}, remove_file, _UNREADABLE),
    "checkpoint by a foreign key": ({}, sign_with_foreign_key, _UNRECORDABLE),
    "identifier allowed": ({"allowed_keys": ("ssn",)}, nothing, {"H-514": "fail"}),
    "code allowed in telemetry": ({"allowed_keys": ("cvv",)}, nothing, {"C-3.3": "fail"}),
    "code allowed in the trail": ({"trail_allowed_keys": ("cvc2",)}, nothing, {"C-3.3": "fail"}),
    "card allowed in telemetry": ({"allowed_keys": ("card_number",)}, nothing, {"C-3.5": "fail"}),
    "card allowed in the trail": ({"trail_allowed_keys": ("message",)}, nothing, {"C-3.5": "fail"}),
    "bare exporter": ({}, add_bare_exporter, {"G-wrap": "fail"}),
    "clock stepped": ({}, step_wall_clock, {"C-10.6": "fail"}),
    "kernel clock off": ({}, spoil_kernel_clock, {"C-10.6": "fail"}),
    "kernel clock silent": ({"kernel": None}, nothing, {"C-10.6": "unknown"}),
    "no time source": ({"kernel": KernelClock(False, 16.0)}, nothing, {"C-10.6": "unknown"}),
    "headers off": ({"headers": False}, nothing, {"HDR": "fail"}),
}


class TestSabotage:
    """A check that cannot be made to fail is no evidence."""

    def test_healthy(self, build: Callable[..., Service]) -> None:
        """On a healthy service every control passes, round after round, but the one that cannot."""
        service = build()
        assert [service.run() for _ in range(3)] == [HEALTHY] * 3
        assert service.engine.gate_open()

    @pytest.mark.parametrize("name", SABOTAGE)
    def test_exactly_the_declared(self, build: Callable[..., Service], name: str) -> None:
        """What is declared changes, and nothing else."""
        options, sabotage, changed = SABOTAGE[name]
        service = build(**options)
        service.engine.run()
        sabotage(service)
        assert service.run() == {**HEALTHY, **changed}
        required_failures = sorted(
            {name for name in changed if changed[name] != "pass"} - {"H-312.a2i", "H-514", "C-10.6"}
        )
        assert sorted(service.engine.gate_failures()) == required_failures

    def test_every_control_has_one(self) -> None:
        """No control of the library goes without a sabotage that makes it fail."""
        broken = {
            name for _, _, changed in SABOTAGE.values() for name, state in changed.items() if state == "fail"
        }
        assert broken == {control.id for control in library_controls()}

    def test_recovery(self, build: Callable[..., Service]) -> None:
        """What is mended passes again, and both changes are in the trail, provably."""
        service = build()
        service.engine.run()
        with closing(sqlite3.connect(service.path)) as connection:
            triggers = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        drop_triggers(service)
        service.engine.run(["C-10.3"])
        service.raw(*(sql for (sql,) in triggers))
        assert service.run() == HEALTHY
        page = service.trail.read(action=CHANGED_ACTION, resource_id="C-10.3")
        changes = [
            (entry["details"]["control.old"], entry["details"]["control.new"])
            for entry in reversed(page.entries)
        ]
        assert changes == [("pass", "fail"), ("fail", "pass")]
        assert service.trail.verify().ok

    def test_messages_hold_no_secret(self, build: Callable[..., Service]) -> None:
        """Evidence names what was seen and quotes neither canary nor token."""
        service = build(allowed_keys=("card_number", "ssn", "cvv"), authentication="off")
        service.engine.run()
        shown = json.dumps(service.engine.status(detail=True))
        assert "078-05-1120" not in shown
        assert "400000" not in shown
        assert "eyJ" not in shown


class TestRecording:
    """What the engine leaves in the signals."""

    def test_state_changes_are_entries(self, build: Callable[..., Service]) -> None:
        """A process begins with one entry of all states; each change is another, whose index is in the report."""
        service = build()
        service.engine.run()
        (first,) = service.trail.read(action=FIRST_ACTION).entries
        assert first["details"] == {
            f"control.{state}": " ".join(name for name in HEALTHY if HEALTHY[name] == state)
            for state in sorted(set(HEALTHY.values()) - {"unknown"})
        }
        add_bare_exporter(service)
        service.engine.run()
        (entry,) = service.trail.read(action=CHANGED_ACTION).entries
        assert (entry["resource"]["id"], entry["details"]) == (
            "G-wrap",
            {"control.old": "pass", "control.new": "fail"},
        )
        rows = {row["id"]: row["audit_index"] for row in service.engine.status(detail=True)["controls"]}
        assert rows == {**dict.fromkeys(rows, first["index"]), "G-wrap": entry["index"]}

    def test_waivers_are_entries(self, tmp_path: Path) -> None:
        """Who waived what until when is in the trail from the day on which it counts, and so is its end."""
        officer = Signer("privacy-officer", Ed25519PrivateKey.generate())
        folder = tmp_path / "documents"
        folder.mkdir()
        waiver = Document("waiver", "H-312.c", "2020-01-01", "2099-12-31", "no witness yet")
        (folder / "w.json").write_text(sign(waiver, officer))
        settings = Settings(
            redaction="strict",
            audit_database_url=f"sqlite:///{tmp_path / 'a.db'}",
            endpoints=True,
            compliance_documents=folder,
            compliance_keys=(officer.vkey,),
        )
        clock = Clock(lambda: NOW * 10**9, lambda: 9)
        obs = Observability(settings, clock=clock, log_stream=io.StringIO())
        assert obs.controls is not None
        assert obs.audit is not None
        obs.controls.run(["H-312.c"])
        shut = "H-312.c" in obs.controls.gate_failures()
        (folder / "w.json").unlink()
        obs.controls.run(["H-312.c"])
        left = (date(2099, 12, 31) - clock.now().date()).days
        details = {"control.person": "privacy-officer", "control.days_left": left}
        entries = [
            (entry["action"], entry["resource"]["id"], entry["details"])
            for entry in obs.audit.read(resource_id="H-312.c").entries
        ]
        after = "H-312.c" in obs.controls.gate_failures()
        obs.close()
        assert entries == [
            ("control.waiver_ended", "H-312.c", details),
            ("control.waived", "H-312.c", details),
        ]
        assert (shut, after) == (False, True)

    def test_states_are_kept_in_strict_mode(self, tmp_path: Path) -> None:
        """What controls found is in the trail whatever mode redacts."""
        settings = Settings(
            redaction="strict", audit_database_url=f"sqlite:///{tmp_path / 'a.db'}", endpoints=True
        )
        obs = Observability(settings, log_stream=io.StringIO())
        assert obs.controls is not None
        assert obs.audit is not None
        obs.controls.run(["G-wrap"])
        (entry,) = obs.audit.read(action=FIRST_ACTION).entries
        obs.close()
        assert entry["details"] == {"control.pass": "G-wrap"}

    def test_canaries_are_marked(self, build: Callable[..., Service]) -> None:
        """Whatever probes write carries the reserved subject and action."""
        service = build()
        service.engine.run()
        entries = service.trail.read().entries
        others = [entry for entry in entries if entry["action"] not in (CANARY_ACTION, FIRST_ACTION)]
        canaries = [entry for entry in entries if entry["action"] == CANARY_ACTION]
        assert (others, {entry["subject"] for entry in canaries}, len(canaries)) == ([], {CANARY_SUBJECT}, 1)

    def test_metrics(self, build: Callable[..., Service]) -> None:
        """Runs are counted by framework and result; the gauge is 1 for the state that holds, and only for it."""
        service = build()
        service.engine.run()
        service.obs.tracing.provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        service.engine.run(["G-wrap"])
        gauge = {
            row for row in service.metric('healthobs_control_state{control="G-wrap"') if row.endswith(" 1.0")
        }
        assert gauge == {'healthobs_control_state{control="G-wrap",state="fail"} 1.0'}
        counted = service.metric("phi_compliance_checks_total{")
        assert 'phi_compliance_checks_total{result="pass",type="hipaa"} 6.0' in counted
        assert 'phi_compliance_checks_total{result="fail",type="hipaa"} 1.0' in counted

    def test_decay_shows_in_the_gauge(self, build: Callable[..., Service]) -> None:
        """Stale evidence is unknown in the metrics too, from the next round on."""
        service = build()
        service.engine.run(["HDR"])
        service.elapsed = 601
        service.engine.run(["G-wrap"])
        assert 'healthobs_control_state{control="HDR",state="unknown"} 1.0' in service.metric(
            "healthobs_control"
        )

    def test_scope_contradicted_by_what_is_seen(self, build: Callable[..., Service]) -> None:
        """Who declares to have no card data and logs a card number fails every control of card data."""
        service = build(out_of_scope=("chd",))
        assert {name: state for name, state in service.engine.run().items() if name.startswith("C-")} == {
            name: "not-applicable" for name in (*HEALTHY, *UNSEEN) if name.startswith("C-")
        }
        service.obs.logs.get_logger("x").info("paid", step=f"with {_card_number()}")
        assert {state for name, state in service.engine.run().items() if name.startswith("C-")} == {"fail"}
        shown = json.dumps(service.engine.status(detail=True))
        assert "declared: chd is not in scope; but telemetry of this process had to be rid of: card" in shown

    def test_unknown_scope(self, build: Callable[..., Service]) -> None:
        """A declaration of what the catalogue does not know is a mistake."""
        with pytest.raises(ConfigurationError):
            build(out_of_scope=("cards",))

    def test_own_controls(self, build: Callable[..., Service]) -> None:
        """A service's own controls stand beside the library's."""
        own = Control(
            "S-1", "policy 7", "company", "Ledger", "sum is 0", "measure", lambda _: Outcome("fail", "5")
        )
        service = build(controls=(own,))
        assert service.run() == {**HEALTHY, "S-1": "fail"}
        assert service.metric('phi_compliance_checks_total{result="fail",type="company"}') != []

    def test_without_trail_and_application(self) -> None:
        """What cannot be seen is unknown, never a pass; the gate stays shut."""
        obs = Observability(Settings(service_name="bare", endpoints=True))
        assert obs.controls is not None
        states = {name: state for name, state in obs.controls.run().items() if name not in UNSEEN}
        del states["C-10.6"]  # the machine decides
        assert states == {
            **dict.fromkeys(["H-312.a1", "H-312.a2i", "H-312.b", "H-312.c", "H-312.d"], "unknown"),
            **dict.fromkeys(["P-10c", "P-10d", "C-10.3", "HDR"], "unknown"),
            **dict.fromkeys(["C-3.3", "C-3.5", "H-514"], "partial"),
            "G-wrap": "pass",
        }
        assert not obs.controls.gate_open()
        obs.close()


def context(**changes: Any) -> ProbeContext:
    fields: dict[str, Any] = {"settings": Settings(audience="all"), "clock": Clock(), "redactor": Redactor()}
    return ProbeContext(**{**fields, **changes})


def masking_is_seen(url: str, key: Path) -> bool:
    """Return whether C-3.5 and C-3.3 pass on a trail that masks and fail on one that masks nothing, by what it records."""
    states: list[str] = []
    for redactor in (Redactor(), Redactor("watch")):
        with closing(open_trail(url, service="s", key_file=key, redactor=redactor)) as trail:
            outcomes = [
                probe(context(audit=trail)) for probe in (hides_card_numbers, hides_authentication_data)
            ]
            states += [outcome.state for outcome in outcomes]
    assert all("an audit entry" in outcome.text for outcome in outcomes)
    return states == ["pass", "pass", "fail", "fail"]


def replying(status: int, headers: Mapping[str, str] | None = None) -> Any:
    return lambda method, path, sent, body: Reply(status, headers or {}, b"")


class TestHttpProbes:
    """Access, tokens and headers."""

    @pytest.mark.parametrize(
        ("status", "state"),
        [(401, "pass"), (403, "pass"), (200, "fail"), (404, "fail"), (422, "fail"), (500, "fail")],
    )
    def test_refusals(self, status: int, state: str) -> None:
        """Only 401 and 403 refuse: an error or a missing route is no access control."""
        asked = context(
            call=replying(status),
            protected=[Route("GET", "/p")],
            refused_tokens=lambda: {"bad_signature": token()},
        )
        assert (refuses_strangers(asked).state, refuses_bad_tokens(asked).state) == (state, state)

    @pytest.mark.parametrize("probe", [refuses_strangers, refuses_bad_tokens])
    def test_nothing_to_ask(self, probe: Any) -> None:
        """Without an application, or without a protected route, nothing was seen."""
        states = [probe(context()).state, probe(context(call=replying(401))).state]
        assert states == ["unknown", "unknown"]

    def test_nothing_good_but_for_its_signature(self) -> None:
        """Without such a token refusals do not say that signatures are checked, and that is listed as missing."""
        outcome = refuses_bad_tokens(context(call=replying(401), protected=[Route("GET", "/p")]))
        assert (outcome.state, outcome.missing) == (
            "partial",
            ("a token of which only the signature is wrong",),
        )

    @pytest.mark.parametrize("alg", ["RS256", "none"])
    def test_claims_of_a_good_token(self, alg: str) -> None:
        """A route that looks at claims alone is found, wherever it stands and whatever algorithm it insists on."""

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            header, claims, *_ = (*headers["Authorization"].removeprefix("Bearer ").split("."), "", "")
            good = (
                claims == token().split(".")[1] and json.loads(urlsafe_b64decode(header + "=="))["alg"] == alg
            )
            return Reply(200 if good and path == "/open" else 401, {}, b"")

        outcome = refuses_bad_tokens(
            context(
                call=call,
                protected=[Route("GET", "/shut"), Route("GET", "/open")],
                refused_tokens=lambda: {"bad_signature": token()},
            )
        )
        assert (outcome.state, outcome.n) == ("fail", 1)
        assert outcome.text.startswith("not refused: GET /open with bad_signature")

    def test_one_open_route_among_many(self) -> None:
        """The route that answers is named."""

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(200 if path == "/open" else 401, {}, b"")

        outcome = refuses_strangers(
            context(call=call, protected=[Route("GET", "/shut"), Route("GET", "/open")])
        )
        assert (outcome.state, outcome.text) == (
            "fail",
            "not refused: GET /open with no credentials answered 200",
        )

    def test_headers_for_trusted_callers_only(self) -> None:
        """Where strangers do not get the compliance headers, only the security set is looked for."""
        security = {
            "cache-control": "no-store",
            "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
        }
        trusted = context(settings=Settings(audience="trusted"), call=replying(200, security))
        assert sends_headers(trusted).state == "pass"
        assert sends_headers(context(call=replying(200, security))).state == "fail"
        for name in security:
            weaker = {**security, name: "unsafe"}
            assert sends_headers(context(settings=Settings(), call=replying(200, weaker))).state == "fail"

    def test_headers_lost_on_404(self) -> None:
        """One answer without them is enough to fail, and is named."""

        def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
            return Reply(404, {}, b"") if "canary" in path else full(method, path, headers, body)

        service_headers = {
            "x-frame-options": "DENY",
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        service_headers |= {
            "content-security-policy": "frame-ancestors 'none'",
            "x-content-type-options": "nosniff",
        }
        service_headers |= {
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
        }
        full = replying(200, service_headers)
        outcome = sends_headers(context(settings=Settings(), call=call))
        assert (outcome.state, outcome.n) == ("fail", 7)
        assert "cache-control on 404" in outcome.text

    def test_no_application(self) -> None:
        """Without an application no header was seen."""
        assert sends_headers(context()).state == "unknown"


class TestSelfCaller:
    """Requests of the service to itself."""

    def test_request_as_received(self) -> None:
        """Method, path, query, headers and body arrive as PEP 3333 says, marked as a probe's."""
        seen: dict[str, Any] = {}

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            seen.update(environ, body=environ["wsgi.input"].read())
            start_response("200 OK", [("Vary", "a"), ("Vary", "b")])(b"writ")
            return [b"ten"]

        reply = self_caller(app)(
            "POST", "/a%20b/%C3%A9?x=1", {"Content-Type": "text/plain", "X-A": "1"}, b"hi"
        )
        names = (
            "REQUEST_METHOD",
            "PATH_INFO",
            "QUERY_STRING",
            "CONTENT_TYPE",
            "CONTENT_LENGTH",
            "HTTP_X_A",
            "body",
        )
        assert [seen[name] for name in names] == ["POST", "/a b/Ã©", "x=1", "text/plain", "2", "1", b"hi"]
        assert seen[CANARY] is OWN
        assert reply == Reply(200, {"vary": "a, b"}, b"written")

    def test_closes_the_body(self) -> None:
        """The body is closed even when it breaks, or the request would never end."""

        class Body:
            closed = False

            def __iter__(self) -> Iterator[bytes]:
                raise OSError

            def close(self) -> None:
                self.closed = True

        body = Body()

        def app(environ: dict[str, Any], start_response: Any) -> Any:
            start_response("200 OK", [])
            return body

        with pytest.raises(OSError):
            self_caller(app)("GET", "/", {}, b"")
        assert body.closed


class Quiet(SpanProcessor):
    """A processor that shows no exporter."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Do nothing."""

    def on_end(self, span: ReadableSpan) -> None:
        """Do nothing."""


class TestWrapping:
    """`G-wrap`."""

    @pytest.fixture
    def provider(self) -> Iterator[TracerProvider]:
        """Return a provider of its own."""
        made = TracerProvider(shutdown_on_exit=False)
        yield made
        made.shutdown()

    @pytest.mark.parametrize("kind", [SimpleSpanProcessor, BatchSpanProcessor])
    def test_each_processor_is_seen_through(self, provider: TracerProvider, kind: Any) -> None:
        """A wrapped exporter passes and a bare one fails in either processor of the SDK."""
        provider.add_span_processor(kind(RedactingSpanExporter(InMemorySpanExporter(), Redactor())))
        seen = [wraps_every_exporter(context(provider=provider))]
        provider.add_span_processor(kind(ConsoleSpanExporter(out=io.StringIO())))
        seen.append(wraps_every_exporter(context(provider=provider)))
        assert seen == [
            Outcome("pass", "every span exporter redacts", 1),
            Outcome("fail", "not wrapped: ConsoleSpanExporter", 1),
        ]

    def test_a_weaker_redactor_does_not_count(self, provider: TracerProvider) -> None:
        """A wrapper is one only when it masks as much as the service asks, whatever stands around it."""
        inner = RedactingSpanExporter(InMemorySpanExporter(), Redactor("mask"))
        states: list[str] = []
        for mode in ("mask", "strict"):
            provider.add_span_processor(SimpleSpanProcessor(inner))
            outcome = wraps_every_exporter(context(provider=provider, redactor=Redactor("strict")))
            states.append(outcome.state)
            inner = RedactingSpanExporter(inner, Redactor(mode))
        weaker = "not wrapped: InMemorySpanExporter, InMemorySpanExporter"
        assert (states, outcome.text) == (["fail", "fail"], weaker)
        strict = TracerProvider(shutdown_on_exit=False)
        strict.add_span_processor(SimpleSpanProcessor(inner))
        assert wraps_every_exporter(context(provider=strict, redactor=Redactor("strict"))).state == "pass"
        strict.shutdown()

    def test_watch(self, provider: TracerProvider) -> None:
        """On the step that changes nothing, nothing redacts."""
        provider.add_span_processor(
            SimpleSpanProcessor(RedactingSpanExporter(InMemorySpanExporter(), Redactor("watch")))
        )
        assert wraps_every_exporter(context(provider=provider, redactor=Redactor("watch"))).state == "fail"

    def test_opaque_processor(self, provider: TracerProvider) -> None:
        """A processor that shows no exporter may export by itself: that is unknown."""
        provider.add_span_processor(Quiet())
        assert wraps_every_exporter(context(provider=provider)).state == "unknown"

    def test_processors_that_only_begin_or_nest(self, provider: TracerProvider) -> None:
        """One that does nothing at a span's end exports nothing, and one inside others is seen."""

        class Begins(SpanProcessor):
            def on_start(self, span: Any, parent_context: Any = None) -> None: ...

        both = SynchronousMultiSpanProcessor()
        both.add_span_processor(
            SimpleSpanProcessor(RedactingSpanExporter(InMemorySpanExporter(), Redactor()))
        )
        provider.add_span_processor(Begins())
        provider.add_span_processor(both)
        outcome = wraps_every_exporter(context(provider=provider))
        assert (outcome.state, outcome.n) == ("pass", 1)

    def test_no_provider(self) -> None:
        """Nothing to look at is unknown; a provider without exporters lets nothing out."""
        bare = TracerProvider(shutdown_on_exit=False)
        states = [wraps_every_exporter(context()).state, wraps_every_exporter(context(provider=bare)).state]
        bare.shutdown()
        assert states == ["unknown", "pass"]


class TestTelemetryProbes:
    """Identifiers and card data."""

    def test_what_no_pattern_finds_is_listed(self) -> None:
        """The five that free text can carry are named, and nothing else is."""
        outcome = masks_identifiers(context())
        assert (outcome.state, outcome.n, [part[1] for part in outcome.missing]) == (
            "partial",
            13,
            list("ABPQR"),
        )

    def test_strict_mode_shows_all(self) -> None:
        """Where free text is dropped all eighteen stay out, so the missing are measured, not listed."""
        assert masks_identifiers(context(redactor=Redactor("strict"))).state == "pass"

    @pytest.mark.parametrize(
        ("key", "letter"),
        [
            ("patient_name", "A"),
            ("birth_date", "C"),
            ("mrn", "H"),
            ("ip", "O"),
            ("photo", "Q"),
            ("patient_id", "R"),
        ],
    )
    def test_allowed_key_is_named(self, key: str, letter: str) -> None:
        """A key that was allowed by mistake fails under its identifier."""
        outcome = masks_identifiers(context(redactor=Redactor(allowed_keys=[key])))
        assert (outcome.state, outcome.text.startswith(f"let through: ({letter})")) == ("fail", True)

    def test_allowed_free_text(self) -> None:
        """Free text let through unscanned fails every identifier that a pattern would have found."""
        outcome = masks_identifiers(context(redactor=Redactor(allowed_keys=["event_text"])))
        assert (outcome.state, outcome.n) == ("fail", 0)

    def test_card_without_trail(self) -> None:
        """Without a trail only a part was shown."""
        assert hides_card_numbers(context()).state == "partial"

    def test_trail_that_masks_nothing(self, tmp_path: Path) -> None:
        """What the trail would record counts, not only what leaves as telemetry."""
        assert masking_is_seen(f"sqlite:///{tmp_path}/audit.db", tmp_path / "key")

    @pytest.mark.server
    def test_trail_in_postgresql_that_masks_nothing(self, postgres: Any, tmp_path: Path) -> None:
        """A trail without a file of its own is no blind spot."""
        assert masking_is_seen(postgres.url(postgres.database()), tmp_path / "key")

    def test_canary_card_is_a_card(self) -> None:
        """The canary has sixteen digits and its check digit, so a redactor must take it for a card."""
        numbers = [_card_number() for _ in range(200)]
        assert [(len(number), luhn(number)) for number in numbers] == [(16, True)] * 200

    def test_probes_are_not_counted_as_redactions(self) -> None:
        """A probe is no redaction of a signal."""
        counted: list[Any] = []
        redactor = Redactor(on_redaction=lambda *facts: counted.append(facts))
        masks_identifiers(context(redactor=redactor))
        hides_card_numbers(context(redactor=redactor))
        assert counted == []


class TestClock:
    """`C-10.6`."""

    def test_first_run_knows_no_jump(self) -> None:
        """A jump needs two readings."""
        clock = Clock(lambda: 5 * 10**18, lambda: 1)
        assert ClockInSync(lambda: KernelClock(True, 0.0))(context(clock=clock)).state == "pass"

    @pytest.mark.parametrize(
        ("step_s", "state"), [(0.5, "pass"), (0.51, "fail"), (-0.51, "fail"), (-0.5, "pass")]
    )
    def test_jump(self, step_s: float, state: str) -> None:
        """Half a second is the limit, both ways; afterwards the new time is the one to hold against."""
        wall = 1_800_000_000 * 10**9
        probe = ClockInSync(lambda: KernelClock(True, 0.0))
        looked = context(clock=Clock(lambda: wall, lambda: 0))
        probe(looked)
        wall += int(step_s * 1e9)
        assert [probe(looked).state, probe(looked).state] == [state, "pass"]

    @pytest.mark.parametrize(
        ("kernel", "state"),
        [
            (None, "unknown"),
            (KernelClock(False, 0.0), "unknown"),
            (KernelClock(True, 1.0), "pass"),
            (KernelClock(True, 1.01), "fail"),
        ],
    )
    def test_kernel(self, kernel: KernelClock | None, state: str) -> None:
        """No source is unknown; a large error is a failure."""
        assert ClockInSync(lambda: kernel)(context()).state == state

    def test_this_kernel(self) -> None:
        """Where the kernel answers at all, its error is a plausible number of seconds."""
        kernel = read_kernel_clock()
        assert kernel is None or 0 <= kernel.max_error_seconds <= 16

    @pytest.mark.parametrize(
        ("target", "value"),
        [
            ("sys.platform", "darwin"),
            ("ctypes.CDLL", lambda name: object()),
            ("ctypes.CDLL", lambda name: Refusing()),
        ],
    )
    def test_where_it_cannot_be_asked(self, target: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another system, a C library without the call, and a refusal are all no answer."""
        monkeypatch.setattr(target, value)
        assert read_kernel_clock() is None


class Refusing:
    """A C library whose kernel refuses."""

    def adjtimex(self, timex: object) -> int:
        """Refuse."""
        return -1


class TestStaleness:
    """Evidence of the library's controls goes stale."""

    def test_all_decay(self, build: Callable[..., Service]) -> None:
        """When nothing runs any more, everything is unknown after its time, and the gate is shut."""
        service = build()
        service.engine.run()
        longest = max(control.valid_for_s for control in library_controls())
        service.elapsed = longest
        assert service.engine.states()["H-312.b"] == "pass"
        service.elapsed = longest + 1
        assert set(service.engine.states().values()) == {"unknown"}
        assert not service.engine.gate_open()


def test_types_meet() -> None:
    """The engine takes what the catalogue gives."""
    engine = ControlEngine(library_controls(), context, Clock())
    assert list(engine.states()) == list(HEALTHY)


class TestAuditProbes:
    """Who acted, and what is drawn."""

    @pytest.mark.parametrize(
        ("drafts", "state", "n"),
        [
            ([], "unknown", 0),
            ([{"subject": CANARY_SUBJECT}], "unknown", 0),
            ([{"subject": "p-1", "actor": "dr-1"}], "pass", 1),
            ([{"subject": "p-1", "outcome": "denied"}], "pass", 1),
            ([{"subject": "p-1", "actor": "dr-1"}, {"subject": "p-2", "actor": ""}], "fail", 2),
        ],
    )
    def test_actors(
        self, build: Callable[..., Service], drafts: list[dict[str, str]], state: str, n: int
    ) -> None:
        """Entries about a person that were answered must name who acted; canaries and refusals need not."""
        service = build()
        for draft in drafts:
            service.trail.append({"action": "patient.read", **draft})
        outcome = names_actors(context(audit=service.trail))
        assert (outcome.state, outcome.n) == (state, n)

    def test_drawn_from_the_whole_trail(self, build: Callable[..., Service]) -> None:
        """One bad entry among few is always drawn, wherever it is; an empty trail has nothing against it."""
        service = build()
        assert samples_entries(context(audit=service.trail)).n == 0
        for number in range(6):
            service.trail.append({"action": f"a.{number}"})
        assert samples_entries(context(audit=service.trail)).n == 6
        service.unguarded("UPDATE entry SET body = replace(body, 'a.4', 'b.4') WHERE idx = 4")
        outcome = samples_entries(context(audit=service.trail))
        assert (outcome.state, outcome.text) == ("fail", "of 6 entries drawn 1 are not as recorded")


class TestCanary:
    """`H-312.b`: one canary for all that share a trail."""

    def canaries(self, service: Service) -> int:
        return service.trail.read(action=CANARY_ACTION).total

    def test_shared(self, build: Callable[..., Service]) -> None:
        """Ten processes on one trail append one canary in its time, and one more after it."""
        service = build()
        probes = [Recording() for _ in range(10)]
        looked = context(audit=service.trail, clock=service.clock)
        assert [(probe(looked).state, self.canaries(service)) for probe in probes] == [("pass", 1)] * 10
        service.elapsed = CANARY_SECONDS
        assert [(probe(looked).state, self.canaries(service)) for probe in probes] == [("pass", 2)] * 10

    def test_clock_that_stands_still(self, build: Callable[..., Service]) -> None:
        """A canary that is young by the wall clock alone is not recent."""
        service = build()
        probe, looked = Recording(), context(audit=service.trail, clock=service.clock)
        probe(looked)
        service.elapsed, service.wall_step = CANARY_SECONDS, -CANARY_SECONDS
        assert (probe(looked).state, self.canaries(service)) == ("pass", 2)

    def test_from_the_future(self, build: Callable[..., Service]) -> None:
        """A canary whose time is still to come is not recent."""
        service = build()
        looked = context(audit=service.trail, clock=service.clock)
        Recording()(looked)
        service.wall_step = -1
        assert (Recording()(looked).state, self.canaries(service)) == ("pass", 2)

    @pytest.mark.parametrize("time", ["yesterday", "2026-11-26T03:00:00", None])
    def test_of_no_time(self, build: Callable[..., Service], time: str | None) -> None:
        """A canary that somebody else planted and whose time is none does not stand for one, and stops no probe."""
        service = build()
        looked = context(audit=service.trail, clock=service.clock)
        body = {**json.loads(service.trail.encode(canary())), "time": time}
        service.trail._writer().append(canonical(body).encode(), 10)
        assert (Recording()(looked).state, self.canaries(service)) == ("pass", 2)

    def test_another_process_that_cannot_append(self, build: Callable[..., Service]) -> None:
        """The canary of another process does not stand for one that could not append."""
        service = build()
        Recording()(context(audit=service.trail, clock=service.clock))
        service.trail.close()
        assert Recording()(context(audit=service.trail, clock=service.clock)).state == "fail"


class TestIntegrity:
    """`H-312.c`: what came since, each time; all of it, in its time."""

    @pytest.fixture
    def probe(self, build: Callable[..., Service]) -> Any:
        """Return a service with 300 verified entries, and what runs the probe on it."""
        service, probe = build(), Integrity()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: service.trail.append({"action": "a.b"}), range(300)))
        looked = context(audit=service.trail, clock=service.clock)
        assert probe(looked).n == 300
        return service, lambda: probe(looked)

    def test_only_what_came_since(self, probe: Any) -> None:
        """Between two whole verifications as many entries are verified as there are new ones."""
        service, run = probe
        seen = [run().n]
        for _ in range(3):
            service.trail.append({"action": "a.b"})
        seen += [run().n, run().n]
        service.elapsed = FULL_SECONDS
        seen += [run().n, run().n]
        assert seen == [0, 3, 0, 303, 0]

    def test_old_body_within_the_interval(self, probe: Any) -> None:
        """A body that was verified and changed since, leaf and all else left as it was, is found by the whole one."""
        service, run = probe
        service.unguarded("UPDATE entry SET body = replace(body, 'a.b', 'c.d') WHERE idx = 7")
        seen = [run().state]
        service.elapsed = FULL_SECONDS
        seen += [run().state, run().state]
        assert seen == ["pass", "fail", "fail"]

    @pytest.mark.parametrize("change", [
        "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 299",
        "UPDATE tile SET hashes = zeroblob(32)",
        "UPDATE entry SET body = replace(body, 'a.b', 'c.d') WHERE idx = 301",
        "UPDATE entry SET body = NULL WHERE idx = 301",
        "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 301",
        "DELETE FROM entry WHERE idx = 301",
        "DELETE FROM entry WHERE idx >= 299",
        "UPDATE entry SET idx = 999 WHERE idx = 301",
        "UPDATE checkpoint SET note = replace(note, char(10) || '302' || char(10), char(10) || '303' || char(10))",
        "DELETE FROM checkpoint WHERE size = 302",
        "DROP TRIGGER entry_no_update",
        "CREATE TRIGGER e AFTER INSERT ON entry BEGIN SELECT 1; END",
    ])  # fmt: skip
    def test_found_at_once(self, probe: Any, change: str) -> None:
        """Any change of what is new, of the tree over what is old, of the head or of a guard is found in the next round."""
        service, run = probe
        service.trail.append({"action": "a.b"})
        service.trail.append({"action": "a.b"})
        (service.raw if "TRIGGER" in change else service.unguarded)(change)
        assert [run().state, run().state] == ["fail", "fail"]

    def test_beginning_deleted(self, probe: Any) -> None:
        """A beginning that went without an order is found in the next round, though all that is left fits."""
        service, run = probe
        service.unguarded("DELETE FROM entry WHERE idx < 256", "DELETE FROM checkpoint WHERE size < 256")
        assert [run().state, run().state] == ["fail", "fail"]

    def test_beginning_pruned_by_order(self, probe: Any) -> None:
        """A beginning that went by order of two since the last round is no fault."""
        service, run = probe
        signers = [Signer(f"approver.example/{n}", Ed25519PrivateKey.generate()) for n in "ab"]
        retention = Retention(service.trail, (), clock=service.clock)
        note = retention.appointment([signer.vkey for signer in signers])
        retention.appoint(note, actor="a", reason="r")
        order = retention.order(256)
        for signer in signers:
            order = approve(order, signer)
        assert retention.prune(order, actor="a", reason="r") == 256
        assert [run().state, run().state, run().n] == ["pass", "pass", 0]

    def test_key_that_vouches_for_itself(self, probe: Any) -> None:
        """An entry that names a new key does not make what that key signed good."""
        service, run = probe
        foreign = Signer(service.trail.origin, Ed25519PrivateKey.generate())
        details = {"vkey": foreign.vkey, "previous": service.trail.vkey}
        service.trail.append_own({"action": governance.KEY, "actor": "x", "details": details})
        latest = service.trail.checkpoint()
        note = foreign.checkpoint(latest.size, latest.root).note
        service.unguarded(f"UPDATE checkpoint SET note = '{note}' WHERE size = {latest.size}")
        assert run().state == "fail"

    def test_erased_by_order(self, probe: Any) -> None:
        """A body that went by order since the last round is no fault."""
        service, run = probe
        service.trail.append({"action": "a.b"})
        retention = Retention(service.trail, (), clock=service.clock)
        assert retention.erase(actor="a", reason="r", entries=(299, 300)) == (299, 300)
        assert [run().state, run().state] == ["pass", "pass"]


class TestAsgi:
    """Controls of an ASGI application."""

    def test_they_begin_with_the_first_request(self) -> None:
        """Nothing runs until a request comes."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            """Answer nothing."""

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        obs = Observability(Settings(endpoints=True), log_stream=io.StringIO())
        engine = obs.controls
        assert engine is not None
        middleware = AsgiMiddleware(app, obs)
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""}
        idle = [engine.schedule.idle]
        asyncio.run(middleware(scope, app, send))
        idle.append(engine.schedule.idle)
        engine.stop()
        states = engine.run()
        obs.close()
        assert (idle, sent[0]["status"]) == ([True, False], 200)
        assert states["G-wrap"] == "pass"
