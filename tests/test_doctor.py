"""`healthobs doctor`: each thing it can find is planted once, and a sound set-up has nothing to find."""

from __future__ import annotations

import contextlib
import io
import logging
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import structlog
from flask import Flask
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs import Observability, Settings, audited
from healthobs.audit import open_trail
from healthobs.audit.subjects import SubjectMap
from healthobs.cli import main
from healthobs.doctor import examine
from healthobs.flask import init_app
from healthobs.redaction import Redactor
from healthobs.tracing import RedactingSpanExporter
from healthobs.wsgi import Middleware

SOUND = (3, 51, 3)


def names(app: Any, **options: Any) -> list[str]:
    """Return the names of what is found."""
    options = {"environ": {}, "sqlite_version": SOUND, **options}
    return [finding.name for finding in examine(app, **options)]


@pytest.fixture(autouse=True)
def _nobody_elses_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the loggers and processors that other tests have set up in this process."""
    monkeypatch.setattr(logging.getLogger().manager, "loggerDict", {})
    structlog.reset_defaults()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """Return a sound application, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return init_app(Flask("app"), Observability(Settings()))


class Sends(SpanProcessor):
    """A processor that sends spans by itself."""

    def on_end(self, span: ReadableSpan) -> None:
        """Send it."""


class TestFindings:
    """What `examine` reports."""

    def test_sound(self, app: Flask) -> None:
        """Nothing."""
        assert names(app) == []

    def test_healthobs_twice(self, app: Flask) -> None:
        """`init_app` and `Middleware` at once."""
        assert names(Middleware(app, Observability(Settings()))) == ["double_instrumentation"]

    def test_opentelemetry_twice(self, app: Flask) -> None:
        """The framework's instrumentation and the middleware at once."""
        foreign = type("OpenTelemetryMiddleware", (), {"__module__": "opentelemetry.instrumentation.wsgi"})()
        foreign.wsgi = app
        app._is_instrumented_by_opentelemetry = True  # type: ignore[attr-defined]
        found = examine(foreign, environ={}, sqlite_version=SOUND)
        assert [finding.seen for finding in found] == [
            "OpenTelemetry makes 2 server spans of each request",
            "OpenTelemetry's server spans and healthobs' own go to two tracer providers",
        ]

    def test_adopted_provider_is_no_second_pipeline(self) -> None:
        """With OpenTelemetry's tracer provider adopted, its server spans are ours."""
        app = Flask("app")
        app._is_instrumented_by_opentelemetry = True  # type: ignore[attr-defined]
        obs = Observability(Settings(), tracer_provider=TracerProvider())
        assert names(init_app(app, obs)) == []

    def test_escaping_exporter(self, app: Flask) -> None:
        """One that was added to our provider behind our back."""
        obs = app.extensions["healthobs"].obs
        obs.tracing.provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        (finding,) = examine(app, environ={}, sqlite_version=SOUND)
        assert (finding.name, "InMemorySpanExporter" in finding.seen) == ("exporter_escapes_redaction", True)

    def test_a_weaker_redactor(self, app: Flask) -> None:
        """One that masks less than the service asks is no redactor for it."""
        obs = Observability(Settings(redaction="strict"), tracer_provider=TracerProvider(), logs="off")
        exporter = RedactingSpanExporter(InMemorySpanExporter(), Redactor("mask"))
        weaker = init_app(Flask("app"), obs)
        obs.tracing.provider.add_span_processor(SimpleSpanProcessor(exporter))
        assert names(weaker) == []
        obs.close()
        (finding,) = examine(weaker, environ={}, sqlite_version=SOUND)
        assert finding.seen == "spans leave redacted less than the service asks through InMemorySpanExporter"

    def test_processor_that_sends_by_itself(self, app: Flask) -> None:
        """One without an exporter that could be wrapped; one that only looks at starts is no finding."""
        provider = app.extensions["healthobs"].obs.tracing.provider
        provider.add_span_processor(SpanProcessor())
        assert names(app) == []
        provider.add_span_processor(Sends())
        assert names(app) == ["exporter_escapes_redaction"]

    @pytest.mark.parametrize("how", ["arguments", "file"])
    def test_preload_with_a_used_exporter(self, how: str, tmp_path: Path) -> None:
        """An exporter made before the fork, whichever way gunicorn is told to preload."""
        used = Observability(Settings(), span_exporters=[InMemorySpanExporter()])
        lazy = Observability(Settings(otlp_endpoint="http://127.0.0.1:9"))
        environ = {"GUNICORN_CMD_ARGS": "--preload --bind :80"} if how == "arguments" else {}
        if how == "file":
            (tmp_path / "gunicorn.conf.py").write_text("preload_app = True\nworkers = 1\n")
        try:
            for obs, expected in ((used, ["preload_with_used_exporter"]), (lazy, [])):
                app = init_app(Flask("app"), obs)
                assert names(app, environ=environ, folder=tmp_path) == expected
                assert names(app, folder=tmp_path / "elsewhere") == []
        finally:
            used.close()
            lazy.close()

    @pytest.mark.parametrize("environ", [{"GUNICORN_CMD_ARGS": "-w 2"}, {"WEB_CONCURRENCY": "3"}])
    def test_missing_multiprocess_directory(
        self, app: Flask, environ: dict[str, str], tmp_path: Path
    ) -> None:
        """Several workers without one, or one that is not there."""
        assert names(app, environ=environ) == ["missing_multiprocess_directory"]
        environ["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path / "none")
        assert names(app, environ=environ) == ["missing_multiprocess_directory"]
        (tmp_path / "none").mkdir()
        assert names(app, environ=environ) == []

    @pytest.mark.parametrize("policy", ["deny", "spool"])
    def test_audited_without_a_trail(
        self, policy: Any, app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A function that names a policy under which nothing is done without an entry, in a service without a trail."""
        monkeypatch.setattr("healthobs._runtime.operations", WeakSet[Any]())
        functions = [audited("chart.read")(lambda: "chart")]
        functions.append(audited("notes.read", policy="alert")(lambda: "notes"))
        assert names(app) == []
        functions.append(audited("allergies.read", policy=policy)(lambda: "allergies"))
        (finding,) = examine(app, environ={}, sqlite_version=SOUND)
        assert (finding.name, "allergies.read" in finding.seen) == ("audited_without_a_trail", True)
        settings = Settings(audit_database_url=f"sqlite:///{tmp_path}/kept.db")
        with contextlib.closing(Observability(settings, log_stream=io.StringIO())) as kept:
            found = names(Middleware(app, kept))  # both are in force, and one has none
        assert "audited_without_a_trail" in found
        assert "chart" not in finding.seen
        assert "notes" not in finding.seen
        keeping = Observability(
            Settings(
                audit_database_url=f"sqlite:///{tmp_path}/a.db",
                audit_key_file=tmp_path / "key",
                audit_spool_file=tmp_path / "spool",
            ),
            logs="off",
        )
        assert names(init_app(Flask("keeping"), keeping)) == []
        keeping.close()

    def test_spool_without_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A function whose policy is `spool`, in a service whose trail has no spool."""
        monkeypatch.setattr("healthobs._runtime.operations", WeakSet[Any]())
        settings = Settings(audit_database_url=f"sqlite:///{tmp_path}/a.db", audit_key_file=tmp_path / "key")
        without = Observability(settings, logs="off")
        spooling = Observability(replace(settings, audit_spool_file=tmp_path / "spool"), logs="off")
        apps = init_app(Flask("without"), without), init_app(Flask("spooling"), spooling)
        functions = [audited("chart.read")(lambda: "chart")]
        assert [names(app) for app in apps] == [[], []]
        functions.append(audited("allergies.read", policy="spool")(lambda: "allergies"))
        (finding,) = examine(apps[0], environ={}, sqlite_version=SOUND)
        assert (finding.name, "allergies.read" in finding.seen) == ("spool_without_file", True)
        assert names(apps[1]) == []
        for obs in (without, spooling):
            obs.close()

    @pytest.mark.parametrize(
        ("frameworks", "mapped", "found"),
        [(("hipaa",), False, ["subjects_as_given"]), (("hipaa",), True, []), (("sox",), False, [])],
    )
    def test_subjects_as_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frameworks: Any, mapped: bool, found: list[str]
    ) -> None:
        """A trail without a map of subjects, of a service that declares PHI, however it was opened; the remedy is told."""
        monkeypatch.setattr("healthobs._runtime.operations", WeakSet[Any]())
        subjects = SubjectMap(tmp_path / "subjects.db") if mapped else None
        trail = open_trail(f"sqlite:///{tmp_path}/a.db", service="s", subjects=subjects)
        settings = Settings(frameworks=frameworks, capture_stdlib=True)
        obs = Observability(settings, audit=trail, log_stream=io.StringIO())
        seen = examine(init_app(Flask("app"), obs), environ={}, sqlite_version=SOUND)
        assert [finding.name for finding in seen] == found
        assert all("audit_subjects_file" in finding.remedy and not finding.note for finding in seen)
        obs.close()
        trail.close()

    def test_vulnerable_sqlite(self, app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A release with the WAL-reset race is wrong only under a trail that is in WAL mode."""
        monkeypatch.setattr("healthobs._runtime.operations", WeakSet[Any]())  # not what other tests decorated
        assert names(app, sqlite_version=(3, 51, 2)) == []
        obs = Observability(
            Settings(audit_database_url=f"sqlite:///{tmp_path}/a.db", audit_key_file=tmp_path / "key"),
            logs="off",
        )
        kept = init_app(Flask("kept"), obs)
        for mode, expected in (("TRUNCATE", []), ("WAL", ["vulnerable_sqlite"])):
            with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as other:
                other.execute(f"PRAGMA journal_mode = {mode}")
            assert names(kept, sqlite_version=(3, 51, 2)) == expected
            assert names(kept, sqlite_version=SOUND) == []
        obs.close()

    def test_a_variable_that_is_no_setting(self) -> None:
        """A misspelt variable is named, and its value is not."""
        app = init_app(Flask("app"), Observability(Settings(), logs="off"))
        (finding,) = examine(app, environ={"HEALTHOBS_WARD": "4711"}, sqlite_version=SOUND)
        assert (finding.name, finding.seen) == (
            "unknown_variables",
            "no setting has these variables, which change nothing: HEALTHOBS_WARD",
        )

    def test_values_that_are_cut_before_they_are_redacted(self) -> None:
        """Where PHI is declared and patterns have to find it, limits of the SDK are named; `strict` needs no patterns."""
        environ = {
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "30",
            "OTEL_LOGRECORD_ATTRIBUTE_VALUE_LENGTH_LIMIT": "",
        }
        for redaction, expected in (("mask", ["values_cut_before_redaction"]), ("strict", [])):
            settings = Settings(frameworks=("hipaa",), redaction=redaction, capture_stdlib=True)
            obs = Observability(settings, log_stream=io.StringIO())
            found = examine(init_app(Flask("app"), obs), environ=environ, sqlite_version=SOUND)
            obs.close()
            assert [one.name for one in found] == expected
            assert [one.seen.partition(": ")[2] for one in found] == [
                "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"
            ] * len(found)

    def test_without_healthobs(self) -> None:
        """An application that it is not on is told, and is nothing wrong."""
        (finding,) = examine(Flask("bare"), environ={}, sqlite_version=(3, 51, 2))
        assert (finding.name, finding.note) == ("not_observed", True)

    @pytest.mark.parametrize(
        "app",
        [lambda environ, start_response: [], lambda *arguments: [], lambda scope, receive, send: None],
    )
    def test_a_function_may_be_an_application(self, app: Any) -> None:
        """What takes the arguments of WSGI or ASGI is no factory."""
        assert names(app) == ["not_observed"]

    @pytest.mark.parametrize(
        ("options", "how", "expected"),
        [
            ({}, {"logs": "off"}, ["logs_escape_redaction"]),
            ({"capture_stdlib": True}, {}, []),
            ({}, {"logs": "processor"}, []),
            ({"frameworks": ("sox",)}, {"logs": "off"}, []),
        ],
    )
    def test_logs_of_others_under_hipaa(
        self, options: dict[str, Any], how: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the server and libraries log must be taken up or processed where PHI is declared."""
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        monkeypatch.setattr(logging.getLogger("healthobs"), "level", logging.INFO)
        obs = Observability(Settings(**{"frameworks": ("hipaa",), **options}), **how)
        try:
            assert names(init_app(Flask("app"), obs)) == expected
        finally:
            obs.close()

    @pytest.mark.parametrize(
        ("level", "lowest", "mode", "expected"),
        [
            (logging.WARNING, "info", "processor", ["lines_below_level"]),
            (logging.INFO, "debug", "processor", ["lines_below_level"]),
            (logging.INFO, "info", "processor", []),
            (logging.WARNING, "warning", "processor", []),
            (logging.WARNING, "info", "own", []),
        ],
    )
    def test_lines_that_the_set_up_drops(
        self, level: int, lowest: Any, mode: Any, expected: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Access lines are of level info, which a root logger that nobody set drops in silence."""
        logger = logging.getLogger("healthobs")
        monkeypatch.setattr(logging.getLogger(), "level", level)
        logger.manager._clear_cache()  # type: ignore[attr-defined]
        obs = Observability(Settings(log_level=lowest), logs=mode)
        try:
            assert names(init_app(Flask("app"), obs)) == expected
        finally:
            obs.close()
            monkeypatch.undo()
            logger.manager._clear_cache()  # type: ignore[attr-defined]

    def test_a_structlog_set_up_has_a_level_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where structlog prints, the levels of `logging` say nothing; where it writes through `logging`, they do."""
        monkeypatch.setattr(logging.getLogger("healthobs"), "level", logging.WARNING)
        factories: list[tuple[Any, list[str]]] = [
            (structlog.PrintLoggerFactory(), []),
            (structlog.stdlib.LoggerFactory(), ["lines_below_level"]),
        ]
        for factory, expected in factories:
            structlog.configure(logger_factory=factory)
            obs = Observability(Settings(), logs="processor")
            try:
                assert names(init_app(Flask("app"), obs)) == expected
            finally:
                obs.close()
                structlog.reset_defaults()

    def test_a_handler_past_redaction(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A logger that keeps its own handler is named; one that has none is not."""
        obs = Observability(Settings(frameworks=("hipaa",)), logs="off")
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        logger = logging.getLogger("gunicorn.error")
        monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(), logging.NullHandler()])
        try:
            _, finding = examine(init_app(Flask("app"), obs), environ={}, sqlite_version=SOUND)
        finally:
            obs.close()
        assert finding.name == "logs_escape_redaction"
        assert finding.seen.endswith("write unredacted: StreamHandler of gunicorn.error")


class TestCommand:
    """`healthobs doctor`."""

    @pytest.fixture(autouse=True)
    def _module(self, app: Flask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "served.py").write_text(
            "from flask import Flask\nfrom healthobs import Observability, Settings\n"
            "from healthobs.flask import init_app\n"
            "def create_app(): return init_app(Flask('x'), Observability(Settings()))\napp = create_app()\n"
        )
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.delitem(sys.modules, "served", raising=False)
        monkeypatch.setattr("healthobs.doctor.sqlite3.sqlite_version_info", SOUND)

    @pytest.mark.parametrize("uri", ["served:app", "served:create_app()", "served"])
    def test_sound(self, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit status 0."""
        assert main(["doctor", uri]) == 0
        assert capsys.readouterr().out == "nothing is wrong\n"

    def test_without_healthobs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit status 0, and a line that says so."""
        (tmp_path / "served.py").write_text("from flask import Flask\napp = Flask('x')\n")
        assert main(["doctor", "served:app"]) == 0
        first, last = capsys.readouterr().out.splitlines()
        assert first.startswith("not_observed: healthobs is not on this application")
        assert last == "nothing is wrong"

    @pytest.mark.parametrize("arguments", ["", "settings=None, *, obs=None"])
    def test_parentheses_forgotten(
        self, arguments: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What makes the application is none: a finding with the call to name, and exit status 1."""
        (tmp_path / "served.py").write_text(f"def create_app({arguments}): raise RuntimeError\n")
        assert main(["doctor", "served:create_app"]) == 1
        assert capsys.readouterr().out == (
            "application_factory: create_app takes no arguments, so it makes an application and is none; only what is around it was "
            "examined. Name the call: create_app().\n"
        )

    @pytest.mark.parametrize("uri", ["served:nothing", "served:os.nothing", "served:nothing()"])
    def test_a_name_that_is_not_there(
        self, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It comes from the command line, so it is told."""
        (tmp_path / "served.py").write_text("import os\n")
        assert main(["doctor", uri]) == 2
        told = capsys.readouterr().err
        assert "(ConfigurationError: " in told
        assert told.endswith(
            " has no nothing: name what the server serves as MODULE:APP, or MODULE:create_app())\n"
        )

    def test_no_name(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Without one it is `app`, as for a server."""
        (tmp_path / "served.py").write_text("x = 1\n")
        assert main(["doctor", "served"]) == 2
        assert "served has no app: name what the server serves" in capsys.readouterr().err

    def test_no_module(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The form is told."""
        assert main(["doctor", ":app"]) == 2
        assert "as MODULE:APP" in capsys.readouterr().err

    def test_an_attribute_error_of_the_module(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One that its own code raises is told with its place, and is no missing name."""
        (tmp_path / "served.py").write_text("import os\nos.nothing_there\n")
        assert main(["doctor", "served:app"]) == 2
        assert capsys.readouterr().err == (
            f"healthobs: served:app cannot be loaded (AttributeError)\n  at {tmp_path / 'served.py'}:2 in <module>\n"
        )

    def test_multiprocess_directory_that_is_not_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A server's configuration may make it, which is not read here: the variable is told, and what to do."""
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path / "none"))
        assert main(["doctor", "served:app"]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert "PROMETHEUS_MULTIPROC_DIR names no directory that can be written to: create it" in told

    def test_refused_settings(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What healthobs itself refuses is told with its remedy."""
        (tmp_path / "served.py").write_text("from healthobs import Settings\nSettings(max_series=0)\n")
        assert main(["doctor", "served:app"]) == 2
        assert "(ConfigurationError: max_series must be at least 1)" in capsys.readouterr().err

    def test_findings(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """One line each, with the remedy; exit status 1."""
        monkeypatch.setenv("WEB_CONCURRENCY", "2")
        assert main(["doctor", "served:app"]) == 1
        assert capsys.readouterr().out.startswith("missing_multiprocess_directory: 2 workers, and each")

    @pytest.mark.parametrize("uri", ["nothing_there:app", "served:nothing", "os:getcwd()", "os:sep"])
    def test_cannot_load(self, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Exit status 2."""
        assert main(["doctor", uri]) == 2
        assert "cannot be loaded" in capsys.readouterr().err

    def test_a_module_that_is_missing_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The name of a module is no data, and tells what to install."""
        assert main(["doctor", "nothing_there:app"]) == 2
        assert "(ModuleNotFoundError: nothing_there)" in capsys.readouterr().err

    def test_where_it_failed_is_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """By file, line and function of the application's code; what is in a message is told only when the code wrote it."""
        place = tmp_path / "served.py"
        place.write_text(
            "def create_app():\n    number = '078-05-1120'\n    raise RuntimeError(f'no {number}')\n"
            "def other_app():\n    raise RuntimeError('set the key first')\n"
        )
        assert main(["doctor", "served:create_app()"]) == 2
        told = capsys.readouterr().err
        assert told == (
            f"healthobs: served:create_app() cannot be loaded (RuntimeError)\n  at {place}:3 in create_app\n"
        )
        assert main(["doctor", "served:other_app()"]) == 2
        assert "(RuntimeError: set the key first)\n  at " in capsys.readouterr().err

    def test_only_the_innermost_places(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Of many, those nearest to where it failed."""
        (tmp_path / "served.py").write_text(
            "def fails():\n    raise KeyError\n\ndef down(n):\n    down(n - 1) if n else fails()\n\ndown(50)\n"
        )
        assert main(["doctor", "served:app"]) == 2
        _, *places = capsys.readouterr().err.splitlines()
        assert (len(places), places[-1]) == (20, f"  at {tmp_path / 'served.py'}:2 in fails")

    def test_what_a_missing_framework_needs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The library's remedy is told, not the name of the module alone."""
        monkeypatch.setitem(sys.modules, "celery", None)
        monkeypatch.delitem(sys.modules, "healthobs.celery", raising=False)
        (tmp_path / "served.py").write_text("import healthobs.celery\n")
        assert main(["doctor", "served:app"]) == 2
        assert "(ModuleNotFoundError: Celery is not installed; pip install healthobs[celery])\n  at " in (
            capsys.readouterr().err
        )

    def test_syntax_of_no_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """An error of syntax that has no place of its own is at no place but where it was raised."""
        (tmp_path / "served.py").write_text("raise SyntaxError('no')\n")
        assert main(["doctor", "served:app"]) == 2
        assert "None" not in capsys.readouterr().err

    def test_code_that_is_none(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The line is told, and not what stands there."""
        (tmp_path / "served.py").write_text("x = 1\ny = = 2\n")
        assert main(["doctor", "served:app"]) == 2
        told = capsys.readouterr().err
        assert told == (
            f"healthobs: served:app cannot be loaded (SyntaxError)\n  at {tmp_path / 'served.py'}:2\n"
        )
