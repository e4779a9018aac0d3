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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from healthobs.clock import Clock, rfc3339
from healthobs.compliance.control import (
    Call,
    Control,
    Outcome,
    ProbeContext,
    Rehearsal,
    Result,
    Route,
    State,
)
from healthobs.compliance.documents import NO_DOCUMENTS, Documents, Signed, counting, judge
from healthobs.compliance.report import Row, evidence_digest, gate_failures, gate_is_open, report
from healthobs.compliance.schedule import Schedule
from healthobs.exceptions import ConfigurationError, InstrumentationError
from healthobs.redaction.failures import describe_exception

#: Told of each run of a probe.
OnResult = Callable[[Result], object]
#: Told every state after each round, whatever becomes of the changes.
OnStates = Callable[[Mapping[str, State]], object]
#: Told (control, old state, new state, last result, how many seconds ago it was seen) of each change; returns the index of
#: its audit entry.
OnChange = Callable[[Control, State, State, "Result | None", int], "int | None"]
#: Told every state after the first round of a process, and how many seconds ago that was; returns the index of its audit entry.
OnFirst = Callable[[Mapping[str, State], int], "int | None"]
#: Told (control, old state, new state, whether the gate asks for it) of what fails in the first round, and of each change after it.
OnNotice = Callable[[Control, State, State, bool], object]
#: Told (control, what was raised) when a probe begins to raise, or raises something else than in its last run.
OnFault = Callable[[Control, BaseException], object]
#: Told (control, the waiver that ended or was replaced, the one that holds now) of each change; neither where one ended
#: that only an earlier process saw.
OnWaiver = Callable[[Control, "Signed | None", "Signed | None"], object]
#: Says what was seen that contradicts a declaration of scope, or None.
CounterCheck = Callable[[], "str | None"]
#: Version of the catalogue and of the report's form.
CATALOGUE_VERSION = "2026.1"
#: Changes that are kept for `on_change`; of more the oldest go.
_MOST_UNTOLD = 1_000
_NO_OUTCOME = "the probe returned something else than an Outcome"
_GONE = "it was attested before, and no document that counts does so now"


