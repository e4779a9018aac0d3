"""What writes log lines in a process that declares PHI: every form of it is redacted, or found by control and doctor."""

from __future__ import annotations

import io
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog
from flask import Flask

from healthobs import Observability, Settings
from healthobs.clock import Clock
from healthobs.compliance import ProbeContext
from healthobs.compliance.probes_telemetry import wraps_every_exporter
from healthobs.doctor import examine
from healthobs.flask import init_app
from healthobs.logs.sinks import raw_sinks
from healthobs.redaction import Redactor
from healthobs.tracing.textmap import RAW

PHI = Settings(service_name="records", frameworks=("hipaa",))
#: Not in a test, where it would be written in a function that is running.
NAME, SSN = "Ottoline Morrell", "078-05-1120"
#: A logger that a module holds.
HELD = logging.getLogger("ledger.held")
SOUND = (3, 51, 3)


pytestmark = pytest.mark.usefixtures("textmap")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Put structlog's set-up back."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what takes all handlers off the root logger: pytest's come for each call, after fixtures."""
    return lambda: monkeypatch.setattr(logging.getLogger(), "handlers", [])


@pytest.fixture
def out() -> io.StringIO:
    """Return what structlog's loggers write to."""
    return io.StringIO()


def configure(out: io.StringIO, processors: Any) -> None:
    structlog.configure(processors=processors, logger_factory=structlog.PrintLoggerFactory(out))


class TestChains:
    """structlog's processors, in whichever form they were given."""

    @pytest.mark.parametrize("kind", [tuple, deque, list])
    def test_any_sequence_is_redacted_and_given_back(self, kind: Any, out: io.StringIO) -> None:
        """The very object that was configured is in force again afterwards."""
        chain = kind((structlog.processors.add_log_level, structlog.processors.JSONRenderer()))
        copy = kind(chain)
        configure(out, chain)
        obs = Observability(PHI, log_stream=io.StringIO())
        structlog.get_logger().info("admitted", ssn=SSN, ward=NAME)
        obs.close()
        line = json.loads(out.getvalue())
        assert (line["event"], line["ssn"], line["ward"]) == ("admitted", "[PHI:key]", "[PHI:strict]")
        assert structlog.get_config()["processors"] is chain
        assert chain == copy

    @pytest.mark.parametrize("first", [0, 1])
    def test_two_at_a_time(self, first: int, out: io.StringIO) -> None:
        """Closed in any order, the other one still redacts, and the last gives the sequence back."""
        chain = (structlog.processors.add_log_level, structlog.processors.JSONRenderer())
        configure(out, chain)
        several = [Observability(PHI, log_stream=io.StringIO()) for _ in range(2)]
        several.pop(first).close()
        structlog.get_logger().info("admitted", ssn=SSN)
        several.pop().close()
        assert json.loads(out.getvalue())["ssn"] == "[PHI:key]"
        assert structlog.get_config()["processors"] is chain

    def test_what_was_configured_meanwhile_stays(self, out: io.StringIO) -> None:
        """A set-up that the application made after ours is not taken back with it."""
        configure(out, (structlog.processors.JSONRenderer(),))
        obs = Observability(PHI, log_stream=io.StringIO())
        newer = [structlog.processors.KeyValueRenderer()]
        configure(out, newer)
        obs.close()
        assert structlog.get_config()["processors"] is newer

    def test_no_processor_at_all(self) -> None:
        """The logger then gets the fields themselves."""
        factory = structlog.testing.CapturingLoggerFactory()
        structlog.configure(processors=[], logger_factory=factory)
        obs = Observability(PHI, log_stream=io.StringIO())
        structlog.get_logger().info("admitted", ssn=SSN)
        obs.close()
        assert factory.logger.calls[0].kwargs["ssn"] == "[PHI:key]"
        assert structlog.get_config()["processors"] == []


