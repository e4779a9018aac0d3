"""What each decorator records, what it refuses, and that nothing is recorded that was not asked for."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    get_current_span,
    set_span_in_context,
)

from healthobs import (
    InstrumentationError,
    LabelError,
    MetricNameError,
    Observability,
    Phi,
    Settings,
    _runtime,
    audited,
    classified,
    counted,
    in_flight,
    install,
    logged,
    observe,
    timed,
    traced,
    use,
)
from healthobs._callables import recall
from healthobs.decorators.binding import OK, _drops_with_parent
from healthobs.http import Exchange, HttpServer
from healthobs.testing import Capture


def admit(number: int = 1, name: str = "Jane Roe") -> int:
    """Return the number."""
    return number


class TestObserve:
    """`@observe`."""

    def test_default_name(self, capture: Capture) -> None:
        """Without a name, an operation is called after module and function."""
        observe(admit)()
        assert [span.name for span in capture.spans] == [f"{__name__}.admit"]

    def test_span_attributes_and_kind(self, capture: Capture) -> None:
        """Constant attributes and the kind go onto the span."""
        traced("op", kind="client", attributes={"team": "ward", "beds": 3})(admit)()
        span = capture.span("op")
        assert (span.kind, dict(span.attributes or {})) == (SpanKind.CLIENT, {"team": "ward", "beds": 3})

    def test_parts_can_be_left_out(self, capture: Capture) -> None:
        """What was not asked for is not recorded."""
        observe("op", span=False, duration=False, count=False, log="info")(admit)()
        assert capture.spans == ()
        assert [line["event"] for line in capture.log_lines] == ["op"]
        assert "operation" not in capture.telemetry()["metrics"]

    def test_own_counter(self, capture: Capture) -> None:
        """`count` may name a counter of one's own, with labels."""
        observe("op", count="beds_total", labels={"kind": lambda result: f"k{result}"})(admit)(3)
        assert capture.metric("beds_total", kind="k3") == 1

    def test_error_if(self, capture: Capture) -> None:
        """A result that counts as a failure makes the outcome an error on every signal."""
        assert observe("op", log="info", error_if=lambda result: result < 0)(admit)(-1) == -1
        assert capture.metric("healthobs_operations_total", operation="op", outcome="error") == 1
        span = capture.span("op")
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
        assert dict(span.attributes or {}) == {"error.type": "_OTHER"}
        assert (capture.log_lines[0]["level"], capture.log_lines[0]["outcome"]) == ("error", "error")

    @pytest.mark.parametrize(
        ("misuse", "says"),
        [
            (lambda: observe("x", kind="banana"), "kind must be one of internal"),  # type: ignore[call-overload]
            (lambda: observe("x", log="loud"), "log must be one of debug"),  # type: ignore[call-overload]
            (lambda: logged(level="loud"), "level must be one of debug"),  # type: ignore[call-overload]
            (lambda: observe(""), "must not be empty"),
            (lambda: observe("x", fields="name"), "sequence of names"),
            (lambda: observe("x", fields=("ward",))(admit), "fields names ward"),
            (lambda: observe("x", fields=("x",))(type.__call__), "fields"),
            (lambda: counted(amount=len), "need a counter of its own"),
            (lambda: observe("x", count=False, labels={"a": str}), "need a counter of its own"),
            (lambda: audited(""), "needs an action"),
            (lambda: audited(admit), "needs an action"),  # type: ignore[arg-type]
            (lambda: observe("x", audit="read the chart"), "needs an action"),
            (lambda: counted("a_total", labels=str), "labels takes a mapping of names to functions"),  # type: ignore[arg-type]
            (lambda: counted("a_total", labels={"kind": "x"}), "labels takes a mapping"),  # type: ignore[dict-item]
            (lambda: counted(labels=str), "labels takes a mapping"),  # type: ignore[call-overload]
            (lambda: observe("x", count="a_total", labels=str), "labels takes a mapping"),  # type: ignore[call-overload]
            (lambda: audited("audit.key"), "only the trail itself records"),
            (lambda: observe("x", audit="audit.damage"), "only the trail itself records"),
            (lambda: audited("a", policy="maybe"), "policy must be one of deny"),  # type: ignore[arg-type]
            (lambda: classified(conf="X"), "conf must be one of U"),
            (lambda: classified(purpose="TREAT"), "purpose takes a sequence"),
            (lambda: classified(frameworks="hipaa"), "frameworks takes a sequence"),
            (
                lambda: classified(purpose=["Treat für Ä"]),
                "purpose takes codes such as 'TREAT', not free text$",
            ),
            (lambda: classified(purpose=["treat"]), "purpose takes codes such as 'TREAT', not free text$"),
            (lambda: classified(purpose=[3]), "purpose takes codes"),  # type: ignore[list-item]
            (
                lambda: classified(frameworks=["HIPAA", "hippa"]),
                "frameworks must be among hipaa, sox[^H]*soc2$",
            ),
            (lambda: classified(frameworks=["hipaa\n"]), "frameworks must be among"),
        ],
    )
    def test_misuse_raises_at_import(self, misuse: Any, says: str) -> None:
        """What cannot work is refused where it is written, with the remedy."""
        with pytest.raises(InstrumentationError, match=says):
            misuse()

    def test_frameworks_are_in_lower_case(self) -> None:
        """As in the settings."""
        known = recall(classified(frameworks=["HIPAA"])(admit))
        assert known is not None
        assert known[1].classified.frameworks == ("hipaa",)

    def test_wrong_metric_name(self) -> None:
        """A counter's name must end in _total."""
        with pytest.raises(MetricNameError, match="ends in _total"):
            counted("beds")

    def test_wrong_label_name(self) -> None:
        """A label's name must be one for Prometheus."""
        with pytest.raises(LabelError, match="label"):
            counted("beds_total", labels={"__kind": str})
        with pytest.raises(LabelError, match="label"):
            counted("beds_total", labels={3: str})  # type: ignore[dict-item]


