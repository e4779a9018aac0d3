"""Tests of the library's controls: each passes on a healthy service and fails under its sabotage, alone.

Every sabotage comes from outside the probe: settings, environment, database file, keys, exporters, clock. The
state of every control is compared each time, so a control that fails without being declared is found too.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.controlled_service import HEALTHY, NOW, UNSEEN, Service, context
from tests.service_sabotages import (
    CHANGED_ACTION,
    FIRST_ACTION,
    SABOTAGE,
    add_bare_exporter,
    drop_triggers,
)

from healthobs import Observability, Settings
from healthobs.asgi import Middleware as AsgiMiddleware
from healthobs.audit.checkpoint import Signer
from healthobs.clock import Clock
from healthobs.compliance import (
    CANARY_ACTION,
    CANARY_SUBJECT,
    Control,
    ControlEngine,
    Outcome,
    control,
    library_controls,
)
from healthobs.compliance.catalogue import with_catalogue
from healthobs.compliance.documents import Document, sign
from healthobs.compliance.probes_telemetry import _card_number
from healthobs.compliance.recording import is_kept
from healthobs.exceptions import ConfigurationError


class TestSabotage:
    """A check that cannot be made to fail is no evidence."""

    def test_healthy(self, build: Callable[..., Service]) -> None:
        """On a healthy service every control passes, round after round, but the one that cannot."""
        service = build()
        assert [service.run() for _ in range(3)] == [HEALTHY] * 3
        assert service.engine.gate_open()

    @pytest.mark.parametrize("name", SABOTAGE)
    def test_exactly_the_declared(self, build: Callable[..., Service], name: str) -> None:
        """What is declared changes, and nothing else."""
        options, sabotage, changed = SABOTAGE[name]
        service = build(**options)
        service.engine.run()
        sabotage(service)
        assert service.run() == {**HEALTHY, **changed}
        required_failures = sorted(
            {name for name in changed if changed[name] != "pass"}
            - {"H-312.a2i", "H-312.a2ii", "H-514", "C-10.2", "C-10.6"}
        )
        assert sorted(service.engine.gate_failures()) == required_failures

    def test_every_control_has_one(self) -> None:
        """No control of the library goes without a sabotage that makes it fail."""
        broken = {
            name for _, _, changed in SABOTAGE.values() for name, state in changed.items() if state == "fail"
        }
        assert broken == {control.id for control in library_controls()}

    def test_recovery(self, build: Callable[..., Service]) -> None:
        """What is mended passes again, and both changes are in the trail, provably."""
        service = build()
        service.engine.run()
        with closing(sqlite3.connect(service.path)) as connection:
            triggers = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        drop_triggers(service)
        service.engine.run(["C-10.3"])
        service.raw(*(sql for (sql,) in triggers))
        assert service.run() == HEALTHY
        page = service.trail.read(action=CHANGED_ACTION, resource_id="C-10.3")
        changes = [
            (entry["details"]["control.old"], entry["details"]["control.new"])
            for entry in reversed(page.entries)
        ]
        assert changes == [("pass", "fail"), ("fail", "pass")]
        assert service.trail.verify().ok

    def test_messages_hold_no_secret(self, build: Callable[..., Service]) -> None:
        """Evidence names what was seen and quotes neither canary nor token."""
        service = build(allowed_keys=("card_number", "ssn", "cvv"), authentication="off")
        service.engine.run()
        shown = json.dumps(service.engine.status(detail=True))
        assert "078-05-1120" not in shown
        assert "400000" not in shown
        assert "eyJ" not in shown


class TestRecording:
    """What the engine leaves in the signals."""

    def test_state_changes_are_entries(self, build: Callable[..., Service]) -> None:
        """A process begins with one entry of all states; each change is another, whose index is in the report."""
        service = build()
        service.engine.run()
        (first,) = service.trail.read(action=FIRST_ACTION).entries
        assert first["details"] == {
            f"control.{state}": " ".join(name for name in HEALTHY if HEALTHY[name] == state)
            for state in sorted(set(HEALTHY.values()) - {"unknown"})
        }
        add_bare_exporter(service)
        service.engine.run()
        (entry,) = service.trail.read(action=CHANGED_ACTION).entries
        assert (entry["resource"]["id"], entry["details"]) == (
            "G-wrap",
            {"control.old": "pass", "control.new": "fail"},
        )
        rows = {row["id"]: row["audit_index"] for row in service.engine.status(detail=True)["controls"]}
        assert rows == {**dict.fromkeys(rows, first["index"]), "G-wrap": entry["index"]}

    def test_waivers_are_entries(self, tmp_path: Path) -> None:
        """Who waived what until when is in the trail from the day on which it counts, and so is its end."""
        officer = Signer("privacy-officer", Ed25519PrivateKey.generate())
        folder = tmp_path / "documents"
        folder.mkdir()
        waiver = Document("waiver", "H-312.c", "2020-01-01", "2099-12-31", "no witness yet")
        (folder / "w.json").write_text(sign(waiver, officer))
        settings = Settings(
            redaction="strict",
            audit_database_url=f"sqlite:///{tmp_path / 'a.db'}",
            endpoints=True,
            compliance_documents=folder,
            compliance_keys=(officer.vkey,),
        )
        clock = Clock(lambda: NOW * 10**9, lambda: 9)
        obs = Observability(settings, clock=clock, log_stream=io.StringIO())
        assert obs.controls is not None
        assert obs.audit is not None
        obs.controls.run(["H-312.c"])
        shut = "H-312.c" in obs.controls.gate_failures()
        (folder / "w.json").unlink()
        obs.controls.run(["H-312.c"])
        left = (date(2099, 12, 31) - clock.now().date()).days
        details = {"control.person": "privacy-officer", "control.days_left": left}
        entries = [
            (entry["action"], entry["resource"]["id"], entry["details"])
            for entry in obs.audit.read(resource_id="H-312.c").entries
        ]
        after = "H-312.c" in obs.controls.gate_failures()
        obs.close()
        assert entries == [
            ("control.waiver_ended", "H-312.c", details),
            ("control.waived", "H-312.c", details),
        ]
        assert (shut, after) == (False, True)

    def test_states_are_kept_in_strict_mode(self, tmp_path: Path) -> None:
        """What controls found is in the trail whatever mode redacts."""
        settings = Settings(
            redaction="strict", audit_database_url=f"sqlite:///{tmp_path / 'a.db'}", endpoints=True
        )
        obs = Observability(settings, log_stream=io.StringIO())
        assert obs.controls is not None
        assert obs.audit is not None
        obs.controls.run(["G-wrap"])
        (entry,) = obs.audit.read(action=FIRST_ACTION).entries
        obs.close()
        assert entry["details"] == {"control.partial": "G-wrap"}

    def test_canaries_are_marked(self, build: Callable[..., Service]) -> None:
        """Whatever probes write carries the reserved subject and action."""
        service = build()
        service.engine.run()
        entries = service.trail.read().entries
        others = [entry for entry in entries if entry["action"] not in (CANARY_ACTION, FIRST_ACTION)]
        canaries = [entry for entry in entries if entry["action"] == CANARY_ACTION]
        assert (others, {entry["subject"] for entry in canaries}, len(canaries)) == ([], {CANARY_SUBJECT}, 1)

    def test_metrics(self, build: Callable[..., Service]) -> None:
        """Runs are counted by framework and result; the gauge is 1 for the state that holds, and only for it."""
        service = build()
        service.engine.run()
        service.obs.tracing.provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        service.engine.run(["G-wrap"])
        gauge = {
            row for row in service.metric('healthobs_control_state{control="G-wrap"') if row.endswith(" 1.0")
        }
        assert gauge == {'healthobs_control_state{control="G-wrap",state="fail"} 1.0'}
        counted = service.metric("phi_compliance_checks_total{")
        assert 'phi_compliance_checks_total{result="pass",type="hipaa"} 7.0' in counted
        assert 'phi_compliance_checks_total{result="fail",type="hipaa"} 1.0' in counted

    def test_each_change_is_one_line(self, tmp_path: Path) -> None:
        """It says from what to what, as loud as it matters; the first round only what fails, and a trail that is away no more."""
        stream, now = io.StringIO(), {"S-1": "pass", "S-2": "fail"}

        def made(name: str, required: bool) -> Control:
            def probe(_: object) -> Outcome:
                return Outcome(cast("Any", now[name]), "seen")

            return Control(
                name, "policy 1", "company", "Title", "criterion", "probe", probe, required=required
            )

        place = tmp_path / "a.db"
        obs = Observability(
            Settings(audit_database_url=f"sqlite:///{place}", endpoints=True, redaction="strict"),
            log_stream=stream,
            controls=[made("S-1", True), made("S-2", False)],
        )
        engine = obs.controls
        assert engine is not None

        def lines() -> list[tuple[str, ...]]:
            engine.run(["S-1", "S-2"])
            written = [json.loads(line) for line in stream.getvalue().splitlines()]
            stream.seek(0)
            stream.truncate()
            return [
                tuple(line[name] for name in ("level", "control", "old", "new"))
                for line in written
                if line["event"] == "control_changed"
            ]

        assert lines() == [("warning", "S-2", "unknown", "fail")]
        now.update({"S-1": "fail", "S-2": "pass"})
        place.rename(tmp_path / "away")
        assert lines() == [("error", "S-1", "pass", "fail"), ("info", "S-2", "fail", "pass")]
        (tmp_path / "away").rename(place)
        assert lines() == []
        now.update({"S-1": "partial", "S-2": "fail"})
        assert lines() == [("info", "S-1", "fail", "partial"), ("warning", "S-2", "pass", "fail")]
        now.update({"S-1": "pass", "S-2": "pass"})
        assert [line[0] for line in lines()] == ["info", "info"]
        told = []
        for state in ("partial", "not-applicable", "unknown", "pass", "not-applicable", "pass", "unknown"):
            now.update({"S-1": state})
            told += [(line[0], line[3]) for line in lines()]
        loud, quiet = "warning", "info"
        assert told == [
            (loud, "partial"),
            (quiet, "not-applicable"),
            (loud, "unknown"),
            (quiet, "pass"),
            (quiet, "not-applicable"),
            (quiet, "pass"),
            (loud, "unknown"),
        ]
        obs.close()

    def test_what_fails_at_the_start_is_told(self, tmp_path: Path) -> None:
        """A process that begins on a log that was tampered with says so at once; one whose controls know little says nothing."""
        place = tmp_path / "a.db"

        def told() -> set[tuple[str, ...]]:
            stream = io.StringIO()
            settings = Settings(audit_database_url=f"sqlite:///{place}", endpoints=True)
            obs = Observability(settings, log_stream=stream)
            assert obs.audit is not None
            assert obs.controls is not None
            obs.audit.append({"action": "patient.read", "actor": "client-1", "subject": "s-17"})
            obs.controls.run()
            obs.close()
            lines = [json.loads(line) for line in stream.getvalue().splitlines()]
            return {
                tuple(line[name] for name in ("event", "level", "control", "old", "new")) for line in lines
            }

        assert told() == set()
        with closing(sqlite3.connect(place)) as connection, connection:
            connection.execute("DROP TRIGGER entry_no_update")
            connection.execute("UPDATE entry SET body = replace(body, 'read', 'list') WHERE idx = 0")
        assert ("control_changed", "error", "H-312.c", "unknown", "fail") in told()

    @pytest.mark.parametrize("first", [False, True])
    def test_trail_that_was_away(self, tmp_path: Path, first: bool) -> None:
        """The gauge shows each state as it is while the trail is away and after; what it missed is recorded once it is back."""
        place = tmp_path / "a.db"
        settings = Settings(audit_database_url=f"sqlite:///{place}", endpoints=True)
        obs = Observability(settings, log_stream=io.StringIO())
        assert obs.controls is not None
        assert obs.audit is not None

        def gauge() -> list[str]:
            shown = obs.metrics.exposition(None)[1].decode()
            of = re.findall(r'healthobs_control_state{control="H-312.b",state="([a-z-]+)"} 1.0', shown)
            return [str(state) for state in of]

        seen: list[list[str]] = []
        for away in (True, False, False) if first else (False, True, False, False):
            if away:
                place.rename(tmp_path / "away")
            obs.controls.run(["H-312.b"])
            if away:
                (tmp_path / "away").rename(place)
            seen.append(gauge())
        entries = [
            entry for entry in obs.audit.read().entries if str(entry["action"]).startswith("control.state")
        ]
        obs.close()
        details = [entry["details"] for entry in reversed(entries)]
        assert {detail.pop("control.late_s", 0) for detail in details} == {0}
        if first:
            assert seen == [["fail"], ["pass"], ["pass"]]
            assert details == [{"control.fail": "H-312.b"}, {"control.old": "fail", "control.new": "pass"}]
        else:
            assert seen == [["pass"], ["fail"], ["pass"], ["pass"]]
            assert details == [
                {"control.pass": "H-312.b"},
                {"control.old": "pass", "control.new": "fail"},
                {"control.old": "fail", "control.new": "pass"},
            ]

    def test_change_that_was_recorded_late_says_so(self, build: Callable[..., Service]) -> None:
        """An entry has its own time, so one that could not be recorded at once says how many seconds it is late."""
        service = build()
        service.engine.run()
        service.obs.tracing.provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
        away = service.path.rename(service.path.with_name("away"))
        service.engine.run(["G-wrap"])
        away.rename(service.path)
        service.elapsed += 90
        service.engine.run(["G-wrap"])
        (entry,) = service.trail.read(action=CHANGED_ACTION, resource_id="G-wrap").entries
        assert entry["details"] == {"control.old": "pass", "control.new": "fail", "control.late_s": 90}

    def test_no_redaction_is_counted_where_nothing_was_said(self, tmp_path: Path) -> None:
        """What the start and the controls plant is not counted: a service that only watches shows what others said."""
        settings = Settings(
            audit_database_url=f"sqlite:///{tmp_path}/a.db", endpoints=True, redaction="watch"
        )
        obs = Observability(settings, log_stream=io.StringIO())
        assert obs.controls is not None
        obs.controls.run()
        shown = obs.metrics.exposition(None)[1].decode()
        obs.close()
        assert re.findall(r"healthobs_redactions_total{.*", shown) == []

    def test_decay_shows_in_the_gauge(self, build: Callable[..., Service]) -> None:
        """Stale evidence is unknown in the metrics too, from the next round on."""
        service = build()
        service.engine.run(["HDR"])
        service.elapsed = 601
        service.engine.run(["G-wrap"])
        assert 'healthobs_control_state{control="HDR",state="unknown"} 1.0' in service.metric(
            "healthobs_control"
        )

    def test_scope_contradicted_by_what_is_seen(self, build: Callable[..., Service]) -> None:
        """Who declares to have no card data and logs a card number fails every control of card data."""
        service = build(out_of_scope=("chd",))
        assert {name: state for name, state in service.engine.run().items() if name.startswith("C-")} == {
            name: "not-applicable" for name in (*HEALTHY, *UNSEEN) if name.startswith("C-")
        }
        service.obs.logs.get_logger("x").info("paid", step=f"with {_card_number()}")
        assert {state for name, state in service.engine.run().items() if name.startswith("C-")} == {"fail"}
        shown = json.dumps(service.engine.status(detail=True))
        assert "declared: chd is not in scope; but telemetry of this process had to be rid of: card" in shown

    def test_unknown_scope(self, build: Callable[..., Service]) -> None:
        """A declaration of what the catalogue does not know is a mistake."""
        with pytest.raises(ConfigurationError):
            build(out_of_scope=("cards",))

    def test_own_controls(self, build: Callable[..., Service]) -> None:
        """A service's own controls stand beside the library's."""
        own = Control(
            "S-1", "policy 7", "company", "Ledger", "sum is 0", "measure", lambda _: Outcome("fail", "5")
        )
        service = build(controls=(own,))
        assert service.run() == {**HEALTHY, "S-1": "fail"}
        assert service.metric('phi_compliance_checks_total{result="fail",type="company"}') != []

    def test_own_controls_that_are_none(self) -> None:
        """What is no control is refused by its place, with what to do."""

        def births(_context: object) -> Outcome:
            return Outcome("pass", "all have a date")

        made = control("H-528")(births)
        settings = Settings(endpoints=True, control_interval_seconds=0)
        with pytest.raises(
            ConfigurationError, match=r"^controls: item 2, 3 is no Control: .*@control"
        ) as caught:
            Observability(settings, controls=[made, births, "Ottoline"])  # type: ignore[list-item]
        assert "Ottoline" not in str(caught.value)
        with pytest.raises(ConfigurationError, match=r"^controls takes a sequence of Control"):
            Observability(settings, controls=made)  # type: ignore[arg-type]

    def test_own_ids_that_redaction_would_mask(self) -> None:
        """They are refused by their place, as entries could not tell which control is meant; the catalogue's are all kept."""
        own = [
            Control(name, "policy 7", "company", "Ledger", "sum is 0", "attestation")
            for name in ("POL-1", "POL-2026-01-15", "S-1", "SOP-555-123-4567")
        ]
        settings = Settings(endpoints=True, control_interval_seconds=0)
        with pytest.raises(
            ConfigurationError, match=r"^controls: redaction would mask the id of item 2, 4 in "
        ) as caught:
            Observability(settings, controls=own)
        assert "2026" not in str(caught.value)
        assert "555" not in str(caught.value)
        kept = with_catalogue((*library_controls(), own[0], own[2]))
        assert [made.id for made in kept if not is_kept(made.id)] == []

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    def test_probe_that_is_broken_leaves_a_line(self, redaction: Any) -> None:
        """Its type and its places, once and not in each round; the row that everybody sees has no cause."""
        stream = io.StringIO()

        def raises(_context: object) -> Outcome:
            raise KeyError("Ottoline")

        def word(_context: object) -> Outcome:
            return "pass"  # type: ignore[return-value]

        def wrong(_context: object) -> Outcome:
            return Outcome("ok", "seen", 1)  # type: ignore[arg-type]

        own = [
            control(name, criterion="seen")(probe)
            for name, probe in (("H-308.4", raises), ("H-308.5", word), ("H-310.d", wrong))
        ]
        settings = Settings(endpoints=True, control_interval_seconds=0, redaction=redaction)
        obs = Observability(settings, controls=own, log_stream=stream)
        assert obs.controls is not None
        for _ in range(2):
            obs.controls.run(["H-308.4", "H-308.5", "H-310.d"])
        summary = json.dumps(obs.controls.status())
        obs.close()
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        faults = [line for line in lines if line["event"] == "control_probe_failed"]
        assert [(line["level"], line["control"], line["exception_type"]) for line in faults] == [
            ("warning", "H-308.4", "KeyError"),
            ("warning", "H-308.5", "healthobs.compliance.engine.NoOutcomeError"),
            ("warning", "H-310.d", "ValueError"),
        ]
        assert ".raises:" in faults[0]["exception_frames"][-1]
        assert (
            faults[1]["exception_message"]
            == "a probe returns an Outcome, and this one returned something else"
        )
        assert faults[2]["exception_message"].startswith("the state of an outcome is one of pass, fail")
        assert "Ottoline" not in stream.getvalue()
        assert "raised" not in summary

    def test_without_trail_and_application(self) -> None:
        """What cannot be seen is unknown, never a pass; the gate stays shut."""
        obs = Observability(Settings(service_name="bare", endpoints=True))
        assert obs.controls is not None
        states = {name: state for name, state in obs.controls.run().items() if name not in UNSEEN}
        del states["C-10.6"]  # the machine decides
        assert states == {
            **dict.fromkeys(
                ["H-312.a1", "H-312.a2i", "H-312.a2ii", "H-312.b", "H-312.c", "H-312.d"], "unknown"
            ),
            **dict.fromkeys(["P-10b", "P-10c", "P-10d", "C-10.3", "HDR"], "unknown"),
            **dict.fromkeys(["H-316", "C-10.2", "C-10.5", "C-10.7", "S-ret"], "unknown"),
            **dict.fromkeys(["C-3.3", "C-3.5", "H-514", "G-wrap"], "partial"),
        }
        assert not obs.controls.gate_open()
        obs.close()


