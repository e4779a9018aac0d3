"""One exchange by itself, without a server: what each signal gets of what a front end hands over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN, SpanKind, StatusCode, use_span

from healthobs import Settings, headers
from healthobs.audit import Receipt
from healthobs.exceptions import ConfigurationError
from healthobs.headers import CONFIDENTIALITY
from healthobs.http import Exchange, HttpServer
from healthobs.testing import Capture

ACTIVE = {"http_request_method": "GET", "url_scheme": "https"}
LABELS = {
    "http_request_method": "GET",
    "url_scheme": "https",
    "http_route": "/x",
    "network_protocol_version": "1.1",
}


@pytest.fixture
def strict() -> Iterator[Capture]:
    """Capture with everything on that is off by default."""
    settings = Settings(
        service_name="svc",
        redaction="strict",
        headers=True,
        audience="all",
        max_stall_seconds=60,
        trace_response=True,
    )
    with Capture(settings) as capture:
        yield capture


def begin(server: HttpServer, method: str = "GET", **options: Any) -> Exchange:
    """Return the exchange of one request."""
    return Exchange(server, method, "https", ("host", "443"), "1.1", None, None, **options)


class TestSignals:
    """What is recorded of one request."""

    def test_active_while_it_lasts(self, strict: Capture) -> None:
        """The gauge has method and scheme, is 1 in between and 0 afterwards."""
        exchange = begin(HttpServer(strict.obs))
        assert strict.metric("http_server_active_requests", **ACTIVE) == 1
        exchange.finish(0)
        assert strict.metric("http_server_active_requests", **ACTIVE) == 0

    @pytest.mark.parametrize("status", [500, 501, 503, 599])
    def test_status_of_a_failure(self, strict: Capture, status: int) -> None:
        """Where nothing was raised, the status is the type of the error, readable in strict; the span is in error."""
        exchange = begin(HttpServer(strict.obs))
        exchange.respond(status, "/x")
        exchange.finish(0)
        span = strict.span("GET /x")
        assert (span.attributes or {})["error.type"] == str(status)
        assert span.status.status_code is StatusCode.ERROR
        labels = {**LABELS, "http_response_status_code": str(status), "error_type": str(status)}
        assert strict.metric("http_server_request_duration_seconds_count", **labels) == 1

    def test_below_500_is_no_error(self, strict: Capture) -> None:
        """What the caller did wrong is no error of the server's (HTTP semantic conventions)."""
        exchange = begin(HttpServer(strict.obs))
        exchange.respond(499, "/x")
        exchange.finish(0)
        span = strict.span("GET /x")
        assert "error.type" not in (span.attributes or {})
        assert span.status.status_code is StatusCode.UNSET

    def test_exception(self, strict: Capture) -> None:
        """Span, sample and access line name one failure: type, frames, fingerprint, error id."""
        exchange = begin(HttpServer(strict.obs))
        try:
            raise LookupError("of Jane Roe")
        except LookupError as exc:
            exchange.error = exc
        error_id = exchange.error_id
        exchange.finish(0)
        (line,) = strict.log_lines
        (event,) = strict.spans[0].events
        told = event.attributes or {}
        assert error_id
        assert line["error_id"] == told["healthobs.error_id"] == error_id
        assert line["exception_fingerprint"] == told["healthobs.exception.fingerprint"]
        assert (line["exception_type"], line["status"]) == ("LookupError", 500)
        assert any("test_exchange" in frame for frame in line["exception_frames"])
        assert strict.leaks("Jane", "Roe") == ()

    def test_exception_after_the_status(self) -> None:
        """A body that breaks half-way is a line of level error, whatever status went out before."""
        with Capture(Settings(log_level="warning")) as capture:
            server = HttpServer(capture.obs)
            for error in (None, LookupError()):
                exchange = begin(server)
                exchange.respond(200, "/x")
                exchange.error = error
                exchange.finish(0)
            (line,) = capture.log_lines
        assert (line["level"], line["status"], line["exception_type"]) == ("error", 200, "LookupError")

    def test_gone_before_an_answer(self, strict: Capture) -> None:
        """A caller that went away is status 499 and the error type `cancelled`, and no error of the span's."""
        exchange = begin(HttpServer(strict.obs))
        exchange.cancelled = True
        exchange.finish(0)
        (span,) = strict.spans
        assert (span.attributes or {})["error.type"] == "cancelled"
        assert span.status.status_code is StatusCode.UNSET
        assert strict.log_lines[0]["status"] == 499

    def test_response_names_its_trace(self, strict: Capture) -> None:
        """`traceresponse` is the server span's, the request id that of the access line."""
        exchange = begin(HttpServer(strict.obs))
        added = dict(exchange.respond(200, "/x"))
        exchange.finish(2)
        (line,) = strict.log_lines
        assert added["traceresponse"] == f"00-{line['trace_id']}-{line['span_id']}-01"
        assert added["X-Request-Id"] == line["request_id"]
        assert line["response_bytes"] == 2

    def test_route_as_far_as_known(self, strict: Capture) -> None:
        """The template is there from the match on, `unmatched` before; strict lets it pass."""
        exchange = begin(HttpServer(strict.obs))
        assert exchange.route == "unmatched"
        exchange.matched("/beds/{bed}/monitor")
        assert exchange.route == "/beds/{bed}/monitor"
        exchange.finish(0)
        assert strict.span("GET /beds/{bed}/monitor").kind is SpanKind.SERVER
        assert strict.log_lines[0]["route"] == "/beds/{bed}/monitor"

    def test_method_nobody_knows(self, strict: Capture) -> None:
        """The span's name is `HTTP` until there is a route, the method `_OTHER` (HTTP semantic conventions)."""
        begin(HttpServer(strict.obs), "BREW").finish(0)
        (span,) = strict.spans
        assert (span.name, (span.attributes or {})["http.request.method"]) == ("HTTP", "_OTHER")

    def test_receipt(self, strict: Capture) -> None:
        """The entry's place in the log is in a header of the answer; the entry is known to be there."""
        exchange = begin(HttpServer(strict.obs))
        assert not exchange.is_recorded
        receipt = Receipt("healthobs.example/svc", 7, 8, b"r" * 32)
        exchange.receipt(receipt)
        assert exchange.is_recorded
        assert headers.receipt(receipt.origin, 7, receipt.root) in exchange.respond(200, "/x")
        exchange.finish(0)

    def test_unavailable(self, strict: Capture) -> None:
        """What takes the place of an answer without its entry names the trace."""
        exchange = begin(HttpServer(strict.obs))
        answer = exchange.unavailable()
        exchange.respond(answer.status, "/x")
        exchange.finish(len(answer.body))
        told = json.loads(answer.body)
        (line,) = strict.log_lines
        assert (answer.status, told["trace_id"]) == (503, line["trace_id"])
        assert ("Retry-After", "1") in answer.headers

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            *((known, known) for known in ("0.9", "1.0", "1.1", "2", "3", "")),
            ("4", "_OTHER"),
            ("x", "_OTHER"),
        ],
    )
    def test_protocol_versions(self, strict: Capture, given: str, said: str) -> None:
        """A version of HTTP is one of those that there are."""
        Exchange(HttpServer(strict.obs), "GET", "http", ("host", "80"), given, None, None).finish(0)
        assert (strict.spans[0].attributes or {})["network.protocol.version"] == said

    @pytest.mark.parametrize(
        ("name", "claimed", "told"),
        [
            ("10.0.0.7", "records.example", True),
            ("10.0.0.7", None, True),
            ("localhost", "localhost:8080", True),
            ("ottoline-smith", "Ottoline-Smith:443", False),
            ("078-05-1120", "078-05-1120", False),
            ("", "records.example", False),
        ],
    )
    def test_server_that_the_client_named(
        self, strict: Capture, name: str, claimed: str | None, told: bool
    ) -> None:
        """What a server took from `Host` is data of the request: neither the name is recorded nor its port."""
        server = HttpServer(strict.obs)
        Exchange(server, "GET", "http", (name, "443"), "1.1", None, None, claimed=claimed).finish(0)
        found = {
            key: value
            for key, value in (strict.spans[0].attributes or {}).items()
            if key.startswith("server")
        }
        assert found == ({"server.address": name, "server.port": 443} if told else {})

    @pytest.mark.parametrize("port", ["078051120", "\u0661", "-1", ""])
    def test_port_that_is_none(self, strict: Capture, port: str) -> None:
        """More digits than a port has are none."""
        Exchange(HttpServer(strict.obs), "GET", "http", ("host", port), "1.1", None, None).finish(0)
        assert "server.port" not in (strict.spans[0].attributes or {})


