"""Stacked decorators: one wrapper, one measurement, in any order; a foreign decorator ends the fusion."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs import (
    InstrumentationError,
    Settings,
    audited,
    classified,
    counted,
    in_flight,
    logged,
    observe,
    timed,
    traced,
)
from healthobs.testing import Capture

PARTS: dict[str, Callable[[Any], Any]] = {
    "traced": traced("op", attributes={"team": "ward"}, fields=("number",)),
    "timed": timed,
    "counted": counted,
    "own": counted("numbers_total", amount=lambda result: result, labels={"parity": lambda r: r % 2}),
    "in_flight": in_flight,
    "logged": logged(level="warning", fields=("unit",)),
    "classified": classified(conf="N"),
}


def admit(number: int, unit: str = "beds") -> int:
    """Return the number; 13 is bad luck."""
    if number == 13:
        raise ValueError
    return number


def observed(parts: list[str], number: int, descriptor: Any, position: int) -> dict[str, str]:
    """Return the telemetry of one call of `admit` under `parts`, outermost last, with a descriptor somewhere."""
    with Capture(Settings(service_name="test", prefix="t")) as capture:
        fn: Any = admit
        for index, part in enumerate(parts):
            if descriptor is not None and index == min(position, len(parts) - 1):
                fn = descriptor(fn)
            fn = PARTS[part](fn)
        call = fn if descriptor is None else type("Owner", (), {"method": fn}).method  # type: ignore[attr-defined]
        try:
            call(number)
        except ValueError:
            assert number == 13
    telemetry = capture.telemetry()
    telemetry["logs"] = telemetry["logs"].partition('"exception_frames"')[0]  # line numbers and ids differ
    telemetry["spans"] = "".join(
        f"{span.name} {span.start_time} {span.end_time} {dict(span.attributes or {})} {span.status.status_code}"
        for span in capture.spans
    )
    telemetry["metrics"] = samples(capture)
    return telemetry


def samples(capture: Capture) -> str:
    """Return the samples, sorted, without exemplars: prometheus_client stamps those with the real time."""
    lines = sorted(capture.telemetry()["metrics"].splitlines())
    return "\n".join(line.partition(" # ")[0] for line in lines if line[0] != "#")


class TestOrder:
    """`Plan.merged` through the decorators."""

    @given(
        parts=st.lists(st.sampled_from(sorted(PARTS)), unique=True, min_size=1).filter(
            lambda p: "traced" in p
        ),
        seed=st.randoms(use_true_random=False),
        number=st.sampled_from([2, 3, 13]),
        position=st.integers(0, 6),
    )
    def test_any_order_leaves_the_same(self, parts: list[str], seed: Any, number: int, position: int) -> None:
        """Permuting the decorators of a function changes nothing that is recorded."""
        shuffled = seed.sample(parts, len(parts))
        assert observed(shuffled, number, None, 0) == observed(sorted(parts), number, None, 0)

    @given(
        parts=st.lists(st.sampled_from(sorted(set(PARTS) - {"traced"})), unique=True, min_size=1),
        position=st.integers(0, 6),
        number=st.sampled_from([2, 13]),
    )
    def test_where_staticmethod_stands_does_not_matter(
        self, parts: list[str], position: int, number: int
    ) -> None:
        """A descriptor below, between or right under the top decorator changes nothing that is recorded."""
        stack = ["traced", *parts]
        assert observed(stack, number, staticmethod, position) == observed(stack, number, None, 0)

    def test_decorators_equal_observe(self) -> None:
        """`@observe` is its parts, asked for at once."""

        def record(wrap: Callable[[Any], Any]) -> dict[str, str]:
            with Capture() as capture:
                wrap(admit)(1)
            return capture.telemetry() | {"metrics": samples(capture)}

        thin = record(lambda fn: traced("op")(timed(counted(in_flight(logged(fn))))))
        assert record(observe("op", in_flight=True, log="info")) == thin


class TestOneWrapper:
    """However many decorators there are."""

    def test_one_wrapper(self) -> None:
        """The wrapper's `__wrapped__` is the undecorated function itself."""
        wrapped = traced(timed(counted(in_flight(logged(admit)))))
        assert wrapped.__wrapped__ is admit  # type: ignore[attr-defined]

    def test_one_clock_pair(self) -> None:
        """Five parts read the monotonic clock twice, and every signal says the same duration."""
        with Capture() as capture:
            observe("op", in_flight=True, log="info")(admit)(1)
        assert capture.time.monotonic_ns() == 3 * 10**9
        assert capture.log_lines[0]["duration_seconds"] == 1.0

    def test_the_inner_wrapper_still_works(self, capture: Capture) -> None:
        """Decorating returns a new function; the one that was decorated keeps its own plan."""
        inner = traced("op")(admit)
        outer = timed(inner)
        assert (inner(1), outer(1)) == (1, 1)
        assert len(capture.spans) == 2
        labels = {"operation": "op", "outcome": "ok"}
        assert capture.metric("healthobs_operation_duration_seconds_count", **labels) == 1


