"""Tests of outgoing calls, against a real HTTP server on the loopback address."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, context
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from healthobs import _runtime
from healthobs._runtime import use
from healthobs.client import Client, ClientResponse
from healthobs.client import client as client_module
from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.exceptions import ClientError, ConfigurationError
from healthobs.observability import Observability
from live_servers import until
from scripted import Server, scripted_server

SECRET = "078-05-1120"


@pytest.fixture
def server() -> Iterator[Server]:
    """A running server."""
    with scripted_server() as state:
        yield state


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., Client]]:
    """Return clients of the server, without pauses between attempts, and close them."""
    made: list[Client] = []

    def factory(**options: Any) -> Client:
        made.append(
            Client(
                options.pop("base_url", server.url), **{"peer": "billing", "backoff_seconds": 0, **options}
            )
        )
        return made[-1]

    yield factory
    for client in made:
        client.close()


Make = Callable[..., Client]


class TestRequest:
    """What is sent, and what comes back."""

    def test_json_both_ways(self, server: Server, make: Make) -> None:
        """A JSON body goes out with its type; the answer has status, lower-case headers, and body."""
        server.script = [(201, {"X-Kind": "New", "Content-Type": "application/json"}, '{"é":1}'.encode())]
        answer = make().request("POST", "/patients", json={"name": "Zoë"}, headers={"X-A": "1"})
        assert (answer.status, answer.headers["x-kind"], answer.json()) == (201, "New", {"é": 1})
        (sent,) = server.received
        assert (sent.method, sent.path, sent.headers["content-type"], sent.headers["x-a"]) == (
            "POST", "/patients", "application/json", "1",
        )  # fmt: skip
        assert sent.body == '{"name":"Zoë"}'.encode()

    def test_form(self, server: Server, make: Make) -> None:
        """A form is percent-encoded."""
        make().request("POST", "/token", form={"scope": "a b", "x": "&="})
        assert server.received[0].body == b"scope=a+b&x=%26%3D"
        assert server.received[0].headers["content-type"] == "application/x-www-form-urlencoded"

    def test_path_and_query_values_are_encoded(self, server: Server, make: Make) -> None:
        """A value cannot leave its segment, whatever is in it."""
        make().request(
            "GET", "/a/{id}/b/{n}", path_params={"id": "../x?y#z/é", "n": 7}, query={"q": "a&b=c", "k": 1}
        )
        assert server.received[0].path == "/a/..%2Fx%3Fy%23z%2F%C3%A9/b/7?q=a%26b%3Dc&k=1"

    def test_base_path_is_kept(self, server: Server, make: Make) -> None:
        """A peer may live below a prefix."""
        make(base_url=f"{server.url}/v1/").request("GET", "/things")
        assert server.received[0].path == "/v1/things"

    def test_repeated_headers_are_joined(self, server: Server, make: Make) -> None:
        """RFC 9110 §5.3: fields of one name are one list."""
        pool = urllib3.PoolManager(retries=False)
        server.script = [(200, {"Vary": "Accept", "vary": "Cookie"}, b"")]
        assert make(pool=pool).request("GET", "/").headers["vary"] == "Accept, Cookie"
        pool.clear()

    @pytest.mark.parametrize("status", [204, 301, 404, 418, 500])
    def test_every_status_is_an_answer(self, server: Server, make: Make, status: int) -> None:
        """Neither a redirect nor an error status raises, and neither is repeated."""
        server.script = [(status, {"Location": "/elsewhere"}, b"")]
        assert make().request("GET", "/").status == status
        assert len(server.received) == 1

    def test_head_has_no_body(self, server: Server, make: Make) -> None:
        """Asking whether something exists moves no data."""
        server.script = [(200, {}, b"secret")]
        assert make().request("HEAD", "/").body == b""

    @given(st.text(min_size=1).filter(lambda text: text not in (".", "..")))
    def test_a_value_stays_one_segment(self, value: str) -> None:
        """For any text, the path has as many segments as the template and the value comes back whole."""
        try:
            path = client_module._expand("/a/{id}/b", {"id": value})
        except UnicodeEncodeError:
            assert any("\ud800" <= character <= "\udfff" for character in value)
            return
        assert path.count("/") == 3
        assert urllib3.util.parse_url(f"http://h{path}").query is None
        assert urllib3.util.parse_url(f"http://h{path}").path == path

    @pytest.mark.parametrize(
        ("route", "values"),
        [
            ("/a/{id}", {}),
            ("/a", {"id": SECRET}),
            ("/a/{id}", {"id": ""}),
            ("/a/{id}", {"id": ".."}),
            ("/a/{id}", {"id": "."}),
            (f"/a?ssn={SECRET}", {}),
            ("a", {}),
            ("", {}),
            ("/a b", {}),
        ],
    )
    def test_template_and_values_must_fit(self, make: Make, route: str, values: dict[str, str]) -> None:
        """A wrong call is refused before anything is sent; the message shows no value."""
        with pytest.raises(ValueError, match=r"route|path") as caught:
            make().request("GET", route, path_params=values)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("value", [f"{SECRET}\r\nX-B: 1", f"{SECRET}é", "a\0"])
    def test_header_injection(self, server: Server, make: Make, value: str) -> None:
        """A value with a line end is refused, unlike in http.client without showing it."""
        with pytest.raises(ValueError, match="printable ASCII") as caught:
            make().request("GET", "/", headers={"X-A": value})
        assert SECRET not in str(caught.value)
        assert server.received == []

    def test_one_body_only(self, make: Make) -> None:
        """JSON, form and content exclude each other."""
        for bodies in ({"json": {}, "form": {}}, {"json": {}, "content": b""}, {"form": {}, "content": b""}):
            with pytest.raises(ValueError, match="one of json, form and content"):
                make().request("POST", "/", **bodies)

    def test_content_goes_as_it_is(self, server: Server, make: Make) -> None:
        """Bytes are sent unchanged, and only the caller says of what type they are."""
        server.script = [(200, {}, b"")]
        make().request("POST", "/", content=b"\x00\xff\n", headers={"Content-Type": "text/plain"})
        (sent,) = server.received
        assert (sent.body, sent.headers["content-type"]) == (b"\x00\xff\n", "text/plain")

    def test_unknown_method(self, make: Make) -> None:
        """A method is one of RFC 9110's, in upper case."""
        with pytest.raises(ValueError, match="HTTP method"):
            make().request("get", "/")


