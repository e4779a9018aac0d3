"""Every sabotage: what it does, which control must fail by it, and what else is bound to change."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import structlog
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs.audit.retention import Retention
from healthobs.clock import Clock
from healthobs.compliance import State
from healthobs.compliance.probes_audit import CANARY_SECONDS, FULL_SECONDS
from reference_services.sabotage.world import World

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Target = Literal["settings", "environment", "database", "file", "process", "clock"]
AUTH, PAYMENT, PHI, DEVICE = "auth-service", "payment-gateway", "phi-service", "medical-device"


def _nothing(_world: World) -> None:
    """Leave it to settings or environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """One way to break a service from outside.

    Args:
        name: What is done, in a few words.
        control: The control that must fail (the diagonal).
        service: The service that is broken.
        on: What it acts on.
        act: Does it, after the service has worked and a healthy round has run.
        settings: Fields of `Settings` that the service is started with instead.
        environ: Variables that the service is started with instead.
        also: What else changes, and to which state.
    """

    name: str
    control: str
    service: str
    on: Target
    act: Callable[[World], None] = _nothing
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    also: Mapping[str, State] = field(default_factory=dict[str, State])


def _proxy(*, when_present: bool) -> Callable[[World], None]:
    """Put a proxy in front that sends good credentials in place of none, or of bad ones."""

    def act(world: World) -> None:
        app, credentials = world[world.target], world.bearer()
        inner = app.wsgi_app

        def proxy(environ: WSGIEnvironment, start_response: Any) -> Any:
            if ("HTTP_AUTHORIZATION" in environ) == when_present:
                environ["HTTP_AUTHORIZATION"] = credentials
            return inner(environ, start_response)

        app.wsgi_app = proxy  # type: ignore[method-assign]
        world.undo.callback(setattr, app, "wsgi_app", inner)

    return act


def _resign(world: World) -> None:
    """Put a gateway in front that signs every token with the issuer's key, as if its signature had been good."""
    app, issuer = world[world.target], world[AUTH].extensions[AUTH]
    inner = app.wsgi_app

    def gateway(environ: WSGIEnvironment, start_response: Any) -> Any:
        _, claims, *_ = (*str(environ.get("HTTP_AUTHORIZATION", "")).split("."), "")
        with contextlib.suppress(ValueError):
            content = json.loads(base64.urlsafe_b64decode(claims + "=="))
            environ["HTTP_AUTHORIZATION"] = f"Bearer {issuer.key.sign(content)}"
        return inner(environ, start_response)

    app.wsgi_app = gateway  # type: ignore[method-assign]
    world.undo.callback(setattr, app, "wsgi_app", inner)


def _audit_file(world: World) -> str:
    url = world.obs.settings.audit_database_url
    return str(url).rpartition("/")[2]


def _triggers(world: World) -> list[tuple[str, str]]:
    assert world.obs.audit is not None  # noqa: S101 - every reference service has a trail
    with contextlib.closing(sqlite3.connect(world.folder / _audit_file(world))) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()


def _drop_guards(world: World) -> None:
    world.database(_audit_file(world), *(f'DROP TRIGGER "{name}"' for name, _ in _triggers(world)))


def _unguarded(statement: str) -> Callable[[World], None]:
    """Change the audit trail with its guards taken away and put back."""

    def act(world: World) -> None:
        guards = _triggers(world)
        drops = [f'DROP TRIGGER "{name}"' for name, _ in guards]
        world.database(_audit_file(world), *drops, statement, *(sql for _, sql in guards))

    return act


def _edit_entry(world: World) -> None:
    """Edit what was verified already, and let the time pass after which all of it is verified again."""
    world.elapsed_seconds = FULL_SECONDS
    _unguarded('UPDATE entry SET body = replace(body, \'"outcome":"ok"\', \'"outcome":"no"\') WHERE idx = 0')(
        world
    )


def _rewrite_what_comes(world: World) -> None:
    """Alter what comes, once the canary of the healthy round is no longer recent."""
    world.elapsed_seconds = CANARY_SECONDS
    world.database(
        _audit_file(world),
        "DROP TRIGGER entry_no_update",
        "CREATE TRIGGER rewriting AFTER INSERT ON entry BEGIN "
        "UPDATE entry SET body = replace(body, 'canary', 'barfly') WHERE idx = new.idx; END",
    )


