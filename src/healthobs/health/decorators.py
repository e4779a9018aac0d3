"""`@health_check` and `@readiness_check`: register a function and leave it as it is.

Decorating before configuring works: checks wait here until the next `Health` adopts them.

Limits: what waits is the process's; with several services in one process the first to be set up adopts it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

from healthobs._runtime import current_or_none
from healthobs.exceptions import InstrumentationError
from healthobs.health.checks import CheckOptions, make_spec

_F = TypeVar("_F", bound=Callable[..., Any])


class Pending:
    """Checks decorated before there was anything to register them with."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._checks: dict[str, tuple[Callable[[], Any], CheckOptions]] = {}

    def add(self, name: str, fn: Callable[[], Any], options: CheckOptions) -> None:
        """Keep a check; its name and times are judged here, at import."""
        make_spec(name, fn, **options)
        with self._lock:
            if name in self._checks:
                raise InstrumentationError(f"the check '{name}' exists already: give this one another name")
            self._checks[name] = (fn, options)

    def take(self) -> list[tuple[str, tuple[Callable[[], Any], CheckOptions]]]:
        """Hand over every check kept so far."""
        with self._lock:
            taken, self._checks = list(self._checks.items()), {}
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

    It registers with the `Observability` in force, else with the next one that adopts. That it stays inside the process
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

    It registers with the `Observability` in force, else with the next one that adopts.

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
        return fn

    return register if target is None or isinstance(target, str) else register(target)
