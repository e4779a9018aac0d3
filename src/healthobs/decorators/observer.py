"""Carries out a plan: one clock pair a call, and from it span, sample, count, log line and audit entry.

Span attributes, `error.type` and the exception event follow the OpenTelemetry semantic conventions; the audit
entry is the one of 45 CFR 164.312(b). The clock stops when the function returns; the entry is appended after
that, and before the value reaches the caller. A call that is denied because it cannot be recorded is an error on
every signal.

Limits: a generator's audit entry is appended before its first item is handed out, so what is annotated later
is not in it; it is counted and logged.
"""

from __future__ import annotations

import asyncio
import inspect
from contextvars import Token
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context, attach
from opentelemetry.trace import Link, Span, Status, StatusCode, get_current_span, set_span_in_context

from healthobs import _runtime
from healthobs._callables import target
from healthobs.decorators.audit_entry import append_entry, refuse_without_trail
from healthobs.decorators.binding import CANCELLED, ERROR, OK, SPAN_KEY, Binding, current_context
from healthobs.decorators.plan import Plan
from healthobs.exceptions import AuditWriteError, InstrumentationError
from healthobs.redaction import describe_exception
from healthobs.tenancy import ATTRIBUTE, here
from healthobs.tracing import record_exception

if TYPE_CHECKING:
    from healthobs.audit.draft import AuditDraft
    from healthobs.observability import Observability

_CANCELLATIONS = (asyncio.CancelledError, GeneratorExit)
_override, _process, _reset = _runtime.override, _runtime.process, _runtime.reset


class Operation:
    """Begins the observation of each call of one function.

    Args:
        fn: What is decorated.
        plan: What its decorators ask for.

    Raises:
        InstrumentationError: `fields` names a parameter that the function does not have.
    """

    __slots__ = ("__weakref__", "_binding", "_signature", "name", "plan")

    def __init__(self, fn: Any, plan: Plan) -> None:
        inner = target(fn)
        self.plan: Plan = plan
        self.name: str = plan.name or _qualified_name(inner)
        self._signature = _signature(inner, plan) if plan.capture else None
        self._binding: Binding | None = None
        _runtime.operations.add(self)

    def declare(self, obs: Observability) -> None:
        """Create the series that calls will add to, at 0."""
        Binding(self.name, self.plan, obs)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], bound: Any = None) -> ObservedCall | None:
        """Start observing one call; None leaves it alone.

        Raises:
            AuditWriteError: The function insists on an entry, and there is no trail.
        """
        obs = _override.get() or _process.default
        if obs is None:
            if self.plan.audited is not None and self.plan.audited.insists:
                raise AuditWriteError(
                    "the access cannot be recorded, so it is not begun: no Observability is in force here; "
                    "call init_app, install or use"
                )
            return None
        binding = self._binding
        if binding is None or binding.obs is not obs:
            binding = self._binding = Binding(self.name, self.plan, obs)
        # Under an unsampled parent this line is all that a `@traced` call costs; `parent_drops` asks it first, too.
        if binding.droppable and current_context().get(SPAN_KEY) is binding.dropping:
            return None
        if binding.spans_only and (binding.tracer is None or (binding.inherits and binding.parent_drops())):
            return None
        if binding.audited is not None and obs.audit is None:
            refuse_without_trail(binding)
        captured = None if self._signature is None else self._captured(binding, args, kwargs, bound)
        return ObservedCall(binding, captured)

    def _captured(
        self, binding: Binding, args: tuple[Any, ...], kwargs: dict[str, Any], bound: Any
    ) -> dict[str, Any]:
        """Return the arguments that `fields` names, defaults included, in the order of the signature."""
        try:
            signature = self._signature if bound is None else inspect.signature(bound)
            assert signature is not None  # noqa: S101 - for the type checkers
            arguments = signature.bind(*args, **kwargs)
            arguments.apply_defaults()
            return {name: value for name, value in arguments.arguments.items() if name in self.plan.capture}
        except TypeError:
            return {}  # wrong arguments: the call itself will say so
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            binding.fault("fields", exc)
            return {}


def _qualified_name(inner: Any) -> str:
    module = getattr(inner, "__module__", None)
    name = getattr(inner, "__qualname__", type(inner).__qualname__).replace(".<locals>", "")
    return f"{module}.{name}" if isinstance(module, str) else name


def _signature(inner: Any, plan: Plan) -> inspect.Signature:
    try:
        signature = inspect.signature(inner)
    except (TypeError, ValueError):
        raise InstrumentationError("fields needs a function whose signature can be read") from None
    unknown = sorted(plan.capture.difference(signature.parameters))
    if unknown:
        raise InstrumentationError(f"fields names {', '.join(unknown)}, which the function does not take")
    return signature


