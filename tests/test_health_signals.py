"""What is measured and logged of checks: when one has run or its word has changed, never by a scrape."""

from __future__ import annotations

from tests.healthy import MOMENT, Time

from healthobs import Observability, Settings
from healthobs.health import Degraded
from healthobs.testing import Capture


class TestMeasured:
    """Metrics of checks: written when a check has run, never made by a scrape."""

    def test_a_scrape_runs_no_check(self, capture: Capture) -> None:
        """However often it is scraped, no check runs; what is shown is the last word."""
        runs: list[None] = []

        def check() -> bool:
            runs.append(None)
            return False

        health = capture.obs.health
        health.register("database", check)
        health.ready()
        health.readiness()
        shown = [capture.obs.metrics.exposition(None)[1].decode() for _ in range(3)][-1].splitlines()
        assert len(runs) == 1
        for line in (
            'healthobs_check_status{check="database",kind="readiness"} 0.0',
            'healthobs_check_status{check="metrics",kind="readiness"} 1.0',
            'healthobs_check_runs_total{check="database",result="not_ready"} 1.0',
            'healthobs_check_transitions_total{check="database",to="not_ready"} 1.0',
            'healthobs_check_duration_seconds_count{check="database"} 1.0',
            "healthobs_ready 0.0",
        ):
            assert line in shown
        assert [line for line in shown if line.startswith("healthobs_check_last_success")] != []
        assert not [line for line in shown if "last_success" in line and "database" in line]

    def test_ready_and_life_cycle(self, capture: Capture) -> None:
        """`healthobs_ready` and `healthobs_lifecycle` follow the answers."""
        health = capture.obs.health
        health.ready()
        health.readiness()
        assert b"\nhealthobs_ready 1.0" in capture.obs.metrics.exposition(None)[1]
        health.drain()
        shown = capture.obs.metrics.exposition(None)[1].decode().splitlines()
        assert "healthobs_ready 0.0" in shown
        assert 'healthobs_lifecycle{state="draining"} 1.0' in shown
        assert 'healthobs_lifecycle{state="ready"} 0.0' in shown

    def test_one_line_for_each_change(self) -> None:
        """A change for the worse is a warning with the type of its cause; a change for the better says so."""
        with Capture(Settings(builtin_checks=())) as capture:
            health = capture.obs.health
            ill = True

            def check() -> None:
                if ill:
                    raise Degraded

            health.register("cache", check, ttl=0)
            health.ready()
            health.readiness()
            ill = False
            health.readiness()
            health.drain()
            lines = [
                tuple(line.get(key) for key in ("level", "check", "old", "new", "cause"))
                for line in capture.log_lines
                if line["event"] == "check_changed"
            ]
        assert lines == [
            ("warning", "cache", "starting", "degraded", "Degraded"),
            ("info", "lifecycle", "starting", "ready", None),
            ("info", "cache", "degraded", "ready", None),
            ("warning", "lifecycle", "ready", "draining", None),
        ]

    def test_when_a_check_was_last_good(self, ticking: Time) -> None:
        """The time of the last good run stays while the check fails; a bad run is no success."""
        obs = Observability(Settings(log_level="critical"), clock=ticking.clock(), span_exporters=[])
        good = True
        obs.health.register("database", lambda: good, ttl=0)
        for ticking.elapsed, good in ((7.0, True), (9.0, False)):  # noqa: B007
            obs.health.readiness()
        shown = obs.metrics.exposition(None)[1].decode()
        obs.close()
        series = 'healthobs_check_last_success_timestamp_seconds{check="database"} '
        (value,) = [line.removeprefix(series) for line in shown.splitlines() if line.startswith(series)]
        assert float(value) == MOMENT.timestamp() + 7

    def test_disabled_records_nothing(self) -> None:
        """With telemetry off checks go on, unmeasured."""
        obs = Observability(Settings(disabled=True, log_level="critical"))
        obs.health.register("database", lambda: True)
        obs.health.ready()
        assert obs.health.readiness() == (200, {"ready": True, "checks": {"database": "ready"}})
        assert b"healthobs_check_runs_total{" not in obs.metrics.exposition(None)[1]
