"""The spool: a local file that holds entries, fsynced, while the audit store is down.

Only for what may not wait for it: care under break-glass (45 CFR 164.312(a)(2)(ii), emergency access
procedure). Each line is one entry with its key and a checksum; a line is acknowledged after its fsync, and a
torn last one, which was not, is passed over. A whole line that cannot be read was an acknowledged entry: the
file is kept beside, and an entry that says so added, before it is emptied. Merged in order, and by its key once,
however often that is cut off.

Whole lines that are no entry of an application, or reuse a key, are kept aside in the file's name and ``.refused``.

Limits: until merged, entries are durable but not tamper-evident. One spool for each trail and machine; several
processes may share it. A torn line that others were added after counts as damaged: nobody can tell any more.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from healthobs.audit.keys import sync_directory
from healthobs.exceptions import AuditWriteError

_POLL_SECONDS = 0.01

Row = tuple[str, bytes]
Rows = list[Row]


class Spool:
    """Entries that wait for the store in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, key: str, body: bytes) -> None:
        """Return once the entry is durable in the file.

        Raises:
            AuditWriteError: It is not.
        """
        with self._locked() as descriptor:
            _append(descriptor, _line(key, body))

    def waiting(self) -> bool:
        """Return whether entries wait; cheap enough for every append."""
        try:
            return self._path.stat().st_size > 0
        except OSError:
            return False

    def check(self) -> None:
        """Return when an entry could be put there now, as far as can be told without one.

        Raises:
            AuditWriteError: The file cannot be opened, locked or written.
        """
        with self._locked():
            pass

    @contextmanager
    def merging(self, wait_seconds: float, *, alone: bool = False) -> Generator[None]:
        """Merge beside others; `alone`, when no merge of any process is under way, and none begins meanwhile.

        Args:
            wait_seconds: How long to wait for whoever is alone, or for every merge.
            alone: See above. What a merge had read is in the log by then, or still waits.

        Raises:
            AuditWriteError: That took too long, or the file beside the spool cannot be used.
        """
        deadline = time.monotonic() + wait_seconds
        with self._beside() as descriptor:
            while True:
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise AuditWriteError("another process merges the audit spool; try again") from None
                    time.sleep(_POLL_SECONDS)
            yield

    @contextmanager
    def _beside(self) -> Generator[int]:
        """Give the file that `merging` locks; another one than the spool, which is locked for each line that is added."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._path.with_name(f"{self._path.name}.lock")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise _unusable(exc) from None
        try:
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor, too
            os.close(descriptor)

    def merge(
        self,
        sequence: Callable[[Rows], Rows | None],
        acceptable: Callable[[str, bytes], bool] = lambda _key, _body: True,
        set_aside: Callable[[int], None] = lambda _count: None,
        damaged: Callable[[int], Row] | None = None,
    ) -> tuple[int, int]:
        """Hand every entry over, oldest first, and forget them once `sequence` has returned.

        Where something is damaged, the entry that says so is added behind the rest, and the next merge forgets all: at no
        moment does the file hold neither. What comes before such an entry is not handed over again.

        Args:
            sequence: Takes keys and bytes of entries, and returns those that it refuses for good, if any.
            acceptable: Says which are entries; the others are never handed over.
            set_aside: Is told how many were kept aside, for either reason.
            damaged: Told how many whole lines cannot be read, gives the entry that says so, which waits in the
                spool from then on. The file as it was is kept beside it, as ``<name>.damaged-<time>``, under what
                that entry's key has before a ``+``.

        Returns:
            How many, and how many whole lines could not be read.

        Raises:
            AuditWriteError: What `sequence` raises, or the file cannot be read; the entries stay.
        """
        with self._locked() as descriptor:
            content = _read(descriptor)
            told = self._told(content)
        *ended, tail = content[told:].split(b"\n")
        lines = [_parse(line) for line in ended]
        unreadable = lines.count(None)
        whole = [row for row in (*lines, _parse(tail)) if row is not None]
        rows = [row for row in whole if acceptable(*row)]
        if len(rows) < len(whole):
            good = set(rows)
            self._keep_aside([row for row in whole if row not in good])
            set_aside(len(whole) - len(rows))
        # Not under the lock: whoever has to spool now must not wait for a slow store.
        refused = (sequence(rows) if rows else None) or []
        if refused:
            self._keep_aside(refused)
            set_aside(len(refused))
        with self._locked() as descriptor:
            if _read(descriptor) == content:  # otherwise the next merge forgets these, too
                row = damaged(unreadable) if unreadable and damaged is not None else None
                if unreadable:
                    self._keep(content, f"{time.time_ns():020d}" if row is None else _stem(row))
                if row is None:
                    os.ftruncate(descriptor, 0)
                    os.fsync(descriptor)
                else:
                    _append(descriptor, _line(*row))
        return len(rows) - len(refused), unreadable

    def _told(self, content: bytes) -> int:
        """Return where the last entry on damage of all before it begins, by the copy that was kept of that; 0 without."""
        starts, prefix = [0], f"{self._path.name}.damaged-"
        for path in self._path.parent.iterdir():
            if path.name.startswith(prefix) and (size := path.stat().st_size):
                start = size + (content[size - 1 : size] != b"\n")
                row = _parse(content[start:].partition(b"\n")[0])
                if row and _stem(row) == path.name[len(prefix) :] and content[:size] == path.read_bytes():
                    starts.append(start)
        return max(starts)

    def _keep_aside(self, rows: Rows) -> None:
        lines = [f"{key} ".encode() + body for key, body in rows]
        with self._locked():
            path = self._path.with_name(f"{self._path.name}.refused")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                kept = set(_read(descriptor).splitlines())  # a merge that was cut off comes again
                text = b"".join(line + b"\n" for line in lines if line not in kept)
                if os.write(descriptor, text) != len(text):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
                sync_directory(path.parent)
            finally:
                os.close(descriptor)

    def _keep(self, content: bytes, name: str) -> None:
        """Make a durable copy of a damaged file beside it."""
        path = self._path.with_name(f"{self._path.name}.damaged-{name}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, made 0600 from the start
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(path.parent)

    @contextmanager
    def _locked(self) -> Generator[int]:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_size == 0:
                    sync_directory(
                        self._path.parent
                    )  # whoever made the file may have died before its name was safe
                yield descriptor
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor, too
                os.close(descriptor)
        except OSError as exc:
            raise _unusable(exc) from None


def _unusable(exc: OSError) -> AuditWriteError:
    reason = exc.strerror or type(exc).__name__
    return AuditWriteError(f"the audit spool cannot be used ({reason}); check the file and its disk")


def _read(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _append(descriptor: int, line: bytes) -> None:
    """Add a line durably, or leave the file as it was."""
    end = os.fstat(descriptor).st_size
    if end and os.pread(descriptor, 1, end - 1) != b"\n":
        line = b"\n" + line  # what a process left that died in the middle
    try:
        if os.pwrite(descriptor, line, end) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, end)
        raise


def _stem(row: Row) -> str:
    """Return a row's key without what is signed or sealed behind it."""
    return row[0].partition("+")[0]


def _line(key: str, body: bytes) -> bytes:
    line = f"{key} ".encode() + body
    return b"%08x %b\n" % (zlib.crc32(line), line)


def _parse(line: bytes) -> Row | None:
    """Return key and body of a whole line."""
    checksum, _, rest = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(rest):
        return None
    key, _, body = rest.partition(b" ")
    return (key.decode(), body) if key.isascii() else None
