"""One token for each subject, however many threads and processes ask at once, and whoever forks meanwhile."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from audit_trails import unmeasured
from healthobs.audit import open_trail, subject_rows
from subject_places import FilePlace

PATIENT = "Quixote-of-Barataria"
READ = {"action": "patient.read", "actor": "client-1", "subject": PATIENT}
#: Every process asks for the same new subjects, in the same order, at once.
ASKING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from healthobs.audit.subjects import SubjectMap

place, key = sys.argv[1:]
subjects = SubjectMap(place if "://" in place else Path(place), Path(key))
print("ready", flush=True)
sys.stdin.readline()
names = [f"patient-{number // 4}" for number in range(40)]
with ThreadPoolExecutor(4) as pool:
    print(*pool.map(subjects.token, names))
"""

#: Forks in the middle of an erasure; the child then records an entry about somebody who is new.
ERASING = """
import os, sys, threading
from contextlib import contextmanager
from pathlib import Path
from healthobs.audit import open_trail
from healthobs.audit.subjects import SubjectMap

folder, place, key = Path(sys.argv[1]), *sys.argv[2:]
subjects = SubjectMap(place if "://" in place else Path(place), Path(key))
trail = open_trail(f"sqlite:///{folder}/audit.db", service="s", subjects=subjects, timeout_seconds=10)
trail.append({"action": "parent", "subject": "patient-1"})
inside, rows, order = threading.Event(), subjects._rows, []
connected = rows._connected

@contextmanager
def slow(*more):
    with connected(*more) as connection:
        inside.set()
        threading.Event().wait(0.3)
        yield connection
        order.append("erased")

rows._connected = slow
thread = threading.Thread(target=subjects.erase, args=("patient-1",))
thread.start()
inside.wait()
del rows._connected
wait, begin = os.pipe()
child = os.fork()
if child == 0:
    os.read(wait, 1)
    trail.append({"action": "child", "subject": "patient-2"})
    os._exit(0)
order.append("forked")
thread.join()
os.write(begin, b"x")
print(order, os.waitpid(child, 0)[1])
trail.close()
"""

#: Forks while threads ask for tokens; without the gate of the map a third of the children never came to their end.
FORKING = """
import os, sys, threading
from pathlib import Path
from healthobs.audit import open_trail
from healthobs.audit.subjects import SubjectMap

folder, place, key = Path(sys.argv[1]), *sys.argv[2:]
subjects = SubjectMap(place if "://" in place else Path(place), Path(key))
trail = open_trail(f"sqlite:///{folder}/audit.db", service="s", subjects=subjects)
stop = threading.Event()

def work(thread):
    number = 0
    while not stop.is_set():
        number += 1
        trail.encode({"action": "parent", "subject": f"patient-{thread}-{number % 50}"})

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
statuses = []
for _ in range(20):
    child = os.fork()
    if child == 0:
        trail.encode({"action": "child", "subject": "patient-of-the-child"})
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
[thread.join() for thread in threads]
trail.close()
print(set(statuses))
"""


class TestAtOnce:
    """One token, however many ask."""

    def test_threads(self, place: FilePlace) -> None:
        """Threads that record entries about one new subject at once name one token."""
        subjects = place.open()
        with (
            closing(
                open_trail(f"sqlite:///{place.folder}/audit.db", service="s", subjects=subjects)
            ) as trail,
            ThreadPoolExecutor(8) as pool,
        ):
            list(pool.map(trail.append, [READ] * 24))
            named = [entry["subject"] for entry in trail.read().entries]
        assert named == [subjects.find(PATIENT)] * 24

    def test_another_was_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who finds no token, and then waits for another process that makes it, takes that one."""
        place = FilePlace(tmp_path)
        mine, others, begin = place.open(), place.open(), subject_rows._begin

        def late(connection: sqlite3.Connection, wait_seconds: float) -> None:
            monkeypatch.undo()
            others.token(PATIENT)
            begin(connection, wait_seconds)

        monkeypatch.setattr(subject_rows, "_begin", late)
        assert mine.token(PATIENT) == others.find(PATIENT)

    def test_processes(self, place: FilePlace) -> None:
        """Processes of several threads that make map and key, and ask for the same new subjects, get the same tokens."""
        command = [sys.executable, "-c", ASKING, str(place.place), str(place.key)]
        asking = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for process in asking:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        answers = [process.communicate("go\n", timeout=60)[0] for process in asking]
        assert [process.returncode for process in asking] == [0, 0, 0]
        assert len(set(answers)) == 1
        assert len(set(answers[0].split())) == 10

    def test_forked_during_an_erasure(self, place: FilePlace) -> None:
        """A fork waits for who uses the map without the trail, too, and the child finds it free."""
        command = [sys.executable, "-c", ERASING, str(place.folder), str(place.place), str(place.key)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=unmeasured(), timeout=60, check=True
        )
        assert done.stdout == "['erased', 'forked'] 0\n"

    def test_forked_while_others_ask(self, place: FilePlace) -> None:
        """A fork in the middle of a busy map leaves the child no lock that nobody will release."""
        command = [sys.executable, "-c", FORKING, str(place.folder), str(place.place), str(place.key)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=unmeasured(), timeout=60, check=True
        )
        assert done.stdout == "{0}\n"
