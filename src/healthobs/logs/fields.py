"""Fields of a line that somebody else writes: which are redacted, which are plumbing, and what is added.

The same for an event of structlog and a record of the standard library, which both are a mapping of names to values.

Limits: plumbing is known by name and type together; anything else under such a name is a field.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import datetime
from typing import Any

from healthobs.logs.records import Own, OwnTexts, Rendered, current_ids, own
from healthobs.logs.stdlib import DONE
from healthobs.logs.substitutes import Substitute, substitute
from healthobs.redaction import Redactor
from healthobs.redaction.apart import Apart
from healthobs.redaction.redactor import MAX_ITEMS

#: Returns an exception's fields as they may leave.
Facts = Callable[[BaseException], Mapping[str, Any]]
#: Returns trace id and span id of the moment, by the names of their fields.
Ids = Callable[[], Mapping[str, str]]
#: What structlog hands on in fields of its own, and what it is then; anything else under these names is a field.
_PLUMBING: Mapping[str, type[Any]] = {
    "_record": logging.LogRecord,
    "_from_structlog": bool,
    "_logger": logging.Logger,
}
_METHODS = frozenset(
    ["debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "msg"]
)
_IDS = ("trace_id", "span_id")
_ZONES_SECONDS = 15 * 3600  #: More than any time zone is away from UTC.


class FieldRedactor:
    """Redacts the fields of lines.

    Args:
        redactor: Decides.
        facts: Tells what may be said of an exception.
        ids: Tells where in a trace a line belongs.
    """

    def __init__(self, redactor: Redactor, facts: Facts, ids: Ids) -> None:
        self._redactor = redactor
        self._facts = facts
        self._ids = ids
        #: Fields in which the time of the line itself may stand.
        self.stamps: set[str] = {"timestamp"}

    def redact(self, fields: MutableMapping[str, Any], keys: Iterable[str]) -> None:
        """Redact the fields of a line under `keys`; what healthobs wrote itself, and plumbing, stays.

        A mark stands for those that are too many.
        """
        apart, left = Apart(), MAX_ITEMS
        for key in keys:
            value = fields[key]
            if isinstance(value, (Own, OwnTexts)):
                continue
            if isinstance(value, Rendered):
                fields[key] = str(self._redactor.text(value))
            elif not _is_plumbing(key, value) and not self._is_of_the_line(key, value):
                left -= 1
                if left >= 0:
                    self._redact(fields, key, apart)
                elif self._redactor.mode != "watch":
                    del fields[key]
        if left < 0 and self._redactor.mode != "watch":
            fields["redaction"] = "[PHI:length]"

    def _is_of_the_line(self, key: str, value: object) -> bool:
        return (key in self.stamps and _is_now(value)) or (
            key in _IDS and type(value) is str and value in current_ids()
        )

    def _redact(self, fields: MutableMapping[str, Any], key: str, apart: Apart) -> None:
        """Redact one field; a name that may not leave goes, and its value with it."""
        name = self._redactor.key(key)
        if name == key or self._redactor.mode == "watch":
            fields[key] = self._redactor.value(key, fields[key])
            return
        del fields[key]
        fields[apart.free(name, fields)] = "[PHI:key]"

    def tell(self, fields: MutableMapping[str, Any], exc: BaseException) -> None:
        """Put what may be said of an exception in its place, in `exc_info` and in fields."""
        if not isinstance(exc, Substitute):
            facts = self._facts(exc)
            fields["exc_info"] = substitute(facts)
            _add(fields, own(facts))

    def add_ids(self, fields: MutableMapping[str, Any]) -> None:
        """Add where in a trace the line belongs."""
        _add(fields, self._ids())


def _add(fields: MutableMapping[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        fields.setdefault(key, value)


def _is_plumbing(key: str, value: object) -> bool:
    """Return whether `value` is what structlog, or our own filter, puts under `key`; not by its name alone."""
    if key == "_name":
        return value in _METHODS if isinstance(value, str) else False
    return isinstance(value, _PLUMBING.get(key, ())) or (key == DONE and type(value) is int)


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
