"""Several processes on one trail: at once, killed in the middle. Nothing acknowledged is ever lost."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
from base64 import b64encode
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest

from healthobs.audit import open_trail
from healthobs.audit.opening import store_of
from healthobs.exceptions import AuditWriteError

#: Threads append and report each receipt on one line of standard output, only after it was given.
WORKER = """
import os, pathlib, sys, threading
from healthobs.audit import open_trail

url, threads, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
key = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 else None
trail = open_trail(url, service="hammer", key_file=key)

def work(thread):
    for number in range(each):
        mark = f"p{os.getpid()}t{thread}n{number}"  # no digits and dashes alone: a low pid made dates of them
        receipt = trail.append({"action": "hammer.hit", "resource_id": mark})
        os.write(1, f"{receipt.index} {mark}\\n".encode())

workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
trail.close()
"""


def start(url: str, threads: int, each: int, *key_file: str) -> subprocess.Popen[str]:
    arguments = [url, str(threads), str(each), *key_file]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, text=True)


def acknowledged(output: str) -> dict[int, str]:
    """Read index and mark of each receipt; a line that was cut off was no acknowledgement."""
    lines = output.split("\n")[:-1]
    return {int(index): mark for index, mark in (line.split(" ") for line in lines)}


def bodies(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT idx, body FROM entry ORDER BY idx").fetchall()
    finally:
        connection.close()
    assert [index for index, _ in rows] == list(range(len(rows)))
    return [body for _, body in rows]


def root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162 §2.1.1, word for word."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else sha256(b"").digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + root(leaves[:k]) + root(leaves[k:])).digest()


class TestSeveralProcesses:
    """Processes that write, die and stop on one trail."""

    def test_hammer(self, tmp_path: Path) -> None:
        """Two processes of four threads: one log, no gap, every receipt true, the root that of the bodies."""
        url = f"sqlite:///{tmp_path}/audit.db"
        processes = [start(url, threads=4, each=50) for _ in range(2)]
        receipts: dict[int, str] = {}
        for process in processes:
            output, _ = process.communicate(timeout=90)
            assert process.returncode == 0
            receipts |= acknowledged(output)
        written = bodies(tmp_path / "audit.db")
        assert len(receipts) == len(written) == 400
        assert {index: json.loads(body)["resource"]["id"] for index, body in enumerate(written)} == receipts
        trail = open_trail(url, service="hammer")
        verdict, checkpoint = trail.verify(), trail.checkpoint()
        trail.close()
        assert verdict.problems == ()
        assert checkpoint.root == root([sha256(b"\x00" + body.encode()).digest() for body in written])

    @pytest.mark.server
    @pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
    def test_four_processes_of_sixteen_threads(
        self, tmp_path: Path, kind: str, request: pytest.FixtureRequest
    ) -> None:
        """No gap, every receipt true, and every checkpoint's root is that of the bodies, recomputed here."""
        url, key = f"sqlite:///{tmp_path}/audit.db", tmp_path / "key"
        if kind == "postgresql":
            server = request.getfixturevalue("postgres")
            url = server.url(server.database())
        processes = [start(url, 16, 20, str(key)) for _ in range(4)]
        receipts: dict[int, str] = {}
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0
            receipts |= acknowledged(output)
        with closing(store_of(url).connect(read_only=True)) as connection:
            written = connection.execute("SELECT idx, body FROM entry ORDER BY idx")
            notes = connection.execute("SELECT size, note FROM checkpoint ORDER BY size")
        assert [index for index, _ in written] == list(range(4 * 16 * 20))
        assert {index: json.loads(body)["resource"]["id"] for index, body in written} == receipts
        hashed = [sha256(b"\x00" + body.encode()).digest() for _, body in written]
        told = {size: note.split("\n")[1:3] for size, note in notes}
        expected = {size: [str(size), b64encode(root(hashed[:size])).decode()] for size in told}
        assert told == expected
        assert max(told) == len(hashed)

    def test_killed_in_the_middle(self, tmp_path: Path) -> None:
        """After each `kill -9` the log verifies, holds all that was acknowledged, and goes on."""
        url = f"sqlite:///{tmp_path}/audit.db"
        open_trail(url, service="hammer").close()
        receipts: dict[int, str] = {}
        rounds = random.Random(20251123)
        for _ in range(5):
            process = start(url, threads=4, each=100_000)
            assert process.stdout is not None
            first = [process.stdout.readline() for _ in range(rounds.randint(1, 60))]
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate(timeout=30)
            receipts |= acknowledged("".join(first) + rest)
            trail = open_trail(url, service="hammer")
            mine = trail.append({"action": "hammer.hit", "resource_id": "after"})
            receipts[mine.index] = "after"
            verdict = trail.verify()
            trail.close()
            assert verdict.problems == ()
        written = bodies(tmp_path / "audit.db")
        assert {index: json.loads(written[index])["resource"]["id"] for index in receipts} == receipts

    def test_key_and_log_are_made_once(self, tmp_path: Path) -> None:
        """Processes that open a new trail at once agree on its identity."""
        code = "import sys; from healthobs.audit import open_trail; print(open_trail(sys.argv[1], service='s').vkey)"
        started = [
            subprocess.Popen(
                [sys.executable, "-c", code, f"sqlite:///{tmp_path}/audit.db"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        assert len({process.communicate(timeout=60)[0] for process in started}) == 1

    def test_waits_for_a_held_lock_no_longer_than_told(self, tmp_path: Path) -> None:
        """A process that was stopped with the lock in hand makes appends fail, and resumed lets them go on."""
        url = f"sqlite:///{tmp_path}/audit.db"
        trail = open_trail(url, service="s", timeout_seconds=0.1)
        code = (
            "import fcntl, sys; f = open(sys.argv[1], 'rb'); fcntl.flock(f, fcntl.LOCK_EX);"
            " print('held', flush=True); sys.stdin.read()"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code, f"{tmp_path}/audit.db.lock"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(AuditWriteError, match="holds its lock"):
            trail.append({"action": "a"})
        holder.kill()
        holder.communicate(timeout=30)
        trail._timeout_seconds = 10
        trail.append({"action": "b"})
        verdict = trail.verify()
        trail.close()
        assert verdict.ok