def found(obs: Observability) -> tuple[str, list[str]]:
    """Return the state of G-wrap, and what the doctor says of handlers and chains."""
    context = ProbeContext(
        settings=obs.settings, clock=Clock(), redactor=obs.redactor, provider=obs.tracing.provider
    )
    findings = examine(init_app(Flask("app"), obs), environ={}, sqlite_version=SOUND)
    seen = [one.seen for one in findings if one.name == "logs_escape_redaction" and "these" in one.seen]
    return wraps_every_exporter(context).state, seen


def shout(_logger: Any, _method: str, line: Any) -> Any:
    """Stand for a step of the application after its renderer."""
    return line.upper()


class TestRendererThatIsNotLast:
    """Steps after the one that makes a line of the fields."""

    @pytest.mark.parametrize("settings", [PHI, Settings(redaction="mask")], ids=["strict", "mask"])
    @pytest.mark.parametrize(
        "renderer",
        [
            structlog.processors.JSONRenderer(),
            structlog.processors.KeyValueRenderer(),
            structlog.processors.LogfmtRenderer(),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        ids=lambda one: type(one).__name__,
    )
    def test_known(self, renderer: Any, settings: Settings, out: io.StringIO) -> None:
        """Structlog's own are known: the fields are redacted before them, and the line goes on."""
        chain = [structlog.processors.add_log_level, renderer, shout]
        configure(out, chain)
        obs = Observability(settings, logs="processor")
        structlog.get_logger().info("admitted", ssn=SSN, beds=3)
        obs.close()
        assert "ADMITTED" in out.getvalue()
        assert "[PHI:KEY]" in out.getvalue()
        assert SSN not in out.getvalue()
        assert chain == [structlog.processors.add_log_level, renderer, shout]

    @pytest.mark.parametrize(
        ("rendered", "shown"),
        [
            (str, "[PHI:type]"),
            (str.encode, b"[PHI:type]"),
            (lambda text: bytearray(text.encode()), bytearray(b"[PHI:type]")),
            (lambda text: ((text,), {"extra": text}), "[PHI:type]"),
            (lambda text: [text], "[PHI:type]"),
        ],
    )
    def test_unknown(self, rendered: Any, shown: Any) -> None:
        """Of any other it is too late to tell the fields apart: a mark goes on, and the caller hears nothing."""
        factory = structlog.testing.CapturingLoggerFactory()
        chain = [lambda _logger, _method, fields: rendered(repr(fields)), lambda _logger, _method, line: line]
        structlog.configure(processors=chain, logger_factory=factory)
        obs = Observability(PHI, log_stream=io.StringIO())
        structlog.get_logger().info("admitted", patient_name=NAME)
        obs.close()
        (call,) = factory.logger.calls
        assert (call.args, call.kwargs) == ((shown,), {})

    def test_watch_changes_nothing(self, out: io.StringIO) -> None:
        """The step before masking leaves the line as it was rendered."""
        configure(out, [lambda _logger, _method, fields: repr(fields), shout])
        obs = Observability(Settings(redaction="watch"), logs="processor")
        structlog.get_logger().info("admitted", ssn=SSN)
        obs.close()
        assert SSN in out.getvalue()

    @pytest.mark.parametrize("step", ["shield", "processor"])
    def test_a_fault_of_redaction(self, step: str, out: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
        """The line keeps nothing, and the caller hears nothing."""
        configure(out, [structlog.processors.JSONRenderer()])
        obs = Observability(PHI, log_stream=io.StringIO())
        broken = "name" if step == "shield" else "key"

        def boom(*_arguments: Any, **_named: Any) -> str:
            raise RuntimeError(NAME)

        monkeypatch.setattr(Redactor, broken, boom)
        structlog.get_logger().info("admitted", ward=NAME)
        monkeypatch.undo()
        obs.close()
        assert json.loads(out.getvalue())["event"] == "[PHI:error]"
        assert NAME not in out.getvalue()


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], io.StringIO]]:
    """Return what gives the root logger one handler with this format; its lines come back."""

    def give(form: str) -> io.StringIO:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(form, defaults={"_who": "-", "taskName": "-"}))
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        return stream

    yield give
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def loggers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the loggers that there are: none yet."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(logging.getLogger().manager, "loggerDict", found)
    return found


