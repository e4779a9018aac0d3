"""What a run must have left behind: named assertions over the `Evidence`, each of which can fail.

`healthobs demo --break NAME` shows that each one does: every planted fault turns exactly its declared
assertions red (`reference_services.demo.faults`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from healthobs.testing import assert_no_phi
from reference_services.demo.evidence import Evidence, Step
from reference_services.services import SERVICES

Check = Callable[[Evidence], Iterator[str]]
PROBES = frozenset({"/health", "/readiness", "/livez", "/readyz", "/startupz", "/metrics"})
#: Answered before the application, outside every trace.
OPERATIONAL = PROBES | {"/audit/trail", "/compliance/status"}
#: Series that fifty made-up paths and methods may add: none is a path's, a control may have changed its state.
MAX_NEW_SERIES = 10
REQUIRED_HEADERS = (
    "compliance",
    "data-classification",
    "data-handling",
    "cache-control",
    "content-security-policy",
    "x-content-type-options",
    "x-request-id",
)
AUDITED_COUNTS: tuple[tuple[str, str, dict[str, str], str, str], ...] = (
    # service, metric, labels, audit action, outcome
    ("auth-service", "auth_tokens_issued_total", {}, "token.issue", "ok"),
    ("phi-service", "phi_records_accessed_total", {"outcome": "ok"}, "patient.", "ok"),
)


@dataclass(frozen=True, slots=True)
class Assertion:
    """One named claim and the check that holds it; the check yields what is wrong, nothing when it holds."""

    name: str
    claim: str
    check: Check


REGISTRY: dict[str, Assertion] = {}


def _asserts(claim: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        name = check.__name__
        REGISTRY[name] = Assertion(name, claim, check)
        return check

    return register


def _where(step: Step) -> str:
    return f"{step.service} {step.method} {step.route} ({step.name})"


@_asserts("every step of the journey answered as expected")
def journey_completed(evidence: Evidence) -> Iterator[str]:
    """Compare each step's status with the expected one; a journey without steps is wrong too."""
    if not evidence.steps:
        yield "the journey made no request"
    for step in evidence.steps:
        if step.status != step.expected:
            yield f"{_where(step)} answered {step.status}, expected {step.expected}"


@_asserts("one trace crosses all five services")
def one_trace(evidence: Evidence) -> Iterator[str]:
    """Look for a SERVER span of every service in the journey's trace."""
    reached = {span.service for span in evidence.in_trace() if span.is_server}
    for name in SERVICES:
        if name not in reached:
            yield f"{name} has no server span in the trace"


@_asserts("every span of the trace has its parent in the trace")
def no_orphan_spans(evidence: Evidence) -> Iterator[str]:
    """Follow each parent id; only the root has none."""
    spans = evidence.in_trace()
    known = {span.span_id for span in spans}
    roots = [span for span in spans if not span.parent_id]
    if len(roots) != 1:
        yield f"{len(roots)} roots instead of one"
    for span in spans:
        if span.parent_id and span.parent_id not in known:
            yield f"{span.service} '{span.name}' has a parent that was never exported"


@_asserts("each request has exactly one server span and one access line, with the same ids and duration")
def spans_match_logs(evidence: Evidence) -> Iterator[str]:
    """Pair server spans and access lines by span id and compare status and duration (to the microsecond)."""
    for service in SERVICES:
        lines = [line for line in evidence.log_objects(service) if line.get("event") == "http_request"]
        by_span = {line.get("span_id"): line for line in lines}
        spans = {span.span_id: span for span in evidence.spans if span.service == service and span.is_server}
        if set(by_span) != set(spans) or len(lines) != len(spans):
            yield f"{service}: {len(spans)} server spans, {len(lines)} access lines, {len(set(by_span) & set(spans))} pairs"
            continue
        for span_id, span in spans.items():
            line, seconds = by_span[span_id], (span.end_ns - span.start_ns) / 1e9
            if abs(float(line["duration_seconds"]) - seconds) > 2e-6:
                yield f"{service} '{span.name}': span and log line disagree on the duration"
            if line["status"] != span.attributes.get("http.response.status_code"):
                yield f"{service} '{span.name}': span and log line disagree on the status"


