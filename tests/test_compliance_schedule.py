"""When controls run by themselves: the schedule, its jitter, forks, and its thread."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import weakref
from collections.abc import Iterator

import pytest
from tests.small_world import World, threads

from healthobs.clock import Clock
from healthobs.compliance import (
    ControlEngine,
    Outcome,
    ProbeContext,
)
from healthobs.compliance.schedule import Schedule
from healthobs.exceptions import ConfigurationError


class Worker:
    """Counts rounds, and lets tests wait for them."""

    def __init__(self) -> None:
        self.rounds = threading.Semaphore(0)

    def work(self) -> None:
        """Do one round."""
        self.rounds.release()


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def schedule(worker: Worker) -> Iterator[Schedule]:
    made = Schedule(worker.work, "test-schedule")
    yield made
    made.stop()


class TestSchedule:
    """The background thread."""

    def test_works_at_once_and_again(self, schedule: Schedule, worker: Worker) -> None:
        """The first round does not wait for the interval; others follow."""
        schedule.arm(0.01, 0.2)
        schedule.revive()
        assert [worker.rounds.acquire(timeout=30) for _ in range(3)] == [True] * 3

    def test_first_round_does_not_wait(self, schedule: Schedule, worker: Worker) -> None:
        """Even a long interval begins with a round."""
        schedule.arm(3600, 0)
        schedule.revive()
        assert worker.rounds.acquire(timeout=30)

    def test_zero_starts_nothing(self, schedule: Schedule) -> None:
        """An interval of 0 means on demand only."""
        schedule.arm(0, 0)
        schedule.revive()
        schedule.revive()
        assert threads() == []

    def test_one_thread(self, schedule: Schedule) -> None:
        """Started twice, it has one thread."""
        schedule.arm(3600, 0)
        schedule.revive()
        schedule.arm(3600, 0)
        schedule.revive()
        schedule.revive()
        assert len(threads()) == 1

    def test_stop(self, schedule: Schedule, worker: Worker) -> None:
        """Stopped, its thread is gone, and reviving it does nothing; it can be started again."""
        schedule.arm(3600, 0.2)
        schedule.revive()
        schedule.stop()
        schedule.stop()
        schedule.revive()
        assert threads() == []
        while worker.rounds.acquire(blocking=False):
            pass
        schedule.arm(3600, 0.2)
        schedule.revive()
        assert worker.rounds.acquire(timeout=30)

    def test_thread_that_died(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a round ended the thread the next revival begins another."""
        monkeypatch.setattr(threading, "excepthook", lambda _: None)

        class Dying(Worker):
            healed = False

            def work(self) -> None:
                self.thread = threading.current_thread()
                super().work()
                if not self.healed:
                    raise asyncio.CancelledError

        dying = Dying()
        schedule = Schedule(dying.work, "test-schedule")
        schedule.arm(3600, 0)
        schedule.revive()
        assert dying.rounds.acquire(timeout=30)
        # Not through `threads()`: one that ends is alive for a moment after it has left that list
        dying.thread.join(30)
        dying.healed = True
        schedule.arm(3600, 0)
        assert (threads(), schedule.idle) == ([], True)
        schedule.revive()
        assert dying.rounds.acquire(timeout=30)
        assert (len(threads()), schedule.idle) == (1, False)
        schedule.stop()

    @pytest.mark.parametrize("begins", [True, False], ids=["begun", "begins late"])
    def test_interrupted_start(
        self, schedule: Schedule, monkeypatch: pytest.MonkeyPatch, begins: bool
    ) -> None:
        """A thread whose starter was interrupted leaves one that serves, not two."""
        start, interrupted = threading.Thread.start, list[threading.Thread]()

        def interrupt(thread: threading.Thread) -> None:
            if begins:
                start(thread)
            interrupted.append(thread)
            raise KeyboardInterrupt

        schedule.arm(3600, 0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                schedule.revive()
        assert schedule.idle
        schedule.revive()
        (earlier,) = interrupted
        if not begins:
            earlier.start()
        earlier.join(30)
        assert not earlier.is_alive()
        assert len(threads()) == 1

    def test_stop_from_within(self) -> None:
        """A round may stop its own schedule."""

        class Once:
            def __init__(self) -> None:
                self.schedule = Schedule(self.work, "test-schedule")
                self.done = threading.Event()

            def work(self) -> None:
                self.schedule.stop()
                self.done.set()

        once = Once()
        once.schedule.arm(0.01, 0)
        once.schedule.revive()
        assert once.done.wait(30)
        for thread in threads():
            thread.join(30)
        assert threads() == []

    @pytest.mark.parametrize(("interval", "jitter"), [(-1, 0), (1, -0.1), (1, 0.91)])
    def test_out_of_range(self, schedule: Schedule, interval: float, jitter: float) -> None:
        """A jitter near 1 would make the interval 0."""
        with pytest.raises(ConfigurationError):
            schedule.arm(interval, jitter)
            schedule.revive()

    def test_ends_with_its_object(self) -> None:
        """The thread keeps nothing alive, and ends when its object is gone."""
        worker = Worker()
        schedule = Schedule(worker.work, "test-schedule")
        schedule.arm(0.01, 0)
        schedule.revive()
        assert worker.rounds.acquire(timeout=30)
        (thread,) = threads()
        gone = weakref.ref(worker)
        del worker
        gc.collect()
        thread.join(30)
        assert (gone(), thread.is_alive()) == (None, False)

    def test_no_thread_to_be_had(
        self, schedule: Schedule, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It raises, and the next revival tries again."""

        def none(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none)
            with pytest.raises(RuntimeError):
                schedule.arm(3600, 0)
                schedule.revive()
        schedule.revive()
        assert worker.rounds.acquire(timeout=30)

    def test_fork(self, world: World) -> None:
        """A child has no thread until its status is asked for, and then one of its own."""
        world.engine.start(3600)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            signal.alarm(60)  # a child that hangs must not outlive the test
            before = len(threads("healthobs-controls"))
            world.engine.status()
            os.write(writer, f"{before} {len(threads('healthobs-controls'))}".encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        world.engine.stop()
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"0 1"

    def test_fork_while_a_round_runs(self) -> None:
        """A lock held at the fork does not stop the child."""
        inside, release = threading.Event(), threading.Event()

        def probe(context: ProbeContext) -> Outcome:
            inside.set()
            release.wait(30)
            return Outcome("pass", "")

        engine = ControlEngine([World.control("S-1", probe=probe)], World()._context, Clock())
        round_ = threading.Thread(target=engine.run)
        round_.start()
        assert inside.wait(30)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            signal.alarm(60)  # a child that hangs must not outlive the test
            release.set()
            os.write(writer, engine.run()["S-1"].encode())
            os._exit(0)
        os.close(writer)
        release.set()
        round_.join()
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"pass"


class TestBackground:
    """The engine on its schedule."""

    def test_runs_without_being_asked(self) -> None:
        """Started, it observes; stopped, it does not."""
        seen = threading.Event()

        def probe(context: ProbeContext) -> Outcome:
            seen.set()
            return Outcome("pass", "")

        engine = ControlEngine([World.control("S-1", probe=probe)], World()._context, Clock())
        engine.start(3600)
        assert seen.wait(30)
        engine.stop()
        assert engine.states() == {"S-1": "pass"}

    def test_outlives_a_probe_that_is_cancelled(self) -> None:
        """What a probe raises ends its own look and not the thread, whatever it is."""
        rounds = threading.Semaphore(0)

        def probe(context: ProbeContext) -> Outcome:
            rounds.release()
            raise asyncio.CancelledError

        engine = ControlEngine([World.control("S-1", probe=probe)], World()._context, Clock())
        engine.start(0.01)
        assert [rounds.acquire(timeout=30) for _ in range(3)] == [True] * 3
        engine.stop()
        assert engine.states() == {"S-1": "unknown"}

    def test_no_thread_at_status(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no thread can be had starting and the status go on, and the fault is counted."""

        def none(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", none)
        world.engine.start(3600)
        assert world.engine.status()["counts"]["unknown"] == 2
        assert world.errors == ["controls", "controls"]
