"""What stands in for an exception in somebody else's log line: its type, and what may be said of it.

Formatters render it in their own way, with its places in the code as notes below it (PEP 678); no source, no locals.

Limits: the stand-in is an exception that nobody raised, so it has no traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast


class Substitute(Exception):  # noqa: N818 - rendered under the name of another
    """Base of what stands in for an exception: it holds only what may be said."""


def substitute(facts: Mapping[str, Any]) -> Any:
    """Return an `exc_info` that renders as the exception's type and what may be said of it."""
    message = facts.get("exception_message")
    identified = f"error_id={facts['error_id']}"
    kind = type(str(facts["exception_type"]).rpartition(".")[2], (Substitute,), {"__module__": "builtins"})
    told = kind(f"{message} ({identified})" if message else identified)
    causes = facts.get("exception_causes", ())
    for place in (*facts["exception_frames"], *(f"caused by {cause}" for cause in causes)):
        told.add_note(f"  {place}")
    return kind, told, None


def exception_of(exc_info: object) -> BaseException | None:
    """Return the exception that `exc_info` means, in any of the forms of the standard library, or in a tuple of another form."""
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        parts = cast("tuple[object, ...]", exc_info)
        return next((part for part in parts if isinstance(part, BaseException)), None)
    return sys.exc_info()[1] if exc_info else None
