"""requests and httpx, observed where they are: one contract, three ways to send, against a real server."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import httpx
import pytest
import requests
from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,
    attach,
    detach,
    get_value,
    set_value,
)
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth

from healthobs import Settings
from healthobs.client import Peer
from healthobs.client.httpx import AsyncTransport, Transport
from healthobs.client.requests import observe_session
from healthobs.exceptions import ConfigurationError
from healthobs.testing import Capture
from scripted import Server, scripted_server

NAME, SSN = "Ottoline", "078-05-1120"


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: bytes


class Send(Protocol):
    """Sends one request."""

    def __call__(
        self,
        peer: Peer,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        data: Any = None,
        follow: bool = False,
        timeout: float = 5.0,
    ) -> Answer: ...


def by_requests(
    peer: Peer,
    method: str,
    url: str,
    *,
    headers: Any = None,
    data: Any = None,
    follow: bool = False,
    timeout: float = 5.0,
) -> Answer:
    with requests.Session() as session:
        observe_session(session, peer)
        answer = session.request(
            method, url, headers=headers, data=data, allow_redirects=follow, timeout=timeout
        )
        return Answer(answer.status_code, answer.content)


def by_httpx(
    peer: Peer,
    method: str,
    url: str,
    *,
    headers: Any = None,
    data: Any = None,
    follow: bool = False,
    timeout: float = 5.0,
) -> Answer:
    with httpx.Client(transport=Transport(peer), follow_redirects=follow, timeout=timeout) as client:
        answer = client.request(method, url, headers=headers, content=data)
        return Answer(answer.status_code, answer.content)


def by_async_httpx(
    peer: Peer,
    method: str,
    url: str,
    *,
    headers: Any = None,
    data: Any = None,
    follow: bool = False,
    timeout: float = 5.0,
) -> Answer:
    async def send() -> Answer:
        async with httpx.AsyncClient(
            transport=AsyncTransport(peer), follow_redirects=follow, timeout=timeout
        ) as client:
            answer = await client.request(method, url, headers=headers, content=data)
            return Answer(answer.status_code, answer.content)

    return asyncio.run(send())


@pytest.fixture(params=[by_requests, by_httpx, by_async_httpx], ids=["requests", "httpx", "httpx-async"])
def send(request: pytest.FixtureRequest) -> Send:
    """Give each way to send in turn."""
    way: Send = request.param
    return way


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    with scripted_server() as state:
        yield state


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Capture with the service's own prefix."""
    with Capture(Settings(service_name="caller", prefix="caller")) as found:
        yield found


def lab(server: Server, **options: Any) -> Peer:
    return Peer(
        server.url,
        "lab",
        **{"routes": ["/results/{id}", "/results/{id}/{part}"], "backoff_seconds": 0} | options,
    )


