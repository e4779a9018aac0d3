"""Spans of database statements: their shape, and never a value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from healthobs import observe
from healthobs.sql import observe_engine, shape
from healthobs.testing import Capture


@pytest.fixture
def engine() -> Iterator[Any]:
    """Give an observed engine."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    remove = observe_engine(engine)
    yield engine
    remove()
    engine.dispose()


class TestSpans:
    """`observe_engine`."""

    def test_shape_and_parent(self, capture: Capture, engine: Any) -> None:
        """A statement is a CLIENT span under the caller's; parameters and literals are nowhere."""

        @observe("look_up")
        def look_up() -> None:
            with engine.connect() as connection:
                connection.execute(text("select :name, 'Jane Roe', 4711"), {"name": "John Doe"})

        look_up()
        span = capture.span("SELECT")
        assert span.kind is SpanKind.CLIENT
        assert span.parent is not None
        assert span.parent.span_id == capture.span("look_up").context.span_id
        assert dict(span.attributes or {}) == {
            "db.system.name": "sqlite",
            "db.operation.name": "SELECT",
            "healthobs.db.shape": "select ?, ?, ?",
        }
        assert capture.leaks("Jane Roe", "John Doe") == ()

    def test_failure(self, capture: Capture, engine: Any) -> None:
        """A statement that fails is an error of its type, without its message."""
        with pytest.raises(OperationalError), engine.connect() as connection:
            connection.execute(text("select 'Jane Roe' from nowhere"))
        span = capture.span("SELECT")
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "OperationalError"
        assert capture.leaks("Jane Roe", "nowhere:") == ()

    def test_taken_off(self, capture: Capture) -> None:
        """After that there are no spans."""
        engine = create_engine("sqlite://", poolclass=StaticPool)
        observe_engine(engine)()
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        engine.dispose()
        assert capture.spans == ()


class TestShape:
    """`shape`."""

    @given(st.text(alphabet=st.characters(blacklist_categories=["Cs"])), st.integers(0, 10**12))
    def test_holds_no_literal(self, words: str, number: int) -> None:
        """Whatever a quoted literal or a number says, the shape is the same."""
        quoted = words.replace("'", "''")
        assert shape(f"select '{quoted}' from bed where n = {number}") == "select ? from bed where n = ?"
