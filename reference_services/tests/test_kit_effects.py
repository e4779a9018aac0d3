"""A write and its audit entry: both or neither, whatever happens to the log or the process in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from bench_service import Bench
from healthobs.audit import annotate
from healthobs.exceptions import AuditWriteError
from reference_services._kit import Problem
from reference_services._kit.problems import render

METADATA = sa.MetaData()
THINGS = sa.Table("things", METADATA, sa.Column("name", sa.String(20), primary_key=True))


class Things:
    """A service with a table, and routes that write to it."""

    def __init__(self, bench: Bench) -> None:
        self.bench, kit = bench, bench.kit
        kit.migrate(METADATA)
        kit.post(
            "/things",
            returns={201: None},
            audit="thing.make",
            resource_type="thing",
            idempotent=True,
            summary="Make",
        )(self.make)
        kit.put(
            "/things", returns={200: None}, audit="thing.change", resource_type="thing", summary="Change"
        )(self.change)
        self.client = bench.client()
        self.refuse = self.stale = False

    def make(self) -> Any:
        """Store a thing; refused, keep it all the same."""
        self._add()
        return render(Problem(409, "thing_odd", "It is odd.")) if self.refuse else (None, 201)

    def change(self) -> None:
        """Store a thing, or find out that it has changed."""
        with self.bench.kit.transaction():
            self._add()
            if self.stale:
                raise Problem(412, "thing_stale", "It has changed.")

    def _add(self) -> None:
        name = f"t{len(self.names())}"
        with self.bench.kit.transaction() as connection:
            connection.execute(THINGS.insert().values(name=name))
        annotate(resource_id=name)

    def names(self) -> list[str]:
        """Return what is stored."""
        with self.bench.kit.reading() as connection:
            return list(connection.execute(sa.select(THINGS.c.name)).scalars())

    def entries(self) -> list[tuple[str, str, str | None]]:
        """Return action, outcome and thing of every entry about things, the oldest first."""
        page = self.bench.obs.audit.read(limit=1_000)  # type: ignore[union-attr]
        found = [entry for entry in page.entries if entry["action"].startswith("thing.")]
        return [(entry["action"], entry["outcome"], entry["resource"]["id"]) for entry in reversed(found)]

    def waiting(self) -> int:
        """Return how many entries are not in the log yet."""
        with self.bench.kit.engine.begin() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM healthobs_outbox").scalar_one())

    def post(self, key: str = "k1") -> Any:
        """Ask for a thing."""
        return self.client.post("/things", headers={"Idempotency-Key": key})


@pytest.fixture
def things(bench: Bench) -> Things:
    """Give the service."""
    return Things(bench)


@contextmanager
def log_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the log take nothing for a time."""

    def refuse(*_arguments: object, **_options: object) -> Any:
        raise AuditWriteError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("healthobs.audit.writer.Writer.append_all", refuse)
        yield


@pytest.mark.parametrize("way", ["post", "put"])
class TestBoth:
    """With the effect its entry is committed."""

    def ask(self, things: Things, way: str, key: str = "k1") -> Any:
        """Write once."""
        return things.post(key) if way == "post" else things.client.put("/things")

    def test_once_with_a_receipt(self, things: Things, way: str) -> None:
        """The entry is in the log once, the answer has its receipt, and nothing waits."""
        answer = self.ask(things, way)
        action = "thing.make" if way == "post" else "thing.change"
        assert answer.status_code < 300
        assert things.entries() == [(action, "ok", "t0")]
        assert answer.headers["Audit-Receipt"]
        assert things.waiting() == 0

    def test_the_log_is_away(self, things: Things, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was done is answered as done, its entry waits beside it; the next is refused before it is done."""
        with log_away(monkeypatch):
            first = self.ask(things, way)
            assert (first.status_code < 300, "Audit-Receipt" in first.headers) == (True, False)
            assert (things.names(), things.waiting(), things.entries()) == (["t0"], 1, [])
            lines = [line["event"] for line in things.bench.log_lines()]
            assert lines.count("audit_entry_waiting") == 1
            assert self.ask(things, way, "k2").status_code == 503
            assert (things.names(), things.waiting()) == (["t0"], 1)
        assert self.ask(things, way, "k3").status_code < 300
        assert [thing for _, _, thing in things.entries()] == ["t0", "t1"]
        assert (things.names(), things.waiting()) == (["t0", "t1"], 0)

    def test_its_row_stays(self, things: Things, way: str) -> None:
        """A row that is in the log and cannot be removed takes no answer back: it goes with the next write, as no second entry."""
        with things.bench.kit.engine.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER kept BEFORE DELETE ON healthobs_outbox BEGIN SELECT RAISE(ABORT, 'kept'); END"
            )
        answer = self.ask(things, way)
        assert (answer.status_code < 300, "Audit-Receipt" in answer.headers) == (True, True)
        assert things.waiting() == 1
        with things.bench.kit.engine.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER kept")
        assert self.ask(things, way, "k2").status_code < 300
        assert [thing for _, _, thing in things.entries()] == ["t0", "t1"]
        assert things.waiting() == 0

    def test_somebody_else_put_it_into_the_log(
        self, things: Things, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that starts meanwhile takes the row along: it is one entry, and the answer has its receipt."""
        outbox = things.bench.kit.outbox
        assert outbox is not None
        begin, flushed = outbox._begin, list[int]()

        @contextmanager
        def raced() -> Iterator[Any]:
            outbox._begin = begin  # type: ignore[misc]
            flushed.append(len(outbox.flush()))
            with begin() as connection:
                yield connection

        outbox.ready()
        outbox._begin = raced  # type: ignore[misc]
        answer = self.ask(things, way)
        assert (answer.status_code < 300, flushed) == (True, [1])
        assert answer.headers["Audit-Receipt"]
        assert [thing for _, _, thing in things.entries()] == ["t0"]


class TestNeither:
    """Without the effect there is the entry of a refusal, or of a fault."""

    def test_rolled_back(self, things: Things) -> None:
        """What was not done is recorded as failed, once."""
        things.stale = True
        assert things.client.put("/things").status_code == 412
        assert (things.names(), things.waiting()) == ([], 0)
        assert things.entries() == [("thing.change", "failed", "t0")]

    def test_a_refusal_that_is_kept(self, things: Things) -> None:
        """A refusal that leaves something behind is an entry of that outcome."""
        things.refuse = True
        assert things.post().status_code == 409
        assert things.names() == ["t0"]
        assert things.entries() == [("thing.make", "failed", "t0")]

    def test_repeated(self, things: Things) -> None:
        """An answer that is given again is an entry of its own, without an effect."""
        assert [things.post().status_code for _ in range(2)] == [201, 201]
        assert things.names() == ["t0"]
        assert things.entries() == [("thing.make", "ok", "t0")] * 2


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from bench_service import Bench
from healthobs.audit.trail import AuditTrail
from test_kit_effects import Things

things = Things(Bench(Path({folder!r})))
AuditTrail.hand_over = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
things.post()
"""


def test_killed_after_the_commit(tmp_path: Path) -> None:
    """A process that dies before the entry is in the log leaves it beside the effect; the next start puts it there."""
    folder = tmp_path / "bench"
    code = _KILLED.format(path=[str(Path(__file__).parent)], folder=str(folder))
    killed = subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    bench = Bench(folder)
    try:
        things = Things(bench)
        assert things.names() == ["t0"]
        assert things.entries() == [("thing.make", "ok", "t0")]
        assert things.waiting() == 0
    finally:
        bench.close()
