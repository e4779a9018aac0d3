"""Entries by which the trail governs itself: changes of key, approvers, holds, erasures, prunings, a damaged spool.

They are ordinary entries under ordinary proofs, so nothing that they allow can be claimed afterwards. Their
actions are reserved: `AuditTrail.append` refuses them, `healthobs.audit.retention` and the opening write them.

Limits: they are found by scan. Ranges are inclusive, as ``0-4,7``. What is longer than an entry can be is none.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeGuard, cast

from healthobs.audit.entry import MAX_BODY
from healthobs.audit.merkle import TILE_HEIGHT, TILE_WIDTH, inclusion_path, leaf_hash, verify_inclusion
from healthobs.audit.records import Checkpoint
from healthobs.audit.store import HIGHEST, ReadConnection, stored_bytes, tree
from healthobs.exceptions import AuditTamperedError
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY, HOLD, RELEASE, ERASE, PRUNE = "audit.key", "audit.hold", "audit.release", "audit.erase", "audit.prune"
#: Names those who may approve prunings; see `healthobs.audit.approval`.
APPROVERS = "audit.approvers"
#: Whole lines of the spool could not be read: so many acknowledged entries are only in the copy of it, if at all.
DAMAGE = "audit.damage"
RESERVED = frozenset({KEY, HOLD, RELEASE, ERASE, PRUNE, APPROVERS, DAMAGE})
#: Details of these entries; they hold no free text, and a mark in them would break what they are for.
DETAILS = ("vkey", "previous", "hold", "ranges", "below", "order", "lines")
#: Lets these details pass; `reason` is still redacted.
REDACTOR = Redactor(allowed_keys=DETAILS)
#: Ranges in one entry; the text of a detail is cut at 1,024 characters.
MAX_RANGES_TEXT = 1_000
#: No entry's number has as many.
_MAX_DIGITS = 20

_TITLE = "healthobs.example/audit-prune-order/v1"
_DAMAGE_TITLE = "healthobs.example/audit-spool-damage/v1"

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Order:
    """One governing entry.

    Args:
        index: Its position.
        action: One of `RESERVED`.
        subject: The subject that a hold is about.
        details: The rest, as recorded.
        leaf: Hash of the entry; none when it is not of a log.
    """

    index: int
    action: str
    subject: str | None
    details: Mapping[str, Any]
    leaf: bytes = b""

    @property
    def ranges(self) -> list[Range]:
        """The entries that it is about; none when it names none."""
        return parse_ranges(str(self.details.get("ranges") or ""))

    @property
    def below(self) -> int:
        """The first entry that a pruning keeps; 0 when it is none."""
        value = self.details.get("below")
        return value if self.action == PRUNE and _is_whole(value) and value <= self.index else 0

    def names(self, origin: str) -> bool:
        """Return whether the signed order in a pruning is one for this log and just that first entry.

        Nothing is rounded here. The first entry can be 0: such an order takes nothing away.
        """
        text = str(self.details.get("order")).partition("\n\n")[0] + "\n"
        below = self.details.get("below")
        return (
            self.action == PRUNE
            and _is_whole(below)
            and 0 <= below <= self.index
            and below % TILE_WIDTH == 0
            and text == prune_order(origin, below)
        )

    @property
    def vkeys(self) -> tuple[str, ...]:
        """The keys that it vouches for."""
        return tuple(str(self.details[name]) for name in ("vkey", "previous") if self.details.get(name))


def prune_order(origin: str, below: int) -> str:
    """Return the text that approvers sign: title, log and first entry to keep, a multiple of 256."""
    return f"{_TITLE}\n{origin}\n{whole_tiles(below)}\n"


def whole_tiles(below: int) -> int:
    """Return the first entry that is kept when all before `below` are to go: rounded down to a multiple of 256."""
    return below >> TILE_HEIGHT << TILE_HEIGHT


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def damage_statement(origin: str, key: str, body: bytes) -> str:
    """Return the text that the log's key signs, so that the spool may hold an entry on its own damage."""
    return f"{_DAMAGE_TITLE}\n{origin}\n{key}\n{sha256(body).hexdigest()}\n"


