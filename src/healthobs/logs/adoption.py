"""A logging set-up that is there already: it keeps its format, and gains ids and redaction.

structlog gets three processors (one first, that judges the event and shields exceptions; one before the renderer;
one after it), the handlers of the standard library a filter. A handler that is added later gets it with the first
record that comes to it, and so does the one that writes when there is none. `release` takes all out again.

Limits: structlog's own renderers are known wherever they stand, another must be the last step, or its lines are marks.
Processors that are added later are not covered, nor is what a renderer adds by itself, nor a subclass of
`logging.Logger` with a `callHandlers` of its own, nor a structlog logger that keeps processors of its own
(`wrap_logger(processors=…)`, or bound before from a chain that is no list).
"""

from __future__ import annotations

import logging
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from datetime import datetime
from typing import Any, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from healthobs.logs.records import (
    STANDARD,
    Own,
    OwnTexts,
    Rendered,
    RenderedFields,
    Sealed,
    clean,
    current_ids,
    note,
    own,
)
from healthobs.logs.stdlib import DONE, CapturingHandler
from healthobs.redaction import Redactor

#: What structlog hands on in fields of its own, and what it is then; anything else under these names is a field.
_PLUMBING: Mapping[str, type[Any]] = {
    "_record": logging.LogRecord,
    "_from_structlog": bool,
    "_logger": logging.Logger,
}
_METHODS = frozenset(
    ["debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "msg"]
)
#: Methods of structlog's loggers that write from a thread pool.
_ASYNCHRONOUS = tuple(f"a{name}" for name in _METHODS)
#: Fields of a record that name what it comes from, and the names that Python gives by itself.
_ORIGINS = ("threadName", "processName", "taskName")
_GIVEN = re.compile(
    r"MainThread|MainProcess|AnyIO worker thread|healthobs-[a-z0-9_-]{1,80}|(Dummy|Thread|ThreadPoolExecutor|Task|asyncio|(Spawn|Fork|ForkServer)?(Process|PoolWorker))"
    r"[-_]\d{1,6}(?:[_:]\d{1,6})*( \([\w<>]+\))?"
)
#: A field in the format of a handler: ``%(name)s``, ``{name}`` or ``$name``.
_FORMATTED = re.compile(r"[(${]([A-Za-z_]\w*)")
#: What OpenTelemetry's instrumentation of `logging` puts into records.
_INSTRUMENTED = frozenset({"otelSpanID", "otelTraceID", "otelTraceSampled", "otelServiceName"})
#: What makes a line of an event's fields, wherever it stands in the chain.
_RENDERERS = (
    structlog.processors.JSONRenderer,
    structlog.processors.KeyValueRenderer,
    structlog.processors.LogfmtRenderer,
    structlog.dev.ConsoleRenderer,
)
_RENDERING = (
    structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    structlog.stdlib.render_to_log_kwargs,
    structlog.stdlib.render_to_log_args_and_kwargs,
)
_IDS = ("trace_id", "span_id")
_ZONES_SECONDS = 15 * 3600  #: More than any time zone is away from UTC.
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
        self._chain = _chain()
        self._stamps = {"timestamp"} | _declare(redactor, self._chain)
        place = _place(self._chain)
        # In place, because loggers that were used already keep the list itself.
        self._chain[:] = [self.shield, *self._chain[:place], self.processor, *self._chain[place:], self.seal]
        self._handlers: weakref.WeakSet[logging.Handler] = weakref.WeakSet()
        for _logger, handler in handlers():
            self._cover(handler)
        self._wrapper: type[Any] = structlog.get_config()["wrapper_class"]
        if structlog.is_configured():  # loggers that are made from now on note what is bound to them
            structlog.configure(wrapper_class=noting(self._wrapper, redactor))
        self._noting: type[Any] = structlog.get_config()["wrapper_class"]
        Hook.add(self)

    def release(self) -> None:
        """Take processors and filters out again."""
        Hook.remove(self)
        ours = (self.shield, self.processor, self.seal)
        self._chain[:] = [step for step in self._chain if step not in ours]
        if isinstance(self._chain, _Listed):
            self._chain.give_back()
        if structlog.is_configured() and structlog.get_config()["wrapper_class"] is self._noting:
            structlog.configure(wrapper_class=self._wrapper)
        for other in Hook.adoptions:  # one that came after this one has nothing of ours to give back
            if other._wrapper is self._noting:
                other._wrapper = self._wrapper
        for handler in list(self._handlers):
            while self.filter in handler.filters:
                handler.removeFilter(self.filter)

    def cover(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Put the filter on each handler that `record` of `logger` comes to."""
        note(record, self._redactor)
        for handler in _reached(logger):
            if handler not in self._handlers:
                self._cover(handler)

    def _cover(self, handler: logging.Handler) -> None:
        # A capturing one redacts by itself, and tells more of an exception.
        if not isinstance(handler, CapturingHandler):
            for name in _FORMATTED.findall(str(getattr(handler.formatter, "_fmt", ""))):
                self._redactor.written(name)
            handler.addFilter(self.filter)
            self._handlers.add(handler)

    def shield(self, _logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        """Structlog processor: judge the event, and put a safe exception in the place of the one being logged."""
        try:
            if method == "exception" and structlog.dev.set_exc_info in self._chain:
                event_dict.setdefault("exc_info", True)  # or it would be found behind us
            return self._shield(event_dict)
        except Exception:  # noqa: BLE001  # fail closed, and never raise into the application
            return _failed(event_dict)

    def _shield(self, event_dict: EventDict) -> EventDict:
        event = event_dict.get("event", "")
        if not isinstance(event, str):
            event_dict["event"] = self._marked(event)
            if event_dict["event"] is not event:
                event_dict.pop("positional_args", None)
        elif not isinstance(event, Rendered):
            event_dict["event"] = self._judged(event, event_dict.pop("positional_args", None))
        self._shield_exception(event_dict)
        return event_dict

    def _shield_exception(self, event_dict: EventDict) -> None:
        exc_info = event_dict.get("exc_info")
        exc = exception_of(exc_info)
        if exc is None:
            if "exc_info" in event_dict and exc_info is not None:
                event_dict["exc_info"] = bool(exc_info)
        elif not isinstance(exc, _Told):
            facts = self._facts(exc)
            event_dict["exc_info"] = _substitute(facts)
            _add(event_dict, own(facts))

    def _marked(self, event: object) -> Any:
        return event if self._redactor.mode == "watch" else Rendered("[PHI:type]")

    def processor(self, _logger: WrappedLogger, _method: str, event_dict: Any) -> Any:
        """Structlog processor: ids and redaction; it goes before the renderer."""
        if not isinstance(event_dict, MutableMapping):  # rendered before: too late to tell its fields apart
            return event_dict if self._redactor.mode == "watch" else _withheld(event_dict)
        fields = cast("EventDict", event_dict)
        try:
            name = getattr(_logger, "name", None)
            if isinstance(name, str) and fields.get("logger") == name:
                fields["logger"] = Own(self._redactor.text(name))
            return self._process(fields)
        except Exception:  # noqa: BLE001  # fail closed, and never raise into the application
            return _failed(fields)

    def _process(self, event_dict: EventDict) -> EventDict:
        self._shield_exception(event_dict)  # a step may have found one
        for key, value in list(event_dict.items()):
            if isinstance(value, (Own, OwnTexts)):
                continue
            if isinstance(value, Rendered):
                event_dict[key] = str(self._redactor.text(value))
            elif key == "event":
                event_dict[key] = (
                    self._redactor.name(value) if isinstance(value, str) else str(self._marked(value))
                )
            elif key == "stack_info":
                event_dict[key] = bool(value)
            elif key != "exc_info" and not _is_plumbing(key, value):
                self._redact_field(event_dict, key)
        _add(event_dict, self._ids())
        return event_dict

    def seal(self, _logger: WrappedLogger, _method: str, rendered: Any) -> Any:
        """Structlog processor: mark what was rendered, for the filter that meets it in a record; it goes last."""
        if isinstance(rendered, str):
            return Sealed(rendered)
        if isinstance(rendered, tuple):
            positional, *named = cast("Any", rendered)
            return (tuple(_sealed(one) for one in positional), *named)
        if isinstance(rendered, dict) and "msg" in rendered:
            fields = cast("dict[str, Any]", rendered)
            return {**fields, "msg": _sealed(fields["msg"])}
        return cast("Any", rendered)

    def _judged(self, event: str, arguments: Any) -> Rendered:
        record = logging.makeLogRecord({"name": "", "msg": event, "args": _unpacked(arguments)})
        template, fitting = clean(record, self._redactor)
        return Rendered(template % fitting if fitting else template)

    def filter(self, record: logging.LogRecord) -> bool:
        """Filter of the standard library: ids and redaction, in the record, before any formatter."""
        fields = record.__dict__
        if fields.get(DONE) == id(self._redactor):
            return True
        try:
            self._redact(record, fields)
        except Exception:  # noqa: BLE001  # fail closed: what cannot be redacted keeps only its place and level
            record.msg, record.args, record.exc_info, record.exc_text = "[PHI:error]", None, None, None
            for key in fields.keys() - STANDARD:
                del fields[key]
            fields.update(dict.fromkeys(_ORIGINS, "[PHI:error]"))
        fields[DONE] = id(self._redactor)
        return True

    def _redact(self, record: logging.LogRecord, fields: MutableMapping[str, Any]) -> None:
        if self._redactor.mode != "watch":
            # uvicorn's second template, which would take the first one's place
            fields.pop("color_message", None)
            if record.name.startswith("celery."):
                fields.pop("data", None)  # arguments, id and exception of the task
        for key in fields.keys() - STANDARD:
            if isinstance(fields[key], (Own, OwnTexts)):
                continue
            if isinstance(fields[key], Rendered):
                fields[key] = str(self._redactor.text(fields[key]))
            elif not _is_plumbing(key, fields[key]):
                self._redact_field(fields, key)
        for key in _ORIGINS:
            name = fields.get(key)
            if isinstance(name, str) and not _GIVEN.fullmatch(name):
                fields[key] = self._redactor.name(name)
        exc = exception_of(record.exc_info)
        record.exc_text = None  # made of the exception again, or by a process whose exception is not here
        if exc is not None and not isinstance(exc, _Told):
            facts = self._facts(exc)
            record.exc_info = _substitute(facts)
            _add(fields, own(facts))
        message: Any = record.msg
        if isinstance(message, dict):
            # structlog's, on its way to its own formatter, are redacted already when they are sealed
            if not isinstance(message, RenderedFields):
                record.msg = cast("Any", self._mapping(cast("dict[str, object]", message)))
        else:
            self._redact_message(record)
        _add(fields, self._ids())

    def _redact_field(self, fields: MutableMapping[str, Any], key: str) -> None:
        """Redact one field; a name that may not leave goes, and its value with it."""
        value = fields[key]
        if (key in self._stamps and _is_now(value)) or (
            key in _IDS and type(value) is str and value in current_ids()
        ):
            return
        name = self._redactor.key(key)
        if name == key or self._redactor.mode == "watch":
            fields[key] = self._redactor.value(key, fields[key])
            return
        del fields[key]
        unique, number = name, 2
        while unique in fields:
            unique, number = f"{name}_{number}", number + 1
        fields[unique] = "[PHI:key]"

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


def exception_of(exc_info: object) -> BaseException | None:
    """Return the exception that `exc_info` means, in any of the forms of the standard library."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        parts = cast("tuple[object, ...]", exc_info)
        return parts[1] if len(parts) == 3 and isinstance(parts[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _is_plumbing(key: str, value: object) -> bool:
    """Return whether `value` is what structlog, or our own filter, puts under `key`; not by its name alone."""
    if key == "_name":
        return value in _METHODS if isinstance(value, str) else False
    return isinstance(value, _PLUMBING.get(key, ())) or (key == DONE and type(value) is int)


def noting(base: type[Any], redactor: Redactor) -> type[Any]:
    """Return a logger that notes, where fields are bound, which of their names are written in the code."""
    if not redactor.strict:
        return base

    def bind(self: Any, **new_values: Any) -> Any:
        redactor.note(new_values)
        return base.bind(self, **new_values)

    def looking(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *texts: Any, **fields: Any) -> Any:
            # Now: the line is written on another thread, where no caller is on the stack.
            redactor.note(fields)
            for text in texts:
                if type(text) is str:
                    redactor.is_written(text)
            return method(self, *texts, **fields)

        return call

    later = {name: looking(getattr(base, name)) for name in _ASYNCHRONOUS if hasattr(base, name)}
    return type("NotingLogger", (base,), {"bind": bind, **later})


class _Told(Exception):  # noqa: N818 - rendered under the name of another
    """Base of what stands in for an exception: it holds only what may be said."""


def _substitute(facts: Mapping[str, Any]) -> Any:
    """Return an `exc_info` that renders as the exception's type and what may be said of it; no source, no locals.

    Its places in the code are notes (PEP 678), which every formatter writes below it in its own way.
    """
    message = facts.get("exception_message")
    identified = f"error_id={facts['error_id']}"
    kind = type(str(facts["exception_type"]).rpartition(".")[2], (_Told,), {"__module__": "builtins"})
    told = kind(f"{message} ({identified})" if message else identified)
    causes = facts.get("exception_causes", ())
    for place in (*facts["exception_frames"], *(f"caused by {cause}" for cause in causes)):
        told.add_note(f"  {place}")
    return kind, told, None


def _declare(redactor: Redactor, chain: Sequence[Any]) -> set[str]:
    """Remember the names of fields that the set-up itself adds, for they are configuration; return those of times."""
    names = {str(getattr(parameter, "value", "")) for parameter in structlog.processors.CallsiteParameter}
    keys = [(step, key) for step in chain if isinstance(key := getattr(step, "key", None), str)]
    for name in (*names, *_INSTRUMENTED, *(key for _, key in keys), "exception", "stack"):
        redactor.written(name)
    return {key for step, key in keys if isinstance(step, structlog.processors.TimeStamper)}


def _is_now(value: object) -> bool:
    """Return whether `value` is the time of the line itself, in whatever time zone: it is nobody's."""
    try:
        if isinstance(value, str):
            if "T" not in value and " " not in value:  # a day is somebody's: of birth, of admission
                return False
            value = datetime.fromisoformat(value).timestamp()
        return isinstance(value, (int, float)) and abs(value - time.time()) < _ZONES_SECONDS
    except (ValueError, OverflowError, OSError):  # no time, or none that a computer can name
        return False


def _place(chain: Sequence[Any]) -> int:
    """Return where the fields are complete and not rendered yet: before the first renderer that is known, or the last step.

    Another adoption's processor stands there already.
    """
    others = [one.processor for one in Hook.adoptions]
    for place, step in enumerate(chain):
        if isinstance(step, _RENDERERS) or step in _RENDERING or step in others:
            return place
    return max(len(chain) - 1, 0)


def _withheld(rendered: object) -> Any:
    """Return a mark of the same type as `rendered`, for the step that takes it up."""
    mark = "[PHI:type]"
    if isinstance(rendered, (bytes, bytearray)):
        return type(rendered)(mark.encode())
    return ((mark,), {}) if isinstance(rendered, tuple) else mark


def _failed(event_dict: EventDict) -> EventDict:
    event_dict.clear()
    event_dict["event"] = "[PHI:error]"
    return event_dict


def _add(fields: MutableMapping[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        fields.setdefault(key, value)


def _sealed(rendered: Any) -> Any:
    if isinstance(rendered, str):
        return Sealed(rendered)
    return RenderedFields(cast("dict[str, Any]", rendered)) if isinstance(rendered, dict) else rendered


def _unpacked(arguments: Any) -> Any:
    """Return positional arguments as `logging` understands them: a single mapping is for ``%(name)s``."""
    if arguments and len(arguments) == 1 and isinstance(arguments[0], Mapping):
        return arguments[0]
    return arguments


def _chain() -> list[Any]:
    """Return structlog's processors, also when it was not configured: its default prints."""
    chain: Iterable[Any] = structlog.get_config()["processors"]
    if not isinstance(chain, list):
        chain = _Listed(chain)
        structlog.configure(processors=chain)
    return chain


class _Listed(list[Any]):
    """Stands in for processors that were given as something that cannot be changed, a tuple."""

    def __init__(self, given: Iterable[Any]) -> None:
        super().__init__(given)
        self._given = given

    def give_back(self) -> None:
        """Configure what was given again, when this is in force and holds nothing else."""
        if structlog.get_config()["processors"] is self and self == list(self._given):
            structlog.configure(processors=self._given)


def _reached(logger: logging.Logger) -> Iterator[logging.Handler]:
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


class Hook:
    """Has the handlers that a record will come to covered, while there is an adoption."""

    adoptions: tuple[LogAdoption, ...] = ()
    original: Callable[[logging.Logger, logging.LogRecord], None] | None = None

    @classmethod
    def is_reached(cls) -> bool:
        """Return whether each record comes by here, for an adoption to cover the handlers that it goes to."""
        return bool(cls.adoptions) and logging.Logger.callHandlers is _call_handlers

    @classmethod
    def add(cls, adoption: LogAdoption) -> None:
        """Stand in front of `logging`, for the first adoption."""
        if cls.original is None:
            cls.original = logging.Logger.callHandlers
            _replace(_call_handlers)
        cls.adoptions = (*cls.adoptions, adoption)

    @classmethod
    def remove(cls, adoption: LogAdoption) -> None:
        """Step aside, after the last; when somebody else has stepped in front since, we only pass records on."""
        cls.adoptions = tuple(one for one in cls.adoptions if one is not adoption)
        if not cls.adoptions and logging.Logger.callHandlers is _call_handlers and cls.original is not None:
            _replace(cls.original)
            cls.original = None


def _replace(call_handlers: Callable[[logging.Logger, logging.LogRecord], None]) -> None:
    setattr(logging.Logger, "callHandlers", call_handlers)  # noqa: B010 - a method is no attribute to mypy


def _call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
    original = Hook.original
    for adoption in Hook.adoptions:
        adoption.cover(logger, record)
    if original is not None:
        original(logger, record)


def handlers() -> Iterator[tuple[logging.Logger, logging.Handler]]:
    """Yield the handlers of each logger that there is."""
    root = logging.getLogger()
    for logger in (root, *list(root.manager.loggerDict.values())):
        if isinstance(logger, logging.Logger):
            yield from ((logger, handler) for handler in logger.handlers)


class Forward:
    """Writes healthobs' own lines through the set-up that is there: structlog's when configured, else `logging`'s."""

    def __call__(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Write one line whose fields are safe already."""
        fields = own(fields)
        if structlog.is_configured():
            safe = {f"field_{key}" if key == "event" else key: value for key, value in fields.items()}
            getattr(structlog.get_logger("healthobs"), level)(Rendered(event), **safe)
            return
        extra = {f"field_{key}" if key in STANDARD else key: value for key, value in fields.items()}
        logging.getLogger("healthobs").log(
            logging.getLevelNamesMapping()[level.upper()], Rendered(event), extra=extra
        )
