"""The audit trail in a real PostgreSQL: roles, guards, replicas at once, crashes, and settings that lose data."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import Postgres

from healthobs.audit import governance, merkle, open_trail
from healthobs.audit.command import main
from healthobs.audit.copies import unfaithful
from healthobs.audit.opening import store_of
from healthobs.audit.postgres import GUARDS, PostgresStore, prepare
from healthobs.audit.removal import Removals
from healthobs.audit.store import StoreError
from healthobs.audit.trail import AuditTrail
from healthobs.audit.verification import NO_ENTRIES
from healthobs.exceptions import AuditError, AuditWriteError, ConfigurationError

pytestmark = pytest.mark.server
READ = {"action": "patient.read", "actor": "client-1", "subject": "s-1"}


class Log:
    """A log in a database of its own, made by its owner for an application role."""

    def __init__(self, server: Postgres, key_file: Path) -> None:
        self.server, self.key_file = server, key_file
        self.name = server.database()
        self.role = f"app_{secrets.token_hex(4)}"
        server.execute(server.url("postgres"), f"CREATE ROLE {self.role} LOGIN")
        self.owner = server.url(self.name)
        self.application = server.url(self.name, self.role)
        prepare(self.owner, self.role)
        self._trails: list[AuditTrail] = []

    def open(self, **options: Any) -> AuditTrail:
        """Open the trail as the application."""
        options = {"service": "s", "key_file": self.key_file, **options}
        self._trails.append(open_trail(self.application, **options))
        return self._trails[-1]

    def close(self) -> None:
        for trail in self._trails:
            trail.close()

    def as_owner(self, *statements: str) -> list[tuple[Any, ...]]:
        return self.server.execute(self.owner, "SET search_path = healthobs_audit", *statements)


@pytest.fixture
def log(postgres: Postgres, tmp_path: Path) -> Iterator[Log]:
    made = Log(postgres, tmp_path / "key.pem")
    yield made
    made.close()


class TestTrail:
    """What every store must do."""

    def test_appends_reads_proves_verifies(self, log: Log) -> None:
        """The trail works as on SQLite, and the root is that of the bodies that are stored."""
        trail = log.open()
        with ThreadPoolExecutor(16) as pool:
            receipts = list(
                pool.map(lambda number: trail.append({**READ, "resource_id": f"%_{number}"}), range(300))
            )
        assert sorted(receipt.index for receipt in receipts) == list(range(300))
        bodies = [body for (body,) in log.as_owner("SELECT body FROM entry ORDER BY idx")]
        root = merkle.root_of(merkle.leaf_hash(body.encode()) for body in bodies)
        checkpoint = trail.checkpoint()
        assert (checkpoint.size, checkpoint.root) == (300, root)
        verdict = trail.verify()
        assert (verdict.problems, verdict.size, verdict.root) == ((), 300, root)
        assert trail.inclusion_proof(257).verify(root)
        assert trail.read(resource_id="%_17").total == 1
        assert trail.read(actor="client-1", limit=7).total == 300
        trail.health()

    def test_locked_by_another(self, log: Log) -> None:
        """While another connection holds the lock and adds nothing, it is not healthy; with the lock free it is again."""
        trail = log.open()
        trail.append(READ)
        with closing(PostgresStore(log.application).connect()) as blocker, blocker.writing():
            for asked in (trail.health, trail.accepted_changes):
                with pytest.raises(StoreError, match="55P03") as caught:
                    asked()
                assert caught.value.busy
        trail.health()

    def test_goes_on_after_it_was_opened_again(self, log: Log) -> None:
        """Another process finds origin, key and entries."""
        first = log.open()
        first.append(READ)
        second = log.open()
        assert (second.origin, second.append(READ).index, first.append(READ).index) == (first.origin, 1, 2)

    def test_url_as_sqlalchemy_has_it(self, log: Log) -> None:
        """The URL that SQLAlchemy takes for this driver is taken, too."""
        url = log.application.replace("postgresql://", "postgresql+psycopg://", 1)
        with closing(open_trail(url, service="s", key_file=log.key_file)) as trail:
            assert trail.append(READ).index == 0

    def test_where_it_is(self) -> None:
        """What a key's `.logs` says of a log: server, port and database, and nobody's name or password."""
        assert PostgresStore("postgresql://app:secret@db:5433/phi").name == "postgresql:db:5433:phi"
        assert PostgresStore("postgresql:///phi").name == "postgresql:::phi"

    def test_who_only_reads_cannot_write(self, log: Log) -> None:
        """A connection is one that may write unless it is asked for as one that may not."""
        store = PostgresStore(log.application)
        for options, said in (({}, "off"), ({"read_only": True}, "on")):
            with closing(store.connect(**options)) as connection:
                assert connection.execute("SHOW default_transaction_read_only") == [(said,)]

    def test_one_makes_the_tables(self, postgres: Postgres, tmp_path: Path) -> None:
        """Whoever opens a new trail waits for who is at it, and then finds the tables."""
        url = postgres.url(postgres.database())
        with ThreadPoolExecutor(1) as pool, store_of(url).initialising() as connection:
            later = pool.submit(open_trail, url, service="s", key_file=tmp_path / "key.pem")
            waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            _until(lambda: later.done() or bool(connection.execute(waiting)))
            assert not later.done()
        with closing(later.result()) as trail:
            assert trail.append(READ).index == 0

    def test_key_is_retired_where_the_log_is_named(self, log: Log, tmp_path: Path) -> None:
        """Keys that sign a log here and one in a file are dropped when this one is named, by whichever role."""
        with closing(open_trail(f"sqlite:///{tmp_path}/b.db", service="s", key_file=log.key_file)):
            log.open().append(READ)
        retire = ["rotate", str(log.key_file), "--retire"]
        assert main(retire[:2]) == 0
        open_trail(f"sqlite:///{tmp_path}/b.db", service="s", key_file=log.key_file).close()
        assert main([*retire, log.owner]) == 2, "not signed with the new one yet"
        log.open()
        assert main([*retire, f"{tmp_path}/b.db"]) == 2, "not named"
        assert main([*retire, log.owner]) == 0
        assert log.open().append(READ).index == 2

    def test_goes_on_after_an_exception(self, log: Log) -> None:
        """What was written before an exception is undone, and the connection is as good as before."""
        log.open()
        with closing(store_of(log.application).connect()) as connection:
            with pytest.raises(KeyError), connection.writing():
                connection.execute("INSERT INTO checkpoint VALUES (7, '')")
                raise KeyError
            with connection.reading():
                assert connection.execute("SELECT size FROM checkpoint") == [(0,)]

    def test_key_file_must_be_named(self, log: Log) -> None:
        """There is no file beside which a key could lie."""
        with pytest.raises(ConfigurationError, match="audit_key_file"):
            open_trail(log.application, service="s")

    def test_odd_text(self, log: Log) -> None:
        """Characters that PostgreSQL treats apart come back as they were."""
        trail = log.open()
        trail.append({**READ, "resource_id": "a\x00b\\ü%'"})
        assert trail.read(resource_id="a\x00b\\ü%'").total == 1
        assert trail.verify().ok


class TestGuards:
    """What the database refuses."""

    def test_application_may_only_read_and_append(self, log: Log) -> None:
        """The application's role is refused every change, and can drop no guard."""
        trail = log.open()
        trail.append(READ)
        assert trail.accepted_changes() == ()
        for statement in (
            "DROP TRIGGER entry_no_gap ON healthobs_audit.entry",
            "ALTER TABLE healthobs_audit.entry DISABLE TRIGGER ALL",
            "UPDATE healthobs_audit.log SET origin = 'x'",
            "UPDATE healthobs_audit.log SET one = 1",
            "DELETE FROM healthobs_audit.checkpoint",
            "TRUNCATE healthobs_audit.sequenced",
            "CREATE TABLE healthobs_audit.x (y INTEGER)",
        ):
            with pytest.raises(Exception, match=r"must be owner|permission denied|only grows"):
                log.server.execute(log.application, statement)

    def test_owner_is_refused_too(self, log: Log) -> None:
        """Privileges are not all: the guards also stop whoever has them."""
        trail = open_trail(log.owner, service="s", key_file=log.key_file)
        trail.append(READ)
        assert trail.accepted_changes() == ()
        trail.close()

    def test_what_is_not_refused_is_named(self, log: Log) -> None:
        """Without the guards each kind of change that the owner may do is named."""
        trail = open_trail(log.owner, service="s", key_file=log.key_file)
        log.as_owner("ALTER TABLE entry DISABLE TRIGGER ALL")
        assert trail.accepted_changes() == ("UPDATE", "DELETE", "gap", "REPLACE", "TRUNCATE")
        trail.close()

    @pytest.mark.parametrize("guard", GUARDS)
    def test_each_missing_guard_is_named(self, log: Log, guard: str) -> None:
        """A guard that was dropped, or switched off, is found by verification."""
        trail = log.open()
        table = GUARDS[guard][0]
        log.as_owner(f"ALTER TABLE {table} DISABLE TRIGGER {guard}")
        assert [str(problem) for problem in trail.verify().problems] == [
            f"the guard {guard} is missing or altered"
        ]
        log.as_owner(f"DROP TRIGGER {guard} ON {table}")
        assert [str(problem) for problem in trail.verify().problems] == [
            f"the guard {guard} is missing or altered"
        ]

    def test_changes_behind_the_guards_are_named(self, log: Log) -> None:
        """The owner who switches the guards off cannot hide what was changed."""
        trail = log.open()
        for _ in range(3):
            trail.append(READ)
        off, on = (f"ALTER TABLE entry {word} TRIGGER ALL" for word in ("DISABLE", "ENABLE"))
        log.as_owner(off, "UPDATE entry SET body = replace(body, 'client-1', 'client-2') WHERE idx = 1", on)
        verdict = trail.verify()
        assert (verdict.ok, verdict.first_bad_index) == (False, 1)

    def test_what_came_since(self, log: Log) -> None:
        """What came since the log was verified is judged as all of it: orders, checkpoints on the way, tiles of no entries."""
        trail = log.open()
        rows = [(trail.new_key(), trail.encode(READ)) for _ in range(600)]
        trail.sequence(rows[:300])
        seen = trail.tree(300)
        trail.sequence(rows[300:])
        trail.append(READ)
        trail.append(READ)
        verdict, tree = trail.verify_since(seen)
        assert (verdict.problems, verdict.size, tree is not None) == ((), 302, True)
        for table, damage in (
            ("tile", "INSERT INTO tile VALUES (1, 0, 9, decode(repeat('00', 288), 'hex'))"),
            ("checkpoint", "UPDATE checkpoint SET note = 'x' WHERE size = 601"),
        ):
            off, on = (f"ALTER TABLE {table} {word} TRIGGER ALL" for word in ("DISABLE", "ENABLE"))
            log.as_owner(off, damage, on)
        trail.append_own({"action": governance.PRUNE, "details": {"below": 256}})
        found = {str(problem) for problem in trail.verify_since(seen)[0].problems}
        assert len(found) == 3
        told = {
            problem.replace("the kept tile 0 of level 1 is not that of the entries", NO_ENTRIES)
            for problem in map(str, trail.verify().problems)
        }
        assert found == told

    def test_what_is_gone(self, log: Log) -> None:
        """What went, with an order or without, is seen by the application's role, and copies show what was recorded."""
        trail = log.open()
        for _ in range(4):
            trail.append(READ)
        removals = Removals()
        assert (removals.look(trail).missing, unfaithful(trail, 0, 3)) == (0, set())
        trail.append_own({"action": governance.ERASE, "details": {"ranges": "1"}})
        with closing(store_of(log.owner).connect()) as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx IN (1, 2)")
        kept = removals.look(trail)
        assert ([each[:2] for each in kept.removals], kept.missing) == ([(1, 1)], 1)
        assert unfaithful(trail, 0, 3) == {1, 2}

    def test_only_the_owner_lifts_the_guards(self, log: Log) -> None:
        """Erasing needs the owner's connection, and leaves every guard in force again."""
        trail = log.open()
        for _ in range(3):
            trail.append(READ)

        def erase(url: str) -> None:
            with closing(store_of(url).connect()) as connection, connection.amending():
                connection.execute("UPDATE entry SET body = NULL WHERE idx = 1")

        with pytest.raises(AuditError, match="42501"):
            erase(log.application)
        erase(log.owner)
        assert log.as_owner("SELECT idx FROM entry WHERE body IS NULL") == [(1,)]
        assert trail.accepted_changes() == ()
        assert not [problem for problem in trail.verify().problems if "guard" in str(problem)]

    def test_somebody_elses_schema(self, postgres: Postgres, tmp_path: Path) -> None:
        """A schema of the same name with other tables is left alone."""
        url = postgres.url(postgres.database())
        postgres.execute(
            url, "CREATE SCHEMA healthobs_audit", "CREATE TABLE healthobs_audit.patient (id INTEGER)"
        )
        with pytest.raises(AuditError, match="no audit trail"):
            open_trail(url, service="s", key_file=tmp_path / "key.pem")


