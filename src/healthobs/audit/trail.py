"""The audit trail: append, read, prove, verify, in front of store and writer.

An append returns when its entry is durable, under a signed checkpoint, or raises. 45 CFR 164.312(b) (audit
controls), 164.312(c) (integrity), 21 CFR 11.10(e) (time-stamped trail that changes do not obscure), PCI DSS
4.0 requirement 10.

Limits: the trail signs for itself: keep checkpoints elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
import weakref
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from healthobs.audit import entry, governance, merkle, reading, store, verification
from healthobs.audit.checkpoint import Signer, Verifier, open_checkpoint
from healthobs.audit.draft import AuditDraft
from healthobs.audit.forking import ForkGate
from healthobs.audit.merkle import CompactRange
from healthobs.audit.records import Checkpoint, ConsistencyProof, InclusionProof, Page, Receipt, Verification
from healthobs.audit.spool import Row, Rows, Spool
from healthobs.audit.store import Connection, Store, StoreError
from healthobs.audit.subjects import is_token
from healthobs.audit.turns import Turn
from healthobs.audit.windows import Windows
from healthobs.audit.writer import MAX_BATCH, Writer
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, AuditWriteError
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from healthobs.audit.cosigning import Witnesses, WitnessState
    from healthobs.audit.subjects import SubjectMap

_logger = logging.getLogger("healthobs")
#: How long care waits for the store, a merge of the spool included, before its entry goes to the spool.
SPOOL_AFTER_SECONDS = 2.0


class _NoTokenError(AuditWriteError):
    """The map of subjects gives no token."""


class AuditTrail:
    """A tamper-evident log of what was done to whose data. Made by `healthobs.audit.open_trail`; safe in threads and forks.

    Args:
        place: Where the log is, with its tables.
        signer: Signs checkpoints; its name is the log's origin.
        service: `service` of each entry.
        clock: When.
        redactor: Decides on `reason` and `details`.
        timeout_seconds: How long an append waits for the disk before it raises.
        spool: Where `append_or_spool` puts what the store does not take.
        subjects: Gives the token that each entry has in place of its subject, and of a resource that is its subject.
    """

    def __init__(
        self,
        place: Store,
        signer: Signer,
        *,
        service: str,
        clock: Clock,
        redactor: Redactor,
        timeout_seconds: float,
        spool: Spool | None = None,
        subjects: SubjectMap | None = None,
    ) -> None:
        #: The database file, where it is one.
        self.path: Path | None = place.path
        self.spool: Spool | None = spool
        self.subjects: SubjectMap | None = subjects
        self._place = place
        self.origin: str = signer.name
        self.vkey: str = signer.vkey
        self._signer = signer
        self._verifier = Verifier(*signer.vkeys)
        self._service = service
        self._clock = clock
        self._redactor = redactor
        self._timeout_seconds = timeout_seconds
        #: Who cosigns its checkpoints; set by `healthobs.audit.cosigning.Witnesses`.
        self.witnesses: Witnesses | None = None
        #: Rows of an outbox or spool that were set aside in this process, see `acceptable`.
        self.refused_rows: int = 0
        #: Told how many acknowledged entries of the spool could not be read; set by `healthobs.observability`.
        self.on_damage: Callable[[int], object] | None = None
        self._closed = False
        #: One writer per process id: after a fork the child finds none of its own and starts afresh.
        self._writers: dict[int, Writer] = {}
        self._turns: dict[int, Turn] = {}
        #: Walks that are going on; whoever forks closes what they have open between two windows.
        self._readers: set[Windows] = set()
        # Neither gate nor finalizer may hold the trail itself.
        writers, readers = self._writers, self._readers
        self._gate = ForkGate(lambda: _release(writers, readers))
        self._finalizer = weakref.finalize(self, _stop, writers)

    def append(self, draft: Mapping[str, object] | AuditDraft) -> Receipt:
        """Record an entry and return once it is durable.

        Args:
            draft: Fields of `AuditDraft`, at least `action`; `trace_id`, `span_id` and `request_id` win over
                those of the current span and request.

        Raises:
            AuditWriteError: The entry is malformed, or is not durable; what it records must not be answered.

        Example:
            >>> receipt = trail.append({"action": "patient.read", "actor": "client-1", "subject": "s-17"})
            >>> receipt.index
            0
        """
        self._merge(self._timeout_seconds)
        return self._writer().append(self.encode(draft), self._timeout_seconds)

    def append_own(self, draft: Mapping[str, object], key: str | None = None) -> Receipt:
        """Record an entry of healthobs' own, by which the trail governs itself or a control reports; one under a `key`."""
        fields: Mapping[str, object] = {**draft, "actor_kind": "system"}
        if self.subjects is not None:
            with self._asking():
                subject = draft.get("subject")
                # A token whose row was erased still names its entries; taken for an identifier it would get another one.
                if not is_token(subject) or self.subjects.find(str(subject)) is not None:
                    fields = self.subjects.about(fields, self._timeout_seconds)
        body = self._encoded(fields, governance.REDACTOR)
        return self._writer().append(body, self._timeout_seconds, key)

    def append_or_spool(self, draft: Mapping[str, object] | AuditDraft) -> Receipt | None:
        """Record an entry and return once it is durable, in the spool where the store does not take it.

        For what must not wait for the store; the spooled entry is put into the log by the first append after. For some
        seconds after such a merge failed, entries go to the spool at once. So does one whose subject gets no token now: it has
        a stand-in there, with the identifier sealed, until the merge.

        Args:
            draft: As `append` takes it.

        Returns:
            The receipt; None when the entry is in the spool.

        Raises:
            AuditWriteError: The entry is malformed, or neither store nor spool takes it, or there is no spool.
        """
        if self.spool is None:
            return self.append(draft)
        key, waits = self.new_key(), min(self._timeout_seconds, SPOOL_AFTER_SECONDS)
        deadline = monotonic() + waits
        try:
            body = self.encode(draft, waits)
        except _NoTokenError:
            self.spool.add(*self._sealed(key, draft))
            return None
        try:
            self._merge(waits, deadline)
            # The store may take it after all, later than we wait: with the key it is one entry all the same.
            return self._writer().append(body, max(deadline - monotonic(), 0), key)
        except AuditWriteError:
            self.spool.add(key, body)
            return None

    def sequence(self, rows: Sequence[tuple[str, bytes]]) -> list[Receipt]:
        """Put entries of an outbox or spool into the log, in this order; one whose key is in it already stays as it is.

        Args:
            rows: Key (`new_key`) and bytes (`encode`) of each.

        Raises:
            AuditWriteError: One of them is not durable, and all may be handed over again; or not `acceptable`.
        """
        receipts = self.hand_over(rows)
        done = [receipt for receipt in receipts if receipt is not None]
        if len(done) < len(receipts):
            raise AuditWriteError(
                "the entry under a row's key is not the one that an outbox or spool handed over"
            )
        return done

    def hand_over(self, rows: Sequence[tuple[str, bytes]]) -> list[Receipt | None]:
        """Do as `sequence`, but give None for a row whose key has another entry; for `healthobs.audit` only.

        Whoever can write such a row must not hold up all others: it is for the caller to set it aside.
        """
        if not all(self.acceptable(key, body) for key, body in rows):
            raise AuditWriteError("a row of an outbox or spool is no entry that an application may record")
        return self._sequence(rows, None)

    def _sequence(self, rows: Sequence[tuple[str, bytes]], deadline: float | None) -> list[Receipt | None]:
        writer, receipts = self._writer(), list[Receipt | None]()
        for start in range(0, len(rows), MAX_BATCH):
            left = self._timeout_seconds if deadline is None else deadline - monotonic()
            if left <= 0:
                raise AuditWriteError("the audit store did not take the spooled entries in time")
            receipts += writer.append_all(rows[start : start + MAX_BATCH], left)
        return receipts

    def acceptable(self, key: str, body: bytes) -> bool:
        """Return whether a row of an outbox or spool is an entry as `encode` makes it: canonical, no reserved action.

        Whoever may write to the outbox's table or the spool's file could otherwise plant what governs the trail.
        """
        action = entry.action_of(body)
        return (
            key.isascii() and key.isprintable() and action is not None and action not in governance.RESERVED
        )

    def set_aside(self, count: int) -> None:
        """Count and log rows of an outbox or spool that the log does not take; for `healthobs.audit` only."""
        self.refused_rows += count
        _logger.error("audit_rows_refused", extra={"count": count})

    def encode(self, draft: Mapping[str, object] | AuditDraft, wait_seconds: float | None = None) -> bytes:
        """Return the bytes of the entry that `draft` describes, as it happened here and now.

        Args:
            draft: As `append` takes it.
            wait_seconds: How long to wait for the map of subjects, where there is one; default as an append waits.

        Raises:
            AuditWriteError: The entry is malformed, or its subject gets no token.
        """
        fields = draft.as_mapping() if isinstance(draft, AuditDraft) else draft
        if fields.get("action") in governance.RESERVED:
            raise AuditWriteError("the audit entry's action is one that only the trail itself records")
        if self.subjects is not None:
            with self._asking():
                fields = self.subjects.about(
                    fields, self._timeout_seconds if wait_seconds is None else wait_seconds
                )
        return self._encoded(fields, self._redactor)

    def _sealed(self, key: str, draft: Mapping[str, object] | AuditDraft) -> Row:
        """Return the row of the spool for an entry whose subject gets no token now."""
        assert self.subjects is not None  # noqa: S101 - without a map no token is wanting
        fields = draft.as_mapping() if isinstance(draft, AuditDraft) else draft
        fields, sealed = self.subjects.stand_in(fields)
        return f"{key}+{sealed}", self._encoded(fields, self._redactor)

    @contextmanager
    def _asking(self) -> Generator[None]:
        """Ask the map of subjects, outside the gate because it has its own; what goes wrong is a fault of the append."""
        try:
            yield
        except AuditError as exc:
            raise _NoTokenError(str(exc)) from None

    def _encoded(self, fields: Mapping[str, object], redactor: Redactor) -> bytes:
        return entry.encode(fields, service=self._service, moment=self._clock.now(), redactor=redactor)

    def new_key(self) -> str:
        """Return a key for a row of an outbox or spool; keys are in the order of time."""
        return f"{self._clock.wall_ns():020d}-{secrets.token_hex(8)}"

    def _merge(self, turn_seconds: float, deadline: float | None = None) -> None:
        """Put what waits in the spool into the log, by `deadline` where there is one."""
        spool = self.spool
        if spool is None or not spool.waiting():
            return
        turn = self._turns.get(os.getpid()) or self._turns.setdefault(os.getpid(), Turn())
        with turn.taken(turn_seconds, insists=deadline is None):
            if spool.waiting() and self._merge_once(spool, deadline):
                self._merge_once(spool, deadline)  # the entry that says what was lost

    def _merge_once(self, spool: Spool, deadline: float | None) -> bool:
        """Merge; return whether acknowledged entries turned out to be lost."""
        lost: list[int] = []
        try:
            spool.merge(
                lambda rows: self._sequence_spooled(rows, deadline),
                self._mergeable,
                self.set_aside,
                lambda lines: self._damaged(lines, lost),
            )
        finally:
            if lost and self.on_damage is not None:
                self.on_damage(lost[0])
        return bool(lost)

    def _damaged(self, lines: int, lost: list[int]) -> tuple[str, bytes]:
        """Return the entry that says what was lost, its key signed: nobody else can make a line of the spool say it."""
        lost.append(lines)
        draft: dict[str, object] = {"action": governance.DAMAGE, "actor": "healthobs", "actor_kind": "system"}
        draft |= {"outcome": "failed", "details": {"lines": lines}}
        key, body = self.new_key(), self._encoded(draft, governance.REDACTOR)
        signatures = self._signer.lines(governance.damage_statement(self.origin, key, body))
        return f"{key}+{base64.urlsafe_b64encode(signatures.encode()).decode()}", body

    def _sequence_spooled(self, rows: Rows, deadline: float | None) -> Rows:
        """Put rows of the spool into the log, each under its key alone, so that no signature makes one entry two.

        Returns:
            Those whose key has another entry.
        """
        receipts = self._sequence([self._settled(key, body, deadline) for key, body in rows], deadline)
        return [row for row, receipt in zip(rows, receipts, strict=True) if receipt is None]

    def _settled(self, key: str, body: bytes, deadline: float | None) -> Row:
        """Return a row of the spool as the log gets it."""
        stem, _, sealed = key.partition("+")
        if self.subjects is None or not sealed:
            return stem, body
        waits = self._timeout_seconds if deadline is None else max(deadline - monotonic(), 0)
        with self._asking():
            return stem, self.subjects.settled(body, sealed, waits)

    def _mergeable(self, key: str, body: bytes) -> bool:
        """Return whether a row of the spool is acceptable, or an entry on damage that this trail's key signed."""
        if self.acceptable(key, body):
            return True
        stem, _, signatures = key.partition("+")
        if entry.action_of(body) != governance.DAMAGE:
            return False
        text = governance.damage_statement(self.origin, stem, body)
        try:
            lines = base64.b64decode(signatures, altchars=b"-_", validate=True).decode()
            return self._verifier.open(f"{text}\n{lines}") == text
        except (ValueError, AuditError):
            return False

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
        if self.subjects is None or identifier is None:
            return None
        return self.subjects.find(identifier)

    def forget(self, subject: str) -> bool:
        """Erase, for good, a subject's row in the map, after what waits in the spool was merged: a seal in it would bring it back.

        Args:
            subject: The identifier, or its token.

        Returns:
            Whether the map knew it.

        Raises:
            AuditError: There is no map, it cannot be used, or entries wait in the spool; nothing is erased.
        """
        if self.subjects is None:
            raise AuditError("the audit trail has no map of subjects, so it can forget none")
        self._merge(self._timeout_seconds)
        if self.spool is not None and self.spool.waiting():
            raise AuditError("entries still wait in the spool, so nobody is forgotten; try again")
        return self.subjects.erase(subject)

    def checkpoint(self) -> Checkpoint:
        """Return the latest signed checkpoint; it covers every entry.

        Raises:
            AuditError: There is none, or it was not signed with this trail's key.
        """
        with self.connected() as connection:
            _, note = store.head(connection)
        return open_checkpoint(note or "", self._verifier)

    @property
    def witness_state(self) -> WitnessState:
        """How independent those are that cosigned lately: ``self-signed``, ``self-witnessed`` or ``witnessed``."""
        return "self-signed" if self.witnesses is None else self.witnesses.state

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
        """Verify what came since the log was `before`; see `healthobs.audit.verification.extend`.

        Raises:
            AuditError: Entries are missing, the latest checkpoint is not ours, or the store cannot be read.
        """
        with self.connected() as connection:
            return verification.extend(connection, self._verifier, before)

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
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            return reading.pruned(connection)

    def erased_by(self, indices: Collection[int]) -> dict[int, int]:
        """Return those of `indices` whose bodies were ordered to go, and are gone, each with the entry that ordered it.

        Raises:
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            gone = [
                index
                for index in indices
                if (None,) in connection.execute("SELECT body FROM entry WHERE idx = ?", (index,))
            ]
            found = governance.orders(connection, min(gone, default=0)) if gone else []
        return {
            index: order.index
            for order in found
            for first, last in governance.erased([order])
            for index in gone
            if first <= index <= last
        }

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
            ValueError: There is no such entry at that size.
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            return inclusion(connection, index, size)

    def consistency_proof(self, old: int, new: int | None = None) -> ConsistencyProof:
        """Return the proof that the log of `new` entries (default: all) starts with that of `old`.

        Raises:
            ValueError: The sizes are not 1 <= old <= new <= the log's.
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            return consistency(connection, old, new)

    def health(self) -> None:
        """Return when an append could succeed now, as far as can be told without one.

        Raises:
            AuditError: The store or the map of subjects cannot be locked for writing, or its latest checkpoint is not ours.
        """
        if self._closed:
            raise AuditError("the audit trail is closed")
        if self.subjects is not None:
            self.subjects.check()
        with self.connected(read_only=False) as connection, connection.attempting():
            size, note = store.head(connection)
            _insert_probe(connection, size)
        if open_checkpoint(note or "", self._verifier).size != size:
            raise AuditError("the audit trail's entries are not those of its latest checkpoint")

    def accepted_changes(self) -> tuple[str, ...]:
        """Try to change, delete, replace and misnumber an entry, and undo it; return what was not refused.

        Empty is good. Nothing is left behind: the attempts run in one transaction that is rolled back.

        Raises:
            AuditError: The store cannot be written to, so nothing can be said.
        """
        accepted: list[str] = []
        with self.connected(read_only=False) as connection, connection.attempting():
            _insert_probe(connection, store.head(connection)[0])
            for name, statement in connection.forbidden.items():
                connection.execute("SAVEPOINT attempt")
                try:
                    connection.execute(statement)
                    accepted.append(name)
                except StoreError as exc:
                    if not exc.refused:
                        raise
                connection.execute("ROLLBACK TO attempt")
        return tuple(accepted)

    def close(self) -> None:
        """Write what waits and stop; appending afterwards raises, reading does not. Harmless twice."""
        self._closed = True
        self._finalizer()

    def _writer(self) -> Writer:
        """Return this process's writer. Without a lock, because a fork may leave any lock held for ever."""
        if self._closed:
            raise AuditWriteError("the audit trail is closed; append before close()")
        writer = self._writers.get(os.getpid())
        if writer is None:
            writer = self._writers.setdefault(os.getpid(), Writer(self._place, self._signer, self._gate))
        return writer

    @contextmanager
    def connected(self, *, read_only: bool = True) -> Generator[Connection]:
        """Give a connection for one task; for `healthobs.audit` only. One for reading lets forks in between statements."""
        if read_only:
            windows = Windows(lambda: self._place.connect(read_only=True), self._gate)
            with contextlib.closing(windows):
                with windows.window():
                    self._readers.add(windows)
                try:
                    yield windows
                finally:
                    self._readers.discard(windows)
            return
        with self._gate, contextlib.closing(self._place.connect(read_only=read_only)) as connection:
            yield connection


