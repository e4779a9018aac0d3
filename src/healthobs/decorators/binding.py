"""A plan under one `Observability`: instruments, children and tracer, looked up once for all calls."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanKind, Tracer, set_span_in_context

from healthobs.decorators.plan import Audited, Counted, Plan
from healthobs.metrics.exemplars import Pace
from healthobs.metrics.instruments import TENANT
from healthobs.tenancy import here

if TYPE_CHECKING:
    from healthobs.metrics import Child, Instrument, Metrics
    from healthobs.observability import Observability

_T = TypeVar("_T")
OK, ERROR, CANCELLED = "ok", "error", "cancelled"
OUTCOMES = (OK, ERROR, CANCELLED)
#: The key under which OpenTelemetry keeps the current span in a context.
SPAN_KEY = next(iter(set_span_in_context(INVALID_SPAN, Context())))


def _reader() -> Callable[[], Context]:
    """Return what reads OpenTelemetry's current context without its two frames in between."""
    token = attach(Context())
    variable = cast("object", getattr(token, "var", None))
    detach(token)
    if not isinstance(variable, ContextVar):  # another implementation of its context may have none
        return get_current
    return cast("ContextVar[Context]", variable).get


current_context: Callable[[], Context] = _reader()

#: An own counter, what to add, and what its labels are, each told the result.
OwnCounter = tuple["Instrument", Callable[[Any], float] | None, tuple[Callable[[Any], Any], ...]]


def spooled(metrics: Metrics) -> Instrument:
    """Return the counter that calls for somebody: care went on while the audit store was down."""
    return metrics.counter(
        "healthobs_audit_spooled_total",
        "Audit entries that went to the local spool because the store was down",
    )


class Series(dict[tuple[str, ...], "Child"]):
    """The series of one operation in one family, by outcome, and tenant where there are some."""

    def __init__(self, instrument: Instrument, operation: str) -> None:
        super().__init__()
        self._instrument = instrument
        self._operation = operation

    def __missing__(self, values: tuple[str, ...]) -> Child:
        """Make a series that is not there yet; code names them all, so none counts towards the cap."""
        child = self[values] = self._instrument.declare(self._operation, *values)
        return child


