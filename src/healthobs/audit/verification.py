"""Verification of a whole trail, online or on a copy: every leaf, every checkpoint, every key, every guard and table.

Nothing that is stored is believed: leaves are recomputed from the bodies, the tree from the leaves, and both
are held against every signed checkpoint, and against those that somebody kept elsewhere. A missing body or a
missing beginning is a problem unless an entry of the log itself ordered it; a key that signed is a problem
unless it is known, or an entry under a known key's checkpoint vouches for it.

Others may append, erase and prune meanwhile: where a body is missing, the orders that came since are read, and what came with
them is verified too; where the beginning went, all is read anew.

Limits: a file that was put back to an earlier state, checkpoints included, verifies; only a checkpoint held
outside shows it (`known`). So does a log rewritten by whoever has the signing key. Whom the log names first as approvers of
prunings is believed unless they are pinned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge

from healthobs.audit import approval, governance, store
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.governance import Order, Range
from healthobs.audit.merkle import HASH_BYTES, TILE_HEIGHT, TILE_WIDTH, CompactRange, leaf_hash
from healthobs.audit.records import Checkpoint, Problem, Verification
from healthobs.audit.store import HIGHEST, LOWEST, ReadConnection, StoreError
from healthobs.exceptions import AuditError, AuditTamperedError

#: Problems that are listed; one is enough to fail, and a ruined file must not flood the report.
MAX_PROBLEMS = 50
#: Runs in one of which nobody must have pruned; prunings are rare.
_RUNS = 3
#: What `healthobs.audit.since` says of the same.
OTHER_KEY = "the key written in the file is not the expected key"
NO_ENTRIES = "there are kept tiles that belong to no entries"
GOVERNS = "the entry governs the trail, and an erasure names it"
#: Things that are none of the log's of which the name is told.
_NAMED = 3
#: The hashes that are kept of a tile where they are as many as they should, and how many entries there are by now.
_TILE = """SELECT CASE WHEN length(hashes) = width * 32 THEN hashes END,
    (SELECT coalesce(max(idx) + 1, 0) FROM entry) FROM tile WHERE level = ? AND n = ?"""


def verify(
    connection: ReadConnection, verifier: Verifier, known: Sequence[str] = (), approvers: Sequence[str] = ()
) -> Verification:
    """Return the verdict on the log behind `connection`.

    Args:
        connection: A connection of its own; it is only read from.
        verifier: The key that must have signed.
        known: Signed checkpoints that were kept elsewhere; each must be on the log's way.
        approvers: vkeys of those who must have been the first approvers; default whomever the log names.

    Raises:
        NoteError: A checkpoint in `known` does not verify itself, or a vkey is malformed, so nothing can be said.
    """
    for vkey in approvers:
        Verifier(vkey)  # a malformed one would find fault with every pruning
    left = _RUNS
    while True:
        run = _Run(connection, verifier, known, approvers)
        verdict, left = run.run(), left - 1
        if verdict.ok or not left or not run.overtaken():
            return verdict


def guard_problems(connection: ReadConnection) -> list[Problem]:
    """Return which tables and guards are not as they were made, and what is on or beside them that is none of ours."""
    problems = [Problem(None, f"the table {name} is altered") for name in connection.altered_tables()]
    problems += [
        Problem(None, f"the guard {name} is missing or altered") for name in connection.missing_guards()
    ]
    foreign = connection.foreign()
    if foreign:
        named = ", ".join((*sorted(foreign)[:_NAMED], *(["..."] if len(foreign) > _NAMED else ())))
        problems.append(Problem(None, f"what is not the log's is in its database ({len(foreign)}): {named}"))
    return problems


def ring(verifier: Verifier, orders: Sequence[Order]) -> Verifier:
    """Return a verifier that also opens what keys signed that the log's own entries name: not yet trusted ones."""
    named = [vkey for order in orders for vkey in order.vkeys]
    own = [vkey for vkey in named if vkey.startswith(f"{verifier.name}+") and approval.is_vkey(vkey)]
    return Verifier(*dict.fromkeys((*verifier.vkeys, *own)))


