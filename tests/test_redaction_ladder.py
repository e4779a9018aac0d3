"""The steps of redaction: `watch` counts, `mask` masks what keys, types and patterns tell, `strict` also the rest."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, set_span_in_context

from healthobs import Phi, Settings, observe
from healthobs.config import RedactionMode
from healthobs.problems import problem
from healthobs.redaction import Redactor
from healthobs.redaction.literals import Literals
from healthobs.testing import Capture
from healthobs.tracing import write_baggage

NAME = "Ottoline Quassler"
SSN = "078-05-1120"
PHI_SERVICE = Settings(service_name="records", frameworks=("hipaa",))


def counted(capture: Capture) -> dict[tuple[str, str], float]:
    """Return the redactions counted so far, by signal and kind."""
    return {
        (sample.labels["signal"], sample.labels["kind"]): sample.value
        for family in capture.obs.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "healthobs_redactions_total"
    }


class TestDefault:
    """Which step is in force."""

    @pytest.mark.parametrize(
        ("settings", "mode"),
        [
            (Settings(), "mask"),
            (Settings(frameworks=("sox",)), "mask"),
            (PHI_SERVICE, "strict"),
            (Settings(frameworks=("sox", "hipaa"), redaction="watch"), "watch"),
            (Settings.from_env({"HEALTHOBS_FRAMEWORKS": "hipaa"}), "strict"),
            (Settings.from_env({"HEALTHOBS_FRAMEWORKS": "hipaa", "HEALTHOBS_REDACTION": "mask"}), "mask"),
        ],
    )
    def test_strict_where_the_service_declares_phi(self, settings: Settings, mode: str) -> None:
        """The framework `hipaa` declares it; what is set explicitly wins."""
        assert settings.redaction_mode == mode

    def test_strict_reaches_the_redactor(self) -> None:
        """The step in force is the redactor's."""
        with Capture(PHI_SERVICE) as capture:
            assert (capture.obs.redactor.mode, capture.obs.redactor.strict) == ("strict", True)


class TestWatch:
    """`watch`: a first step that changes nothing and shows what would change."""

    def test_nothing_changes_and_all_is_counted(self) -> None:
        """Logs, spans and labels are as they were; the counter has what `mask` counts."""

        def record(mode: RedactionMode) -> tuple[Capture, dict[tuple[str, str], float]]:
            with Capture(Settings(redaction=mode)) as capture:
                capture.obs.logs.emit("info", f"about {SSN}", {"patient_name": NAME, "steps": [SSN]})
                span = capture.obs.tracing.tracer.start_span(f"op {SSN}", attributes={"patient.name": NAME})
                span.add_event(f"event {SSN}", {"ssn": SSN})
                span.end()
                capture.obs.metrics.counter("a_total", "A", ("step",)).labels(SSN).inc()
            return capture, counted(capture)

        watched, seen = record("watch")
        _, masked = record("mask")
        line, (span,) = watched.log_lines[0], watched.spans
        assert (line["event"], line["patient_name"], line["steps"]) == (f"about {SSN}", NAME, [SSN])
        assert (span.name, dict(span.attributes or {})) == (f"op {SSN}", {"patient.name": NAME})
        assert (span.events[0].name, dict(span.events[0].attributes or {})) == (f"event {SSN}", {"ssn": SSN})
        assert watched.metric("a_total", step=SSN) == 1
        assert seen == masked

    def test_typed_values_mask_themselves(self) -> None:
        """`Phi` needs no redactor."""
        with Capture(Settings(redaction="watch")) as capture:
            capture.obs.logs.emit("info", f"{Phi(NAME, 'name')} seen", {"who": Phi(NAME, "name")})
        assert capture.leaks(NAME) == ()

    def test_the_audit_trail_is_masked_all_the_same(self) -> None:
        """An entry cannot be taken back, so watching does not reach it."""
        with Capture(Settings(redaction="watch"), audit=True) as capture:
            assert capture.obs.audit is not None
            capture.obs.audit.append({"action": "a.b", "reason": SSN, "details": {"patient_name": NAME}})
        assert capture.leaks(NAME, SSN) == ()


