"""Runs the checks of one service and answers liveness and readiness from their words."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

from healthobs.clock import Clock, rfc3339
from healthobs.exceptions import InstrumentationError
from healthobs.health.checks import (
    ANSWER_BUDGET_SECONDS,
    GOOD,
    LIFECYCLE,
    Check,
    Degraded,
    Kind,
    OnTransition,
    make_spec,
)
from healthobs.health.decorators import pending

Lifecycle = Literal["starting", "ready", "draining"]
#: Seconds without a further failed export after which ``tracing`` is ready again.
QUIET_SECONDS = 30.0
_GAUGE = {"ready": 1.0, "ok": 1.0, "degraded": 0.5}


class Health:
    """The checks of one service and its place in life: starting, ready, draining.

    The service is starting until set-up is complete (`ready` or `adopt_pending` was called) and one answer
    has found every critical check good. A service without checks is starting until then, too.

    Args:
        service: Name in the answers.
        version: Version in the answers.
        clock: Time stamps, and ages of cached words.
        on_transition: Told (name, old word, new word, type of the cause or None) of each change of a check,
            and of the life cycle under the name ``lifecycle``. A check that returns something else than None,
            True or False is told with the cause ``UnexpectedResult:<type>``. Called on the thread of the check
            or of the one who asks; its faults are swallowed.

    Example:
        >>> health = Health("demo", "1.0.0", Clock())
        >>> health.register("database", lambda: True)
        >>> health.readiness()
        (503, {'ready': False, 'checks': {'database': 'ready', 'lifecycle': 'starting'}})
        >>> health.ready()
        >>> health.readiness()
        (200, {'ready': True, 'checks': {'database': 'ready'}})
    """

    def __init__(
        self, service: str, version: str, clock: Clock, *, on_transition: OnTransition | None = None
    ) -> None:
        self._service = service
        self._version = version
        self.clock = clock
        self._on_transition = on_transition
        self._checks: dict[str, Check] = {}
        self._lock = threading.Lock()
        self._set_up = False
        self._state: Lifecycle = "starting"

    def register(
        self,
        name: str,
        fn: Callable[[], Any],
        *,
        kind: Kind = "readiness",
        timeout: float = 0.5,
        ttl: float = 1.0,
        critical: bool = True,
        max_stall: float = 0.0,
    ) -> None:
        """Add a check.

        Args:
            name: Key in the answer: lower-case letters, digits, underscores; ``lifecycle`` is taken.
            fn: Returns None or True when good, False or raises when not, raises `Degraded` in between; any
                other result is bad. May be async. Called on a thread of its own, once at a time.
            kind: Which probe asks it.
            timeout: Seconds after which a run is abandoned; above 0, at most `ANSWER_BUDGET_SECONDS`.
            ttl: Seconds for which a word is kept; bad ones at most one second.
            critical: Whether a bad word makes the service not ready.
            max_stall: Seconds for which a good word outlives failures, so that a passing stall restarts nothing.

        Raises:
            InstrumentationError: The name is invalid or taken, or a time is out of its range.
        """
        spec = make_spec(name, fn, kind, timeout=timeout, ttl=ttl, critical=critical, max_stall=max_stall)
        with self._lock:
            if name in self._checks:
                raise InstrumentationError(f"the check '{name}' exists already: give this one another name")
            self._checks[name] = Check(spec, self.clock, self._on_transition)

    def adopt_pending(self) -> None:
        """Take over the checks decorated before any `Observability` was in force, and end set-up.

        Raises:
            InstrumentationError: The name of a pending check is taken; the others are adopted all the same.
        """
        refused: list[InstrumentationError] = []
        for name, (fn, options) in pending.take():
            try:
                self.register(name, fn, **options)
            except InstrumentationError as exc:
                refused.append(exc)
        if refused:
            raise refused[0]
        self.ready()

    def ready(self) -> None:
        """Say that set-up is complete, so that the next answer with good critical checks makes it ready."""
        self._set_up = True

    def drain(self) -> None:
        """Say not ready from now on, while requests in flight are finished; liveness stays as it is."""
        self._enter("draining")

    @property
    def state(self) -> Lifecycle:
        """``starting``, ``ready`` (it has been ready once; its checks may fail now) or ``draining``."""
        return self._state

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """Ask the liveness checks; return status (200 or 503) and body. Readiness checks are not touched."""
        words = self._ask("liveness")
        healthy = all(word in GOOD for word in words.values())
        body: dict[str, Any] = {
            "status": "healthy" if healthy else "unhealthy",
            "service": self._service,
            "version": self._version,
            "timestamp": rfc3339(self.clock.now(), timespec="seconds"),
        }
        if not healthy:
            body["checks"] = words
        return (200 if healthy else 503), body

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Ask the readiness checks; return status (200 or 503) and body: names in order, ``lifecycle`` last."""
        set_up = self._set_up  # before asking: a check registered later belongs to a later answer
        words = self._ask("readiness")
        good = all(word in GOOD for name, word in words.items() if self._checks[name].spec.critical)
        if good and set_up and self._state == "starting":
            self._enter("ready")
        if self._state != "ready":
            words[LIFECYCLE] = self._state
        ready = good and self._state == "ready"
        return (200 if ready else 503), {"ready": ready, "checks": words}

    def is_ready(self) -> bool:
        """Return whether the last words make the service ready; asks no check (gauge ``healthobs_ready``)."""
        with self._lock:
            critical = [
                check
                for check in self._checks.values()
                if check.spec.critical and check.spec.kind == "readiness"
            ]
        return self._state == "ready" and all(check.word in GOOD for check in critical)

    def snapshot(self) -> dict[str, tuple[Kind, str]]:
        """Return kind and last word of each check; asks none (gauge ``healthobs_check_status``)."""
        with self._lock:
            return {name: (check.spec.kind, check.word) for name, check in sorted(self._checks.items())}

    def _ask(self, kind: Kind) -> dict[str, str]:
        with self._lock:
            asked = sorted((name, check) for name, check in self._checks.items() if check.spec.kind == kind)
        runs = [(name, check, check.begin()) for name, check in asked]  # all begin before any is waited for
        return {name: check.answer(run) for name, check, run in runs}

    def _enter(self, state: Lifecycle) -> None:
        with self._lock:
            old = self._state
            if old in (state, "draining"):  # there is no way back from draining
                return
            self._state = state
        if self._on_transition is not None:
            with contextlib.suppress(Exception):  # a fault of telemetry is not the service's
                self._on_transition(LIFECYCLE, old, state, None)


