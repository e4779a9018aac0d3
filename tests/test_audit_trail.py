"""The audit trail as its users see it: append, read, prove, health, and what happens when the disk fails."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import healthobs.audit
from healthobs.audit import AuditDraft, merkle, open_trail, reading, writer
from healthobs.audit.checkpoint import Verifier, open_checkpoint
from healthobs.audit.sqlite import SqliteStore, connect_pragmas, path_of, wal_is_safe
from healthobs.audit.trail import AuditTrail
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, AuditTamperedError, AuditWriteError, ConfigurationError

MakeTrail = Callable[..., AuditTrail]
READ = {"action": "patient.read"}


@pytest.fixture
def make_trail(tmp_path: Path) -> Iterator[MakeTrail]:
    """Opens the trail of this test; closes every one at the end."""
    made: list[AuditTrail] = []

    def make(**options: Any) -> AuditTrail:
        made.append(open_trail(f"sqlite:///{tmp_path}/audit.db", service="phi-service", **options))
        return made[-1]

    yield make
    for trail in made:
        trail.close()


@pytest.fixture
def trail(make_trail: MakeTrail) -> AuditTrail:
    return make_trail()


def leaves(path: Path) -> list[bytes]:
    """Recompute every leaf from the stored bodies."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT body FROM entry ORDER BY idx").fetchall()
    finally:
        connection.close()
    return [merkle.leaf_hash(body.encode()) for (body,) in rows]


def count(path: Path) -> int:
    return len(leaves(path))


