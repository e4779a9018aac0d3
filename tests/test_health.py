"""Tests of liveness and readiness: one run in flight, hard timeouts, closed vocabulary, one life cycle."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.healthy import Hung, Time, raising

from healthobs.health import (
    ANSWER_BUDGET_SECONDS,
    Degraded,
    Health,
    gauge_value,
    readiness_check,
)


def settled(check: threading.Event, name: str) -> None:
    """Wait until the check's thread is gone."""
    assert check.wait(30)
    for thread in threading.enumerate():
        if thread.name == f"healthobs-check-{name}":
            thread.join(30)


def be_patient(health: Health, name: str) -> None:
    """Give the check's next run time to have its turn."""
    check = health._checks[name]
    check.spec = replace(check.spec, timeout=30)


class TestLiveness:
    """`Health.liveness`."""

    def test_healthy_body(self, health: Health) -> None:
        """The steady answer has the four keys of the contract, in their order, and no others."""
        status, body = health.liveness()
        assert (status, json.dumps(body, separators=(",", ":"))) == (
            200,
            '{"status":"healthy","service":"phi-service","version":"1.0.0","timestamp":"2025-11-23T10:30:00Z"}',
        )

    def test_unhealthy_body(self, health: Health) -> None:
        """A failed check makes it 503 and adds words, never the exception's text."""
        health.register("worker_progress", raising(RuntimeError("patient Jane")), kind="liveness")
        health.register("memory", lambda: True, kind="liveness")
        status, body = health.liveness()
        assert (status, json.dumps(body, separators=(",", ":"))) == (
            503,
            (
                '{"status":"unhealthy","service":"phi-service","version":"1.0.0",'
                '"timestamp":"2025-11-23T10:30:00Z","checks":{"memory":"ok","worker_progress":"failed"}}'
            ),
        )

    def test_never_runs_readiness_checks(self, health: Health) -> None:
        """A database that hangs must not restart the service."""
        ran: list[str] = []
        health.register("database", lambda: ran.append("database"))
        assert (health.liveness()[0], ran) == (200, [])

    def test_readiness_never_runs_liveness_checks(self, health: Health) -> None:
        """The two probes share no check."""
        health.register("worker_progress", lambda: False, kind="liveness")
        assert health.readiness() == (200, {"ready": True, "checks": {}})

    def test_hung_check_has_failed(self, health: Health, hung: Hung) -> None:
        """A liveness check has no `timeout` word."""
        health.register("worker_progress", hung, kind="liveness", timeout=0.02)
        assert health.liveness()[1]["checks"] == {"worker_progress": "failed"}

    def test_degraded_is_alive(self, health: Health) -> None:
        """Working badly is no reason to be restarted."""
        health.register("cache", raising(Degraded()), kind="liveness")
        assert health.liveness()[0] == 200

    def test_healthy_while_draining_and_starting(self, ticking: Time) -> None:
        """The life cycle is no business of liveness."""
        health = Health("s", "1", ticking.clock())
        assert health.liveness()[0] == 200
        health.drain()
        assert health.liveness()[0] == 200

    def test_stall_is_tolerated_for_a_while(self, health: Health, ticking: Time) -> None:
        """With `max_stall` a check that was good fails only after failing for so long."""
        good = True
        health.register("worker_progress", lambda: good, kind="liveness", ttl=0, max_stall=30)
        assert health.liveness()[0] == 200
        good = False
        assert health.liveness()[0] == 200
        ticking.elapsed = 29.9
        assert health.liveness()[0] == 200
        ticking.elapsed = 30.0
        assert health.liveness()[0] == 503

    def test_recovery_ends_the_stall(self, health: Health, ticking: Time) -> None:
        """The tolerated time begins anew after each good run."""
        good = True
        health.register("worker_progress", lambda: good, kind="liveness", ttl=0, max_stall=30)
        for second, good in ((0, True), (1, False), (20, True), (21, False), (50, False)):  # noqa: B007
            ticking.elapsed = float(second)
            assert health.liveness()[0] == 200

    def test_hang_is_tolerated_no_longer(self, health: Health, ticking: Time, hung: Hung) -> None:
        """A run that never ends uses up the tolerated time too."""
        first = True

        def check() -> None:
            if not first:
                hung()

        health.register("worker_progress", check, kind="liveness", ttl=0, timeout=0.02, max_stall=30)
        assert health.liveness()[0] == 200
        first = False
        assert health.liveness()[0] == 200
        ticking.elapsed = 30.0
        assert health.liveness()[0] == 503
        assert hung.began.wait(30)
        assert hung.runs == 1


