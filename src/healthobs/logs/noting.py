"""Loggers of structlog that note which names of fields are written in the code, while the caller is still on the stack.

Only ``strict`` redaction asks for that: there a text may leave when it is a literal of the code.

Limits: loggers that were made before are not covered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from healthobs.redaction import Redactor

#: Methods of structlog's loggers that write from a thread pool.
_ASYNCHRONOUS = (
    "adebug",
    "ainfo",
    "awarning",
    "awarn",
    "aerror",
    "aexception",
    "acritical",
    "afatal",
    "alog",
    "amsg",
)


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
