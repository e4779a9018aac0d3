"""Ops port, drain, keeper and gunicorn's hooks, without a server; with servers: `test_lifecycle_gunicorn`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from healthobs import Observability, Settings, _runtime, gunicorn, install
from healthobs.exceptions import ConfigurationError
from healthobs.health import Board
from healthobs.lifecycle import Drain, Keeper, OpsServer, bind_ops, single, start
from healthobs.lifecycle import keeper as keeper_module
from healthobs.metrics import multiprocess
from live_servers import until


@pytest.fixture
def obs() -> Iterator[Observability]:
    held = Observability(Settings(service_name="svc", log_level="critical"))
    held.health.ready()
    yield held
    held.close()


class TestOpsPort:
    """The port of its own."""

    @pytest.fixture
    def port(self, obs: Observability) -> Iterator[int]:
        server = OpsServer(obs, bind_ops("127.0.0.1", 0))
        server.start()
        yield server.socket.getsockname()[1]
        server.shutdown()
        server.server_close()

    @staticmethod
    def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        found = answer.status, dict(answer.headers), answer.read()
        connection.close()
        return found

    def test_health(self, port: int) -> None:
        """Liveness in the fixed shape, not to be cached, by a server that names nothing."""
        status, headers, body = self.ask(port, "/health")
        assert (status, json.loads(body)["status"]) == (200, "healthy")
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "healthobs"

    def test_readiness_with_causes(self, port: int, obs: Observability) -> None:
        """Readiness comes with the type of each cause."""

        def database() -> None:
            raise OSError("secret")

        obs.health.register("database", database)
        status, _, body = self.ask(port, "/readiness")
        assert (status, json.loads(body)["checks"]["database"]["cause"]) == (503, "OSError")
        assert b"secret" not in body

    def test_metrics_without_being_asked_for(self, port: int) -> None:
        """Metrics are there although the main port has no operational endpoints; negotiated as there."""
        status, headers, body = self.ask(port, "/metrics", Accept="application/openmetrics-text")
        assert (status, body.endswith(b"# EOF\n")) == (200, True)
        assert headers["Content-Type"].startswith("application/openmetrics-text")

    @pytest.mark.parametrize("path", ["/", "/audit/trail", "/compliance/status"])
    def test_nothing_else(self, port: int, path: str) -> None:
        """What needs a principal is not on a port without authentication."""
        assert self.ask(port, path)[0] == 404

    def test_head_and_others(self, port: int) -> None:
        """HEAD has no body; other methods are 405."""
        status, headers, body = self.ask(port, "/health?x=1", "HEAD")
        assert (status, int(headers["Content-Length"]) > 0, body) == (200, True, b"")
        assert self.ask(port, "/health", "POST")[0] == 405

    def test_a_fault_is_an_answer(
        self, port: int, obs: Observability, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A scrape that fails is a 500 and is counted; the port goes on."""
        monkeypatch.setattr(obs.metrics.registry, "collect", None)
        assert self.ask(port, "/metrics")[0] == 500
        monkeypatch.undo()
        assert b'internal_errors_total{component="ops"} 1.0' in self.ask(port, "/metrics")[2]

    def test_a_silent_client_holds_nobody_up(self, port: int) -> None:
        """A connection that says nothing does not delay the next probe."""
        with socket.create_connection(("127.0.0.1", port)):
            assert self.ask(port, "/health")[0] == 200

    def test_a_port_in_use(self) -> None:
        """It is refused with what to do, not shared."""
        taken = bind_ops("127.0.0.1", 0)
        with taken, pytest.raises(ConfigurationError, match="HEALTHOBS_OPS_PORT"):
            bind_ops("127.0.0.1", taken.getsockname()[1])


DRAIN = """
import os, signal, sys, time
from healthobs.lifecycle import Drain
def say(*words):  # `print` may not be entered again from a signal handler
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def stop(number, frame):
    say("stopped", round(time.monotonic() - began, 1))
    sys.exit(0)
if "handled" in sys.argv:
    signal.signal(signal.SIGTERM, stop)
Drain(float(sys.argv[1]), lambda: say("draining")).install()
began = time.monotonic()
import atexit
atexit.register(lambda: say("flushed"))
say("up")
while True:
    time.sleep(0.05)
"""


