"""One health check: at most one run in flight, a hard timeout, a word from a closed vocabulary.

A run has a daemon thread of its own and everybody who asks meanwhile shares it. A run that outlasts its
timeout is abandoned: its word is ``timeout``, its late answer is discarded, and no other run starts until it
has ended. So a hung check costs one thread, never a pool of them. As long as it hangs, it counts as one more bad run
whenever another one would have been due.

With an `interval` a check runs in the background and whoever asks reads the last word; a good word that has
outlived three intervals is ``stale``.

Limits: Python cannot end a thread, so a hung synchronous check keeps its own (an async one is cancelled).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack

from healthobs.clock import Clock
from healthobs.exceptions import InstrumentationError

Kind = Literal["readiness", "liveness"]
#: Told (check, old word, new word, type of the cause or None) when a word changes; its faults are swallowed.
OnTransition = Callable[[str, str, str, "str | None"], object]
#: Told (check, kind, word, seconds) of each run; its faults are swallowed.
OnRun = Callable[[str, Kind, str, float], object]

#: The whole answer stays below the one second that a kubelet waits by default.
ANSWER_BUDGET_SECONDS = 0.8
#: The name under which the service's own state appears among the checks, when it is not ready.
LIFECYCLE = "lifecycle"
#: The name under which the other workers of the server appear, when one of them is not well.
WORKERS = "workers"
#: The word at registration, by kind: a liveness check is well until there is evidence that it is not.
FIRST_WORD = {"readiness": "starting", "liveness": "ok"}
GOOD = frozenset({"ready", "degraded", "ok"})
#: However long good news is kept, bad news is kept no longer than this.
BAD_NEWS_TTL_SECONDS = 1.0
#: A good word of a background check is believed for this many intervals.
STALE_AFTER_INTERVALS = 3
#: How far an interval is drawn out or shortened, so that replicas do not ask a shared subject in step.
_JITTER = 0.2
UNEXPECTED_RESULT = "UnexpectedResult"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")


class Degraded(Exception):  # noqa: N818 - a state, not an error
    """Raised by a readiness check whose subject works, but not as it should; the service stays ready."""


class CheckOptions(TypedDict, total=False):
    """What may be said of a check besides its name and function."""

    #: Which probe asks it; default ``readiness``.
    kind: Kind
    #: Seconds after which a run is abandoned; above 0, at most `ANSWER_BUDGET_SECONDS`; default 0.5.
    timeout: float
    #: Seconds for which a word is kept, bad ones at most one; default 1.
    ttl: float
    #: Whether a bad word makes the service not ready; default True.
    critical: bool
    #: Seconds for which a good word outlives failures, so that a passing stall restarts nothing; default 0.
    max_stall: float
    #: Bad runs in a row that end a good word; default 1, with `interval` 2.
    fail_after: int | None
    #: Seconds between runs in the background, give or take a fifth; whoever asks reads the last word, and a good one is
    #: ``stale`` after three intervals. Default: run when asked.
    interval: float | None


@dataclass(frozen=True, slots=True)
class Spec:
    """What was registered; see `CheckOptions`."""

    name: str
    fn: Callable[[], Any]
    kind: Kind = "readiness"
    timeout: float = 0.5
    ttl: float = 1.0
    critical: bool = True
    max_stall: float = 0.0
    fail_after: int | None = None
    interval: float | None = None

    @property
    def tolerated(self) -> int:
        """How many bad runs in a row a good word outlives."""
        return (self.fail_after or (1 if self.interval is None else 2)) - 1


def make_spec(name: str, fn: Callable[[], Any], **options: Unpack[CheckOptions]) -> Spec:
    """Return the specification of a check.

    Raises:
        InstrumentationError: The name is invalid, or a time is out of its range.
    """
    if not _NAME.match(name) or name in (LIFECYCLE, WORKERS):
        raise InstrumentationError(
            "a check's name is up to 63 lower-case letters, digits and underscores, not 'lifecycle' or 'workers'"
        )
    spec = Spec(name, fn, **options)
    if not 0 < spec.timeout <= ANSWER_BUDGET_SECONDS:
        raise InstrumentationError(
            f"a check's timeout is above 0 and at most {ANSWER_BUDGET_SECONDS} s, the budget of the whole answer"
        )
    if spec.ttl < 0 or spec.max_stall < 0:
        raise InstrumentationError("a check's ttl and max_stall are 0 or more seconds")
    if spec.interval is not None and spec.interval < spec.timeout:
        raise InstrumentationError("a check's interval is at least its timeout")
    if spec.fail_after is not None and spec.fail_after < 1:
        raise InstrumentationError("a check's fail_after is 1 or more runs")
    return spec


@dataclass(frozen=True, slots=True)
class Finding:
    """What one run found: the word, and the type of what caused it."""

    word: str
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a check beyond its word, for those who may see causes.

    Args:
        critical: Whether a bad word makes the service not ready.
        cause: Type of what made the word bad.
        duration_seconds: How long the last run took.
        age_seconds: How old its finding is; None before the first.
    """

    critical: bool
    cause: str | None
    duration_seconds: float
    age_seconds: float | None


@dataclass(slots=True)
class _Run:
    deadline: float
    began_ns: int
    pid: int = field(default_factory=os.getpid)
    settled: threading.Event = field(default_factory=threading.Event)
    finding: Finding | None = None