class TestStrictNames:
    """In `strict` a name of an event, a span or a series passes only when it is written in the code."""

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_an_event_made_of_data(self, mode: RedactionMode) -> None:
        """No pattern finds a name in a formatted message: `mask` lets it through, `strict` does not."""
        with Capture(Settings(redaction=mode, capture_stdlib=True)) as capture:
            capture.obs.logs.emit("info", f"{NAME} admitted")
            capture.obs.logs.get_logger().info(f"{NAME} admitted")
            logging.getLogger("app").warning(f"{NAME} admitted")  # noqa: G004
        events = [line["event"] for line in capture.log_lines]
        assert events == [f"{NAME} admitted" if mode == "mask" else "[PHI:strict]"] * 3

    def test_an_event_that_is_written(self) -> None:
        """Constants pass, however deep the logger is called; values in a template do not."""

        def helper(log: Callable[[str], Any], text: str) -> None:
            log(text)

        with Capture(Settings(redaction="strict", capture_stdlib=True)) as capture:
            capture.obs.logs.emit("info", "patient admitted")
            capture.obs.logs.get_logger().info("patient admitted")
            helper(capture.obs.logs.get_logger().info, "patient admitted late")
            logging.getLogger("app").warning("patient admitted")
            logging.getLogger("app").warning("%s admitted, %d beds left", NAME, 3)
        assert [line["event"] for line in capture.log_lines] == [
            "patient admitted",
            "patient admitted",
            "patient admitted late",
            "patient admitted",
            "[PHI:strict] admitted, 3 beds left",
        ]

    def test_names_of_spans(self) -> None:
        """Written ones, those of decorated functions and those made of allow-listed attributes pass."""

        @observe("admit patient", log="warning")
        def admit() -> None: ...

        with Capture(PHI_SERVICE) as capture:
            tracer = capture.obs.tracing.tracer
            admit()
            tracer.start_span("look up").end()
            tracer.start_span(f"look up {NAME}").end()
            method, route = "MKCOL", "/patients/" + "{id}"
            attributes = {"http.request.method": method, "http.route": route, "ward": NAME}
            for name in (f"{method} {route}", f"{method} {NAME}"):
                tracer.start_span(name, attributes=attributes).end()
        assert [span.name for span in capture.spans] == [
            "admit patient",
            "look up",
            "[PHI:strict]",
            "MKCOL /patients/{id}",
            "[PHI:strict]",
        ]
        assert capture.log_lines[0]["event"] == "admit patient"
        assert capture.leaks(NAME, "Quassler") == ()

    def test_names_of_span_events_and_trace_state(self) -> None:
        """Neither a name made of data nor a vendor's state from outside passes."""
        with Capture(PHI_SERVICE) as capture:
            state = TraceState([("vendor", "ottoline")])
            parent = NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(1), state))
            span = capture.obs.tracing.tracer.start_span("op", set_span_in_context(parent))
            span.add_event(f"saw {NAME}")
            span.end()
        (done,) = capture.spans
        assert [event.name for event in done.events] == ["[PHI:strict]"]
        assert capture.leaks(NAME, "ottoline") == ()

    def test_label_values(self) -> None:
        """A value passes when it was declared, is written in the code, or its label is one of a closed set."""
        with Capture(PHI_SERVICE) as capture:
            metric = capture.obs.metrics.counter("visits_total", "Visits", ("ward", "outcome"))
            declared, ok = "north-" + str(1), "o" + "k" * 1
            metric.seed((declared, ok))
            for ward in (declared, "south", NAME):
                metric.labels(ward, ok).inc()
            by_name = capture.obs.metrics.counter("names_total", "Names", ("patient_name",))
            by_name.labels("Smith").inc()
        values = {
            sample.labels["ward"]: sample.value
            for family in capture.obs.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "visits_total"
        }
        assert values == {"north-1": 1, "south": 1, "[PHI:strict]": 1}
        assert capture.metric("names_total", patient_name="[PHI:key]") == 1

    def test_allowed_names(self) -> None:
        """`allowed_keys` also names spans and events that pass."""
        made = "night shift".title()
        with Capture(Settings(redaction="strict", allowed_keys=(made,))) as capture:
            capture.obs.logs.emit("info", made)
        assert capture.log_lines[0]["event"] == made

    def test_the_audit_trail_keeps_its_details(self) -> None:
        """Dropping them would drop evidence; patterns and denied keys are masked there too."""
        with Capture(PHI_SERVICE, audit=True) as capture:
            assert capture.obs.audit is not None
            details = {"view": "treat" + "ment", "patient_name": NAME, "note_count": 1, "step": SSN}
            capture.obs.audit.append({"action": "a.b", "details": details})
        (entry,) = capture.audit_entries
        assert entry["details"] == {
            "view": "treatment", "patient_name": "[PHI:key]", "note_count": 1, "step": "[PHI:ssn]",
        }  # fmt: skip

    def test_uuids_are_surrogates(self) -> None:
        """An identifier that says nothing may stay, so that lines can be found again."""
        key = "4bf92f35-77b3-4da6-a3ce-929d0e0e4736"
        assert Redactor("strict").value("payment", key) == key
        assert Redactor("strict").value("payment", f"{key}!") == "[PHI:strict]"


