"""Each assertion of the demo: it holds on what healthy services leave behind, and one small fault turns it red."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from reference_services.demo import planted
from reference_services.demo.assertions import MAX_NEW_SERIES, REGISTRY, REQUIRED_HEADERS, Assertion, judge
from reference_services.demo.collector import SpanRecord
from reference_services.demo.evidence import Evidence, Samples, Step
from reference_services.demo.faults import FAULTS
from reference_services.services import SERVICES

TRACE, ROOT = "a" * 32, "0" * 16
PHI, AUTH, GATEWAY = "phi-service", "auth-service", "payment-gateway"
SECRET = "Quixote-1615"
PATIENT = "Panza-of-Barataria"
HEADERS = {
    **dict.fromkeys(REQUIRED_HEADERS, "x"),
    "content-type": "application/problem+json",
    "traceresponse": TRACE,
}


def span_of(service: str, number: int, *, kind: int = 2, parent: str = ROOT) -> SpanRecord:
    """Return a span of one millisecond, the SERVER span of `GET /r` by default."""
    attributes = {"http.route": "/r", "http.response.status_code": 200} if kind == 2 else {}
    return SpanRecord(
        service, "GET /r", TRACE, f"{number:016x}", parent, kind, 10**18, 10**18 + 10**6, 0, attributes, ""
    )


def step_of(name: str, status: int = 200, *, service: str = AUTH, body: object = None) -> Step:
    """Return a step that was answered as expected."""
    return Step(name, service, "GET", "/r", status, status, HEADERS, json.dumps(body).encode())


def exposition(prefix: str) -> str:
    """Return what `/metrics` says after one request."""
    return (
        f'{prefix}_request_duration_seconds_count{{endpoint="/r",method="GET",status="200"}} 1\n'
        f'auth_tokens_issued_total{{grant="g"}} 1\n'
        f'phi_records_accessed_total{{outcome="ok"}} 1\n'
        f'payment_gateway_sox_violations_total{{control="S-sod"}} 1\n'
        f'payment_gateway_idempotent_replays_total{{endpoint="/charge"}} 1\n'
    )


def healthy() -> Evidence:
    """Return what a healthy run leaves behind, as small as it can be."""
    evidence = Evidence(trace_id=TRACE, spans=[span_of("healthobs-demo", 0, kind=1, parent="")])
    evidence.audit_needles.values["patient's id"] = PATIENT
    evidence.needles.values["family name"] = evidence.disk_needles.values["family name"] = SECRET
    for number, (service, info) in enumerate(SERVICES.items(), 1):
        span = span_of(service, number)
        evidence.spans.append(span)
        line = {"event": "http_request", "trace_id": TRACE, "span_id": span.span_id, "route": "/r"}
        evidence.logs[service] = [json.dumps({**line, "status": 200, "duration_seconds": 0.001})]
        evidence.logs_at_the_end[service] = list(evidence.logs[service])
        evidence.metrics_text[service] = exposition(info.prefix)
        evidence.metrics[service] = Samples.parse(evidence.metrics_text[service])
        action = "token.issued" if service == AUTH else "patient.read"
        evidence.audit[service] = [{"action": action, "outcome": "ok", "trace_id": TRACE, "subject": "s-1"}]
        evidence.audit_verify[service] = (0, "ok")
        evidence.disk[f"{service}/file"] = b"sealed"
        evidence.series_before[service] = evidence.series_after[service] = 100
    evidence.steps = [
        step_of("approve own payment", 403, service=GATEWAY),
        step_of("charge", 201, service=GATEWAY, body={"id": "pay_1"}),
        step_of("charge again with the same key", 201, service=GATEWAY, body={"id": "pay_1"}),
    ]
    evidence.experiments["bad-input"] = [step_of("bad-input", 404)]
    unready = step_of("unready", 503, service=PHI, body={"checks": {"database": "not_ready"}})
    evidence.experiments["readiness without a database"] = [unready]
    evidence.experiments["liveness without a database"] = [step_of("alive", service=PHI)]
    evidence.controls[GATEWAY] = {"C-10.3": "pass"}
    evidence.controls_after_sabotage[GATEWAY] = {"C-10.3": "fail"}
    evidence.witnessed[PHI] = ("partial", "every entry verified; self-witnessed")
    return evidence


def red(evidence: Evidence) -> set[str]:
    """Return the names of the assertions that do not hold."""
    return {result.assertion.name for result in judge(evidence) if not result.ok}


def edit_step(name: str, **changes: object) -> Callable[[Evidence], None]:
    """Return a fault that changes one step of the journey."""

    def fault(evidence: Evidence) -> None:
        evidence.steps = [
            dataclasses.replace(step, **changes) if step.name == name else step for step in evidence.steps
        ]

    return fault


def edit_experiment(name: str, **changes: object) -> Callable[[Evidence], None]:
    """Return a fault that changes the first request of an experiment."""

    def fault(evidence: Evidence) -> None:
        evidence.experiments[name] = [dataclasses.replace(evidence.experiments[name][0], **changes)]

    return fault


def edit_span(**changes: object) -> Callable[[Evidence], None]:
    """Return a fault that changes the last service's span."""

    def fault(evidence: Evidence) -> None:
        evidence.spans[-1] = dataclasses.replace(evidence.spans[-1], **changes)

    return fault


