"""The entry of an audited call in the call's own transaction (`Outbox.record`)."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from healthobs import Observability, Settings, audited, use
from healthobs.audit import Outbox, Receipt, annotate
from healthobs.exceptions import AuditWriteError


class Charts:
    """A business database with an outbox, and what writes to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "business.db"
        self.failing: list[BaseException | None] = []
        settings = Settings(audit_database_url=f"sqlite:///{folder}/audit.db", audit_key_file=folder / "key")
        self.obs = Observability(settings, logs="off")
        assert self.obs.audit is not None
        self.trail = self.obs.audit
        self.outbox = Outbox(self.trail, self.begin)
        self.outbox.create_table()
        with self.begin() as connection:
            connection.execute("CREATE TABLE chart (id TEXT)")

    @contextmanager
    def begin(self) -> Iterator[sqlite3.Connection]:
        """Give a connection in a transaction of its own, unless it is the turn of a failure."""
        if self.failing and (failure := self.failing.pop(0)) is not None:
            raise failure
        with closing(sqlite3.connect(self.path)) as connection, connection:
            yield connection

    def write(self, name: str, *, fails: bool = False) -> None:
        """Write a chart with its entry."""
        annotate(resource_id=name)
        with self.begin() as connection:
            connection.execute("INSERT INTO chart VALUES (?)", (name,))
            self.outbox.record(connection)
            if fails:
                raise ValueError

    def charts(self) -> list[str]:
        """Return what was written."""
        with self.begin() as connection:
            return [name for (name,) in connection.execute("SELECT id FROM chart")]

    def entries(self) -> list[tuple[str, str | None]]:
        """Return outcome and chart of each entry, the oldest first."""
        page = self.trail.read(limit=100)
        return [(entry["outcome"], entry["resource"]["id"]) for entry in reversed(page.entries)]


@pytest.fixture
def charts(tmp_path: Path) -> Iterator[Charts]:
    made = Charts(tmp_path)
    with use(made.obs):
        yield made
    made.obs.close()


@contextmanager
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the log take nothing for a time."""

    def refuse(*_arguments: object, **_options: object) -> Any:
        raise AuditWriteError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("healthobs.audit.writer.Writer.append_all", refuse)
        yield


class TestRecord:
    """`Outbox.record`."""

    def test_one_entry(self, charts: Charts) -> None:
        """The call's entry is the one that was committed with its effect, with the ids of the call."""
        audited("chart.update", resource_type="chart")(charts.write)("c-1")
        assert charts.entries() == [("ok", "c-1")]
        assert charts.outbox.flush() == {}

    def test_outside_of_a_call(self, charts: Charts) -> None:
        """There is nothing to record."""
        charts.write("c-1")
        assert (charts.charts(), charts.entries(), charts.outbox.flush()) == (["c-1"], [], {})

    def test_rolled_back(self, charts: Charts) -> None:
        """What was not done is recorded as the call ended."""
        with pytest.raises(ValueError):
            audited("chart.update", resource_type="chart")(charts.write)("c-1", fails=True)
        assert (charts.charts(), charts.entries()) == ([], [("error", "c-1")])
        assert charts.outbox.flush() == {}

    def test_tried_again(self, charts: Charts) -> None:
        """After a transaction that was rolled back the next one has the entry."""

        @audited("chart.update", resource_type="chart")
        def twice() -> None:
            with pytest.raises(ValueError):
                charts.write("c-1", fails=True)
            charts.write("c-2")

        twice()
        assert (charts.charts(), charts.entries()) == (["c-2"], [("ok", "c-2")])

    def test_two_transactions(self, charts: Charts) -> None:
        """A call of several has one entry, committed with the first; a fault after it changes nothing about that."""

        @audited("chart.update", resource_type="chart")
        def two() -> None:
            charts.write("c-1")
            charts.write("c-2")
            raise ValueError

        with pytest.raises(ValueError):
            two()
        assert (charts.charts(), charts.entries()) == (["c-1", "c-2"], [("ok", "c-1")])

    def test_malformed(self, charts: Charts) -> None:
        """An entry that cannot be made rolls the effect back."""

        @audited("chart.update", resource_type="chart")
        def wrong() -> None:
            annotate(details={"n": 1.5})
            charts.write("c-1")

        with pytest.raises(AuditWriteError):
            wrong()
        assert charts.charts() == []