class TestSilent:
    """A request that the service makes to itself, for a control."""

    def test_leaves_nothing(self, strict: Capture) -> None:
        """No span, line, sample, active request or progress; the headers are those of any answer."""
        server = HttpServer(strict.obs)
        exchange = begin(server, silent=True)
        assert strict.metric("http_server_active_requests", **ACTIVE) is None
        assert exchange.progress is None
        added = dict(exchange.respond(200, "/x"))
        exchange.finish(0)
        assert "X-Request-Id" in added
        assert "traceresponse" not in added
        assert (strict.spans, strict.log_lines) == ((), [])
        assert "http_server_request_duration_seconds_count" not in strict.telemetry()["metrics"]

    def test_any_other_makes_progress(self, strict: Capture) -> None:
        """Its begin and end are known to the watchdog."""
        exchange = begin(HttpServer(strict.obs))
        progress = strict.obs.health.progress
        assert exchange.progress is progress
        assert progress is not None
        strict.time.advance(3_600)
        assert not progress.check()
        exchange.finish(0)
        assert progress.check()


class TestAnothersSpan:
    """Another instrumentation makes the server span."""

    def test_opened_inside(self, strict: Capture) -> None:
        """It is taken over at the match, once: what is current later is not the server span."""
        tracer = TracerProvider().get_tracer("theirs")
        exchange = begin(HttpServer(strict.obs), defers=True)
        assert exchange.span is INVALID_SPAN
        with tracer.start_as_current_span("server", kind=SpanKind.SERVER) as theirs:
            exchange.matched("/x")
            with tracer.start_as_current_span("inner", kind=SpanKind.CLIENT):
                added = dict(exchange.respond(200, "/x"))
        exchange.finish(0)
        seen = theirs.get_span_context()
        assert exchange.span.get_span_context() == seen
        assert added["traceresponse"] == f"00-{seen.trace_id:032x}-{seen.span_id:016x}-01"
        assert strict.log_lines[0]["span_id"] == f"{seen.span_id:016x}"
        assert strict.spans == ()

    def test_without_a_match(self, strict: Capture) -> None:
        """Then it is taken over where the response starts."""
        tracer = TracerProvider().get_tracer("theirs")
        exchange = begin(HttpServer(strict.obs), defers=True)
        with tracer.start_as_current_span("server", kind=SpanKind.SERVER) as theirs:
            exchange.respond(404, None)
        exchange.finish(0)
        assert exchange.span.get_span_context() == theirs.get_span_context()

    def test_opened_around(self, strict: Capture) -> None:
        """One that is there already is it, whatever is current at the response."""
        tracer = TracerProvider().get_tracer("theirs")
        with tracer.start_as_current_span("server", kind=SpanKind.SERVER) as theirs:
            exchange = begin(HttpServer(strict.obs), defers=True)
            with use_span(tracer.start_span("other", kind=SpanKind.SERVER)):
                exchange.matched("/x")
                exchange.respond(200, "/x")
            exchange.finish(0)
        assert exchange.span.get_span_context() == theirs.get_span_context()
        assert strict.spans == ()


