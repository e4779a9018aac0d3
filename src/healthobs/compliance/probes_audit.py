"""Probes of the audit trail: does it record and prove, is it whole, does it refuse changes, does it name who acted?

45 CFR 164.312(a)(2)(i), (b) and (c), 21 CFR 11.10(b) and (c), PCI DSS 4.0 requirement 10.3. Canary entries carry the reserved subject and action.

Limits: what is verified is held against checkpoints that this process has seen, and those that witnesses have; one that
does not answer holds up the round for the time-out of its client (`healthobs.audit.cosigning`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from healthobs.compliance.control import CANARY_ACTION, CANARY_SUBJECT, Outcome, ProbeContext
from healthobs.compliance.history import FIRST_ACTION
from healthobs.exceptions import AuditError, AuditTamperedError

if TYPE_CHECKING:
    from healthobs.audit.merkle import CompactRange
    from healthobs.audit.records import Checkpoint, Verification
    from healthobs.audit.trail import AuditTrail

NO_TRAIL = Outcome("unknown", "no audit trail is configured", unset=True)
#: How long a canary entry of any process stands for all that share the trail.
CANARY_SECONDS = 300
#: After how long the whole trail is verified again.
FULL_SECONDS = 3600
_READ_BACK = 50
_SHOWN = 3
_DRAWN = 16
_COPIED = 8
_LOOKED_AT = 1000
#: Who stands for everybody: blanks, and marks of redaction alone.
_NOBODY = re.compile(r"(?:\s|\[PHI:[a-z_]{1,32}\])*")


def canary(**details: str) -> dict[str, object]:
    """Return the draft of a canary entry."""
    return {
        "action": CANARY_ACTION,
        "actor": "healthobs",
        "actor_kind": "system",
        "subject": CANARY_SUBJECT,
        "details": details,
    }


class Recording:
    """Append a canary, read it back, and check its inclusion against the signed checkpoint.

    Processes that share a trail share its canary: one that another of them appended lately is read and proved in place of
    an own, and that this process could append is tried without leaving anything; while the spool has something waiting, which an
    append merges first, none is. How old it is, is told by its time and by how
    long this process has known it, so that a wall clock that stands still keeps no canary young.
    """

    def __init__(self) -> None:
        self._known: tuple[int, int] | None = None

    def __call__(self, context: ProbeContext) -> Outcome:
        """Append or look, then prove."""
        trail = context.audit
        if trail is None:
            return NO_TRAIL
        try:
            index = self._recent(trail, context)
            if index is None:
                index = trail.append(canary()).index
                self._known = index, context.clock.monotonic_ns()
            entry = _read_back(trail, index)
            if entry is None:
                return Outcome("fail", "the canary entry was acknowledged but cannot be read back")
            checkpoint = trail.checkpoint()
            proof = trail.inclusion_proof(index, checkpoint.size)
        except (AuditError, ValueError) as exc:
            return Outcome("fail", f"recording or proving the canary entry raised {type(exc).__name__}")
        if proof.leaf != _leaf(entry):
            return Outcome("fail", "the canary entry that is read is not the one that was recorded")
        if not proof.verify(checkpoint.root):
            return Outcome("fail", "the canary entry's inclusion proof does not lead to the signed root")
        return Outcome("pass", f"entry {index} is under the signed checkpoint", checkpoint.size)

    def _recent(self, trail: AuditTrail, context: ProbeContext) -> int | None:
        """Return the newest canary, when it is recent."""
        newest = next(iter(trail.read(subject=CANARY_SUBJECT, action=CANARY_ACTION, limit=1).entries), None)
        if newest is None or newest.get("unreadable"):
            return None
        try:
            age = (context.clock.now() - datetime.fromisoformat(newest["time"])).total_seconds()
        except (LookupError, ValueError, TypeError):  # none of ours
            return None
        now_ns = context.clock.monotonic_ns()
        if self._known is None or self._known[0] != newest["index"]:
            self._known = newest["index"], now_ns
        known_s = (now_ns - self._known[1]) / 1e9
        recent = 0 <= age < CANARY_SECONDS and known_s < CANARY_SECONDS
        return self._known[0] if recent and _could_append(trail) else None


def _could_append(trail: AuditTrail) -> bool:
    """Say whether this process could append; what waits in the spool goes first, which nothing but an append tries."""
    if trail.spool is not None and trail.spool.waiting():
        return False
    try:
        trail.health()
    except AuditError:
        return False
    return True


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
    """Read entries drawn at random over the whole trail, hash them, and prove each against the signed checkpoint.

    Of one that was erased by order, order and leaf are proved; what was pruned by order is not drawn.
    """
    trail = context.audit
    if trail is None:
        return NO_TRAIL
    try:
        checkpoint = trail.checkpoint()
        kept = range(trail.pruned(), checkpoint.size)
        drawn = random.sample(kept, min(_DRAWN, len(kept)))
        unread = [index for index in drawn if not _is_sound(trail, index, checkpoint)]
        erased = _erased(trail, unread)
        pruned = trail.pruned() if unread else 0  # it may have come since
    except (AuditError, ValueError) as exc:
        return Outcome("fail", f"drawing entries raised {type(exc).__name__}")
    bad = sum(index not in erased and index >= pruned for index in unread)
    if bad:
        return Outcome("fail", f"of {len(drawn)} entries drawn {bad} are not as recorded", len(drawn))
    if not drawn:
        return Outcome("unknown", "the trail has no entry to draw", 0)
    text = f"{len(drawn) - len(unread)} of {len(kept)} entries were read and match"
    if erased:
        text += f"; the leaves of {len(erased)} that were erased by order are in their place"
    return Outcome("pass", text, len(drawn))


def copies_entries(context: ProbeContext) -> Outcome:
    """Copy a run of entries in each form that is handed out, and hold every copy against what was recorded and signed.

    One that was erased by order is no longer copied.
    """
    trail = context.audit
    if trail is None:
        return NO_TRAIL
    from healthobs.audit.copies import unfaithful  # keeps cryptography out of `import healthobs`

    try:
        first, size = trail.pruned(), trail.checkpoint().size
        start = random.randrange(first, max(size - _COPIED, first) + 1)  # noqa: S311 - a sample, not a secret
        end = min(start + _COPIED, size)
        bad = unfaithful(trail, start, end - 1)
        erased = trail.erased_by(bad)
        pruned = trail.pruned() if bad else 0  # it may have come since
    except (AuditError, ValueError) as exc:
        return Outcome("fail", f"copying entries raised {type(exc).__name__}")
    bad = {index for index in bad if index not in erased and index >= pruned}
    if bad:
        return Outcome("fail", f"of {end - start} entries copied {len(bad)} are not as recorded", end - start)
    if end - start == len(erased):
        return Outcome("unknown", "there was no entry to copy", 0)
    text = (
        f"{end - start - len(erased)} entries were copied as JSON, CSV, AuditEvent and tlog-proof, and match"
    )
    return Outcome("pass", text, end - start)


def _is_sound(trail: AuditTrail, index: int, checkpoint: Checkpoint) -> bool:
    entry = next(iter(trail.read(cursor=str(index + 1), limit=1).entries), None)
    if entry is None or entry["index"] != index or entry.get("unreadable"):
        return False
    proof = trail.inclusion_proof(index, checkpoint.size)
    return proof.leaf == _leaf(entry) and proof.verify(checkpoint.root)


def _erased(trail: AuditTrail, unread: list[int]) -> set[int]:
    """Return which of them went by an order; leaf and order must be under the signed root."""
    ordered = trail.erased_by(unread)
    checkpoint = trail.checkpoint()  # the order may have come since

    def proved(index: int) -> bool:
        return trail.inclusion_proof(index, checkpoint.size).verify(checkpoint.root)

    return {index for index, order in ordered.items() if proved(index) and proved(order)}


def names_actors(context: ProbeContext) -> Outcome:
    """Look at the newest entries about a person: each that was answered must name who acted."""
    if context.audit is None:
        return NO_TRAIL
    try:
        entries = context.audit.read(limit=_LOOKED_AT).entries
    except AuditTamperedError as exc:
        return Outcome("fail", str(exc))
    answered = [
        entry
        for entry in entries
        if entry["outcome"] == "ok"
        and entry.get("subject") not in (None, CANARY_SUBJECT)
        and entry["action"] != CANARY_ACTION
    ]
    lacking = sum(not _actor(entry) for entry in answered)
    of = f"{len(answered)} answered entries about a person"
    if lacking:
        return Outcome("fail", f"{lacking} of {of} lack their actor", len(answered))
    if not answered:
        return Outcome(
            "unknown", f"of the newest {len(entries)} entries none is an answered one about a person", 0
        )
    return Outcome("pass", f"each of {of} names its actor", len(answered))


#: Kinds of event (PCI DSS 10.2.1) that entries tell by themselves, and those that only the service can name.
_KINDS: tuple[tuple[str, Callable[[dict[str, Any]], bool]], ...] = (
    ("access to data (10.2.1.1)", lambda entry: entry["outcome"] == "ok" and _is_access(entry)),
    ("what administrators do to the trail (10.2.1.2)", lambda entry: _governs(entry["action"])),
    ("access to the audit trail (10.2.1.3)", lambda entry: entry["action"] == "audit.read"),
    ("refused attempts (10.2.1.4)", lambda entry: entry["outcome"] == "denied"),
    ("beginnings of the log (10.2.1.6)", lambda entry: entry["action"] == FIRST_ACTION),
)
_NAMELESS = ("changes of credentials (10.2.1.5)", "system-level objects (10.2.1.7)")


def records_events(context: ProbeContext) -> Outcome:
    """Look at the newest entries: each that was answered names who, and which kinds of event are among them."""
    if context.audit is None:
        return NO_TRAIL
    newest = context.audit.read(limit=_LOOKED_AT).entries
    entries = [entry for entry in newest if not entry.get("unreadable") and entry["action"] != CANARY_ACTION]
    theirs = [entry for entry in entries if not entry["action"].startswith("control.")]
    lacking = sum(entry["outcome"] == "ok" and not _actor(entry) for entry in theirs)
    if lacking:
        return Outcome("fail", f"{lacking} of {len(theirs)} entries lack their actor", len(theirs))
    if not theirs:
        return Outcome("unknown", f"of the newest {len(newest)} entries none is of somebody's doing", 0)
    missing = [name for name, is_one in _KINDS if not any(map(is_one, entries))]
    seen = len(_KINDS) - len(missing)
    text = f"no field lacks in {len(theirs)} entries, and {seen} of seven kinds of event are among them"
    return Outcome("partial", text, len(theirs), (*missing, *_NAMELESS))


def _governs(action: str) -> bool:
    return action.startswith("audit.") and action != "audit.read"


def _is_access(entry: dict[str, Any]) -> bool:
    resource: dict[str, Any] = entry.get("resource") or {}
    return bool(entry.get("subject") or resource.get("id")) and not entry["action"].startswith(
        ("control.", "audit.")
    )


def reaches_in_emergencies(context: ProbeContext) -> Outcome:
    """Look at the spool that care under break-glass goes on against, and at each such use: it must have its reason."""
    from healthobs.audit.draft import CARE

    trail = context.audit
    if trail is None:
        return NO_TRAIL
    if trail.spool is None or context.settings.audit_policy != "spool":
        return Outcome("unknown", "no spool is configured, so care under break-glass stops with the store")
    try:
        trail.spool.check()
    except AuditError:
        return Outcome("fail", "the spool cannot be used, so care under break-glass stops with the store")
    entries = trail.read(limit=_LOOKED_AT).entries
    uses = [entry for entry in entries if entry.get("purpose") in CARE and entry["outcome"] == "ok"]
    lacking = sum(not entry["reason"] for entry in uses)
    if lacking:
        return Outcome("fail", f"{lacking} of {len(uses)} uses of break-glass have no reason", len(uses))
    text = f"the spool can be used, and {len(uses)} uses of break-glass have their reason"
    return Outcome("partial", text, len(uses), ("a review of each use",))


def _actor(entry: dict[str, Any]) -> str | None:
    """Return who acted; None where that is blank, or was masked whole, so that it is the same for everybody."""
    actor: dict[str, str | None] = entry.get("actor") or {}
    name = actor.get("id")
    return None if name is None or _NOBODY.fullmatch(name) else name


class Integrity:
    """Ask the witnesses; verify every entry, checkpoint and guard, and that the trail extends what was verified before.

    All of it at first and every `FULL_SECONDS`; in between what came since, the guards, and that the rest still is under the
    root that was verified. Keeps that root in memory, outside the reach of whoever can write the file: a trail that was
    put back to an earlier state, checkpoints and all, does not extend it. ``partial`` until a witness of another
    administrative domain cosigned lately: whoever has the signing key could have rewritten what only the service signed.
    """

    def __init__(self) -> None:
        #: Origin, tree and note of what was verified, and when all of it was.
        self._seen: tuple[str, CompactRange, str, int] | None = None
        #: The first entry that was there then.
        self._first = 0

    def __call__(self, context: ProbeContext) -> Outcome:
        """Verify."""
        trail = context.audit
        if trail is None:
            return NO_TRAIL
        seen = self._seen if self._seen is not None and self._seen[0] == trail.origin else None
        now_ns = context.clock.monotonic_ns()
        try:
            if trail.witnesses is not None:
                trail.witnesses.ask()
                if trail.witnesses.contradicted:
                    named = ", ".join(trail.witnesses.contradicted)
                    return Outcome(
                        "fail", f"witnesses hold another or a later history of this trail: {named}"
                    )
            due = seen is None or now_ns - seen[3] >= FULL_SECONDS * 10**9
            # Pruned: only all of it says by whose order
            if seen is None or due or trail.first_index() != self._first:
                verification, how = self._whole(trail, seen, now_ns)
            else:
                verification, how = self._since(trail, seen)
        except AuditError as exc:
            self._seen = seen and (*seen[:3], now_ns - FULL_SECONDS * 10**9)  # whole, next time
            return Outcome("fail", f"the trail cannot be verified ({type(exc).__name__})")
        if not verification.ok:
            self._seen = seen and (*seen[:3], now_ns - FULL_SECONDS * 10**9)
            named = "; ".join(str(problem) for problem in verification.problems[:_SHOWN])
            return Outcome("fail", f"{len(verification.problems)} problems: {named}", verification.size)
        text = f"{how}; {trail.witness_state}"
        if trail.witness_state != "witnessed":
            lacking = f"a witness of another administrative domain: the trail is {trail.witness_state}"
            return Outcome("partial", text, verification.size, (lacking,))
        return Outcome("pass", text, verification.size)

    def _whole(
        self, trail: AuditTrail, seen: tuple[str, CompactRange, str, int] | None, now_ns: int
    ) -> tuple[Verification, str]:
        note = trail.checkpoint().note
        verification = trail.verify(known=() if seen is None else (seen[2],))
        if verification.ok:
            tree = trail.tree(verification.first + verification.size)
            if tree.root() == verification.root:
                self._seen, self._first = (trail.origin, tree, note, now_ns), verification.first
        against = "no earlier checkpoint was known" if seen is None else "and against an earlier checkpoint"
        return verification, f"every entry and checkpoint verified, {against}"

    def _since(self, trail: AuditTrail, seen: tuple[str, CompactRange, str, int]) -> tuple[Verification, str]:
        verification, tree = trail.verify_since(seen[1])
        if tree is not None:
            self._seen = seen[0], tree, trail.checkpoint().note, seen[3]
        return (
            verification,
            f"{verification.size} entries since the last round verified, after {seen[1].size} verified before",
        )


def notices_refusals(context: ProbeContext) -> Outcome:
    """End a call whose entry the trail refuses: it must not be answered, and must raise the alarm."""
    if context.audit is None:
        return NO_TRAIL
    if context.rehearse is None:
        return Outcome("unknown", "no application is bound, so no call can be ended")
    seen = context.rehearse()
    if seen.answered:
        policy = context.settings.audit_policy
        return Outcome("fail", f"what could not be recorded is answered: the policy is {policy}")
    lacking = [part for part, there in (("counted", seen.counted), ("logged", seen.told)) if not there]
    if lacking:
        return Outcome("fail", f"what could not be recorded was denied, but not {' nor '.join(lacking)}")
    return Outcome("pass", "what could not be recorded was denied, counted and logged")


def refuses_changes(context: ProbeContext) -> Outcome:
    """Try to update, delete, replace and misnumber an entry on a connection of its own, and undo it."""
    if context.audit is None:
        return NO_TRAIL
    try:
        accepted = context.audit.accepted_changes()
    except AuditTamperedError as exc:
        return Outcome("fail", str(exc))
    if accepted:
        return Outcome("fail", f"not refused: {', '.join(accepted)}", len(accepted))
    return Outcome("pass", "update, delete, replace and misnumbering of an entry were refused")
