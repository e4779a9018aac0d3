"""uvicorn, one process and two workers: an ops port that always answers, a stop that loses nothing.

That is no request of a client that honours readiness, and no span.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import urllib3

from live_servers import Collector, Server, serving, stop_under_load, until

pytestmark = pytest.mark.server

APP = """
import asyncio, time
from pathlib import Path
from fastapi import FastAPI
from healthobs import Observability, Settings
from healthobs.asgi import init_app

obs = Observability(Settings.from_env(service_name="svc", log_level="critical"))

api = FastAPI()

@api.get("/slow")
async def slow():
    await asyncio.sleep(0.3)
    return "done"

def hold():
    while not Path("release").exists():
        time.sleep(0.02)
    return "done"

@api.get("/loop")
async def loop():
    return hold()

api.get("/thread")(hold)

app = init_app(api, obs)
"""
LINE = ["-m", "uvicorn", "app:app", "--port", "PORT", "--log-level", "warning", "--no-access-log"]
#: The supervisor gives a worker that starts, and with it the replacement of all, no more than that time; 5 s are its default.
TWO = [*LINE, "--workers", "2", "--timeout-worker-healthcheck", "30"]
WORKERS = pytest.mark.parametrize("line", [LINE, TWO], ids=["one process", "two workers"])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def ops_ready(server: Server) -> bool:
    """Return whether the ops port answers and says that the service is ready."""
    try:
        return server.get("/readiness", ops=True, timeout=1.0).status == 200
    except urllib3.exceptions.HTTPError:
        return False


@contextmanager
def held(server: Server, path: str, requests: int) -> Iterator[None]:
    """Hold every worker with requests to `path` that end when the block does; the main port is mute then.

    `requests` are sent at a time, since one worker may take all that come at once.
    """
    with ThreadPoolExecutor(8 * requests) as clients:
        try:
            while not mute(server, path):
                for _ in range(requests):
                    clients.submit(server.get, path, timeout=60.0)
            yield
        finally:
            (server.log.parent / "release").touch()


def mute(server: Server, path: str) -> bool:
    """Return whether the main port leaves a request alone for a second, five times running."""
    for _ in range(5):
        try:
            server.get("/health" if path == "/loop" else "/thread", timeout=1.0)
        except urllib3.exceptions.TimeoutError:
            continue
        return False
    return True


class TestOpsPort:
    """The port that is answered whatever the workers do."""

    @WORKERS
    @pytest.mark.parametrize(("path", "requests"), [("/loop", 8), ("/thread", 100)])
    def test_answers_while_all_is_held(
        self, directory: Path, line: list[str], path: str, requests: int
    ) -> None:
        """With every event loop, or every thread of the pools, held, `/health` answers in each of 200 tries."""
        with serving(directory, line, HEALTHOBS_OPS_PORT="OPS") as server:
            until(lambda: ops_ready(server))
            with held(server, path, requests):
                answers = [server.get("/health", ops=True, timeout=1.0).status for _ in range(200)]
                assert len(workers(server)) == (2 if line is TWO else 0)
            assert answers == [200] * 200

    @WORKERS
    def test_a_stall_is_seen(self, directory: Path, line: list[str]) -> None:
        """With every event loop held for longer than `max_stall_seconds`, liveness fails; afterwards it is well."""
        environ = {"HEALTHOBS_OPS_PORT": "OPS", "HEALTHOBS_MAX_STALL_SECONDS": "3"}
        with serving(directory, line, **environ) as server:
            until(lambda: ops_ready(server))
            with held(server, "/loop", 8):
                stalled = until(lambda: unwell(server))
            assert stalled == {"request_progress": "failed"}
            until(lambda: server.get("/health", ops=True).status == 200)

    def test_another_worker_takes_over(self, directory: Path) -> None:
        """When the worker that answers is killed, or all are replaced, the port goes on answering soon."""
        with serving(directory, TWO, HEALTHOBS_OPS_PORT="OPS") as server:
            until(lambda: ops_ready(server))
            for worker in sorted(workers(server)):
                os.kill(worker, signal.SIGKILL)
                until(lambda gone=worker: gone not in workers(server) and ops_ready(server))  # type: ignore[misc]
            until(lambda: len(workers(server)) == 2)
            before = workers(server)  # read before any is replaced
            server.process.send_signal(signal.SIGHUP)
            until(lambda: not before & workers(server) and ops_ready(server))

    @WORKERS
    def test_a_port_in_use_stops_the_start(self, directory: Path, line: list[str]) -> None:
        """A server whose ops port somebody else has does not start, and says why."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            environ = {"HEALTHOBS_OPS_PORT": str(taken.getsockname()[1])}
            with serving(directory, line, ready=False, **environ) as server:
                code = server.process.wait(60)
                assert line is TWO or code != 0  # uvicorn's supervisor ends with 0
                assert "the ops port cannot be bound" in server.log.read_text()


def unwell(server: Server) -> dict[str, str] | None:
    """Return the checks of a liveness answer that is 503; None when it is none."""
    answer = server.get("/health", ops=True, timeout=1.0)
    return answer.json()["checks"] if answer.status == 503 else None


def workers(server: Server) -> set[int]:
    """Return the pids of the workers; the supervisor has a helper process besides."""
    return {pid for pid in server.children() if b"spawn_main" in command_line(pid)}


def command_line(pid: int) -> bytes:
    """Return it; nothing of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@WORKERS
@pytest.mark.parametrize("planted", [False, True])
def test_a_stop_loses_no_request_and_no_span(tmp_path: Path, line: list[str], planted: bool) -> None:
    """Clients that honour readiness see no error and each answer has its span; planted: no drain."""
    (tmp_path / "app.py").write_text(APP)
    with Collector() as collector:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
            "HEALTHOBS_DRAIN_DELAY_SECONDS": "0" if planted else "2",
            "HEALTHOBS_OPS_PORT": "OPS",
        }
        with serving(tmp_path, line, **environ) as server:
            until(lambda: ops_ready(server))
            # A probe that is refused first must not warn the planted run's clients.
            clients, took = stop_under_load(server, wary=not planted)
        assert (clients.errors != []) == planted
        assert len(clients.traces) > 30
        if not planted:
            assert 2.0 <= took < 10.0
            assert clients.traces - set(collector.spans) == set()
