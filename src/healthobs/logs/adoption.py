"""A logging set-up that is there already: it keeps its format, and gains ids and redaction.

structlog gets two processors (one first, that shields exceptions; one before the renderer), the handlers of the
standard library a filter. `release` takes them out again.

Limits: handlers and processors that are added later are not covered; nor is what a renderer adds by itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from healthobs.redaction import Redactor

_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_DONE = "_healthobs_done"
_PLUMBING = frozenset({"exc_info", "stack_info", "_record", "_from_structlog", "_logger", "_name"})
#: Free text; an exception's message is there only when it is a literal of the code.
_TEXTS = frozenset({"event", "exception_message"})
#: Returns an exception's fields as they may leave.
Facts = Callable[[BaseException], Mapping[str, Any]]
#: Returns trace id and span id of the moment, by the names of their fields.
Ids = Callable[[], Mapping[str, str]]


class LogAdoption:
    """Redacts what an existing set-up writes, until `release`.

    Args:
        redactor: Decides.
        facts: Tells what may be said of an exception.
        ids: Tells where in a trace a line belongs.
    """

    def __init__(self, redactor: Redactor, facts: Facts, ids: Ids) -> None:
        self._redactor = redactor
        self._facts = facts
        self._ids = ids
        self._chain = _configured_chain()
        if self._chain is not None:
            # In place, because loggers that were used already keep the list itself.
            self._chain.insert(0, self.shield)
            self._chain.insert(len(self._chain) - 1, self.processor)
        self._handlers = _handlers()
        for handler in self._handlers:
            handler.addFilter(self.filter)

    def release(self) -> None:
        """Take processors and filters out again."""
        if self._chain is not None:
            self._chain[:] = [step for step in self._chain if step not in (self.shield, self.processor)]
        for handler in self._handlers:
            handler.removeFilter(self.filter)

    def shield(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        """Structlog processor: put a safe exception in the place of the one that is being logged."""
        exc = exception_of(event_dict.get("exc_info"))
        if exc is not None:
            facts = self._facts(exc)
            event_dict["exc_info"] = _substitute(facts)
            _add(event_dict, facts)
        return event_dict

    def processor(self, _logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        """Structlog processor: ids and redaction; it goes before the renderer."""
        for key, value in list(event_dict.items()):
            if key in _TEXTS and isinstance(value, str):
                event_dict[key] = self._redactor.text(value)
            elif key not in _PLUMBING:
                event_dict[key] = self._redactor.value(key, value)
        _add(event_dict, self._ids())
        return event_dict

    def filter(self, record: logging.LogRecord) -> bool:
        """Filter of the standard library: ids and redaction, in the record, before any formatter."""
        fields = record.__dict__
        if _DONE in fields:
            return True
        try:
            self._redact(record, fields)
        except Exception:  # noqa: BLE001  # fail closed: what cannot be redacted keeps only its place and level
            record.msg, record.args, record.exc_info, record.exc_text = "[PHI:error]", None, None, None
        fields[_DONE] = True
        return True

    def _redact(self, record: logging.LogRecord, fields: MutableMapping[str, Any]) -> None:
        redact = self._redactor.value
        for key in fields.keys() - _RECORD:
            if not key.startswith("_"):
                fields[key] = redact(key, fields[key])
        exc = exception_of(record.exc_info)
        if exc is not None:
            facts = self._facts(exc)
            record.exc_info, record.exc_text = _substitute(facts), None
            _add(fields, facts)
        message: Any = record.msg
        if isinstance(message, dict):  # structlog's, on its way to its own formatter, is redacted already
            if "_from_structlog" not in fields:
                record.msg = cast("Any", self._redactor.mapping(cast("dict[str, object]", message)))
        else:
            self._redact_message(record)
        _add(fields, self._ids())

    def _redact_message(self, record: logging.LogRecord) -> None:
        redact = self._redactor.value
        if not isinstance(record.msg, str):
            record.msg = cast("str", redact("message", record.msg))
        arguments: Any = record.args
        if isinstance(arguments, Mapping):
            named = cast("Mapping[str, object]", arguments)
            record.args = {key: redact(key, value) for key, value in named.items()}
        elif arguments:
            record.args = tuple(redact("argument", value) for value in arguments)
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001  # a mark under %d: the template alone says enough
            message, record.args = record.msg, None
        clean = self._redactor.text(message)
        if clean is not message or record.args is None:
            record.msg, record.args = clean, None


def exception_of(exc_info: object) -> BaseException | None:
    """Return the exception that `exc_info` means, in any of the forms of the standard library."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        parts = cast("tuple[object, ...]", exc_info)
        return parts[1] if len(parts) == 3 and isinstance(parts[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _substitute(facts: Mapping[str, Any]) -> Any:
    """Return an `exc_info` that renders as the exception's type and what may be said of it; no source, no locals."""
    told = facts.get("exception_message") or f"error_id={facts['error_id']}"
    kind = type(str(facts["exception_type"]).rpartition(".")[2], (Exception,), {"__module__": "builtins"})
    return kind, kind(told), None


def _add(fields: MutableMapping[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        fields.setdefault(key, value)


def _configured_chain() -> list[Any] | None:
    if not structlog.is_configured():
        return None
    chain: Sequence[Any] = structlog.get_config()["processors"]
    return chain if isinstance(chain, list) and chain else None


def _handlers() -> list[logging.Handler]:
    known: list[Any] = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    found = {id(h): h for logger in known if isinstance(logger, logging.Logger) for h in logger.handlers}
    return list(found.values())


class Forward:
    """Writes healthobs' own lines through the set-up that is there: structlog's when configured, else `logging`'s."""

    def __call__(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Write one line whose fields are safe already."""
        if structlog.is_configured():
            safe = {f"field_{key}" if key == "event" else key: value for key, value in fields.items()}
            getattr(structlog.get_logger("healthobs"), level)(event, **safe)
            return
        extra = {f"field_{key}" if key in _RECORD else key: value for key, value in fields.items()}
        logging.getLogger("healthobs").log(logging.getLevelNamesMapping()[level.upper()], event, extra=extra)
