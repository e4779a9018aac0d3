"""Runs controls on a schedule, keeps their evidence, and lets it decay.

A result older than its control's `valid_for_s` counts as ``unknown``, whatever it was; so does a control that
never ran or whose probe raised. Requests only read: probes run on a background thread, with jitter, or when
`run` is called. Each change of state is handed to `on_change` until that succeeds, which makes past states
part of the audit trail (45 CFR 164.316(b)(1)(ii), PCI DSS 4.0 requirement 10).

Limits: probes run one after the other and have no timeout; while one hangs, the others decay to ``unknown``.
State is per process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from healthobs.clock import Clock, rfc3339
from healthobs.compliance.attestation import judge
from healthobs.compliance.control import (
    ACCEPTED,
    STATES,
    Attestation,
    Call,
    Control,
    Outcome,
    ProbeContext,
    Result,
    Route,
    State,
)
from healthobs.compliance.report import Row, evidence_digest, report
from healthobs.compliance.schedule import Schedule
from healthobs.exceptions import ConfigurationError

#: Told of each run of a probe.
OnResult = Callable[[Result], object]
#: Told (control, old state, new state, last result) of each change; returns the index of its audit entry.
OnChange = Callable[[Control, State, State, "Result | None"], "int | None"]
#: Version of the library's controls and of the report's form.
CATALOGUE_VERSION = "2026.1"


class ControlEngine:
    """The controls of one service.

    Args:
        controls: What to observe; ids must differ.
        context_factory: Makes what probes look at, anew for every round.
        clock: Times and ages.
        service: Name in the report.
        attestations: Declarations for controls whose method is attestation.
        on_result: Told of each run of a probe (metrics); its faults go to `on_error`.
        on_change: Told of each change of state (audit); asked again in the next round when it raises.
        on_error: Told the component (``controls``) when one of the above raised.

    Raises:
        ConfigurationError: Two controls have one id, or an attestation names none of them.

    Example:
        >>> from healthobs.config import Settings
        >>> from healthobs.redaction import Redactor
        >>> seen = Control("S-1", "policy 7", "company", "Ledger", "sum is 0", "measure",
        ...                lambda context: Outcome("pass", "sum is 0"))
        >>> engine = ControlEngine(
        ...     [seen], lambda: ProbeContext(settings=Settings(), clock=Clock(), redactor=Redactor()), Clock()
        ... )
        >>> engine.states()
        {'S-1': 'unknown'}
        >>> engine.run()
        {'S-1': 'pass'}
    """

    def __init__(
        self,
        controls: Sequence[Control],
        context_factory: Callable[[], ProbeContext],
        clock: Clock,
        *,
        service: str = "",
        attestations: Iterable[Attestation] = (),
        on_result: OnResult | None = None,
        on_change: OnChange | None = None,
        on_error: Callable[[str], object] | None = None,
    ) -> None:
        self.controls: dict[str, Control] = {control.id: control for control in controls}
        self._attestations = {document.control: document for document in attestations}
        if len(self.controls) != len(controls):
            raise ConfigurationError("two controls have the same id: give each its own")
        if not self._attestations.keys() <= self.controls.keys():
            raise ConfigurationError("an attestation names a control that is not there")
        self._service = service
        self._context_factory = context_factory
        self._clock = clock
        self._on_result = on_result
        self._on_change = on_change
        self._on_error = on_error
        self._bound: dict[str, Any] = {}
        self._results: dict[str, Result] = {}
        #: State and audit index that `on_change` has taken.
        self._told: dict[str, tuple[State, int | None]] = {}
        self._running = _ForkLock()
        self._schedule = Schedule(self.run_due, "healthobs-controls")

    def bind(
        self,
        call: Call,
        protected: Iterable[Route] = (),
        refused_tokens: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """Give probes the finished application.

        Args:
            call: Sends a request to it; see `self_caller`.
            protected: Routes that must refuse callers without credentials.
            refused_tokens: By name, tokens of the issuer's that must be refused; see `ProbeContext`.
        """
        self._bound = {"call": call, "protected": tuple(protected)}
        if refused_tokens is not None:
            self._bound["refused_tokens"] = refused_tokens

    # ---- running

    def run(self, ids: Iterable[str] | None = None) -> dict[str, State]:
        """Run controls now, whatever their age, and return their states.

        Args:
            ids: Which; default all.

        Raises:
            ConfigurationError: There is no control of such an id.
        """
        wanted = list(self.controls) if ids is None else list(ids)
        if not self.controls.keys() >= set(wanted):
            raise ConfigurationError("no control has such an id; see GET /compliance/status for the ids")
        self._round(wanted)
        states = self.states()
        return {name: states[name] for name in wanted}

    def run_due(self) -> None:
        """Run what a scheduled round runs: every control whose last result is older than its `every_s`."""
        now = self._clock.monotonic_ns()
        self._round([name for name, control in self.controls.items() if self._is_due(control, now)])

    def _is_due(self, control: Control, now_ns: int) -> bool:
        result = self._results.get(control.id)
        return result is None or now_ns - result.observed_ns >= control.every_s * 10**9

    def _round(self, wanted: list[str]) -> None:
        with self._running.held():
            context = None
            for name in wanted:
                control = self.controls[name]
                try:
                    context = context or self._context()
                    result = self._result(control, self._observe(control, context))
                except (Exception, SystemExit) as exc:  # noqa: BLE001 - its text may be PHI, so only its type is kept
                    result = self._result(
                        control, Outcome("unknown", f"the probe raised {type(exc).__name__}")
                    )
                self._keep(result)
            self._tell_changes()

    def _context(self) -> ProbeContext:
        return replace(self._context_factory(), **self._bound)

    def _observe(self, control: Control, context: ProbeContext) -> Outcome:
        if control.scope is not None and context.scope.get(control.scope) is False:
            return Outcome("not-applicable", f"declared: {control.scope} is not in scope")
        if control.probe is None:
            return judge(self._attestations.get(control.id), self._clock.now().date())
        outcome = control.probe(context)
        if outcome.state not in STATES or outcome.state == "attested":
            return Outcome("unknown", "the probe returned a state that no probe may return")
        return outcome

    def _result(self, control: Control, outcome: Outcome) -> Result:
        moment = rfc3339(self._clock.now())
        digest = evidence_digest(control, outcome, moment)
        return Result(control, outcome, moment, self._clock.monotonic_ns(), digest)

    def _keep(self, result: Result) -> None:
        self._results[result.control.id] = result
        if self._on_result is not None:
            try:
                self._on_result(result)
            except Exception:  # noqa: BLE001 - a fault of telemetry must not stop the controls
                self._failed()

    def _tell_changes(self) -> None:
        """Hand over each change of state, decay included; what is not taken is offered again next time."""
        if self._on_change is None:
            return
        for name, state in self.states().items():
            old, _ = self._told.get(name, ("unknown", None))
            if state == old:
                continue
            try:
                index = self._on_change(self.controls[name], old, state, self._results.get(name))
            except Exception:  # noqa: BLE001 - the trail may be what is broken; controls must go on to say so
                self._failed()
            else:
                self._told[name] = state, index

    def _failed(self) -> None:
        if self._on_error is not None:
            with contextlib.suppress(Exception):  # nowhere left to tell
                self._on_error("controls")

    # ---- reading

    def states(self) -> dict[str, State]:
        """Return the state of each control as of now, decay included; runs nothing."""
        now = self._clock.monotonic_ns()
        return {name: self._state(control, now) for name, control in self.controls.items()}

    def _state(self, control: Control, now_ns: int) -> State:
        result = self._results.get(control.id)
        return "unknown" if result is None or self._is_stale(result, now_ns) else result.outcome.state

    @staticmethod
    def _is_stale(result: Result, now_ns: int) -> bool:
        return now_ns - result.observed_ns > result.control.valid_for_s * 10**9

    def status(self, *, detail: bool = False) -> dict[str, Any]:
        """Return the body of `GET /compliance/status`; runs nothing.

        Args:
            detail: Include criterion, evidence, method and audit index, for readers who may see them.
        """
        with self._counted_thread_fault():
            self._schedule.revive()
        now = self._clock.monotonic_ns()
        rows: list[Row] = [
            (
                control,
                self._state(control, now),
                self._results.get(name),
                self._told.get(name, (None, None))[1],
            )
            for name, control in self.controls.items()
        ]
        return report(self._service, CATALOGUE_VERSION, rows, detail=detail)

    def gate_failures(self) -> tuple[str, ...]:
        """Return the ids of required controls that are not ``pass``, ``attested`` or ``not-applicable``."""
        states = self.states()
        return tuple(
            name
            for name, control in self.controls.items()
            if control.required and states[name] not in ACCEPTED
        )

    def gate_open(self) -> bool:
        """Return whether every required control is shown; with no control at all the gate stays shut."""
        return bool(self.controls) and not self.gate_failures()

    # ---- the background thread

    def start(self, interval_s: float, jitter: float = 0.2) -> None:
        """Run what is due at once and then every `interval_s` seconds, on a daemon thread.

        A forked child has no such thread; its own starts when its status is first asked for, or by `start`.

        Args:
            interval_s: Seconds between rounds; 0 starts nothing.
            jitter: Largest random part of the interval added or taken off, 0 to 0.9, so that replicas spread.

        Raises:
            ConfigurationError: A number is out of its range.
        """
        with self._counted_thread_fault():
            self._schedule.start(interval_s, jitter)

    @contextlib.contextmanager
    def _counted_thread_fault(self) -> Generator[None]:
        """Where no thread can be had go on: the next status tries again, and meanwhile evidence decays."""
        try:
            yield
        except RuntimeError:
            self._failed()

    def stop(self) -> None:
        """End the background thread after the round that it is in; harmless twice."""
        self._schedule.stop()


class _ForkLock:
    """A lock that a child process finds free: whoever held it in the parent is not there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def held(self) -> threading.RLock:
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock
