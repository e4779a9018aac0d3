"""Three processors in structlog's chain: one first, one before the renderer, one after it.

The first judges the event and shields exceptions, while the caller's values are still apart; the second redacts the
fields once they are complete; the last marks what was rendered, for the filter that meets it in a record
(`healthobs.logs.filtering`).

Limits: structlog's own renderers are known wherever they stand, another must be the last step, or its lines are marks.
Processors that are added later are not covered, nor is what a renderer adds by itself, nor a logger that keeps
processors of its own (`wrap_logger(processors=…)`, or bound before from a chain that is no list).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from healthobs.logs.fields import FieldRedactor
from healthobs.logs.names import LoggerNames
from healthobs.logs.noting import noting
from healthobs.logs.records import Own, OwnTexts, Rendered, RenderedFields, Sealed, clean
from healthobs.logs.substitutes import exception_of
from healthobs.redaction import Redactor

#: Fields that mean something to structlog.
_STRUCTLOGS = ("event", "exc_info", "stack_info")
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


class StructlogChain:
    """Redacts what structlog's processors make, until `release`.

    Args:
        redactor: Decides.
        fields: Redacts the fields of an event.
        names: Decides on names of loggers.
    """

    #: Those that have processors in the chain now, oldest first.
    in_force: ClassVar[tuple[StructlogChain, ...]] = ()

    def __init__(self, redactor: Redactor, fields: FieldRedactor, names: LoggerNames) -> None:
        self._redactor = redactor
        self._names = names
        self._fields = fields
        self._steps = _steps()
        fields.stamps |= _declare(redactor, self._steps)
        place = _place(self._steps)
        # In place, because loggers that were used already keep the list itself.
        self._steps[:] = [self.shield, *self._steps[:place], self.processor, *self._steps[place:], self.seal]
        self._wrapper: type[Any] = structlog.get_config()["wrapper_class"]
        if structlog.is_configured():  # loggers that are made from now on note what is bound to them
            structlog.configure(wrapper_class=noting(self._wrapper, redactor))
        self._noting: type[Any] = structlog.get_config()["wrapper_class"]
        StructlogChain.in_force = (*self.in_force, self)

    def release(self) -> None:
        """Take the processors out again."""
        StructlogChain.in_force = tuple(one for one in self.in_force if one is not self)
        ours = (self.shield, self.processor, self.seal)
        self._steps[:] = [step for step in self._steps if step not in ours]
        if isinstance(self._steps, _Listed):
            self._steps.give_back()
        if structlog.is_configured() and structlog.get_config()["wrapper_class"] is self._noting:
            structlog.configure(wrapper_class=self._wrapper)
        for other in self.in_force:  # one that came after this one has nothing of ours to give back
            if other._wrapper is self._noting:
                other._wrapper = self._wrapper

    def shield(self, _logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        """Structlog processor: judge the event, and put a safe exception in the place of the one being logged."""
        try:
            if method == "exception" and structlog.dev.set_exc_info in self._steps:
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
        if exc is not None:
            self._fields.tell(event_dict, exc)
        elif exc_info is not None:
            event_dict["exc_info"] = (
                False  # True would have a later step look for the one that is being handled
            )

    def _marked(self, event: object) -> Any:
        return event if self._redactor.mode == "watch" else Rendered("[PHI:type]")

    def _judged(self, event: str, arguments: Any) -> Rendered:
        record = logging.makeLogRecord({"name": "", "msg": event, "args": _unpacked(arguments)})
        template, fitting = clean(record, self._redactor)
        return Rendered(template % fitting if fitting else template)

    def processor(self, _logger: WrappedLogger, _method: str, event_dict: Any) -> Any:
        """Structlog processor: ids and redaction; it goes before the renderer."""
        if not isinstance(event_dict, MutableMapping):  # rendered before: too late to tell its fields apart
            return event_dict if self._redactor.mode == "watch" else _withheld(event_dict)
        fields = cast("EventDict", event_dict)
        try:
            name = getattr(_logger, "name", None)
            if isinstance(name, str) and fields.get("logger") == name:
                fields["logger"] = Own(self._names.shown(name))
            return self._process(fields)
        except Exception:  # noqa: BLE001  # fail closed, and never raise into the application
            return _failed(fields)

    def _process(self, event_dict: EventDict) -> EventDict:
        self._shield_exception(event_dict)  # a step may have found one
        others: list[str] = []
        for key, value in list(event_dict.items()):
            if key not in _STRUCTLOGS or isinstance(value, (Own, OwnTexts, Rendered)):
                others.append(key)
            elif key == "event":
                event_dict[key] = (
                    self._redactor.name(value) if isinstance(value, str) else str(self._marked(value))
                )
            elif key == "stack_info":
                event_dict[key] = bool(value)
        self._fields.redact(event_dict, others)
        self._fields.add_ids(event_dict)
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


def _steps() -> list[Any]:
    """Return structlog's processors, also when it was not configured: its default prints."""
    steps: Iterable[Any] = structlog.get_config()["processors"]
    if not isinstance(steps, list):
        steps = _Listed(steps)
        structlog.configure(processors=steps)
    return steps


class _Listed(list[Any]):
    """Stands in for processors that were given as something that cannot be changed, a tuple."""

    def __init__(self, given: Iterable[Any]) -> None:
        super().__init__(given)
        self._given = given

    def give_back(self) -> None:
        """Configure what was given again, when this is in force and holds nothing else."""
        if structlog.get_config()["processors"] is self and self == list(self._given):
            structlog.configure(processors=self._given)


def _declare(redactor: Redactor, steps: Sequence[Any]) -> set[str]:
    """Remember the names of fields that the set-up itself adds, for they are configuration; return those of times."""
    names = {str(getattr(parameter, "value", "")) for parameter in structlog.processors.CallsiteParameter}
    keys = [(step, key) for step in steps if isinstance(key := getattr(step, "key", None), str)]
    for name in (*names, *_INSTRUMENTED, *(key for _, key in keys), "exception", "stack"):
        redactor.written(name)
    return {key for step, key in keys if isinstance(step, structlog.processors.TimeStamper)}


def _place(steps: Sequence[Any]) -> int:
    """Return where the fields are complete and not rendered yet: before the first renderer that is known, or the last step.

    Another adoption's processor stands there already.
    """
    others = [one.processor for one in StructlogChain.in_force]
    for place, step in enumerate(steps):
        if isinstance(step, _RENDERERS) or step in _RENDERING or step in others:
            return place
    return max(len(steps) - 1, 0)


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


def _sealed(rendered: Any) -> Any:
    if isinstance(rendered, str):
        return Sealed(rendered)
    return RenderedFields(cast("dict[str, Any]", rendered)) if isinstance(rendered, dict) else rendered


def _unpacked(arguments: Any) -> Any:
    """Return positional arguments as `logging` understands them: a single mapping is for ``%(name)s``."""
    if arguments and len(arguments) == 1 and isinstance(arguments[0], Mapping):
        return arguments[0]
    return arguments
