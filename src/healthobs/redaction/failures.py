"""Describe an exception without what it says about a patient.

An exception's text is data: `int(ssn)`, `KeyError(mrn)` and a database's ``DETAIL`` carry the value. So an
exception is its type, where it was raised (``module:function:line``, no source and no locals), a
fingerprint of both and an id. The message is kept only when the raising code holds it as a literal:
``raise PaymentError("card expired")``, never a formatted one.

Limits: a literal is recognised by the byte code of a `raise` with one constant argument (CPython 3.11 and
later); a message built first and raised later is dropped, though it may be harmless.
"""

from __future__ import annotations

import dis
import hashlib
import re
import uuid
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, TracebackType
from typing import cast

_MAX_FRAMES = 20
_MAX_CAUSES = 8
_TYPE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,199}")
_ERROR_ID = "_healthobs_error_id"
_SKIPPED = frozenset({"CACHE", "PRECALL", "EXTENDED_ARG", "NOP", "RESUME", "NOT_TAKEN"})


@dataclass(frozen=True, slots=True)
class ExceptionFacts:
    """What may be told of an exception.

    Args:
        type: Qualified name of its class.
        frames: ``module:function:line``, outermost first; the innermost 20.
        fingerprint: 16 hexadecimal digits, equal for the same type raised at the same place.
        message: Its message when that is a literal of the raising code, else None.
        error_id: Names this one failure in every signal; the same exception keeps its id.
        causes: Types of its cause, context or group members, nearest first.
    """

    type: str
    frames: tuple[str, ...]
    fingerprint: str
    message: str | None
    error_id: str
    causes: tuple[str, ...] = ()


def describe_exception(exc: BaseException) -> ExceptionFacts:
    """Return the facts of `exc` that carry no data; never raises.

    Example:
        >>> try:
        ...     int("078-05-1120")
        ... except ValueError as exc:
        ...     facts = describe_exception(exc)
        >>> facts.type, facts.message
        ('ValueError', None)
    """
    name = _type_name(exc)
    tracebacks = _tracebacks(exc)
    frames = tuple(_frame(entry) for entry in tracebacks)
    causes = tuple(_type_name(cause) for cause in _causes(exc))
    # Line numbers stay out: the fingerprint survives an edit elsewhere in the file.
    places = [frame.rpartition(":")[0] for frame in frames]
    digest = hashlib.sha256("\n".join((name, *places, *causes)).encode("utf-8", "replace")).hexdigest()
    message = _literal_message(exc, tracebacks[-1]) if tracebacks else None
    return ExceptionFacts(name, frames, digest[:16], message, _error_id(exc), causes)


def _type_name(exc: BaseException) -> str:
    kind = type(exc)
    name = kind.__qualname__.replace(".<locals>.", ".")
    module = getattr(kind, "__module__", None)
    if isinstance(module, str) and module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    return name if _TYPE_NAME.fullmatch(name) else "[PHI:type]"


def _tracebacks(exc: BaseException) -> list[TracebackType]:
    entries: list[TracebackType] = []
    entry = exc.__traceback__
    while entry is not None:
        entries.append(entry)
        if len(entries) > _MAX_FRAMES:
            del entries[0]
        entry = entry.tb_next
    return entries


def _frame(entry: TracebackType) -> str:
    module = entry.tb_frame.f_globals.get("__name__")
    code = entry.tb_frame.f_code
    function = code.co_qualname.replace(".<locals>.", ".")
    return f"{module if isinstance(module, str) else '?'}:{function}:{entry.tb_lineno}"


def _causes(exc: BaseException) -> list[BaseException]:
    """Return causes, contexts and group members, breadth first, each once."""
    seen: list[BaseException] = [exc]
    for current in seen:
        for one in _nearby(current):
            if len(seen) <= _MAX_CAUSES and not any(one is known for known in seen):
                seen.append(one)
    return seen[1:]


def _nearby(exc: BaseException) -> list[BaseException]:
    cause = exc.__cause__
    if cause is None and not exc.__suppress_context__:
        cause = exc.__context__
    nearby = [] if cause is None else [cause]
    if isinstance(exc, BaseExceptionGroup):
        nearby += cast("BaseExceptionGroup[BaseException]", exc).exceptions
    return nearby


def _error_id(exc: BaseException) -> str:
    """Return the id kept on the exception, so that span, log line and answer name the same failure."""
    try:
        known = exc.__dict__.get(_ERROR_ID)
        if isinstance(known, str):
            return known
        new = uuid.uuid4().hex
        exc.__dict__[_ERROR_ID] = new
    except Exception:  # noqa: BLE001  # a class may forbid it; then each description has an id of its own
        return uuid.uuid4().hex
    return new


def _literal_message(exc: BaseException, raised_at: TracebackType) -> str | None:
    # The argument of a LookupError is the key that was looked up, whoever raises it.
    if isinstance(exc, LookupError):
        return None
    literal = _raised_literal(raised_at.tb_frame.f_code, raised_at.tb_lasti)
    if literal is None:
        return None
    arguments = exc.args
    return literal if len(arguments) == 1 and type(arguments[0]) is str and arguments[0] == literal else None


@lru_cache(maxsize=512)
def _raised_literal(code: CodeType, offset: int) -> str | None:
    """Return the constant of ``raise Type("constant")`` at `offset` of `code`, or None if it is no such thing.

    Byte code is read, not only the constants of the function: ``raise ValueError(kind)`` may carry data that
    happens to equal a constant.
    """
    before: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.offset == offset:
            break
        if instruction.opname not in _SKIPPED:
            before.append(instruction)
    else:
        return None
    if instruction.opname != "RAISE_VARARGS":
        return None
    if instruction.arg == 2 and (not before or not before.pop().opname.startswith("LOAD_")):
        return None  # `raise … from cause`: the cause is one plain load, or we do not know
    if len(before) < 2 or before[-1].opname != "CALL" or before[-1].arg != 1:
        return None
    argument = before[-2]
    constant = argument.argval if argument.opname == "LOAD_CONST" else None
    return constant if type(constant) is str else None