class Binding:
    """Everything that is the same for each call of one function under one `Observability`.

    A part that cannot be bound (a metric name that is taken) is left out, counted and logged: the function
    itself must run all the same.

    Args:
        name: Name of the operation.
        plan: What its decorators ask for.
        obs: Where to record.
    """

    __slots__ = (
        "_complained", "attributes", "audited", "counters", "droppable", "dropping", "event", "inherits", "kind", "level",
        "measured", "monotonic_ns", "name", "new_trace", "obs", "own_counters", "pace", "plan", "policy", "running", "samples",
        "spans_only", "tenants", "tracer", "wall_ns",
    )  # fmt: skip

    def __init__(self, name: str, plan: Plan, obs: Observability) -> None:
        on = not obs.settings.disabled
        self.obs: Observability = obs
        self.plan: Plan = plan
        self.name: str = name
        self.event: str = obs.redactor.written(name)
        for key in (*plan.capture, *dict(plan.traced.attributes if plan.traced else ())):
            obs.redactor.written(key)
        self.wall_ns: Callable[[], int] = obs.clock.wall_ns
        self.monotonic_ns: Callable[[], int] = obs.clock.monotonic_ns
        self._complained: set[str] = set()
        self.dropping: object = self
        traced = plan.traced if on else None
        self.tracer: Tracer | None = obs.tracing.tracer if traced else None
        self.kind: SpanKind = SpanKind[traced.kind.upper()] if traced else SpanKind.INTERNAL
        self.attributes: dict[str, Any] | None = (
            dict(traced.attributes) if traced and traced.attributes else None
        )
        self.new_trace: bool = traced is not None and traced.new_trace
        self.inherits: bool = (
            traced is not None and not self.new_trace and _drops_with_parent(obs.tracing.provider)
        )
        self.pace: Pace | None = Pace() if traced and obs.settings.exemplars else None
        self.level: str | None = plan.logged if on else None
        self.tenants: tuple[str, ...] = obs.settings.tenants
        self.samples: Series | None = None
        self.counters: Series | None = None
        self.running: Child | None = None
        self.own_counters: list[OwnCounter] = []
        if on:
            self._bind_metrics()
        self.measured: bool = any((self.samples, self.counters, self.own_counters))
        audited = plan.audited
        self.policy: str = audited.policy if audited and audited.policy else obs.settings.audit_policy
        insists = audited is not None and audited.insists
        # A service that keeps no trail answers all the same, unless the function itself insists on an entry.
        self.audited: Audited | None = audited if obs.audit is not None or insists else None
        others = (self.measured, self.running, self.level, self.audited, plan.classified)
        if audited is not None and self.policy == "spool":
            self._try("audited", lambda: spooled(obs.metrics))  # born at 0
            if obs.audit is not None and obs.audit.spool is None:
                obs.logs.emit("error", "audit_spool_missing", own={"operation": name})
        #: True when only the span is left to ask for, or nothing at all.
        self.spans_only: bool = not any(others)
        self.droppable: bool = self.spans_only and self.inherits

    def _bind_metrics(self) -> None:
        plan, metrics = self.plan, self.obs.metrics
        prefix = f"{self.obs.settings.prefix or 'healthobs'}_operation"
        by_outcome = ("operation", "outcome")
        if plan.timed:
            make = metrics.histogram
            self.samples = self._try(
                "timed",
                lambda: self._children(
                    make(f"{prefix}_duration_seconds", "Duration of an operation", by_outcome, by_tenant=True)
                ),
            )
        if any(part.metric is None for part in plan.counted):
            self.counters = self._try(
                "counted",
                lambda: self._children(
                    metrics.counter(f"{prefix}s_total", "Operations that ended", by_outcome, by_tenant=True)
                ),
            )
        if plan.in_flight:
            self.running = self._try(
                "in_flight",
                lambda: metrics.gauge(
                    f"{prefix}s_in_flight", "Operations that are running", ("operation",)
                ).declare(self.name),
            )
        for part in plan.counted:
            if part.metric is not None:
                own = self._try("counted", partial(self._own_counter, part))
                if own is not None:
                    self.own_counters.append(own)

    def _children(self, instrument: Instrument) -> Series:
        """Create the series of all outcomes at 0: one born above 0 is invisible to `rate()`."""
        series = Series(instrument, self.name)
        for outcome in OUTCOMES:
            series[(outcome, "") if self.tenants else (outcome,)]  # makes it
        return series

    def _own_counter(self, part: Counted) -> OwnCounter:
        names = tuple(name for name, _ in part.labels)
        fns = tuple(fn for _, fn in part.labels)
        tenants = self.tenants if TENANT not in names else ()
        instrument = self.obs.metrics.counter(
            cast("str", part.metric), part.documentation, names, by_tenant=bool(tenants)
        )
        return instrument, part.amount, (*fns, lambda _result: here(tenants)) if tenants else fns

    def _try(self, part: str, make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self.fault(part, exc)
            return None

    def fault(self, part: str, exc: Exception) -> None:
        """Count a fault of telemetry, and log the first one of each part; never raises."""
        self.obs.metrics.count_internal_error("decorators")
        if part not in self._complained:
            self._complained.add(part)
            own = {"operation": self.name, "part": part}
            self.obs.logs.emit("error", "telemetry_fault", {"exc_info": exc}, own=own)

    def parent_drops(self) -> bool:
        """Return whether the sampler would drop a span made here, because the local parent is not sampled."""
        span = current_context().get(SPAN_KEY)
        if span is self.dropping:
            return True
        if type(span) is not NonRecordingSpan:
            return False
        context = span.get_span_context()
        if not context.is_valid or context.is_remote or context.trace_flags.sampled:
            return False
        self.dropping = span  # one request asks many times
        return True


def _drops_with_parent(provider: Any) -> bool:
    """Return whether a span under an unsampled local parent is always dropped, so that it need not be made."""
    sampler = getattr(provider, "sampler", None)
    return (
        isinstance(sampler, ParentBased) and getattr(sampler, "_local_parent_not_sampled", None) is ALWAYS_OFF
    )
