"""Keeps `os.fork` away from the middle of a database access.

SQLite must not be carried over a fork (https://sqlite.org/howtocorrupt.html §2.6): the child would inherit its
notes about locks that only the parent holds: it would take the file to be busy for ever, or, in WAL mode, use it without
a lock and lose what it was told is durable. So a fork waits until nobody uses the database, and everything that is open
is closed before it. One that had to wait too long goes ahead, as every one does after a signal's handler raised just as
its thread left a gate: its child is refused every file that was open, and never closes what it inherited, because SQLite
would take its last reader to have left, and remove the log of a writer (WAL mode) whose entries are acknowledged.

Limits: only forks made by Python are seen.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

#: A fork waits for a batch or a read; a stuck disk must not stop it for ever.
MAX_WAIT_SECONDS = 10.0


#: Which process: its number comes again once it has ended, maybe in a child of its own children.
Process = tuple[int, int]


#: Which file, whatever its name.
Inode = tuple[int, int]


class _Forks:
    """What this process knows of the forks between the first process and itself."""

    count = 0
    #: Files that are open here, by connection; what was inherited is not among them.
    open: ClassVar[weakref.WeakKeyDictionary[SqliteFile, Inode]] = weakref.WeakKeyDictionary()
    #: Files that were open when a process before this one was forked.
    inherited: frozenset[Inode] = frozenset()

    @classmethod
    def one_more(cls) -> None:
        cls.count += 1
        cls.inherited |= frozenset(cls.open.values())
        inherited, cls.open = list(cls.open), weakref.WeakKeyDictionary()
        for connection in inherited:
            _keep_for_ever(connection)


os.register_at_fork(after_in_child=_Forks.one_more)


def _keep_for_ever(kept: object) -> None:
    """Have an object outlive the interpreter: whatever else refers to it, SQLite would close it at the end."""
    import ctypes  # hardly ever needed, and large

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


class ForkedWhileOpenError(sqlite3.OperationalError):
    """SQLite has notes here about locks on the file that only another process holds."""

    sqlite_errorname = "this process was forked while the file was open; start another"


class SqliteFile(sqlite3.Connection):
    """A connection to a file that exists; one that was open here when the process was forked is refused.

    Args:
        path: The file.
        options: Parameters of SQLite's URI.
        wait_seconds: How long a statement waits for another connection's lock.

    Raises:
        ForkedWhileOpenError: It was open at a fork.
        sqlite3.Error: It cannot be opened.
    """

    def __init__(self, path: Path, options: str = "mode=rw", *, wait_seconds: float = 5.0) -> None:
        with suppress(OSError):  # SQLite says why
            inode = inode_of(path)
            if inode in _Forks.inherited:
                raise ForkedWhileOpenError
            _Forks.open[self] = inode  # first: a fork may come at any moment
        try:
            super().__init__(
                f"{path.absolute().as_uri()}?{options}",
                timeout=wait_seconds,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
        except sqlite3.Error:  # whoever keeps the error keeps this
            _Forks.open.pop(self, None)
            raise

    def close(self) -> None:
        """Close it, unless it is another process's."""
        if self in _Forks.open:
            super().close()
            _Forks.open.pop(self, None)


def inode_of(path: Path | str) -> Inode:
    """Return which file is at `path`."""
    status = os.stat(path)  # noqa: PTH116 - before every batch, and a Path's is four calls
    return status.st_dev, status.st_ino


def process() -> Process:
    """Return which process this is; of what it inherited, nothing is under the same key."""
    return os.getpid(), _Forks.count


class ForkGate:
    """A context in which no fork happens; any number of threads may be inside at once.

    The thread that forks is let in while it does: handlers of forks and signals run there, and nobody else would let it in.

    Args:
        close_all: Closes what must not be inherited; called with nobody inside.
    """

    def __init__(self, close_all: Callable[[], None]) -> None:
        self._close_all = close_all
        self._begin_anew()
        _watch(weakref.ref(self))

    def _begin_anew(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        #: Threads whose forks wait or go on: several at once, or one in the middle of its own.
        self._forking: list[int] = []

    def __enter__(self) -> None:
        # Not the condition: each of its methods is a call, and every batch comes through here.
        with self._lock:
            while self._forking and threading.get_ident() not in self._forking:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *_exc: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def before(self) -> None:
        """Let nobody in, wait until nobody is inside, close everything; the lock is held over the fork.

        Where a signal's handler raises meanwhile, everybody is let in again: Python then forks all the same, and calls
        `after_in_parent` of none.
        """
        self._lock.acquire()
        self._forking.append(threading.get_ident())
        try:
            if self._changed.wait_for(lambda: self._inside == 0, MAX_WAIT_SECONDS):
                self._close_all()
        except BaseException:
            self.after_in_parent()
            raise

    def after_in_parent(self) -> None:
        """Go on as before."""
        self._forking.remove(threading.get_ident())
        self._changed.notify_all()
        self._lock.release()

    def after_in_child(self) -> None:
        """Begin anew: of all threads only this one exists here, and those that a handler has started since."""
        lock = self._lock
        self._begin_anew()
        with suppress(RuntimeError):  # not every way to fork calls `before`
            lock.release()


def _watch(reference: weakref.ref[ForkGate]) -> None:
    """Register the gate for every fork; handlers cannot be taken back, so they hold it weakly."""
    caught: list[ForkGate] = []

    def before() -> None:
        gate = reference()
        if gate is not None:
            try:
                caught.append(gate)
                gate.before()
            except BaseException:
                caught.remove(gate)
                raise

    def after_in_parent() -> None:
        if caught:
            caught.pop().after_in_parent()

    def after_in_child() -> None:  # not every way to fork calls `before`
        caught.clear()
        gate = reference()
        if gate is not None:
            gate.after_in_child()

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)
