"""`Capture` and the clocks and ids it runs on.

Limits: a thread that the tested code starts does not inherit the context: pass `install=True` for it. The
validators that read OpenTelemetry's warnings see those of the whole process.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import get_current_span

from healthobs import _runtime
from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.decorators.binding import OUTCOMES
from healthobs.http import METHODS, OTHER
from healthobs.metrics import OVERFLOW
from healthobs.observability import Observability

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from healthobs.compliance import Control

_WARNINGS = {
    "Calling end() on an ended span": "a span was ended twice: end it in one place",
    "Failed to detach context": "a context was detached where it was not attached: attach and detach in one place",
}
#: The values that the library's own labels may have.
_DECLARED = {"outcome": frozenset(OUTCOMES), "http_request_method": METHODS | {OTHER}}
_BACK_AT_ZERO = ("_in_flight", "_active_requests")


class SteppingClock:
    """Makes clocks whose every monotonic reading is one step after the last; wall time goes along.

    A call that reads nothing in between takes exactly one step.

    Args:
        start: The first wall time.
        step_seconds: Seconds from one monotonic reading to the next.

    Example:
        >>> time = SteppingClock(step_seconds=0.5)
        >>> time.monotonic_ns(), time.monotonic_ns()
        (500000000, 1000000000)
    """

    def __init__(
        self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC), *, step_seconds: float = 1.0
    ) -> None:
        self._start_ns = int(start.timestamp()) * 1_000_000_000
        self._step_ns = round(step_seconds * 1e9)
        self._elapsed_ns = 0

    def wall_ns(self) -> int:
        """Return the wall time in nanoseconds; reading it does not move it."""
        return self._start_ns + self._elapsed_ns

    def monotonic_ns(self) -> int:
        """Move one step on and return the monotonic time in nanoseconds."""
        self._elapsed_ns += self._step_ns
        return self._elapsed_ns

    def advance(self, seconds: float) -> None:
        """Move both times on."""
        self._elapsed_ns += round(seconds * 1e9)

    def clock(self) -> Clock:
        """Return the `Clock` to build with."""
        return Clock(self.wall_ns, self.monotonic_ns)


class CountingIds(IdGenerator):
    """Trace and span ids that count: 1, 2, 3.

    Example:
        >>> ids = CountingIds()
        >>> ids.generate_trace_id(), ids.generate_trace_id(), ids.generate_span_id()
        (1, 2, 1)
    """

    def __init__(self) -> None:
        self._traces, self._spans = itertools.count(1), itertools.count(1)

    def generate_trace_id(self) -> int:
        """Return the next trace id."""
        return next(self._traces)

    def generate_span_id(self) -> int:
        """Return the next span id."""
        return next(self._spans)


class _Passing(Observability):
    """One whose audit trail goes with the test."""

    _keeps_for_good = False


class Capture:
    """An `Observability` in force inside the `with` block, and what it recorded.

    Args:
        settings: What to build; default `Settings(service_name="test")`.
        audit: Keep a real audit trail in a temporary folder.
        controls: Controls of the service.
        install: Make it the process default as well, for threads and servers.
        validate: Raise when the block is left and `problems` finds something.
        labels: The values that a label may have, by its name; those of `outcome`, `http_request_method` and `tenant`
            are known.

    Example:
        >>> from healthobs import observe
        >>> @observe("admit", log="info")
        ... def admit() -> None: ...
        >>> with Capture() as capture:
        ...     admit()
        >>> capture.span("admit").end_time - capture.span("admit").start_time
        1000000000
        >>> capture.metric("healthobs_operations_total", operation="admit", outcome="ok")
        1.0
        >>> capture.log_lines[0]["duration_seconds"], capture.log_lines[0]["trace_id"][-4:]
        (1.0, '0001')
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        audit: bool = False,
        controls: Sequence[Control] = (),
        install: bool = False,
        validate: bool = True,
        labels: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        settings = settings or Settings(service_name="test")
        self._folder = tempfile.TemporaryDirectory(prefix="healthobs-") if audit else None
        if self._folder is not None:
            settings = replace(
                settings, audit_database_url=f"sqlite:///{Path(self._folder.name) / 'audit.db'}"
            )
        self.time: SteppingClock = SteppingClock()
        self._exporter = InMemorySpanExporter()
        self._log = io.StringIO()
        self.obs: Observability = _Passing(
            settings,
            clock=self.time.clock(),
            span_exporters=[self._exporter],
            simple_spans=True,
            id_generator=CountingIds(),
            log_stream=self._log,
            controls=controls,
        )
        self._watch = _Watch()
        self.obs.tracing.provider.add_span_processor(self._watch)
        self._warnings = _Warnings()
        self._validate = validate
        tenants = settings.tenants
        known = {**_DECLARED, "tenant": frozenset(("", *tenants))} if tenants else _DECLARED
        self._labels: dict[str, Collection[str]] = {**known, **(labels or {})}
        self._install = install
        self._previous: Observability | None = None
        self._use: AbstractContextManager[Observability] | None = None
        self._span_before = get_current_span()

    def __enter__(self) -> Self:
        """Put the `Observability` in force."""
        self._span_before = get_current_span()
        self._warnings.start()
        if self._install:
            self._previous = _runtime.install(self.obs)
        self._use = _runtime.use(self.obs)
        self._use.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take it out of force, validate, and close it; what was recorded stays readable."""
        if self._use is not None:
            self._use.__exit__(kind, exc, traceback)
        if self._install:
            _runtime.install(self._previous)
        self._warnings.stop()
        try:
            if exc is None and self._validate:
                self.check()
        finally:
            self._entries = self.audit_entries
            self.obs.close()
            if self._folder is not None:
                self._folder.cleanup()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        """Spans that ended, redacted as every exporter gets them, in the order of their ends."""
        return self._exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        """Return the one span called `name`.

        Raises:
            AssertionError: None or several are called so.
        """
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            raise AssertionError(
                f"{len(found)} spans have that name; there are {[s.name for s in self.spans]}"
            )
        return found[0]

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        """Log lines, decoded."""
        return [json.loads(line) for line in self._log.getvalue().splitlines()]

    def metric(self, name: str, /, **labels: str) -> float | None:
        """Return the value of one sample, or None when there is none.

        Args:
            name: Name of the sample, such as ``healthobs_operation_duration_seconds_count``.
            **labels: All its labels.
        """
        return self.obs.metrics.registry.get_sample_value(name, labels)

    @property
    def audit_entries(self) -> list[dict[str, Any]]:
        """Audit entries, oldest first."""
        known: list[dict[str, Any]] | None = self.__dict__.get("_entries")
        if known is not None or self.obs.audit is None:
            return known or []
        entries: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = self.obs.audit.read(cursor=cursor)
            entries += page.entries
            cursor = page.next_cursor
            if cursor is None:
                return entries[::-1]

    def telemetry(self) -> dict[str, str]:
        """Return everything recorded as text, by signal: ``spans``, ``logs``, ``metrics``, ``audit``."""
        return {
            "spans": "\n".join(span.to_json() for span in self.spans),
            "logs": self._log.getvalue(),
            "metrics": self.obs.metrics.exposition("application/openmetrics-text; version=1.0.0")[1].decode(),
            "audit": json.dumps(self.audit_entries),
        }

    def leaks(self, *values: str) -> tuple[str, ...]:
        """Return the signals in which one of `values` can be read; an empty tuple is what you want.

        Example:
            >>> with Capture() as capture:
            ...     capture.obs.logs.emit("info", "call 212-555-0123")
            >>> capture.leaks("212-555-0123")
            ()
        """
        return tuple(
            signal for signal, text in self.telemetry().items() if any(value in text for value in values)
        )

    def problems(self) -> list[str]:
        """Return what is wrong with what was recorded so far, in words."""
        found = [f"span '{name}' was started and never ended" for name in self._watch.open()]
        found += self._warnings.problems()
        if get_current_span() is not self._span_before:
            found.append(
                "the current span is not the one from before: something was attached and not detached"
            )
        for family in self.obs.metrics.registry.collect():
            if family.name.endswith(_BACK_AT_ZERO):
                found += [f"gauge {family.name} is {s.value:g}, not 0" for s in family.samples if s.value]
            undeclared = {
                name
                for sample in family.samples
                for name, value in sample.labels.items()
                if name in self._labels and value not in self._labels[name] and value != OVERFLOW
            }
            found += [
                f"{family.name} has a label {name} outside its declared set" for name in sorted(undeclared)
            ]
        return found

    def check(self) -> None:
        """Validate what was recorded so far.

        Raises:
            AssertionError: With every problem.
        """
        found = self.problems()
        if found:
            raise AssertionError("; ".join(found))


class _Watch(SpanProcessor):
    """Knows which spans were started and not ended."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's
        self._open[span.get_span_context().span_id] = span.name

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None:
            self._open.pop(span.context.span_id, None)

    def open(self) -> list[str]:
        return sorted(self._open.values())


class _Warnings(logging.Handler):
    """Hears OpenTelemetry complain of misuse."""

    _LOGGERS = ("opentelemetry.sdk.trace", "opentelemetry.context")

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._heard += [said for start, said in _WARNINGS.items() if record.getMessage().startswith(start)]

    def start(self) -> None:
        for name in self._LOGGERS:
            logging.getLogger(name).addHandler(self)

    def stop(self) -> None:
        for name in self._LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def problems(self) -> list[str]:
        return self._heard