class TestReady:
    """`Outbox.ready`."""

    @pytest.mark.parametrize(("purpose", "goes_on"), [("TREAT", False), ("BTG", True), ("ETREAT", True)])
    def test_after_the_log_was_away(
        self, charts: Charts, monkeypatch: pytest.MonkeyPatch, purpose: str, goes_on: bool
    ) -> None:
        """While an entry waits the next effect is refused, unless it is care under break-glass; nothing is lost."""

        @audited("chart.update", resource_type="chart")
        def update(name: str) -> None:
            annotate(purpose=purpose)
            charts.outbox.ready()
            charts.write(name)

        with away(monkeypatch):
            update("c-1")
            if goes_on:
                update("c-2")
            else:
                with pytest.raises(AuditWriteError):
                    update("c-2")
            assert charts.entries() == []
        update("c-3")
        written = ["c-1", "c-2", "c-3"] if goes_on else ["c-1", "c-3"]
        assert (charts.charts(), charts.entries()) == (written, [("ok", name) for name in written])

    @pytest.mark.parametrize("failure", [sqlite3.OperationalError("restarted"), KeyboardInterrupt()])
    @pytest.mark.parametrize("moment", ["whether it was committed", "while it is removed"])
    def test_after_the_business_database_was_away(
        self, charts: Charts, failure: BaseException, moment: str
    ) -> None:
        """A row whose call could not settle it goes into the log before the next effect begins."""

        @audited("chart.update", resource_type="chart")
        def update(name: str) -> None:
            charts.outbox.ready()
            charts.write(name)

        update("c-1")
        charts.failing = [None, failure] if moment == "whether it was committed" else [None, None, failure]
        with suppress(AuditWriteError, KeyboardInterrupt):
            update("c-2")
        assert charts.failing == []
        with charts.begin() as connection:
            assert connection.execute("SELECT count(*) FROM healthobs_outbox").fetchone() == (1,)
        update("c-3")
        with charts.begin() as connection:
            assert connection.execute("SELECT count(*) FROM healthobs_outbox").fetchone() == (0,)
        assert charts.entries() == [("ok", name) for name in ("c-1", "c-2", "c-3")]

    def test_transaction_that_outlives_the_call(self, charts: Charts) -> None:
        """Its row does not wait for a restart; it is an entry of its own beside the call's."""
        charts.outbox.ready()
        with charts.begin() as connection:

            @audited("chart.update", resource_type="chart")
            def update() -> None:
                connection.execute("INSERT INTO chart VALUES ('c-1')")
                charts.outbox.record(connection)

            update()
        charts.outbox.ready()
        with charts.begin() as connection:
            assert connection.execute("SELECT count(*) FROM healthobs_outbox").fetchone() == (0,)
        assert charts.entries() == [("ok", None), ("ok", None)]

    def test_row_that_waits_since_another_flush_began(
        self, charts: Charts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever ends a flush does not call that settled which began to wait meanwhile."""
        flush = Outbox.flush

        def slow(outbox: Outbox) -> dict[str, Receipt]:
            done = flush(outbox)
            monkeypatch.undo()
            with away(monkeypatch):
                audited("chart.update", resource_type="chart")(charts.write)("c-1")
            return done

        monkeypatch.setattr(Outbox, "flush", slow)
        charts.outbox.ready()
        assert charts.entries() == []
        charts.outbox.ready()
        assert charts.entries() == [("ok", "c-1")]

    def test_each_process_catches_up_once(self, charts: Charts, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a killed process left is put into the log by the next one's first call."""
        charts.outbox.ready()
        with charts.begin() as connection:
            charts.outbox.add(connection, {"action": "chart.update"})
        charts.outbox.ready()
        assert charts.entries() == []
        monkeypatch.setattr(os, "getpid", lambda: -1)
        charts.outbox.ready()
        monkeypatch.undo()
        assert charts.entries() == [("ok", None)]


class TestWaiting:
    """What waits for the log, where no other write comes."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have it tried again at once."""
        monkeypatch.setattr("healthobs.audit.outbox.RETRY_SECONDS", 0.01)

    @staticmethod
    def eventually(holds: Callable[[], bool]) -> bool:
        """Return whether something comes to hold."""
        deadline = time.monotonic() + 20
        while not holds() and time.monotonic() < deadline:
            time.sleep(0.01)
        return holds()

    @staticmethod
    def gauge(charts: Charts) -> float | None:
        """Return how many rows the metrics say are waiting."""
        return charts.obs.metrics.registry.get_sample_value("healthobs_audit_outbox_waiting")

    def test_without_another_write(self, charts: Charts, monkeypatch: pytest.MonkeyPatch) -> None:
        """The entry comes into the log once that takes entries again; until then a gauge says that it waits."""
        update = audited("chart.update", resource_type="chart")(charts.write)
        with away(monkeypatch):
            update("c-1")
            assert self.eventually(lambda: self.gauge(charts) == 1)
            assert charts.entries() == []
        assert self.eventually(lambda: charts.entries() == [("ok", "c-1")])
        assert self.eventually(lambda: self.gauge(charts) == 0)
        assert charts.outbox.flush() == {}

    def test_what_a_killed_process_left(self, charts: Charts, monkeypatch: pytest.MonkeyPatch) -> None:
        """A flush that failed at the start is tried again as well."""
        with charts.begin() as connection:
            charts.outbox.add(connection, {"action": "chart.update"})
        with away(monkeypatch), pytest.raises(AuditWriteError):
            charts.outbox.flush()
        assert self.eventually(lambda: charts.entries() == [("ok", None)])

    def test_business_database_that_is_away_too(
        self, charts: Charts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is asked again until it answers."""
        update = audited("chart.update", resource_type="chart")(charts.write)
        with away(monkeypatch):
            update("c-1")
            charts.failing = [sqlite3.OperationalError("restarted")] * 6
        assert self.eventually(lambda: charts.entries() == [("ok", "c-1")])

    def test_ends_with_the_trail(self, charts: Charts, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody asks for a trail that is closed; the row stays for the next process."""
        before = set(threading.enumerate())
        with away(monkeypatch):
            audited("chart.update", resource_type="chart")(charts.write)("c-1")
            assert {thread.name for thread in set(threading.enumerate()) - before} >= {"healthobs-outbox"}
            charts.trail.close()
        assert self.eventually(lambda: not set(threading.enumerate()) - before)
        with charts.begin() as connection:
            assert connection.execute("SELECT count(*) FROM healthobs_outbox").fetchone() == (1,)

    def test_forked(self, charts: Charts, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child, which has no thread of its parent's, settles what waits of its own."""
        update = audited("chart.update", resource_type="chart")(charts.write)
        with away(monkeypatch):
            monkeypatch.setattr("healthobs.audit.outbox.RETRY_SECONDS", 60)
            update("c-1")  # the parent's thread sleeps on
            monkeypatch.setattr("healthobs.audit.outbox.RETRY_SECONDS", 0.01)
            child = os.fork()
            if child == 0:  # pragma: no cover - in the child
                update("c-2")
        if child == 0:  # pragma: no cover - in the child
            monkeypatch.undo()
            os._exit(0 if self.eventually(lambda: len(charts.entries()) == 2) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert charts.entries() == [("ok", "c-1"), ("ok", "c-2")]
