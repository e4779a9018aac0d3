"""The log pipeline of one service: levels, fields, ids of the current span, one write per line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.logs.adoption import LogAdoption
from healthobs.logs.forwarding import Forward
from healthobs.logs.names import LoggerNames
from healthobs.logs.noting import noting
from healthobs.logs.origins import application_is_here
from healthobs.logs.records import Rendered, current_ids
from healthobs.logs.stdlib import StdlibCapture
from healthobs.logs.substitutes import exception_of
from healthobs.redaction import Redactor, describe_exception
from healthobs.tenancy import here

LogMode = Literal["own", "processor", "off"]
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_ALIASES = {"warn": "warning", "exception": "error", "fatal": "critical"}
_NEVER = 1_000
#: What is wrong with asking for both.
CAPTURE_BESIDE_PROCESSOR = (
    "capture_stdlib and logs='processor' exclude each other: the handler it puts in place of the application's would "
    "take healthobs' own lines up again, and none would be written; processor redacts what is there already"
)
# Line separators of Unicode that JSON leaves alone, but at which readers split lines.
_SEPARATORS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def _unknown(_value: object) -> str:
    """Stand in for a value that JSON cannot hold."""
    return "[PHI:type]"


_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_unknown)
_ASCII_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_unknown)


class Logs:
    """Write JSON lines.

    Args:
        settings: Service name and lowest level; `disabled` writes nothing, and redacts what others write as `mode` says.
        redactor: Decides on every field and event.
        clock: When.
        stream: Where; default the `sys.stdout` of the moment of writing.
        on_error: Called with ``logs`` for each line that could not be written.
        mode: ``own`` writes JSON lines; ``processor`` writes through the structlog or standard-library set-up
            that is there, and puts ids and redaction into it, until `release`; ``off`` writes nothing.
            With ``own``, a service that declares PHI (framework ``hipaa``) has the handlers and structlog
            processors that are there redacted too, until `release`; they keep their format.

    Example:
        >>> import io
        >>> stream = io.StringIO()
        >>> logs = Logs(Settings(service_name="demo"), Redactor(), Clock(lambda: 0), stream)
        >>> logs.emit("info", "patient_found", {"mrn": "A-1234", "count": 1})
        >>> line = json.loads(stream.getvalue())
        >>> line["timestamp"], line["event"], line["mrn"], line["count"]
        ('1970-01-01T00:00:00.000000Z', 'patient_found', '[PHI:key]', 1)
    """

    def __init__(
        self,
        settings: Settings,
        redactor: Redactor,
        clock: Clock,
        stream: TextIO | None = None,
        *,
        on_error: Callable[[str], None] | None = None,
        mode: LogMode = "own",
    ) -> None:
        self.failures: int = 0
        self.mode: LogMode = mode
        self._service = settings.service_name
        self._lowest = _NEVER if settings.disabled or mode == "off" else _LEVELS[settings.log_level]
        self._tenants = settings.tenants
        self._names = dict(pair.split("=", 1) for pair in settings.log_fields)
        self._root_level = _LEVELS[settings.log_level]
        self._redactor = redactor
        self._clock = clock
        self._stream = stream
        self._on_error = on_error
        self._second = (-1, "")
        self._complained: set[tuple[str, str]] = set()
        self._capture: StdlibCapture | None = None
        self._loggers = LoggerNames(redactor)
        if not settings.disabled:
            application_is_here()
        self._adoption: LogAdoption | None = None
        self._forward: Forward | None = None
        if mode == "processor" or (mode == "own" and "hipaa" in settings.frameworks):
            # What else writes in this process is redacted in its own format, also while telemetry is switched off.
            writes = mode == "processor" and not settings.disabled
            ids = self._ids if writes else dict
            self._adoption = LogAdoption(redactor, self._exception_fields, ids, self._loggers)
            self._forward = Forward() if writes else None
        self._lock = threading.RLock()
        _protect_in_forks(self)

    def emit(
        self,
        level: str,
        event: str,
        fields: Mapping[str, object] | None = None,
        *,
        own: Mapping[str, object] | None = None,
        facts: Mapping[str, object] | None = None,
        checked: bool = False,
    ) -> None:
        """Write one line; never raises.

        Args:
            level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``; unknown ones count as ``info``.
            event: What happened, a literal such as ``payment_declined``.
            fields: Values; `exc_info` (an exception, a tuple or True) adds the exception's facts.
            own: Values of the caller's own closed vocabulary, which pass also in ``strict``.
            facts: What may be said of an exception, when that is known already.
            checked: Whether `event` is as it may leave but for patterns.
        """
        level = _ALIASES.get(level, level)
        if _LEVELS.get(level, 20) < self._lowest:
            return
        try:
            redact = self._redactor.text if checked else self._redactor.name
            line = self._line(level if level in _LEVELS else "info", redact(event), fields, own, facts)
            self._write(line)
        except Exception:  # noqa: BLE001  # a fault of telemetry is not the caller's
            self._failed()

    def writes(self, level: str) -> bool:
        """Return whether a line of this level is written, by what is set here and by the set-up that it goes through."""
        forwarded = self._forward is None or self._forward.passes(level)
        return _LEVELS[level] >= self._lowest and forwarded

    def fault(self, component: str, part: str, exc: BaseException) -> None:
        """Write one line, ``telemetry_fault``, for the first fault of each part of `component`; never raises.

        Args:
            component: As it is counted (`healthobs_internal_errors_total`).
            part: Which part of it, of a closed vocabulary.
            exc: What was raised.
        """
        if (component, part) not in self._complained:
            self._complained.add((component, part))
            own = {"component": component, "part": part}
            self.emit("error", "telemetry_fault", {"exc_info": exc}, own=own)

    def access(self, fields: Mapping[str, Any]) -> None:
        """Write the ``http_request`` line of one exchange, whose fields are safe already.

        It is of level error for a 5xx, and where an exception broke what had begun with another status.

        Args:
            fields: Values made by the exchange from closed vocabularies and numbers, never from a request's
                content; `trace_id` and `span_id` among them stand for the current span's.
        """
        status = fields.get("status")
        failed = "exception_type" in fields or (type(status) is int and status >= 500)
        level = "error" if failed else "info"
        if self._lowest > _LEVELS[level]:
            return
        try:
            line: dict[str, Any] = {
                "timestamp": self._timestamp(),
                "level": level,
                "event": "http_request",
                "service": self._service,
            }
            if "trace_id" not in fields:
                line["trace_id"], line["span_id"] = current_ids()
            if self._tenants:
                line |= self._tenant()
            line.update(fields)
            self._write(line)
        except Exception:  # noqa: BLE001  # a fault of telemetry is not the caller's
            self._failed()

    def get_logger(self, name: str | None = None) -> FilteringBoundLogger:
        """Return a structlog logger that writes the same lines; structlog's own set-up is not touched.

        Args:
            name: Goes into the field `logger`.
        """
        level = logging.CRITICAL if self._lowest == _NEVER else self._lowest
        logger = structlog.wrap_logger(
            None,
            processors=[structlog.contextvars.merge_contextvars, self._from_structlog],
            wrapper_class=noting(structlog.make_filtering_bound_logger(level), self._redactor),
            context_class=dict,
        )
        if name is not None and self._loggers.is_written(name):
            self._redactor.written(name)
        bound = logger if name is None else logger.bind(logger=name)
        return cast("FilteringBoundLogger", bound)

    def capture_stdlib(self) -> None:
        """Put one redacting handler in place of the root logger's handlers, and take up `warnings`.

        `release_stdlib` gives everything back as it was. Calling it twice changes nothing;
        nor does calling it when telemetry is disabled.

        Raises:
            ConfigurationError: The mode is ``processor``, whose lines go through those handlers.
        """
        if self.mode == "processor":
            raise ConfigurationError(CAPTURE_BESIDE_PROCESSOR)
        if self._capture is None and self._lowest != _NEVER:
            self._capture = StdlibCapture(
                partial(self.emit, checked=True), self._redactor, self._root_level, self._loggers
            )

    def release_stdlib(self) -> None:
        """Undo `capture_stdlib`."""
        if self._capture is not None:
            self._capture.undo()
            self._capture = None

    def release(self) -> None:
        """Give back all that was taken over: the root logger's handlers, or a set-up's processors and filters."""
        self.release_stdlib()
        if self._adoption is not None:
            self._adoption.release()
            self._adoption = None
        if self._forward is not None:
            self._lowest = _NEVER

    def _ids(self) -> dict[str, str]:
        trace_id, span_id = current_ids()
        return {
            self._names.get("trace_id", "trace_id"): trace_id,
            self._names.get("span_id", "span_id"): span_id,
            **{self._names.get(key, key): value for key, value in self._tenant().items()},
        }

    def _tenant(self) -> dict[str, str]:
        name = here(self._tenants) if self._tenants else ""
        return {"tenant": name} if name else {}

    def _from_structlog(self, _logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        event = event_dict.pop("event", "")
        self.emit(method, event if isinstance(event, str) else "[PHI:type]", event_dict)
        raise structlog.DropEvent

    def _line(
        self,
        level: str,
        event: str,
        fields: Mapping[str, object] | None,
        own: Mapping[str, object] | None,
        facts: Mapping[str, object] | None,
    ) -> dict[str, Any]:
        trace_id, span_id = current_ids()
        line: dict[str, Any] = {
            "timestamp": self._timestamp(),
            "level": level,
            "event": event,
            "service": self._service,
            "trace_id": trace_id,
            "span_id": span_id,
        }
        if self._tenants:
            line |= self._tenant()
        for key, value in (own or {}).items():
            line[key] = self._redactor.text(str(value))
        if not fields:
            return {**line, **(facts or {})}
        plain = {key: value for key, value in fields.items() if key not in ("exc_info", "stack_info")}
        exc = exception_of(fields.get("exc_info"))
        failure = dict(facts or {}) if exc is None else self._exception_fields(exc)
        for key, value in self._redactor.mapping(plain).items():
            name = key
            while name in line or name in failure:
                name = f"field_{name}"
            line[name] = value
        line.update(failure)
        return line

    def _exception_fields(self, exc: BaseException) -> dict[str, Any]:
        facts = describe_exception(exc)
        fields: dict[str, Any] = {
            "exception_type": facts.type,
            "exception_frames": facts.frames,
            "exception_fingerprint": facts.fingerprint,
            "error_id": facts.error_id,
        }
        if facts.causes:
            fields["exception_causes"] = facts.causes
        if facts.message is not None:
            fields["exception_message"] = self._redactor.text(facts.message)
        return fields

    def _timestamp(self) -> str:
        """Format the wall time as RFC 3339; the part down to the second is kept from line to line."""
        seconds, nanoseconds = divmod(self._clock.wall_ns(), 1_000_000_000)
        second, text = self._second
        if second != seconds:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
            self._second = (seconds, text)
        return f"{text}.{nanoseconds // 1000:06d}Z"

    def _write(self, line: dict[str, Any]) -> None:
        if self._forward is not None:
            level, event = line.pop("level"), line.pop("event")
            del line["timestamp"], line["service"]  # the set-up that is there has its own
            if self._tenants and "tenant" in line:
                line["tenant"] = Rendered(line["tenant"])  # a declared name is written in no code
            self._forward(level, event, self._named(line))
            return
        if self._names:
            line = self._named(line)
        try:
            text = _JSON.encode(line)
        except ValueError:  # NaN or infinity in a line that skipped redaction
            redact = self._redactor.value
            numbers = {key: redact(key, value) for key, value in line.items() if type(value) is float}
            text = _JSON.encode({**line, **numbers})
        if not text.isascii():
            text = text.translate(_SEPARATORS)
        stream = self._stream or sys.stdout
        with self._lock:
            try:
                stream.write(text + "\n")
            except UnicodeEncodeError:  # a lone surrogate, or a stream that is not UTF-8
                stream.write(_ASCII_JSON.encode(line) + "\n")
            stream.flush()

    def _named(self, line: dict[str, Any]) -> dict[str, Any]:
        return {self._names.get(key, key): value for key, value in line.items()}

    def _failed(self) -> None:
        self.failures += 1
        if self._on_error is not None:
            with contextlib.suppress(Exception):  # nowhere left to tell
                self._on_error("logs")


def _protect_in_forks(logs: Logs) -> None:
    """Hold the lock over a fork, so that a child never inherits half a line or a lock nobody will release."""
    reference = weakref.ref(logs)

    def with_lock(action: Callable[[Any], object]) -> Callable[[], None]:
        def run() -> None:
            alive = reference()
            if alive is not None:
                action(alive._lock)  # pyright: ignore[reportPrivateUsage]

        return run

    release = with_lock(lambda lock: lock.release())
    os.register_at_fork(
        before=with_lock(lambda lock: lock.acquire()), after_in_parent=release, after_in_child=release
    )
