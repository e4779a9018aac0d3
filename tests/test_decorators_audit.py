"""`@audited`: durable before the answer, one entry a call, and what happens when it cannot be kept."""

from __future__ import annotations

import asyncio
import functools
import gc
import operator
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from opentelemetry.trace import StatusCode, get_current_span
from starlette.exceptions import HTTPException as StarletteHTTPException

from healthobs import AuditWriteError, Observability, Phi, Settings, _runtime, audited, observe, timed, traced
from healthobs.audit import annotate, open_trail
from healthobs.audit.draft import FIELDS
from healthobs.exceptions import ConfigurationError
from healthobs.flask import init_app
from healthobs.http import Exchange, HttpServer
from healthobs.testing import Capture


@pytest.fixture
def trail() -> Iterator[Capture]:
    """Give a capture with a real audit trail."""
    with Capture(audit=True) as capture:
        yield capture


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


def break_trail(capture: Capture) -> None:
    """Make every append fail, as a full or broken disk does."""
    assert capture.obs.audit is not None
    _ = capture.audit_entries
    capture._entries = []
    capture.obs.audit.close()


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

    def test_annotated(self, trail: Capture) -> None:
        """The body says whom it was about; the entry has the ids of the call's span."""

        @audited("patient.read", resource_type="Patient")
        @traced("op")
        def read() -> str:
            annotate(actor="client-1", actor_kind="client", subject="s-1", resource_id="r-1", purpose="TREAT")
            annotate(details={"view": "clinician"})
            return "chart"

        assert read() == "chart"
        (entry,) = trail.audit_entries
        span = trail.span("op")
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

    def test_without_a_span(self, trail: Capture) -> None:
        """Without a span of its own the call belongs to the one around it."""
        traced("outer")(lambda: audited("a.b")(nothing)())()
        assert trail.audit_entries[0]["span_id"] == f"{trail.span('outer').context.span_id:016x}"
        audited("a.c")(nothing)()
        assert trail.audit_entries[1]["trace_id"] is None

    def test_nested_calls_have_an_entry_each(self, trail: Capture) -> None:
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
        told = [(entry["action"], entry["subject"], entry["resource"]["id"]) for entry in trail.audit_entries]
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
    def test_outcome(self, result: Any, outcome: str, trail: Capture) -> None:
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
        assert [entry["outcome"] for entry in trail.audit_entries] == [outcome]
        assert trail.leaks("078-05-1120") == ()

    def test_outcome_that_the_body_states(self, trail: Capture) -> None:
        """What the body says about the outcome stands."""
        audited("a.b")(lambda: annotate(outcome="denied"))()
        assert trail.audit_entries[0]["outcome"] == "denied"

    def test_error_if_is_an_error(self, trail: Capture) -> None:
        """A result that counts as a failure is one in the trail too."""
        observe("op", audit="a.b", error_if=lambda _: True)(nothing)()
        assert trail.audit_entries[0]["outcome"] == "error"

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
        self, status: int, entries: int, trail: Capture
    ) -> None:
        """Of the service's own questions, only a refusal leaves no entry."""
        with exchanging(trail, silent=True):
            audited("a.b")(lambda: Answer(status))()
        assert len(trail.audit_entries) == entries

    def test_disabled_telemetry_does_not_disable_the_trail(self) -> None:
        """`disabled` switches telemetry off; the audit trail goes on."""
        with Capture(Settings(disabled=True), audit=True) as capture:
            observe("op", audit="a.b", log="info", in_flight=True)(nothing)()
        assert (len(capture.audit_entries), capture.spans, capture.log_lines) == (1, (), [])

    @pytest.mark.parametrize("owner", ["tracing.tracer.start_span", "clock.monotonic_ns"])
    def test_a_fault_of_telemetry_costs_it_nothing(self, trail: Capture, owner: str) -> None:
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
        holder: Any = operator.attrgetter(target)(trail.obs)
        before = getattr(holder, method)
        object.__setattr__(holder, method, broken)
        visit()
        object.__setattr__(holder, method, before)
        told = [(entry["action"], entry["subject"], entry["actor"]["id"]) for entry in trail.audit_entries]
        assert told == [("chart.read", "s-inner", "dr-1"), ("visit.open", "s-outer", None)]
        assert trail.metric("healthobs_internal_errors_total", component="decorators")