class TestRoutes:
    """The template as telemetry shows it."""

    @pytest.mark.parametrize(("step", "masked"), [("mask", "/patients/[PHI:id]"), ("strict", "[PHI:strict]")])
    def test_a_template_of_the_code_and_one_of_data(self, server: Server, step: Any, masked: str) -> None:
        """The first passes unscanned, and what was made of data is masked in name and attribute."""
        exporter, who = InMemorySpanExporter(), "ottoline-078-05-1120"
        obs = Observability(Settings(redaction=step), span_exporters=[exporter], simple_spans=True)
        with use(obs):
            client = Client(server.url, peer="peer")
            client.request("GET", "/patients/{mrn}/icd10", path_params={"mrn": "0012345"})
            client.request("GET", f"/patients/{who}")
            client.close()
        shown = ["/patients/{mrn}/icd10", masked]
        spans = exporter.get_finished_spans()
        assert [(span.attributes or {})["url.template"] for span in spans] == shown
        assert [span.name for span in spans] == [f"GET {route}" for route in shown]


class TestRetries:
    """Only what is safe to repeat is repeated, and only when it may help."""

    @pytest.mark.parametrize("status", [502, 503, 504])
    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
    def test_idempotent_methods(self, server: Server, make: Make, method: str, status: int) -> None:
        """RFC 9110 §9.2.2: the same request again does no harm."""
        server.script = [(status, {}, b""), (status, {}, b"")]
        assert make().request(method, "/").status == 200
        assert len(server.received) == 3

    def test_two_repetitions_at_most(self, server: Server, make: Make) -> None:
        """The last answer is handed back."""
        server.script = [(503, {}, b"%d" % n) for n in range(5)]
        assert make().request("GET", "/").body == b"2"
        assert len(server.received) == 3

    @pytest.mark.parametrize("method", ["POST", "PATCH"])
    def test_others_are_sent_once(self, server: Server, make: Make, method: str) -> None:
        """A payment must not be made twice because an answer was lost."""
        server.script = [(503, {}, b"")]
        assert make().request(method, "/", json={}).status == 503
        assert len(server.received) == 1

    def test_idempotency_key_allows_it(self, server: Server, make: Make) -> None:
        """The same key and body go out again."""
        server.script = [(503, {}, b"")]
        assert make().request("POST", "/", json={"a": 1}, headers={"idempotency-KEY": "k"}).status == 200
        assert [(sent.headers["idempotency-key"], sent.body) for sent in server.received] == [
            ("k", b'{"a":1}')
        ] * 2

    @pytest.mark.parametrize("status", [400, 408, 409, 429, 500, 501])
    def test_other_statuses(self, server: Server, make: Make, status: int) -> None:
        """Those are answers, not accidents of the way."""
        server.script = [(status, {}, b"")]
        assert make().request("GET", "/").status == status
        assert len(server.received) == 1

    @pytest.mark.parametrize(
        ("after", "sent"),
        [("0", 2), ("1", 2), ("2", 1), ("9" * 5000, 1), ("Wed, 21 Oct 2026 07:28:00 GMT", 1)],
    )
    def test_retry_after(self, server: Server, make: Make, after: str, sent: int) -> None:
        """A peer that asks for more than a second is not pressed."""
        server.script = [(503, {"Retry-After": after}, b"")]
        make().request("GET", "/")
        assert len(server.received) == sent

    @pytest.mark.parametrize(
        ("fault", "attempts"),
        [
            (urllib3.exceptions.NewConnectionError(None, "x"), 3),  # type: ignore[arg-type]
            (urllib3.exceptions.ConnectTimeoutError(), 3),
            (urllib3.exceptions.ProtocolError(), 3),
            (urllib3.exceptions.ReadTimeoutError(None, "", ""), 1),  # type: ignore[arg-type]
            (urllib3.exceptions.SSLError(), 1),
            (urllib3.exceptions.HTTPError(), 1),
        ],
    )
    def test_faults(self, make: Make, fault: Exception, attempts: int) -> None:
        """What never reached the peer is sent again; what it may be working on is not; a POST never is."""
        for method, expected in (("GET", attempts), ("POST", 1)):
            pool = Failing(fault)
            with pytest.raises(ClientError):
                make(pool=pool).request(method, "/")
            assert pool.calls == expected

    def test_none_when_told_so(self, server: Server, make: Make) -> None:
        """`retries=0` sends once."""
        server.script = [(503, {}, b"")]
        assert make(retries=0).request("GET", "/").status == 503

    def test_broken_connection(self, server: Server, make: Make) -> None:
        """A connection that the peer closed without an answer is tried again, when that is safe."""
        server.script = ["closed"]
        assert make().request("GET", "/").status == 200

    def test_the_pauses_are_random_and_bounded(self, server: Server, make: Make) -> None:
        """Full jitter: from nothing to a limit that doubles; and none that would end after the deadline."""
        client = make(backoff_seconds=0.001)
        server.script = [(503, {}, b"")] * 2
        assert client.request("GET", "/").status == 200
        slow = make(backoff_seconds=1e9)
        server.script = [(503, {}, b"")]
        assert slow.request("GET", "/").status == 503


