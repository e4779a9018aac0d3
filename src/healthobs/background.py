"""Work outside requests: threads that stay part of the trace, and jobs that say when they last succeeded.

Limits: a process that ends before it is scraped takes its metrics with it; its spans and log lines are out.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from healthobs._callables import target
from healthobs._runtime import current_or_none
from healthobs.decorators.binding import Binding
from healthobs.decorators.observer import ObservedCall
from healthobs.decorators.plan import Counted, Plan, Traced
from healthobs.exceptions import InstrumentationError

if TYPE_CHECKING:
    from healthobs.observability import Observability

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


def carry(fn: Callable[P, R]) -> Callable[P, R]:
    """Return `fn` so that it runs in the context of now, whichever thread calls it.

    Trace, `Observability` and request go with it; a thread or an executor inherits none of them by itself.

    Args:
        fn: A plain function; a coroutine inherits its context without help.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from healthobs import Observability, Settings, current, use
        >>> with use(Observability(Settings())) as obs, ThreadPoolExecutor() as threads:
        ...     threads.submit(carry(current)).result() is obs
        True
    """
    context = copy_context()

    @wraps(fn)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        # A copy, because a context can be entered by one thread at a time.
        return context.copy().run(fn, *args, **kwargs)

    return carried


def job(name: str) -> Job:
    """Observe one run of a job: span, duration, count, log line, and when it last succeeded; flushed at its end.

    A block, or a decorator of a function or coroutine function, each call of which is a run. `sys.exit` without a status,
    or with 0, is a success.

    Args:
        name: A literal such as ``claims``; the label of ``…_job_last_success_timestamp_seconds``, an alert on
            which finds a job that no longer runs as well as one that fails. In ``strict`` it is a name like any other: one
            that is no constant of a running function, and not among `Settings.allowed_keys`, becomes ``[PHI:strict]``.

    Raises:
        InstrumentationError: The name is no text, or empty; a generator is decorated; or what was returned is entered
            while it is entered.

    Example:
        >>> from healthobs.testing import Capture
        >>> with Capture() as capture, job("claims"):
        ...     pass
        >>> capture.span("claims").name, capture.log_lines[0]["event"]
        ('claims', 'claims')
        >>> capture.metric("healthobs_job_last_success_timestamp_seconds", job="claims") > 0
        True
    """
    return Job(name)


class Job:
    """What `job` returns: a context manager that decorates, too."""

    def __init__(self, name: str) -> None:
        if not isinstance(cast("object", name), str) or not name:
            raise InstrumentationError("a job's name is a text that is not empty, such as 'claims'")
        self._name = name
        self._entered = False
        self._obs: Observability | None = None
        self._run: JobRun | None = None

    def __enter__(self) -> None:
        """Begin a run, where an `Observability` is in force."""
        if self._entered:
            raise InstrumentationError("a job is entered once at a time: call job(...) for each block")
        obs = current_or_none()
        if obs is not None:
            self._run = JobRun(job_binding(obs, self._name))
        self._obs, self._entered = obs, True

    def __exit__(self, _kind: object, exc: BaseException | None, _traceback: object) -> None:
        """End it, and export what is queued."""
        run, obs = self._run, self._obs
        self._run, self._obs, self._entered = None, None, False
        if run is None or obs is None:
            return
        try:
            run.finish(None if _exits_well(exc) else exc)
        finally:
            obs.flush()

    def __call__(self, fn: F) -> F:
        """Return `fn` so that each call is a run."""
        name, call = self._name, cast("Callable[..., Any]", fn)
        kinds = (fn, target(fn))
        if any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in kinds):
            raise InstrumentationError(
                "a generator cannot be decorated with job: put `with job(...)` in its body"
            )
        if any(inspect.iscoroutinefunction(one) for one in kinds):

            @wraps(fn)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with Job(name):
                    return await call(*args, **kwargs)

            return cast("F", awaited)

        @wraps(fn)
        def called(*args: Any, **kwargs: Any) -> Any:
            with Job(name):
                return call(*args, **kwargs)

        return cast("F", called)


def _exits_well(exc: BaseException | None) -> bool:
    """Return whether `exc` ends a process with status 0."""
    return isinstance(exc, SystemExit) and (exc.code is None or (isinstance(exc.code, int) and exc.code == 0))


def job_binding(obs: Observability, name: str, traced: Traced | None = None) -> Binding:
    """Return what all runs of one job share.

    Args:
        obs: Where they are recorded.
        name: The job's name.
        traced: What its span is like.
    """
    name = obs.redactor.name(name, signal="trace")  # known only now, so it can be made of data
    plan = Plan(
        name=name,
        traced=traced or Traced(),
        timed=True,
        counted=(Counted(),),
        in_flight=True,
        logged="info",
    )
    return Binding(name, plan, obs)


class JobRun:
    """One run, for what cannot hold a `with` block open: it begins when made, in the context of now.

    Args:
        binding: Of its job.
    """

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._call = ObservedCall(binding, None)

    def finish(self, exc: BaseException | None, *, succeeded: bool = True) -> None:
        """End it, in the context in which it began.

        Args:
            exc: What it raised, if anything.
            succeeded: Whether a run that raised nothing has done what it is for.
        """
        self._call.finish(None, exc)
        if exc is not None or not succeeded:
            return
        with contextlib.suppress(Exception):  # a fault of telemetry is not the job's
            obs = self._binding.obs
            gauge = obs.metrics.gauge(
                f"{obs.settings.prefix or 'healthobs'}_job_last_success_timestamp_seconds",
                "When a job last succeeded, in seconds since the epoch",
                ("job",),
                multiprocess_mode="max",
            )
            gauge.labels(self._binding.name).set(obs.clock.wall_ns() / 1e9)
