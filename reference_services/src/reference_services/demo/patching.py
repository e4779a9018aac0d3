"""How a fault gets into a running process: one function of it is replaced by another."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

#: Plants one fault when it is called.
Planter = Callable[[], None]


def replace(owner: Any, name: str, wrong: Callable[..., Any]) -> None:
    """Put `wrong` in the place of `owner.name`; it gets what it replaces as its first argument."""
    right = getattr(owner, name)

    @functools.wraps(right)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return wrong(right, *args, **kwargs)

    setattr(owner, name, patched)