class TestNoAnswer:
    """Without an answer the caller gets `ClientError`, which shows no address and no data."""

    @pytest.mark.parametrize(
        ("step", "word"),
        [("closed", "connection_broken"), ("silent", "timeout"), ("garbage", "connection_broken")],
    )
    def test_server_faults(self, server: Server, make: Make, step: str, word: str) -> None:
        """Each kind has its word; a read that timed out is not repeated, for the peer may be at work."""
        server.script = [step, step, step]
        with pytest.raises(ClientError, match=word) as caught:
            make(timeout_seconds=0.15 if step == "silent" else 10.0).request(
                "GET", "/a/{id}", path_params={"id": SECRET}, query={"q": SECRET}
            )
        sent = 1 if step == "silent" else 3
        until(lambda: len(server.received) >= sent)  # the server may come to it after the time is up
        assert len(server.received) == sent
        assert SECRET not in str(caught.value)
        assert server.url not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_nobody_listens(self, make: Make, free_port: int) -> None:
        """A refused connection."""
        with pytest.raises(ClientError, match=r"billing gave no answer \(connection_refused\)"):
            make(base_url=f"http://127.0.0.1:{free_port}").request("GET", "/")

    def test_not_tls(self, server: Server, make: Make) -> None:
        """A peer that does not speak TLS where it should."""
        with pytest.raises(ClientError, match="tls"):
            make(base_url=server.url.replace("http:", "https:")).request("GET", "/")

    def test_connect_timeout_and_protocol(self, make: Make) -> None:
        """What urllib3 reports otherwise has its word too."""
        faults: list[Exception] = [
            urllib3.exceptions.ConnectTimeoutError(),
            urllib3.exceptions.LocationParseError(SECRET),
        ]
        for fault, word in zip(faults, ("connect_timeout", "protocol"), strict=True):
            with pytest.raises(ClientError, match=word):
                make(pool=Failing(fault), retries=0).request("GET", "/")

    def test_a_bug_is_not_disguised(self, make: Make) -> None:
        """What is no transport fault passes through."""
        with pytest.raises(KeyError):
            make(pool=Failing(KeyError())).request("GET", "/")