def gauge_value(word: str) -> float:
    """Return the value of ``healthobs_check_status`` for a word: 1 good, 0.5 degraded, 0 bad.

    Example:
        >>> [gauge_value(word) for word in ("ready", "degraded", "timeout", "ok", "failed")]
        [1.0, 0.5, 0.0, 1.0, 0.0]
    """
    return _GAUGE.get(word, 0.0)


def register_builtin_checks(
    health: Health,
    *,
    metrics: Callable[[], Iterable[object]] | None = None,
    export_failures: Callable[[], int] | None = None,
    audit: Callable[[], object] | None = None,
) -> None:
    """Register ``metrics``, ``tracing`` and ``audit_trail`` for the signals that a service has.

    The first two are not critical and at worst ``degraded``: losing telemetry must not take a clinical service
    away. The audit trail is critical: what cannot be recorded must not be answered (45 CFR 164.312(b)).

    Args:
        health: Where to register.
        metrics: Yields the metric families of a scrape.
        export_failures: Returns how many exports of spans have failed so far.
        audit: Raises when the trail cannot take an entry.

    Raises:
        InstrumentationError: One of the names is taken.

    Example:
        >>> health = Health("demo", "1.0.0", Clock())
        >>> register_builtin_checks(health, export_failures=lambda: 0)
        >>> list(health.snapshot())
        ['tracing']
    """
    if metrics is not None:
        health.register("metrics", _metrics_check(metrics), critical=False, ttl=5.0)
    if export_failures is not None:
        health.register("tracing", _tracing_check(export_failures, health.clock), critical=False)
    if audit is not None:
        health.register("audit_trail", _audit_check(audit), timeout=ANSWER_BUDGET_SECONDS)


def _metrics_check(collect: Callable[[], Iterable[object]]) -> Callable[[], None]:
    def metrics() -> None:
        try:
            families = sum(1 for _ in collect())
        except Exception as exc:
            raise Degraded from exc
        if not families:
            raise Degraded

    return metrics


def _tracing_check(export_failures: Callable[[], int], clock: Clock) -> Callable[[], None]:
    seen, quiet_from_ns = 0, clock.monotonic_ns()

    def tracing() -> None:
        nonlocal seen, quiet_from_ns
        before, seen = seen, export_failures()
        now = clock.monotonic_ns()
        if seen > before:
            quiet_from_ns = now + int(QUIET_SECONDS * 1e9)
        if now < quiet_from_ns:
            raise Degraded

    return tracing


def _audit_check(audit: Callable[[], object]) -> Callable[[], None]:
    def audit_trail() -> None:
        audit()

    return audit_trail
