"""Background checks, hysteresis, the workers' board, stalls, other formats, and what is measured of checks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs import Observability, Settings, _runtime, use
from healthobs.clock import Clock
from healthobs.exceptions import InstrumentationError
from healthobs.health import Board, Degraded, Health, Progress, Unreachable, http_dependency
from healthobs.health.board import ROWS
from healthobs.health.formats import draft06, with_causes
from healthobs.testing import Capture

MOMENT = datetime(2025, 11, 23, 10, 30, tzinfo=UTC)


class Time:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.clock = Clock(
            lambda: int((MOMENT.timestamp() + self.elapsed) * 1e9), lambda: 10**9 + int(self.elapsed * 1e9)
        )


@pytest.fixture
def ticking() -> Time:
    return Time()


@pytest.fixture
def health(ticking: Time) -> Iterator[Health]:
    made = Health("svc", "1.0.0", ticking.clock)
    made.ready()
    yield made
    made.close()


@pytest.fixture
def board() -> Board:
    """Return the board in force, on which this process has the first row."""
    made = _runtime.process.board = Board()
    made.row = made.take()
    return made


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def often(health: Health, check: Callable[[], object]) -> None:
    """Register a check that runs in the background every few milliseconds, and has its turn on a busy machine."""
    health.register("database", check, interval=0.01, timeout=0.01)
    made = health._checks["database"]
    made.spec = replace(made.spec, timeout=30)


class TestBackground:
    """Checks with an `interval`."""

    def test_runs_by_itself(self, health: Health) -> None:
        """It goes on running while nobody asks, and whoever asks does not wait."""
        runs: list[None] = []
        often(health, lambda: runs.append(None))
        health.readiness()
        until(lambda: len(runs) >= 3)
        assert health.readiness()[1]["checks"] == {"database": "ready"}

    def test_asking_runs_nothing(self, health: Health) -> None:
        """After the first answer a question starts no run, however old the word."""
        runs: list[None] = []
        health.register("database", lambda: runs.append(None), interval=60, ttl=0)
        for _ in range(5):
            health.readiness()
        time.sleep(0.05)  # time for a run that should not be
        assert len(runs) == 1

    def test_stale_after_three_intervals(self, health: Health, ticking: Time) -> None:
        """A good word is believed for three intervals; then the check is not ready."""
        health.register("database", lambda: True, interval=60)
        words = []
        for ticking.elapsed in (0.0, 180.0, 180.1):
            words.append((health.readiness()[0], health.readiness()[1]["checks"]["database"]))
        assert words == [(200, "ready"), (200, "ready"), (503, "stale")]

    def test_stale_liveness_has_failed(self, health: Health, ticking: Time) -> None:
        """Liveness has no word ``stale``."""
        health.register("loop", lambda: True, kind="liveness", interval=60)
        assert health.liveness()[0] == 200
        ticking.elapsed = 181.0
        assert health.liveness()[1]["checks"] == {"loop": "failed"}

    def test_fails_after_two_bad_runs(self, health: Health) -> None:
        """In the background one bad run is not believed yet."""
        results = iter([True, False, True, False, False])
        ran: list[bool] = []
        words: list[str] = []

        def check() -> bool:
            words.append(health.snapshot()["database"][1])
            ran.append(next(results, False))
            return ran[-1]

        often(health, check)
        health.readiness()
        until(lambda: len(ran) >= 6)
        assert words[:6] == ["starting", "ready", "ready", "ready", "ready", "not_ready"]

    def test_ends_with_the_health(self, health: Health) -> None:
        """Closing ends the thread."""
        health.register("database", lambda: True, interval=0.01, timeout=0.01)
        health.readiness()

        def running() -> bool:
            return "healthobs-loop-database" in [thread.name for thread in threading.enumerate()]

        assert running()
        health.close()
        until(lambda: not running())


class TestHysteresis:
    """`fail_after`."""

    @given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 4))
    def test_against_a_model(self, results: list[bool], fail_after: int) -> None:
        """A good word ends with the n-th bad run in a row, a bad one with the first good run."""
        ticking = Time()
        health = Health("s", "1", ticking.clock)
        health.ready()
        result = True
        health.register("database", lambda: result, ttl=0, fail_after=fail_after)
        good, row = False, 0
        for result in results:
            ticking.elapsed += 2
            row = 0 if result else row + 1
            good = result or (good and row < fail_after)
            assert (health.readiness()[1]["checks"]["database"] == "ready") == good

    @pytest.mark.parametrize("options", [{"fail_after": 0}, {"interval": 0.1, "timeout": 0.5}])
    def test_out_of_range(self, health: Health, options: dict[str, Any]) -> None:
        """A check must be able to fail, and to run within its interval."""
        with pytest.raises(InstrumentationError):
            health.register("database", lambda: True, **options)


class TestBoard:
    """What workers know of each other."""

    def test_shared_over_a_fork(self, board: Board) -> None:
        """A child's row and its drain are seen here, and it sees ours."""
        board.write(ready=True, alive=True)
        row = board.take()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            board.row = row
            board.write(ready=False, alive=True)
            board.drain()
            os._exit(0 if len(list(board.others())) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        (other,) = board.others()
        assert (other.pid, other.ready, other.alive, board.draining) == (child, 0, 1, True)
        board.give_back(row)
        assert list(board.others()) == []

    def test_rows_are_finite(self) -> None:
        """Beyond the last row a worker has none, and that harms nothing."""
        board = Board()
        rows = [board.take() for _ in range(ROWS)]
        assert (len(set(rows)), board.take()) == (ROWS, None)
        board.write(ready=True, alive=True)
        board.give_back(None)
        board.give_back(5)
        assert board.take() == 5

    def test_another_worker_decides_too(self, board: Board, health: Health) -> None:
        """While one worker is not ready, or not alive, every worker says so, and nobody stays so by echo."""
        second = board.take()
        mine, board.row = board.row, second
        board.write(ready=False, alive=False)
        board.row = mine
        health.write_verdicts()
        assert health.readiness() == (503, {"ready": False, "checks": {"workers": "not_ready"}})
        assert health.liveness()[1]["checks"] == {"workers": "failed"}
        board.row = second
        assert [(row.ready, row.alive) for row in board.others()] == [(1, 1)]
        board.write(ready=True, alive=True)
        board.row = mine
        assert (health.readiness()[0], health.liveness()[0]) == (200, 200)

    @pytest.mark.parametrize(("kind", "written"), [("readiness", (0, 1)), ("liveness", (1, 0))])
    def test_the_verdicts_are_those_of_the_checks(
        self, board: Board, health: Health, kind: Any, written: tuple[int, int]
    ) -> None:
        """What one worker writes is what its checks say now, each probe's by itself."""
        health.register("broken", lambda: False, kind=kind)
        health.write_verdicts()
        board.row = None
        assert [(row.pid, row.ready, row.alive) for row in board.others()] == [(os.getpid(), *written)]

    def test_draining_is_everybodys(self, board: Board, health: Health) -> None:
        """One byte drains them all, for good, and the workers' verdicts are of no interest then."""
        told: list[str] = []
        health._on_transition = lambda _name, _old, new, _cause: told.append(new)
        assert health.readiness()[0] == 200
        board.drain()
        assert health.readiness() == (503, {"ready": False, "checks": {"lifecycle": "draining"}})
        assert (health.liveness()[0], told) == (200, ["ready", "draining"])

    def test_a_silent_worker_has_stalled(
        self, board: Board, ticking: Time, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the stall watchdog on, a worker that writes nothing any more has failed."""
        health = Health("s", "1", ticking.clock, progress=Progress(60, ticking.clock))
        mine, board.row = board.row, board.take()
        board.write(ready=True, alive=True)
        board.row = mine
        assert health.liveness()[0] == 200
        real = time.monotonic_ns
        monkeypatch.setattr(time, "monotonic_ns", lambda: real() + 61 * 10**9)
        assert health.liveness()[1]["checks"] == {"request_progress": "ok", "workers": "failed"}


class TestProgress:
    """The stall watchdog."""

    @given(st.lists(st.tuples(st.sampled_from("bace"), st.integers(0, 3), st.integers(0, 40)), max_size=40))
    def test_against_a_model(self, steps: list[tuple[str, int, int]]) -> None:
        """It fails exactly when something is in flight and nothing has begun, sent or ended for too long."""
        ticking = Time()
        progress = Progress(60, ticking.clock)
        open_: dict[int, float] = {}
        last = 0.0
        for what, key, wait in steps:
            ticking.elapsed += wait
            if what == "b":
                progress.begin(key)
                open_[key] = ticking.elapsed
            elif what == "a":
                progress.advance()
                last = ticking.elapsed
            elif what == "e":
                progress.end(key)
                open_.pop(key, None)
                last = ticking.elapsed
            stalled = bool(open_) and ticking.elapsed - max(last, min(open_.values())) > 60
            assert progress.check() is not stalled

    def test_a_request_that_hangs_fails_liveness(self) -> None:
        """Through the middleware: a silent request is a stall, one that sends chunks is not."""
        from healthobs.wsgi import Middleware

        ticking = Time()
        obs = Observability(
            Settings(max_stall_seconds=60, log_level="critical"), clock=ticking.clock, span_exporters=[]
        )
        seen: list[int] = []

        def app(environ: Any, start_response: Any) -> Any:
            ticking.elapsed += 50
            seen.append(obs.health.liveness()[0])
            start_response("200 OK", [])
            for _ in range(3):
                yield b"chunk"
                ticking.elapsed += 50
                seen.append(obs.health.liveness()[0])
            ticking.elapsed += 11
            seen.append(obs.health.liveness()[0])

        environ = {"PATH_INFO": "/x", "REQUEST_METHOD": "GET", "wsgi.url_scheme": "http"}
        body = Middleware(app, obs)(environ, lambda *_args: lambda _data: None)
        assert b"".join(body) == b"chunk" * 3
        assert seen == [200, 200, 200, 200, 503]
        body.close()  # type: ignore[attr-defined]
        ticking.elapsed += 100
        assert obs.health.liveness()[0] == 200
        obs.close()


class TestFormats:
    """`application/health+json`, and causes."""

    @pytest.mark.parametrize(
        ("result", "critical", "overall", "grade"),
        [(True, True, "pass", "pass"), (False, True, "fail", "fail"), (False, False, "warn", "warn")],
    )
    def test_draft06(
        self, health: Health, ticking: Time, *, result: bool, critical: bool, overall: str, grade: str
    ) -> None:
        """pass, warn or fail, for the whole and for each check, with its response time."""
        health.readiness()
        health.register("database", lambda: result, critical=critical)
        status, body = health.readiness()
        ticking.elapsed = 3.0
        assert draft06(health, status, body["checks"]) == {
            "status": overall,
            "serviceId": "svc",
            "releaseId": "1.0.0",
            "checks": {
                "database:responseTime": [
                    {
                        "componentType": "component",
                        "observedValue": 0.0,
                        "observedUnit": "ms",
                        "status": grade,
                        "time": "2025-11-23T10:30:00Z",
                    }
                ]
            },
        }

    def test_draft06_of_the_life_cycle(self, ticking: Time) -> None:
        """Draining and starting are no component of their own; a check that never ran has no time."""
        health = Health("svc", "1", ticking.clock)
        assert draft06(health, *_words(health)) == {
            "status": "fail",
            "serviceId": "svc",
            "releaseId": "1",
            "checks": {"lifecycle": [{"componentType": "system", "status": "fail"}]},
        }

    def test_degraded_warns(self, health: Health) -> None:
        """Degraded is a warning, and the service passes on."""

        def check() -> None:
            raise Degraded

        health.register("cache", check)
        assert draft06(health, *_words(health))["status"] == "warn"

    def test_causes_are_types(self, health: Health, ticking: Time) -> None:
        """The answer with causes names the exception's type, its age and whether it matters; never its text."""

        def check() -> None:
            ticking.elapsed += 0.25
            raise OSError("patient Jane")

        health.register("database", check)
        _, body = health.readiness()
        ticking.elapsed += 1.5
        assert with_causes(health, body)["checks"] == {
            "database": {
                "word": "not_ready",
                "critical": True,
                "cause": "OSError",
                "duration_seconds": 0.25,
                "age_seconds": 1.5,
            },
            "lifecycle": {"word": "starting"},
        }


def _words(health: Health) -> tuple[int, dict[str, str]]:
    status, body = health.readiness()
    return status, body["checks"]


class TestHttpDependency:
    """`http_dependency`."""

    @pytest.fixture
    def peer(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps the connection until the caller closes it

            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/well/health" else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        with HTTPServer(("127.0.0.1", 0), Handler) as http:
            thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{http.server_address[1]}"
            http.shutdown()
            thread.join()

    @pytest.mark.parametrize(
        ("path", "critical", "expected"),
        [
            ("/well", False, (200, "ready")),
            ("/ill", False, (200, "degraded")),
            ("/ill", True, (503, "not_ready")),
        ],
    )
    def test_asks_for_health(
        self, capture: Capture, peer: str, *, path: str, critical: bool, expected: tuple[int, str]
    ) -> None:
        """It asks the peer's `/health`; a peer that is ill degrades, and only a critical one decides."""
        health = capture.obs.health
        health.ready()
        health.readiness()
        http_dependency("auth-service", peer + path, critical=critical)
        status, body = health.readiness()
        assert (status, body["checks"]["auth_service"]) == expected

    def test_not_critical_by_default(self, peer: str) -> None:
        """Unless told otherwise, another service's illness is no reason to be out of service."""
        with use(Observability(Settings(disabled=True))) as obs:
            http_dependency("auth-service", f"{peer}/ill/")
            obs.health.ready()
            assert obs.health.readiness()[1]["checks"]["auth_service"] == "degraded"

    def test_https_is_tls(self, peer: str) -> None:
        """A peer that is to be asked over TLS, and speaks plainly, is not well."""
        with use(Observability(Settings(disabled=True))):
            check = http_dependency("auth-service", f"{peer.replace('http', 'https')}/well", critical=True)
        with pytest.raises(Unreachable):
            check()

    def test_nobody_there(self) -> None:
        """A refused connection is a bad answer, not an error."""
        with use(Observability(Settings(disabled=True))):
            check = http_dependency("auth-service", "http://127.0.0.1:1", critical=True)
        with pytest.raises(Unreachable):
            check()


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
        obs = Observability(Settings(log_level="critical"), clock=ticking.clock, span_exporters=[])
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


class TestBuiltinChecks:
    """Which checks come by themselves."""

    def test_by_signal(self, tmp_path: Any) -> None:
        """Metrics and tracing always; the audit trail where there is one; each can be left out by name."""
        plain = Observability(Settings())
        audited = Observability(Settings(audit_database_url=f"sqlite:///{tmp_path / 'a.db'}"))
        fewer = Observability(Settings(builtin_checks=("metrics",)))
        assert [sorted(obs.health.snapshot()) for obs in (plain, audited, fewer)] == [
            ["metrics", "tracing"],
            ["audit_trail", "metrics", "tracing"],
            ["metrics"],
        ]
        assert audited.health.facts()["audit_trail"].critical
        assert not audited.health.facts()["metrics"].critical
        for obs in (plain, audited, fewer):
            obs.close()
