"""`@health_check` and `@readiness_check`: register a function and leave it as it is.

Decorating before configuring works: checks are kept here, and each `Health` that adopts gets its own of each. So what an
import decorated once is there for every `Observability` of the process, one after another or side by side.

Limits: what is kept is the process's, so several services in one process have each other's. A function inside another
one is decorated anew with each call of that: the next to adopt has it alone. While an `Observability` is in force only
functions of a module are kept besides being registered.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakSet

from healthobs._runtime import current_or_none
from healthobs.exceptions import InstrumentationError
from healthobs.health.checks import CheckOptions, make_spec

if TYPE_CHECKING:
    from healthobs.health.engine import Health

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(slots=True)
class Kept:
    """One decorated check, and who has one made from it."""

    name: str
    fn: Callable[[], Any]
    options: CheckOptions
    adopted: bool = False
    owners: WeakSet[Health] = field(default_factory=lambda: WeakSet[Any]())

    @property
    def is_local(self) -> bool:
        """Whether the function was made inside another one."""
        return "<locals>" in getattr(self.fn, "__qualname__", "")


class Pending:
    """Decorated checks, for each `Health` that adopts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checks: dict[str, Kept] = {}

    def add(self, name: str, fn: Callable[[], Any], options: CheckOptions) -> None:
        """Keep a check; its name and times are judged here, at import. One that was adopted gives way to it."""
        make_spec(name, fn, **options)
        with self._lock:
            if name in self._checks and not self._checks[name].adopted:
                raise InstrumentationError(f"the check '{name}' exists already: give this one another name")
            self._checks[name] = Kept(name, fn, options)

    def keep(self, name: str, fn: Callable[[], Any], options: CheckOptions, owner: Health) -> None:
        """Keep a check that `owner` has already, for whoever adopts later."""
        kept = Kept(name, fn, options, adopted=True)
        if not inspect.isfunction(fn) or kept.is_local:
            return
        kept.owners.add(owner)
        with self._lock:
            if name not in self._checks or self._checks[name].adopted:
                self._checks[name] = kept

    def take(self, owner: Health) -> list[tuple[Kept, bool]]:
        """Hand over every check that `owner` has not had, and whether it is the first to have it."""
        taken: list[tuple[Kept, bool]] = []
        with self._lock:
            for kept in list(self._checks.values()):
                if owner not in kept.owners:
                    taken.append((kept, not kept.adopted))
                kept.adopted = True
                kept.owners.add(owner)
                if kept.is_local:
                    del self._checks[kept.name]
        return taken


pending: Pending = Pending()


@overload
def health_check(target: _F, /) -> _F: ...
@overload
def health_check(
    target: str | None = None, /, *, timeout: float = 0.5, max_stall: float | None = None
) -> Callable[[_F], _F]: ...
def health_check(target: Any = None, /, *, timeout: float = 0.5, max_stall: float | None = None) -> Any:
    """Make a function a liveness check; it stays a plain function. Local facts only: no network, no database.

    It registers with the `Observability` in force, else with each one that adopts. That it stays inside the process
    is shown by `healthobs.testing.assert_pure_liveness`.

    Args:
        target: The function (bare form) or the check's name; default the function's name.
        timeout: Seconds until the run counts as failed.
        max_stall: Seconds for which failures are tolerated after the check was good; default none.

    Raises:
        InstrumentationError: See `Health.register`.

    Example:
        >>> @health_check("worker_progress", max_stall=30)
        ... def worker_progress() -> bool:
        ...     return True
    """
    return _decorate(target, {"kind": "liveness", "timeout": timeout, "max_stall": max_stall or 0.0})


@overload
def readiness_check(target: _F, /) -> _F: ...
@overload
def readiness_check(
    target: str | None = None,
    /,
    *,
    timeout: float = 0.5,
    ttl: float = 1.0,
    critical: bool = True,
    fail_after: int | None = None,
    interval: float | None = None,
) -> Callable[[_F], _F]: ...
def readiness_check(
    target: Any = None,
    /,
    *,
    timeout: float = 0.5,
    ttl: float = 1.0,
    critical: bool = True,
    fail_after: int | None = None,
    interval: float | None = None,
) -> Any:
    """Make a function a readiness check; it stays a plain function.

    It registers with the `Observability` in force, else with each one that adopts.

    Args:
        target: The function (bare form) or the check's name; default the function's name.
        timeout: Seconds until the run counts as ``timeout``.
        ttl: Seconds for which a word is kept.
        critical: Whether a bad word makes the service not ready.
        fail_after: Bad runs in a row that end a good word; default 1, with `interval` 2.
        interval: Seconds between runs in the background; default: run when asked.

    Raises:
        InstrumentationError: See `Health.register`.

    Example:
        >>> @readiness_check("price_list", critical=False)
        ... def price_list() -> bool:
        ...     return True
    """
    options: CheckOptions = {
        "kind": "readiness", "timeout": timeout, "ttl": ttl, "critical": critical,
        "fail_after": fail_after, "interval": interval,
    }  # fmt: skip
    return _decorate(target, options)


def _decorate(target: Any, options: CheckOptions) -> Any:
    def register(fn: Any) -> Any:
        name = target if isinstance(target, str) else getattr(fn, "__name__", None)
        if name is None or not callable(fn):
            raise InstrumentationError(
                "a check is a callable; one without a name of its own must be given one"
            )
        obs = current_or_none()
        if obs is None:
            pending.add(name, fn, options)
        else:
            obs.health.register(name, fn, **options)
            pending.keep(name, fn, options, obs.health)
        return fn

    return register if target is None or isinstance(target, str) else register(target)
