"""What the audit trail remembers of controls: which of them somebody once attested, and whose waiver has not ended.

A process begins with one entry of all states, which repeats what the processes before it knew of that; changes after it are
entries of their own. So what was attested is known to every later process (45 CFR 164.316(b)(1)(ii)), whoever took the
document away; and so is a waiver that ended while none ran.

Limits: without a trail nothing outlives the process. What was pruned is known as far as later beginnings repeat it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail

#: All states, once a process.
FIRST_ACTION = "control.states_observed"
#: One change of state.
CHANGED_ACTION = "control.state_changed"
#: A waiver that began to count, and one that no longer does.
WAIVED_ACTION, ENDED_ACTION = "control.waived", "control.waiver_ended"
#: Details of the first: ids that were attested before and are not now, and ids that are waived.
ONCE_ATTESTED, WAIVED = "control.once_attested", "control.waived"
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
        found.update(_listed(entry, "control.attested"), _listed(entry, ONCE_ATTESTED))
    found.update(_resource(entry) for entry in _since(trail, CHANGED_ACTION, newest) if _tells(entry))
    return found - {""}


def waived(trail: AuditTrail) -> set[str]:
    """Return the ids of controls with a waiver that began and, as far as the trail tells, did not end.

    Raises:
        AuditError: The trail cannot be read.
    """
    begun: dict[str, int] = {}
    newest = -1
    for entry in reversed(trail.read(action=FIRST_ACTION, limit=_AT_ONCE).entries):
        newest = int(entry["index"])
        begun.update(dict.fromkeys(_listed(entry, WAIVED), newest))
    for entry in _since(trail, WAIVED_ACTION, newest):
        name = _resource(entry)
        begun[name] = max(begun.get(name, -1), int(entry["index"]))
    begun.pop("", None)
    if begun:
        for entry in _since(trail, ENDED_ACTION, min(begun.values())):
            if begun.get(_resource(entry), -1) < int(entry["index"]):
                begun.pop(_resource(entry), None)
    return set(begun)


def _since(trail: AuditTrail, action: str, index: int) -> Iterator[dict[str, Any]]:
    """Yield the entries of an action, newest first, to one before `index` at least."""
    cursor: str | None = None
    while True:
        page = trail.read(action=action, limit=_AT_ONCE, cursor=cursor)
        yield from page.entries
        cursor = page.next_cursor
        if cursor is None or int(page.entries[-1]["index"]) < index:
            return


def _tells(entry: dict[str, Any]) -> bool:
    return "attested" in {_details(entry).get(name) for name in ("control.old", "control.new")}


def _resource(entry: dict[str, Any]) -> str:
    resource: dict[str, Any] = entry.get("resource") or {}
    return str(resource.get("id") or "")


def _listed(entry: dict[str, Any], name: str) -> list[str]:
    """Return the ids in a detail and in those that go on with it (`healthobs.compliance.recording`)."""
    details = _details(entry)
    texts = [str(text) for key, text in details.items() if key == name or key.startswith(f"{name}.")]
    return " ".join(texts).split()


def _details(entry: dict[str, Any]) -> dict[str, Any]:
    details: dict[str, Any] = entry.get("details") or {}  # one that cannot be read has none
    return details
