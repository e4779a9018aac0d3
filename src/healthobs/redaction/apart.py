"""Keeps names apart that became equal when they were masked."""

from __future__ import annotations

from collections.abc import Container


class Apart:
    """Numbers the names of one mapping.

    Example:
        >>> apart = Apart()
        >>> apart.free("[PHI:ssn]", ()), apart.free("[PHI:ssn]", {"[PHI:ssn]": 1})
        ('[PHI:ssn]', '[PHI:ssn]_2')
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def free(self, name: str, taken: Container[str]) -> str:
        """Return `name`, with a number behind it when it is taken; a number that was found taken is not asked for again."""
        unique = name
        while unique in taken:
            number = self._next.get(name, 2)
            unique, self._next[name] = f"{name}_{number}", number + 1
        return unique
