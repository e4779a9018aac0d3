"""What the audit trail remembers of controls: which of them somebody once attested.

A process begins with one entry of all states, which repeats what the processes before it knew of that; changes after it are
entries of their own. So what was attested is known to every later process (45 CFR 164.316(b)(1)(ii)), whoever took the
document away.

Limits: without a trail nothing outlives the process. What was pruned is known as far as later beginnings repeat it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail

#: All states, once a process.
FIRST_ACTION = "control.states_observed"
#: One change of state.
CHANGED_ACTION = "control.state_changed"
#: Detail of the first: ids that were attested before and are not now.
ONCE_ATTESTED = "control.once_attested"
_AT_ONCE = 1_000


def once_attested(trail: AuditTrail) -> set[str]:
    """Return the ids of controls that were attested at some time, as far as the trail tells.

    Raises:
        AuditError: The trail cannot be read.
    """
    found: set[str] = set()
    newest = -1
    # Processes begin side by side, and one may not know yet what another knew
    for entry in trail.read(action=FIRST_ACTION, limit=_AT_ONCE).entries:
        newest = max(newest, int(entry["index"]))
        details = _details(entry)
        found.update(*(str(details.get(name, "")).split() for name in ("control.attested", ONCE_ATTESTED)))
    cursor: str | None = None
    while True:
        page = trail.read(action=CHANGED_ACTION, limit=_AT_ONCE, cursor=cursor)
        found.update(str(entry["resource"]["id"]) for entry in page.entries if _tells(entry))
        cursor = page.next_cursor
        if cursor is None or int(page.entries[-1]["index"]) < newest:
            return found


def _tells(entry: dict[str, Any]) -> bool:
    states = {_details(entry).get(name) for name in ("control.old", "control.new")}
    resource: dict[str, Any] = entry.get("resource") or {}
    return "attested" in states and bool(resource.get("id"))


def _details(entry: dict[str, Any]) -> dict[str, Any]:
    details: dict[str, Any] = entry.get("details") or {}  # one that cannot be read has none
    return details
