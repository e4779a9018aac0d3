"""Decorators above a route decorator: the framework has the function from before them, so a request never meets them.

Flask's and FastAPI's route decorators register what they are given and give it back. What decorates that
afterwards makes another function, which nobody calls. An audited view is then answered without an entry.

Limits: what passes one function to a framework and decorates it for other callers on purpose is told of as well.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import fields
from typing import Any
from weakref import WeakKeyDictionary

from healthobs import _callables
from healthobs.decorators.plan import Plan
from healthobs.exceptions import HealthobsWarning

_PARTS = ("audited", "classified", "traced", "timed", "counted", "in_flight", "logged")
_MOST_WRAPPERS = 64
#: What was asked for around each function, by decorators of ours directly or through foreign ones in between.
_asked: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def note(fn: Any, plan: Plan) -> None:
    """Remember what `plan` asks for around `fn` and around what foreign decorators made it from."""
    parts = _parts(plan)
    for _ in range(_MOST_WRAPPERS):
        try:
            _asked[fn] = _asked.get(fn, frozenset()) | parts
        except TypeError:  # a callable object that has no hash or takes no weak reference
            return
        fn = getattr(fn, "__wrapped__", None)
        if fn is None:
            return


def passed_over(views: Iterable[tuple[str, Any]]) -> list[str]:
    """Return each view that is called without decorators that stand above its route decorator, and which they are.

    Args:
        views: Path template and function of each route.
    """
    found: list[str] = []
    for template, view in views:
        known = _callables.recall(view)
        has = frozenset[str]() if known is None else _parts(known[1])
        lost = (_asked_of(view) | _asked_of(known[0] if known else None)) - has
        if lost:
            names = " ".join(f"@{name}" for name in _PARTS if name in lost)
            found.append(f"{template} ({names})")
    return sorted(set(found))


def warn_of_passed_over(views: Iterable[tuple[str, Any]]) -> None:
    """Warn when a view is called without decorators that stand above its route decorator."""
    found = passed_over(views)
    if found:
        warnings.warn(
            f"decorators above a route decorator never run: {', '.join(found)}; put them below it",
            HealthobsWarning,
            stacklevel=3,
        )


def _asked_of(fn: Any) -> frozenset[str]:
    try:
        return _asked.get(fn, frozenset())
    except TypeError:
        return frozenset()


def _parts(plan: Plan) -> frozenset[str]:
    return frozenset(spec.name for spec in fields(plan) if spec.name in _PARTS and getattr(plan, spec.name))
