"""The only process state: which `Observability` a call reports to.

`current_or_none()` answers in this order: the context's own (`use`), the process default (`install`),
nothing. Decorated functions ask at call time, so decorating before configuring works.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from healthobs.health import Board
    from healthobs.observability import Observability


class _Process:
    """Process-wide state, in slots because every decorated call reads it.

    `active` stays False until the first `install` or `use`: until then a decorated call costs one
    attribute read. `board` is what the workers of one server share, None without several.
    """

    __slots__ = ("active", "board", "default")

    def __init__(self) -> None:
        self.active: bool = False
        self.default: Observability | None = None
        self.board: Board | None = None


class Gate:
    """Closed until an `Observability` records signals: until then a decorator that only records costs one read."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: bool = False


process = _Process()
recording = Gate()
#: Always open: what insists on an audit entry is refused where there is no `Observability` either.
insisting = Gate()
insisting.active = True
override: ContextVar[Observability | None] = ContextVar("healthobs.override", default=None)

#: What the decorators of this process observe (`healthobs.decorators.observer.Operation`).
operations: WeakSet[Any] = WeakSet()


#: The HTTP exchange being answered in this context (a `healthobs.http.Exchange`), or None.
exchange: ContextVar[Any] = ContextVar("healthobs.exchange", default=None)

#: What `use_tenant` stated, with the exchange it was stated in: it says nothing about another one.
tenant: ContextVar[tuple[Any, str] | None] = ContextVar("healthobs.tenant", default=None)

#: The audit draft of the innermost `@audited` call in this context, or None.
audit_draft: ContextVar[Any] = ContextVar("healthobs.audit_draft", default=None)

#: Stands in `audit_draft` for the draft of a generator whose entry was written before its first item.
WRITTEN: Any = object()


def all_operations() -> list[Any]:
    """Return every operation that is still there, also where another thread decorates meanwhile."""
    while True:
        try:
            return list(operations)
        except RuntimeError:  # the set changed size
            continue


def open_draft() -> Any:
    """Return the audit draft to tell something to; None when there is none, or its entry has been written.

    What comes after that entry is counted as a fault of audit and told in a line `audit_annotation_lost`.
    """
    draft = audit_draft.get()
    if draft is None:
        answered = exchange.get()
        # The body of a response is made after its view has returned, and with it the entry.
        if not (getattr(answered, "is_recorded", False) and answered.status):
            return None
    elif draft is not WRITTEN:
        return draft
    obs = current_or_none()
    if obs is not None:
        obs.metrics.count_internal_error("audit")
        obs.logs.emit("error", "audit_annotation_lost")
    return None


def reset(token: Token[Any]) -> None:
    """Give a context variable its value from before, but for a coroutine that was closed in another context."""
    try:  # not contextlib.suppress: every observed call passes here
        token.var.reset(token)
    except ValueError:  # that context keeps nothing of ours
        return


def activate(obs: Observability) -> None:
    """Open the gates of decorated functions that `obs` may have something to do with."""
    process.active = True
    if not obs.settings.disabled:
        recording.active = True


def current_or_none() -> Observability | None:
    """Return the `Observability` in force here, or None when there is none."""
    if not process.active:
        return None
    return override.get() or process.default


def install(obs: Observability | None) -> Observability | None:
    """Make `obs` the process default (None removes it) and return the previous one.

    Example:
        >>> from healthobs import Observability, Settings, install
        >>> previous = install(Observability(Settings(service_name="demo")))
        >>> install(previous).settings.service_name
        'demo'
    """
    previous = process.default
    process.default = obs
    if obs is not None:
        activate(obs)
    return previous


@contextmanager
def use(obs: Observability) -> Generator[Observability]:
    """Report to `obs` inside the `with` block, in this context only (threads started inside do not inherit it).

    Example:
        >>> from healthobs import Observability, Settings, current, use
        >>> with use(Observability(Settings(service_name="demo"))) as obs:
        ...     current() is obs
        True
    """
    activate(obs)
    token = override.set(obs)
    try:
        yield obs
    finally:
        override.reset(token)
