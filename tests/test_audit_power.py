"""Durability that can fail: power cuts replayed from system calls, syncs that fail, a clock that steps back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from tests import power
from tests.postgres import Postgres

from healthobs.audit import open_trail, verification
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.spool import Spool
from healthobs.audit.sqlite import SqliteStore, connect_pragmas
from healthobs.exceptions import AuditError

#: Appends one after the other; reports each acknowledgement, or refusal, only after it was given.
WRITER = """
import os, sys
from healthobs.audit import open_trail, sqlite
if sys.argv[2]:
    sqlite.connect_pragmas = lambda **_: tuple(sys.argv[2].split(";"))
from healthobs.exceptions import AuditWriteError
trail = open_trail("sqlite:///" + sys.argv[1] + "/audit.db", service="s")
os.write(1, b"ready " + trail.vkey.encode() + b"\\n")
for number in range(int(sys.argv[3])):
    try:
        receipt = trail.append({"action": "a.b", "resource_id": str(number)})
        os.write(1, f"ack {receipt.index} {number}\\n".encode())
    except AuditWriteError:
        os.write(1, f"refused {number}\\n".encode())
print("ok" if trail.verify().ok else "bad")
"""
#: What an append is measured against: one row, one commit.
PLAIN = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1] + "/plain.db", isolation_level=None)
for pragma in sys.argv[2].split(";"):
    connection.execute(pragma)
connection.execute("CREATE TABLE entry (idx INTEGER PRIMARY KEY, body TEXT)")
for number in range(int(sys.argv[3])):
    connection.execute("INSERT INTO entry (body) VALUES (?)", ("x" * 340,))
    os.write(1, f"ack {number} {number}\\n".encode())
"""
#: Merges a spool in which a line was damaged, as a trail does: until nothing waits.
SPOOL = """
import os, sys
from pathlib import Path
from healthobs.audit.spool import Spool
spool = Spool(Path(sys.argv[1]) / "spool")
for number in range(3):
    spool.add(f"key{number}", b"{}")
descriptor = os.open(sys.argv[1] + "/spool", os.O_RDWR)
os.pwrite(descriptor, b"x", os.fstat(descriptor).st_size // 2)
os.fsync(descriptor)
os.write(1, b"ready\\n")
def take(rows):
    os.write(1, " ".join(["taken", *(key for key, _ in rows)]).encode())
while spool.waiting():
    spool.merge(take, damaged=lambda lines: ("loss+", b"{}"))
"""
_ACK = re.compile(rb"ack (\d+) (\d+)\n")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder for strace, in memory where there is one: what is on the real disk does not matter here."""
    if shutil.which("strace") is None:
        assert not os.environ.get("HEALTHOBS_MUST_HAVE_SERVERS"), "the gate must not skip what needs strace"
        pytest.skip("strace is not installed (Debian: apt-get install strace)")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as made:
        yield Path(made)


class Verdict:
    """What every crash state of one run looks like once it was opened again."""

    def __init__(self, folder: Path, pragmas: str, appends: int = 6) -> None:
        calls, output = power.record(WRITER, str(folder), pragmas, str(appends))
        self.vkey = output.split("\n", 1)[0].removeprefix("ready ")
        self.states, self.acknowledged, self.unsafe_at_ack = 0, 0, 0
        self.lost: list[str] = []
        disk, told, ready = power.Disk(folder), dict[int, str](), False
        seen: set[int] = set()
        for call in calls:
            if call.name == "write" and call.data.startswith(b"ready"):
                ready = True
            elif call.name == "write" and (ack := _ACK.fullmatch(call.data)):
                told[int(ack[1])] = ack[2].decode()
                self.acknowledged += 1
                self.unsafe_at_ack += disk.unsafe()
            elif not disk.play(call):
                continue
            for state in disk.crashes() if ready else ():
                known = hash((tuple(sorted(state.items())), len(told)))
                if known not in seen:
                    seen.add(known)
                    self.states += 1
                    self._recover(state, told)

    def _recover(self, state: dict[str, bytes], told: dict[int, str]) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
            for name, content in state.items():
                Path(place, name).write_bytes(content)
            try:
                with closing(SqliteStore(Path(place, "audit.db")).connect()) as connection:
                    problems = verification.verify(connection, Verifier(self.vkey)).problems
                    rows = connection.execute("SELECT idx, body FROM entry")
            except AuditError as exc:
                self.lost.append(str(exc))
                return
        kept = dict(rows)
        gone = [index for index, mark in told.items() if f'"id":"{mark}"' not in kept.get(index, "")]
        if problems or gone:
            self.lost.append(f"{len(gone)} acknowledged entries gone; {'; '.join(map(str, problems))}")


def syncs(folder: Path, code: str, mode: str) -> list[int]:
    """Return how often something was synced between one acknowledgement and the next."""
    calls, _ = power.record(code, str(folder), mode, "6")
    counts: list[int] = []
    for call in calls:
        if call.name == "write" and _ACK.fullmatch(call.data):
            counts.append(0)
        elif counts and call.name in ("fsync", "fdatasync"):
            counts[-1] += 1
    return counts[:-1]


def pragmas(journal: str, synchronous: str) -> str:
    return f"PRAGMA busy_timeout = 5000;PRAGMA journal_mode = {journal};PRAGMA synchronous = {synchronous}"


@pytest.mark.server
class TestPowerCut:
    """Every state that a power cut can leave, at every system call."""

    @pytest.mark.parametrize(
        "mode",
        [
            ";".join(connect_pragmas((3, 40, 1), journal="PERSIST")),
            ";".join(connect_pragmas((3, 40, 1))),
            ";".join(connect_pragmas((3, 51, 3))),
        ],
    )
    def test_nothing_acknowledged_is_lost(self, folder: Path, mode: str) -> None:
        """Every way in which we open SQLite recovers from every state with all that was acknowledged."""
        verdict = Verdict(folder, mode)
        assert verdict.acknowledged == 6
        assert verdict.states > 50
        assert verdict.lost == []
        # When an entry is acknowledged, nothing that was written for it waits for a sync, no name either.
        assert verdict.unsafe_at_ack == 0

    @pytest.mark.parametrize(
        "mode",
        [
            pragmas("TRUNCATE", "OFF"),
            pragmas("PERSIST", "OFF"),
            pragmas("WAL", "NORMAL"),
            pragmas("DELETE", "FULL"),  # the journal that was removed comes back, and undoes the commit
        ],
    )
    def test_weaker_modes_are_caught(self, folder: Path, mode: str) -> None:
        """Modes that lose what was acknowledged are found to, so silence above counts."""
        verdict = Verdict(folder, mode)
        assert verdict.acknowledged == 6
        assert verdict.lost != []


@pytest.mark.server
class TestCost:
    """What is not to be had for less."""

    @pytest.mark.parametrize(
        ("mode", "each"),
        [(connect_pragmas((3, 40, 1), journal="PERSIST"), 5), (connect_pragmas((3, 51, 3)), 1)],
    )
    def test_an_entry_is_synced_as_often_as_a_plain_commit(
        self, folder: Path, mode: tuple[str, ...], each: int
    ) -> None:
        """Tree, checkpoint and check of what was written add no wait for the disk in either journal mode."""
        (folder / "plain").mkdir()
        assert syncs(folder / "plain", PLAIN, ";".join(mode)) == [each] * 5
        assert syncs(folder, WRITER, ";".join(mode)) == [each] * 5


@pytest.mark.server
class TestFailingSync:
    """A disk that reports an error."""

    @pytest.mark.parametrize("nth", [9, 12, 14, 17])
    def test_nothing_is_acknowledged_that_failed(self, folder: Path, nth: int) -> None:
        """Whichever sync fails, the batch is refused, what was acknowledged stays, and the log goes on."""
        for call in ("fsync", "fdatasync"):
            shutil.rmtree(folder)
            folder.mkdir()
            try:
                _, output = power.record(WRITER, str(folder), "", "8", inject=f"{call}:error=EIO:when={nth}")
            except subprocess.CalledProcessError:
                continue  # the sync that failed was one of those that make the log
            lines = output.splitlines()
            assert lines[-1] == "ok"
            told = {int(line.split()[1]): line.split()[2] for line in lines if line.startswith("ack")}
            with closing(SqliteStore(folder / "audit.db").connect()) as connection:
                kept = dict(connection.execute("SELECT idx, body FROM entry"))
            assert all(f'"id":"{mark}"' in kept[index] for index, mark in told.items())
            assert len(told) >= 6


@pytest.mark.server
class TestPostgresSync:
    """What PostgreSQL does before it confirms a commit, from the system calls of its backend."""

    @pytest.mark.parametrize(("setting", "synced"), [("on", True), ("off", False)])
    def test_write_ahead_log_is_synced_before_the_confirmation(
        self, folder: Path, postgres: Postgres, tmp_path: Path, setting: str, synced: bool
    ) -> None:
        """With synchronous_commit on each commit follows a sync, with off it does not: the check of it matters."""
        trail = open_trail(postgres.url(postgres.database()), service="s", key_file=tmp_path / "key")
        with closing(trail._access.place.connect()) as connection:
            connection.execute(f"SET synchronous_commit = {setting}")
            ((backend,),) = connection.execute("SELECT pg_backend_pid()")
            log = folder / "strace"
            command = [
                "strace",
                "-p",
                str(backend),
                "-o",
                str(log),
                "-s",
                "200",
                "-e",
                "trace=fdatasync,fsync,sendto",
            ]
            tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert tracer.stderr is not None
            assert "attached" in tracer.stderr.readline()
            for index in range(5):
                connection.execute("BEGIN")
                connection.execute(
                    "INSERT INTO entry (idx, leaf, body) VALUES (?, ?, '{}')", (index, bytes(32))
                )
                connection.execute("COMMIT")
            tracer.terminate()
            tracer.communicate(timeout=30)
        trail.close()
        told = re.findall(r"fdatasync|fsync|INSERT|COMMIT", log.read_text())
        confirmed = [before for before, after in pairwise(told) if after == "COMMIT"]
        assert len(confirmed) == 5
        assert all(before == "fdatasync" for before in confirmed) is synced


@pytest.mark.server
class TestSpoolPowerCut:
    """Every state that a power cut can leave of a spool in which a line was damaged."""

    def test_damage_is_told_once(self, folder: Path) -> None:
        """What was there is merged, and the entry that says what was lost is in the spool until the log has it."""
        calls, _ = power.record(SPOOL, str(folder))
        disk, taken, ready, states = power.Disk(folder), set[str](), False, set[int]()
        for call in calls:
            if call.name == "write" and call.data == b"ready\n":
                ready = True
            elif call.name == "write" and call.data.startswith(b"taken "):
                taken |= set(call.data.decode().split()[1:])
            elif not disk.play(call):
                continue
            for state in disk.crashes() if ready else ():
                known = hash((tuple(sorted(state.items())), len(taken)))
                if known not in states:
                    states.add(known)
                    told = taken | _merged(state)
                    assert told & {"key0", "key1", "key2"} == {"key0", "key2"}
                    assert len(told) == 3, told
        assert taken == {"key0", "key2", "loss+"}
        assert len(states) > 6


def _merged(state: dict[str, bytes]) -> set[str]:
    """Return the keys that merging what a power cut left hands over."""
    keys: set[str] = set()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        for name, content in state.items():
            Path(place, name).write_bytes(content)
        spool = Spool(Path(place, "spool"))
        while spool.waiting():
            spool.merge(
                lambda rows: keys.update(key for key, _ in rows), damaged=lambda _lines: ("another+", b"{}")
            )
    return keys
