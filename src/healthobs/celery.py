"""Celery: each run of a task is a job, linked to whoever enqueued it. The only module that imports Celery.

A run has a trace of its own, because it may come hours later and again: its span links to the span that was current where
the task was sent (OpenTelemetry, messaging spans: the consumer's link). Everything else is `healthobs.job`'s: duration,
count, log line, and when it last succeeded. What is queued is exported when a process of the pool ends, not after each
task. Works with every pool whose tasks keep their context (prefork, threads, solo, gevent).

Limits: a process that is killed (hard time limit, out of memory) takes the spans since its last export along, and so does one
that replaced another (`max_tasks_per_child`) when the worker stops: the kernel kills it with the thread that forked it, and where
it waited for a task then, Celery's own stop can wait for its lock for ever (billiard, `Pool._help_stuff_finish`). A task that raises
`Ignore` is no error, and no last success; an attempt that raises `Retry` is ``cancelled``, with the type of what it is repeated for
on its span (`error.type`). One that is repeated without raising (`retry(throw=False)`) ends as its function does.
"""

# Celery carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextlib
from asyncio import CancelledError
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final

try:
    from celery import Celery, signals
    from celery.app import trace
except ModuleNotFoundError as _exc:
    if _exc.name != "celery":
        raise
    raise ModuleNotFoundError(
        "Celery is not installed; pip install healthobs[celery]", name="celery"
    ) from None
from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import NonRecordingSpan, get_current_span, set_span_in_context

from healthobs import _runtime, lifecycle
from healthobs._runtime import install, process
from healthobs.background import JobRun, job_binding
from healthobs.decorators.plan import Traced
from healthobs.exceptions import ConfigurationError
from healthobs.metrics import multiprocess
from healthobs.observability import Observability
from healthobs.redaction.failures import describe_exception
from healthobs.tracing import format_traceparent, parse_traceparent

if TYPE_CHECKING:
    from healthobs.decorators.binding import Binding

EXTENSION: Final = "healthobs"
_HEADER: Final = "traceparent"
_RUN: Final = "_healthobs_run"
_TRACED: Final = Traced(kind="consumer", new_trace=True)
_FAILED: Final = frozenset({"FAILURE", "REJECTED"})


def init_app(app: Celery, obs: Observability) -> Celery:
    """Observe the tasks of `app`: those that a worker with it runs, and the sending of them here.

    The first `Observability` becomes the process default when there is none, so that work outside tasks reports too.
    With `Settings.ops_port`, the worker's main process serves `/health` and `/metrics` there. Undo it with `remove_app`.

    Args:
        app: The application.
        obs: Where to record. Made before the pool forks, it goes on in each of its processes; for metrics of several
            processes set `PROMETHEUS_MULTIPROC_DIR`.

    Returns:
        The same application.

    Raises:
        ConfigurationError: The application has been initialised already.
    """
    if hasattr(app, EXTENSION):
        raise ConfigurationError("healthobs is on this application already: call init_app once")
    if process.default is None:
        install(obs)
    for name, template in vars(trace).items():
        # Celery's lines about a task, which strict would not know as its constants
        if name.startswith("LOG_"):
            obs.redactor.written(template.strip())
    observer = _Observer(app, obs)
    setattr(app, EXTENSION, observer)
    for signal, receiver in observer.receivers():
        signal.connect(receiver)
    return app


def remove_app(app: Celery) -> Celery:
    """Take healthobs off `app` again.

    Raises:
        ConfigurationError: It is not on it.
    """
    observer: _Observer | None = getattr(app, EXTENSION, None)
    if observer is None:
        raise ConfigurationError("healthobs is not on this application: there is nothing to take off")
    for signal, receiver in observer.receivers():
        signal.disconnect(receiver)
    delattr(app, EXTENSION)
    if process.default is observer.obs:
        install(None)
    return app


