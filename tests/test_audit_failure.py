"""The audit trail when its disk, file or store fails: nothing is acknowledged that is not kept."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.audit_trails import READ, MakeTrail, _damage, copied, put_back

from healthobs.audit import writer
from healthobs.audit.sqlite import SqliteStore
from healthobs.audit.trail import AuditTrail
from healthobs.exceptions import AuditError, AuditWriteError


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
        old = copied(trail.path, tmp_path / "old")
        trail.append(READ)
        put_back(old, trail.path)
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
