"""Work outside requests: threads that stay part of the trace, and jobs that say when they last succeeded.

Limits: a process that ends before it is scraped takes its metrics with it; its spans and log lines are out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from healthobs._runtime import current_or_none
from healthobs.decorators.binding import Binding
from healthobs.decorators.observer import ObservedCall
from healthobs.decorators.plan import Counted, Plan, Traced

if TYPE_CHECKING:
    from healthobs.observability import Observability

P = ParamSpec("P")
R = TypeVar("R")


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


@contextmanager
def job(name: str) -> Generator[None]:
    """Observe one run of a job: span, duration, count, log line, and when it last succeeded; flushed at its end.

    Args:
        name: A literal such as ``claims``; the label of ``…_job_last_success_timestamp_seconds``, an alert on
            which finds a job that no longer runs as well as one that fails. In ``strict`` it is a name like any other: one
            that is no constant of a running function, and not among `Settings.allowed_keys`, becomes ``[PHI:strict]``.

    Example:
        >>> from healthobs.testing import Capture
        >>> with Capture() as capture, job("claims"):
        ...     pass
        >>> capture.span("claims").name, capture.log_lines[0]["event"]
        ('claims', 'claims')
        >>> capture.metric("healthobs_job_last_success_timestamp_seconds", job="claims") > 0
        True
    """
    obs = current_or_none()
    if obs is None:
        yield
        return
    run = JobRun(job_binding(obs, name))
    try:
        yield
    except BaseException as exc:
        run.finish(exc)
        raise
    else:
        run.finish(None)
    finally:
        obs.flush()


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