class TestStrictKeys:
    """In `strict` a key passes only when it is allow-listed or written in the code: it can be made of data, too."""

    def test_fields_of_lines(self) -> None:
        """Names of arguments and of mappings pass, bound ones too; a name made of data takes its value along."""
        settings = Settings(redaction="strict", capture_stdlib=True, allowed_keys=("check",))
        with Capture(settings) as capture:
            log = capture.obs.logs.get_logger()

            def bound() -> Any:
                return log.bind(beds=3)

            log.info("x", ward_count=1, **{NAME: 1})
            bound().info("x", free=True)
            capture.obs.logs.emit("info", "x", {NAME: 1, "floor": 2, "check": {NAME: 5}})
            logging.getLogger("app").warning("beds %r", {NAME: 3})
            logging.getLogger("app").warning("beds %(all)d", {"all": 3})
        assert capture.leaks(NAME, "Quassler") == ()
        first, second, third, fourth, fifth = capture.log_lines
        assert (first["ward_count"], first["[PHI:strict]"]) == (1, "[PHI:key]")
        assert (second["beds"], second["free"]) == (3, True)
        assert (third["floor"], third["[PHI:strict]"]) == (2, "[PHI:key]")
        assert third["check"] == {"[PHI:strict]": "[PHI:key]"}
        assert [line["event"] for line in (fourth, fifth)] == ["beds {'[PHI:strict]': '[PHI:key]'}", "beds 3"]

    def test_lines_of_another_thread(self) -> None:
        """Structlog's asynchronous methods write from a thread pool; event and keys of the code pass."""

        async def settle(log: Any) -> None:
            await log.ainfo("claim_settled", batch=3, **{NAME: 1})

        with Capture(Settings(redaction="strict")) as capture:
            asyncio.run(settle(capture.obs.logs.get_logger()))
        (line,) = capture.log_lines
        assert (line["event"], line["batch"], line["[PHI:strict]"]) == ("claim_settled", 3, "[PHI:key]")

    def test_a_span_renamed(self) -> None:
        """A name of the code that a span gets later passes; what the SDK would log is not ours to raise."""

        def work(span: Any) -> None:
            span.update_name("settle_claim")
            span.set_attribute(["no key"], 1)

        with Capture(Settings(redaction="strict")) as capture:
            span = capture.obs.tracing.tracer.start_span("first")
            work(span)
            span.end()
        assert [span.name for span in capture.spans] == ["settle_claim"]

    def test_attributes_of_spans(self) -> None:
        """At the start, later, in helpers that have returned, and in events: the code's pass, data's do not."""

        def helper(span: Any) -> None:
            span.set_attribute("helper.beds", 2)
            span.set_attributes({"helper.free": True, NAME: 4})
            span.add_event("seen", {"event.beds": 1, NAME: 5})
            span.add_link(SpanContext(1, 1, is_remote=True), {"link.beds": 1, NAME: 6})

        @observe("admit", attributes={"constant": 7}, fields=("beds",))
        def admit(beds: int) -> None:
            return None

        with Capture(PHI_SERVICE) as capture:
            span = capture.obs.tracing.tracer.start_span("op", attributes={"beds": 1, f"bed {NAME}": 2})
            helper(span)
            span.end()
            admit(9)
        assert capture.leaks(NAME, "Quassler") == ()
        attributes = dict(capture.span("op").attributes or {})
        assert (attributes["beds"], attributes["helper.beds"], attributes["helper.free"]) == (1, 2, True)
        (event,) = capture.span("op").events
        assert (event.name, dict(event.attributes or {})) == (
            "seen", {"event.beds": 1, "[PHI:strict]": "[PHI:key]"},
        )  # fmt: skip
        (link,) = capture.span("op").links
        assert dict(link.attributes or {}) == {"link.beds": 1, "[PHI:strict]": "[PHI:key]"}
        told = dict(capture.span("admit").attributes or {})
        assert (told["constant"], told["beds"]) == (7, 9)

    def test_names_that_a_template_writes(self) -> None:
        """They are the code's, also when a function that has returned made the mapping; others of it are not."""

        def counts() -> dict[str, int]:
            return {"".join(("bed", "s")): 3, NAME: 4}

        with Capture(Settings(redaction="strict", capture_stdlib=True)) as capture:
            logging.getLogger("app").warning("beds: %(beds)d", counts())
            logging.getLogger("app").warning("all: %s", counts())
        assert [line["event"] for line in capture.log_lines] == [
            "beds: 3",
            "all: {'beds': 3, '[PHI:strict]': '[PHI:key]'}",
        ]

    def test_mask_leaves_them_alone(self) -> None:
        """At the other steps a key is scanned for patterns only."""
        with Capture(Settings(redaction="mask")) as capture:
            capture.obs.logs.emit("info", "x", {"a" + "b": 1, SSN: 2})
        assert (capture.log_lines[0]["ab"], capture.log_lines[0]["[PHI:ssn]"]) == (1, "[PHI:key]")


