"""Observed generators and async generators: nothing leaks to the caller, everything passes through."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import weakref
from collections.abc import AsyncGenerator, Generator
from typing import Any

import pytest
from opentelemetry import baggage, context
from opentelemetry.trace import get_current_span

from healthobs import observe, traced
from healthobs.testing import Capture


def outcomes(capture: Capture, name: str = "op") -> dict[str, float]:
    """Return how many calls of `name` ended how."""
    found = {
        outcome: capture.metric("healthobs_operations_total", operation=name, outcome=outcome) or 0.0
        for outcome in ("ok", "error", "cancelled")
    }
    return {outcome: count for outcome, count in found.items() if count}


def span_id() -> int:
    """Return the id of the current span."""
    return get_current_span().get_span_context().span_id


class Recorder:
    """A generator body that writes down what reaches it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def body(self) -> Generator[str, Any, str]:
        """Yield until told to stop."""
        answer = "first"
        while True:
            try:
                got = yield answer
            except ValueError as exc:
                got = f"caught {exc}"
            except GeneratorExit:
                self.seen.append("exit")
                raise
            self.seen.append(got)
            if got == "stop":
                return "value"
            answer = f"after {got}"

    async def async_body(self) -> AsyncGenerator[str, Any]:
        """Yield until told to stop."""
        answer = "first"
        while True:
            try:
                got = yield answer
            except ValueError as exc:
                got = f"caught {exc}"
            except GeneratorExit:
                await asyncio.sleep(0)
                self.seen.append("exit")
                raise
            self.seen.append(got)
            if got == "stop":
                return
            answer = f"after {got}"


class TestPassThrough:
    """`send`, `throw`, `close` and the return value."""

    def test_generator(self, capture: Capture) -> None:
        """A generator behaves like the bare one, and its value comes out."""
        recorder = Recorder()
        stream = observe("op")(recorder.body)()
        assert next(stream) == "first"
        assert stream.send("a") == "after a"
        assert stream.throw(ValueError("x")) == "after caught x"
        with pytest.raises(StopIteration) as stopped:
            stream.send("stop")
        assert stopped.value.value == "value"
        assert recorder.seen == ["a", "caught x", "stop"]
        assert outcomes(capture) == {"ok": 1}

    def test_async_generator(self, capture: Capture) -> None:
        """`asend`, `athrow` and `aclose` reach the body."""
        recorder = Recorder()

        async def main() -> None:
            stream = observe("op")(recorder.async_body)()
            assert await anext(stream) == "first"
            assert await stream.asend("a") == "after a"
            assert await stream.athrow(ValueError("x")) == "after caught x"
            with pytest.raises(StopAsyncIteration):
                await stream.asend("stop")

        asyncio.run(main())
        assert recorder.seen == ["a", "caught x", "stop"]
        assert outcomes(capture) == {"ok": 1}

    def test_unobserved_async_generator(self) -> None:
        """With nothing installed, the same passes through."""
        recorder = Recorder()

        async def main() -> None:
            stream = observe("op")(recorder.async_body)()
            assert await anext(stream) == "first"
            assert await stream.asend("a") == "after a"
            await stream.aclose()

        asyncio.run(main())
        assert recorder.seen == ["a", "exit"]

    def test_unobserved_generator(self) -> None:
        """With nothing installed, `yield from` passes everything on."""
        recorder = Recorder()
        stream = observe("op")(recorder.body)()
        assert [next(stream), stream.send("a")] == ["first", "after a"]
        with pytest.raises(StopIteration) as stopped:
            stream.send("stop")
        assert stopped.value.value == "value"

    def test_a_body_that_refuses_to_close(self, capture: Capture) -> None:
        """A generator that yields when it is closed gets the interpreter's own error."""

        @observe("op")
        def stubborn() -> Generator[int]:
            while True:
                try:
                    yield 1
                except GeneratorExit:
                    break
            yield 2

        stream = stubborn()
        next(stream)
        with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
            stream.close()
        with pytest.raises(StopIteration):
            next(stream)
        assert outcomes(capture) == {"ok": 1}

    def test_wrong_arguments(self, capture: Capture) -> None:
        """A call that does not fit the signature fails, and is an error."""

        @observe("op")
        def rows() -> Generator[int]:
            yield 1

        with pytest.raises(TypeError):
            next(rows(1))  # type: ignore[call-arg]
        assert outcomes(capture) == {"error": 1}


