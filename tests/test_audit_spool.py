"""The spool: durable while the store is down, merged in order and once, torn lines passed over."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from healthobs.audit import open_trail
from healthobs.audit.spool import Rows, Spool
from healthobs.audit.trail import AuditTrail
from healthobs.exceptions import AuditWriteError

CARE = {"action": "patient.read", "purpose": "BTG"}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[AuditTrail]:
    opened = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s", spool_file=tmp_path / "spool")
    yield opened
    opened.close()


def merged(spool: Spool) -> Rows:
    rows: Rows = []
    spool.merge(rows.extend)
    return rows


class TestSpool:
    """The file."""

    def test_keeps_entries_in_order(self, spool: Spool, tmp_path: Path) -> None:
        """What was added is handed over oldest first, and then forgotten; the file is its owner's."""
        rows = [(f"key{number}", f'{{"n":{number}}}'.encode()) for number in range(5)]
        for row in rows:
            spool.add(*row)
        assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o600
        assert (spool.waiting(), merged(spool), spool.waiting(), merged(spool)) == (True, rows, False, [])

    def test_is_synced_before_it_returns(self, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file is synced after the line is written; when that fails, nothing is acknowledged or kept."""
        spool.add("first", b"{}")

        def broken(_descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(AuditWriteError, match="Input/output error"):
            spool.add("second", b"{}")
        monkeypatch.undo()
        assert [key for key, _ in merged(spool)] == ["first"]

    @pytest.mark.parametrize("cut", range(1, 18))
    def test_torn_line_is_passed_over(self, spool: Spool, tmp_path: Path, cut: int) -> None:
        """However much of the last line a crash left, what was acknowledged before and after it is kept."""
        spool.add("first", b"{}")
        spool.add("torn", b"{}")
        file = tmp_path / "spool"
        os.truncate(file, file.stat().st_size - cut)
        spool.add("last", b"{}")
        rows: Rows = []
        count, unreadable = spool.merge(rows.extend)
        whole = cut == 1  # only its newline is gone
        assert [key for key, _ in rows] == (["first", "torn", "last"] if whole else ["first", "last"])
        assert (count, unreadable) == (len(rows), 0 if whole or cut == 17 else 1)

    def test_stays_when_the_merge_fails(self, spool: Spool) -> None:
        """Entries that nobody took are still there."""
        spool.add("first", b"{}")

        def refuse(_rows: Rows) -> None:
            raise AuditWriteError("down")

        with pytest.raises(AuditWriteError):
            spool.merge(refuse)
        assert [key for key, _ in merged(spool)] == ["first"]

    def test_takes_more_while_it_is_merged(self, spool: Spool) -> None:
        """Nobody who must spool waits for a merge, and what came meanwhile stays."""
        spool.add("first", b"{}")
        spool.merge(lambda _rows: spool.add("second", b"{}"))
        assert [key for key, _ in merged(spool)] == ["first", "second"]

    def test_full_disk(self, tmp_path: Path) -> None:
        """A disk without room refuses the entry and damages none."""
        code = """
            import resource, signal, sys
            from pathlib import Path
            from healthobs.audit.spool import Spool
            from healthobs.exceptions import AuditWriteError
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            spool = Spool(Path(sys.argv[1]))
            spool.add("first", b"{}")
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, limit[1]))
            try:
                spool.add("second", b"x" * 100)
            except AuditWriteError as exc:
                print(exc)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            spool.add("third", b"{}")
            rows = []
            print(spool.merge(rows.extend), [key for key, _ in rows])
        """
        lines = [line.removeprefix(" " * 12) for line in code.splitlines()]
        done = subprocess.run(
            [sys.executable, "-c", "\n".join(lines), str(tmp_path / "spool")],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
        said, kept = done.stdout.splitlines()
        assert "the audit spool cannot be used (No space left" in said
        assert kept == "(2, 0) ['first', 'third']"


class TestTrailWithSpool:
    """Care goes on while the store is down."""

    def test_spools_and_merges_once_in_order(self, trail: AuditTrail) -> None:
        """Spooled entries come into the log before the first append after, once and in order."""
        assert trail.path is not None
        trail.append({"action": "before"})
        hidden = trail.path.rename(trail.path.with_name("hidden"))
        told = [trail.append_or_spool({**CARE, "resource_id": str(number)}) for number in range(3)]
        with pytest.raises(AuditWriteError):
            trail.append({"action": "denied"})
        hidden.rename(trail.path)
        assert (told, trail.append({"action": "after"}).index) == ([None] * 3, 4)
        entries = [(entry["action"], entry["resource"]["id"]) for entry in reversed(trail.read().entries)]
        care = [("patient.read", str(number)) for number in range(3)]
        assert entries == [("before", None), *care, ("after", None)]
        assert trail.verify().ok

    def test_late_store_and_spool_are_one_entry(
        self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An entry that the store took after all, later than care would wait, is not doubled by the spool."""
        monkeypatch.setattr("healthobs.audit.trail.SPOOL_AFTER_SECONDS", 0.2)
        trail.append({"action": "before"})
        entered, leave = threading.Event(), threading.Event()
        insert = __import__("healthobs.audit.store", fromlist=["insert"]).insert

        def slow(*arguments: object) -> None:
            entered.set()
            leave.wait(10)
            insert(*arguments)

        monkeypatch.setattr("healthobs.audit.store.insert", slow)
        assert trail.append_or_spool(CARE) is None
        assert entered.is_set()
        leave.set()
        monkeypatch.setattr("healthobs.audit.store.insert", insert)
        trail.append({"action": "after"})
        assert [entry["action"] for entry in trail.read().entries] == ["after", "patient.read", "before"]

    def test_many_at_once(self, trail: AuditTrail) -> None:
        """Threads that spool and merge at once lose and double nothing."""
        assert trail.path is not None
        hidden = trail.path.rename(trail.path.with_name("hidden"))
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda number: trail.append_or_spool({**CARE, "resource_id": str(number)}), range(40)
                )
            )
        hidden.rename(trail.path)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: trail.append({"action": "after"}), range(8)))
        ids = [entry["resource"]["id"] for entry in trail.read(action="patient.read").entries]
        assert sorted(ids, key=int) == [str(number) for number in range(40)]

    def test_without_a_spool_it_denies(self, tmp_path: Path) -> None:
        """A trail that has no spool refuses as ever."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        (tmp_path / "audit.db").unlink()
        with pytest.raises(AuditWriteError):
            trail.append_or_spool(CARE)
        trail.close()

    def test_malformed_entry_is_not_spooled(self, trail: AuditTrail) -> None:
        """An entry that no store would take is refused."""
        with pytest.raises(AuditWriteError):
            trail.append_or_spool({"action": "not a word"})


class TestForged:
    """What whoever may write the file could plant in it."""

    def test_is_kept_aside(self, trail: AuditTrail, tmp_path: Path) -> None:
        """A line with a good checksum that governs the trail is kept beside the file and holds up no other."""
        assert trail.spool is not None
        good = trail.encode(CARE)
        bad = good.replace(b"patient.read", b"audit.release")
        for body in (good, bad, b"078-05-1120", good):
            trail.spool.add(trail.new_key(), body)
        trail.append({"action": "a.b"})
        assert [entry["action"] for entry in trail.read().entries] == ["a.b", "patient.read", "patient.read"]
        aside = tmp_path / "spool.refused"
        assert [line.partition(b" ")[2] for line in aside.read_bytes().splitlines()] == [bad, b"078-05-1120"]
        assert (stat.S_IMODE(aside.stat().st_mode), trail.refused_rows) == (0o600, 2)
        assert not trail.spool.waiting()

    def test_cut_off_merge_keeps_it_once(self, spool: Spool, tmp_path: Path) -> None:
        """A merge that fails and comes again does not keep the same line twice."""
        spool.add("key", b"{}")

        def down(_rows: Rows) -> None:
            raise AuditWriteError("down")

        spool.add("good", b"[]")
        for _ in range(2):
            with pytest.raises(AuditWriteError, match="down"):
                spool.merge(down, lambda key, _body: key == "good")
        assert (tmp_path / "spool.refused").read_bytes() == b"key {}\n"
