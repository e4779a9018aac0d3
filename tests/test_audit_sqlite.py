"""How SQLite is opened: write-ahead logging only where its race is mended."""

from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from tests.audit_trails import READ, MakeTrail, cut_off
from tests.forked import is_locked, lingering

from healthobs.audit.command import main
from healthobs.audit.sqlite import SqliteConnection, SqliteStore, connect_pragmas, set_up, wal_is_safe


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

    @pytest.mark.parametrize("journal", ["TRUNCATE", "PERSIST"])
    @pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 3)])
    def test_take_effect(self, tmp_path: Path, version: tuple[int, ...], journal: str) -> None:
        """The statements set what they name."""
        connection = sqlite3.connect(tmp_path / "any.db")
        try:
            for statement in connect_pragmas(version, journal=journal):
                connection.execute(statement)
            (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
            (level,) = connection.execute("PRAGMA synchronous").fetchone()
            (keys,) = connection.execute("PRAGMA foreign_keys").fetchone()
        finally:
            connection.close()
        assert (mode, level, keys) == ("wal" if wal_is_safe(version) else journal.lower(), 2, 1)

    @pytest.mark.parametrize("wait_seconds", [None, 30.0])
    def test_wait_for_a_writer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_seconds: float | None
    ) -> None:
        """Whoever changes the journal mode waits until others have written, in WAL mode too, and no longer than is said."""
        monkeypatch.setattr("healthobs.audit.sqlite.connect_pragmas", lambda **_: connect_pragmas((3, 51, 3)))
        options: dict[str, Any] = {"timeout": 30.0, "isolation_level": None, "check_same_thread": False}
        with (
            closing(sqlite3.connect(tmp_path / "any.db", **options)) as writer,
            closing(sqlite3.connect(tmp_path / "any.db", **options)) as connection,
        ):
            writer.execute("CREATE TABLE t (a)")
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                set_up(connection, wait_seconds=0)
            with ThreadPoolExecutor(1) as thread:
                waiting = thread.submit(set_up, connection, wait_seconds=wait_seconds)
                with pytest.raises(TimeoutError):
                    waiting.result(0.3)
                writer.execute("COMMIT")
                waiting.result(30)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_every_connection_is_set(self, make_trail: MakeTrail) -> None:
        """The statements are run on each connection that may write."""
        with make_trail().changing() as connection:
            told = [connection.execute(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "foreign_keys")]
        assert told == ["wal" if wal_is_safe() else "persist", 1]

    @pytest.mark.parametrize("version", [(3, 40, 1), (3, 51, 3)])
    def test_trail_works_in_both_modes(
        self, make_trail: MakeTrail, monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...]
    ) -> None:
        """Append, read and verify work with a rollback journal and with write-ahead logging."""
        pragmas = connect_pragmas(version, journal="PERSIST")
        monkeypatch.setattr("healthobs.audit.sqlite.connect_pragmas", lambda **_: pragmas)
        trail = make_trail()
        for _ in range(3):
            trail.append(READ)
        assert (trail.read().total, trail.verify().ok, trail.accepted_changes()) == (3, True, ())
        trail.health()
        trail.close()
        assert trail.verify().ok

    def test_folder_is_made(self, tmp_path: Path) -> None:
        """A folder that is not there is made, for its owner only."""
        place = SqliteStore(tmp_path / "some" / "where" / "audit.db")
        with place.initialising():
            pass
        assert stat.S_IMODE((tmp_path / "some" / "where").stat().st_mode) == 0o700

    def test_fork_takes_no_lock_along(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child forked while a log is opened has not its lock once that is done, however long it lives."""
        connect, writing, locked = SqliteStore.connect, SqliteConnection.writing, list[bool]()

        def checked(connection: SqliteConnection) -> AbstractContextManager[None]:
            locked.append(is_locked(tmp_path / "audit.db.lock"))
            assert locked == [False], "it would wait for the child"
            return writing(connection)

        with lingering() as fork:
            monkeypatch.setattr(SqliteStore, "connect", lambda place: (fork(), connect(place))[1])
            monkeypatch.setattr(SqliteConnection, "writing", checked)
            with SqliteStore(tmp_path / "audit.db").initialising():
                pass
        assert locked == [False]


@pytest.mark.skipif(wal_is_safe(), reason="only a rollback journal is left behind")
class TestWriterKilled:
    """What a killed writer had begun is undone by whoever may write."""

    def test_trail_reads_on(self, make_trail: MakeTrail) -> None:
        """A process that has the log open reads it, though another was killed while it committed."""
        trail = make_trail()
        trail.append(READ)
        assert trail.path is not None
        cut_off(trail.path)
        assert (trail.read().total, trail.verify().ok) == (1, True)

    def test_commands(self, make_trail: MakeTrail, capsys: pytest.CaptureFixture[str]) -> None:
        """Of two commands the one that writes nothing says what to do, and the one that records something goes on."""
        trail = make_trail()
        trail.append(READ)
        trail.close()
        path = trail.path
        assert path is not None
        cut_off(path)
        before = [path.read_bytes(), path.with_name(f"{path.name}-journal").read_bytes()]
        assert main(["verify", str(path)]) == 2
        assert "killed in the middle" in capsys.readouterr().err
        assert before == [path.read_bytes(), path.with_name(f"{path.name}-journal").read_bytes()]
        assert main(["hold", str(path), "case-17", "--entries", "0-0", "--reason", "litigation"]) == 0
        assert main(["verify", str(path)]) == 0