class TestReadiness:
    """`Health.readiness`."""

    def test_ready_body(self, health: Health) -> None:
        """The steady answer is a flag and flat words in the order of their names."""
        for name in ("tracing", "metrics", "data_generator"):
            health.register(name, lambda: None)
        status, body = health.readiness()
        assert (status, json.dumps(body, separators=(",", ":"))) == (
            200,
            '{"ready":true,"checks":{"data_generator":"ready","metrics":"ready","tracing":"ready"}}',
        )

    @pytest.mark.parametrize(
        ("check", "word", "status"),
        [
            (lambda: None, "ready", 200),
            (lambda: True, "ready", 200),
            (raising(Degraded()), "degraded", 200),
            (lambda: False, "not_ready", 503),
            (raising(OSError("secret")), "not_ready", 503),
            (raising(SystemExit(1)), "not_ready", 503),
            (lambda: 1, "not_ready", 503),
            (lambda: "ok", "not_ready", 503),
            (lambda: (value for value in (True,)), "not_ready", 503),
        ],
    )
    def test_words(self, health: Health, check: Callable[[], Any], word: str, status: int) -> None:
        """None and True are good, False and exceptions bad, `Degraded` in between; nothing is guessed."""
        health.register("database", check)
        answer = health.readiness()
        assert (answer[0], answer[1]["checks"]["database"]) == (status, word)

    def test_async_check(self, health: Health) -> None:
        """An async check is awaited."""

        async def good() -> bool:
            await asyncio.sleep(0)
            return True

        async def bad() -> None:
            raise OSError

        health.register("good", good)
        health.register("bad", bad)
        assert health.readiness()[1]["checks"] == {
            "bad": "not_ready",
            "good": "ready",
            "lifecycle": "starting",
        }

    def test_hung_async_check_is_cancelled(self, health: Health) -> None:
        """An async check that outlasts its timeout ends, and leaves no thread behind."""
        cancelled = threading.Event()

        async def hangs() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        health.register("database", hangs, timeout=0.02)
        assert health.readiness()[1]["checks"]["database"] == "timeout"
        settled(cancelled, "database")
        assert [thread for thread in threading.enumerate() if "database" in thread.name] == []

    def test_non_critical_check_does_not_decide(self, health: Health) -> None:
        """What is not critical is shown and changes nothing."""
        health.register("tracing", lambda: False, critical=False)
        assert health.readiness() == (200, {"ready": True, "checks": {"tracing": "not_ready"}})

    def test_timeout(self, health: Health, hung: Hung) -> None:
        """A check that outlasts its time is a `timeout`, and the answer does not wait for it."""
        health.register("database", hung, timeout=0.02)
        health.register("cache", lambda: True)
        assert health.readiness() == (
            503,
            {"ready": False, "checks": {"cache": "ready", "database": "timeout", "lifecycle": "starting"}},
        )

    def test_hung_run_is_not_repeated(self, health: Health, hung: Hung, ticking: Time) -> None:
        """However often it is asked, a hung check has one run and one thread."""
        health.register("database", hung, timeout=0.02, ttl=0)
        for _ in range(20):
            ticking.elapsed += 10
            assert health.readiness()[1]["checks"]["database"] == "timeout"
        threads = [thread for thread in threading.enumerate() if thread.name == "healthobs-check-database"]
        assert hung.began.wait(30)
        assert (hung.runs, len(threads)) == (1, 1)

    def test_runs_again_after_the_hung_run_ended(self, health: Health, hung: Hung) -> None:
        """The late answer of an abandoned run is discarded, and the next probe starts a new one."""
        health.register("database", hung, timeout=0.05)
        health.readiness()
        hung.release.set()
        settled(hung.ended, "database")
        assert health.snapshot()["database"] == ("readiness", "timeout")
        be_patient(health, "database")
        assert (health.readiness()[0], hung.runs) == (200, 2)

    def test_late_run_that_nobody_waited_for(self, ticking: Time) -> None:
        """A run that took too long is a timeout even when its end is seen before its waiter."""
        health = Health("s", "1", ticking.clock())
        health.register("database", lambda: time.sleep(0.03), timeout=0.01)
        check = health._checks["database"]
        run = check.begin()
        assert run is not None
        assert run.settled.wait(30)
        assert check.answer(run) == "timeout"

    def test_checks_run_in_parallel(self, health: Health) -> None:
        """Every check begins before any is waited for: four that wait for each other all pass."""
        barrier = threading.Barrier(4, timeout=30)
        for number in range(4):
            health.register(f"part_{number}", lambda: barrier.wait() is None or None)
        assert set(health.readiness()[1]["checks"].values()) == {"ready"}

    def test_callers_share_one_run(self, health: Health, hung: Hung) -> None:
        """Probes that come while a check runs join it."""
        health.register("database", hung, timeout=0.2)
        probes = [threading.Thread(target=health.readiness) for _ in range(16)]
        for probe in probes:
            probe.start()
        for probe in probes:
            probe.join()
        assert hung.began.wait(30)
        assert (hung.runs, hung.most) == (1, 1)

    def test_joining_caller_gets_the_result(self, health: Health, hung: Hung) -> None:
        """Who joins a run waits for it, and is not given the word before it."""
        health.register("database", hung, timeout=0.8)
        assert health._checks["database"].begin() is not None
        answers: list[int] = []
        probe = threading.Thread(target=lambda: answers.append(health.readiness()[0]))
        probe.start()
        hung.release.set()
        probe.join(30)
        assert (answers, hung.runs) == ([200], 1)


