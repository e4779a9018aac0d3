"""Threads that carry the context, and jobs."""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from healthobs import Phi, Settings, carry, job, observe
from healthobs._runtime import current_or_none
from healthobs.exceptions import InstrumentationError
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

    def test_around_a_coroutine_function(self, capture: Capture) -> None:
        """As a decorator it is awaited: one that raises is no success; so for a method and a callable object."""

        class Import:
            @job("method")
            async def run(self) -> int:
                await asyncio.sleep(0)
                return len(capture.spans)

            async def __call__(self) -> None:
                await asyncio.sleep(0)
                raise KeyError("x")

        @job("claims")
        async def claims(broken: bool) -> None:
            await asyncio.sleep(0)
            if broken:
                raise KeyError("x")

        assert inspect.iscoroutinefunction(claims)
        assert asyncio.run(Import().run()) == 0
        for run in (partial(claims, broken=True), job("object")(Import())):
            with pytest.raises(KeyError):
                asyncio.run(run())
        for name in ("claims", "object"):
            assert capture.metric("healthobs_operations_total", operation=name, outcome="error") == 1
            assert capture.metric("healthobs_job_last_success_timestamp_seconds", job=name) is None
        asyncio.run(claims(False))
        for name in ("claims", "method"):
            assert capture.metric("healthobs_job_last_success_timestamp_seconds", job=name) is not None

    def test_around_a_function(self, capture: Capture) -> None:
        """Each call is a run, also one inside another; name, arguments and result stay."""

        @job("countdown")
        def countdown(n: int) -> int:
            return n if n == 0 else countdown(n - 1)

        assert (countdown(2), countdown.__name__) == (0, "countdown")
        assert [span.name for span in capture.spans] == ["countdown"] * 3

    def test_one_object_for_several_runs(self, capture: Capture) -> None:
        """What `job` returned may be entered again, but not while it is entered: it could not tell the runs apart."""
        nightly = job("nightly")
        for _ in range(2):
            with nightly:
                with pytest.raises(InstrumentationError, match="once at a time"):
                    nightly.__enter__()
                assert capture.metric("healthobs_operations_in_flight", operation="nightly") == 1
        assert capture.metric("healthobs_operations_total", operation="nightly", outcome="ok") == 2
        assert capture.metric("healthobs_operations_in_flight", operation="nightly") == 0

    def test_a_generator_is_refused(self) -> None:
        """It is over before its first item, so it would succeed whatever it does."""

        def items() -> Iterator[int]:
            yield 1

        async def late_items() -> AsyncIterator[int]:
            yield 1

        for fn in (items, late_items, partial(items)):
            with pytest.raises(InstrumentationError, match="with job"):
                job("claims")(fn)

    @pytest.mark.parametrize("name", [3, None, "", Phi("Ottoline")])
    def test_a_name_is_text(self, name: Any) -> None:
        """Anything else is refused where it stands, and not shown."""
        with pytest.raises(InstrumentationError, match="'claims'") as refused:
            job(name)
        assert "Ottoline" not in str(refused.value)

    @pytest.mark.parametrize(
        ("code", "outcome"), [(None, "ok"), (0, "ok"), (1, "error"), ("no", "error"), ("", "error")]
    )
    def test_exit(self, capture: Capture, code: str | int | None, outcome: str) -> None:
        """`sys.exit` ends a run as it ends a process: with nothing and 0 well, with anything else not."""
        with pytest.raises(SystemExit), job("claims"):
            sys.exit(code)
        assert capture.metric("healthobs_operations_total", operation="claims", outcome=outcome) == 1
        last = capture.metric("healthobs_job_last_success_timestamp_seconds", job="claims")
        assert (last is not None) == (outcome == "ok")

    def test_outside(self) -> None:
        """Without an `Observability` it does nothing."""
        with job("claims"):
            pass
