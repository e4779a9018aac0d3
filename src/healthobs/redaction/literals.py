"""Tells a text that is written in the code from one that was made of data; strict mode lets only the first pass.

``log.info("patient admitted")`` names an event, ``log.info(f"{patient} admitted")`` tells about a person, and no
pattern finds a name in it. But the first is a constant of a function that is running, and the second is none.

Limits: CPython. Data that equals a constant of a function on the stack passes (`if status == "deceased"` and then
``log.info(status)``). Names made by a template (``"%s admitted"``) are known by their template only.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Iterable, Iterator
from inspect import currentframe
from typing import cast

_FRAMES = 16
_KEPT = 4096
_MAX_NAME = 256
_LOOKS = 64


def _holds(constants: tuple[object, ...], text: str) -> bool:
    """Return whether `text` is among `constants`, or in a tuple of them: names of arguments, keys of a mapping."""
    for constant in constants:
        kind = type(constant)  # first: `1 == True`, and comparing text with bytes warns under `python -b`
        if kind is str and constant == text:
            return True
        if kind is tuple and any(
            type(one) is str and one == text for one in cast("tuple[object, ...]", constant)
        ):
            return True
    return False


def _texts(constants: tuple[object, ...]) -> Iterator[str]:
    """Yield the texts among `constants`, and in tuples of them."""
    for constant in constants:
        if type(constant) is str:
            yield constant
        elif type(constant) is tuple:
            yield from (one for one in cast("tuple[object, ...]", constant) if type(one) is str)


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

    def knows(self, text: str) -> bool:
        """Return whether `text` is known already; the stack is not looked at."""
        return text in self._known

    def note(self, texts: Collection[str]) -> None:
        """Look at `texts` while the function that uses them is running; one look-up when all are known, else one at the stack."""
        if self._known.issuperset(texts):
            return
        unknown = set(texts) - self._known
        frame = currentframe()
        for _ in range(_FRAMES):
            frame = None if frame is None else frame.f_back
            if frame is None:
                break
            for text in unknown.intersection(_texts(frame.f_code.co_consts)):
                self.add(text)

    def has(self, text: str) -> bool:
        """Return whether `text` is known, or a constant of one of the nearest functions that are running."""
        if text in self._known:
            return True
        frame = currentframe()
        for _ in range(_FRAMES):
            frame = None if frame is None else frame.f_back
            if frame is None:
                break
            if _holds(frame.f_code.co_consts, text):
                self.add(text)
                return True
        return False


def globals_nearby() -> Iterator[dict[str, object]]:
    """Yield the names of each module that one of the nearest functions that are running belongs to, once."""
    seen = set[int]()
    frame = currentframe()
    for _ in range(_FRAMES + 2):  # the first two are those of whoever asks
        frame = None if frame is None else frame.f_back
        if frame is None:
            break
        if id(frame.f_globals) not in seen:
            seen.add(id(frame.f_globals))
            yield frame.f_globals


class Looks:
    """Says of what was looked for in vain whether to look again: a look at all that the nearest modules hold is dear.

    Example:
        >>> looks = Looks()
        >>> [looks.again("ledger") for _ in range(100)].count(True)
        64
    """

    __slots__ = ("_looks",)

    def __init__(self) -> None:
        self._looks: dict[Hashable, int] = {}

    def again(self, what: Hashable) -> bool:
        """Return whether to look for `what`, and count it."""
        looks = self._looks.get(what, 0)
        if looks >= _LOOKS:
            return False
        if len(self._looks) >= _KEPT:
            self._looks.clear()  # names made of data must not grow the memory
        self._looks[what] = looks + 1
        return True


def is_in_a_module(name: str) -> bool:
    """Return whether `name` is that of a module that is loaded, or of a class or function in it."""
    if len(name) > _MAX_NAME:
        return False
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        at: object = sys.modules.get(".".join(parts[:end]))
        if at is not None:
            for part in parts[end:]:
                at = getattr(at, "__dict__", {}).get(part)
            return at is not None
    return False
