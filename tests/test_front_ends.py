"""One contract, three front ends: whatever serves the request, callers and telemetry get the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from prometheus_client.registry import Collector

from fronts import FRONTS, Front
from healthobs import _runtime, http, job, observe
from healthobs.endpoints import InvalidCredentials
from healthobs.http import Exchange, HttpServer

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Make = Callable[..., Front]


@pytest.fixture(params=FRONTS.values(), ids=FRONTS.keys())
def make(request: pytest.FixtureRequest) -> Make:
    """Give each front end in turn."""
    front: Make = request.param
    return front


class TestFaultyProcessor:
    """A span processor of the process that raises, under an adopted provider."""

    @pytest.mark.parametrize("moment", ["on_start", "on_end"])
    def test_costs_the_span_alone(self, make: Make, moment: str) -> None:
        """Headers, sample and access line go on without the span; nothing is in flight ever after."""
        front = make(max_stall_seconds=60, headers=True, audience="all", frameworks=("hipaa",), conf="R")

        def broken(*_arguments: object, **_options: object) -> None:
            raise RuntimeError

        provider: Any = front.obs.tracing.provider
        provider.add_span_processor(type("Faulty", (SpanProcessor,), {moment: broken})())
        answer = front.get("/patients/pt-4711")
        assert (answer.status, answer.header("cache-control")) == (200, "no-store")
        assert (answer.header("compliance") or "").startswith('frameworks=("hipaa")')
        assert [line["status"] for line in front.access()] == [200]
        assert front.total("svc_request_duration_seconds_count") == 1
        assert front.total("healthobs_internal_errors_total", component="tracing") == 1
        (fault,) = front.faults()
        assert (fault["component"], fault["part"]) == ("tracing", moment.removeprefix("on_"))
        assert front.total("http_server_active_requests") == 0
        front.now_ns += 1_000_000 * 10**9
        assert front.get("/health").status == 200


class TestSpan:
    """The server span."""

    def test_semantic_conventions(self, make: Make) -> None:
        """Kind, name and attributes follow the stable HTTP conventions; nothing of path or query is recorded."""
        front = make()
        assert front.get("/patients/pt-4711?ssn=078-05-1120").status == 200
        (span,) = front.spans()
        assert (span.kind, span.name) == (SpanKind.SERVER, f"GET {front.template}")
        assert dict(span.attributes or {}) == {
            "http.request.method": "GET",
            "url.scheme": "http",
            "server.address": "127.0.0.1",
            "server.port": 80,
            "network.protocol.version": "1.1",
            "http.route": front.template,
            "http.response.status_code": 200,
        }
        assert "pt-4711" not in front.telemetry()
        assert "078-05-1120" not in front.telemetry()

    def test_server_that_the_client_named(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that names itself after the `Host` header, as gunicorn does on a Unix socket, tells nothing of it."""
        monkeypatch.setattr(http, "_OWN_NAMES", frozenset())
        front = make()
        front.get("/own", host="127.0.0.1")
        assert not [key for key in front.spans()[0].attributes or {} if key.startswith("server")]

    def test_continues_a_trace(self, make: Make) -> None:
        """An incoming `traceparent` becomes the parent (W3C Trace Context §3.2)."""
        front = make()
        front.get("/own", traceparent=TRACEPARENT)
        (span,) = front.spans()
        assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert front.access()[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"

    def test_untrusted_trace_is_linked(self, make: Make) -> None:
        """From callers that are not trusted, the trace is linked and a new root begins."""
        front = make(trust_incoming=False)
        front.get("/own", traceparent=TRACEPARENT)
        (span,) = front.spans()
        assert span.parent is None
        assert [f"{link.context.trace_id:032x}" for link in span.links] == [
            "0af7651916cd43dd8448eb211c80319c"
        ]

    @pytest.mark.parametrize(
        "header", ["junk", "00-0-0-01", TRACEPARENT.upper(), f"{TRACEPARENT},{TRACEPARENT}"]
    )
    def test_malformed_traceparent_starts_a_new_trace(self, make: Make, header: str) -> None:
        """What is not a traceparent is ignored."""
        front = make()
        front.get("/own", traceparent=header)
        assert front.spans()[0].parent is None

    def test_unsampled(self, make: Make) -> None:
        """A request whose caller does not sample is measured and logged, not traced."""
        front = make()
        front.get("/own", traceparent=TRACEPARENT[:-2] + "00")
        assert front.spans() == ()
        assert front.access()[0]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
        assert front.total("svc_request_duration_seconds_count") == 1

    def test_disabled(self, make: Make) -> None:
        """Switched off, nothing is recorded and the answer is the application's."""
        front = make(disabled=True)
        assert front.get("/patients/1").status == 200
        assert (front.spans(), front.access()) == ((), [])
        assert front.total("svc_request_duration_seconds_count") == 0


class TestOutcome:
    """What kind of end a request came to."""

    @pytest.mark.parametrize(
        ("path", "status", "route"), [("/gone", 410, "/gone"), ("/.env/pt-4711", 404, "unmatched")]
    )
    def test_refusals(self, make: Make, path: str, status: int, route: str) -> None:
        """A 4xx is no error of the span; an unknown path is recorded as `unmatched`."""
        front = make()
        assert front.get(path).status == status
        assert front.spans()[0].status.status_code is StatusCode.UNSET
        assert (front.access()[0]["status"], front.access()[0]["route"]) == (status, route)
        assert front.total("svc_request_duration_seconds_count", endpoint=route, status=str(status)) == 1
        assert "pt-4711" not in front.telemetry()

    @pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")
    def test_unknown_method(self, make: Make) -> None:
        """A made-up method reaches neither a name nor a label; what stands for it passes strict."""
        front = make(redaction="strict")
        front.request("BREW", "/nothing")
        assert [span.name for span in front.spans()] == ["HTTP"]
        assert "BREW" not in front.telemetry()
        assert front.total("svc_request_duration_seconds_count", method="_OTHER") == 1

    def test_exception(self, make: Make) -> None:
        """An exception is a 500 and an error of the span; its message is nowhere; nothing stays in flight."""
        front = make()
        assert front.get("/broken").status == 500
        (span,) = front.spans()
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] in ("RuntimeError", "500")
        assert front.access()[0]["status"] == 500
        assert front.total("http_server_request_duration_seconds_count", http_response_status_code="500") == 1
        assert front.total("svc_active_requests") == 0
        assert "078-05-1120" not in front.telemetry()

    def test_stream_is_measured_to_its_close(self, make: Make) -> None:
        """Span, histogram and access line have one duration: to the last byte."""
        front = make()
        assert front.get("/stream").body == b"ab"
        (span,), (line,) = front.spans(), front.access()
        assert ((span.end_time or 0) - (span.start_time or 0)) / 1e9 == 2.0
        assert (line["duration_seconds"], line["response_bytes"], line["first_byte_seconds"]) == (2.0, 2, 1.0)
        assert front.total("svc_request_duration_seconds_sum") == 2.0
        assert front.total("http_server_request_duration_seconds_sum") == 2.0


