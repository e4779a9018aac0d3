"""The standard library's logging taken up into our lines, and given back as it was."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from tests.log_streams import NEEDLE, BrokenStream, Stream, last, lines, make

from healthobs.logs import Logs


@pytest.fixture
def stream() -> Stream:
    """Where the lines go."""
    return Stream()


@pytest.fixture
def logs(stream: Stream) -> Logs:
    """Logs of the service `demo` at level info."""
    return make(stream)


@pytest.fixture
def captured(logs: Logs) -> Iterator[Logs]:
    """The standard library's root logger, captured."""
    logs.capture_stdlib()
    yield logs
    logs.release_stdlib()


@pytest.mark.usefixtures("captured")
class TestCaptureStdlib:
    """`Logs.capture_stdlib`: other libraries' messages in the same lines."""

    def test_a_message_becomes_a_line(self, stream: Stream) -> None:
        """Numbers and harmless text are put into the message."""
        logging.getLogger("lib.part").warning("took %d ms for %s", 12, "step")
        line = last(stream)
        assert (line["level"], line["logger"], line["event"]) == (
            "warning",
            "lib.part",
            "took 12 ms for step",
        )

    @pytest.mark.parametrize(
        ("message", "arguments", "event"),
        [
            ("seen %s", (NEEDLE,), "seen [PHI:ssn]"),
            ("seen %s", (b"x",), "seen [PHI:type]"),
            ("seen %s", (ValueError(NEEDLE),), "seen [PHI:type]"),
            ("seen %(ssn)s", ({"ssn": "1"},), "seen [PHI:key]"),
            ("seen %d", (780511209,), "seen %d"),
            (f"seen {NEEDLE}", (), "seen [PHI:ssn]"),
            ("100%", (), "100%"),
            (ValueError(NEEDLE), (), "[PHI:type]"),
        ],
    )
    def test_arguments_are_redacted_before_they_are_put_in(
        self, stream: Stream, message: Any, arguments: tuple[object, ...], event: str
    ) -> None:
        """An object is never rendered; where a mark does not fit the template stays."""
        logging.getLogger("lib").error(message, *arguments)
        assert last(stream)["event"] == event

    def test_asyncio_quotes_no_exception(self, stream: Stream) -> None:
        """What a task raised that nobody waited for is told by its type."""

        async def leave(who: str = "Ottoline") -> None:
            async def failing() -> None:
                raise ValueError(f"no chart of {who}")

            task = asyncio.create_task(failing())
            await asyncio.sleep(0)
            del task
            gc.collect()

        asyncio.run(leave())
        line = last(stream)
        assert line["event"].startswith("Task exception was never retrieved")
        assert line["exception_type"] == "ValueError"
        assert "Ottoline" not in stream.getvalue()

    def test_asyncio_quotes_no_argument(self, stream: Stream) -> None:
        """A callback that raised is told by its name, without its arguments; a task without the name it was given."""

        def discharge(who: str) -> None:
            raise ValueError(who)

        async def wait() -> None:
            await asyncio.Event().wait()

        loop = asyncio.new_event_loop()
        loop.call_soon(discharge, "Ottoline")
        task = loop.create_task(wait(), name="visit of Ottoline")
        loop.call_soon(loop.stop)
        loop.run_forever()
        loop.close()
        del task
        gc.collect()
        events = [line["event"] for line in lines(stream)]
        assert events[0].startswith("Exception in callback")
        assert events[0].endswith("discharge")
        assert events[1] == "Task was destroyed but it is pending!"
        assert "Ottoline" not in stream.getvalue()

    def test_a_wrong_template_is_written_as_it_is(self, stream: Stream) -> None:
        """A mistake in a library's logging call does not cost the line."""
        (handler,) = (one for one in logging.getLogger().handlers if "healthobs" in type(one).__module__)
        handler.handle(
            logging.makeLogRecord({"name": "lib", "levelno": 40, "msg": "seen %s %s", "args": (1,)})
        )
        assert last(stream)["event"] == "seen %s %s"

    def test_exceptions_give_their_facts(self, stream: Stream) -> None:
        """No traceback text."""
        try:
            int(NEEDLE)
        except ValueError:
            logging.getLogger("lib").exception("failed")
        assert last(stream)["exception_type"] == "ValueError"
        assert NEEDLE not in stream.getvalue()

    @pytest.mark.parametrize(
        ("number", "level"), [(5, None), (20, "info"), (25, "info"), (45, "error"), (60, "critical")]
    )
    def test_levels_in_between_count_as_the_one_below(
        self, stream: Stream, number: int, level: str | None
    ) -> None:
        """The vocabulary of `level` is closed."""
        logging.getLogger("lib").log(number, "x")
        assert [line["level"] for line in lines(stream)] == ([] if level is None else [level])

    @pytest.mark.parametrize(
        ("name", "level", "count"),
        [
            ("urllib3.connectionpool", logging.INFO, 0),
            ("urllib3.connectionpool", logging.WARNING, 1),
            ("werkzeug", logging.INFO, 0),
            ("gunicorn.access", logging.INFO, 0),
            ("gunicorn.error", logging.INFO, 1),
        ],
    )
    def test_loggers_that_write_raw_paths_are_left_out(
        self, stream: Stream, name: str, level: int, count: int
    ) -> None:
        """Access logs and connection pools quote path and query."""
        logging.getLogger(name).log(level, "GET /patients/john")
        assert len(lines(stream)) == count

    def test_warnings_are_taken_up(self, stream: Stream) -> None:
        """A Python warning is a line too."""
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn(f"odd {NEEDLE}", UserWarning, stacklevel=1)
        assert last(stream)["logger"] == "py.warnings"
        assert "UserWarning: odd [PHI:ssn]" in last(stream)["event"]


class TestReleaseStdlib:
    """`Logs.release_stdlib`: everything is as it was."""

    def test_gives_back_handlers_level_and_warnings(
        self, logs: Logs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Byte for byte: the same objects in the same order."""
        root, warner = logging.getLogger(), logging.getLogger("py.warnings")

        def state() -> tuple[object, ...]:
            return root.handlers[:], root.level, warner.handlers[:], warnings.showwarning, root.filters[:]

        # A state that no other test can have left behind.
        monkeypatch.setattr(root, "level", 37)
        monkeypatch.setattr(warner, "handlers", [])
        before = state()
        logs.capture_stdlib()
        during = state()
        logs.capture_stdlib()
        assert state() == during != before
        # The standard library gives the logger of warnings a handler at the first warning it shows.
        warnings.showwarning("odd", UserWarning, "file", 1)
        assert len(warner.handlers) == 1
        logs.release_stdlib()
        logs.release_stdlib()
        assert state() == before

    def test_warnings_captured_by_somebody_else_stay_captured(self, logs: Logs) -> None:
        """Only what was taken is given back."""
        logging.captureWarnings(True)
        try:
            taken = warnings.showwarning
            logs.capture_stdlib()
            logs.release_stdlib()
            assert warnings.showwarning is taken
        finally:
            logging.captureWarnings(False)

    def test_a_failing_stream_does_not_reach_the_logging_caller(self) -> None:
        """The standard library's `raiseExceptions` prints nothing either."""
        logs = make(BrokenStream())
        logs.capture_stdlib()
        try:
            logging.getLogger("lib").error("x")
        finally:
            logs.release_stdlib()
        assert logs.failures == 1
