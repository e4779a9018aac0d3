"""Checks that run in the background, and how many bad runs a good word outlives."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.healthy import Time

from healthobs import Observability, Settings
from healthobs.exceptions import InstrumentationError
from healthobs.health import Health
from healthobs.health.checks import CheckOptions


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def often(health: Health, check: Callable[[], object]) -> None:
    """Register a check that runs in the background every few milliseconds, and has its turn on a busy machine."""
    health.register("database", check, interval=0.01, timeout=0.01)
    made = health._checks["database"]
    made.spec = replace(made.spec, timeout=30)


class TestBackground:
    """Checks with an `interval`."""

    def test_runs_by_itself(self, health: Health) -> None:
        """It goes on running while nobody asks, and whoever asks does not wait."""
        runs: list[None] = []
        often(health, lambda: runs.append(None))
        health.readiness()
        until(lambda: len(runs) >= 3)
        assert health.readiness()[1]["checks"] == {"database": "ready"}

    def test_asking_runs_nothing(self, health: Health) -> None:
        """After the first answer a question starts no run, however old the word."""
        runs: list[None] = []
        health.register("database", lambda: runs.append(None), interval=60, ttl=0)
        for _ in range(5):
            health.readiness()
        time.sleep(0.05)  # time for a run that should not be
        assert len(runs) == 1

    def test_stale_after_three_intervals(self, health: Health, ticking: Time) -> None:
        """A good word is believed for three intervals; then the check is not ready."""
        health.register("database", lambda: True, interval=60)
        words = []
        for ticking.elapsed in (0.0, 180.0, 180.1):
            words.append((health.readiness()[0], health.readiness()[1]["checks"]["database"]))
        assert words == [(200, "ready"), (200, "ready"), (503, "stale")]

    def test_stale_liveness_has_failed(self, health: Health, ticking: Time) -> None:
        """Liveness has no word ``stale``."""
        health.register("loop", lambda: True, kind="liveness", interval=60)
        assert health.liveness()[0] == 200
        ticking.elapsed = 181.0
        assert health.liveness()[1]["checks"] == {"loop": "failed"}

    def test_fails_after_two_bad_runs(self, health: Health) -> None:
        """In the background one bad run is not believed yet."""
        results = iter([True, False, True, False, False])
        ran: list[bool] = []
        words: list[str] = []

        def check() -> bool:
            words.append(health.snapshot()["database"][1])
            ran.append(next(results, False))
            return ran[-1]

        often(health, check)
        health.readiness()
        until(lambda: len(ran) >= 6)
        assert words[:6] == ["starting", "ready", "ready", "ready", "ready", "not_ready"]

    def test_starts_again_where_no_thread_was_to_be_had(
        self, health: Health, ticking: Time, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a thread the first answer is bad; who asks once there is one finds the check running."""
        often(health, lambda: True)

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            assert health.readiness() == (
                503,
                {"ready": False, "checks": {"database": "not_ready", "lifecycle": "starting"}},
            )
        ticking.elapsed = 60.0
        until(lambda: health.readiness() == (200, {"ready": True, "checks": {"database": "ready"}}))
        health.close()

    def test_ends_with_the_health(self, health: Health) -> None:
        """Closing ends the thread."""
        health.register("database", lambda: True, interval=0.01, timeout=0.01)
        health.readiness()

        def running() -> bool:
            return "healthobs-loop-database" in [thread.name for thread in threading.enumerate()]

        assert running()
        health.close()
        until(lambda: not running())


class TestHysteresis:
    """`fail_after`."""

    @given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 4))
    def test_against_a_model(self, results: list[bool], fail_after: int) -> None:
        """A good word ends with the n-th bad run in a row, a bad one with the first good run."""
        ticking = Time()
        health = Health("s", "1", ticking.clock())
        health.ready()
        result = True
        health.register("database", lambda: result, ttl=0, fail_after=fail_after)
        good, row = False, 0
        for result in results:
            ticking.elapsed += 2
            row = 0 if result else row + 1
            good = result or (good and row < fail_after)
            assert (health.readiness()[1]["checks"]["database"] == "ready") == good

    @pytest.mark.parametrize("options", [{"fail_after": 0}, {"interval": 0.1, "timeout": 0.5}])
    def test_out_of_range(self, health: Health, options: dict[str, Any]) -> None:
        """A check must be able to fail, and to run within its interval."""
        with pytest.raises(InstrumentationError):
            health.register("database", lambda: True, **options)


class TestHung:
    """A check that was good and then hangs for good, where bad runs are tolerated."""

    @pytest.fixture
    def stuck(self) -> Iterator[Callable[[], None]]:
        """A check whose first run is good and whose second does not end."""
        release, runs = threading.Event(), iter([True])

        def check() -> None:
            if not next(runs, False):
                release.wait(60)

        yield check
        release.set()

    @staticmethod
    def first_run(health: Health, check: Callable[[], object], **options: Unpack[CheckOptions]) -> None:
        """Register the check, with all the time it needs for its good run and little afterwards."""
        health.register("database", check, **options)
        health.ready()
        made = health._checks["database"]
        spec, made.spec = made.spec, replace(made.spec, timeout=30)
        assert health.readiness()[0] == 200
        made.spec = spec

    @pytest.mark.parametrize("fail_after", [None, 2, 4])
    def test_in_the_background(
        self, ticking: Time, stuck: Callable[[], None], fail_after: int | None
    ) -> None:
        """Each interval that finds it hanging is one more bad run: probe, gauge and line say so."""
        stream = io.StringIO()
        obs = Observability(Settings(builtin_checks=()), clock=ticking.clock(), log_stream=stream)
        health = obs.health
        self.first_run(health, stuck, interval=0.05, timeout=0.05, fail_after=fail_after)
        until(lambda: health.readiness() == (503, {"ready": False, "checks": {"database": "timeout"}}))
        assert not health.is_ready()
        shown = obs.metrics.exposition(None)[1].decode().splitlines()
        obs.close()
        assert {'healthobs_check_status{check="database",kind="readiness"} 0.0', "healthobs_ready 0.0"} <= {
            *shown
        }
        told = map(json.loads, stream.getvalue().splitlines())
        assert [line["new"] for line in told if line.get("check") == "database"] == ["ready", "timeout"]

    @pytest.mark.parametrize("fail_after", [2, 4])
    def test_when_asked(
        self, health: Health, ticking: Time, stuck: Callable[[], None], fail_after: int
    ) -> None:
        """Each question that finds it hanging is one more bad run, as long after the last as a run would be."""
        self.first_run(health, stuck, timeout=0.02, fail_after=fail_after)
        words = []
        for ticking.elapsed in (2.0, 4.0, 6.0, 8.0):
            words.append(health.readiness()[1]["checks"]["database"])
        assert words == ["ready"] * (fail_after - 1) + ["timeout"] * (5 - fail_after)

    def test_many_who_ask_at_once_are_one(
        self, health: Health, ticking: Time, stuck: Callable[[], None]
    ) -> None:
        """However many ask within time-out and `ttl` of a bad run, they find no other one."""
        self.first_run(health, stuck, timeout=0.02, ttl=0.5, fail_after=3)
        statuses = []
        for ticking.elapsed in (2.0, 2.51, 2.53, 3.0, 3.06):
            statuses.append([health.readiness()[0] for _ in range(5)])
        assert statuses == [[200] * 5] * 4 + [[503] * 5]
