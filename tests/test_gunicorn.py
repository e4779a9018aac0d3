"""gunicorn: the command line, and metrics that are right over several real workers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import urllib3

from healthobs import gunicorn
from healthobs.exceptions import ConfigurationError

APP = """
import os, time
from flask import Flask
from healthobs import Observability, Settings
from healthobs.flask import init_app

def create_app():
    app = Flask("app")

    @app.get("/pid")
    def pid():
        time.sleep(0.05)  # so that one worker cannot take every connection
        return str(os.getpid())

    return init_app(app, Observability(Settings(service_name="svc", prefix="svc", endpoints=True, log_level="critical")))
"""
LAUNCH = """
import os, sys
from healthobs.gunicorn import serve
serve("app:create_app()", host="127.0.0.1", port=int(sys.argv[1]), workers=2, threads=4, environ=os.environ)
"""


class TestCommand:
    """`command`."""

    def test_line(self) -> None:
        """gthread, no preload, our hooks, no control socket, no access log of its own."""
        line = gunicorn.command("app:create_app()", host="127.0.0.1", port=8080, workers=2, threads=8)
        text = " ".join(line[1:])
        assert "--worker-class gthread --workers 2 --threads 8" in text
        assert "--bind 127.0.0.1:8080" in text
        assert "python:healthobs.gunicorn" in text
        assert "--no-control-socket" in text
        assert "preload" not in text
        assert "access" not in text

    @pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"port": 0}, {"port": 65536}])
    def test_ranges(self, wrong: dict[str, int]) -> None:
        """Numbers out of range are refused before anything starts."""
        with pytest.raises(ConfigurationError):
            gunicorn.command("app:app", **{"host": "127.0.0.1", "port": 1, **wrong})  # type: ignore[arg-type]


class TestHooks:
    """The hooks that gunicorn calls."""

    def test_several_workers_need_the_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers that would count apart refuse to start."""
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        gunicorn.on_starting(SimpleNamespace(cfg=SimpleNamespace(workers=1)))
        with pytest.raises(ConfigurationError, match="PROMETHEUS_MULTIPROC_DIR"):
            gunicorn.on_starting(SimpleNamespace(cfg=SimpleNamespace(workers=2)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Run two workers of four threads; yield the base URL."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "stale").mkdir()
    (tmp_path / "stale" / "counter_1.db").write_bytes(b"left by an earlier start")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "stale"),
    }
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, str(port)], cwd=tmp_path, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        with urllib3.PoolManager(retries=False) as pool:
            for _ in range(300):
                try:
                    if pool.request("GET", f"{url}/readiness").status == 200:
                        break
                except urllib3.exceptions.HTTPError:
                    time.sleep(0.1)
            else:
                pytest.fail("gunicorn did not answer")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


class TestServe:
    """`serve`, for real."""

    def test_counts_are_exact_over_workers(self, server: str) -> None:
        """Whichever worker answers the scrape, it shows the requests of all, under both names, nothing stale."""

        def pid(_number: int) -> bytes:
            with urllib3.PoolManager(
                retries=False
            ) as pool:  # a new connection each, so that both workers answer
                return pool.request("GET", f"{server}/pid").data

        with ThreadPoolExecutor(12) as threads:
            pids = set(threads.map(pid, range(60)))
        assert len(pids) == 2
        with urllib3.PoolManager(retries=False) as pool:
            for _ in range(6):
                text = pool.request("GET", f"{server}/metrics", headers={"Connection": "close"}).data.decode()
                counts = re.findall(
                    r"^(\w+_request_duration_seconds_count)\{[^}]*\"/pid\"[^}]*\} ([\d.]+)$",
                    text,
                    re.MULTILINE,
                )
                assert dict(counts) == {
                    "http_server_request_duration_seconds_count": "60.0",
                    "svc_request_duration_seconds_count": "60.0",
                }
                assert "svc_active_requests 0.0" in text
                assert "_created" not in text