class ObservedCall:
    """One call: entered when made, left at each pause, finished once."""

    __slots__ = (
        "_binding", "_captured", "_context", "_denied", "_draft", "_draft_token", "_inside", "_running", "_span",
        "_start_ns", "_token", "_wall_ns", "_written",
    )  # fmt: skip

    def __init__(self, binding: Binding, captured: dict[str, Any] | None) -> None:
        self._binding = binding
        self._captured = captured
        self._span: Span | None = None
        self._inside: Span | None = None
        self._context: Context | None = None
        self._token: Token[Context] | None = None
        self._draft: AuditDraft | None = None
        self._draft_token: Token[Any] | None = None
        self._running = self._written = self._denied = False
        self._wall_ns = self._start_ns = 0
        try:
            if binding.audited is not None or binding.plan.classified is not None:
                self._begin_exchange()
            if binding.running is not None:
                binding.running.inc()
                self._running = True
            self._wall_ns = binding.wall_ns()
            self._start_ns = binding.monotonic_ns()
            if binding.tracer is not None and not (binding.inherits and binding.parent_drops()):
                parent, links = _elsewhere() if binding.new_trace else (None, ())
                span = self._span = self._inside = binding.tracer.start_span(
                    binding.name, parent, binding.kind, binding.attributes, links, self._wall_ns
                )
                if captured and span.is_recording():
                    span.set_attributes(binding.obs.redactor.mapping(captured, signal="trace"))
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            binding.fault("begin", exc)
        try:
            self.resume()
        except Exception as exc:  # noqa: BLE001 - as above
            binding.fault("begin", exc)

    def _begin_exchange(self) -> None:
        binding = self._binding
        if binding.audited is not None:
            from healthobs.audit.draft import AuditDraft

            self._draft = AuditDraft(
                action=binding.audited.action, resource_type=binding.audited.resource_type
            )
        if binding.plan.classified is not None:
            exchange = _runtime.exchange.get()
            if exchange is not None:
                exchange.classify(binding.plan.classified)

    def resume(self) -> None:
        """Make span and audit draft current, on top of the caller's context."""
        # First: what is annotated must not reach the entry of the call around this one.
        if self._draft is not None:
            self._draft_token = _runtime.audit_draft.set(self._draft)
        elif self._written:
            self._draft_token = _runtime.audit_draft.set(_runtime.WRITTEN)
        if self._inside is not None:
            self._context = set_span_in_context(self._inside)
            self._token = attach(self._context)

    def pause(self) -> None:
        """Give the caller its own context back.

        Raises:
            AuditWriteError: At the first item, under the policy ``deny``, when the entry is not durable.
        """
        if self._token is not None:
            context = current_context()
            if context is not self._context:  # the body keeps a span of its own open across the yield
                self._inside = get_current_span(context)
        if self._draft is not None:
            self._denied = True  # by what this raises: `finish` follows, in the context of the call
            self._append(None, None, OK)
            self._denied, self._written = False, True
        self._leave()

    def _leave(self) -> None:
        # Not `opentelemetry.context.detach`: it logs an error when a coroutine is closed from elsewhere.
        token, self._token = self._token, None
        if token is not None:
            _reset(token)
        draft_token, self._draft_token = self._draft_token, None
        if draft_token is not None:
            _reset(draft_token)

    def finish(self, result: Any, exc: BaseException | None) -> None:
        """Append the audit entry, and end every signal with one duration and what the caller gets.

        Raises:
            AuditWriteError: Under the policy ``deny``, when the entry is not durable.
        """
        binding = self._binding
        now_ns = self._start_ns
        try:
            now_ns = binding.monotonic_ns()
        except Exception as fault:  # noqa: BLE001 - a fault of telemetry is not the caller's
            binding.fault("finish", fault)
        outcome = self._outcome(result, exc)
        duration_ns = now_ns - self._start_ns
        denied: BaseException | None = None
        if self._draft is not None:
            try:
                # Whatever `success_if` says of an exception, what was asked for was not given.
                self._append(result, exc, outcome if exc is None or outcome is not OK else ERROR)
            except BaseException as raised:  # noqa: BLE001 - raised below: it is what the caller gets
                denied = exc = raised
                outcome = ERROR
        ids = None
        if self._span is not None:
            ids = self._end_span(self._span, exc, outcome, duration_ns)
        if binding.measured:
            self._measure(result, outcome, now_ns, duration_ns, ids, returned=exc is None)
        if binding.level is not None:
            self._write(binding.level, exc, outcome, duration_ns, ids)
        self._leave()
        if denied is not None:
            try:
                raise denied
            finally:
                denied = exc = None  # an exception must not keep this frame alive in a cycle

    def _outcome(self, result: Any, exc: BaseException | None) -> str:
        """Say how the call ended, and count it out."""
        binding, outcome = self._binding, OK
        if exc is not None:
            outcome = CANCELLED if isinstance(exc, _CANCELLATIONS) else ERROR
        plan = binding.plan
        try:
            if self._running and binding.running is not None:
                binding.running.dec()
            success_if = None if self._denied else plan.success_if
            if outcome is ERROR and exc is not None and success_if is not None and success_if(exc):
                outcome = OK
            if exc is None and plan.error_if is not None and plan.error_if(result):
                outcome = ERROR
        except Exception as fault:  # noqa: BLE001
            binding.fault("finish", fault)
        return outcome

    def _end_span(
        self, span: Span, exc: BaseException | None, outcome: str, duration_ns: int
    ) -> tuple[str, str, bool] | None:
        """End the span; return its ids as text, and whether it is sampled."""
        ids = None
        try:
            context = span.get_span_context()
            ids = f"{context.trace_id:032x}", f"{context.span_id:016x}", span.is_recording()
            tenant = here(self._binding.tenants) if self._binding.tenants else ""
            if tenant:
                span.set_attribute(ATTRIBUTE, tenant)
            if outcome is ERROR:
                if exc is not None:
                    record_exception(span, describe_exception(exc))
                else:
                    span.set_attribute("error.type", "_OTHER")
                    span.set_status(Status(StatusCode.ERROR))
        except Exception as fault:  # noqa: BLE001
            self._binding.fault("traced", fault)
        try:
            span.end(self._wall_ns + duration_ns)
        except Exception as fault:  # noqa: BLE001 - a span processor may raise
            self._binding.fault("traced", fault)
        return ids

    def _measure(
        self,
        result: Any,
        outcome: str,
        now_ns: int,
        duration_ns: int,
        ids: tuple[str, str, bool] | None,
        *,
        returned: bool,
    ) -> None:
        binding = self._binding
        try:
            series = (outcome, here(binding.tenants)) if binding.tenants else (outcome,)
            if binding.samples is not None:
                seconds = duration_ns / 1e9
                exemplar = None
                pace = binding.pace
                if ids is not None and ids[2] and pace is not None and pace.due(now_ns, seconds):
                    exemplar = {"trace_id": ids[0], "span_id": ids[1]}
                binding.samples[series].observe(seconds, exemplar)
            if binding.counters is not None:
                binding.counters[series].inc()
        except Exception as fault:  # noqa: BLE001
            binding.fault("timed", fault)
        if outcome is OK and returned:
            for instrument, amount, labels in binding.own_counters:
                try:
                    child = instrument.labels(*[str(label(result)) for label in labels])
                    child.inc(1 if amount is None else amount(result))
                except Exception as fault:  # noqa: BLE001 - a callback of the user's may raise
                    binding.fault("counted", fault)

    def _write(
        self,
        level: str,
        exc: BaseException | None,
        outcome: str,
        duration_ns: int,
        ids: tuple[str, str, bool] | None,
    ) -> None:
        binding = self._binding
        seconds = duration_ns / 1e9
        try:
            if level == "info" and outcome is not ERROR and self._captured is None and ids is not None:
                # Nothing in this line comes from data, so it needs no redaction.
                line = {"event": binding.event, "trace_id": ids[0], "span_id": ids[1]}
                binding.obs.logs.access({**line, "duration_seconds": seconds, "outcome": outcome})
                return
            fields: dict[str, Any] = {**(self._captured or {}), "duration_seconds": seconds}
            if exc is not None and outcome is ERROR:
                fields["exc_info"] = exc
            failed = outcome is ERROR and level != "critical"
            written = "error" if failed else level
            binding.obs.logs.emit(written, binding.name, fields, own={"outcome": outcome})
        except Exception as fault:  # noqa: BLE001
            binding.fault("logged", fault)

    def _append(self, result: Any, exc: BaseException | None, outcome: str) -> None:
        draft, self._draft = self._draft, None  # one entry a call, whatever happens
        if draft is not None:
            append_entry(self._binding, draft, self._span or get_current_span(), result, exc, outcome)


def _elsewhere() -> tuple[Context, tuple[Link, ...]]:
    """Return an empty context, and a link to the span that is current here."""
    here = get_current_span().get_span_context()
    return Context(), (Link(here),) if here.is_valid else ()