def _bare_exporter(world: World) -> None:
    world.obs.tracing.provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))


def _bare_structlog(world: World) -> None:
    """Configure structlog after the service: its new processors are nobody's."""
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    world.undo.callback(structlog.reset_defaults)


def _step_clock(world: World) -> None:
    world.wall_step_seconds = -2


def _stop_clock(world: World) -> None:
    """Let half an hour pass by which the wall clock does not move."""
    world.elapsed_seconds, world.wall_step_seconds = 1800, -1800


def _forget_actor(world: World) -> None:
    """Record an access to a person's record without its actor, as a batch job that bypasses the views would."""
    assert world.obs.audit is not None  # noqa: S101 - every reference service has a trail
    world.obs.audit.append({"action": "patient.read", "subject": "p-1"})


def _forget_who_paid(world: World) -> None:
    assert world.obs.audit is not None  # noqa: S101 - every reference service has a trail
    world.obs.audit.append({"action": "card.read", "resource_type": "token", "resource_id": "tok-1"})


def _break_glass(world: World) -> None:
    assert world.obs.audit is not None  # noqa: S101 - every reference service has a trail
    world.obs.audit.append({"action": "patient.read", "actor": "job", "subject": "p-1", "purpose": "BTG"})


def _erase_early(world: World) -> None:
    """Erase an entry of today on a machine whose clock is eight years ahead, with an order as the commands record it."""
    assert world.obs.audit is not None  # noqa: S101 - every reference service has a trail
    ahead = Clock(lambda: world.obs.clock.wall_ns() + 8 * 366 * 86_400 * 10**9)
    entry = world.obs.audit.append({"action": "patient.read", "actor": "clinician"}).index
    retention = Retention(world.obs.audit, clock=ahead)
    retention.erase(actor="ops", reason="room is needed", entries=(entry, entry))


def _sign_without_meaning(world: World) -> None:
    """Put in a signature of the right key that lacks its meaning."""
    service: Any = world[DEVICE].extensions[DEVICE]
    with service.kit.reading() as connection:
        device = connection.exec_driver_sql("SELECT min(id) FROM device").scalar_one()
    jws = service.signer.sign("devices", device, {}, {"name": "qa", "signed": "2026-01-01T00:00:00Z"})
    world.database(
        "medical_device.db",
        f"INSERT INTO signature (id, kind, record_id, jws, signed_ns) VALUES ('s', 'devices', '{device}', '{jws}', 1)",  # noqa: S608
    )


def _sql(file: str, statement: str) -> Callable[[World], None]:
    return lambda world: world.database(file, statement)


def _core_dump(world: World) -> None:
    (world.folder / "core.dump").write_bytes(b"\0\xff" + b"4000056655665556" + b"\0")


def _open_key_file(world: World) -> None:
    (world.folder / "phi.index.key").chmod(0o644)


def _export(world: World) -> None:
    """Leave a record that is stored readable beside it, as a careless report would."""
    record = json.dumps(world.record()).replace("'", "''")
    world.database("phi.db", "CREATE TABLE report (line TEXT)", f"INSERT INTO report VALUES ('{record}')")  # noqa: S608


def _name_in_a_shown_field(world: World) -> None:
    """Store, with the service's key, a record whose gender repeats its identifier, as a careless import would."""
    service: Any = world[PHI].extensions[PHI]
    identifier = "MRN-48213377-canary"
    record = {
        "first_name": "Ada", "last_name": "Canary", "date_of_birth": "1961-04-12", "gender": identifier,
        "address": {"line": "12 Canary Lane", "postal_code": "03601"}, "telecom": [],
        "identifiers": [{"system": "urn:oid:2.999", "value": identifier}], "conditions": [],
    }  # fmt: skip
    with service.kit.engine.begin() as connection:
        service.store.create(connection, "00000000-0000-4000-8000-00000000ca7a", record)


_TRAIL_UNGUARDED: Mapping[str, State] = {"H-312.c": "fail"}

