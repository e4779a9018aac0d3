"""Drain: the first SIGTERM says "not ready", and only after a delay begins the server's own stop.

Load balancers go on sending until they have seen a failed readiness probe; connections that reach a server after
it has stopped accepting are reset (benoitc/gunicorn#922, #2409). A second SIGTERM stops at once.

Limits: uses SIGALRM and the real interval timer of the process that handles SIGTERM, and no thread.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]


class Drain:
    """Put a delay between SIGTERM and the handler that was there before.

    Args:
        delay_seconds: How long to go on serving; above 0.
        announce: Called in the signal handler: must only set a flag.
    """

    def __init__(self, delay_seconds: float, announce: Callable[[], object]) -> None:
        self._delay = delay_seconds
        self._announce = announce
        self._begun = False
        self._announced: Drain | None = None
        self._previous: _Handler = _exit

    def install(self) -> None:
        """Take over SIGTERM and SIGALRM (on the main thread).

        Where another drain has them, both announce, and the longer delay is for both.
        Where nothing handles SIGTERM, the process would die of it, and what waits to be sent with it; it exits instead.
        """
        previous = signal.getsignal(signal.SIGTERM)
        earlier = getattr(previous, "__self__", None)
        if isinstance(earlier, Drain):  # it announces too, and the delay is one
            self._announced, self._previous = earlier, earlier._previous
            self._delay, self._begun = max(self._delay, earlier._delay), earlier._begun
        else:
            self._previous = previous if callable(previous) else _exit
        signal.signal(signal.SIGALRM, self._stop)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        if self._begun:
            self._stop(number, frame)
            return
        self._begun = True
        self._tell()
        signal.setitimer(signal.ITIMER_REAL, self._delay)

    def _tell(self) -> None:
        if self._announced is not None:
            self._announced._tell()
        self._announce()

    def _stop(self, _number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, self._previous)
        self._previous(signal.SIGTERM, frame)


def _exit(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def forget_alarm() -> None:
    """Give SIGALRM its default back, in a child that inherited the handler."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