class TestTelemetry:
    """Span, header and samples, as from `healthobs.client.Client`."""

    def test_span_and_samples(self, send: Send, server: Server, capture: Capture) -> None:
        """OpenTelemetry's client span with the template for a path, and one sample under each name."""
        server.script = [(200, {}, b"fine")]
        host, _, port = server.url.replace("127.0.0.1", "localhost").rpartition(":")
        peer = Peer(f"{host}:{port}", "lab", routes=["/results/{id}"])
        assert send(peer, "GET", f"{host}:{port}/results/4711?q={SSN}") == Answer(200, b"fine")
        (span,) = capture.spans
        assert (span.name, span.kind, span.status.status_code) == (
            "GET /results/{id}",
            SpanKind.CLIENT,
            StatusCode.UNSET,
        )
        assert dict(span.attributes or {}) == {
            "http.request.method": "GET",
            "server.address": "localhost",
            "server.port": int(port),
            "url.template": "/results/{id}",
            "http.response.status_code": 200,
        }
        assert server.received[0].path == f"/results/4711?q={SSN}"
        semconv = {
            "http_request_method": "GET",
            "server_address": "localhost",
            "server_port": port,
            "http_response_status_code": "200",
            "error_type": "",
        }
        assert capture.metric("http_client_request_duration_seconds_count", **semconv) == 1
        own = {"peer": "lab", "method": "GET", "status": "200"}
        assert capture.metric("caller_outbound_request_duration_seconds_count", **own) == 1

    def test_the_peer_continues_the_span(self, send: Send, server: Server, capture: Capture) -> None:
        """W3C Trace Context: a header of the caller does not win."""
        send(
            lab(server), "GET", server.url, headers={"Traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
        )
        (span,) = capture.spans
        assert server.received[0].headers["traceparent"] == (
            f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"
        )

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/results/4711", "GET /results/{id}"),
            ("/results/4711/report", "GET /results/{id}/{part}"),
            (f"/patients/{NAME}", "GET"),
            ("", "GET"),
        ],
    )
    def test_routes(self, send: Send, server: Server, path: str, name: str) -> None:
        """The first template that fits; a path that no template fits is shown by its method alone, in strict too."""
        with Capture(Settings(redaction="strict")) as capture:
            send(lab(server), "GET", server.url + path)
        (span,) = capture.spans
        assert span.name == name
        assert ("url.template" in (span.attributes or {})) == (name != "GET")
        assert capture.leaks(NAME, "/4711") == ()

    def test_a_made_up_method(self, server: Server, capture: Capture) -> None:
        """It reaches neither a name nor a label."""
        by_requests(lab(server), "BREW", server.url)
        assert capture.spans[0].name == "HTTP"
        assert (capture.spans[0].attributes or {})["http.request.method"] == "_OTHER"
        assert capture.leaks("BREW") == ()

    @pytest.mark.parametrize(
        ("step", "word"),
        [("closed", "connection_broken"), ("silent", "timeout"), ("garbage", "connection_broken")],
    )
    def test_no_answer(self, send: Send, server: Server, capture: Capture, step: str, word: str) -> None:
        """The word of the fault is `error.type`; the exception is the library's own, as before."""
        server.script = [step]
        with pytest.raises((requests.RequestException, httpx.TransportError)):
            send(lab(server), "GET", server.url, timeout=0.2 if step == "silent" else 5.0)
        (span,) = capture.spans
        assert ((span.attributes or {})["error.type"], span.status.description) == (word, word)

    def test_nobody_listens(self, send: Send, capture: Capture, free_port: int) -> None:
        """A refused connection."""
        url = f"http://127.0.0.1:{free_port}"
        with pytest.raises((requests.ConnectionError, httpx.ConnectError)):
            send(Peer(url, "lab"), "GET", url)
        assert (capture.spans[0].attributes or {})["error.type"] == "connection_refused"

    def test_not_tls(self, send: Send, server: Server, capture: Capture) -> None:
        """A peer that does not speak TLS where it should."""
        url = server.url.replace("http:", "https:")
        with pytest.raises((requests.exceptions.SSLError, httpx.ConnectError)):
            send(Peer(url, "lab"), "GET", url)
        assert (capture.spans[0].attributes or {})["error.type"] == "tls"

    def test_a_bug_is_recorded_as_such(self, server: Server, capture: Capture) -> None:
        """What is no transport's fault passes through, and the span ends all the same."""

        class Broken(HTTPAdapter):
            def send(self, *_arguments: Any, **_options: Any) -> Any:
                raise KeyError(SSN)

        with requests.Session() as session:
            session.mount(server.url, Broken())
            observe_session(session, lab(server))
            with pytest.raises(KeyError):
                session.get(server.url)
        assert (capture.spans[0].attributes or {})["error.type"] == "exception"

    def test_off(self, send: Send, server: Server) -> None:
        """Where nothing is in force, the request goes out as it is."""
        assert send(lab(server), "GET", server.url).status == 200
        assert "traceparent" not in server.received[0].headers