class TestBareWords:
    """Keys such as `status` are anybody's: what is under them is scanned, and in `strict` must be written in the code."""

    PATH = f"/patients/{SSN}"

    @pytest.mark.parametrize(("mode", "path"), [("mask", "/patients/[PHI:ssn]"), ("strict", "[PHI:strict]")])
    def test_in_every_signal(self, mode: RedactionMode, path: str) -> None:
        """A raw path in a field, an argument, an attribute and a label; a name in `strict`, where patterns find none."""
        name = NAME if mode == "mask" else "[PHI:strict]"
        with Capture(Settings(redaction=mode, capture_stdlib=True)) as capture:
            capture.obs.logs.get_logger().info("called", endpoint=self.PATH, status=NAME)
            logging.getLogger("app").warning("called %(endpoint)s", {"endpoint": self.PATH})
            capture.obs.tracing.tracer.start_span("op", attributes={"route": self.PATH, "status": NAME}).end()
            calls = capture.obs.metrics.counter("calls_total", "Calls", ("endpoint", "status"))
            calls.labels(self.PATH, NAME).inc()
        first, second = capture.log_lines
        assert (first["endpoint"], first["status"]) == (path, name)
        assert second["event"] == f"called {path}"
        attributes = dict(capture.span("op").attributes or {})
        assert (attributes["route"], attributes["status"]) == (path, name)
        assert capture.metric("calls_total", endpoint=path, status=name) == 1

    def test_in_the_audit_trail(self) -> None:
        """Details are scanned under these words, and under the prefixes that passed once."""
        with Capture(PHI_SERVICE, audit=True) as capture:
            assert capture.obs.audit is not None
            details = {"endpoint": self.PATH, "control.step": SSN, "status": "ok", "audit_index": 7}
            capture.obs.audit.append({"action": "a.b", "details": details})
        assert capture.audit_entries[0]["details"] == {
            "endpoint": "/patients/[PHI:ssn]", "control.step": "[PHI:ssn]", "status": "ok", "audit_index": 7,
        }  # fmt: skip

    def test_what_is_written_passes(self) -> None:
        """In a call, in a helper that has returned, bound, and as a label; numbers pass anyhow."""

        def helper(span: Any, log: Any) -> Any:
            span.set_attribute("outcome", "declined")
            span.set_attributes({"state": "open", "status_code": 200})
            return log.bind(component="ledger")

        with Capture(PHI_SERVICE) as capture:
            span = capture.obs.tracing.tracer.start_span("op", attributes={"status": "begun"})
            helper(span, capture.obs.logs.get_logger("billing")).info(
                "done", status="settled", duration_ms=1.5
            )
            span.end()
            capture.obs.metrics.counter("calls_total", "Calls", ("status",)).labels("settled").inc()
        line = capture.log_lines[0]
        assert [line[key] for key in ("logger", "component", "status", "duration_ms")] == [
            "billing", "ledger", "settled", 1.5,
        ]  # fmt: skip
        assert dict(capture.span("op").attributes or {}) == {
            "status": "begun", "outcome": "declined", "state": "open", "status_code": 200,
        }  # fmt: skip
        assert capture.metric("calls_total", status="settled") == 1

    def test_our_own_pass(self) -> None:
        """Types of exceptions and outcomes: healthobs declares them where it writes them."""

        class Declined(Exception):
            """Its name is no constant of a function that is running."""

        raised = Declined()

        @observe("settle", log="info")
        def settle() -> None:
            raise raised

        with Capture(PHI_SERVICE) as capture, pytest.raises(Declined):
            settle()
        line, attributes = capture.log_lines[-1], dict(capture.span("settle").attributes or {})
        assert line["exception_type"] == attributes["error.type"]
        assert "[PHI:" not in json.dumps(line) + str(attributes)

    def test_a_logger_s_name_and_facts_of_captured_records(self) -> None:
        """They pass as they are, whatever digits an id happens to have."""
        name = ".".join((__name__, "TestBareWords"))
        with Capture(Settings(redaction="strict", capture_stdlib=True)) as capture:
            try:
                raise LookupError(SSN)
            except LookupError:
                logging.getLogger(name).exception("lost")
        (line,) = capture.log_lines
        assert (line["logger"], line["exception_type"]) == (name, "LookupError")
        assert "[PHI:" not in json.dumps(line)