@dataclass
class Failing:
    """A pool whose every call fails in one way."""

    fault: Exception
    calls: int = 0

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Fail."""
        self.calls += 1
        raise self.fault


class TestClient:
    """Settings are checked when the client is made."""

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "billing:8080",
            "ftp://h",
            "http://",
            "http://h:x",
            f"http://u:{SECRET}@h",
            f"http://h?k={SECRET}",
            "http://h#f",
        ],
    )
    def test_base_url(self, url: str) -> None:
        """Wrong addresses are named by peer, not shown."""
        with pytest.raises(ConfigurationError, match="base URL of billing") as caught:
            Client(url, peer="billing")
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "options", [{"retries": 3}, {"retries": -1}, {"timeout_seconds": 0}, {"backoff_seconds": -1}]
    )
    def test_numbers(self, options: dict[str, Any]) -> None:
        """Limits have limits."""
        with pytest.raises(ConfigurationError):
            Client("http://h", peer="billing", **options)

    def test_close_twice(self, make: Make) -> None:
        """Closing is idempotent, and a closed client works again when used."""
        client = make()
        client.request("GET", "/")
        client.close()
        client.close()
        assert client.request("GET", "/").status == 200

    def test_importing_loads_no_http_library(self) -> None:
        """`healthobs.client` can be imported where the extra is not installed; making a client names it."""
        code = (
            "import sys, healthobs.client.client as c; assert 'urllib3' not in sys.modules\n"
            "sys.modules['urllib3'] = None\n"
            "try: c.Client('http://h', peer='p')\n"
            "except c.ConfigurationError as e: print(e)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "healthobs[client]" in done.stdout


class TestClientResponse:
    """The answer's body."""

    @pytest.mark.parametrize("body", [b"", b"{", SECRET.encode(), b"[" * 100_000, b"\xff"])
    def test_not_json(self, body: bytes) -> None:
        """A body that is not JSON is a fault of the peer, not shown."""
        with pytest.raises(ClientError, match="not JSON") as caught:
            ClientResponse(200, {}, body).json()
        assert SECRET not in str(caught.value)

    def test_json(self) -> None:
        """Any JSON value."""
        assert ClientResponse(200, {}, json.dumps([1, "é"]).encode()).json() == [1, "é"]


