"""`assert_pure_liveness` and `check_app`: each kind of impure liveness probe is planted, and found by name."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from healthobs import Observability, Settings
from healthobs.flask import init_app
from healthobs.testing import Capture, assert_pure_liveness, check_app
from healthobs.testing.purity import watching


def _connect() -> None:
    """Connect to a port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


async def _connect_later() -> None:
    """Connect from a coroutine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, writer = await asyncio.open_connection(*server.getsockname())
        writer.close()


def _datagram() -> None:
    """Send one to this process, without a connection."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.bind(("127.0.0.1", 0))
        one.sendto(b"x", other.getsockname())


def _low_level(path: Path) -> None:
    """Write past `open`."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


IMPURE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "connects": (lambda _: _connect(), "a socket (socket.connect)"),
    "connects_later": (lambda _: _connect_later(), "a socket (socket.connect)"),
    "sends": (lambda _: _datagram(), "a socket (socket.sendto)"),
    "resolves": (lambda _: socket.getaddrinfo("127.0.0.1", 80), "a socket (socket.getaddrinfo)"),
    "asks_a_database": (lambda _: sqlite3.connect(":memory:").close(), "a database (sqlite3.connect)"),
    "writes": (lambda path: path.write_text("x"), "a file for writing"),
    "appends": (lambda path: path.open("a").close(), "a file for writing"),
    "writes_below": (_low_level, "a file for writing"),
    "moves": (lambda path: path.rename(path.with_suffix(".old")), "a change of files (os.rename)"),
    "runs": (lambda _: subprocess.run([sys.executable, "-V"], check=True), "a process (subprocess.Popen)"),
}
"""By name: what the probe does, and what is said of it."""


async def _sleeps() -> bool:
    await asyncio.sleep(0)
    return True


def _reads() -> bool:
    return bool(Path(__file__).read_text(encoding="utf-8"))


def _fails() -> None:
    raise RuntimeError


PURE: dict[str, Callable[[], Any]] = {
    "answers": lambda: True,
    "counts_threads": lambda: threading.active_count() > 0,
    "reads": _reads,
    "sleeps": _sleeps,
    "fails": _fails,
}


class TestAssertPureLiveness:
    """`assert_pure_liveness`."""

    @pytest.mark.parametrize("name", IMPURE)
    def test_finds(self, name: str, tmp_path: Path) -> None:
        """What a probe opens is found, with the name of the probe and no value of its own."""
        probe, said = IMPURE[name]
        with Capture() as capture:
            capture.obs.health.register(name, lambda: probe(tmp_path / "marker"), kind="liveness")
            with pytest.raises(AssertionError) as caught:
                assert_pure_liveness(capture.obs)
        assert f"liveness check '{name}' opens {said}" in str(caught.value)
        assert "marker" not in str(caught.value)

    def test_in_a_test_that_is_a_coroutine(self) -> None:
        """A probe that is one, too, is awaited all the same, though a loop is running."""

        async def probe() -> None:
            sqlite3.connect(":memory:").close()

        async def test(capture: Capture) -> None:
            capture.obs.health.register("db", probe, kind="liveness")
            with pytest.raises(AssertionError, match="sqlite3"):
                assert_pure_liveness(capture.obs)

        with Capture() as capture:
            asyncio.run(test(capture))

    def test_finds_what_was_asked_a_moment_ago(self) -> None:
        """A word that is still fresh hides nothing: the check is called all the same."""
        with Capture() as capture:
            capture.obs.health.register("db", lambda: sqlite3.connect(":memory:").close(), kind="liveness")
            assert capture.obs.health.liveness()[0] == 200
            with pytest.raises(AssertionError, match="sqlite3"):
                assert_pure_liveness(capture.obs)

    def test_passes_what_stays_inside(self) -> None:
        """Reading, an event loop and a failure of its own are no fault of a probe; a readiness check may do anything."""
        with Capture(Settings(max_stall_seconds=60)) as capture:
            for name, probe in PURE.items():
                capture.obs.health.register(name, probe, kind="liveness")
            capture.obs.health.register("db", lambda: sqlite3.connect(":memory:").close())
            assert_pure_liveness(capture.obs)

    def test_sees_this_thread_only_and_only_meanwhile(self, tmp_path: Path) -> None:
        """What the rest of the process does, then or later, is no probe's doing."""
        other = threading.Thread(target=(tmp_path / "a").write_text, args=("x",))
        with watching() as seen:
            other.start()
            other.join()
        (tmp_path / "b").write_text("x")
        assert seen == []


class TestCheckApp:
    """`check_app`."""

    def observed(self, obs: Observability) -> Flask:
        """Return an application with one route."""
        app = Flask("test")
        app.add_url_rule("/a", "a", lambda: "ok")
        return init_app(app, obs)

    def test_finds_a_probe(self) -> None:
        """An impure probe fails the application's check, beside whatever a route does not leave."""
        with Capture() as capture:
            capture.obs.health.register("db", lambda: sqlite3.connect(":memory:").close(), kind="liveness")
            with pytest.raises(AssertionError, match="liveness check 'db' opens a database"):
                check_app(self.observed(capture.obs))

    def test_finds_the_endpoint(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """So does what the endpoint itself opens on its way."""
        with Capture() as capture:
            app = self.observed(capture.obs)
            alive = capture.obs.health.liveness

            def noted() -> Any:
                (tmp_path / "last_probe").write_text("now")
                return alive()

            monkeypatch.setattr(capture.obs.health, "liveness", noted)
            with pytest.raises(AssertionError, match="GET /health opens a file for writing"):
                check_app(app)

    def test_passes(self) -> None:
        """An application whose probes stay inside passes."""
        with Capture() as capture:
            capture.obs.health.register("threads", lambda: threading.active_count() > 0, kind="liveness")
            check_app(self.observed(capture.obs))
