"""Handlers of the standard library: which there are, and which a record will come to.

The hook stands in front of `logging.Logger.callHandlers`, so that a handler that is added later is covered with the first
record that comes to it, and so is the one that writes when there is none.

Limits: a subclass of `logging.Logger` with a `callHandlers` of its own is not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from healthobs.logs.filtering import RecordFilter

_CallHandlers = Callable[[logging.Logger, logging.LogRecord], None]


class Hook:
    """Has the handlers that a record will come to covered, while there is a filter for them."""

    filters: tuple[RecordFilter, ...] = ()
    original: _CallHandlers | None = None

    @classmethod
    def is_reached(cls) -> bool:
        """Return whether each record comes by here, for the handlers that it goes to to be covered."""
        return bool(cls.filters) and logging.Logger.callHandlers is _call_handlers

    @classmethod
    def add(cls, records: RecordFilter) -> None:
        """Stand in front of `logging`, for the first one."""
        if cls.original is None:
            cls.original = logging.Logger.callHandlers
            _replace(_call_handlers)
        cls.filters = (*cls.filters, records)

    @classmethod
    def remove(cls, records: RecordFilter) -> None:
        """Step aside, after the last; when somebody else has stepped in front since, we only pass records on."""
        cls.filters = tuple(one for one in cls.filters if one is not records)
        if not cls.filters and logging.Logger.callHandlers is _call_handlers and cls.original is not None:
            _replace(cls.original)
            cls.original = None


def _replace(call_handlers: _CallHandlers) -> None:
    setattr(logging.Logger, "callHandlers", call_handlers)  # noqa: B010 - a method is no attribute to mypy


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    original = Hook.original
    for records in Hook.filters:
        records.cover(logger, record)
    if original is not None:
        original(logger, record)


def handlers() -> Iterator[tuple[logging.Logger, logging.Handler]]:
    """Yield the handlers of each logger that there is."""
    root = logging.getLogger()
    for logger in (root, *list(root.manager.loggerDict.values())):
        if isinstance(logger, logging.Logger):
            yield from ((logger, handler) for handler in logger.handlers)


def reached(logger: logging.Logger) -> Iterator[logging.Handler]:
    """Yield the handlers that a record of `logger` comes to, as `logging.Logger.callHandlers` finds them."""
    at: logging.Logger | None = logger
    alone = True
    while at is not None:
        for handler in at.handlers:
            alone = False
            yield handler
        at = at.parent if at.propagate else None
    if alone and logging.lastResort is not None:
        yield logging.lastResort