class TestRecords:
    """What a record of the standard library holds beside its message."""

    def test_fields_with_an_underscore(self, root: Callable[[str], io.StringIO]) -> None:
        """They are fields as any other, also under the names that structlog's plumbing has."""
        lines = root("%(_who)s|%(_name)s|%(_logger)s|%(_record)s|%(_healthobs_done)s|%(message)s")
        obs = Observability(PHI, log_stream=io.StringIO())
        fields = {"_who": NAME, "_name": NAME, "_logger": NAME, "_record": [NAME], "_healthobs_done": NAME}
        logging.getLogger("app").warning("read", extra=fields)
        obs.close()
        assert NAME not in lines.getvalue()
        assert lines.getvalue().startswith("[PHI:strict]|[PHI:key]|[PHI:strict]|['[PHI:strict]']|")

    @pytest.mark.parametrize("settings", [PHI, Settings(redaction="mask")], ids=["strict", "mask"])
    def test_a_traceback_from_elsewhere(self, settings: Settings, root: Callable[[str], io.StringIO]) -> None:
        """A record that another process rendered brings its text and no exception: the text goes."""
        lines = root("%(message)s")
        obs = Observability(settings, logs="processor")
        record = logging.makeLogRecord(
            {"name": "app", "msg": "failed", "levelno": 40, "exc_text": f"ValueError: no chart of {NAME}"}
        )
        logging.getLogger("app").handle(record)
        obs.close()
        assert lines.getvalue() == "failed\n"

    @pytest.mark.parametrize("key", ["threadName", "taskName", "processName"])
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            (f"export for {NAME} {SSN}", "[PHI:strict]"),
            ("MainThread", "MainThread"),
            ("Thread-12 (test_names_of_threads)", "Thread-12 (test_names_of_threads)"),
            ("Thread-12 (process_request_thread)", "Thread-12 ([PHI:strict])"),
            ("ThreadPoolExecutor-0_3", "ThreadPoolExecutor-0_3"),
            ("Task-7", "Task-7"),
            ("ForkPoolWorker-2", "ForkPoolWorker-2"),
            (f"Thread-{SSN}", "[PHI:strict]"),
            (None, "None"),
        ],
    )
    def test_names_of_threads(
        self, key: str, name: str | None, shown: str, root: Callable[[str], io.StringIO]
    ) -> None:
        """Those that Python gives pass, with a function that is running, and one that is made of data does not."""
        lines = root(f"%({key})s")
        obs = Observability(PHI, log_stream=io.StringIO())
        logging.getLogger("app").handle(
            logging.makeLogRecord({"name": "app", "levelno": 40, "msg": "x", key: name})
        )
        obs.close()
        assert lines.getvalue() == f"{shown}\n"

    def test_names_of_threads_in_mask(self, root: Callable[[str], io.StringIO]) -> None:
        """They are scanned."""
        lines = root("%(threadName)s")
        obs = Observability(Settings(), logs="processor")
        for name in ("export 7", f"export for {SSN}"):
            logging.getLogger("app").handle(
                logging.makeLogRecord({"name": "app", "levelno": 40, "threadName": name})
            )
        obs.close()
        assert lines.getvalue() == "export 7\nexport for [PHI:ssn]\n"

    @pytest.mark.parametrize("way", ["handler", "capture", "structlog", "ours"])
    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            (f"ward.{NAME}", "[PHI:strict]"),
            (f"{__name__}.{NAME}", "[PHI:strict]"),
            ("." * 10_000, "[PHI:strict]"),
            (__name__, __name__),
            (f"{__name__}.TestRecords", f"{__name__}.TestRecords"),
            (HELD.name, HELD.name),
            ("root", "root"),
        ],
        ids=lambda name: name[:40],
    )
    def test_names_of_loggers(
        self, way: str, name: str, shown: str, root: Callable[[str], io.StringIO], loggers: dict[str, Any]
    ) -> None:
        """Those of modules and classes pass, and those that a module holds; one that is made of data does not."""
        lines, own = root("%(name)s"), io.StringIO()
        if way == "structlog":
            chain = [structlog.stdlib.add_logger_name, structlog.processors.JSONRenderer()]
            structlog.configure(processors=chain, logger_factory=structlog.stdlib.LoggerFactory())
            lines = root("%(message)s")
        obs = Observability(replace(PHI, capture_stdlib=way == "capture"), log_stream=own)
        loggers[HELD.name] = HELD
        log: Any = logging.getLogger(name)
        if way == "structlog":
            log = structlog.get_logger(name)
        elif way == "ours":
            log = obs.logs.get_logger(name)
        log.warning("read")
        obs.close()
        told = own if way in ("capture", "ours") else lines
        (line,) = told.getvalue().splitlines()
        assert (line if way == "handler" else json.loads(line)["logger"]) == shown

    @pytest.mark.usefixtures("loggers")
    def test_the_logger_of_an_application(self, root: Callable[[str], io.StringIO]) -> None:
        """Flask makes it later, by the name of the application."""
        lines = root("%(name)s")
        obs = Observability(PHI, log_stream=io.StringIO())
        app = init_app(Flask(".".join(("ward", "north"))), obs)
        app.logger.warning("read")
        obs.close()
        assert lines.getvalue() == "ward.north\n"

    @pytest.mark.usefixtures("loggers")
    def test_names_of_loggers_that_were_there(self, root: Callable[[str], io.StringIO]) -> None:
        """One of the time before is the code's or the set-up's, not a request's."""
        lines = root("%(name)s")
        log = logging.getLogger(".".join(("ledger", "there")))
        obs = Observability(PHI, log_stream=io.StringIO())
        log.warning("read")
        obs.close()
        assert lines.getvalue() == "ledger.there\n"

    def test_names_of_loggers_in_mask(self, root: Callable[[str], io.StringIO]) -> None:
        """They are scanned."""
        lines = root("%(name)s")
        obs = Observability(Settings(), logs="processor")
        logging.getLogger(f"ward.{SSN}").warning("read")
        logging.getLogger(f"ward.{NAME}").warning("read")
        obs.close()
        assert lines.getvalue() == f"ward.[PHI:ssn]\nward.{NAME}\n"

    def test_a_fault_of_redaction(
        self, root: Callable[[str], io.StringIO], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The record keeps its place and level, and no field."""
        seen: list[logging.LogRecord] = []
        root("%(message)s")
        obs = Observability(PHI, log_stream=io.StringIO())
        monkeypatch.setattr(logging.getLogger().handlers[0], "emit", seen.append)

        def boom(*_arguments: Any, **_named: Any) -> str:
            raise RuntimeError(NAME)

        monkeypatch.setattr(Redactor, "key", boom)
        logging.getLogger("app").warning("read", extra={"ward": NAME, "_bed": NAME})
        monkeypatch.undo()
        obs.close()
        (record,) = seen
        assert record.getMessage() == "[PHI:error]"
        assert NAME not in repr(vars(record))


class TestEvents:
    """What a line of structlog holds beside its fields."""

    @pytest.mark.parametrize("event", [[NAME, SSN], {"a": NAME}, Redactor, (NAME,), 780511200, b"Ottoline"])
    def test_an_event_that_is_no_text(self, event: Any, out: io.StringIO) -> None:
        """It is a mark, as on healthobs' own lines."""
        configure(
            out,
            [
                structlog.stdlib.PositionalArgumentsFormatter(),
                structlog.processors.EventRenamer("message"),
                structlog.processors.JSONRenderer(),
            ],
        )
        structlog.configure(wrapper_class=structlog.stdlib.BoundLogger)
        obs = Observability(PHI, log_stream=io.StringIO())
        structlog.get_logger().info(event, NAME)
        obs.close()
        assert json.loads(out.getvalue())["message"] == "[PHI:type]"
        assert NAME not in out.getvalue()

    def test_names_of_plumbing(self, out: io.StringIO) -> None:
        """A field under a name that structlog uses itself passes only when it is what structlog puts there."""
        configure(out, [structlog.processors.JSONRenderer(sort_keys=True)])
        obs = Observability(PHI, log_stream=io.StringIO())
        fields = dict.fromkeys(
            ("exc_info", "stack_info", "_record", "_from_structlog", "_logger", "_name"), NAME
        )
        structlog.get_logger().info("admitted", **fields)
        obs.close()
        assert json.loads(out.getvalue())["event"] == "admitted"
        assert NAME not in out.getvalue()

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    @pytest.mark.parametrize("rendered", [True, False])
    def test_an_exception_that_a_step_takes_up(
        self, rendered: bool, redaction: Any, out: io.StringIO
    ) -> None:
        """Where a step of the chain finds the exception by itself, its message does not leave either."""
        steps = [structlog.processors.format_exc_info] if rendered else []
        configure(out, [structlog.dev.set_exc_info, *steps, structlog.dev.ConsoleRenderer(colors=False)])
        structlog.configure(wrapper_class=structlog.BoundLogger)
        obs = Observability(Settings(redaction=redaction), logs="processor")
        try:
            raise LookupError(f"no chart of {NAME}")
        except LookupError:
            structlog.get_logger().exception("failed")
        obs.close()
        assert "LookupError" in out.getvalue()
        assert NAME not in out.getvalue()

    @pytest.mark.parametrize("redaction", ["watch", "mask", "strict"])
    @pytest.mark.parametrize(
        "step",
        [structlog.processors.format_exc_info, structlog.processors.dict_tracebacks],
        ids=["text", "mapping"],
    )
    def test_an_exception_in_a_form_of_its_own(self, step: Any, redaction: Any, out: io.StringIO) -> None:
        """A tuple that is none of the standard library's does not have the one that is being handled rendered."""
        configure(out, [step, structlog.processors.JSONRenderer()])
        obs = Observability(Settings(redaction=redaction), logs="processor")
        try:
            raise LookupError(f"no chart of {NAME}")
        except LookupError as exc:
            for odd in ((LookupError, str(exc), exc.__traceback__), (LookupError, exc)):
                structlog.get_logger().error("failed", exc_info=odd)
        obs.close()
        without, found = out.getvalue().splitlines()
        assert "LookupError" not in without
        assert "LookupError" in found
        assert NAME not in out.getvalue()


class TestDisabled:
    """`Settings.disabled` and `OTEL_SDK_DISABLED`: healthobs writes nothing, and others write no more than before."""

    @pytest.mark.parametrize(("phi", "mode"), [(True, "own"), (True, "processor"), (False, "processor")])
    def test_redaction_goes_on(
        self, phi: bool, mode: Any, root: Callable[[str], io.StringIO], out: io.StringIO
    ) -> None:
        """Telemetry that is off does not take the masks off the logs that go on."""
        lines, own = root("%(message)s"), io.StringIO()
        configure(out, chain := [structlog.processors.JSONRenderer()])
        obs = Observability(
            Settings(disabled=True, frameworks=("hipaa",) if phi else ()), logs=mode, log_stream=own
        )
        logging.getLogger("app").warning("ssn %s", SSN)
        structlog.get_logger().info("admitted", ssn=SSN)
        obs.logs.emit("error", "ours")
        state, _seen = found(obs)
        obs.close()
        assert SSN not in lines.getvalue() + out.getvalue()
        assert (json.loads(out.getvalue()), own.getvalue()) == ({"event": "admitted", "ssn": "[PHI:key]"}, "")
        assert (state, len(chain)) == ("pass" if phi else "partial", 1), "baggage is left alone without PHI"
        assert "ours" not in lines.getvalue()

    def test_nothing_is_taken_where_no_phi_is_declared(self, root: Callable[[str], io.StringIO]) -> None:
        """Then it is left alone, as with telemetry on."""
        lines = root("%(message)s")
        obs = Observability(Settings(disabled=True), log_stream=io.StringIO())
        logging.getLogger("app").warning("ssn %s", SSN)
        obs.close()
        assert lines.getvalue() == f"ssn {SSN}\n"


class TestSinksAreFound:
    """G-wrap and `healthobs doctor`, where a service declares PHI."""

    def test_covered(self, out: io.StringIO, bare: Callable[[], None]) -> None:
        """Handlers, those that are added later too, and the chain are covered: nothing to find."""
        bare()
        logging.getLogger().addHandler(logging.StreamHandler(out))
        configure(out, (structlog.processors.JSONRenderer(),))
        obs = Observability(PHI, log_stream=io.StringIO())
        logging.getLogger().addHandler(logging.StreamHandler(out))
        state, seen = found(obs)
        obs.close()
        assert (state, seen) == ("pass", [])

    def test_left_alone(self, out: io.StringIO, bare: Callable[[], None]) -> None:
        """With `logs="off"` both write raw, and both are named."""
        bare()
        logging.getLogger("app").addHandler(handler := logging.StreamHandler(out))
        configure(out, (structlog.processors.JSONRenderer(),))
        obs = Observability(PHI, logs="off")
        try:
            state, seen = found(obs)
        finally:
            obs.close()
            logging.getLogger("app").removeHandler(handler)
        assert state == "fail"
        (named,) = seen  # beside what other tests have left behind
        assert {"StreamHandler of app", "structlog's processors"} <= set(named.partition(": ")[2].split(", "))

    def test_structlog_configured_afterwards(self, out: io.StringIO, bare: Callable[[], None]) -> None:
        """A chain that replaces the one that is redacted."""
        bare()
        obs = Observability(PHI, log_stream=io.StringIO())
        configure(out, [structlog.processors.JSONRenderer()])
        structlog.get_logger().info("admitted", ssn=SSN)
        state, seen = found(obs)
        obs.close()
        assert SSN in out.getvalue()
        assert state == "fail"
        assert seen[0].endswith("structlog's processors")

    def test_hook_taken_away(
        self, out: io.StringIO, bare: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where somebody put `callHandlers` back, a handler that is added later is past the redactor."""
        bare()
        original = logging.Logger.callHandlers
        obs = Observability(PHI, log_stream=io.StringIO())
        with monkeypatch.context() as patched:
            patched.setattr(logging.Logger, "callHandlers", original)
            logging.getLogger().addHandler(logging.StreamHandler(out))
            assert raw_sinks() == ["StreamHandler of the root logger"]
            assert found(obs)[0] == "fail"
        assert raw_sinks() == []
        obs.close()

    @pytest.mark.parametrize("frameworks", [(), ("pci-dss",)])
    def test_nobody_declares_phi(
        self, frameworks: tuple[str, ...], out: io.StringIO, bare: Callable[[], None]
    ) -> None:
        """Then the set-up that is there is left alone, and the control names what writes raw."""
        bare()
        configure(out, [structlog.processors.JSONRenderer()])
        logging.getLogger("billing").addHandler(handler := logging.StreamHandler(out))
        obs = Observability(Settings(frameworks=frameworks), log_stream=io.StringIO())
        try:
            logging.getLogger("billing").error("card 4242424242424242 refused")
            state, seen = found(obs)
            outcome = wraps_every_exporter(
                ProbeContext(
                    settings=obs.settings, clock=Clock(), redactor=obs.redactor, provider=obs.tracing.provider
                )
            )
        finally:
            obs.close()
            logging.getLogger("billing").removeHandler(handler)
        assert (out.getvalue(), state, seen) == ("card 4242424242424242 refused\n", "partial", [])
        assert {"StreamHandler of billing", "structlog's processors", RAW} <= set(outcome.missing)

    def test_nothing_stands_outside(self, bare: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nobody declares PHI either, the control passes once nothing writes or sends raw."""
        bare()
        monkeypatch.setattr("healthobs.compliance.probes_telemetry.raw_sinks", list)
        monkeypatch.setattr("healthobs.compliance.probes_telemetry.sends_raw_baggage", bool)
        obs = Observability(Settings(frameworks=("pci-dss",)), log_stream=io.StringIO())
        state, _seen = found(obs)
        obs.close()
        assert state == "pass"
