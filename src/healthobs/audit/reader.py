"""What can be asked of a log: entries by filter, the latest checkpoint, proofs, and whether all of it verifies.

RFC 9162 §2.1.3 and §2.1.4 (inclusion and consistency proofs), 45 CFR 164.312(b) (recorded activity can be examined).

Limits: search is by scan (`healthobs.audit.reading`); to verify is to read everything (`healthobs.audit.verification`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from healthobs.audit import merkle, reading, since, store, verification
from healthobs.audit.access import Access
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.merkle import CompactRange
from healthobs.audit.records import Checkpoint, ConsistencyProof, InclusionProof, Page, Verification
from healthobs.audit.store import ReadConnection
from healthobs.exceptions import AuditTamperedError

if TYPE_CHECKING:
    from healthobs.audit.subjects import SubjectMap


class LogReader:
    """The reading side of a trail.

    Args:
        access: Gives connections.
        verifier: Opens the log's checkpoints.
        token_of: Gives the token of a subject; None where there is none.
    """

    def __init__(
        self, access: Access, verifier: Verifier, token_of: Callable[[str | None], str | None]
    ) -> None:
        self._access = access
        self._verifier = verifier
        self._token_of = token_of
        self.origin: str = verifier.name
        #: Other keys that verification found the log to vouch for.
        self._vouched: set[str] = set()

    @property
    def vkeys(self) -> tuple[str, ...]:
        """The public keys by any of which a checkpoint of the log is known here."""
        return self._verifier.vkeys

    @property
    def subjects(self) -> SubjectMap | None:
        """The map of subjects, where there is one."""
        return None

    def read(
        self,
        *,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        resource_id: str | None = None,
        trace_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return entries that match every filter given, newest first.

        Args:
            start: Earliest time, inclusive (RFC 3339 or datetime; without a zone, UTC).
            end: Latest time, exclusive.
            actor: Exact actor id.
            action: Exact action.
            subject: Exact subject token; with a map of subjects, also the identifier behind it.
            resource_id: Exact resource id; with a map of subjects, also one that it knows.
            trace_id: Exact trace id.
            limit: Entries on the page, 1 to 1000.
            cursor: `next_cursor` of the page before.

        Raises:
            ValueError: A limit, time or cursor is invalid; the message names which.
            AuditError: The store or the map of subjects cannot be read.
        """
        equal: dict[str, tuple[str | None, ...]]
        equal = {"actor": (actor,), "action": (action,), "trace_id": (trace_id,)}
        # What was recorded before there was a map has the identifier itself.
        equal["subject"] = subject, self.token_of(subject)
        equal["resource_id"] = resource_id, self.token_of(resource_id)
        with self.connected() as connection:
            return reading.page(connection, start=start, end=end, equal=equal, limit=limit, cursor=cursor)

    def token_of(self, identifier: str | None) -> str | None:
        """Return the token of a subject, where there is a map that knows one; for `healthobs.audit` only."""
        return self._token_of(identifier)

    def checkpoint(self) -> Checkpoint:
        """Return the latest signed checkpoint; it covers every entry.

        Raises:
            AuditError: There is none, or it was not signed with this trail's key.
        """
        with self.connected() as connection:
            _, note = store.head(connection)
        return open_checkpoint(note or "", self._verifier)

    def verify(self, *, known: tuple[str, ...] = ()) -> Verification:
        """Recompute everything and hold it against every checkpoint; see `healthobs.audit.verification`.

        Args:
            known: Notes of checkpoints that were kept elsewhere.

        Raises:
            AuditError: The store cannot be read at all, or a note in `known` is not this log's.
        """
        with self.connected() as connection:
            return verification.verify(connection, self._verifier, known)

    def verify_since(self, before: CompactRange) -> tuple[Verification, CompactRange | None]:
        """Verify what came since the log was `before`; see `healthobs.audit.since`.

        Raises:
            AuditError: Entries are missing, the latest checkpoint is not ours, or the store cannot be read.
        """
        with self.connected() as connection:
            return since.extend(connection, self._verifier, before, self._vouched)

    def first_index(self) -> int:
        """Return the first entry that is there: 0, unless entries were pruned.

        Raises:
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            return store.first_index(connection)

    def pruned(self) -> int:
        """Return the first entry that no pruning on record took away: 0, unless there was one.

        Raises:
            AuditError: The store cannot be read, or its latest checkpoint is not ours.
        """
        with self.connected() as connection:
            return reading.pruned(connection, self._verifier)

    def erased_by(self, indices: Collection[int]) -> dict[int, int]:
        """Return those of `indices` whose bodies were ordered to go, and are gone, each with the entry that ordered it.

        Raises:
            AuditError: The store cannot be read, or its latest checkpoint is not ours.
        """
        with self.connected() as connection:
            return reading.erased_by(connection, indices, self._verifier)

    def tree(self, size: int) -> CompactRange:
        """Return the right edge of the tree of the first `size` entries, as it is stored.

        Raises:
            AuditError: Entries are missing, or the store cannot be read.
        """
        with self.connected() as connection:
            return store.load_range(connection, size)

    def inclusion_proof(self, index: int, size: int | None = None) -> InclusionProof:
        """Return the proof that entry `index` is in the log of `size` entries (default: all).

        Raises:
            ValueError: There is no such entry at that size, or it was pruned.
            AuditTamperedError: It, or what it is proved by, is gone without an order.
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            return inclusion(connection, index, size, self._verifier)

    def consistency_proof(self, old: int, new: int | None = None) -> ConsistencyProof:
        """Return the proof that the log of `new` entries (default: all) starts with that of `old`.

        Raises:
            ValueError: The sizes are not 1 <= old <= new <= the log's, or what proves it was pruned.
            AuditTamperedError: What it is proved by is gone without an order.
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            return consistency(connection, old, new, self._verifier)

    def connected(self) -> AbstractContextManager[ReadConnection]:
        """Give a connection for one task that reads; for `healthobs.audit` only. It lets forks in between statements."""
        return self._access.connected()


def inclusion(connection: ReadConnection, index: int, size: int | None, verifier: Verifier) -> InclusionProof:
    """Return an inclusion proof from the log behind `connection`; see `LogReader.inclusion_proof`."""
    size = _size(connection, size)
    with _but_for_pruned(connection, verifier):
        path = merkle.inclusion_path(index, size, store.tree(connection, size).subtree)
        (leaf,) = store.leaves(connection, index, index + 1)
    return InclusionProof(index, size, leaf, path)


def consistency(
    connection: ReadConnection, old: int, new: int | None, verifier: Verifier
) -> ConsistencyProof:
    """Return a consistency proof from the log behind `connection`; see `LogReader.consistency_proof`."""
    new = _size(connection, new)
    with _but_for_pruned(connection, verifier):
        path = merkle.consistency_path(old, new, store.tree(connection, new).subtree)
    return ConsistencyProof(old, new, path)


@contextmanager
def _but_for_pruned(connection: ReadConnection, verifier: Verifier) -> Generator[None]:
    """Tell an entry that went by order, of which nothing can be proved any more, from one that went without."""
    try:
        yield
    except AuditTamperedError as exc:
        first = 0
        with suppress(NoteError):
            first = reading.pruned(connection, verifier)
        if exc.index is None or exc.index >= first:
            raise
        raise ValueError(f"entries before {first} are no longer there: they were pruned by order") from None


def _size(connection: ReadConnection, size: int | None) -> int:
    total, _ = store.head(connection)
    if size is not None and size > total:
        raise ValueError("the size is more than the log has")
    return total if size is None else size
