"""The contract of every reference service, once for all of them: `reference_services.services.SERVICES`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator

from healthobs.endpoints import Endpoints
from reference_services import openapi as openapi_tool
from reference_services._kit.openapi30 import to_30
from reference_services.services import SERVICES

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
#: A social security number that was once valid and widely known; nothing may repeat it.
SECRET = "219-09-9999"
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
#: What every service has, described once for all of them.
SHARED_ROUTES = {
    "/", "/openapi.json", "/health", "/readiness", "/metrics", "/compliance/status", "/audit/trail",
}  # fmt: skip
STATES = {"pass", "fail", "partial", "not-applicable", "unknown", "attested"}


@pytest.fixture(params=list(SERVICES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(world: Any, name: str) -> Any:
    return world.client(name)


def body_route(world: Any, name: str) -> Any:
    """Return an operation of the service that takes a body: JSON where there is one, else a form."""
    operations = world[name].extensions["reference_services"].operations
    taking = [op for op in operations if op.body is not None and "<" not in op.rule]
    return min(taking, key=lambda op: op.form)


def send(world: Any, name: str, raw: bytes, content_type: str | None = None) -> Any:
    operation = body_route(world, name)
    own = "application/x-www-form-urlencoded" if operation.form else "application/json"
    headers = {"Content-Type": content_type or own, "Idempotency-Key": "contract"}
    if operation.scope is not None:
        headers |= world.bearer(operation.scope)
    return world.client(name).open(operation.rule, method=operation.method, data=raw, headers=headers)


def plant_fault(world: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `GET /` raise, and return its answer."""

    def fault() -> None:
        raise RuntimeError(SECRET)

    kit = world[name].extensions["reference_services"]
    index = next(op for op in kit.operations if op.rule == "/")
    monkeypatch.setattr(kit, "_answer", lambda operation, path: fault() if operation is index else None)
    return world.client(name).get("/")