@dataclass
class Signals:
    """An `Observability` in force, with its spans and samples at hand."""

    obs: Observability
    exporter: InMemorySpanExporter

    def spans(self) -> list[Any]:
        """Return the finished spans."""
        return list(self.exporter.get_finished_spans())

    def sample(self, name: str, **labels: str) -> float | None:
        """Return a sample's value."""
        return self.obs.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Record everything, with a clock on which each reading is 250 ms after the one before."""
    ticks = iter(range(0, 10**15, 250_000_000))
    clock = Clock(wall_ns=lambda: 1_800_000_000 * 10**9, monotonic_ns=lambda: next(ticks))
    exporter = InMemorySpanExporter()
    settings = Settings(service_name="caller", prefix="caller")
    obs = Observability(settings, clock=clock, span_exporters=[exporter], simple_spans=True)
    with use(obs):
        yield Signals(obs, exporter)
    obs.close()


class TestTelemetry:
    """Span, header and samples of a call agree, and hold no value that was sent."""

    def test_span(self, server: Server, make: Make, signals: Signals) -> None:
        """OpenTelemetry semantic conventions for HTTP client spans; the template stands for the path."""
        make().request("GET", "/patients/{id}", path_params={"id": SECRET}, query={"ssn": SECRET})
        (span,) = signals.spans()
        assert (span.name, span.kind, span.status.status_code) == (
            "GET /patients/{id}",
            SpanKind.CLIENT,
            StatusCode.UNSET,
        )
        assert dict(span.attributes) == {
            "http.request.method": "GET",
            "server.address": "127.0.0.1",
            "server.port": int(server.url.rpartition(":")[2]),
            "url.template": "/patients/{id}",
            "http.response.status_code": 200,
        }
        assert span.end_time - span.start_time == 250_000_000
        assert SECRET not in span.to_json()
        assert SECRET.encode() not in signals.obs.metrics.exposition(None)[1]

    def test_traceparent(self, server: Server, make: Make, signals: Signals) -> None:
        """W3C Trace Context: the peer continues this span; a header of the caller does not win."""
        with signals.obs.tracing.tracer.start_as_current_span("parent") as parent:
            make().request("GET", "/", headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"})
        child, _ = signals.spans()
        sent = server.received[0].headers["traceparent"]
        assert sent == f"00-{child.context.trace_id:032x}-{child.context.span_id:016x}-01"
        assert (child.context.trace_id, child.parent.span_id) == (
            parent.get_span_context().trace_id,
            parent.get_span_context().span_id,
        )
        assert "tracestate" not in server.received[0].headers

    def test_tracestate_goes_along(self, server: Server, make: Make, signals: Signals) -> None:
        """W3C Trace Context §3.3: other vendors' state is passed on."""
        remote = SpanContext(
            7, 8, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("v", "x")])
        )
        token = context.attach(set_span_in_context(NonRecordingSpan(remote)))
        try:
            make().request("GET", "/")
        finally:
            context.detach(token)
        assert server.received[0].headers["tracestate"] == "v=x"

    def test_baggage_stays(self, server: Server, make: Make, signals: Signals) -> None:
        """Baggage may hold anything, so it does not leave."""
        token = context.attach(baggage.set_baggage("patient", SECRET))
        try:
            make().request("GET", "/")
        finally:
            context.detach(token)
        assert SECRET not in str(server.received[0].headers)

    def test_request_id(self, server: Server, make: Make, signals: Signals) -> None:
        """The id of the exchange being answered goes along."""
        token = _runtime.exchange.set(SimpleNamespace(request_id="req-1"))
        try:
            make().request("GET", "/")
        finally:
            _runtime.exchange.reset(token)
        make().request("GET", "/")
        assert [sent.headers.get("x-request-id") for sent in server.received] == ["req-1", None]

    def test_samples(self, server: Server, make: Make, signals: Signals) -> None:
        """One sample under each name, with the span's duration."""
        server.script = [(404, {}, b"")]
        port = server.url.rpartition(":")[2]
        make(base_url=f"http://localhost:{port}").request("POST", "/a", json={})
        semconv = {
            "http_request_method": "POST",
            "server_address": "localhost",
            "server_port": port,
            "http_response_status_code": "404",
            "error_type": "404",
        }
        assert signals.sample("http_client_request_duration_seconds_sum", **semconv) == 0.25
        own = {"peer": "billing", "method": "POST", "status": "404"}
        assert signals.sample("caller_outbound_request_duration_seconds_sum", **own) == 0.25
        (span,) = signals.spans()
        assert (span.attributes["error.type"], span.status.status_code, span.status.description) == (
            "404",
            StatusCode.ERROR,
            None,
        )

    def test_exemplar(self, make: Make, signals: Signals) -> None:
        """A sample leads to its trace."""
        make().request("GET", "/")
        (span,) = signals.spans()
        text = signals.obs.metrics.exposition("application/openmetrics-text")[1].decode()
        assert f'trace_id="{span.context.trace_id:032x}"' in text

    def test_no_answer(self, make: Make, signals: Signals) -> None:
        """The word of the fault is `error.type`; there is no status."""
        with pytest.raises(ClientError):
            make(pool=Failing(urllib3.exceptions.SSLError(SECRET))).request("GET", "/")
        (span,) = signals.spans()
        assert (span.attributes["error.type"], span.status.description) == ("tls", "tls")
        assert "http.response.status_code" not in span.attributes
        own = {"peer": "billing", "method": "GET", "status": ""}
        assert signals.sample("caller_outbound_request_duration_seconds_count", **own) == 1
        assert SECRET not in span.to_json()

    def test_each_attempt_is_a_span(self, server: Server, make: Make, signals: Signals) -> None:
        """Repetitions are counted from one."""
        server.script = [(503, {}, b"")] * 2
        make().request("GET", "/")
        counts = [span.attributes.get("http.request.resend_count") for span in signals.spans()]
        assert counts == [None, 1, 2]
        assert len({sent.headers["traceparent"] for sent in server.received}) == 3

    def test_a_bug_is_recorded_as_such(self, make: Make, signals: Signals) -> None:
        """The span ends whatever happens."""
        with pytest.raises(KeyError):
            make(pool=Failing(KeyError(SECRET))).request("GET", "/")
        (span,) = signals.spans()
        assert span.attributes["error.type"] == "exception"

    def test_without_prefix(self, make: Make) -> None:
        """A service without a prefix has the semantic conventions' metric only."""
        obs = Observability(Settings())
        with use(obs):
            make().request("GET", "/")
        text = obs.metrics.exposition(None)[1].decode()
        obs.close()
        assert "http_client_request_duration_seconds_count{" in text
        assert "outbound" not in text

    def test_two_observabilities(self, make: Make, signals: Signals) -> None:
        """A call reports to whichever is in force."""
        other, client = Observability(Settings(prefix="other")), make()
        client.request("GET", "/")
        with use(other):
            client.request("GET", "/")
        client.request("GET", "/")
        own = {"peer": "billing", "method": "GET", "status": "200"}
        assert signals.sample("caller_outbound_request_duration_seconds_count", **own) == 2
        assert (
            other.metrics.registry.get_sample_value("other_outbound_request_duration_seconds_count", own) == 1
        )
        other.close()

    @pytest.mark.parametrize("broken", ["start_span", "histogram"])
    def test_faults_of_telemetry_stay_inside(
        self, server: Server, make: Make, signals: Signals, broken: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A broken signal is counted, and the call goes through."""
        owner: Any = signals.obs.tracing.tracer if broken == "start_span" else signals.obs.metrics
        monkeypatch.setattr(owner, broken, None)
        assert make().request("GET", "/").status == 200
        assert signals.sample("healthobs_internal_errors_total", component="client") == 1
