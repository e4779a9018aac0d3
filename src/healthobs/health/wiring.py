"""Connects the checks to the signals: what they measure, one line for each change of word, the built-in checks.

No metric runs a check: each is written when a check has run or a word has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from healthobs.health.builtin import register_builtin_checks
from healthobs.health.checks import LIFECYCLE, Kind
from healthobs.health.engine import Health, gauge_value
from healthobs.health.progress import Progress

if TYPE_CHECKING:
    from healthobs.observability import Observability

_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8)


class Recorder:
    """Writes the metrics and log lines of one service's checks.

    Args:
        obs: Where to; complete but for its `health`.
    """

    def __init__(self, obs: Observability) -> None:
        metrics = obs.metrics
        self._obs = obs
        self._on = not obs.settings.disabled
        self._status = metrics.gauge(
            "healthobs_check_status",
            "1 good, 0.5 degraded, 0 bad",
            ("check", "kind"),
            multiprocess_mode="livemin",
        )
        self._duration = metrics.histogram(
            "healthobs_check_duration_seconds", "Duration of a check's run", ("check",), buckets=_BUCKETS
        )
        self._runs = metrics.counter("healthobs_check_runs_total", "Runs of checks", ("check", "result"))
        self._success = metrics.gauge(
            "healthobs_check_last_success_timestamp_seconds",
            "When a check was last good",
            ("check",),
            multiprocess_mode="livemax",
        )
        self._transitions = metrics.counter(
            "healthobs_check_transitions_total", "Changes of a check's word", ("check", "to")
        )
        self._ready = metrics.gauge(
            "healthobs_ready", "Whether the service is ready (worst worker)", multiprocess_mode="livemin"
        )
        self._lifecycle = metrics.gauge("healthobs_lifecycle", "Workers in each state", ("state",))

    def ran(self, check: str, _kind: Kind, word: str, seconds: float) -> None:
        """Record one run."""
        if not self._on:
            return
        self._duration.declare(check).observe(seconds)
        self._runs.declare(check, word).inc()
        if gauge_value(word):
            self._success.declare(check).set(self._obs.clock.wall_ns() / 1e9)

    def changed(self, check: str, old: str, new: str, cause: str | None) -> None:
        """Record a change of word, and write one line about it."""
        if self._on:
            if check == LIFECYCLE:
                self._lifecycle.declare(old).set(0)
                self._lifecycle.declare(new).set(1)
            else:
                kind = self._obs.health.snapshot()[check][0]
                self._status.declare(check, kind).set(gauge_value(new))
                self._transitions.declare(check, new).inc()
            self._ready.set(self._obs.health.is_ready())
        level = "info" if gauge_value(new) == 1 else "warning"
        own = {"check": check, "old": old, "new": new} | ({"cause": cause} if cause else {})
        self._obs.logs.emit(level, "check_changed", own=own)


def build_health(obs: Observability) -> Health:
    """Return the health of one service, with the checks that `obs.settings.builtin_checks` names.

    Args:
        obs: What is observed, complete but for its `health` and `controls`.
    """
    settings, recorder = obs.settings, Recorder(obs)
    stall = settings.max_stall_seconds
    health = Health(
        settings.service_name,
        settings.service_version,
        obs.clock,
        on_transition=recorder.changed,
        on_run=recorder.ran,
        progress=Progress(stall, obs.clock) if stall else None,
    )
    wanted = settings.builtin_checks
    on = not settings.disabled
    register_builtin_checks(
        health,
        metrics=obs.metrics.collect if on and "metrics" in wanted else None,
        export_failures=obs.tracing.failures if on and "tracing" in wanted else None,
        audit=obs.audit.health if obs.audit is not None and "audit_trail" in wanted else None,
        audit_critical=settings.audit_policy != "spool",
    )
    return health
