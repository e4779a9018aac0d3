"""Errors as RFC 9457 problem details: one exception to raise, one function that renders it.

A problem names what is wrong by JSON pointer (RFC 6901) and code. It never carries the rejected value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from flask import Response
from opentelemetry import trace

from healthobs._runtime import exchange
from healthobs.problems import problem as make_problem

#: Codes of the errors that no view raises itself, by HTTP status.
CODES: Mapping[int, str] = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    408: "request_timeout",
    409: "conflict",
    413: "content_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    422: "unprocessable_content",
    428: "precondition_required",
    429: "too_many_requests",
    431: "header_fields_too_large",
    500: "internal_error",
    501: "not_implemented",
    503: "service_unavailable",
}


class Problem(Exception):  # noqa: N818 - RFC 9457 names it
    """Answer with an error; raise it from a view, a store or a dependency.

    Whatever the transaction of an idempotent route had written is rolled back.

    Args:
        status: HTTP status, 400 to 599.
        code: Stable lower-case word that a client can branch on.
        title: What is wrong and what to do, as a constant text: never a value of the request.
        errors: Pairs of JSON pointer into the request and code.
        headers: More response headers, such as ``Retry-After``.

    Example:
        >>> Problem(409, "already_approved", "This payment has been approved already.").status
        409
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        errors: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.title = title
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        super().__init__(f"{status} {code}")


def invalid(title: str, pointer: str, code: str) -> Problem:
    """Return the 422 for one member of the request that is well-formed and still not acceptable."""
    return Problem(422, "invalid_request", title, [(pointer, code)])


def unavailable(code: str, title: str, errors: Iterable[tuple[str, str]] = ()) -> Problem:
    """Return the 503 for what another try may find working."""
    return Problem(503, code, title, errors, {"Retry-After": "1"})


def of_status(status: int, headers: Mapping[str, str] | None = None) -> Problem:
    """Return the problem for an error that only a status describes, such as a 404 of the router."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    return Problem(status, CODES.get(status, "error"), phrase, headers=headers)


def render(problem: Problem) -> Response:
    """Return `problem` as an `application/problem+json` response that names the request and its trace."""
    span = trace.get_current_span().get_span_context()
    answering = exchange.get()
    made = make_problem(
        problem.status,
        problem.code,
        problem.title,
        errors=problem.errors,
        trace_id=f"{span.trace_id:032x}" if span.is_valid else "",
        request_id="" if answering is None else answering.request_id,
        error_id="" if answering is None else answering.error_id,
        headers=list(problem.headers.items()),
    )
    return Response(made.body, made.status, list(made.headers))
