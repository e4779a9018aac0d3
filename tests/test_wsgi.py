"""The WSGI exchange: every response measured to the close of its body, with headers, ids and one duration."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from tests.wsgi_kit import TRACEPARENT, Kit, answer, plain_environ

from healthobs import _runtime


class TestSpan:
    """The server span."""

    def test_semantic_conventions(self) -> None:
        """Kind, name and attributes follow the stable HTTP conventions; nothing of path or query is recorded."""
        kit = Kit(answer())
        kit.request(path="/x/pt-4711")
        (span,) = kit.spans()
        assert (span.kind, span.name) == (SpanKind.SERVER, "GET /x/{id}")
        assert dict(span.attributes or {}) == {
            "http.request.method": "GET",
            "url.scheme": "http",
            "server.address": "127.0.0.1",
            "server.port": 80,
            "network.protocol.version": "1.1",
            "http.route": "/x/{id}",
            "http.response.status_code": 200,
        }
        assert "pt-4711" not in span.to_json() + kit.stream.getvalue()

    def test_continues_a_trace(self) -> None:
        """An incoming `traceparent` becomes the parent (W3C Trace Context §3.2)."""
        kit = Kit(answer())
        kit.request(traceparent=TRACEPARENT)
        (span,) = kit.spans()
        assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"

    def test_untrusted_trace_is_linked(self) -> None:
        """From callers that are not trusted, the trace is linked and a new root begins."""
        kit = Kit(answer(), trust_incoming=False)
        kit.request(traceparent=TRACEPARENT)
        (span,) = kit.spans()
        assert span.parent is None
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [
            "0af7651916cd43dd8448eb211c80319c"
        ]

    @pytest.mark.parametrize("header", ["", "junk", "00-0-0-01", TRACEPARENT.upper(), "ff" + TRACEPARENT[2:]])
    def test_malformed_traceparent_starts_a_new_trace(self, header: str) -> None:
        """What is not a traceparent is ignored."""
        kit = Kit(answer())
        kit.request(traceparent=header)
        (span,) = kit.spans()
        assert span.parent is None

    def test_server_error(self) -> None:
        """From 500 on an answer is an error of the span, below it is not."""
        kit = Kit(answer("500 Internal Server Error"))
        kit.request()
        assert (kit.spans()[0].status.status_code, (kit.spans()[0].attributes or {})["error.type"]) == (
            StatusCode.ERROR,
            "500",
        )
        kit = Kit(answer("404 Not Found", route=None))
        kit.request()
        assert kit.spans()[0].status.status_code is StatusCode.UNSET

    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    @pytest.mark.parametrize(
        "method", ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"]
    )
    def test_known_methods_keep_their_name(self, method: str) -> None:
        """The methods of RFC 9110, of RFC 5789 and QUERY are told apart in span, line and label."""
        kit = Kit(answer())
        kit.request(method)
        assert kit.spans()[0].name == f"{method} /x/{{id}}"
        assert kit.lines()[0]["method"] == method
        assert kit.sample("svc_request_duration_seconds_count", method=method) == 1

    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    def test_unmatched_route_and_unknown_method(self) -> None:
        """Neither a made-up path nor a made-up method reaches a name or a label."""
        kit = Kit(answer("404 Not Found", route=None))
        kit.request("BREW", "/.env")
        (span,) = kit.spans()
        assert span.name == "HTTP"
        assert (span.attributes or {})["http.request.method"] == "_OTHER"
        assert (
            kit.sample(
                "svc_request_duration_seconds_count", endpoint="unmatched", method="_OTHER", status="404"
            )
            == 1
        )

    def test_exception_of_the_application(self) -> None:
        """An exception is re-raised, counted as 500 with its type, and its message is nowhere."""

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            raise ValueError(f"bad SSN {environ['PATH_INFO']}")

        kit = Kit(app)
        with pytest.raises(ValueError, match="bad SSN"):
            kit.request(path="/078-05-1120")
        (span,) = kit.spans()
        assert (span.attributes or {})["error.type"] == "ValueError"
        assert kit.lines()[0]["status"] == 500
        assert kit.sample("http_server_request_duration_seconds_count", error_type="ValueError") == 1
        assert kit.sample("svc_active_requests") == 0
        assert "078-05-1120" not in span.to_json() + kit.stream.getvalue()


class TestOneMeasurement:
    """Span, histogram and access line of one request share one duration."""

    def test_streamed_body_is_measured_to_its_close(self) -> None:
        """The clock stops when the body was closed, not when the application returned."""
        kit: Kit

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            for _ in range(3):
                kit.ticks.now_ns += 1_000_000_000
                yield b"chunk"

        kit = Kit(app)
        kit.request()
        (span,), (line,) = kit.spans(), kit.lines()
        assert span.start_time is not None
        assert span.end_time is not None
        assert (span.end_time - span.start_time) / 1e9 == 3.0
        assert line["duration_seconds"] == 3.0
        assert line["response_bytes"] == 15
        assert kit.sample("svc_request_duration_seconds_sum") == 3.0
        assert kit.sample("http_server_request_duration_seconds_sum") == 3.0

    def test_in_flight_until_closed(self) -> None:
        """The gauge counts a request for as long as its body is open."""
        seen: list[float | None] = []
        kit: Kit

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"a"
            seen.append(kit.sample("svc_active_requests"))

        kit = Kit(app)
        kit.request()
        assert (seen, kit.sample("svc_active_requests")) == ([1.0], 0.0)

    def test_body_that_breaks(self) -> None:
        """An exception in the middle of a stream ends the exchange with its type."""

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"a"
            raise OSError("disk")

        kit = Kit(app)
        with pytest.raises(OSError, match="disk"):
            kit.request()
        assert (kit.spans()[0].attributes or {})["error.type"] == "OSError"
        assert kit.sample("svc_active_requests") == 0

    def test_body_abandoned_by_the_server(self) -> None:
        """A client that goes away closes the body early; the exchange ends once."""
        closed: list[bool] = []

        class Body:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"a", b"b"])

            def close(self) -> None:
                closed.append(True)

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Body:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Body()

        kit = Kit(app)
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        body = kit.middleware(environ, lambda *_: lambda _data: None)
        assert next(iter(body)) == b"a"
        body.close()  # type: ignore[attr-defined]
        body.close()  # type: ignore[attr-defined]
        assert closed == [True]
        assert len(kit.spans()) == len(kit.lines()) == 1

    @pytest.mark.parametrize(
        ("broken", "recorded"),
        [
            (("close",), "RuntimeError"),
            (("iter",), "LookupError"),
            (("iter", "close"), "LookupError"),
            (("next", "close"), "LookupError"),
        ],
    )
    def test_body_that_breaks_at_its_ends(self, broken: tuple[str, ...], recorded: str) -> None:
        """A body is closed wherever it breaks, its close too is recorded, and the first of two exceptions names it."""
        closed: list[bool] = []

        class Body:
            def __iter__(self) -> Iterator[bytes]:
                if "iter" in broken:
                    raise LookupError("one")
                return self

            def __next__(self) -> bytes:
                if "next" in broken:
                    raise LookupError("one")
                raise StopIteration

            def close(self) -> None:
                closed.append(True)
                if "close" in broken:
                    raise RuntimeError("two")

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Body:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return Body()

        kit = Kit(app)
        with contextlib.ExitStack() as stack:
            stack.enter_context(pytest.raises((LookupError, RuntimeError)))
            body = kit.middleware(plain_environ(), lambda *_: lambda _data: None)
            stack.callback(body.close)  # type: ignore[attr-defined]
            list(body)
        assert closed == [True]
        (line,) = kit.lines()
        assert (line["status"], line["exception_type"]) == (200, recorded)
        assert (kit.spans()[0].attributes or {})["error.type"] == recorded
        assert kit.sample("svc_active_requests") == 0

    def test_logs_and_exemplar_carry_the_trace_id(self) -> None:
        """Access line and exemplar name the trace of the span."""
        kit = Kit(answer())
        kit.request(traceparent=TRACEPARENT)
        assert kit.lines()[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        _, body = kit.obs.metrics.exposition("application/openmetrics-text")
        assert b'trace_id="0af7651916cd43dd8448eb211c80319c"' in body

    def test_unsampled(self) -> None:
        """A request whose caller does not sample is measured and logged, not traced, and leaves no exemplar."""
        kit = Kit(answer())
        kit.request(traceparent=TRACEPARENT[:-2] + "00")
        assert kit.spans() == ()
        assert kit.lines()[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        _, body = kit.obs.metrics.exposition("application/openmetrics-text")
        assert b"trace_id" not in body

    def test_disabled(self) -> None:
        """Switched off, nothing is recorded and the answer is the application's."""
        kit = Kit(answer(), disabled=True)
        status, _, body = kit.request()
        assert (status, body, kit.spans(), kit.lines()) == (200, b"ok", (), [])
        assert kit.sample("svc_request_duration_seconds_count") is None
        assert kit.sample("http_server_active_requests") is None