class TestStaleness:
    """Evidence of the library's controls goes stale."""

    def test_all_decay(self, build: Callable[..., Service]) -> None:
        """When nothing runs any more, everything is unknown after its time, and the gate is shut."""
        service = build()
        service.engine.run()
        longest = max(control.valid_for_s for control in library_controls())
        service.elapsed = longest
        assert service.engine.states()["H-312.b"] == "pass"
        service.elapsed = longest + 1
        assert set(service.engine.states().values()) == {"unknown"}
        assert not service.engine.gate_open()


def test_types_meet() -> None:
    """The engine takes what the catalogue gives."""
    engine = ControlEngine(library_controls(), context, Clock())
    assert list(engine.states()) == list(HEALTHY)


class TestAsgi:
    """Controls of an ASGI application."""

    def test_they_begin_with_the_first_request(self) -> None:
        """Nothing runs until a request comes."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            """Answer nothing."""

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        obs = Observability(Settings(endpoints=True, frameworks=("hipaa",)), log_stream=io.StringIO())
        engine = obs.controls
        assert engine is not None
        middleware = AsgiMiddleware(app, obs)
        scope = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""}
        idle = [engine.schedule.idle]

        async def served() -> None:
            await middleware(scope, app, send)
            idle.append(engine.schedule.idle)
            await asyncio.to_thread(engine.stop)  # as a server's shutdown does, while its loop still runs

        asyncio.run(served())
        states = engine.run()
        obs.close()
        assert (idle, sent[0]["status"]) == ([True, False], 200)
        assert states["G-wrap"] == "pass"
