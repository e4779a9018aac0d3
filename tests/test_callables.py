"""Wrapping: what is refused, what stays plain, and that there is never more than one wrapper."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import wrapt

from healthobs import InstrumentationError, counted, logged, observe, timed, traced
from healthobs.testing import Capture


class TestRefusals:
    """What cannot be observed is refused at import, with the remedy."""

    def test_class(self) -> None:
        """A class is refused; its methods are what can be observed."""
        with pytest.raises(InstrumentationError, match="decorate its methods"):

            @traced
            class Ward: ...

    @pytest.mark.parametrize("kind", [property, functools.cached_property])
    def test_property(self, kind: Any) -> None:
        """A property is refused; its getter can be observed."""
        with pytest.raises(InstrumentationError, match="below @property"):
            traced(kind(lambda self: 1))

    def test_partialmethod(self) -> None:
        """A partialmethod is refused; the method it calls can be observed."""
        with pytest.raises(InstrumentationError, match="the method that it calls"):
            traced(functools.partialmethod(lambda self, x: x, 1))  # type: ignore[type-var]

    def test_no_callable(self) -> None:
        """What cannot be called cannot be observed."""
        with pytest.raises(InstrumentationError, match="only callables"):
            traced(42)  # type: ignore[call-overload]


class TestProxies:
    """What is no plain function."""

    def test_attributes_stay_reachable(self, capture: Capture) -> None:
        """A proxy still is what it wraps: an lru_cache keeps its statistics."""

        @timed
        @traced("op")
        @functools.lru_cache
        def double(x: int) -> int:
            return 2 * x

        assert [double(2), double(2)] == [4, 4]
        assert double.cache_info().hits == 1  # type: ignore[attr-defined]
        assert len(capture.spans) == 2

    def test_stacked_decorators_make_one_proxy(self) -> None:
        """However many decorators, wrapt's proxies are never nested."""
        target = functools.partial(int, "7")
        wrapped = logged(counted(timed(traced(target))))
        assert isinstance(wrapped, wrapt.FunctionWrapper)
        assert wrapped.__wrapped__ is target

    def test_plain_functions_get_no_proxy(self) -> None:
        """A plain function gets a plain function."""
        wrapped = timed(traced(lambda: 1))
        assert type(wrapped) is type(lambda: 1)

    def test_nothing_is_written_on_the_object(self, capture: Capture) -> None:
        """Decorating an object leaves it as it is, so that two decorations do not meet."""

        class Slotted:
            __slots__ = ()

            def __call__(self) -> int:
                return 1

        target = Slotted()
        first, second = traced("first")(target), traced("second")(target)
        assert first() + second() + target() == 3
        assert [span.name for span in capture.spans] == ["first", "second"]

    def test_builtin(self, capture: Capture) -> None:
        """A built-in function can be observed."""
        assert traced("length")(len)("abc") == 3
        assert capture.span("length").name == "length"

    def test_proxy_as_a_method(self, capture: Capture) -> None:
        """A proxy on a class binds like what it wraps, and `fields` sees the method's own arguments."""

        class Ward:
            @observe("op", fields=("bed",))
            @functools.lru_cache  # noqa: B019
            def admit(self, bed: int, *, urgent: bool = False) -> tuple[str, int]:
                return type(self).__name__, bed

        assert Ward().admit(7) == ("Ward", 7)
        assert dict(capture.span("op").attributes or {}) == {"bed": 7}

    def test_fields_of_a_partial(self, capture: Capture) -> None:
        """Of a partial, the arguments that its caller gives can be recorded."""

        def move(ward: str, floor: int, bed: int, *, urgent: bool = False) -> None: ...

        observe("op", fields=("bed", "urgent"))(functools.partial(move, "B2", 3))(7)
        assert dict(capture.span("op").attributes or {}) == {"bed": 7, "urgent": False}

    def test_nested_descriptors(self, capture: Capture) -> None:
        """Decorators above, between and below descriptors fuse into one wrapper."""

        class Ward:
            @timed
            @classmethod
            @traced("op")
            def name(cls) -> str:
                return cls.__name__

        assert Ward.name() == "Ward"
        assert len(capture.spans) == 1
        assert capture.metric("healthobs_operations_total", operation="op", outcome="ok") is None
        labels = {"operation": "op", "outcome": "ok"}
        assert capture.metric("healthobs_operation_duration_seconds_count", **labels) == 1
