"""Connects the control engine to the signals: what probes may look at, and where their results go.

Each run of a probe counts in `<prefix>_compliance_checks_total{type,result}`; each round sets
`healthobs_control_state{control,state}`, and each change of state appends the audit entry `control.state_changed`
(45 CFR 164.316(b)(1)(ii): what was found is kept); one that the trail did not take at once says in `control.late_s` how many
seconds before its entry it was seen. A process begins with one entry of all states,
`control.states_observed`; the state at any moment is the last such entry and the changes after it. It repeats what was attested before and
is not now, so that the gate goes on asking for it (`healthobs.compliance.history`). A waiver that begins to count, in
a process, is the entry `control.waived`, and `control.waiver_ended` when it no longer does. Details are words of the code, ids of
controls and numbers, in which no pattern finds anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from healthobs.compliance import history
from healthobs.compliance.catalogue import library_controls, with_catalogue
from healthobs.compliance.control import STATES, Control, ProbeContext, Result, State
from healthobs.compliance.documents import Signed, read_folder
from healthobs.compliance.engine import ControlEngine, CounterCheck
from healthobs.compliance.requirements import SCOPES
from healthobs.exceptions import ConfigurationError

if TYPE_CHECKING:
    from healthobs.metrics.instruments import Instrument
    from healthobs.observability import Observability

#: Kinds of redaction that contradict a declaration of scope. Other identifiers are not health information alone.
_BETRAYING = {"chd": frozenset({"card"}), "phi": frozenset({"mbi"})}


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
        if result.control.probe is not None:
            checks.declare(result.control.framework, result.outcome.state).inc()

    def record(action: str, control: str | None, details: Mapping[str, str | int]) -> int | None:
        if trail is None:
            return None
        return trail.append_own(
            {
                "action": action,
                "actor": settings.service_name,
                "resource_type": "control",
                "resource_id": control,
                "details": details,
            }
        ).index

    def on_first(now: Mapping[str, State], late_s: int) -> int | None:
        known = sorted(set(now.values()) - {"unknown"})
        ids = {f"control.{state}": " ".join(name for name in now if now[name] == state) for state in known}
        gone = sorted(name for name in engine.once_attested if now[name] != "attested")
        if gone:
            ids[history.ONCE_ATTESTED] = " ".join(gone)
        return record(history.FIRST_ACTION, None, {**ids, **_late(late_s)})

    def on_change(
        control: Control, old: State, new: State, _result: Result | None, late_s: int
    ) -> int | None:
        details = {"control.old": old, "control.new": new, **_late(late_s)}
        return record(history.CHANGED_ACTION, control.id, details)

    def on_waiver(control: Control, old: Signed | None, new: Signed | None) -> int | None:
        details: dict[str, str | int] = {}
        said = new or old
        if said is not None:  # a number of days, as redaction takes a date for a person's
            left = date.fromisoformat(said.document.expires) - obs.clock.now().date()
            details = {"control.person": said.person, "control.days_left": left.days}
        return record("control.waiver_ended" if new is None else "control.waived", control.id, details)

    engine = ControlEngine(
        with_catalogue((*library_controls(), *controls)),
        lambda: ProbeContext(
            settings=settings,
            clock=obs.clock,
            redactor=obs.redactor,
            audit=trail,
            provider=obs.tracing.provider,
            metrics=metrics,
        ),
        obs.clock,
        service=settings.service_name,
        documents=lambda: read_folder(settings.compliance_documents, settings.compliance_keys),
        excluded=_excluded(obs),
        required=settings.required_controls,
        attested_before=None if trail is None else lambda: history.once_attested(trail),
        on_result=on_result,
        on_states=_shower(states),
        on_change=on_change,
        on_first=on_first,
        on_waiver=on_waiver,
        on_error=metrics.count_internal_error,
    )
    for name, state in engine.states().items():
        states.declare(name, state).set(1)
    return engine


def _shower(gauge: Instrument) -> Callable[[Mapping[str, State]], None]:
    """Return what sets the gauge after each round.

    Of a control that was ever something else than ``unknown`` every state is set, also those that this process never saw:
    another one may have.
    """
    shown: set[str] = set()

    def show(now: Mapping[str, State]) -> None:
        shown.update(name for name, state in now.items() if state != "unknown")
        for name in shown:
            for state in STATES:
                gauge.declare(name, state).set(int(state == now[name]))

    return show


def _late(seconds: int) -> dict[str, int]:
    """Say how long before its entry something was seen; no time of day, as redaction may take one for a person's."""
    return {"control.late_s": seconds} if seconds else {}


def _excluded(obs: Observability) -> dict[str, CounterCheck]:
    """Return what the service declares not to have, each with what would contradict it."""
    wrong = set(obs.settings.out_of_scope) - SCOPES.keys()
    if wrong:
        raise ConfigurationError(f"out_of_scope must name some of {', '.join(SCOPES)}")

    def check(name: str) -> CounterCheck:
        seen = obs.metrics.redacted_kinds

        def contradicted() -> str | None:
            found = sorted(_BETRAYING.get(name, frozenset()) & seen)
            return f"telemetry of this process had to be rid of: {', '.join(found)}" if found else None

        return contradicted

    return {name: check(name) for name in obs.settings.out_of_scope}