SABOTAGES: tuple[Sabotage, ...] = (
    Sabotage(
        name="a proxy adds credentials to requests without",
        control="H-312.a1", service=PAYMENT, on="process", act=_proxy(when_present=False),
        also={"P-10d": "fail"},
    ),
    Sabotage(
        name="a proxy puts good credentials in place of bad ones",
        control="H-312.d", service=PAYMENT, on="process", act=_proxy(when_present=True),
    ),
    Sabotage(
        name="a gateway signs anew whatever token it is given",  # as if no signature were checked
        control="H-312.d", service=PHI, on="process", act=_resign,
    ),
    Sabotage(
        name="a trigger alters entries as they come",
        control="H-312.b", service=PAYMENT, on="database", act=_rewrite_what_comes,
        also={"H-312.c": "fail", "C-10.3": "fail"},
    ),
    Sabotage(
        name="an entry is edited and the guards are put back",
        control="H-312.c", service=PAYMENT, on="database", act=_edit_entry,
        also={"P-10b": "fail", "P-10c": "fail"},
    ),
    Sabotage(
        name="the guards of the audit trail are dropped",
        control="C-10.3", service=PAYMENT, on="database", act=_drop_guards, also=_TRAIL_UNGUARDED,
    ),
    Sabotage(
        name="an identifier is allowed in telemetry",
        control="H-514", service=PAYMENT, on="settings", settings={"allowed_keys": ("ssn",)},
    ),
    Sabotage(
        name="a verification code is allowed in telemetry",
        control="C-3.3", service=PAYMENT, on="settings", settings={"allowed_keys": ("cvv",)},
    ),
    Sabotage(
        name="a card number is allowed in telemetry",
        control="C-3.5", service=PAYMENT, on="settings", settings={"allowed_keys": ("card_number",)},
    ),
    Sabotage(
        name="an exporter is added past the redactor",
        control="G-wrap", service=PAYMENT, on="process", act=_bare_exporter,
    ),
    Sabotage(
        name="structlog is configured past the redactor",
        control="G-wrap", service=PAYMENT, on="process", act=_bare_structlog,
    ),
    Sabotage(
        name="a job records an access to a card without its actor",
        control="C-10.2", service=PAYMENT, on="process", act=_forget_who_paid,
    ),
    Sabotage(
        name="a job breaks the glass without a reason",
        control="H-312.a2ii", service=PHI, on="process", act=_break_glass,
    ),
    Sabotage(
        name="what cannot be recorded is answered, with an alarm",
        control="C-10.7", service=PAYMENT, on="environment", environ={"HEALTHOBS_AUDIT_POLICY": "alert"},
    ),
    Sabotage(
        name="what cannot be recorded is denied, and no line says so",
        control="C-10.7", service=PAYMENT, on="environment", environ={"HEALTHOBS_LOG_LEVEL": "critical"},
    ),
    Sabotage(
        name="the wall clock is set back by two seconds",
        control="C-10.6", service=PAYMENT, on="clock", act=_step_clock,
    ),
    Sabotage(
        name="headers are switched off",
        control="HDR", service=PAYMENT, on="environment", environ={"HEALTHOBS_HEADERS": "false"},
    ),
    Sabotage(
        name="the initiator is written in as the approver",
        control="S-sod", service=PAYMENT, on="database",
        act=_sql("payment_gateway.db", "UPDATE approval SET approver = 'billing'"),
        also={"S-dual": "fail"},  # an initiator's own approval counts for nothing
    ),
    Sabotage(
        name="an approval is deleted",
        control="S-dual", service=PAYMENT, on="database",
        act=_sql("payment_gateway.db", "DELETE FROM approval"),
    ),
    Sabotage(
        name="an amount is made smaller than the threshold",
        control="S-dual", service=PAYMENT, on="database",
        act=_sql("payment_gateway.db", "UPDATE payment SET amount = 1"),
    ),
    Sabotage(
        name="the ledger is emptied",
        control="S-dual", service=PAYMENT, on="database", act=_sql("payment_gateway.db", "DELETE FROM ledger"),
    ),
    Sabotage(
        name="a core dump with a card number is left behind",
        control="C-3.5.db", service=PAYMENT, on="file", act=_core_dump,
    ),
    Sabotage(
        name="a proxy adds credentials, Part 11",  # the probe of H-312.a1 under another citation
        control="P-10d", service=DEVICE, on="process", act=_proxy(when_present=False),
        also={"H-312.a1": "fail"},
    ),
    Sabotage(
        name="a job records an access without its actor",
        control="H-312.a2i", service=PHI, on="process", act=_forget_actor, also={"C-10.2": "fail"},
    ),
    Sabotage(
        name="an entry is edited and the guards are put back, Part 11",
        control="P-10c", service=DEVICE, on="database", act=_edit_entry,
        also={"H-312.c": "fail", "P-10b": "fail"},
    ),
    Sabotage(
        name="the hash of an entry is overwritten",
        control="P-10b", service=DEVICE, on="database", act=_unguarded("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 0"),
        also={"H-312.b": "fail", "H-312.c": "fail", "P-10c": "fail"},
    ),
    Sabotage(
        name="an entry is erased under a clock that is eight years ahead",
        control="H-316", service=PHI, on="clock", act=_erase_early, also={"C-10.5": "fail", "S-ret": "fail"},
    ),
    Sabotage(
        name="the service states less than twelve months",
        control="C-10.5", service=PAYMENT, on="settings", settings={"audit_retention_days": 364},
        also={"H-316": "fail", "S-ret": "fail"},
    ),
    Sabotage(
        name="the service states less than seven years",
        control="S-ret", service=PAYMENT, on="environment", environ={"HEALTHOBS_AUDIT_RETENTION_DAYS": "2192"},
    ),
    Sabotage(
        name="the beginning of the audit trail is deleted",
        control="S-ret", service=PAYMENT, on="database", act=_unguarded("DELETE FROM entry WHERE idx = 0"),
        also=dict.fromkeys(("H-312.b", "H-312.c", "P-10b", "P-10c", "H-316", "C-10.5"), "fail"),
    ),
    Sabotage(
        name="a trigger forgets what is revoked",
        control="H-308.3C", service=AUTH, on="database",
        act=_sql(
            "auth.db",
            "CREATE TRIGGER forgetting BEFORE INSERT ON revoked_token BEGIN SELECT RAISE(IGNORE); END",
        ),
    ),
    Sabotage(
        name="the wall clock stands still",
        control="H-312.a2iii", service=AUTH, on="clock", act=_stop_clock, also={"C-10.6": "fail"},
    ),
    Sabotage(
        name="a signature without meaning is put in",
        control="P-50", service=DEVICE, on="database", act=_sign_without_meaning,
        also={"P-70": "fail"},  # nor does it hold on its record
    ),
    Sabotage(
        name="a record is left readable in the database",
        control="H-312.a2iv", service=PHI, on="database", act=_export,
    ),
    Sabotage(
        name="a record is deleted",
        control="H-312.a2iv", service=PHI, on="database", act=_sql("phi.db", "DELETE FROM patient"),
    ),
    Sabotage(
        name="the identifiers of records are deleted",
        control="H-312.a2iv", service=PHI, on="database", act=_sql("phi.db", "DELETE FROM identifier_index"),
    ),
    Sabotage(
        name="a key file is opened to others",
        control="H-312.a1.keys", service=PHI, on="file", act=_open_key_file,
    ),
    Sabotage(
        name="a key file is lost",
        control="H-312.a1.keys", service=DEVICE, on="file",
        act=lambda world: (world.folder / "medical_device.signing.key").unlink(),
    ),
    Sabotage(
        name="an import repeats an identifier in a field that is shown",
        control="H-502b", service=PHI, on="database", act=_name_in_a_shown_field,
    ),
    Sabotage(
        name="a signature is moved to another record",
        control="P-70", service=DEVICE, on="database",
        act=_sql("medical_device.db", "UPDATE signature SET record_id = 'other'"),
    ),
    Sabotage(
        name="a signed device is deleted",
        control="P-70", service=DEVICE, on="database", act=_sql("medical_device.db", "DELETE FROM device"),
    ),
    Sabotage(
        name="a signed record is changed",
        control="P-70", service=DEVICE, on="database",
        act=_sql("medical_device.db", "UPDATE device SET name = 'Other'"),
    ),
    Sabotage(
        name="every signature is deleted",
        control="P-70", service=DEVICE, on="database", act=_sql("medical_device.db", "DELETE FROM signature"),
        also={"P-50": "unknown"},
    ),
    Sabotage(
        name="a stored device identifier gets a wrong check digit",
        control="P-10h", service=DEVICE, on="database",
        act=_sql("medical_device.db", "UPDATE device SET device_identifier = '00844588003289'"),
        also={"P-70": "fail"},  # the device was signed as it was
    ),
)  # fmt: skip