class NoOutcomeError(InstrumentationError):
    """A probe returned something else than an `Outcome`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """A change of state that `on_change` has not taken."""

    name: str
    old: State
    new: State
    result: Result | None
    noted_ns: int


class ControlEngine:
    """The controls of one service.

    Args:
        controls: What to observe; ids must differ in more than case.
        context_factory: Makes what probes look at, anew for every round.
        clock: Times and ages.
        service: Name in the report.
        documents: Reads attestations and waivers, before every round.
        excluded: What the service declares not to have, and what could contradict that.
        required: Ids that the gate asks for besides the controls that say so themselves.
        attested_before: Gives the ids that were attested before this process (`healthobs.compliance.history`), which the gate
            goes on asking for; asked in each round until it does not raise.
        waived_before: Gives the ids whose waiver began before this process, and whose end nobody told `on_waiver`; asked as
            `attested_before`.
        on_result: Told of each run of a probe (metrics), not of what is judged without one; its faults go to `on_error`.
        on_states: Told all states after each round (metrics); its faults go to `on_error`.
        on_change: Told of each change of state (audit); asked again in the next round when it raises, and of one control
            in order, so that a change that reverted meanwhile is told too. The latest 1,000 are kept.
        on_first: Told all states of the first round at once, in place of a change each; asked again as `on_change`.
        on_notice: Told of each control that fails in the first round and of each change of state after it, at once and once
            (log lines), whatever becomes of the change; its faults go to `on_error`.
        on_fault: Told of a probe that raises or returns no `Outcome`, when that begins and when it changes (log lines), not in
            each round; its own faults go to `on_error`.
        on_waiver: Told of each waiver that begins, ends or is replaced (audit); asked again as `on_change`.
        on_error: Told the component (``controls``, ``documents``) when one of the above raised, or a document
            counts for nothing.

    Raises:
        ConfigurationError: Two controls have one id, or ids that differ in case only, or a required id is none of theirs.

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
        documents: Callable[[], Documents] = lambda: NO_DOCUMENTS,
        excluded: Mapping[str, CounterCheck] | None = None,
        required: Iterable[str] = (),
        attested_before: Callable[[], Iterable[str]] | None = None,
        waived_before: Callable[[], Iterable[str]] | None = None,
        on_result: OnResult | None = None,
        on_states: OnStates | None = None,
        on_change: OnChange | None = None,
        on_first: OnFirst | None = None,
        on_notice: OnNotice | None = None,
        on_fault: OnFault | None = None,
        on_waiver: OnWaiver | None = None,
        on_error: Callable[[str], object] | None = None,
    ) -> None:
        self.controls: dict[str, Control] = {control.id: control for control in controls}
        asked = tuple(required)
        self._required = frozenset(asked)
        if len({name.lower() for name in self.controls}) != len(controls):
            raise ConfigurationError(
                "two controls have the same id, or ids that differ in case only: give each its own"
            )
        absent = [str(number) for number, name in enumerate(asked, 1) if name not in self.controls]
        if absent:
            raise ConfigurationError(
                f"required_controls: name {', '.join(absent)} is no control that is there: "
                "take ids of the catalogue, or of controls that are passed"
            )
        #: What is still to be asked of the processes before this one.
        self._earlier = {
            name: ask
            for name, ask in (("attested", attested_before), ("waived", waived_before))
            if ask is not None
        }
        self._once_attested: set[str] = set()
        self._read_documents = documents
        self._documents = NO_DOCUMENTS
        self._excluded = excluded or {}
        self._service = service
        self._context_factory = context_factory
        self._clock = clock
        self._on_result = on_result
        self._on_states = on_states
        self._on_change = on_change
        self._on_first = on_first
        self._on_notice = on_notice
        self._on_fault = on_fault
        self._on_waiver = on_waiver
        self._on_error = on_error
        self._bound: dict[str, Any] = {}
        self._results: dict[str, Result] = {}
        #: What the last run of each control raised, by its fingerprint.
        self._faults: dict[str, str] = {}
        #: States as of the last round.
        self._noted: dict[str, State] = {}
        #: States of the first round, and when that was, until `on_first` has taken them.
        self._first: tuple[dict[str, State], int] | None = None
        #: Changes that `on_change` has not taken, oldest first.
        self._untold: list[_Change] = []
        #: Index of the audit entry of each control's state; none while that is untold.
        self._indices: dict[str, int | None] = {}
        #: Waivers that `on_waiver` has taken.
        self._waived: dict[str, Signed] = {}
        #: Ids whose waiver began in an earlier process, until `on_waiver` has taken what became of it.
        self._waived_before: set[str] = set()
        self._running = _ForkLock()
        # When it runs by itself; front ends look whether it is idle.
        self.schedule: Schedule = Schedule(self.run_due, "healthobs-controls")

    def bind(
        self,
        call: Call,
        protected: Iterable[Route] | None = None,
        refused_tokens: Callable[[], Mapping[str, str]] | None = None,
        rehearse: Callable[[], Rehearsal] | None = None,
    ) -> None:
        """Give probes the finished application; what is left out stays as it was bound before.

        Args:
            call: Sends a request to it; see `self_caller`.
            protected: Routes that must refuse callers without credentials.
            refused_tokens: By name, tokens that must be refused; see `ProbeContext`.
            rehearse: Ends a call whose audit entry is refused; see `ProbeContext`.
        """
        routes = None if protected is None else tuple(protected)
        given = {"call": call, "protected": routes, "refused_tokens": refused_tokens, "rehearse": rehearse}
        self._bound |= {name: value for name, value in given.items() if value is not None}

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
            self._refresh_documents()
            self._remember()
            context = None
            unprobed = [name for name, control in self.controls.items() if control.probe is None]
            for name in (*wanted, *(name for name in unprobed if name not in wanted)):
                control = self.controls[name]
                try:
                    context = context or self._context()
                    outcome = self._observe(control, context)
                    result = None if outcome is None else self._result(control, outcome)
                    self._faults.pop(name, None)
                except NoOutcomeError as exc:
                    self._tell_fault(control, exc)
                    result = self._result(control, Outcome("unknown", _NO_OUTCOME))
                except BaseException as exc:
                    # Its text may be PHI, so only its type is kept; no probe ends the thread
                    if isinstance(exc, KeyboardInterrupt) and _is_main():
                        raise
                    self._tell_fault(control, exc)
                    result = self._result(
                        control, Outcome("unknown", f"the probe raised {type(exc).__name__}")
                    )
                self._keep(name, result)
            self._tell_changes()
            self._tell_waivers()

    def _tell_fault(self, control: Control, exc: BaseException) -> None:
        """Tell what a run raised, unless the last one raised the same there."""
        try:
            fault = describe_exception(exc).fingerprint
            if self._faults.get(control.id) != fault:
                self._faults[control.id] = fault
                if self._on_fault is not None:
                    self._on_fault(control, exc)
        except Exception:  # noqa: BLE001 - a fault of telemetry must not stop the controls
            self._failed("controls")

    def _refresh_documents(self) -> None:
        try:
            self._documents = self._read_documents()
        except Exception:  # noqa: BLE001 - what cannot be read counts for nothing
            self._documents = NO_DOCUMENTS
            self._failed("documents")
        if self._documents.refused:
            self._failed("documents")

    def _remember(self) -> None:
        """Know what was attested before, and what a document attests or attested: the gate goes on asking for it."""
        known = {*self._from_earlier("attested"), *filter(self._has_begun, self._documents.attestations)}
        self._once_attested |= {
            name for name, control in self.controls.items() if control.probe is None and name in known
        }
        self._waived_before |= (self._from_earlier("waived") & self.controls.keys()) - self._waived.keys()

    def _from_earlier(self, what: str) -> set[str]:
        """Return what the processes before this one left, once that can be told."""
        ask = self._earlier.get(what)
        if ask is None:
            return set()
        try:
            told = set(ask())
        except Exception:  # noqa: BLE001 - the trail may be what is broken; controls must go on to say so
            self._failed("controls")
            return set()
        del self._earlier[what]
        return told

    def _has_begun(self, name: str) -> bool:
        signed = self._attestation(name)
        return signed is not None and signed.document.issued <= self._clock.now().date().isoformat()

    @property
    def once_attested(self) -> frozenset[str]:
        """Ids of controls without a probe that somebody attested, now or at any time before."""
        return frozenset(self._once_attested)

    @property
    def waived(self) -> frozenset[str]:
        """Ids of controls with a waiver that holds today, or with one of an earlier process whose end is not told yet."""
        return frozenset(self._waived_before.union(name for name in self.controls if self._waiver(name)))

    def _context(self) -> ProbeContext:
        return replace(self._context_factory(), **self._bound)

    def _observe(self, control: Control, context: ProbeContext) -> Outcome | None:
        """Return what is seen now; None where there is nothing that could see it."""
        if control.scope is not None and control.scope in self._excluded:
            contradiction = self._excluded[control.scope]()
            if contradiction is not None:
                return Outcome("fail", f"declared: {control.scope} is not in scope; but {contradiction}")
            return Outcome("not-applicable", f"declared: {control.scope} is not in scope")
        if control.probe is None:
            signed = self._attestation(control.id)
            if signed is not None:
                return judge(signed, self._clock.now().date())
            return Outcome("unknown", _GONE) if control.id in self._once_attested else None
        outcome = cast("object", control.probe(context))
        if not isinstance(outcome, Outcome):
            raise NoOutcomeError("a probe returns an Outcome, and this one returned something else")
        if outcome.state == "attested":
            return Outcome("unknown", "the probe returned a state that no probe may return")
        if outcome.unset:
            return replace(
                outcome, text=context.redactor.text(outcome.text, signal="problem")
            )  # everybody may see it
        return outcome

    def _result(self, control: Control, outcome: Outcome) -> Result:
        moment = rfc3339(self._clock.now())
        digest = evidence_digest(control, outcome, moment)
        return Result(control, outcome, moment, self._clock.monotonic_ns(), digest)

    def _keep(self, name: str, result: Result | None) -> None:
        if result is None:
            self._results.pop(name, None)
            return
        self._results[name] = result
        control = result.control
        if self._on_result is not None and control.probe is not None and control.scope not in self._excluded:
            try:
                self._on_result(result)
            except Exception:  # noqa: BLE001 - a fault of telemetry must not stop the controls
                self._failed("controls")

    def _tell_changes(self) -> None:
        """Show the states, decay included, and hand over each change; what is not taken is offered again next time."""
        states, now = self.states(), self._clock.monotonic_ns()
        if self._on_states is not None:
            try:
                self._on_states(states)
            except Exception:  # noqa: BLE001 - a fault of telemetry must not stop the controls
                self._failed("controls")
        self._notice(states)
        self._note(states, now)
        self._hand_over(now)

    def _notice(self, states: dict[str, State]) -> None:
        """Tell what changed since the last round; nothing is told again, so a fault loses that one."""
        if self._on_notice is None:
            return
        for name, control in self.controls.items():
            old = self._noted.get(name, "unknown")
            if states[name] == old or not (self._noted or states[name] == "fail"):
                continue
            try:
                self._on_notice(control, old, states[name], self._is_required(control))
            except Exception:  # noqa: BLE001 - a fault of telemetry must not stop the controls
                self._failed("controls")

    def _note(self, states: dict[str, State], now_ns: int) -> None:
        """Keep what changed for `_hand_over`."""
        if not self._noted and self._on_first is not None:
            self._first = states, now_ns
        elif self._on_change is not None:
            for name, state in states.items():
                old = self._noted.get(name, "unknown")
                if state != old:
                    self._untold.append(_Change(name, old, state, self._results.get(name), now_ns))
                    self._indices.pop(name, None)
        self._noted = states
        if len(self._untold) > _MOST_UNTOLD:
            del self._untold[:-_MOST_UNTOLD]
            self._failed("controls")

    def _hand_over(self, now_ns: int) -> None:
        if self._first is not None and self._on_first is not None:
            states, noted_ns = self._first
            try:
                index = self._on_first(states, (now_ns - noted_ns) // 10**9)
            except Exception:  # noqa: BLE001 - the trail may be what is broken; controls must go on to say so
                self._failed("controls")
                return
            self._first = None
            changed = {change.name for change in self._untold}
            self._indices.update({name: index for name in states if name not in changed})
        refused: set[str] = set()
        for change in self._untold.copy():
            if self._on_change is None or change.name in refused:
                continue
            late_s = (now_ns - change.noted_ns) // 10**9
            try:
                index = self._on_change(
                    self.controls[change.name], change.old, change.new, change.result, late_s
                )
            except Exception:  # noqa: BLE001 - as above
                self._failed("controls")
                refused.add(change.name)
            else:
                self._untold.remove(change)
                self._indices[change.name] = index
        for name in refused:
            self._indices.pop(name, None)

    def _tell_waivers(self) -> None:
        """Hand over each waiver that began, ended or was replaced since; as `_tell_changes`."""
        if self._on_waiver is None:
            return
        for name, control in self.controls.items():
            old, new = self._waived.get(name), self._waiver(name)
            if old == new and name not in self._waived_before:
                continue
            try:
                self._on_waiver(control, old, new)
            except Exception:  # noqa: BLE001 - as above
                self._failed("controls")
                continue
            self._waived_before.discard(name)
            if new is None:
                self._waived.pop(name, None)
            else:
                self._waived[name] = new

    def _failed(self, component: str) -> None:
        if self._on_error is not None:
            with contextlib.suppress(Exception):  # nowhere left to tell
                self._on_error(component)

    # ---- reading

    def states(self) -> dict[str, State]:
        """Return the state of each control as of now, decay included; runs nothing."""
        now = self._clock.monotonic_ns()
        return {name: self._state(self._results.get(name), now) for name in self.controls}

    def _state(self, result: Result | None, now_ns: int) -> State:
        if result is None or self._is_stale(result, now_ns):
            return "unknown"
        if result.outcome.state == "attested":  # until its last day, whether or not a round came since
            return judge(self._attestation(result.control.id), self._clock.now().date()).state
        return result.outcome.state

    @staticmethod
    def _is_stale(result: Result, now_ns: int) -> bool:
        return now_ns - result.observed_ns > result.control.valid_for_s * 10**9

    def status(self, *, detail: bool = False) -> dict[str, Any]:
        """Return the body of `GET /compliance/status`; runs nothing.

        Args:
            detail: Include criterion, evidence, method and audit index, for readers who may see them.
        """
        self.revive()
        return self._report(detail=detail)

    def _report(self, *, detail: bool = False) -> dict[str, Any]:
        now = self._clock.monotonic_ns()
        rows = [self._row(control, now) for control in self.controls.values()]
        return report(self._service, CATALOGUE_VERSION, rows, detail=detail)

    def _row(self, control: Control, now_ns: int) -> Row:
        result = self._results.get(control.id)  # once: a round may put another in its place meanwhile
        return Row(
            control,
            self._state(result, now_ns),
            result,
            self._indices.get(control.id),
            self._is_required(control),
            self._waiver(control.id),
            self._attestation(control.id),
        )

    def _is_required(self, control: Control) -> bool:
        """Return whether the gate asks for it; what somebody once attested must go on being attested, with or without a file."""
        return control.required or control.id in self._required or control.id in self._once_attested

    def _attestation(self, name: str) -> Signed | None:
        return counting(self._documents.attestations.get(name, ()), self._clock.now().date())

    def _waiver(self, name: str) -> Signed | None:
        """Return the waiver of a control that holds today."""
        today = self._clock.now().date()
        signed = counting(self._documents.waivers.get(name, ()), today)
        return signed if signed is not None and signed.document.holds(today) else None

    def gate_failures(self) -> tuple[str, ...]:
        """Return the ids of required controls that are neither ``pass``, ``attested`` or ``not-applicable`` nor waived."""
        return tuple(gate_failures(self._report()["controls"]))

    def gate_open(self) -> bool:
        """Return whether every required control is shown or waived; where none is required the gate stays shut."""
        return gate_is_open(self._report()["controls"])

    # ---- the background thread

    def start(self, interval_s: float, jitter: float = 0.2) -> None:
        """Run what is due at once and then every `interval_s` seconds, on a daemon thread.

        Args:
            interval_s: Seconds between rounds; 0 starts nothing.
            jitter: Largest random part of the interval added or taken off, 0 to 0.9, so that replicas spread.

        Raises:
            ConfigurationError: A number is out of its range.
        """
        self.arm(interval_s, jitter)
        self.revive()

    def arm(self, interval_s: float, jitter: float = 0.2) -> None:
        """Be ready to `start`: the thread begins with the first request that this process, or a fork of it, sees.

        Args:
            interval_s: As for `start`.
            jitter: As for `start`.

        Raises:
            ConfigurationError: A number is out of its range.
        """
        self.schedule.arm(interval_s, jitter)

    def revive(self) -> None:
        """Start the thread where there should be one and is none: armed only, after a fork, none could be had, or it died."""
        try:
            self.schedule.revive()
        except RuntimeError:  # the next status tries again, and meanwhile evidence decays
            self._failed("controls")

    def stop(self) -> None:
        """End the background thread after the round that it is in; harmless twice."""
        self.schedule.stop()


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


class _ForkLock:
    """A lock that a child process finds free: whoever held it in the parent is not there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def held(self) -> threading.RLock:
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock
