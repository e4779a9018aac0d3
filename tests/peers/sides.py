"""Ours and the peers behind one face: each side gives a decorator and tells what it recorded.

A peer's half is written from its public documentation. A peer that is not installed is skipped; the session
`peers` of nox installs all of them from `requirements/peers.lock`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, Histogram

from healthobs import Observability, Settings, observe, use

#: What must be importable for a side.
NEEDS = {
    "ours": (),
    "opentelemetry": (),
    "prometheus_client": (),
    "structlog": (),
    "autometrics": ("autometrics",),
    "logfire": ("logfire",),
    "sentry": ("sentry_sdk",),
    "ddtrace": ("ddtrace",),
    "otel-flask": ("opentelemetry.instrumentation.flask",),
    "otel-wsgi": ("opentelemetry.instrumentation.wsgi",),
    "prometheus-flask-exporter": ("prometheus_flask_exporter",),
}


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


#: The session that brings the peers must not skip them: there, a peer that is missing fails its test.
MAY_SKIP = not os.environ.get("HEALTHOBS_MUST_HAVE_PEERS")


#: From Python 3.15 on, contextlib's decorators follow a generator to its end, and with them what peers make of those.
STRICT = sys.version_info < (3, 15)


def versus(*peers: str, raises: type[BaseException] = AssertionError) -> pytest.MarkDecorator:
    """Run a test for ours, where it must pass, and for each peer, where it must fail as `raises`."""
    params: list[Any] = ["ours"]
    for peer in peers:
        missing = [name for name in NEEDS[peer] if not _installed(name)] if MAY_SKIP else []
        skip = pytest.mark.skipif(bool(missing), reason=f"{peer} is not installed: nox -s peers")
        params.append(
            pytest.param(
                peer, marks=[skip, pytest.mark.xfail(raises=raises, strict=STRICT, reason="known of it")]
            )
        )
    return pytest.mark.parametrize("side", params)


class Spans(NamedTuple):
    """A decorator that records spans, and the spans as (seconds, text)."""

    decorate: Callable[[Any], Any]
    recorded: Callable[[], list[tuple[float, str]]]

    def seconds(self) -> float:
        """Return the sum of what was recorded."""
        return sum(seconds for seconds, _ in self.recorded())


def _facts(spans: tuple[ReadableSpan, ...]) -> list[tuple[float, str]]:
    return [(((span.end_time or 0) - (span.start_time or 0)) / 1e9, span.to_json()) for span in spans]


@contextmanager
def measuring(side: str) -> Iterator[Spans]:
    """Give the decorator of `side` that measures how long a call takes."""
    with _SIDES[side]() as spans:
        yield spans


@contextmanager
def _ours() -> Iterator[Spans]:
    exporter = InMemorySpanExporter()
    obs = Observability(Settings(), span_exporters=[exporter], simple_spans=True)
    with use(obs):
        yield Spans(observe("op", in_flight=True), lambda: _facts(exporter.get_finished_spans()))
    obs.close()


@contextmanager
def _opentelemetry() -> Iterator[Spans]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("peer")
    yield Spans(tracer.start_as_current_span("op"), lambda: _facts(exporter.get_finished_spans()))


@contextmanager
def _prometheus() -> Iterator[Spans]:
    registry = CollectorRegistry()
    histogram = Histogram("op_seconds", "Duration", registry=registry)
    yield Spans(histogram.time(), lambda: [(registry.get_sample_value("op_seconds_sum") or 0.0, "op")])


@contextmanager
def _autometrics() -> Iterator[Spans]:
    import autometrics

    autometrics.init(tracker="prometheus")
    sums = "function_calls_duration_seconds_sum"

    def total() -> float:
        families = REGISTRY.collect()
        return sum(sample.value for family in families for sample in family.samples if sample.name == sums)

    before = total()
    yield Spans(autometrics.autometrics, lambda: [(total() - before, "op")])


@contextmanager
def _logfire() -> Iterator[Spans]:
    import logfire

    exporter = InMemorySpanExporter()
    own = logfire.configure(
        local=True, send_to_logfire=False, console=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )  # fmt: skip
    yield Spans(own.instrument("op", allow_generator=True), lambda: _facts(exporter.get_finished_spans()))
    own.shutdown()


@contextmanager
def _sentry() -> Iterator[Spans]:
    import sentry_sdk

    kept: list[Any] = []
    sentry_sdk.init(traces_sample_rate=1.0, transport=kept.append, dsn="http://key@127.0.0.1/1")
    with sentry_sdk.start_transaction(name="test") as transaction:

        def recorded() -> list[tuple[float, str]]:
            spans = transaction._span_recorder.spans[1:]
            return [
                ((span.timestamp - span.start_timestamp).total_seconds(), str(span.to_json()))
                for span in spans
                if span.timestamp is not None
            ]

        yield Spans(sentry_sdk.trace, recorded)
    sentry_sdk.get_client().close(timeout=0)


@contextmanager
def _ddtrace() -> Iterator[Spans]:
    from ddtrace.trace import TraceFilter, tracer

    kept: list[tuple[float, str]] = []

    class Keep(TraceFilter):
        def process_trace(self, trace: Any) -> None:
            kept.extend((span.duration or 0.0, str(span)) for span in trace)

    tracer.configure(trace_processors=[Keep()])
    yield Spans(tracer.wrap("op"), lambda: kept)


_SIDES: dict[str, Callable[[], Any]] = {
    "ours": _ours,
    "opentelemetry": _opentelemetry,
    "prometheus_client": _prometheus,
    "autometrics": _autometrics,
    "logfire": _logfire,
    "sentry": _sentry,
    "ddtrace": _ddtrace,
}


@contextmanager
def counting_in_flight(side: str) -> Iterator[tuple[Callable[[Any], Any], Callable[[], float]]]:
    """Give the decorator of `side` that keeps an in-flight gauge, and the gauge's value."""
    if side == "ours":
        obs = Observability(Settings())
        with use(obs):
            yield (
                observe("op", in_flight=True),
                lambda: _sum(obs.metrics.registry, "healthobs_operations_in_flight"),
            )
        obs.close()
    elif side == "prometheus_client":
        registry = CollectorRegistry()
        gauge = Gauge("op_in_flight", "In flight", registry=registry)
        yield gauge.track_inprogress(), lambda: _sum(registry, "op_in_flight")
    else:
        import autometrics

        autometrics.init(tracker="prometheus")
        yield (
            autometrics.autometrics(track_concurrency=True),
            lambda: _sum(REGISTRY, "function_calls_concurrent"),
        )


def _sum(registry: CollectorRegistry, name: str) -> float:
    return sum(s.value for family in registry.collect() for s in family.samples if s.name == name)
