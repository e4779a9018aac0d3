"""`assert_pure_liveness`: a liveness probe asks nothing outside its process, and writes nothing.

A probe that asks a database restarts every replica when the database is away (Kubernetes, "Configure Liveness,
Readiness and Startup Probes"). What a probe does is seen by an audit hook (PEP 578). Such a hook stays for as long
as the process lives, so this one is part of the test kit only, and looks while a probe is being asked, on that thread.

Limits: what a probe has another thread do is not seen, nor what a C library opens by itself (libpq, gRPC). A
probe is called without the engine's time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

from healthobs.observability import Observability

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: Events of the interpreter, by what they mean. Making a socket is none of them: each event loop makes a pair of its own.
_IMPURE = {
    "a socket": "socket.connect socket.bind socket.sendto socket.sendmsg socket.getaddrinfo socket.gethostbyname "
    "socket.gethostbyaddr socket.getnameinfo",
    "a database": "sqlite3.connect dbm.open",
    "a process": "subprocess.Popen os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty pty.spawn",
    "a change of files": "os.remove os.rename os.mkdir os.rmdir os.link os.symlink os.truncate os.chmod os.chown",
}
_MEANING = {event: meaning for meaning, events in _IMPURE.items() for event in events.split()}


class _Thread(threading.local):
    """What the probe that this thread is asking has done; None while it asks none."""

    seen: list[str] | None = None


_here = _Thread()
_hooked = threading.Lock()


def assert_pure_liveness(obs: Observability) -> None:
    """Call every liveness check of `obs` once and prove that it stays inside the process.

    Args:
        obs: Whose checks; what they answer does not matter.

    Raises:
        AssertionError: A check opened a socket, a database, a process or a file for writing; it names the check.

    Example:
        >>> from healthobs import Settings
        >>> obs = Observability(Settings())
        >>> obs.health.register("own_threads", lambda: True, kind="liveness")
        >>> assert_pure_liveness(obs)
    """
    found = impurities(obs)
    if found:
        raise AssertionError(
            f"{'; '.join(found)}: a liveness check asks its own process only, a readiness check may ask others"
        )


def impurities(obs: Observability) -> list[str]:
    """Return what each liveness check does that it should not."""
    checks: dict[str, Any] = obs.health._checks  # pyright: ignore[reportPrivateUsage]
    found: list[str] = []
    for name, check in sorted(checks.items()):
        if check.spec.kind != "liveness":
            continue
        with ThreadPoolExecutor(1) as apart:  # where no event loop runs, also in a test that is a coroutine
            seen = apart.submit(copy_context().run, _asked, check.spec.fn).result()
        found += [f"liveness check '{name}' opens {what}" for what in dict.fromkeys(seen)]
    return found


def _asked(fn: Callable[[], Any]) -> list[str]:
    with watching() as seen, contextlib.suppress(Exception):
        result = fn()
        if inspect.isawaitable(result):
            asyncio.run(_awaited(result))
    return seen


@contextmanager
def watching() -> Generator[list[str]]:
    """Give the list of what this thread opens inside the block."""
    if _hooked.acquire(blocking=False):  # never released: there is no way to take a hook off
        sys.addaudithook(_hook)
    before, _here.seen = _here.seen, []
    try:
        yield _here.seen
    finally:
        _here.seen = before


async def _awaited(result: Any) -> None:
    await result


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    seen = _here.seen
    if seen is None:
        return
    meaning = _MEANING.get(event)
    if meaning is not None:
        seen.append(f"{meaning} ({event})")
    elif event == "open" and _for_writing(*arguments):
        seen.append("a file for writing")


def _for_writing(path: object, mode: object, flags: object) -> bool:
    if "__pycache__" in str(path):  # the interpreter's own, when a probe is the first to import a module
        return False
    return (isinstance(mode, str) and bool(set("wax+").intersection(mode))) or bool(
        isinstance(flags, int) and flags & _WRITES
    )
