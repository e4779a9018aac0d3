"""The WSGI exchange when something goes wrong: a fault of telemetry is nobody's, one of audit is answered 503."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from tests.wsgi_kit import Kit, answer, plain_environ

from healthobs.exceptions import AuditWriteError


class TestFaults:
    """Faults of telemetry never reach the caller; faults of audit do, as a 503."""

    def test_broken_clock(self) -> None:
        """Telemetry that cannot begin leaves the application alone, and is counted."""
        kit = Kit(answer())

        def broken() -> int:
            raise RuntimeError("no clock")

        object.__setattr__(kit.obs.clock, "monotonic_ns", broken)
        status, _, body = kit.request()
        assert (status, body) == (200, b"ok")
        assert kit.sample("healthobs_internal_errors_total", component="http") == 1

    def test_broken_clock_at_the_end(self) -> None:
        """Telemetry that cannot end leaves the answer as it is."""
        kit: Kit

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            def broken() -> int:
                raise RuntimeError("no clock")

            object.__setattr__(kit.obs.clock, "monotonic_ns", broken)
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"ok"]

        kit = Kit(app)
        assert kit.request()[2] == b"ok"
        assert kit.sample("healthobs_internal_errors_total", component="http") == 1
        assert kit.sample("healthobs_internal_errors_total", component="hook") == 1, "the first byte"

    def test_no_iterable_at_all(self) -> None:
        """An application that returns nothing to iterate over fails as it would alone, and nothing stays in flight."""

        def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            start_response("200 OK", [("Content-Type", "text/plain")])

        kit = Kit(app, max_stall_seconds=60)
        with pytest.raises(TypeError, match="not iterable"):
            kit.middleware(plain_environ(), lambda *_: lambda _chunk: None)
        assert kit.sample("http_server_active_requests") == 0
        progress = kit.obs.health.progress
        kit.ticks.now_ns += 1_000_000 * 10**9
        assert progress is not None
        assert progress.check()

    def test_server_that_takes_no_refusal(self) -> None:
        """Where the server refuses even the 503 in place of an answer, nothing stays in flight."""

        def app(_environ: dict[str, Any], _start_response: Callable[..., Any]) -> Iterable[bytes]:
            raise AuditWriteError("down")

        def refuse(*_arguments: object) -> Any:
            raise OSError

        kit = Kit(app)
        with pytest.raises(OSError):
            kit.middleware(plain_environ(), refuse)
        assert kit.sample("http_server_active_requests") == 0

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize("late", ["in the call", "in the body"])
    def test_audit_failure_after_the_start(self, late: str, method: str) -> None:
        """What was started and not sent yet is replaced by the 503 (PEP 3333, `exc_info`); the line says so too."""
        closed: list[bool] = []

        class Body:
            def __iter__(self) -> Any:
                return self

            def __next__(self) -> bytes:
                raise AuditWriteError("store is gone")

            def close(self) -> None:
                closed.append(True)

        def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Body() if late == "in the body" else iter([next(Body())])

        kit = Kit(app)
        status, headers, body = kit.request(method)
        assert (status, headers["content-type"]) == (503, "application/problem+json")
        assert body == b"" if method == "HEAD" else json.loads(body)["code"] == "audit_unavailable"
        assert [line["status"] for line in kit.lines()] == [503]
        assert closed == ([True] if late == "in the body" else [])

    def test_audit_failure_after_the_first_byte(self) -> None:
        """What has been sent in part breaks off, as an error."""

        def app(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"first"
            raise AuditWriteError("store is gone")

        kit = Kit(app)
        with pytest.raises(AuditWriteError):
            kit.request()
        (line,) = kit.lines()
        assert (line["status"], line["exception_type"]) == (200, "healthobs.exceptions.AuditWriteError")

    def test_audit_failure_is_a_503(self) -> None:
        """What could not be recorded is not answered."""

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            raise AuditWriteError("store is gone")

        status, headers, body = Kit(app).request()
        assert (status, headers["content-type"], headers["retry-after"]) == (
            503,
            "application/problem+json",
            "1",
        )
        assert json.loads(body)["code"] == "audit_unavailable"
        assert b"store is gone" not in body
