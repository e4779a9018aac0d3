"""One log as one process has it open: its writer, and connections for those who read.

Each process has a writer of its own: after a fork the child finds none of its own and starts afresh. Reads and
writes are inside one gate (`healthobs.audit.forking`), so that nothing is open when the process forks.

Limits: what a killed process left unfinished, the next opening of the store rolls back.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Generator
from contextlib import contextmanager

from healthobs.audit.checkpoint import Signer
from healthobs.audit.forking import ForkGate, Process, process
from healthobs.audit.records import Checkpoint
from healthobs.audit.store import Connection, ReadConnection, Store
from healthobs.audit.windows import Windows
from healthobs.audit.writer import Writer
from healthobs.exceptions import AuditWriteError


class Access:
    """What a trail has open. Safe in threads and forks.

    Args:
        place: Where the log is.
        signer: Signs its checkpoints; None where it is only read.
    """

    def __init__(self, place: Store, signer: Signer | None) -> None:
        self.place: Store = place
        self._signer = signer
        self.closed: bool = False
        #: One writer per process.
        self._writers: dict[Process, Writer] = {}
        #: Walks that are going on; whoever forks closes what they have open between two windows.
        self._readers: set[Windows] = set()
        # Neither gate nor finalizer may hold what they belong to.
        writers, readers = self._writers, self._readers
        self.gate: ForkGate = ForkGate(lambda: _release(writers, readers))
        self._finalizer = weakref.finalize(self, _stop, writers)

    def writer(self) -> Writer:
        """Return this process's writer. Without a lock, because a fork may leave any lock held for ever.

        Raises:
            AuditWriteError: It was closed, or opened for reading only.
        """
        if self._signer is None:
            raise AuditWriteError("the audit trail was opened for reading only")
        if self.closed:
            raise AuditWriteError("the audit trail is closed; append before close()")
        here = process()
        writer = self._writers.get(here)
        if writer is None:
            writer = self._writers.setdefault(here, Writer(self.place, self._signer, self.gate))
        return writer

    def floor(self) -> Checkpoint | None:
        """Return the latest checkpoint that this process has written or extended, where it has any."""
        writer = self._writers.get(process())
        return None if writer is None else writer.floor

    @contextmanager
    def connected(self) -> Generator[ReadConnection]:
        """Give a connection for one task that reads; it lets forks in between statements."""
        live = self._signer is not None  # this process writes, or may
        windows = Windows(lambda: self.place.connect(read_only=True, live=live), self.gate)
        # Before it opens anything, and until all is closed: a fork may come at any moment.
        self._readers.add(windows)
        try:
            with windows.window():
                pass
            yield windows
        finally:
            windows.close()
            self._readers.discard(windows)

    @contextmanager
    def changing(self) -> Generator[Connection]:
        """Give a connection for one task that may write; no fork happens meanwhile."""
        with self.gate, contextlib.closing(self.place.connect()) as connection:
            yield connection

    def close(self) -> None:
        """Write what waits and stop; reading goes on. Harmless twice."""
        self.closed = True
        self._finalizer()


def _release(writers: dict[Process, Writer], readers: set[Windows]) -> None:
    writer = writers.get(process())
    if writer is not None:
        writer.release()
    for windows in list(readers):
        windows.release()


def _stop(writers: dict[Process, Writer]) -> None:
    writer = writers.get(process())
    if writer is not None:
        writer.stop()
