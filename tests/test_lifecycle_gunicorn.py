"""gunicorn, 2 workers of 8 threads: exact counts, an ops port that always answers, a stop that loses nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import urllib3

from live_servers import Collector, Server, serving, stop_under_load, until

pytestmark = pytest.mark.server

APP = """
import os, time
from flask import Flask
from healthobs import Observability, Settings
from healthobs.flask import init_app

def create_app():
    app = Flask("app")

    @app.get("/pid")
    def pid():
        time.sleep(0.01)
        return str(os.getpid())

    @app.get("/slow")
    def slow():
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0.3")))
        return "done"

    @app.get("/held")
    def held():
        while not os.path.exists("release"):
            time.sleep(0.02)
        return "done"

    settings = Settings.from_env(service_name="svc", prefix="svc", endpoints=True, log_level="critical")
    return init_app(app, Observability(settings))
"""
LAUNCH = """
import os, sys
from healthobs.gunicorn import serve
serve("app:create_app()", host="127.0.0.1", port=int(sys.argv[1]), ops_port=int(sys.argv[2]),
      workers=2, threads=8, environ=os.environ)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "counter_1.db").write_bytes(b"left by an earlier start")
    return tmp_path


def start(directory: Path, launch: str = LAUNCH, **environ: str) -> AbstractContextManager[Server]:
    """Return the context of a server on free ports."""
    environ.setdefault("PROMETHEUS_MULTIPROC_DIR", str(directory / "metrics"))
    return serving(directory, ["-c", launch, "PORT", "OPS"], **environ)


@contextmanager
def releasing(directory: Path) -> Iterator[None]:
    """Let the held requests go at the end, whatever happened."""
    try:
        yield
    finally:
        (directory / "release").touch()


def planted(hook: str, instead: str) -> str:
    """Return a launcher whose gunicorn runs our hooks but for one, which does `instead`."""
    config = f"from healthobs.gunicorn import *\\ndef {hook}(server, worker): {instead}\\n"
    return (
        "import sys\n"
        "from pathlib import Path\n"
        "from healthobs import gunicorn\n"
        f"Path('planted.py').write_text('{config}')\n"
        "right = gunicorn.command\n"
        "def command(*args, **options):\n"
        "    line = right(*args, **options)\n"
        "    return ['python:planted' if part == 'python:healthobs.gunicorn' else part for part in line]\n"
        "gunicorn.command = command\n" + LAUNCH
    )


