"""`Observability`: what it builds from settings, that it is frozen and isolated, and that it lets go of everything."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from prometheus_client import REGISTRY, CollectorRegistry

from healthobs import (
    AuditError,
    ConfigurationError,
    HealthobsWarning,
    Observability,
    Settings,
    current,
    install,
    observe,
    use,
)
from healthobs.audit import open_trail
from healthobs.compliance import Control, Outcome
from healthobs.exceptions import AuditWriteError
from healthobs.testing import Capture


class TestConstruction:
    """What the constructor does, and what it leaves alone."""

    def test_nothing_global_is_touched(self) -> None:
        """The process-wide tracer provider and Prometheus registry stay as they are."""
        provider, names = trace.get_tracer_provider(), set(REGISTRY._names_to_collectors)
        obs = Observability(Settings(service_name="demo"))
        with use(obs):
            observe("op", in_flight=True)(lambda: 0)()
        assert trace.get_tracer_provider() is provider
        assert set(REGISTRY._names_to_collectors) == names
        obs.close()

    def test_frozen(self) -> None:
        """It cannot be changed after construction."""
        obs = Observability(Settings())
        with pytest.raises(AttributeError, match="frozen"):
            obs.settings = Settings()  # type: ignore[misc]
        obs.close()

    @pytest.mark.parametrize("given", [{"service_name": "4711"}, None, Settings])
    def test_it_is_made_of_settings(self, given: Any) -> None:
        """Anything else is refused by what is missing."""
        with pytest.raises(ConfigurationError) as caught:
            Observability(given)
        assert caught.value.problems == ("settings must be a healthobs.Settings",)

    @pytest.mark.parametrize("mode", ["json", None, ["own"]])
    def test_modes_of_logs_are_a_closed_set(self, mode: Any) -> None:
        """A word that nobody knows is not taken for `own`."""
        with pytest.raises(ConfigurationError) as caught:
            Observability(Settings(), logs=mode)
        assert caught.value.problems == ("logs must be one of own, processor, off",)

    @pytest.mark.parametrize(
        "name",
        [
            "audit_key_file",
            "audit_spool_file",
            "audit_subjects_file",
            "audit_subjects_key_file",
            "audit_subjects_url",
            "audit_policy",
        ],
    )
    def test_parts_of_an_audit_trail_without_one_do_not_start(self, name: str, tmp_path: Path) -> None:
        """Whoever names one believes that there is a trail; a trail that is passed has its own."""
        texts = {"audit_policy": "spool", "audit_subjects_url": "sqlite:///4711"}
        given: Any = {name: texts.get(name, tmp_path / "4711")}
        with pytest.raises(ConfigurationError) as caught:
            Observability(Settings(**given))
        assert caught.value.problems == (
            f"{name} needs an audit trail: set audit_database_url, or pass Observability(audit=...)",
        )
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s", spool_file=tmp_path / "spool")
        Observability(Settings(**given), audit=trail).close()
        trail.close()

    def test_settings_reach_every_part(self) -> None:
        """Service name, allowed keys and prefix arrive in log line, span resource and metrics."""
        settings = Settings(service_name="billing", allowed_keys=("patient_name",))
        with Capture(settings) as capture:
            capture.obs.logs.emit("info", "event", {"patient_name": "synthetic"})
            observe("op")(lambda: 0)()
        assert capture.span("op").resource.attributes["service.name"] == "billing"
        assert (capture.log_lines[0]["service"], capture.log_lines[0]["patient_name"]) == (
            "billing",
            "synthetic",
        )
        assert capture.metric("healthobs_build_info", service="billing", version="0.0.0") == 1

    def test_an_append_waits_as_long_as_told(self, tmp_path: Path) -> None:
        """Whoever holds the store does not hold a thread of the service for longer; what was refused is not recorded later."""
        url = f"sqlite:///{tmp_path / 'audit.db'}"
        obs = Observability(
            Settings(audit_database_url=url, audit_timeout_seconds=1), log_stream=io.StringIO()
        )
        assert obs.audit is not None
        with closing(sqlite3.connect(tmp_path / "audit.db", isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            began = time.monotonic()
            with pytest.raises(AuditWriteError, match="within 1 s"):
                obs.audit.append({"action": "chart.read"})
            assert 0.9 < time.monotonic() - began < 4
        obs.audit.append({"action": "chart.list"})
        actions = [entry["action"] for entry in obs.audit.read().entries]
        obs.close()
        assert actions == ["chart.list"]

    def test_registry(self) -> None:
        """A registry that is passed is the one that is recorded in."""
        registry = CollectorRegistry()
        obs = Observability(Settings(), registry=registry)
        assert obs.metrics.registry is registry
        obs.close()

    def test_redactions_are_counted(self) -> None:
        """Each mark counts, by signal."""
        with Capture() as capture:
            capture.obs.logs.emit("info", "event", {"mrn": "A-1"})
        assert capture.metric("healthobs_redactions_total", signal="log", kind="key") == 1

    def test_captured_standard_library(self) -> None:
        """`capture_stdlib` takes the root logger, and close gives it back."""
        import logging

        before = list(logging.getLogger().handlers)
        stream = io.StringIO()
        obs = Observability(Settings(capture_stdlib=True), log_stream=stream)
        logging.getLogger("other").warning("call 212-555-0123")
        obs.close()
        assert json.loads(stream.getvalue())["event"] == "call [PHI:phone]"
        assert logging.getLogger().handlers == before

    def test_capturing_beside_a_set_up_that_keeps_its_format_is_refused(self) -> None:
        """With `processor`, lines go through the root logger: a handler there that hands them back would lose each."""
        import logging

        before = list(logging.getLogger().handlers)
        with pytest.raises(ConfigurationError, match="exclude each other"):
            Observability(Settings(capture_stdlib=True), logs="processor")
        obs = Observability(Settings(), logs="processor")
        with pytest.raises(ConfigurationError, match="exclude each other"):
            obs.logs.capture_stdlib()
        obs.close()
        assert logging.getLogger().handlers == before

    def test_capturing_where_no_line_is_written_takes_nothing(self) -> None:
        """With `off`, the root logger stays the application's."""
        import logging

        before = list(logging.getLogger().handlers)
        obs = Observability(Settings(capture_stdlib=True), logs="off")
        assert logging.getLogger().handlers == before
        obs.close()

    def test_a_failed_construction_takes_nothing_over(self, tmp_path: Path) -> None:
        """When the trail cannot be opened, the root logger is still the application's."""
        import logging

        before = list(logging.getLogger().handlers)
        (tmp_path / "file").write_text("no folder")
        with pytest.raises((AuditError, ConfigurationError)):
            Observability(
                Settings(capture_stdlib=True, audit_database_url=f"sqlite:///{tmp_path}/file/audit.db")
            )
        assert logging.getLogger().handlers == before


