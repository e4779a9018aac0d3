"""The board: what all workers of one server know of each other, in a page of memory made before they fork.

A flag in a Python variable is one worker's own: probes that hit the workers in turn would see it flap. The
board holds one byte for draining and a row for each worker: its pid, when it last wrote, and its two verdicts.

Limits: it is shared by fork only; servers that spawn their workers (uvicorn ``--workers``) have one each.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

ROWS = 128
_ROW = struct.Struct("=iqBB")
_HEAD = 16


class Row(NamedTuple):
    """What one worker says of itself; `beat_ns` is 0 until it has said anything."""

    pid: int
    beat_ns: int
    ready: int
    alive: int


class Board:
    """Shared by every process forked after it was made; each writes its own row only.

    Example:
        >>> board = Board()
        >>> board.row = board.take()
        >>> board.write(ready=True, alive=True)
        >>> board.drain()
        >>> board.draining, list(board.others())
        (True, [])
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD + ROWS * _ROW.size)
        self._taken: set[int] = set()
        #: The row of this process; the master has none.
        self.row: int | None = None

    def drain(self) -> None:
        """Say that the server is going away. One store of one byte: fit for a signal handler."""
        self._memory[0] = 1

    @property
    def draining(self) -> bool:
        """Whether the server is going away."""
        return self._memory[0] == 1

    def take(self) -> int | None:
        """Return a free row for the worker about to be forked (in the master); None when all are taken."""
        free = next((row for row in range(ROWS) if row not in self._taken), None)
        if free is not None:
            self._taken.add(free)
        return free

    def give_back(self, row: int | None) -> None:
        """Clear the row of a worker that is dead (in the master)."""
        if row is not None:
            self._memory[_place(row)] = bytes(_ROW.size)
            self._taken.discard(row)

    def write(self, *, ready: bool, alive: bool) -> None:
        """Write this worker's verdicts (in the worker)."""
        if self.row is not None:
            # One assignment: pack_into would show zeros for a moment.
            self._memory[_place(self.row)] = _ROW.pack(os.getpid(), time.monotonic_ns(), ready, alive)

    def others(self) -> Iterator[Row]:
        """Yield the rows of the other workers that have written."""
        for number, values in enumerate(_ROW.iter_unpack(self._memory[_HEAD:])):
            if values[1] and number != self.row:
                yield Row(*values)


def _place(number: int) -> slice:
    at = _HEAD + number * _ROW.size
    return slice(at, at + _ROW.size)