class TestCache:
    """How long a word is kept."""

    @pytest.mark.parametrize(
        ("ttl", "result", "kept_seconds"), [(1.0, True, 1.0), (5.0, True, 5.0), (5.0, False, 1.0)]
    )
    def test_ttl(self, health: Health, ticking: Time, ttl: float, result: bool, kept_seconds: float) -> None:
        """A word is kept for `ttl`, a bad one for a second at most."""
        runs: list[None] = []

        def check() -> bool:
            runs.append(None)
            return result

        health.register("database", check, ttl=ttl)
        counts = []
        for at in (0.0, kept_seconds - 0.01, kept_seconds, kept_seconds + 0.01):
            ticking.elapsed = at
            health.readiness()
            counts.append(len(runs))
        assert counts == [1, 1, 2, 2]

    @pytest.mark.parametrize(
        "add",
        [
            lambda health, check: health.register("database", check),
            lambda _health, check: readiness_check("database")(check),
        ],
    )
    def test_kept_for_a_second_by_default(self, health: Health, ticking: Time, add: Any) -> None:
        """Probes that come within a second share what was found."""
        runs: list[None] = []
        add(health, lambda: runs.append(None))
        health.adopt_pending()
        for ticking.elapsed, expected in ((0.0, 1), (0.99, 1), (1.0, 2)):
            health.readiness()
            assert len(runs) == expected

    @given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), min_size=1, max_size=30))
    def test_against_a_model(self, steps: list[tuple[float, bool]]) -> None:
        """The answer is always the newest result that is not older than the ttl, or a new one."""
        ticking = Time()
        health = Health("s", "1", ticking.clock())
        health.ready()
        result, runs = True, 0

        def check() -> bool:
            nonlocal runs
            runs += 1
            return result

        health.register("database", check, ttl=2.0)
        expected_runs, word, fresh_until = 0, True, -1
        for wait, result in steps:
            ticking.elapsed += round(wait, 3)
            now = ticking.clock().monotonic_ns()
            if now >= fresh_until:
                word, expected_runs = result, expected_runs + 1
                fresh_until = now + (2 * 10**9 if word else 10**9)
            answer = health.readiness()[1]["checks"]["database"]
            assert (answer, runs) == ("ready" if word else "not_ready", expected_runs)


