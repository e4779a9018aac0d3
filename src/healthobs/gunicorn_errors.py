"""What gunicorn answers and logs by itself, without an echo: RFC 9457 problems, and facts instead of the request.

A request that cannot be parsed never reaches the application. gunicorn quotes it in an HTML answer and in a plain
log line, where a path or header may hold anybody's data. Limits: gunicorn's messages about itself stay as they are.
"""

from __future__ import annotations

import contextlib
import ssl
from functools import partial
from http import HTTPStatus
from typing import Any

from healthobs import _runtime
from healthobs.problems import problem

#: Class of gunicorn's exception -> status and code; every other one of the client's is 400.
_STATUS = {
    "ForbiddenProxyRequest": (403, "forbidden"),
    "LimitRequestLine": (414, "uri_too_long"),
    "ExpectationFailed": (417, "expectation_failed"),
    "LimitRequestHeaders": (431, "header_fields_too_large"),
    "UnsupportedTransferCoding": (501, "transfer_coding_unsupported"),
}
_OURS = ("InvalidResponseHeader", "InvalidResponseHeaderName")


def install(worker: Any) -> None:
    """Make `worker` refuse without an echo."""
    worker.handle_error = partial(handle_error, worker)


def handle_error(worker: Any, _request: Any, client: Any, _address: Any, exc: BaseException) -> None:
    """Answer `exc`, raised outside the application, on the socket `client`; gunicorn closes it.

    Args:
        worker: The gunicorn worker, whose logger is used while no `Observability` is installed.
        client: The connection.
        exc: What went wrong.
    """
    status, code = refusal(exc)
    kind = type(exc).__name__
    obs = _runtime.current_or_none()
    if obs is None:
        worker.log.warning("request refused: %d %s", status, kind)
    else:
        level, raised = ("error", exc) if status == 500 else ("warning", None)
        own = {"logger": "healthobs.gunicorn", "error_type": kind}
        obs.logs.emit(level, "request_refused", {"status": status, "exc_info": raised}, own=own)
    with contextlib.suppress(OSError):  # the client has gone
        client.setblocking(True)
        client.settimeout(1)
        client.sendall(answer(status, code))


def refusal(exc: BaseException) -> tuple[int, str]:
    """Return status and code for what gunicorn, or TLS beneath it, refuses; 500 for anything else."""
    kind = type(exc)
    if isinstance(exc, ssl.SSLError):
        return 400, "tls_error"
    if kind.__module__ != "gunicorn.http.errors" or kind.__name__ in _OURS:
        return 500, "internal_error"
    return _STATUS.get(kind.__name__, (400, "bad_request"))


def answer(status: int, code: str) -> bytes:
    """Return the bytes of a response that closes the connection."""
    made = problem(status, code)
    headers = [*made.headers, ("Content-Length", str(len(made.body))), ("Connection", "close")]
    head = "".join(f"{name}: {value}\r\n" for name, value in [*headers, ("Cache-Control", "no-store")])
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}\r\n".encode("ascii") + made.body
