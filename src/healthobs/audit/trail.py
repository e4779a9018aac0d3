"""The audit trail: what services append to and read from, in front of store, writer, spool and map of subjects.

An append returns when its entry is durable, under a signed checkpoint, or raises. 45 CFR 164.312(b) (audit
controls), 164.312(c) (integrity), 21 CFR 11.10(e) (time-stamped trail that changes do not obscure), PCI DSS
4.0 requirement 10.

Limits: the trail signs for itself: keep checkpoints elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from healthobs.audit import attempts, sequencing, store
from healthobs.audit.access import Access
from healthobs.audit.checkpoint import Signer, Verifier, open_checkpoint
from healthobs.audit.draft import AuditDraft
from healthobs.audit.encoding import Encoder, NoTokenError
from healthobs.audit.merging import Merging
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.reader import LogReader
from healthobs.audit.records import Receipt
from healthobs.audit.sequencing import Sequencer
from healthobs.audit.spool import Spool
from healthobs.audit.store import TAKEN, Connection, Store
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, AuditWriteError
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from healthobs.audit.cosigning import Witnesses, WitnessState
    from healthobs.audit.subjects import SubjectMap

#: How long care waits for the store, a merge of the spool included, before its entry goes to the spool.
SPOOL_AFTER_SECONDS = 2.0


class AuditTrail(LogReader):
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
        self._encoder = Encoder(service=service, clock=clock, redactor=redactor, subjects=subjects)
        super().__init__(Access(place, signer), Verifier(*signer.vkeys), self._encoder.token_of)
        #: The database file, where it is one.
        self.path: Path | None = place.path
        self.spool: Spool | None = spool
        self.vkey: str = signer.vkey
        self._timeout_seconds = timeout_seconds
        self._sequencer = Sequencer(self._access)
        self._merging = None if spool is None else Merging(spool, self._sequencer, self._encoder, signer)
        #: Who cosigns its checkpoints; set by `healthobs.audit.cosigning.Witnesses`.
        self.witnesses: Witnesses | None = None
        #: Told how many acknowledged entries of the spool could not be read; set by `healthobs.observability`.
        self.on_damage: Callable[[int], object] | None = None
        #: Told how many rows of an outbox wait for the log, while some do and when none does any more; set as `on_damage`.
        self.on_waiting: Callable[[int], object] | None = None

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
        return self._access.writer().append(self.encode(draft), self._timeout_seconds)

    def append_own(
        self, draft: Mapping[str, object], key: str | None = None, unless: str | None = None
    ) -> Receipt:
        """Record an entry of healthobs' own, by which the trail governs itself or a control reports.

        Args:
            draft: Its fields.
            key: What no other entry may have.
            unless: Another key; nothing is recorded where an entry has it by the moment of the commit.

        Raises:
            AuditWriteError: It is not recorded, because of one of the keys or of the store.
        """
        body = self._encoder.own(draft, self._timeout_seconds)
        return self._access.writer().append(body, self._timeout_seconds, key, unless)

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
        except NoTokenError:
            self.spool.add(*self._encoder.stand_in(key, draft))
            return None
        try:
            self._merge(waits, deadline)
            # The store may take it after all, later than we wait: with the key it is one entry all the same.
            return self._access.writer().append(body, max(deadline - monotonic(), 0), key)
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
        return self._sequencer.put(rows, self._timeout_seconds)

    def has(self, key: str, body: bytes) -> bool:
        """Return whether the row of an outbox or spool is in the log.

        Raises:
            AuditError: The store cannot be read.
        """
        with self.connected() as connection:
            index = store.sequenced(connection, key, leaf_hash(body))
        return index is not None and index != TAKEN

    def acceptable(self, key: str, body: bytes) -> bool:
        """Return whether a row of an outbox or spool is an entry as `encode` makes it: canonical, no reserved action."""
        return sequencing.acceptable(key, body)

    def set_aside(self, count: int) -> None:
        """Count and log rows of an outbox or spool that the log does not take; for `healthobs.audit` only."""
        self._sequencer.set_aside(count)

    @property
    def refused_rows(self) -> int:
        """Rows of an outbox or spool that were set aside in this process, see `acceptable`."""
        return self._sequencer.refused_rows

    def encode(
        self,
        draft: Mapping[str, object] | AuditDraft,
        wait_seconds: float | None = None,
        *,
        counted: bool = True,
    ) -> bytes:
        """Return the bytes of the entry that `draft` describes, as it happened here and now.

        Args:
            draft: As `append` takes it.
            wait_seconds: How long to wait for the map of subjects, where there is one; default as an append waits.
            counted: Whether what is redacted counts (`healthobs_redactions_total`); of a made-up draft it should not.

        Raises:
            AuditWriteError: The entry is malformed, or its subject gets no token.
        """
        wait_seconds = self._timeout_seconds if wait_seconds is None else wait_seconds
        return self._encoder.encode(draft, wait_seconds, "audit" if counted else "")

    def new_key(self) -> str:
        """Return a key for a row of an outbox or spool; keys are in the order of time."""
        return self._encoder.new_key()

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
        if self.spool is None:
            return self.subjects.erase(subject)
        with self.spool.merging(self._timeout_seconds, alone=True):
            if self.spool.waiting():
                raise AuditError("entries still wait in the spool, so nobody is forgotten; try again")
            return self.subjects.erase(subject)

    @property
    def subjects(self) -> SubjectMap | None:
        """The map of subjects, where there is one."""
        return self._encoder.subjects

    @property
    def witness_state(self) -> WitnessState:
        """How independent those are that cosigned lately: ``self-signed``, ``self-witnessed`` or ``witnessed``."""
        return "self-signed" if self.witnesses is None else self.witnesses.state

    def health(self) -> None:
        """Return when an append could succeed now, as far as can be told without one.

        Raises:
            AuditError: The store or the map of subjects cannot be locked for writing, or its latest checkpoint is not ours, or
                not after what this process has written.
        """
        if self.closed:
            raise AuditError("the audit trail is closed")
        if self.subjects is not None:
            self.subjects.check()
        floor = self._access.floor()  # first: the writer goes on meanwhile
        with self.changing() as connection:
            size, note = attempts.append(connection)
            latest = open_checkpoint(note or "", self._verifier)
            if latest.size != size:
                raise AuditError("the audit trail's entries are not those of its latest checkpoint")
            if floor is not None and floor.root != latest.root:
                with connection.reading():
                    extends = store.extends(connection, size, floor)
                if not extends:
                    raise AuditError("the audit trail went back: it is not what this process has written")

    def accepted_changes(self) -> tuple[str, ...]:
        """Try to change, delete, replace and misnumber an entry, and undo it; return what was not refused.

        Empty is good. Nothing is left behind: the attempts run in one transaction that is rolled back.

        Raises:
            AuditError: The store cannot be written to, so nothing can be said.
        """
        with self.changing() as connection:
            return attempts.accepted_changes(connection)

    def changing(self) -> AbstractContextManager[Connection]:
        """Give a connection for one task that may write; for `healthobs.audit` only. No fork happens meanwhile."""
        return self._access.changing()

    @property
    def closed(self) -> bool:
        """Whether `close` was called: nothing can be appended any more."""
        return self._access.closed

    def close(self) -> None:
        """Write what waits and stop; appending afterwards raises, reading does not. Harmless twice."""
        self._access.close()

    def _merge(self, wait_seconds: float, deadline: float | None = None) -> None:
        if self._merging is not None:
            self._merging.merge(wait_seconds, self.on_damage, deadline)
