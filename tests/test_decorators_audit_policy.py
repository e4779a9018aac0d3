"""`@audited` where the trail does not take the entry: `deny`, `alert` and `spool`."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import StatusCode, get_current_span

from healthobs import AuditWriteError, Observability, Phi, Settings, _runtime, audited, observe
from healthobs.audit import annotate, open_trail
from healthobs.audit.draft import FIELDS
from healthobs.exceptions import ConfigurationError
from healthobs.testing import Capture


def break_trail(capture: Capture) -> None:
    """Make every append fail, as a full or broken disk does."""
    assert capture.obs.audit is not None
    _ = capture.audit_entries
    capture._entries = []
    capture.obs.audit.close()


class TestPolicy:
    """When the trail cannot take the entry."""

    def test_deny_replaces_the_answer(self, audit_capture: Capture) -> None:
        """Under deny the value is withheld, whatever the trail raised, and the loss is counted and logged."""
        break_trail(audit_capture)
        with pytest.raises(AuditWriteError, match="not answered") as refused:
            observe("op", audit="a.b", in_flight=True)(lambda: "chart")()
        assert isinstance(refused.value.__cause__, Exception)
        assert audit_capture.metric("healthobs_internal_errors_total", component="audit") == 1
        assert [(line["event"], line["action"]) for line in audit_capture.log_lines] == [
            ("audit_entry_lost", "a.b")
        ]
        assert audit_capture.metric("healthobs_operations_in_flight", operation="op") == 0

    @pytest.mark.parametrize("fail", [False, True])
    def test_every_signal_says_what_the_caller_got(self, audit_capture: Capture, fail: bool) -> None:
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

        break_trail(audit_capture)
        with pytest.raises(AuditWriteError):
            read()
        assert audit_capture.metric("charts_total") == 0
        told = [
            audit_capture.metric(
                "healthobs_operation_duration_seconds_count", operation="op", outcome=outcome
            )
            for outcome in ("ok", "error")
        ]
        lost, line = audit_capture.log_lines
        span = audit_capture.span("op")
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

    def test_a_denial_is_freed_at_once(self, audit_capture: Capture) -> None:
        """What was raised is not kept alive by a cycle through our frame."""
        break_trail(audit_capture)
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
        self, audit_capture: Capture, exc: type[BaseException], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It reaches the caller, is what the signals say, and leaves nothing in force behind it."""

        def append(_draft: object) -> None:
            raise exc

        monkeypatch.setattr(audit_capture.obs.audit, "append", append)
        with pytest.raises(exc):
            observe("op", audit="a.b")(lambda: "chart")()
        assert audit_capture.metric("healthobs_operations_total", operation="op", outcome="error") == 1
        assert _runtime.audit_draft.get() is None
        assert not get_current_span().get_span_context().is_valid

    def test_alert_says_what_the_caller_got(self, audit_capture: Capture) -> None:
        """Under alert the value is returned, so the outcome stays ok."""
        break_trail(audit_capture)
        audited("a.b", policy="alert")(observe("op")(lambda: 0))()
        assert audit_capture.metric("healthobs_operations_total", operation="op", outcome="ok") == 1

    def test_a_denied_stream_is_an_error(self, audit_capture: Capture) -> None:
        """The same for a stream whose first item is withheld; and the lost entry's line has the ids of its span."""

        @observe("op", audit="a.b", log="info", success_if=lambda _exc: True)
        def rows() -> Generator[int]:
            yield 1

        break_trail(audit_capture)
        with pytest.raises(AuditWriteError):
            next(rows())
        assert audit_capture.metric("healthobs_operations_total", operation="op", outcome="error") == 1
        lost, line = audit_capture.log_lines
        assert line["exception_type"] == "healthobs.exceptions.AuditWriteError"
        assert lost["span_id"] == line["span_id"] == f"{audit_capture.span('op').context.span_id:016x}"
        assert not get_current_span().get_span_context().is_valid

    def test_a_stream_that_fails_after_its_entry(self, audit_capture: Capture) -> None:
        """With its entry on disk, an exception that `success_if` takes is none."""

        @observe("op", audit="a.b", success_if=lambda exc: isinstance(exc, KeyError))
        def rows() -> Generator[int]:
            yield 1
            raise KeyError

        with pytest.raises(KeyError):
            list(rows())
        assert audit_capture.metric("healthobs_operations_total", operation="op", outcome="ok") == 1

    def test_deny_is_not_only_for_errors_of_ours(
        self, audit_capture: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error of any type means that there is no entry."""

        def append(_draft: object) -> None:
            raise OSError

        monkeypatch.setattr(audit_capture.obs.audit, "append", append)
        with pytest.raises(AuditWriteError):
            audited("a.b")(lambda: "chart")()

    def test_a_draft_that_cannot_be_written(self, audit_capture: Capture) -> None:
        """What the trail refuses counts as not recorded."""
        with pytest.raises(AuditWriteError):
            audited("a.b")(lambda: annotate(details={"share": 0.5}))()

    @pytest.mark.parametrize("field", [name for name in FIELDS if name not in ("action", "details")])
    @pytest.mark.parametrize("value", [["Ottoline"], Phi("MRN-0012345", "mrn")])
    def test_the_line_names_the_field(self, audit_capture: Capture, field: str, value: object) -> None:
        """What was wrong with a draft is in the line of the lost entry; the value is not."""
        with pytest.raises(AuditWriteError, match="not answered"):
            audited("a.b")(lambda: annotate(**{field: value}))()
        (line,) = [line for line in audit_capture.log_lines if line["event"] == "audit_entry_lost"]
        assert line["exception_message"].startswith(f"the audit entry's {field} must be ")
        assert audit_capture.leaks("Ottoline", "0012345") == ()

    @pytest.mark.parametrize("action", ["the chart of Ottoline", "ottoline.quimby"])
    def test_the_line_has_the_decorators_action(self, audit_capture: Capture, action: str) -> None:
        """An action that the call set itself may be made of data, whatever its form."""
        break_trail(audit_capture)
        with pytest.raises(AuditWriteError, match="not answered"):
            audited("a.b")(lambda: annotate(action=action))()
        assert [line["action"] for line in audit_capture.log_lines] == ["a.b"]
        assert audit_capture.leaks("Ottoline", "ottoline") == ()

    def test_deny_replaces_an_exception_too(self, audit_capture: Capture) -> None:
        """An error's answer may tell something as well."""
        break_trail(audit_capture)

        def fail() -> None:
            raise ValueError

        with pytest.raises(AuditWriteError):
            audited("a.b")(fail)()

    @pytest.mark.parametrize("exc", [KeyboardInterrupt, asyncio.CancelledError])
    def test_interrupts_go_on(self, exc: type[BaseException], audit_capture: Capture) -> None:
        """A cancellation answers nothing, and must not be swallowed."""
        break_trail(audit_capture)

        def leave() -> None:
            raise exc

        with pytest.raises(exc):
            audited("a.b")(leave)()
        assert audit_capture.metric("healthobs_internal_errors_total", component="audit") == 1

    def test_alert_answers(self, audit_capture: Capture) -> None:
        """Under alert the value is returned, and the loss counted and logged."""
        break_trail(audit_capture)
        assert audited("a.b", policy="alert")(lambda: "chart")() == "chart"
        assert [line["policy"] for line in audit_capture.log_lines] == ["alert"]

    def test_the_settings_policy(self) -> None:
        """Without one of its own, a function has the settings' policy."""
        with Capture(Settings(audit_policy="alert"), audit=True) as capture:
            break_trail(capture)
            assert audited("a.b")(lambda: "chart")() == "chart"
            with pytest.raises(AuditWriteError):
                audited("a.b", policy="deny")(lambda: "chart")()

    def test_no_item_of_a_stream_leaves(self, audit_capture: Capture) -> None:
        """Under deny the first item is withheld, and the body is closed."""
        closed: list[bool] = []

        @audited("rows.read")
        def rows() -> Generator[int]:
            try:
                yield 1
            finally:
                closed.append(True)

        break_trail(audit_capture)
        with pytest.raises(AuditWriteError):
            next(rows())
        assert closed == [True]

    def test_no_item_of_an_async_stream_leaves(self, audit_capture: Capture) -> None:
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

        break_trail(audit_capture)
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
