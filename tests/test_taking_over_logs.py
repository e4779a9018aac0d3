"""A logging set-up that a process has: its format and names of fields stay, ids and redaction come."""

from __future__ import annotations

import io
import json
import logging
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from tests.set_ups import WHO

from healthobs import Observability, Settings
from healthobs.exceptions import ConfigurationError
from healthobs.redaction import Redactor


def _bound() -> Any:
    return structlog.get_logger().bind(**{WHO: 1}, shift=4)


class Full(io.StringIO):
    """A stream of which the disk is full."""

    def write(self, _text: str) -> int:
        """Fail."""
        raise OSError("no space left")


class TestFaultsOfHandlers:
    """What a handler tells of a fault of its own."""

    @pytest.fixture
    def handler(self, monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
        """Return the root logger's only one, which cannot write."""
        handler = logging.StreamHandler(Full())
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        return handler

    @staticmethod
    def fail() -> None:
        try:
            raise LookupError(f"no chart of {WHO}")
        except LookupError:
            logging.getLogger("app").exception("failed")

    @pytest.mark.parametrize("redaction", ["watch", "mask", "strict"])
    def test_only_the_fault_is_shown(
        self, redaction: Any, handler: logging.Handler, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Python chains to it the exception that was being logged: that is left out, until it is given back."""
        obs = Observability(Settings(redaction=redaction), logs="processor")
        self.fail()
        told = capsys.readouterr().err
        obs.close()
        assert "OSError: no space left" in told
        assert WHO not in told
        assert "handleError" not in vars(handler)
        self.fail()
        assert WHO in capsys.readouterr().err

    @pytest.mark.parametrize("first", [0, 1])
    def test_two_at_a_time(
        self, first: int, handler: logging.Handler, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Closed in any order, the other one still covers, and the last gives back what the handler had."""
        seen: list[BaseException | None] = []

        def tell(_record: logging.LogRecord) -> None:
            fault = sys.exception()
            seen.append(fault and fault.__context__)

        handler.handleError = tell  # type: ignore[method-assign]
        several = [Observability(Settings(), logs="processor") for _ in range(2)]
        several.pop(first).close()
        self.fail()
        several.pop().close()
        assert handler.handleError is tell
        self.fail()
        assert [type(one) for one in seen] == [type(None), LookupError]
        assert capsys.readouterr().err == ""

    def test_a_handler_without_a_fault(self, handler: logging.Handler) -> None:
        """It may tell of one that is no exception."""
        seen: list[logging.LogRecord] = []
        handler.handleError = seen.append  # type: ignore[method-assign]
        obs = Observability(Settings(), logs="processor")
        handler.handleError(logging.makeLogRecord({}))
        obs.close()
        assert len(seen) == 1


class TestStdlib:
    """`logs="processor"` over `logging`."""

    def test_format_stays(self, root: io.StringIO) -> None:
        """Messages are redacted, arguments one by one; given back, nothing is."""
        log = logging.getLogger("app")
        obs = Observability(Settings(), logs="processor")
        log.info("call %s about %d", "212-555-0123", 5)
        log.info("call 212-555-0123")
        log.info("%(phone)s", {"phone": "x"})
        log.info({"patient_name": "Jane"})
        obs.logs.emit("info", "ours", {"name": "x", "count": 2})
        obs.close()
        log.info("call %s", "212-555-0123")
        obs.logs.emit("info", "ours")
        assert root.getvalue().splitlines() == [
            "INFO|app|call [PHI:phone] about 5",
            "INFO|app|call [PHI:phone]",
            "INFO|app|[PHI:key]",
            "INFO|app|{'patient_name': '[PHI:key]'}",
            "INFO|healthobs|ours",
            "INFO|app|call 212-555-0123",
        ]

    @pytest.mark.parametrize(
        "settings", [Settings(frameworks=("hipaa",)), Settings()], ids=["strict", "mask"]
    )
    @pytest.mark.parametrize("capture", [False, True], ids=["handler", "capture"])
    def test_records_made_by_hand(self, settings: Settings, capture: bool, root: io.StringIO) -> None:
        """They need have no name or path, and their arguments need be no tuple: never an exception, and a line for each."""
        lines = root
        obs = Observability(
            settings, logs="own" if capture else "processor", log_stream=root if capture else None
        )
        if capture:
            obs.logs.capture_stdlib()
        log = logging.getLogger("app")
        for made in (
            {"msg": "read", "levelno": 40},
            {"name": 7, "msg": "read", "levelno": 40},
            {"name": "app", "msg": "read", "levelno": 40, "pathname": None},
            {"name": "flask", "msg": "read %d", "args": 7, "levelno": 40},
            {"name": "app", "msg": "read %d", "args": 7, "levelno": 40},
        ):
            log.handle(logging.makeLogRecord(made))
        obs.close()
        told = lines.getvalue().splitlines()
        assert len(told) == 5
        assert all("read" in line for line in told[:3])

    def test_fields_and_ids(self, root: io.StringIO) -> None:
        """Extra fields are redacted, ids are there under the names that were asked for."""
        handler = logging.getLogger().handlers[0]
        handler.setFormatter(logging.Formatter("%(ward)s %(patient_name)s %(otelTraceID)s"))
        obs = Observability(Settings(log_fields=("trace_id=otelTraceID",)), logs="processor")
        with obs.tracing.tracer.start_as_current_span("x") as span:
            logging.getLogger("app").info("x", extra={"ward": "west", "patient_name": "Jane"})
        obs.close()
        assert root.getvalue() == f"west [PHI:key] {span.get_span_context().trace_id:032x}\n"

    def test_exception(self, root: io.StringIO) -> None:
        """A traceback is its type, an error id and places in the code: no message of the caller's, no source, no locals."""
        obs = Observability(Settings(), logs="processor")
        name = "Jane Roe"
        try:
            raise LookupError(f"no {name}")
        except LookupError:
            logging.getLogger("app").exception("failed")
        obs.close()
        first, second, third = root.getvalue().splitlines()
        assert first == "ERROR|app|failed"
        assert re.fullmatch("LookupError: error_id=[0-9a-f]{32}", second)
        assert re.fullmatch(r"  test_taking_over_logs:TestStdlib\.test_exception:\d+", third)

    @pytest.mark.parametrize(
        "settings", [Settings(), Settings(frameworks=("hipaa",), redaction="strict")], ids=["mask", "strict"]
    )
    def test_an_exception_with_a_literal_has_its_id_too(self, root: io.StringIO, settings: Settings) -> None:
        """The id that leads to the trace stands beside the message, also past a second adoption."""
        both = [Observability(settings, logs=mode) for mode in ("processor", "processor")]

        def refuse() -> None:
            raise ValueError("card expired")

        try:
            try:
                refuse()
            except ValueError as exc:
                raise RuntimeError("payment refused") from exc
        except RuntimeError:
            logging.getLogger("app").exception("failed")
        for obs in both:
            obs.close()
        _, told, *places = root.getvalue().splitlines()
        assert re.fullmatch(r"RuntimeError: payment refused \(error_id=[0-9a-f]{32}\)", told)
        assert [re.sub(r":\d+$", "", place) for place in places] == [
            "  test_taking_over_logs:TestStdlib.test_an_exception_with_a_literal_has_its_id_too",
            "  caused by ValueError",
        ]

    @pytest.mark.parametrize("redaction", ["watch", "mask", "strict"])
    def test_an_exception_in_a_form_of_its_own(self, root: io.StringIO, redaction: Any) -> None:
        """A tuple that is none of the standard library's gives its exception, if it has one; no text in it is written."""
        obs = Observability(Settings(redaction=redaction), logs="processor")
        log: Any = logging.getLogger("app")
        exc = LookupError(f"no chart of {WHO}")
        for odd in ((LookupError, exc), (LookupError, str(exc), None), (), [LookupError, exc, None]):
            log.handle(
                logging.makeLogRecord({"name": "app", "levelno": 40, "msg": "failed", "exc_info": odd})
            )
        obs.close()
        told = root.getvalue().splitlines()
        assert re.fullmatch("LookupError: error_id=[0-9a-f]{32}", told.pop(1))
        assert [line.rpartition("|")[2] for line in told] == ["failed"] * 4

    def test_an_exception_keeps_to_the_format(self, root: io.StringIO) -> None:
        """A formatter that makes one line of exceptions still does."""

        class OneLine(logging.Formatter):
            def formatException(self, ei: Any) -> str:  # noqa: N802 - theirs
                return super().formatException(ei).replace("\n", " |")

        logging.getLogger().handlers[0].setFormatter(OneLine("%(message)s"))
        obs = Observability(Settings(), logs="processor")
        try:
            raise LookupError
        except LookupError:
            logging.getLogger("app").exception("failed")
        obs.close()
        _, told = root.getvalue().splitlines()
        assert ":TestStdlib.test_an_exception_keeps_to_the_format:" in told

    def test_names_of_fields_in_strict(self, root: io.StringIO) -> None:
        """Fields of the format stay, whoever sets them; a name made of data goes, in fields and in arguments."""
        fields: list[str] = []
        handler, log = logging.getLogger().handlers[0], logging.getLogger("app")
        handler.setFormatter(logging.Formatter("%(message)s %(" + "bed" + "s)s"))
        obs = Observability(Settings(redaction="strict"), logs="processor")

        def note(record: logging.LogRecord) -> bool:
            fields.extend(vars(record))
            return True

        handler.addFilter(note)
        names = {"beds": 3, WHO: 1}
        log.info("beds %r", {WHO: 3}, extra=names)
        handler.removeFilter(note)
        obs.close()
        assert root.getvalue() == "beds {'[PHI:strict]': '[PHI:key]'} 3\n"
        assert WHO not in fields
        assert "[PHI:strict]" in fields

    def test_off(self, root: io.StringIO) -> None:
        """`logs="off"` writes nothing and touches nothing."""
        stream = io.StringIO()
        obs = Observability(Settings(), logs="off", log_stream=stream)
        obs.logs.emit("error", "x")
        logging.getLogger("app").info("212-555-0123")
        obs.close()
        assert (stream.getvalue(), root.getvalue()) == ("", "INFO|app|212-555-0123\n")


class TestStructlog:
    """`logs="processor"` over structlog."""

    def test_format_stays(self) -> None:
        """Loggers that were used already are covered too; taken out, lines are as before."""
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
            logger_factory=structlog.PrintLoggerFactory(stream),
            cache_logger_on_first_use=True,
        )
        try:
            log = structlog.get_logger()
            log.info("found", patient_name="Jane", bed=3)
            obs = Observability(Settings(), logs="processor")
            log.info("found", patient_name="Jane", bed=3)
            name = "Jane Roe"
            try:
                raise LookupError(f"no {name}")
            except LookupError:
                log.exception("failed")
            obs.logs.emit("warning", "ours", {"event_count": 1})
            obs.close()
            log.info("found", patient_name="Jane", bed=3)
        finally:
            structlog.reset_defaults()
        before, during, failed, ours, after = stream.getvalue().splitlines()
        assert before == after == '{"bed": 3, "event": "found", "patient_name": "Jane"}'
        assert json.loads(during) == {
            "bed": 3, "event": "found", "patient_name": "[PHI:key]", "trace_id": "", "span_id": "",
        }  # fmt: skip
        assert json.loads(failed)["exception"].startswith("LookupError: error_id=")
        assert json.loads(failed)["exception_type"] == "LookupError"
        assert json.loads(ours)["event_count"] == 1
        assert "Jane Roe" not in failed

    def test_names_of_fields_in_strict(self) -> None:
        """A name made of data goes with its value; those of the code and of the set-up stay."""
        stream = io.StringIO()
        structlog.configure(
            processors=[
                structlog.processors.TimeStamper(key="_".join(("at", "utc"))),
                structlog.processors.CallsiteParameterAdder({structlog.processors.CallsiteParameter.LINENO}),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        try:
            obs = Observability(Settings(redaction="strict"), logs="processor")
            structlog.get_logger().info("found", bed=3, **{WHO: 1})
            obs.close()
        finally:
            structlog.reset_defaults()
        line = json.loads(stream.getvalue())
        assert (line["bed"], line["[PHI:strict]"]) == (3, "[PHI:key]")
        assert {"at_utc", "lineno"} <= line.keys()
        assert WHO not in stream.getvalue()


class Counted(str):
    """A name that counts how often another was made of it."""

    __slots__ = ()
    made = 0

    def __format__(self, spec: str) -> str:
        Counted.made += 1
        return super().__format__(spec)


class TestManyFields:
    """A line whose names of fields are data, and many."""

    @pytest.fixture(params=["stdlib", "structlog"])
    def fields(
        self, request: pytest.FixtureRequest, root: io.StringIO
    ) -> Iterator[Callable[[int], list[str]]]:
        """Return what logs as many fields, and tells their names."""
        found: list[str] = []
        through = request.param

        def log(number: int) -> list[str]:
            more = {f"{WHO}{one}": 1 for one in range(number)}
            if through == "structlog":
                structlog.get_logger().info("form", **more)
            else:
                logging.getLogger("app").info("form", extra=more)
            return [name for name in found if "[PHI:" in name or name == "redaction" or WHO in name]

        def note(record: logging.LogRecord) -> bool:
            found.extend(vars(record))
            return True

        def render(_logger: Any, _method: str, event: Any) -> str:
            found.extend(event)
            return "line"

        structlog.configure(processors=[render], logger_factory=structlog.PrintLoggerFactory(io.StringIO()))
        obs = Observability(Settings(redaction="strict"), logs="processor")
        handler = logging.getLogger().handlers[0]
        handler.addFilter(note)
        yield log
        handler.removeFilter(note)
        obs.close()
        structlog.reset_defaults()

    def test_numbers(self, fields: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        """Each takes the number behind the last one's: none is asked for twice."""
        key = Redactor.key

        def counted(self: Redactor, name: object, *, signal: str = "log") -> str:
            shown = key(self, name, signal=signal)
            return Counted(shown) if shown.startswith("[PHI:") else shown

        monkeypatch.setattr(Redactor, "key", counted)
        Counted.made = 0
        assert len(fields(300)) == 300
        assert Counted.made == 299

    def test_too_many(self, fields: Callable[[int], list[str]]) -> None:
        """A mark stands for those beyond a thousand."""
        names = fields(1500)
        assert names[-1] == "redaction"
        assert 990 < len(names) <= 1001
        assert WHO not in str(names)


class TestBareWordsOfASetUp:
    """What a set-up and healthobs put under `timestamp`, `level`, `logger` and the ids passes; what callers put does not."""

    #: A line of its own, so that its ids and times are not among the constants of a test.
    PROCESSORS = (
        structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
        structlog.processors.format_exc_info,
    )  # fmt: skip

    @pytest.fixture(params=["printed", "formatted", "kwargs"])
    def lines(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Set structlog up in one of three ways; call for the lines written since."""
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        last: list[Any] = [structlog.processors.JSONRenderer()]
        if request.param == "kwargs":
            last = [structlog.stdlib.render_to_log_kwargs]
            handler.setFormatter(Json())
        logger = logging.getLogger("healthobs.planted")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        printed = structlog.PrintLoggerFactory(stream)
        structlog.configure(
            processors=[*self.PROCESSORS[: 2 if request.param == "printed" else 4],
                        structlog.processors.TimeStamper("iso"), *last],
            logger_factory=printed if request.param == "printed" else lambda *_: logger,
        )  # fmt: skip
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
        structlog.reset_defaults()
        logger.handlers.clear()
        logger.propagate = True

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_what_the_set_up_adds(self, lines: Any, mode: Any) -> None:
        """Level, logger and the time of the line stay; a date of birth under `timestamp` and an address go."""
        obs = Observability(Settings(redaction=mode), logs="processor")
        with obs.tracing.tracer.start_as_current_span("op") as span:
            ids = span.get_span_context()
            structlog.get_logger().warning("seen", trace_id=f"{ids.trace_id:032x}", status="ok")
            structlog.get_logger().warning("seen", timestamp="1961-04-12", trace_id="078-05-1120")
        obs.close()
        first, second = lines()
        assert (first["status"], first["trace_id"]) == ("ok", f"{ids.trace_id:032x}")
        assert first.get("level", "warning") == "warning"
        assert first["timestamp"].startswith("20")
        assert ("1961-04" in str(second), "078-05" in str(second)) == (False, False)

    def test_two_adoptions(self) -> None:
        """The second leaves what the first told of an exception: one id, one type; it pickles as plain text."""
        seen: list[logging.LogRecord] = []

        class Kept(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                seen.append(record)

        handler = Kept()
        logging.getLogger().addHandler(handler)
        both = [Observability(Settings(redaction="strict"), logs="processor") for _ in range(2)]
        try:
            raise LookupError("Jane " + WHO)
        except LookupError:
            logging.getLogger("app").exception("failed")
        for obs in both:
            obs.close()
        logging.getLogger().removeHandler(handler)
        told = vars(seen[0])
        assert told["exception_type"] == "LookupError"
        assert f"error_id={told['error_id']}" in str(seen[0].exc_info and seen[0].exc_info[1])
        assert type(pickle.loads(pickle.dumps(told["error_id"]))) is str

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_a_day_is_somebodys(self, mode: Any) -> None:
        """Where no set-up states the time of the line, a caller's day under `timestamp` goes, today's too."""
        stream = io.StringIO()
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(stream),
        )
        obs = Observability(Settings(redaction=mode), logs="processor")
        now = datetime.now(UTC)
        structlog.get_logger().warning("born", timestamp=now.date().isoformat())
        structlog.get_logger().warning("seen", timestamp=now.isoformat())
        obs.close()
        structlog.reset_defaults()
        born, seen = (json.loads(line)["timestamp"] for line in stream.getvalue().splitlines())
        assert born == ("[PHI:date]" if mode == "mask" else "[PHI:strict]")
        assert seen == now.isoformat()

    def test_bound_elsewhere(self, lines: Any) -> None:
        """In strict, what a function that has returned bound to a logger is known by its names."""
        obs = Observability(Settings(redaction="strict"), logs="processor")
        _bound().warning("seen")
        obs.close()
        (line,) = lines()
        assert (4 in line.values(), WHO in line) == (True, False)
        assert structlog.get_config()["wrapper_class"].__name__ != "NotingLogger"

    @pytest.mark.parametrize("first", [0, 1])
    def test_two_adoptions_give_the_logger_back(self, lines: Any, first: int) -> None:
        """In whichever order they end, structlog makes the loggers that it made before."""
        before = structlog.get_config()["wrapper_class"]
        both = [Observability(Settings(redaction="strict"), logs="processor") for _ in range(2)]
        both.pop(first).close()
        assert structlog.get_config()["wrapper_class"] is not before
        both.pop().close()
        assert structlog.get_config()["wrapper_class"] is before
        assert lines() == []

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_our_lines_and_facts(self, lines: Any, mode: Any) -> None:
        """They come out as we made them: type, places and id of an exception, words of our own."""
        obs = Observability(Settings(redaction=mode), logs="processor")
        try:
            raise LookupError("Jane " + WHO)
        except LookupError:
            structlog.get_logger().exception("failed")
            obs.logs.emit("error", "ours", {"exc_info": True}, own={"check": ".".join(("a", "b"))})
        obs.close()
        theirs, ours = lines()
        for line in (theirs, ours):
            assert line["exception_type"] == "LookupError"
            assert line["exception_frames"][0].startswith(f"{__name__}:")
            assert len(line["error_id"]) == 32
        assert ours["check"] == "a.b"
        assert WHO not in str((theirs, ours))


class Json(logging.Formatter):
    """A formatter that writes every field of a record that came with the call."""

    def format(self, record: logging.LogRecord) -> str:
        """Write message and further fields."""
        known = vars(logging.makeLogRecord({})).keys() | {"message", "_healthobs_done"}
        more = {key: value for key, value in vars(record).items() if key not in known}
        return json.dumps({"event": record.getMessage(), **more}, default=str)


class TestFieldNames:
    """`Settings.log_fields`."""

    def test_own_lines(self) -> None:
        """Fields of our own lines take the names that were asked for."""
        stream = io.StringIO()
        obs = Observability(Settings(log_fields=("event=message", "level=severity")), log_stream=stream)
        obs.logs.emit("info", "x")
        obs.close()
        line = json.loads(stream.getvalue())
        assert (line["message"], line["severity"], "event" in line) == ("x", "info", False)

    def test_refusal(self) -> None:
        """What is no pair is refused when the settings are made."""
        with pytest.raises(ConfigurationError, match="log_fields must be pairs"):
            Settings(log_fields=("trace_id",))
