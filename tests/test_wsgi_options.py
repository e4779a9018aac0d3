"""The exchange's options: streams, trust by request, baggage, hooks, excluded paths, exceptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from flask import Flask
from opentelemetry import baggage
from opentelemetry.context import attach, detach
from opentelemetry.trace import Span

from healthobs import Settings, _runtime, classified
from healthobs.client.outbound import Recorder
from healthobs.flask import init_app, remove_app
from healthobs.testing import Capture
from healthobs.wsgi import Middleware

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def call(app: Any, path: str = "/x", **headers: str) -> tuple[str, dict[str, str], bytes]:
    """Make one request and read the answer to its end."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "h", "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
    }  # fmt: skip
    environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
    seen: list[Any] = []
    written: list[bytes] = []

    def start_response(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
        seen[:] = [status, dict(fields)]
        return written.append

    body = app(environ, start_response)
    content = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return seen[0], seen[1], b"".join(written) + content


def ok(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer at once."""
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class TestFirstByte:
    """Time to first byte, the second number of a stream."""

    def test_span_and_access_line(self, capture: Capture) -> None:
        """A stream leaves both: when its first byte went out, and when it was closed."""

        def stream(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            start_response("200 OK", [])
            capture.time.advance(3)
            yield b""
            yield b"first"
            capture.time.advance(5)
            yield b"second"

        call(Middleware(stream, capture.obs))
        (line,), (span,) = capture.log_lines, capture.spans
        assert (line["first_byte_seconds"], line["duration_seconds"], line["response_bytes"]) == (4, 10, 11)
        assert (span.attributes or {})["healthobs.first_byte_seconds"] == 4

    def test_not_for_an_answer_of_known_length(self, capture: Capture) -> None:
        """Where the length is stated, first byte and end are one moment."""
        call(Middleware(ok, capture.obs))
        assert "first_byte_seconds" not in capture.log_lines[0]

    def test_write_counts(self, capture: Capture) -> None:
        """What an application sends by the `write` of PEP 3333 is counted and timed too."""

        def writer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            write = start_response("200 OK", [])
            write(b"abc")
            return [b"de"]

        assert call(Middleware(writer, capture.obs))[2] == b"abcde"
        assert capture.log_lines[0]["response_bytes"] == 5
        assert capture.log_lines[0]["first_byte_seconds"] == 1


class TestTrust:
    """Whose trace is continued."""

    @pytest.mark.parametrize(("caller", "parents", "links"), [("inside", 1, 0), ("outside", 0, 1)])
    def test_by_request(self, capture: Capture, caller: str, parents: int, links: int) -> None:
        """A function told the environment decides: continue, or a new root with a link."""
        app = Middleware(ok, capture.obs, trust_incoming=lambda environ: environ["HTTP_FROM"] == "inside")
        call(app, traceparent=TRACEPARENT, **{"from": caller})
        (span,) = capture.spans
        assert (int(span.parent is not None), len(span.links)) == (parents, links)
        assert (f"{span.context.trace_id:032x}" == TRACE_ID) == bool(parents)

    def test_a_fault_counts_as_no(self, capture: Capture) -> None:
        """When the function raises, the caller is not trusted, and the request is observed all the same."""

        def broken(environ: Any) -> bool:
            raise KeyError("x")

        call(Middleware(ok, capture.obs, trust_incoming=broken, trusted=broken), traceparent=TRACEPARENT)
        assert capture.spans[0].parent is None
        assert capture.metric("healthobs_internal_errors_total", component="hook") == 2


class TestBaggage:
    """Baggage by allow-list."""

    @pytest.mark.parametrize(
        ("allowed", "trust", "seen"),
        [(("tenant",), True, {"tenant": "north"}), ((), True, {}), (("tenant",), False, {})],
    )
    def test_in(self, allowed: tuple[str, ...], trust: bool, seen: dict[str, str]) -> None:
        """Only what is named is taken, and only from a trusted caller; it is in no signal."""
        found: list[Any] = []

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            found.append(dict(baggage.get_all()))
            return ok(environ, start_response)

        with Capture(Settings(baggage=allowed, trust_incoming=trust)) as capture:
            call(Middleware(app, capture.obs), baggage="tenant=north,patient=4711-xq")
        assert found == [seen]
        assert capture.leaks("4711-xq", "north") == ()

    def test_out(self) -> None:
        """Only what is named goes to a peer."""
        for allowed, expected in ((("tenant",), "tenant=north"), ((), None)):
            sent: list[str | None] = []

            def app(
                environ: dict[str, Any], start_response: Callable[..., Any], sent: list[str | None] = sent
            ) -> Iterable[bytes]:
                token = attach(baggage.set_baggage("tenant", "north", baggage.set_baggage("mrn", "1")))
                recording = Recorder("peer", "h", 80).start("GET", "/x", 0)
                assert recording is not None
                sent.append(recording.headers().get("baggage"))
                recording.finish(200, "")
                detach(token)
                return ok(environ, start_response)

            with Capture(Settings(baggage=allowed)) as capture:
                call(Middleware(app, capture.obs))
            assert sent == [expected]


class TestHooks:
    """Request and response hooks."""

    def test_they_see_the_span(self, capture: Capture) -> None:
        """Both are told the recording span; what they set on it is exported, redacted."""

        def before(span: Span, environ: Any) -> None:
            span.set_attribute("app.port", environ["SERVER_PORT"])

        def after(span: Span, status: str, headers: list[tuple[str, str]]) -> None:
            span.set_attributes({"app.status": status, "patient.name": "Jane Roe"})
            headers.append(("X-Late", "1"))

        app = Middleware(ok, capture.obs, request_hook=before, response_hook=after)
        assert call(app)[1]["X-Late"] == "1"
        attributes = capture.spans[0].attributes or {}
        assert (attributes["app.port"], attributes["app.status"]) == ("80", "200 OK")
        assert capture.leaks("Jane Roe") == ()

    def test_what_they_raise_is_counted(self, capture: Capture) -> None:
        """A broken hook changes nothing of the answer."""

        def broken(*_: Any) -> None:
            raise RuntimeError("hook")

        app = Middleware(ok, capture.obs, request_hook=broken, response_hook=broken)
        assert call(app)[::2] == ("200 OK", b"ok")
        assert capture.metric("healthobs_internal_errors_total", component="hook") == 2


class TestExcluded:
    """Paths that leave nothing."""

    def test_all_signals_at_once(self) -> None:
        """No span, sample, line or header; only the cheap count. The other paths are as before."""
        with Capture(Settings(excluded=("/ping",), headers=True, audience="all")) as capture:
            app = Middleware(ok, capture.obs)
            assert call(app, "/ping") == ("200 OK", {"Content-Length": "2"}, b"ok")
            assert (capture.spans, capture.log_lines) == ((), [])
            assert capture.metric("healthobs_excluded_requests_total", path="/ping") == 1
            assert "X-Request-Id" in call(app, "/ping/other")[1]
            assert len(capture.spans) == len(capture.log_lines) == 1


class TestClassified:
    """What a view's classification makes of the headers."""

    @pytest.mark.parametrize(
        ("own", "conf", "frameworks"),
        [(("sox",), "R", '("sox")'), ((), "R", '("hipaa")'), (None, "N", '("hipaa")')],
    )
    def test_frameworks_and_confidentiality(
        self, own: tuple[str, ...] | None, conf: str, frameworks: str
    ) -> None:
        """Its own frameworks win over the settings'; a view that states nothing has the application's."""

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            return (ok if own is None else classified(conf="R", frameworks=own)(ok))(environ, start_response)

        with Capture(Settings(headers=True, audience="all", frameworks=("hipaa",))) as capture:
            headers = call(Middleware(app, capture.obs))[1]
        assert headers["Data-Classification"] == f"conf={conf}"
        assert headers["Compliance"].startswith(f"frameworks={frameworks};")


class TestFlaskExceptions:
    """An exception that Flask turns into a 500."""

    def test_one_error_id_in_every_signal(self, capture: Capture) -> None:
        """Span event, access line and the service's own answer name the same failure; its message is nowhere."""
        from werkzeug.exceptions import InternalServerError

        from healthobs.problems import problem
        from healthobs.redaction import describe_exception

        app = Flask("test")

        @app.get("/broken/<mrn>")
        def broken(mrn: str) -> str:
            raise ValueError(f"no such patient {mrn}")

        @app.errorhandler(InternalServerError)
        def answer(exc: InternalServerError) -> Any:
            assert exc.original_exception is not None
            answering = _runtime.exchange.get()
            assert answering.error_id == describe_exception(exc.original_exception).error_id
            told = problem(500, "internal", error_id=answering.error_id)
            return told.body, told.status, dict(told.headers)

        init_app(app, capture.obs)
        response = app.test_client().get("/broken/MRN-0099", buffered=True)
        response.close()
        remove_app(app)
        (span,) = capture.spans
        (line,) = [line for line in capture.log_lines if line["event"] == "http_request"]
        (event,) = span.events
        told = json.loads(response.data)["error_id"]
        assert told == line["error_id"] == (event.attributes or {})["healthobs.error_id"]
        assert line["exception_type"] == "ValueError" == (span.attributes or {})["error.type"]
        assert line["exception_frames"][-1].startswith(f"{__name__}:TestFlaskExceptions")
        assert line["status"] == 500
        assert capture.leaks("MRN-0099") == ()

    def test_removed_again(self, capture: Capture) -> None:
        """After `remove_app`, nothing of ours listens to Flask's signal."""
        from flask import got_request_exception

        app = Flask("test")
        init_app(app, capture.obs)
        assert list(got_request_exception.receivers_for(app))
        remove_app(app)
        assert not list(got_request_exception.receivers_for(app))