def _beginning(connection: ReadConnection) -> object:
    """Return what the first entry that is there is filed under."""
    ((there,),) = connection.execute("SELECT min(idx) FROM entry")
    return there


def _bound(number: object, none: int) -> int:
    """Return the highest number of a table, to read up to; of one that has other things for numbers all is read."""
    if number is None:
        return none
    return number if isinstance(number, int) else HIGHEST


class _Run:
    """One verification: walks the entries once, in order, beside checkpoints and kept nodes."""

    def __init__(
        self, connection: ReadConnection, verifier: Verifier, known: Sequence[str], approvers: Sequence[str]
    ) -> None:
        self._connection = connection
        self._verifier = verifier
        self._known = known
        self._approvers = approvers
        self._orders: list[Order] = []
        self._erased: list[Range] = []
        self._governing: set[int] = set()
        self._ring = verifier
        #: Who signed: the first size filed under it, and the highest whose root is that of the entries.
        self._signers: dict[frozenset[str], tuple[int, int]] = {}
        self._problems: list[Problem] = []
        self._tree: CompactRange | None = CompactRange()
        self._good_size = 0
        self._good_outside = 0
        self._entries = 0
        self._checkpoints = 0
        self._tiles = 0
        #: The tile of each level that is not full yet: number and hashes.
        self._nodes: dict[int, tuple[int, bytes]] = {}
        self._first = 0
        self._bodies_erased = 0
        #: What there is to verify, as of one moment: the last entry, how many were signed, how many kept tiles.
        self._last = -1
        self._signed_size = 0
        self._tiles_kept = 0
        #: The first entry that was there at the start.
        self._begun: object = None
        #: Pieces of the walk that were read, and as of which of them the orders are known.
        self._piece = 0
        self._looked = 0

    def run(self) -> Verification:
        try:
            self._problems += guard_problems(self._connection)
            self._begun = _beginning(self._connection)
            if not self._extent():
                self._problem(None, "there is no checkpoint at all")
            self._take(governance.orders(self._connection, last=self._last))
            self._walk([open_checkpoint(note, self._ring) for note in self._known])
            self._keys()
        except AuditTamperedError as exc:
            self._problem(exc.index, exc.problem)
            self._tree = None
        except StoreError as exc:
            self._problem(self._entries, f"the store cannot be read from here on ({exc.code})")
            self._tree = None
        root = b"" if self._tree is None else self._tree.root()
        problems = tuple(self._problems)
        return Verification(
            not problems, self._entries, root, problems, self._checkpoints, self._first, self._bodies_erased
        )

    def overtaken(self) -> bool:
        """Return whether the beginning went since this run began, which may have seen one half of that and not the other."""
        try:
            return self._begun != _beginning(self._connection)
        except AuditError:
            return False

    def _take(self, orders: list[Order]) -> None:
        self._orders += orders
        self._erased = governance.erased(self._orders)
        self._governing = {order.index for order in self._orders}
        self._ring = ring(self._verifier, self._orders)

    def _look_again(self) -> None:
        """Take the orders that came since, so that what they took is not missed, and go on as far as they are.

        Once for each piece of the walk is enough: an order is there before anything goes by it.
        """
        if self._looked == self._piece:
            return
        self._looked, before = self._piece, self._last
        self._extent()
        came = governance.orders(self._connection, before + 1, self._last) if self._last > before else []
        if came:
            self._take(came)
            self._judge(before + 1)

    def _problem(self, index: int | None, what: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(index, what))

    def _keys(self) -> None:
        """Follow the changes of key from the known ones: each must be under a good checkpoint of a trusted key."""
        trusted = set(self._verifier.vkeys)
        before = 0
        while len(trusted) > before:
            before = len(trusted)
            reach = max(
                (good for signers, (_, good) in self._signers.items() if signers & trusted), default=0
            )
            trusted.update(vkey for order in self._orders if order.index < reach for vkey in order.vkeys)
        for signers, (first, _) in self._signers.items():
            if not signers & trusted:
                self._problem(
                    None, f"the checkpoint of size {first} is signed by a key that no known key vouches for"
                )
        origin, vkey = store.read_log(self._connection) or ("", "")
        if vkey not in trusted or origin != self._verifier.name:
            self._problem(None, OTHER_KEY)

    def _extent(self) -> bool:
        """Take up to where there is anything to verify, as of this moment; return whether anything was signed."""
        with self._connection.reading():
            ((last,),) = self._connection.execute("SELECT max(idx) FROM entry WHERE idx <= ?", (HIGHEST,))
            ((signed,),) = self._connection.execute(
                "SELECT max(size) FROM checkpoint WHERE size <= ?", (HIGHEST,)
            )
            ((tiles,),) = self._connection.execute("SELECT count(*) FROM tile")
        self._last, self._signed_size, self._tiles_kept = _bound(last, -1), _bound(signed, 0), tiles
        return signed is not None

    def _judge(self, start: int) -> set[int]:
        """Name what is wrong with the approvers and prunings from entry `start` on; return where, in the whole log."""
        faults = approval.judge(self._orders, self._verifier.name, self._approvers).faults
        for index, fault in faults.items():
            if index >= start:
                self._problem(index, fault)
        return set(faults)

    def _walk(self, known: list[Checkpoint]) -> None:
        expected = self._first = self._start()
        if any(checkpoint.size < expected for checkpoint in known):
            raise NoteError(
                "a checkpoint that was kept is of entries that were pruned since, so nothing can be said by it"
            )
        by_size = sorted(known, key=lambda checkpoint: checkpoint.size)  # merge takes what is in order
        outside = ((checkpoint.size, checkpoint) for checkpoint in by_size)
        checkpoints = merge(self._signed(), outside, key=lambda pair: pair[0])
        due = next(checkpoints, None)
        for index, leaf, body in self._rows():
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
        if self._signed_size < expected:
            self._problem(self._signed_size, "the entries from here on were never signed")
        self._all_walked()
        if self._tree is None:
            return
        for level, (n, hashes) in self._nodes.items():
            self._tile(level, n, hashes)
        if self._tiles_kept > self._tiles:
            self._problem(None, NO_ENTRIES)

    def _all_walked(self) -> None:
        """Find fault with entries that a search finds and the walk did not: two of one number, or out of their order.

        What governs is searched for, so it could be believed though no checkpoint is over it. The sign keeps the database
        from finding its way by the numbers.
        """
        ((there,),) = self._connection.execute("SELECT count(*) FROM entry WHERE +idx <= ?", (self._last,))
        if there > self._entries:
            self._problem(
                None, f"there are {there} entries up to the last one, but {self._entries} in their order"
            )

    def _start(self) -> int:
        """Return where the log begins; where it was pruned by order, load the tree up to there from kept nodes."""
        there = _beginning(self._connection)
        faults = self._judge(0)
        good = (order.below for order in self._orders if order.index not in faults)
        first = max((below for below in good if isinstance(there, int) and below <= there), default=0)
        if not first:
            return 0
        kept = CompactRange()
        for n in range(-(-first >> 2 * TILE_HEIGHT)):
            width = min(TILE_WIDTH, (first >> TILE_HEIGHT) - n * TILE_WIDTH)
            hashes = store.tiles(self._connection)(1, n, width)
            for place in range(0, len(hashes), HASH_BYTES):
                node = hashes[place : place + HASH_BYTES]
                self._node(1, kept.size, node)
                for level, number, above in kept.append(node):
                    self._node(level + 1, number, above)
        if kept.size != first >> TILE_HEIGHT:
            self._problem(None, "kept tiles of the pruned entries are missing")
            self._tree = None
        else:
            self._tree = CompactRange(first, kept.peaks)
        self._good_size = self._good_outside = first
        return first

    def _rows(self) -> Iterator[tuple[int, object, object]]:
        """Yield the entries up to the last, which may come to be a later one meanwhile."""
        expected, after = self._first, LOWEST
        while True:
            last = self._last
            for place, (index, leaf, body) in enumerate(store.entries(self._connection, after, last)):
                self._piece += place % store.AT_ONCE == 0
                if isinstance(index, int):
                    yield index, leaf, body
                    expected = index + 1
                else:
                    self._problem(expected, "what is filed here is numbered by no whole number")
                    self._tree = None
            if self._last <= last:
                return
            after = last

    def _signed(self) -> Iterator[tuple[int, object]]:
        """Yield the checkpoints up to the latest, which may come to be a later one meanwhile."""
        after = LOWEST
        while True:
            highest = self._signed_size
            for size, note in store.checkpoints(self._connection, highest, after):
                if isinstance(size, int):
                    yield size, note
                else:
                    self._problem(None, "a checkpoint is filed under what is no whole number")
            if self._signed_size <= highest:
                return
            after = highest

    def _entry(self, index: int, leaf: object, body: object) -> None:
        self._entries += 1
        stored = store.stored_bytes(body)
        if stored is None:
            self._bodies_erased += 1
            if not governance.covers(self._erased, index):
                self._look_again()
            if not governance.covers(self._erased, index):
                self._problem(index, "the body is missing")
        elif leaf_hash(stored) != leaf:
            self._problem(index, "the body is not what was recorded")
        elif index in self._governing and governance.covers(self._erased, index):
            self._problem(index, GOVERNS)
        if not store.is_hash(leaf):
            self._problem(index, "the leaf is no hash")
            self._tree = None
        elif self._tree is not None:
            for node in self._tree.append(leaf):
                self._node(*node)

    def _node(self, level: int, number: int, node: bytes) -> None:
        """Take a node that became complete, and check the tile that is full with it."""
        n, place = divmod(number, TILE_WIDTH)
        self._nodes[level] = (n, self._nodes[level][1] + node if place else node)
        if place == TILE_WIDTH - 1:
            self._tile(level, *self._nodes.pop(level))

    def _tile(self, level: int, n: int, hashes: bytes) -> None:
        """Hold what is kept of a tile, in every width it had, against what the entries make it.

        It may have grown since this run began. A row that is wider than the tile is by now would stop the log from
        growing: the writer's own of that width could not be added.
        """
        rows = self._connection.execute(_TILE, (level, n))
        self._tiles += len(rows)
        kept = [row if isinstance(row, bytes) else b"" for row, _ in rows]
        size = max((size for _, size in rows if isinstance(size, int)), default=0)
        widest = min(TILE_WIDTH, (size >> level * TILE_HEIGHT) - n * TILE_WIDTH) * HASH_BYTES
        right = all(row and row[: len(hashes)] == hashes[: len(row)] for row in kept)
        if not (right and len(hashes) <= max(map(len, kept), default=0) <= widest):
            self._problem(None, f"the kept tile {n} of level {level} is not that of the entries")

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
            if self._tree is not None and checkpoint.size == size:
                self._problem(None, f"the checkpoint of size {size} could not be held against the entries")
            self._sign(checkpoint, good=0)
            return  # no root to compare it with; why is reported
        outside = found is checkpoint
        good = self._good_outside if outside else self._good_size
        if checkpoint.root != self._tree.root():
            signed = f"signed at size {size}" + (", as a checkpoint kept elsewhere shows" if outside else "")
            self._problem(good, f"entries {good} to {size - 1} are not those that were {signed}")
            self._tree = None  # every later root differs too
            self._sign(checkpoint, good=0)
            return
        self._sign(checkpoint, good=size)
        if outside:
            self._good_outside = size
        else:
            self._good_size = size

    def _sign(self, checkpoint: Checkpoint, good: int) -> None:
        vkeys = self._ring.vkeys
        signers = frozenset(vkeys if len(vkeys) == 1 else self._ring.opened(checkpoint.note).signers)
        first, reach = self._signers.get(signers, (checkpoint.size, 0))
        self._signers[signers] = min(first, checkpoint.size), max(reach, good)

    def _opened(self, found: object) -> Checkpoint:
        if not isinstance(found, str):
            raise NoteError("it is no text")
        return open_checkpoint(found, self._ring)