class TestOrder:
    """What comes first."""

    def test_durable_before_the_value_is_returned(self, trail: Capture) -> None:
        """When the caller has the value, the entry is in the trail."""
        counts: list[int] = []
        read = audited("a.b")(lambda: counts.append(len(trail.audit_entries)))
        read()
        counts.append(len(trail.audit_entries))
        assert counts == [0, 1]

    def test_the_clock_stops_before_the_append(self, trail: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long the append takes, the duration is the function's."""
        assert trail.obs.audit is not None
        append = trail.obs.audit.append

        def slow(draft: Any) -> Any:
            trail.time.advance(60)
            return append(draft)

        monkeypatch.setattr(trail.obs.audit, "append", slow)
        timed("op")(audited("a.b")(nothing))()
        labels = {"operation": "op", "outcome": "ok"}
        assert trail.metric("healthobs_operation_duration_seconds_sum", **labels) == 1
        assert len(trail.audit_entries) == 1

    def test_stream(self, trail: Capture) -> None:
        """A generator's entry is durable before its first item is handed out, and there is one."""

        @audited("rows.read")
        def rows() -> Generator[int]:
            annotate(subject="s-1")
            yield 1
            yield 2

        stream = rows()
        assert trail.audit_entries == []
        next(stream)
        assert [entry["subject"] for entry in trail.audit_entries] == ["s-1"]
        assert list(stream) == [2]
        assert len(trail.audit_entries) == 1

    def test_async_stream(self, trail: Capture) -> None:
        """The same for an async generator."""

        @audited("rows.read")
        async def rows() -> AsyncGenerator[int]:
            annotate(subject="s-1")
            yield 1

        async def main() -> list[int]:
            return [len(trail.audit_entries) async for _ in rows()]

        assert asyncio.run(main()) == [1]
        assert len(trail.audit_entries) == 1

    def test_stream_without_items(self, trail: Capture) -> None:
        """A generator that gives nothing has its entry at the end."""

        @audited("rows.read")
        def rows() -> Generator[int]:
            yield from ()

        assert list(rows()) == []
        assert [entry["outcome"] for entry in trail.audit_entries] == ["ok"]


class TestLate:
    """What is said after the entry was written."""

    def lost(self, capture: Capture) -> int:
        """Return how often that was told."""
        counted = capture.metric("healthobs_internal_errors_total", component="audit") or 0
        lines = [line for line in capture.log_lines if line["event"] == "audit_annotation_lost"]
        assert len(lines) == counted
        return len(lines)

    def test_body_of_a_streamed_response(self, trail: Capture) -> None:
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

        with init_app(app, trail.obs).test_client().get("/rows") as response:
            assert response.text == "x"
        ((subject, details),) = [(entry["subject"], entry["details"]) for entry in trail.audit_entries]
        assert (subject, details, self.lost(trail)) == (None, {}, 2)

    def test_after_a_generators_first_item(self, trail: Capture) -> None:
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
        told = [(one["action"], one["subject"], one["actor"]["id"]) for one in trail.audit_entries]
        assert told == [("rows.read", None, None), ("ward.read", None, "dr-1")]
        assert self.lost(trail) == 1

    def test_outside_of_audited_calls(self, trail: Capture) -> None:
        """Where no entry was written, or an answer has not begun, nothing happens: a function can be used in both."""
        annotate(subject="s-1")
        with exchanging(trail) as exchange:
            annotate(subject="s-1")
            audited("a.b")(nothing)()
            annotate(subject="s-1")
            exchange.respond(200, "/x")
            assert self.lost(trail) == 0
            annotate(subject="s-1")
        assert self.lost(trail) == 1


class TestPolicy:
    """When the trail cannot take the entry."""

    def test_deny_replaces_the_answer(self, trail: Capture) -> None:
        """Under deny the value is withheld, whatever the trail raised, and the loss is counted and logged."""
        break_trail(trail)
        with pytest.raises(AuditWriteError, match="not answered") as refused:
            observe("op", audit="a.b", in_flight=True)(lambda: "chart")()
        assert isinstance(refused.value.__cause__, Exception)
        assert trail.metric("healthobs_internal_errors_total", component="audit") == 1
        assert [(line["event"], line["action"]) for line in trail.log_lines] == [("audit_entry_lost", "a.b")]
        assert trail.metric("healthobs_operations_in_flight", operation="op") == 0

    @pytest.mark.parametrize("fail", [False, True])
    def test_every_signal_says_what_the_caller_got(self, trail: Capture, fail: bool) -> None:
        """A call that is denied is an error in metrics, line and span, whatever its body came to."""

        @observe(
            "op",
            audit="a.b",
            log="info",
            count="charts_total",
            success_if=lambda _exc: True,
            error_if=lambda _: False,
        )
        def read() -> str:
            if fail:
                raise KeyError
            return "chart"

        break_trail(trail)
        with pytest.raises(AuditWriteError):
            read()
        assert trail.metric("charts_total") == 0
        told = [
            trail.metric("healthobs_operation_duration_seconds_count", operation="op", outcome=outcome)
            for outcome in ("ok", "error")
        ]
        lost, line = trail.log_lines
        span = trail.span("op")
        assert told == [0, 1]
        assert (line["event"], line["level"], line["outcome"]) == ("op", "error", "error")
        assert (
            line["exception_type"]
            == (span.attributes or {})["error.type"]
            == "healthobs.exceptions.AuditWriteError"
        )
        assert span.status.status_code is StatusCode.ERROR
        assert lost["event"] == "audit_entry_lost"
        assert lost["span_id"] == line["span_id"] == f"{span.context.span_id:016x}"

    def test_a_denial_is_freed_at_once(self, trail: Capture) -> None:
        """What was raised is not kept alive by a cycle through our frame."""
        break_trail(trail)
        denied = observe("op", audit="a.b")(lambda: "chart")

        def refused() -> weakref.ref[AuditWriteError]:
            try:
                denied()
            except AuditWriteError as exc:
                return weakref.ref(exc)
            raise AssertionError

        gc.collect()
        gc.disable()
        try:
            assert refused()() is None
        finally:
            gc.enable()

    @pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit])
    def test_an_interrupt_while_the_entry_is_appended(
        self, trail: Capture, exc: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It reaches the caller, is what the signals say, and leaves nothing in force behind it."""

        def append(_draft: object) -> None:
            raise exc

        monkeypatch.setattr(trail.obs.audit, "append", append)
        with pytest.raises(exc):
            observe("op", audit="a.b")(lambda: "chart")()
        assert trail.metric("healthobs_operations_total", operation="op", outcome="error") == 1
        assert _runtime.audit_draft.get() is None
        assert not get_current_span().get_span_context().is_valid

    def test_alert_says_what_the_caller_got(self, trail: Capture) -> None:
        """Under alert the value is returned, so the outcome stays ok."""
        break_trail(trail)
        audited("a.b", policy="alert")(observe("op")(nothing))()
        assert trail.metric("healthobs_operations_total", operation="op", outcome="ok") == 1

    def test_a_denied_stream_is_an_error(self, trail: Capture) -> None:
        """The same for a stream whose first item is withheld; and the lost entry's line has the ids of its span."""

        @observe("op", audit="a.b", log="info", success_if=lambda _exc: True)
        def rows() -> Generator[int]:
            yield 1

        break_trail(trail)
        with pytest.raises(AuditWriteError):
            next(rows())
        assert trail.metric("healthobs_operations_total", operation="op", outcome="error") == 1
        lost, line = trail.log_lines
        assert line["exception_type"] == "healthobs.exceptions.AuditWriteError"
        assert lost["span_id"] == line["span_id"] == f"{trail.span('op').context.span_id:016x}"
        assert not get_current_span().get_span_context().is_valid

    def test_a_stream_that_fails_after_its_entry(self, trail: Capture) -> None:
        """With its entry on disk, an exception that `success_if` takes is none."""

        @observe("op", audit="a.b", success_if=lambda exc: isinstance(exc, KeyError))
        def rows() -> Generator[int]:
            yield 1
            raise KeyError

        with pytest.raises(KeyError):
            list(rows())
        assert trail.metric("healthobs_operations_total", operation="op", outcome="ok") == 1

    def test_deny_is_not_only_for_errors_of_ours(
        self, trail: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error of any type means that there is no entry."""

        def append(_draft: object) -> None:
            raise OSError

        monkeypatch.setattr(trail.obs.audit, "append", append)
        with pytest.raises(AuditWriteError):
            audited("a.b")(lambda: "chart")()

    def test_a_draft_that_cannot_be_written(self, trail: Capture) -> None:
        """What the trail refuses counts as not recorded."""
        with pytest.raises(AuditWriteError):
            audited("a.b")(lambda: annotate(details={"share": 0.5}))()

    @pytest.mark.parametrize("field", [name for name in FIELDS if name not in ("action", "details")])
    @pytest.mark.parametrize("value", [["Ottoline"], Phi("MRN-0012345", "mrn")])
    def test_the_line_names_the_field(self, trail: Capture, field: str, value: object) -> None:
        """What was wrong with a draft is in the line of the lost entry; the value is not."""
        with pytest.raises(AuditWriteError, match="not answered"):
            audited("a.b")(lambda: annotate(**{field: value}))()
        (line,) = [line for line in trail.log_lines if line["event"] == "audit_entry_lost"]
        assert line["exception_message"].startswith(f"the audit entry's {field} must be ")
        assert trail.leaks("Ottoline", "0012345") == ()

    @pytest.mark.parametrize("action", ["the chart of Ottoline", "ottoline.quimby"])
    def test_the_line_has_the_decorators_action(self, trail: Capture, action: str) -> None:
        """An action that the call set itself may be made of data, whatever its form."""
        break_trail(trail)
        with pytest.raises(AuditWriteError, match="not answered"):
            audited("a.b")(lambda: annotate(action=action))()
        assert [line["action"] for line in trail.log_lines] == ["a.b"]
        assert trail.leaks("Ottoline", "ottoline") == ()

    def test_deny_replaces_an_exception_too(self, trail: Capture) -> None:
        """An error's answer may tell something as well."""
        break_trail(trail)

        def fail() -> None:
            raise ValueError

        with pytest.raises(AuditWriteError):
            audited("a.b")(fail)()

    @pytest.mark.parametrize("exc", [KeyboardInterrupt, asyncio.CancelledError])
    def test_interrupts_go_on(self, exc: type[BaseException], trail: Capture) -> None:
        """A cancellation answers nothing, and must not be swallowed."""
        break_trail(trail)

        def leave() -> None:
            raise exc

        with pytest.raises(exc):
            audited("a.b")(leave)()
        assert trail.metric("healthobs_internal_errors_total", component="audit") == 1

    def test_alert_answers(self, trail: Capture) -> None:
        """Under alert the value is returned, and the loss counted and logged."""
        break_trail(trail)
        assert audited("a.b", policy="alert")(lambda: "chart")() == "chart"
        assert [line["policy"] for line in trail.log_lines] == ["alert"]

    def test_the_settings_policy(self) -> None:
        """Without one of its own, a function has the settings' policy."""
        with Capture(Settings(audit_policy="alert"), audit=True) as capture:
            break_trail(capture)
            assert audited("a.b")(lambda: "chart")() == "chart"
            with pytest.raises(AuditWriteError):
                audited("a.b", policy="deny")(lambda: "chart")()

    def test_no_item_of_a_stream_leaves(self, trail: Capture) -> None:
        """Under deny the first item is withheld, and the body is closed."""
        closed: list[bool] = []

        @audited("rows.read")
        def rows() -> Generator[int]:
            try:
                yield 1
            finally:
                closed.append(True)

        break_trail(trail)
        with pytest.raises(AuditWriteError):
            next(rows())
        assert closed == [True]

    def test_no_item_of_an_async_stream_leaves(self, trail: Capture) -> None:
        """The same for an async generator."""
        closed: list[bool] = []

        @audited("rows.read")
        async def rows() -> AsyncGenerator[int]:
            try:
                yield 1
            finally:
                closed.append(True)

        async def main() -> None:
            with pytest.raises(AuditWriteError):
                await anext(rows())
            assert closed == [True]

        break_trail(trail)
        asyncio.run(main())

    def test_no_trail(self, capture: Capture) -> None:
        """A service without a trail answers, unless the function insists on an entry."""
        assert audited("a.b")(lambda: "chart")() == "chart"
        assert capture.metric("healthobs_internal_errors_total", component="audit") is None
        with pytest.raises(AuditWriteError):
            audited("a.b", policy="deny")(lambda: "chart")()

    @pytest.mark.parametrize("policy", ["deny", "spool"])
    @pytest.mark.parametrize("active", [False, True])
    def test_no_observability(self, policy: Any, active: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before anything is set up, and after it was taken off, nothing that insists on an entry is begun."""
        monkeypatch.setattr(_runtime.process, "active", active)
        monkeypatch.setattr(_runtime.process, "default", None)
        effects: list[int] = []
        insists = audited("a.b", policy=policy)

        @insists
        def view() -> None:
            effects.append(1)

        @insists
        async def coroutine() -> None:
            effects.append(1)

        @insists
        def rows() -> Generator[int]:
            effects.append(1)
            yield 1

        @insists
        async def async_rows() -> AsyncGenerator[int]:
            effects.append(1)
            yield 1

        async def first() -> int:
            return await anext(async_rows())

        asked: list[Callable[[], object]] = [
            view,
            insists(functools.partial(effects.append, 1)),
            lambda: asyncio.run(coroutine()),
            lambda: next(rows()),
            lambda: asyncio.run(first()),
        ]
        for ask in asked:
            with pytest.raises(AuditWriteError, match="no Observability is in force"):
                ask()
        assert effects == []

    def test_no_observability_and_no_policy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A function that names no policy runs unaudited then, like one under `alert`: it can be used without a service."""
        monkeypatch.setattr(_runtime.process, "default", None)
        assert audited("a.b")(lambda: "chart")() == "chart"
        assert audited("a.b", policy="alert")(lambda: "chart")() == "chart"


class TestSpoolPolicy:
    """Patient safety before paperwork: care under break-glass goes on while the store is down, nothing else does."""

    @pytest.fixture
    def down(self, tmp_path: Path) -> Iterator[Capture]:
        """A service with a spool whose audit store is gone."""
        settings = Settings(audit_policy="spool", audit_spool_file=tmp_path / "spool")
        with Capture(settings, audit=True) as capture:
            assert capture.obs.audit is not None
            assert capture.obs.audit.path is not None
            hidden = capture.obs.audit.path.with_name("hidden")
            capture.obs.audit.append({"action": "before.fault"})
            capture.obs.audit.path.rename(hidden)
            yield capture
            if hidden.exists():
                hidden.rename(capture.obs.audit.path)

    @pytest.mark.parametrize("purpose", ["BTG", "ETREAT"])
    def test_care_goes_on_with_an_alarm(self, down: Capture, purpose: str) -> None:
        """The value is returned, the entry is in the spool, and somebody is told; afterwards it is in the log once."""
        read = audited("patient.read")(lambda: annotate(purpose=purpose, subject="s-1") or "chart")
        assert read() == "chart"
        assert down.metric("healthobs_audit_spooled_total") == 1
        assert [line["level"] for line in down.log_lines if line["event"] == "audit_entry_spooled"] == [
            "error"
        ]
        trail = down.obs.audit
        assert trail is not None
        assert trail.path is not None
        trail.path.with_name("hidden").rename(trail.path)
        assert read() == "chart"
        assert down.metric("healthobs_audit_spooled_total") == 1
        told = [(entry["action"], entry["purpose"]) for entry in down.audit_entries]
        assert told == [("before.fault", None), ("patient.read", purpose), ("patient.read", purpose)]

    @pytest.mark.parametrize("purpose", [None, "TREAT", "HPAYMT", "HOPERAT"])
    def test_everything_else_is_denied(self, down: Capture, purpose: str | None) -> None:
        """Without break-glass the value is withheld, and nothing is spooled."""
        with pytest.raises(AuditWriteError, match="not answered"):
            audited("patient.read")(lambda: annotate(purpose=purpose) or "chart")()
        assert down.metric("healthobs_audit_spooled_total") == 0

    def test_function_that_spools_nowhere_is_told_of(self) -> None:
        """A function's own policy `spool` on a trail without a spool is logged once, before care is denied by it."""
        with Capture(Settings(), audit=True) as capture:
            read = audited("patient.read", policy="spool")(lambda: annotate(purpose="BTG") or "chart")
            assert (read(), read()) == ("chart", "chart")
            lines = [line for line in capture.log_lines if line["event"] == "audit_spool_missing"]
            assert [line["level"] for line in lines] == ["error"]

    def test_policy_without_a_spool_does_not_start(self, tmp_path: Path) -> None:
        """A trail that is given has to have a spool too, where the settings' policy needs one."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        with pytest.raises(ConfigurationError, match="spool_file"):
            Observability(Settings(audit_policy="spool"), audit=trail)
        trail.close()

    def test_deny_knows_no_break_glass(self, down: Capture) -> None:
        """A function that says `deny` itself is denied under any purpose."""
        with pytest.raises(AuditWriteError):
            audited("payment.read", policy="deny")(lambda: annotate(purpose="BTG"))()

    @pytest.mark.parametrize("policy", ["deny", "spool"])
    def test_without_a_trail_the_body_does_not_run(self, capture: Capture, policy: Any) -> None:
        """A function that insists on an entry has no effect where none can be kept."""
        effects: list[int] = []
        with pytest.raises(AuditWriteError, match="not begun"):
            audited("a.b", policy=policy)(lambda: effects.append(1))()
        assert effects == []
        assert capture.metric("healthobs_internal_errors_total", component="audit") == 1
