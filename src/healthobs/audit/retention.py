"""How long entries are kept, and how they go: minimum periods, legal hold, erasure, pruning.

*Erase* takes bodies away and leaves their leaves, so that every proof still holds; *prune* takes all below an
index away and keeps the nodes above (C2SP tlog-tiles, "Pruning"). Both wait for the minimum period of each
record class (45 CFR 164.316(b)(2)(i): six years; PCI DSS 10.5.1: twelve months; the longest that applies wins)
and for legal holds; a pruning needs an order signed by two distinct approvers whom the log itself names
(`healthobs.audit.approval`). Each is first an entry, then done, so that a crash between leaves an order to carry out (`apply`) and never a gap without one.

Limits: whoever has the log's key names the first approvers. Times are those in the entries. What is erased may stay in old pages of the disk and in backups. On
PostgreSQL only the owner of the tables can erase and prune. Not legal advice: the periods are yours to set.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from healthobs.audit import approval, disposal, governance, holds, store
from healthobs.audit.approval import Approvers
from healthobs.audit.checkpoint import NoteError, Signer
from healthobs.audit.entry import MAX_REASON, as_recorded
from healthobs.audit.governance import RESERVED, Order, Range, prune_order
from healthobs.audit.holds import Held
from healthobs.audit.merkle import TILE_WIDTH
from healthobs.audit.records import Receipt
from healthobs.clock import Clock
from healthobs.exceptions import AuditWriteError, RetentionError

if TYPE_CHECKING:
    from healthobs.audit.reader import LogReader
    from healthobs.audit.store import ReadConnection
    from healthobs.audit.trail import AuditTrail

#: A detail's text is cut at that.
_MAX_ORDER = 1_024
_NO_HOLD = "no hold of that name is in force; healthobs audit hold and the file lists them"


@dataclass(frozen=True, slots=True)
class RecordClass:
    """Entries that must be kept for a time.

    Args:
        name: For messages.
        days: Minimum period in days from the time of the entry.
        actions: Patterns of actions (``payment.*``) that belong to it.
    """

    name: str
    days: int
    actions: tuple[str, ...] = ("*",)


#: HIPAA documentation: 6 years; cards: 12 months; money: 7 years, a company policy and no rule of SOX.
DEFAULT_CLASSES = (
    RecordClass("hipaa", 2_192),
    RecordClass("pci", 365),
    RecordClass("finance", 2_557, ("payment.*", "transaction.*", "refund.*")),
)


class RetentionReader:
    """What retention says of one trail as it is; needs no private key, and writes nothing.

    Args:
        trail: The trail, or a copy of one that is only read (`healthobs.audit.opening.open_reader`).
        classes: Record classes; of those that apply to an entry the longest period wins.
        clock: Says how old entries are; default the system's.
    """

    def __init__(
        self,
        trail: LogReader,
        classes: Sequence[RecordClass] = DEFAULT_CLASSES,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._log = trail
        self._classes = classes
        self._clock = clock or Clock()

    def holds(self) -> list[Order]:
        """Return the holds in force."""
        with self._log.connected() as connection:
            return governance.holds(governance.orders(connection))

    def entries_held(self, name: str) -> int:
        """Return how many entries the hold of that name keeps by now; more may come.

        Raises:
            RetentionError: No hold of that name is in force.
            AuditError: The store or the map of subjects cannot be read.
        """
        for hold in self.holds():
            if str(hold.details.get("hold")) == name:
                return holds.count(self._log, hold)
        raise RetentionError(_NO_HOLD)

    def approvers(self) -> Approvers:
        """Return those whom the log names to approve prunings."""
        with self._log.connected() as connection:
            return self._judged(governance.orders(connection)).approvers

    def appointment(self, vkeys: Sequence[str]) -> str:
        """Return the text that names approvers, which two of those before sign when there are any.

        Args:
            vkeys: Public keys of the approvers to be, at least two.
        """
        return approval.appointment(self._log.origin, vkeys, self.approvers().after)

    def order(self, below: int) -> str:
        """Return the text of an order to prune all entries before `below`, rounded down to a whole tile.

        Raises:
            RetentionError: The log has not that many entries, or they are no whole tile, or are gone already.
        """
        if not 0 < below <= self._log.checkpoint().size:
            raise RetentionError("the log has no such entry; name one that is kept")
        if below < TILE_WIDTH:
            raise RetentionError("a pruning takes whole tiles of 256 entries; name an entry from 256 on")
        with self._log.connected() as connection:
            _check_there(connection, governance.whole_tiles(below))
        return prune_order(self._log.origin, below)

    def prunable(self, order: str) -> int:
        """Return the first entry that a pruning by `order` would keep, once all that `Retention.prune` asks for is there.

        Raises:
            RetentionError: The order is not this log's, takes no whole tile that is there or lacks two approvers, or an entry
                is too young or held.
            AuditTamperedError: An entry that would go is not what was recorded.
        """
        return self._examined(order)[1]

    def _examined(self, order: str) -> tuple[Approvers, int]:
        if len(order) > _MAX_ORDER:
            raise RetentionError("the order is too long for an entry; keep the signatures of two approvers")
        with self._log.connected() as connection:
            found = governance.orders(connection)
            approvers = self._judged(found).approvers
            below = approval.first_kept(order, self._log.origin, approvers)
            # As the entry will be judged that records it
            entry = Order(store.head(connection)[0], governance.PRUNE, None, {"below": below, "order": order})
            if not below or not entry.names(self._log.origin):
                raise RetentionError("the order names no whole tile that the log has; make another")
            _check_there(connection, below)
            held = holds.held(self._log, found)
            self._check(disposal.bodies(connection, 0, below), held, erasing=False)
        if held.begin_before(below):
            raise RetentionError("a hold in force was placed in an entry that would go; release it first")
        return approvers, below

    def _judged(self, found: list[Order]) -> approval.Judged:
        return approval.judge(found, self._log.origin)

    def _check(
        self, entries: Iterable[tuple[int, dict[str, Any]]], held: Held, *, erasing: bool = True
    ) -> None:
        now = self._clock.now()
        for index, body in entries:
            if erasing and body["action"] in RESERVED:
                raise RetentionError(f"entry {index} governs the trail and is never erased")
            if held.keeps(index, body["subject"]):
                raise RetentionError(f"entry {index} is under legal hold")
            if held.may_keep(index, body["subject"]):
                raise RetentionError(
                    f"entry {index} may be under legal hold: a hold does not name its subject by token;"
                    " open the trail with its map of subjects"
                )
            kept = max(
                (kept for kept in self._classes if _belongs(kept, body["action"])),
                key=lambda kept: kept.days,
                default=None,
            )
            if kept and datetime.fromisoformat(body["time"]) + timedelta(days=kept.days) > now:
                raise RetentionError(
                    f"entry {index} is of class {kept.name} and must be kept {kept.days} days"
                )


class Retention(RetentionReader):
    """Retention of one trail.

    Args:
        trail: The trail, opened with its key.
        classes: Record classes; of those that apply to an entry the longest period wins.
        clock: Says how old entries are; default the system's.

    Example:
        >>> retention = Retention(trail)
        >>> retention.hold("case-17", actor="counsel-2", reason="litigation", subject="s-17").index
        1
    """

    def __init__(
        self,
        trail: AuditTrail,
        classes: Sequence[RecordClass] = DEFAULT_CLASSES,
        *,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(trail, classes, clock=clock)
        self._trail = trail

    def hold(
        self,
        name: str,
        *,
        actor: str,
        reason: str,
        subject: str | None = None,
        entries: Range | None = None,
    ) -> Receipt:
        """Keep entries from being erased or pruned until the hold is released.

        Args:
            name: What the hold is called, kept as it is; placing it again replaces it.
            actor: Who places it.
            reason: Why.
            subject: Entries about this subject, also those to come; where the trail has a map, the identifier will do,
                and entries from before the map are held by their numbers. Where it has none, as entries have it.
            entries: First and last entry, besides those about the subject; they may be still to come.

        Raises:
            RetentionError: Neither subject nor entries are named, or the entries are no range or there no more, or the name would
                be recorded as another one: it is too long, no valid Unicode, or redaction finds an identifier in it. Or no
                entry has the subject, no map knows it, and it is not opaque; or it, too, would be recorded as another one.
            AuditError: It cannot be recorded, or the map of subjects cannot be asked; nothing is held.
        """
        _check_range(entries)
        if len(name) > MAX_REASON or (
            not name.isascii() and name != name.encode("utf-8", "replace").decode()
        ):
            raise RetentionError("the name of a hold must be valid Unicode of at most 1,024 characters")
        if as_recorded(name, governance.REDACTOR, MAX_REASON) != name:
            raise RetentionError(
                "the name of a hold is kept as it is, and redaction finds an identifier in this one; take another"
            )
        if subject is None and entries is None:
            raise RetentionError("a hold names a subject or entries; without them it would hold nothing")
        if entries is not None and entries[1] < self._trail.first_index():
            raise RetentionError("the log no longer has any of these entries, so that they cannot be held")
        if subject is not None:
            holds.check_subject(self._trail, subject)
        ranges = holds.unrenamed(self._trail, subject) + ([] if entries is None else [entries])
        details = {"hold": name} | ({"ranges": holds.joined(ranges)} if ranges else {})
        return self._record(governance.HOLD, actor, reason, details, subject)

    def release(self, name: str, *, actor: str, reason: str) -> Receipt:
        """Release a hold.

        Raises:
            RetentionError: No hold of that name is in force.
        """
        if name not in {str(order.details.get("hold")) for order in self.holds()}:
            raise RetentionError(_NO_HOLD)
        return self._record(governance.RELEASE, actor, reason, {"hold": name})

    def erase(
        self, *, actor: str, reason: str, subject: str | None = None, entries: Range | None = None
    ) -> tuple[int, ...]:
        """Take the bodies of entries away; their leaves and every proof stay.

        Args:
            actor: Who erases.
            reason: Why.
            subject: Entries about this subject; where the trail has a map, the identifier will do.
            entries: First and last entry; with `subject`, only its entries among them.

        Returns:
            The entries that were erased; none when nothing matched.

        Raises:
            RetentionError: One of them is too young, held, or governs the trail; then none is erased.
            AuditTamperedError: An entry that was looked at is not what was recorded; then none is erased.
            AuditError: The store or the map of subjects cannot be used; then none is erased. Or, with SQLite in WAL mode,
                somebody reads on what was before; done again once that ended, or by `apply`, it is overwritten.
        """
        _check_range(entries)
        first, last = entries or (0, 2**62)
        if subject is None and entries is None:
            raise RetentionError("an erasure names a subject or entries")
        with self._trail.connected() as connection:
            found = governance.orders(connection)
            rows = disposal.bodies(connection, first, last + 1)
            about = {subject, self._trail.token_of(subject)} - {None}
            chosen = [
                (index, body)
                for index, body in rows
                if not about or (body["subject"] in about and body["action"] not in RESERVED)
            ]
        self._check(chosen, holds.held(self._trail, found))
        indices = tuple(index for index, _ in chosen)
        for text in governance.format_ranges(indices):
            self._record(governance.ERASE, actor, reason, {"ranges": text}, subject)
        again = any(  # it may have been read on when it was erased, and is overwritten now
            order.subject in about if about else _meets(order, first, last)
            for order in found
            if order.action == governance.ERASE
        )
        if indices or again:
            stays, _ = disposal.carry_out(self._trail)
            if not stays.isdisjoint(indices):
                first = min(stays.intersection(indices))
                raise RetentionError(f"entry {first} came under legal hold meanwhile, and stays")
        return indices

    def appoint(self, note: str, *, actor: str, reason: str) -> Receipt:
        """Name those who may approve prunings, from now on and in place of those before.

        Args:
            note: The text of `appointment`; signed by two of those before (`approve`) when there are any.
            actor: Who records it.
            reason: Why.

        Raises:
            RetentionError: It names fewer than two keys, is too long, not for this log or not for after those before,
                or lacks the signatures of two of them.
        """
        before = self.approvers()
        if not approval.named_in(note, self._trail.origin, before):
            raise RetentionError(
                "the appointment is not for this log as it is now, or names fewer than two keys"
            )
        if before.vkeys and not before.approve(note):
            raise RetentionError("the appointment lacks the signatures of two approvers that the log names")
        if len(note) > _MAX_ORDER:
            raise RetentionError("the appointment is too long for an entry; name fewer approvers")
        return self._name(note, before, actor, reason)

    def prune(self, order: str, *, actor: str, reason: str, dry_run: bool = False) -> int:
        """Take away every entry before the index that a signed order names.

        Args:
            order: The text of `order`, signed by two approvers (`approve`).
            actor: Who carries it out.
            reason: Why.
            dry_run: Check everything and take nothing away.

        Returns:
            The first entry that is kept.

        Raises:
            RetentionError: The order is not this log's, takes no whole tile that is there or lacks two approvers, or an entry
                is too young or held.
            AuditTamperedError: An entry that would go is not what was recorded.
            AuditError: The latest checkpoint is not this log's, or the store cannot be used. Or, with SQLite in WAL mode, somebody
                reads on what was before; done again once that ended, it is overwritten before the order is refused.
        """
        if not dry_run and self._took(order):
            disposal.carry_out(self._trail)  # what somebody read on when it went is overwritten
        approvers, below = self._examined(order)
        if not dry_run:
            if (approvers.index or 0) < below:
                again = approval.appointment(self._trail.origin, approvers.vkeys, approvers.after)
                approvers = Approvers(approvers.vkeys, self._name(again, approvers, actor, reason).index)
            for previous in self._unvouched(below):
                details = {"vkey": self._trail.vkey, "previous": previous}
                self._record(governance.KEY, actor, reason, details)
            ordered = {"below": below, "order": order}
            with self._of(approvers):
                self._record(governance.PRUNE, actor, reason, ordered, None, _key(approvers))
            if disposal.carry_out(self._trail)[1] < below:
                raise RetentionError("a hold came meanwhile; nothing was pruned")
        return below

    def apply(self) -> None:
        """Carry out every erasure and pruning that is on record; harmless when all were.

        What is under a hold by now stays, and so does what a pruning would take whose order is not this log's and
        signed by two of the approvers.

        Raises:
            AuditError: The store cannot be written to, or not by this role; or who is held cannot be told from the map.
        """
        disposal.carry_out(self._trail)

    def _unvouched(self, below: int) -> list[str]:
        """Return the keys that only entries before `below` vouch for, each of them under the root that is signed now.

        So what is vouched for again the log's key vouches for already, and nothing that somebody wrote past it.
        """
        latest = self._trail.checkpoint()
        with self._trail.connected() as connection:
            found = [
                order
                for order in governance.orders(connection)
                if order.action == governance.KEY and governance.is_signed(connection, order, latest)
            ]
        named = {vkey: order.index for order in found for vkey in order.vkeys}  # the last that does
        return [vkey for vkey, last in named.items() if last < below and vkey != self._trail.vkey]

    def _took(self, order: str) -> bool:
        """Return whether entries went by this very order."""
        with self._trail.connected() as connection:
            there = store.first_index(connection)
            return any(
                0 < found.below <= there and found.details.get("order") == order
                for found in governance.orders(connection)
            )

    def _name(self, note: str, before: Approvers, actor: str, reason: str) -> Receipt:
        """Record an appointment, the only one after `before`: of two that were made at once the second is refused."""
        details = {"order": note}
        draft = {"action": governance.APPROVERS, "actor": actor, "reason": reason, "details": details}
        with self._of(before):
            return self._trail.append_own(draft, _key(before))

    @contextmanager
    def _of(self, approvers: Approvers) -> Generator[None]:
        """Say of an entry that was refused that others were named meanwhile, where that is why."""
        try:
            yield
        except AuditWriteError:
            if self.approvers().index == approvers.index:
                raise
            raise RetentionError(
                "approvers were named meanwhile; look who they are, and begin again"
            ) from None

    def _record(
        self,
        action: str,
        actor: str,
        reason: str,
        details: dict[str, Any],
        subject: str | None = None,
        unless: str | None = None,
    ) -> Receipt:
        draft = {
            "action": action,
            "actor": actor,
            "reason": reason,
            "details": details,
            "subject": subject,
        }
        return self._trail.append_own(draft, None, unless)


def approve(order: str, approver: Signer) -> str:
    """Return an order, signed already or not, with the signature of one more approver.

    Raises:
        RetentionError: It is no order to prune whole tiles, nor to name approvers; nothing else is signed.
    """
    try:
        text = approval.text_of(order)
    except NoteError:
        raise RetentionError(approval.NO_ORDER) from None
    if not approval.is_order(text):
        raise RetentionError(approval.NO_ORDER)
    return (order if "\n\n" in order else f"{order}\n") + approver.lines(text)


def _meets(order: Order, first: int, last: int) -> bool:
    return any(start <= last and first <= end for start, end in order.ranges)


def _belongs(kept: RecordClass, action: str) -> bool:
    return any(fnmatchcase(action, pattern) for pattern in kept.actions)


def _key(before: Approvers) -> str:
    """Return the key of the only appointment after `before`; no row of an outbox or spool may have such a key."""
    return f"{governance.APPROVERS}\n{before.after}"


def _check_there(connection: ReadConnection, below: int) -> None:
    there = store.first_index(connection)
    if below <= there:
        raise RetentionError(f"entries before {there} are gone already; name a later entry")


def _check_range(entries: Range | None) -> None:
    if entries is not None and not 0 <= entries[0] <= entries[1] < store.HIGHEST:
        raise RetentionError("entries are named by the first and the last, such as 0 and 99")