class TestSubjectsAsGiven:
    """Who declares PHI and keeps a trail is told that subjects are kept as they are given."""

    @pytest.mark.parametrize("frameworks", [("hipaa",), ("sox", "hipaa")])
    def test_warned_of(self, tmp_path: Path, frameworks: Any) -> None:
        """Once, where the settings open the trail without a map; the remedy is named, and the place of the call."""
        settings = Settings(frameworks=frameworks, audit_database_url=f"sqlite:///{tmp_path}/audit.db")
        with pytest.warns(HealthobsWarning, match="audit_subjects_file") as told:
            obs = Observability(settings)
        obs.close()
        assert [warning.filename for warning in told] == [__file__]

    @pytest.mark.parametrize(
        ("frameworks", "mapped"), [(("hipaa",), "file"), (("hipaa",), "url"), (("sox",), ""), ((), "")]
    )
    def test_not_warned_of(self, tmp_path: Path, frameworks: Any, mapped: str) -> None:
        """With a map nothing is said, nor where no PHI is declared."""
        maps: dict[str, Any] = {
            "file": {"audit_subjects_file": tmp_path / "s.db"},
            "url": {"audit_subjects_url": f"sqlite:///{tmp_path}/s.db"},
        }
        url = f"sqlite:///{tmp_path}/audit.db"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Observability(
                Settings(frameworks=frameworks, audit_database_url=url, **maps.get(mapped, {}))
            ).close()
            Observability(Settings(frameworks=("hipaa",))).close()

    def test_a_capture_has_nothing_to_warn_of(self) -> None:
        """Its trail goes with it."""
        with Capture(Settings(frameworks=("hipaa",)), audit=True) as capture:
            assert capture.obs.audit is not None


