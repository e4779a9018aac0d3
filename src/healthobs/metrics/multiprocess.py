"""The metric files of several workers: wiped at start, and merged when a worker is dead.

prometheus_client gives each process files of its own (`counter_PID.db`, …) and adds them up at a scrape. A dead
worker's must stay, or counters go back; kept for ever they make each scrape slower. So they are merged into
one archive per kind, which a scrape reads like any other worker's file. A file lock keeps a scrape from seeing
a value in both places, or in neither.

Limits: gauges of the modes ``all`` and ``liveall`` are per process by definition and are not merged. A merge is
put off while the pid is in use again (the new process goes on in the same files, so nothing is lost) and while a
scrape holds the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, cast

from prometheus_client import mmap_dict
from prometheus_client import multiprocess as prometheus_multiprocess

from healthobs.exceptions import ConfigurationError

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_ARCHIVE = "archive"
_LOCK = "lock"
#: Ending of the empty files that name families of healthobs.
_OWN = ".own"
#: A master that waited for a scraper's lock for ever could not look after its workers.
_MAX_WAIT_SECONDS = 1.0
_Pair = tuple[float, float]  # value, and when it was set
_FOLD: dict[str, Callable[[_Pair, _Pair], _Pair]] = {
    **dict.fromkeys(
        ("counter", "histogram", "summary", "gauge_sum"), lambda old, new: (old[0] + new[0], 0.0)
    ),
    "gauge_min": min,
    "gauge_max": max,
    "gauge_mostrecent": lambda old, new: max(old, new, key=lambda pair: pair[1]),
}
# The client library leaves these untyped.
_values_of = cast(
    "Callable[[str], Iterable[tuple[str, float, float, int]]]",
    getattr(mmap_dict.MmapedDict, "read_all_values_from_file"),  # noqa: B009
)
_open = cast("Callable[[str], Any]", getattr(mmap_dict, "MmapedDict"))  # noqa: B009
_mark_dead = cast("Callable[[int, str], None]", getattr(prometheus_multiprocess, "mark_process_dead"))  # noqa: B009


def directory() -> Path | None:
    """Return the multiprocess directory, or None when this process counts alone."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def check() -> bool:
    """Return whether this process counts in files beside others'.

    Raises:
        ConfigurationError: They would be in a directory that is not there, or that it may not write to.
    """
    path = directory()
    if path is not None and not (path.is_dir() and os.access(path, os.W_OK)):
        raise ConfigurationError(
            f"{VARIABLE} names no directory that can be written to: create it before the application is loaded, or unset it"
        )
    return path is not None


def wipe(path: Path, *, keep_pid: int | None = None) -> None:
    """Make `path` an empty directory, but for what the process `keep_pid` has written already."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = list(path.glob("*.db"))
    gone = [file for file in files if keep_pid is None or _owner(file) != str(keep_pid)]
    if len(gone) == len(files):
        gone += path.glob(f"*{_OWN}")
    for file in gone:
        file.unlink(missing_ok=True)


def note_own(path: Path, family: str) -> None:
    """Tell the other processes that `family` is healthobs': its labels were judged when they were born."""
    (path / f"{family}{_OWN}").touch()


def own_families(path: Path) -> set[str]:
    """Return the families that any process has noted."""
    return {file.name.removesuffix(_OWN) for file in path.glob(f"*{_OWN}")}


def bury(path: Path, pid: int) -> bool:
    """Merge what the dead worker `pid` has left into the archive; drop its live gauges.

    Returns:
        False when it has to be tried again later: the pid is in use, or a scrape has the lock.
    """
    if _in_use(pid):
        return False
    with _locked(path, fcntl.LOCK_EX) as held:
        if not held:
            return False
        _mark_dead(pid, str(path))
        for file in path.glob(f"*_{pid}.db"):
            kind = file.name.removesuffix(f"_{pid}.db")
            if kind in _FOLD:
                _merge(file, path / f"{kind}_{_ARCHIVE}.db", kind)
                file.unlink()
    return True


def bury_dead(path: Path) -> None:
    """Merge what every process that is no more has left, as far as that can be done now."""
    for owner in {_owner(file) for file in path.glob("*.db")} - {_ARCHIVE}:
        if owner.isdecimal():
            bury(path, int(owner))


@contextlib.contextmanager
def reading(path: Path) -> Generator[None]:
    """Keep merges away from a scrape; one that cannot have the lock reads all the same."""
    with _locked(path, fcntl.LOCK_SH):
        yield


def readable(path: Path) -> list[str]:
    """Return the files that hold something; one that a worker has just made is empty, which the reader cannot bear."""
    return [str(file) for file in path.glob("*.db") if file.stat().st_size]


def _merge(source: Path, archive: Path, kind: str) -> None:
    target = _open(str(archive))
    try:
        known = {key: (value, stamp) for key, value, stamp in target.read_all_values()}
        for key, value, stamp, _ in _values_of(str(source)):
            new = (value, stamp)
            target.write_value(key, *(_FOLD[kind](known[key], new) if key in known else new))
    finally:
        target.close()


def _owner(file: Path) -> str:
    return file.stem.rpartition("_")[2]


def _in_use(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Generator[bool]:
    """Hold the directory's lock; give False when it was not to be had in time."""
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _MAX_WAIT_SECONDS
        held = True
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    held = False
                    break
                time.sleep(0.005)
        yield held
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a worker forked meanwhile has the descriptor, too
        os.close(descriptor)