class TestContext:
    """What is current while the application runs."""

    def test_inside_and_outside(self, make: Make) -> None:
        """Span, `Observability` and exchange are current inside, and nowhere else; work inside is a child."""
        front = make()
        seen: list[Any] = []

        @observe("work")
        def look() -> None:
            seen.append((_runtime.override.get() is front.obs, _runtime.exchange.get() is not None))

        front.look = look
        front.get("/look")
        assert seen == [(True, True)]
        work, server = front.spans()
        assert work.parent is not None
        assert (work.name, work.parent.span_id) == ("work", server.context.span_id)
        assert not get_current_span().get_span_context().is_valid
        assert (_runtime.override.get(), _runtime.exchange.get()) == (None, None)


class TestHeaders:
    """What every response carries."""

    @pytest.mark.parametrize(
        "path", ["/patients/1", "/gone", "/nothing", "/stream", "/unrecorded", "/health"]
    )
    def test_same_set_on_every_response(self, make: Make, path: str) -> None:
        """Errors, streams and probes carry the same set as successes, each once."""
        front = make(headers=True, audience="all", frameworks=("hipaa",))
        answer = front.get(path)
        assert answer.header("compliance") == 'frameworks=("hipaa");catalogue="2026.1"'
        assert answer.header("cache-control") == "no-store"
        assert answer.header("x-request-id")
        assert len(answer.headers) == len(dict(answer.headers))

    def test_off_by_default(self, make: Make) -> None:
        """Unless asked for, only the request id is added."""
        names = {name for name, _ in make().get("/patients/1").headers}
        assert names - {"content-type", "content-length"} == {"x-request-id"}

    def test_compliance_headers_only_for_the_trusted(self, make: Make) -> None:
        """With the audience `trusted`, others get the security set alone."""
        front = make(headers=True, trusted=lambda inside: inside == "1")
        for path in ("/patients/1", "/health"):
            assert front.get(path).header("compliance") is None
            assert front.get(path, x_inside="1").header("compliance") is not None
            assert front.get(path).header("x-content-type-options") == "nosniff"

    def test_the_application_wins(self, make: Make) -> None:
        """A header that the application sends itself is not sent a second time."""
        answer = make(headers=True, audience="all").get("/own")
        assert [value for name, value in answer.headers if name == "cache-control"] == ["private"]

    def test_no_contradiction_about_storing(self, make: Make) -> None:
        """Beside the application's own `Cache-Control` it is not stated that nothing may be stored."""
        front = make(headers=True, audience="all", frameworks=("hipaa",))
        assert front.get("/own").header("data-handling") == "retention=220752000, redisclose=?0"
        assert (
            front.get("/patients/1").header("data-handling") == "no-store, retention=220752000, redisclose=?0"
        )

    @pytest.mark.parametrize(("conf", "value"), [("N", "private"), ("R", "no-store"), ("V", "no-store")])
    def test_what_is_restricted_is_never_stored(self, make: Make, conf: str, value: str) -> None:
        """A response of the confidentiality R or V has `no-store` in place of what the application says."""
        answer = make(headers=True, audience="all", conf=conf).get("/own")
        assert [found for name, found in answer.headers if name == "cache-control"] == [value]
        assert ("no-store" in str(answer.header("data-handling"))) == (value == "no-store")

    def test_request_id(self, make: Make) -> None:
        """A UUID is kept; anything freer is replaced, because it could name a person."""
        front = make()
        good = "0af76519-16cd-43dd-8448-eb211c80319c"
        assert front.get("/own", x_request_id=good).header("x-request-id") == good
        assert front.get("/own", x_request_id="jane-roe").header("x-request-id") != "jane-roe"
        assert "jane-roe" not in front.telemetry()

    def test_trace_response(self, make: Make) -> None:
        """Asked for, the response names its trace."""
        answer = make(trace_response=True, audience="all").get("/own", traceparent=TRACEPARENT)
        assert (answer.header("traceresponse") or "").startswith("00-0af7651916cd43dd8448eb211c80319c-")