class TestLiterals:
    """`Literals`: what is written in the code."""

    def test_a_constant_of_a_running_function(self) -> None:
        """It is one only while a function that holds it is running, and is remembered then."""

        def inner(text: str) -> bool:
            return Literals().has(text)

        assert inner("a constant of this test") is True
        assert inner("".join(["a constant ", "of no function here"])) is False
        known = Literals()
        assert known.has("remembered") is True
        assert "remembered" in known._known

    def test_numbers_and_bytes_are_no_text(self) -> None:
        """A constant of another type does not vouch for a text."""
        _ = b"bytes", 17
        assert Literals().has(b"bytes".decode()) is False
        assert Literals().has(str(17)) is False

    def test_only_the_nearest_functions_count(self) -> None:
        """The search is bounded."""

        def dive(depth: int, text: str) -> bool:
            return Literals().has(text) if not depth else dive(depth - 1, text)

        assert dive(14, "near enough") is True
        assert dive(16, "too far away") is False

    def test_several_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The functions that are running are looked at once for all of them, in tuples of names too."""
        looked: list[None] = []

        def frame() -> FrameType | None:
            looked.append(None)
            return inspect.currentframe()

        monkeypatch.setattr("healthobs.redaction.literals.currentframe", frame)
        known = Literals()
        names = ("written here", "and there")
        known.note([*names, *(f"unknown {number}" for number in range(50))])
        assert known._known == set(names)
        assert len(looked) == 1

    def test_the_memory_is_bounded(self) -> None:
        """What does not fit is looked up each time."""
        known = Literals(str(number) for number in range(4096))
        known.add("one more")
        assert len(known._known) == 4096
        assert known.has("yet one more") is True


class TestProblems:
    """Problem bodies go to the caller, so they are masked at every step."""

    def test_what_the_caller_made_up_is_masked(self) -> None:
        """Title, detail, codes and the pointer to a member that the caller named."""
        with Capture(Settings(redaction="watch")) as capture:
            made = problem(
                422,
                f"invalid {SSN}",
                f"not {SSN}",
                detail=f"saw {SSN}",
                errors=[(f"/{SSN}", f"unknown {SSN}")],
            )
        assert json.loads(made.body) == {
            "type": "about:blank", "title": "not [PHI:ssn]", "status": 422, "code": "invalid [PHI:ssn]",
            "detail": "saw [PHI:ssn]", "errors": [{"pointer": "/[PHI:ssn]", "code": "unknown [PHI:ssn]"}],
        }  # fmt: skip
        assert counted(capture) == {("problem", "ssn"): 5}


class TestBaggage:
    """Baggage on its way to a peer."""

    def test_only_allowed_and_clean_entries_go(self) -> None:
        """Neither what nobody named, nor an identifier under an allowed name."""
        context = Context()
        for name, value in (("tenant", "north"), ("patient", "x"), ("ward", SSN)):
            context = baggage.set_baggage(name, value, context)
        assert write_baggage(("tenant", "ward"), context) == "tenant=north"
