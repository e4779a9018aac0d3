"""What is done to the running services after the journey: bad input, hostile callers, broken databases.

Everything here acts from outside: requests, files, SQLite statements on the audit database.
"""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import urllib3

from healthobs.audit.command import main as audit_command
from healthobs.clock import rfc3339
from reference_services.demo.cluster import Service
from reference_services.demo.evidence import Evidence, Samples
from reference_services.demo.journey import CARD, probe

HOSTILE_REQUESTS = 50
CONTROL_TIMEOUT_SECONDS = 15.0
#: For how long a check's word is kept, and longer than that.
CHECK_KEPT_SECONDS, CHECK_TIMEOUT_SECONDS = 1.0, 3.0
#: Whose audit trail loses its guards.
SABOTAGED = "payment-gateway"
#: Whose audit trail is backed up, and restarted before its witnesses.
WITNESSED = "phi-service"
#: Whose database is destroyed at the end, and the file's name in its data directory.
BROKEN = ("phi-service", "phi.db")
JSON = {"Content-Type": "application/json"}


def bad_input(services: Mapping[str, Service], evidence: Evidence) -> None:
    """Send what is wrong in the ways that callers get things wrong."""
    sent = f'{{"count": "{CARD}"}}'.encode()
    synthetic = services["synthetic-phi-service"]
    for path, method, status, request in (
        ("/synthetic-patient", "POST", 422, {"body": sent, "headers": JSON}),
        ("/synthetic-patient", "POST", 400, {"body": sent[:-1], "headers": JSON}),
        ("/synthetic-patient", "POST", 415, {"body": sent, "headers": {"Content-Type": "text/plain"}}),
        ("/synthetic-patient", "POST", 413, {"body": b" " * (2 << 20), "headers": JSON}),
        ("/synthetic-patient", "DELETE", 405, {}),
        (f"/{CARD}", "GET", 404, {}),
    ):
        probe(evidence, "bad-input", synthetic, method, path, status, **request)
    for service in services.values():
        probe(evidence, "bad-input", service, "GET", f"/{CARD}", 404)


def hostile(services: Mapping[str, Service], evidence: Evidence) -> None:
    """Ask for made-up paths with made-up methods and count the series after the second and after the last."""
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        for name, service in services.items():
            for number in range(HOSTILE_REQUESTS):
                pool.request(f"BREW{chr(65 + number % 26)}", f"{service.url}/.env/{number}")
                if number == 1:  # the first has been counted once the second is answered
                    evidence.series_before[name] = _series(service)
            evidence.series_after[name] = _series(service)


def _series(service: Service) -> int:
    """Count the series but those of controls, whose round may come in between and is bounded by the catalogue."""
    samples = Samples.parse(scrape(service))
    return samples.series() - samples.series("healthobs_control_state")


def scrape(service: Service) -> str:
    """Return the text of `/metrics`."""
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        return pool.request("GET", f"{service.url}/metrics").data.decode()


def control_states(service: Service) -> dict[str, str]:
    """Return the state of each control of a service, by id."""
    return {name: state for name, (state, _) in _controls(service).items()}


def _controls(service: Service) -> dict[str, tuple[str, str | None]]:
    """Return state and time of the last run of each control."""
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        status: Any = pool.request("GET", f"{service.url}/compliance/status").json()
    return {control["id"]: (control["state"], control["observed_at"]) for control in status["controls"]}


def wait_for_control(service: Service, control: str, *, after: str = "") -> dict[str, str]:
    """Poll until the control has run after the time `after`, or the time is up; return all states."""
    deadline = time.monotonic() + CONTROL_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if (_controls(service).get(control, ("", None))[1] or "") > after:
            break
        time.sleep(0.2)
    return control_states(service)


def back_up(services: Mapping[str, Service]) -> None:
    """Copy an audit trail as it is before the journey."""
    service = services[WITNESSED]
    with (
        closing(sqlite3.connect(service.audit_path, timeout=20.0)) as source,
        closing(sqlite3.connect(backup_of(service))) as target,
    ):
        source.backup(target)


def backup_of(service: Service) -> Path:
    """Return where `back_up` puts the copy."""
    return service.data_dir.with_suffix(".backup.db")


