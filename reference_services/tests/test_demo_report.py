"""What the demo prints: the trace as a tree, counts beside audit entries, log lines, verdicts."""

from __future__ import annotations

import json

import pytest

from reference_services.demo import cli, report
from reference_services.demo.assertions import Assertion, Result
from reference_services.demo.collector import SpanRecord
from reference_services.demo.evidence import Evidence, Needles, Samples, Step
from reference_services.demo.faults import FAULTS
from reference_services.services import SERVICES

TRACE = "c" * 32


def span_of(name: str, span_id: str, parent_id: str, start_ms: int, end_ms: int) -> SpanRecord:
    """Return a span of auth-service."""
    times = (start_ms * 10**6, end_ms * 10**6)
    return SpanRecord("auth-service", name, TRACE, span_id, parent_id, 2, *times, 0, {}, "")


def evidence_of() -> Evidence:
    """Return what one request to auth-service leaves behind."""
    evidence = Evidence(trace_id=TRACE, spans=[span_of("GET /r", "1", "", 0, 5)])
    evidence.steps = [Step("ask", "auth-service", "GET", "/r", 200, 200, {}, b"{}")]
    for service, info in SERVICES.items():
        text = f'{info.prefix}_request_duration_seconds_count{{endpoint="/r"}} 3\n'
        evidence.metrics[service] = Samples.parse(text)
        evidence.audit[service] = [{}, {}]
        evidence.audit_verify[service] = (0, "ok: 2 entries\nand more")
    return evidence


class TestTraceTree:
    """`trace_tree`."""

    def test_children_are_below_their_parent_in_order_of_start(self) -> None:
        """Branches show who called whom; arrival order does not matter."""
        spans = [
            span_of("late child", "4", "1", 6, 9),
            span_of("grandchild", "3", "2", 2, 3),
            span_of("root", "1", "", 0, 10),
            span_of("early child", "2", "1", 1, 4),
        ]
        lines = [line.split("auth-service")[0].rstrip() for line in report.trace_tree(spans)]
        assert lines == ["root", "├─ early child", "│  └─ grandchild", "└─ late child"]

    def test_shows_service_and_milliseconds(self) -> None:
        """Each line tells where the span was made and how long it took."""
        (line,) = report.trace_tree([span_of("root", "1", "", 0, 10)])
        assert line.split() == ["root", "auth-service", "10.00", "ms"]

    def test_orphan_is_drawn_as_a_root(self) -> None:
        """A span whose parent was never exported is not lost."""
        lines = list(report.trace_tree([span_of("orphan", "2", "f", 0, 1), span_of("root", "1", "", 1, 2)]))
        assert [line.split()[0] for line in lines] == ["orphan", "root"]


class TestCounts:
    """`counts`."""

    @pytest.mark.parametrize(("status", "word"), [(0, "verifies"), (1, "TAMPERED"), (2, "cannot say")])
    def test_one_line_a_service(self, status: int, word: str) -> None:
        """Requests, audit entries and the verifier's first line stand side by side."""
        evidence = evidence_of()
        evidence.audit_verify["phi-service"] = (status, "ok: 2 entries\nand more")
        lines = {line.split()[0]: line.split(maxsplit=3)[1:] for line in report.counts(evidence)}
        assert set(lines) == {"service", *SERVICES}
        assert lines["phi-service"] == ["3", "2", f"{word}: ok: 2 entries"]


class TestLogLines:
    """`log_lines`."""

    def test_only_the_trace_in_order_of_time_and_not_too_many(self) -> None:
        """Lines of other traces and those beyond the limit are not shown."""
        evidence = evidence_of()
        times = [f"2026-11-23T06:00:{second:02}Z" for second in range(report.LOG_LINES_SHOWN + 2)]
        lines = [json.dumps({"timestamp": time, "trace_id": TRACE}) for time in reversed(times)]
        evidence.logs["auth-service"] = [*lines, json.dumps({"timestamp": "0", "trace_id": "d" * 32}), "x"]
        *shown, rest = report.log_lines(evidence)
        assert [json.loads(line)["timestamp"] for line in shown] == times[: report.LOG_LINES_SHOWN]
        assert rest == "… and 2 more"


class TestVerdict:
    """`verdict` and `as_json`."""

    def test_five_problems_are_shown(self) -> None:
        """What is wrong stands below the assertion; beyond five, how many more."""
        claim = Assertion("name", "claim", lambda _: iter(()))
        assert [line.split() for line in report.verdict([Result(claim, ())])] == [["ok", "name", "claim"]]
        lines = list(report.verdict([Result(claim, tuple("abcdefg"))]))
        assert lines[0].startswith("FAIL")
        assert [line.strip() for line in lines[1:]] == [*"abcde", "… and 2 more"]

    def test_json_says_the_same(self) -> None:
        """The machine-readable report holds steps, counts and every assertion."""
        claim = Assertion("name", "claim", lambda _: iter(()))
        made = report.as_json(evidence_of(), [Result(claim, ("wrong",))])
        assert made["ok"] is False
        assert made["assertions"] == [{"name": "name", "claim": "claim", "ok": False, "problems": ["wrong"]}]
        assert made["services"]["auth-service"] == {
            "requests": 3,
            "audit_entries": 2,
            "audit_verify_status": 0,
            "spans": 1,
        }
        assert made["steps"] == [{"name": "ask", "service": "auth-service", "status": 200, "expected": 200}]
        json.dumps(made)


class TestEvidence:
    """`Needles`, `Samples` and `Evidence`."""

    def test_needles_name_kinds(self) -> None:
        """An empty needle is in no haystack."""
        assert Needles({"name": "Quixote", "none": ""}).hits("Don Quixote") == ["name"]

    def test_samples_sum_over_labels(self) -> None:
        """Labels that are not asked for are summed over."""
        samples = Samples.parse('a_total{x="1",y="1"} 2\na_total{x="1",y="2"} 3\na_total{x="2",y="1"} 5\n')
        assert samples.total("a_total", x="1") == 5
        assert (samples.series("a_"), samples.series("b")) == (3, 0)

    def test_series_of_a_histogram(self) -> None:
        """Its buckets and its sum are no series of their own: one more label is one more."""
        text = "".join(
            f'h_bucket{{x="{x}",le="1"}} 1\nh_bucket{{x="{x}",le="+Inf"}} 1\nh_sum{{x="{x}"}} 1\nh_count{{x="{x}"}} 1\n'
            for x in "ab"
        )
        assert Samples.parse(f"# TYPE h histogram\n{text}").series() == 2

    def test_what_is_no_json_object_is_left_out(self) -> None:
        """Bodies and log lines that are no JSON are None or skipped."""
        evidence = Evidence(logs={"s": ["{}", "[]", "x"]})
        assert evidence.log_objects("s") == [{}]
        assert Step("n", "s", "GET", "/", 200, 200, {}, b"x").json() is None
        assert evidence.step("n") is None


class TestList:
    """`healthobs demo --break list`."""

    def test_names_every_fault(self, capsys: pytest.CaptureFixture[str]) -> None:
        """One line a fault, with what it turns red."""
        assert cli.main(["--break", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(FAULTS)
