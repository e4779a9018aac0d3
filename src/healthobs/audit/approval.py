"""The rule of two: whom the log itself names to approve prunings, and whether two of them did.

An entry `audit.approvers` names them. The first stands by itself; each later one is signed by two of those before
it, or names the same again, as a pruning does that takes the naming entry with it. So whoever changes the set needs two
of the set, and every change is in the log (45 CFR 164.312(c)(1); COSO 2013 principle 10).

Limits: whoever has the log's key names the first approvers, and can prune by them: name yours when the log begins, and
pin them where you verify (`healthobs audit verify --approver`), as its key is pinned. Two approvers who lose their
keys cannot be replaced: name more than two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from healthobs.audit.checkpoint import ORIGIN, NoteError, Verifier, from_base64, split
from healthobs.audit.governance import APPROVERS, PRUNE, Order, prune_order
from healthobs.audit.merkle import TILE_WIDTH
from healthobs.exceptions import RetentionError

#: Distinct keys that must sign.
NEEDED = 2
#: Why a text is not signed.
NO_ORDER = "the text is no order to prune whole tiles and no naming of approvers, so it is not signed"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_TITLE = "healthobs.example/audit-approvers/v1"


@dataclass(frozen=True, slots=True)
class Approvers:
    """Those who may approve, as of some entry.

    Args:
        vkeys: Their public keys; none when the log names nobody.
        index: The entry that names them; None when it is not in what is left of the log.
    """

    vkeys: tuple[str, ...] = ()
    index: int | None = None

    @property
    def after(self) -> str:
        """How an appointment refers to the entry that names them."""
        return "-" if self.index is None else str(self.index)

    def approve(self, note: str) -> bool:
        """Return whether two distinct keys of theirs signed `note`."""
        return distinct(vkey for vkey in self.vkeys if _signed(vkey, note)) >= NEEDED


@dataclass(frozen=True, slots=True)
class Judged:
    """What the governing entries say by the rule of two.

    Args:
        approvers: Those in force at the end.
        faults: By index, what is wrong with an entry that names approvers or prunes; such an entry counts for nothing.
    """

    approvers: Approvers
    faults: dict[int, str]


def appointment(origin: str, vkeys: Sequence[str], after: str) -> str:
    """Return the text that names approvers, which two of those sign whom the entry `after` names (``-``: none does)."""
    return "\n".join((_TITLE, origin, after, *vkeys, ""))


def text_of(note: str) -> str:
    """Return the text of an order, signed already or not.

    Raises:
        NoteError: It is a malformed note.
    """
    return split(note)[0] if "\n\n" in note else note


def is_order(text: str) -> bool:
    """Return whether a text is all of an order that approvers sign, of whichever log: to prune, or to name approvers."""
    _, origin, third = [*text.split("\n"), "", ""][:3]
    if ORIGIN.fullmatch(origin) is None:
        return False
    number = int(third) if _NUMBER.fullmatch(third) else None
    if number is not None and number >= TILE_WIDTH and text == prune_order(origin, number):
        return True
    return (number is not None or third == "-") and bool(named_in(text, origin, Approvers()))


def named_in(note: str, origin: str, before: Approvers) -> tuple[str, ...]:
    """Return whom an appointment for this log names; nobody when it is none, or not one that may follow `before`."""
    try:
        text = text_of(note)
    except NoteError:
        return ()
    lines = text.split("\n")
    after, vkeys = "".join(lines[2:3]), lines[3:-1]
    fits = text == appointment(origin, vkeys, after) and all(map(is_vkey, vkeys))
    # What the first one left follows may have been pruned
    if before.index is not None and after != before.after:
        return ()
    return tuple(vkeys) if fits and distinct(vkeys) >= NEEDED else ()


def first_kept(note: str, origin: str, approvers: Approvers) -> int:
    """Return the index that an order to prune names, once two distinct approvers signed it.

    Raises:
        RetentionError: It is no order for this log, or lacks two approvers.
    """
    if not approvers.vkeys:
        raise RetentionError("the log names no approvers; name them with healthobs audit approvers")
    try:
        text, _ = split(note)
        _, named, number, end = text.split("\n")
        below = int(number)
    except (NoteError, ValueError):
        raise RetentionError("the order is no signed note of title, origin and index") from None
    if (named, end) != (origin, "") or text != prune_order(origin, below):
        raise RetentionError("the order is for another log, or was altered")
    if not approvers.approve(note):
        raise RetentionError("the order lacks the signatures of two distinct approvers")
    return below


def judge(found: Iterable[Order], origin: str, pinned: Sequence[str] = ()) -> Judged:
    """Follow the approvers through the log, and hold each change and each pruning against those of its time.

    Args:
        found: The governing entries, oldest first.
        origin: Of the log.
        pinned: vkeys of those who must have been the first; default whomever the log names first.
    """
    force, faults = Approvers(tuple(pinned)), dict[int, str]()
    unnamed: list[Order] = []
    reach = 0
    for order in found:
        note = str(order.details.get("order"))
        if order.action == APPROVERS:
            vkeys = named_in(note, origin, force)
            same = not force.vkeys or set(vkeys) == set(force.vkeys)
            if not vkeys:
                faults[order.index] = "the entry names no approvers for this log after those before"
            elif not same and not force.approve(note):
                faults[order.index] = "the approvers were changed without two of those before"
            else:
                force = Approvers(vkeys, order.index)
        elif order.action == PRUNE:
            fault = _fault(order, note, origin, force)
            if fault is not None:
                faults[order.index] = fault
            elif force.vkeys:
                reach = max(reach, order.below)
            else:
                unnamed.append(order)
    for order in unnamed:
        if order.below >= reach:  # otherwise who approved it was pruned since, by those who may
            faults[order.index] = "the log named no approvers when it was pruned"
    return Judged(force, faults)


def _fault(order: Order, note: str, origin: str, force: Approvers) -> str | None:
    if not order.names(origin):
        return "the pruning names no order for this log and entry"
    if force.index is not None and force.index < order.below:
        return "the pruning takes the entry that names its approvers"
    if force.vkeys and not force.approve(note):
        return "the pruning lacks the signatures of two approvers that the log names"
    return None


def distinct(vkeys: Iterable[str]) -> int:
    """Return how many keys those well-formed vkeys are: one under two names, or of two kinds, is one."""
    return len({from_base64(vkey.strip().split("+", 2)[2])[1:] for vkey in vkeys})


def _signed(vkey: str, note: str) -> bool:
    try:
        Verifier(vkey).open(note)
    except NoteError:
        return False
    return True


def is_vkey(vkey: str) -> bool:
    """Return whether a text is a well-formed vkey."""
    try:
        return Verifier(vkey).vkey == vkey  # nothing around it that nobody sees
    except NoteError:
        return False
