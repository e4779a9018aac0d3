"""gunicorn, a real one: what an answer says about its connection, when the application left the body unread."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from live_servers import Server, serving

pytestmark = pytest.mark.server

APP = """
from flask import Flask, abort, request
from healthobs import Observability, Settings
from healthobs.flask import init_app

def create_app():
    app = Flask("app")
    app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024

    @app.get("/")
    def index():
        return "next"

    @app.post("/read")
    def read():
        return str(len(request.get_data()))

    @app.post("/refused/<int:status>")
    def refused(status):
        abort(status)

    return init_app(app, Observability(Settings(service_name="svc", endpoints=True, log_level="critical")))
"""
LAUNCH = """
import os, sys
from healthobs.gunicorn import serve
serve("app:create_app()", host="127.0.0.1", port=int(sys.argv[1]), threads=2, environ=os.environ)
"""
TOO_LARGE = 1024 * 1024 + 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run the application."""
    folder = tmp_path_factory.mktemp("connections")
    (folder / "app.py").write_text(APP)
    with serving(folder, ["-c", LAUNCH, "PORT"]) as running:
        yield running


def post(path: str, size: int, *, chunked: bool = False) -> bytes:
    """Return a POST with a body of that size."""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    body = b"x" * size
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    return b"POST %s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n%s" % (path.encode(), framing, body)


def answered(connection: socket.socket) -> tuple[int, bool] | None:
    """Read one answer; return its status and whether the connection stays, or None when there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65536)
        if not data:
            return None
        received += data
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += connection.recv(65536)
    return int(head.split()[1]), fields[b"connection"] == b"keep-alive"


@pytest.mark.parametrize(
    ("path", "size", "chunked", "status", "stays"),
    [
        ("/read", TOO_LARGE, False, 413, False),
        ("/read", 2 * TOO_LARGE, True, 200, False),
        ("/refused/401", 300_000, False, 401, False),
        ("/refused/415", 64 * 1024, False, 415, False),
        ("/refused/401", 300_000, True, 401, False),
        ("/nowhere", 300_000, False, 404, False),
        ("/", 300_000, False, 405, False),
        ("/health", 300_000, False, 405, False),
        ("/refused/401", 64 * 1024 - 1, False, 401, True),
        ("/refused/401", 0, False, 401, True),
        ("/read", 300_000, False, 200, True),
        ("/read", 300_000, True, 200, True),
    ],
)
def test_an_answer_says_what_becomes_of_its_connection(
    server: Server, path: str, size: int, status: int, *, chunked: bool, stays: bool
) -> None:
    """One that announces `keep-alive` has its next request answered; else `close`, and no request is lost."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(post(path, size, chunked=chunked))
        assert answered(connection) == (status, stays)
        if stays:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answered(connection) == (200, True)
