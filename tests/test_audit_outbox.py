"""The outbox: no effect without its entry, no entry without its effect, whenever the process dies."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from healthobs.audit import Outbox, governance, open_trail, store
from healthobs.audit.trail import AuditTrail
from healthobs.exceptions import AuditWriteError

Forge = Callable[[str], str]
WRITE = {"action": "chart.update", "subject": "s-1"}


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[AuditTrail]:
    opened = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
    yield opened
    opened.close()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = sa.create_engine(f"sqlite:///{tmp_path}/business.db")
    yield made
    made.dispose()


@pytest.fixture
def outbox(trail: AuditTrail, engine: sa.Engine) -> Outbox:
    made = Outbox(trail, engine.begin)
    made.create_table()
    return made


def _renamed(action: str, body: str) -> str:
    return body.replace("chart.update", action)


#: What whoever may insert into the business database could write as a body, made of a good one.
FORGED: dict[str, Forge] = {
    **{action: partial(_renamed, action) for action in sorted(governance.RESERVED)},
    "action twice": lambda body: body.replace('"action":', '"action":"audit.release","action":', 1),
    "reserved twice": lambda body: body.replace('"actor":', '"action":"audit.release","actor":', 1),
    "not canonical": lambda body: body + " ",
    "escaped": lambda body: body.replace("chart.update", "audit.rel\\u0065ase"),
    "a float": lambda body: body.replace('"details":{}', '"details":{"n":1.5}'),
    "no JSON": lambda _body: "078-05-1120",
    "a list": lambda _body: "[]",
    "deep": lambda _body: "[" * 60_000,
    "a surrogate": lambda _body: '{"v":"\\ud800"}',
    "a field too many": lambda body: body.replace('"v":1', '"v":1,"w":1'),
    "another format": lambda body: body.replace('"v":1', '"v":2'),
    "details that are none": lambda body: body.replace('"details":{}', '"details":7'),
    "a null in details": lambda body: body.replace('"details":{}', '"details":{"n":null}'),
    "an actor that is a name": lambda body: re.sub('"actor":{[^}]*}', '"actor":"nobody"', body),
    "a resource without type": lambda body: re.sub('"resource":{[^}]*}', '"resource":{"id":null}', body),
    "a number as subject": lambda body: body.replace('"s-1"', "7"),
    "no service": lambda body: body.replace('"service":"s"', '"service":null'),
    "a time in words": lambda body: re.sub('"time":"[^"]*"', '"time":"yesterday"', body),
    "a time without zone": lambda body: re.sub('"time":"[^"]*"', '"time":"2026-11-26T03:00:00"', body),
    "a time before all": lambda body: re.sub('"time":"[^"]*"', '"time":"0001-01-01T00:00:00+23:00"', body),
    "a number as time": lambda body: re.sub('"time":"[^"]*"', '"time":7', body),
    "no action": lambda body: body.replace('"chart.update"', "null"),
    "too long": lambda body: body.replace("s-1", "s" * 70_000),
}


def forge_is_refused(outbox: Outbox, engine: sa.Engine, trail: AuditTrail, forge: Forge) -> bool:
    """Return whether a forged row between two good ones is kept aside, once, and the two are in the log."""
    body = forge(trail.encode(WRITE).decode())
    with engine.begin() as connection:
        outbox.add(connection, WRITE)
        connection.exec_driver_sql(
            "INSERT INTO healthobs_outbox (id, body) VALUES (:id, :body)"
            if engine.dialect.name == "sqlite"
            else "INSERT INTO healthobs_outbox (id, body) VALUES (%(id)s, %(body)s)",
            {"id": trail.new_key(), "body": body},
        )
        outbox.add(connection, WRITE)
    receipts = [len(outbox.flush()), len(outbox.flush())]
    with engine.begin() as connection:
        kept = [tuple(row) for row in connection.exec_driver_sql("SELECT id, body FROM healthobs_outbox")]
    assert [text for _, text in kept] == [body]
    assert kept[0][0].startswith("refused-")
    actions = [entry["action"] for entry in trail.read().entries]
    return (receipts, actions, trail.refused_rows) == ([2, 0], ["chart.update"] * 2, 1)


def key_without_entry_is_refused(trail: AuditTrail, index: int) -> bool:
    """Return whether a row that was marked as done by somebody else is refused, and not acknowledged."""
    key = trail.new_key()
    with trail.changing() as connection, connection.writing():
        store.insert_sequenced(connection, [(key, index)])
    with pytest.raises(AuditWriteError, match="not the one that an outbox"):
        trail.sequence([(key, trail.encode(WRITE))])
    return trail.read().total == 1


def taken_key_holds_up_nobody(
    outbox: Outbox, engine: sa.Engine, trail: AuditTrail, taken: Callable[[str], object]
) -> bool:
    """Return whether a row whose key `taken` gave to another entry is kept aside, once, and the row behind it recorded."""
    key, body = f"0{trail.new_key()[1:]}", trail.encode(WRITE).decode()  # before every other
    taken(key)
    before = trail.read().total
    with engine.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO healthobs_outbox VALUES (:id, :body)"), {"id": key, "body": body}
        )
        honest = outbox.add(connection, WRITE)
    receipts = [list(outbox.flush()), list(outbox.flush())]
    with engine.begin() as connection:
        ((name, kept),) = connection.execute(sa.text("SELECT id, body FROM healthobs_outbox"))
    assert (name.startswith("refused-"), kept) == (True, body)
    assert trail.verify().problems == ()
    return (receipts, trail.read().total, trail.refused_rows) == ([[honest], []], before + 1, 1)


def reused_key_holds_up_nobody(outbox: Outbox, engine: sa.Engine, trail: AuditTrail) -> bool:
    """Return whether a second row under the id of one that was recorded is kept aside."""
    return taken_key_holds_up_nobody(
        outbox, engine, trail, lambda key: trail.sequence([(key, trail.encode(WRITE))])
    )


class TestOutbox:
    """An entry in the caller's own transaction."""

    def test_committed_entry_is_in_the_log_after_flush(
        self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail
    ) -> None:
        """What was committed is handed over once, with a receipt, and removed."""
        with engine.begin() as connection:
            key = outbox.add(connection, WRITE)
        assert trail.read().total == 0
        receipts = outbox.flush()
        assert {name: receipt.index for name, receipt in receipts.items()} == {key: 0}
        assert outbox.flush() == {}
        assert [entry["action"] for entry in trail.read().entries] == ["chart.update"]

    def test_rolled_back_entry_never_is(self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail) -> None:
        """An effect that was rolled back takes its entry with it."""

        def fail() -> None:
            with engine.begin() as connection:
                outbox.add(connection, WRITE)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert (outbox.flush(), trail.read().total) == ({}, 0)

    def test_malformed_entry_fails_the_transaction(self, outbox: Outbox, engine: sa.Engine) -> None:
        """An effect whose entry cannot be written must not happen: the caller hears before the commit."""
        with engine.begin() as connection, pytest.raises(AuditWriteError):
            outbox.add(connection, {"action": "not a word"})

    def test_time_is_that_of_the_effect(self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail) -> None:
        """Entries come into the log in the order in which they were written, many at a time."""
        with engine.begin() as connection:
            for number in range(1_203):
                outbox.add(connection, {**WRITE, "resource_id": str(number)})
        outbox.flush()
        order = [entry["resource"]["id"] for entry in trail.read(limit=1_000).entries]
        assert order == [str(number) for number in range(1_202, 202, -1)]
        assert trail.read(limit=1).total == 1_203

    def test_rows_stay_while_the_log_takes_none(
        self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail
    ) -> None:
        """With the store down the flush raises, and nothing is lost."""
        assert trail.path is not None
        hidden = trail.path.rename(trail.path.with_name("hidden"))
        with engine.begin() as connection:
            outbox.add(connection, WRITE)
        with pytest.raises(AuditWriteError):
            outbox.flush()
        hidden.rename(trail.path)
        assert len(outbox.flush()) == 1

    def test_handed_over_twice_is_one_entry(self, trail: AuditTrail) -> None:
        """The same row is one entry: again later, again in one batch, and from several threads at once."""
        rows = [(trail.new_key(), trail.encode(WRITE)) for _ in range(20)]
        first = trail.sequence(rows)
        assert trail.sequence(rows[:1] * 3)[2].index == first[0].index
        fresh = [(trail.new_key(), trail.encode(WRITE)) for _ in range(20)]
        with ThreadPoolExecutor(8) as pool:
            told = list(
                pool.map(lambda _: [receipt.index for receipt in trail.sequence(fresh * 2)], range(8))
            )
        assert {tuple(sorted(set(indices))) for indices in told} == {tuple(range(20, 40))}
        assert (trail.read().total, trail.verify().problems) == (40, ())

    def test_key_taken_by_another_entry(self, trail: AuditTrail) -> None:
        """Whoever marks a row as done under another entry is found out, and the row is not dropped."""
        key = trail.new_key()
        trail.sequence([(key, trail.encode(WRITE))])
        with pytest.raises(AuditWriteError, match="not the one that an outbox"):
            trail.sequence([(key, trail.encode(WRITE))])

    def test_reused_key_holds_up_nobody(self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail) -> None:
        """A row that reuses the id of a recorded one, for another entry, is kept aside; those behind it are recorded."""
        assert reused_key_holds_up_nobody(outbox, engine, trail)

    def test_marked_row_holds_up_nobody(self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail) -> None:
        """A row that somebody marked as recorded, which it is not, is kept aside; those behind it are recorded."""

        def mark(key: str) -> None:
            with trail.changing() as connection, connection.writing():
                store.insert_sequenced(connection, [(key, 7)])

        assert taken_key_holds_up_nobody(outbox, engine, trail, mark)

    def test_reused_key_fails_nobody_in_its_batch(self, trail: AuditTrail) -> None:
        """Of entries that are written in one transaction only the one under a taken key is refused, old or new."""
        taken, twice = trail.new_key(), trail.new_key()
        trail.sequence([(taken, trail.encode(WRITE))])
        first, second = trail.encode(WRITE), trail.encode(WRITE)
        rows = [
            (None, first),
            (taken, first),
            (twice, first),
            (twice, second),
            (twice, first),
            (None, second),
        ]
        receipts = trail._access.writer().append_all(rows, 10)
        assert [receipt and receipt.index for receipt in receipts] == [1, None, 2, None, 2, 3]
        with pytest.raises(AuditWriteError, match="key has another entry"):
            trail._access.writer().append(first, 10, taken)
        assert (trail.read().total, trail.verify().problems) == (4, ())

    @pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
    def test_forged_row_is_set_aside(
        self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail, forged: Forge
    ) -> None:
        """A row that only the trail itself could record, or nobody, is kept aside and holds up no other."""
        assert forge_is_refused(outbox, engine, trail, forged)

    @pytest.mark.parametrize(
        "row",
        ["'a', CAST(x'ff' AS TEXT)", "CAST(x'ff' AS TEXT), 'a'", "x'61', x'62'", "7, 8", "'ä', 'a'"],
        ids=["body", "id", "bytes", "numbers", "letter"],
    )
    def test_row_that_is_no_text(
        self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail, row: str
    ) -> None:
        """What SQLite keeps in a column of texts though it is none is set aside, and holds up no other row."""
        with engine.begin() as connection:
            connection.execute(sa.text(f"INSERT INTO healthobs_outbox (id, body) VALUES ({row})"))
            outbox.add(connection, WRITE)
        assert len(outbox.flush()) == 1
        assert outbox.flush() == {}
        assert (trail.read().total, trail.refused_rows) == (1, 1)
        with engine.begin() as connection:
            kept = connection.execute(sa.text("SELECT id, CAST(body AS BLOB) FROM healthobs_outbox")).all()
        assert [(name[:8], bool(body)) for name, body in kept] == [("refused-", True)]

    def test_a_key_in_bytes(self, outbox: Outbox, engine: sa.Engine, trail: AuditTrail) -> None:
        """An entry whose id is stored as bytes is recorded once, and gone."""
        with engine.begin() as connection:
            outbox.add(connection, WRITE)
            connection.execute(sa.text("UPDATE healthobs_outbox SET id = CAST(id AS BLOB)"))
        assert (len(outbox.flush()), len(outbox.flush())) == (1, 0)
        assert (trail.read().total, trail.refused_rows) == (1, 0)

    def test_reserved_bytes_are_refused(self, trail: AuditTrail) -> None:
        """Nothing that governs the trail can be handed over as bytes either."""
        body = trail.encode(WRITE).replace(b"chart.update", b"audit.release")
        with pytest.raises(AuditWriteError, match="no entry that an application may record"):
            trail.sequence([(trail.new_key(), trail.encode(WRITE)), (trail.new_key(), body)])
        assert trail.read().total == 0

    @pytest.mark.parametrize("index", [-1, 1, 7])
    def test_key_taken_by_no_entry(self, trail: AuditTrail, index: int) -> None:
        """Whoever marks a row as done under an entry that is in no log is found out, and the row is not dropped."""
        trail.append(WRITE)
        assert key_without_entry_is_refused(trail, index)

    @pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
    def test_plain_connection(self, trail: AuditTrail, tmp_path: Path, encoding: str) -> None:
        """A connection of `sqlite3` will do, however the database encodes its texts."""

        @contextmanager
        def begin() -> Iterator[sqlite3.Connection]:
            connection = sqlite3.connect(tmp_path / "plain.db")
            connection.execute(f"PRAGMA encoding = '{encoding}'")
            with connection:
                yield connection
            connection.close()

        outbox = Outbox(trail, begin)
        outbox.create_table()
        with begin() as connection:
            outbox.add(connection, {**WRITE, "reason": "Größe €"})
        assert (len(outbox.flush()), trail.refused_rows) == (1, 0)
        assert trail.read().entries[0]["reason"] == "Größe €"

    @pytest.mark.server
    def test_postgresql(self, postgres: Any, tmp_path: Path) -> None:
        """Business and audit in PostgreSQL, by SQLAlchemy and by psycopg."""
        import psycopg

        url = postgres.url(postgres.database())
        trail = open_trail(url, service="s", key_file=tmp_path / "key.pem")
        engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        for begin in (engine.begin, lambda: psycopg.connect(url)):
            outbox = Outbox(trail, begin)
            outbox.create_table()
            with begin() as connection:
                outbox.add(connection, WRITE)
            assert len(outbox.flush()) == 1
        assert (trail.read().total, trail.verify().problems) == (2, ())
        other = open_trail(postgres.url(postgres.database()), service="s", key_file=tmp_path / "other.pem")
        assert forge_is_refused(Outbox(other, engine.begin), engine, other, FORGED["audit.release"])
        with engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM healthobs_outbox"))
        other._sequencer.refused_rows = 0
        assert reused_key_holds_up_nobody(Outbox(other, engine.begin), engine, other)
        other.close()
        third = open_trail(postgres.url(postgres.database()), service="s", key_file=tmp_path / "third.pem")
        third.append(WRITE)
        assert key_without_entry_is_refused(third, 7)
        third.close()
        trail.close()
        engine.dispose()

    @pytest.mark.server
    def test_made_at_once(self, trail: AuditTrail, postgres: Any) -> None:
        """Of two processes that make the table in PostgreSQL at once, the second waits for the first and goes on."""
        import psycopg

        database = postgres.database()
        made = threading.Event()

        @contextmanager
        def held() -> Iterator[Any]:
            with psycopg.connect(postgres.url(database)) as connection:
                yield connection
                made.set()
                assert postgres.until_one_waits(database)

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(Outbox(trail, held).create_table)
            assert made.wait(20)
            second = threads.submit(
                Outbox(trail, lambda: psycopg.connect(postgres.url(database))).create_table
            )
            first.result(20)
            second.result(20)


