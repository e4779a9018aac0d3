"""Probes of how long entries are kept: for as long as the service says, and is anything gone that should not be?

45 CFR 164.316(b)(2)(i) (six years), PCI DSS 4.0 requirement 10.5.1 (twelve months), 18 U.S.C. 1519 and a company's policy (seven
years). What went is in the log as an order, so its age is told by the entries around it (`healthobs.audit.removal`).

Limits: which logs are documentation, and which entries are about money once their bodies are gone, is not seen from here. A log that
is younger than the period shows that nothing went from it, not that nothing will.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from healthobs.compliance.control import Outcome, ProbeContext
from healthobs.compliance.probes_audit import NO_TRAIL
from healthobs.exceptions import AuditError

if TYPE_CHECKING:
    from healthobs.audit.removal import Kept, Removal, Removals
    from healthobs.audit.trail import AuditTrail

#: Days by which the times of entries may be out of their order: some waited in a spool.
_SLACK_DAYS = 1
_DAY_SECONDS = 86_400


class Looks:
    """What is gone from the trail, read once for all the controls that look at it."""

    def __init__(self) -> None:
        self._removals: Removals | None = None

    def __call__(self, trail: AuditTrail) -> Kept:
        """Look."""
        if self._removals is None:
            from healthobs.audit.removal import Removals  # keeps cryptography out of `import healthobs`

            self._removals = Removals()
        return self._removals.look(trail)


class Retained:
    """Look at what the service states, and at what is gone: each entry by an order, after its time, and under no hold.

    Args:
        looks: What is gone.
        days: Least age of what may go.
        stated: Least days that the service may state (`Settings.audit_retention_days`); default `days`.
        others: Least age of what this is not about, and which may have been that; default `days`.
    """

    def __init__(
        self, looks: Looks, days: int, *, stated: int | None = None, others: int | None = None
    ) -> None:
        self._looks = looks
        self._days = days
        self._stated = days if stated is None else stated
        self._others = days if others is None else others

    def __call__(self, context: ProbeContext) -> Outcome:
        """Look."""
        trail = context.audit
        if trail is None:
            return NO_TRAIL
        try:
            kept = self._looks(trail)
        except AuditError as exc:
            return Outcome("fail", f"what is kept cannot be read ({type(exc).__name__})")
        faults = self._faults(kept)
        stated = context.settings.audit_retention_days
        if stated < self._stated:
            faults.append(f"the service states {stated} days, which are less than {self._stated}")
        if faults:
            return Outcome("fail", "; ".join(faults), kept.size)
        if kept.since is None:
            return Outcome("unknown", "the trail has no entry that can be read", kept.size)
        now = context.clock.now()
        text = f"the first entry that can be read is {int((now - kept.since).total_seconds() // _DAY_SECONDS)} days old"
        undated = sum(not self._was_due(removal) for removal in kept.removals)
        if undated:
            lacking = f"the age of what went by {undated} of {len(kept.removals)} orders"
            return Outcome("partial", text, kept.size, (lacking,))
        went = f"{len(kept.removals)} removals, each in its time" if kept.removals else "nothing went"
        return Outcome("pass", f"{text}; {went}", kept.size)

    def _faults(self, kept: Kept) -> list[str]:
        early = sum(self._was_early(removal) for removal in kept.removals)
        held = sum(removal.held for removal in kept.removals)
        return [
            text
            for count, text in (
                (kept.missing, f"{kept.missing} entries are missing, and no order says so"),
                (early, f"{early} removals took entries before their time"),
                (held, f"{held} removals took entries that a hold keeps or that govern the trail"),
            )
            if count
        ]

    def _was_early(self, removal: Removal) -> bool:
        return removal.most_days is not None and removal.most_days < self._others - _SLACK_DAYS

    def _was_due(self, removal: Removal) -> bool:
        return removal.least_days is not None and removal.least_days >= self._days - _SLACK_DAYS