class _Observer:
    """What Celery's signals call, for the tasks of one application."""

    def __init__(self, app: Celery, obs: Observability) -> None:
        self._app = app
        self.obs = obs
        self._bindings: dict[str, Binding] = {}

    def receivers(self) -> list[tuple[Any, Any]]:
        """Return each signal with its receiver."""
        found: list[tuple[Any, Any]] = [
            (signals.before_task_publish, self.publish),
            (signals.task_prerun, self.begin),
            (signals.task_postrun, self.end),
            (signals.worker_ready, self.ready),
            (signals.worker_process_init, self.bury),
            (signals.worker_process_shutdown, self.flush),
            (signals.worker_shutdown, self.flush),
        ]
        if self.obs.logs.mode == "own":
            found.append((signals.celeryd_init, self.keep_stdout))
        if self.obs.settings.capture_stdlib:  # else Celery puts handlers of its own in the place of ours
            found.append((signals.setup_logging, self.keep_logging))
        return found

    def publish(self, headers: Any = None, **_: Any) -> None:
        """Send the current span's context along."""
        context = get_current_span().get_span_context()
        if context.is_valid and isinstance(headers, dict):
            headers[_HEADER] = format_traceparent(context)

    def begin(self, task: Any = None, **_: Any) -> None:
        """Begin a run, in this task's process and thread."""
        if task is None or task.app is not self._app:
            return
        try:
            vars(task.request)[_RUN] = _Run(self.obs, self._binding(task.name), task.request)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the task's
            self.obs.fault("celery", "begin", exc)

    def end(self, task: Any = None, retval: Any = None, state: str | None = None, **_: Any) -> None:
        """End the run that is under way."""
        run: _Run | None = None if task is None else vars(task.request).pop(_RUN, None)
        if run is not None:
            run.finish(retval, state)

    def ready(self, **_: Any) -> None:
        """Serve the ops port, where there is to be one."""
        lifecycle.start(self.obs)

    def bury(self, **_: Any) -> None:
        """Merge the metric files of processes of the pool that this one comes after."""
        path = multiprocess.directory()
        if path is not None:
            multiprocess.bury_dead(path)

    def flush(self, **_: Any) -> None:
        """Export what is queued before the process is gone; a process of the pool ends without exit handlers."""
        self.obs.flush()

    def keep_stdout(self, instance: Any = None, conf: Any = None, **_: Any) -> None:
        """Leave a worker's standard output as it is: redirected, each of our lines becomes a warning of Celery's."""
        if getattr(instance, "app", None) is self._app:
            conf.worker_redirect_stdouts = False

    def keep_logging(self, **_: Any) -> None:
        """Leave the logging as it is."""

    def _binding(self, name: str) -> Binding:
        binding = self._bindings.get(name)
        if binding is None:
            self.obs.redactor.written(name)  # a task's name is its function's
            binding = self._bindings[name] = job_binding(self.obs, name, _TRACED)
        return binding


class _Run:
    """One run of a task, and what is current meanwhile."""

    def __init__(self, obs: Observability, binding: Binding, request: Any) -> None:
        sender = parse_traceparent(getattr(request, _HEADER, None) or "")
        self._context: Token[Context] | None = None
        self._override = _runtime.override.set(obs)
        if sender is not None:
            self._context = attach(set_span_in_context(NonRecordingSpan(sender), Context()))
        self._job = JobRun(binding)

    def finish(self, retval: Any, state: str | None) -> None:
        try:
            if state == "RETRY":
                _tell(getattr(retval, "exc", None))
                self._job.finish(CancelledError())  # another run takes its place, and says how it ends
            elif state == "IGNORED":
                self._job.finish(None, succeeded=False)
            else:
                self._job.finish(retval if state in _FAILED and isinstance(retval, BaseException) else None)
        finally:
            if self._context is not None:
                detach(self._context)
            _runtime.override.reset(self._override)


def _tell(cause: object) -> None:
    """Put the type of what an attempt is repeated for on its span; its message may hold anything."""
    if isinstance(cause, BaseException):
        with contextlib.suppress(Exception):  # a fault of telemetry is not the task's
            get_current_span().set_attribute("error.type", describe_exception(cause).type)
