"""Puts an engine's findings where they belong: metrics, log lines, audit entries.

``healthobs_control_state{control,state}`` is 1 for the state that holds, ``<prefix>_compliance_checks_total
{type,result}`` counts each run of a probe, and each change of state is an audit entry
``control.state_changed`` (45 CFR 164.316(b)(1)(ii)). Its `evidence` is the digest of `/compliance/status`,
with the digits 0 to 9 written as the letters g to p.

Limits: a change while the trail is down is recorded in the first round after it is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from healthobs.clock import Clock
from healthobs.compliance.catalogue import library_controls
from healthobs.compliance.control import STATES, Attestation, Control, ProbeContext, Result, State
from healthobs.compliance.engine import ControlEngine
from healthobs.config import Settings
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from healthobs.audit.trail import AuditTrail
    from healthobs.logs import Logs
    from healthobs.metrics import Metrics
    from healthobs.tracing import Tracing

CHANGED_ACTION = "control.state_changed"


class Recorder:
    """Records the findings of one engine.

    Args:
        settings: Prefix of the counter.
        metrics: Gauge and counter.
        logs: One line per change, at ``warning`` when a control fails.
        audit: One entry per change.
        controls: Whose series begin at 0.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        logs: Logs | None,
        audit: AuditTrail | None,
        controls: Iterable[Control],
    ) -> None:
        self._logs = logs
        self._audit = audit
        self._state = metrics.gauge(
            "healthobs_control_state",
            "1 for the state that a control is in",
            ("control", "state"),
            multiprocess_mode="livemax",
        )
        self._checks = metrics.counter(
            f"{settings.prefix or 'healthobs'}_compliance_checks_total",
            "Runs of control probes",
            ("type", "result"),
        )
        for control in controls:
            self._show(control, "unknown")
            self._checks.seed(*((control.framework, state) for state in STATES))

    def result(self, result: Result) -> None:
        """Count one run of a probe."""
        self._checks.labels(result.control.framework, result.outcome.state).inc()

    def change(self, control: Control, old: State, new: State, result: Result | None) -> int | None:
        """Show, log and record one change of state; return the index of its audit entry."""
        self._show(control, new)
        index = None if self._audit is None else self._record(self._audit, control, old, new, result)
        if self._logs is not None:
            level = "warning" if new == "fail" else "info"
            fields = {"control": control.id, "framework": control.framework, "state": new, "was": old}
            self._logs.emit(level, "control_state_changed", fields)
        return index

    def _show(self, control: Control, now: State) -> None:
        for state in STATES:
            self._state.labels(control.id, state).set(1 if state == now else 0)

    @staticmethod
    def _record(trail: AuditTrail, control: Control, old: State, new: State, result: Result | None) -> int:
        details = {"control": control.id, "cite": control.cite, "was": old, "state": new}
        if result is not None:
            # In letters only: a scan for numbers must not find any in a digest.
            details["evidence"] = result.digest.translate(_LETTERS)
        receipt = trail.append(
            {
                "action": CHANGED_ACTION,
                "actor": "healthobs",
                "actor_kind": "system",
                "resource_type": "control",
                "resource_id": control.id,
                "details": details,
            }
        )
        return receipt.index


_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def build_engine(
    *,
    settings: Settings,
    clock: Clock,
    redactor: Redactor,
    metrics: Metrics,
    logs: Logs | None = None,
    audit: AuditTrail | None = None,
    tracing: Tracing | None = None,
    controls: Sequence[Control] = (),
    attestations: Iterable[Attestation] = (),
    scope: Mapping[str, bool] | None = None,
    library: Sequence[Control] | None = None,
) -> ControlEngine:
    """Return the engine of one service, with the library's controls and its own, wired to its signals.

    Nothing runs until `ControlEngine.start` or `run`; probes over HTTP stay ``unknown`` until `bind`.

    Args:
        settings: Of the service.
        clock: Times and ages.
        redactor: The service's own.
        metrics: Where states and runs are shown.
        logs: Where changes are logged.
        audit: Where changes are recorded.
        tracing: Whose exporters are looked at.
        controls: The service's own controls.
        attestations: Declarations for controls whose method is attestation.
        scope: Declared facts, such as ``{"chd": False}``.
        library: In place of `library_controls()`.

    Raises:
        ConfigurationError: Two controls have one id.
    """
    everything = (*(library_controls() if library is None else library), *controls)
    recorder = Recorder(settings, metrics, logs, audit, everything)
    context = ProbeContext(
        settings=settings,
        clock=clock,
        redactor=redactor,
        audit=audit,
        provider=None if tracing is None else tracing.provider,
        scope=dict(scope or {}),
    )
    return ControlEngine(
        everything,
        lambda: context,
        clock,
        service=settings.service_name,
        attestations=attestations,
        on_result=recorder.result,
        on_change=recorder.change,
        on_error=metrics.count_internal_error,
    )
