"""The standard library's logging and warnings, taken up into redacted lines and given back as they were.

A message that the caller formatted (an f-string) is scanned for patterns; in ``strict`` it is replaced, because it
is not written in the code.

Limits: a logger with handlers of its own and ``propagate = False`` keeps them; `LogAdoption` redacts
those where the service declares PHI.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

from healthobs.logs.names import LoggerNames
from healthobs.logs.records import clean, complete, note
from healthobs.redaction import Redactor

#: Loggers whose messages below a level carry raw paths and query strings.
_NOISY = {"urllib3": logging.WARNING, "werkzeug": logging.WARNING, "gunicorn.access": logging.CRITICAL}
_LEVELS = ((50, "critical"), (40, "error"), (30, "warning"), (20, "info"))

#: In a record whose content has been redacted already: by which redactor.
DONE = "_healthobs_done"
_FACTS = (
    "exception_type", "exception_frames", "exception_fingerprint", "exception_causes", "error_id",
)  # fmt: skip

#: `Logs.emit` of events that are judged already.
Emit = Callable[..., None]


class StdlibCapture:
    """Replace the root logger's handlers by one that redacts, until `undo`.

    Args:
        emit: Writes one line.
        redactor: Decides on the arguments of a message before they are put into it.
        level: The root logger's level in the meantime.
        names: Decides on names of loggers.
    """

    def __init__(self, emit: Emit, redactor: Redactor, level: int, names: LoggerNames) -> None:
        root, warner = logging.getLogger(), logging.getLogger("py.warnings")
        self._handlers, self._level = root.handlers[:], root.level
        self._warning_handlers = warner.handlers[:]
        showing = warnings.showwarning
        logging.captureWarnings(True)
        self._took_warnings = warnings.showwarning is not showing
        root.handlers[:] = [CapturingHandler(emit, redactor, names)]
        root.setLevel(level)

    def undo(self) -> None:
        """Give handlers, level and warnings back."""
        root = logging.getLogger()
        root.handlers[:] = self._handlers
        root.setLevel(self._level)
        if self._took_warnings:
            logging.captureWarnings(False)
        logging.getLogger("py.warnings").handlers[:] = self._warning_handlers


class CapturingHandler(logging.Handler):
    """Turn records into lines."""

    def __init__(self, emit: Emit, redactor: Redactor, names: LoggerNames) -> None:
        super().__init__()
        self._emit_line = emit
        self._redactor = redactor
        self._names = names

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line for `record`; never raises."""
        try:
            complete(record)
            self._emit(record)
        except Exception:  # noqa: BLE001  # fail closed, as the filter of `LogAdoption` does
            self._emit_line("error", "[PHI:error]")

    def _emit(self, record: logging.LogRecord) -> None:
        lowest = _NOISY.get(record.name, _NOISY.get(record.name.partition(".")[0], 0))
        if record.levelno < lowest:
            return
        note(record, self._redactor)
        own = {"logger": self._names.shown(record.name)}
        done = record.__dict__
        # On its way here it passed a handler that `LogAdoption` covers
        if done.get(DONE) == id(self._redactor):
            facts = {key: done[key] for key in _FACTS if key in done}
            self._emit_line(_level_name(record.levelno), record.getMessage(), own=own, facts=facts)
            return
        fields = {"exc_info": record.exc_info} if record.exc_info else None
        self._emit_line(_level_name(record.levelno), self._message(record), fields, own=own)

    def _message(self, record: logging.LogRecord) -> str:
        """Return the message, with its arguments redacted one by one."""
        if not isinstance(record.msg, str):  # the standard library takes any object
            return "[PHI:type]"
        template, arguments = clean(record, self._redactor)
        return str(template % arguments) if arguments else template


def _level_name(number: int) -> str:
    """Return our name of a level; levels in between count as the one below."""
    return next((name for level, name in _LEVELS if number >= level), "debug")