class TestTwice:
    """The same part twice."""

    @pytest.mark.parametrize(
        ("outer", "inner"),
        [
            (traced, traced("x")),
            (timed, timed),
            (counted, counted),
            (counted("a_total"), counted("a_total")),
            (in_flight, in_flight),
            (logged, logged(level="debug")),
            (audited("a.b"), audited("a.c")),
            (classified(conf="R"), classified(conf="N")),
            (observe, timed),
            (
                observe("x", error_if=bool, span=False, duration=False, count=False),
                observe("x", error_if=bool),
            ),
        ],
    )
    def test_raises_at_import(self, outer: Any, inner: Any) -> None:
        """It raises where it is written, and names what to do."""
        with pytest.raises(InstrumentationError, match="remove one decorator"):
            outer(inner(admit))

    def test_through_a_descriptor(self) -> None:
        """A descriptor in between does not hide the repetition."""
        with pytest.raises(InstrumentationError, match="'timed'"):
            timed(classmethod(timed(admit)))

    def test_two_names(self) -> None:
        """An operation has one name."""
        with pytest.raises(InstrumentationError, match="two names"):
            traced("a")(timed("b")(admit))

    def test_the_same_name_twice_is_fine(self, capture: Capture) -> None:
        """Saying the same name again is no contradiction."""
        traced("a")(timed("a")(admit))(1)
        assert capture.span("a").name == "a"

    def test_different_counters(self, capture: Capture) -> None:
        """A function may count in several counters."""
        counted(counted("a_total")(counted("b_total")(admit)))(1)
        assert [capture.metric("a_total"), capture.metric("b_total")] == [1, 1]


def retry(fn: Any) -> Any:
    """Be a foreign decorator: call again on failure, three times at most."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        for attempt in itertools.count(1):
            try:
                return fn(*args, **kwargs)
            except ValueError:
                if attempt == 3:
                    raise
        return None

    return wrapper


class TestForeignDecoratorBetween:
    """`functools.wraps` copies our mark onto the foreign wrapper; it must not count there."""

    def test_it_is_kept(self, capture: Capture) -> None:
        """With retry in between, the inner counts each attempt, the outer traces the whole."""

        @traced("outer")
        @retry
        @counted
        @timed("attempt")
        def fail() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            fail()
        assert len(capture.spans) == 1
        assert capture.metric("healthobs_operations_total", operation="attempt", outcome="error") == 3

    def test_the_same_part_on_both_sides(self, capture: Capture) -> None:
        """Above and below a foreign decorator, the same part is two parts."""

        @traced("outer")
        @retry
        @traced("attempt")
        def fail() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            fail()
        assert [span.name for span in capture.spans] == ["attempt"] * 3 + ["outer"]

    def test_around_a_proxy(self, capture: Capture) -> None:
        """The same holds where the decorated thing is a proxy."""
        attempts = traced("attempt")(functools.partial(admit, 13))
        with pytest.raises(ValueError):
            traced("outer")(retry(attempts))()
        assert [span.name for span in capture.spans] == ["attempt"] * 3 + ["outer"]