class TestClosedEarly:
    """A consumer that stops before the end."""

    def test_generator(self, capture: Capture) -> None:
        """Closing is cancelled, not an error; the body's cleanup runs inside the span."""
        cleanup: list[int] = []

        @observe("op", in_flight=True)
        def rows() -> Generator[int]:
            try:
                yield 1
                yield 2
            finally:
                cleanup.append(span_id())

        for _ in rows():
            break
        gc.collect()
        assert outcomes(capture) == {"cancelled": 1}
        assert cleanup == [capture.span("op").context.span_id]
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0

    def test_a_body_that_swallows_the_close(self, capture: Capture) -> None:
        """A generator that ends quietly when it is closed was cancelled all the same."""

        @observe("op")
        def rows() -> Generator[int]:
            try:
                yield 1
            except GeneratorExit:
                return

        stream = rows()
        next(stream)
        stream.close()
        assert outcomes(capture) == {"cancelled": 1}

    def test_async_generator(self, capture: Capture) -> None:
        """`aclose` runs the body's asynchronous cleanup inside the span."""
        recorder = Recorder()

        async def main() -> None:
            stream = observe("op", in_flight=True)(recorder.async_body)()
            await anext(stream)
            await stream.aclose()

        asyncio.run(main())
        assert recorder.seen == ["exit"]
        assert outcomes(capture) == {"cancelled": 1}
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0

    def test_an_async_body_that_swallows_the_close(self, capture: Capture) -> None:
        """An async generator that ends quietly when it is closed was cancelled all the same."""

        @observe("op")
        async def rows() -> AsyncGenerator[int]:
            try:
                yield 1
            except GeneratorExit:
                return

        async def main() -> None:
            stream = rows()
            await anext(stream)
            await stream.aclose()

        asyncio.run(main())
        assert outcomes(capture) == {"cancelled": 1}

    def test_an_exception_is_freed_at_once(self, capture: Capture) -> None:
        """What was thrown in is not kept alive by a cycle through our frame."""

        class Thrown(Exception):
            pass

        def throw() -> weakref.ref[Thrown]:
            stream = observe("op")(Recorder().body)()
            next(stream)
            thrown = Thrown()
            with contextlib.suppress(Thrown):
                stream.throw(thrown)
            reference = weakref.ref(thrown)
            del thrown  # or this frame would be the cycle
            return reference

        gc.collect()
        gc.disable()
        try:
            assert throw()() is None
        finally:
            gc.enable()

    def test_abandoned_async_generator(self, capture: Capture) -> None:
        """One that nobody closes is closed by the event loop, from a task of its own, without a complaint."""

        async def main() -> None:
            stream = observe("op", in_flight=True)(Recorder().async_body)()
            await anext(stream)

        asyncio.run(main())
        assert outcomes(capture) == {"cancelled": 1}
        assert capture.problems() == []

    def test_never_started(self, capture: Capture) -> None:
        """A generator that was never resumed did nothing, and leaves nothing."""
        observe("op")(Recorder().body)().close()
        assert capture.spans == ()

    def test_closed_in_another_context(self, capture: Capture, caplog: pytest.LogCaptureFixture) -> None:
        """Closing from another context never logs that a context could not be detached."""

        @observe("op", audit="row.read")
        async def wait() -> None:
            await asyncio.get_running_loop().create_future()

        with Capture(audit=True) as audited, caplog.at_level(logging.DEBUG):
            elsewhere = contextvars.copy_context()
            coroutine = wait()

            async def start() -> None:
                task = asyncio.current_task()
                assert task is not None
                coroutine.send(None)

            asyncio.run(start())
            elsewhere.run(coroutine.close)
            audited._span_before = get_current_span()
        assert outcomes(audited) == {"cancelled": 1}
        assert [record.message for record in caplog.records if "detach" in record.message] == []


class TestContext:
    """What is current where."""

    def test_between_items_the_caller_has_its_own_span(self, capture: Capture) -> None:
        """The stream's span is current in the body, and never in the caller."""
        inside: list[int] = []

        @traced("stream")
        def rows() -> Generator[int]:
            for number in range(3):
                inside.append(span_id())
                yield number

        @traced("caller")
        def consume() -> set[int]:
            return {span_id() for _ in rows()}

        around = consume()
        assert around == {capture.span("caller").context.span_id}
        assert set(inside) == {capture.span("stream").context.span_id}
        parent = capture.span("stream").parent
        assert parent is not None
        assert parent.span_id == capture.span("caller").context.span_id

    def test_between_items_async(self, capture: Capture) -> None:
        """The same for an async generator."""
        inside: list[int] = []

        @traced("stream")
        async def rows() -> AsyncGenerator[int]:
            for number in range(3):
                await asyncio.sleep(0)
                inside.append(span_id())
                yield number

        @traced("caller")
        async def consume() -> set[int]:
            return {span_id() async for _ in rows()}

        around = asyncio.run(consume())
        assert around == {capture.span("caller").context.span_id}
        assert set(inside) == {capture.span("stream").context.span_id}

    def test_the_callers_baggage_is_seen_at_each_resumption(self, capture: Capture) -> None:
        """The body runs on top of the context of whoever resumes it, not of whoever started it."""

        @traced("stream")
        def rows() -> Generator[object]:
            while True:
                yield baggage.get_baggage("step")

        stream, seen = rows(), []
        for step in ("one", "two"):
            token = context.attach(baggage.set_baggage("step", step))
            seen.append(next(stream))
            context.detach(token)
        stream.close()
        assert seen == ["one", "two"]

    def test_a_span_that_the_body_keeps_open_over_a_yield(self, capture: Capture) -> None:
        """It stays in the body: the caller does not see it, and after the yield it is current again."""

        @traced("leaf")
        def leaf() -> None: ...

        @traced("stream")
        def rows() -> Generator[int]:
            with capture.obs.tracing.tracer.start_as_current_span("chunk"):
                yield 1
                leaf()
            leaf()

        around = [span_id() for _ in rows()]
        assert around == [0]
        chunk, stream = capture.span("chunk"), capture.span("stream")
        parents = [span.parent.span_id for span in capture.spans if span.name == "leaf" and span.parent]
        assert parents == [chunk.context.span_id, stream.context.span_id]

    def test_two_streams_interleaved(self, capture: Capture) -> None:
        """Streams that are consumed in turn do not see each other's spans."""

        @traced("stream")
        def rows() -> Generator[int]:
            while True:
                yield span_id()

        first, second = rows(), rows()
        pairs = {(next(first), next(second)) for _ in range(3)}
        first.close()
        second.close()
        assert pairs == {(1, 2)}

    def test_the_span_covers_the_iteration(self, capture: Capture) -> None:
        """Duration is from the first resumption to the end, not the making of the generator."""

        @traced("stream")
        def rows() -> Generator[int]:
            yield 1
            capture.time.advance(10)

        stream = rows()
        capture.time.advance(100)
        assert list(stream) == [1]
        span = capture.span("stream")
        assert (span.end_time or 0) - (span.start_time or 0) == 11_000_000_000
