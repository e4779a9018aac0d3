"""Whose turn it is to merge the spool: one thread of a process at a time, and none right after a failure.

Every request that finds entries in the spool would otherwise hand all of them over again, to a store that is down.

Limits: one process; what two of them hand over at once is in the log once all the same, by its key.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from time import monotonic

from healthobs.exceptions import AuditWriteError

#: How long after a failed merge care goes straight to the spool.
BACK_OFF_SECONDS = 5.0


class Turn:
    """The turn of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failures = 0
        self._failed_at: float | None = None

    @contextmanager
    def taken(self, timeout_seconds: float, *, insists: bool) -> Generator[None]:
        """Give the turn for one merge.

        Args:
            timeout_seconds: How long to wait for another thread's merge.
            insists: Try again however lately a merge failed; one that failed while we waited counts as ours.

        Raises:
            AuditWriteError: It is not to be had, or what the merge raises.
        """
        failures = self._failures
        lately = self._failed_at is not None and monotonic() - self._failed_at < BACK_OFF_SECONDS
        if lately and not insists:
            raise AuditWriteError("the audit store did not take the spooled entries just now")
        if not self._lock.acquire(timeout=timeout_seconds):
            raise AuditWriteError("the audit store is still taking the spooled entries")
        try:
            if self._failures != failures:
                raise AuditWriteError("the audit store did not take the spooled entries just now")
            try:
                yield
            except BaseException:
                self._failures += 1
                self._failed_at = monotonic()
                raise
            self._failed_at = None
        finally:
            self._lock.release()
