"""A response without I/O, and problem details as one (RFC 9457): a code, never what the caller sent.

Title, detail and pointers pass redaction at the step ``mask``, whatever the setting: a pointer repeats the names of
members that the caller made up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from healthobs import _runtime
from healthobs.redaction import Redactor


def _count(signal: str, kind: str) -> None:
    obs = _runtime.current_or_none()
    if obs is not None:
        obs.metrics.count_redaction(signal, kind)


_redactor = Redactor("mask", on_redaction=_count)


class Response(NamedTuple):
    """Status, header fields, body."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


def problem(
    status: int,
    code: str,
    title: str | None = None,
    *,
    detail: str | None = None,
    errors: Sequence[tuple[str, str]] = (),
    trace_id: str = "",
    request_id: str = "",
    error_id: str = "",
    headers: Sequence[tuple[str, str]] = (),
) -> Response:
    """Return a problem details response (RFC 9457).

    Args:
        status: HTTP status.
        code: A word of the service's own vocabulary, such as ``not_found``.
        title: Short summary; default the status's phrase.
        detail: A sentence written by the service; never what the caller sent.
        errors: Pairs of JSON pointer (RFC 6901) and code.
        trace_id: The exchange's trace id.
        request_id: Its request id; becomes `instance`.
        error_id: `describe_exception(exc).error_id`: names the failure in span, log line and answer.
        headers: More header fields.
    """

    def clean(text: str) -> str:
        return _redactor.text(text, signal="problem")

    body: dict[str, Any] = {
        "type": "about:blank",
        "title": clean(title or HTTPStatus(status).phrase),
        "status": status,
        "code": clean(code),
    }
    if detail:
        body["detail"] = clean(detail)
    if errors:
        body["errors"] = [{"pointer": clean(pointer), "code": clean(what)} for pointer, what in errors]
    if trace_id:
        body["trace_id"] = trace_id
    if error_id:
        body["error_id"] = error_id
    if request_id:
        body["instance"] = f"urn:uuid:{request_id}"
    content = json.dumps(body, separators=(",", ":")).encode()
    return Response(status, [("Content-Type", "application/problem+json"), *headers], content)