@_asserts("every log line is one JSON object, and those of a request carry the trace id")
def logs_correlated(evidence: Evidence) -> Iterator[str]:
    """Decode every line; look for the trace id wherever the line belongs to a span."""
    for service in SERVICES:
        lines = [line for line in evidence.logs.get(service, ()) if line.strip()]
        objects = evidence.log_objects(service)
        if len(objects) != len(lines):
            yield f"{service}: {len(lines) - len(objects)} lines are no JSON objects"
        access = [line for line in objects if line.get("event") == "http_request"]
        bare = sum(1 for line in access if len(str(line.get("trace_id", ""))) != 32)
        if bare:
            yield f"{service}: {bare} access lines have no trace id"
        if not any(line.get("trace_id") == evidence.trace_id for line in objects):
            yield f"{service}: no log line of the journey's trace"


@_asserts("the request histogram counts exactly the requests that were traced")
def metrics_match_requests(evidence: Evidence) -> Iterator[str]:
    """Compare `<prefix>_request_duration_seconds_count`, route by route, with the server spans."""
    for service, info in SERVICES.items():
        spans = Counter(
            (
                str(span.attributes.get("http.route", "unmatched")),
                str(span.attributes.get("http.response.status_code")),
            )
            for span in evidence.spans
            if span.service == service and span.is_server
        )
        name = f"{info.prefix}_request_duration_seconds_count"
        counted: Counter[tuple[str, str]] = Counter()
        for (found, pairs), value in evidence.metrics[service].values.items():
            if found == name and value:
                labels = dict(pairs)
                counted[labels["endpoint"], labels["status"]] += int(value)
        for key in sorted(set(spans) | set(counted)):
            if spans[key] != counted[key]:
                yield f"{service} {key[0]} {key[1]}: counted {counted[key]}, traced {spans[key]}"


@_asserts("business counters equal the audit trail's entries")
def metrics_match_audit(evidence: Evidence) -> Iterator[str]:
    """Compare what a service counted with what it recorded."""
    for service, metric, labels, action, outcome in AUDITED_COUNTS:
        counted = evidence.metrics[service].total(metric, **labels)
        recorded = sum(
            1
            for entry in evidence.audit[service]
            if str(entry["action"]).startswith(action) and entry["outcome"] == outcome
        )
        if counted != recorded or not recorded:
            yield f"{service}: {metric} is {counted:g}, the trail has {recorded} '{action}' entries"


@_asserts("every audit trail verifies offline")
def audit_verifies(evidence: Evidence) -> Iterator[str]:
    """Read the exit status of `healthobs audit verify` on a copy of each trail."""
    for service in SERVICES:
        status, text = evidence.audit_verify[service]
        if status != 0:
            yield f"{service}: exit status {status}: {text}"


@_asserts("audit entries carry the trace id of the journey")
def audit_carries_trace(evidence: Evidence) -> Iterator[str]:
    """Look for entries of the journey's trace in every service that the journey changed or read.

    What controls do is not the journey's, and that the trail was read is no business of the service.
    """
    for service in SERVICES:
        entries = [
            entry
            for entry in evidence.audit[service]
            if not str(entry["action"]).startswith(("control.", "audit."))
        ]
        if not any(entry["trace_id"] == evidence.trace_id for entry in entries):
            yield f"{service}: no entry of the journey's trace"


@_asserts("responses carry the one trace id")
def responses_carry_trace(evidence: Evidence) -> Iterator[str]:
    """Read `traceresponse` of every step of the journey; operational endpoints are outside the trace."""
    for step in evidence.steps:
        if step.route not in OPERATIONAL and evidence.trace_id not in step.headers.get("traceresponse", ""):
            yield f"{_where(step)} does not return the trace id"