class TestShared:
    """What all exchanges of one application share."""

    def test_confidentiality_by_default(self, strict: Capture) -> None:
        """Without a word about it, a response is `N`, normal, and may be kept (HL7 v3 Confidentiality)."""
        exchange = begin(HttpServer(strict.obs))
        assert dict(exchange.respond(200, "/x"))["Data-Classification"] == "conf=N"
        assert not exchange.restricted
        exchange.finish(0)

    @pytest.mark.parametrize("conf", ["r", "restricted", "", "NR", None])
    def test_confidentiality_is_a_code(self, strict: Capture, conf: Any) -> None:
        """A word that is none of the codes is refused without being repeated: no cache would be told of it."""
        with pytest.raises(ConfigurationError, match=r"conf must be one of U, L, M, N, R, V\Z"):
            HttpServer(strict.obs, conf=conf)

    @pytest.mark.parametrize("conf", CONFIDENTIALITY)
    def test_confidentiality_as_told(self, strict: Capture, conf: str) -> None:
        """Each code is taken; R and V may not be kept."""
        exchange = begin(HttpServer(strict.obs, conf=conf))
        assert dict(exchange.respond(200, "/x"))["Data-Classification"] == f"conf={conf}"
        assert exchange.restricted == (conf in ("R", "V"))
        exchange.finish(0)

    def test_declared_series_are_those_of_a_request(self, strict: Capture) -> None:
        """A success and a failure over plain HTTP/1.1 move the very series that were declared at 0, and add none."""
        server = HttpServer(strict.obs)
        server.declare([("GET", "/x")])

        def series() -> list[tuple[str, ...]]:
            names = ("url_scheme", "http_response_status_code", "error_type", "network_protocol_version")
            return [
                (*(sample.labels[name] for name in names), f"{sample.value:g}")
                for family in strict.obs.metrics.collect()
                for sample in family.samples
                if sample.name == "http_server_request_duration_seconds_count"
            ]

        assert series() == [("http", "200", "", "1.1", "0"), ("http", "500", "500", "1.1", "0")]
        for status in (200, 500):
            exchange = Exchange(server, "GET", "http", ("host", "80"), "1.1", None, None)
            exchange.respond(status, "/x")
            exchange.finish(0)
        assert series() == [("http", "200", "", "1.1", "1"), ("http", "500", "500", "1.1", "1")]
