"""The keeper: one thread of each worker that keeps the board true, and flushes before the server's limit.

A server that waits for requests kills what is left at its graceful limit, with the spans that wait to be sent.
So from two seconds before the limit on, they are sent at every beat.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from healthobs.observability import Observability

BEAT_SECONDS = 0.5
#: The checks are asked at each of so many beats.
BEATS_PER_ROUND = 4
#: This long before the graceful limit spans are sent at every beat.
FLUSH_MARGIN_SECONDS = 2.0


class Keeper(threading.Thread):
    """Ask the checks every two seconds, write the verdicts on the board, and flush near the end.

    Args:
        obs: Whose checks and spans.
        serving: False once the server has begun its graceful stop.
        graceful_seconds: How long the server waits for requests then.
    """

    def __init__(
        self,
        obs: Observability,
        *,
        serving: Callable[[], bool] = lambda: True,
        graceful_seconds: float = 20.0,
    ) -> None:
        super().__init__(name="healthobs-keeper", daemon=True)
        self._obs = obs
        self._serving = serving
        self._margin = max(0.0, graceful_seconds - FLUSH_MARGIN_SECONDS)
        self._stopping_since: float | None = None
        self._ended = threading.Event()
        self._beats = 0

    def run(self) -> None:
        """Beat until the process ends."""
        while not self._ended.wait(BEAT_SECONDS):
            self.beat()

    def stop(self) -> None:
        """End the thread at its next beat."""
        self._ended.set()

    def beat(self) -> None:
        """Do all that is due now; never raises."""
        if self._beats % BEATS_PER_ROUND == 0:
            with contextlib.suppress(Exception):  # the next round tries again
                self._obs.health.write_verdicts()
        self._beats += 1
        if self._stopping_since is None:
            if not self._serving():
                self._stopping_since = time.monotonic()
        elif time.monotonic() - self._stopping_since >= self._margin:
            self._obs.flush(BEAT_SECONDS)