@_asserts("compliance and security headers are on every response, errors included")
def headers_everywhere(evidence: Evidence) -> Iterator[str]:
    """Look at every response of the journey and of the experiments."""
    for step in evidence.every_step():
        missing = [name for name in REQUIRED_HEADERS if name not in step.headers]
        if missing:
            yield f"{_where(step)} {step.status} lacks {', '.join(missing)}"


@_asserts("bad input gets problem+json and never an echo or a 500")
def errors_are_problems(evidence: Evidence) -> Iterator[str]:
    """Check status class, media type and the absence of what was sent."""
    steps = evidence.experiments["bad-input"]
    if not steps:
        yield "no bad input was sent"
    for step in steps:
        if step.status >= 500 or step.status != step.expected:
            yield f"{_where(step)} answered {step.status}, expected {step.expected}"
        if not step.headers.get("content-type", "").startswith("application/problem+json"):
            yield f"{_where(step)} is no problem+json"
        if evidence.needles.hits(step.body.decode("utf-8", "replace")):
            yield f"{_where(step)} echoes what was sent"


@_asserts("no patient's data and no card number in spans, logs, metrics or error bodies")
def no_phi_in_telemetry(evidence: Evidence) -> Iterator[str]:
    """Search every exit for every planted value; kinds are named, values never."""
    for span in evidence.spans:
        for kind in evidence.needles.hits(span.text):
            yield f"span '{span.name}' of {span.service} holds the {kind}"
    for service in SERVICES:
        for kind in evidence.needles.hits("\n".join(evidence.logs_at_the_end.get(service, ()))):
            yield f"the log of {service} holds the {kind}"
        for kind in evidence.needles.hits(evidence.metrics_text[service]):
            yield f"the metrics of {service} hold the {kind}"


@_asserts("no card number or secret on any disk, no plain PHI in phi-service's database")
def nothing_plain_on_disk(evidence: Evidence) -> Iterator[str]:
    """Search the raw bytes of every file that the services wrote."""
    for path, content in evidence.disk.items():
        for kind, value in evidence.disk_needles.values.items():
            if value.encode() in content:
                yield f"{path} holds the {kind}"


@_asserts("who initiates a payment never approves it")
def approver_is_not_initiator(evidence: Evidence) -> Iterator[str]:
    """The self-approval was refused with 403 and counted as a violation."""
    step = evidence.step("approve own payment")
    if step is None or step.status != 403:
        yield f"self-approval answered {'nothing' if step is None else step.status}"
    if evidence.metrics["payment-gateway"].total("payment_gateway_sox_violations_total") < 1:
        yield "the attempt was not counted"


@_asserts("a repeated idempotency key pays once")
def idempotent(evidence: Evidence) -> Iterator[str]:
    """Both answers name the same payment, and the service counted one repetition."""
    answers = [evidence.step(name) for name in ("charge", "charge again with the same key")]
    payments = [None if step is None else (step.json() or {}).get("id") for step in answers]
    if payments[0] is None or payments[0] != payments[1]:
        yield "the second answer does not name the first one's payment"
    if evidence.metrics["payment-gateway"].total("payment_gateway_idempotent_replays_total") != 1:
        yield "the repetition was not counted once"


@_asserts("hostile paths and methods add no series without bound")
def series_are_bounded(evidence: Evidence) -> Iterator[str]:
    """After two made-up paths and methods, forty-eight more may add a few series, not one each."""
    for service in SERVICES:
        added = evidence.series_after[service] - evidence.series_before[service]
        if added > MAX_NEW_SERIES:
            yield f"{service}: {added} new series"