class TestMinimumNecessary:
    """Arguments, results and messages (45 CFR 164.502(b))."""

    def test_nothing_of_the_arguments_is_recorded(self, capture: Capture) -> None:
        """Arguments and results go nowhere unless they are named."""
        observe("op", in_flight=True, log="info")(lambda name, mrn: f"{name} {mrn}")(
            "Jane Roe", mrn="AX-77123"
        )
        assert capture.leaks("Jane Roe", "AX-77123", "mrn", "name=") == ()

    def test_named_arguments_are_redacted(self, capture: Capture) -> None:
        """What `fields` names goes onto span and log line, through redaction, defaults included."""

        @observe("op", log="info", fields=("ward", "patient_name", "token", "beds"))
        def move(ward: str, patient_name: str, token: Phi[str], other: int, beds: int = 2) -> None: ...

        move("B2", "Jane Roe", Phi("Jane Roe"), 99)
        attributes = dict(capture.span("op").attributes or {})
        line = capture.log_lines[0]
        for recorded in (attributes, line):
            assert (recorded["ward"], recorded["beds"], recorded["patient_name"]) == ("B2", 2, "[PHI:key]")
            assert "other" not in recorded
        assert capture.leaks("Jane Roe") == ()

    def test_objects_are_masked_before_the_sdk_makes_them_text(self, capture: Capture) -> None:
        """An argument that is no primitive is recorded as a mark; its repr is never asked for."""

        class Patient:
            def __repr__(self) -> str:
                return "Jane Roe"

        observe("op", log="info", fields=("subject",))(lambda subject: None)(Patient())
        assert dict(capture.span("op").attributes or {}) == {"subject": "[PHI:type]"}
        assert capture.leaks("Jane Roe") == ()

    def test_an_exception_is_its_type_and_place(self, capture: Capture) -> None:
        """No signal carries an exception's message, which is data."""

        @observe("op", log="info")
        def fail(name: str) -> None:
            raise ValueError(f"patient {name} SSN 078-05-1120")

        with pytest.raises(ValueError, match="078-05-1120"):
            fail("Jane Roe")
        span = capture.span("op")
        assert (span.status.description, (span.attributes or {})["error.type"]) == (
            "ValueError",
            "ValueError",
        )
        assert capture.log_lines[0]["exception_type"] == "ValueError"
        assert (span.events[0].attributes or {})["healthobs.error_id"] == capture.log_lines[0]["error_id"]
        assert capture.leaks("Jane Roe", "078-05-1120") == ()

    def test_wrong_arguments_for_fields(self, capture: Capture) -> None:
        """A call that does not fit fails by itself; capturing adds nothing to it."""

        @observe("op", fields=("ward",))
        def move(ward: str) -> None: ...

        with pytest.raises(TypeError, match="unexpected keyword"):
            move(bed=1)  # type: ignore[call-arg]


