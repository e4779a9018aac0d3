"""The test kit: it shows what was recorded, and its validators find what is wrong."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from opentelemetry.context import attach, detach
from opentelemetry.trace import set_span_in_context

from healthobs import Settings, _runtime, current, in_flight, install, observe
from healthobs.compliance import Control, Outcome
from healthobs.testing import Capture, CountingIds, SteppingClock


@contextmanager
def failing(problem: str) -> Iterator[Capture]:
    """Give a capture whose validators must find exactly one problem."""
    capture = Capture()
    with pytest.raises(AssertionError, match=problem) as found, capture:
        yield capture
    assert ";" not in str(found.value)


class TestSteppingClock:
    """`SteppingClock`."""

    def test_steps_and_advances(self) -> None:
        """Each monotonic reading is one step on, wall time goes along."""
        time = SteppingClock(datetime(2026, 1, 1, tzinfo=UTC), step_seconds=0.25)
        clock = time.clock()
        assert [clock.monotonic_ns(), clock.monotonic_ns()] == [250_000_000, 500_000_000]
        time.advance(1.5)
        assert clock.now() == datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC)


class TestCountingIds:
    """`CountingIds`."""

    def test_counts_separately(self) -> None:
        """Trace ids and span ids count from 1, each for itself."""
        ids = CountingIds()
        assert [ids.generate_trace_id(), ids.generate_span_id(), ids.generate_span_id()] == [1, 1, 2]


class TestCapture:
    """`Capture`."""

    def test_in_force_inside_only(self) -> None:
        """The block reports to it, what is around the block does not."""
        with Capture() as capture:
            assert current() is capture.obs
        assert current() is not capture.obs

    def test_install_reaches_threads(self) -> None:
        """With `install`, threads report to it too; afterwards the process default is what it was."""
        before = _runtime.process.default
        with Capture(install=True) as capture:
            thread = threading.Thread(target=observe("op")(lambda: None))
            thread.start()
            thread.join()
        assert capture.span("op").name == "op"
        assert _runtime.process.default is before

    def test_twin_runs_are_identical(self) -> None:
        """Two runs of the same code leave the same bytes: ids, times and order are fixed."""

        def once() -> dict[str, str]:
            with Capture() as capture:
                observe("op", log="info", in_flight=True, duration=False)(lambda: 1)()
            return capture.telemetry()

        assert once() == once()

    def test_span_by_name(self, capture: Capture) -> None:
        """`span` insists on exactly one."""
        for _ in range(2):
            observe("twice")(lambda: 1)()
        with pytest.raises(AssertionError, match="2 spans"):
            capture.span("twice")
        with pytest.raises(AssertionError, match="0 spans"):
            capture.span("never")

    def test_audit_entries_stay_readable(self) -> None:
        """All entries, oldest first, also after the block, when the folder is gone."""
        with Capture(audit=True) as capture:
            assert capture.obs.audit is not None
            for number in range(120):
                capture.obs.audit.append({"action": "a.b", "resource_id": str(number)})
        assert [entry["resource"]["id"] for entry in capture.audit_entries] == [str(n) for n in range(120)]

    def test_leaks(self) -> None:
        """`leaks` names the signals in which a value can be read."""
        with Capture(Settings(allowed_keys=("ward",)), audit=True) as capture:
            capture.obs.logs.emit("info", "event", {"ward": "canary-1"})
            capture.obs.metrics.counter("wards_total", "Wards", ("ward",)).labels("canary-2").inc()
            assert capture.obs.audit is not None
            capture.obs.audit.append({"action": "a.b", "subject": "canary-3"})
            capture.obs.tracing.tracer.start_span("canary-4").end()
        assert [capture.leaks(f"canary-{number}") for number in range(5)] == [
            (),
            ("logs",),
            ("metrics",),
            ("audit",),
            ("spans",),
        ]
        assert capture.leaks("canary-1", "canary-3") == ("logs", "audit")

    def test_controls(self) -> None:
        """Controls of a service can be run."""
        seen = Control(
            "S-1", "policy 7", "company", "Ledger", "sum is 0", "measure", lambda _: Outcome("pass", "0")
        )
        with Capture(controls=[seen]) as capture:
            assert capture.obs.controls is not None
            assert capture.obs.controls.run(["S-1"]) == {"S-1": "pass"}

    @pytest.mark.filterwarnings("always:look here")
    def test_captured_warnings_are_lines(self) -> None:
        """`capture_stdlib` holds within the block: making the `Observability` gives nothing of `warnings` back."""
        with Capture(Settings(capture_stdlib=True)) as capture:
            warnings.warn("look here", UserWarning, stacklevel=1)
            (line,) = capture.log_lines
        assert (line["logger"], line["level"]) == ("py.warnings", "warning")


class TestValidators:
    """Each validator finds what it is for, and the block raises it."""

    def test_nothing_wrong(self, capture: Capture) -> None:
        """Correct code has no problems."""
        observe("op", in_flight=True)(lambda: 1)()
        assert capture.problems() == []

    def test_span_never_ended(self) -> None:
        """A span that was started and not ended is found."""
        with failing("'lost' was started and never ended") as capture:
            capture.obs.tracing.tracer.start_span("lost")
            capture.obs.tracing.tracer.start_span("kept").end()

    def test_span_ended_twice(self) -> None:
        """A span that was ended twice is found."""
        with failing("ended twice") as capture:
            span = capture.obs.tracing.tracer.start_span("op")
            span.end()
            span.end()

    def test_context_left_attached(self) -> None:
        """A context that was attached and not detached is found."""
        with failing("not the one from before") as capture:
            span = capture.obs.tracing.tracer.start_span("op")
            token = attach(set_span_in_context(span))
            span.end()
        detach(token)

    def test_context_detached_elsewhere(self) -> None:
        """A context that was detached in another one is found."""
        with failing("detached where it was not attached") as capture:
            span = capture.obs.tracing.tracer.start_span("op")
            token = contextvars.copy_context().run(attach, set_span_in_context(span))
            detach(token)
            span.end()

    def test_gauge_not_back_at_zero(self) -> None:
        """An in-flight gauge that is not back at 0 is found."""
        with failing("operations_in_flight is 1, not 0") as capture:
            in_flight("op")(lambda: None)()
            gauge = capture.obs.metrics.gauge(
                "healthobs_operations_in_flight", "Operations that are running", ("operation",)
            )
            gauge.labels("op").inc()

    def test_it_does_not_hide_the_tests_own_failure(self) -> None:
        """When the block raises, that is what comes out."""

        def block() -> None:
            with Capture() as capture:
                capture.obs.tracing.tracer.start_span("lost")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            block()

    def test_validate_can_be_off(self) -> None:
        """With `validate=False` nothing is raised, and `problems` still tells."""
        with Capture(validate=False) as capture:
            capture.obs.tracing.tracer.start_span("lost")
        assert capture.problems() == ["span 'lost' was started and never ended"]


def test_example_in_a_fresh_process() -> None:
    """The kit needs nothing of pytest."""
    code = (
        "import sys; from healthobs.testing import Capture; from healthobs import traced\n"
        "with Capture() as capture: traced('op')(lambda: 0)()\n"
        "assert capture.span('op').name == 'op'; assert 'pytest' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_install_returns_the_previous_one() -> None:
    """`install` gives back what was the default, so that it can be restored."""
    with Capture() as capture:
        previous = install(capture.obs)
        assert install(previous) is capture.obs
