"""Every decorator on every kind of callable, wherever it stands: the call is as before, the signals are right."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import StatusCode

from healthobs import Settings, counted, in_flight, logged, observe, timed, traced
from healthobs.testing import Capture

KINDS = ("function", "coroutine", "generator", "async_generator")
PLACES = (
    "function",
    "method",
    "above_classmethod",
    "below_classmethod",
    "above_staticmethod",
    "below_staticmethod",
    "partial",
    "callable_object",
    "bound_method",
    "classmethod_of_callable_object",
)
BEHAVIOURS = {"success": "ok", "exception": "error", "cancel": "cancelled"}


class Boom(Exception):
    """What a failing body raises."""


def act(behaviour: str) -> str:
    """Do what the test asks of a body."""
    if behaviour == "exception":
        raise Boom("078-05-1120")
    if behaviour == "cancel":
        raise asyncio.CancelledError
    return "done"


def body(kind: str) -> Any:
    """Return an undecorated function of a kind; its last argument is the behaviour."""

    def function(*args: Any) -> str:
        return act(args[-1])

    async def coroutine(*args: Any) -> str:
        await asyncio.sleep(0)
        return act(args[-1])

    def generator(*args: Any) -> Any:
        yield 1
        result = act(args[-1])
        yield 2
        return result

    async def async_generator(*args: Any) -> Any:
        yield 1
        await asyncio.sleep(0)
        act(args[-1])
        yield 2

    return locals()[kind]


def run(kind: str, call: Callable[..., Any], *args: Any) -> tuple[list[Any], Any]:
    """Run a call to its end; return the items it gave and its value, or the type it raised."""
    items: list[Any] = []

    async def exhaust() -> None:
        async for item in call(*args):
            items.append(item)

    def drain() -> Any:
        iterator = call(*args)
        while True:
            try:
                items.append(next(iterator))
            except StopIteration as stop:
                return stop.value

    try:
        if kind == "function":
            return items, call(*args)
        if kind == "coroutine":
            return items, asyncio.run(call(*args))
        if kind == "generator":
            return items, drain()
        return items, asyncio.run(exhaust())
    except BaseException as exc:  # noqa: BLE001
        return items, type(exc)


def place(fn: Any, where: str, decorate: Callable[[Any], Any]) -> Any:
    """Return `fn`, decorated and put where the test asks for, as its user calls it."""
    if where == "function":
        return decorate(fn)
    if where == "partial":
        return decorate(functools.partial(fn, "first"))

    class Ward:
        __call__ = fn

    if where == "callable_object":
        return decorate(Ward())
    if where == "bound_method":
        return decorate(Ward().__call__)
    if where == "classmethod_of_callable_object":
        return type("Owner", (), {"method": decorate(classmethod(Ward()))})().method
    wrapped = {
        "method": lambda: decorate(fn),
        "above_classmethod": lambda: decorate(classmethod(fn)),
        "below_classmethod": lambda: classmethod(decorate(fn)),
        "above_staticmethod": lambda: decorate(staticmethod(fn)),
        "below_staticmethod": lambda: staticmethod(decorate(fn)),
    }[where]()
    return type("Owner", (), {"method": wrapped})().method


def bare(fn: Any) -> Any:
    """Apply five decorators without parentheses."""
    return traced(timed(counted(in_flight(logged(fn)))))


def called(fn: Any) -> Any:
    """Apply one decorator with arguments."""
    return observe("op", in_flight=True, log="info")(fn)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("form", [bare, called])
@pytest.mark.parametrize("kind", KINDS)
class TestEveryCombination:
    """Kind x form x place x behaviour."""

    def test_call_is_as_before_and_signals_agree(
        self, kind: str, form: Callable[[Any], Any], where: str, behaviour: str, capture: Capture
    ) -> None:
        """Items, value and exception are those of the bare callable; one span, sample, count and line tell the same."""
        expected = run(kind, place(body(kind), where, lambda fn: fn), behaviour)
        assert run(kind, place(body(kind), where, form), behaviour) == expected
        outcome = BEHAVIOURS[behaviour]
        (span,) = capture.spans
        (line,) = capture.log_lines
        labels = {"operation": span.name, "outcome": outcome}
        seconds = ((span.end_time or 0) - (span.start_time or 0)) / 1e9
        assert seconds > 0
        assert line["event"] == span.name
        assert (line["outcome"], line["duration_seconds"]) == (outcome, seconds)
        assert line["trace_id"] == f"{span.context.trace_id:032x}"
        assert line["span_id"] == f"{span.context.span_id:016x}"
        assert line["level"] == ("error" if outcome == "error" else "info")
        assert capture.metric("healthobs_operation_duration_seconds_sum", **labels) == seconds
        assert capture.metric("healthobs_operation_duration_seconds_count", **labels) == 1
        assert capture.metric("healthobs_operations_total", **labels) == 1
        assert capture.metric("healthobs_operations_in_flight", operation=span.name) == 0
        assert (span.status.status_code is StatusCode.ERROR) is (outcome == "error")
        assert [event.name for event in span.events] == (["exception"] if outcome == "error" else [])
        assert capture.leaks("078-05-1120") == ()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("kind", KINDS)
def test_unobserved_calls_are_as_before(kind: str, behaviour: str) -> None:
    """Where nothing is in force, and where the one in force is off, every kind is the bare callable."""
    expected, decorated = run(kind, body(kind), behaviour), called(body(kind))
    assert run(kind, decorated, behaviour) == expected
    with Capture(Settings(disabled=True)):
        assert run(kind, decorated, behaviour) == expected


class TestKindIsKept:
    """What `inspect` says of a decorated function."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_inspect_sees_the_same_kind(self, kind: str) -> None:
        """Frameworks that ask for the kind (Flask's `ensure_sync`, asyncio) get the same answer."""
        plain, wrapped = body(kind), called(body(kind))
        for ask in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
            assert ask(wrapped) is ask(plain)

    def test_name_and_signature_are_kept(self) -> None:
        """A decorated function introspects as itself, `__wrapped__` included."""

        def admit(ward: str, *, urgent: bool = False) -> int:
            """Admit."""
            return 1

        wrapped = observe(admit)
        assert (wrapped.__name__, wrapped.__doc__) == ("admit", "Admit.")
        assert inspect.signature(wrapped) == inspect.signature(admit)
        assert inspect.unwrap(wrapped) is admit

    def test_partial_of_a_coroutine_is_still_one(self) -> None:
        """A proxy of a partial of a coroutine function counts as a coroutine function."""
        assert inspect.iscoroutinefunction(traced(functools.partial(body("coroutine"))))


