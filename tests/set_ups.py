"""What a process had before: a root logger with a handler and a format of its own, and OpenTelemetry's propagators."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from opentelemetry import propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from healthobs import Settings

PHI = Settings(service_name="records", frameworks=("hipaa",))


#: Not in a test, where it would be written in a function that is running.
WHO = "Ottoline"


@pytest.fixture
def root() -> Iterator[io.StringIO]:
    """Give the root logger one handler with a format of its own."""
    stream, logger = io.StringIO(), logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s|%(name)s|%(message)s"))
    logger.handlers[:], logger.level = [handler], logging.INFO
    yield stream
    logger.handlers[:], logger.level = handlers, level


@pytest.fixture
def textmap() -> Iterator[CompositePropagator]:
    """Set OpenTelemetry's default propagator, and put back what was there."""
    before = propagate.get_global_textmap()
    ours = CompositePropagator([TraceContextTextMapPropagator(), W3CBaggagePropagator()])
    propagate.set_global_textmap(ours)
    yield ours
    propagate.set_global_textmap(before)
