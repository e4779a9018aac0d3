"""Logs: one redacted JSON object per line, whatever is logged and however the stream behaves."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext
from tests.log_streams import NEEDLE, BrokenStream, Stream, failing, last, lines, make

from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.logs import Logs
from healthobs.redaction import Phi, Redactor

IDS = {"trace_id": f"{10:032x}", "span_id": f"{11:016x}"}


@pytest.fixture
def stream() -> Stream:
    """Where the lines go."""
    return Stream()


@pytest.fixture
def logs(stream: Stream) -> Logs:
    """Logs of the service `demo` at level info."""
    return make(stream)


@pytest.fixture
def span() -> Iterator[None]:
    """A current span with ids 10 and 11."""
    with trace.use_span(NonRecordingSpan(SpanContext(10, 11, False))):
        yield


class TestEmit:
    """`Logs.emit`: level, event, fields."""

    def test_a_line_holds_the_fixed_keys_and_the_fields(self, logs: Logs, stream: Stream) -> None:
        """Time in UTC with microseconds, ids empty outside of a span, numbers as numbers."""
        logs.emit(
            "info", "payment_declined", {"count": 3, "ratio": 0.5, "ok": True, "none": None, "steps": ["a"]}
        )
        assert lines(stream) == [
            {
                "timestamp": "2025-11-23T10:30:00.123456Z",
                "level": "info",
                "event": "payment_declined",
                "service": "demo",
                "trace_id": "",
                "span_id": "",
                "count": 3,
                "ratio": 0.5,
                "ok": True,
                "none": None,
                "steps": ["a"],
            }
        ]

    @pytest.mark.usefixtures("span")
    def test_a_line_carries_the_ids_of_the_current_span(self, logs: Logs, stream: Stream) -> None:
        """Hexadecimal, padded to 32 and 16."""
        logs.emit("info", "x")
        assert last(stream).items() >= IDS.items()

    def test_one_line_is_one_write(self, logs: Logs, stream: Stream) -> None:
        """Threads and processes that share the stream cannot split it."""
        logs.emit("info", "x\ny", {"text": "a\r\nb\u2028c\u2029d\x85e"})
        assert len(stream.writes) == 1
        assert len(stream.writes[0].splitlines()) == 1
        assert last(stream)["text"] == "a\r\nb\u2028c\u2029d\x85e"

    def test_fields_never_overwrite_the_fixed_keys(self, logs: Logs, stream: Stream) -> None:
        """A user's field of the same name is kept under a prefix."""
        logs.emit(
            "info", "x", {"timestamp": 1, "level": "l", "field_level": "m", "trace_id": "t", "service": "s"}
        )
        line = last(stream)
        assert (line["level"], line["trace_id"], line["service"]) == ("info", "", "demo")
        prefixed = {key: value for key, value in line.items() if key.startswith("field_")}
        assert prefixed == {
            "field_timestamp": 1,
            "field_level": "l",
            "field_field_level": "m",
            "field_trace_id": "t",
            "field_service": "s",
        }

    def test_fields_and_events_are_redacted(self, logs: Logs, stream: Stream) -> None:
        """Keys, values, nested values, objects and the event itself."""
        logs.emit(
            "info",
            f"seen {NEEDLE}",
            {
                "patient_name": "J",
                "step": f"x {NEEDLE}",
                NEEDLE: 1,
                "b": NEEDLE.encode(),
                "p": Phi("J", "name"),
            },
        )
        line = last(stream)
        assert NEEDLE not in stream.getvalue()
        assert (line["event"], line["patient_name"], line["p"]) == (
            "seen [PHI:ssn]",
            "[PHI:key]",
            "[PHI:name]",
        )

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(float("nan"), "NaN"), (float("inf"), "Infinity"), (float("-inf"), "-Infinity")],
    )
    def test_numbers_that_json_has_not_become_text(
        self, logs: Logs, stream: Stream, value: float, expected: str
    ) -> None:
        """RFC 8259 §6 has neither NaN nor infinity."""
        logs.emit("info", "x", {"a": value, "b": [value]})
        assert (last(stream)["a"], last(stream)["b"]) == (expected, [expected])

    @pytest.mark.parametrize(
        ("lowest", "written"),
        [
            ("debug", ["debug", "info", "warning", "error", "critical"]),
            ("warning", ["warning", "error", "critical"]),
            ("critical", ["critical"]),
        ],
    )
    def test_levels_below_the_lowest_are_not_written(
        self, lowest: str, written: list[str], stream: Stream
    ) -> None:
        """The level filters before anything is made."""
        logs = make(stream, log_level=lowest)
        for level in ("debug", "info", "warning", "error", "critical"):
            logs.emit(level, "x")
        assert [line["level"] for line in lines(stream)] == written

    @pytest.mark.parametrize(
        ("given_level", "level"),
        [("warn", "warning"), ("exception", "error"), ("fatal", "critical"), ("odd", "info")],
    )
    def test_other_names_of_levels_are_understood(
        self, logs: Logs, stream: Stream, given_level: str, level: str
    ) -> None:
        """The vocabulary of `level` is closed."""
        logs.emit(given_level, "x")
        assert last(stream)["level"] == level

    def test_disabled_writes_nothing(self, stream: Stream) -> None:
        """One setting switches telemetry off."""
        logs = make(stream, disabled=True)
        logs.emit("critical", "x")
        logs.access({})
        logs.get_logger().critical("x")
        logs.capture_stdlib()
        assert (stream.writes, logs._capture) == ([], None)

    def test_the_default_stream_is_looked_up_when_writing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A redirected `sys.stdout` gets the line."""
        logs = make(None)
        redirected = io.StringIO()
        monkeypatch.setattr(sys, "stdout", redirected)
        logs.emit("info", "x")
        assert last(redirected)["event"] == "x"

    def test_seconds_and_microseconds_follow_the_clock(self, stream: Stream) -> None:
        """The part of the timestamp that is kept from line to line never goes stale."""
        times = iter([999_999_999, 1_000_000_000, 60_000_000_000, 1_999])
        logs = Logs(Settings(), Redactor(), Clock(wall_ns=lambda: next(times)), stream)
        for _ in range(4):
            logs.emit("info", "x")
        assert [line["timestamp"][17:] for line in lines(stream)] == [
            "00.999999Z",
            "01.000000Z",
            "00.000000Z",
            "00.000001Z",
        ]

    @given(
        st.text(),
        st.dictionaries(st.text(), st.one_of(st.text(), st.floats(), st.integers(), st.binary()), max_size=5),
    )
    def test_any_input_is_one_json_line(self, event: str, fields: dict[str, object]) -> None:
        """Whatever is logged, a reader gets one object per line with the fixed keys first."""
        stream = io.StringIO()
        logs = make(stream)
        logs.emit("info", event, fields)
        text = stream.getvalue()
        assert (text.count("\n"), len(text.splitlines()), logs.failures) == (1, 1, 0)
        line = json.loads(text)
        assert list(line)[:6] == ["timestamp", "level", "event", "service", "trace_id", "span_id"]


class TestExceptions:
    """`exc_info`: type, places, fingerprint and id instead of text."""

    @pytest.mark.parametrize(
        "form", [lambda exc: exc, lambda exc: (type(exc), exc, exc.__traceback__), lambda _exc: True]
    )
    def test_every_form_of_exc_info_gives_the_facts(
        self, logs: Logs, stream: Stream, form: Callable[[BaseException], object]
    ) -> None:
        """An exception, a tuple, or True for the one being handled."""
        try:
            failing(NEEDLE)
        except ExceptionGroup as exc:
            logs.emit("error", "failed", {"exc_info": form(exc), "stack_info": NEEDLE})
        line = last(stream)
        assert NEEDLE not in stream.getvalue()
        assert (line["exception_type"], line["exception_causes"]) == ("ExceptionGroup", ["ValueError"])
        assert re.fullmatch(rf"{failing.__module__}:failing:\d+", line["exception_frames"][-1])
        assert re.fullmatch("[0-9a-f]{16}", line["exception_fingerprint"])
        assert "exception_message" not in line
        assert "stack_info" not in line

    def test_a_literal_message_is_told(self, logs: Logs, stream: Stream) -> None:
        """What the code holds is no data; it is scanned all the same."""
        try:
            raise RuntimeError("card expired, unlike 078-05-1120")
        except RuntimeError as exc:
            logs.emit("error", "failed", {"exc_info": exc, "error_id": "mine"})
        line = last(stream)
        assert line["exception_message"] == "card expired, unlike [PHI:ssn]"
        assert line["field_error_id"] == "mine"

    @pytest.mark.parametrize("nothing", [None, False, (), (None, None, None), True])
    def test_no_exception_adds_nothing(self, logs: Logs, stream: Stream, nothing: object) -> None:
        """`exc_info=True` outside of a handler is no exception."""
        logs.emit("error", "failed", {"exc_info": nothing})
        assert set(last(stream)) == {"timestamp", "level", "event", "service", "trace_id", "span_id"}

    def test_facts_given_as_fields_are_kept(self, logs: Logs, stream: Stream) -> None:
        """A caller that described the exception itself passes the facts on."""
        logs.emit("error", "failed", {"error_id": "e" * 32, "exception_type": "ValueError"})
        assert (last(stream)["error_id"], last(stream)["exception_type"]) == ("e" * 32, "ValueError")


class TestAccess:
    """`Logs.access`: the line of one exchange."""

    @pytest.mark.usefixtures("span")
    def test_writes_the_fields_as_they_are(self, logs: Logs, stream: Stream) -> None:
        """Its values come from the exchange, so they are not scanned."""
        logs.access({"method": "GET", "route": "/x", "status": 200, "duration_seconds": 0.25})
        assert last(stream) == {
            "timestamp": "2025-11-23T10:30:00.123456Z",
            "level": "info",
            "event": "http_request",
            "service": "demo",
            **IDS,
            "method": "GET",
            "route": "/x",
            "status": 200,
            "duration_seconds": 0.25,
        }

    @pytest.mark.usefixtures("span")
    def test_ids_of_the_exchange_win(self, logs: Logs, stream: Stream) -> None:
        """Its span has ended when the line is written."""
        logs.access({"trace_id": "t", "span_id": "s"})
        assert (last(stream)["trace_id"], last(stream)["span_id"]) == ("t", "s")

    def test_an_object_among_them_is_a_mark(self, logs: Logs, stream: Stream) -> None:
        """What JSON does not know is not rendered."""
        logs.access({"method": ValueError(NEEDLE)})
        assert last(stream)["method"] == "[PHI:type]"

    def test_values_that_json_has_not_do_not_lose_the_line(self, logs: Logs, stream: Stream) -> None:
        """NaN becomes text and an object a mark."""
        logs.access({"status": float("nan"), "method": object()})
        assert (last(stream)["status"], last(stream)["method"]) == ("NaN", "[PHI:type]")

    def test_is_filtered_by_level(self, stream: Stream) -> None:
        """The access line is of level info."""
        make(stream, log_level="warning").access({"status": 200})
        make(stream, log_level="warning").access({"status": 499})
        assert stream.writes == []

    @pytest.mark.parametrize("log_level", ["info", "error"])
    def test_a_failure_of_the_server_is_an_error(self, stream: Stream, log_level: str) -> None:
        """The access line of a 5xx is of level error, and is there where only errors are written."""
        make(stream, log_level=log_level).access({"status": 503})
        assert (last(stream)["level"], last(stream)["status"]) == ("error", 503)


def exit_code(child: int) -> int:
    """Wait for `child`, but kill it when it hangs: a deadlocked child would outlive the test."""
    for _ in range(1200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


class TestBrokenStreams:
    """A fault of the stream is counted, never raised."""

    def test_a_broken_pipe_is_counted(self) -> None:
        """The caller never notices that nobody reads its logs."""
        told: list[str] = []
        logs = make(BrokenStream(), on_error=told.append)
        logs.emit("info", "x")
        logs.access({})
        logs.get_logger().info("x")
        assert (logs.failures, told) == (3, ["logs"] * 3)

    def test_a_closed_stream_is_counted(self, stream: Stream, logs: Logs) -> None:
        """As after the end of a captured test."""
        stream.close()
        logs.emit("info", "x")
        assert logs.failures == 1

    def test_a_broken_counter_reaches_nobody(self) -> None:
        """There is nowhere left to tell."""

        def broken(_component: str) -> None:
            raise RuntimeError

        logs = make(BrokenStream(), on_error=broken)
        logs.emit("info", "x")
        assert logs.failures == 1

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    @pytest.mark.parametrize("text", ["na\u00efve \u2192", "\ud800"])
    def test_what_the_stream_cannot_encode_is_escaped(self, encoding: str, text: str) -> None:
        """A container with LANG=C, or half a surrogate pair, does not cost the line."""
        raw = io.BytesIO()
        with io.TextIOWrapper(raw, encoding=encoding) as stream:
            logs = make(stream)
            logs.emit("info", "x", {"step": text})
            (line,) = raw.getvalue().decode(encoding).splitlines()
        assert json.loads(line)["step"] == text
        assert logs.failures == 0

    def test_threads_do_not_mix_lines(self, tmp_path: Path) -> None:
        """Every line of every thread is whole."""
        path = tmp_path / "log"
        with path.open("w", encoding="utf-8") as stream:
            logs = make(stream)
            work = [
                threading.Thread(
                    target=lambda: [logs.emit("info", "x", {"step": "y" * 5000}) for _ in range(50)]
                )
                for _ in range(8)
            ]
            for thread in work:
                thread.start()
            for thread in work:
                thread.join()
        found = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(found) == 400

    def test_a_fork_neither_repeats_nor_blocks(self, tmp_path: Path) -> None:
        """A child forked while other threads write logs at once, and repeats nothing of its parent."""
        path = tmp_path / "log"
        with path.open("a", encoding="utf-8") as stream:
            logs = make(stream)
            stop = threading.Event()
            number = iter(range(10**6))

            def write() -> None:
                while not stop.is_set():
                    logs.emit("info", "parent", {"count": next(number)})

            thread = threading.Thread(target=write)
            thread.start()
            try:
                children = []
                for _ in range(5):
                    child = os.fork()
                    if not child:
                        logs.emit("info", "child")
                        os._exit(0)
                    children.append(child)
                codes = [exit_code(child) for child in children]
            finally:
                stop.set()
                thread.join()
        found = [json.loads(line) for line in path.read_text().splitlines()]
        counts = [line["count"] for line in found if line["event"] == "parent"]
        assert codes == [0] * 5
        assert sum(line["event"] == "child" for line in found) == 5
        assert len(counts) == len(set(counts))

    def test_dropped_logs_are_freed(self) -> None:
        """The fork hooks do not keep them; a fork afterwards does not mind."""
        logs = make(io.StringIO())
        del logs
        gc.collect()
        child = os.fork()
        if not child:
            os._exit(0)
        assert exit_code(child) == 0


class TestGetLogger:
    """`Logs.get_logger`: structlog, same lines."""

    @pytest.mark.usefixtures("span")
    def test_writes_the_same_line(self, logs: Logs, stream: Stream) -> None:
        """A structlog call and `emit` cannot be told apart."""
        logs.emit("warning", "x", {"count": 1, "patient_name": "J"})
        logs.get_logger().warning("x", count=1, patient_name="J")
        first, second = lines(stream)
        assert first == second

    def test_names_itself_and_binds(self, logs: Logs, stream: Stream) -> None:
        """Bound fields go into every line."""
        log = logs.get_logger("billing").bind(step="a")
        log.info("x", count=1)
        assert last(stream).items() >= {"logger": "billing", "step": "a", "count": 1}.items()

    def test_filters_by_level(self, logs: Logs, stream: Stream) -> None:
        """Below the lowest level nothing is even assembled."""
        log = logs.get_logger()
        log.debug("x")
        log.info("y")
        assert [line["event"] for line in lines(stream)] == ["y"]

    def test_exception_takes_the_one_being_handled(self, logs: Logs, stream: Stream) -> None:
        """`log.exception` in a handler."""
        try:
            int(NEEDLE)
        except ValueError:
            logs.get_logger().exception("failed")
        assert (last(stream)["level"], last(stream)["exception_type"]) == ("error", "ValueError")
        assert NEEDLE not in stream.getvalue()

    def test_context_variables_are_merged(self, logs: Logs, stream: Stream) -> None:
        """What structlog users bind to the context shows up, redacted."""
        with structlog.contextvars.bound_contextvars(step=f"x {NEEDLE}"):
            logs.get_logger().info("x")
        assert last(stream)["step"] == "x [PHI:ssn]"

    def test_an_event_that_is_no_text_is_masked(self, logs: Logs, stream: Stream) -> None:
        """An object as event is not rendered."""
        event: Any = ValueError(NEEDLE)
        logs.get_logger().info(event)
        assert last(stream)["event"] == "[PHI:type]"

    def test_structlog_itself_is_not_configured(self, logs: Logs) -> None:
        """Other users of structlog in the process keep their set-up."""
        before = structlog.get_config()
        logs.get_logger("x").info("y")
        assert structlog.is_configured() is False
        assert structlog.get_config() == before
