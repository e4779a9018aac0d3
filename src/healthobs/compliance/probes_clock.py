"""Probe of the clock: does the kernel know a time source, and has the wall clock jumped?

PCI DSS 4.0 requirement 10.6.1, 21 CFR 11.10(e). Kernel state by `adjtimex(2)` (Linux), read only.

Limits: where the kernel has no time source of its own (many containers and virtual machines), or may not be
asked, the state is ``unknown``. Jumps are seen between two runs in one process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import NamedTuple

from healthobs.compliance.control import Outcome, ProbeContext

#: The most that the wall clock may move against the monotonic clock between two runs.
MAX_STEP_SECONDS = 0.5
#: The most that the kernel may think its clock to be off.
MAX_ERROR_SECONDS = 1.0
_TIME_ERROR = 5
_STA_UNSYNC = 0x0040


class KernelClock(NamedTuple):
    """What the kernel says of its clock."""

    synchronised: bool
    max_error_seconds: float


class _Timex(ctypes.Structure):
    """The head of `struct timex`; the padding is more than any architecture's rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    )


def read_kernel_clock() -> KernelClock | None:
    """Ask the kernel; None where it cannot or may not be asked."""
    if sys.platform != "linux":
        return None
    timex = _Timex()
    try:
        state = int(ctypes.CDLL(None).adjtimex(ctypes.byref(timex)))
    except (AttributeError, OSError):
        return None
    if state < 0:
        return None
    synchronised = state != _TIME_ERROR and not int(timex.status) & _STA_UNSYNC
    return KernelClock(synchronised, int(timex.maxerror) / 1e6)


class ClockInSync:
    """Judge the kernel's clock, and the wall clock against the monotonic one since the last run.

    Args:
        kernel: Where the kernel's state comes from.
    """

    def __init__(self, kernel: Callable[[], KernelClock | None] = read_kernel_clock) -> None:
        self._kernel = kernel
        self._offset_ns: int | None = None

    def __call__(self, context: ProbeContext) -> Outcome:
        """Look at both."""
        offset = context.clock.wall_ns() - context.clock.monotonic_ns()
        last, self._offset_ns = self._offset_ns, offset
        step = 0.0 if last is None else abs(offset - last) / 1e9
        if step > MAX_STEP_SECONDS:
            return Outcome("fail", f"the wall clock jumped by {step:.1f} s since the last run")
        kernel = self._kernel()
        if kernel is None:
            return Outcome("unknown", "the kernel's clock cannot be asked from here")
        if not kernel.synchronised:
            return Outcome("unknown", "the kernel knows no time source")
        if kernel.max_error_seconds > MAX_ERROR_SECONDS:
            return Outcome("fail", f"the kernel's clock may be off by {kernel.max_error_seconds:.1f} s")
        return Outcome("pass", f"in sync, at most {kernel.max_error_seconds:.3f} s off, no jump seen")
