"""The faults that `healthobs demo --break NAME` plants, and the assertions that each must turn red.

A fault acts from outside: through the environment, a file, a database, or a patch that a
`sitecustomize` module applies to the service's process before the service is imported
(`reference_services.demo.planted`). No service knows of it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from reference_services.demo.cluster import Service
from reference_services.demo.experiments import backup_of, drop_triggers

SITECUSTOMIZE = "from reference_services.demo.planted import plant\n\nplant({name!r})\n"


@dataclass(frozen=True, slots=True)
class Fault:
    """One planted fault.

    Args:
        name: What `--break` calls it.
        what: One sentence.
        red: The assertions that must fail; every other one must hold.
        patched: The service whose process is patched; ``*`` is all five; None patches none.
        afterwards: What is done to the files after the journey.
        meanwhile: What is done to the files of the service that is restarted before its witnesses.
    """

    name: str
    what: str
    red: frozenset[str]
    patched: str | None = "*"
    afterwards: Callable[[Mapping[str, Service]], None] | None = None
    meanwhile: Callable[[Service], None] | None = None

    def environment(self, base: Path) -> dict[str, dict[str, str]]:
        """Return the variables that plant the patch, by service name."""
        if self.patched is None:
            return {}
        folder = base / "planted"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE.format(name=self.name), encoding="utf-8")
        paths = (str(folder), os.environ.get("PYTHONPATH", ""))
        return {self.patched: {"PYTHONPATH": os.pathsep.join(filter(None, paths))}}


def _edit_audit_entry(services: Mapping[str, Service]) -> None:
    """Rewrite the first access to a patient in phi-service's trail with the owner's rights."""
    connection = sqlite3.connect(services["phi-service"].audit_path, timeout=20.0)
    try:
        drop_triggers(connection)
        changed = connection.execute(
            """UPDATE entry SET body = replace(body, '"ok"', '"no"') WHERE idx = """
            """(SELECT min(idx) FROM entry WHERE body LIKE '%"action":"patient.%' AND body LIKE '%"ok"%')"""
        ).rowcount
        if changed != 1:
            raise LookupError("the trail has no access to a patient that could be rewritten")
        connection.commit()
    finally:
        connection.close()


def _put_back(service: Service) -> None:
    """Restore an old copy of a trail, whole and signed, under a service that is down."""
    for suffix in ("-wal", "-journal", "-shm"):
        service.audit_path.with_name(service.audit_path.name + suffix).unlink(missing_ok=True)
    service.audit_path.write_bytes(backup_of(service).read_bytes())


def _fault(name: str, what: str, *red: str, **more: object) -> Fault:
    return Fault(name, what, frozenset(red), **more)  # type: ignore[arg-type]


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        _fault("header-lost-on-404", "a 404 loses its compliance headers", "headers_everywhere"),
        _fault("orphan-span", "client spans are never exported", "no_orphan_spans"),
        _fault(
            "phi-in-log",
            "a log line past the redactor holds a birth date",
            "no_phi_in_telemetry",
            patched="phi-service",
        ),
        _fault(
            "phi-in-span",
            "a span attribute past the redactor holds a name",
            "no_phi_in_telemetry",
            patched="phi-service",
        ),
        _fault(
            "counter-doubled",
            "each issued token is counted twice",
            "metrics_match_audit",
            patched="auth-service",
        ),
        _fault("request-counted-twice", "the request histogram is observed twice", "metrics_match_requests"),
        _fault(
            "audit-entry-edited",
            "one access to a patient is rewritten in the file of the audit trail",
            "audit_verifies",
            "metrics_match_audit",  # an access that cannot be read counts for none
            "log_is_witnessed",  # the control that asks the witnesses verifies the trail as well
            patched=None,
            afterwards=_edit_audit_entry,
        ),
        _fault(
            "audit-log-put-back",
            "an old copy of an audit trail is put back while its service is down",
            "log_is_witnessed",
            patched=None,
            meanwhile=_put_back,
        ),
        _fault(
            "probe-touches-database", "liveness asks the database", "liveness_is_pure", patched="phi-service"
        ),
        _fault(
            "readiness-stuck-true",
            "readiness always says ready",
            "readiness_tells_the_truth",
            patched="phi-service",
        ),
        _fault(
            "trace-id-missing-in-logs",
            "log lines lose their trace id",
            "logs_correlated",
            patched="medical-device",
        ),
        _fault(
            "log-measures-anew",
            "access lines take a duration of their own",
            "spans_match_logs",
            patched="auth-service",
        ),
        _fault(
            "trace-not-continued",
            "a service starts a trace of its own",
            *("one_trace", "logs_correlated", "audit_carries_trace", "responses_carry_trace"),
            patched="synthetic-phi-service",
        ),
        _fault("log-line-not-json", "a bare print in the code", "logs_correlated", patched="auth-service"),
        _fault(
            "self-approval",
            "who initiates a payment may approve it",
            "journey_completed",
            "approver_is_not_initiator",
            patched="payment-gateway",
        ),
        _fault(
            "card-number-stored",
            "the card number is written to a file",
            "nothing_plain_on_disk",
            patched="payment-gateway",
        ),
        _fault("label-exploding", "the raw path becomes a metric label", "series_are_bounded"),
        _fault(
            "control-that-cannot-fail",
            "every control passes whatever it sees",
            *("controls_can_fail", "log_is_witnessed"),
        ),
        _fault(
            "idempotency-off", "a repeated key is not recognised", "idempotent", patched="payment-gateway"
        ),
        _fault("probes-traced", "probes are treated as requests", "probes_are_silent"),
        _fault(
            "input-echoed", "an error body repeats the path", "errors_are_problems", patched="auth-service"
        ),
        _fault(
            "patient-in-audit",
            "the map of subjects gives the identifier for its token",
            "audit_names_no_patient",
            patched="phi-service",
        ),
        _fault("audit-without-trace", "audit entries lose their trace id", "audit_carries_trace"),
        _fault("response-without-trace", "responses lose the trace id", "responses_carry_trace"),
    )
}
