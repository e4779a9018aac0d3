"""Decorated functions against closures written by hand: four signals at once, and what a decorator costs when off."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    set_span_in_context,
)
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from bench.apps import DevNull
from healthobs import Observability, Settings, _runtime, observe, traced

Action = Callable[[], None]


def work() -> None:
    """Do nothing: the worst case for a ratio."""


def bare_closure() -> Action:
    """Return the cheapest wrapper there is."""

    @functools.wraps(work)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    return wrapper


def floor() -> Action:
    """Return span, histogram, counter, gauge and log line in one hand-written closure."""
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("floor")
    registry, stream = CollectorRegistry(), DevNull()
    seconds = Histogram("op_seconds", "", ("operation", "outcome"), registry=registry)
    total = Counter("op_total", "", ("operation", "outcome"), registry=registry)
    running = Gauge("op_running", "", ("operation",), registry=registry).labels("op")
    samples = {outcome: seconds.labels("op", outcome) for outcome in ("ok", "error")}
    counts = {outcome: total.labels("op", outcome) for outcome in ("ok", "error")}

    @functools.wraps(work)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        running.inc()
        wall, start, outcome = time.time_ns(), time.perf_counter_ns(), "ok"
        span = tracer.start_span("op", None, SpanKind.INTERNAL, start_time=wall)
        token = otel_context.attach(set_span_in_context(span))
        try:
            return work(*args, **kwargs)
        except Exception:
            outcome = "error"
            raise
        finally:
            otel_context.detach(token)
            elapsed = time.perf_counter_ns() - start
            span.end(wall + elapsed)
            samples[outcome].observe(elapsed / 1e9)
            counts[outcome].inc()
            running.dec()
            ids = span.get_span_context()
            line = {
                "timestamp": datetime.now(UTC).isoformat(),
                "level": "info",
                "event": "op",
                "trace_id": f"{ids.trace_id:032x}",
                "span_id": f"{ids.span_id:016x}",
                "duration_seconds": elapsed / 1e9,
                "outcome": outcome,
            }
            stream.write(json.dumps(line) + "\n")
            stream.flush()

    return wrapper


def _within(decorated: Any, obs: Observability | None, parent: SpanContext | None = None) -> Action:
    """Return a function that calls `decorated` a hundred times where `obs` is in force."""

    def hundred() -> None:
        for _ in range(100):
            decorated()

    def run() -> None:
        process, recording = _runtime.process, _runtime.recording
        before = process.default, process.active, recording.active
        # As in a process in which only `obs` was ever installed.
        process.default, process.active, recording.active = obs, False, False
        if obs is not None:
            _runtime.activate(obs)
        token = None
        if parent is not None:
            token = otel_context.attach(set_span_in_context(NonRecordingSpan(parent)))
        try:
            hundred()
        finally:
            process.default, process.active, recording.active = before
            if token is not None:
                otel_context.detach(token)

    return run


#: Name -> the action, what it is measured against, most times that.
Case = tuple[Action, str, float | None]


def cases() -> dict[str, Case]:
    """Return what is compared; what is off must come before anything that records is in force."""
    on = Observability(Settings(service_name="bench"), log_stream=DevNull())
    off = Observability(Settings(service_name="bench", disabled=True), log_stream=DevNull())
    four = observe("op", in_flight=True, log="info")
    unsampled = SpanContext(1, 1, False, TraceFlags(0))
    return {
        "closure": (_within(bare_closure(), None), "closure", None),
        "hand-written, four signals": (_within(floor(), None), "hand-written, four signals", None),
        "@observe, four signals": (_within(four(work), on), "hand-written, four signals", 1.2),
        "@observe, nothing installed": (_within(four(work), None), "closure", 1.3),
        "@observe, disabled=True installed": (_within(four(work), off), "closure", 1.3),
        "@traced, nothing installed": (_within(traced("op")(work), None), "closure", 1.3),
        "@traced under an unsampled local parent": (
            _within(traced("op")(work), on, unsampled),
            "closure",
            3.0,
        ),
    }
