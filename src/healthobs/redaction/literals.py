"""Tells a text that is written in the code from one that was made of data; strict mode lets only the first pass.

``log.info("patient admitted")`` names an event, ``log.info(f"{patient} admitted")`` tells about a person, and no
pattern finds a name in it. But the first is a constant of a function that is running, and the second is none.

Limits: CPython. Data that equals a constant of a function on the stack passes (`if status == "deceased"` and then
``log.info(status)``). Names made by a template (``"%s admitted"``) are known by their template only.
"""

from __future__ import annotations

from collections.abc import Iterable
from inspect import currentframe

_FRAMES = 16
_KEPT = 4096


class Literals:
    """The texts that are known to be written in the code.

    Args:
        texts: Some that are known from the beginning.
    """

    __slots__ = ("_known",)

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._known = set(texts)

    def add(self, text: str) -> None:
        """Remember `text` as one that was written in the code."""
        if len(self._known) < _KEPT:  # when full, the stack is looked at each time
            self._known.add(text)

    def has(self, text: str) -> bool:
        """Return whether `text` is known, or a constant of one of the nearest functions that are running."""
        if text in self._known:
            return True
        frame = currentframe()
        for _ in range(_FRAMES):
            frame = None if frame is None else frame.f_back
            if frame is None:
                break
            # By type first: `1 == True`, and comparing text with bytes warns under `python -b`.
            if any(type(constant) is str and constant == text for constant in frame.f_code.co_consts):
                self.add(text)
                return True
        return False
