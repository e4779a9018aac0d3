"""The filter that redacts records of the standard library, before the formatter of whichever handler writes them.

It is put on every handler that there is, and on one that is added later with the first record that comes to it
(`healthobs.logs.hook`).

Limits: those of the hook, and what a formatter adds by itself.
"""

from __future__ import annotations

import logging
import re
import sys
import weakref
from collections.abc import Callable, Collection, MutableMapping
from functools import lru_cache
from typing import Any, cast

from healthobs.logs.fields import FieldRedactor
from healthobs.logs.hook import Hook, handlers, reached
from healthobs.logs.libraries import clean_fields
from healthobs.logs.names import LoggerNames
from healthobs.logs.places import ORIGINS, Places
from healthobs.logs.records import STANDARD, RenderedFields, Sealed, clean, complete, note
from healthobs.logs.stdlib import DONE, CapturingHandler
from healthobs.logs.substitutes import exception_of
from healthobs.redaction import Redactor

#: A field in the format of a handler: ``%(name)s``, ``{name}`` or ``$name``.
_FORMATTED = re.compile(r"[(${]([A-Za-z_]\w*)")


def _made() -> Collection[str]:
    """Return what every record has, with what the application's own maker of records puts into each."""
    return _fields_of(logging.getLogRecordFactory())


@lru_cache(maxsize=16)
def _fields_of(factory: Callable[..., logging.LogRecord]) -> Collection[str]:
    try:
        return STANDARD | factory("", 0, "", 0, "", (), None).__dict__.keys()
    except Exception:  # noqa: BLE001  # the application's code runs here
        return STANDARD


class _Unchained:
    """Has a handler tell of a fault of its own without the exception that was being logged, which Python chains to it."""

    def __init__(self, handler: logging.Handler) -> None:
        self._own = vars(handler).get("handleError")
        self._tell = handler.handleError
        handler.handleError = self  # type: ignore[method-assign]

    def __call__(self, record: logging.LogRecord) -> None:
        fault = sys.exception()
        if fault is not None:
            fault.__cause__ = fault.__context__ = None
        self._tell(record)

    def give_back(self, handler: logging.Handler) -> None:
        if self._own is None:
            del handler.handleError
        else:
            handler.handleError = self._own  # type: ignore[method-assign]


class RecordFilter:
    """Redacts what handlers write, until `release`.

    Args:
        redactor: Decides.
        fields: Redacts the fields of a record.
        names: Decides on names of loggers.
    """

    def __init__(self, redactor: Redactor, fields: FieldRedactor, names: LoggerNames) -> None:
        self._redactor = redactor
        self._names = names
        self._places = Places(redactor)
        self._fields = fields
        self._handlers: weakref.WeakSet[logging.Handler] = weakref.WeakSet()
        for _logger, handler in handlers():
            self._cover(handler)
        Hook.add(self)

    def release(self) -> None:
        """Take the filter out again."""
        Hook.remove(self)
        for handler in list(self._handlers):
            while self.filter in handler.filters:
                handler.removeFilter(self.filter)
            tell = handler.handleError
            if isinstance(tell, _Unchained) and not any(handler in one._handlers for one in Hook.filters):
                tell.give_back(handler)

    def cover(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Put the filter on each handler that `record` of `logger` comes to; never raises."""
        try:
            complete(record)
            note(record, self._redactor)
            self._names.note(record.name)
            self._places.note(record)
            clean_fields(record, self._redactor, record.__dict__.keys() - _made())
        except Exception:  # noqa: BLE001, S110  # what is not known to be the code's is masked, or the filter fails closed
            pass
        for handler in reached(logger):
            if handler not in self._handlers:
                self._cover(handler)

    def _cover(self, handler: logging.Handler) -> None:
        # A capturing one redacts by itself, and tells more of an exception.
        if not isinstance(handler, CapturingHandler):
            for name in _FORMATTED.findall(str(getattr(handler.formatter, "_fmt", ""))):
                self._redactor.written(name)
            handler.addFilter(self.filter)
            if not isinstance(handler.handleError, _Unchained):
                _Unchained(handler)
            self._handlers.add(handler)

    def filter(self, record: logging.LogRecord) -> bool:
        """Filter of the standard library: ids and redaction, in the record, before any formatter."""
        fields = record.__dict__
        if fields.get(DONE) == id(self._redactor):
            return True
        try:
            self._redact(record, fields)
        except Exception:  # noqa: BLE001  # fail closed: what cannot be redacted keeps only its place and level
            record.msg, record.args, record.exc_info, record.exc_text = "[PHI:error]", None, None, None
            record.name = "[PHI:error]"
            for key in fields.keys() - STANDARD:
                del fields[key]
            fields.update(dict.fromkeys(ORIGINS, "[PHI:error]"))
        fields[DONE] = id(self._redactor)
        return True

    def _redact(self, record: logging.LogRecord, fields: MutableMapping[str, Any]) -> None:
        self._places.redact(fields)  # first, because it stays when anything else fails
        complete(record)
        if self._redactor.mode != "watch":
            # uvicorn's second template, which would take the first one's place
            fields.pop("color_message", None)
            if record.name.startswith("celery."):
                fields.pop("data", None)  # arguments, id and exception of the task
        self._fields.redact(fields, [key for key in fields if key not in STANDARD])
        record.exc_text = None  # made of the exception again, or by a process whose exception is not here
        exc = exception_of(record.exc_info)
        if exc is None:
            record.exc_info = None
        else:
            self._fields.tell(fields, exc)
        message: Any = record.msg
        if not isinstance(message, dict):
            self._redact_message(record)
        elif not isinstance(message, RenderedFields):
            # structlog's, on its way to its own formatter; redacted already when it is sealed
            record.msg = cast("Any", self._mapping(cast("dict[str, object]", message)))
        record.name = self._names.shown(record.name)  # last, because it tells whose message it is
        self._fields.add_ids(fields)

    def _mapping(self, fields: dict[str, object]) -> dict[str, Any]:
        redacted = self._redactor.mapping(fields)
        event = fields.get("event")
        return redacted | {"event": self._redactor.name(event)} if isinstance(event, str) else redacted

    def _redact_message(self, record: logging.LogRecord) -> None:
        if not isinstance(record.msg, str):
            if self._redactor.mode != "watch":
                record.msg, record.args = str(self._redactor.value("message", record.msg)), None
            return
        servers_own = isinstance(record.args, tuple) and record.name == "uvicorn.access"
        template, arguments = clean(record, self._redactor)
        message = template % arguments if arguments else template
        judged = servers_own or record.name == "gunicorn.access" or isinstance(record.msg, Sealed)
        whole = message if judged else self._redactor.text(message)
        if arguments and whole is message:
            record.msg, record.args = template, arguments
        else:
            record.msg, record.args = whole, None