def edit_line(**changes: object) -> Callable[[Evidence], None]:
    """Return a fault that changes the access line of auth-service."""

    def fault(evidence: Evidence) -> None:
        evidence.logs[AUTH] = [json.dumps({**json.loads(evidence.logs[AUTH][0]), **changes})]

    return fault


def edit_metrics(service: str, old: str, new: str) -> Callable[[Evidence], None]:
    """Return a fault in what a service counted."""

    def fault(evidence: Evidence) -> None:
        text = evidence.metrics_text[service]
        assert old in text
        evidence.metrics[service] = Samples.parse(text.replace(old, new))

    return fault


def put(attribute: str, key: str, value: object) -> Callable[[Evidence], None]:
    """Return a fault that sets one member of a mapping of the evidence."""
    return lambda evidence: getattr(evidence, attribute).__setitem__(key, value)


def add_line(text: str) -> Callable[[Evidence], None]:
    """Return a fault that writes one more log line."""
    return lambda evidence: evidence.logs[AUTH].append(text)


READ = {"action": "patient.read", "outcome": "ok", "trace_id": TRACE, "subject": "s-1"}
NO_TRACE = [{**READ, "trace_id": None}]
WITHOUT = {name: value for name, value in HEADERS.items() if name != "data-handling"}
#: What is done to healthy evidence, and exactly the assertions that must then be red.
SMALL_FAULTS: list[tuple[Callable[[Evidence], None], set[str]]] = [
    (edit_step("charge", status=500), {"journey_completed"}),
    (lambda evidence: evidence.steps.clear(), {"journey_completed", "approver_is_not_initiator", "idempotent"}),
    (edit_span(trace_id="b" * 32), {"one_trace"}),
    (edit_span(parent_id="f" * 16), {"no_orphan_spans"}),
    (edit_span(parent_id=""), {"no_orphan_spans"}),
    (lambda evidence: evidence.spans.pop(0), {"no_orphan_spans"}),
    (edit_line(duration_seconds=0.0011), {"spans_match_logs"}),
    (edit_line(status=500), {"spans_match_logs"}),
    (edit_line(span_id="f" * 16), {"spans_match_logs"}),
    (lambda evidence: evidence.logs[AUTH].extend(evidence.logs[AUTH]), {"spans_match_logs"}),
    (edit_line(trace_id="", duration_seconds=0.001), {"logs_correlated"}),
    (add_line("Traceback"), {"logs_correlated"}),
    (edit_metrics(AUTH, 'status="200"} 1', 'status="200"} 2'), {"metrics_match_requests"}),
    (edit_metrics(AUTH, 'endpoint="/r"', 'endpoint="/s"'), {"metrics_match_requests"}),
    (edit_metrics(AUTH, 'grant="g"} 1', 'grant="g"} 2'), {"metrics_match_audit"}),
    (edit_metrics(PHI, 'outcome="ok"} 1', 'outcome="ok"} 0'), {"metrics_match_audit"}),
    (put("audit_verify", PHI, (1, "TAMPERED")), {"audit_verifies"}),
    (put("audit_verify", PHI, (2, "cannot be read")), {"audit_verifies"}),
    (put("audit", PHI, NO_TRACE), {"audit_carries_trace"}),
    (put("audit", PHI, [{**READ, "subject": PATIENT}]), {"audit_names_no_patient"}),
    (put("audit", PHI, [{**READ, "subject": None}]), {"audit_names_no_patient"}),
    (put("disk", f"{GATEWAY}/payment_gateway.audit.db-wal", PATIENT.encode()), {"audit_names_no_patient"}),
    (lambda evidence: evidence.audit_needles.values.clear(), {"audit_names_no_patient"}),
    (edit_step("charge", headers={**HEADERS, "traceresponse": "b"}), {"responses_carry_trace"}),
    (edit_step("charge", headers=WITHOUT), {"headers_everywhere"}),
    (edit_experiment("liveness without a database", headers=WITHOUT), {"headers_everywhere"}),
    (edit_experiment("bad-input", status=500), {"errors_are_problems"}),
    (edit_experiment("bad-input", body=f"no {SECRET}".encode()), {"errors_are_problems"}),
    (
        edit_experiment("bad-input", headers={**HEADERS, "content-type": "text/html"}),
        {"errors_are_problems"},
    ),
    (lambda evidence: evidence.experiments["bad-input"].clear(), {"errors_are_problems"}),
    (edit_span(text=f"name: {SECRET}"), {"no_phi_in_telemetry"}),
    (put("logs_at_the_end", PHI, [SECRET]), {"no_phi_in_telemetry"}),
    (put("metrics_text", PHI, SECRET), {"no_phi_in_telemetry"}),
    (put("disk", "phi-service/phi.db", SECRET.encode()), {"nothing_plain_on_disk"}),
    (edit_step("approve own payment", status=200, expected=200), {"approver_is_not_initiator"}),
    (edit_metrics(GATEWAY, 'control="S-sod"} 1', 'control="S-sod"} 0'), {"approver_is_not_initiator"}),
    (edit_step("charge", body=b'{"id":"pay_2"}'), {"idempotent"}),
    (edit_step("charge", body=b"{}"), {"idempotent"}),
    (edit_metrics(GATEWAY, 'endpoint="/charge"} 1', 'endpoint="/charge"} 0'), {"idempotent"}),
    (put("series_after", PHI, 101 + MAX_NEW_SERIES), {"series_are_bounded"}),
    (edit_line(route="/health"), {"probes_are_silent"}),
    (
        edit_span(attributes={"http.route": "/readiness", "http.response.status_code": 200}),
        {"probes_are_silent", "metrics_match_requests"},
    ),
    (edit_experiment("readiness without a database", status=200), {"readiness_tells_the_truth"}),
    (edit_experiment("readiness without a database", body=b"{}"), {"readiness_tells_the_truth"}),
    (lambda evidence: evidence.experiments["readiness without a database"].clear(), {"readiness_tells_the_truth"}),
    (edit_experiment("liveness without a database", status=503), {"liveness_is_pure"}),
    (lambda evidence: evidence.experiments["liveness without a database"].clear(), {"liveness_is_pure"}),
    (put("controls", GATEWAY, {"C-10.3": "unknown"}), {"controls_can_fail"}),
    (put("controls_after_sabotage", GATEWAY, {"C-10.3": "pass"}), {"controls_can_fail"}),
    (lambda evidence: evidence.controls_after_sabotage.clear(), {"controls_can_fail"}),
    (put("witnessed", PHI, ("partial", "every entry verified; self-signed")), {"log_is_witnessed"}),
    (put("witnessed", PHI, ("fail", "witnesses hold a later history; self-witnessed")), {"log_is_witnessed"}),
    (lambda evidence: evidence.witnessed.clear(), {"log_is_witnessed"}),
]  # fmt: skip