class TestOpenTrail:
    """Identity, key and file of a trail."""

    def test_makes_database_and_key_for_the_owner_only(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """Every file is 0600 from the start; the default key lies beside the database."""
        make_trail().append(READ)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert set(modes.values()) == {0o600}
        assert {"audit.db", "audit.db.key", "audit.db.lock"} <= modes.keys()

    def test_keeps_its_identity(self, make_trail: MakeTrail) -> None:
        """Opening again gives the same origin, key and entries."""
        first = make_trail()
        first.append(READ)
        first.close()
        second = make_trail()
        assert (second.origin, second.vkey) == (first.origin, first.vkey)
        assert second.append(READ).index == 1

    def test_origin_names_service_and_log(self, trail: AuditTrail) -> None:
        """The default origin tells this log from every other of the service."""
        prefix, _, log_id = trail.origin.rpartition("/")
        assert prefix == "healthobs.example/phi-service"
        assert len(bytes.fromhex(log_id)) == 4
        assert trail.append(READ).log_id == log_id

    def test_own_origin(self, make_trail: MakeTrail) -> None:
        """A new log takes the origin given; an existing one refuses another."""
        assert make_trail(origin="example.org/a").origin == "example.org/a"
        assert make_trail(origin="example.org/a").origin == "example.org/a"
        with pytest.raises(ConfigurationError, match="another origin"):
            make_trail(origin="example.org/b")

    def test_unfit_origin_leaves_no_half_made_log(self, make_trail: MakeTrail) -> None:
        """A log whose origin was refused can be opened with a better one."""
        with pytest.raises(ConfigurationError, match="origin"):
            make_trail(origin="two words")
        assert make_trail(origin="example.org/a").append(READ).index == 0

    def test_lost_key_is_not_replaced(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """A log without its key is refused, and no new key is made for it."""
        make_trail().close()
        key = tmp_path / "audit.db.key"
        key.rename(tmp_path / "kept")
        with pytest.raises(ConfigurationError, match="cannot be read"):
            make_trail()
        assert not key.exists()

    def test_other_key_is_refused(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """A log does not go on under another key."""
        make_trail().close()
        (tmp_path / "audit.db.key").unlink()
        open_trail(f"sqlite:///{tmp_path}/other.db", service="s", key_file=tmp_path / "audit.db.key").close()
        with pytest.raises(ConfigurationError, match="does not hold the key"):
            make_trail()

    @pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql:///x"])
    def test_url_must_name_a_file(self, url: str) -> None:
        """A database in memory, or of another kind, is no audit trail."""
        with pytest.raises(ConfigurationError, match="sqlite:///PATH"):
            open_trail(url, service="s")

    def test_relative_and_absolute_path(self) -> None:
        """Three slashes are relative, four absolute."""
        assert path_of("sqlite:///a/b.db") == Path("a/b.db")
        assert path_of("sqlite:////a/b.db") == Path("/a/b.db")

    def test_odd_file_name(self, tmp_path: Path) -> None:
        """Characters that mean something in a URI are only characters in a path."""
        trail = open_trail(f"sqlite:///{tmp_path}/a ?mode=memory#%41.db", service="s")
        trail.append(READ)
        trail.close()
        assert count(tmp_path / "a ?mode=memory#%41.db") == 1

    def test_somebody_elses_database(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """A database with other tables is refused and left as it was."""
        connection = sqlite3.connect(tmp_path / "audit.db")
        connection.execute("CREATE TABLE patient (id)")
        connection.close()
        with pytest.raises(AuditError, match="no audit trail"):
            make_trail()

    def test_no_database_at_all(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """A file of another kind is refused with SQLite's code, without its content."""
        (tmp_path / "audit.db").write_text("078-05-1120 " * 200)
        with pytest.raises(AuditError, match="SQLITE_NOTADB") as caught:
            make_trail()
        assert "078" not in str(caught.value)

    def test_newer_format(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """A format that this release does not know is refused, not guessed at."""
        make_trail().close()
        connection = sqlite3.connect(tmp_path / "audit.db")
        connection.execute("DROP TRIGGER log_no_update")
        connection.execute("UPDATE log SET format = 2")
        connection.commit()
        connection.close()
        with pytest.raises(AuditError, match="newer"):
            make_trail()

    def test_impossible_place(self, tmp_path: Path) -> None:
        """A path below a file is a configuration error."""
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="cannot be created"):
            open_trail(f"sqlite:///{tmp_path}/file/audit.db", service="s")

    def test_failure_in_the_middle_leaves_nothing(
        self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A schema that could not be written whole is not written at all."""
        monkeypatch.setattr(healthobs.audit.sqlite, "_TABLES", ("CREATE TABLE log (x)", "CREATE nonsense"))
        with pytest.raises(AuditError, match="SQLITE_ERROR"):
            make_trail()
        monkeypatch.undo()
        assert make_trail().append(READ).index == 0

    def test_light_import(self) -> None:
        """Importing the package loads neither the store nor cryptography."""
        code = (
            "import sys, healthobs.audit as a; a.AuditDraft('x'); "
            "print([n for n in ('cryptography', 'healthobs.audit.store') if n in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_lazy_names(self) -> None:
        """`AuditTrail` can be imported from the package; an unknown name is an AttributeError."""
        assert healthobs.audit.AuditTrail is AuditTrail
        with pytest.raises(AttributeError, match="no attribute"):
            healthobs.audit.nothing  # noqa: B018


class TestAppend:
    """An acknowledged entry is durable and signed."""

    def test_receipt(self, trail: AuditTrail) -> None:
        """The receipt says where the entry is, and under which root."""
        receipts = [trail.append(READ) for _ in range(3)]
        assert [(receipt.index, receipt.size) for receipt in receipts] == [(0, 1), (1, 2), (2, 3)]
        known = leaves(trail.path)
        assert [receipt.root for receipt in receipts] == [merkle.root_of(known[:size]) for size in (1, 2, 3)]
        assert {receipt.origin for receipt in receipts} == {trail.origin}

    def test_draft_object(self, trail: AuditTrail) -> None:
        """A draft can be appended as it is."""
        trail.append(AuditDraft("patient.read", actor="client-1"))
        assert trail.read().entries[0]["actor"]["id"] == "client-1"

    def test_durable_when_it_returns(self, trail: AuditTrail) -> None:
        """Another process sees the entry as soon as the call is back."""
        trail.append(READ)
        code = f"import sqlite3; print(sqlite3.connect({str(trail.path)!r}).execute('SELECT count(*) FROM entry').fetchone()[0])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "1"

    def test_many_threads(self, trail: AuditTrail) -> None:
        """Callers at once get one index each, and the root is that of all entries."""
        with ThreadPoolExecutor(16) as pool:
            receipts = list(pool.map(lambda _: trail.append(READ), range(160)))
        assert sorted(receipt.index for receipt in receipts) == list(range(160))
        assert trail.checkpoint().root == merkle.root_of(leaves(trail.path))
        assert trail.verify().ok

    def test_waiting_callers_share_a_commit(self, trail: AuditTrail) -> None:
        """Whoever waits when the lock is got goes into one batch under one checkpoint."""
        trail.append(READ)
        with ThreadPoolExecutor(8) as pool, trail.path.with_name("audit.db.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            jobs = [pool.submit(trail.append, READ) for _ in range(8)]
            queue = trail._writers[os.getpid()]._queue
            _wait_until(lambda: queue.qsize() == 7)  # the writer has one, and waits for the lock
            fcntl.flock(lock, fcntl.LOCK_UN)
            receipts = [job.result() for job in jobs]
        assert {receipt.size for receipt in receipts} == {9}
        assert sorted(receipt.index for receipt in receipts) == list(range(1, 9))

    def test_crowd_is_awaited(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever comes first after a batch of several waits while others come; one alone waits for nobody."""
        trail.append(READ)
        ours, body, late, waits = trail._writers[os.getpid()], trail.encode(READ), list[writer._Job](), 0

        def sleep(_seconds: float) -> None:
            nonlocal waits
            waits += 1
            if waits < 3:
                late.append(ours._enqueue(None, body))

        monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        assert (trail.append(READ).size, waits) == (2, 0)
        ours._crowd = 4
        first = trail.append(READ)  # two come while it waits, then nobody
        together = [first, *(job.result(30) for job in late)]
        assert ([receipt and receipt.size for receipt in together], waits) == ([5, 5, 5], 3)
        assert (trail.append(READ).size, waits) == (6, 4)
        assert (trail.append(READ).size, waits) == (7, 4)

    def test_batches_are_bounded(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """More than a full batch is written in several."""
        monkeypatch.setattr(writer, "MAX_BATCH", 3)
        with ThreadPoolExecutor(8) as pool:
            receipts = list(pool.map(lambda _: trail.append(READ), range(40)))
        batches: dict[int, int] = {}
        for receipt in receipts:
            batches[receipt.size] = batches.get(receipt.size, 0) + 1
        assert max(batches.values()) <= 3
        assert trail.verify().ok

    def test_two_trails_on_one_file(self, make_trail: MakeTrail) -> None:
        """Each takes over what the other added."""
        one, two = make_trail(), make_trail()
        indices = [trail.append(READ).index for _ in range(3) for trail in (one, two)]
        assert indices == list(range(6))
        assert one.verify().ok

    def test_resumes_from_kept_nodes(self, make_trail: MakeTrail) -> None:
        """A log of more than 256 entries goes on with the right root after it was opened again."""
        first = make_trail()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: first.append(READ), range(530)))
        first.close()
        second = make_trail()
        receipt = second.append(READ)
        assert receipt.root == merkle.root_of(leaves(second.path))
        assert second.verify().ok

    def test_malformed_draft_writes_nothing(self, trail: AuditTrail) -> None:
        """A refused draft leaves no trace and no broken writer."""
        with pytest.raises(AuditWriteError, match="unknown"):
            trail.append({"action": "a", "patient": "x"})
        assert trail.append(READ).index == 0

    def test_clock_and_redactor_are_used(self, make_trail: MakeTrail) -> None:
        """The injected clock tells the time."""
        trail = make_trail(clock=Clock(lambda: 1_000_000_000))
        trail.append({**READ, "reason": "078-05-1120"})
        (entry,) = trail.read().entries
        assert (entry["time"], entry["reason"]) == ("1970-01-01T00:00:01.000000Z", "[PHI:ssn]")

    def test_clock_that_steps_back(self, make_trail: MakeTrail) -> None:
        """Entries keep the order in which they were committed, whatever their times say, and verify."""
        readings = iter([3_000_000_000, 1_000_000_000, 2_000_000_000])
        trail = make_trail(clock=Clock(lambda: next(readings)))
        for number in range(3):
            trail.append({**READ, "resource_id": str(number)})
        told = [(entry["resource"]["id"], entry["time"][17:19]) for entry in reversed(trail.read().entries)]
        assert told == [("0", "03"), ("1", "01"), ("2", "02")]
        assert trail.verify().ok


class TestFailure:
    """An entry that is not durable is never acknowledged."""

    def test_read_only_database(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that may only be read refuses the entry; once it may be written, the trail goes on."""
        connect = SqliteStore.connect
        monkeypatch.setattr(SqliteStore, "connect", lambda self, **_: connect(self, read_only=True))
        with pytest.raises(AuditWriteError, match="SQLITE_READONLY"):
            trail.append(READ)
        with pytest.raises(AuditError, match="SQLITE_READONLY"):
            trail.health()
        monkeypatch.undo()
        assert trail.append(READ).index == 0

    def test_vanished_database(self, trail: AuditTrail) -> None:
        """A file that is not in its place refuses the entry, and none is made; once back, the trail goes on."""
        trail.append(READ)
        hidden = trail.path.with_name("hidden.db")
        trail.path.rename(hidden)
        with pytest.raises(AuditWriteError, match="No such file"):
            trail.append(READ)
        hidden.rename(trail.path)
        assert trail.append(READ).index == 1
        assert trail.verify().ok

    def test_full_disk(self, tmp_path: Path) -> None:
        """A disk without room refuses the entry, keeps all acknowledged ones, and recovers with room."""
        code = """
            import resource, signal, sys
            from healthobs.audit import open_trail
            from healthobs.exceptions import AuditWriteError
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            trail = open_trail("sqlite:///" + sys.argv[1], service="s")
            trail.append({"action": "a"})
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (trail.path.stat().st_size, limit[1]))
            acknowledged, refused = 1, 0
            for number in range(40):
                try:
                    trail.append({"action": "a", "details": {"filler": "x" * 1000}})
                    acknowledged += 1
                except AuditWriteError as exc:
                    refused += 1
                    message = str(exc)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            trail.append({"action": "a"})
            verdict = trail.verify()
            trail.close()
            print(refused > 0, verdict.ok, verdict.size == acknowledged + 1, message)
        """
        done = _python(code, tmp_path / "audit.db")
        assert done.startswith("True True True the audit store refused the entry: SQLITE_")

    def test_locked_by_another(self, make_trail: MakeTrail) -> None:
        """While another connection holds the file the entry is refused in time, and never written later."""
        trail = make_trail()
        trail.append(READ)
        trail._timeout_seconds = 0.1
        blocker = sqlite3.connect(trail.path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        try:
            with pytest.raises(AuditWriteError, match=r"within 0\.1 s"):
                trail.append(READ)
            with pytest.raises(
                AuditWriteError, match=r"within 0\.1 s"
            ):  # waits behind the first, then gives up
                trail.append({"action": "given.up"})
        finally:
            blocker.execute("ROLLBACK")
            blocker.close()
        trail._timeout_seconds = 10
        trail.append({"action": "after"})
        assert [entry["action"] for entry in trail.read().entries] == ["after", "patient.read"]
        assert trail.verify().ok

    def test_too_many_wait(self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that cannot follow refuses at once rather than fill the memory."""
        trail = make_trail()
        monkeypatch.setattr(writer, "MAX_WAITING", 0)
        with pytest.raises(AuditWriteError, match="too many"):
            trail.append(READ)

    def test_no_thread_can_be_started(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """At interpreter shutdown, when threads cannot start, an append says so."""

        def refuse(_thread: threading.Thread) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(AuditWriteError, match="no thread"):
            trail.append(READ)
        monkeypatch.undo()
        assert trail.append(READ).index == 0

    def test_commit_that_fails(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever breaks inside a batch reaches every caller, without its text, and the next batch works."""
        trail.append(READ)

        def broken(*_arguments: Any) -> None:
            raise RuntimeError("078-05-1120")

        monkeypatch.setattr(writer.store, "insert", broken)
        with pytest.raises(AuditWriteError, match="RuntimeError") as caught:
            trail.append(READ)
        assert "078" not in str(caught.value)
        monkeypatch.undo()
        assert trail.append(READ).index == 1

    def test_restored_old_file_is_refused(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """A running service notices that its log went back, and signs no second history."""
        trail = make_trail()
        trail.append(READ)
        shutil.copy(trail.path, tmp_path / "old")
        trail.append(READ)
        (tmp_path / "old").rename(trail.path)
        with pytest.raises(AuditWriteError, match="healthobs audit verify"):
            trail.append(READ)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            ("UPDATE checkpoint SET note = 'x' WHERE size = 2", "not signed with this service's key"),
            ("DELETE FROM checkpoint", "not signed with this service's key"),
            ("DELETE FROM entry WHERE idx = 1", "not those of its latest checkpoint"),
            ("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 0", "do not match its signed checkpoints"),
            ("DELETE FROM entry WHERE idx = 0", "does not verify at entry 0"),
        ],
    )
    def test_tampered_store_is_not_extended(self, make_trail: MakeTrail, damage: str, message: str) -> None:
        """A log that is not what was signed gets no further signature."""
        trail = make_trail()
        trail.append(READ)
        trail.append(READ)
        trail.close()
        _damage(trail.path, damage)
        with pytest.raises(AuditWriteError, match=message):
            make_trail().append(READ)


class TestClose:
    """The end of a trail."""

    def test_append_afterwards(self, trail: AuditTrail) -> None:
        """A closed trail refuses entries, still reads, and may be closed again."""
        trail.append(READ)
        trail.close()
        trail.close()
        with pytest.raises(AuditWriteError, match="closed"):
            trail.append(READ)
        with pytest.raises(AuditError, match="closed"):
            trail.health()
        assert trail.read().total == 1

    def test_close_before_any_append(self, make_trail: MakeTrail) -> None:
        """Closing a trail that was never used is no fault."""
        make_trail().close()

    def test_what_waits_is_written(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """Entries that were handed over before the close are durable after it."""
        trail.append(READ)
        ours, handed_over = trail._writers[os.getpid()], list[writer._Job]()
        enqueue = ours._enqueue

        def noting(key: str | None, body: bytes) -> writer._Job:
            handed_over.append(enqueue(key, body))
            return handed_over[-1]

        monkeypatch.setattr(ours, "_enqueue", noting)
        with ThreadPoolExecutor(4) as pool, trail.path.with_name("audit.db.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = [pool.submit(trail.append, READ) for _ in range(4)]
            _wait_until(lambda: len(handed_over) == 4)
            stopper = threading.Thread(target=trail.close)
            stopper.start()
            fcntl.flock(lock, fcntl.LOCK_UN)
            stopper.join()
            assert sorted(job.result().index for job in waiting) == [1, 2, 3, 4]

    def test_late_callers_are_refused(self, trail: AuditTrail) -> None:
        """Whoever comes after the end of the thread hears so, rather than wait."""
        trail.append(READ)
        ours = trail._writers[os.getpid()]
        ours.stop()
        job = writer._Job(b"{}", None)
        ours._queue.put(job)
        ours._queue.put(None)
        ours._refuse_the_rest()
        with pytest.raises(AuditWriteError, match="closed"):
            job.result(0)
        with pytest.raises(AuditWriteError, match="closed"):
            ours.append(b"{}", 1.0)

    def test_dropped_by_its_own_thread(self, tmp_path: Path) -> None:
        """A trail that is collected while its writer runs ends there too, without waiting for itself."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.append(READ)
        ours = trail._writers[os.getpid()]
        ours._queue.put(cast("Any", _StopsWhenAsked(ours)))
        assert ours._thread is not None
        ours._thread.join(30)
        assert not ours._thread.is_alive()
        trail.close()

    def test_forgotten_trail_ends_its_thread(self, tmp_path: Path) -> None:
        """A trail that is dropped without a close leaves neither thread nor connection."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.append(READ)
        thread = trail._writers[os.getpid()]._thread
        assert thread is not None
        del trail
        gc.collect()
        thread.join(30)
        assert not thread.is_alive()


class TestHealth:
    """Whether an append could succeed now."""

    def test_healthy(self, trail: AuditTrail) -> None:
        """A trail that can append says nothing."""
        trail.append(READ)
        assert trail.health() is None  # type: ignore[func-returns-value]

    def test_missing_file(self, trail: AuditTrail) -> None:
        """Without its file the trail is not healthy, and makes no new one."""
        trail.path.unlink()
        with pytest.raises(AuditError, match="No such file"):
            trail.health()
        assert not trail.path.exists()

    def test_destroyed_file(self, trail: AuditTrail) -> None:
        """A file that is no database any more is not healthy."""
        trail.path.write_bytes(b"no database" * 512)
        with pytest.raises(AuditError, match="SQLITE_NOTADB"):
            trail.health()

    def test_foreign_checkpoint(self, trail: AuditTrail) -> None:
        """A latest checkpoint that is not ours, or not of all entries, is not healthy."""
        trail.append(READ)
        _damage(trail.path, "DELETE FROM entry")
        with pytest.raises(AuditError, match="not those of its latest"):
            trail.health()
        _damage(trail.path, "UPDATE checkpoint SET note = ''")
        with pytest.raises(AuditError):
            trail.health()


class TestAcceptedChanges:
    """The probe of the guards."""

    def test_all_refused(self, trail: AuditTrail) -> None:
        """A guarded trail refuses all four, empty or not, and is left as it was."""
        assert trail.accepted_changes() == ()
        trail.append(READ)
        before = trail.path.read_bytes()
        assert trail.accepted_changes() == ()
        assert trail.path.read_bytes() == before
        assert trail.append(READ).index == 1

    @pytest.mark.parametrize(
        ("guard", "accepted"),
        [
            ("entry_no_update", ("UPDATE",)),
            ("entry_no_delete", ("DELETE",)),
            ("entry_no_gap", ("gap",)),
        ],
    )
    def test_each_guard_matters(self, trail: AuditTrail, guard: str, accepted: tuple[str, ...]) -> None:
        """Without its guard, and only then, a change gets through."""
        _execute(trail.path, f"DROP TRIGGER {guard}")
        assert trail.accepted_changes() == accepted

    def test_replace_is_guarded_twice(self, trail: AuditTrail) -> None:
        """REPLACE is refused by its own guard and by that against gaps; without both it gets through."""
        _execute(trail.path, "DROP TRIGGER entry_no_replace")
        assert trail.accepted_changes() == ()
        _execute(trail.path, "DROP TRIGGER entry_no_gap")
        assert trail.accepted_changes() == ("gap", "REPLACE")


class TestCheckpoint:
    """The latest signed root."""

    def test_of_an_empty_log(self, trail: AuditTrail) -> None:
        """A log signs from its very beginning."""
        checkpoint = trail.checkpoint()
        assert (checkpoint.size, checkpoint.root, checkpoint.origin) == (0, merkle.EMPTY_ROOT, trail.origin)

    def test_is_verifiable_without_the_private_key(self, trail: AuditTrail) -> None:
        """The vkey alone opens the note, which says what the object says."""
        trail.append(READ)
        checkpoint = trail.checkpoint()
        assert open_checkpoint(checkpoint.note, Verifier(trail.vkey)) == checkpoint
        assert (checkpoint.size, checkpoint.root) == (1, merkle.root_of(leaves(trail.path)))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AuditTrail, list[bytes]]]:
    """A trail of 300 entries, so that kept nodes are used, and its leaves."""
    path = tmp_path_factory.mktemp("long") / "audit.db"
    trail = open_trail(f"sqlite:///{path}", service="s")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: trail.append(READ), range(300)))
    yield trail, leaves(path)
    trail.close()


class TestProofs:
    """Proofs from the store."""

    @given(data=st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_inclusion(self, long: tuple[AuditTrail, list[bytes]], data: st.DataObject) -> None:
        """Each entry can be proved against the root of each size that has it."""
        trail, known = long
        size = data.draw(st.integers(1, len(known)))
        index = data.draw(st.integers(0, size - 1))
        proof = trail.inclusion_proof(index, size)
        assert proof.leaf == known[index]
        assert proof.verify(merkle.root_of(known[:size]))
        assert not proof.verify(merkle.root_of(known[: size - 1]))

    @given(data=st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_consistency(self, long: tuple[AuditTrail, list[bytes]], data: st.DataObject) -> None:
        """Each size can be shown to start with each smaller one."""
        trail, known = long
        new = data.draw(st.integers(1, len(known)))
        old = data.draw(st.integers(1, new))
        proof = trail.consistency_proof(old, new)
        assert proof.verify(merkle.root_of(known[:old]), merkle.root_of(known[:new]))
        assert not proof.verify(merkle.EMPTY_ROOT, merkle.root_of(known[:new]))

    def test_default_is_the_whole_log(self, long: tuple[AuditTrail, list[bytes]]) -> None:
        """Without a size, the latest checkpoint's root is what is proved against."""
        trail, known = long
        root = trail.checkpoint().root
        assert trail.inclusion_proof(299).verify(root)
        assert trail.consistency_proof(256).verify(merkle.root_of(known[:256]), root)

    def test_no_such_entry_or_size(self, long: tuple[AuditTrail, list[bytes]]) -> None:
        """Numbers outside of the log are refused."""
        trail, _ = long
        for ask in (
            lambda: trail.inclusion_proof(300),
            lambda: trail.inclusion_proof(-1),
            lambda: trail.inclusion_proof(5, 5),
            lambda: trail.inclusion_proof(5, 301),
            lambda: trail.consistency_proof(0),
            lambda: trail.consistency_proof(5, 4),
            lambda: trail.consistency_proof(5, 301),
        ):
            with pytest.raises(ValueError, match=r"index|size"):
                ask()

    def test_missing_leaves(self, trail: AuditTrail) -> None:
        """A proof over entries that are gone names the first of them."""
        for _ in range(4):
            trail.append(READ)
        _damage(trail.path, "DELETE FROM entry WHERE idx = 1")
        with pytest.raises(AuditTamperedError, match="entry 1"):
            trail.inclusion_proof(3)


#: Few values per field, so that filters match something.
DRAFTS = st.fixed_dictionaries(
    {"action": st.sampled_from(["a.read", "a.write"])},
    optional={
        "actor": st.sampled_from(["x", "y"]),
        "subject": st.sampled_from(["s", "t", "'"]),
        "resource_id": st.sampled_from(["r", "q"]),
        "trace_id": st.sampled_from(["1" * 32, "2" * 32]),
    },
)
PATHS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "actor": lambda body: body["actor"]["id"],
    "action": lambda body: body["action"],
    "subject": lambda body: body["subject"],
    "resource_id": lambda body: body["resource"]["id"],
    "trace_id": lambda body: body["trace_id"],
}


class TestRead:
    """Filters and pages."""

    @given(
        drafts=st.lists(DRAFTS, min_size=20, max_size=20),
        filters=st.fixed_dictionaries(
            {},
            optional={
                "actor": st.sampled_from(["x", "y", "none"]),
                "action": st.sampled_from(["a.read", "a.write"]),
                "subject": st.sampled_from(["s", "'", "%"]),
                "resource_id": st.sampled_from(["r", "q"]),
                "trace_id": st.just("1" * 32),
                "start": st.integers(0, 24),
                "end": st.integers(0, 24),
            },
        ),
        limit=st.integers(1, 25),
        window=st.integers(1, 30),
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_is_what_a_list_would_say(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        drafts: list[dict[str, Any]],
        filters: dict[str, Any],
        limit: int,
        window: int,
    ) -> None:
        """Paging through any filter gives exactly the matching entries, newest first, and their number."""
        path = tmp_path_factory.mktemp("model") / "audit.db"
        seconds = iter(range(1_000))
        trail = open_trail(f"sqlite:///{path}", service="s", clock=Clock(lambda: next(seconds) * 10**9))
        for draft in drafts:
            trail.append(draft)
        trail.close()
        moments = {name: filters.pop(name) for name in ("start", "end") if name in filters}
        everything = [{**draft, "second": second, "index": second} for second, draft in enumerate(drafts)]
        expected = [
            item["index"]
            for item in reversed(everything)
            if all(item.get(name) == value for name, value in filters.items())
            and moments.get("start", 0) <= item["second"] < moments.get("end", 10**6)
        ]
        times = {name: datetime.fromtimestamp(value, UTC) for name, value in moments.items()}
        found, cursor, pages = [], None, 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_WINDOW", window)
            while True:
                page = trail.read(**filters, **times, limit=limit, cursor=cursor)
                assert page.total == len(expected)
                found += page.entries
                cursor, pages = page.next_cursor, pages + 1
                if cursor is None:
                    break
        assert [body["index"] for body in found] == expected
        assert pages == max(1, -(-len(expected) // limit))
        assert all(PATHS[name](body) == value for body in found for name, value in filters.items())

    def test_entry_has_index_and_hash(self, trail: AuditTrail) -> None:
        """An entry on a page is its body, with position and leaf."""
        trail.append(READ)
        (entry,) = trail.read().entries
        assert (entry["index"], entry["hash"]) == (0, leaves(trail.path)[0].hex())
        assert entry["action"] == "patient.read"

    def test_paging_is_stable_while_entries_come(self, trail: AuditTrail) -> None:
        """Entries that come between two pages are on neither."""
        for _ in range(4):
            trail.append(READ)
        first = trail.read(limit=2)
        trail.append(READ)
        second = trail.read(limit=2, cursor=first.next_cursor)
        assert [entry["index"] for entry in first.entries + second.entries] == [3, 2, 1, 0]
        assert (second.next_cursor, second.total) == (None, 5)

    def test_empty(self, trail: AuditTrail) -> None:
        """A log without entries has one empty page."""
        page = trail.read()
        assert (page.entries, page.next_cursor, page.total) == ([], None, 0)

    def test_times_as_text(self, make_trail: MakeTrail) -> None:
        """RFC 3339 text in any zone, or without one, bounds the time: start included, end not."""
        trail = make_trail(clock=Clock(lambda: 3_600 * 10**9))
        trail.append(READ)
        assert trail.read(start="1970-01-01T01:00:00Z").total == 1
        assert trail.read(start="1970-01-01T02:00:00+01:00", end="1970-01-01T01:00:00.000001").total == 1
        assert trail.read(end=datetime(1970, 1, 1, 1, tzinfo=UTC)).total == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            {"limit": 0},
            {"limit": 1001},
            {"cursor": ""},
            {"cursor": "-1"},
            {"cursor": "\u0661"},
            {"cursor": "9" * 19},
            {"start": "yesterday"},
            {"end": "tomorrow"},
        ],
    )
    def test_bad_arguments(self, trail: AuditTrail, wrong: dict[str, Any]) -> None:
        """A bad limit, cursor or time is named, never echoed."""
        with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
            trail.read(**wrong)
        assert "yesterday" not in str(caught.value)

    def test_times_beyond_utc(self, trail: AuditTrail) -> None:
        """The ends of the calendar in a far zone are the ends of time."""
        trail.append(READ)
        assert trail.read(start="0001-01-01T00:00:00+23:59", end="9999-12-31T23:59:59-23:59").total == 1
        assert trail.read(end="0001-01-01T00:00:00+23:59").total == 0

    def test_hostile_filter_values(self, trail: AuditTrail) -> None:
        """Quotes, wildcards and lone surrogates are only characters."""
        trail.append({**READ, "actor": "' OR 1=1 --"})
        assert trail.read(actor="' OR 1=1 --").total == 1
        assert [trail.read(actor=value).total for value in ("%", "\ud800", "\x00", "")] == [0, 0, 0, 0]

    def test_tampered_body_is_shown_as_such(self, trail: AuditTrail) -> None:
        """A body that is not what was recorded is not shown, but hides neither itself nor the others."""
        for _ in range(4):
            trail.append(READ)
        _damage(
            trail.path,
            "UPDATE entry SET body = '{' WHERE idx = 0",
            "UPDATE entry SET body = NULL WHERE idx = 1",
            "UPDATE entry SET body = '[]' WHERE idx = 2",
        )
        page = trail.read()
        assert [entry.get("unreadable") for entry in page.entries] == [None, True, True, True]
        assert all(entry["hash"] for entry in page.entries)
        assert trail.read(action="patient.read").total == 1

    def test_missing_entry_is_shown_as_such(self, trail: AuditTrail) -> None:
        """A deleted entry leaves a visible hole."""
        trail.append(READ)
        trail.append(READ)
        _damage(trail.path, "DELETE FROM entry WHERE idx = 0")
        shown = {"time": None, "action": None, "outcome": None, "unreadable": True}
        assert trail.read().entries[1] == {**shown, "index": 0, "hash": None}

    def test_unreadable_store(self, trail: AuditTrail) -> None:
        """A store that is gone is an AuditError."""
        trail.path.unlink()
        with pytest.raises(AuditError, match="cannot be used"):
            trail.read()


class TestConnectPragmas:
    """How SQLite is opened."""

    @pytest.mark.parametrize(
        ("version", "safe"),
        [
            ((3, 7, 0), False),
            ((3, 40, 1), False),
            ((3, 44, 5), False),
            ((3, 44, 6), True),
            ((3, 45, 0), False),
            ((3, 50, 6), False),
            ((3, 50, 7), True),
            ((3, 51, 0), False),
            ((3, 51, 2), False),
            ((3, 51, 3), True),
            ((3, 52, 0), True),
            ((4, 0, 0), True),
        ],
    )
    def test_wal_only_with_the_fix(self, version: tuple[int, ...], safe: bool) -> None:
        """Write-ahead logging is used exactly where the WAL-reset race is fixed."""
        assert wal_is_safe(version) is safe
        assert f"PRAGMA journal_mode = {'WAL' if safe else 'TRUNCATE'}" in connect_pragmas(version)

    @pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 3)])
    def test_take_effect(self, tmp_path: Path, version: tuple[int, ...]) -> None:
        """The statements set what they name."""
        connection = sqlite3.connect(tmp_path / "any.db")
        try:
            for statement in connect_pragmas(version):
                connection.execute(statement)
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            (level,) = connection.execute("PRAGMA synchronous").fetchone()
            (keys,) = connection.execute("PRAGMA foreign_keys").fetchone()
        finally:
            connection.close()
        assert (mode, level, keys) == ("wal" if wal_is_safe(version) else "truncate", 2, 1)

    @pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 3)])
    def test_trail_works_in_both_modes(
        self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
    ) -> None:
        """Append, read and verify work with a rollback journal and with write-ahead logging."""
        pragmas = connect_pragmas(version)
        monkeypatch.setattr("healthobs.audit.sqlite.connect_pragmas", lambda: pragmas)
        trail = make_trail()
        for _ in range(3):
            trail.append(READ)
        assert (trail.read().total, trail.verify().ok, trail.accepted_changes()) == (3, True, ())
        trail.health()
        trail.close()
        assert trail.verify().ok


class _StopsWhenAsked:
    """Stands for a garbage collection in the middle of the writer's work."""

    def __init__(self, ours: writer.Writer) -> None:
        self._ours = ours

    def take(self) -> bool:
        self._ours.stop()
        return False


def _execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    try:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    finally:
        connection.close()


def _damage(path: Path, *statements: str) -> None:
    """Do to the file what only somebody with write access to it can: drop the guards first."""
    guards = list(healthobs.audit.sqlite.GUARDS)
    _execute(path, *(f"DROP TRIGGER IF EXISTS {name}" for name in guards), *statements)


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.001)


def _python(code: str, *arguments: object) -> str:
    """Run code in a process of its own and return what it printed."""
    lines = [line[12:] for line in code.strip("\n").splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout
