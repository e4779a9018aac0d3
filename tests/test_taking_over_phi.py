"""A service that declares PHI: whatever writes log lines in its process is redacted too, in its own format."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import flask
import pytest
import structlog
from flask.logging import default_handler
from tests.set_ups import PHI
from uvicorn.logging import AccessFormatter

from healthobs import Observability, Settings
from healthobs.flask import init_app, remove_app
from healthobs.logs import LogMode

NAME = "Ottoline Morrell"


@contextmanager
def bare() -> Generator[io.StringIO]:
    """Take all handlers off the root logger (pytest's come for each call), and let the one of last resort write here."""
    stream, logger = io.StringIO(), logging.getLogger()
    handlers, last = logger.handlers[:], logging.lastResort
    logger.handlers[:], logging.lastResort = [], logging.StreamHandler(stream)
    try:
        yield stream
    finally:
        logger.handlers[:], logging.lastResort = handlers, last


class TestStrict:
    """A service that declares PHI: what is not written in the code does not leave."""

    def test_messages_of_the_standard_library(self, root: io.StringIO) -> None:
        """However the caller formatted it, before or through arguments, no name passes; templates do."""
        obs = Observability(PHI, logs="processor")
        log = logging.getLogger("app")
        log.info(f"patient {NAME} admitted")  # noqa: G004
        log.info("patient %s admitted" % NAME)  # noqa: G002, UP031
        log.info("patient {} admitted".format(NAME))  # noqa: G001, UP032
        log.info("patient " + NAME)  # noqa: G003
        log.info(NAME)
        log.info({"event": f"{NAME} admitted"})
        log.info("patient %s admitted, %d beds left", NAME, 3)
        logging.LoggerAdapter(log, {}).info("patient admitted")
        obs.logs.emit("info", "ours")
        obs.close()
        assert root.getvalue().splitlines() == [
            *["INFO|app|[PHI:strict]"] * 5,
            "INFO|app|{'event': '[PHI:strict]'}",
            "INFO|app|patient [PHI:strict] admitted, 3 beds left",
            "INFO|app|patient admitted",
            "INFO|healthobs|ours",
        ]

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    def test_classes_that_speak_for_themselves(self, root: io.StringIO, redaction: Any) -> None:
        """A message or number of a class of the application's own is written as the text or number that it is."""

        class Text(str):
            __slots__ = ()

            def __str__(self) -> str:
                return NAME

        class Number(float):
            def __str__(self) -> str:
                return NAME

            __repr__ = __str__

        obs = Observability(replace(PHI, redaction=redaction), logs="processor")
        logging.getLogger("app").info(Text("patient admitted"))
        logging.getLogger("app").info("after %s", Number(1.5))
        logging.getLogger("asyncio").info("after %s seconds", Number(1.5))
        obs.close()
        assert root.getvalue().splitlines() == [
            "INFO|app|patient admitted",
            "INFO|app|after 1.5",
            "INFO|asyncio|after [PHI:value] seconds",
        ]

    def test_a_template_that_comes_through_helpers(self, root: io.StringIO) -> None:
        """An adapter and helpers of the application's own do not hide that a message is written in the code."""
        adapter = logging.LoggerAdapter(logging.getLogger("app"), {})

        def helper(depth: int, message: str) -> None:
            helper(depth - 1, message) if depth else adapter.info(message)

        obs = Observability(PHI, logs="processor")
        helper(3, "bed assigned")
        helper(3, NAME)
        obs.close()
        assert root.getvalue() == "INFO|app|bed assigned\nINFO|app|[PHI:strict]\n"

    @pytest.mark.parametrize("wrapper", [None, structlog.stdlib.BoundLogger])
    def test_events_of_structlog(self, wrapper: Any) -> None:
        """An event that was formatted is replaced; one that structlog formats later keeps its template."""
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.EventRenamer("message"),
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
            wrapper_class=wrapper or structlog.make_filtering_bound_logger(0),
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        try:
            obs = Observability(PHI, logs="processor")
            log = structlog.get_logger()
            log.info(f"{NAME} admitted")  # noqa: G004
            log.info("hello %s", NAME)
            log.info("patient admitted", beds=3)
            obs.close()
        finally:
            structlog.reset_defaults()
        made, formatted, written = (json.loads(line) for line in stream.getvalue().splitlines())
        assert made["message"] == "[PHI:strict]"
        assert formatted["message"] == ("hello [PHI:strict]" if wrapper else "[PHI:strict]")
        assert (written["message"], written["beds"]) == ("patient admitted", 3)

    @pytest.mark.parametrize("through", ["text", "formatter", "kwargs"])
    def test_structlog_through_the_standard_library(self, root: io.StringIO, through: str) -> None:
        """What structlog rendered is not judged a second time, in whichever form it goes on."""
        last: Any = {
            "text": structlog.processors.KeyValueRenderer(key_order=["event"]),
            "formatter": structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
            "kwargs": structlog.stdlib.render_to_log_kwargs,
        }[through]
        if through == "formatter":
            logging.getLogger().handlers[0].setFormatter(
                structlog.stdlib.ProcessorFormatter(processor=structlog.processors.KeyValueRenderer())
            )
        structlog.configure(
            processors=[last],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=structlog.stdlib.LoggerFactory(),
        )
        try:
            obs = Observability(PHI, logs="processor")
            structlog.get_logger().info("patient admitted", beds=3)
            structlog.get_logger().info(f"{NAME} admitted")
            obs.close()
        finally:
            structlog.reset_defaults()
        written, made = root.getvalue().splitlines()
        assert "patient admitted" in written
        assert "[PHI:strict]" in made
        assert "Ottoline" not in made

    def test_messages_of_exceptions(self, root: io.StringIO) -> None:
        """One that is a literal of the code is told; a field of the caller's by that name is none."""
        logging.getLogger().handlers[0].setFormatter(
            logging.Formatter("%(message)s|%(exception_message)s", defaults={"exception_message": ""})
        )
        obs = Observability(PHI, logs="processor")
        try:
            raise RuntimeError("no such bed")
        except RuntimeError as exc:
            obs.logs.emit("error", "failed", {"exc_info": exc})
        logging.getLogger("app").error("failed", extra={"exception_message": NAME})
        obs.close()
        assert root.getvalue().splitlines() == ["failed|no such bed", "failed|[PHI:key]"]

    def test_structlog_that_nobody_configured(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Its default prints, and is covered as well."""
        obs = Observability(PHI, logs="processor")
        structlog.get_logger().info("found", patient_name=NAME)
        obs.close()
        told = capsys.readouterr().out
        assert "found" in told
        assert "[PHI:key]" in told
        assert "Ottoline" not in told


class TestPlaces:
    """What a record says of where it was made."""

    FORMAT = "%(levelname)s|%(pathname)s|%(filename)s|%(module)s|%(funcName)s|%(threadName)s"

    @pytest.fixture
    def told(self, root: io.StringIO) -> Iterator[Callable[[], list[str]]]:
        """Return what reads the lines of a service that declares PHI."""
        logging.getLogger().handlers[0].setFormatter(logging.Formatter(self.FORMAT))
        obs = Observability(PHI, logs="processor")
        yield lambda: root.getvalue().splitlines()
        obs.close()

    def test_levels(self, told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that were named before, and those that have a number only; not one that was made of data."""
        monkeypatch.setattr(logging, "_levelToName", dict(logging._levelToName))
        monkeypatch.setattr(logging, "_nameToLevel", dict(logging._nameToLevel))
        logging.addLevelName(35, NAME)
        log = logging.getLogger("app")
        for number in (30, 35, 37, 40):
            log.log(number, "seen")
        assert [line.split("|")[0] for line in told()] == ["WARNING", "[PHI:strict]", "Level 37", "ERROR"]

    def test_a_level_of_the_set_up(self, root: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
        """It was named before redaction began."""
        monkeypatch.setattr(logging, "_levelToName", dict(logging._levelToName))
        monkeypatch.setattr(logging, "_nameToLevel", dict(logging._nameToLevel))
        logging.addLevelName(35, "".join(("NOT", "ICE")))
        obs = Observability(PHI, logs="processor")
        logging.getLogger("app").log(35, "seen")
        obs.close()
        assert root.getvalue() == "NOTICE|app|seen\n"

    def test_the_place(self, told: Callable[[], list[str]]) -> None:
        """It is the code's where a function that is running has it, and masked in a record that was made by hand."""
        log = logging.getLogger("app")
        log.warning("seen")
        made = {
            "name": "app",
            "msg": "seen",
            "levelno": 30,
            "levelname": "WARNING",
            "threadName": "MainThread",
        }
        for wrong in (
            {"funcName": NAME},
            {"pathname": NAME, "filename": NAME, "module": NAME},
            {"pathname": __file__, "filename": NAME, "module": "x", "funcName": "test_the_place"},
            {"stack_info": NAME},
        ):
            log.handle(logging.makeLogRecord({**made, **wrong}))
        file, name = Path(__file__), "test_the_place"
        assert told()[0] == f"WARNING|{file}|{file.name}|{file.stem}|{name}|MainThread"
        assert told()[1].startswith("WARNING||||[PHI:strict]|")
        assert told()[2].startswith("WARNING|[PHI:strict]|[PHI:strict]|[PHI:strict]|None|")
        assert NAME not in str(told())

    def test_the_place_in_mask(self, root: io.StringIO) -> None:
        """That of a record that was made by hand is scanned, its level and stack too."""
        logging.getLogger().handlers[0].setFormatter(logging.Formatter(self.FORMAT))
        obs = Observability(Settings(), logs="processor")
        keys = ("levelname", "pathname", "filename", "module", "funcName", "stack_info")
        made = dict.fromkeys(keys, f"{NAME} 078-05-1120")
        logging.getLogger("app").handle(logging.makeLogRecord({"name": "app", "levelno": 30, **made}))
        logging.getLogger("app").warning("seen", stack_info=True)
        obs.close()
        first, second, third, *stack = root.getvalue().splitlines()
        assert first.split("|")[:5] == [f"{NAME} [PHI:ssn]"] * 5
        assert second == f"{NAME} [PHI:ssn]"
        assert third.startswith(f"WARNING|{__file__}|")
        assert 'logging.getLogger("app").warning("seen", stack_info=True)' in "\n".join(stack)

    @pytest.mark.parametrize("redaction", ["watch", "mask", "strict"])
    def test_numbers(self, root: io.StringIO, redaction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is no number under the name of one becomes zero, so that formats of numbers take it."""
        monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[:1])
        logging.getLogger().handlers[0].setFormatter(logging.Formatter("%(process)s %(thread)s %(lineno)s"))
        obs = Observability(Settings(redaction=redaction), logs="processor")
        for number in (NAME, 7, None):
            made = dict.fromkeys(("process", "thread", "lineno"), number)
            logging.getLogger("app").handle(logging.makeLogRecord({"name": "app", "levelno": 30, **made}))
        obs.close()
        told = [NAME if redaction == "watch" else 0, 7, None]
        assert root.getvalue().splitlines() == [f"{one} {one} {one}" for one in told]

    def test_where_no_caller_is_found(self, told: Callable[[], list[str]]) -> None:
        """What `logging` says then is nobody's."""
        record = logging.LogRecord("app", 30, "(unknown file)", 0, "seen", (), None, "(unknown function)")
        logging.getLogger("app").handle(record)
        assert told()[0].split("|")[1:5] == ["(unknown file)"] * 3 + ["(unknown function)"]

    def test_threads(self, told: Callable[[], list[str]]) -> None:
        """A thread of Python's name keeps the function that it runs, when it is one."""

        def visit() -> None:
            logging.getLogger("app").warning("seen")

        for name in (None, f"Thread-1 ({NAME.split()[0]})", "Thread-7", NAME):
            thread = threading.Thread(target=visit, name=name)
            thread.start()
            thread.join()
        names = [line.rpartition("|")[2] for line in told()]
        assert re.fullmatch(r"Thread-\d+ \(visit\)", names[0])
        assert names[1:] == ["Thread-1 ([PHI:strict])", "Thread-7", "[PHI:strict]"]


def test_a_logger_that_nobody_seems_to_hold(root: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for with its first records, and costs the later ones nothing."""
    looked: list[object] = []
    monkeypatch.setattr("healthobs.logs.names._is_held", looked.append)
    obs = Observability(PHI, logs="processor")
    log = logging.getLogger(f"ledger of {NAME}")
    for _ in range(100):
        log.warning("seen")
    obs.close()
    assert root.getvalue().splitlines() == ["WARNING|[PHI:strict]|seen"] * 100
    assert len(looked) == 64


class TestEveryHandler:
    """Handlers that are there, that come later, and that write when there is none."""

    def test_one_that_is_added_later(self, root: io.StringIO) -> None:
        """It is covered with the first record, and given back."""
        stream, log = io.StringIO(), logging.getLogger("healthobs.test.late")
        original = logging.Logger.callHandlers
        obs = Observability(PHI, logs="processor")
        handler = logging.StreamHandler(stream)
        log.addHandler(handler)
        log.propagate = False
        try:
            log.warning(f"{NAME} admitted")  # noqa: G004
            obs.close()
            assert (handler.filters, logging.Logger.callHandlers) == ([], original)
            log.warning(NAME)
        finally:
            log.removeHandler(handler)
            log.propagate = True
        assert (stream.getvalue(), root.getvalue()) == (f"[PHI:strict]\n{NAME}\n", "")

    def test_the_one_of_last_resort(self) -> None:
        """Without any handler the standard library writes to standard error."""
        with bare() as stream:
            obs = Observability(PHI, logs="processor")
            logging.getLogger("app").warning(f"{NAME} admitted")  # noqa: G004
            obs.close()
            logging.getLogger("app").warning(NAME)
        assert stream.getvalue() == f"[PHI:strict]\n{NAME}\n"

    def test_two_at_a_time(self) -> None:
        """Closed in any order, the second covers until it is closed too."""
        original = logging.Logger.callHandlers
        with bare() as stream:
            one, two = Observability(PHI, logs="processor"), Observability(PHI, logs="processor")
            one.close()
            logging.getLogger("app").warning(NAME)
            two.close()
        assert (stream.getvalue(), logging.Logger.callHandlers) == ("[PHI:strict]\n", original)

    @pytest.mark.parametrize("mode", ["own", "processor"])
    def test_a_flask_application_without_any_set_up(
        self, mode: LogMode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Flask adds its handler with the first line, and quotes path and exception."""
        app, stream = flask.Flask("healthobs_test_ward"), io.StringIO()
        monkeypatch.setattr(default_handler, "stream", stream)
        with bare() as last:
            obs = Observability(PHI, logs=mode, log_stream=io.StringIO())
            init_app(app, obs)

            @app.get("/patients/<name>/boom")
            def boom(name: str) -> str:
                app.logger.warning(f"{name} admitted")  # noqa: G004
                raise LookupError(name)

            try:
                assert app.test_client().get("/patients/Ottoline/boom").status_code == 500
                remove_app(app)
                obs.close()
                assert default_handler.filters == []
            finally:
                app.logger.removeHandler(default_handler)
        written = stream.getvalue() + last.getvalue()
        assert "Ottoline" not in written
        assert "Exception on /patients/<name>/boom [GET]" in written
        assert "LookupError: error_id=" in written

    def test_nothing_is_taken_where_no_phi_is_declared(self, root: io.StringIO) -> None:
        """Lines of its own leave all others alone."""
        obs = Observability(Settings(redaction="strict"), log_stream=io.StringIO())
        logging.getLogger("app").info(NAME)
        obs.close()
        assert root.getvalue() == f"INFO|app|{NAME}\n"

    def test_captured_records_keep_their_facts(self, root: io.StringIO) -> None:
        """A record that a covered handler has seen still tells type, places and id on its line."""
        stream, lines = io.StringIO(), io.StringIO()
        log, handler = logging.getLogger("healthobs.test.both"), logging.StreamHandler(stream)
        log.addHandler(handler)
        obs = Observability(replace(PHI, capture_stdlib=True), log_stream=lines)
        try:
            try:
                raise LookupError(NAME)
            except LookupError:
                log.exception("failed")
        finally:
            log.removeHandler(handler)
            obs.close()
        line = json.loads(lines.getvalue())
        assert (line["event"], line["exception_type"]) == ("failed", "LookupError")
        assert line["error_id"] in stream.getvalue()
        assert line["exception_frames"]


class TestServers:
    """Records of known servers: their paths never leave, and their formatters still work."""

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    def test_uvicorns_access_log(self, redaction: Any) -> None:
        """Method, version and status stay useful; the path becomes a mark."""
        stream, log = io.StringIO(), logging.getLogger("uvicorn.access")
        handler = logging.StreamHandler(stream)
        handler.setFormatter(AccessFormatter("%(request_line)s %(status_code)s", use_colors=False))
        before = log.handlers[:], log.propagate, log.level
        log.handlers[:], log.propagate, log.level = [handler], False, logging.INFO
        obs = Observability(Settings(redaction=redaction), logs="processor")
        try:
            log.info(
                '%s - "%s %s HTTP/%s" %d', "127.0.0.1:54321", "GET", "/patients/Ottoline?q=1", "1.1", 200
            )
        finally:
            log.handlers[:], log.propagate, log.level = before
            obs.close()
        assert stream.getvalue() == "GET [PHI:url] HTTP/1.1 200 OK\n"

    @pytest.mark.parametrize("capture", [True, False])
    @pytest.mark.parametrize(
        ("name", "message", "arguments", "shown"),
        [
            ("uvicorn.access", '%s - "%s %s HTTP/%s" %d', ("-", "GET", "/Ottoline", "1.1", 200), '- - "GET [PHI:url] HTTP/1.1" 200'),
            ("uvicorn.error", '%s - "WebSocket %s" [accepted]', ("-", "/Ottoline"), '- - "WebSocket [PHI:url]" [accepted]'),
            ("any", "Exception on /patients/Otto line/boom [GET]", (), "Exception on [PHI:url] [GET]"),
            ("any", "Exception on /x [OTTOLINE]", (), "Exception on [PHI:url] [_OTHER]"),
            ("gunicorn.error", "Error handling request %s", ("/Ottoline?q",), "Error handling request [PHI:url]"),
            ("gunicorn.error", "no /Ottoline", (), "no [PHI:url]"),
            ("gunicorn.error", "Invalid line 'GET /x/Otto line HTTP/1.1'", (), "Invalid line [PHI:value]"),
            ("gunicorn.error", "Invalid HTTP header: 'X-P Ottoline'", (), "Invalid HTTP header: [PHI:value]"),
            ("gunicorn.error", "Can't connect", (), "Can't connect"),
            ("gunicorn.error", "In use: %s", ("('localhost', 8000)",), "In use: ('localhost', 8000)"),
            ("httpcore.http11", "x.complete return_value=(b'Ottoline',)", (), "x.complete return_value=[PHI:value]"),
            ("httpcore.http11", "x.started header=b'Ottoline'", (), "x.started header=[PHI:value]"),
            ("django.security.DisallowedHost", "Invalid HTTP_HOST header: 'ottoline'.", (), "Invalid HTTP_HOST header: [PHI:value]"),
            ("werkzeug", "code %d, message %s", (400, "Bad version ('Ottoline')"), "code 400, message Bad version [PHI:value]"),
            ("asyncio", "Executing %s took %.3f seconds", ("<Handle tell('Ottoline')>", 0.2), "Executing [PHI:value] took 0.200 seconds"),
            ("django.request", "%s: %s", ("Not Found", "/x/O'Tto Ottoline\n HTTP/1.1 x"), "Not Found: [PHI:url]"),
            ("hypercorn.access", '"%(r)s" %(a)s', ({"m": "GET", "r": "GET /Otto line 1.1", "H": "2", "a": "Ottoline"},), '"GET [PHI:url] 2" [PHI:key]'),
            ("waitress", "Exception while serving %s", ("/Otto line",), "Exception while serving [PHI:url]"),
            ("django.db.backends", "(%.3f) %s; args=%s", (0.5, "SELECT 'Ottoline'", ("Ottoline",)), "(0.500) [PHI:value]; args=[PHI:value]"),
            ("werkzeug", '- "%s" %s %s', ("GET /Ottoline HTTP/1.1", 200, "-"), '- "GET [PHI:url] HTTP/1.1" 200 -'),
            ("werkzeug", '- - "%s" %s %s\n', ("\x1b[31mGET /Otto line HTTP/1.1\x1b[0m", 404, "-"), '"GET [PHI:url] HTTP/1.1" 404 -'),
            ("werkzeug", '- - "%s" %s %s\n', ("OTTOLINE", "Ottoline", "-"), '"_OTHER [PHI:url] ?" - -'),
            ("werkzeug", "x Error on request:\nTraceback Ottoline", (), "x Error on request:"),
            ("django.security.SuspiciousOperation", "Ottoline's chart was asked for", (), "[PHI:value]"),
            ("django.request", "Method Not Allowed (%s): %s", ("OTTOLINE-SMITH", "/x"), "Method Not Allowed ([PHI:value]): [PHI:url]"),
            ("django.request", "Method Not Allowed (%s): %s", ("DELETE", "/x"), "Method Not Allowed (DELETE): [PHI:url]"),
            ("django.security.csrf", "Forbidden (%s): %s", ("Origin checking failed - Ottoline does not match any trusted origins.", "/x"), "Forbidden ([PHI:value]): [PHI:url]"),
            ("django.security.csrf", "Forbidden (%s): %s", ("CSRF cookie not set.", "/x"), "Forbidden (CSRF cookie not set.): [PHI:url]"),
            ("django.server", '"%s" %s %s', ("GET Ottoline HTTP/1.1", "400", "5"), '"GET [PHI:url] HTTP/1.1" 400 5'),
            ("django.server", '"%s" %s %s', ("OTTOLINE /x HTTP/1.1", "400", "Ottoline"), '"_OTHER [PHI:url] HTTP/1.1" 400 -'),
            ("django.server", "code %d, message %s", (400, "Bad request syntax ('Ottoline')"), "code 400, message Bad request syntax [PHI:value]"),
            ("django.server", "code %d, message %s", (505, "Invalid HTTP version (Ottoline)"), "code 505, message Invalid HTTP version [PHI:value]"),
            ("django.server", "code %d, message %s", (501, "Unsupported method ('OTTOLINE')"), "code 501, message Unsupported method [PHI:value]"),
            ("django.server", "code %d, message %s", (431, "Line too long"), "code 431, message Line too long"),
            ("django.server", "code %d, message %s", (400, "Bad Ottoline"), "code 400, message [PHI:value]"),
            ("uvicorn.asgi", "%s [%d] Started scope=%s", ("10.1.2.3:5 - ASGI", 1, {"path": "/x/Ottoline", "headers": [(b"x", b"Ottoline")]}), "[PHI:value] [1] Started scope=[PHI:value]"),
            ("uvicorn.error", "ASGI callable should return None, but returned '%s'.", (["Ottoline"],), "ASGI callable should return None, but returned '[PHI:value]'."),
            ("uvicorn.error", "Uvicorn running on %s://%s:%d (Press CTRL+C to quit)", ("http", "127.0.0.1", 8000), "Uvicorn running on [PHI:url][PHI:ip]:8000 (Press CTRL+C to quit)"),
            ("uvicorn.error", "Application startup complete.", (), "Application startup complete."),
            ("gunicorn.error", "Booting worker with pid: %s", (4711,), "Booting worker with pid: 4711"),
            ("gunicorn.error", "Listening at: %s (%s)", ("http://127.0.0.1:8000", 7), "Listening at: [PHI:url] (7)"),
            ("gunicorn.error", "Worker (pid:%s) was sent %s!", (7, "SIGKILL"), "Worker (pid:7) was sent SIGKILL!"),
            ("gunicorn.error", "Invalid request from ip=%s: %s", ("10.1.2.3", "Invalid HTTP method: 'OTTOLINE'"), "Invalid request from ip=[PHI:ip]: Invalid HTTP method: [PHI:value]"),
            ("waitress", "%s of %s, %r", ("Otto line", b"Ottoline", ValueError("Ottoline")), "[PHI:value] of [PHI:value], '[PHI:type]'"),
            ("waitress", "headers %s", ({"X-Patient": "Ottoline"},), "headers [PHI:value]"),
            ("waitress", "%(method)s by %(who)s", ({"method": "GET", "who": "Ottoline", "Ottoline": 1},), "GET by [PHI:value]"),
            ("urllib3.connectionpool", '%s://%s:%s "%s %s %s" %s %s', ("https", "ottoline", 443, "GET", "/x/Ottoline", "HTTP/1.1", 200, None), '[PHI:url][PHI:value]:443 "GET [PHI:url] HTTP/1.1" 200 None'),
            ("hypercorn.error", "%s", ("GET /x/Otto line HTTP/1.1",), "GET [PHI:url] HTTP/1.1"),
        ],
    )  # fmt: skip
    def test_paths(
        self,
        root: io.StringIO,
        name: str,
        message: str,
        arguments: tuple[Any, ...],
        shown: str,
        capture: bool,
    ) -> None:
        """In `mask` too, through any set-up and through captured records."""
        lines = io.StringIO()
        obs = Observability(
            Settings(capture_stdlib=capture), logs="own" if capture else "processor", log_stream=lines
        )
        log = logging.getLogger(name)
        propagate, log.propagate = log.propagate, True
        try:
            log.error(message, *arguments)
        finally:
            log.propagate = propagate
            obs.close()
        if capture:
            assert json.loads(lines.getvalue())["event"] == shown
        else:
            assert root.getvalue() == f"ERROR|{name}|{shown}\n"

    def test_what_a_server_quotes_of_its_own(self, root: io.StringIO) -> None:
        """A message that is written in the code quotes no request, so it stays whole."""
        obs = Observability(Settings(), logs="processor")
        logging.getLogger("gunicorn.error").error("No application in 'wsgi' (see --help)")
        obs.close()
        assert root.getvalue() == "ERROR|gunicorn.error|No application in 'wsgi' (see --help)\n"

    def test_gunicorns_access_log(self, root: io.StringIO) -> None:
        """Of its atoms only those of a closed vocabulary pass."""
        obs = Observability(Settings(), logs="processor")
        atoms = {
            "h": "10.1.2.3", "t": "[26/Nov/2026:00:00:00 +0000]", "r": "GET /Ottoline HTTP/1.1", "s": "200",
            "b": "12", "f": "https://x/Ottoline", "a": "Ottoline", "m": "GET", "H": "HTTP/1.1", "{x-name}i": "Ottoline",
        }  # fmt: skip
        logging.getLogger("gunicorn.access").info(
            '%(h)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s" %({x-name}i)s', atoms
        )
        obs.close()
        assert root.getvalue() == (
            "INFO|gunicorn.access|[PHI:ip] [26/Nov/2026:00:00:00 +0000] "
            '"GET [PHI:url] HTTP/1.1" 200 12 "[PHI:key]" "[PHI:key]" [PHI:key]\n'
        )

    def test_watch_changes_nothing(self, root: io.StringIO) -> None:
        """The step before masking leaves paths as well."""
        obs = Observability(Settings(redaction="watch"), logs="processor")
        logging.getLogger("gunicorn.error").error("Error handling request %s", "/x")
        obs.close()
        assert root.getvalue() == "ERROR|gunicorn.error|Error handling request /x\n"
