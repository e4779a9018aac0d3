"""Verification of a whole trail, online or on a copy: every leaf, every checkpoint, every guard.

Nothing that is stored is believed: leaves are recomputed from the bodies, the tree from the leaves, and both
are held against every signed checkpoint, and against those that somebody kept elsewhere.

Limits: a file that was put back to an earlier state, checkpoints included, verifies; only a checkpoint held
outside shows it (`known`). So does a log rewritten by whoever has the signing key. Bodies that were erased
are not tolerated yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge

from healthobs.audit import store
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.merkle import CompactRange, leaf_hash
from healthobs.audit.records import Checkpoint, Problem, Verification
from healthobs.audit.store import Connection, StoreError

#: Problems that are listed; one is enough to fail, and a ruined file must not flood the report.
MAX_PROBLEMS = 50
_AT_ONCE = 2_000
_LOWEST = -(2**63)


def verify(connection: Connection, verifier: Verifier, known: Sequence[str] = ()) -> Verification:
    """Return the verdict on the log behind `connection`.

    Args:
        connection: A connection of its own; it is only read from.
        verifier: The key that must have signed.
        known: Signed checkpoints that were kept elsewhere; each must be on the log's way.

    Raises:
        NoteError: A checkpoint in `known` does not verify itself, so nothing can be said.
    """
    outside = [open_checkpoint(note, verifier) for note in known]
    return _Run(connection, verifier, outside).run()


class _Run:
    """One verification: walks the entries once, in order, beside checkpoints and kept nodes."""

    def __init__(self, connection: Connection, verifier: Verifier, outside: list[Checkpoint]) -> None:
        self._connection = connection
        self._verifier = verifier
        self._outside = outside
        self._problems: list[Problem] = []
        self._tree: CompactRange | None = CompactRange()
        self._good_size = 0
        self._good_outside = 0
        self._entries = 0
        self._checkpoints = 0
        self._tiles = 0

    def run(self) -> Verification:
        try:
            self._guards()
            self._walk(*self._extent())
        except StoreError as exc:
            self._problem(self._entries, f"the store cannot be read from here on ({exc.code})")
            self._tree = None
        root = b"" if self._tree is None else self._tree.root()
        problems = tuple(self._problems)
        return Verification(not problems, self._entries, root, problems, self._checkpoints)

    def _problem(self, index: int | None, what: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(index, what))

    def _guards(self) -> None:
        for name in self._connection.missing_guards():
            self._problem(None, f"the guard {name} is missing or altered")
        origin, vkey = store.read_log(self._connection) or ("", "")
        if vkey != self._verifier.vkey or origin != self._verifier.name:
            self._problem(None, "the key written in the file is not the expected key")

    def _extent(self) -> tuple[int, int, int]:
        """Return how many entries, signed entries and kept nodes there are, as of one moment."""
        with self._connection.reading():
            size, _ = store.head(self._connection)
            ((signed,),) = self._connection.execute("SELECT max(size) FROM checkpoint")
            ((tiles,),) = self._connection.execute("SELECT count(*) FROM tile")
        if signed is None:
            self._problem(None, "there is no checkpoint at all")
        return size, signed or 0, tiles

    def _walk(self, size: int, signed_size: int, tiles: int) -> None:
        outside = ((checkpoint.size, checkpoint) for checkpoint in self._outside)
        checkpoints = merge(self._signed(signed_size), outside, key=lambda pair: pair[0])
        due = next(checkpoints, None)
        expected = 0
        for index, leaf, body in self._rows(size):
            if index < expected:
                self._problem(index, "the entry is numbered out of order")
                self._tree = None
                continue
            while due is not None and due[0] <= expected:
                self._checkpoint(*due)
                due = next(checkpoints, None)
            if index > expected:
                self._problem(expected, "the entry is missing")
                self._tree = None
            self._entry(index, leaf, body)
            expected = index + 1
        while due is not None:
            if due[0] > expected:
                self._problem(expected, f"entries are missing from here on; {due[0]} were signed")
                self._tree = None
            self._checkpoint(*due)
            due = next(checkpoints, None)
        if signed_size < expected:
            self._problem(signed_size, "the entries from here on were never signed")
        if self._tree is not None and tiles > self._tiles:
            self._problem(None, "there are kept nodes that belong to no entries")

    def _rows(self, size: int) -> Iterator[tuple[int, object, object]]:
        last = _LOWEST
        while rows := self._connection.execute(
            "SELECT idx, leaf, body FROM entry WHERE idx > ? AND idx < ? ORDER BY idx LIMIT ?",
            (last, size, _AT_ONCE),
        ):
            yield from rows
            last = rows[-1][0]

    def _signed(self, highest: int) -> Iterator[tuple[int, object]]:
        last = _LOWEST
        while rows := self._connection.execute(
            "SELECT size, note FROM checkpoint WHERE size > ? AND size <= ? ORDER BY size LIMIT ?",
            (last, highest, _AT_ONCE),
        ):
            yield from rows
            last = rows[-1][0]

    def _entry(self, index: int, leaf: object, body: object) -> None:
        self._entries += 1
        stored = store.stored_bytes(body)
        if stored is None:
            self._problem(index, "the body is missing")
        elif leaf_hash(stored) != leaf:
            self._problem(index, "the body is not what was recorded")
        if not isinstance(leaf, bytes):
            self._problem(index, "the leaf is no hash")
            self._tree = None
        if self._tree is not None and isinstance(leaf, bytes):
            for level, number, node in self._tree.append(leaf):
                self._tile(level, number, node)

    def _tile(self, level: int, number: int, node: bytes) -> None:
        self._tiles += 1
        rows = self._connection.execute("SELECT hash FROM tile WHERE level = ? AND n = ?", (level, number))
        if [(node,)] != rows:
            self._problem(None, f"the kept node {number} of level {level} is not that of the entries")

    def _checkpoint(self, size: int, found: object) -> None:
        """Check one checkpoint, stored or kept elsewhere, against the tree as it is at its size."""
        self._checkpoints += 1
        try:
            checkpoint = found if isinstance(found, Checkpoint) else self._opened(found)
        except NoteError as exc:
            self._problem(None, f"the checkpoint of size {size} does not verify: {exc}")
            return
        if checkpoint.size != size:
            self._problem(None, f"the checkpoint filed under size {size} is of another size")
        if self._tree is None or checkpoint.size != self._tree.size:
            return  # no root to compare it with; why is reported already
        outside = found is checkpoint
        good = self._good_outside if outside else self._good_size
        if checkpoint.root != self._tree.root():
            signed = f"signed at size {size}" + (", as a checkpoint kept elsewhere shows" if outside else "")
            self._problem(good, f"entries {good} to {size - 1} are not those that were {signed}")
            self._tree = None  # every later root differs too
        elif outside:
            self._good_outside = size
        else:
            self._good_size = size

    def _opened(self, found: object) -> Checkpoint:
        if not isinstance(found, str):
            raise NoteError("it is no text")
        return open_checkpoint(found, self._verifier)
