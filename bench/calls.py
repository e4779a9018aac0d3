"""Counts function calls, Python's and C's, by `sys.setprofile`: exact on one Python version, whatever else runs."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

WARM_UP = 30
RUNS = 20


def count(action: Callable[[], object]) -> int:
    """Return the calls of one run of `action`, after warming up; the lowest of some, so that nothing rare counts.

    Of few, each may be slower than all before it on a busy machine, and so carry exemplars.
    """
    for _ in range(WARM_UP):
        action()
    return min(_once(action) for _ in range(RUNS))


def _once(action: Callable[[], object]) -> int:
    seen = 0

    def profile(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal seen
        if event in ("call", "c_call"):
            seen += 1

    gc.disable()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
        gc.enable()
    return seen - 1  # the `sys.setprofile(None)` itself


def breakdown(action: Callable[[], object], most: int = 40) -> list[tuple[str, int]]:
    """Return which functions were called how often in one run, most first; for finding what to cut."""
    for _ in range(WARM_UP):
        action()
    seen: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            seen[f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_qualname}"] += 1
        elif event == "c_call":
            seen[f"  {frame.f_code.co_qualname} -> {getattr(argument, '__qualname__', argument)}"] += 1

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return seen.most_common(most)
