"""The entries that controls leave in the audit trail: all states at a beginning, each change, and waivers.

A process begins with one entry of all states, `control.states_observed`; each change of state after it is the entry
`control.state_changed` (45 CFR 164.316(b)(1)(ii): what was found is kept), so the state at any moment is the last such
entry and the changes after it. One that the trail did not take at once says in `control.late_s` how many seconds before its
entry it was seen. The first repeats what was attested before and is not now, so that the gate goes on asking for it
(`healthobs.compliance.history`). A waiver that begins to count, in a process, is the entry `control.waived`, and
`control.waiver_ended` when it no longer does; the first entry lists in `control.waived` what is waived, so that an end between
two processes is recorded by the second, without whose it was. Details are words of the code, ids of controls and numbers, in
which no pattern finds anything. A list that is too long for one detail goes on in `<name>.2` and so on, and details that are
too many for one entry in the next.

Limits: without a trail nothing is recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING

from healthobs.clock import Clock
from healthobs.compliance import history
from healthobs.compliance.control import Control, Result, State
from healthobs.compliance.documents import Signed
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail

#: Characters of one detail, and details of one entry: both less than an entry takes (`healthobs.audit.entry`).
_MAX_TEXT, _MOST_DETAILS = 1_000, 60
#: Masks what the trail masks in these entries.
_REDACTOR = Redactor()


def is_kept(text: str) -> bool:
    """Return whether an id, or a list of ids, is recorded as it is: no pattern finds anything in it.

    Example:
        >>> is_kept("H-312.b"), is_kept("POL-2026-01-15")
        (True, False)
    """
    return _REDACTOR.text(text, signal="") == text


class Recorder:
    """Records what a `ControlEngine` tells of changes; each method returns the index of the entry.

    Args:
        trail: Where; None records nothing.
        service: Who acts.
        clock: Says how many days a waiver has left.
    """

    def __init__(self, trail: AuditTrail | None, service: str, clock: Clock) -> None:
        self._trail = trail
        self._service = service
        self._clock = clock

    def first(
        self,
        now: Mapping[str, State],
        once_attested: Collection[str],
        waived: Collection[str],
        late_s: int,
    ) -> int | None:
        """Record all states, what was attested before and is not now, and what is waived."""
        known = sorted(set(now.values()) - {"unknown"})
        lists = {f"control.{state}": [name for name in now if now[name] == state] for state in known}
        lists[history.ONCE_ATTESTED] = sorted(name for name in once_attested if now[name] != "attested")
        lists[history.WAIVED] = sorted(waived)
        details = [detail for name, ids in lists.items() for detail in _details(name, ids)]
        index = None
        for start in range(0, len(details) or 1, _MOST_DETAILS):
            some = dict(details[start : start + _MOST_DETAILS])
            index = self._append(history.FIRST_ACTION, None, {**some, **_late(late_s)})
        return index

    def changed(
        self, control: Control, old: State, new: State, _result: Result | None, late_s: int
    ) -> int | None:
        """Record a change of state."""
        details = {"control.old": old, "control.new": new, **_late(late_s)}
        return self._append(history.CHANGED_ACTION, control.id, details)

    def waived(self, control: Control, old: Signed | None, new: Signed | None) -> int | None:
        """Record that a waiver began, ended or was replaced."""
        details: dict[str, str | int] = {}
        said = new or old
        if said is not None:  # a number of days, as redaction takes a date for a person's
            left = date.fromisoformat(said.document.expires) - self._clock.now().date()
            details = {"control.person": said.person, "control.days_left": left.days}
        action = history.ENDED_ACTION if new is None else history.WAIVED_ACTION
        return self._append(action, control.id, details)

    def _append(self, action: str, control: str | None, details: Mapping[str, str | int]) -> int | None:
        if self._trail is None:
            return None
        return self._trail.append_own(
            {
                "action": action,
                "actor": self._service,
                "resource_type": "control",
                "resource_id": control,
                "details": details,
            }
        ).index


def _details(name: str, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield a list of ids as details that are recorded as they are: a word may tell the pattern of another that follows it."""
    text, number = "", 1
    for each in ids:
        longer = f"{text} {each}".lstrip()
        if text and (len(longer) > _MAX_TEXT or not is_kept(longer)):
            yield _numbered(name, number), text
            longer, number = each, number + 1
        text = longer
    if text:
        yield _numbered(name, number), text


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}.{number}"


def _late(seconds: int) -> dict[str, int]:
    """Say how long before its entry something was seen; no time of day, as redaction may take one for a person's."""
    return {"control.late_s": seconds} if seconds else {}
