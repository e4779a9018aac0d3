"""What a trail says of itself: whether an append could succeed, and which changes its store accepts."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import pytest
from tests.audit_trails import READ, MakeTrail, _damage, _execute, copied, put_back

from healthobs.audit.sqlite import SqliteConnection
from healthobs.audit.store import StoreError
from healthobs.audit.trail import AuditTrail
from healthobs.exceptions import AuditError, AuditWriteError


class TestHealth:
    """Whether an append could succeed now."""

    def test_healthy(self, trail: AuditTrail) -> None:
        """A trail that can append says nothing."""
        trail.append(READ)
        assert trail.health() is None  # type: ignore[func-returns-value]

    def test_locked_by_another(self, trail: AuditTrail) -> None:
        """While another connection holds the lock and adds nothing, it is not healthy, and of its guards nothing can be said."""
        with closing(sqlite3.connect(trail.path, isolation_level=None)) as blocker:
            blocker.execute("BEGIN IMMEDIATE")
            for asked in (trail.health, trail.accepted_changes):
                with pytest.raises(StoreError, match="SQLITE_BUSY") as caught:
                    asked()
                assert caught.value.busy
        trail.health()

    @pytest.mark.parametrize(("grows", "healthy"), [((True, True), True), ((True, False), False)])
    def test_others_write_all_the_time(
        self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch, grows: tuple[bool, ...], healthy: bool
    ) -> None:
        """A log whose lock is never to be had, and which grows, takes entries; its guards can be tried in the end."""
        trail.append(READ)
        attempting = SqliteConnection.attempting
        left = list(grows)

        def taken(connection: SqliteConnection) -> AbstractContextManager[None]:
            if not left:
                return attempting(connection)
            if left.pop(0):
                trail.append(READ)
            raise StoreError("SQLITE_BUSY", busy=True)

        monkeypatch.setattr(SqliteConnection, "attempting", taken)
        with nullcontext() if healthy else pytest.raises(AuditError, match="SQLITE_BUSY"):
            trail.health()
        left.extend([False] * 7)
        assert trail.accepted_changes() == ()

    def test_full_while_others_write(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """What fails otherwise than by the lock is told, though the log grows."""
        trail.append(READ)
        left = ["SQLITE_FULL", "SQLITE_BUSY"]

        def refused(_: SqliteConnection) -> AbstractContextManager[None]:
            trail.append(READ)
            code = left.pop()
            raise StoreError(code, busy=code == "SQLITE_BUSY")

        monkeypatch.setattr(SqliteConnection, "attempting", refused)
        with pytest.raises(StoreError, match="SQLITE_FULL"):
            trail.health()

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

    def test_old_file_put_back(self, make_trail: MakeTrail, tmp_path: Path) -> None:
        """While the log is behind what this process wrote, it is not healthy; with its own it is again."""
        trail = make_trail()
        trail.append(READ)
        old = copied(trail.path, tmp_path / "old")
        trail.append(READ)
        own = copied(trail.path, tmp_path / "own")
        put_back(old, trail.path)
        for _ in range(2):
            with pytest.raises(AuditError, match="went back"):
                trail.health()
            with pytest.raises(AuditWriteError):
                trail.append(READ)
        put_back(own, trail.path)
        trail.health()
        assert trail.append(READ).index == 2

    @pytest.mark.parametrize("more", [1, 3])
    def test_old_file_that_another_goes_on_with(
        self, make_trail: MakeTrail, tmp_path: Path, more: int
    ) -> None:
        """A log that went back is not what this process wrote when it is as long, or longer, again."""
        trail = make_trail()
        trail.append(READ)
        old = copied(trail.path, tmp_path / "old")
        trail.append(READ)
        put_back(old, trail.path)
        other = make_trail()
        for _ in range(more):
            other.append(READ)
        other.health()
        with pytest.raises(AuditError, match="went back"):
            trail.health()

    def test_log_that_another_went_on_with(self, make_trail: MakeTrail) -> None:
        """Entries of other processes are no fault."""
        trail, other = make_trail(), make_trail()
        trail.append(READ)
        for _ in range(3):
            other.append(READ)
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
