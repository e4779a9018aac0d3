"""Controls whose probes, clock and documents a test sets."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from healthobs.clock import Clock
from healthobs.compliance import (
    Control,
    ControlEngine,
    Outcome,
    ProbeContext,
    State,
)
from healthobs.config import Settings
from healthobs.redaction import Redactor

MOMENT = datetime(2026, 11, 23, 7, 30, tzinfo=UTC)


class Time:
    """Wall and monotonic time that move when told to, together or apart."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.wall_step = 0.0

    def clock(self) -> Clock:
        """Return the clock."""
        return Clock(
            lambda: int((MOMENT.timestamp() + self.elapsed + self.wall_step) * 1e9),
            lambda: 7 * 10**9 + int(self.elapsed * 1e9),
        )


class World:
    """An engine over probes whose outcome tests set, and everything that it told."""

    def __init__(self, *controls: Control, **options: Any) -> None:
        self.time = Time()
        self.outcomes: dict[str, Any] = {}
        self.runs: list[str] = []
        self.results: list[tuple[str, str]] = []
        self.changes: list[tuple[str, str, str]] = []
        #: How many seconds late each of them was told.
        self.late: list[int] = []
        self.shown: list[dict[str, State]] = []
        self.errors: list[str] = []
        self.refuse: Exception | None = None
        self.contexts: list[ProbeContext] = []
        made = controls or (self.control("C-1"), self.control("C-2"))
        self.engine = ControlEngine(
            [control if control.probe is None else self._wired(control) for control in made],
            self._context,
            self.time.clock(),
            service="phi-service",
            on_result=lambda result: self.results.append((result.control.id, result.outcome.state)),
            on_change=self._changed,
            on_states=lambda states: self.shown.append(dict(states)),
            on_error=self.errors.append,
            **options,
        )

    @staticmethod
    def control(name: str, **changes: Any) -> Control:
        """Return a control whose probe is put in by the world."""
        fields: dict[str, Any] = {
            "cite": "policy 1",
            "framework": "company",
            "title": "Title",
            "criterion": "criterion",
            "method": "probe",
            "probe": lambda context: Outcome("pass", ""),
            **changes,
        }
        return Control(name, **fields)

    def _wired(self, control: Control) -> Control:
        def probe(context: ProbeContext) -> Outcome:
            self.runs.append(control.id)
            self.contexts.append(context)
            outcome = self.outcomes.get(control.id, Outcome("pass", "seen", 3))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome  # type: ignore[no-any-return]

        return replace(control, probe=probe)

    def _context(self) -> ProbeContext:
        return ProbeContext(
            settings=Settings(),
            clock=self.time.clock(),
            redactor=Redactor(),
        )

    def _changed(self, control: Control, old: str, new: str, result: Any, late_s: int) -> int:
        if self.refuse is not None:
            raise self.refuse
        self.changes.append((control.id, old, new))
        self.late.append(late_s)
        return len(self.changes) - 1


@pytest.fixture
def world() -> World:
    return World()


def threads(name: str = "test-schedule") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]
