"""Probes of the audit trail: does it record and prove, is it whole, does it refuse changes, does it name who acted?

45 CFR 164.312(a)(2)(i), (b) and (c), 21 CFR 11.10(c), PCI DSS 4.0 requirement 10.3. Canary entries carry the reserved subject and action.

Limits: what is verified is held against checkpoints that this process has seen; witnesses' count as far as they
were asked (`healthobs.audit.cosigning`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from healthobs.compliance.control import CANARY_ACTION, CANARY_SUBJECT, Outcome, ProbeContext
from healthobs.exceptions import AuditError

if TYPE_CHECKING:
    from healthobs.audit.records import Checkpoint
    from healthobs.audit.trail import AuditTrail

NO_TRAIL = Outcome("unknown", "no audit trail is configured")
_READ_BACK = 50
_SHOWN = 3
_DRAWN = 16
_LOOKED_AT = 1000


def canary(**details: str) -> dict[str, object]:
    """Return the draft of a canary entry."""
    return {
        "action": CANARY_ACTION,
        "actor": "healthobs",
        "actor_kind": "system",
        "subject": CANARY_SUBJECT,
        "details": details,
    }


def records_and_proves(context: ProbeContext) -> Outcome:
    """Append a canary, read it back, and check its inclusion against the signed checkpoint."""
    trail = context.audit
    if trail is None:
        return NO_TRAIL
    try:
        receipt = trail.append(canary())
        entry = _read_back(trail, receipt.index)
        if entry is None:
            return Outcome("fail", "the canary entry was acknowledged but cannot be read back")
        checkpoint = trail.checkpoint()
        proof = trail.inclusion_proof(receipt.index, checkpoint.size)
    except (AuditError, ValueError) as exc:
        return Outcome("fail", f"recording or proving the canary entry raised {type(exc).__name__}")
    if proof.leaf != _leaf(entry):
        return Outcome("fail", "the canary entry that is read is not the one that was recorded")
    if not proof.verify(checkpoint.root):
        return Outcome("fail", "the canary entry's inclusion proof does not lead to the signed root")
    return Outcome("pass", f"entry {receipt.index} is under the signed checkpoint", checkpoint.size)


def _read_back(trail: AuditTrail, index: int) -> dict[str, Any] | None:
    page = trail.read(subject=CANARY_SUBJECT, action=CANARY_ACTION, limit=_READ_BACK)
    return next((entry for entry in page.entries if entry["index"] == index), None)


def _leaf(entry: dict[str, Any]) -> bytes:
    """Return the leaf of an entry as read, computed here and not taken from the store."""
    from healthobs.audit.entry import canonical
    from healthobs.audit.merkle import leaf_hash

    body = {name: value for name, value in entry.items() if name not in ("index", "hash")}
    return leaf_hash(canonical(body).encode())


def samples_entries(context: ProbeContext) -> Outcome:
    """Read entries drawn at random over the whole trail, hash them, and prove each against the signed checkpoint."""
    trail = context.audit
    if trail is None:
        return NO_TRAIL
    try:
        checkpoint = trail.checkpoint()
        drawn = random.sample(range(checkpoint.size), min(_DRAWN, checkpoint.size))
        bad = [index for index in drawn if not _is_sound(trail, index, checkpoint)]
    except (AuditError, ValueError) as exc:
        return Outcome("fail", f"drawing entries raised {type(exc).__name__}")
    if bad:
        return Outcome("fail", f"of {len(drawn)} entries drawn {len(bad)} are not as recorded", len(drawn))
    return Outcome("pass", f"{len(drawn)} of {checkpoint.size} entries were read and match", len(drawn))


def _is_sound(trail: AuditTrail, index: int, checkpoint: Checkpoint) -> bool:
    (entry,) = trail.read(cursor=str(index + 1), limit=1).entries
    proof = trail.inclusion_proof(index, checkpoint.size)
    return not entry.get("unreadable") and proof.leaf == _leaf(entry) and proof.verify(checkpoint.root)


def names_actors(context: ProbeContext) -> Outcome:
    """Look at the newest entries about a person: each that was answered must name who acted."""
    if context.audit is None:
        return NO_TRAIL
    entries = context.audit.read(limit=_LOOKED_AT).entries
    about = [entry for entry in entries if entry.get("subject") not in (None, CANARY_SUBJECT)]
    lacking = sum(entry["outcome"] == "ok" and not _actor(entry) for entry in about)
    if lacking:
        return Outcome(
            "fail", f"{lacking} of {len(about)} entries about a person lack their actor", len(about)
        )
    if not about:
        return Outcome("unknown", f"none of the newest {len(entries)} entries is about a person", 0)
    return Outcome("pass", f"each of {len(about)} entries about a person names its actor", len(about))


def _actor(entry: dict[str, Any]) -> str | None:
    actor: dict[str, str | None] = entry.get("actor") or {}
    return actor.get("id")


class Integrity:
    """Verify every entry, checkpoint and guard, and that the trail extends what was verified before.

    Keeps the last verified checkpoint in memory, outside the reach of whoever can write the file: a trail that
    was put back to an earlier state, checkpoints and all, does not extend it.
    """

    def __init__(self) -> None:
        self._seen: tuple[str, str] | None = None

    def __call__(self, context: ProbeContext) -> Outcome:
        """Verify."""
        trail = context.audit
        if trail is None:
            return NO_TRAIL
        if trail.witnesses is not None and trail.witnesses.contradicted:
            named = ", ".join(trail.witnesses.contradicted)
            return Outcome("fail", f"witnesses hold another or a later history of this trail: {named}")
        known = (self._seen[1],) if self._seen is not None and self._seen[0] == trail.origin else ()
        try:
            note = trail.checkpoint().note
            verification = trail.verify(known=known)
        except AuditError as exc:
            return Outcome("fail", f"the trail cannot be verified ({type(exc).__name__})")
        if not verification.ok:
            named = "; ".join(str(problem) for problem in verification.problems[:_SHOWN])
            return Outcome("fail", f"{len(verification.problems)} problems: {named}", verification.size)
        self._seen = trail.origin, note
        against = "and against an earlier checkpoint" if known else "no earlier checkpoint was known"
        return Outcome(
            "pass",
            f"every entry and checkpoint verified, {against}; {trail.witness_state}",
            verification.size,
        )


def refuses_changes(context: ProbeContext) -> Outcome:
    """Try to update, delete, replace and misnumber an entry on a connection of its own, and undo it."""
    if context.audit is None:
        return NO_TRAIL
    accepted = context.audit.accepted_changes()
    if accepted:
        return Outcome("fail", f"not refused: {', '.join(accepted)}", len(accepted))
    return Outcome("pass", "update, delete, replace and misnumbering of an entry were refused")
