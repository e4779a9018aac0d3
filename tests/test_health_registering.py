"""How checks come to be: the decorators, the ones that come with the signals, and their processes."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import Any

import pytest
from tests.healthy import Hung, Time, raising

from healthobs import Settings, _runtime
from healthobs.exceptions import InstrumentationError
from healthobs.health import (
    ANSWER_BUDGET_SECONDS,
    QUIET_SECONDS,
    Health,
    health_check,
    readiness_check,
    register_builtin_checks,
)
from healthobs.health.decorators import pending


def database() -> bool:
    """Say that the database is away."""
    return False


class TestRegister:
    """`Health.register`."""

    @pytest.mark.parametrize("name", ["", "Database", "1st", "a-b", "a" * 64, "a\n", "lifecycle"])
    def test_bad_name(self, health: Health, name: str) -> None:
        """Names are bounded, because they are keys and label values."""
        with pytest.raises(InstrumentationError):
            health.register(name, lambda: True)

    def test_duplicate(self, health: Health) -> None:
        """A name belongs to one check, whatever its kind."""
        health.register("database", lambda: True)
        with pytest.raises(InstrumentationError, match="exists already"):
            health.register("database", lambda: True, kind="liveness")

    @pytest.mark.parametrize("times", [{"timeout": 0}, {"timeout": 0.81}, {"ttl": -1}, {"max_stall": -1}])
    def test_times_out_of_range(self, health: Health, times: dict[str, float]) -> None:
        """No check may take longer than the whole answer."""
        with pytest.raises(InstrumentationError):
            health.register("database", lambda: True, **times)  # type: ignore[arg-type]

    def test_longest_times(self, health: Health) -> None:
        """The limits themselves are allowed."""
        health.register("a" * 63, lambda: True, timeout=ANSWER_BUDGET_SECONDS, ttl=0)
        assert health.readiness()[0] == 200


class TestDecorators:
    """`@health_check` and `@readiness_check`."""

    def test_function_stays_plain(self) -> None:
        """The very same function comes back, bare or called."""

        def check() -> bool:
            return True

        assert readiness_check(check) is check
        assert readiness_check("second", ttl=2)(check) is check
        assert health_check("third", max_stall=30)(check) is check

    def test_critical_by_default(self, health: Health) -> None:
        """A readiness check decides unless it says that it does not."""
        readiness_check("database")(lambda: False)
        health.adopt_pending()
        assert health.readiness()[0] == 503

    def test_each_that_adopts_has_it(self, ticking: Time) -> None:
        """What an import decorated once is there for every service of the process, each with its own state."""
        readiness_check("database", ttl=0)(database)
        health_check("alive")(partial(bool, 1))
        healths = [Health("s", "1", ticking.clock()) for _ in range(3)]
        for health in healths:
            health.adopt_pending()
            assert health.readiness()[1]["checks"] == {"database": "not_ready", "lifecycle": "starting"}
            assert health.snapshot()["alive"] == ("liveness", "ok")
            health.close()
        assert len({id(health._checks["database"]) for health in healths}) == 3

    def test_adopting_twice(self, health: Health) -> None:
        """An `Observability` on two applications has each check once."""
        readiness_check("database")(database)
        health.adopt_pending()
        health.adopt_pending()
        assert list(health.snapshot()) == ["database"]

    def test_decorated_in_force_is_there_for_the_next_too(self, ticking: Time) -> None:
        """A module that is imported after the first `Observability` was installed is not imported again."""

        class InForce:
            health = Health("s", "1", ticking.clock())
            settings = Settings()

        with _runtime.use(InForce()):  # type: ignore[arg-type]
            readiness_check("database")(database)
            readiness_check("local")(lambda: True)
        InForce.health.adopt_pending()
        other = Health("s", "1", ticking.clock())
        other.adopt_pending()
        assert (sorted(InForce.health.snapshot()), list(other.snapshot())) == (
            ["database", "local"],
            ["database"],
        )

    def test_decorated_anew(self, ticking: Time) -> None:
        """A factory that is called again, or a module that is loaded again, gives the check that counts from then on."""
        seen: list[int] = []
        for number in (1, 2):
            readiness_check("database")(partial(seen.append, number))
            health = Health("s", "1", ticking.clock())
            health.adopt_pending()
            health.readiness()
        assert seen == [1, 2]

    def test_own_check_of_that_name(self, ticking: Time) -> None:
        """What another service adopted first does not come before one's own."""
        readiness_check("database")(database)
        Health("s", "1", ticking.clock()).adopt_pending()
        other = Health("s", "1", ticking.clock())
        other.register("database", lambda: True)
        other.adopt_pending()
        assert other.readiness()[0] == 200

    def test_pending_until_adopted(self, ticking: Time) -> None:
        """Decorating before configuring works; the next to adopt takes local functions, with their options, alone."""

        @health_check
        def alive() -> None: ...

        @readiness_check("database", critical=False)
        def ping() -> bool:
            return False

        health = Health("s", "1", ticking.clock())
        health.adopt_pending()
        other = Health("s", "1", ticking.clock())
        other.adopt_pending()
        assert health.readiness() == (200, {"ready": True, "checks": {"database": "not_ready"}})
        assert (health.snapshot()["alive"], other.snapshot()) == (("liveness", "ok"), {})

    def test_registers_with_the_one_in_force(self, health: Health, ticking: Time) -> None:
        """With an `Observability` in force nothing waits."""

        class InForce:
            health = Health("s", "1", ticking.clock())
            settings = Settings()

        with _runtime.use(InForce()):  # type: ignore[arg-type]
            readiness_check("database")(lambda: True)
        assert (list(InForce.health.snapshot()), pending.take(health)) == (["database"], [])

    def test_bad_name_raises_at_import(self) -> None:
        """A wrong name or time is an error where it is written, not where it is adopted."""
        with pytest.raises(InstrumentationError):
            readiness_check("Bad Name")(lambda: True)
        with pytest.raises(InstrumentationError):
            health_check("slow", timeout=3)(lambda: True)

    def test_duplicate_raises_at_import(self) -> None:
        """Two pending checks of one name are an error at the second."""
        health_check("twice")(lambda: True)
        with pytest.raises(InstrumentationError, match="exists already"):
            readiness_check("twice")(lambda: True)

    def test_nameless_callable(self) -> None:
        """A partial has no name to take; it must be given one."""
        check = partial(bool, 1)
        with pytest.raises(InstrumentationError, match="must be given one"):
            readiness_check(check)
        assert readiness_check("database")(check) is check

    def test_not_callable(self) -> None:
        """Only callables can be checks."""
        with pytest.raises(InstrumentationError):
            readiness_check("database")(3)  # type: ignore[type-var]

    def test_taken_name_at_adoption(self, health: Health) -> None:
        """A pending check whose name is taken is refused; the others are adopted."""
        health.register("database", lambda: True)
        readiness_check("database")(lambda: False)
        readiness_check("cache")(lambda: True)
        with pytest.raises(InstrumentationError, match="exists already"):
            health.adopt_pending()
        assert health.readiness()[1]["checks"] == {"cache": "ready", "database": "ready"}


