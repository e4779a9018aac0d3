"""The spool: durable while the store is down, merged in order and once, torn lines passed over."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
import subprocess
import sys
import threading
import warnings
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.forked import is_locked, lingering

from healthobs import Settings
from healthobs.audit import open_trail
from healthobs.audit.spool import Rows, Spool
from healthobs.audit.trail import AuditTrail
from healthobs.audit.turns import Turn
from healthobs.audit.writer import Writer
from healthobs.exceptions import AuditWriteError
from healthobs.testing import Capture

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


def killed_at(nth: int, work: Callable[[], None]) -> int:
    """Work in a child that is killed where it would change or sync a file for the `nth` time; return its status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads
        child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    with contextlib.suppress(BaseException):
        calls = itertools.count(1)

        def counted(call: Callable[..., Any], *arguments: Any) -> Any:
            if next(calls) == nth:
                os._exit(1)
            return call(*arguments)

        for name in ("fsync", "pwrite", "write", "ftruncate", "open"):
            setattr(os, name, functools.partial(counted, getattr(os, name)))
        work()
        os._exit(0)
    os._exit(2)


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

    def test_what_a_merge_leaves_is_synced(
        self, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That entries went, are kept aside, or gave way to one on damage is durable when the merge is done."""
        synced: list[bytes] = []
        inodes: set[int] = set()
        fsync = os.fsync

        def watched(descriptor: int) -> None:
            fsync(descriptor)
            synced.append((tmp_path / "spool").read_bytes())
            inodes.add(os.fstat(descriptor).st_ino)

        monkeypatch.setattr(os, "fsync", watched)
        spool.add("first", b"{}")
        assert (len(merged(spool)), synced[-1]) == (1, b"")
        spool.add("second", b"{}")
        spool.merge(lambda rows: rows)
        assert (tmp_path / "spool.refused").stat().st_ino in inodes
        (tmp_path / "spool").write_bytes(b"damaged\n")
        spool.merge(len, damaged=lambda _lines: ("loss", b"{}"))
        assert (b" loss {}" in synced[-1], synced[-1]) == (True, (tmp_path / "spool").read_bytes())

    def test_names_are_synced(self, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that is new has a durable name before anything in it is acknowledged, and a copy beside it too."""
        synced: list[set[str]] = []
        monkeypatch.setattr(
            "healthobs.audit.spool.sync_directory",
            lambda folder: synced.append({path.name.partition(".")[2] for path in folder.iterdir()}),
        )
        spool.add("first", b"{}")
        assert synced == [{""}]
        spool.add("second", b"{}")
        assert synced == [{""}], "one that holds entries has its name already"
        spool.merge(lambda rows: rows)
        assert synced[1:] == [{"", "refused"}]
        (tmp_path / "spool").write_bytes(b"damaged\n")
        spool.merge(len, damaged=lambda _lines: ("loss", b"{}"))
        assert synced[2:] == [{"", "refused", "damaged-loss"}]

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

    def test_damaged_line_is_kept(self, spool: Spool, tmp_path: Path) -> None:
        """What was in the file when an acknowledged line had become unreadable is kept beside it, for its owner only."""
        file = tmp_path / "spool"
        for number in range(3):
            spool.add(f"key{number}", b'{"n":1}')
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        told: list[int] = []

        def damaged(lines: int) -> tuple[str, bytes]:
            told.append(lines)
            return "loss", b"{}"

        rows: Rows = []
        assert spool.merge(rows.extend, damaged=damaged) == (2, 1)
        (kept,) = tmp_path.glob("spool.damaged-*")
        assert (kept.name, kept.read_bytes(), stat.S_IMODE(kept.stat().st_mode)) == (
            "spool.damaged-loss", bytes(raw), 0o600,
        )  # fmt: skip
        assert ([key for key, _ in rows], told, merged(spool)) == (["key0", "key2"], [1], [("loss", b"{}")])

    def test_damaged_line_stays_without_a_copy(
        self, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the copy cannot be made durable, the file stays as it is."""
        file = tmp_path / "spool"
        file.write_bytes(b"damaged\n")

        def broken(_descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(AuditWriteError, match="Input/output error"):
            spool.merge(len)
        assert file.read_bytes() == b"damaged\n"

    @pytest.mark.parametrize("torn", [b"", b"0000"])
    def test_killed_merge_tells_of_damage_once(self, tmp_path: Path, torn: bytes) -> None:
        """Wherever a merge is killed, the next one has the rest: each entry, and one that says what was lost."""
        nth, status = 0, -1
        while status:
            nth += 1
            folder = tmp_path / str(nth)
            spool, taken = Spool(folder / "spool"), folder / "taken"
            for number in range(3):
                spool.add(f"key{number}", b"{}")
            file = folder / "spool"
            file.write_bytes(file.read_bytes().replace(b"key1", b"kex1") + torn)

            def take(rows: Rows, taken: Path = taken) -> None:
                with taken.open("a") as log:
                    log.writelines(f"{key}\n" for key, _ in rows)

            def merge(spool: Spool = spool, take: Callable[[Rows], None] = take) -> None:
                while spool.waiting():
                    spool.merge(
                        take,
                        lambda key, _body: key != "key2",
                        damaged=lambda _: (f"loss{os.getpid()}+", b"{}"),
                    )

            status = killed_at(nth, merge)
            merge()
            told = taken.read_text().split()
            assert "key0" in told
            assert (len(set(told)), len([*folder.glob("spool.damaged-*")]) < 3) == (2, True), told
            assert (folder / "spool.refused").read_bytes() == b"key2 {}\n"
        assert nth > 8

    def test_told_damage_stays_told(self, spool: Spool, tmp_path: Path) -> None:
        """What came before an entry on damage is not merged again, also when more is damaged after it; else it is."""
        taken: Rows = []
        file, told = tmp_path / "spool", list[int]()

        def damaged(lines: int) -> tuple[str, bytes]:
            told.append(lines)
            return f"loss{len(told)}+", b"{}"

        def merge() -> None:
            spool.merge(taken.extend, damaged=damaged)

        spool.add("key", b"{}")
        file.write_bytes(file.read_bytes() + b"damaged\n")
        merge()
        spool.add("next", b"{}")
        file.write_bytes(file.read_bytes() + b"damaged\ndamaged\n")
        merge()
        merge()
        assert [key for key, _ in taken] == ["key", "loss1+", "next", "loss2+"]
        assert (told, spool.waiting()) == ([1, 2], False)
        file.write_bytes(b"damaged\n")
        merge()
        (tmp_path / "spool.damaged-loss3").write_bytes(b"another\n")
        merge()
        assert told == [1, 2, 1, 1]

    def test_torn_tail_is_no_damage(self, spool: Spool, tmp_path: Path) -> None:
        """A last line without its newline was never acknowledged: nothing is kept of it."""
        file = tmp_path / "spool"
        spool.add("first", b"{}")
        file.write_bytes(file.read_bytes() + b"0000")
        rows: Rows = []
        assert (spool.merge(rows.extend), len(rows), spool.waiting()) == ((1, 0), 1, False)
        assert list(tmp_path.glob("spool.damaged-*")) == []

    def test_fork_takes_no_lock_along(
        self, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A child forked in the middle of adding or merging has not the lock once that is done, however long it lives."""
        with lingering() as fork:
            fsync = os.fsync

            def forking(descriptor: int) -> None:
                fork()
                fsync(descriptor)

            monkeypatch.setattr(os, "fsync", forking)
            spool.add("first", b"{}")
            assert not is_locked(tmp_path / "spool")
            assert len(merged(spool)) == 1
            assert not is_locked(tmp_path / "spool")

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

    def test_check(self, spool: Spool, tmp_path: Path) -> None:
        """Whether an entry could be put there is told without one; a folder in its place takes none."""
        spool.check()
        assert not spool.waiting()
        spool.add("1", b"{}")
        spool.check()
        assert merged(spool) == [("1", b"{}")]
        (tmp_path / "spool").unlink()
        (tmp_path / "spool").mkdir()
        with pytest.raises(AuditWriteError, match="cannot be used"):
            spool.check()


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

    def test_merge_never_delays_care(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """While the store hangs, care waits two seconds at most, the merge included, and after a failed one not at all."""
        now, tried = 1_000.0, list[int]()

        def hang(
            _writer: Writer, rows: Iterable[object], timeout_seconds: float, _unless: str | None = None
        ) -> None:
            nonlocal now
            now += timeout_seconds
            tried.append(len(list(rows)))
            raise AuditWriteError("hangs")

        for module in ("trail", "merging", "sequencing", "turns"):
            monkeypatch.setattr(f"healthobs.audit.{module}.monotonic", lambda: now)
        monkeypatch.setattr(Writer, "append_all", hang)
        waited = list[float]()
        for pause in (0, 0, 0, 60, 0):
            now += pause
            began = now
            assert trail.append_or_spool(CARE) is None
            waited.append(now - began)
        assert (waited, tried) == ([2, 2, 0, 2, 0], [1, 1, 3])
        monkeypatch.undo()
        trail.append({"action": "after"})
        assert len(trail.read(action="patient.read").entries) == 5

    def test_one_thread_merges(self, trail: AuditTrail, monkeypatch: pytest.MonkeyPatch) -> None:
        """Many appends at once hand the spool over once."""
        assert trail.spool is not None
        trail.spool.add(trail.new_key(), trail.encode(CARE))
        come, merge, handed = threading.Barrier(8), Spool.merge, list[int]()

        def counted(spool: Spool, *arguments: Any) -> tuple[int, int]:
            handed.append(1)
            return merge(spool, *arguments)

        def append(_number: int) -> None:
            come.wait(10)
            trail.append({"action": "after"})

        monkeypatch.setattr(Spool, "merge", counted)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(append, range(8)))
        assert handed == [1]

    def test_failed_merge_counts_for_all_who_waited(self) -> None:
        """Whoever waited for a merge that failed does not begin another one; who comes afterwards and insists, does."""
        turn = Turn()
        with pytest.raises(ZeroDivisionError), turn.taken(1, insists=True):
            raise ZeroDivisionError
        with pytest.raises(AuditWriteError, match="just now"), turn.taken(1, insists=False):
            pytest.fail("care must not wait for another merge so soon")
        with (
            turn.taken(1, insists=True),
            pytest.raises(AuditWriteError, match="still"),
            turn.taken(0, insists=True),
        ):
            pytest.fail("two merge at once")
        with turn.taken(1, insists=False):
            pass

        class Waited:  # for a merge that fails meanwhile
            def acquire(self, timeout: float) -> bool:
                turn._failures += 1
                return timeout == 1

            def release(self) -> None: ...

        turn._lock = Waited()  # type: ignore[assignment]
        with pytest.raises(AuditWriteError, match="just now"), turn.taken(1, insists=True):
            pytest.fail("the spool must not be handed over again")

    def test_damage_is_told(self, tmp_path: Path) -> None:
        """An acknowledged entry that cannot be read any more is counted, logged, and an entry of its own says so."""
        url, file = f"sqlite:///{tmp_path}/audit.db", tmp_path / "spool"
        file.write_bytes(b"damaged\n")
        settings = Settings(service_name="s", audit_database_url=url, audit_spool_file=file)
        with Capture(settings) as capture:
            trail = capture.obs.audit
            assert trail is not None
            trail.append({"action": "after"})
            entries = trail.read().entries
            assert [entry["action"] for entry in entries] == ["after", "audit.damage"]
            assert (entries[1]["details"], entries[1]["actor"]) == (
                {"lines": 1},
                {"id": "healthobs", "kind": "system"},
            )
            assert capture.metric("healthobs_audit_spool_damaged_total") == 1
            assert [
                line["lines"] for line in capture.log_lines if line["event"] == "audit_spool_damaged"
            ] == ["1"]

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

    def test_is_kept_aside(self, trail: AuditTrail, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A line with a good checksum that governs the trail is kept beside the file, told, and holds up no other."""
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
        (line,) = (record for record in caplog.records if record.message == "audit_rows_refused")
        assert (line.levelname, vars(line)["count"]) == ("ERROR", 2)
        assert not trail.spool.waiting()

    def test_reused_key_holds_up_nobody(self, trail: AuditTrail, tmp_path: Path) -> None:
        """A line that reuses a key, of the log or of the same file, for another entry is kept aside and holds up nothing."""
        assert trail.spool is not None
        first, other = trail.encode(CARE), trail.encode({"action": "chart.update"})
        taken, fresh = trail.new_key(), trail.new_key()
        trail.sequence([(taken, first)])
        for row in ((taken, other), (fresh, first), (fresh, other), (taken, first)):
            trail.spool.add(*row)
        assert [trail.append({"action": "a.b"}).index for _ in range(2)] == [2, 3]
        aside = (tmp_path / "spool.refused").read_bytes().splitlines()
        assert aside == [f"{key} ".encode() + other for key in (taken, fresh)]
        assert (trail.refused_rows, trail.spool.waiting(), trail.verify().problems) == (2, False, ())

    def test_only_the_trail_tells_of_damage(self, trail: AuditTrail, tmp_path: Path) -> None:
        """An entry on damage is recorded once, from the line that the trail signed, and from no other."""
        assert trail.spool is not None
        assert trail._merging is not None
        key, own = trail._merging.damaged(3, 10)
        stem, _, signed = key.partition("+")
        other = own.replace(b'"lines":3', b'"lines":4')
        unknown = b64encode(bytes(68)).decode()
        more = urlsafe_b64encode(f"{urlsafe_b64decode(signed).decode()}— x {unknown}\n".encode()).decode()
        forged = [(stem, own), (f"{stem}+", own), (f"{stem}+!", own), (f"{stem}+4pyT", own), (key, other)]
        forged += [(f"{trail.new_key()}+{signed}", own), (key, own.replace(b"audit.damage", b"audit.prune"))]
        for row in [*forged, (key, own), (key, own), (f"{stem}+{more}", own)]:
            trail.spool.add(*row)
        trail.append(CARE)
        trail.spool.add(key, own)
        trail.append(CARE)
        assert [entry["action"] for entry in trail.read().entries] == [
            "patient.read", "patient.read", "audit.damage",
        ]  # fmt: skip
        aside = (tmp_path / "spool.refused").read_bytes().splitlines()
        assert (len(aside), trail.refused_rows, trail.spool.waiting()) == (len(forged), len(forged), False)
        for row in (*forged, (key, own)):
            with pytest.raises(AuditWriteError, match="no entry"):
                trail.sequence([row])
        with pytest.raises(AuditWriteError, match="only the trail"):
            trail.append({"action": "audit.damage"})

    def test_damaged_and_refused_lines_in_one_file(self, trail: AuditTrail, tmp_path: Path) -> None:
        """What cannot be read is in the copy and told, what can be but is no entry is aside, and the rest is recorded."""
        assert trail.spool is not None
        good, file = trail.encode(CARE), tmp_path / "spool"
        trail.spool.add(trail.new_key(), good.replace(b"patient.read", b"audit.release"))
        trail.spool.add(trail.new_key(), good)
        file.write_bytes(b"damaged\n" + file.read_bytes())
        before = file.read_bytes()
        trail.append({"action": "after"})
        entries = trail.read().entries
        assert [entry["action"] for entry in entries] == ["after", "audit.damage", "patient.read"]
        (kept,) = tmp_path.glob("spool.damaged-*")
        assert (kept.read_bytes(), "+" in kept.name, trail.refused_rows) == (before, False, 1)
        assert (tmp_path / "spool.refused").read_bytes().count(b"\n") == 1

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
