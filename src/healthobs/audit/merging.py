"""From the spool into the log: whatever waits there goes first, before the next entry of the process.

A merge that is cut off comes again; by its key each entry is in the log once. Of whole lines that cannot be read an entry
tells (`audit.damage`), which waits in the spool itself and is signed there with the log's key: nobody else can make a line
of the file say it.

Limits: one thread of a process merges at a time (`healthobs.audit.turns`); several processes may.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from time import monotonic

from healthobs.audit import entry, governance
from healthobs.audit.checkpoint import Signer, Verifier
from healthobs.audit.encoding import Encoder
from healthobs.audit.forking import Process, process
from healthobs.audit.sequencing import Sequencer, acceptable
from healthobs.audit.spool import Row, Rows, Spool
from healthobs.audit.turns import Turn
from healthobs.exceptions import AuditError


class Merging:
    """Merges one spool.

    Args:
        spool: What waits.
        sequencer: Puts rows into the log.
        encoder: Settles what has a stand-in for its subject.
        signer: Signs the entry on damage.
    """

    def __init__(self, spool: Spool, sequencer: Sequencer, encoder: Encoder, signer: Signer) -> None:
        self._spool = spool
        self._sequencer = sequencer
        self._encoder = encoder
        self._signer = signer
        self._verifier = Verifier(*signer.vkeys)
        self._turns: dict[Process, Turn] = {}

    def merge(
        self, wait_seconds: float, on_damage: Callable[[int], object] | None, deadline: float | None = None
    ) -> None:
        """Put what waits in the spool into the log.

        Args:
            wait_seconds: How long to wait for another thread's merge, whoever forgets, the map of subjects and the disk, each.
            on_damage: Told how many acknowledged entries could not be read.
            deadline: Monotonic time by which it must be done, where there is one; then no merge is tried right after one
                that failed.

        Raises:
            AuditWriteError: It could not be done; what waits stays.
        """
        if not self._spool.waiting():
            return
        here = process()
        turn = self._turns.get(here) or self._turns.setdefault(here, Turn())
        with turn.taken(wait_seconds, insists=deadline is None), self._spool.merging(wait_seconds):
            if self._spool.waiting() and self._merge_once(wait_seconds, on_damage, deadline):
                self._merge_once(wait_seconds, on_damage, deadline)  # the entry that says what was lost

    def _merge_once(
        self, wait_seconds: float, on_damage: Callable[[int], object] | None, deadline: float | None
    ) -> bool:
        """Merge; return whether acknowledged entries turned out to be lost."""
        lost: list[int] = []

        def damaged(lines: int) -> Row:
            lost.append(lines)
            return self.damaged(lines, wait_seconds)

        try:
            self._spool.merge(
                lambda rows: self._sequence(rows, wait_seconds, deadline),
                self._mergeable,
                self._sequencer.set_aside,
                damaged,
            )
        finally:
            if lost and on_damage is not None:
                on_damage(lost[0])
        return bool(lost)

    def damaged(self, lines: int, wait_seconds: float) -> Row:
        """Return the entry that says how much was lost, its key signed."""
        draft = {"action": governance.DAMAGE, "actor": "healthobs", "outcome": "failed"}
        key = self._encoder.new_key()
        body = self._encoder.own({**draft, "details": {"lines": lines}}, wait_seconds)
        signatures = self._signer.lines(governance.damage_statement(self._signer.name, key, body))
        return f"{key}+{base64.urlsafe_b64encode(signatures.encode()).decode()}", body

    def _sequence(self, rows: Rows, wait_seconds: float, deadline: float | None) -> Rows:
        """Put rows of the spool into the log, each under its key alone, so that no signature makes one entry two.

        Returns:
            Those whose key has another entry.
        """
        settled = [
            self._encoder.settled(row, wait_seconds if deadline is None else max(deadline - monotonic(), 0))
            for row in rows
        ]
        receipts = self._sequencer.put(settled, wait_seconds, deadline)
        return [row for row, receipt in zip(rows, receipts, strict=True) if receipt is None]

    def _mergeable(self, key: str, body: bytes) -> bool:
        """Return whether a row of the spool is acceptable, or an entry on damage that this trail's key signed."""
        if acceptable(key, body):
            return True
        stem, _, signatures = key.partition("+")
        if entry.action_of(body) != governance.DAMAGE:
            return False
        text = governance.damage_statement(self._signer.name, stem, body)
        try:
            lines = base64.b64decode(signatures, altchars=b"-_", validate=True).decode()
            return self._verifier.open(f"{text}\n{lines}") == text
        except (ValueError, AuditError):
            return False
