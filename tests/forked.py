"""Children that are forked in the middle of something, and locks that they must not keep."""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lingering() -> Generator[Callable[[], None]]:
    """Give what forks a child that keeps all it inherited open until the end of the context."""
    children: list[int] = []
    wait, end = os.pipe()

    def fork() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests' threads
            child = os.fork()
        if child == 0:
            os.close(end)
            os.read(wait, 1)
            os._exit(0)
        children.append(child)

    try:
        yield fork
    finally:
        os.close(end)
        os.close(wait)
        for child in children:
            os.waitpid(child, 0)


def is_locked(path: Path) -> bool:
    """Return whether anybody has the `flock` of a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