class TestFaults:
    """Faults of telemetry never reach the caller; faults of audit do, as a 503."""

    def test_broken_clock(self, make: Make) -> None:
        """Telemetry that cannot begin leaves the application alone, and is counted."""
        front = make()

        def broken() -> int:
            raise RuntimeError("no clock")

        object.__setattr__(front.obs.clock, "monotonic_ns", broken)
        assert front.get("/patients/1").status == 200
        assert front.total("healthobs_internal_errors_total", component="http") == 1
        (fault,) = front.faults()
        assert (fault["component"], fault["part"]) == ("http", "begin")

    def test_audit_failure_is_a_503(self, make: Make) -> None:
        """What could not be recorded is not answered."""
        answer = make().get("/unrecorded")
        assert (answer.status, answer.header("content-type"), answer.header("retry-after")) == (
            503,
            "application/problem+json",
            "1",
        )
        assert json.loads(answer.body)["code"] == "audit_unavailable"
        assert b"store is gone" not in answer.body


class TestOperationalEndpoints:
    """Probes and scrapes are answered before the application and leave no trace."""

    @pytest.mark.parametrize("path", ["/health", "/livez", "/readiness", "/readyz", "/startupz"])
    def test_probes(self, make: Make, path: str) -> None:
        """Always there, without span, access line or request sample."""
        front = make()
        answer = front.get(path)
        assert (answer.status, answer.header("content-type")) == (200, "application/json")
        assert (front.spans(), front.access()) == ((), [])
        assert front.total("svc_request_duration_seconds_count") == 0
        assert front.total("healthobs_probe_requests_total", probe=path, code="200") == 1

    def test_opt_in(self, make: Make) -> None:
        """Metrics are the application's path unless asked for; OpenMetrics by negotiation."""
        assert make().get("/metrics").status == 404
        front = make(endpoints=True)
        front.get("/patients/1")
        assert b'svc_request_duration_seconds_count{endpoint="' in front.get("/metrics").body
        answer = front.get("/metrics", accept="application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")

    def test_controls_ask_the_service(self, make: Make) -> None:
        """A control's own request gets what a caller gets, and leaves no business telemetry."""
        front = make(endpoints=True, headers=True, audience="all", frameworks=("hipaa",))
        assert front.obs.controls is not None
        states = front.obs.controls.run()
        assert states["HDR"] == "pass"
        assert (front.spans(), front.access()) == ((), [])

    def test_controls_leave_no_attempt_to_read_the_trail(self, make: Make, tmp_path: Path) -> None:
        """A control tries forged tokens there, which are refused and nobody's; a caller's attempt is an entry."""

        def refuse(_request: Any, _scope: str) -> None:
            raise InvalidCredentials

        front = make(
            endpoints=True,
            log_level="critical",
            authorize=refuse,
            audit_database_url=f"sqlite:///{tmp_path}/audit.db",
            audit_key_file=tmp_path / "key",
        )
        assert front.obs.controls is not None
        assert front.obs.audit is not None
        call = front.obs.controls._bound["call"]
        assert call("GET", "/audit/trail", {"Authorization": "Bearer canary"}, b"").status == 401
        assert front.obs.audit.read().total == 0
        assert front.get("/audit/trail", authorization="Bearer canary").status == 401
        assert [entry["outcome"] for entry in front.obs.audit.read().entries] == ["denied"]

    def test_head_and_other_methods(self, make: Make) -> None:
        """HEAD answers as GET does, without the body; anything else is 405 with `Allow`."""
        answer = make().request("HEAD", "/health")
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.header("content-length") or 0) > 0
        answer = make().request("POST", "/health")
        assert (answer.status, answer.header("allow")) == (405, "GET, HEAD")

    def test_a_collector_that_raises(self, make: Make) -> None:
        """What somebody else put into the registry costs the scrape, answered as a problem without what it said; counted."""
        front = make(endpoints=True)

        class Broken(Collector):
            def collect(self) -> Any:
                raise RuntimeError("Ottoline")

        broken = Broken()
        front.obs.metrics.registry._collector_to_names[broken] = []  # as one that describes itself
        answer = front.get("/metrics")
        assert (answer.status, json.loads(answer.body)["code"]) == (500, "internal_error")
        assert answer.header("x-request-id")
        front.obs.metrics.registry.unregister(broken)
        assert front.total("healthobs_internal_errors_total", component="endpoints") == 1
        assert front.total("healthobs_probe_requests_total", probe="/metrics", code="500") == 1
        assert b"Ottoline" not in answer.body

    def test_audit_trail_needs_authorization(self, make: Make) -> None:
        """Without a trail there is nothing to show."""
        front = make(endpoints=True, authorize=lambda request, scope: None)
        assert front.get("/audit/trail").status == 404

    @pytest.mark.parametrize("sent", [None, "Ottoline Morrell", "6a1f6b8e-0a4e-4b0e-9d35-2f1f5c0d9b11"])
    def test_reading_has_the_request_id_of_the_answer(
        self, make: Make, tmp_path: Path, sent: str | None
    ) -> None:
        """The entry about it and the response name one id; a caller's text that is none is not recorded."""
        front = make(
            endpoints=True,
            authorize=lambda request, scope: SimpleNamespace(subject="auditor-7"),
            audit_database_url=f"sqlite:///{tmp_path}/audit.db",
            audit_key_file=tmp_path / "key",
        )
        headers = {} if sent is None else {"x_request_id": sent}
        answer = front.get("/audit/trail", authorization="Bearer x", **headers)
        (told,) = json.loads(answer.body)["recent_entries"]
        front.obs.close()
        assert UUID(told["request_id"])
        assert told["request_id"] == answer.header("x-request-id")
        assert (sent == told["request_id"]) == (sent is not None and len(sent) == 36)