def orders(connection: ReadConnection, start: int = 0, last: int = HIGHEST) -> list[Order]:
    """Return the governing entries from `start` to `last` whose bodies are what their leaves say, oldest first."""
    rows = connection.execute(
        "SELECT idx, leaf, body FROM entry WHERE idx >= ? AND idx <= ? AND body LIKE ? AND length(body) <= ? ORDER BY idx",
        (start, last, '%"action":"audit.%', MAX_BODY),
    )
    found = (order_of(index, leaf, stored_bytes(body)) for index, leaf, body in rows)
    return [order for order in found if order is not None]


def order_of(index: object, leaf: object, stored: bytes | None) -> Order | None:
    """Return what an entry as it was read says of the trail itself; None when it is no governing one, or not what its leaf says."""
    if stored is None or len(stored) > MAX_BODY or not isinstance(index, int):
        return None
    if not isinstance(leaf, bytes) or leaf_hash(stored) != leaf:
        return None
    try:
        entry = cast("dict[str, Any]", json.loads(stored))
        action, subject, details = entry["action"], entry["subject"], entry["details"]
    except (
        ValueError,
        LookupError,
        TypeError,
        RecursionError,
    ):  # whoever can write the database can write anything
        return None
    named = isinstance(action, str) and action in RESERVED and (subject is None or isinstance(subject, str))
    if not named or not isinstance(details, dict):
        return None
    return Order(index, action, subject, cast("dict[str, Any]", details), leaf)


def is_signed(connection: ReadConnection, order: Order, signed: Checkpoint) -> bool:
    """Return whether a governing entry is under the root of a checkpoint, which somebody else must have opened."""
    if order.index >= signed.size:
        return False
    try:
        path = inclusion_path(order.index, signed.size, tree(connection, signed.size).subtree)
    except AuditTamperedError:
        return False
    return verify_inclusion(order.leaf, order.index, signed.size, path, signed.root)


def erased(found: Iterable[Order]) -> list[Range]:
    """Return the entries whose bodies were ordered to go, each order for entries before it only, as `apart`."""
    return apart(
        (first, min(last, order.index - 1))
        for order in found
        if order.action == ERASE
        for first, last in order.ranges
    )


def apart(ranges: Iterable[Range]) -> list[Range]:
    """Return what is in the ranges in as few as there can be, ascending."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        elif first <= last:
            found.append((first, last))
    return found


def covers(ranges: Sequence[Range], index: int) -> bool:
    """Return whether one of the ranges, as `apart` gives them, has the entry."""
    place = bisect_right(ranges, index, key=lambda part: part[0])
    return place > 0 and index <= ranges[place - 1][1]


def holds(found: Iterable[Order]) -> list[Order]:
    """Return the holds in force: those placed and not released since."""
    placed: dict[str, Order] = {}
    for order in found:
        name = str(order.details.get("hold"))
        if order.action == HOLD:
            placed[name] = order
        elif order.action == RELEASE:
            placed.pop(name, None)
    return list(placed.values())


def parse_ranges(text: str) -> list[Range]:
    """Return the ranges in `text`; malformed parts count for nothing.

    Example:
        >>> parse_ranges("0-4,7,x")
        [(0, 4), (7, 7)]
    """
    pairs = (part.partition("-") for part in text.split(","))
    return [
        (int(first), int(last or first))
        for first, _, last in pairs
        if first.isdecimal() and (not last or last.isdecimal()) and max(len(first), len(last)) < _MAX_DIGITS
    ]


def format_ranges(indices: Iterable[int]) -> Iterator[str]:
    """Return texts of ranges that together name the ascending `indices`, each short enough for one entry.

    Example:
        >>> list(format_ranges([0, 1, 2, 3, 4, 7]))
        ['0-4,7']
    """
    ranges: list[list[int]] = []
    for index in indices:
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    text = ""
    for first, last in ranges:
        part = str(first) if first == last else f"{first}-{last}"
        if text and len(text) + len(part) >= MAX_RANGES_TEXT:
            yield text
            text = ""
        text += f",{part}" if text else part
    if text:
        yield text