class TestJudge:
    """`judge`."""

    def test_everything_holds_on_healthy_evidence(self) -> None:
        """No assertion is red when nothing is wrong."""
        assert red(healthy()) == set()

    @pytest.mark.parametrize(("fault", "expected"), SMALL_FAULTS)
    def test_small_fault_is_found(self, fault: Callable[[Evidence], None], expected: set[str]) -> None:
        """One small fault turns exactly the assertions red that are about it."""
        evidence = healthy()
        fault(evidence)
        assert red(evidence) == expected

    def test_every_assertion_has_a_small_fault(self) -> None:
        """No assertion is without a proof that it can fail."""
        assert set().union(*(names for _, names in SMALL_FAULTS)) == set(REGISTRY)

    def test_assertion_that_breaks_is_red(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What cannot be checked has not held."""
        broken = Assertion("broken", "breaks", lambda evidence: iter([1 / len(evidence.steps)]))
        monkeypatch.setitem(REGISTRY, "broken", broken)
        evidence = healthy()
        evidence.steps.clear()
        assert "could not be checked: ZeroDivisionError" in judge(evidence)[-1].problems

    def test_problems_name_kinds_and_never_values(self) -> None:
        """What is found of a patient's data is named by its kind."""
        evidence = healthy()
        evidence.metrics_text[PHI] = evidence.logs_at_the_end[PHI][0] = SECRET
        evidence.disk["f"] = SECRET.encode()
        problems = [problem for result in judge(evidence) for problem in result.problems]
        assert len(problems) == 3
        assert not any(SECRET in problem for problem in problems)


class TestFaults:
    """`FAULTS`."""

    def test_there_are_enough(self) -> None:
        """The demo can be broken in at least twelve ways."""
        assert len(FAULTS) >= 12

    @pytest.mark.parametrize("name", FAULTS)
    def test_declares_assertions_that_exist(self, name: str) -> None:
        """Each fault turns something red, and only what exists."""
        assert FAULTS[name].red
        assert FAULTS[name].red <= set(REGISTRY)

    @pytest.mark.parametrize("name", FAULTS)
    def test_acts_on_a_service_that_exists(self, name: str) -> None:
        """A fault is planted in one service or in all, or done to the files afterwards."""
        fault = FAULTS[name]
        assert fault.patched in {None, "*", *SERVICES}
        assert (fault.patched is None) == (fault.afterwards is not None or fault.meanwhile is not None)

    def test_every_assertion_is_turned_red_by_some_fault(self) -> None:
        """No claim of the demo is one that running services cannot break."""
        assert set().union(*(fault.red for fault in FAULTS.values())) == set(REGISTRY)

    def test_what_is_patched_can_be_planted(self) -> None:
        """Each fault that patches a process has its planter, and each planter its fault."""
        assert set(planted.PLANTERS) == {fault.name for fault in FAULTS.values() if fault.patched}

    def test_what_is_patched_is_there(self) -> None:
        """Each planter finds what it replaces, so that a fault does not break the start of a service in place of its signal."""
        code = (
            "from reference_services.demo.planted import BUGS, PLANTERS, plant\n"
            "for name in (*PLANTERS, *BUGS): plant(name)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
