"""Connects the control engine to the signals: what probes may look at, and where their results go.

Each run of a probe counts in `<prefix>_compliance_checks_total{type,result}`; each change of state sets
`healthobs_control_state{control,state}` and appends the audit entry `control.state_changed`
(45 CFR 164.316(b)(1)(ii): what was found is kept).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from healthobs.compliance import Control, ControlEngine, ProbeContext, Result, State
from healthobs.compliance.catalogue import library_controls

if TYPE_CHECKING:
    from healthobs.observability import Observability


def build_engine(obs: Observability, controls: Sequence[Control]) -> ControlEngine:
    """Return the engine of one service; nothing runs until it is started or asked.

    Args:
        obs: What is observed, complete but for its `controls`.
        controls: The service's own, besides the library's.

    Raises:
        ConfigurationError: Two controls have the same id.
    """
    settings, metrics, trail = obs.settings, obs.metrics, obs.audit
    checks = metrics.counter(
        f"{settings.prefix or 'healthobs'}_compliance_checks_total", "Runs of controls", ("type", "result")
    )
    states = metrics.gauge(
        "healthobs_control_state",
        "1 for the state that a control is in",
        ("control", "state"),
        multiprocess_mode="livemostrecent",
    )

    def on_result(result: Result) -> None:
        checks.labels(result.control.framework, result.outcome.state).inc()

    def on_change(control: Control, old: State, new: State, _result: Result | None) -> int | None:
        states.labels(control.id, old).set(0)
        states.labels(control.id, new).set(1)
        if trail is None:
            return None
        receipt = trail.append(
            {
                "action": "control.state_changed",
                "actor": settings.service_name,
                "actor_kind": "system",
                "resource_type": "control",
                "resource_id": control.id,
                "details": {"old": old, "new": new},
            }
        )
        return receipt.index

    engine = ControlEngine(
        [*library_controls(), *controls],
        lambda: ProbeContext(
            settings=settings,
            clock=obs.clock,
            redactor=obs.redactor,
            audit=trail,
            provider=obs.tracing.provider,
        ),
        obs.clock,
        service=settings.service_name,
        on_result=on_result,
        on_change=on_change,
        on_error=metrics.count_internal_error,
    )
    for name, state in engine.states().items():
        states.labels(name, state).set(1)
    return engine
