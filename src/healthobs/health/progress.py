"""Whether requests get on: none is stalled while one of them ends, or sends a chunk, now and then.

A server's own time-out does not end a request that hangs in a thread (gunicorn's gthread serves on), so this is
what liveness has to go by: positive evidence that a restart would help.

Limits: one request that takes longer than the limit, alone and silent, looks just like a stall.
"""

from __future__ import annotations

from healthobs.clock import Clock


class Progress:
    """The requests in flight of one process, and when one of them last got on.

    Args:
        max_stall_seconds: How long nothing may get on while there is something in flight.
        clock: Its monotonic side.

    Example:
        >>> now = 0
        >>> progress = Progress(60, Clock(monotonic_ns=lambda: now))
        >>> progress.begin(1)
        >>> now = 61 * 10**9
        >>> progress.check()
        False
        >>> progress.end(1)
        >>> progress.check()
        True
    """

    def __init__(self, max_stall_seconds: float, clock: Clock) -> None:
        self.limit_ns: int = int(max_stall_seconds * 1e9)
        self._now = clock.monotonic_ns
        self._began: dict[int, int] = {}
        self._last_ns = self._now()

    def begin(self, key: int) -> None:
        """Note that a request has come; `key` is its own until it ends."""
        self._began[key] = self._now()

    def advance(self) -> None:
        """Note that a request sent something."""
        self._last_ns = self._now()

    def end(self, key: int) -> None:
        """Note that a request is over."""
        self._began.pop(key, None)
        self._last_ns = self._now()

    def check(self) -> bool:
        """Return False when requests are in flight and none has got on for too long."""
        began = list(self._began.values())
        return not began or self._now() - max(self._last_ns, min(began)) <= self.limit_ns
