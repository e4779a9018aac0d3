"""Spans of database statements: their shape, and never a value."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from healthobs import Observability, Settings, observe, use
from healthobs.sql import observe_engine, shape
from healthobs.testing import Capture

#: Ways to write a literal or a comment; ``\\'`` stands for single quotes with backslash escapes.
STANDARD = ("'", '"', "E'", "N'", "$$", "$t$", "/*", "--")
MYSQL = ("\\'", '\\"', "/*", "--")
WORDS = st.text(alphabet="'\"\\$/*-# \nt", max_size=6)


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

    @pytest.mark.parametrize(
        ("allowed", "shown"), [((), {}), (("healthobs.db.shape",), {"healthobs.db.shape": "select ?"})]
    )
    def test_strict(self, engine: Any, allowed: tuple[str, ...], shown: dict[str, str]) -> None:
        """A shape is text that no code need hold: it is there where the settings allow it, else left out, not masked."""
        with (
            Capture(Settings(redaction="strict", allowed_keys=allowed)) as capture,
            engine.connect() as connection,
        ):
            connection.execute(text("select 4711"))
        assert dict(capture.span("SELECT").attributes or {}) == {
            "db.system.name": "sqlite",
            "db.operation.name": "SELECT",
            **shown,
        }
        assert "healthobs_redactions_total{" not in capture.telemetry()["metrics"]

    @pytest.mark.parametrize("statement", ["Quimby; select 1", "OTTOLINE"])
    def test_first_word_that_is_none(self, capture: Capture, engine: Any, statement: str) -> None:
        """What stands where SQL has a verb, and is none, names no span: it may be data."""
        with engine.connect() as connection, pytest.raises(OperationalError):
            connection.execute(text(statement))
        assert (capture.span("SQL").attributes or {})["db.operation.name"] == "SQL"

    def test_failure(self, capture: Capture, engine: Any) -> None:
        """A statement that fails is an error of its type, without its message."""
        with pytest.raises(OperationalError), engine.connect() as connection:
            connection.execute(text("select 'Jane Roe' from nowhere"))
        span = capture.span("SELECT")
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "OperationalError"
        assert capture.leaks("Jane Roe", "nowhere:") == ()

    @pytest.mark.parametrize("moment", ["on_start", "on_end"])
    def test_a_processor_that_raises(self, engine: Any, moment: str) -> None:
        """A fault of telemetry is counted and is not the statement's; nor is it the next statement's."""

        def broken(*_arguments: object, **_options: object) -> None:
            raise RuntimeError

        obs = Observability(Settings(), log_stream=(told := io.StringIO()))
        provider: Any = obs.tracing.provider
        provider.add_span_processor(type("Faulty", (SpanProcessor,), {moment: broken})())
        with use(obs), engine.connect() as connection:
            assert [connection.execute(text("select 1")).scalar() for _ in range(2)] == [1, 1]
            assert [len(spans) for spans in connection.info.values()] == [0]
        assert b'healthobs_internal_errors_total{component="sql"} 2.0' in obs.metrics.exposition(None)[1]
        (fault,) = [json.loads(line) for line in told.getvalue().splitlines()]
        assert (fault["event"], fault["component"], fault["part"]) == (
            "telemetry_fault",
            "sql",
            "before_cursor_execute" if moment == "on_start" else "after_cursor_execute",
        )
        obs.close()

    def test_observed_twice(self, capture: Capture, engine: Any) -> None:
        """A factory that runs again makes no second span; the statements are observed until the last takes it off."""
        remove = observe_engine(engine)
        for names in (["SELECT"], ["SELECT"] * 2):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
            assert [span.name for span in capture.spans] == names
            remove()
            remove()

    def test_observed_with_its_copy(self, capture: Capture, engine: Any) -> None:
        """An engine and its copy with options are both observed: a statement on either, also one that fails, is one span."""
        copy = engine.execution_options(logging_token="copy")
        remove = observe_engine(copy)
        for used in (engine, copy):
            with used.connect() as connection:
                connection.execute(text("select 1"))
            with pytest.raises(OperationalError), used.connect() as connection:
                connection.execute(text("select 1 from nowhere"))
        assert [span.status.status_code for span in capture.spans] == [StatusCode.UNSET, StatusCode.ERROR] * 2
        remove()

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

    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            ('select * from p where name = "John Smith"', "select * from p where name = ?"),
            (r"select * from p where name = E'O\'Brien John'", "select * from p where name = ?"),
            (r"select * from p where name = 'O\'Brien John'", "select * from p where name = ?"),
            (r"select 'O\'Brien', 'D\'Arcy'", "SELECT"),
            ("select $$John Smith$$, $a$John $$ Smith$a$, $1", "select ?, ?, $?"),
            ("select 1 /* patient John Smith */", "select ?"),
            ("select 1 -- patient John Smith\nfrom bed", "select ?  \nfrom bed"),
            ("select 1 /* a /* b */ John Smith */", "SELECT"),
            ("select 1 # John Smith", "SELECT"),
            ("select q'[it's John]', 'Smith'", "SELECT"),
            ("select 'John Smith", "SELECT"),
            ('/* x */ select "John', "SQL"),
            ("select `John's`, 1.5e+10, 0x1F, 1e5, t1.n", "select `John's`, ?, ?, ?, t1.n"),
        ],
    )
    def test_every_way_to_quote(self, statement: str, expected: str) -> None:
        """Whatever a dialect quotes with, the literal is taken out, or the operation is all there is."""
        assert shape(statement) == expected

    def test_names_in_quotes(self) -> None:
        """PostgreSQL's quoted names and its operators with a hash are no literals."""
        statement = """select "order" from bed where data #> 'x' = 'y'"""
        assert shape(statement, "postgresql") == 'select "order" from bed where data #> ? = ?'
        assert shape(statement.replace("#>", ">")) == "select ? from bed where data > ? = ?"

    @given(
        st.sampled_from([STANDARD, MYSQL]).flatmap(
            lambda kinds: st.lists(st.tuples(st.sampled_from(kinds), WORDS, WORDS), max_size=4)
        )
    )
    def test_no_literal_comes_out(self, literals: list[tuple[str, str, str]]) -> None:
        """No literal, in any quotes and whatever stands around it, is in the shape."""
        written = [_written(kind, f"{before}NEEDLE{after}") for kind, before, after in literals]
        assert "NEEDLE" not in shape(f"select {' , '.join(written)}")


def _written(kind: str, words: str) -> str:
    """Write `words` as a server of that dialect would have to see them."""
    if kind in ("'", '"', "N'"):
        return kind + words.replace(kind[-1], kind[-1] * 2) + kind[-1]
    if kind in ("E'", "\\'", '\\"'):
        quote = kind[-1]
        escaped = words.replace("\\", "\\\\").replace(quote, f"\\{quote}")
        return kind.removeprefix("\\") + escaped + quote
    if kind == "/*":
        return f"/* {words.replace('*', '').replace('/', '')} */ 1"
    if kind == "--":
        return "-- " + words.replace("\n", " ") + "\n1"
    return f"{kind}{words.replace('$', '')}{kind}"