class TestRetries:
    """Off unless asked for; then with the rules of `Client`."""

    def test_off_by_default(self, send: Send, server: Server, capture: Capture) -> None:
        """Observing changes nothing of how often something is sent."""
        server.script = [(503, {}, b"")]
        assert send(lab(server), "GET", server.url).status == 503
        assert len(server.received) == 1

    @pytest.mark.parametrize(
        ("method", "headers", "sent"),
        [("GET", {}, 3), ("POST", {}, 1), ("POST", {"idempotency-KEY": "k"}, 3)],
    )
    def test_only_what_is_safe(
        self, send: Send, server: Server, capture: Capture, method: str, headers: dict[str, str], sent: int
    ) -> None:
        """RFC 9110 §9.2.2; each attempt is a span, repetitions are counted, the body goes out again."""
        server.script = [(503, {}, b"busy")] * 2
        answer = send(lab(server, retries=2), method, server.url, headers=headers, data=b"x")
        assert answer.status == (200 if sent == 3 else 503)
        counts = [(span.attributes or {}).get("http.request.resend_count") for span in capture.spans]
        assert counts == [None, 1, 2][:sent]
        assert [one.body for one in server.received] == [b"x"] * sent
        assert len({one.headers["traceparent"] for one in server.received}) == sent

    def test_broken_connection(self, send: Send, server: Server, capture: Capture) -> None:
        """One that the peer closed without an answer is tried again; a peer that is slow is not pressed."""
        server.script = ["closed"]
        assert send(lab(server, retries=1), "GET", server.url).status == 200
        server.script = [(503, {"Retry-After": "2"}, b"")]
        assert send(lab(server, retries=1), "GET", server.url).status == 503

    def test_a_body_that_is_used_up(self, server: Server, capture: Capture) -> None:
        """A generator can be sent once."""
        server.script = [(503, {}, b"")] * 2
        headers = {"Content-Length": "1"}
        with httpx.Client(transport=Transport(lab(server, retries=2))) as client:
            assert client.put(server.url, content=iter([b"x"]), headers=headers).status_code == 503
        with requests.Session() as session:
            observe_session(session, lab(server, retries=2))
            answer = session.put(server.url, data=iter([b"x"]), headers=headers)
        assert (answer.status_code, len(server.received)) == (503, 2)