class TestClose:
    """`close` and `flush`."""

    def test_close_twice(self, tmp_path: Path) -> None:
        """Closing again does nothing."""
        obs = Observability(Settings(audit_database_url=f"sqlite:///{tmp_path}/audit.db", endpoints=True))
        obs.close()
        obs.close()

    def test_an_audit_trail_that_was_passed_stays_open(self, tmp_path: Path) -> None:
        """Who opened the trail closes it."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="demo")
        Observability(Settings(), audit=trail).close()
        assert trail.append({"action": "a.b"}).index == 0
        trail.close()

    def test_its_own_audit_trail_is_closed(self, tmp_path: Path) -> None:
        """A trail that it opened takes nothing after close."""
        obs = Observability(Settings(audit_database_url=f"sqlite:///{tmp_path}/audit.db"))
        assert obs.audit is not None
        obs.close()
        with pytest.raises(AuditError):
            obs.audit.append({"action": "a.b"})

    def test_it_stops_the_controls(self) -> None:
        """The thread that runs controls ends with it."""
        obs = Observability(Settings(endpoints=True))
        before = set(threading.enumerate())
        assert obs.controls is not None
        obs.controls.start(3600)
        (started,) = set(threading.enumerate()) - before
        obs.close()
        started.join(30)
        assert not started.is_alive()

    def test_flush(self, capture: Capture) -> None:
        """Flush says that everything was sent."""
        assert capture.obs.flush() is True


class TestHealth:
    """Transitions of checks."""

    def test_a_transition_is_logged(self, capture: Capture) -> None:
        """A check that changes its word leaves a line; one that turned bad a warning with the cause's type."""
        words: list[Any] = [True, ConnectionError("db.internal:5432")]

        def database() -> bool:
            word = words.pop(0)
            if isinstance(word, Exception):
                raise word
            return bool(word)

        capture.obs.health.register("database", database, ttl=0.0)
        capture.obs.health.readiness()
        capture.obs.health.readiness()
        told = [
            (line["level"], line["old"], line["new"], line.get("cause"))
            for line in capture.log_lines
            if line["event"] == "check_changed" and line["check"] == "database"
        ]
        assert told == [
            ("info", "starting", "ready", None),
            ("warning", "ready", "not_ready", "ConnectionError"),
        ]
        assert capture.leaks("db.internal") == ()


class TestControls:
    """The control engine's wiring."""

    @staticmethod
    def control(outcomes: list[Outcome]) -> Control:
        """Return a control whose probe gives `outcomes` in turn."""
        return Control(
            "S-1", "policy 7", "company", "Ledger", "sum is 0", "measure", lambda _: outcomes.pop(0)
        )

    def test_only_when_asked_for(self) -> None:
        """Without endpoints and controls of its own, a service has no engine."""
        obs = Observability(Settings())
        assert obs.controls is None
        obs.close()

    def test_library_controls(self) -> None:
        """With the endpoints come the library's controls, all unknown until they run."""
        with Capture(Settings(endpoints=True), audit=True) as capture:
            assert capture.obs.controls is not None
            assert set(capture.obs.controls.states().values()) == {"unknown"}
            assert "H-312.b" in capture.obs.controls.states()
            assert capture.metric("healthobs_control_state", control="H-312.b", state="unknown") == 1
            assert capture.obs.controls.run(["H-312.b"]) == {"H-312.b": "pass"}

    def test_runs_are_counted_and_changes_recorded(self) -> None:
        """Each run counts once; each change of state sets the gauge and leaves one audit entry, but for the first states."""
        outcomes = [Outcome("pass", "0"), Outcome("pass", "0"), Outcome("fail", "7")]
        with Capture(Settings(prefix="pay"), audit=True, controls=[self.control(outcomes)]) as capture:
            assert capture.obs.controls is not None
            for _ in range(3):
                capture.obs.controls.run(["S-1"])
        count = [
            capture.metric("pay_compliance_checks_total", type="company", result=result)
            for result in ("pass", "fail", "unknown")
        ]
        assert count == [2, 1, None]
        state = [
            capture.metric("healthobs_control_state", control="S-1", state=state)
            for state in ("unknown", "pass", "fail")
        ]
        assert state == [0, 0, 1]
        told = [
            (entry["resource"]["id"], entry["details"])
            for entry in capture.audit_entries
            if entry["action"] == "control.state_changed"
        ]
        assert told == [("S-1", {"control.old": "pass", "control.new": "fail"})]

    def test_without_a_trail(self) -> None:
        """Without a trail, changes are in the metrics only."""
        with Capture(controls=[self.control([Outcome("pass", "0")])]) as capture:
            assert capture.obs.controls is not None
            capture.obs.controls.run(["S-1"])
        assert capture.metric("healthobs_control_state", control="S-1", state="pass") == 1


class TestCurrent:
    """`current`, `install` and `use`."""

    def test_nothing_installed(self) -> None:
        """There always is one; where nothing is in force it records nothing."""
        install(None)
        assert current().settings.disabled is True
        assert current() is current()

    def test_the_context_goes_first(self) -> None:
        """The context's own, then the process default."""
        default, own = Observability(Settings()), Observability(Settings())
        install(default)
        with use(own):
            assert current() is own
        assert current() is default
        default.close()
        own.close()
