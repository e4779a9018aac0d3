"""What is no longer in the log: by whose order, how old it can have been, and what is missing without one.

An entry whose body is gone has no time. But entries are in the order of time, so it is no older than the last before it that
can be read, and no younger than the first behind it. Ages are as of the order (45 CFR 164.316(b)(2)(i), PCI DSS 10.5.1).

Limits: entries of a spool come later than their times say, so ages are right to within a day at best. Before the first entry that
is left nothing bounds an age from above; of several prunings the last is judged, as what bounds the others went with it. Holds that
were released since are not known.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from healthobs.audit import governance, holds, store
from healthobs.audit.governance import Order, Range
from healthobs.audit.merkle import leaf_hash

if TYPE_CHECKING:
    from healthobs.audit.store import ReadConnection
    from healthobs.audit.trail import AuditTrail

#: How many neighbours are looked at for one that can be read.
_NEIGHBOURS = 16
#: Entries in the run that each look draws.
_DRAWN = 256
_DAY_SECONDS = 86_400


class Removal(NamedTuple):
    """Entries that went by one order.

    Args:
        first: The first of them.
        last: The last of them.
        least_days: None of them was younger than that when it was ordered to go; None when nothing says so.
        most_days: None of them was older; None when nothing says so.
        held: A hold that is in force, and was when it was ordered, keeps one of them; or an erasure names one by which the trail
            governs itself, as far as it is there or was seen.
    """

    first: int
    last: int
    least_days: float | None
    most_days: float | None
    held: bool


class Kept(NamedTuple):
    """What one look saw.

    Args:
        size: Entries that the log has had.
        since: Time of the first that can be read; None when there is none.
        removals: What went by order, as far as the orders are left or this object has seen them.
        missing: Entries that are not there, or not readable, and no order says so: the beginning, and in a run of 256 that was
            drawn.
    """

    size: int
    since: datetime | None
    removals: tuple[Removal, ...]
    missing: int


class Removals:
    """Looks at a trail now and then; orders are read once, later looks read what came since and a run that is drawn."""

    def __init__(self) -> None:
        self._begin("")

    def _begin(self, origin: str) -> None:
        self._origin = origin
        self._orders: list[Order] = []
        self._next = 0
        #: What was judged, by order and range; what was not carried out yet is looked at again.
        self._judged: dict[tuple[int, Range], Removal] = {}

    def look(self, trail: AuditTrail) -> Kept:
        """Return what is gone from the trail by now.

        Raises:
            AuditError: The store or the map of subjects cannot be read.
        """
        with trail.connected() as connection:
            size = self._catch_up(trail, connection)
            there = store.first_index(connection)
            going = [
                (order, part, gone, _ages(connection, order, gone))
                for order, part in self._parts(there)
                if (order.index, part) not in self._judged and (gone := _gone(connection, part, there))
            ]
            since = _next_time(connection, there, size)
            missing = self._missing(trail, connection)
        for order, part, gone, ages in going:
            self._judged[order.index, part] = Removal(*gone, *ages, self._held(trail, order, gone))
        return Kept(size, since, tuple(self._judged.values()), missing)

    def _catch_up(self, trail: AuditTrail, connection: ReadConnection) -> int:
        """Read the orders that came since, and return how many entries there are by now."""
        size, _ = store.head(connection)
        if trail.origin != self._origin or size < self._next:
            self._begin(trail.origin)  # another log, or an earlier state of this one
        self._orders += governance.orders(connection, self._next, size - 1)
        self._next = size
        return size

    def _parts(self, there: int) -> list[tuple[Order, Range]]:
        """Return what was ordered to go, but for what a later pruning took the neighbours of."""
        pruned = max((order.below for order in self._orders if order.below <= there), default=0)
        last = [order for order in self._orders if order.below == pruned > 0][-1:]
        parts = [(order, (0, pruned - 1)) for order in last]
        return parts + [
            (order, part)
            for order in self._orders
            for part in governance.erased([order])
            if part[1] >= there and part[0] <= part[1]
        ]

    def _held(self, trail: AuditTrail, order: Order, gone: Range) -> bool:
        """Return whether a hold in force that was placed before the order keeps what is gone, or it governed the trail."""
        if order.action == governance.ERASE and any(gone[0] <= one.index <= gone[1] for one in self._orders):
            return True
        before = [hold for hold in governance.holds(self._orders) if hold.index < order.index]
        if not before:
            return False
        return order.subject in holds.held(trail, before).subjects or any(
            first <= gone[1] and gone[0] <= last for hold in before for first, last in hold.ranges
        )

    def _missing(self, trail: AuditTrail, connection: ReadConnection) -> int:
        with connection.reading():  # orders and what went by them, as of one moment
            size, there = self._catch_up(trail, connection), store.first_index(connection)
            start = max(there, random.randrange(max(size - _DRAWN, 0) + 1))  # noqa: S311 - a sample, not a secret
            end = min(start + _DRAWN, size)
            rows = connection.execute(
                "SELECT idx, body IS NULL FROM entry WHERE idx >= ? AND idx < ?", (start, end)
            )
        pruned = max((order.below for order in self._orders if order.below <= there), default=0)
        erased = governance.erased(self._orders)
        without = sum(not governance.covers(erased, index) for index, is_bare in rows if is_bare)
        return there - pruned + end - start - len(rows) + without


def _gone(connection: ReadConnection, part: Range, there: int) -> Range | None:
    """Return the first and the last entry of a range whose bodies are not there; None when all are."""
    if part[0] < there:
        return part[0], min(part[1], there - 1)
    ((first, last),) = connection.execute(
        "SELECT min(idx), max(idx) FROM entry WHERE idx >= ? AND idx <= ? AND body IS NULL", part
    )
    return None if first is None else (first, last)


def _ages(connection: ReadConnection, order: Order, gone: Range) -> tuple[float | None, float | None]:
    """Return the least and the greatest age in days that what is gone can have had when it was ordered to go."""
    ordered = _next_time(connection, order.index, order.index + 1)
    after = _next_time(connection, gone[1] + 1, order.index + 1)
    rows = connection.execute(
        "SELECT leaf, body FROM entry WHERE idx < ? AND body IS NOT NULL ORDER BY idx DESC LIMIT ?",
        (gone[0], _NEIGHBOURS),
    )
    return _days(after, ordered), _days(_first_time(rows), ordered)


def _days(earlier: datetime | None, later: datetime | None) -> float | None:
    return None if earlier is None or later is None else (later - earlier).total_seconds() / _DAY_SECONDS


def _next_time(connection: ReadConnection, start: int, end: int) -> datetime | None:
    """Return the time of the first entry of [start, end) that can be read."""
    rows = connection.execute(
        "SELECT leaf, body FROM entry WHERE idx >= ? AND idx < ? AND body IS NOT NULL ORDER BY idx LIMIT ?",
        (start, end, _NEIGHBOURS),
    )
    return _first_time(rows)


def _first_time(rows: Iterable[store.Row]) -> datetime | None:
    for leaf, body in rows:
        stored = store.stored_bytes(body)
        if stored is not None and leaf_hash(stored) == leaf:
            with contextlib.suppress(ValueError, LookupError, TypeError):  # anybody may have written anything
                return datetime.fromisoformat(json.loads(stored)["time"])
    return None