class TestDurability:
    """What is acknowledged stays, and what could be lost is not acknowledged."""

    @pytest.mark.parametrize("value", ["off", "local"])
    def test_asynchronous_commit_is_refused(self, log: Log, value: str) -> None:
        """With synchronous_commit below `on` nothing is acknowledged, from the next batch on."""
        trail = log.open()
        trail.append(READ)
        log.as_owner(f"ALTER ROLE {log.role} SET synchronous_commit = {value}")
        trail.close()
        trail = log.open()
        with pytest.raises(AuditWriteError, match=f"synchronous_commit={value}"):
            trail.append(READ)
        with pytest.raises(AuditError, match=f"synchronous_commit={value}"):
            trail.health()

    @pytest.mark.parametrize("setting", ["synchronous_commit", "fsync", "full_page_writes"])
    def test_setting_that_changes_under_way_is_noticed(
        self, postgres: Postgres, log: Log, setting: str
    ) -> None:
        """A server that is told to stop syncing while we are connected gets no further acknowledgement."""
        trail = log.open()
        trail.append(READ)
        admin = postgres.url("postgres")
        try:
            postgres.execute(admin, f"ALTER SYSTEM SET {setting} = off", "SELECT pg_reload_conf()")
            with pytest.raises(AuditWriteError, match=f"{setting}=off"):
                _until_refused(lambda: trail.append(READ))
        finally:
            postgres.execute(admin, f"ALTER SYSTEM RESET {setting}", "SELECT pg_reload_conf()")
            _until(lambda: postgres.execute(admin, f"SHOW {setting}") == [("on",)])

    def test_crash_of_the_server(self, log: Log, postgres: Postgres) -> None:
        """A server that dies in the middle loses nothing acknowledged; the trail goes on once it is back."""
        trail = log.open()
        acknowledged: dict[int, str] = {}

        def work(thread: int) -> None:
            for number in range(10_000):
                mark = f"{thread}-{number}"
                try:
                    acknowledged[trail.append({**READ, "resource_id": mark}).index] = mark
                except AuditWriteError:
                    return

        with ThreadPoolExecutor(8) as pool:
            for thread in range(8):
                pool.submit(work, thread)
            time.sleep(0.5)
            postgres.stop("immediate")
        with pytest.raises(AuditWriteError):
            trail.append(READ)
        postgres.start()
        trail.append(READ)
        verdict = trail.verify()
        assert verdict.problems == ()
        assert len(acknowledged) > 10
        kept = dict(log.as_owner("SELECT idx, body::json #>> '{resource,id}' FROM entry"))
        assert {index: kept.get(index) for index in acknowledged} == acknowledged

    def test_stopped_server_denies_in_time(self, log: Log, postgres: Postgres) -> None:
        """A server that hangs makes an append fail within its time, not wait for ever."""
        trail = log.open()
        trail.append(READ)
        trail._timeout_seconds = 0.5
        backend = log.as_owner("SELECT pid FROM pg_stat_activity WHERE usename = '" + log.role + "'")[0][0]
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(AuditWriteError, match=r"within 0\.5 s"):
                trail.append(READ)
        finally:
            os.kill(backend, signal.SIGCONT)

    def test_errors_carry_no_values(self, postgres: Postgres, tmp_path: Path) -> None:
        """Neither host, role nor database of a failed connection is in the message, nor a DETAIL with values."""
        with pytest.raises(AuditError) as caught:
            open_trail(postgres.url("needle_of_a_database"), service="s", key_file=tmp_path / "key.pem")
        assert "needle" not in str(caught.value)
        url = postgres.url(postgres.database())
        trail = open_trail(url, service="s", key_file=tmp_path / "key.pem")
        postgres.execute(
            url, "ALTER TABLE healthobs_audit.entry ADD CHECK (body NOT LIKE '%needle%')"
        )  # its DETAIL would quote the row
        with pytest.raises(AuditWriteError, match="23514 CheckViolation") as refused:
            trail.append({**READ, "resource_id": "needle"})
        assert "needle" not in str(refused.value)
        assert refused.value.__cause__ is None
        assert trail.append(READ).index == 0
        trail.close()