class TestCancellation:
    """Cancelled is not an error, and leaves nothing behind."""

    def test_a_cancelled_task(self, capture: Capture) -> None:
        """A task that is cancelled while it waits has the outcome cancelled, and the gauge goes back to 0."""

        @observe("op", in_flight=True)
        async def wait() -> None:
            await asyncio.sleep(60)

        async def main() -> float | None:
            task = asyncio.create_task(wait())
            await asyncio.sleep(0)
            running = capture.metric("healthobs_operations_in_flight", operation="op")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return running

        assert asyncio.run(main()) == 1
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0
        assert capture.metric("healthobs_operations_total", operation="op", outcome="cancelled") == 1
        assert capture.span("op").status.status_code is StatusCode.UNSET

    def test_concurrent_tasks_do_not_mix(self, capture: Capture) -> None:
        """Each of several tasks that interleave has its own span, whose child is its own."""

        @traced("child")
        async def child() -> None:
            await asyncio.sleep(0)

        @traced("parent")
        async def parent() -> None:
            await asyncio.sleep(0)
            await child()

        async def main() -> None:
            await asyncio.gather(*(parent() for _ in range(5)))

        asyncio.run(main())
        parents = {span.context.span_id: span for span in capture.spans if span.name == "parent"}
        children = [span for span in capture.spans if span.name == "child"]
        assert len(parents) == len(children) == 5
        assert {child.parent.span_id for child in children if child.parent} == set(parents)
        assert all(
            child.context.trace_id == parents[child.parent.span_id].context.trace_id
            for child in children
            if child.parent
        )

    @pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
    def test_base_exceptions_end_the_call_too(self, exc: type[BaseException], capture: Capture) -> None:
        """An exit or interrupt passes through as an error, and nothing stays open."""

        @observe("op", in_flight=True)
        def leave() -> None:
            raise exc

        with pytest.raises(exc):
            leave()
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0
        assert capture.metric("healthobs_operations_total", operation="op", outcome="error") == 1