def test_scheme_and_protocol_are_of_closed_sets() -> None:
    """Whatever a server or a proxy's header put there, no other text reaches label or span."""
    front = FRONTS["wsgi"]()
    server = HttpServer(front.obs)
    for scheme, protocol in (("https", "2"), ("Ottoline", "tto")):
        exchange = Exchange(server, "GET", scheme, ("h", "80"), protocol, None, None)
        exchange.respond(200, "/known")
        exchange.finish(0)
    told = [
        (labels["url_scheme"], labels["network_protocol_version"])
        for labels, _ in front.samples("http_server_request_duration_seconds_count")
    ]
    assert told == [("https", "2"), ("_OTHER", "_OTHER")]
    assert "tto" not in front.telemetry()


class TestTemplates:
    """A template is code, also when a word of it looks like an identifier."""

    @pytest.mark.parametrize("redaction", ["mask", "strict"])
    @pytest.mark.parametrize("front_end", ["flask", "fastapi", "django", "django-asgi"])
    def test_templates_of_the_table_pass_as_they_are(self, front_end: str, redaction: str) -> None:
        """Two routes stay two in label, span name, attribute and access line; the record number is in none."""
        front: Front = FRONTS[front_end](redaction=redaction)
        value = front.template.partition("patient_id")
        rules = [
            f"{value[0]}mrn{value[2]}/{end}".replace("//", "/") for end in ("icd10", "30-day-readmission")
        ]
        for end in ("icd10", "30-day-readmission"):
            assert front.get(f"/patients/MRN-0012345/{end}").status == 200
        front.get("/nowhere/MRN-0012345")
        spans = [span for span in front.spans() if "http.route" in (span.attributes or {})]
        assert [span.name for span in spans] == [f"GET {rule}" for rule in rules]
        assert [(span.attributes or {})["http.route"] for span in spans] == rules
        assert [line["route"] for line in front.access()] == [*rules, "unmatched"]
        for rule in (*rules, "unmatched"):
            assert front.total("http_server_request_duration_seconds_count", http_route=rule) == 1
            assert front.total("svc_request_duration_seconds_count", endpoint=rule) == 1
        assert "0012345" not in front.telemetry()

    def test_a_stated_template_is_scanned(self) -> None:
        """What stands in the request's environment is not known to come from a table of routes."""
        front = FRONTS["wsgi"]()
        front.obs.redactor.template("/known")
        exchange = Exchange(HttpServer(front.obs), "GET", "http", ("h", "80"), "1.1", None, None)
        exchange.respond(200, "/patients/MRN-0012345", stated=True)
        exchange.finish(0)
        assert front.total("http_server_request_duration_seconds_count", http_route="/patients/[PHI:id]") == 1


class TestStrict:
    """A service that declares PHI, whose own metrics must stay of use."""

    def test_own_metrics_have_no_marks(self, make: Make) -> None:
        """Probed, scraped, asked, checked, drained and with a job: no label value of ours is taken for data."""
        front = make(endpoints=True, frameworks=("hipaa",), excluded=("/own",))
        good = iter([True, False, True])
        front.obs.health.register("queue", lambda: next(good, True), ttl=0.0)
        with _runtime.use(front.obs), job("claims"):
            pass
        for path in ("/livez", "/own", "/broken", "/gone", "/patients/pt-4711", "/nowhere", "/audit/trail"):
            front.get(path)
        for path in ("/health", "/readiness", "/compliance/status", "/metrics") * 3:
            front.get(path)
        front.obs.health.drain()
        assert front.get("/readiness").status == 503
        assert front.total("healthobs_probe_requests_total", probe="/readiness", code="503") >= 1
        assert front.total("healthobs_check_transitions_total", check="queue") >= 1
        assert "[PHI:" not in front.obs.metrics.exposition(None)[1].decode()
