"""Threads that carry the context, and jobs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from healthobs import Settings, carry, job, observe
from healthobs._runtime import current_or_none
from healthobs.testing import Capture


class TestCarry:
    """`carry`."""

    def test_work_in_a_thread_is_a_child(self, capture: Capture) -> None:
        """Its span hangs under the caller's, also when many threads run the same carried function at once."""
        together = threading.Barrier(4, timeout=10)

        @observe("part")
        def part() -> None:
            together.wait()

        @observe("whole")
        def whole() -> None:
            with ThreadPoolExecutor(4) as threads:
                carried = carry(part)
                for waiting in [threads.submit(carried) for _ in range(4)]:
                    waiting.result()

        whole()
        parents = {span.parent.span_id for span in capture.spans if span.name == "part" and span.parent}
        assert parents == {capture.span("whole").context.span_id}

    def test_without_it_nothing_is_inherited(self, capture: Capture) -> None:
        """What the function is for."""
        with ThreadPoolExecutor(1) as threads:
            assert threads.submit(current_or_none).result() is not capture.obs

    def test_arguments_and_name(self) -> None:
        """It stays the function that it was."""

        def add(a: int, *, b: int) -> int:
            return a + b

        assert (carry(add)(1, b=2), carry(add).__name__) == (3, "add")


class TestJob:
    """`job`."""

    def test_in_strict_a_name_made_of_data_is_masked(self) -> None:
        """In event, span and labels alike; a constant and an allowed name pass."""
        who, allowed = "Ottoline Quassler", "night shift".title()
        with Capture(Settings(redaction="strict", allowed_keys=(allowed,))) as capture:
            for name in (f"sync {who}", allowed):
                with job(name):
                    pass
            with job("claims"):
                pass
        names = ["[PHI:strict]", allowed, "claims"]
        assert [span.name for span in capture.spans] == names
        assert [line["event"] for line in capture.log_lines] == names
        assert capture.leaks(who, "Quassler") == ()
        for name in names:
            assert capture.metric("healthobs_operations_total", operation=name, outcome="ok") == 1
            assert capture.metric("healthobs_job_last_success_timestamp_seconds", job=name) is not None

    def test_failure(self, capture: Capture) -> None:
        """A run that raises is an error in every signal, and no success."""
        with pytest.raises(KeyError), job("claims"):
            raise KeyError("x")
        assert capture.metric("healthobs_operations_total", operation="claims", outcome="error") == 1
        assert capture.metric("healthobs_job_last_success_timestamp_seconds", job="claims") is None
        assert capture.log_lines[0]["level"] == "error"

    def test_is_flushed(self, capture: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is queued is out when the block is left, however it is left."""
        flushed: list[bool] = []
        monkeypatch.setattr(capture.obs.tracing, "flush", lambda *_: flushed.append(True))
        with job("claims"):
            pass
        with pytest.raises(KeyError), job("claims"):
            raise KeyError("x")
        assert flushed == [True, True]

    def test_outside(self) -> None:
        """Without an `Observability` it does nothing."""
        with job("claims"):
            pass
