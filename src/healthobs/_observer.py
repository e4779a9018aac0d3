"""Carries out a plan: one clock pair a call, and from it span, sample, count, log line and audit entry.

The plan is bound to an `Observability` once (instruments, children, tracer) and the binding is kept in one
tuple, compared by identity at each call and replaced as a whole.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext, SpanKind, get_current_span, set_span_in_context

from healthobs import _runtime
from healthobs._callables import target
from healthobs._plan import Plan

from healthobs.exceptions import AuditError, AuditWriteError, InstrumentationError
from healthobs.redaction import describe_exception
from healthobs.tracing import record_exception

if TYPE_CHECKING:
    from healthobs.audit.draft import AuditDraft
    from collections.abc import Callable, Mapping

    from healthobs.observability import Observability

OK, ERROR, CANCELLED = "ok", "error", "cancelled"
OUTCOMES = (OK, ERROR, CANCELLED)
_CANCELLATIONS = (asyncio.CancelledError, GeneratorExit)
_KINDS = {kind.name.lower(): kind for kind in SpanKind}


class FunctionObserver:
    """Begins the observation of each call of one function.

    Args:
        fn: What is decorated.
        plan: What its decorators ask for.

    Raises:
        InstrumentationError: `fields` names a parameter that the function does not have.
    """

    def __init__(self, fn: Any, plan: Plan) -> None:
        inner = target(fn)
        self.plan = plan
        self.name = plan.name or getattr(inner, "__qualname__", type(fn).__qualname__).replace(".<locals>", "")
        self._signature = _signature(inner, plan)
        self._binding: _Binding | None = None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ObservedCall | None:
        """Start observing one call; None leaves it alone. Never raises."""
        obs = _runtime.override.get() or _runtime.process.default
        if obs is None:
            return None
        binding = self._binding
        if binding is None or binding.obs is not obs:
            binding = self._binding = _Binding(self, obs)
        if binding.off:
            return None
        return ObservedCall(binding, self.captured(args, kwargs) if self._signature else None)

    def captured(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments that `fields` names, defaults included."""
        assert self._signature is not None  # noqa: S101 - for the type checkers
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            return {}  # the call itself will say so
        bound.apply_defaults()
        return {name: bound.arguments[name] for name in self.plan.capture}


def _signature(inner: Any, plan: Plan) -> inspect.Signature | None:
    if not plan.capture:
        return None
    signature = inspect.signature(inner)
    if any(name not in signature.parameters for name in plan.capture):
        raise InstrumentationError("fields names a parameter that the function does not have")
    return signature


class _Binding:
    """A plan under one `Observability`: everything that is the same for each call."""

    __slots__ = (
        "attributes", "audit", "count", "kind", "name", "obs", "observer", "off", "own_counters", "plan",
        "running", "sample", "shortcut", "tracer",
    )  # fmt: skip

    def __init__(self, observer: FunctionObserver, obs: Observability) -> None:
        plan, on = observer.plan, not obs.settings.disabled
        self.observer, self.obs, self.plan, self.name = observer, obs, plan, observer.name
        prefix = obs.settings.prefix or "healthobs"
        self.tracer = obs.tracing.tracer if on and plan.traced else None
        self.kind = _KINDS[plan.traced.kind] if plan.traced else SpanKind.INTERNAL
        self.attributes = dict(plan.traced.attributes) if plan.traced else None
        self.shortcut = isinstance(getattr(obs.tracing.provider, "sampler", None), ParentBased)
        self.sample: dict[str, Any] | None = None
        self.count: dict[str, Any] | None = None
        self.running: Any = None
        if on and plan.timed:
            timed = obs.metrics.histogram(
                f"{prefix}_operation_duration_seconds", "Duration of an operation", ("operation", "outcome")
            )
            self.sample = {outcome: timed.labels(self.name, outcome).observe for outcome in OUTCOMES}
        if on and any(part.metric is None for part in plan.counted):
            total = obs.metrics.counter(
                f"{prefix}_operations_total", "Operations that ended", ("operation", "outcome")
            )
            self.count = {outcome: total.labels(self.name, outcome).inc for outcome in OUTCOMES}
        if on and plan.in_flight:
            gauge = obs.metrics.gauge(f"{prefix}_operations_in_flight", "Operations that are running", ("operation",))
            self.running = gauge.labels(self.name)
        self.own_counters: tuple[tuple[Any, Callable[[Any], float] | None], ...] = tuple(
            (obs.metrics.counter(part.metric, part.documentation), part.amount)
            for part in plan.counted
            if on and part.metric is not None
        )
        self.audit = plan.audited if obs.audit is not None else None
        telemetry = (self.tracer, self.sample, self.count, self.running, self.own_counters, on and plan.logged)
        self.off = not (any(telemetry) or self.audit or plan.classified)