def look_at_witnesses(
    services: Mapping[str, Service], evidence: Evidence, meanwhile: Callable[[Service], None] | None
) -> None:
    """Restart a service, so that its controls ask the witnesses, which are all there now; see what is said of its trail.

    Args:
        services: The running services.
        evidence: Where that goes.
        meanwhile: What is done while the service, its trail witnessed, is stopped a second time.
    """
    service = services[WITNESSED]
    whole_round = [control for control, (_, ran) in _controls(service).items() if ran]
    for act in (None,) if meanwhile is None else (None, meanwhile):
        service.restart(act)
        for control in whole_round:  # what comes after must not meet requests and series of its controls
            wait_for_control(service, control)
    headers = {"Authorization": f"Bearer {evidence.needles.values['token of auditor']}"}
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        status: Any = pool.request("GET", f"{service.url}/compliance/status", headers=headers).json()
    seen = next(control for control in status["controls"] if control["id"] == "H-312.c")
    evidence.witnessed[service.name] = seen["state"], seen["evidence"]["text"]


def sabotage_control(services: Mapping[str, Service], evidence: Evidence) -> None:
    """Drop the audit triggers of one service from outside; its control is to notice at its next run."""
    service = services[SABOTAGED]
    evidence.controls[service.name] = wait_for_control(service, "C-10.3")
    with closing(sqlite3.connect(service.audit_path, timeout=20.0)) as connection:
        drop_triggers(connection)
        connection.commit()
    evidence.sabotaged_at = rfc3339(datetime.now(UTC))


def look_at_sabotaged_control(services: Mapping[str, Service], evidence: Evidence) -> None:
    """Wait for the control of which `sabotage_control` has broken what it guards."""
    seen = wait_for_control(services[SABOTAGED], "C-10.3", after=evidence.sabotaged_at)
    evidence.controls_after_sabotage[SABOTAGED] = seen


def drop_triggers(connection: sqlite3.Connection) -> None:
    """Take the guards off an audit trail's tables."""
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f'DROP TRIGGER "{trigger}"')


def break_database(services: Mapping[str, Service], evidence: Evidence) -> None:
    """Destroy a service's database file and ask both probes."""
    name, filename = BROKEN
    service = services[name]
    database = service.data_dir / filename
    broken = database.with_name("broken")
    broken.write_bytes(b"no database any more " * 512)
    broken.rename(database)  # in place, SQLite could go on for long with what it holds in memory
    for suffix in ("-wal", "-journal", "-shm"):
        database.with_name(filename + suffix).unlink(missing_ok=True)
    deadline = time.monotonic() + CHECK_TIMEOUT_SECONDS
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        while pool.request("GET", f"{service.url}/readiness").status == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
    probe(evidence, "readiness without a database", service, "GET", "/readiness", 503)
    time.sleep(CHECK_KEPT_SECONDS)  # somebody may have asked whether it lives just before
    probe(evidence, "liveness without a database", service, "GET", "/health", 200)


def collect_trails(services: Mapping[str, Service], evidence: Evidence, scratch: Path) -> None:
    """Copy each trail, verify the copy offline with the command, and read its entries."""
    for name, service in services.items():
        copy = scratch / f"{name}-audit.db"
        source = sqlite3.connect(service.audit_path, timeout=20.0)
        target = sqlite3.connect(copy)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        evidence.audit_verify[name] = _verify(copy)
        evidence.audit[name] = _entries(copy)


def _verify(copy: Path) -> tuple[int, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = audit_command(["verify", str(copy)])
    return status, output.getvalue().strip()


def _entries(copy: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(f"file:{copy}?mode=ro", uri=True)
    try:
        return [json.loads(body) for (body,) in connection.execute("SELECT body FROM entry ORDER BY idx")]
    finally:
        connection.close()


def collect_disk(services: Mapping[str, Service], evidence: Evidence) -> None:
    """Read the raw bytes of every file in a service's data directory; its log is telemetry."""
    for service in services.values():
        for path in sorted(service.data_dir.rglob("*")):
            if path.is_file():
                evidence.disk[f"{service.name}/{path.relative_to(service.data_dir)}"] = path.read_bytes()