#: Dies by SIGKILL at the Nth call or return in outbox, store and writer, for each N in turn, and looks what is left.
DRIVER = """
import contextlib, json, os, signal, sqlite3, sys, threading
import healthobs.audit.sqlite, healthobs.audit.opening, cryptography.hazmat.primitives.serialization
from healthobs.audit import Outbox, open_trail, outbox as module, trail as trails
from healthobs.audit.keys import load_or_create

folder, fault, first, step, audit_url = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
key = __import__("pathlib").Path(folder, "key")

@contextlib.contextmanager
def begin():
    connection = sqlite3.connect(folder + "/business.db")
    connection.execute("PRAGMA synchronous = OFF")  # a kill loses nothing, and this test is about kills
    with connection:
        yield connection
    connection.close()

if fault == "without idempotency":
    trails.AuditTrail.hand_over = lambda self, rows: [
        self._access.writer().append(body, 10) for _, body in rows
    ]

def write(outbox, number):
    if fault == "row before the transaction":
        with begin() as connection:
            outbox.add(connection, {"action": "chart.update", "resource_id": str(number)})
    with begin() as connection:
        connection.execute("INSERT INTO effect VALUES (?)", (number,))
        if not fault.startswith("row"):
            outbox.add(connection, {"action": "chart.update", "resource_id": str(number)})
    if fault == "row after the transaction":
        with begin() as connection:
            outbox.add(connection, {"action": "chart.update", "resource_id": str(number)})
    outbox.flush()

def child(number, die_at):
    trail = open_trail(audit_url, service="s", key_file=key)
    steps = 0
    def profile(frame, event, argument):
        nonlocal steps
        name = frame.f_code.co_filename
        steps += event in ("call", "return") and name.endswith(("outbox.py", "sqlite.py", "writer.py", "<string>"))
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    threading.setprofile(profile)  # the thread that writes batches, too
    sys.setprofile(profile)
    write(Outbox(trail, begin), number)
    sys.setprofile(None)
    os._exit(0)

with begin() as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS effect (number INTEGER PRIMARY KEY)")
trail = open_trail(audit_url, service="s", key_file=key)
Outbox(trail, begin).create_table()
trail.close()
deaths, number = 0, first
while True:
    pid = os.fork()
    if pid == 0:
        child(number, number)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended == 0:
        break
    assert ended == -signal.SIGKILL, "a child ended by a fault of its own"
    deaths, number = deaths + 1, number + step
    if os.fork() == 0:  # what a death left must not pile up
        trail = open_trail(audit_url, service="s", key_file=key)
        Outbox(trail, begin).flush()
        os._exit(0)
    assert os.wait()[1] == 0, "what a death left could not be flushed"
trail = open_trail(audit_url, service="s", key_file=key)
Outbox(trail, begin).flush()
told, cursor = [], None
while True:
    page = trail.read(limit=1000, cursor=cursor)
    told += [int(entry["resource"]["id"]) for entry in page.entries]
    cursor = page.next_cursor
    if cursor is None:
        break
with begin() as connection:
    effects = [number for (number,) in connection.execute("SELECT number FROM effect")]
print(json.dumps({"deaths": deaths, "effects": sorted(effects), "told": sorted(told), "ok": trail.verify().ok}), flush=True)
os._exit(0)
"""


