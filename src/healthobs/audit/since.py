"""Verification of what came since a log was verified, which costs in proportion to that.

Whose log it is, guards, new entries and every checkpoint over them, and new orders are judged as by
`healthobs.audit.verification`: two processes of which one verified before and one did not say the same of what is new.
Older orders are read only where a new one refers to them, or where a key signed that is not known.

Limits: of what was verified before only the root is compared, through the right edge of the tree as it is kept. An older
checkpoint, body, leaf or tile that was changed or taken away beside that edge shows where all of it is verified.
"""

from __future__ import annotations

from healthobs.audit import approval, governance, store, verification
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.governance import Order, Range
from healthobs.audit.merkle import TILE_HEIGHT, TILE_WIDTH, CompactRange, leaf_hash, tile_levels
from healthobs.audit.records import Checkpoint, Problem, Verification
from healthobs.audit.store import HIGHEST, ReadConnection
from healthobs.audit.verification import GOVERNS, NO_ENTRIES, OTHER_KEY, guard_problems, ring

#: What a new entry of is judged by all that came before it.
_JUDGED = frozenset({governance.APPROVERS, governance.ERASE, governance.PRUNE})
#: Kept tiles of levels that a log does not have, and those of one level beyond the last entry; each by the primary key.
_TILES_BEYOND = "SELECT 1 FROM tile WHERE level < 1 UNION ALL SELECT 1 FROM tile WHERE level >= ? LIMIT 1"
_TILES_OF_LEVEL = """SELECT 1 FROM tile WHERE level = ? AND n < 0 UNION ALL SELECT 1 FROM tile WHERE level = ? AND n > ?
    UNION ALL SELECT 1 FROM tile WHERE level = ? AND n = ? AND width > ? LIMIT 1"""


def extend(
    connection: ReadConnection, verifier: Verifier, before: CompactRange, vouched: set[str] | None = None
) -> tuple[Verification, CompactRange | None]:
    """Verify what came since a log was verified: guards, that it still is that log, new entries, checkpoints and orders.

    Args:
        connection: A connection of its own; it is only read from.
        verifier: The key that must have signed.
        before: The tree as it was verified.
        vouched: Other keys that the log was found to vouch for; those that are found now are added.

    Returns:
        The verdict, on the new entries only, and the tree now when that is good.

    Raises:
        AuditError: Entries are missing, the latest checkpoint is not by the key, or the store cannot be read.
    """
    problems = guard_problems(connection)
    with connection.reading():
        since = _Since(connection, verifier, before, set() if vouched is None else vouched)
    problems += since.run()  # no fork waits for that
    size, tree = since.size - before.size, since.tree
    told = tuple(problems[: verification.MAX_PROBLEMS])
    verdict = Verification(not problems, size, tree.root(), told, since.checkpoints, before.size)
    return verdict, None if problems else tree


