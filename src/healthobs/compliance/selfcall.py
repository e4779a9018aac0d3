"""Requests of a service to itself, inside the process, so that probes see what a caller would see.

PEP 3333 without a socket. Every such request carries the object `OWN` in its environment, so that front ends can
keep it out of business metrics. No request from outside can carry it, whatever names and texts a server, a proxy
protocol (uwsgi_param, FastCGI) or another middleware puts there: front ends compare by identity.

Limits: what only the server adds or removes (a `Server` header, TLS) is not seen.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from healthobs.compliance.control import Call, Reply

#: Key in the WSGI environment whose value marks a request as a probe's, and that value.
CANARY = "healthobs.canary"
OWN = object()
_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def self_caller(app: _Application) -> Call:
    """Return what sends requests to `app` (PEP 3333) and gives the whole answer back.

    Args:
        app: The service's application, middleware included.

    Example:
        >>> def app(environ, start_response):
        ...     start_response("404 Not Found", [("Content-Type", "text/plain")])
        ...     return [b"none"]
        >>> self_caller(app)("GET", "/", {}, b"")
        Reply(status=404, headers={'content-type': 'text/plain'}, body=b'none')
    """

    def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        started: list[tuple[str, list[tuple[str, str]]]] = []
        chunks: list[bytes] = []

        def start_response(status: str, fields: list[tuple[str, str]], _exc_info: Any = None) -> Any:
            started.append((status, fields))
            return chunks.append

        answer = app(_environ(method, path, headers, body), start_response)
        try:
            chunks.extend(answer)
        finally:
            close = getattr(answer, "close", None)
            if close is not None:
                close()
        status, fields = started[-1]
        merged: dict[str, str] = {}
        for name, value in fields:
            lowered = name.lower()
            merged[lowered] = f"{merged[lowered]}, {value}" if lowered in merged else value
        return Reply(int(status[:3]), merged, b"".join(chunks))

    return call


def _environ(method: str, path: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    plain, _, query = path.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(plain).decode("latin-1"),  # PEP 3333, "Unicode Issues"
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        CANARY: OWN,
    }
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return environ