class TestLifecycle:
    """Starting, ready, draining."""

    def test_starting_without_checks(self, ticking: Time) -> None:
        """A service without checks is starting until its set-up is complete."""
        health = Health("s", "1", ticking.clock())
        assert health.readiness() == (503, {"ready": False, "checks": {"lifecycle": "starting"}})
        health.ready()
        assert health.readiness() == (200, {"ready": True, "checks": {}})

    def test_adopting_completes_set_up(self, ticking: Time) -> None:
        """`adopt_pending` is the last step of set-up."""
        health = Health("s", "1", ticking.clock())
        health.adopt_pending()
        assert health.readiness()[0] == 200

    def test_starting_until_the_first_full_pass(self, health: Health, ticking: Time) -> None:
        """It is starting until all critical checks were good in one answer; later failures are no new start."""
        good = False
        health.register("database", lambda: good, ttl=0)
        assert health.readiness()[1]["checks"] == {"database": "not_ready", "lifecycle": "starting"}
        good = True
        assert health.readiness()[1]["checks"] == {"database": "ready"}
        good = False
        ticking.elapsed = 2.0
        assert health.readiness() == (503, {"ready": False, "checks": {"database": "not_ready"}})
        assert health.state == "ready"

    def test_draining(self, health: Health) -> None:
        """Draining is not ready whatever the checks say, and has no way back."""
        health.register("database", lambda: True)
        health.readiness()
        health.drain()
        health.ready()
        assert health.readiness() == (
            503,
            {"ready": False, "checks": {"database": "ready", "lifecycle": "draining"}},
        )

    def test_drain_wins_a_race(self, health: Health) -> None:
        """An answer that was under way when draining began does not undo it."""
        health.drain()
        health._enter("ready")
        assert health.state == "draining"

    def test_drain_while_starting(self, ticking: Time) -> None:
        """A service that is told to stop before it was ready never gets ready."""
        health = Health("s", "1", ticking.clock())
        health.drain()
        health.ready()
        assert (health.readiness()[0], health.state) == (503, "draining")

    def test_transitions(self, health: Health, told: list[Any], ticking: Time) -> None:
        """Each change is told once, with the type of its cause and never its text."""
        error: Exception | None = None

        def check() -> None:
            if error is not None:
                raise error

        health.register("database", check, ttl=0)
        health.readiness()
        health.readiness()
        error = OSError("password=x")
        health.readiness()
        ticking.elapsed = 2.0
        health.readiness()
        health.drain()
        health.drain()
        assert told == [
            ("database", "starting", "ready", None),
            ("lifecycle", "starting", "ready", None),
            ("database", "ready", "not_ready", "OSError"),
            ("lifecycle", "ready", "draining", None),
        ]

    def test_unexpected_result_is_told(self, health: Health, told: list[Any]) -> None:
        """The cause of a wrong result names its type, so that one log line can say so."""
        health.register("database", lambda: [1])
        health.readiness()
        assert told == [("database", "starting", "not_ready", "UnexpectedResult:list")]

    def test_broken_listener(self, ticking: Time) -> None:
        """A listener that raises changes nothing."""

        def broken(*facts: object) -> None:
            raise RuntimeError

        health = Health("s", "1", ticking.clock(), on_transition=broken)
        health.register("database", lambda: True)
        health.ready()
        assert health.readiness()[0] == 200
        assert health.liveness()[0] == 200

    def test_told_before_answered(self, ticking: Time) -> None:
        """Whoever has the answer finds its consequences done."""
        done: list[str] = []
        health = Health("s", "1", ticking.clock(), on_transition=lambda name, *_: done.append(name))
        health.register("database", lambda: True)
        health.readiness()
        assert done == ["database"]

    def test_nobody_is_answered_before_it_is_told(self, ticking: Time) -> None:
        """Of the probes that share a run, none has its answer while the change is still being told."""
        telling, told = threading.Event(), threading.Event()

        def listen(*_facts: object) -> None:
            telling.set()
            told.wait(5)

        health = Health("s", "1", ticking.clock(), on_transition=listen)
        health.register("database", told.is_set, timeout=ANSWER_BUDGET_SECONDS)
        check, answers = health._checks["database"], list[str]()
        run = check.begin()
        probes = [threading.Thread(target=lambda: answers.append(check.answer(run))) for _ in range(2)]
        for probe in probes:
            probe.start()
        assert telling.wait(5)
        time.sleep(0.05)  # time for a wrong answer to come
        early = list(answers)
        told.set()
        for probe in probes:
            probe.join(5)
        assert (early, answers) == ([], ["not_ready", "not_ready"])


class TestSnapshot:
    """What metrics are made from."""

    def test_runs_nothing(self, health: Health) -> None:
        """A scrape never runs a check."""
        health.register("database", lambda: False)
        health.register("alive", lambda: False, kind="liveness")
        assert health.snapshot() == {"alive": ("liveness", "ok"), "database": ("readiness", "starting")}
        assert health.is_ready() is False

    def test_is_ready_follows_the_last_words(self, health: Health, ticking: Time) -> None:
        """It is what the last answer said, until a check or the life cycle says otherwise."""
        good = True
        health.register("database", lambda: good, ttl=0)
        health.register("tracing", lambda: False, critical=False)
        seen = [health.is_ready()]
        for good in (True, False, True):  # noqa: B007
            ticking.elapsed += 2
            health.readiness()
            seen.append(health.is_ready())
        health.drain()
        assert [*seen, health.is_ready()] == [False, True, False, True, False]

    def test_gauge_values(self) -> None:
        """Every word has a value; only good ones are above 0."""
        words = ("ready", "ok", "degraded", "not_ready", "timeout", "starting", "draining", "failed")
        assert [gauge_value(word) for word in words] == [1, 1, 0.5, 0, 0, 0, 0, 0]
