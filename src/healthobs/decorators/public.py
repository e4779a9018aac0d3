"""The public decorators: each checks its arguments and adds its part to the plan."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, get_args, overload

from healthobs import _callables, _runtime
from healthobs.config import FRAMEWORKS, AuditPolicy, LogLevel
from healthobs.decorators.above import note
from healthobs.decorators.observer import Operation
from healthobs.decorators.plan import ACTION, Audited, Classified, Counted, Plan, Traced
from healthobs.exceptions import InstrumentationError, LabelError, MetricNameError
from healthobs.headers import CONFIDENTIALITY
from healthobs.redaction.phi import is_purpose

_F = TypeVar("_F", bound="Callable[..., Any] | classmethod[Any, Any, Any] | staticmethod[Any, Any]")
Kind = Literal["internal", "client", "server", "producer", "consumer"]
Labels = Mapping[str, Callable[[Any], Any]]
POLICIES = get_args(AuditPolicy)
_COUNTER = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*_total\Z")
_COUNTED = "Calls that succeeded"
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")


def _apply(fn: Any, plan: Plan) -> Any:
    """Merge `plan` into what `fn` already carries and wrap the original once."""
    known = _callables.recall(fn)
    if known is not None:
        fn, plan = known[0], known[1].merged(plan)
    elif isinstance(fn, (classmethod, staticmethod)) and _callables.is_plain(fn):
        descriptor = cast("Any", fn)
        return type(descriptor)(_apply(descriptor.__func__, plan))
    _callables.check(fn)
    note(fn, plan)
    # What audits or classifies has something to do where telemetry is switched off, too.
    gate: _callables.Gate = _runtime.process if plan.audited or plan.classified else _runtime.recording
    if plan.audited is not None and plan.audited.insists:
        gate = _runtime.insisting
    return _callables.wrap(fn, Operation(fn, plan).begin, plan, gate)


def _decorate(target: Any, make: Callable[[str | None], Plan]) -> Any:
    """Serve the bare and the called form."""
    if target == "":
        raise InstrumentationError("an operation's name must not be empty: name it or leave it out")
    if target is None or isinstance(target, str):
        plan = make(target)

        def decorate(fn: Any) -> Any:
            return _apply(fn, plan)

        return decorate
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
    count: bool | str = True,
    in_flight: bool = False,
    log: LogLevel | None = None,
    audit: str | None = None,
    fields: Sequence[str] = (),
    labels: Labels | None = None,
    error_if: Callable[[Any], bool] | None = None,
    success_if: Callable[[BaseException], bool] | None = None,
    kind: Kind = "internal",
    attributes: Mapping[str, Any] | None = None,
    new_trace: bool = False,
) -> Callable[[_F], _F]: ...
def observe(
    target: Any = None,
    /,
    *,
    span: bool = True,
    duration: bool = True,
    count: bool | str = True,
    in_flight: bool = False,
    log: LogLevel | None = None,
    audit: str | None = None,
    fields: Sequence[str] = (),
    labels: Labels | None = None,
    error_if: Callable[[Any], bool] | None = None,
    success_if: Callable[[BaseException], bool] | None = None,
    kind: Kind = "internal",
    attributes: Mapping[str, Any] | None = None,
    new_trace: bool = False,
) -> Any:
    """Record several signals of each call; bare, or with the operation's name.

    Args:
        target: The function (bare form) or the operation's name; default the function's qualified name.
        span: Record a span.
        duration: Record a sample of `<prefix>_operation_duration_seconds`.
        count: Count in `<prefix>_operations_total`; or the name of a counter of one's own, see `counted`.
        in_flight: Keep `<prefix>_operations_in_flight`.
        log: Write one line a call, at this level.
        audit: Append one audit entry a call, with this action.
        fields: Arguments that may be recorded on the span and the log line (redacted); none otherwise.
        labels: Labels of the counter of one's own, see `counted`.
        error_if: Told the result; True makes the outcome ``error``.
        success_if: Told an exception; True makes the outcome ``ok``: it is how this function says no. It is
            raised all the same.
        kind: Span kind: ``internal``, ``client``, ``server``, ``producer`` or ``consumer``.
        attributes: Constant span attributes.
        new_trace: Begin a trace of its own and link the caller's: for work that outlives the request.

    Raises:
        InstrumentationError: At import, when an argument is wrong or a part was asked for twice.

    Example:
        >>> @observe("read_chart", fields=("ward",))
        ... def read_chart(ward: str) -> int:
        ...     return 3
        >>> read_chart("B2")
        3
    """
    _check("kind", kind, get_args(Kind))
    if log is not None:
        _check("log", log, get_args(LogLevel))
    metric = count if isinstance(count, str) else None
    counters = (_counter(metric, _COUNTED, None, labels),) if count or labels else ()
    return _decorate(
        target,
        lambda name: Plan(
            name=name,
            traced=Traced(kind, tuple((attributes or {}).items()), new_trace) if span else None,
            timed=duration,
            counted=counters,
            in_flight=in_flight,
            logged=log,
            audited=None if audit is None else _audited(audit),
            capture=_names(fields),
            error_if=error_if,
            success_if=success_if,
        ),
    )


@overload
def traced(target: _F, /) -> _F: ...
@overload
def traced(
    target: str | None = None,
    /,
    *,
    kind: Kind = "internal",
    attributes: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
    new_trace: bool = False,
) -> Callable[[_F], _F]: ...
def traced(
    target: Any = None,
    /,
    *,
    kind: Kind = "internal",
    attributes: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
    new_trace: bool = False,
) -> Any:
    """Record a span of each call; see `observe` for the arguments."""
    _check("kind", kind, get_args(Kind))
    part = Traced(kind, tuple((attributes or {}).items()), new_trace)
    return _decorate(target, lambda name: Plan(name=name, traced=part, capture=_names(fields)))


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
    labels: Labels | None = None,
) -> Callable[[_F], _F]: ...
def counted(
    target: Any = None,
    /,
    *,
    documentation: str = _COUNTED,
    amount: Callable[[Any], float] | None = None,
    labels: Labels | None = None,
) -> Any:
    """Count calls.

    Args:
        target: Without a name, each call counts in `<prefix>_operations_total{operation,outcome}`. With
            one (it ends in ``_total``), each call whose outcome is ``ok`` counts in the counter of that name.
        documentation: Help text of that counter.
        amount: Told the result, says how much is added; default 1.
        labels: Name and value of its labels, the value told the result. Few values each, never a person's:
            beyond `Settings.max_series` they share one series.

    Raises:
        InstrumentationError: At import, when an argument is wrong or a part was asked for twice.

    Example:
        >>> @counted("claims_received_total", amount=len)
        ... def receive(claims: list[str]) -> list[str]:
        ...     return claims
        >>> receive(["a", "b"])
        ['a', 'b']
    """
    return _decorate(target, lambda metric: Plan(counted=(_counter(metric, documentation, amount, labels),)))


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
    target: str | None = None, /, *, level: LogLevel = "info", fields: Sequence[str] = ()
) -> Callable[[_F], _F]: ...
def logged(target: Any = None, /, *, level: LogLevel = "info", fields: Sequence[str] = ()) -> Any:
    """Write one line for each call, named after the operation, with duration and outcome."""
    _check("level", level, get_args(LogLevel))
    return _decorate(target, lambda name: Plan(name=name, logged=level, capture=_names(fields)))


def audited(
    action: str, /, *, resource_type: str | None = None, policy: AuditPolicy | None = None
) -> Callable[[_F], _F]:
    """Append one entry to the audit trail for each call, before its value is returned.

    45 CFR 164.312(b); 21 CFR 11.10(e). The body says whom it was about with `healthobs.audit.annotate`.

    Args:
        action: What was done, such as ``patient.read``.
        resource_type: Kind of record.
        policy: ``deny`` (no value without a durable entry), ``spool`` (the same, but for care under break-glass,
            purpose ``BTG`` or ``ETREAT``, the local spool will do) or ``alert``; default the settings'.

    Raises:
        AuditWriteError: From the call, under ``deny`` and ``spool``, when the entry could not be made durable;
            before the body runs, where the function names one of them and there is no trail, or no `Observability`
            in force. A function that names none runs unaudited there.
    """
    part = _audited(action, resource_type, policy)

    def decorate(fn: _F) -> _F:
        return cast("_F", _apply(fn, Plan(audited=part)))

    return decorate


def classified(
    *, conf: str = "R", frameworks: Sequence[str] = (), purpose: Sequence[str] = ()
) -> Callable[[_F], _F]:
    """State how confidential a view's response is; it becomes the response's headers.

    Args:
        conf: HL7 v3 Confidentiality: U, L, M, N, R or V.
        frameworks: Frameworks named in `Compliance`, of those that `Settings.frameworks` takes; default the settings'.
        purpose: HL7 v3 PurposeOfUse codes that the response may be used for.

    Raises:
        InstrumentationError: At import, when an argument is wrong.
    """
    _check("conf", conf, CONFIDENTIALITY)
    for argument, value in (("frameworks", frameworks), ("purpose", purpose)):
        if isinstance(value, (str, bytes)):
            raise InstrumentationError(f"{argument} takes a sequence of texts, not one text")
    named, codes = tuple(str(name).lower() for name in frameworks), tuple(purpose)
    if not set(named) <= set(FRAMEWORKS):
        raise InstrumentationError(f"frameworks must be among {', '.join(FRAMEWORKS)}")
    if not all(is_purpose(code) for code in codes):
        raise InstrumentationError("purpose takes codes such as 'TREAT', not free text")
    part = Classified(conf, named, codes)

    def decorate(fn: _F) -> _F:
        return cast("_F", _apply(fn, Plan(classified=part)))

    return decorate


def _audited(action: str, resource_type: str | None = None, policy: AuditPolicy | None = None) -> Audited:
    if not isinstance(cast("object", action), str) or not ACTION.match(action):
        raise InstrumentationError(
            "audited needs an action such as 'patient.read': letters, digits and _ . : / -"
        )
    if action.startswith("audit."):
        from healthobs.audit.governance import RESERVED

        if action in RESERVED:
            raise InstrumentationError("audited needs another action: only the trail itself records this one")
    if policy is not None:
        _check("policy", policy, POLICIES)
    return Audited(action, resource_type, policy)


def _counter(
    metric: str | None, documentation: str, amount: Callable[[Any], float] | None, labels: Labels | None
) -> Counted:
    names: Labels = {} if labels is None else labels
    if not isinstance(cast("object", names), Mapping) or not all(map(callable, names.values())):
        raise InstrumentationError(
            "labels takes a mapping of names to functions of the result: write labels={'kind': lambda result: ...}"
        )
    if metric is None:
        if amount is not None or labels:
            raise InstrumentationError(
                "amount and labels need a counter of its own: name it, ending in _total"
            )
    elif not _COUNTER.match(metric):
        raise MetricNameError(
            "a counter's name is letters, digits and underscores and ends in _total: rename it"
        )
    if not all(isinstance(cast("object", name), str) and _LABEL.match(name) for name in names):
        raise LabelError(
            "a label's name is letters, digits and underscores, no digit or two underscores first"
        )
    return Counted(metric, documentation, amount, tuple(sorted(names.items())))


def _names(fields: Sequence[str]) -> frozenset[str]:
    if isinstance(fields, str):
        raise InstrumentationError("fields takes a sequence of names: write fields=('name',)")
    return frozenset(fields)


def _check(argument: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InstrumentationError(f"{argument} must be one of {', '.join(allowed)}")
