"""`@audited`: durable before the answer, one entry a call, and what happens when it cannot be kept."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from healthobs import Phi, Settings, _runtime, audited, observe, timed, traced
from healthobs.audit import annotate
from healthobs.flask import init_app
from healthobs.http import Exchange, HttpServer
from healthobs.testing import Capture


def nothing() -> int:
    """Return 0."""
    return 0


@contextmanager
def exchanging(capture: Capture, *, silent: bool = False) -> Iterator[Exchange]:
    """Put an HTTP exchange in force."""
    server = HttpServer(capture.obs)
    exchange = Exchange(server, "GET", "http", ("host", "80"), "1.1", None, None, silent=silent)
    token = _runtime.exchange.set(exchange)
    try:
        yield exchange
    finally:
        _runtime.exchange.reset(token)
        exchange.finish(0)


class Answer:
    """A response as frameworks have it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class Aborted(Exception):
    """What werkzeug's `abort` raises, as far as it matters."""

    def __init__(self, code: int) -> None:
        self.code = code

    def get_response(self) -> None:
        """Mark it as one."""


class TestEntry:
    """What an entry says."""

    def test_annotated(self, audit_capture: Capture) -> None:
        """The body says whom it was about; the entry has the ids of the call's span."""

        @audited("patient.read", resource_type="Patient")
        @traced("op")
        def read() -> str:
            annotate(actor="client-1", actor_kind="client", subject="s-1", resource_id="r-1", purpose="TREAT")
            annotate(details={"view": "clinician"})
            return "chart"

        assert read() == "chart"
        (entry,) = audit_capture.audit_entries
        span = audit_capture.span("op")
        told = {
            key: entry[key]
            for key in ("action", "outcome", "actor", "subject", "resource", "details", "purpose")
        }
        assert told == {
            "action": "patient.read",
            "outcome": "ok",
            "actor": {"id": "client-1", "kind": "client"},
            "subject": "s-1",
            "resource": {"type": "Patient", "id": "r-1"},
            "details": {"view": "clinician"},
            "purpose": "TREAT",
        }
        assert (entry["trace_id"], entry["span_id"]) == (
            f"{span.context.trace_id:032x}",
            f"{span.context.span_id:016x}",
        )

    def test_without_a_span(self, audit_capture: Capture) -> None:
        """Without a span of its own the call belongs to the one around it."""
        traced("outer")(lambda: audited("a.b")(nothing)())()
        assert (
            audit_capture.audit_entries[0]["span_id"] == f"{audit_capture.span('outer').context.span_id:016x}"
        )
        audited("a.c")(nothing)()
        assert audit_capture.audit_entries[1]["trace_id"] is None

    def test_nested_calls_have_an_entry_each(self, audit_capture: Capture) -> None:
        """`annotate` reaches the innermost audited call, and after it the outer one again."""

        @audited("inner.call")
        def inner() -> None:
            annotate(subject="inner")

        @audited("outer.call")
        def outer() -> None:
            annotate(subject="before")
            inner()
            annotate(resource_id="after")

        outer()
        told = [
            (entry["action"], entry["subject"], entry["resource"]["id"])
            for entry in audit_capture.audit_entries
        ]
        assert told == [("inner.call", "inner", None), ("outer.call", "before", "after")]

    @pytest.mark.parametrize(
        ("result", "outcome"),
        [
            (Answer(200), "ok"),
            (Answer(401), "denied"),
            (Answer(403), "denied"),
            (Answer(404), "failed"),
            (Answer(503), "failed"),
            (("body", 403), "denied"),
            (("body", "403 FORBIDDEN"), "denied"),
            (("body", "no status"), "ok"),
            (StarletteHTTPException(403), "denied"),
            (StarletteHTTPException(404), "failed"),
            (("body", 422, {}), "failed"),
            (("body", {}), "ok"),
            (("body",), "ok"),
            (None, "ok"),
            (Aborted(403), "denied"),
            (Aborted(409), "failed"),
            (ValueError("078-05-1120"), "error"),
            (asyncio.CancelledError(), "error"),
        ],
    )
    def test_outcome(self, result: Any, outcome: str, audit_capture: Capture) -> None:
        """The entry tells denied, failed and error apart."""

        @audited("a.b")
        def view() -> Any:
            if isinstance(result, BaseException):
                raise result
            return result

        if isinstance(result, BaseException):
            with pytest.raises(type(result)):
                view()
        else:
            assert view() is result
        assert [entry["outcome"] for entry in audit_capture.audit_entries] == [outcome]
        assert audit_capture.leaks("078-05-1120") == ()

    def test_outcome_that_the_body_states(self, audit_capture: Capture) -> None:
        """What the body says about the outcome stands."""
        audited("a.b")(lambda: annotate(outcome="denied"))()
        assert audit_capture.audit_entries[0]["outcome"] == "denied"

    def test_error_if_is_an_error(self, audit_capture: Capture) -> None:
        """A result that counts as a failure is one in the trail too."""
        observe("op", audit="a.b", error_if=lambda _: True)(nothing)()
        assert audit_capture.audit_entries[0]["outcome"] == "error"

    def test_receipt_goes_to_the_exchange(self) -> None:
        """Inside an HTTP exchange, the answer carries the receipt, and the entry has its request id."""
        with Capture(Settings(headers=True), audit=True) as capture, exchanging(capture) as exchange:
            audited("a.b")(nothing)()
            headers = dict(exchange.respond(200, "/x"))
        (entry,) = capture.audit_entries
        assert 'log="' in headers["Audit-Receipt"]
        assert ";index=0;" in headers["Audit-Receipt"]
        assert entry["request_id"] == exchange.request_id

    @pytest.mark.parametrize(("status", "entries"), [(401, 0), (200, 1), (404, 1)])
    def test_a_control_that_is_refused_is_nobodys_access(
        self, status: int, entries: int, audit_capture: Capture
    ) -> None:
        """Of the service's own questions, only a refusal leaves no entry."""
        with exchanging(audit_capture, silent=True):
            audited("a.b")(lambda: Answer(status))()
        assert len(audit_capture.audit_entries) == entries

    def test_disabled_telemetry_does_not_disable_the_trail(self) -> None:
        """`disabled` switches telemetry off; the audit trail goes on."""
        with Capture(Settings(disabled=True), audit=True) as capture:
            observe("op", audit="a.b", log="info", in_flight=True)(nothing)()
        assert (len(capture.audit_entries), capture.spans, capture.log_lines) == (1, (), [])

    @pytest.mark.parametrize("owner", ["tracing.tracer.start_span", "clock.monotonic_ns"])
    def test_a_fault_of_telemetry_costs_it_nothing(self, audit_capture: Capture, owner: str) -> None:
        """Where no span can begin, each call's annotations are in its own entry all the same, not in the one around it."""

        @audited("chart.read")
        @observe("read_chart")
        def read() -> None:
            annotate(subject="s-inner", actor="dr-1")

        @audited("visit.open")
        def visit() -> None:
            annotate(subject="s-outer")
            read()

        def broken(*_arguments: object, **_options: object) -> Any:
            raise RuntimeError

        target, _, method = owner.rpartition(".")
        holder: Any = operator.attrgetter(target)(audit_capture.obs)
        before = getattr(holder, method)
        object.__setattr__(holder, method, broken)
        visit()
        object.__setattr__(holder, method, before)
        told = [
            (entry["action"], entry["subject"], entry["actor"]["id"]) for entry in audit_capture.audit_entries
        ]
        assert told == [("chart.read", "s-inner", "dr-1"), ("visit.open", "s-outer", None)]
        assert audit_capture.metric("healthobs_internal_errors_total", component="decorators")