class TestCounted:
    """`@counted` with a counter of one's own."""

    def test_amount_and_labels(self, capture: Capture) -> None:
        """Amount and labels are made of the result."""

        @counted("beds_total", documentation="Beds", amount=len, labels={"size": lambda beds: len(beds)})
        def beds(count: int) -> list[int]:
            return [0] * count

        beds(2)
        beds(2)
        beds(0)
        assert (capture.metric("beds_total", size="2"), capture.metric("beds_total", size="0")) == (4, 0)
        assert "# HELP beds Beds" in capture.telemetry()["metrics"]

    def test_two_functions_share_a_counter(self, capture: Capture) -> None:
        """The order in which labels are written down does not make another counter of the same name."""
        counted("beds_total", labels={"a": str, "b": str})(admit)(1)
        counted("beds_total", labels={"b": str, "a": str})(admit)(1)
        assert capture.metric("beds_total", a="1", b="1") == 2

    def test_starts_at_zero_and_counts_success_only(self, capture: Capture) -> None:
        """A call that fails does not count, and the counter is there at 0."""

        @counted("beds_total")
        def fail() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            fail()
        assert capture.metric("beds_total") == 0

    def test_every_outcome_is_there_from_the_first_call(self, capture: Capture) -> None:
        """A series born above 0 is invisible to `rate()`, so all outcomes are made at once."""
        observe("op")(admit)()
        values = [
            capture.metric("healthobs_operations_total", operation="op", outcome=outcome)
            for outcome in ("ok", "error", "cancelled")
        ]
        assert values == [1, 0, 0]

    def test_prefix(self) -> None:
        """With a prefix, the families carry it."""
        with Capture(Settings(prefix="ward")) as capture:
            observe("op", in_flight=True)(admit)()
        assert capture.metric("ward_operations_total", operation="op", outcome="ok") == 1
        assert capture.metric("ward_operations_in_flight", operation="op") == 0
        assert capture.metric("ward_operation_duration_seconds_count", operation="op", outcome="ok") == 1


class TestInFlight:
    """`@in_flight`."""

    def test_counts_nested_calls(self, capture: Capture) -> None:
        """The gauge is the number of calls that are running, recursion included."""
        seen: list[float | None] = []

        @in_flight("op")
        def nest(depth: int) -> None:
            seen.append(capture.metric("healthobs_operations_in_flight", operation="op"))
            if depth:
                nest(depth - 1)

        nest(2)
        assert seen == [1, 2, 3]
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0


class TestLogged:
    """`@logged`."""

    def test_level(self, capture: Capture) -> None:
        """The line has the level asked for; below the service's level it is not written."""
        logged("warn", level="warning")(admit)()
        logged("quiet", level="debug")(admit)()
        assert [(line["event"], line["level"]) for line in capture.log_lines] == [("warn", "warning")]

    @pytest.mark.parametrize(("level", "written"), [("debug", "error"), ("critical", "critical")])
    def test_a_failure_is_at_least_an_error(self, level: Any, written: str, capture: Capture) -> None:
        """The line of a failed call is not lost below the service's level."""

        @logged("op", level=level)
        def fail() -> None:
            raise ValueError

        with pytest.raises(ValueError):
            fail()
        assert capture.log_lines[0]["level"] == written

    def test_without_a_span_it_carries_the_parents_ids(self, capture: Capture) -> None:
        """A line without a span of its own belongs to the span around it."""
        traced("outer")(lambda: logged("inner")(admit)())()
        assert capture.log_lines[0]["span_id"] == f"{capture.span('outer').context.span_id:016x}"

    def test_an_operation_named_after_data(self, capture: Capture) -> None:
        """A name that holds an identifier is redacted wherever it goes."""
        observe("call 212-555-0123", log="info")(admit)()
        assert capture.leaks("212-555-0123") == ()

    @pytest.mark.parametrize(
        "decorate",
        [logged("op"), observe("op", log="info", fields=("number",)), observe("op", log="warning")],
    )
    def test_strict_keeps_the_outcome(self, decorate: Any) -> None:
        """It is a word of healthobs, not data: it passes on every line, and is not counted as masked."""
        with Capture(Settings(redaction="strict")) as capture:
            decorate(admit)()
        # Not `"ok"`: a constant of a running function passes in any case.
        assert [line["outcome"] for line in capture.log_lines] == [OK]
        assert "healthobs_redactions_total{" not in capture.telemetry()["metrics"]

    def test_an_argument_that_is_called_like_a_field(self, capture: Capture) -> None:
        """It has its own field beside the line's outcome."""

        @logged("op", fields=("outcome",))
        def close(outcome: str) -> None:
            pass

        close("late")
        (line,) = capture.log_lines
        assert (line["outcome"], line["field_outcome"]) == ("ok", "late")


