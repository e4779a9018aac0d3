"""Runs the checks of one service and answers liveness and readiness from their words."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, Unpack

from healthobs import _runtime
from healthobs.clock import Clock, rfc3339
from healthobs.exceptions import InstrumentationError
from healthobs.health.checks import (
    GOOD,
    LIFECYCLE,
    WORKERS,
    Check,
    CheckOptions,
    Facts,
    Kind,
    OnRun,
    OnTransition,
    make_spec,
)
from healthobs.health.decorators import pending
from healthobs.health.progress import Progress

Lifecycle = Literal["starting", "ready", "draining"]
#: Workers write every two seconds, after checks that may take their time: silence below this says nothing.
_SILENCE_NS = 5 * 10**9
_GAUGE = {"ready": 1.0, "ok": 1.0, "degraded": 0.5}


class Health:
    """The checks of one service and its place in life: starting, ready, draining.

    The service is starting until set-up is complete (`ready` or `adopt_pending` was called) and one answer
    has found every critical check good. A service without checks is starting until then, too.

    Under a server with several workers (`healthobs.health.Board`) any of them drains them all, and one that is
    not ready or not alive makes the answer of each so, as ``workers``.

    Args:
        service: Name in the answers.
        version: Version in the answers.
        clock: Time stamps, and ages of cached words.
        on_transition: Told (name, old word, new word, type of the cause or None) of each change of a check,
            and of the life cycle under the name ``lifecycle``. A check that returns something else than None,
            True or False is told with the cause ``UnexpectedResult:<type>``. Called on the thread of the check
            or of the one who asks; its faults are swallowed.
        on_run: Told (name, kind, word, seconds) of each run of a check; its faults are swallowed.
        progress: The requests in flight, watched for a stall as the liveness check ``request_progress``.

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
        self,
        service: str,
        version: str,
        clock: Clock,
        *,
        on_transition: OnTransition | None = None,
        on_run: OnRun | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.service = service
        self.version = version
        self.clock = clock
        self.progress = progress
        self._on_transition = on_transition
        self._on_run = on_run
        self._checks: dict[str, Check] = {}
        self._lock = threading.Lock()
        self._set_up = False
        self._state: Lifecycle = "starting"
        if progress is not None:
            self.register("request_progress", progress.check, kind="liveness")

    def register(self, name: str, fn: Callable[[], Any], **options: Unpack[CheckOptions]) -> None:
        """Add a check.

        Args:
            name: Key in the answer: lower-case letters, digits, underscores; ``lifecycle`` and
                ``workers`` are taken.
            fn: Returns None or True when good, False or raises when not, raises `Degraded` in between; any
                other result is bad. May be async. Called on a thread of its own, once at a time.
            **options: See `CheckOptions`.

        Raises:
            InstrumentationError: The name is invalid or taken, or a time is out of its range.
        """
        spec = make_spec(name, fn, **options)
        with self._lock:
            if name in self._checks:
                raise InstrumentationError(f"the check '{name}' exists already: give this one another name")
            self._checks[name] = Check(spec, self.clock, self._on_transition, self._on_run)

    def adopt_pending(self) -> None:
        """Take over the checks that were decorated, and end set-up.

        Raises:
            InstrumentationError: The name of a pending check is taken; the others are adopted all the same. One
                that somebody else has adopted before is passed over instead: this service has its own.
        """
        refused: list[InstrumentationError] = []
        for kept, first in pending.take(self):
            try:
                self.register(kept.name, kept.fn, **kept.options)
            except InstrumentationError as exc:
                refused += [exc] if first else []
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
        board = _runtime.process.board
        if board is not None and board.draining:
            self._enter("draining")
        return self._state

    def liveness(self) -> tuple[int, dict[str, Any]]:
        """Ask the liveness checks; return status (200 or 503) and body. Readiness checks are not touched."""
        words = self._ask("liveness")
        if self._others_failed():
            words[WORKERS] = "failed"
        healthy = all(word in GOOD for word in words.values())
        body: dict[str, Any] = {
            "status": "healthy" if healthy else "unhealthy",
            "service": self.service,
            "version": self.version,
            "timestamp": rfc3339(self.clock.now(), timespec="seconds"),
        }
        if not healthy:
            body["checks"] = words
        return (200 if healthy else 503), body

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Ask the readiness checks; return status (200 or 503) and body: names in order, ``lifecycle`` last."""
        ready, words = self._own_readiness()
        board = _runtime.process.board
        if board is not None and self._state != "draining" and not all(row.ready for row in board.others()):
            words[WORKERS] = "not_ready"
            ready = False
        if self._state != "ready":
            words[LIFECYCLE] = self._state
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

    def write_verdicts(self) -> None:
        """Ask every check of this process and write what they say on the workers' board, if there is one."""
        ready, _ = self._own_readiness()
        alive = all(word in GOOD for word in self._ask("liveness").values())
        board = _runtime.process.board
        if board is not None:
            board.write(ready=ready, alive=alive)

    def facts(self) -> dict[str, Facts]:
        """Return what is known of each check beyond its word; asks none."""
        with self._lock:
            return {name: check.facts() for name, check in self._checks.items()}

    def close(self) -> None:
        """End the background runs."""
        with self._lock:
            for check in self._checks.values():
                check.stop()

    def _own_readiness(self) -> tuple[bool, dict[str, str]]:
        set_up = self._set_up  # before asking: a check registered later belongs to a later answer
        words = self._ask("readiness")
        good = all(word in GOOD for name, word in words.items() if self._checks[name].spec.critical)
        if self.state == "starting" and good and set_up:
            self._enter("ready")
        return good and self._state == "ready", words

    def _others_failed(self) -> bool:
        """Return whether another worker says that it has failed, or has been silent for as long as a stall, five seconds at least."""
        board = _runtime.process.board
        if board is None:
            return False
        silent_ns = 0
        if self.progress is not None:
            silent_ns = time.monotonic_ns() - max(self.progress.limit_ns, _SILENCE_NS)
        return any(not row.alive or row.beat_ns < silent_ns for row in board.others())

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