class TestOrder:
    """What comes first."""

    def test_durable_before_the_value_is_returned(self, audit_capture: Capture) -> None:
        """When the caller has the value, the entry is in the trail."""
        counts: list[int] = []
        read = audited("a.b")(lambda: counts.append(len(audit_capture.audit_entries)))
        read()
        counts.append(len(audit_capture.audit_entries))
        assert counts == [0, 1]

    def test_the_clock_stops_before_the_append(
        self, audit_capture: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long the append takes, the duration is the function's."""
        assert audit_capture.obs.audit is not None
        append = audit_capture.obs.audit.append

        def slow(draft: Any) -> Any:
            audit_capture.time.advance(60)
            return append(draft)

        monkeypatch.setattr(audit_capture.obs.audit, "append", slow)
        timed("op")(audited("a.b")(nothing))()
        labels = {"operation": "op", "outcome": "ok"}
        assert audit_capture.metric("healthobs_operation_duration_seconds_sum", **labels) == 1
        assert len(audit_capture.audit_entries) == 1

    def test_stream(self, audit_capture: Capture) -> None:
        """A generator's entry is durable before its first item is handed out, and there is one."""

        @audited("rows.read")
        def rows() -> Generator[int]:
            annotate(subject="s-1")
            yield 1
            yield 2

        stream = rows()
        assert audit_capture.audit_entries == []
        next(stream)
        assert [entry["subject"] for entry in audit_capture.audit_entries] == ["s-1"]
        assert list(stream) == [2]
        assert len(audit_capture.audit_entries) == 1

    def test_async_stream(self, audit_capture: Capture) -> None:
        """The same for an async generator."""

        @audited("rows.read")
        async def rows() -> AsyncGenerator[int]:
            annotate(subject="s-1")
            yield 1

        async def main() -> list[int]:
            return [len(audit_capture.audit_entries) async for _ in rows()]

        assert asyncio.run(main()) == [1]
        assert len(audit_capture.audit_entries) == 1

    def test_stream_without_items(self, audit_capture: Capture) -> None:
        """A generator that gives nothing has its entry at the end."""

        @audited("rows.read")
        def rows() -> Generator[int]:
            yield from ()

        assert list(rows()) == []
        assert [entry["outcome"] for entry in audit_capture.audit_entries] == ["ok"]


class TestLate:
    """What is said after the entry was written."""

    def lost(self, capture: Capture) -> int:
        """Return how often that was told."""
        counted = capture.metric("healthobs_internal_errors_total", component="audit") or 0
        lines = [line for line in capture.log_lines if line["event"] == "audit_annotation_lost"]
        assert len(lines) == counted
        return len(lines)

    def test_body_of_a_streamed_response(self, audit_capture: Capture) -> None:
        """It runs after the view: neither subject nor what it reveals is in the entry, and somebody is told."""
        app = Flask("ward")

        @app.get("/rows")
        @audited("rows.read")
        def rows() -> Response:
            annotate(actor="dr-1")

            def body() -> Generator[str]:
                annotate(subject="s-1")
                yield Phi("x", "name").reveal("TREAT")

            return Response(body())

        with init_app(app, audit_capture.obs).test_client().get("/rows") as response:
            assert response.text == "x"
        ((subject, details),) = [
            (entry["subject"], entry["details"]) for entry in audit_capture.audit_entries
        ]
        assert (subject, details, self.lost(audit_capture)) == (None, {}, 2)

    def test_after_a_generators_first_item(self, audit_capture: Capture) -> None:
        """It is told too, and is not in the entry of the call around it."""

        @audited("rows.read")
        def rows() -> Generator[int]:
            yield 1
            annotate(subject="s-inner")
            yield 2

        @audited("ward.read")
        def ward() -> list[int]:
            found = list(rows())
            annotate(actor="dr-1")
            return found

        assert ward() == [1, 2]
        told = [(one["action"], one["subject"], one["actor"]["id"]) for one in audit_capture.audit_entries]
        assert told == [("rows.read", None, None), ("ward.read", None, "dr-1")]
        assert self.lost(audit_capture) == 1

    def test_outside_of_audited_calls(self, audit_capture: Capture) -> None:
        """Where no entry was written, or an answer has not begun, nothing happens: a function can be used in both."""
        annotate(subject="s-1")
        with exchanging(audit_capture) as exchange:
            annotate(subject="s-1")
            audited("a.b")(nothing)()
            annotate(subject="s-1")
            exchange.respond(200, "/x")
            assert self.lost(audit_capture) == 0
            annotate(subject="s-1")
        assert self.lost(audit_capture) == 1