class TestContext:
    """What is current while the application runs."""

    def test_current_in_the_call_and_in_the_stream(self) -> None:
        """Span, `Observability` and exchange are current wherever the application's code runs, and nowhere else."""
        seen: list[bool] = []
        kit: Kit

        def look() -> None:
            span = get_current_span().get_span_context()
            seen.append(
                span.is_valid and _runtime.override.get() is kit.obs and _runtime.exchange.get() is not None
            )

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            look()
            start_response("200 OK", [("Content-Type", "text/plain")])

            def stream() -> Iterator[bytes]:
                look()
                yield b"a"
                look()

            return stream()

        kit = Kit(app)
        kit.request()
        assert seen == [True, True, True]
        assert not get_current_span().get_span_context().is_valid
        assert _runtime.override.get() is None
        assert _runtime.exchange.get() is None

    def test_context_variables_do_not_reach_the_next_request(self) -> None:
        """What one request's code leaves in a context variable is not seen by the next on the same thread."""
        variable: ContextVar[str] = ContextVar("variable", default="clean")
        seen: list[str] = []

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            seen.append(variable.get())
            variable.set("dirty")
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b""]

        kit = Kit(app)
        kit.request()
        kit.request()
        assert seen == ["clean", "clean"]


class TestHeaders:
    """Headers on every response."""

    @pytest.mark.parametrize(
        "status", ["200 OK", "404 Not Found", "405 Method Not Allowed", "500 Internal Server Error"]
    )
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    def test_on_every_status(self, status: str, method: str) -> None:
        """Errors carry the same set as successes."""
        kit = Kit(answer(status), headers=True, audience="all", frameworks=("hipaa",))
        _, headers, _ = kit.request(method)
        assert headers["compliance"] == 'frameworks=("hipaa");catalogue="2026.1"'
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"]

    def test_off_by_default(self) -> None:
        """Unless asked for, only the request id is added."""
        _, headers, _ = Kit(answer()).request()
        assert set(headers) == {"content-type", "content-length", "x-request-id"}

    def test_compliance_headers_only_for_the_trusted(self) -> None:
        """With the audience `trusted`, others get the security set alone."""
        kit = Kit(answer(), headers=True, trusted=lambda environ: environ.get("HTTP_X_INSIDE") == "1")
        assert "compliance" not in kit.request()[1]
        assert "compliance" in kit.request(x_inside="1")[1]
        assert kit.request()[1]["x-content-type-options"] == "nosniff"

    def test_the_application_wins(self) -> None:
        """A header that the application sends itself is not sent a second time."""
        kit = Kit(answer(Cache_Control="private"), headers=True, audience="all")
        assert kit.request()[1]["cache-control"] == "private"

    def test_request_id(self) -> None:
        """A UUID is kept; anything freer is replaced, because it could name a person."""
        kit = Kit(answer())
        good = "0af76519-16cd-43dd-8448-EB211C80319C"
        assert kit.request(x_request_id=good)[1]["x-request-id"] == good
        for bad in ("", "4242424242424242", "jane-roe", good + "0", good + "\n"):
            assert kit.request(x_request_id=bad)[1]["x-request-id"] != bad
        assert kit.lines()[0]["request_id"] == good
        assert "4242424242424242" not in kit.stream.getvalue()

    def test_trace_response(self) -> None:
        """Asked for, the response names its trace, to the audience of the compliance headers."""
        kit = Kit(answer(), trace_response=True, audience="all")
        value = kit.request(traceparent=TRACEPARENT)[1]["traceresponse"]
        assert value.startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert value != TRACEPARENT
        assert "traceresponse" not in Kit(answer(), trace_response=True).request()[1]


