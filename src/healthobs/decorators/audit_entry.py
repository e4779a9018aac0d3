"""The audit entry of one `@audited` call: how it ended, the ids it shares, and what happens when it cannot be kept.

45 CFR 164.312(b) (audit controls), 21 CFR 11.10(e). Under the policy ``deny`` nothing is answered without a durable
entry; under ``spool`` neither, but care under break-glass goes on with its entry in the local spool, and an alarm;
under ``alert`` the loss is counted and logged. `docs/explanation/failure-policy.md` has the whole table.

Limits: an append blocks until the disk has it, on an event loop too.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.trace import INVALID_SPAN

from healthobs import _runtime
from healthobs.audit.draft import CARE, AuditDraft
from healthobs.decorators.binding import OK, Binding, spooled
from healthobs.exceptions import AuditWriteError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from healthobs.audit.draft import DetailValue, Placed
    from healthobs.audit.records import Receipt
    from healthobs.compliance.control import Rehearsal
    from healthobs.observability import Observability


def append_entry(
    binding: Binding, draft: AuditDraft, span: Span, result: Any, exc: BaseException | None, outcome: str
) -> None:
    """Append the entry of a call that has ended.

    Args:
        binding: Whose call.
        draft: What the call said about itself.
        span: Whose ids the entry carries.
        result: What was returned.
        exc: What was raised.
        outcome: ``ok``, ``error`` or ``cancelled``.

    Raises:
        AuditWriteError: Under ``deny`` and ``spool``, when the entry is not durable.
    """
    if draft.outcome == OK:
        draft.outcome = audit_outcome(result, exc, outcome)
    exchange = _runtime.exchange.get()
    if exchange is not None and exchange.silent and draft.outcome == "denied":
        return  # a control of this process asked without credentials and was refused: nobody's access
    try:
        if draft.placed is not None and draft.placed.committed():
            receipt = _settle(binding, draft.placed)
        else:
            receipt = _append(binding, draft, span)
        if receipt is not None and exchange is not None:
            exchange.receipt(receipt)
        return
    except Exception as raised:  # noqa: BLE001 - whatever it is, there is no durable entry
        failure = raised
    _alarm(binding, "audit_entry_lost", failure)
    # An interrupt or a cancellation answers nothing: it goes on.
    if binding.policy != "alert" and (exc is None or isinstance(exc, Exception)):
        raise AuditWriteError(
            "the access could not be recorded, so it is not answered; see the log line audit_entry_lost"
        ) from failure


def _append(binding: Binding, draft: AuditDraft, span: Span) -> Receipt | None:
    """Append the entry; return None where it is in the spool."""
    trail = binding.obs.audit
    if trail is None:
        raise AuditWriteError("there is no audit trail; set audit_database_url")
    entry = draft.as_mapping()
    context = span.get_span_context()
    if context.is_valid:
        entry["trace_id"] = f"{context.trace_id:032x}"
        entry["span_id"] = f"{context.span_id:016x}"
    if binding.policy != "spool" or draft.purpose not in CARE:
        return trail.append(entry)
    receipt = trail.append_or_spool(entry)
    if receipt is None:
        spooled(binding.obs.metrics).inc()
        binding.obs.logs.emit("error", "audit_entry_spooled", {}, own={"action": _action(binding)})
    return receipt


def _settle(binding: Binding, placed: Placed) -> Receipt | None:
    """Put the entry that is beside its effect into the log; return None where it waits."""
    receipt = placed.settle()
    if receipt is None:
        _alarm(binding, "audit_entry_waiting", None)
    return receipt


def refuse_without_trail(binding: Binding) -> None:
    """Refuse a call that insists on an entry where there is no trail, before it has any effect.

    Raises:
        AuditWriteError: Always.
    """
    _alarm(binding, "audit_entry_lost", None)
    raise AuditWriteError("the access cannot be recorded, so it is not begun; set audit_database_url")


def _alarm(binding: Binding, event: str, failure: Exception | None) -> None:
    binding.obs.metrics.count_internal_error("audit")
    own = {"action": _action(binding), "policy": binding.policy}
    binding.obs.logs.emit("error", event, {"exc_info": failure}, own=own)


def _action(binding: Binding) -> str:
    """Return the action that stands at the decorator; one that the call annotated may be made of data."""
    return binding.audited.action if binding.audited is not None else ""


def rehearse(obs: Observability) -> Rehearsal:
    """End a call whose entry the trail refuses (PCI DSS 10.7.2), under the service's policy, and say what became of it.

    It is the end that every `@audited` call has, but for its alarm, which is only heard here, as far as it would be written: nothing
    is counted, logged or recorded. The entry is a canary with a detail that no entry may have.
    """
    from healthobs.compliance.control import (
        CANARY_ACTION,
        Rehearsal,
    )  # of a package that not every process needs

    counted: list[str] = []
    told: list[str] = []

    def emit(level: str, event: str, *_fields: object, **_own: object) -> None:
        if obs.logs.writes(level):
            told.append(event)

    heard = SimpleNamespace(
        audit=obs.audit,
        metrics=SimpleNamespace(count_internal_error=counted.append),
        logs=SimpleNamespace(emit=emit),
    )
    binding = cast("Binding", SimpleNamespace(obs=heard, policy=obs.settings.audit_policy, audited=None))
    draft = AuditDraft(CANARY_ACTION, details=cast("dict[str, DetailValue]", {"rehearsal": 0.5}))
    try:
        append_entry(binding, draft, INVALID_SPAN, None, None, OK)
    except AuditWriteError:
        return Rehearsal(False, tuple(counted), tuple(told))
    return Rehearsal(True, tuple(counted), tuple(told))


def audit_outcome(result: Any, exc: BaseException | None, outcome: str) -> str:
    """Say how a call ended in the vocabulary of audit entries: ok, denied (401, 403), failed (4xx, 5xx), error.

    Args:
        result: What was returned: a value, a response with `status_code`, or a Flask pair (body, status as number or text).
        exc: What was raised; HTTP exceptions (werkzeug's, Starlette's) count as the response that they stand for.
        outcome: ``ok``, ``error`` or ``cancelled``.
    """
    status: Any = getattr(result if exc is None else exc, "status_code", None)
    if isinstance(result, tuple):
        pair = cast("Sequence[Any]", result)
        status = pair[1] if len(pair) > 1 else None
    if exc is not None and callable(getattr(exc, "get_response", None)):
        status = getattr(exc, "code", None)
    if isinstance(status, str) and status[:3].isdecimal():
        status = int(status[:3])
    if isinstance(status, int) and status >= 400:
        return "denied" if status in (401, 403) else "failed"
    return "ok" if outcome is OK else "error"
