"""Read the files of a database that this process has open itself, as controls and tests do that search them for what must not be there.

SQLite locks a file by POSIX advisory locks, and closing any descriptor of a file drops every lock that the process has on it
(https://sqlite.org/howtocorrupt.html §2.2): a look into the file of a database, with `open` and `close`, lets a second writer
in while the first one writes. So what is opened here stays open.

Limits: one descriptor for each database file that was looked into, for as long as the process lives.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

#: The first bytes of a database (https://sqlite.org/fileformat.html §1.3).
_MAGIC = b"SQLite format 3\x00"
_AT_ONCE = 1 << 20
_lock = threading.Lock()
#: Descriptors of databases, by device and inode.
_open: dict[tuple[int, int], int] = {}


def read_raw(path: Path, most_bytes: int | None = None) -> bytes:
    """Return what stands in a file, and take no lock away from whoever has it open as a database.

    Nothing is read of an empty file, nor of what SQLite keeps its locks in (``-shm``), which holds no content.

    Args:
        path: A file.
        most_bytes: Read so many, from the beginning; default all.

    Raises:
        OSError: It cannot be read.

    Example:
        >>> read_raw(Path("/proc/self/comm"), 0)
        b''
    """
    found = path.stat()
    if found.st_size == 0 or path.name.endswith("-shm"):
        return b""
    with _lock:
        descriptor = _open.get((found.st_dev, found.st_ino))
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if is_database := os.pread(descriptor, len(_MAGIC), 0) == _MAGIC:
                opened = os.fstat(descriptor)
                _open[opened.st_dev, opened.st_ino] = descriptor
        else:
            is_database = True
    try:
        return b"".join(_parts(descriptor, sys.maxsize if most_bytes is None else most_bytes))
    finally:
        if not is_database:
            os.close(descriptor)


def _parts(descriptor: int, left: int) -> Iterator[bytes]:
    offset = 0
    while left and (part := os.pread(descriptor, min(_AT_ONCE, left), offset)):
        yield part
        offset += len(part)
        left -= len(part)
