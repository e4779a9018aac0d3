"""OpenTelemetry's own log records: those of the process's LoggerProvider are redacted before any exporter has them.

OpenTelemetry Logs SDK, "LogRecordProcessor": processors are called in their order, and each sees what those before it
changed. The one placed first here redacts.

Limits: a provider that is set later is not covered, nor one that calls its processors at once, nor the attributes of
OpenTelemetry's meters; `raw` names them, and with it the control G-wrap.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from healthobs.logs.names import LoggerNames
from healthobs.logs.stdlib import DONE
from healthobs.redaction import Redactor, scopes

_ONE_AFTER_ANOTHER = "SynchronousMultiLogRecordProcessor"
#: What the SDK makes of a record's exception, besides its type; the names of the convention pass in `strict`, too.
_EXCEPTIONS = ("exception.message", "exception.stacktrace")
#: Short names of severities (OpenTelemetry logs data model, "Displaying Severity").
_SEVERITY = re.compile("(?:TRACE|DEBUG|INFO|WARN|ERROR|FATAL)[2-4]?")


class OtelRecords:
    """Redacts the records of the LoggerProvider that is in force, until `release`.

    Args:
        redactor: Decides.
        names: Decides on names of scopes, which are those of loggers.
    """

    def __init__(self, redactor: Redactor, names: LoggerNames) -> None:
        self._first = _Redacting(redactor, names)
        self._chain = _chain(_provider("_logs", "get_logger_provider"))
        if self._chain is not None:
            with self._chain._lock:
                self._chain._log_record_processors = (self._first, *self._chain._log_record_processors)

    def release(self) -> None:
        """Take it out again."""
        if self._chain is not None:
            with self._chain._lock:
                others = (one for one in self._chain._log_record_processors if one is not self._first)
                self._chain._log_record_processors = tuple(others)


class _Redacting:
    """Redacts a record: scope and severity, and body and attributes where no handler of the standard library did."""

    def __init__(self, redactor: Redactor, names: LoggerNames) -> None:
        self._redactor = redactor
        self._names = names
        for key in _EXCEPTIONS:
            redactor.written(key)

    def on_emit(self, log_record: Any) -> None:
        """Redact one."""
        record: Any = log_record.log_record
        if self._redactor.mode != "watch" and getattr(record, "exception", None) is not None:
            record.exception = None  # what may be said of it is in the attributes
        try:
            attributes = dict(record.attributes or {})
            if attributes.pop(DONE, None) != id(self._redactor):
                attributes = self._redactor.mapping(attributes)
                record.body = self._body(record.body)
                record.event_name = self._text(record.event_name)
            record.attributes = attributes
            record.severity_text = self._severity(record.severity_text)
            log_record.instrumentation_scope = self._scope(log_record.instrumentation_scope)
        except Exception:  # noqa: BLE001 - fail closed: it keeps its time, level and trace
            record.body, record.attributes, record.event_name = "[PHI:error]", {}, None
            record.severity_text = log_record.instrumentation_scope = None

    def _severity(self, text: str | None) -> str | None:
        return text if text and _SEVERITY.fullmatch(text) and type(text) is str else self._text(text)

    def _scope(self, scope: Any) -> Any:
        if scope is None:
            return None
        return scopes.redacted(scope, self._redactor, self._names.shown, signal="log")

    def _body(self, body: Any) -> Any:
        return self._text(body) if isinstance(body, str) else self._redactor.value("body", body)

    def _text(self, text: str | None) -> str | None:
        return self._redactor.name(text) if text else text

    def enabled(self, **_: Any) -> bool:
        """Leave it to the others whether a record is wanted."""
        return False

    def shutdown(self) -> None:
        """Hold nothing."""

    def force_flush(self, *_: object, **__: object) -> bool:
        """Hold nothing."""
        return True


def raw() -> Iterator[str]:
    """Yield what of OpenTelemetry exports records or samples of the process unredacted."""
    records = getattr(_provider("_logs", "get_logger_provider"), "_multi_log_record_processor", None)
    there: tuple[object, ...] = getattr(records, "_log_record_processors", ())
    if there and not (type(records).__name__ == _ONE_AFTER_ANOTHER and isinstance(there[0], _Redacting)):
        yield "OpenTelemetry's LoggerProvider"
    if getattr(_provider("metrics", "get_meter_provider"), "_metric_readers", ()):
        yield "OpenTelemetry's MeterProvider"


def _provider(part: str, get: str) -> Any:
    """Return the provider in force; None where nobody imported the SDK of it, which is dear."""
    if f"opentelemetry.sdk.{part}" not in sys.modules:
        return None
    return getattr(sys.modules[f"opentelemetry.{part}"], get)()


def _chain(provider: Any) -> Any:
    """Return what calls the provider's processors; None where it does not call one after another."""
    chain = getattr(provider, "_multi_log_record_processor", None)
    return chain if type(chain).__name__ == _ONE_AFTER_ANOTHER else None
