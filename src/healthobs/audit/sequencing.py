"""Rows of an outbox or spool on their way into the log: which are acceptable, and each once, in their order.

Whoever may write to the outbox's table or the spool's file could otherwise plant what governs the trail (PCI DSS 4.0
requirement 10.3), or hold up everybody's rows with one of theirs.

Limits: only the form of an entry can be told, not who wrote the row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import monotonic

from healthobs.audit import entry, governance
from healthobs.audit.access import Access
from healthobs.audit.records import Receipt
from healthobs.audit.spool import Row
from healthobs.audit.writer import MAX_BATCH
from healthobs.exceptions import AuditWriteError

_logger = logging.getLogger("healthobs")


class Sequencer:
    """Puts rows into one log."""

    def __init__(self, access: Access) -> None:
        self._access = access
        #: Rows that were set aside in this process.
        self.refused_rows: int = 0

    def put(
        self, rows: Sequence[Row], wait_seconds: float, deadline: float | None = None
    ) -> list[Receipt | None]:
        """Put rows into the log, in this order; one whose key is in it already stays as it is.

        Args:
            rows: Key and bytes of each.
            wait_seconds: How long to wait for the disk, for each batch.
            deadline: Monotonic time by which all must be done, where there is one; no batch then waits beyond it.

        Returns:
            Receipts; None for a row whose key has another entry.

        Raises:
            AuditWriteError: One of them is not durable, and all may be handed over again.
        """
        writer, receipts = self._access.writer(), list[Receipt | None]()
        for start in range(0, len(rows), MAX_BATCH):
            left = wait_seconds if deadline is None else deadline - monotonic()
            if left <= 0:
                raise AuditWriteError("the audit store did not take the spooled entries in time")
            receipts += writer.append_all(rows[start : start + MAX_BATCH], left)
        return receipts

    def set_aside(self, count: int) -> None:
        """Count and log rows that the log does not take."""
        self.refused_rows += count
        _logger.error("audit_rows_refused", extra={"count": count})


def acceptable(key: str, body: bytes) -> bool:
    """Return whether a row is an entry that an application may record: canonical bytes, no reserved action."""
    action = entry.action_of(body)
    return key.isascii() and key.isprintable() and action is not None and action not in governance.RESERVED
