"""Work outside requests: threads that stay part of the trace, and jobs that say when they last succeeded.

Limits: a process that ends before it is scraped takes its metrics with it; its spans and log lines are out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from functools import wraps
from typing import ParamSpec, TypeVar

from healthobs._runtime import current_or_none
from healthobs.decorators.binding import Binding
from healthobs.decorators.observer import ObservedCall
from healthobs.decorators.plan import Counted, Plan, Traced

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
    name = obs.redactor.name(name, signal="trace")  # known only now, so it can be made of data
    plan = Plan(name=name, traced=Traced(), timed=True, counted=(Counted(),), in_flight=True, logged="info")
    call = ObservedCall(Binding(name, plan, obs), None)
    try:
        yield
    except BaseException as exc:
        call.finish(None, exc)
        raise
    else:
        call.finish(None, None)
        with contextlib.suppress(Exception):  # a fault of telemetry is not the job's
            gauge = obs.metrics.gauge(
                f"{obs.settings.prefix or 'healthobs'}_job_last_success_timestamp_seconds",
                "When a job last succeeded, in seconds since the epoch",
                ("job",),
                multiprocess_mode="max",
            )
            gauge.labels(name).set(obs.clock.wall_ns() / 1e9)
    finally:
        obs.flush()