def answers(world: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return one answer of every kind."""
    client = world.client(name)
    return {
        "200": client.get("/"),
        "HEAD": client.head("/"),
        "health": client.get("/health"),
        "metrics": client.get("/metrics"),
        "401": client.get("/audit/trail"),
        "404": client.get("/nowhere"),
        "405": client.delete("/openapi.json"),
        "413": send(world, name, b'{"x":"' + b"x" * 2**20 + b'"}'),
        "415": send(world, name, b"x", "text/plain"),
        "422": client.get("/?unknown=1"),
        "500": plant_fault(world, name, monkeypatch),
    }


def named(line: str, method: str, route: str) -> bool:
    """Tell whether a line of a README names this method and this whole path."""
    return re.search(rf"\b{method}\b", line) is not None and (
        re.search(rf"(?<![\w/}}]){re.escape(route)}(?![\w/{{.-])", line) is not None
    )


class TestHeaders:
    """Compliance and security headers."""

    def test_on_every_answer(self, world: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Compliance, security and request-id headers are on every answer, of whatever status."""
        for kind, answer in answers(world, name, monkeypatch).items():
            if kind.isdecimal() and not (body_route(world, name).form and kind in {"413", "415"}):
                assert answer.status_code == int(kind), kind
            assert {key: answer.headers.get(key) for key in HEADERS} == HEADERS, kind
            assert re.fullmatch("[A-Za-z0-9._-]{1,64}", answer.headers["X-Request-Id"]), kind
            for header in ("Compliance", "Data-Classification", "Data-Handling"):
                assert answer.headers.get(header), (kind, header)
            assert len(answer.headers.getlist("Content-Type")) <= 1, kind

    def test_they_name_the_frameworks(self, client: Any, name: str) -> None:
        """The Compliance header names the frameworks that the service declares."""
        header = client.get("/").headers["Compliance"]
        for framework in SERVICES[name].info.frameworks:
            assert f'"{framework}"' in header

    def test_head_is_get_without_body(self, client: Any) -> None:
        """HEAD has GET's status and media type, and no body."""
        for path in ("/", "/health", "/openapi.json"):
            get, head = client.get(path), client.head(path)
            assert (head.status_code, head.data) == (get.status_code, b"")
            assert head.headers["Content-Type"] == get.headers["Content-Type"]


class TestProbes:
    """Liveness and readiness."""

    def test_health(self, client: Any, name: str) -> None:
        """`/health` has the fixed shape."""
        answer = client.get("/health")
        body = answer.get_json()
        assert answer.status_code == 200
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", body.pop("timestamp"))
        assert body == {"status": "healthy", "service": name, "version": SERVICES[name].info.version}

    def test_readiness(self, client: Any) -> None:
        """`/readiness` is a flag and flat words, all ready in steady state."""
        answer = client.get("/readiness")
        body = answer.get_json()
        assert (answer.status_code, body["ready"], set(body)) == (200, True, {"ready", "checks"})
        assert body["checks"]
        assert set(body["checks"].values()) == {"ready"}

    def test_ready_only_while_it_answers(self, world: Any, name: str, tmp_path: Path) -> None:
        """With the trail away every audited route answers 503, and so does `/readiness`, but where care goes on all the same."""
        client, kit = world.client(name), world[name].extensions["reference_services"]
        (trail,) = (tmp_path / name).glob("*.audit.db")
        trail.rename(trail.with_suffix(".away"))
        audited = [op for op in kit.operations if op.audit is not None and "<" not in op.rule]
        assert {client.open(op.rule, method=op.method).status_code for op in audited} == {503}
        readiness = client.get("/readiness")
        told = readiness.status_code, readiness.get_json()["checks"]["audit_trail"]
        assert told == ((200, "not_ready") if kit.info.break_glass else (503, "not_ready"))

    @pytest.mark.parametrize(
        ("alias", "path"), [("/livez", "/health"), ("/readyz", "/readiness"), ("/startupz", "")]
    )
    def test_aliases(self, client: Any, alias: str, path: str) -> None:
        """The Kubernetes names answer as well."""
        answer = client.get(alias)
        assert answer.status_code == 200
        if path:
            assert set(answer.get_json()) == set(client.get(path).get_json())


class TestMetrics:
    """`GET /metrics`."""

    def test_families(self, client: Any, name: str) -> None:
        """The service's three common families exist from the start, under its prefix."""
        prefix = SERVICES[name].prefix
        client.get("/")
        text = client.get("/metrics").get_data(as_text=True)
        for line in (
            f"# TYPE {prefix}_request_duration_seconds histogram",
            f"# TYPE {prefix}_active_requests gauge",
            f"# TYPE {prefix}_compliance_checks_total counter",
            f'{prefix}_request_duration_seconds_count{{endpoint="/",method="GET",status="200"}} 1.0',
            f"{prefix}_active_requests ",
        ):
            assert line in text, line
        assert "_created" not in text

    def test_openmetrics_by_negotiation(self, client: Any) -> None:
        """OpenMetrics is sent to who asks for it, with its end marker."""
        plain = client.get("/metrics")
        asked = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert plain.content_type.startswith("text/plain")
        assert asked.content_type.startswith("application/openmetrics-text")
        assert asked.data.endswith(b"# EOF\n")

    def test_paths_do_not_become_labels(self, client: Any) -> None:
        """Unknown paths and methods share one series each."""
        for number in range(20):
            client.get(f"/nowhere/{number}")
            client.open("/", method=f"BREW{number}")
        text = client.get("/metrics").get_data(as_text=True)
        assert "nowhere" not in text
        assert "BREW" not in text


class TestTracing:
    """Trace context in."""

    def test_the_callers_trace_goes_on(self, client: Any, world: Any, name: str) -> None:
        """The server span continues the incoming trace, under its parent."""
        client.get("/", headers={"traceparent": TRACEPARENT})
        span = next(span for span in world.spans(name) if span.name == "GET /")
        assert format(span.context.trace_id, "032x") == TRACE_ID
        assert format(span.parent.span_id, "016x") == "00f067aa0ba902b7"

    @pytest.mark.parametrize(
        "header", ["", "x", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", TRACEPARENT.replace("00-", "ff-")]
    )
    def test_a_bad_header_starts_a_new_trace(self, client: Any, world: Any, name: str, header: str) -> None:
        """An invalid `traceparent` is ignored (W3C Trace Context §3.2.2.3)."""
        client.get("/", headers={"traceparent": header})
        span = next(span for span in world.spans(name) if span.name == "GET /")
        assert span.parent is None
        assert format(span.context.trace_id, "032x") != TRACE_ID


class TestAccessLog:
    """The access line."""

    def test_one_line_per_request(self, client: Any, world: Any, name: str) -> None:
        """Each request makes one JSON line with the trace id, the route and its duration."""
        client.get("/", headers={"traceparent": TRACEPARENT})
        lines = [line for line in world.log_lines(name) if line["event"] == "http_request"]
        assert len(lines) == 1
        (line,) = lines
        assert {"timestamp", "level", "event", "service", "trace_id", "span_id", "duration_seconds"} <= set(
            line
        )
        assert (line["service"], line["trace_id"]) == (name, TRACE_ID)
        assert line["duration_seconds"] > 0

    def test_probes_make_none(self, client: Any, world: Any, name: str) -> None:
        """Probes leave no access line and no span."""
        client.get("/health")
        client.get("/readiness")
        assert [line for line in world.log_lines(name) if line["event"] == "http_request"] == []
        assert [span for span in world.spans(name) if "health" in span.name or "readiness" in span.name] == []


class TestBadInput:
    """Refusals."""

    @pytest.mark.parametrize(
        ("raw", "status"),
        [
            (b"", 400),
            (b"{", 400),
            (b"\xff", 400),
            (b"[" * 50_000, 400),
            (b'{"a":1,"a":2}', 400),
            (b'{"a":NaN}', 400),
            (b'{"a":1' + b"0" * 5000 + b"}", 400),
            (b'{"a":"\\ud800"}', 400),
            (b'{"a":"\\u0000"}', 422),
            (b"[]", 422),
            (b"null", 422),
            (json.dumps({SECRET: SECRET}).encode(), 422),
            (json.dumps({"count": SECRET, "amount": SECRET, "patient": SECRET}).encode(), 422),
        ],
    )
    def test_a_bad_body(self, world: Any, name: str, raw: bytes, status: int) -> None:
        """A bad body is refused as problem+json, without an echo in the answer or the log."""
        answer = send(world, name, raw)
        if body_route(world, name).form:  # RFC 6749 §5.2
            assert (answer.status_code, set(answer.get_json())) == (400, {"error", "error_description"})
        else:
            assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
        assert SECRET not in answer.get_data(as_text=True) + json.dumps(world.log_lines(name))

    def test_the_problem(self, world: Any, client: Any, name: str) -> None:
        """A problem names type, title, status, code, instance and trace, and where the error is."""
        answer = client.get(f"/?x={SECRET}", headers={"traceparent": TRACEPARENT})
        body = answer.get_json()
        assert (answer.status_code, answer.content_type) == (422, "application/problem+json")
        assert {"type", "title", "status", "code", "trace_id", "instance", "errors"} <= set(body)
        assert (body["status"], body["trace_id"]) == (422, TRACE_ID)
        assert body["errors"] == [{"pointer": "", "code": "extra_forbidden"}]

    def test_a_fault_tells_nothing(
        self, world: Any, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A fault is a 500 problem; its text reaches neither caller nor log, nor span, nor standard error."""
        answer = plant_fault(world, name, monkeypatch)
        assert (answer.status_code, answer.content_type) == (500, "application/problem+json")
        assert SECRET not in answer.get_data(as_text=True) + json.dumps(world.log_lines(name))
        assert SECRET not in "".join(span.to_json() for span in world.spans(name))
        assert SECRET not in "".join(capfd.readouterr())
        faults = [event for span in world.spans(name) for event in span.events if event.name == "exception"]
        assert [event.attributes["exception.type"] for event in faults] == ["RuntimeError"]
        assert "unhandled_exception" in {line["event"] for line in world.log_lines(name)}


class TestAuditTrail:
    """`GET /audit/trail`."""

    def test_it_needs_a_token(self, world: Any, client: Any) -> None:
        """No token is 401 with a challenge, another scope is refused, audit:read is answered."""
        refused = client.get("/audit/trail")
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert client.get("/audit/trail", headers=world.bearer("payment:read")).status_code in {401, 403}
        assert client.get("/audit/trail", headers=world.bearer("audit:read")).status_code == 200

    def test_a_change_makes_an_entry(self, world: Any, client: Any, name: str) -> None:
        """A call of an audited route grows the trail, a refused one too."""
        headers = world.bearer("audit:read", role="auditor")

        def total() -> int:
            return int(client.get("/audit/trail", headers=headers).get_json()["total_entries"])

        before = total()
        send(world, name, b"{}")
        assert total() > before


def control_states(world: Any, name: str) -> dict[str, str]:
    """Run the controls of a service and return their states as `/compliance/status` shows them."""
    client = world.client(name)
    world.obs(name).controls.run()
    body = client.get("/compliance/status").get_json()
    return {control["id"]: control["state"] for control in body["controls"]}


class TestComplianceStatus:
    """`GET /compliance/status`."""

    def test_controls_have_states(self, world: Any, client: Any, name: str) -> None:
        """Each control has an id, a citation and one of six states, and the counts add up."""
        assert set(control_states(world, name).values()) <= STATES
        body = client.get("/compliance/status").get_json()
        assert body["service"] == name
        assert body["controls"]
        assert all(control["id"] and control["cite"] for control in body["controls"])
        assert sum(body["counts"].values()) == len(body["controls"])

    def test_nothing_is_claimed_before_it_ran(self, client: Any) -> None:
        """Until its probe has run a control is unknown."""
        body = client.get("/compliance/status").get_json()
        assert {control["state"] for control in body["controls"]} == {"unknown"}

    def test_it_is_measured(self, world: Any, name: str) -> None:
        """Taking the headers away makes the control of headers fail."""
        world.environ[name] = {"HEALTHOBS_HEADERS": "false"}
        assert control_states(world, name)["HDR"] == "fail"

    def test_an_open_route_is_found(self, world: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answering the audit trail without credentials makes the control of access fail."""
        assert control_states(world, name)["H-312.a1"] == "pass"
        monkeypatch.setattr(Endpoints, "_reader", lambda *_: "x")
        assert control_states(world, name)["H-312.a1"] == "fail"

    def test_nothing_fails_as_delivered(self, world: Any, name: str) -> None:
        """With the settings a service starts with no control fails, but the one that names declared exceptions."""
        states = control_states(world, name)
        declared = ["H-514"] if "patient_id" in SERVICES[name].info.telemetry_keys else []
        assert [control for control, state in states.items() if state == "fail"] == declared
        assert states["HDR"] == states["H-312.b"] == states["H-312.d"] == "pass"
        assert states["H-312.c"] == "partial", "nobody else witnesses it"


class TestDescription:
    """OpenAPI, README, index, manifest."""

    def test_openapi_is_the_committed_file(self, client: Any, name: str) -> None:
        """`/openapi.json` equals the committed openapi.yaml, which is valid 3.1."""
        path = Path(openapi_tool.__file__).parent / SERVICES[name].prefix / "openapi.yaml"
        served = client.get("/openapi.json").get_json()
        assert yaml.safe_load(path.read_text(encoding="utf-8")) == served
        OpenAPIV31SpecValidator(served).validate()

    def test_the_30_copy(self, client: Any, name: str) -> None:
        """The committed 3.0.3 copy is that of the same document, and valid."""
        path = Path(openapi_tool.__file__).parent / SERVICES[name].prefix / "openapi-3.0.yaml"
        copy = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert copy == to_30(client.get("/openapi.json").get_json())
        OpenAPIV30SpecValidator(copy).validate()

    def test_the_readme_names_every_route(self, client: Any, name: str) -> None:
        """Each route stands in the service's README, on a line with its method; the shared ones too."""
        path = Path(openapi_tool.__file__).parent / SERVICES[name].prefix / "README.md"
        lines = [re.sub(r"[{<][^}>]*[}>]", "{}", line) for line in path.read_text("utf-8").splitlines()]
        paths = client.get("/openapi.json").get_json()["paths"]
        assert set(paths) >= SHARED_ROUTES
        missing = [
            f"{method.upper()} {route}"
            for route, methods in paths.items()
            for method in methods
            if not any(named(line, method.upper(), re.sub("{[^}]*}", "{}", route)) for line in lines)
        ]
        assert missing == []

    def test_the_root_links_them(self, client: Any, name: str) -> None:
        """`GET /` names the service, its version and its routes."""
        body = client.get("/").get_json()
        assert (body["service"], body["version"]) == (name, SERVICES[name].info.version)
        assert {"GET /health", "GET /metrics", "GET /compliance/status"} <= set(body["links"])

    def test_the_manifest_is_right(self, name: str) -> None:
        """Name, prefix and port in the manifest are the service's own."""
        service = SERVICES[name]
        assert (service.info.name, service.info.prefix, service.info.port) == (
            name,
            service.prefix,
            service.port,
        )


def test_the_header_check_can_fail(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With headers off the header rule of this suite is broken: it does measure something."""
    world.environ["synthetic-phi-service"] = {"HEALTHOBS_HEADERS": "false"}
    answer = world.client("synthetic-phi-service").get("/")
    assert {key: answer.headers.get(key) for key in HEADERS} != HEADERS