class _Since:
    """What came since a log was verified, as of the moment at which this is made."""

    def __init__(
        self, connection: ReadConnection, verifier: Verifier, before: CompactRange, vouched: set[str]
    ) -> None:
        self._connection = connection
        self._verifier = verifier
        self._vouched = vouched
        self._ring = Verifier(*dict.fromkeys((*verifier.vkeys, *sorted(vouched))))
        self._problems: list[Problem] = []
        self._start = start = before.size
        #: Up to where the entries are those that were signed; None once they are not.
        self._good: int | None = start
        self.tree = before.copy()
        self.checkpoints = 0
        self.size, self._note = store.head(connection)
        self._named = store.read_log(connection) or ("", "")
        self._extends = self.size >= start and store.load_range(connection, start).root() == before.root()
        self._found = governance.orders(connection, start)
        #: All orders, where they are needed.
        self._every: list[Order] | None = None
        if any(order.action in _JUDGED for order in self._found):
            self._every = governance.orders(connection)
        self._leaves = store.leaves(connection, start, self.size) if self._extends else []
        self._bodies = connection.execute("SELECT body FROM entry WHERE idx >= ? ORDER BY idx", (start,))
        self._signed = list(store.checkpoints(connection, HIGHEST, start))
        self._misfiled = [size for size, _ in store.checkpoints(connection, -1)]
        self._misnumbered = [index for index, _, _ in store.entries(connection, last=-1)]
        self._has_more = _has_tiles_beyond(connection, self.size)

    def run(self) -> list[Problem]:
        latest = open_checkpoint(self._note or "", self._verifier)
        if not self._extends:
            self._problem(None, f"the log does not extend the {self._start} entries that were verified")
            return self._problems
        gone = governance.erased(self._found)
        self._judge(gone)
        self._whose()
        self._walk(gone)
        for size in self._misfiled:
            self._problem(None, f"the checkpoint filed under size {size} is of another size")
        for index in self._misnumbered:
            self._problem(index, "the entry is numbered out of order")
        if self._has_more:
            self._problem(None, NO_ENTRIES)
        if not self._problems and (latest.size, latest.root) != (self.size, self.tree.root()):
            self._problem(self._start, "the entries from here on are not those that were signed")
        if not self._problems:
            self._vouched.update(self._ring.vkeys)
        return self._problems

    def _problem(self, index: int | None, what: str) -> None:
        if len(self._problems) < verification.MAX_PROBLEMS:
            self._problems.append(Problem(index, what))

    def _judge(self, gone: list[Range]) -> None:
        """Find fault with new orders, each by what all that came before says."""
        for order in self._every or ():
            if governance.covers(gone, order.index):
                self._problem(order.index, GOVERNS)
        for index, fault in approval.judge(self._every or (), self._verifier.name).faults.items():
            if index >= self._start:
                self._problem(index, fault)

    def _look_for_keys(self) -> None:
        """Take the keys that entries name: all of them are under the latest checkpoint, which is by a known key."""
        if self._every is None:
            self._every = governance.orders(self._connection)
        self._ring = ring(self._ring, self._every)

    def _whose(self) -> None:
        """Compare whose log it says it is with the key."""
        origin, vkey = self._named
        if vkey not in self._ring.vkeys:
            self._look_for_keys()
        if vkey not in self._ring.vkeys or origin != self._verifier.name:
            self._problem(None, OTHER_KEY)

    def _walk(self, gone: list[Range]) -> None:
        """Compare bodies with leaves, and the tree over these with each checkpoint on the way."""
        signed = iter(self._signed)
        due = next(signed, None)
        for index, (leaf, (body,)) in enumerate(zip(self._leaves, self._bodies, strict=True), self._start):
            stored = store.stored_bytes(body)
            ordered = stored is None and governance.covers(gone, index)
            if not ordered and (stored is None or leaf_hash(stored) != leaf):
                self._problem(index, "the body is not what was recorded")
            self.tree.append(leaf)
            while due is not None and due[0] == self.tree.size:
                self._checkpoint(*due)
                due = next(signed, None)
        if due is not None:
            self._problem(self.size, f"entries are missing from here on; {due[0]} were signed")

    def _checkpoint(self, size: int, note: object) -> None:
        """Check a new checkpoint against the tree as it is at its size."""
        self.checkpoints += 1
        try:
            checkpoint = self._opened(note)
        except NoteError as exc:
            self._problem(None, f"the checkpoint of size {size} does not verify: {exc}")
            return
        if checkpoint.size != size:
            self._problem(None, f"the checkpoint filed under size {size} is of another size")
        elif self._good is not None and checkpoint.root == self.tree.root():
            self._good = size
        elif self._good is not None:
            what = f"entries {self._good} to {size - 1} are not those that were signed at size {size}"
            self._problem(self._good, what)
            self._good = None  # every later root differs too

    def _opened(self, note: object) -> Checkpoint:
        if not isinstance(note, str):
            raise NoteError("it is no text")
        try:
            return open_checkpoint(note, self._ring)
        except NoteError:
            self._look_for_keys()
            return open_checkpoint(note, self._ring)


def _has_tiles_beyond(connection: ReadConnection, size: int) -> bool:
    """Return whether kept tiles belong to no entries: they would stop the log from growing."""
    levels = tile_levels(size)
    rows = connection.execute(_TILES_BEYOND, (levels,))
    for level in range(1, levels):
        n, width = divmod(size >> level * TILE_HEIGHT, TILE_WIDTH)
        rows += connection.execute(_TILES_OF_LEVEL, (level, level, n, level, n, width))
    return bool(rows)
