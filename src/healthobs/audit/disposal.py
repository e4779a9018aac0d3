"""Takes away what is on record to be erased or pruned, and leaves what is under a hold by now.

The order is an entry first (`healthobs.audit.retention`), so a crash between leaves one to carry out again and never a gap
without one. It happens under the writers' lock, where no hold can come in between (45 CFR 164.316(b)(2)(i)).

Limits: those of `healthobs.audit.retention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from healthobs.audit import approval, governance, holds
from healthobs.audit.entry import decode
from healthobs.audit.governance import Order
from healthobs.audit.holds import Held
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.store import Connection, ReadConnection, entries, first_index, number, stored_bytes
from healthobs.exceptions import AuditTamperedError

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail


def carry_out(trail: AuditTrail) -> tuple[set[int], int]:
    """Carry out every erasure and pruning that is on record.

    Returns:
        Entries that were to be erased and stay because of a hold, and the first entry that is kept.

    Raises:
        AuditError: The store cannot be written to, or not by this role; or who is held cannot be told from the map.
    """
    with trail.connected() as connection:
        held = holds.held(trail, governance.orders(connection))
    while True:
        with trail.changing() as connection, connection.amending():
            found = governance.orders(connection)
            if governance.holds(found) == held.orders:
                return _erased(connection, found, held), _pruned(connection, found, held, trail.origin)
        # Another hold came: the map is asked before the lock, never under it, where no fork may happen.
        held = holds.held(trail, found)


def _erased(connection: Connection, found: list[Order], held: Held) -> set[int]:
    """Erase bodies; return the entries whose bodies stay."""
    stays: set[int] = set()
    for first, last in governance.erased(found):
        rows = list(bodies(connection, first, last + 1))
        kept = {index for index, body in rows if held.stays(index, body)}
        going = [(index,) for index, _ in rows if index not in kept]
        connection.insert("UPDATE entry SET body = NULL WHERE idx = ?", going)
        stays |= kept
    return stays


def _pruned(connection: Connection, found: list[Order], held: Held, origin: str) -> int:
    """Prune as far as may be; return the first entry that is kept."""
    there = first_index(connection)
    faults = approval.judge(found, origin).faults
    wanted = {order.below for order in found if order.below > there and order.index not in faults}
    below = next(
        (index for index in sorted(wanted, reverse=True) if _prunable(connection, held, index)), there
    )
    connection.execute("DELETE FROM entry WHERE idx < ?", (below,))
    connection.execute("DELETE FROM checkpoint WHERE size < ?", (below,))
    return below


def _prunable(connection: ReadConnection, held: Held, below: int) -> bool:
    return not held.begin_before(below) and not any(
        held.may_keep(index, body["subject"]) for index, body in bodies(connection, 0, below)
    )


def bodies(connection: ReadConnection, start: int, end: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return the entries [start, end) whose bodies are still there.

    Raises:
        AuditTamperedError: One of them is not what its leaf says.
    """
    for found, leaf, body in entries(connection, start - 1, end - 1):
        index, stored = number(found), stored_bytes(body)
        if stored is not None:
            said = decode(stored)
            if said is None or leaf_hash(stored) != leaf:
                raise AuditTamperedError("the body is not what was recorded", index=index)
            yield index, said
