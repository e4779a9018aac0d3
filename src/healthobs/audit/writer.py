"""Group commit: one thread per process takes what waits, extends the tree, signs, commits, and answers.

A batch is one transaction that excludes every other writer, so each entry it acknowledges is on disk under a
signed checkpoint. Callers who came together are likely to come together again: for some time after a batch of many,
where two have come the thread waits some tenths of a millisecond for the others: one commit in place of two. Before it
signs, it checks that what it extends is what was signed last: a log never signs two histories (C2SP tlog-checkpoint,
"Signatures"). Before it commits, it checks that the store has taken what it wrote.

Limits: the order of entries is the order of commits, which can differ from their times by milliseconds.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue

from healthobs.audit import store
from healthobs.audit.checkpoint import NoteError, Signer, Verifier, open_checkpoint
from healthobs.audit.forking import ForkGate
from healthobs.audit.merkle import CompactRange, leaf_hash
from healthobs.audit.records import Checkpoint, Receipt
from healthobs.audit.store import Connection, Store, StoreError
from healthobs.exceptions import AuditError, AuditWriteError

#: Entries in one transaction; more would only make the first of them wait longer.
MAX_BATCH = 1_000
#: Entries that may wait; beyond it the store is too slow, and memory must not pay for it.
MAX_WAITING = 20_000
_STOP_SECONDS = 5.0
#: How long at a time the thread waits for a crowd to grow, less than a commit takes; for how many at most.
_LINGER_SECONDS = 4e-4
_MAX_CROWD = 64


class _Job:
    """An entry between its caller and the thread: two bare locks, because a `Future` costs both about 20 µs."""

    __slots__ = ("_outcome", "_settled", "_taken", "body", "index", "key", "leaf", "unless")

    def __init__(self, body: bytes, key: str | None, unless: str | None = None) -> None:
        self.body, self.leaf, self.key, self.index = body.decode(), leaf_hash(body), key, store.TAKEN
        self.unless = unless
        self._taken, self._settled = threading.Lock(), threading.Lock()
        self._settled.acquire()
        self._outcome: Receipt | AuditWriteError | None = None

    def take(self) -> bool:
        """Return whether nobody did before: the thread to begin it, or the caller to give it up."""
        return self._taken.acquire(blocking=False)

    def settle(self, outcome: Receipt | AuditWriteError | None) -> None:
        """Let the caller go on."""
        self._outcome = outcome
        self._settled.release()

    def result(self, timeout_seconds: float) -> Receipt | None:
        """Return what the thread answered, or raise what it found, or `TimeoutError`."""
        if not self._settled.acquire(timeout=max(timeout_seconds, 0)):
            raise TimeoutError
        if isinstance(self._outcome, AuditWriteError):
            raise self._outcome
        return self._outcome


class Writer:
    """The writing side of one log in one process.

    Args:
        place: Where the log is.
        signer: Signs checkpoints under the log's origin.
        gate: What each batch is written inside of, so that no fork happens meanwhile.
    """

    def __init__(self, place: Store, signer: Signer, gate: ForkGate) -> None:
        self._place = place
        self._gate = gate
        self._signer = signer
        self._verifier = Verifier(*signer.vkeys)
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        #: Entered twice where the collector stops a writer in the thread that begins to serve it.
        self._start_lock = threading.RLock()
        self._thread: threading.Thread | None = None
        #: Whether the thread takes entries: `is_alive` says so too, in five calls.
        self._running = False
        self._stopped = False
        self._stopping = False
        self._connection: Connection | None = None
        #: Entries of the largest batch lately: one less for each batch since.
        self._crowd = 0
        #: The tree as last committed or loaded, and the note over it; None when it must be loaded.
        self._tree: tuple[CompactRange, str] | None = None
        #: The highest checkpoint this process has seen; the log may never be found below it.
        self.floor: Checkpoint | None = None

    def append(
        self, body: bytes, timeout_seconds: float, key: str | None = None, unless: str | None = None
    ) -> Receipt:
        """Return once the entry is durable.

        Args:
            body: Its bytes.
            timeout_seconds: How long to wait.
            key: Row of an outbox or spool; handed over twice, it is one entry.
            unless: A key; where an entry has it by the moment of the commit, this one is refused.

        Raises:
            AuditWriteError: It is not, or nobody can tell within the time.
        """
        (receipt,) = self.append_all([(key, body)], timeout_seconds, unless)
        if receipt is None:
            raise AuditWriteError("the audit entry's key has another entry in the log")
        return receipt

    def append_all(
        self, rows: Iterable[tuple[str | None, bytes]], timeout_seconds: float, unless: str | None = None
    ) -> list[Receipt | None]:
        """Return once every entry is durable; they are written in this order, see `append`.

        Returns:
            Receipts; None for a row that is not recorded, because its key has another entry.

        Raises:
            AuditWriteError: One of them is not; the others may be.
        """
        jobs: list[_Job] = []
        try:
            for key, body in rows:
                self._enqueue(key, body, unless, jobs)
            deadline = time.monotonic() + timeout_seconds
            return [job.result(deadline - time.monotonic()) for job in jobs]
        except TimeoutError:
            _give_up(jobs)
            raise AuditWriteError(
                f"the audit store did not confirm the entry within {timeout_seconds:g} s; "
                "look for a process that holds its lock, or a slow disk"
            ) from None
        except BaseException:  # also what a signal's handler raises
            _give_up(jobs)
            raise

    def _enqueue(self, key: str | None, body: bytes, unless: str | None, jobs: list[_Job]) -> None:
        if self._queue.qsize() >= MAX_WAITING:
            raise AuditWriteError(
                "too many audit entries wait for the disk; reduce the load or use a faster one"
            )
        job = _Job(body, key, unless)
        jobs.append(job)
        self._queue.put(job)
        if not self._running:  # asked after, or the thread could end in between
            self._start()

    def _start(self) -> None:
        with self._start_lock:
            if self._stopped:
                raise AuditWriteError("the audit trail is closed; append before close()")
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="healthobs-audit", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    raise AuditWriteError("no thread can be started for the audit trail") from None
                self._thread = thread

    def stop(self) -> None:
        """Write what waits, then end the thread and close everything."""
        with self._start_lock:
            already, self._stopped = self._stopped, True
        if self._thread is not None and not already:
            self._queue.put(None)
            if self._thread is not threading.current_thread():  # the collector may drop a trail in any thread
                self._thread.join(_STOP_SECONDS)

    def _run(self) -> None:
        """Write batches until told to stop; nothing that goes wrong ends the thread."""
        with self._start_lock:  # whoever started it may have been interrupted before it was known
            if self._running:
                return
            self._thread, self._running = threading.current_thread(), True
            if self._stopped:
                self._queue.put(None)
        try:
            while not self._stopping:
                job = self._queue.get()
                if job is None:
                    break
                self._settle(job)
        finally:
            self._running = False
        self._refuse_the_rest()
        with self._gate:
            self.release()

    def _gather(self, first: _Job) -> list[_Job]:
        """Return `first` and what else waits by now, without those whose callers gave up."""
        batch: list[_Job] = []
        job: _Job | None = first
        while job is not None:
            if job.take():
                batch.append(job)
            if len(batch) >= MAX_BATCH:
                return batch
            try:
                job = self._queue.get_nowait()
            except Empty:
                return batch
        self._stopping = True
        return batch

    def _refuse_the_rest(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                job = self._queue.get_nowait()
                if job is not None and job.take():
                    job.settle(AuditWriteError("the audit trail is closed"))

    def _settle(self, first: _Job) -> None:
        """Commit a batch and answer its callers, one way or the other."""
        batch: list[_Job] = []
        try:
            with self._gate:
                checkpoint = self._commit(first, batch)
        except Exception as exc:  # noqa: BLE001  # whatever it is, the callers must hear of it
            reason = _reason(exc)
            for job in batch or self._gather(first):
                job.settle(AuditWriteError(f"the audit store refused the entry: {reason}"))
            return
        for job in batch:
            receipt = Receipt(checkpoint.origin, job.index, checkpoint.size, checkpoint.root)
            job.settle(None if job.index == store.TAKEN else receipt)

    def _commit(self, first: _Job, batch: list[_Job]) -> Checkpoint:
        """Take the lock, then fill `batch` and write it: whoever came while we waited for it is in it."""
        try:
            connection = self._connected()
            if self._crowd > 1:
                self._await_crowd()
            with connection.writing():
                tree = self._current_tree(connection).copy()
                batch += self._gather(first)
                checkpoint = self._write(connection, tree, batch)
                self._tree = None  # what a failing commit leaves is not known
        except BaseException:
            self.release()  # what may be broken is opened anew by the next batch
            raise
        self._tree = tree, checkpoint.note
        self.floor = checkpoint
        self._crowd = max(min(len(batch), _MAX_CROWD), self._crowd - 1)
        return checkpoint

    def _await_crowd(self) -> None:
        """Where two have come, wait for as many as lately while more do: one commit takes them all, not two."""
        seen = 1
        while seen < (there := self._queue.qsize() + 1) < self._crowd:
            seen = there
            time.sleep(_LINGER_SECONDS)

    def _write(self, connection: Connection, tree: CompactRange, batch: list[_Job]) -> Checkpoint:
        fresh: dict[str | int, _Job] = {}
        tiles: list[tuple[int, int, bytes]] = []
        for job in batch:
            key = tree.size if job.key is None else job.key
            known = None if job.key is None else self._known(connection, job.key, job.leaf, fresh.get(key))
            if job.unless is not None and (
                job.unless in fresh or store.sequenced(connection, job.unless, b"") is not None
            ):
                known = store.TAKEN
            job.index = tree.size if known is None else known
            if known is None:
                fresh[key] = job
                tiles += tree.append(job.leaf)
        checkpoint = self._signer.checkpoint(tree.size, tree.root())
        if fresh:  # otherwise every caller gave up meanwhile, or it is all known
            rows = [(job.index, job.leaf, job.body) for job in fresh.values()]
            store.insert(connection, rows, tiles, tree.size, checkpoint.note)
            marks = [(job.key, job.index) for job in fresh.values() if job.key]
            store.insert_sequenced(connection, marks)
            if not store.keeps(connection, rows, marks, tree.size, checkpoint.note):
                raise AuditError("it did not keep what was written; run healthobs audit verify")
        return checkpoint

    @staticmethod
    def _known(connection: Connection, key: str, leaf: bytes, earlier: _Job | None) -> int | None:
        """Return where the entry under a key is already, in this batch or before; None when it is nowhere, or `store.TAKEN`."""
        if earlier is not None:
            return earlier.index if earlier.leaf == leaf else store.TAKEN
        return store.sequenced(connection, key, leaf)

    def _connected(self) -> Connection:
        """Return the connection; open it anew when the store under its name is another one."""
        if self._connection is not None and not self._connection.usable():
            self.release()
            self._tree = None
        if self._connection is None:
            self._connection = self._place.connect()
        return self._connection

    def _current_tree(self, connection: Connection) -> CompactRange:
        """Return the tree of what is stored, after what others appended was checked against their checkpoint.

        Raises:
            AuditError: What is stored is not what was signed, or less than this process has seen.
        """
        size, note = store.head(connection)
        if self._tree is not None and note == self._tree[1] and size == self._tree[0].size:
            return self._tree[0]
        try:
            latest = open_checkpoint(note or "", self._verifier)
        except NoteError:
            raise AuditError("its latest checkpoint was not signed with this service's key") from None
        if latest.size != size:
            raise AuditError("its entries are not those of its latest checkpoint; run healthobs audit verify")
        tree = self._extended(connection, size)
        if tree.root() != latest.root or not store.extends(connection, size, self.floor):
            raise AuditError("its entries do not match its signed checkpoints; run healthobs audit verify")
        self._tree = tree, latest.note
        self.floor = latest
        return tree

    def _extended(self, connection: Connection, size: int) -> CompactRange:
        if self._tree is None or not store.first_index(connection) <= self._tree[0].size <= size:
            return store.load_range(connection, size)
        tree = self._tree[0].copy()
        for leaf in store.leaves(connection, tree.size, size):
            tree.append(leaf)
        return tree

    def release(self) -> None:
        """Close the connection; the next batch opens one again. Only with nobody in the gate but the caller."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _give_up(jobs: Iterable[_Job]) -> None:
    """Let nobody wait for jobs any more: what was not begun never will be; what was may still be recorded."""
    for job in jobs:
        job.take()


def _reason(exc: Exception) -> str:
    """Say what went wrong without any value: the database's code, the system's word, or our own text."""
    if isinstance(exc, StoreError):
        return exc.code
    if isinstance(exc, OSError):
        return exc.strerror or type(exc).__name__
    return str(exc) if isinstance(exc, AuditError) else type(exc).__name__