def _until_refused(append: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        append()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestForeignTriggers:
    """What an owner could put beside the guards."""

    @pytest.mark.parametrize("made", [
        "CREATE TRIGGER e BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION drop_row()",
        "CREATE TRIGGER entry_no_gap BEFORE INSERT ON checkpoint FOR EACH ROW EXECUTE FUNCTION drop_row()",
        "CREATE RULE e AS ON INSERT TO entry DO INSTEAD NOTHING",
    ])  # fmt: skip
    def test_dropped_entry_is_not_acknowledged(self, log: Log, made: str) -> None:
        """An entry that a trigger or rule keeps from the table is refused, and verification reports which are no guards."""
        trail = log.open()
        trail.append(READ)
        log.as_owner(
            "CREATE FUNCTION drop_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$", made
        )
        with pytest.raises(AuditWriteError, match="did not keep what was written"):
            trail.append(READ)
        problems = [str(problem) for problem in trail.verify().problems]
        assert (
            f"what is not the log's is in its database (1): {made.split()[1].lower()} {made.split()[2]}"
            in problems
        )

    @pytest.mark.parametrize(
        "column", ["body := replace(new.body, 'patient', 'payment')", "leaf := sha256('')"]
    )
    def test_altered_entry_is_not_acknowledged(self, log: Log, column: str) -> None:
        """An entry that a trigger alters on its way is refused, and nothing of it is kept."""
        trail = log.open()
        trail.append(READ)
        log.as_owner(
            f"CREATE FUNCTION alter_row() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN new.{column}; RETURN new; END$$",
            "CREATE TRIGGER e BEFORE INSERT ON entry FOR EACH ROW EXECUTE FUNCTION alter_row()",
        )
        with pytest.raises(AuditWriteError, match="did not keep what was written"):
            trail.append(READ)
        assert trail.checkpoint().size == 1