class TestPlace:
    """What is observed, and what is not."""

    def test_other_services_are_left_alone(self, send: Send, server: Server, capture: Capture) -> None:
        """Neither span nor header; the same for a path beside the prefix."""
        assert (
            send(
                Peer("http://elsewhere", "x"),
                "GET",
                server.url,
            ).status
            == 200
        )
        assert send(Peer(f"{server.url}/v1", "x"), "GET", f"{server.url}/v10").status == 200
        assert capture.spans == ()
        assert all("traceparent" not in one.headers for one in server.received)

    def test_a_redirect_elsewhere_takes_no_header_along(
        self, send: Send, server: Server, capture: Capture
    ) -> None:
        """The ids go to the service that was named, and to nobody it points at."""
        other = server.url.replace("127.0.0.1", "localhost")
        server.script = [(302, {"Location": f"{other}/there"}, b"")]
        assert send(lab(server), "GET", server.url, follow=True).status == 200
        assert [("traceparent" in one.headers) for one in server.received] == [True, False]
        assert len(capture.spans) == 1

    def test_each_redirect_is_a_span(self, send: Send, server: Server, capture: Capture) -> None:
        """Two requests, two spans, two headers."""
        server.script = [(302, {"Location": "/results/4711"}, b"")]
        assert send(lab(server), "GET", f"{server.url}/results/1/again", follow=True).status == 200
        assert [span.name for span in capture.spans] == ["GET /results/{id}/{part}", "GET /results/{id}"]
        assert len({one.headers["traceparent"] for one in server.received}) == 2

    def test_a_url_that_is_none(self, server: Server, capture: Capture) -> None:
        """What the transport refuses, it refuses; observing finds nothing to say."""
        with httpx.Client(transport=Transport(lab(server))) as client, pytest.raises(httpx.ConnectError):
            client.get("http://127.0.0.1:70000/")
        assert capture.spans == ()

    def test_an_authentication_handler_that_sends_again(self, server: Server, capture: Capture) -> None:
        """Digest (RFC 7616 §3.3) asks once for the challenge and once with the answer: two requests, two spans."""
        server.script = [(401, {"WWW-Authenticate": 'Digest realm="r", nonce="n", qop="auth"'}, b"")]
        with requests.Session() as session:
            observe_session(session, lab(server))
            assert session.get(server.url, auth=HTTPDigestAuth("a", "b")).status_code == 200
        statuses = [(span.attributes or {})["http.response.status_code"] for span in capture.spans]
        assert statuses == [401, 200]
        assert len({one.headers["traceparent"] for one in server.received}) == 2

    def test_a_session_that_is_pickled(self, server: Server, capture: Capture) -> None:
        """A session can be pickled as before, also when it has sent, and the copy is observed too."""
        with requests.Session() as session:
            observe_session(session, lab(server))
            session.get(server.url)
            with pickle.loads(pickle.dumps(session)) as copied:
                assert copied.get(server.url).status_code == 200
        assert len(capture.spans) == 2

    def test_taken_off_again(self, server: Server, capture: Capture) -> None:
        """The session has the adapters that it had; observing twice is refused."""
        session = requests.Session()
        own = HTTPAdapter()
        session.mount(f"{server.url}/", own)
        before = dict(session.adapters)
        remove = observe_session(session, lab(server))
        with pytest.raises(ConfigurationError, match="once"):
            observe_session(session, lab(server))
        remove()
        assert dict(session.adapters) == before
        remove = observe_session(session, Peer("https://other", "other"))
        remove()
        assert dict(session.adapters) == before

    @pytest.mark.parametrize("routes", [["/a?ssn={x}"], ["a"], [""]])
    def test_routes_are_templates(self, routes: list[str]) -> None:
        """Anything else is refused when it is given."""
        with pytest.raises(ConfigurationError, match="template"):
            Peer("http://h", "lab", routes=routes)


