"""A real HTTP server on the loopback address that follows a script, for the tests of clients."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One request as the server saw it."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Server:
    """A real server that gives scripted answers: a status, headers and body, or a way of not answering."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    script: list[tuple[int, dict[str, str], bytes] | str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    """Follows the script of its server."""

    protocol_version = "HTTP/1.1"
    state: Server

    def answer(self) -> None:
        """Record the request and do what the script says."""
        length = int(self.headers.get("Content-Length") or 0)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.state.received.append(Received(self.command, self.path, headers, self.rfile.read(length)))
        step = self.state.script.pop(0) if self.state.script else (200, {}, b"{}")
        if isinstance(step, str):
            if step == "silent":
                self.state.release.wait(30)
            elif step == "garbage":
                self.wfile.write(b"not http at all\r\n\r\n")
            elif step == "short":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort")
            self.close_connection = True
            return
        status, fields, body = step
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = answer  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def scripted_server() -> Iterator[Server]:
    """Run one."""
    state = Server()
    handler = type("Scripted", (Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        state.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.release.set()
        running.shutdown()
        thread.join()