def requests(server: Server, count: int, path: str = "/pid") -> list[str]:
    """Send `count` requests from 8 clients; return the answers."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _: server.get(path).data.decode(), range(count)))


def shown(server: Server) -> float:
    """Return how many requests to `/pid` the ops port's metrics show."""
    text = server.get("/metrics", ops=True).data.decode()
    found = re.findall(r'^svc_request_duration_seconds_count\{[^}]*"/pid"[^}]*\} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


def counted(server: Server, expected: int) -> float:
    """Return what is shown once `expected` has been, or after some seconds; a request is answered before it counts."""
    for _ in range(50):
        if shown(server) == expected:
            break
        time.sleep(0.05)
    return shown(server)


def kill_one(server: Server, directory: Path, victim: int | None = None) -> int:
    """Kill a worker once both have loaded, and wait until another has taken its place; return the dead one's pid."""
    until(lambda: loaded(server, directory))
    victim = victim or min(server.children())
    os.kill(victim, signal.SIGKILL)
    until(lambda: victim not in server.children() and loaded(server, directory))
    return victim


def loaded(server: Server, directory: Path) -> bool:
    """Return whether two workers have loaded the application and write metrics."""
    pids = set(map(str, server.children()))
    return len(pids) == 2 and pids <= owners(directory)


def owners(directory: Path) -> set[str]:
    """Return whose metric files there are."""
    return {file.stem.rpartition("_")[2] for file in (directory / "metrics").glob("*.db")}


class TestCounts:
    """Metrics over several workers, some of them dead."""

    def test_exact_after_kills_and_reload(self, directory: Path) -> None:
        """Counts survive SIGKILL and SIGHUP exactly, shown by whichever worker; the files do not pile up."""
        with start(directory) as server:
            total = 0
            for _ in range(2):
                requests(server, 40)
                total += 40
                assert counted(server, total) == total
                kill_one(server, directory)
                assert counted(server, total) == total
            before = server.children()
            server.process.send_signal(signal.SIGHUP)
            until(lambda: not before & server.children() and loaded(server, directory))
            requests(server, 40)
            total += 40
            assert {counted(server, total) for _ in range(6)} == {total}
            assert owners(directory) <= {"archive", *map(str, server.children())}

    def test_planted_without_the_hook(self, directory: Path) -> None:
        """Where nobody merges, a dead worker's files stay, and deleting them makes the count go back."""
        with start(directory, planted("child_exit", "pass")) as server:
            answered = int(requests(server, 40)[0])  # on a busy machine the other may have counted nothing
            dead = kill_one(server, directory, answered)
            assert str(dead) in owners(directory)
            for file in (directory / "metrics").glob(f"*_{dead}.db"):
                file.unlink()
            assert counted(server, 40) < 40

    def test_second_master_goes_on_counting(self, directory: Path) -> None:
        """After SIGUSR2 and the end of the old master, port and counts are the same."""
        with start(directory) as server:
            requests(server, 40)
            old = server.children()
            server.process.send_signal(signal.SIGUSR2)
            (successor,) = until(lambda: {pid for pid in server.children() - old if len(_children(pid)) == 2})
            try:
                until(lambda: set(map(str, _children(successor))) <= owners(directory))
                server.term()
                server.process.wait(15)
                requests(server, 40)
                assert counted(server, 80) == 80
            finally:
                os.kill(successor, signal.SIGTERM)
                until(lambda: not Path(f"/proc/{successor}").exists() or _zombie(successor))


class TestOpsPort:
    """The port that is answered whatever the workers do."""

    def test_answers_while_every_thread_is_held(self, directory: Path) -> None:
        """With all 16 threads held, `/health` on the ops port answers 200 of 200 within the kubelet's second."""
        with start(directory) as server, ThreadPoolExecutor(500) as held, releasing(directory):
            # The kernel chooses the worker, so there are more until both have no thread left.
            while "svc_active_requests 16.0" not in server.get("/metrics", ops=True).data.decode():
                held.submit(server.get, "/held", timeout=60.0)
            # The planted fault: the main port does not answer in that time.
            with pytest.raises(urllib3.exceptions.TimeoutError):
                server.get("/health", timeout=1.0)
            answers = [server.get("/health", ops=True, timeout=1.0).status for _ in range(200)]
            assert answers == [200] * 200
            readiness = server.get("/readiness", ops=True, timeout=1.0)
            assert readiness.status == 200
            assert readiness.json()["checks"]["metrics"]["critical"] is False
            assert "healthobs_ready 1.0" in server.get("/metrics", ops=True).data.decode()

    def test_a_port_in_use_stops_the_start(self, directory: Path) -> None:
        """A server whose ops port is taken does not start, and says why."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            launch = LAUNCH.replace("int(sys.argv[2])", str(taken.getsockname()[1]))
            with serving(directory, ["-c", launch, "PORT", "OPS"], ready=False) as server:
                assert server.process.wait(20) != 0
                assert "the ops port cannot be bound" in server.log.read_text()


def exporting(collector: Collector) -> dict[str, str]:
    """Return an environment in which spans wait for a minute, so that only a flush sends them in time."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "60000"}


class TestStop:
    """SIGTERM under load."""

    @pytest.fixture
    def collector(self) -> Iterator[Collector]:
        with Collector() as running:
            yield running

    def test_loses_no_request_and_no_span(self, directory: Path, collector: Collector) -> None:
        """Clients that honour readiness see no error, each answered request has its span, in the grace given."""
        with start(directory, HEALTHOBS_DRAIN_DELAY_SECONDS="2", **exporting(collector)) as server:
            clients, took = stop_under_load(server)
            assert clients.errors == []
            assert len(clients.traces) > 30
            assert clients.traces - set(collector.spans) == set()
            assert 2.0 <= took < 10.0
            assert server.process.returncode == 0

    def test_planted_without_drain_and_flush(self, directory: Path, collector: Collector) -> None:
        """Without the drain the same clients see connections reset; without the flush spans are missing."""
        launch = planted("worker_exit", '__import__("os")._exit(0)')
        with start(directory, launch, **exporting(collector)) as server:
            clients, _ = stop_under_load(server, wary=False)
            assert clients.errors != []
            assert clients.traces - set(collector.spans) != set()

    def test_draining_shows_in_every_worker(self, directory: Path) -> None:
        """From the first SIGTERM on every probe says draining, liveness stays well, a second SIGTERM is now."""
        with start(directory, HEALTHOBS_DRAIN_DELAY_SECONDS="20") as server:
            server.term()
            until(lambda: server.get("/readiness").status == 503)
            answers = [server.get("/readiness") for _ in range(40)]
            assert {(answer.status, answer.json()["checks"]["lifecycle"]) for answer in answers} == {
                (503, "draining")
            }
            assert server.get("/health").status == 200
            assert server.get("/readiness", ops=True).status == 503
            began = time.monotonic()
            server.term()
            assert server.process.wait(10) == 0
            assert time.monotonic() - began < 8


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    try:
        return {int(child) for task in tasks for child in task.read_text().split()}
    except OSError:
        return set()


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


PRELOADED = """
import app as module
from healthobs import current
from healthobs.tracing.exporters import LazyExporter
PLANTED
app = module.create_app()
with current().tracing.tracer.start_as_current_span("boot"):
    pass
current().flush()
"""
PRELOAD = """
import os, sys
from healthobs import gunicorn
line = gunicorn.command("preloaded:app", host="127.0.0.1", port=int(sys.argv[1]), workers=2, threads=8)
os.execve(sys.executable, [*line, "--preload"], os.environ)
"""
#: The exporter that the master has made serves the workers, too.
SHARED = """
def export(self, spans):
    if self._exporter is None:
        self._exporter = self._make()
    return self._exporter.export(spans)
LazyExporter.export = export
"""


class TestPreload:
    """An exporter that the master has used before it forks."""

    def shared(self, directory: Path, planted: str = "") -> tuple[bool, int]:
        """Serve once; return whether a worker sent on the master's connection, and how many spans arrived."""
        (directory / "preloaded.py").write_text(PRELOADED.replace("PLANTED", planted))
        with Collector() as collector:
            metrics = str(directory / "metrics")
            environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "PROMETHEUS_MULTIPROC_DIR": metrics}
            with serving(directory, ["-c", PRELOAD, "PORT"], **environ) as server:
                requests(server, 40)
                until(lambda: len(collector.spans) >= 41 or planted)
            ports = {name: collector.ports_of(name) for name in ("boot", "GET /pid")}
            return bool(ports["boot"] & ports["GET /pid"]), len(collector.spans)

    def test_workers_have_connections_of_their_own(self, directory: Path) -> None:
        """No worker sends on the master's connection, and each span arrives."""
        assert self.shared(directory) == (False, 41)

    def test_a_shared_exporter_is_seen(self, directory: Path) -> None:
        """Planted: two processes on one connection often break it at once, so a few tries are given."""
        assert any(self.shared(directory, SHARED)[0] for _ in range(8))
