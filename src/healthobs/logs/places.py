"""What a record says of where it was made: its level, its place in the code, its thread, process and task.

`logging` takes the place from the function that logs, and Python names threads by a number and a function. But a record can be
made by hand or come from elsewhere, and whoever makes a level or a thread names it.

Limits: levels that were named before redaction began are taken for the code's. The place of a record that comes from another
process is not known to be the code's: it is scanned, and in `strict` masked.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, MutableMapping
from inspect import currentframe
from pathlib import Path
from types import CodeType
from typing import Any

from healthobs.redaction import Redactor

#: Fields of a record that name what it comes from.
ORIGINS = ("threadName", "processName", "taskName")
#: The names that Python gives by itself, with the function that a thread runs.
_GIVEN = re.compile(
    r"MainThread|MainProcess|AnyIO worker thread|healthobs-[a-z0-9_-]{1,80}|(?:Dummy|Thread|ThreadPoolExecutor|Task|asyncio|(?:Spawn|Fork|ForkServer)?(?:Process|PoolWorker))"
    r"[-_]\d{1,6}(?:[_:]\d{1,6})*(?: \((?P<runs>[\w<>]+)\))?"
)
#: How `logging` names a level that nobody named.
_UNNAMED = re.compile(r"Level -?\d{1,3}")
_PLACE = ("pathname", "filename", "module", "funcName")
_NUMBERS = ("lineno", "thread", "process")
#: What `logging` writes where it finds no caller.
_NOWHERE = ("(unknown file)", "(unknown file)", "(unknown file)", "(unknown function)")
_KEPT = 4096


class Places:
    """Decides on what records say of where they were made.

    Args:
        redactor: Decides on what nobody knows.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._levels = frozenset(logging.getLevelNamesMapping())
        self._places: set[tuple[object, ...]] = {_NOWHERE}
        self._functions: set[str] = set()

    def note(self, record: logging.LogRecord) -> None:
        """Learn, while the caller is near on the stack, what of `record` is the code's."""
        if self._redactor.strict:
            self._is_a_place(record.__dict__)
            given = _GIVEN.fullmatch(str(record.threadName))
            if given is not None and given["runs"]:
                self._is_a_function(given["runs"])

    def redact(self, fields: MutableMapping[str, Any]) -> None:
        """Redact the fields of a record that tell where it was made: its thread, process and task, its level and place."""
        for key in ORIGINS:
            name = fields.get(key)
            if isinstance(name, str):
                fields[key] = self._origin(name)
        if self._redactor.mode == "watch":
            return
        for key in _NUMBERS:
            if type(fields.get(key)) not in (int, type(None)):
                fields[key] = 0
        level = str(fields.get("levelname"))
        if level not in self._levels and not _UNNAMED.fullmatch(level):
            fields["levelname"] = self._redactor.name(level)
        if not self._is_a_place(fields):
            for key in _PLACE:
                value = fields.get(key)
                fields[key] = value and self._redactor.name(str(value))
            stack = fields.get("stack_info")
            fields["stack_info"] = (
                None if self._redactor.strict else stack and self._redactor.text(str(stack))
            )

    def _origin(self, name: str) -> str:
        given = _GIVEN.fullmatch(name)
        if given is None:
            return self._redactor.name(name)
        function = given["runs"]
        if not function or self._is_a_function(function):
            return name
        return f"{name[: given.start('runs')]}{self._redactor.name(function)})"

    def _is_a_function(self, name: str) -> bool:
        """Return whether a function of this name is running, or was when it was asked before."""
        if name in self._functions:
            return True
        if any(code.co_name == name for code in _running()):
            if len(self._functions) < _KEPT:
                self._functions.add(name)
            return True
        return False

    def _is_a_place(self, fields: MutableMapping[str, Any]) -> bool:
        """Return whether a record names a function that is running, or was when it was asked before."""
        place = tuple(map(fields.get, _PLACE))
        if not all(type(one) is str for one in place):
            return False
        if place in self._places:
            return True
        path, filename, module, function = place
        if (filename, module) == (Path(str(path)).name, Path(str(path)).stem) and any(
            (code.co_name, code.co_filename) == (function, path) for code in _running()
        ):
            if len(self._places) < _KEPT:
                self._places.add(place)
            return True
        return False


def _running() -> Iterator[CodeType]:
    """Yield the code of each function that is running."""
    frame = currentframe()
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back
