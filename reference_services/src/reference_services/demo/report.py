"""Prints what a run left behind: the trace as a tree, metrics beside audit counts, log lines, the assertions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from reference_services.demo.assertions import Result
from reference_services.demo.collector import SpanRecord
from reference_services.demo.evidence import Evidence
from reference_services.services import SERVICES

LOG_LINES_SHOWN = 12


def trace_tree(spans: list[SpanRecord]) -> Iterator[str]:
    """Yield one line per span, children indented below their parent, in order of start."""
    known = {span.span_id for span in spans}
    children: defaultdict[str, list[SpanRecord]] = defaultdict(list)
    for span in sorted(spans, key=lambda span: span.start_ns):
        children[span.parent_id if span.parent_id in known else ""].append(span)

    def walk(parent: str, indent: str) -> Iterator[str]:
        for position, span in enumerate(children[parent]):
            last = position == len(children[parent]) - 1
            branch = ("└─ " if last else "├─ ") if indent or parent else ""
            milliseconds = (span.end_ns - span.start_ns) / 1e6
            label = f"{indent}{branch}{span.name}"
            yield f"{label:<72.72} {span.service:<22} {milliseconds:9.2f} ms"
            yield from walk(span.span_id, indent + (("   " if last else "│  ") if parent else ""))

    yield from walk("", "")


def counts(evidence: Evidence) -> Iterator[str]:
    """Yield per service: requests counted, audit entries, and what the offline verifier said."""
    yield f"{'service':<24}{'requests':>9}{'audit entries':>15}  offline verification"
    for service, info in SERVICES.items():
        requests = evidence.metrics[service].total(f"{info.prefix}_request_duration_seconds_count")
        status, text = evidence.audit_verify[service]
        word = {0: "verifies", 1: "TAMPERED"}.get(status, "cannot say")
        yield f"{service:<24}{requests:>9g}{len(evidence.audit[service]):>15}  {word}: {text.splitlines()[0] if text else ''}"


def log_lines(evidence: Evidence) -> Iterator[str]:
    """Yield log lines of the journey's trace, in order of time, as they were written."""
    lines = [
        (str(line.get("timestamp", "")), json.dumps(line, separators=(",", ":"), ensure_ascii=False))
        for service in SERVICES
        for line in evidence.log_objects(service)
        if line.get("trace_id") == evidence.trace_id
    ]
    lines.sort()
    for _, line in lines[:LOG_LINES_SHOWN]:
        yield line
    if len(lines) > LOG_LINES_SHOWN:
        yield f"… and {len(lines) - LOG_LINES_SHOWN} more"


def verdict(results: list[Result]) -> Iterator[str]:
    """Yield one line per assertion, and below it what is wrong."""
    for result in results:
        yield f"{'ok  ' if result.ok else 'FAIL'}  {result.assertion.name:<28} {result.assertion.claim}"
        for problem in result.problems[:5]:
            yield f"        {problem}"
        if len(result.problems) > 5:
            yield f"        … and {len(result.problems) - 5} more"


def as_json(evidence: Evidence, results: list[Result]) -> dict[str, Any]:
    """Return the whole report as plain data for `--json`."""
    return {
        "trace_id": evidence.trace_id,
        "services": {
            service: {
                "requests": evidence.metrics[service].total(f"{info.prefix}_request_duration_seconds_count"),
                "audit_entries": len(evidence.audit[service]),
                "audit_verify_status": evidence.audit_verify[service][0],
                "spans": len(evidence.in_trace(service)),
            }
            for service, info in SERVICES.items()
        },
        "steps": [
            {"name": step.name, "service": step.service, "status": step.status, "expected": step.expected}
            for step in evidence.steps
        ],
        "assertions": [
            {
                "name": result.assertion.name,
                "claim": result.assertion.claim,
                "ok": result.ok,
                "problems": list(result.problems),
            }
            for result in results
        ],
        "ok": all(result.ok for result in results),
    }
