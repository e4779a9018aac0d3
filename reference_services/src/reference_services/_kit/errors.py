"""What becomes of exceptions: RFC 9457 problems for the caller, redacted facts for span and log, nothing else.

Flask's own way would write the exception's text to standard error, where a value of the request may be in it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from healthobs._runtime import exchange
from healthobs.exceptions import AuditWriteError
from reference_services._kit.problems import Problem, of_status, render, unavailable


class Application(Flask):
    """Flask whose unhandled exceptions go to the exchange's span and the redacted log."""

    log: Any

    def log_exception(self, exc_info: Any) -> None:
        """Record what no view handled; the caller gets a 500 that says nothing about it."""
        answering = exchange.get()
        if answering is not None:
            answering.error = exc_info[1]
        self.log.error("unhandled_exception", exc_info=exc_info[1])


def register(app: Application, log: Any) -> None:
    """Make `app` answer every exception with a problem, and log to `log`."""
    app.log = log
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Problem, render)
    app.register_error_handler(AuditWriteError, _audit)

    def store(exc: Exception) -> Response:
        log.error("store_unavailable", exc_info=exc)
        return render(unavailable("store_unavailable", "The store does not answer; retry."))

    app.register_error_handler(sa.exc.OperationalError, store)
    app.register_error_handler(sa.exc.TimeoutError, store)


def of_http(exc: HTTPException) -> Problem:
    """Return the problem for an exception of werkzeug, with its own headers (`Allow`, `Retry-After`)."""
    headers = {name: value for name, value in exc.get_headers() if name.lower() != "content-type"}
    return of_status(exc.code or 500, headers)


def _http(exc: HTTPException) -> Any:
    if exc.code is not None and exc.code < 400:
        return exc  # a redirect
    return render(of_http(exc))


def _audit(_: AuditWriteError) -> Response:
    return render(unavailable("audit_unavailable", "The audit store does not answer; retry."))
