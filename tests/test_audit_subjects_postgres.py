"""The map of subjects in a real PostgreSQL: roles, one key, replicas at once, a server that fails, forks."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.audit_trails import unmeasured
from tests.postgres import Postgres
from tests.subject_places import ServerPlace

from healthobs import Observability, Settings
from healthobs.audit import open_trail, postgres, postgres_subjects
from healthobs.audit.subjects import SubjectMap
from healthobs.exceptions import AuditError, AuditWriteError, ConfigurationError
from healthobs.testing import assert_no_phi

pytestmark = pytest.mark.server
PATIENT = "Quixote-of-Barataria"
NEEDLES = {"identifier": PATIENT}
READ = {"action": "patient.read", "actor": "client-1", "subject": PATIENT}
#: The child inherits no connection and asks with one of its own, while the parent goes on.
FORKING = """
import contextlib, os, stat, sys
from pathlib import Path
from healthobs.audit.subjects import SubjectMap

def sockets():
    for number in range(3, 100):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                yield number

subjects = SubjectMap(sys.argv[1], Path(sys.argv[2]))
token = subjects.token("patient-1")
assert list(sockets())
child = os.fork()
if child == 0:
    if list(sockets()):
        os._exit(7)
    subjects.token("patient-2")
    os._exit(subjects.token("patient-1") != token)
for number in range(50):
    assert subjects.token("patient-1") == token
