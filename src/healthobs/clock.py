"""The two clocks of one measurement, injectable so that tests and twin runs can fix them.

A span, a histogram sample, a log line and an audit entry of one call share one pair of readings: the
wall clock says when, the monotonic clock says how long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall time and monotonic time, both in integer nanoseconds.

    Args:
        wall_ns: Nanoseconds since the Unix epoch (UTC).
        monotonic_ns: Nanoseconds from an arbitrary origin; never goes back.
    """

    wall_ns: Callable[[], int] = time.time_ns
    monotonic_ns: Callable[[], int] = time.perf_counter_ns

    def now(self) -> datetime:
        """Return the wall time as an aware UTC datetime (microsecond resolution)."""
        return datetime.fromtimestamp(self.wall_ns() // 1000 / 1_000_000, UTC)


def rfc3339(moment: datetime, *, timespec: str = "microseconds") -> str:
    """Format an aware UTC datetime as RFC 3339 with a `Z` (RFC 3339 §5.6).

    Example:
        >>> from datetime import UTC, datetime
        >>> rfc3339(datetime(2025, 11, 23, 10, 30, tzinfo=UTC), timespec="seconds")
        '2025-11-23T10:30:00Z'
    """
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