def _insert_probe(connection: Connection, size: int) -> None:
    """Add an entry that is never to be committed."""
    connection.execute("INSERT INTO entry (idx, leaf, body) VALUES (?, ?, '{}')", (size, bytes(32)))


def _release(writers: dict[int, Writer], readers: set[Windows]) -> None:
    writer = writers.get(os.getpid())
    if writer is not None:
        writer.release()
    for windows in list(readers):
        windows.release()


def _stop(writers: dict[int, Writer]) -> None:
    writer = writers.get(os.getpid())
    if writer is not None:
        writer.stop()


def inclusion(connection: Connection, index: int, size: int | None) -> InclusionProof:
    """Return an inclusion proof from the log behind `connection`; see `AuditTrail.inclusion_proof`."""
    size = _size(connection, size)
    if 0 <= index < store.first_index(connection):
        raise ValueError("entries from the first on are no longer there; verify says whether by order")
    path = merkle.inclusion_path(index, size, store.tree(connection, size).subtree)
    (leaf,) = store.leaves(connection, index, index + 1)
    return InclusionProof(index, size, leaf, path)


def consistency(connection: Connection, old: int, new: int | None) -> ConsistencyProof:
    """Return a consistency proof from the log behind `connection`; see `AuditTrail.consistency_proof`."""
    new = _size(connection, new)
    path = merkle.consistency_path(old, new, store.tree(connection, new).subtree)
    return ConsistencyProof(old, new, path)


def _size(connection: Connection, size: int | None) -> int:
    total, _ = store.head(connection)
    if size is not None and size > total:
        raise ValueError("the size is more than the log has")
    return total if size is None else size