class TestDrain:
    """A process that drains."""

    @staticmethod
    def run(*arguments: str, terms: int = 1) -> tuple[list[str], float]:
        process = subprocess.Popen(
            [sys.executable, "-c", DRAIN, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        words = [process.stdout.readline()]  # two signals that nobody has taken yet are one
        if terms == 2:
            process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        took = time.monotonic() - began
        return [line.split()[0] for line in (*words, *output.splitlines())], took

    def test_the_handler_before_it_comes_later(self) -> None:
        """The first SIGTERM announces; the handler that was there runs after the delay."""
        words, took = self.run("0.5", "handled")
        assert words == ["draining", "stopped", "flushed"]
        assert took >= 0.5

    def test_two_drains_are_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that is installed over another announces with it, and the longer delay is that of both."""
        kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
        seen: list[object] = []
        monkeypatch.setattr(signal, "setitimer", lambda _timer, seconds: seen.append(seconds))
        try:
            signal.signal(signal.SIGTERM, lambda *_frame: seen.append("stopped"))
            Drain(60, lambda: seen.append("first")).install()
            Drain(5, lambda: seen.append("second")).install()
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGALRM)
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        assert seen == ["first", "second", 60, 0, "stopped"]

    def test_a_second_term_is_now(self) -> None:
        """Who insists does not wait."""
        words, took = self.run("600", "handled", terms=2)
        assert words == ["draining", "stopped", "flushed"]
        assert took < 600

    def test_a_process_that_would_die_of_it_exits(self) -> None:
        """Where nothing handled SIGTERM the process exits, so that what waits to be sent is sent."""
        assert self.run("0.1")[0] == ["draining", "flushed"]


class TestKeeper:
    """The keeper's beat."""

    def test_writes_the_verdicts(self, obs: Observability) -> None:
        """Each round of beats asks the checks and writes what they say on the board."""
        board = _runtime.process.board = Board()
        board.row = row = board.take()
        good = True
        obs.health.register("database", lambda: good, ttl=0)
        keeper = Keeper(obs)
        verdicts = []
        for good in (True, False):  # noqa: B007
            for _ in range(keeper_module.BEATS_PER_ROUND):
                keeper.beat()
            board.row = None
            (mine,) = board.others()
            verdicts.append((mine.pid, mine.ready, mine.alive))
            board.row = row
        assert verdicts == [(os.getpid(), 1, 1), (os.getpid(), 0, 1)]

    def test_flushes_near_the_limit_only(self, obs: Observability, monkeypatch: pytest.MonkeyPatch) -> None:
        """Spans are sent from two seconds before the graceful limit on, and not before the stop has begun."""
        now, flushed = 0.0, []
        monkeypatch.setattr(keeper_module.time, "monotonic", lambda: now)
        serving = True
        monkeypatch.setattr(Observability, "flush", lambda _obs, _seconds: flushed.append(now))
        keeper = Keeper(obs, serving=lambda: serving, graceful_seconds=20)
        for now, serving in ((0.0, True), (100.0, True), (101.0, False), (118.9, False), (119.0, False)):  # noqa: B007
            keeper.beat()
        assert flushed == [119.0]

    def test_runs_and_stops(self, obs: Observability, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is a thread that beats until it is told to stop, whatever a beat meets."""
        monkeypatch.setattr(keeper_module, "BEAT_SECONDS", 0.01)
        beats: list[None] = []

        def broken() -> None:
            beats.append(None)
            raise RuntimeError

        monkeypatch.setattr(obs.health, "write_verdicts", broken)
        keeper = Keeper(obs)
        keeper.start()
        deadline = time.monotonic() + 60
        while len(beats) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        keeper.stop()
        keeper.join(30)
        assert not keeper.is_alive()


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what stands for gunicorn's arbiter; every handler and the environment are given back."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for name in (multiprocess.VARIABLE, "GUNICORN_PID", "HEALTHOBS_OPS_FD"):
        monkeypatch.delenv(name, raising=False)
    errors: list[str] = []
    made = SimpleNamespace(
        cfg=SimpleNamespace(workers=1, env_orig={}),
        START_CTX={"args": ["python", "/lib/gunicorn/__main__.py", "app:app"]},
        log=SimpleNamespace(error=lambda *facts: errors.append(facts[-1])),
        errors=errors,
    )
    yield made
    for number, handler in kept.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    listener = getattr(getattr(made, "healthobs", None), "ops", None)
    if listener is not None:
        listener.close()


class TestHooks:
    """The hooks, called as gunicorn calls them."""

    def test_a_wrong_setting_stops_the_start(self, master: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The master reads the settings, so that nothing starts with a wrong one."""
        monkeypatch.setenv("HEALTHOBS_OPS_PORT", "70000")
        with pytest.raises(ConfigurationError, match="ops_port"):
            gunicorn.on_starting(master)

    def test_the_directory_is_wiped_but_not_by_a_successor(
        self, master: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A first master wipes what an earlier start has left; one after SIGUSR2 must not."""
        monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path))
        (tmp_path / "counter_1.db").touch()
        monkeypatch.setenv("GUNICORN_PID", "1")
        gunicorn.on_starting(master)
        assert (tmp_path / "counter_1.db").exists()
        monkeypatch.delenv("GUNICORN_PID")
        gunicorn.on_starting(master)
        assert not (tmp_path / "counter_1.db").exists()

    def test_the_ops_port_is_handed_on(
        self, master: Any, monkeypatch: pytest.MonkeyPatch, free_port: int
    ) -> None:
        """After SIGUSR2 the new master has the old one's listening socket, and can be started as it was."""
        monkeypatch.setenv("HEALTHOBS_OPS_PORT", str(free_port))
        gunicorn.on_starting(master)
        gunicorn.pre_exec(master)
        descriptor = master.cfg.env_orig["HEALTHOBS_OPS_FD"]
        assert os.get_inheritable(int(descriptor))
        assert master.START_CTX["args"] == ["python", "-m", "gunicorn", "app:app"]
        master.healthobs.ops.detach()
        monkeypatch.setenv("GUNICORN_PID", "1")
        monkeypatch.setenv("HEALTHOBS_OPS_FD", descriptor)
        gunicorn.on_starting(master)
        assert master.healthobs.ops.getsockname()[1] == free_port

    def test_a_worker_takes_its_row_and_gives_it_back(
        self, master: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """From fork to death: a row of the board, no alarm of the master's, no files left behind."""
        monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path))
        gunicorn.on_starting(master)
        worker = SimpleNamespace(pid=2**22 + 1)
        gunicorn.pre_fork(master, worker)
        gunicorn.post_fork(master, worker)
        board = _runtime.process.board
        assert board is not None
        assert (board.row, signal.getsignal(signal.SIGALRM)) == (worker.healthobs_row, signal.SIG_DFL)
        board.write(ready=True, alive=True)
        (tmp_path / f"counter_{worker.pid}.db").write_bytes(b"\x08\0\0\0\0\0\0\0")
        gunicorn.child_exit(master, worker)
        board.row = None
        assert list(board.others()) == []
        assert [file.name for file in tmp_path.glob("*.db")] == ["counter_archive.db"]

    def test_a_merge_is_tried_again(
        self, master: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A merge that was put off is done at the next death; one that fails is given up, and the master lives."""
        monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path))
        gunicorn.on_starting(master)
        tried: list[int] = []

        def bury(_path: Path, pid: int) -> bool:
            tried.append(pid)
            if pid == 3:
                raise OSError
            return len(tried) > 1

        monkeypatch.setattr(multiprocess, "bury", bury)
        for pid in (1, 2, 3, 4):
            gunicorn.child_exit(master, SimpleNamespace(pid=pid, healthobs_row=None))
        assert sorted(tried) == [1, 1, 2, 3, 4]
        assert master.errors == ["OSError"]

    def test_a_term_that_waited_stops_at_once(self, master: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A SIGTERM from before the server was up needs no drain; the next one would."""
        monkeypatch.setenv("HEALTHOBS_DRAIN_DELAY_SECONDS", "5")
        got: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: got.append(number))
        gunicorn.hold_sigterm()
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        assert got == []
        gunicorn.on_starting(master)
        gunicorn.when_ready(master)
        board = _runtime.process.board
        assert board is not None
        assert (got, board.draining) == ([signal.SIGTERM], False)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        assert (len(got), board.draining) == (1, True)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def test_a_loaded_worker_serves_the_ops_port(
        self, master: Any, obs: Observability, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once the application is loaded the worker answers; at its end it sends what is queued."""
        monkeypatch.setattr(Keeper, "start", lambda _keeper: None)
        flushed: list[float] = []
        monkeypatch.setattr(Observability, "flush", lambda _obs: flushed.append(1))
        listener = bind_ops("127.0.0.1", 0)
        worker = SimpleNamespace(healthobs_ops=listener, alive=True, cfg=SimpleNamespace(graceful_timeout=20))
        gunicorn.post_worker_init(worker)  # nothing installed: nothing to serve
        gunicorn.worker_exit(master, worker)
        install(obs)
        gunicorn.post_worker_init(worker)
        assert TestOpsPort.ask(listener.getsockname()[1], "/health")[0] == 200
        gunicorn.worker_exit(master, worker)
        assert flushed == [1]


class TestServe:
    """`serve`, up to the point where it replaces the process."""

    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The ops port and a directory for several workers go into the environment; SIGTERM waits."""
        executed: list[Any] = []
        monkeypatch.setattr(os, "execve", lambda *facts: executed.append(facts))
        monkeypatch.setattr(gunicorn, "hold_sigterm", lambda: executed.append("held"))
        gunicorn.serve("app:app", host="0.0.0.0", port=80, workers=2, ops_port=81, environ={"X": "y"})
        held, (_, line, environment) = executed
        assert (held, line[1:4]) == ("held", ["-m", "gunicorn", "app:app"])
        directory = environment.pop(multiprocess.VARIABLE)
        assert environment == {"X": "y", "HEALTHOBS_OPS_PORT": "81", "HEALTHOBS_OPS_HOST": "0.0.0.0"}
        Path(directory).rmdir()


class TestStart:
    """`start`, for servers without hooks."""

    def test_what_the_settings_ask_for(
        self, master: Any, monkeypatch: pytest.MonkeyPatch, free_port: int
    ) -> None:
        """Ops port and drain when asked for; nothing is taken over otherwise."""
        kept = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(Keeper, "start", lambda _keeper: None)
        plain = Observability(Settings())
        beats: list[None] = []
        monkeypatch.setattr(Keeper, "start", lambda _keeper: beats.append(None))
        start(plain)
        assert beats == []
        assert (signal.getsignal(signal.SIGTERM), _runtime.process.board) == (kept, None)
        asked = Observability(Settings(ops_port=free_port, drain_delay_seconds=60))
        start(asked)
        assert TestOpsPort.ask(free_port, "/health")[0] == 200
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.health.state == "draining"
        signal.setitimer(signal.ITIMER_REAL, 0)
        for obs in (plain, asked):
            obs.close()

    def test_a_worker_with_hooks_has_it_all(self, master: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the hooks have bound the port in the master, an application that starts itself takes nothing over."""
        kept = signal.getsignal(signal.SIGTERM)
        beats: list[None] = []
        monkeypatch.setattr(Keeper, "start", lambda _keeper: beats.append(None))
        with bind_ops("127.0.0.1", 0) as listener:
            board = _runtime.process.board = Board()
            board.row = board.take()
            obs = Observability(Settings(ops_port=listener.getsockname()[1], drain_delay_seconds=60))
            start(obs)
            obs.close()
        assert (beats, signal.getsignal(signal.SIGTERM)) == ([], kept)

    @pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
    @pytest.mark.parametrize("forked", [False, True])
    def test_workers_of_a_supervisor_take_turns(
        self, monkeypatch: pytest.MonkeyPatch, free_port: int, *, forked: bool
    ) -> None:
        """One worker opens the ops port, the next waits until it is free; who is no worker does not wait."""
        opened: list[OpsServer] = []
        begin = OpsServer.start
        monkeypatch.setattr(OpsServer, "start", lambda server: (opened.append(server), begin(server)))
        monkeypatch.setattr(Keeper, "start", lambda _keeper: None)
        monkeypatch.setattr(single, "_RETRY_SECONDS", 0.01)
        if forked:
            monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/25.0.0")
        else:
            monkeypatch.setattr(single, "parent_process", object)
        one, two = (Observability(Settings(ops_port=free_port, log_level="critical")) for _ in range(2))
        start(one)
        start(two)
        assert [server.endpoints._obs for server in opened] == [one]
        monkeypatch.setattr(single, "parent_process", lambda: None)
        monkeypatch.delenv("SERVER_SOFTWARE", raising=False)
        with pytest.raises(ConfigurationError, match="HEALTHOBS_OPS_PORT"):
            start(two)
        opened[0].shutdown()
        opened[0].server_close()
        until(lambda: len(opened) == 2 and opened[1].endpoints._obs is two)
        assert TestOpsPort.ask(free_port, "/health")[0] == 200
        opened[1].shutdown()
        opened[1].server_close()
        for obs in (one, two):
            obs.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's")
    def test_a_port_that_somebody_else_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker whose port is taken by no other worker does not start, and leaves the turn to who asks next."""
        monkeypatch.setattr(single, "parent_process", object)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            obs = Observability(Settings(ops_port=taken.getsockname()[1]))
            for _ in range(2):
                with pytest.raises(ConfigurationError, match="HEALTHOBS_OPS_PORT"):
                    start(obs)
        obs.close()