class TestBuiltinChecks:
    """`register_builtin_checks`."""

    def test_only_what_exists(self, health: Health) -> None:
        """A service without a signal has no check for it."""
        register_builtin_checks(health)
        assert health.snapshot() == {}

    def test_all_good(self, health: Health) -> None:
        """All three are ready where their subjects work."""
        register_builtin_checks(
            health, metrics=lambda: ["family"], export_failures=lambda: 0, audit=lambda: None
        )
        assert health.readiness()[1]["checks"] == {
            "audit_trail": "ready",
            "metrics": "ready",
            "tracing": "ready",
        }

    @pytest.mark.parametrize("collect", [list, raising(RuntimeError())])
    def test_broken_metrics_degrade(self, health: Health, collect: Any) -> None:
        """Broken metrics must not take the service away."""
        register_builtin_checks(health, metrics=collect)
        assert health.readiness() == (200, {"ready": True, "checks": {"metrics": "degraded"}})

    def test_failing_exports_degrade_for_a_while(self, health: Health, ticking: Time) -> None:
        """A failed export degrades tracing until there was none for some time."""
        failures = 0
        register_builtin_checks(health, export_failures=lambda: failures)
        words = []
        for elapsed, failures in ((0.0, 0), (2.0, 1), (4.0, 1), (2.0 + QUIET_SECONDS, 1)):  # noqa: B007
            ticking.elapsed = elapsed
            words.append(health.readiness()[1]["checks"]["tracing"])
        assert words == ["ready", "degraded", "degraded", "ready"]

    def test_exports_that_failed_before_the_first_answer(self, health: Health) -> None:
        """A failure from before anybody asked counts too."""
        register_builtin_checks(health, export_failures=lambda: 1)
        assert health.readiness() == (200, {"ready": True, "checks": {"tracing": "degraded"}})

    def test_failures_that_cannot_be_counted(self, health: Health) -> None:
        """Losing telemetry must not take the service away, however it is lost."""
        register_builtin_checks(health, export_failures=raising(OSError()))  # type: ignore[arg-type]
        assert health.readiness() == (200, {"ready": True, "checks": {"tracing": "not_ready"}})

    def test_a_whole_scrape_is_made_seldom(self, health: Health, ticking: Time) -> None:
        """However often it is asked, ``metrics`` collects every 15 seconds."""
        at: list[float] = []

        def collect() -> list[str]:
            at.append(ticking.elapsed)
            return ["family"]

        register_builtin_checks(health, metrics=collect)
        for second in range(31):
            ticking.elapsed = float(second)
            health.readiness()
        assert at == [0.0, 15.0, 30.0]

    def test_broken_trail_is_critical(self, health: Health) -> None:
        """What cannot be recorded must not be answered."""
        register_builtin_checks(health, audit=raising(OSError()))
        assert health.readiness()[0] == 503


class TestProcesses:
    """Threads that cannot start, and forks."""

    def test_no_thread_to_be_had(
        self, health: Health, ticking: Time, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without threads readiness fails, and liveness keeps its word: that is no evidence for a restart."""
        health.register("database", lambda: True)
        health.register("alive", lambda: True, kind="liveness")

        def none(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none)
            assert (health.readiness()[1]["checks"]["database"], health.liveness()[0]) == ("not_ready", 200)
        ticking.elapsed = 1.0
        assert (health.readiness()[0], health.liveness()[0]) == (
            200,
            200,
        )  # as soon as there are threads again

    def test_run_of_the_parent_is_not_waited_for(self, health: Health, hung: Hung) -> None:
        """A child starts its own run: the parent's has no thread there."""
        health.register("database", hung, timeout=0.5)
        run = health._checks["database"].begin()
        assert run is not None
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            signal.alarm(60)  # a child that hangs must not outlive the test
            hung.release.set()
            os.write(writer, health.readiness()[1]["checks"]["database"].encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"ready"
