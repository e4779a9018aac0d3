"""Repeats a round of work on a daemon thread, with jitter, in whichever process asks for it.

A fork copies no thread and leaves locks as they were, so a child starts over: its own thread begins when
`revive` is next called there.

Limits: a round that hangs holds up the next one.
"""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Callable

from healthobs.exceptions import ConfigurationError

_STOP_SECONDS = 5.0
_MAX_JITTER = 0.9


class Schedule:
    """One background thread that calls `work` now and then.

    Args:
        work: A bound method; its object is held weakly, and the thread ends when that is gone.
        name: Name of the thread.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = weakref.WeakMethod(work)
        self._name = name
        self._times: tuple[float, float] | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        #: Whether there should be a thread and is none; a plain attribute, because every request looks.
        self.idle: bool = False
        _schedules.add(self)

    def arm(self, interval_s: float, jitter: float) -> None:
        """Say how often to work, once revived: every `interval_s` seconds, more or less by the share `jitter`.

        Raises:
            ConfigurationError: A number is out of its range.
        """
        if interval_s < 0 or not 0 <= jitter <= _MAX_JITTER:
            raise ConfigurationError(f"interval_s is 0 or more seconds, and jitter from 0 to {_MAX_JITTER}")
        if interval_s:
            with self._lock:
                self._times = (interval_s, jitter)
                self.idle = not self._is_alive()

    def revive(self) -> None:
        """Work at once and go on, where there should be a thread and is none, or one that died.

        Raises:
            RuntimeError: No thread can be had now either.
        """
        with self._lock:
            times = self._times  # under the lock: whoever waited for it may have been stopped meanwhile
            if times is None or self._is_alive():
                return
            self._stopped.set()  # one whose starter was interrupted before it was known ends, when it begins at the latest
            self._stopped = threading.Event()
            thread = threading.Thread(
                target=_repeat, args=(self._work, self._stopped, *times), name=self._name, daemon=True
            )
            thread.start()
            self._thread = thread
            self.idle = False

    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after the round that it is in; harmless twice."""
        with self._lock:
            self._times, self.idle = None, False
            thread, self._thread = self._thread, None
            self._stopped.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_STOP_SECONDS)

    def forget(self) -> None:
        """Start over in a forked child."""
        self._lock = threading.Lock()
        self._thread = None
        self.idle = self._times is not None


def _repeat(
    work: weakref.WeakMethod[Callable[[], None]], stopped: threading.Event, interval_s: float, jitter: float
) -> None:
    while not stopped.is_set():
        method = work()
        if method is None:
            return
        method()
        del method  # nothing may keep the object alive while this thread sleeps
        stopped.wait(interval_s * random.uniform(1 - jitter, 1 + jitter))  # noqa: S311 - spreads load, guards nothing


def _after_fork() -> None:
    for schedule in list(_schedules):
        schedule.forget()


_schedules: weakref.WeakSet[Schedule] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
