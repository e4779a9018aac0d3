"""Celery: tasks are jobs, linked to who sent them; over a real broker of files, and in a real prefork worker."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import urllib3
from celery import Celery, Task, signals
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore, Reject
from kombu.transport import memory
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from healthobs import Settings, _runtime, observe
from healthobs.celery import init_app, remove_app
from healthobs.exceptions import ConfigurationError
from healthobs.testing import Capture
from live_servers import Collector, Server, serving, until

NAME, SSN = "Ottoline", "078-05-1120"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Give logging and warnings back: a worker of this process adds handlers of its own, and takes warnings up."""
    loggers = [logging.getLogger(name) for name in ("", "py.warnings", "celery", "celery.task")]
    before = [(one, one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    logging.captureWarnings(False)
    for one, handlers, level, propagate in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


class _Broker(memory.Transport):
    """The broker in memory, which a worker that is to end does not wait two seconds at."""

    def drain_events(self, connection: Any, timeout: float | None = None) -> Any:
        return super().drain_events(connection, timeout=min(timeout or 0.05, 0.05))


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[Celery]:
    """An application whose broker and results are in memory."""
    monkeypatch.setattr(memory, "Transport", _Broker)
    made = Celery("claims", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.conf.update(
        task_publish_retry=False,
        broker_transport_options={"polling_interval": 0.01},
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    made.conf.task_default_queue = uuid4().hex  # what is in memory is the process's
    made.task = partial(made.task, shared=False)
    yield made
    if hasattr(made, "healthobs"):
        remove_app(made)
    made.close()


@pytest.fixture
def observed(app: Celery, capture: Capture) -> Celery:
    """The same, observed."""
    return init_app(app, capture.obs)


def run_in_worker(app: Celery, *tasks: Callable[[], Any]) -> list[Any]:
    """Send each in turn to a worker of this process, whose one thread runs them; return the results of the runs."""
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        sent = [task() for task in tasks]
        for one in sent:
            with contextlib.suppress(Exception):
                one.get(timeout=20)
    return sent


def _nothing() -> None:
    return None


def _seven() -> int:
    return 7


def _an_exception() -> Exception:
    return ValueError(NAME)


class TestRun:
    """One run of a task."""

    def test_is_a_job(self, observed: Celery, capture: Capture) -> None:
        """Span, duration, count, log line and last success under the task's name."""

        @observed.task(name="claims.submit")
        def submit() -> int:
            return 7

        (result,) = run_in_worker(observed, submit.delay)
        assert result.get(timeout=20) == 7
        span = capture.span("claims.submit")
        assert (span.kind, span.status.status_code) == (SpanKind.CONSUMER, StatusCode.UNSET)
        (line,) = [line for line in capture.log_lines if line["event"] == "claims.submit"]
        assert line["outcome"] == "ok"
        labels = {"operation": "claims.submit", "outcome": "ok"}
        assert capture.metric("healthobs_operations_total", **labels) == 1
        assert capture.metric("healthobs_operation_duration_seconds_count", **labels) == 1
        assert capture.metric("healthobs_operations_in_flight", operation="claims.submit") == 0
        assert capture.metric("healthobs_job_last_success_timestamp_seconds", job="claims.submit") is not None

    def test_links_to_who_sent_it(self, observed: Celery, capture: Capture) -> None:
        """A trace of its own, for it may come hours later; the link leads back."""

        @observed.task(name="claims.submit")
        def submit() -> None:
            return None

        def send() -> Any:
            with capture.obs.tracing.tracer.start_as_current_span("request"):
                return submit.delay()

        run_in_worker(observed, send)
        sender, span = capture.span("request"), capture.span("claims.submit")
        assert span.parent is None
        assert span.context.trace_id != sender.context.trace_id
        assert [link.context.span_id for link in span.links] == [sender.context.span_id]

    def test_sent_outside_any_span(self, observed: Celery, capture: Capture) -> None:
        """Then there is nothing to link to."""
        run_in_worker(observed, observed.task(name="lonely")(_nothing).delay)
        span = capture.span("lonely")
        assert (span.parent, list(span.links)) == (None, [])

    def test_what_is_current_inside_and_after(self, observed: Celery, capture: Capture) -> None:
        """Work inside is a child and reports to the same place; a task that it sends is linked to it; nothing stays."""

        @observe("part")
        def part() -> None:
            seen.append(_runtime.override.get() is capture.obs)

        @observed.task(name="second")
        def second() -> None:
            return None

        @observed.task(name="first")
        def first() -> None:
            part()
            second.delay()

        seen: list[bool] = []
        run_in_worker(observed, first.delay, second.delay)
        spans = [one for one in capture.spans if one.name == "second"]
        whole, inner = capture.span("first"), capture.span("part")
        assert (inner.parent and inner.parent.span_id) == whole.context.span_id
        assert [[link.context.span_id for link in span.links] for span in spans] in (
            [[whole.context.span_id], []],
            [[], [whole.context.span_id]],
        )
        assert seen == [True]
        assert not get_current_span().get_span_context().is_valid

    def test_called_in_place(self, observed: Celery, capture: Capture) -> None:
        """`apply` runs it here, linked to the span around it, which stays current after it."""
        task = observed.task(name="here")(_nothing)
        with capture.obs.tracing.tracer.start_as_current_span("around") as around:
            task.apply()
            assert get_current_span() is around
        span = capture.span("here")
        assert (span.parent, [link.context for link in span.links]) == (None, [around.get_span_context()])

    def test_strict(self, app: Celery) -> None:
        """A task's name is its function's, so it passes."""
        with Capture(Settings(redaction="strict")) as capture:
            init_app(app, capture.obs)
            run_in_worker(app, app.task(name="claims.nightly_import")(_nothing).delay)
        assert capture.span("claims.nightly_import").name == "claims.nightly_import"


class TestOutcome:
    """How a run ended."""

    def _ended(
        self, app: Celery, capture: Capture, fail: Callable[[Task], Any], **options: Any
    ) -> tuple[list[str], list[str]]:
        """Run it; return outcomes and exception types of its lines."""
        run_in_worker(app, app.task(name="t", bind=True, **options)(fail).delay)
        lines = [line for line in capture.log_lines if line["event"] == "t"]
        assert capture.metric("healthobs_operations_in_flight", operation="t") == 0
        return [line["outcome"] for line in lines], [line.get("exception_type", "") for line in lines]

    def test_failure(self, observed: Celery, capture: Capture) -> None:
        """An exception is an error in every signal, with the frames of the task; its message is nowhere."""

        def fail(_task: Task) -> None:
            raise KeyError(f"{NAME} {SSN}")

        assert self._ended(observed, capture, fail) == (["error"], ["KeyError"])
        (line,) = [line for line in capture.log_lines if line["event"] == "t"]
        assert any(
            ("test_celery:" in frame and ":fail:" in f":{frame}:") or "fail" in frame
            for frame in line["exception_frames"]
        )
        assert capture.span("t").status.status_code is StatusCode.ERROR
        assert capture.metric("healthobs_job_last_success_timestamp_seconds", job="t") is None
        assert capture.leaks(NAME, SSN) == ()

    def test_retry(self, observed: Celery, capture: Capture) -> None:
        """An attempt that is to be repeated is no error and no success: cancelled, without a failure; the next is linked to it."""

        def flaky(task: Task) -> None:
            if task.request.retries < 2:
                raise task.retry(exc=ConnectionError(NAME), countdown=0)

        outcomes, exceptions = self._ended(observed, capture, flaky)
        assert (outcomes, exceptions) == (["cancelled", "cancelled", "ok"], [""] * 3)
        assert {line["level"] for line in capture.log_lines if line["event"] == "t"} == {"info"}
        first, second, third = [span for span in capture.spans if span.name == "t"]
        assert {span.status.status_code for span in (first, second, third)} == {StatusCode.UNSET}
        types = [(span.attributes or {}).get("error.type") for span in (first, second, third)]
        assert types == ["ConnectionError", "ConnectionError", None]
        assert [link.context.span_id for link in second.links] == [first.context.span_id]
        assert [link.context.span_id for link in third.links] == [second.context.span_id]
        assert capture.leaks(NAME) == ()

    def test_no_last_success_by_a_retry(self, observed: Celery, capture: Capture) -> None:
        """An attempt that is to be repeated has not done what it is for; the last one, which may not be, is an error."""

        def flaky(task: Task) -> None:
            raise task.retry(exc=ConnectionError(NAME), countdown=0, max_retries=1)

        assert self._ended(observed, capture, flaky) == (["cancelled", "error"], ["", "ConnectionError"])
        assert capture.metric("healthobs_job_last_success_timestamp_seconds", job="t") is None

    def test_reject(self, observed: Celery, capture: Capture) -> None:
        """What the task refuses is an error."""

        def refuse(_task: Task) -> None:
            raise Reject(NAME, requeue=False)

        app = observed
        app.task(name="t", bind=True, acks_late=True)(refuse).apply(throw=False)
        assert [line["outcome"] for line in capture.log_lines if line["event"] == "t"] == ["error"]
        assert capture.leaks(NAME) == ()

    def test_ignore(self, observed: Celery, capture: Capture) -> None:
        """A run that keeps its own state is no error, and no last success."""

        def ignore(_task: Task) -> None:
            raise Ignore

        observed.task(name="t", bind=True)(ignore).apply()
        assert [line["outcome"] for line in capture.log_lines if line["event"] == "t"] == ["ok"]
        assert capture.metric("healthobs_job_last_success_timestamp_seconds", job="t") is None

    def test_an_exception_that_is_returned(self, observed: Celery, capture: Capture) -> None:
        """It is a result like any other."""
        observed.task(name="t")(_an_exception).apply()
        assert capture.metric("healthobs_operations_total", operation="t", outcome="ok") == 1


class TestInitApp:
    """`init_app` and `remove_app`."""

    def test_taken_off_again(self, observed: Celery, capture: Capture) -> None:
        """Neither span nor header afterwards; twice is refused."""
        with pytest.raises(ConfigurationError, match="already"):
            init_app(observed, capture.obs)
        remove_app(observed)
        with pytest.raises(ConfigurationError, match="not on"):
            remove_app(observed)
        observed.task(name="t")(_nothing).apply()
        assert capture.spans == ()

    def test_standard_output_of_a_worker(self, observed: Celery, capture: Capture) -> None:
        """A worker of this application does not redirect it, or our lines would become warnings; its configuration stays."""
        assert observed.conf.worker_redirect_stdouts is False  # the fixture's
        observed.conf.worker_redirect_stdouts = True
        remove_app(observed)
        init_app(observed, capture.obs)
        assert observed.conf.worker_redirect_stdouts is True
        other = Celery("other", broker="memory://", set_as_current=False)
        for app in (observed, other):
            signals.celeryd_init.send(
                sender="w", instance=SimpleNamespace(app=app), conf=app.conf, options={}
            )
        assert (observed.conf.worker_redirect_stdouts, other.conf.worker_redirect_stdouts) == (False, True)
        other.close()

    def test_another_application(self, observed: Celery, capture: Capture) -> None:
        """Its tasks are its own business."""
        other = Celery("other", broker="memory://", set_as_current=False)
        other.task(name="t")(_nothing).apply()
        assert capture.spans == ()
        other.close()

    def test_a_fault_of_telemetry(
        self, observed: Celery, capture: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The task runs all the same; the fault is counted."""

        def broken(*_arguments: Any) -> Any:
            raise RuntimeError

        monkeypatch.setattr("healthobs.celery.job_binding", broken)
        assert observed.task(name="t")(_seven).apply().get() == 7
        assert capture.metric("healthobs_internal_errors_total", component="celery") == 1
        (fault,) = [line for line in capture.log_lines if line["event"] == "telemetry_fault"]
        assert (fault["component"], fault["part"], fault["exception_type"]) == (
            "celery",
            "begin",
            "RuntimeError",
        )


class TestNoData:
    """What is planted in a task is nowhere afterwards."""

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    def test_planted(self, app: Celery, redaction: str) -> None:
        """In arguments, headers, a task's own id, result and exception; Celery's own lines quote the last three."""
        settings = Settings(redaction=redaction, capture_stdlib=True, log_level="debug")  # type: ignore[arg-type]
        with Capture(settings) as capture:
            logging.getLogger("celery").setLevel(logging.DEBUG)
            init_app(app, capture.obs)

            @app.task(name="good")
            def good(who: str) -> str:
                return f"{who} {SSN}"

            @app.task(name="bad")
            def bad(who: str) -> None:
                raise ValueError(f"{who} {SSN}")

            run_in_worker(
                app,
                lambda: good.apply_async((NAME,), headers={"X-Patient": NAME}),
                lambda: good.apply_async((NAME,), task_id=f"visit of {NAME}"),
                lambda: bad.apply_async((), {"who": NAME}),
            )
        told = [line["event"] for line in capture.log_lines if line.get("logger") == "celery.app.trace"]
        assert any("succeeded" in event for event in told)
        assert any("raised unexpected" in event for event in told)
        assert any(re.search(r"good\[[0-9a-f]{8}-[0-9a-f-]{27}\]", event) for event in told)
        assert capture.leaks(NAME, SSN) == ()


WORKER = """
import os
from celery import Celery
from healthobs import Observability, Settings
from healthobs.celery import init_app

app = Celery("ward", broker="filesystem://", backend="file://" + os.environ["FOLDER"])
folders = ("data_folder_in", "data_folder_out", "control_folder")
app.conf.broker_transport_options = dict.fromkeys(folders, os.environ["FOLDER"])
init_app(app, Observability(Settings.from_env(service_name="ward", ops_port=int(os.environ["AT"]))))

@app.task(name="ward.admit")
def admit(who):
    return os.getpid()

@app.task(name="ward.fail")
def fail(who):
    raise ValueError(who)

if __name__ == "__main__":
    for _ in range(20):
        admit.delay("Ottoline")
    fail.delay("Ottoline 078-05-1120")
"""


@pytest.mark.server
@pytest.mark.parametrize(("replaced", "frameworks"), [(False, "hipaa"), (True, "")])
def test_worker_that_forks_its_pool(tmp_path: Path, replaced: bool, frameworks: str) -> None:
    """Metrics of its processes add up, also of those that are gone; every span is out when it stops; no data in a line."""
    (tmp_path / "ward.py").write_text(WORKER)
    for name in ("broker", "metrics"):
        (tmp_path / name).mkdir()
    with Collector() as collector:
        environ = {
            "AT": "OPS",
            "FOLDER": str(tmp_path / "broker"),
            "HEALTHOBS_FRAMEWORKS": frameworks,
            "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "600000",  # only the flush at the end sends
        }
        line = ["-m", "celery", "-A", "ward", "worker", "--concurrency=2", "--without-mingle"]
        line += ["--max-tasks-per-child=4"] * replaced
        # All is sent before the worker starts: this broker's files can be read before they are whole.
        sent = {**os.environ, **environ, "AT": "0", "PROMETHEUS_MULTIPROC_DIR": ""}
        subprocess.run([sys.executable, "ward.py"], cwd=tmp_path, env=sent, check=True)
        with serving(tmp_path, line, ready=False, **environ) as worker:
            until(lambda: 'operation="ward.admit",outcome="ok"} 20.0' in _scrape(worker))
            until(lambda: 'operation="ward.fail",outcome="error"} 1.0' in _scrape(worker))
            metrics = _scrape(worker)
            if not replaced:  # else Celery's own stop can hang: see the module's limits
                worker.term()
                assert worker.process.wait(20) == 0
        names = sorted(collector.spans.values())
        log = worker.log.read_text()
    assert '_job_last_success_timestamp_seconds{job="ward.admit"}' in metrics
    assert '_job_last_success_timestamp_seconds{job="ward.fail"}' not in metrics
    assert (tmp_path / "metrics/counter_archive.db").exists() == replaced
    assert replaced or names == ["ward.admit"] * 20 + ["ward.fail"]
    ours = [found for found in log.splitlines() if found.startswith("{")]
    assert sum('"event":"ward.' in found for found in ours) == 21
    assert not any(word in text for word in (NAME, SSN) for text in (metrics, *ours))


def _scrape(worker: Server) -> str:
    try:
        return worker.get("/metrics", ops=True).data.decode()
    except urllib3.exceptions.HTTPError:
        return ""  # not ready yet
