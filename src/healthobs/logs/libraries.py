"""What a library's record may say in `mask`: numbers, and what is written in the code.

Its other texts are what it was handed, and what it made of that: statements, paths, keys, answers of a peer.

Limits: those of `healthobs.logs.origins`, and of `healthobs.redaction.literals`: a message that a library keeps in a constant of a
module is not known to be written, and is masked. Of a field that is an object only marks of its class are known.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from healthobs.logs.origins import is_library
from healthobs.redaction import Phi, Redactor

VALUE = "[PHI:value]"
#: A name in a template.
NAMED = re.compile(r"%\(([^()]*)\)")
#: Loggers of Python whose records are not told apart by their place in the code.
_JUDGED_APART = frozenset({"asyncio", "py.warnings"})
#: What Python makes of a warning.
_WARNING = re.compile(r"(.*?:\d+: \w+: )(.*?)(\n.*)?", re.DOTALL)


def is_librarys(record: logging.LogRecord, redactor: Redactor) -> bool:
    """Return whether `record` is to be judged as a library's."""
    return (
        redactor.mode == "mask"
        and record.name not in _JUDGED_APART
        and is_library(record.name, record.pathname)
    )


def judged_template(record: logging.LogRecord, template: str, redactor: Redactor) -> str:
    """Return the template of a record as it may leave: a library's when it is written in the code."""
    if is_librarys(record, redactor) and not redactor.is_written(template):
        return VALUE
    return redactor.name(template)


def values(arguments: Any) -> tuple[object, ...]:
    """Return the arguments of a record, whether they are named or not."""
    if isinstance(arguments, Mapping):
        return tuple(cast("Mapping[str, object]", arguments).values())
    return tuple(arguments or ())


def clean_fields(record: logging.LogRecord, redactor: Redactor, keys: Iterable[str]) -> None:
    """Judge, in `mask`, what a library has put into fields of `record`, before anybody else adds some.

    Other objects than texts and collections stay, because filters look at them; they are marks when they are written.
    """
    if keys and is_librarys(record, redactor):
        fields = record.__dict__
        for key in keys:
            if isinstance(fields[key], (str, bytes, Collection)):
                fields[key] = _of_library(fields[key], redactor)


def judged_arguments(template: str, arguments: Any, redactor: Redactor) -> Any:
    """Return of a library's arguments numbers and what is written in the code."""
    if not isinstance(arguments, Mapping):
        return tuple(_of_library(one, redactor) for one in arguments)
    named = cast("Mapping[str, object]", arguments)
    names = NAMED.findall(template)
    if not names:  # it shows the whole mapping
        return (VALUE,)
    return {name: _of_library(named[name], redactor) for name in names if name in named}


def _of_library(value: object, redactor: Redactor) -> object:
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, Phi):
        return str(cast("Phi[object]", value))
    return redactor.text(value) if type(value) is str and redactor.is_written(value) else VALUE


def judged_warning(text: str, redactor: Redactor) -> str:
    """Return a library's warning up to what was made of data."""
    found = _WARNING.fullmatch(text)
    if found is None:
        return VALUE
    return redactor.text(text) if redactor.is_written(found[2]) else redactor.text(found[1]) + VALUE