class TestOperationalEndpoints:
    """Probes and scrapes are answered before the application and leave no trace."""

    @pytest.mark.parametrize("path", ["/health", "/livez", "/readiness", "/readyz", "/startupz"])
    def test_probes(self, path: str) -> None:
        """Always there, with headers, without span, access line or request sample."""
        kit = Kit(answer(), headers=True, audience="all")
        status, headers, body = kit.request(path=path)
        assert (status, headers["content-type"], headers["cache-control"]) == (
            200,
            "application/json",
            "no-store",
        )
        assert json.loads(body)
        assert kit.spans() == ()
        assert [line for line in kit.lines() if line["event"] == "http_request"] == []
        assert kit.sample("svc_request_duration_seconds_count") is None
        assert kit.sample("healthobs_probe_requests_total", probe=path, code="200") == 1

    def test_opt_in(self) -> None:
        """Metrics, compliance and audit are the application's paths unless asked for."""
        assert Kit(answer()).request(path="/metrics")[2] == b"ok"
        assert b"svc_request" in Kit(answer(), endpoints=True).request(path="/metrics")[2]

    def test_head_has_no_body(self) -> None:
        """HEAD answers as GET does, without the body."""
        status, headers, body = Kit(answer()).request("HEAD", "/health")
        assert (status, body) == (200, b"")
        assert int(headers["content-length"]) > 0

    def test_other_methods(self) -> None:
        """Anything but GET and HEAD is 405 with `Allow`."""
        status, headers, _ = Kit(answer()).request("POST", "/health")
        assert (status, headers["allow"]) == (405, "GET, HEAD")

    def test_nothing_to_show(self) -> None:
        """Without a trail, `/audit/trail` says so."""
        kit = Kit(answer(), endpoints=True, authorize=lambda request, scope: None)
        assert kit.request(path="/audit/trail")[0] == 404