class ObservedCall:
    """One call: entered when made, left at each pause, finished once."""

    __slots__ = ("_binding", "_captured", "_draft", "_draft_token", "_span", "_start_ns", "_token", "_wall_ns")

    def __init__(self, binding: _Binding, captured: dict[str, Any] | None) -> None:
        self._binding = binding
        self._captured = captured
        self._span: Span | None = None
        self._token: Any = None
        self._draft: AuditDraft | None = None
        self._draft_token: Any = None
        obs, plan = binding.obs, binding.plan
        try:
            if plan.classified is not None:
                exchange = _runtime.exchange.get()
                if exchange is not None:
                    exchange.classify(plan.classified)
            if binding.audit is not None:
                from healthobs.audit.draft import AuditDraft

                self._draft = AuditDraft(action=binding.audit.action, resource_type=binding.audit.resource_type)
            if binding.running is not None:
                binding.running.inc()
            self._wall_ns = obs.clock.wall_ns()
            self._start_ns = obs.clock.monotonic_ns()
            if binding.tracer is not None:
                self._start_span(binding)
            self.enter()
        except Exception:  # noqa: BLE001 - a fault of telemetry is not the caller's
            obs.metrics.count_internal_error("decorator")

    def _start_span(self, binding: _Binding) -> None:
        parent = get_current_span()
        context = parent.get_span_context()
        if binding.shortcut and context.is_valid and not context.is_remote and not context.trace_flags.sampled:
            return  # the sampler would drop it: the parent stays current
        assert binding.tracer is not None  # noqa: S101 - for the type checkers
        self._span = binding.tracer.start_span(
            binding.name, kind=binding.kind, attributes=binding.attributes, start_time=self._wall_ns
        )
        if self._captured and self._span.is_recording():
            values = binding.obs.redactor.mapping(self._captured, signal="trace")
            self._span.set_attributes(values)

    def enter(self) -> None:
        """Make span and audit draft current, on top of the caller's context."""
        if self._span is not None:
            self._token = otel_context.attach(set_span_in_context(self._span))
        if self._draft is not None:
            self._draft_token = _runtime.audit_draft.set(self._draft)

    def leave(self) -> None:
        """Give the caller its own context back."""
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None
        if self._draft_token is not None:
            _runtime.audit_draft.reset(self._draft_token)
            self._draft_token = None

    def finish(self, result: Any, exc: BaseException | None) -> None:
        """End every signal with one duration, then append the audit entry.

        Raises:
            AuditWriteError: Under the policy ``deny``, when the entry is not durable.
        """
        binding = self._binding
        obs = binding.obs
        outcome = OK
        try:
            duration_ns = obs.clock.monotonic_ns() - self._start_ns
            outcome = self._outcome(result, exc)
            self._record(result, exc, outcome, duration_ns)
        except Exception:  # noqa: BLE001 - a fault of telemetry is not the caller's
            obs.metrics.count_internal_error("decorator")
        finally:
            self.leave()
        if self._draft is not None:
            self._append(result, exc, outcome)

    def _outcome(self, result: Any, exc: BaseException | None) -> str:
        if exc is not None:
            return CANCELLED if isinstance(exc, _CANCELLATIONS) else ERROR
        failed = self._binding.plan.error_if
        return ERROR if failed is not None and failed(result) else OK

    def _record(self, result: Any, exc: BaseException | None, outcome: str, duration_ns: int) -> None:
        binding = self._binding
        seconds = duration_ns / 1e9
        span = self._span
        if binding.running is not None:
            binding.running.dec()
        if span is not None:
            if exc is not None and outcome is ERROR:
                record_exception(span, describe_exception(exc))
            span.end(self._wall_ns + duration_ns)
        if binding.sample is not None:
            binding.sample[outcome](seconds, self._exemplar())
        if binding.count is not None:
            binding.count[outcome]()
        if exc is None:
            for counter, amount in binding.own_counters:
                counter.inc(1 if amount is None else amount(result))
        if binding.plan.logged is not None:
            fields: dict[str, Any] = {**(self._captured or {}), "duration_seconds": seconds, "outcome": outcome}
            if exc is not None and outcome is ERROR:
                fields["exc_info"] = exc
            binding.obs.logs.emit(binding.plan.logged, binding.name, fields)

    def _exemplar(self) -> dict[str, str] | None:
        context = (self._span or INVALID_SPAN).get_span_context()
        if not (context.trace_flags.sampled and self._binding.obs.settings.exemplars):
            return None
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def _append(self, result: Any, exc: BaseException | None, outcome: str) -> None:
        binding, draft = self._binding, self._draft
        audit = binding.obs.audit
        assert draft is not None  # noqa: S101 - for the type checkers
        assert audit is not None  # noqa: S101
        if draft.outcome == OK:
            draft.outcome = _audit_outcome(result, exc, outcome)
        span = self._span
        context = (span if span is not None else get_current_span()).get_span_context()
        try:
            receipt = audit.append({**draft.as_mapping(), **_ids(context)})
        except AuditError as failure:
            binding.obs.metrics.count_internal_error("audit")
            assert binding.audit is not None  # noqa: S101
            if (binding.audit.policy or binding.obs.settings.audit_policy) == "deny":
                raise AuditWriteError("the access could not be recorded, so it is not answered") from failure
            binding.obs.logs.emit("error", "audit_entry_lost", {"action": draft.action})
        else:
            exchange = _runtime.exchange.get()
            if exchange is not None:
                exchange.receipt(receipt)


def _ids(context: SpanContext) -> dict[str, str]:
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def _audit_outcome(result: Any, exc: BaseException | None, outcome: str) -> str:
    """Say how the call ended, in the vocabulary of audit entries."""
    if exc is not None:
        return "error"
    status = getattr(result, "status_code", None)
    if isinstance(result, tuple) and len(result) > 1 and isinstance(result[1], int):
        status = result[1]
    if status in (401, 403):
        return "denied"
    if isinstance(status, int) and status >= 400:
        return "failed"
    return "ok" if outcome is OK else "error"