class TestClassified:
    """`@classified`."""

    def test_states_the_headers(self) -> None:
        """Inside an HTTP exchange, it becomes the answer's headers."""
        with Capture(Settings(headers=True, audience="all")) as capture:
            exchange = Exchange(HttpServer(capture.obs), "GET", "http", ("host", "80"), "1.1", None, None)
            token = _runtime.exchange.set(exchange)
            classified(conf="V", frameworks=["hipaa"], purpose=["TREAT"])(admit)()
            _runtime.exchange.reset(token)
            headers = dict(exchange.respond(200, "/x"))
            exchange.finish(0)
        assert headers["Data-Classification"].startswith("conf=V")
        assert "TREAT" in headers["Data-Classification"]

    def test_outside_an_exchange(self, capture: Capture) -> None:
        """Outside one, nothing happens."""
        assert classified()(admit)(2) == 2


class TestLateBinding:
    """Decorating comes before configuring, and which `Observability` is meant is asked at each call."""

    def test_nothing_installed(self) -> None:
        """Where nothing is in force, a call is the bare call."""
        _runtime.process.active = _runtime.recording.active = False
        assert observe(admit)(5) == 5
        _runtime.process.active = _runtime.recording.active = True
        install(None)
        assert observe(admit)(5) == 5

    def test_two_observabilities(self) -> None:
        """Two in one process do not mix, whichever is in force."""
        op = observe("op")(admit)
        with Capture() as first:
            op()
            with Capture() as second:
                op()
                op()
            op()
        assert (len(first.spans), len(second.spans)) == (2, 2)
        labels = {"operation": "op", "outcome": "ok"}
        assert first.metric("healthobs_operations_total", **labels) == 2
        assert second.metric("healthobs_operations_total", **labels) == 2

    def test_disabled(self) -> None:
        """A disabled one records nothing."""
        with Capture(Settings(disabled=True)) as capture:
            assert observe("op", in_flight=True, log="info")(admit)() == 1
            assert traced(admit)() == 1
        assert (capture.spans, capture.log_lines) == ((), [])
        assert "operation" not in capture.telemetry()["metrics"]

    def test_a_metric_name_that_is_taken(self, capture: Capture) -> None:
        """A part that cannot be bound is left out and counted; the call and its other parts go on."""
        capture.obs.metrics.gauge("beds_total", "Beds")
        assert counted("beds_total")(traced("op")(admit))(4) == 4
        assert capture.span("op").name == "op"
        assert capture.metric("healthobs_internal_errors_total", component="decorators") == 1
        assert [line["part"] for line in capture.log_lines] == ["counted"]


def raises(*_args: object) -> Any:
    """Be a fault."""
    raise RuntimeError("078-05-1120")


