"""Sabotages of a service from outside its probes: settings, environment, database file, keys, exporters, clock."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.audit_trails import copied, put_back
from tests.controlled_service import NOW, Service

from healthobs.audit import keys, merkle
from healthobs.audit.checkpoint import Signer
from healthobs.audit.retention import Retention
from healthobs.clock import Clock
from healthobs.compliance.probes_audit import (
    CANARY_SECONDS,
    FULL_SECONDS,
)
from healthobs.compliance.probes_clock import MAX_STEP_SECONDS, KernelClock

CHANGED_ACTION = "control.state_changed"


FIRST_ACTION = "control.states_observed"


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
    copy = copied(service.path, service.path.with_name("copy.db"))
    service.trail.append({"action": "a.b"})
    service.engine.run()
    service.elapsed = CANARY_SECONDS
    put_back(copy, service.path)


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


def erase_before_its_time(service: Service) -> None:
    """Erase under a clock that is eight years ahead, as an operator can whose machine's is set."""
    ahead = Clock(lambda: int((NOW + 8 * 366 * 86_400) * 1e9))
    service.trail.append({"action": "patient.read", "actor": "dr-1"})
    last = service.trail.checkpoint().size - 1
    Retention(service.trail, clock=ahead).erase(actor="ops-1", reason="room", entries=(last, last))


def break_glass(service: Service, *reasons: str | None) -> None:
    for reason in reasons:
        draft = {"action": "patient.read", "actor": "dr-1", "subject": "p-1", "purpose": "BTG"}
        service.trail.append({**draft, "reason": reason})


def break_glass_without_reason(service: Service) -> None:
    break_glass(service, "unconscious", None)


def put_a_folder_in_place_of_the_spool(service: Service) -> None:
    service.path.with_name("spool").unlink()
    service.path.with_name("spool").mkdir()


def delete_the_beginning(service: Service) -> None:
    service.unguarded("DELETE FROM entry WHERE idx = 0")


def nothing(service: Service) -> None:
    """Leave it to the options."""


_UNRECORDABLE = {
    "H-312.b": "fail",
    "H-312.c": "fail",
    "P-10c": "fail",
    "P-10b": "fail",
}


_REWRITTEN = {
    **_UNRECORDABLE,
    "P-10c": "pass",
    "P-10b": "pass",
    "C-10.3": "fail",
}  # the store's doing is undone, not acknowledged


_GONE = dict.fromkeys(("H-316", "C-10.5", "S-ret"), "fail")


_UNREADABLE = {**_UNRECORDABLE, **_GONE, "C-10.3": "unknown"}


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
    "entry edited": ({}, edit_entry, {"H-312.c": "fail", "P-10c": "fail", "P-10b": "fail"}),
    "leaf edited": ({}, edit_leaf, _UNRECORDABLE),
    "no witness": ({"independent": None}, nothing, {"H-312.c": "partial"}),
    "own witnesses only": ({"independent": False}, nothing, {"H-312.c": "partial"}),
    "witness silent": ({}, let_the_witness_be_silent, {"H-312.c": "partial"}),
    "witness holds another history": ({}, show_the_witness_another_history, {"H-312.c": "fail"}),
    "actor left out": ({}, leave_out_the_actor, {"H-312.a2i": "fail", "C-10.2": "fail"}),
    "break-glass without a reason": (
        {"policy": "spool"},
        break_glass_without_reason,
        {"H-312.a2ii": "fail", "H-312.a2i": "pass", "C-10.2": "partial"},
    ),
    "no spool to write to": (
        {"policy": "spool"},
        put_a_folder_in_place_of_the_spool,
        {"H-312.a2ii": "fail", "H-312.b": "fail"},
    ),
    "entries hidden as they come": ({}, hide_what_comes, _REWRITTEN),
    "entries altered as they come": ({}, resalt_what_comes, _REWRITTEN),
    "tail deleted": ({}, delete_tail, _UNRECORDABLE),
    "entry erased before its time": ({}, erase_before_its_time, {**_GONE, "C-10.2": "partial"}),
    "beginning deleted": ({}, delete_the_beginning, {**_UNRECORDABLE, **_GONE}),
    "a year stated": ({"retention_days": 365}, nothing, {"H-316": "fail", "S-ret": "fail"}),
    "six years stated": ({"retention_days": 2_192}, nothing, {"S-ret": "fail"}),
    "less than a year stated": ({"retention_days": 364}, nothing, _GONE),
    "file put back": ({}, roll_back, {**_UNRECORDABLE, "P-10c": "pass", "P-10b": "pass"}),
    "file destroyed": ({}, destroy_file, _UNREADABLE),
    "file removed": ({}, remove_file, _UNREADABLE),
    "checkpoint by a foreign key": ({}, sign_with_foreign_key, _UNRECORDABLE),
    "identifier allowed": ({"allowed_keys": ("ssn",)}, nothing, {"H-514": "fail"}),
    "code allowed in telemetry": ({"allowed_keys": ("cvv",)}, nothing, {"C-3.3": "fail"}),
    "code allowed in the trail": ({"trail_allowed_keys": ("cvc2",)}, nothing, {"C-3.3": "fail"}),
    "card allowed in telemetry": ({"allowed_keys": ("card_number",)}, nothing, {"C-3.5": "fail"}),
    "card allowed in the trail": ({"trail_allowed_keys": ("message",)}, nothing, {"C-3.5": "fail"}),
    "bare exporter": ({}, add_bare_exporter, {"G-wrap": "fail"}),
    "losses answered": ({"policy": "alert"}, nothing, {"C-10.7": "fail"}),
    "clock stepped": ({}, step_wall_clock, {"C-10.6": "fail"}),
    "kernel clock off": ({}, spoil_kernel_clock, {"C-10.6": "fail"}),
    "kernel clock silent": ({"kernel": None}, nothing, {"C-10.6": "unknown"}),
    "no time source": ({"kernel": KernelClock(False, 16.0)}, nothing, {"C-10.6": "unknown"}),
    "headers off": ({"headers": False}, nothing, {"HDR": "fail"}),
}