def run(fault: str, step: int, audit_url: str = "") -> dict[str, Any]:
    """Run the driver, in memory where there is such a folder (a kill needs no disk), and return what it found."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        audit_url = audit_url or f"sqlite:///{folder}/audit.db"
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, folder, fault, "1", str(step), audit_url],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


class TestKilled:
    """`kill -9` at each call and return in turn."""

    def test_at_some_moments(self) -> None:
        """A death in the middle leaves effects and entries that are the same, each once."""
        found = run("none", step=23)
        assert found["deaths"] > 5
        assert (found["told"], found["ok"]) == (found["effects"], True)

    @pytest.mark.server
    def test_at_every_moment(self) -> None:
        """The same at every single one."""
        found = run("none", step=1)
        assert found["deaths"] > 100
        assert (found["told"], found["ok"]) == (found["effects"], True)

    @pytest.mark.server
    def test_between_two_databases(self, postgres: Any) -> None:
        """The same with business in SQLite and the log in PostgreSQL."""
        found = run("none", 7, postgres.url(postgres.database()))
        assert found["deaths"] > 15
        assert (found["told"], found["ok"]) == (found["effects"], True)

    @pytest.mark.server
    @pytest.mark.parametrize(
        ("fault", "wrong"),
        [
            ("without idempotency", "twice"),
            ("row before the transaction", "without effect"),
            ("row after the transaction", "without entry"),
        ],
    )
    def test_planted_fault_is_found(self, fault: str, wrong: str) -> None:
        """Each way to do it wrong leaves its mark at some moment, so this test can fail."""
        found = run(fault, step=5)
        told, effects = found["told"], set(found["effects"])
        marks = {
            "twice": len(told) > len(set(told)),
            "without effect": bool(set(told) - effects),
            "without entry": bool(effects - set(told)),
        }
        assert marks == {name: name == wrong for name in marks}