print(os.waitpid(child, 0)[1], subjects.token("patient-1") == token)
"""


@pytest.fixture
def server_place(postgres: Postgres, tmp_path: Path) -> Iterator[ServerPlace]:
    """Give a database for a map, that the owner of everything uses."""
    made = ServerPlace(tmp_path, postgres)
    yield made
    made.drop()


@pytest.fixture
def application(server_place: ServerPlace) -> str:
    """Give the URL of a role that the owner prepared the map for."""
    role = new_role(server_place)
    postgres_subjects.prepare(server_place.url, role)
    return as_role(server_place, role)


def new_role(place: ServerPlace) -> str:
    role = f"app_{secrets.token_hex(4)}"
    place.server.execute(place.url, f"CREATE ROLE {role} LOGIN")
    return role


def as_role(place: ServerPlace, role: str) -> str:
    return place.url.replace("owner@", f"{role}@")


def sessions(place: ServerPlace) -> list[int]:
    """Return the server's processes for this map, but for the one that asks."""
    asked = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return [pid for (pid,) in place.server.execute(place.url, asked + " AND backend_type = 'client backend'")]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let a process fall silent, with its connections open."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def down(server: Postgres) -> Iterator[None]:
    """Take the server away."""
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def adding(place: ServerPlace, subjects: SubjectMap) -> Iterator[Callable[[str], list[Any]]]:
    """Add the patient as another replica does that has not committed yet; the function given ends it."""
    row = subjects._new(PATIENT)
    with closing(psycopg.connect(place.url)) as other:
        other.execute("INSERT INTO healthobs_subjects.subject VALUES (%s, %s, %s)", row)

        def run(statement: str) -> list[Any]:
            cursor = other.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        yield run


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestRoles:
    """Owner, application and readers of the log apart."""

    def test_application(self, server_place: ServerPlace, application: str) -> None:
        """The application's role has all that a map needs, and no more."""
        subjects = SubjectMap(application, server_place.key)
        token = subjects.token(PATIENT)
        assert (subjects.identifier(token), SubjectMap(application, server_place.key).find(PATIENT)) == (
            PATIENT,
            token,
        )
        subjects.check()
        assert subjects.erase(PATIENT)
        assert server_place.execute("SELECT count(*) FROM subject") == [(0,)]
        for statement in (
            "UPDATE healthobs_subjects.subject SET sealed = ''",
            "TRUNCATE healthobs_subjects.subject",
            "DELETE FROM healthobs_subjects.mark",
            "UPDATE healthobs_subjects.mark SET sealed = ''",
            "CREATE TABLE healthobs_subjects.x (y INTEGER)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server_place.server.execute(application, statement)

    def test_reader_of_the_log(self, server_place: ServerPlace, application: str) -> None:
        """Who may read the log, in the same database, has no way to the map."""
        reader = new_role(server_place)
        postgres.prepare(server_place.url, reader)
        SubjectMap(application, server_place.key).token(PATIENT)
        url = as_role(server_place, reader)
        assert server_place.server.execute(url, "SELECT count(*) FROM healthobs_audit.entry") == [(0,)]
        for table in ("subject", "mark"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                server_place.server.execute(url, f"SELECT 1 FROM healthobs_subjects.{table}")

    def test_not_prepared(self, server_place: ServerPlace) -> None:
        """An application that may make no schema, and finds none, does not start; the message names nothing."""
        url = as_role(server_place, new_role(server_place))
        with pytest.raises(AuditError, match=r"subject map cannot be used \(42501 InsufficientPrivilege\)"):
            SubjectMap(url, server_place.key)
        assert not server_place.key.exists()

    def test_key_file_must_be_named(self, server_place: ServerPlace) -> None:
        """There is no file beside which a key could lie."""
        with pytest.raises(ConfigurationError, match="audit_subjects_key_file"):
            SubjectMap(server_place.url)

    def test_url_as_sqlalchemy_has_it(self, server_place: ServerPlace) -> None:
        """The URL that SQLAlchemy takes for this driver is taken, too."""
        url = server_place.url.replace("postgresql://", "postgresql+psycopg://", 1)
        assert SubjectMap(url, server_place.key).token(PATIENT) == server_place.open().find(PATIENT)


class TestOneKey:
    """Replicas have one key, from before the first row on."""

    def test_replica_without_the_key(self, server_place: ServerPlace, tmp_path: Path) -> None:
        """A replica that was not given the key makes none, though there is no row yet."""
        server_place.open()
        with pytest.raises(ConfigurationError, match="key file is missing"):
            server_place.open(tmp_path / "own.key")
        assert not (tmp_path / "own.key").exists()

    def test_replica_with_another_key(self, server_place: ServerPlace, tmp_path: Path) -> None:
        """A replica with another key does not start, though there is no row yet."""
        server_place.open()
        server_place.another().open(tmp_path / "own.key")
        with pytest.raises(AuditError, match="key file is another"):
            server_place.open(tmp_path / "own.key")

    def test_two_that_begin(self, server_place: ServerPlace, tmp_path: Path) -> None:
        """Of two that find a new map at once one makes the key, and the other learns of it."""
        rows = postgres_subjects.PostgresRows(server_place.url)

        def unlock(_tried: list[tuple[str, bytes]]) -> bytes:
            later.append(pool.submit(server_place.open, tmp_path / "own.key"))
            waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            until(lambda: later[0].done() or server_place.execute(waiting))
            return b"of-the-first"

        later: list[Any] = []
        with ThreadPoolExecutor(1) as pool:
            rows.open(unlock)
            with pytest.raises(ConfigurationError, match="key file is missing"):
                later[0].result()
        assert not (tmp_path / "own.key").exists()

    def test_mark_that_was_taken_away(self, server_place: ServerPlace, tmp_path: Path) -> None:
        """Without the mark the rows tell the key, and it is marked again."""
        server_place.open().token(PATIENT)
        server_place.execute("DELETE FROM mark")
        with pytest.raises(ConfigurationError, match="key file is missing"):
            server_place.open(tmp_path / "own.key")
        server_place.open()
        assert server_place.execute("SELECT one FROM mark") == [(1,)]


class TestAtOnce:
    """One token, whichever replica is first."""

    @pytest.mark.parametrize(("end", "theirs"), [("COMMIT", True), ("ROLLBACK", False)])
    def test_another_adds_it_now(self, server_place: ServerPlace, end: str, theirs: bool) -> None:
        """Who meets another's row that is not committed waits for it, and takes what is there then."""
        subjects = server_place.open()
        with ThreadPoolExecutor(1) as pool, adding(server_place, subjects) as other:
            mine = pool.submit(subjects.token, PATIENT, wait_seconds=60)
            until(lambda: server_place.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
            added = other("SELECT token FROM healthobs_subjects.subject")
            other(end)
            assert ([(mine.result(),)] == added) is theirs
        assert server_place.execute("SELECT token FROM subject") == [(subjects.find(PATIENT),)]

    def test_another_adds_and_erases_it(
        self, server_place: ServerPlace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A row that was there when ours was refused, and is gone at the next look, makes another round."""
        subjects, new, rounds = server_place.open(), SubjectMap._new, list[str]()

        def late(this: SubjectMap, identifier: str) -> Any:
            rounds.append(identifier)
            return ("s-none", b"", b"") if len(rounds) == 1 else new(this, identifier)

        server_place.execute("INSERT INTO subject VALUES ('s-none', ?, ?)", b"", b"")
        monkeypatch.setattr(SubjectMap, "_new", late)
        assert subjects.identifier(subjects.token(PATIENT)) == PATIENT
        assert len(rounds) == 2

    def test_row_that_is_not_kept(self, server_place: ServerPlace) -> None:
        """A rule that drops what is added is an error, not a token that nobody can resolve, nor a search without end."""
        subjects = server_place.open()
        server_place.execute("CREATE RULE r AS ON INSERT TO subject DO INSTEAD NOTHING")
        with pytest.raises(AuditError, match="does not keep what is added"):
            subjects.token(PATIENT)

    def test_one_connection(self, server_place: ServerPlace) -> None:
        """Threads take one connection in turn, which is kept, and closed with the map."""
        subjects = server_place.open()
        (kept,) = sessions(server_place)
        with ThreadPoolExecutor(8) as pool:
            tokens = list(pool.map(subjects.token, [PATIENT, "somebody-else"] * 20))
        assert (len(set(tokens)), sessions(server_place)) == (2, [kept])
        subjects.close()
        until(lambda: sessions(server_place) == [])
        assert subjects.token(PATIENT) == tokens[0]
        del subjects
        until(lambda: sessions(server_place) == [])

    def test_closed_with_the_service(self, server_place: ServerPlace, tmp_path: Path) -> None:
        """A service that ends leaves no connection."""
        url = f"sqlite:///{tmp_path}/audit.db"
        obs = Observability(Settings(audit_database_url=url, **server_place.settings))
        assert len(sessions(server_place)) == 1
        obs.close()
        until(lambda: sessions(server_place) == [])

    def test_fork(self, server_place: ServerPlace) -> None:
        """A child inherits no connection; it uses the map, and ends, and leaves the parent's as it is."""
        command = [sys.executable, "-c", FORKING, server_place.url, str(server_place.key)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=unmeasured(), timeout=60, check=True
        )
        assert (done.stdout, done.stderr) == ("0 True\n", "")
        assert server_place.execute("SELECT count(*) FROM subject") == [(2,)]


class TestDurable:
    """A token that an entry may have is there after a crash, and an erasure is."""

    def test_asynchronous_commit_is_refused(self, server_place: ServerPlace, application: str) -> None:
        """With synchronous_commit off nobody new gets a token and nobody is erased; who is known is found."""
        token = SubjectMap(application, server_place.key).token(PATIENT)
        role = application.partition("//")[2].partition("@")[0]
        server_place.execute(f"ALTER ROLE {role} SET synchronous_commit = off")
        with pytest.raises(AuditError, match="synchronous_commit=off"):
            SubjectMap(application, server_place.key)
        server_place.execute(f"ALTER ROLE {role} RESET synchronous_commit")
        subjects = SubjectMap(application, server_place.key)
        server_place.execute(f"ALTER ROLE {role} SET synchronous_commit = off")
        subjects.close()
        for asked in (
            lambda: subjects.token("somebody-new"),
            lambda: subjects.erase(PATIENT),
            subjects.check,
        ):
            with pytest.raises(AuditError, match="synchronous_commit=off"):
                asked()
        assert subjects.token(PATIENT) == token

    def test_erasure_frees_the_space(self, server_place: ServerPlace, application: str) -> None:
        """After an erasure by the owner the table is vacuumed; another role's erasure is none the worse."""
        subjects = server_place.open()
        subjects.token("patient-1")
        count = "SELECT vacuum_count FROM pg_stat_user_tables WHERE relname = 'subject'"
        assert SubjectMap(application, server_place.key).erase("patient-1")
        assert server_place.execute(count) == [(0,)]
        subjects.token(PATIENT)
        assert subjects.erase(PATIENT)
        until(lambda: server_place.execute(count) == [(1,)])


class TestFailing:
    """A server that fails is a fault of the audit trail, in time and in words without any value."""

    def test_goes_on_after_a_restart(self, server_place: ServerPlace) -> None:
        """The first call after the server was started again has a new connection; while it is away each is refused."""
        subjects = server_place.open()
        token = subjects.token(PATIENT)
        with down(server_place.server):
            pass
        assert subjects.token(PATIENT) == token
        with down(server_place.server), pytest.raises(AuditError, match=r"\(OperationalError\)"):
            subjects.token(PATIENT)
        assert subjects.token(PATIENT) == token

    def test_waits_no_longer_than_told(self, server_place: ServerPlace) -> None:
        """A row that another does not commit is waited for as long as told."""
        subjects = server_place.open()
        with adding(server_place, subjects) as other:
            began = time.monotonic()
            with pytest.raises(AuditError, match=r"cannot be used \(TimeoutError\); check its database"):
                subjects.token(PATIENT, wait_seconds=0.5)
            assert 0.4 < time.monotonic() - began < 10
            assert subjects.token("somebody-else")
            other("ROLLBACK")
        assert subjects.identifier(subjects.token(PATIENT)) == PATIENT

    def test_turn_is_waited_for_no_longer_than_told(self, server_place: ServerPlace) -> None:
        """Behind one who waits long for the database, another waits as long as told."""
        subjects = server_place.open()
        with ThreadPoolExecutor(1) as pool, adding(server_place, subjects) as other:
            waits = pool.submit(subjects.token, PATIENT, wait_seconds=25)
            until(lambda: server_place.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
            with pytest.raises(AuditError, match="TimeoutError"):
                subjects.token("somebody-else", wait_seconds=0.3)
            assert not waits.done()
            other("ROLLBACK")
            assert waits.result() == subjects.find(PATIENT)

    def test_server_that_falls_silent(self, server_place: ServerPlace) -> None:
        """A server that keeps the connection and says nothing is waited for as long as told."""
        subjects = server_place.open()
        token = subjects.token(PATIENT)
        (backend,) = sessions(server_place)
        with stopped(backend):
            began = time.monotonic()
            with pytest.raises(AuditError, match="TimeoutError"):
                subjects.token(PATIENT, wait_seconds=0.3)
            assert time.monotonic() - began < 10
            assert subjects.token(PATIENT) == token
        with stopped(server_place.server.pid):
            subjects.close()
            began = time.monotonic()
            with pytest.raises(AuditError, match="ConnectionTimeout"):
                subjects.token(PATIENT, wait_seconds=0.3)
            assert time.monotonic() - began < 4
        assert subjects.token(PATIENT) == token

    @pytest.mark.parametrize("away", ["down", "silent"])
    def test_deny_and_spool(self, server_place: ServerPlace, tmp_path: Path, away: str) -> None:
        """Without the server an entry about somebody is refused; care goes on sealed within its time, and is merged later."""
        trail = open_trail(
            f"sqlite:///{tmp_path}/audit.db",
            service="s",
            spool_file=tmp_path / "spool",
            subjects=server_place.open(),
            timeout_seconds=3,
        )
        with closing(trail):
            trail.append(READ)
            fault = down(server_place.server) if away == "down" else stopped(sessions(server_place)[0])
            with fault:
                began = time.monotonic()
                assert trail.append_or_spool({**READ, "purpose": "BTG"}) is None
                assert time.monotonic() - began < 10
                if away == "down":
                    with pytest.raises(AuditWriteError, match="subject map") as caught:
                        trail.append(READ)
                    assert_no_phi(NEEDLES, repr(caught.value), repr(caught.value.__context__))
                    with pytest.raises(AuditError, match="subject map"):
                        trail.health()
                assert_no_phi(NEEDLES, tmp_path)
            trail.append(READ)
            assert trail.subjects is not None
            subjects = [entry["subject"] for entry in trail.read().entries]
            assert subjects == [trail.subjects.find(PATIENT)] * 3

    def test_errors_carry_no_values(self, server_place: ServerPlace) -> None:
        """Neither what a connection was told nor a DETAIL with the row is in a message, or behind it."""
        subjects = server_place.open()
        server_place.execute("ALTER TABLE subject ADD CHECK (token = '')")
        with pytest.raises(AuditError, match="23514 CheckViolation") as caught:
            subjects.token(PATIENT)
        assert caught.value.__cause__ is None
        assert_no_phi(NEEDLES, str(caught.value))
        with pytest.raises(AuditError) as refused:
            SubjectMap(server_place.server.url("needle_of_a_database"), server_place.key)
        assert "needle" not in str(refused.value)

    def test_statements_carry_no_identifier(self, server_place: ServerPlace) -> None:
        """A server that logs every statement with its parameters is not told whom it is about."""
        server_place.open()
        server_place.execute("DO $$BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || "
                             "' SET log_min_duration_statement = 0'; END$$")  # fmt: skip
        subjects = server_place.open()
        token = subjects.token(PATIENT)
        assert (subjects.find(PATIENT), subjects.identifier(PATIENT)) == (token, None)
        assert subjects.erase(PATIENT)
        log = (server_place.server.folder / "log").read_bytes()
        assert token.encode() in log
        assert_no_phi(NEEDLES, log)

    def test_check_adds_nothing(self, server_place: ServerPlace) -> None:
        """The check of health leaves no row, and fails where none could be added."""
        subjects = server_place.open()
        subjects.check()
        assert server_place.execute("SELECT count(*) FROM subject") == [(0,)]
        server_place.execute("ALTER TABLE subject ADD CHECK (length(token) < 3)")
        with pytest.raises(AuditError, match="23514"):
            subjects.check()
