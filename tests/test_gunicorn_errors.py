"""What gunicorn refuses by itself: with a problem, and without an echo in answer or log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from ssl import SSLError
from types import SimpleNamespace

import pytest
from gunicorn.http import errors

from healthobs import Settings
from healthobs.gunicorn_errors import handle_error, refusal
from healthobs.testing import Capture
from reference_services.demo.ports import reserved_ports

APP = """
from flask import Flask, request

app = Flask("app")

@app.route("/", methods=["GET", "POST"])
def index():
    return "ok"
"""
SECRET = b"123-45-6789"
MALFORMED = {
    "method": (b"G@T" + SECRET + b" / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "version": (b"GET /" + SECRET + b" HTTP/9.9\r\n\r\n", 400),
    "request line": (b"GET / " + SECRET + b" HTTP/1.1\r\n\r\n", 400),
    "header": (b"GET / HTTP/1.1\r\nHost: x\r\nBroken " + SECRET + b"\r\n\r\n", 400),
    "header name": (b"GET / HTTP/1.1\r\nHost: x\r\nB@d" + SECRET + b": 1\r\n\r\n", 400),
    "transfer coding": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: " + SECRET + b"\r\n\r\n", 501),
    "expectation": (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: " + SECRET + b"\r\n\r\n", 417),
    "script name": (b"GET / HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /" + SECRET + b"\r\n\r\n", 400),
    "long line": (b"GET /" + SECRET * 600 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "many headers": (b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: %s\r\n" % (n, SECRET) for n in range(150)) + b"\r\n", 431),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """Run a real gunicorn; gives its port and what it has written to standard error."""
    folder = tmp_path_factory.mktemp("gunicorn")
    (folder / "app.py").write_text(APP, encoding="utf-8")
    with reserved_ports(1) as (port,):
        command = [
            "-m",
            "gunicorn",
            "app:app",
            "--config",
            "python:healthobs.gunicorn",
            "--worker-class",
            "gthread",
        ]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *command, "--bind", f"127.0.0.1:{port}", "--no-control-socket"],
                cwd=folder, stdout=output, stderr=output, env={**os.environ},
            )  # fmt: skip
        try:
            end = time.monotonic() + 30
            while not sent(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").endswith(b"ok"):
                assert time.monotonic() < end, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            yield port, log
        finally:
            process.terminate()
            process.wait(timeout=30)


def sent(port: int, request: bytes) -> bytes:
    """Send bytes and return what comes back until the connection is closed."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(request)
            while part := connection.recv(65536):
                received += part
    except OSError:
        return received
    return received


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_not_quoted(server: tuple[int, Path], case: str) -> None:
    """Its answer is a problem with the right status, and neither answer nor log holds any of it."""
    port, log = server
    request, status = MALFORMED[case]
    head, _, body = sent(port, request).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"content-type: application/problem+json" in head.lower()
    assert json.loads(body)["status"] == status
    assert SECRET not in head + body
    assert SECRET.decode() not in log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("frameworks", [(), ("hipaa",)])
@pytest.mark.parametrize(
    ("exc", "level", "status"),
    [(errors.InvalidHeader(SECRET.decode()), "warning", 400), (KeyError(SECRET.decode()), "error", 500)],
)
def test_the_refusal_is_a_log_line_of_ours(
    exc: BaseException, level: str, status: int, frameworks: tuple[str, ...]
) -> None:
    """With an `Observability` it is a redacted line like any other, whose cause is code; the answer goes out all the same."""
    ours, theirs = socket.socketpair()
    with Capture(Settings(frameworks=frameworks)) as capture, ours, theirs:
        handle_error(SimpleNamespace(), None, theirs, ("", 0), exc)
        assert ours.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())
    (line,) = capture.log_lines
    shown = {name: line[name] for name in ("event", "logger", "level", "status", "error_type")}
    assert shown == {
        "event": "request_refused",
        "logger": "healthobs.gunicorn",
        "level": level,
        "status": status,
        "error_type": type(exc).__name__,
    }
    assert capture.leaks(SECRET.decode()) == ()


def test_a_client_that_has_gone_is_no_error() -> None:
    """Nothing is raised when nobody is there to read the answer."""
    ours, theirs = socket.socketpair()
    ours.close()
    log: list[tuple[object, ...]] = []
    with theirs:
        handle_error(
            SimpleNamespace(log=SimpleNamespace(warning=lambda *line: log.append(line))),
            None,
            theirs,
            ("", 0),
            errors.NoMoreData(b""),
        )
    assert log == [("request refused: %d %s", 400, "NoMoreData")]


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (errors.InvalidRequestLine("x"), (400, "bad_request")),
        (errors.ForbiddenProxyRequest("x"), (403, "forbidden")),
        (errors.InvalidResponseHeader("x"), (500, "internal_error")),
        (SSLError("x"), (400, "tls_error")),
        (ValueError("x"), (500, "internal_error")),
    ],
)
def test_refusal(exc: BaseException, expected: tuple[int, str]) -> None:
    """What the client sent is its fault; what the application does is a 500."""
    assert refusal(exc) == expected