@_asserts("probes leave no span and no access line")
def probes_are_silent(evidence: Evidence) -> Iterator[str]:
    """Look for the probes' paths in spans and access lines."""
    for span in evidence.spans:
        if (
            span.is_server
            and str(span.attributes.get("http.route", span.attributes.get("url.path"))) in PROBES
        ):
            yield f"{span.service} traced a probe"
    for service in SERVICES:
        if any(
            line.get("event") == "http_request" and line.get("route") in PROBES
            for line in evidence.log_objects(service)
        ):
            yield f"{service} wrote an access line for a probe"


@_asserts("readiness turns false when the database is gone")
def readiness_tells_the_truth(evidence: Evidence) -> Iterator[str]:
    """With the database file destroyed, `/readiness` is 503 and names the check."""
    steps = evidence.experiments["readiness without a database"]
    if not steps:
        yield "the database was not broken"
    for step in steps:
        if step.status != 503:
            yield f"{_where(step)} answered {step.status}"
        elif ((step.json() or {}).get("checks") or {}).get("database", "ready") == "ready":
            yield f"{_where(step)} does not name the database"


@_asserts("liveness does not depend on the database")
def liveness_is_pure(evidence: Evidence) -> Iterator[str]:
    """With the database file destroyed, `/health` is still 200."""
    steps = evidence.experiments["liveness without a database"]
    if not steps:
        yield "the database was not broken"
    for step in steps:
        if step.status != 200:
            yield f"{_where(step)} answered {step.status}"


@_asserts("a control fails when what it guards is broken")
def controls_can_fail(evidence: Evidence) -> Iterator[str]:
    """C-10.3 passes on the healthy trail and fails once its triggers were dropped from outside."""
    for service, before in evidence.controls.items():
        if before.get("C-10.3") != "pass":
            yield f"{service}: C-10.3 is {before.get('C-10.3')} before the sabotage"
    if not evidence.controls_after_sabotage:
        yield "no control was sabotaged"
    for service, after in evidence.controls_after_sabotage.items():
        if after.get("C-10.3") != "fail":
            yield f"{service}: C-10.3 is {after.get('C-10.3')} after its triggers were dropped"


@_asserts("no audit trail names a patient: what they are about are random tokens")
def audit_names_no_patient(evidence: Evidence) -> Iterator[str]:
    """Search entries and raw bytes of every trail for the patient's id, in every form; phi-service's have a subject still."""
    for service in SERVICES:
        files = [
            content
            for path, content in evidence.disk.items()
            if path.startswith(f"{service}/") and ".audit.db" in path
        ]
        try:
            assert_no_phi(evidence.audit_needles.values, json.dumps(evidence.audit[service]), *files)
        except AssertionError as found:
            yield f"{service}: {found}"
    if not any(entry["subject"] for entry in evidence.audit["phi-service"]):
        yield "phi-service: no entry is about anybody"


@_asserts("an audit log is witnessed by the other services, and none of them has seen another history of it")
def log_is_witnessed(evidence: Evidence) -> Iterator[str]:
    """H-312.c says `self-witnessed`, and so is partial: witnesses of one operator are not independent."""
    if not evidence.witnessed:
        yield "no log's witnesses were asked"
    for service, (state, text) in evidence.witnessed.items():
        if state != "partial" or not text.endswith("; self-witnessed"):
            yield f"{service}: H-312.c is {state}: {text}"


@dataclass(frozen=True, slots=True)
class Result:
    """What one assertion found."""

    assertion: Assertion
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Tell whether the claim held."""
        return not self.problems


def judge(evidence: Evidence) -> list[Result]:
    """Run every assertion; one that breaks is red, never green."""
    return [Result(assertion, _problems(assertion, evidence)) for assertion in REGISTRY.values()]


def _problems(assertion: Assertion, evidence: Evidence) -> tuple[str, ...]:
    try:
        return tuple(assertion.check(evidence))
    except Exception as exc:  # noqa: BLE001 - an assertion that cannot run has not held
        return (f"could not be checked: {type(exc).__name__}",)
