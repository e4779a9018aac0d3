"""One health check: at most one run in flight, a hard timeout, a word from a closed vocabulary.

A run has a daemon thread of its own and everybody who asks meanwhile shares it. A run that outlasts its
timeout is abandoned: its word is ``timeout``, its late answer is discarded, and no other run starts until it
has ended. So a hung check costs one thread, never a pool of them.

Limits: Python cannot end a thread, so a hung synchronous check keeps its own (an async one is cancelled).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from healthobs.clock import Clock
from healthobs.exceptions import InstrumentationError

Kind = Literal["readiness", "liveness"]
#: Told (check, old word, new word, type of the cause or None) when a word changes; its faults are swallowed.
OnTransition = Callable[[str, str, str, "str | None"], object]

#: The whole answer stays below the one second that a kubelet waits by default.
ANSWER_BUDGET_SECONDS = 0.8
#: The name under which the service's own state appears among the checks, when it is not ready.
LIFECYCLE = "lifecycle"
#: The word at registration, by kind: a liveness check is well until there is evidence that it is not.
FIRST_WORD = {"readiness": "starting", "liveness": "ok"}
GOOD = frozenset({"ready", "degraded", "ok"})
#: However long good news is kept, bad news is kept no longer than this.
BAD_NEWS_TTL_SECONDS = 1.0
UNEXPECTED_RESULT = "UnexpectedResult"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


class Degraded(Exception):  # noqa: N818 - a state, not an error
    """Raised by a readiness check whose subject works, but not as it should; the service stays ready."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What was registered; see `healthobs.health.Health.register`."""

    name: str
    fn: Callable[[], Any]
    kind: Kind
    timeout: float
    ttl: float
    critical: bool
    max_stall: float = 0.0


def make_spec(
    name: str,
    fn: Callable[[], Any],
    kind: Kind,
    *,
    timeout: float = 0.5,
    ttl: float = 1.0,
    critical: bool = True,
    max_stall: float = 0.0,
) -> Spec:
    """Return the specification of a check.

    Raises:
        InstrumentationError: The name is invalid, or a time is out of its range.
    """
    if not _NAME.match(name) or name == LIFECYCLE:
        raise InstrumentationError(
            "a check's name is up to 63 lower-case letters, digits and underscores, and not 'lifecycle'"
        )
    if not 0 < timeout <= ANSWER_BUDGET_SECONDS:
        raise InstrumentationError(
            f"a check's timeout is above 0 and at most {ANSWER_BUDGET_SECONDS} s, the budget of the whole answer"
        )
    if ttl < 0 or max_stall < 0:
        raise InstrumentationError("a check's ttl and max_stall are 0 or more seconds")
    return Spec(name, fn, kind, timeout, ttl, critical, max_stall)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one run found: the word, and the type of what caused it."""

    word: str
    cause: str | None = None


@dataclass(slots=True)
class _Run:
    deadline: float
    pid: int = field(default_factory=os.getpid)
    settled: threading.Event = field(default_factory=threading.Event)
    finding: Finding | None = None


class Check:
    """One registered check and the last word about it.

    Args:
        spec: What to run, and its limits.
        clock: Ages of words (its monotonic side).
        on_transition: Told of each change of word.
    """

    def __init__(self, spec: Spec, clock: Clock, on_transition: OnTransition | None = None) -> None:
        self.spec = spec
        self.word: str = FIRST_WORD[spec.kind]
        self._clock = clock
        self._on_transition = on_transition
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._last = Finding(self.word)
        self._fresh_until_ns: int | None = None
        self._failing_since_ns: int | None = None

    def begin(self) -> _Run | None:
        """Start a run, or join the one in flight; None when the last word is fresh."""
        with self._lock:
            run = self._run
            # A run whose thread stayed in the parent of a fork will never end here.
            if run is not None and run.pid == os.getpid():
                return run
            if self._fresh_until_ns is not None and self._clock.monotonic_ns() < self._fresh_until_ns:
                return None
            run = self._run = _Run(time.monotonic() + self.spec.timeout)
        try:
            threading.Thread(
                target=self._execute, args=(run,), name=f"healthobs-check-{self.spec.name}", daemon=True
            ).start()
        except RuntimeError:  # no more threads: that is no evidence against a liveness check
            word = "not_ready" if self.spec.kind == "readiness" else self.word
            self._settle(run, Finding(word, "ThreadError"), ended=True)
        return run

    def answer(self, run: _Run | None) -> str:
        """Return the word, at the latest when the run's time is up."""
        if run is not None and not run.settled.wait(max(0.0, run.deadline - time.monotonic())):
            self._settle(run, self._timed_out(), ended=False)
        return self._review()

    def _timed_out(self) -> Finding:
        return Finding("timeout" if self.spec.kind == "readiness" else "failed", "TimeoutError")

    def _execute(self, run: _Run) -> None:
        finding = self._call()
        if time.monotonic() > run.deadline:
            finding = self._timed_out()
        self._settle(run, finding, ended=True)

    def _call(self) -> Finding:
        good, bad = ("ready", "not_ready") if self.spec.kind == "readiness" else ("ok", "failed")
        try:
            result = self.spec.fn()
            if inspect.isawaitable(result):
                result = asyncio.run(self._await(result))
        except Degraded as exc:
            # Working badly is no reason to be restarted.
            return Finding("degraded" if self.spec.kind == "readiness" else good, type(exc).__name__)
        except BaseException as exc:  # noqa: BLE001 - whatever it raises is its answer
            return Finding(bad, type(exc).__name__)
        if result is None or result is True:
            return Finding(good)
        return Finding(bad, None if result is False else f"{UNEXPECTED_RESULT}:{type(result).__name__}")

    async def _await(self, result: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(result, self.spec.timeout)

    def _settle(self, run: _Run, finding: Finding, *, ended: bool) -> None:
        """Take the first finding of a run; a later one only says that the run has ended."""
        now = self._clock.monotonic_ns()
        with self._lock:
            if ended and self._run is run:
                self._run = None
            if run.finding is not None:
                return
            run.finding = self._last = finding
            if finding.word in GOOD:
                self._failing_since_ns = None
            elif self._failing_since_ns is None:
                self._failing_since_ns = now
            if ended:  # nothing is kept of a run that has not ended: the probe after its end starts another
                kept = self.spec.ttl
                if finding.word not in GOOD:
                    kept = min(kept, BAD_NEWS_TTL_SECONDS)
                self._fresh_until_ns = now + int(kept * 1e9)
        # Before the waiters go on, so that whoever sees the answer sees its consequences too.
        self._review()
        run.settled.set()

    def _review(self) -> str:
        """Return the word that the last finding makes now, and tell of a change.

        A check with `max_stall` keeps its last good word until it has failed, or hung, for that long.
        """
        with self._lock:
            old, word = self.word, self._last.word
            if word not in GOOD and old in GOOD and self._failing_since_ns is not None:
                failing_ns = self._clock.monotonic_ns() - self._failing_since_ns
                if failing_ns < int(self.spec.max_stall * 1e9):
                    return old
            self.word = word
            cause = self._last.cause
        if word != old and self._on_transition is not None:
            with contextlib.suppress(Exception):  # a fault of telemetry is not the check's
                self._on_transition(self.spec.name, old, word, cause)
        return word
