"""The ops port: `/health`, `/readiness` with causes and `/metrics`, answered while every worker thread is busy.

With all threads held, a probe on the main port waits behind the requests and the kubelet kills a healthy, busy
pod. This port has threads of its own. It is bound once, without SO_REUSEPORT, so that a second server on it
fails to start rather than sharing it; workers inherit the listening socket and whichever is free answers.

Limits: plain HTTP/1.0, no authentication: keep it inside the cluster. Causes are exception types, never texts.
"""

from __future__ import annotations

import os
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs

from healthobs.endpoints import Endpoints, Request
from healthobs.exceptions import ConfigurationError
from healthobs.problems import problem

if TYPE_CHECKING:
    from healthobs.observability import Observability

#: An idle or slow client is let go after this long.
CLIENT_TIMEOUT_SECONDS = 5.0
_BACKLOG = 128


def bind_ops(host: str, port: int) -> socket.socket:
    """Return the listening socket of the ops port.

    Raises:
        ConfigurationError: The address cannot be had; a server must not start without the port it was told.
    """
    try:
        listener = socket.create_server((host, port), backlog=_BACKLOG)
    except OSError as exc:
        raise ConfigurationError(
            f"the ops port cannot be bound ({type(exc).__name__}, {os.strerror(exc.errno or 0)}): "
            "free it, name another with HEALTHOBS_OPS_PORT, or switch it off with 0"
        ) from None
    # Several processes wait on it: one that lost the race must not block in accept.
    listener.setblocking(False)
    return listener


class _Handler(BaseHTTPRequestHandler):
    """One request; the server carries the endpoints."""

    timeout = CLIENT_TIMEOUT_SECONDS

    def version_string(self) -> str:
        """Name nothing that runs here."""
        return "healthobs"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Probes leave no line."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, path, parse_qs(query, errors="replace"), headers)
        server = cast("OpsServer", self.server)
        response = server.endpoints.handle(request) or problem(404, "not_found")
        self.send_response(response.status, HTTPStatus(response.status).phrase)
        for name, value in (*response.headers, ("Content-Length", str(len(response.body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815


class OpsServer(ThreadingHTTPServer):
    """Serve the ops endpoints of `obs` on a socket that is bound already.

    Args:
        obs: What is shown.
        listener: See `bind_ops`.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, obs: Observability, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        #: What keeps other workers of a supervisor off the port (`healthobs.lifecycle.start`).
        self.turn: socket.socket | None = None
        self.endpoints: Endpoints = Endpoints(obs, private=True)

    def start(self) -> None:
        """Serve on a thread of its own, until the process ends."""
        threading.Thread(target=self.serve_forever, args=(0.5,), name="healthobs-ops", daemon=True).start()

    def server_close(self) -> None:
        """Close the port, and leave it to the next worker."""
        super().server_close()
        if self.turn is not None:
            self.turn.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is not worth a line."""
