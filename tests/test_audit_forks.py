"""Forks of a process that has a trail open: the child finds it free, and loses nothing."""

from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest

from audit_trails import unmeasured
from healthobs.audit import forking, open_trail, store, verification
from healthobs.audit.forking import ForkGate, SqliteFile
from healthobs.audit.sqlite import SqliteConnection


def ran(code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Return what a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


class TestFork:
    """A trail that was open when its process forked."""

    def test_child_appends_on_its_own(self, tmp_path: Path) -> None:
        """A forked child opens the log anew; parent and child go on side by side."""
        code = """
import os, sys
from healthobs.audit import open_trail
trail = open_trail(sys.argv[1], service="s")
trail.append({"action": "before.fork"})
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.write(ready[1], b"x")
    os.read(go[0], 1)
    for _ in range(20):
        trail.append({"action": "child"})
    trail.close()
    os._exit(0)
os.read(ready[0], 1)
os.write(go[1], b"x")
for _ in range(20):
    trail.append({"action": "parent"})
_, status = os.waitpid(child, 0)
verdict = trail.verify()
print(status, verdict.ok, verdict.size, trail.read(action="child").total)
trail.close()
"""
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", code, f"sqlite:///{tmp_path}/audit.db"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.strip() == "0 True 41 20"
        assert "ResourceWarning" not in done.stderr

    def test_forked_while_others_append(self, tmp_path: Path) -> None:
        """A fork in the middle of a busy trail leaves the child no lock that nobody will release."""
        code = """
import os, sys, threading
from healthobs.audit import open_trail
trail = open_trail(sys.argv[1], service="s")
stop, go = threading.Event(), threading.Event()
done = [0] * 4
def work(number):
    while not stop.is_set():
        go.wait()
        trail.append({"action": "parent"})
        done[number] += 1
threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
statuses = []
for _ in range(5):
    before = list(done)
    go.set()
    while any(now == then for now, then in zip(done, before)):  # until each is at it
        trail.append({"action": "before.fork"})
    child = os.fork()
    if child == 0:
        trail.append({"action": "child"})
        trail.close()
        os._exit(0)
    go.clear()  # the child must find no lock that nobody will release; that it gets its turn is another matter
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
go.set()
[thread.join() for thread in threads]
verdict = trail.verify()
print(statuses, verdict.ok, trail.read(action="child").total)
trail.close()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db", env=unmeasured())
        assert told == "[0, 0, 0, 0, 0] True 5"

    def test_number_of_a_process_comes_again(self, tmp_path: Path) -> None:
        """A child that has the number of an ancestor that ended is another process all the same, and has nobody's writer."""
        code = """
import os, sys
from healthobs.audit import open_trail
from healthobs.audit.forking import process
trail = open_trail(sys.argv[1], service="s", timeout_seconds=5)
trail.append({"action": "ancestor"})
number, ancestor = os.getpid(), process()
if os.fork() == 0:
    os.getpid = lambda: number
    trail.append({"action": "child"})
    trail.close()
    os._exit(process() == ancestor)
print(os.wait()[1], trail.verify().ok, trail.read(action="child").total)
trail.close()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db")
        assert told == "0 True 1"

    def test_forked_while_others_read(self, tmp_path: Path) -> None:
        """Nor does a fork in the middle of reads and verifications."""
        code = """
import os, sys, threading
from healthobs.audit import open_trail
trail = open_trail(sys.argv[1], service="s")
for _ in range(50):
    trail.append({"action": "parent"})
stop = threading.Event()
def work():
    while not stop.is_set():
        assert trail.verify().ok
        trail.read(action="parent")
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
statuses = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        trail.append({"action": "child"})
        trail.close()
        os._exit(0)
    statuses.append(os.waitpid(child, 0)[1])
stop.set()
[thread.join() for thread in threads]
print(statuses, trail.verify().ok, trail.read(action="child").total)
trail.close()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db", env=unmeasured())
        assert told == "[0, 0, 0, 0, 0] True 5"


class TestForkWhileWalking:
    """Forks during a read of the whole log."""

    def test_waits_for_a_window_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody is in the gate between two statements of a walk, and what is open is closed before a fork."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.append({"action": "before"})
        closed, close = list[int](), SqliteConnection.close

        def counted(connection: SqliteConnection) -> None:
            closed.append(1)
            close(connection)

        monkeypatch.setattr(SqliteConnection, "close", counted)
        with trail.connected() as connection:
            with connection.reading():
                assert (store.head(connection)[0], trail._access.gate._inside) == (1, 1)
            assert trail._access.gate._inside == 0
            trail._access.gate.before()
            trail._access.gate.after_in_parent()
            assert len(closed) == 2, "the writer's connection and the walk's"
            trail.append({"action": "after"})
            assert store.head(connection)[0] == 2
        trail.close()

    def test_verification_goes_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A verification with a fork between any two windows says what it would without."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        for number in range(5):
            trail.append({"action": "read", "resource_id": str(number)})
        monkeypatch.setattr(store, "AT_ONCE", 1)
        monkeypatch.setattr(forking, "MAX_WAIT_SECONDS", 0.0)
        step = verification._Run._entry

        def forked(run: Any, index: int, leaf: object, body: object) -> None:
            assert trail._access.gate._inside == 0
            trail._access.gate.before()
            trail._access.gate.after_in_parent()
            step(run, index, leaf, body)

        monkeypatch.setattr(verification._Run, "_entry", forked)
        verdict = trail.verify()
        assert (verdict.ok, verdict.size) == (True, 5)
        trail.close()

    def test_forked_before_a_reader_has_closed(self, tmp_path: Path) -> None:
        """What a reader has open until its end is closed before a fork, too: in WAL mode, children lost entries by it."""
        code = """
import os, sys, threading
from healthobs.audit import open_trail, windows
trail = open_trail(sys.argv[1], service="s")
reached, go, close = threading.Event(), threading.Event(), windows.Windows.close
def late(self):
    reached.set()
    go.wait(10)
    close(self)
windows.Windows.close = late
reader = threading.Thread(target=lambda: trail.read(action="child"))
reader.start()
reached.wait()
child = os.fork()
if child == 0:
    trail.append({"action": "child"})
    trail.close()
    os._exit(0)
status = os.waitpid(child, 0)[1]
go.set()
reader.join()
print(status, trail.read(action="child").total)
trail.close()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db")
        assert told == "0 1"

    def test_forked_while_a_trail_is_opened(self, tmp_path: Path) -> None:
        """Nor is what another thread is opening carried into the child."""
        code = """
import os, sys, threading
from healthobs.audit import open_trail, store
begun, begin = threading.Event(), store.begin_log
def slow(*arguments):
    begun.set()
    threading.Event().wait(0.5)
    begin(*arguments)
store.begin_log = slow
opener = threading.Thread(target=lambda: open_trail(sys.argv[1], service="s").close())
opener.start()
begun.wait()
if os.fork() == 0:
    trail = open_trail(sys.argv[1], service="s")
    trail.append({"action": "child"})
    trail.close()
    os._exit(0)
print(os.wait()[1])
opener.join()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db")
        assert told == "0"

    def test_child_of_a_fork_that_went_ahead(self, tmp_path: Path) -> None:
        """Where a fork waited too long, its child is refused each file that was open: it would go on without locks."""
        code = """
import os, sys, threading
from contextlib import contextmanager
from pathlib import Path
from healthobs.audit import forking, open_trail
from healthobs.audit.subjects import SubjectMap
from healthobs.audit.witness import WitnessState
folder = Path(sys.argv[1])
trail, other = (open_trail(f"sqlite:///{folder}/{name}.db", service="s") for name in ("audit", "other"))
subjects = SubjectMap(folder / "subjects.db")
witness = WitnessState(folder / "witness.db", folder / "witness.key")
forking.MAX_WAIT_SECONDS = 0.05
ready, go = threading.Barrier(4), threading.Event()
@contextmanager
def reading():
    with trail.connected() as connection, connection.reading():
        yield
def hold(context):
    with context:
        ready.wait()
        go.wait(30)
contexts = (reading(), subjects._rows._connected(), witness.changing())
threads = [threading.Thread(target=hold, args=(context,)) for context in contexts]
[thread.start() for thread in threads]
ready.wait()
child = os.fork()
if child == 0:
    for attempt in (
        lambda: trail.append({"action": "child"}),
        lambda: trail.read(),
        lambda: subjects.token("p-1"),
        lambda: witness.changing().__enter__(),
        lambda: other.append({"action": "child"}),
    ):
        try:
            attempt()
            os.write(1, b"done ")
        except Exception as exc:
            os.write(1, f"{type(exc).__name__}{': forked' * ('was forked' in str(exc))} ".encode())
    os._exit(0)
os.waitpid(child, 0)
go.set()
[thread.join() for thread in threads]
print(trail.append({"action": "parent"}).index, other.read(action="child").total)
trail.close()
other.close()
"""
        told = ran(code, str(tmp_path))
        refused = "AuditWriteError: forked StoreError: forked AuditError: forked AuditError: forked"
        assert told == f"{refused} done 0 1"

    def test_child_closes_nothing_that_it_inherited(self, tmp_path: Path) -> None:
        """However it lets go of it: to SQLite the last reader would have left, and in WAL mode a writer's log is removed."""
        code = """
import os, signal, subprocess, sys
from healthobs.audit import forking, open_trail
forking.MAX_WAIT_SECONDS = 0.05
trail = open_trail(sys.argv[1], service="s")
trail.append({"action": "first"})
trail.close()
children, (late, go) = [], os.pipe()
def fork(*_):
    children.append(os.fork())
    if children[-1] == 0:
        os.read(late, 1)
        sys.exit(0)
signal.signal(signal.SIGUSR1, fork)
with trail.connected() as connection, connection.reading():
    connection.tables()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGUSR1)
    if "close" in sys.argv:
        children.append(os.fork())
        if children[-1] == 0:
            os.read(late, 1)
            connection._connection.close()
            sys.exit(0)
other = '''
import os, sys
from healthobs.audit import open_trail
trail = open_trail(sys.argv[1], service="s")
for _ in range(3):
    trail.append({"action": "other"})
os.kill(os.getpid(), 9)
'''
subprocess.run([sys.executable, "-c", other, sys.argv[1]])
os.write(go, b"xxx")
for child in children:
    os.waitpid(child, 0)
trail = open_trail(sys.argv[1], service="s")
print(trail.read(action="other").total, trail.verify().ok)
trail.close()
"""
        for how in ("drop", "close"):
            told = ran(code, f"sqlite:///{tmp_path}/{how}.db", how)
            assert told == "3 True", how

    @pytest.mark.parametrize("how", ["close", "drop"])
    def test_inherited_connection_stays_open(self, how: str, tmp_path: Path) -> None:
        """The same, seen from its descriptor."""
        path = tmp_path / "any.db"
        path.touch()
        descriptors = Path("/proc/self/fd")
        if not descriptors.is_dir():
            pytest.skip("there is no /proc")
        connection: SqliteFile | None = SqliteFile(path)
        before = sum(entry.resolve() == path for entry in descriptors.iterdir())
        child = os.fork()
        if child == 0:
            assert connection is not None
            if how == "close":
                connection.close()
            connection = None
            gc.collect()
            os._exit(sum(entry.resolve() == path for entry in descriptors.iterdir()))
        told = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert connection is not None
        connection.close()
        assert (before, told) == (1, 1)

    def test_failed_opening_is_not_open(self, tmp_path: Path) -> None:
        """However long somebody keeps the error."""
        (tmp_path / "a.db").mkdir()
        with pytest.raises(sqlite3.OperationalError) as kept:
            SqliteFile(tmp_path / "a.db")
        assert not list(forking._Forks.open)
        assert kept.value.__traceback__ is not None

    @pytest.mark.parametrize("when", ["before", "after_in_child", "after_in_parent"])
    def test_trail_opened_by_a_handler_of_the_fork(self, when: str, tmp_path: Path) -> None:
        """An application's own handler may come between the gate's, and is in the thread that everybody waits for."""
        code = """
import os, sys
def reopen():
    from healthobs.audit import open_trail
    trail = open_trail(sys.argv[1], service="s")
    trail.append({"action": "handler"})
    trail.close()
os.register_at_fork(**{sys.argv[2]: reopen})
from healthobs.audit import open_trail
trail = open_trail(sys.argv[1], service="s")
trail.append({"action": "parent"})
child = os.fork()
if child == 0:
    trail.append({"action": "child"})
    trail.close()
    os._exit(0)
print(os.waitpid(child, 0)[1], trail.read(action="handler").total, trail.read(action="child").total)
trail.close()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db", when)
        assert told == "0 1 1"


class TestForkGate:
    """What keeps a fork out of a database access."""

    def test_fork_in_the_middle_of_a_fork(self, tmp_path: Path) -> None:
        """A signal's handler that forks, as one that replaces an ended child does, waits for no fork of its own thread."""
        code = """
import os, signal, sys, time
from healthobs.audit import open_trail
trail = open_trail(sys.argv[1], service="s")
replaced, ended = 0, 0
def start():
    if os.fork() == 0:
        os._exit(0)
def replace(*_):
    global replaced, ended
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            ended += 1
            if replaced < 100:
                replaced += 1
                start()
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, replace)
for _ in range(100):
    start()
while ended < 200:
    time.sleep(0.01)
print(trail.append({"action": "parent"}).index)
trail.close()
"""
        told = ran(code, f"sqlite:///{tmp_path}/audit.db")
        assert told == "0"

    def test_handler_enters_while_its_thread_forks(self) -> None:
        """Nobody else would let it in; others wait for the end of the fork."""
        order: list[str] = []
        gate = ForkGate(lambda: None)
        gate.before()
        with gate:
            order.append("handler")

        def other() -> None:
            with gate:
                order.append("other")

        user = threading.Thread(target=other)
        user.start()
        user.join(0.1)
        assert order == ["handler"]
        gate.after_in_parent()
        user.join()
        assert order == ["handler", "other"]

    def test_closes_with_nobody_inside(self) -> None:
        """The fork waits for who is inside, then closes, then lets the others in again."""
        order: list[str] = []
        gate = ForkGate(lambda: order.append("closed"))
        entered, leave = threading.Event(), threading.Event()

        def inside() -> None:
            with gate:
                entered.set()
                leave.wait()
                order.append("left")

        user = threading.Thread(target=inside)
        user.start()
        entered.wait()
        forker = threading.Thread(target=lambda: (gate.before(), gate.after_in_parent()))
        forker.start()
        leave.set()
        forker.join()
        user.join()
        assert order == ["left", "closed"]
        with gate:
            order.append("in again")
        assert order[-1] == "in again"

    def test_does_not_wait_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fork goes ahead after a while; then nothing is closed under its user."""
        monkeypatch.setattr(forking, "MAX_WAIT_SECONDS", 0.01)
        closed: list[str] = []
        gate = ForkGate(lambda: closed.append("closed"))
        with gate:
            forker = threading.Thread(target=lambda: (gate.before(), gate.after_in_parent()))
            forker.start()
            forker.join()
        assert closed == []

    def test_child_begins_anew(self) -> None:
        """In the child nobody is inside, whoever was in the parent."""
        gate = ForkGate(lambda: None)
        gate.before()
        gate.after_in_child()
        with gate:
            pass

    def test_thread_that_a_handler_starts_in_the_child(self) -> None:
        """It comes in once the gate begins anew, though it began to wait before."""
        gate = ForkGate(lambda: None)
        gate.before()

        def inside() -> None:
            with gate:
                pass

        user = threading.Thread(target=inside, daemon=True)
        user.start()
        user.join(0.1)
        assert user.is_alive()
        gate.after_in_child()
        user.join(10)
        assert not user.is_alive()

    def test_two_that_fork_at_once(self) -> None:
        """The second waits for nobody but the first: whoever came meanwhile comes after both."""
        order: list[str] = []
        gate, entered, leave = ForkGate(lambda: order.append("closed")), threading.Event(), threading.Event()

        def inside() -> None:
            with gate:
                entered.set()
                leave.wait()

        def fork() -> None:
            gate.before()
            gate.after_in_parent()

        def late() -> None:
            with gate:
                order.append("late")

        user, forkers = (
            threading.Thread(target=inside),
            [threading.Thread(target=fork) for _ in range(2)],
        )
        user.start()
        entered.wait()
        for forker in forkers:
            forker.start()
        while len(gate._forking) < 2:
            time.sleep(0.001)
        comer = threading.Thread(target=late)
        comer.start()
        time.sleep(0.05)
        leave.set()
        for thread in (user, *forkers, comer):
            thread.join()
        assert order == ["closed", "closed", "late"]

    def test_fork_whose_preparation_raises(self) -> None:
        """It goes on, and everybody is let in again in parent and child: Python tells nobody that it was done."""
        code = """
import os
from healthobs.audit.forking import ForkGate, SqliteFile
def interrupted():
    raise KeyboardInterrupt
gate = ForkGate(interrupted)
child = os.fork()
with gate:
    if child == 0:
        os._exit(0)
gate._close_all = lambda: print("closed", flush=True)
if os.fork() == 0:
    os._exit(0)
with gate:
    print(os.wait()[1], os.wait()[1])
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout == "closed\n0 0\n"
        assert "KeyboardInterrupt" in done.stderr

    def test_shut_gate_is_open_again(self) -> None:
        """A gate that was shut over a fork lets parent and child in again."""
        gate = ForkGate(lambda: None)

        def enter() -> None:
            with gate:
                pass

        def shut() -> bool:
            entering = threading.Thread(target=enter, daemon=True)
            entering.start()
            entering.join(10)
            return entering.is_alive()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads
            child = os.fork()
        if child == 0:
            os._exit(shut())
        assert (shut(), os.waitpid(child, 0)[1]) == (False, 0)

    def test_forgotten_gate_is_no_matter(self) -> None:
        """A fork after the last use of a gate finds nothing to do."""
        gate = ForkGate(lambda: None)
        watched = weakref.ref(gate)
        del gate
        gc.collect()
        assert watched() is None
        code = """
import os
from healthobs.audit.forking import ForkGate, SqliteFile
from healthobs.audit.opening import store_of
for gate in [ForkGate(lambda: print("never"))]:
    pass
kept = ForkGate(lambda: print("closed", flush=True))
del gate
child = os.fork()
if child == 0:
    with kept:
        os._exit(0)
with kept:
    print(os.waitpid(child, 0)[1])
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout == "closed\n0\n"
