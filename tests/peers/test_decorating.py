"""Decorators: what is right here, and a known defect of a peer (a strict expected failure there)."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.metadata
import logging
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from sides import counting_in_flight, measuring, versus

pytestmark = pytest.mark.filterwarnings("ignore")

STEP_SECONDS, STEPS = 0.02, 3
BODY_SECONDS = STEP_SECONDS * STEPS


@versus("prometheus_client")
def test_a_coroutine_is_measured_to_its_end(side: str) -> None:
    """What is recorded is the time until the coroutine returned (client_python#48: 0.0 s)."""
    with measuring(side) as spans:

        @spans.decorate
        async def work() -> None:
            await asyncio.sleep(BODY_SECONDS)

        asyncio.run(work())
        assert spans.seconds() >= BODY_SECONDS * 0.9


@versus("opentelemetry", "autometrics", "prometheus_client", "sentry")
def test_a_generator_is_measured_to_its_end(side: str) -> None:
    """A generator's span covers its iteration, not its creation."""
    with measuring(side) as spans:

        @spans.decorate
        def work() -> Iterator[int]:
            for step in range(STEPS):
                time.sleep(STEP_SECONDS)
                yield step

        assert list(work()) == [0, 1, 2]
        assert spans.seconds() >= BODY_SECONDS * 0.9


@versus("opentelemetry", "autometrics", "prometheus_client")
def test_an_async_generator_is_measured_to_its_end(side: str) -> None:
    """The same for `async for`."""
    with measuring(side) as spans:

        @spans.decorate
        async def work() -> AsyncIterator[int]:
            for step in range(STEPS):
                await asyncio.sleep(STEP_SECONDS)
                yield step

        async def consume() -> list[int]:
            return [step async for step in work()]

        assert asyncio.run(consume()) == [0, 1, 2]
        assert spans.seconds() >= BODY_SECONDS * 0.9


@versus("logfire", raises=AssertionError)
def test_an_async_generator_can_be_sent_values(side: str) -> None:
    """`asend` reaches the body (logfire iterates instead, traceroot-py#119)."""
    with measuring(side) as spans:

        @spans.decorate
        async def echo() -> Any:
            got = None
            while True:
                got = yield got

        async def talk() -> Any:
            stream = echo()
            await stream.asend(None)
            try:
                return await stream.asend("hello")
            finally:
                await stream.aclose()

        assert asyncio.run(talk()) == "hello"


def _current(side: str) -> Any:
    if side == "ddtrace":
        from ddtrace.trace import tracer

        return tracer.current_span()
    span = trace.get_current_span()
    return span if span.get_span_context().is_valid else None


@versus("logfire", "ddtrace")
def test_a_generators_span_stays_out_of_its_caller(side: str) -> None:
    """Between two items, the caller's own span (none) is current (logfire#386)."""
    with measuring(side) as spans:

        @spans.decorate
        def work() -> Iterator[int]:
            yield 1
            yield 2

        stream = work()
        next(stream)
        seen = _current(side)
        list(stream)
        assert seen is None


@versus("opentelemetry", "logfire")
def test_a_generator_closed_elsewhere_is_silent(side: str, caplog: pytest.LogCaptureFixture) -> None:
    """A generator that ends in another context than it began in logs no error (opentelemetry-python#2606)."""
    with measuring(side) as spans:
        if side == "opentelemetry":  # its decorator ends before the body: this is how its users do it
            from opentelemetry.sdk.trace import TracerProvider

            tracer = TracerProvider(shutdown_on_exit=False).get_tracer("peer")

            def work() -> Iterator[int]:
                with tracer.start_as_current_span("op"):
                    yield 1
        else:

            @spans.decorate
            def work() -> Iterator[int]:
                yield 1

        stream = work()
        with caplog.at_level(logging.WARNING):
            contextvars.copy_context().run(next, stream)
            stream.close()  # type: ignore[attr-defined]
        assert [record.getMessage() for record in caplog.records if "detach" in record.getMessage()] == []


@versus("opentelemetry", "autometrics", "logfire", "prometheus_client", "sentry", "ddtrace", raises=TypeError)
def test_works_above_a_classmethod(side: str) -> None:
    """A decorator works above `classmethod`, not only below."""
    with measuring(side) as spans:

        class Ward:
            @spans.decorate
            @classmethod
            def beds(cls) -> int:
                return 3

        assert Ward.beds() == Ward().beds() == 3
        assert len(spans.recorded()) == 2


@versus("autometrics", "prometheus_client")
def test_cancellation_leaves_the_gauge_at_zero(side: str) -> None:
    """The gauge is 1 while a coroutine runs, and 0 again after it was cancelled."""
    with counting_in_flight(side) as (decorate, value):

        @decorate
        async def work() -> None:
            await asyncio.sleep(60)

        async def cancel() -> float:
            task = asyncio.create_task(work())
            await asyncio.sleep(0)
            during = value()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return during

        assert (asyncio.run(cancel()), value()) == (1.0, 0.0)


@versus("opentelemetry", "logfire")
def test_an_exceptions_message_stays_inside(side: str) -> None:
    """Neither event nor status of a span repeats what an exception says of a patient."""
    with measuring(side) as spans:

        @spans.decorate
        def work(name: str, ssn: str) -> None:
            raise ValueError(f"patient {name}, SSN {ssn}")

        with pytest.raises(ValueError, match="Jane Roe"):
            work("Jane Roe", "078-05-1120")
        ((_, text),) = spans.recorded()
        assert "ValueError" in text
        assert not re.search("Jane Roe|078-05-1120", text)


@versus("logfire")
def test_arguments_stay_inside(side: str) -> None:
    """A name and a record number that a function is given are in no span."""
    with measuring(side) as spans:

        @spans.decorate
        def work(name: str, mrn: str) -> None: ...

        work("Jane Roe", "MRN-0099")
        ((_, text),) = spans.recorded()
        assert not re.search("Jane Roe|MRN-0099", text)


@versus("opentelemetry")
def test_costs_next_to_nothing_when_off(side: str) -> None:
    """A decorated function of a process that configured nothing makes two calls: the wrapper's and its own."""
    if side == "ours":
        from healthobs import _runtime, traced

        _runtime.process.active = _runtime.recording.active = False
        _runtime.process.default = None
        decorate: Any = traced("op")
    else:
        decorate = trace.NoOpTracerProvider().get_tracer("peer").start_as_current_span("op")

    @decorate
    def work() -> None: ...

    calls = 0

    def profile(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    work()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    assert calls - 1 <= 2


@versus("autometrics")
def test_binds_no_old_version(side: str) -> None:
    """Installing it beside a current stack drags nothing back: no upper bound on what others use."""
    name = "healthobs" if side == "ours" else side
    needed = [line for line in importlib.metadata.requires(name) or () if "extra ==" not in line]
    assert needed
    assert [line for line in needed if "<" in line or "==" in line.partition(";")[0]] == []


@versus("opentelemetry")
def test_two_can_live_in_one_process(side: str) -> None:
    """A test, or a second application, can have a set-up of its own (opentelemetry-python: set once)."""
    code = {
        "ours": """
            from healthobs import Observability, Settings, current, install
            made = [Observability(Settings()) for _ in range(2)]
            for one in made:
                install(one)
            assert current() is made[1]
        """,
        "opentelemetry": """
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            made = [TracerProvider() for _ in range(2)]
            for one in made:
                trace.set_tracer_provider(one)
            assert trace.get_tracer_provider() is made[1]
        """,
    }
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code[side])], capture_output=True)
    assert done.returncode == 0
