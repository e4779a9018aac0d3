"""The decorators: each adds a part to the function's one plan, and however many there are, there is one wrapper.

A decorator does only static work at import; which `Observability` is meant is asked at each call, so
decorating before configuring works. Names of parts, spans and outcomes follow the OpenTelemetry semantic
conventions; `outcome` is ``ok``, ``error`` or ``cancelled``.

Limits: on an `@audited` function the entry is appended before the value is returned, so a generator's
entry comes when the iteration ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast, overload

from healthobs import _callables
from healthobs._observer import FunctionObserver
from healthobs._plan import Audited, Classified, Counted, Plan, Traced
from healthobs.exceptions import InstrumentationError

_F = TypeVar("_F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")
_MARK = "__healthobs_plan__"
KINDS = frozenset({"internal", "client", "server", "producer", "consumer"})
LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
CONFIDENTIALITY = frozenset("ULMNRV")


def _apply(fn: Any, plan: Plan) -> Any:
    """Merge `plan` into what `fn` already carries and wrap the original once."""
    mark = getattr(fn, _MARK, None) or getattr(getattr(fn, "__func__", None), _MARK, None)
    if mark is not None and mark[2]() in (fn, getattr(fn, "__func__", None)):
        # functools.wraps copies the mark onto a foreign wrapper: it counts only on the wrapper it was made for.
        fn, plan = mark[0], mark[1].merged(plan)
    observer = FunctionObserver(fn, plan)
    wrapper = _callables.wrap(fn, observer)
    marked = getattr(wrapper, "__func__", wrapper) if isinstance(wrapper, (classmethod, staticmethod)) else wrapper
    setattr(marked, _MARK, (fn, plan, weakref.ref(marked)))
    return wrapper


def _decorate(target: Any, make: Callable[[str | None], Plan]) -> Any:
    """Serve the bare and the called form."""
    if target is None or isinstance(target, str):
        plan = make(target)
        return lambda fn: _apply(fn, plan)
    return _apply(target, make(None))


@overload
def observe(target: _F, /) -> _F: ...
@overload
def observe(
    target: str | None = None,
    /,
    *,
    span: bool = True,
    duration: bool = True,
    count: bool = True,
    in_flight: bool = False,
    log: str | None = None,
    audit: str | None = None,
    fields: Sequence[str] = (),
    error_if: Callable[[Any], bool] | None = None,
    kind: str = "internal",
    attributes: Mapping[str, Any] | None = None,
) -> Callable[[_F], _F]: ...
def observe(
    target: Any = None,
    /,
    *,
    span: bool = True,
    duration: bool = True,
    count: bool = True,
    in_flight: bool = False,
    log: str | None = None,
    audit: str | None = None,
    fields: Sequence[str] = (),
    error_if: Callable[[Any], bool] | None = None,
    kind: str = "internal",
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Record several signals of each call; bare, or with the operation's name.

    Args:
        target: The function (bare form) or the operation's name; default the function's qualified name.
        span: Record a span.
        duration: Record a sample of `<prefix>_operation_duration_seconds`.
        count: Count in `<prefix>_operations_total`.
        in_flight: Keep `<prefix>_operations_in_flight`.
        log: Write one line a call, at this level.
        audit: Append one audit entry a call, with this action.
        fields: Arguments that may be recorded on the span and the log line (redacted); none otherwise.
        error_if: Told the result; True makes the outcome ``error``.
        kind: Span kind: ``internal``, ``client``, ``server``, ``producer`` or ``consumer``.
        attributes: Constant span attributes.

    Raises:
        InstrumentationError: At import, when an argument is wrong or a part was asked for twice.

    Example:
        >>> @observe("read_chart", fields=("ward",))
        ... def read_chart(ward: str) -> int:
        ...     return 3
        >>> read_chart("B2")
        3
    """
    _check("kind", kind, KINDS)
    if log is not None:
        _check("log", log, LEVELS)
    return _decorate(
        target,
        lambda name: Plan(
            name=name,
            traced=Traced(kind, tuple((attributes or {}).items())) if span else None,
            timed=duration,
            counted=(Counted(),) if count else (),
            in_flight=in_flight,
            logged=log,
            audited=None if audit is None else Audited(audit),
            capture=tuple(fields),
            error_if=error_if,
        ),
    )


