"""Legal holds: what those in force keep, by entries and by every name that a subject has in the log.

A hold, like the entries it keeps, may be older than the map of subjects, or be placed without it: the same person is
then an identifier here and a token there. What cannot be told is kept.

Limits: the map is asked outside the writers' lock, where a fork must not wait; whoever acts on the answer looks again, under
the lock, whether the holds are still these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from healthobs.audit import governance, reading, store
from healthobs.audit.entry import as_recorded, is_opaque
from healthobs.audit.governance import RESERVED, Order, Range
from healthobs.audit.subjects import is_token
from healthobs.exceptions import RetentionError

if TYPE_CHECKING:
    from collections.abc import Collection

    from healthobs.audit.reader import LogReader
    from healthobs.audit.store import ReadConnection


@dataclass(frozen=True, slots=True)
class Held:
    """What the holds in force keep.

    Args:
        orders: The holds.
        subjects: Every subject that entries about theirs may have.
        tokens: Whether any token may be a held subject's, as nobody can say whose it is.
        ranges: What they name by numbers.
    """

    orders: list[Order]
    subjects: frozenset[str]
    tokens: bool
    ranges: list[Range]

    def keeps(self, index: int, subject: str | None) -> bool:
        """Return whether the entry is held for certain."""
        return subject in self.subjects or governance.covers(self.ranges, index)

    def may_keep(self, index: int, subject: str | None) -> bool:
        """Return whether the entry is held, or may be."""
        return self.keeps(index, subject) or (self.tokens and is_token(subject))

    def stays(self, index: int, body: dict[str, Any]) -> bool:
        """Return whether the body of an entry may not go: it governs the trail, or is held, or may be."""
        return body["action"] in RESERVED or self.may_keep(index, body["subject"])

    def begin_before(self, below: int) -> bool:
        """Return whether a hold, or something that it names, is in an entry before `below`."""
        return any(hold.index < below for hold in self.orders) or any(
            first < below for first, _ in self.ranges
        )


def held(trail: LogReader, found: list[Order]) -> Held:
    """Return what the holds among the governing entries `found` keep, by every name of their subjects."""
    orders = governance.holds(found)
    ranges = governance.apart(part for hold in orders for part in hold.ranges)
    named = {hold.subject for hold in orders if hold.subject is not None}
    if trail.subjects is None:
        return Held(orders, frozenset(named), not all(map(is_token, named)), ranges)
    others = [f(name) for name in named for f in (trail.token_of, trail.subjects.identifier)]
    return Held(orders, frozenset([*named, *filter(None, others)]), False, ranges)


def check_subject(trail: LogReader, subject: str) -> None:
    """Refuse a subject that a hold would keep nothing of, or that would come into the log though no entry has it.

    The first entry may be still to come of a token that the map knows, an identifier that gets one there, or an opaque one.

    Raises:
        RetentionError: It is refused; the message has nothing of it.
        AuditError: The store or the map of subjects cannot be read.
    """
    why = "no entry is about the subject; give it as entries have it (the token, where the service has a map of subjects)"
    if trail.subjects is not None:
        if not is_token(subject) or trail.token_of(subject) is not None:
            return
        why = "the map of subjects does not know the token, which must be the subject's, and no entry has it; look it up again"
    elif as_recorded(subject, governance.REDACTOR) != subject:
        raise RetentionError(
            "the subject would be recorded as another one: it is too long, or redaction finds an identifier in it;"
            " give the subject's token, or hold entries by their numbers"
        )
    elif is_opaque(subject):
        return
    with trail.connected() as connection:
        if not _about(connection, {subject}):
            raise RetentionError(f"{why}, or hold entries by their numbers")


def count(trail: LogReader, hold: Order) -> int:
    """Return how many of the entries that are there a hold keeps: those it names, and all about its subject but the trail's own."""
    kept = held(trail, [hold])
    with trail.connected() as connection:
        (size, _), there = store.head(connection), store.first_index(connection)
        about = _about(connection, kept.subjects)
    numbered = sum(max(min(last + 1, size) - max(first, there), 0) for first, last in kept.ranges)
    return numbered + sum(not governance.covers(kept.ranges, index) for index in about)


def _about(connection: ReadConnection, subjects: Collection[str]) -> set[int]:
    """Return the entries about one of the subjects, without those by which the trail governs itself."""
    if not subjects:
        return set()
    found = set(reading.about(connection, subjects))
    return found.difference(order.index for order in governance.orders(connection)) if found else found


def unrenamed(trail: LogReader, subject: str | None) -> list[Range]:
    """Return the entries that have the subject's identifier, from before there was a map.

    Their numbers go on holding them when the map has forgotten the subject.
    """
    subjects = trail.subjects
    if subjects is None or subject is None:
        return []
    identifier = subjects.identifier(subject) or subject
    if is_token(identifier):  # nobody's: recorded as it is
        return []
    found: list[Range] = []
    cursor: str | None = None
    while True:
        page = trail.read(subject=identifier, limit=1_000, cursor=cursor)
        # Of one that was tampered with no subject is shown; it was found by what its body says now.
        found += [
            (entry["index"], entry["index"])
            for entry in page.entries
            if entry.get("subject", identifier) == identifier
        ]
        cursor = page.next_cursor
        if cursor is None:
            return found


def joined(ranges: list[Range]) -> str:
    """Return ranges as an entry names them; where that is too long, close ones are joined, so that more is held."""
    gap = 1
    while True:
        wider: list[Range] = []
        for first, last in sorted(ranges):
            if wider and first - wider[-1][1] <= gap:
                wider[-1] = wider[-1][0], max(last, wider[-1][1])
            else:
                wider.append((first, last))
        text = ",".join(f"{first}-{last}" for first, last in wider)
        if len(text) <= governance.MAX_RANGES_TEXT or len(wider) == 1:
            return text
        gap *= 2
