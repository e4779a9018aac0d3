"""The audit trail as its users see it: opened, appended to, asked for its health, closed."""

from __future__ import annotations

import fcntl
import gc
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.audit_trails import READ, MakeTrail, leaves, read_only

import healthobs.audit
from healthobs.audit import AuditDraft, merkle, open_trail, writer
from healthobs.audit.sqlite import path_of
from healthobs.audit.trail import AuditTrail
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, AuditWriteError, ConfigurationError
from healthobs.redaction import Phi


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
        with pytest.raises(ConfigurationError, match=r"audit\.db\.key cannot be read .*; restore it"):
            make_trail()
        assert not key.exists()

    @pytest.mark.parametrize(
        "gone", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"]
    )
    def test_a_log_that_is_gone_is_not_begun_anew(
        self, make_trail: MakeTrail, tmp_path: Path, gone: Callable[[Path], object]
    ) -> None:
        """A key whose log was there and is not any more begins no other in its place, until somebody says so."""
        origin = make_trail().origin
        make_trail().close()
        gone(tmp_path / "audit.db")
        left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ConfigurationError, match=r"is gone; restore it.* audit\.db\.key\.logs"):
            make_trail()
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left
        elsewhere = open_trail(f"sqlite:///{tmp_path}/b.db", service="s", key_file=tmp_path / "audit.db.key")
        elsewhere.close()
        noted = tmp_path / "audit.db.key.logs"
        lines = noted.read_text().splitlines()
        assert lines == [f"{origin} {tmp_path}/audit.db", f"{elsewhere.origin} {tmp_path}/b.db"]
        noted.write_text(lines[1])
        assert make_trail().origin != origin

    def test_a_log_whose_folder_is_gone_leaves_none(self, tmp_path: Path) -> None:
        """Nor is a folder made for it, as where a disk is not mounted."""
        folder, key_file = tmp_path / "data", tmp_path / "k"
        open_trail(f"sqlite:///{folder}/audit.db", service="s", key_file=key_file).close()
        folder.rename(tmp_path / "away")
        with pytest.raises(ConfigurationError, match="is gone; restore it"):
            open_trail(f"sqlite:///{folder}/audit.db", service="s", key_file=key_file)
        assert not folder.exists()

    def test_a_key_in_a_folder_of_others(
        self, make_trail: MakeTrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where nothing can be written beside the key, as beside a mounted secret, the trail opens all the same."""
        monkeypatch.setattr(os, "replace", read_only)
        make_trail().close()
        assert make_trail().append(READ).index == 0
        assert not (tmp_path / "audit.db.key.logs").exists()

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
        monkeypatch.setattr(healthobs.audit.sqlite, "_TABLES", {"log": "x)", "entry": "("})
        with pytest.raises(AuditError, match="SQLITE_ERROR"):
            make_trail()
        monkeypatch.undo()
        assert make_trail().append(READ).index == 0

    def test_light_import(self) -> None:
        """Importing the package loads neither the store nor cryptography, nor what only they hand out."""
        code = (
            "import sys, healthobs.audit as a; a.AuditDraft('x'); "
            "print([n for n in ('cryptography', 'healthobs.audit.store', 'healthobs.audit.records') if n in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_lazy_names(self) -> None:
        """Each public name can be had from the package; an unknown name is an AttributeError."""
        assert healthobs.audit.AuditTrail is AuditTrail
        assert [
            name for name in healthobs.audit.__all__ if not callable(getattr(healthobs.audit, name))
        ] == []
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
            queue = trail._access.writer()._queue
            _wait_until(lambda: queue.qsize() == 7)  # the writer has one, and waits for the lock
            fcntl.flock(lock, fcntl.LOCK_UN)
            receipts = [job.result() for job in jobs]
        assert {receipt.size for receipt in receipts} == {9}
        assert sorted(receipt.index for receipt in receipts) == list(range(1, 9))

    def test_crowd_is_awaited(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a batch of many, two who come together wait while others do; one alone waits for nobody."""
        trail.append(READ)
        ours, body, jobs, waits = trail._access.writer(), trail.encode(READ), list[writer._Job](), 0

        def come(count: int) -> list[int]:
            """Return the size of the log after the batch of each."""
            trail._access.gate.before()  # so that the writer has the first when it finds the rest
            jobs.clear()
            for _ in range(count):
                ours._enqueue(None, body, None, jobs)
            trail._access.gate.after_in_parent()
            return [receipt.size for job in jobs for receipt in [job.result(30)] if receipt is not None]

        def sleep(_seconds: float) -> None:
            nonlocal waits
            waits += 1
            if waits < 3:
                ours._enqueue(None, body, None, jobs)

        monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
        assert (come(2), come(6), waits) == ([3] * 2, [9] * 6, 0)
        assert (come(1), waits) == ([10], 0)
        assert (come(2), waits) == ([14] * 4, 3)
        assert (come(3), waits) == ([17] * 3, 4)
        assert (come(3), waits) == ([20] * 3, 4)

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
        ours, handed_over = trail._access.writer(), list[writer._Job]()
        enqueue = ours._enqueue

        def noting(key: str | None, body: bytes, unless: str | None, jobs: list[writer._Job]) -> None:
            enqueue(key, body, unless, jobs)
            handed_over.extend(jobs)

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

    @pytest.mark.parametrize("wrong", [None, [], ["action"], "action", 5])
    def test_draft_that_is_none(self, trail: AuditTrail, wrong: Any) -> None:
        """What is no draft is refused by a word that says so."""
        with pytest.raises(AuditWriteError, match="draft must be an AuditDraft, or a mapping"):
            trail.append(wrong)

    @pytest.mark.parametrize("wrong", [["x"], {"x": 1}, 5, Phi("x")])
    def test_action_that_is_none(self, trail: AuditTrail, wrong: Any) -> None:
        """An action that is no text is refused as one that is malformed."""
        with pytest.raises(AuditWriteError, match="action must be a short name"):
            trail.append({"action": wrong})

    def test_reserved_action_of_an_enumeration(self, trail: AuditTrail) -> None:
        """Whatever a member of an enumeration is called, or formats itself as, its text decides."""
        kinds = Enum("kinds", {"ERASE": "audit.erase", "OTHER": "record.removed"}, type=str)
        with pytest.raises(AuditWriteError, match="only the trail itself records"):
            trail.append({"action": kinds["ERASE"]})
        audit = Enum("audit", {"erase": "record.removed"}, type=str)
        trail.append({"action": audit["erase"]})
        assert [each["action"] for each in trail.read().entries] == ["record.removed"]

    def test_caller_that_comes_as_it_closes(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """It hears at once that the trail is closed, and waits for nobody."""
        trail.append(READ)
        ours = trail._access.writer()
        queue = ours._queue

        def put(job: writer._Job | None) -> None:
            if job is not None:
                monkeypatch.undo()
                ours.stop()
            queue.put(job)

        monkeypatch.setattr(ours, "_queue", SimpleNamespace(put=put, qsize=queue.qsize))
        with pytest.raises(AuditWriteError, match="closed"):
            ours.append(trail.encode(READ), 600)
        assert trail.read().total == 1

    def test_caller_that_is_interrupted_as_it_starts_the_thread(
        self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread is known all the same, and ended by the close."""
        trail = make_trail()
        thread = _interrupted_start(trail, monkeypatch)
        thread.begin.set()
        _wait_until(lambda: trail._access.writer()._running)
        trail.close()
        assert not thread.is_alive()

    def test_closed_before_the_thread_begins(
        self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that nobody knew of at the close ends by itself."""
        trail = make_trail()
        thread = _interrupted_start(trail, monkeypatch)
        trail.close()
        thread.begin.set()
        thread.join(30)
        assert not thread.is_alive()

    def test_one_thread_serves(self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the interrupted caller's thread comes late, another serves already, and it ends."""
        trail = make_trail()
        late = _interrupted_start(trail, monkeypatch)
        assert trail.append(READ).index == 0
        late.begin.set()
        late.join(30)
        assert (late.is_alive(), trail.append(READ).index) == (False, 1)

    def test_interrupted_caller_records_nothing(
        self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An entry whose caller a signal's handler took away before it was begun is never begun."""

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        trail.append(READ)
        with trail.path.with_name("audit.db.lock").open() as lock, monkeypatch.context() as patched:
            fcntl.flock(lock, fcntl.LOCK_EX)
            first = threading.Thread(target=trail.append, args=(READ,))  # which the writer's thread has begun
            first.start()
            _wait_until(lambda: trail._access.gate._inside == 1)
            patched.setattr(writer._Job, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trail.append({"action": "interrupted"})
        first.join()
        assert (trail.append(READ).index, trail.read(action="interrupted").total) == (2, 0)

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e10])
    def test_timeout_that_is_none(self, make_trail: MakeTrail, seconds: float) -> None:
        """What no thread can wait for is refused at the start."""
        with pytest.raises(ConfigurationError, match="timeout_seconds must be"):
            make_trail(timeout_seconds=seconds)

    def test_late_callers_are_refused(self, trail: AuditTrail) -> None:
        """Whoever comes after the end of the thread hears so, rather than wait."""
        trail.append(READ)
        ours = trail._access.writer()
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
        ours = trail._access.writer()
        ours._queue.put(cast("Any", _StopsWhenAsked(ours)))
        assert ours._thread is not None
        ours._thread.join(30)
        assert not ours._thread.is_alive()
        trail.close()

    def test_forgotten_trail_ends_its_thread(self, tmp_path: Path) -> None:
        """A trail that is dropped without a close leaves neither thread nor connection."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.append(READ)
        thread = trail._access.writer()._thread
        assert thread is not None
        del trail
        gc.collect()
        thread.join(30)
        assert not thread.is_alive()


class _Interrupted(threading.Thread):
    """A thread whose starter is interrupted, and which begins when told to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.begin = threading.Event()

    def start(self) -> None:
        """Start, and interrupt whoever asked for it."""
        super().start()
        raise KeyboardInterrupt

    def run(self) -> None:
        """Wait to be told."""
        self.begin.wait(30)
        super().run()


def _interrupted_start(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> _Interrupted:
    """Return the writer's thread of a trail whose first caller was interrupted as it started it."""
    with monkeypatch.context() as patched:
        patched.setattr(writer.threading, "Thread", _Interrupted)
        with pytest.raises(KeyboardInterrupt):
            trail.append({"action": "interrupted"})
    (thread,) = (each for each in threading.enumerate() if isinstance(each, _Interrupted))
    return thread


class _StopsWhenAsked:
    """Stands for a garbage collection in the middle of the writer's work."""

    def __init__(self, ours: writer.Writer) -> None:
        self._ours = ours

    def take(self) -> bool:
        self._ours.stop()
        return False


def _wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.001)