class TestFaultsOfTelemetry:
    """Whatever breaks inside, the caller gets its answer, the gauge goes back, and the fault is counted."""

    @pytest.mark.parametrize(
        ("part", "options"),
        [
            ("finish", {"error_if": raises}),
            ("counted", {"count": "beds_total", "labels": {"kind": raises}}),
        ],
    )
    def test_callbacks(self, part: str, options: dict[str, Any], capture: Capture) -> None:
        """A callback that raises is logged once, without its message."""
        op = observe("op", in_flight=True, **options)(admit)
        assert [op(3), op(4)] == [3, 4]
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0
        assert capture.metric("healthobs_internal_errors_total", component="decorators") == 2
        assert [(line["part"], line["operation"]) for line in capture.log_lines] == [(part, "op")]
        assert len(capture.spans) == 2
        assert capture.leaks("078-05-1120") == ()

    @pytest.mark.parametrize(
        ("owner", "method", "part"),
        [
            ("tracing.tracer", "start_span", "begin"),
            ("clock", "wall_ns", "begin"),
            ("clock", "monotonic_ns", "begin"),
            ("logs", "access", "logged"),
        ],
    )
    def test_broken_parts(self, owner: str, method: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part of the library that raises costs its signal, and not the call."""
        with Capture(validate=False) as capture:
            target: Any = capture.obs
            for name in owner.split("."):
                target = getattr(target, name)
            if owner == "clock":
                object.__setattr__(target, method, raises)
            else:
                monkeypatch.setattr(target, method, raises)
            assert observe("op", in_flight=True, log="info")(admit)(3) == 3
            assert capture.metric("healthobs_operations_in_flight", operation="op") == 0
            assert (capture.metric("healthobs_internal_errors_total", component="decorators") or 0) >= 1
            object.__setattr__(capture.obs.clock, "monotonic_ns", capture.time.monotonic_ns)
            object.__setattr__(capture.obs.clock, "wall_ns", capture.time.wall_ns)

    @pytest.mark.parametrize("broken", ["observe", "end", "fields"])
    def test_broken_later(self, broken: str, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sample, a span's end or a captured value that raises costs nothing else."""
        if broken == "observe":
            histogram = capture.obs.metrics.histogram(
                "healthobs_operation_duration_seconds", "Duration of an operation", ("operation", "outcome")
            )
            monkeypatch.setattr(histogram.labels("op", "ok"), "observe", raises)
        elif broken == "end":
            from opentelemetry.sdk.trace import Span

            monkeypatch.setattr(Span, "end", raises)
        else:
            monkeypatch.setattr("inspect.Signature.bind", raises)
        fields = ("number",) if broken == "fields" else ()
        assert observe("op", in_flight=True, log="info", fields=fields)(admit)(3) == 3
        monkeypatch.undo()
        assert capture.metric("healthobs_operations_in_flight", operation="op") == 0
        assert capture.metric("healthobs_internal_errors_total", component="decorators") == 1
        assert [line["event"] for line in capture.log_lines][-1] == "op"
        if broken == "end":
            capture._watch._open.clear()


def unsampled_parent(*, remote: bool = False, flags: int = 0) -> Any:
    """Make a parent that is not sampled current; return the token that undoes it."""
    parent = NonRecordingSpan(SpanContext(1, 2, remote, TraceFlags(flags)))
    return attach(set_span_in_context(parent))


class TestSampling:
    """The short cut under a parent that is not sampled."""

    @pytest.mark.parametrize("decorate", [traced("op"), observe("op")])
    def test_an_unsampled_local_parent_stays_current(self, decorate: Any, capture: Capture) -> None:
        """A span that would be dropped is not made; other signals are."""
        token = unsampled_parent()
        op = decorate(lambda: get_current_span().get_span_context().span_id)
        assert [op(), op()] == [2, 2]
        detach(token)
        assert capture.spans == ()
        op()
        assert len(capture.spans) == 1

    def test_an_unsampled_remote_parent_is_asked_for(self, capture: Capture) -> None:
        """Under a remote parent the sampler is asked, and the call has an id of its own."""
        token = unsampled_parent(remote=True)
        inside = traced("op")(lambda: get_current_span().get_span_context().span_id)()
        detach(token)
        assert inside == 1
        assert capture.spans == ()

    def test_a_sampled_local_parent_of_another_sdk(self, capture: Capture) -> None:
        """A parent that does not record here but is sampled gets its child."""
        token = unsampled_parent(flags=1)
        traced("op")(admit)()
        detach(token)
        assert capture.span("op").context.trace_id == 1

    def test_only_with_a_parent_based_sampler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sampler that does not follow the parent is always asked."""
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
        with Capture() as capture:
            token = unsampled_parent()
            traced("op")(admit)()
            detach(token)
        assert capture.span("op").name == "op"

    def test_only_when_the_sampler_drops_under_such_a_parent(self) -> None:
        """A parent-based sampler may be told to sample under unsampled local parents."""
        assert _drops_with_parent(TracerProvider())
        assert not _drops_with_parent(
            TracerProvider(sampler=ParentBased(ALWAYS_ON, local_parent_not_sampled=ALWAYS_ON))
        )

    def test_never_sampled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where nothing is sampled, metrics and lines go on, and the line carries the trace id."""
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
        with Capture() as capture:
            observe("op", log="info")(admit)()
        assert capture.spans == ()
        assert capture.log_lines[0]["trace_id"] == f"{1:032x}"
        assert " # {" not in capture.telemetry()["metrics"]


class TestExemplars:
    """Trace ids on histogram samples."""

    @staticmethod
    def exemplars(capture: Capture) -> list[str]:
        """Return the trace numbers that the exposition shows."""
        lines = capture.telemetry()["metrics"].splitlines()
        return [line.partition('trace_id="')[2][31:32] for line in lines if "trace_id" in line]

    def test_one_a_second_and_the_slowest(self) -> None:
        """Within a second only a slower call replaces the exemplar; after it, any call does."""
        with Capture() as capture:
            capture.time._step_ns = 1_000_000

            @timed
            @traced("op")
            def work(seconds: float) -> None:
                capture.time.advance(seconds)

            seen = []
            for seconds in (0.0, 0.0, 0.0015, 0.0005, 1.5, 0.0):
                work(seconds)
                seen.append("".join(self.exemplars(capture)))
            capture.time.advance(1)
            work(0)
            seen.append("".join(self.exemplars(capture)))
        assert seen == ["1", "1", "3", "3", "35", "35", "75"]

    def test_off(self) -> None:
        """The setting switches them off."""
        with Capture(Settings(exemplars=False)) as capture:
            observe("op")(admit)()
        assert self.exemplars(capture) == []


class TestUse:
    """`use` and `install` with decorators."""

    def test_use_wins_over_install(self) -> None:
        """The context's own goes before the process default."""
        op = observe("op")(admit)
        with Capture(install=True) as outer:
            other = Observability(Settings(prefix="other"))
            with use(other):
                op()
            op()
            assert other.metrics.registry.get_sample_value(
                "other_operations_total", {"operation": "op", "outcome": "ok"}
            )
            other.close()
        assert len(outer.spans) == 1


class TestNewTrace:
    """`new_trace`: work that outlives the request that started it."""

    def test_links_the_caller(self, capture: Capture) -> None:
        """The span is a root of its own and links the caller's span; what runs inside belongs to it."""
        inner = traced("inner")(lambda: None)
        job = traced("job", new_trace=True)(lambda: inner())
        traced("caller")(lambda: job())()
        caller, found = capture.span("caller"), capture.span("job")
        assert found.parent is None
        assert [link.context for link in found.links] == [caller.context]
        assert found.context.trace_id != caller.context.trace_id
        assert capture.span("inner").parent == found.context

    def test_without_a_caller(self, capture: Capture) -> None:
        """Where nothing is current there is nothing to link."""
        observe("job", new_trace=True)(lambda: None)()
        assert capture.span("job").links == ()


class TestSuccessIf:
    """`success_if`: an exception that is an answer."""

    def test_outcome(self, capture: Capture) -> None:
        """It is raised all the same; the outcome is ok, the span no error, and another exception still is one."""

        @observe("look_up", log="info", success_if=lambda exc: isinstance(exc, KeyError))
        def look_up(key: str) -> int:
            return {"a": 1}[key] // 0

        with pytest.raises(KeyError):
            look_up("b")
        with pytest.raises(ZeroDivisionError):
            look_up("a")
        first, second = capture.spans
        assert (first.status.status_code, second.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
        assert [line["outcome"] for line in capture.log_lines] == ["ok", "error"]
        for outcome in ("ok", "error"):
            assert capture.metric("healthobs_operations_total", operation="look_up", outcome=outcome) == 1

    def test_the_audit_entry_does_not_follow(self) -> None:
        """What was not given is not recorded as given; nor does an own counter count it."""
        with Capture(audit=True) as capture:

            @audited("chart.read")
            @observe("read", count="charts_read_total", success_if=lambda exc: True)
            def read() -> None:
                raise KeyError

            with pytest.raises(KeyError):
                read()
            assert capture.metric("charts_read_total") in (None, 0)
        assert [entry["outcome"] for entry in capture.audit_entries] == ["error"]

    def test_a_fault_counts_as_no(self, capture: Capture) -> None:
        """A function of the user's that raises leaves the outcome as it was."""

        def broken(exc: BaseException) -> bool:
            raise RuntimeError

        with pytest.raises(KeyError):
            observe("op", success_if=broken)({}.__getitem__)("a")
        assert capture.metric("healthobs_operations_total", operation="op", outcome="error") == 1
        assert capture.metric("healthobs_internal_errors_total", component="decorators") == 1
