"""Connects the control engine to the signals: what probes may look at, and where their results go.

Each run of a probe counts in `<prefix>_compliance_checks_total{type,result}`; each round sets
`healthobs_control_state{control,state}`; each failure in the first round, and each change of state after it, is one line,
`control_changed`; a probe that begins to raise, or to return no `Outcome`, is one too, `control_probe_failed`; states and
their changes are entries of the audit trail (`healthobs.compliance.recording`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

from healthobs.compliance import history
from healthobs.compliance.catalogue import library_controls, with_catalogue
from healthobs.compliance.control import ACCEPTED, STATES, Control, ProbeContext, Result, State
from healthobs.compliance.documents import read_folder
from healthobs.compliance.engine import ControlEngine, CounterCheck
from healthobs.compliance.recording import Recorder, is_kept
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
        ConfigurationError: One of `controls` is none, redaction would mask its id, or two have the same.
    """
    controls = _checked(controls)
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
        checks.declare(result.control.framework, result.outcome.state).inc()

    def on_first(now: Mapping[str, State], late_s: int) -> int | None:
        return recorder.first(now, engine.once_attested, engine.waived, late_s)

    def on_notice(control: Control, old: State, new: State, required: bool) -> None:
        own = {"control": control.id, "old": old, "new": new}
        obs.logs.emit(_level(old, new, required), "control_changed", own=own)

    def on_fault(control: Control, exc: BaseException) -> None:
        obs.logs.emit("warning", "control_probe_failed", {"exc_info": exc}, own={"control": control.id})

    recorder = Recorder(trail, settings.service_name, obs.clock)
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
        waived_before=None if trail is None else lambda: history.waived(trail),
        on_result=on_result,
        on_states=_shower(states),
        on_change=recorder.changed,
        on_first=on_first,
        on_notice=on_notice,
        on_fault=on_fault,
        on_waiver=recorder.waived,
        on_error=metrics.count_internal_error,
    )
    for name, state in engine.states().items():
        states.declare(name, state).set(1)
    return engine


def _checked(controls: object) -> tuple[Control, ...]:
    """Return the service's own controls; a function without its decorator is none."""
    if not isinstance(controls, Iterable):
        raise ConfigurationError("controls takes a sequence of Control, also of one")
    made = tuple(cast("Iterable[object]", controls))
    wrong = [str(number) for number, one in enumerate(made, 1) if not isinstance(one, Control)]
    if wrong:
        raise ConfigurationError(
            f"controls: item {', '.join(wrong)} is no Control: bind the probe with @control(id) of healthobs.compliance, "
            "or make a Control of it"
        )
    own = cast("tuple[Control, ...]", made)
    masked = [str(number) for number, one in enumerate(own, 1) if not is_kept(one.id)]
    if masked:
        raise ConfigurationError(
            f"controls: redaction would mask the id of item {', '.join(masked)} in log lines, metrics and audit entries, "
            "because a part of it reads as a person's date or number: take another"
        )
    return own


def _level(old: State, new: State, required: bool) -> str:
    """Return how loud a change of state is."""
    if new == "fail":
        return "error" if required else "warning"
    return "warning" if old in ACCEPTED and new not in ACCEPTED else "info"


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