@overload
def traced(target: _F, /) -> _F: ...
@overload
def traced(
    target: str | None = None,
    /,
    *,
    kind: str = "internal",
    attributes: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
) -> Callable[[_F], _F]: ...
def traced(
    target: Any = None,
    /,
    *,
    kind: str = "internal",
    attributes: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
) -> Any:
    """Record a span of each call; see `observe` for the arguments."""
    _check("kind", kind, KINDS)
    part = Traced(kind, tuple((attributes or {}).items()))
    return _decorate(target, lambda name: Plan(name=name, traced=part, capture=tuple(fields)))


@overload
def timed(target: _F, /) -> _F: ...
@overload
def timed(target: str | None = None, /) -> Callable[[_F], _F]: ...
def timed(target: Any = None, /) -> Any:
    """Record the duration of each call in `<prefix>_operation_duration_seconds{operation,outcome}`."""
    return _decorate(target, lambda name: Plan(name=name, timed=True))


@overload
def counted(target: _F, /) -> _F: ...
@overload
def counted(
    target: str | None = None,
    /,
    *,
    documentation: str = ...,
    amount: Callable[[Any], float] | None = None,
) -> Callable[[_F], _F]: ...
def counted(
    target: Any = None,
    /,
    *,
    documentation: str = "Calls that returned",
    amount: Callable[[Any], float] | None = None,
) -> Any:
    """Count calls.

    Args:
        target: Without a name, each call counts in `<prefix>_operations_total{operation,outcome}`. With
            one (it ends in ``_total``), each call that returns counts in the counter of that name.
        documentation: Help text of that counter.
        amount: Told the result, says how much is added; default 1.
    """
    if isinstance(target, str) and not target.endswith("_total"):
        raise InstrumentationError("a counter's name ends in _total (Prometheus naming): add it")
    return _decorate(target, lambda metric: Plan(counted=(Counted(metric, documentation, amount),)))


@overload
def in_flight(target: _F, /) -> _F: ...
@overload
def in_flight(target: str | None = None, /) -> Callable[[_F], _F]: ...
def in_flight(target: Any = None, /) -> Any:
    """Keep `<prefix>_operations_in_flight{operation}` at the number of calls that are running."""
    return _decorate(target, lambda name: Plan(name=name, in_flight=True))


@overload
def logged(target: _F, /) -> _F: ...
@overload
def logged(
    target: str | None = None, /, *, level: str = "info", fields: Sequence[str] = ()
) -> Callable[[_F], _F]: ...
def logged(target: Any = None, /, *, level: str = "info", fields: Sequence[str] = ()) -> Any:
    """Write one line for each call, named after the operation, with duration and outcome."""
    _check("level", level, LEVELS)
    return _decorate(target, lambda name: Plan(name=name, logged=level, capture=tuple(fields)))


def audited(action: str, /, *, resource_type: str | None = None, policy: str | None = None) -> Callable[[_F], _F]:
    """Append one entry to the audit trail for each call, before its value is returned.

    45 CFR 164.312(b); 21 CFR 11.10(e). The body says whom it was about with `healthobs.audit.annotate`.

    Args:
        action: What was done, such as ``patient.read``.
        resource_type: Kind of record.
        policy: ``deny`` (no value without a durable entry) or ``alert``; default the settings'.

    Raises:
        AuditWriteError: From the call, under ``deny``, when the entry could not be made durable.
    """
    if policy not in (None, "deny", "alert"):
        raise InstrumentationError("policy must be deny or alert")
    part = Audited(action, resource_type, policy)

    def decorate(fn: _F) -> _F:
        return cast("_F", _apply(fn, Plan(audited=part)))

    return decorate


def classified(
    *, conf: str = "R", frameworks: Sequence[str] = (), purpose: Sequence[str] = ()
) -> Callable[[_F], _F]:
    """State how confidential a view's response is; it becomes the response's headers.

    Args:
        conf: HL7 v3 Confidentiality: U, L, M, N, R or V.
        frameworks: Frameworks named in `Compliance`; default the settings'.
        purpose: HL7 v3 PurposeOfUse codes that the response may be used for.
    """
    _check("conf", conf, CONFIDENTIALITY)
    part = Classified(conf, tuple(frameworks), tuple(purpose))

    def decorate(fn: _F) -> _F:
        return cast("_F", _apply(fn, Plan(classified=part)))

    return decorate


def _check(argument: str, value: str, allowed: frozenset[str]) -> None:
    if value not in allowed:
        raise InstrumentationError(f"{argument} must be one of {', '.join(sorted(allowed))}")