class Check:
    """One registered check and the last word about it.

    Args:
        spec: What to run, and its limits.
        clock: Ages of words (its monotonic side).
        on_transition: Told of each change of word.
        on_run: Told of each run.
    """

    def __init__(
        self,
        spec: Spec,
        clock: Clock,
        on_transition: OnTransition | None = None,
        on_run: OnRun | None = None,
    ) -> None:
        self.spec = spec
        self.word: str = FIRST_WORD[spec.kind]
        self._clock = clock
        self._on_transition = on_transition
        self._on_run = on_run
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._loop_pid = 0
        self._stopped = threading.Event()
        self._last = Finding(self.word)
        self._fresh_until_ns: int | None = None
        self._failing_since_ns: int | None = None
        self._failures = 0
        self._again_ns = 0
        self._settled_ns: int | None = None
        self._duration_ns = 0

    def begin(self) -> _Run | None:
        """Start a run, or join the one in flight; None when the last word is to be read."""
        if self.spec.interval is None:
            return self._begin()
        self._keep_running()
        return self._begin() if self._settled_ns is None else None

    def stop(self) -> None:
        """End the background runs."""
        self._stopped.set()

    def facts(self) -> Facts:
        """Return what is known of the last run."""
        with self._lock:
            at, now = self._settled_ns, self._clock.monotonic_ns()
            age = None if at is None else (now - at) / 1e9
            return Facts(self.spec.critical, self._last.cause, self._duration_ns / 1e9, age)

    def _keep_running(self) -> None:
        """Start the background thread, once in each process."""
        with self._lock:
            if self._loop_pid == os.getpid():
                return
            self._loop_pid = os.getpid()
        try:
            threading.Thread(target=self._loop, name=f"healthobs-loop-{self.spec.name}", daemon=True).start()
        except RuntimeError:  # no more threads: whoever asks next tries again
            self._loop_pid = 0

    def _loop(self) -> None:
        interval = self.spec.interval or 0.0
        while not self._stopped.wait(interval * random.uniform(1 - _JITTER, 1 + _JITTER)):  # noqa: S311
            self.answer(self._begin(anew=True))

    def _begin(self, *, anew: bool = False) -> _Run | None:
        with self._lock:
            run, now = self._run, self._clock.monotonic_ns()
            # A run whose thread stayed in the parent of a fork will never end here.
            if run is not None and run.pid == os.getpid():
                if run.finding is not None and (anew or now >= self._again_ns):
                    self._fail(now)  # abandoned, and hanging still: as bad as another run
                return run
            if not anew and self._fresh_until_ns is not None and now < self._fresh_until_ns:
                return None
            run = self._run = _Run(time.monotonic() + self.spec.timeout, now)
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
        if run is not None and not run.settled.wait(run.deadline - time.monotonic()):
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
            self._settled_ns, self._duration_ns = now, now - run.began_ns
            if finding.word in GOOD:
                self._failing_since_ns, self._failures = None, 0
            else:
                self._fail(now)
                if self._failing_since_ns is None:
                    self._failing_since_ns = now
            if ended:  # nothing is kept of a run that has not ended: the probe after its end starts another
                kept = self.spec.ttl
                if finding.word not in GOOD:
                    kept = min(kept, BAD_NEWS_TTL_SECONDS)
                self._fresh_until_ns = now + int(kept * 1e9)
        # Before the waiters go on, so that whoever sees the answer sees its consequences too.
        self._review()
        if self._on_run is not None:
            with contextlib.suppress(Exception):  # a fault of telemetry is not the check's
                self._on_run(self.spec.name, self.spec.kind, finding.word, (now - run.began_ns) / 1e9)
        run.settled.set()

    def _fail(self, now: int) -> None:
        """Count one bad run; whoever asks before another one could have ended badly finds the same one."""
        self._failures += 1
        self._again_ns = now + int((self.spec.timeout + min(self.spec.ttl, BAD_NEWS_TTL_SECONDS)) * 1e9)

    def _review(self) -> str:
        """Return the word that the last finding makes now, and tell of a change.

        A good word outlives failures until there were `fail_after` of them, and for `max_stall` seconds.
        """
        with self._lock:
            old, now = self.word, self._clock.monotonic_ns()
            finding = self._stale(now) or self._last
            word, cause = finding.word, finding.cause
            if word not in GOOD and old in GOOD and finding is self._last and self._tolerated(now):
                return old
            self.word = word
        if word != old and self._on_transition is not None:
            with contextlib.suppress(Exception):  # a fault of telemetry is not the check's
                self._on_transition(self.spec.name, old, word, cause)
        return word

    def _tolerated(self, now: int) -> bool:
        if self._failing_since_ns is None:
            return False
        return (
            self._failures <= self.spec.tolerated
            or now - self._failing_since_ns < int(self.spec.max_stall * 1e9)
        )  # fmt: skip

    def _stale(self, now: int) -> Finding | None:
        """Return what a good finding has become when its background runs have stopped coming."""
        interval = self.spec.interval
        if interval is None or self._settled_ns is None or self._last.word not in GOOD:
            return None
        if now - self._settled_ns <= int(STALE_AFTER_INTERVALS * interval * 1e9):
            return None
        return Finding("stale" if self.spec.kind == "readiness" else "failed", "StaleResult")