@pytest.mark.parametrize("moment", ["start", "end"])
def test_a_faulty_span_costs_the_span_alone(
    send: Send, server: Server, capture: Capture, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A sampler or span processor of the process that raises is counted; answer and both samples are there."""

    def broken(*_arguments: object, **_options: object) -> Any:
        raise RuntimeError

    if moment == "start":
        monkeypatch.setattr(capture.obs.tracing.tracer, "start_span", broken)
    else:
        faulty = type("Faulty", (SpanProcessor,), {"on_end": broken})
        capture.obs.tracing.provider.add_span_processor(faulty())
    assert send(lab(server), "GET", server.url).status == 200
    labels = {"method": "GET", "peer": "lab", "status": "200"}
    assert capture.metric("caller_outbound_request_duration_seconds_count", **labels) == 1
    assert capture.metric("healthobs_internal_errors_total", component="client") == 1
    faults = [line for line in capture.log_lines if line["event"] == "telemetry_fault"]
    assert [(line["component"], line["part"], line["exception_type"]) for line in faults] == [
        ("client", moment, "RuntimeError")
    ]


class TestStreams:
    """A body that is read bit by bit."""

    def test_httpx_to_the_close(self, server: Server, capture: Capture) -> None:
        """The span is open until the answer is closed."""
        with (
            httpx.Client(transport=Transport(lab(server))) as client,
            client.stream("GET", server.url) as answer,
        ):
            assert capture.spans == ()
            assert answer.read() == b"{}"
        assert len(capture.spans) == 1

    @pytest.mark.parametrize("status", [200, 503])
    def test_an_answer_that_was_read_already(self, status: int, capture: Capture) -> None:
        """A transport inside (a cache, a mock) may hand back what nobody closes again: its span ends at once."""
        peer = Peer("http://lab", "lab", retries=1, backoff_seconds=0)
        inner = httpx.MockTransport(lambda _request: httpx.Response(status, json=[1]))

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=AsyncTransport(peer, inner)) as client:
                return await client.get("http://lab/")

        with httpx.Client(transport=Transport(peer, inner)) as client:
            answers = [client.get("http://lab/"), asyncio.run(send())]
        assert [answer.json() for answer in answers] == [[1], [1]]
        sent = 2 if status == 200 else 4
        assert [(span.attributes or {})["http.response.status_code"] for span in capture.spans] == [
            status
        ] * sent
        own = {"peer": "lab", "method": "GET", "status": str(status)}
        assert capture.metric("caller_outbound_request_duration_seconds_count", **own) == sent

    def test_requests_to_the_headers(self, server: Server, capture: Capture) -> None:
        """The body is the caller's; reading it works as before."""
        with requests.Session() as session:
            observe_session(session, lab(server))
            with session.get(server.url, stream=True) as answer:
                assert len(capture.spans) == 1
                assert answer.content == b"{}"

    def test_a_body_that_breaks_off(self, send: Send, server: Server, capture: Capture) -> None:
        """An answer that ends too early is an error of the attempt."""
        server.script = ["short"]
        with pytest.raises((requests.RequestException, httpx.RemoteProtocolError)):
            send(lab(server), "GET", server.url)
        attributes = capture.spans[0].attributes or {}
        assert (attributes["error.type"], attributes["http.response.status_code"]) == (
            "connection_broken",
            200,
        )


class TestOtherInstrumentation:
    """By the key on which OpenTelemetry's instrumentations of HTTP clients agree."""

    def test_inside_makes_no_second_span(self, server: Server, capture: Capture) -> None:
        """Where urllib3 below requests is instrumented, it is told to make none."""
        seen: list[object] = []

        class Instrumented(HTTPAdapter):
            def send(self, *arguments: Any, **options: Any) -> Any:
                seen.append(get_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY))
                return super().send(*arguments, **options)

        with requests.Session() as session:
            session.mount(server.url, Instrumented())
            observe_session(session, lab(server))
            session.get(server.url)
        assert seen == [True]
        assert get_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY) is None

    def test_outside_has_made_it(self, send: Send, server: Server, capture: Capture) -> None:
        """Their span is the one that the peer continues; the samples are ours."""
        with capture.obs.tracing.tracer.start_as_current_span("theirs") as theirs:
            token = attach(set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, True))
            try:
                send(lab(server), "GET", server.url)
            finally:
                detach(token)
        assert [span.name for span in capture.spans] == ["theirs"]
        assert f"{theirs.get_span_context().span_id:016x}" in server.received[0].headers["traceparent"]
        own = {"peer": "lab", "method": "GET", "status": "200"}
        assert capture.metric("caller_outbound_request_duration_seconds_count", **own) == 1


class TestNoData:
    """What is planted in a request is nowhere afterwards."""

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    @pytest.mark.parametrize("status", [200, 503, 0])
    def test_planted(
        self, send: Send, server: Server, redaction: str, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Name and number in query, path, header and exception: in no span, no line of the libraries, no label."""
        server.script = ["closed"] if not status else [(status, {}, b"")]
        monkeypatch.setattr(logging.getLogger(), "level", logging.DEBUG)
        settings = Settings(prefix="caller", redaction=redaction, capture_stdlib=True, log_level="debug")  # type: ignore[arg-type]
        with Capture(settings) as capture:
            url = f"{server.url}/results/{NAME}?name={NAME}&ssn={SSN}"
            try:
                send(lab(server), "GET", url, headers={"X-Patient": f"{NAME} {SSN}"})
            except (requests.RequestException, httpx.TransportError) as exc:
                logging.getLogger("app").exception("call failed", exc_info=exc)
            assert capture.leaks(NAME, SSN) == ()
            told = {str(line.get("logger")) for line in capture.log_lines}
        assert ("app" in told) == (not status)
        assert ("httpx" in told) == (bool(status) and send is not by_requests)
        assert server.received[0].headers["x-patient"] == f"{NAME} {SSN}"
        assert NAME in server.received[0].path
